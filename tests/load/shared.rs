//! Callers that share a few connections, each with one question under way: what a Motan client does.

use std::{
    error::Error,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::Instant,
};

use rustix::event::epoll::{self, EventData, EventFlags};

use crate::{
    call::{Figures, Order, Poll, check, socket},
    histogram::Histogram,
};

/// Connections of a Motan client to one endpoint, when nothing else is said.
const CONNECTIONS: usize = 3;

/// One connection and the callers on it.
struct Shared {
    io: TcpStream,
    asked: bool,
    /// When the caller with this number asked; the id of its question is one more.
    since: Vec<Instant>,
    /// Callers with a question under way.
    waiting: usize,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// Calls; see [`crate::call::run`].
pub fn run(order: &Order) -> Result<Figures, Box<dyn Error>> {
    let load = order.load;
    let from = Instant::now() + order.warm;
    let to = from + order.measured;
    let mut poll = Poll::new()?;
    let mut all = Vec::new();
    let connections = CONNECTIONS.min(order.callers).max(1);
    for at in 0..connections {
        let io = socket(order.to)?;
        epoll::add(&poll.epoll, &io, EventData::new_u64(at as u64), EventFlags::OUT)?;
        // The callers are shared out evenly.
        let callers = (order.callers + connections - 1 - at) / connections;
        let since = vec![Instant::now(); callers];
        all.push(Shared { io, asked: false, since, waiting: 0, input: Vec::new(), output: Vec::new() });
    }
    let mut question = load.question();
    let (mut latencies, mut total) = (Histogram::new(), 0);
    let mut scratch = vec![0; 64 << 10];
    loop {
        for at in poll.wait()? {
            let shared = &mut all[at];
            if !shared.asked {
                if let Some(e) = shared.io.take_error()? {
                    return Err(format!("connect to {}: {e}", order.to).into());
                }
                shared.io.set_nodelay(true)?;
                epoll::modify(&poll.epoll, &shared.io, EventData::new_u64(at as u64), EventFlags::IN)?;
                shared.asked = true;
                for caller in 0..shared.since.len() {
                    load.number(&mut question, caller as u64 + 1);
                    shared.output.extend_from_slice(&question);
                    shared.since[caller] = Instant::now();
                }
                shared.waiting = shared.since.len();
                shared.send()?;
                continue;
            }
            match shared.io.read(&mut scratch) {
                Ok(0) => return Err("the connection was closed instead of an answer".into()),
                Ok(n) => shared.input.extend_from_slice(&scratch[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => continue,
                Err(e) => return Err(format!("an answer is missing: {e}").into()),
            }
            let now = Instant::now();
            let mut used = 0;
            while let Some(length) = load.whole(&shared.input[used..]) {
                let answer = &shared.input[used..used + length];
                check(load, answer, length)?;
                used += length;
                let id = load.numbered(answer).unwrap_or(0);
                let caller = usize::try_from(id).ok().and_then(|id| id.checked_sub(1));
                let since = caller.and_then(|caller| shared.since.get_mut(caller));
                let since = since.ok_or_else(|| format!("an answer to {id}, which nobody asked"))?;
                total += 1;
                if now >= from && now < to {
                    latencies.add(now - *since);
                }
                if now >= to {
                    // Calls under way are finished, no other is begun.
                    shared.waiting -= 1;
                } else {
                    *since = now;
                    load.number(&mut question, id);
                    shared.output.extend_from_slice(&question);
                }
            }
            shared.input.drain(..used);
            shared.send()?;
        }
        if all.iter().all(|shared| shared.asked && shared.waiting == 0) {
            return Figures::of(order, &latencies, total);
        }
    }
}

impl Shared {
    /// There are fewer questions than a socket takes at once.
    fn send(&mut self) -> Result<(), Box<dyn Error>> {
        let n = if self.output.is_empty() { 0 } else { self.io.write(&self.output)? };
        if n < self.output.len() {
            return Err(format!("a socket took {n} of {} bytes", self.output.len()).into());
        }
        self.output.clear();
        Ok(())
    }
}
