//! Ways to end, and how the other end learns of it.

use std::{
    io,
    net::{Shutdown, TcpStream},
    thread,
    time::Duration,
};

use rustix::{
    event::PollFlags,
    io::Errno,
    net::{RecvFlags, SendFlags, send, sockopt},
};

use crate::{
    link::{Drive, LIMIT, Link, Pair, arrived, pattern, recv_all, recv_exact, send_all, take, wait},
    said::{Said, count, done, events, lost},
};

/// A fresh connection, its ends in the order of the direction: who acts, who sees it.
fn each(link: &Link, mut act: impl FnMut(&'static str, TcpStream, TcpStream) -> io::Result<()>) -> io::Result<()> {
    let Pair { client, server } = link.pair(Drive::Polling)?;
    act("up", client, server)?;
    let Pair { client, server } = link.pair(Drive::Polling)?;
    act("down", server, client)
}

fn read(from: &TcpStream) -> io::Result<String> {
    if wait(from, PollFlags::IN, LIMIT)?.is_empty() {
        return Ok("nothing".to_owned());
    }
    Ok(count(take(from, 100_000, RecvFlags::empty()).map(|bytes| bytes.len())))
}

/// Closing a socket resets its connection.
fn reset_on_close(socket: &TcpStream) -> io::Result<()> {
    Ok(sockopt::set_socket_linger(socket, Some(Duration::ZERO))?)
}

/// `shutdown(SHUT_WR)` with bytes in flight both ways.
pub fn half_close(link: &Link, said: &mut Said) -> io::Result<()> {
    const TOTAL: u64 = 1_000_000;
    let pair = link.pair(Drive::Polling)?;
    let (up, down) = thread::scope(|scope| {
        let sender = |to: &TcpStream, seed| {
            send_all(to, TOTAL, seed)?;
            to.shutdown(Shutdown::Write)
        };
        let up = scope.spawn(move || sender(&pair.client, 1).map(|()| pair.client));
        let down = scope.spawn(move || sender(&pair.server, 2).map(|()| pair.server));
        // Nobody reads before both are stuck or done: everything is in flight.
        let reader = |sent: thread::ScopedJoinHandle<'_, io::Result<TcpStream>>| {
            sent.join().map_err(|_| lost("a sender panicked"))?
        };
        io::Result::Ok((reader(up)?, reader(down)?))
    })?;
    said.line("up", recv_all(&down, 1));
    said.line("down", recv_all(&up, 2));
    // One direction ends long before the other begins.
    each(link, |way, from, to| {
        send_all(&from, 100, 1)?;
        from.shutdown(Shutdown::Write)?;
        said.line(&format!("{way} first"), recv_all(&to, 1));
        said.line(&format!("{way} shut"), count(send(&from, b"x", SendFlags::NOSIGNAL)));
        send_all(&to, 100_000, 2)?;
        drop(to);
        said.line(&format!("{way} answer"), recv_all(&from, 2));
        Ok(())
    })
}

/// `shutdown(SHUT_RD)`: nothing more is waited for, but what comes all the same is there.
pub fn shut_read(link: &Link, said: &mut Said) -> io::Result<()> {
    each(link, |way, from, to| {
        send_all(&from, 100, 1)?;
        arrived(&to, 100)?;
        to.shutdown(Shutdown::Read)?;
        said.line(&format!("{way} before"), read(&to)?);
        said.line(&format!("{way} then"), read(&to)?);
        send_all(&from, 200, 1)?;
        arrived(&to, 200)?;
        said.line(&format!("{way} after"), read(&to)?);
        send_all(&to, 100, 2)?;
        said.line(&format!("{way} back"), recv_exact(&from, 100, 2));
        Ok(())
    })
}

/// `close` with bytes unread: the sender must learn that they were not read.
pub fn close_unread(link: &Link, said: &mut Said) -> io::Result<()> {
    each(link, |way, from, to| {
        send_all(&from, 1000, 1)?;
        arrived(&to, 1000)?;
        drop(to);
        said.line(way, read(&from)?);
        Ok(())
    })
}

