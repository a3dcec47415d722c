//! Ways to come together.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr},
    thread,
    time::Duration,
};

use rustix::{
    event::PollFlags,
    net::{RecvFlags, SendFlags, sockopt},
};

use crate::{
    link::{
        Drive, Got, LIMIT, Link, NEVER, Pair, accept, connect, dial, listen, recv_all, recv_exact, send_all, send_some,
        socket, take, wait,
    },
    said::{Said, count, errno, lost},
};

fn talk(pair: &Pair, said: &mut Said) -> io::Result<()> {
    for (way, from, to) in pair.ways() {
        send_all(from, 100_000, 1)?;
        said.line(way, recv_exact(to, 100_000, 1));
    }
    Ok(())
}

/// Addresses are those that were asked for.
fn told(pair: &Pair, asked: SocketAddr, listens: SocketAddr, said: &mut Said) -> io::Result<()> {
    let same = |is: bool| if is { "as asked" } else { "another" };
    said.line("client's peer", same(pair.client.peer_addr()? == asked));
    let own = pair.client.local_addr()?;
    said.line("client's own", if own.ip().to_canonical().is_loopback() { "loopback" } else { "another" });
    said.line("server's own", same(pair.server.local_addr()? == listens));
    let canonical = |addr: SocketAddr| (addr.ip().to_canonical(), addr.port());
    let client = canonical(pair.server.peer_addr()?) == canonical(own);
    said.line("server's peer", if client { "the client" } else { "another" });
    Ok(())
}

/// `getsockname` and `getpeername`.
pub fn names(link: &Link, said: &mut Said) -> io::Result<()> {
    let pair = link.pair(Drive::Polling)?;
    told(&pair, link.four.dial, link.four.listen, said)
}

/// A client that binds before it connects.
pub fn bind_first(link: &Link, said: &mut Said) -> io::Result<()> {
    let listener = listen(link.four.listen, 16)?;
    let fd = socket(link.four.dial, Drive::Polling)?;
    let own = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    rustix::net::bind(&fd, &own)?;
    let bound = SocketAddr::try_from(rustix::net::getsockname(&fd)?)?;
    let client = connect(fd, link.four.dial)?;
    let pair = Pair { server: accept(&listener, Drive::Polling)?, client };
    said.line("client's own", if pair.client.local_addr()? == bound { "as bound" } else { "another" });
    told(&pair, link.four.dial, link.four.listen, said)?;
    talk(&pair, said)
}

/// A socket that speaks nothing but IPv6.
pub fn v6only(link: &Link, said: &mut Said) -> io::Result<()> {
    let listener = listen(link.six.listen, 16)?;
    let fd = socket(link.six.dial, Drive::Polling)?;
    sockopt::set_ipv6_v6only(&fd, true)?;
    let client = connect(fd, link.six.dial)?;
    let pair = Pair { server: accept(&listener, Drive::Polling)?, client };
    told(&pair, link.six.dial, link.six.listen, said)?;
    talk(&pair, said)
}

/// An IPv6 socket that dials an IPv4 address in its mapped form, as JVMs do.
pub fn mapped(link: &Link, said: &mut Said) -> io::Result<()> {
    let listener = listen(link.four.listen, 16)?;
    let IpAddr::V4(v4) = link.four.dial.ip() else { return Err(lost("DIAL is not IPv4")) };
    let to = SocketAddr::from((v4.to_ipv6_mapped(), link.four.dial.port()));
    let client = dial(to, Drive::Polling)?;
    let pair = Pair { server: accept(&listener, Drive::Polling)?, client };
    told(&pair, to, link.four.listen, said)?;
    talk(&pair, said)
}

/// Nobody listens: the connect says so, or else the first read.
pub fn refused(link: &Link, said: &mut Said) -> io::Result<()> {
    let end = match dial(link.four.dial, Drive::Polling) {
        Err(e) => errno(&e),
        Ok(client) => {
            wait(&client, PollFlags::IN, LIMIT)?;
            count(take(&client, 1, RecvFlags::empty()).map(|bytes| bytes.len()))
        }
    };
    said.line("end", end);
    Ok(())
}

const CALLERS: u64 = 20;
const BYTES: u64 = 200_000;

/// Twenty dial at once a listener that takes two; each gets back what it sent, and nothing else.
pub fn backlog(link: &Link, said: &mut Said) -> io::Result<()> {
    let listener = listen(link.four.listen, 1)?;
    let ends = thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS).map(|seed| scope.spawn(move || call(link.four.dial, seed))).collect();
        // The queue overflows before anybody is let in.
        wait(&listener, PollFlags::IN, LIMIT)?;
        let (nothing, _kept) = io::pipe()?;
        wait(&nothing, PollFlags::IN, NEVER)?;
        while !callers.iter().all(thread::ScopedJoinHandle::is_finished) {
            if wait(&listener, PollFlags::IN, Duration::from_millis(20))?.is_empty() {
                continue;
            }
            let server = accept(&listener, Drive::Polling)?;
            scope.spawn(move || echo(&server));
        }
        callers.into_iter().map(|c| c.join().map_err(|_| lost("a caller panicked"))).collect::<Result<Vec<_>, _>>()
    })?;
    let whole = format!("{BYTES} intact, then EOF");
    said.line("whole", ends.iter().filter(|end| **end == whole).count());
    for other in ends.iter().filter(|end| **end != whole) {
        said.line("other", other);
    }
    Ok(())
}

/// One caller: what came back. A connection that ended before anything came back was not let in; then it
/// dials again, as programs do.
fn call(to: SocketAddr, seed: u64) -> String {
    let mut end = String::new();
    for _ in 0..10 {
        match attempt(to, seed) {
            Ok(got) if got.bytes > 0 => return got.to_string(),
            Ok(got) => end = got.to_string(),
            Err(e) => end = errno(&e),
        }
    }
    end
}

fn attempt(to: SocketAddr, seed: u64) -> io::Result<Got> {
    let client = &dial(to, Drive::Polling)?;
    // The first bytes leave while the connection may still wait to be accepted.
    let first = send_some(client, seed, 0, 100, SendFlags::empty())?;
    thread::scope(|scope| {
        let sender = scope.spawn(move || {
            let mut sent = first;
            while sent < BYTES {
                sent += send_some(client, seed, sent, (BYTES - sent).min(1000), SendFlags::empty())?;
            }
            client.shutdown(Shutdown::Write)
        });
        let got = recv_all(client, seed);
        if got.bytes == 0 {
            // Nobody is there; the sender need not wait for it either.
            let _ = client.shutdown(Shutdown::Both);
        }
        let sent = sender.join().map_err(|_| lost("a sender panicked"))?;
        if got.bytes > 0 {
            sent?;
        }
        Ok(got)
    })
}

/// Sends back everything, then closes.
fn echo(socket: &std::net::TcpStream) -> io::Result<()> {
    loop {
        wait(socket, PollFlags::IN, LIMIT)?;
        let bytes = match take(socket, 65_536, RecvFlags::empty()) {
            Ok(bytes) if bytes.is_empty() => return Ok(()),
            Ok(bytes) => bytes,
            Err(rustix::io::Errno::AGAIN) => continue,
            Err(e) => return Err(e.into()),
        };
        let mut left = &bytes[..];
        while !left.is_empty() {
            match rustix::net::send(socket, left, SendFlags::NOSIGNAL) {
                Ok(n) => left = &left[n..],
                Err(rustix::io::Errno::AGAIN) => _ = wait(socket, PollFlags::OUT, LIMIT)?,
                Err(e) => return Err(e.into()),
            }
        }
    }
}
