//! Sockets in more hands than one.

use std::{
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    net::{Shutdown, TcpStream},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, Stdio},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, send, sendmsg,
};

use crate::{
    link::{Drive, LIMIT, Link, recv_all, recv_exact, send_all, take, wait},
    said::{Said, lost},
};

/// Argument of a process that takes a socket.
pub const TAKER: &str = "--taker";
/// Argument of a process that shares one.
pub const SHARER: &str = "--sharer";

const TOTAL: u64 = 1_000_000;

/// This program once more. Only the child holds what it is given.
fn again(part: &str, input: Stdio, output: Stdio) -> io::Result<Child> {
    Command::new(std::env::current_exe()?).arg(part).stdin(input).stdout(output).spawn()
}

/// A descriptor passed to another process by `SCM_RIGHTS`, and used only there.
pub fn passed(link: &Link, said: &mut Said) -> io::Result<()> {
    for (name, client_goes) in [("client", true), ("server", false)] {
        let pair = link.pair(Drive::Polling)?;
        // It was used before it goes.
        send_all(&pair.client, 1000, 5)?;
        recv_exact(&pair.server, 1000, 5);
        let (goes, stays) = if client_goes { (pair.client, pair.server) } else { (pair.server, pair.client) };
        let (ours, theirs) = UnixStream::pair()?;
        let mut taker = again(TAKER, OwnedFd::from(theirs).into(), Stdio::piped())?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let goes_fd = [goes.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&goes_fd));
        sendmsg(&ours, &[IoSlice::new(b"x")], &mut control, SendFlags::empty())?;
        drop(goes);
        send_all(&stays, TOTAL, 3)?;
        said.line(&format!("{name} back"), recv_all(&stays, 4));
        let mut text = String::new();
        taker.stdout.take().ok_or_else(|| lost("no output"))?.read_to_string(&mut text)?;
        said.line(&format!("{name} there"), text.trim());
        said.line(&format!("{name} ended"), taker.wait()?);
    }
    Ok(())
}

/// The process that takes a socket from its standard input.
pub fn taker() -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(rustix::stdio::stdin(), &mut [IoSliceMut::new(&mut [0; 1])], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut socket = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            socket = fds.next();
        }
    }
    let socket = TcpStream::from(socket.ok_or_else(|| lost("no socket came"))?);
    println!("{}", recv_exact(&socket, TOTAL, 3));
    send_all(&socket, TOTAL, 4)
}

/// A socket that a parent and its child both use.
pub fn forked(link: &Link, said: &mut Said) -> io::Result<()> {
    let pair = link.pair(Drive::Polling)?;
    let mut child = again(SHARER, Stdio::piped(), OwnedFd::from(pair.client.try_clone()?).into())?;
    let mut orders = child.stdin.take().ok_or_else(|| lost("no input"))?;
    let mut seen = String::new();
    let mut see = |bytes: usize| -> io::Result<()> {
        let mut more = Vec::new();
        while more.len() < bytes {
            if wait(&pair.server, rustix::event::PollFlags::IN, LIMIT)?.is_empty() {
                break;
            }
            more.extend(take(&pair.server, bytes - more.len(), RecvFlags::empty())?);
        }
        seen.push_str(&String::from_utf8_lossy(&more));
        Ok(())
    };
    for _ in 0..5 {
        send(&pair.client, b"parent ", SendFlags::NOSIGNAL)?;
        see(7)?;
        orders.write_all(b"w")?;
        see(6)?;
    }
    // Both read as well, each its part.
    send(&pair.server, b"12", SendFlags::NOSIGNAL)?;
    wait(&pair.client, rustix::event::PollFlags::IN, LIMIT)?;
    let first = take(&pair.client, 1, RecvFlags::empty())?;
    orders.write_all(b"r")?;
    see(1)?;
    send(&pair.client, &first, SendFlags::NOSIGNAL)?;
    see(1)?;
    // The parent's copy goes; the connection stays.
    drop(pair.client);
    orders.write_all(b"w")?;
    see(6)?;
    said.line("seen", &seen);
    drop(orders);
    said.line("in the end", recv_all(&pair.server, 1));
    said.line("child", child.wait()?);
    Ok(())
}

/// The process that shares its standard output, which is a socket.
pub fn sharer() -> io::Result<()> {
    let socket = TcpStream::from(rustix::stdio::stdout().try_clone_to_owned()?);
    for order in io::stdin().lock().bytes() {
        if order? == b'w' {
            send(&socket, b"child ", SendFlags::NOSIGNAL)?;
        } else {
            wait(&socket, rustix::event::PollFlags::IN, LIMIT)?;
            let byte = take(&socket, 1, RecvFlags::empty())?;
            send(&socket, &byte, SendFlags::NOSIGNAL)?;
        }
    }
    Ok(())
}

/// Two descriptors of one socket.
pub fn duped(link: &Link, said: &mut Said) -> io::Result<()> {
    for (name, dups_client) in [("client", true), ("server", false)] {
        let pair = link.pair(Drive::Polling)?;
        let (one, other) = if dups_client { (pair.client, pair.server) } else { (pair.server, pair.client) };
        let two = one.try_clone()?;
        send_all(&one, 1000, 1)?;
        said.line(&format!("{name} one"), recv_exact(&other, 1000, 1));
        send_all(&two, 1000, 2)?;
        said.line(&format!("{name} two"), recv_exact(&other, 1000, 2));
        drop(one);
        send_all(&two, 1000, 3)?;
        said.line(&format!("{name} one is closed"), recv_exact(&other, 1000, 3));
        send_all(&other, 1000, 4)?;
        said.line(&format!("{name} back"), recv_exact(&two, 1000, 4));
        let three = two.try_clone()?;
        two.shutdown(Shutdown::Write)?;
        said.line(&format!("{name} one is shut"), recv_all(&other, 1));
        said.line(&format!("{name} for both"), crate::said::count(send(&three, b"x", SendFlags::NOSIGNAL)));
    }
    Ok(())
}
