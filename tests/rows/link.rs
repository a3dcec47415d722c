//! Both ends of a connection, with or without the mesh between them, and moving bytes that can be checked.

use std::{
    fmt, fs, io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    sync::OnceLock,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, sockopt},
};

use crate::said::{errno, lost};

/// What has to happen happens within this, also on a crowded machine.
pub const LIMIT: Duration = Duration::from_secs(30);
/// What has not happened within this does not happen.
pub const NEVER: Duration = Duration::from_millis(500);

/// Whether a program waits inside its calls or between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// Sockets block.
    Blocking,
    /// Sockets never block, not even for a moment after they were made.
    Polling,
}

/// Where to listen and what to dial to come there.
#[derive(Clone, Copy)]
pub struct Road {
    /// Own address.
    pub listen: SocketAddr,
    /// Address that is dialled.
    pub dial: SocketAddr,
}

/// The addresses of a run.
pub struct Link {
    /// IPv4.
    pub four: Road,
    /// IPv6.
    pub six: Road,
}

/// An established connection.
pub struct Pair {
    /// The end that dialled.
    pub client: TcpStream,
    /// The end that accepted.
    pub server: TcpStream,
}

impl Pair {
    /// Both directions: name, sender, reader.
    pub fn ways(&self) -> [(&'static str, &TcpStream, &TcpStream); 2] {
        [("up", &self.client, &self.server), ("down", &self.server, &self.client)]
    }
}

impl Link {
    /// From LISTEN DIAL LISTEN6 DIAL6.
    pub fn parse(args: &[&str]) -> io::Result<Self> {
        let all: Result<Vec<SocketAddr>, _> = args.iter().map(|arg| arg.parse()).collect();
        match all.map_err(|e| lost(&e.to_string()))?[..] {
            [l4, d4, l6, d6] => Ok(Self { four: Road { listen: l4, dial: d4 }, six: Road { listen: l6, dial: d6 } }),
            _ => Err(lost("expected LISTEN DIAL LISTEN6 DIAL6")),
        }
    }

    /// A fresh connection over IPv4.
    pub fn pair(&self, drive: Drive) -> io::Result<Pair> {
        let listener = listen(self.four.listen, 16)?;
        let client = dial(self.four.dial, drive)?;
        Ok(Pair { client, server: accept(&listener, drive)? })
    }
}

/// Uses a connection for both directions, says so, and keeps it open until this process is killed.
pub fn hold(drive: &str, args: &[&str]) -> io::Result<()> {
    let drive = if drive == "blocking" { Drive::Blocking } else { Drive::Polling };
    let road = Link::parse(args)?.four;
    // Kept open, as servers do.
    let listener = listen(road.listen, 16)?;
    let client = dial(road.dial, drive)?;
    let pair = Pair { client, server: accept(&listener, drive)? };
    for (_, from, to) in pair.ways() {
        send_all(from, 1000, 1)?;
        recv_exact(to, 1000, 1);
    }
    println!("held: {}", pair.client.local_addr()?);
    loop {
        std::thread::park();
    }
}

/// A socket that listens. It never blocks.
pub fn listen(at: SocketAddr, backlog: i32) -> io::Result<TcpListener> {
    let fd = socket(at, Drive::Polling)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    rustix::net::bind(&fd, &at)?;
    rustix::net::listen(&fd, backlog)?;
    Ok(fd.into())
}

/// A new socket of the address's family.
pub fn socket(to: SocketAddr, drive: Drive) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags(drive), None)?)
}

fn flags(drive: Drive) -> SocketFlags {
    match drive {
        Drive::Blocking => SocketFlags::CLOEXEC,
        Drive::Polling => SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
    }
}

/// A connected socket.
pub fn dial(to: SocketAddr, drive: Drive) -> io::Result<TcpStream> {
    connect(socket(to, drive)?, to)
}

/// Connects `socket`, waiting outside of the call if it does not block.
pub fn connect(socket: OwnedFd, to: SocketAddr) -> io::Result<TcpStream> {
    match rustix::net::connect(&socket, &to) {
        Ok(()) => {}
        Err(Errno::INPROGRESS) => {
            wait(&socket, PollFlags::OUT, LIMIT)?;
            sockopt::socket_error(&socket)??;
        }
        Err(e) => return Err(e.into()),
    }
    Ok(socket.into())
}

