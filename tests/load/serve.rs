//! One thread that serves every load on a port of its own.

use std::{
    collections::HashMap,
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
};

use rustix::event::epoll;

use crate::wire::{ALL, Load};

/// Connections that wait to be accepted: more than any number of callers.
const BACKLOG: i32 = 1024;

/// One caller's connection.
struct Conn {
    io: TcpStream,
    load: Load,
    /// A question that is not whole yet.
    input: Vec<u8>,
    /// What the socket did not take yet.
    output: Vec<u8>,
    received: u64,
    /// Nothing more is to come from here once `output` is gone.
    last: bool,
}

/// Serves on `ip` until it is killed; prints `ready` when it accepts.
pub fn run(ip: IpAddr) -> io::Result<()> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut listeners = Vec::new();
    for (at, load) in ALL.into_iter().enumerate() {
        let listener = TcpListener::bind((ip, load.port()))?;
        rustix::net::listen(&listener, BACKLOG)?;
        listener.set_nonblocking(true)?;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(at as u64), epoll::EventFlags::IN)?;
        listeners.push((listener, load));
    }
    println!("ready");
    let mut conns: HashMap<u64, Conn> = HashMap::new();
    let mut next = listeners.len() as u64;
    let mut scratch = vec![0; 256 << 10];
    let mut events = Vec::with_capacity(256);
    loop {
        events.clear();
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            let key = event.data.u64();
            if let Some((listener, load)) = usize::try_from(key).ok().and_then(|at| listeners.get(at)) {
                while let Some(conn) = accept(listener, *load)? {
                    epoll::add(&epoll, &conn.io, epoll::EventData::new_u64(next), epoll::EventFlags::IN)?;
                    conns.insert(next, conn);
                    next += 1;
                }
            } else if let Some(conn) = conns.get_mut(&key) {
                let waited = !conn.output.is_empty();
                // A connection that fails is its caller's to complain of.
                let goes_on = conn.turn(&mut scratch).unwrap_or(false);
                let waits = !conn.output.is_empty();
                if !goes_on {
                    conns.remove(&key);
                } else if waits != waited {
                    // Nothing more is read while answers wait, so that a slow reader holds little here.
                    let what = if waits { epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
                    epoll::modify(&epoll, &conn.io, epoll::EventData::new_u64(key), what)?;
                }
            }
        }
    }
}

fn accept(listener: &TcpListener, load: Load) -> io::Result<Option<Conn>> {
    use rustix::net::SocketFlags;
    match rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
        Ok(fd) => {
            let io = stream(fd)?;
            Ok(Some(Conn { io, load, input: Vec::new(), output: Vec::new(), received: 0, last: false }))
        }
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn stream(fd: OwnedFd) -> io::Result<TcpStream> {
    let io = TcpStream::from(fd);
    io.set_nodelay(true)?;
    Ok(io)
}

impl Conn {
    /// Does what can be done now; false when the connection is done.
    fn turn(&mut self, scratch: &mut [u8]) -> io::Result<bool> {
        if self.output.is_empty() && !self.last {
            match self.io.read(scratch) {
                Ok(0) if self.load == Load::Bulk => {
                    self.output.extend_from_slice(&self.received.to_be_bytes());
                    self.last = true;
                }
                Ok(0) => return Ok(false),
                Ok(n) => self.take(&scratch[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(e) => return Err(e),
            }
        }
        while !self.output.is_empty() {
            match self.io.write(&self.output) {
                Ok(n) => _ = self.output.drain(..n),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(e) => return Err(e),
            }
        }
        Ok(!self.last)
    }

    fn take(&mut self, bytes: &[u8]) {
        self.received += bytes.len() as u64;
        if self.load == Load::Bulk {
            return;
        }
        if self.input.is_empty() {
            let used = self.answer(bytes);
            self.input.extend_from_slice(&bytes[used..]);
        } else {
            let mut input = std::mem::take(&mut self.input);
            input.extend_from_slice(bytes);
            let used = self.answer(&input);
            input.drain(..used);
            self.input = input;
        }
    }

    /// Answers the whole questions in `bytes` and says how many bytes they were.
    fn answer(&mut self, bytes: &[u8]) -> usize {
        let mut used = 0;
        while let Some(length) = self.load.whole(&bytes[used..]) {
            self.load.answer(&bytes[used..used + length], &mut self.output);
            used += length;
            self.last |= self.load == Load::Churn;
        }
        used
    }
}
