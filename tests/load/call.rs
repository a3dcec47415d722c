//! One thread with many connections, each with one question under way.

use std::{
    error::Error,
    fmt,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use rustix::{
    event::{
        Timespec,
        epoll::{self, EventData, EventFlags},
    },
    fd::OwnedFd,
    net::{AddressFamily, SocketFlags, SocketType},
};

use crate::{
    histogram::Histogram,
    wire::{BODY, Load},
};

/// Nothing on this host takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of one write of [`Load::Bulk`].
const CHUNK: usize = 64 << 10;

/// What to call, and how long.
#[derive(Debug)]
pub struct Order {
    /// What is asked.
    pub load: Load,
    /// Whom.
    pub to: SocketAddr,
    /// Connections at once.
    pub callers: usize,
    /// Calls before this are not counted.
    pub warm: Duration,
    /// How long calls are counted.
    pub measured: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Figures {
    /// Calls in a second; megabytes (10^6) of [`Load::Bulk`].
    pub rate: f64,
    /// Half of the calls were answered within this.
    pub p50_us: f64,
    /// All but a hundredth of the calls were answered within this.
    pub p99_us: f64,
    /// All calls, those that were not counted included; megabytes of [`Load::Bulk`].
    pub total: f64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, p50_us, p99_us, total } = self;
        write!(f, "rate={rate:.3} p50_us={p50_us:.3} p99_us={p99_us:.3} total={total:.3}")
    }
}

/// Calls. An error when a call fails, is answered wrongly, or is not answered within [`PATIENCE`].
pub fn run(order: &Order) -> Result<Figures, Box<dyn Error>> {
    if order.load == Load::Bulk { bulk(order) } else { dialog(order) }
}

/// Does not block, from its first moment on: whoever looks at its flags must not see it otherwise.
pub fn socket(to: SocketAddr) -> Result<TcpStream, Box<dyn Error>> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&fd, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(TcpStream::from(fd)),
        Err(e) => Err(format!("connect to {to}: {e}").into()),
    }
}

/// The events of some descriptors.
pub struct Poll {
    /// Descriptors are added here.
    pub epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poll {
    /// Of none yet.
    pub fn new() -> Result<Self, Box<dyn Error>> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, events: Vec::with_capacity(256) })
    }

    /// Numbers of the connections that something came of.
    pub fn wait(&mut self) -> Result<Vec<usize>, Box<dyn Error>> {
        self.events.clear();
        let limit = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
        epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&limit))?;
        if self.events.is_empty() {
            return Err(format!("nothing came for {} s", PATIENCE.as_secs()).into());
        }
        Ok(self.events.iter().map(|event| event.data.u64() as usize).collect())
    }
}

/// One caller.
struct Caller {
    io: TcpStream,
    since: Instant,
    asked: bool,
    answer: Vec<u8>,
}

struct Dialog<'a> {
    order: &'a Order,
    poll: Poll,
    question: Vec<u8>,
    callers: Vec<Option<Caller>>,
    latencies: Histogram,
    from: Instant,
    to: Instant,
    total: u64,
}

fn dialog(order: &Order) -> Result<Figures, Box<dyn Error>> {
    let from = Instant::now() + order.warm;
    let to = from + order.measured;
    let mut dialog = Dialog {
        order,
        poll: Poll::new()?,
        question: order.load.question(),
        callers: Vec::new(),
        latencies: Histogram::new(),
        from,
        to,
        total: 0,
    };
    for at in 0..order.callers {
        dialog.callers.push(None);
        dialog.connect(at)?;
    }
    let mut scratch = vec![0; 64 << 10];
    while dialog.callers.iter().any(Option::is_some) {
        for at in dialog.poll.wait()? {
            dialog.turn(at, &mut scratch)?;
        }
    }
    let Dialog { latencies, total, .. } = dialog;
    Figures::of(order, &latencies, total)
}

impl Figures {
    /// From the latencies of the calls that count.
    pub fn of(order: &Order, latencies: &Histogram, total: u64) -> Result<Self, Box<dyn Error>> {
        if latencies.total() == 0 {
            return Err(format!("no call ended within the {} ms", order.measured.as_millis()).into());
        }
        Ok(Self {
            rate: latencies.total() as f64 / order.measured.as_secs_f64(),
            p50_us: latencies.quantile_us(0.5),
            p99_us: latencies.quantile_us(0.99),
            total: total as f64,
        })
    }
}