/// A reset, after bytes that were read and after bytes that were not.
pub fn reset(link: &Link, said: &mut Said) -> io::Result<()> {
    for unread in [false, true] {
        each(link, |way, from, to| {
            send_all(&from, 1000, 1)?;
            arrived(&to, 1000)?;
            let name = format!("{way} {}", if unread { "unread" } else { "read" });
            if !unread {
                said.line(&name, read(&to)?);
            }
            reset_on_close(&from)?;
            drop(from);
            wait(&to, PollFlags::RDHUP, LIMIT)?;
            said.line(&name, read(&to)?);
            said.line(&name, read(&to)?);
            Ok(())
        })?;
    }
    Ok(())
}

/// What was sent before an orderly close can be read after it, and sending fails in the end.
pub fn close_then_read(link: &Link, said: &mut Said) -> io::Result<()> {
    each(link, |way, from, to| {
        send_all(&from, 50_000, 1)?;
        drop(from);
        wait(&to, PollFlags::RDHUP, LIMIT)?;
        said.line(&format!("{way} read"), recv_all(&to, 1));
        said.line(&format!("{way} again"), read(&to)?);
        let error = loop {
            match send(&to, b"x", SendFlags::NOSIGNAL) {
                // The first ones go, until the answer to them is known.
                Ok(_) => _ = wait(&to, PollFlags::empty(), Duration::from_millis(20))?,
                Err(Errno::AGAIN) => return Err(lost("nobody refuses what is sent")),
                Err(e) => break e,
            }
        };
        said.line(&format!("{way} send"), count(Err(error)));
        Ok(())
    })
}

const ALL: PollFlags =
    PollFlags::IN.union(PollFlags::PRI).union(PollFlags::OUT).union(PollFlags::HUP).union(PollFlags::RDHUP);

/// What `poll` shows once it shows `until`.
fn shown(of: &TcpStream, until: PollFlags) -> io::Result<String> {
    crate::link::until(&format!("an event: {}", events(until)), || Ok(crate::link::now(of, ALL)?.contains(until)))?;
    Ok(events(crate::link::now(of, ALL)?))
}

/// Events of a connection through its life.
pub fn life(link: &Link, said: &mut Said) -> io::Result<()> {
    each(link, |way, from, to| {
        said.line(&format!("{way} open"), shown(&to, PollFlags::OUT)?);
        send_all(&from, 100, 1)?;
        said.line(&format!("{way} bytes"), shown(&to, PollFlags::IN)?);
        said.line(&format!("{way} read"), recv_exact(&to, 100, 1));
        from.shutdown(Shutdown::Write)?;
        said.line(&format!("{way} other's end"), shown(&to, PollFlags::RDHUP)?);
        to.shutdown(Shutdown::Write)?;
        said.line(&format!("{way} both ends"), shown(&to, PollFlags::HUP)?);
        said.line(&format!("{way} its own view"), shown(&from, PollFlags::HUP)?);
        Ok(())
    })?;
    each(link, |way, from, to| {
        // It was used: also a connection that is redirected by now is reset as it should be.
        send_all(&from, 100, 1)?;
        recv_exact(&to, 100, 1);
        reset_on_close(&from)?;
        drop(from);
        said.line(&format!("{way} reset"), shown(&to, PollFlags::HUP)?);
        Ok(())
    })
}

/// `SO_ERROR` tells once why a connection ended.
pub fn so_error(link: &Link, said: &mut Said) -> io::Result<()> {
    each(link, |way, from, to| {
        send_all(&from, 100, 1)?;
        recv_exact(&to, 100, 1);
        said.line(&format!("{way} open"), done(sockopt::socket_error(&to)?));
        reset_on_close(&from)?;
        drop(from);
        wait(&to, PollFlags::RDHUP, LIMIT)?;
        said.line(&format!("{way} reset"), done(sockopt::socket_error(&to)?));
        said.line(&format!("{way} told"), done(sockopt::socket_error(&to)?));
        said.line(&format!("{way} read"), read(&to)?);
        said.line(&format!("{way} send"), count(send(&to, pattern(1, 0, 10), SendFlags::NOSIGNAL)));
        Ok(())
    })
}