/// The next connection.
pub fn accept(listener: &TcpListener, drive: Drive) -> io::Result<TcpStream> {
    loop {
        if wait(listener, PollFlags::IN, LIMIT)?.is_empty() {
            return Err(lost("nobody came"));
        }
        match rustix::net::accept_with(listener, flags(drive)) {
            Ok(fd) => return Ok(fd.into()),
            Err(Errno::AGAIN | Errno::CONNABORTED) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Waits for one of `events` (errors and hang-ups always count); what there is, nothing when the time is over.
pub fn wait(of: impl AsFd, events: PollFlags, limit: Duration) -> io::Result<PollFlags> {
    let time = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
    loop {
        let fds = &mut [PollFd::new(&of, events)];
        match poll(fds, Some(&time)) {
            Ok(_) => return Ok(fds[0].revents()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// What there is of `events` at this moment.
pub fn now(of: impl AsFd, events: PollFlags) -> io::Result<PollFlags> {
    wait(of, events, Duration::ZERO)
}

/// Waits until `look` says yes.
pub fn until(what: &str, mut look: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let end = Instant::now() + LIMIT;
    while !look()? {
        if Instant::now() > end {
            return Err(lost(&format!("waited for: {what}")));
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// Waits until FIONREAD tells of `bytes`.
pub fn arrived(at: &TcpStream, bytes: u64) -> io::Result<()> {
    until(&format!("{bytes} bytes to arrive"), || Ok(rustix::io::ioctl_fionread(at)? >= bytes))
}

/// Waits until a thread of this process sleeps inside the kernel.
pub fn asleep(tid: i32) -> io::Result<()> {
    until("a thread to block", || {
        let stat = fs::read_to_string(format!("/proc/self/task/{tid}/stat"))?;
        Ok(stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('S')))
    })
}

/// Period of the pattern: a prime, so that no buffer's size divides it.
const PERIOD: usize = 1_048_573;

/// `len` bytes (at most a mebibyte) of the endless pattern number `seed`, from `offset` on.
pub fn pattern(seed: u64, offset: u64, len: usize) -> &'static [u8] {
    static BLOCK: OnceLock<Vec<u8>> = OnceLock::new();
    let block = BLOCK.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut once: Vec<u8> =
            std::iter::repeat_with(|| next().to_ne_bytes()).take(PERIOD / 8 + 1).flatten().collect();
        once.truncate(PERIOD);
        [once.clone(), once].concat()
    });
    let at = ((offset + seed * 65_521) % PERIOD as u64) as usize;
    &block[at..at + len]
}

/// Bytes moved at once.
const CHUNK: u64 = 65_536;

/// Sends `total` bytes of pattern `seed`, waiting wherever the socket does.
pub fn send_all(to: &TcpStream, total: u64, seed: u64) -> io::Result<()> {
    let mut sent = 0;
    while sent < total {
        sent += send_some(to, seed, sent, (total - sent).min(CHUNK), SendFlags::empty())?;
    }
    Ok(())
}

/// Sends up to `len` bytes of pattern `seed` from `offset` on; waits until some are taken.
pub fn send_some(to: &TcpStream, seed: u64, offset: u64, len: u64, flags: SendFlags) -> io::Result<u64> {
    loop {
        match send(to, pattern(seed, offset, len as usize), flags | SendFlags::NOSIGNAL) {
            Ok(n) => return Ok(n as u64),
            Err(Errno::AGAIN) => {
                if wait(to, PollFlags::OUT, LIMIT)?.is_empty() {
                    return Err(lost("cannot send"));
                }
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// What came of reading.
pub struct Got {
    /// Bytes read.
    pub bytes: u64,
    /// They were the pattern.
    pub intact: bool,
    /// What came after the last one, when there was more to ask for.
    pub end: Option<String>,
}

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.bytes, if self.intact { "intact" } else { "other bytes" })?;
        self.end.as_ref().map_or(Ok(()), |end| write!(f, ", then {end}"))
    }
}

/// Reads `total` bytes of pattern `seed`, or what comes before the stream ends.
pub fn recv_exact(from: &TcpStream, total: u64, seed: u64) -> Got {
    recv_from(from, 0, total, seed)
}

/// Reads pattern `seed` until the stream ends.
pub fn recv_all(from: &TcpStream, seed: u64) -> Got {
    recv_from(from, 0, u64::MAX, seed)
}

/// Reads pattern `seed` from `offset` to `total`.
pub fn recv_from(from: &TcpStream, offset: u64, total: u64, seed: u64) -> Got {
    let mut buffer = vec![0; CHUNK as usize];
    let mut got = Got { bytes: offset, intact: true, end: None };
    while got.bytes < total {
        let room = CHUNK.min(total - got.bytes) as usize;
        match recv(from, &mut buffer[..room], RecvFlags::empty()) {
            Ok((0, _)) => got.end = Some("EOF".to_owned()),
            Ok((n, _)) => {
                got.intact &= buffer[..n] == *pattern(seed, got.bytes, n);
                got.bytes += n as u64;
            }
            Err(Errno::AGAIN) => match wait(from, PollFlags::IN, LIMIT) {
                Ok(events) if !events.is_empty() => {}
                _ => got.end = Some("nothing".to_owned()),
            },
            Err(e) => got.end = Some(errno(&e.into())),
        }
        if got.end.is_some() {
            break;
        }
    }
    got
}

/// One `recv` of up to `room` bytes, and what it answered.
pub fn take(from: &TcpStream, room: usize, flags: RecvFlags) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; room];
    let (n, _) = recv(from, &mut buffer[..], flags)?;
    buffer.truncate(n);
    Ok(buffer)
}