impl Dialog<'_> {
    fn connect(&mut self, at: usize) -> Result<(), Box<dyn Error>> {
        let since = Instant::now();
        let io = socket(self.order.to)?;
        epoll::add(&self.poll.epoll, &io, EventData::new_u64(at as u64), EventFlags::OUT)?;
        self.callers[at] = Some(Caller { io, since, asked: false, answer: Vec::new() });
        Ok(())
    }

    fn turn(&mut self, at: usize, scratch: &mut [u8]) -> Result<(), Box<dyn Error>> {
        let Some(caller) = &mut self.callers[at] else { return Ok(()) };
        let load = self.order.load;
        if !caller.asked {
            if let Some(e) = caller.io.take_error()? {
                return Err(format!("connect to {}: {e}", self.order.to).into());
            }
            caller.io.set_nodelay(true)?;
            epoll::modify(&self.poll.epoll, &caller.io, EventData::new_u64(at as u64), EventFlags::IN)?;
            caller.asked = true;
            // The connection's own time belongs to the call where each has a new one.
            if load != Load::Churn {
                caller.since = Instant::now();
            }
            return ask(&caller.io, &self.question);
        }
        let read = match caller.io.read(scratch) {
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(format!("an answer is missing: {e}").into()),
        };
        if load == Load::Churn {
            // The server closes: its end has the waiting to do, so that callers never run out of ports.
            caller.answer.extend_from_slice(&scratch[..read]);
            if read > 0 {
                return Ok(());
            }
            check(load, &caller.answer, BODY)?;
        } else {
            if read == 0 {
                return Err("the connection was closed instead of an answer".into());
            }
            let whole = if caller.answer.is_empty() {
                load.whole(&scratch[..read]).map(|length| check(load, &scratch[..read], length)).transpose()?
            } else {
                None
            };
            if whole.is_none() {
                caller.answer.extend_from_slice(&scratch[..read]);
                let Some(length) = load.whole(&caller.answer) else { return Ok(()) };
                check(load, &caller.answer, length)?;
                caller.answer.clear();
            }
        }
        let now = Instant::now();
        self.total += 1;
        if now >= self.from && now < self.to {
            self.latencies.add(now - caller.since);
        }
        if now >= self.to {
            // Calls under way are finished, no other is begun.
            self.callers[at] = None;
        } else if load == Load::Churn {
            self.connect(at)?;
        } else {
            caller.since = now;
            ask(&caller.io, &self.question)?;
        }
        Ok(())
    }
}

fn ask(mut io: &TcpStream, question: &[u8]) -> Result<(), Box<dyn Error>> {
    match io.write(question) {
        Ok(n) if n == question.len() => Ok(()),
        Ok(n) => Err(format!("a socket with nothing in it took {n} of {} bytes", question.len()).into()),
        Err(e) => Err(format!("a question could not be sent: {e}").into()),
    }
}

/// An error unless these are one good answer of this length.
pub fn check(load: Load, answer: &[u8], length: usize) -> Result<(), Box<dyn Error>> {
    if answer.len() == length && load.is_good(answer) {
        return Ok(());
    }
    let begin = String::from_utf8_lossy(&answer[..answer.len().min(200)]);
    Err(format!("a wrong answer of {} bytes: {begin:?}", answer.len()).into())
}

/// One stream as fast as it goes; the time ends when the other end says that it has everything.
fn bulk(order: &Order) -> Result<Figures, Box<dyn Error>> {
    let mut poll = Poll::new()?;
    let mut io = socket(order.to)?;
    epoll::add(&poll.epoll, &io, EventData::new_u64(0), EventFlags::OUT)?;
    poll.wait()?;
    if let Some(e) = io.take_error()? {
        return Err(format!("connect to {}: {e}", order.to).into());
    }
    let chunk = vec![b'b'; CHUNK];
    let (start, mut sent) = (Instant::now(), 0_u64);
    while start.elapsed() < order.warm + order.measured {
        match io.write(&chunk) {
            Ok(n) => sent += n as u64,
            Err(e) if e.kind() == ErrorKind::WouldBlock => _ = poll.wait()?,
            Err(e) => return Err(format!("sending: {e}").into()),
        }
    }
    io.shutdown(Shutdown::Write)?;
    epoll::modify(&poll.epoll, &io, EventData::new_u64(0), EventFlags::IN)?;
    let (mut sum, mut have) = ([0; 8], 0);
    while have < sum.len() {
        match io.read(&mut sum[have..]) {
            Ok(0) => return Err("the connection was closed instead of saying how much came".into()),
            Ok(n) => have += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => _ = poll.wait()?,
            Err(e) => return Err(format!("waiting for the sum: {e}").into()),
        }
    }
    let received = u64::from_be_bytes(sum);
    if received != sent {
        return Err(format!("{sent} bytes were sent, {received} came").into());
    }
    let total = sent as f64 / 1e6;
    Ok(Figures { rate: total / start.elapsed().as_secs_f64(), p50_us: 0.0, p99_us: 0.0, total })
}
