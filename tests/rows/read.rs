//! Ways to read.

use std::{
    io::{self, IoSliceMut},
    net::{Shutdown, TcpStream},
    sync::mpsc::sync_channel,
    thread,
    time::Duration,
};

use agent::sys::socket;
use rustix::{
    event::{
        PollFlags, Timespec,
        epoll::{self, EventFlags},
    },
    fd::OwnedFd,
    io::Errno,
    net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendFlags, recvmsg},
    thread::gettid,
};

use crate::{
    link::{Drive, LIMIT, Link, arrived, asleep, now, pattern, recv_exact, recv_from, send_all, send_some, take, wait},
    said::{Said, count, done, lost},
};

fn size(answer: Result<Vec<u8>, Errno>) -> String {
    count(answer.map(|bytes| bytes.len()))
}

/// Waits inside `recv` and `send`.
pub fn blocking(link: &Link, said: &mut Said) -> io::Result<()> {
    let pair = link.pair(Drive::Blocking)?;
    for (way, from, to) in pair.ways() {
        let got = thread::scope(|scope| {
            let sender = scope.spawn(|| send_all(from, 3_000_000, 1));
            let got = recv_exact(to, 3_000_000, 1);
            sender.join().map_err(|_| lost("the sender panicked"))??;
            io::Result::Ok(got)
        })?;
        said.line(way, got);
    }
    Ok(())
}

/// Waits in `poll`.
pub fn nonblocking(link: &Link, said: &mut Said) -> io::Result<()> {
    let pair = link.pair(Drive::Polling)?;
    for (way, from, to) in pair.ways() {
        said.line(&format!("{way} too early"), size(take(to, 1000, RecvFlags::empty())));
        send_all(from, 1000, 1)?;
        wait(to, PollFlags::IN, LIMIT)?;
        said.line(&format!("{way} once"), size(take(to, 2000, RecvFlags::empty())));
        said.line(&format!("{way} again"), size(take(to, 2000, RecvFlags::empty())));
        let got = thread::scope(|scope| {
            let sender = scope.spawn(|| send_all(from, 3_000_000, 2));
            let got = recv_exact(to, 3_000_000, 2);
            sender.join().map_err(|_| lost("the sender panicked"))??;
            io::Result::Ok(got)
        })?;
        said.line(&format!("{way} bulk"), got);
    }
    Ok(())
}

/// Both ends send and read at once, whatever `poll` says can be done.
pub fn both_at_once(link: &Link, said: &mut Said) -> io::Result<()> {
    let pair = &link.pair(Drive::Polling)?;
    let (client, server) = thread::scope(|scope| {
        let server = scope.spawn(|| talk(&pair.server, 2, 1));
        let client = talk(&pair.client, 1, 2);
        (client, server.join().map_err(|_| lost("the server panicked")))
    });
    said.line("client", client?);
    said.line("server", server??);
    Ok(())
}

/// Sends pattern `sends` and reads pattern `reads`, each when `poll` says that it can be done.
fn talk(io: &TcpStream, sends: u64, reads: u64) -> io::Result<String> {
    const TOTAL: u64 = 4 << 20;
    let (mut sent, mut got, mut size) = (0, 0, 1);
    while got < TOTAL || sent < TOTAL {
        let out = if sent < TOTAL { PollFlags::OUT } else { PollFlags::empty() };
        let events = wait(io, if got < TOTAL { out | PollFlags::IN } else { out }, LIMIT)?;
        if events.is_empty() {
            return Err(lost(&format!("nothing happens: {got} bytes read and {sent} sent of {TOTAL}")));
        }
        if events.contains(PollFlags::OUT) {
            size = size * 7 % 200_003;
            sent += send_some(io, sends, sent, size.min(TOTAL - sent), SendFlags::empty())?;
            if sent == TOTAL {
                io.shutdown(Shutdown::Write)?;
            }
        }
        if events.contains(PollFlags::IN) {
            match take(io, 65_536, RecvFlags::empty()) {
                Ok(bytes) if bytes == pattern(reads, got, bytes.len()) && !bytes.is_empty() => {
                    got += bytes.len() as u64;
                }
                Ok(bytes) => return Err(lost(&format!("{} other bytes at {got}", bytes.len()))),
                // Told in vain, as may happen to everybody who polls.
                Err(Errno::AGAIN) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(format!("{got} intact"))
}

struct Watch(OwnedFd);

impl Watch {
    fn new(socket: &TcpStream, flags: EventFlags) -> io::Result<Self> {
        let fd = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&fd, socket, epoll::EventData::new_u64(0), flags)?;
        Ok(Self(fd))
    }

    fn next(&self, limit: Duration) -> io::Result<&'static str> {
        let mut events = Vec::with_capacity(1);
        let time = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
        epoll::wait(&self.0, rustix::buffer::spare_capacity(&mut events), Some(&time))?;
        // Copied: the kernel's structure is packed.
        let flags = events.first().map(|event| event.flags);
        Ok(match flags {
            None => "no event",
            Some(flags) if flags == EventFlags::IN => "IN",
            Some(_) => "more than IN",
        })
    }
}

/// Level-triggered epoll: tells again while bytes are left.
pub fn epoll_level(link: &Link, said: &mut Said) -> io::Result<()> {
    let pair = link.pair(Drive::Polling)?;
    for (way, from, to) in pair.ways() {
        let watch = Watch::new(to, EventFlags::IN)?;
        said.line(&format!("{way} before"), watch.next(Duration::ZERO)?);
        send_all(from, 1000, 1)?;
        said.line(&format!("{way} first"), watch.next(LIMIT)?);
        arrived(to, 1000)?;
        said.line(&format!("{way} part"), size(take(to, 400, RecvFlags::empty())));
        said.line(&format!("{way} rest is told"), watch.next(Duration::ZERO)?);
        said.line(&format!("{way} rest"), size(take(to, 1000, RecvFlags::empty())));
        said.line(&format!("{way} after"), watch.next(Duration::ZERO)?);
    }
    Ok(())
}

/// Edge-triggered epoll: tells once for what arrives, and never not at all.
pub fn epoll_edge(link: &Link, said: &mut Said) -> io::Result<()> {
    let pair = link.pair(Drive::Polling)?;
    for (way, from, to) in pair.ways() {
        let watch = Watch::new(to, EventFlags::IN | EventFlags::ET)?;
        send_all(from, 1000, 1)?;
        said.line(&format!("{way} first"), watch.next(LIMIT)?);
        arrived(to, 1000)?;
        said.line(&format!("{way} part"), size(take(to, 400, RecvFlags::empty())));
        send_some(from, 1, 1000, 10, SendFlags::empty())?;
        said.line(&format!("{way} more"), watch.next(LIMIT)?);
        arrived(to, 610)?;
        let rest = recv_from(to, 400, 1010, 1);
        said.line(&format!("{way} rest"), rest);
        let mut told = 0;
        for i in 0..500 {
            send_some(from, 2, i, 1, SendFlags::empty())?;
            if watch.next(LIMIT)? == "IN" {
                told += 1;
            }
            // Up to the EAGAIN after which the edge is armed again.
            while take(to, 16, RecvFlags::empty()).is_ok_and(|some| !some.is_empty()) {}
        }
        said.line(&format!("{way} of 500"), told);
    }
    Ok(())
}

/// `MSG_PEEK` leaves the bytes where they are.
pub fn peek(link: &Link, said: &mut Said) -> io::Result<()> {
    let pair = link.pair(Drive::Polling)?;
    for (way, from, to) in pair.ways() {
        send_all(from, 1000, 1)?;
        arrived(to, 1000)?;
        for (what, room, flags) in [
            ("peek 400", 400, RecvFlags::PEEK),
            ("peek all", 4000, RecvFlags::PEEK),
            ("recv 400", 400, RecvFlags::empty()),
            ("peek rest", 4000, RecvFlags::PEEK),
            ("recv rest", 4000, RecvFlags::empty()),
        ] {
            said.line(&format!("{way} {what}"), size(take(to, room, flags)));
        }
    }
    Ok(())
}

/// `MSG_TRUNC` throws bytes of a stream away.
pub fn trunc(link: &Link, said: &mut Said) -> io::Result<()> {
    let pair = link.pair(Drive::Polling)?;
    for (way, from, to) in pair.ways() {
        send_all(from, 1000, 1)?;
        arrived(to, 1000)?;
        said.line(&format!("{way} thrown away"), size(take(to, 300, RecvFlags::TRUNC)));
        let next = take(to, 1000, RecvFlags::empty())?;
        let follows = next == pattern(1, 300, 700);
        said.line(&format!("{way} next"), format!("{} {}", next.len(), if follows { "intact" } else { "other bytes" }));
    }
    Ok(())
}

/// `FIONREAD` tells what can be read.
pub fn fionread(link: &Link, said: &mut Said) -> io::Result<()> {
    let pair = link.pair(Drive::Polling)?;
    for (way, from, to) in pair.ways() {
        said.line(&format!("{way} before"), rustix::io::ioctl_fionread(to)?);
        send_all(from, 1000, 1)?;
        wait(to, PollFlags::IN, LIMIT)?;
        // A program that is told of bytes asks how many, and reads so many.
        said.line(&format!("{way} all"), rustix::io::ioctl_fionread(to)?);
        take(to, 400, RecvFlags::empty())?;
        said.line(&format!("{way} rest"), rustix::io::ioctl_fionread(to)?);
        take(to, 600, RecvFlags::empty())?;
        said.line(&format!("{way} after"), rustix::io::ioctl_fionread(to)?);
    }
    Ok(())
}

/// `MSG_WAITALL` waits for all.
pub fn waitall(link: &Link, said: &mut Said) -> io::Result<()> {
    let pair = link.pair(Drive::Blocking)?;
    for (way, from, to) in pair.ways() {
        let answer = thread::scope(|scope| {
            let (tell, told) = sync_channel(1);
            let reader = scope.spawn(move || {
                let _ = tell.send(gettid().as_raw_nonzero().get());
                size(take(to, 200, RecvFlags::WAITALL))
            });
            let tid = told.recv().map_err(io::Error::other)?;
            asleep(tid)?;
            send_all(from, 100, 1)?;
            // It takes the first half and sleeps again, or comes back too early.
            wait_taken(to, &reader)?;
            send_all(from, 100, 1)?;
            reader.join().map_err(|_| lost("the reader panicked"))
        })?;
        if answer != "200" {
            wait(to, PollFlags::IN, LIMIT)?;
        }
        let rest = size(take(to, 200, RecvFlags::DONTWAIT));
        said.line(way, format!("{answer}, then {rest}"));
    }
    Ok(())
}

/// Waits until a reader has taken what arrived, or ended.
fn wait_taken(at: &TcpStream, reader: &thread::ScopedJoinHandle<'_, String>) -> io::Result<()> {
    // Nothing tells of bytes that are gone: what has not come back after a while is waiting for more.
    let (reading, _writing) = io::pipe()?;
    let mut quiet = 0;
    crate::link::until("the reader to take the first half", || {
        quiet = if rustix::io::ioctl_fionread(at)? == 0 { quiet + 1 } else { 0 };
        if reader.is_finished() {
            return Ok(true);
        }
        wait(&reading, PollFlags::IN, Duration::from_millis(10))?;
        Ok(quiet >= 20)
    })
}

/// `SO_RCVTIMEO` ends a wait.
pub fn rcvtimeo(link: &Link, said: &mut Said) -> io::Result<()> {
    let pair = link.pair(Drive::Blocking)?;
    for (way, from, to) in pair.ways() {
        to.set_read_timeout(Some(Duration::from_millis(30)))?;
        said.line(&format!("{way} nothing"), size(take(to, 1000, RecvFlags::empty())));
        to.set_read_timeout(Some(LIMIT))?;
        send_all(from, 1000, 1)?;
        arrived(to, 1000)?;
        said.line(&format!("{way} something"), size(take(to, 1000, RecvFlags::empty())));
    }
    Ok(())
}

/// `SO_RCVLOWAT` keeps a reader from being woken for little, on a connection that was used before.
pub fn rcvlowat(link: &Link, said: &mut Said) -> io::Result<()> {
    let pair = link.pair(Drive::Polling)?;
    for (way, from, to) in pair.ways() {
        send_all(from, 1000, 1)?;
        said.line(&format!("{way} before"), recv_exact(to, 1000, 1));
        let set = socket::set_option(to, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 100);
        said.line(&format!("{way} set"), done(set));
        send_all(from, 10, 1)?;
        arrived(to, 10)?;
        said.line(&format!("{way} 10 of 100"), crate::said::events(now(to, PollFlags::IN)?));
        send_all(from, 90, 1)?;
        said.line(&format!("{way} 100 of 100"), crate::said::events(wait(to, PollFlags::IN, LIMIT)?));
        arrived(to, 100)?;
        said.line(&format!("{way} read"), size(take(to, 1000, RecvFlags::empty())));
    }
    Ok(())
}

/// `TCP_INQ` tells with each read how much is left.
pub fn inq(link: &Link, said: &mut Said) -> io::Result<()> {
    let pair = link.pair(Drive::Polling)?;
    for (way, from, to) in pair.ways() {
        said.line(&format!("{way} set"), done(socket::set_option(to, libc::IPPROTO_TCP, libc::TCP_INQ, 1)));
        send_all(from, 1000, 1)?;
        arrived(to, 1000)?;
        let mut buffer = [0; 400];
        let read = recvmsg(
            to,
            &mut [IoSliceMut::new(&mut buffer)],
            // No room for what comes along, and so it is said that something did.
            &mut RecvAncillaryBuffer::new(&mut []),
            RecvFlags::empty(),
        )?;
        let told = read.flags.contains(ReturnFlags::CTRUNC);
        said.line(&format!("{way} read"), format!("{}, {}", read.bytes, if told { "told" } else { "not told" }));
        said.line(&format!("{way} rest"), size(take(to, 1000, RecvFlags::empty())));
    }
    Ok(())
}
