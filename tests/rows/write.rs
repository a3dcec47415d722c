//! Ways to send.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut, Write as _},
    net::TcpStream,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::Duration,
};

use agent::sys::socket;
use rustix::{
    event::PollFlags,
    fs::{MemfdFlags, memfd_create},
    io::Errno,
    net::{RecvAncillaryBuffer, RecvFlags, SendFlags, recvmsg, send, sockopt},
};

use crate::{
    link::{
        Drive, Got, LIMIT, Link, NEVER, arrived, pattern, recv_exact, recv_from, send_all, send_some, take, until, wait,
    },
    said::{Said, count, done, events, lost},
};

/// Runs `sender` on a thread of its own while `total` bytes of pattern 1 are read.
fn while_reading(to: &TcpStream, total: u64, sender: impl FnOnce() -> io::Result<()> + Send) -> io::Result<Got> {
    thread::scope(|scope| {
        let sender = scope.spawn(sender);
        let got = recv_exact(to, total, 1);
        sender.join().map_err(|_| lost("the sender panicked"))??;
        Ok(got)
    })
}

/// `sendmsg` with 1000 pieces.
pub fn iovecs(link: &Link, said: &mut Said) -> io::Result<()> {
    const PIECE: usize = 777;
    let pair = link.pair(Drive::Polling)?;
    for (way, from, to) in pair.ways() {
        let total = (PIECE * 1000) as u64;
        let got = while_reading(to, total, || {
            let mut pieces: Vec<_> = (0..1000).map(|i| IoSlice::new(pattern(1, (i * PIECE) as u64, PIECE))).collect();
            let (mut left, mut from) = (&mut pieces[..], from);
            while !left.is_empty() {
                match from.write_vectored(left) {
                    Ok(n) => IoSlice::advance_slices(&mut left, n),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => _ = wait(from, PollFlags::OUT, LIMIT)?,
                    Err(e) => return Err(e),
                }
            }
            Ok(())
        })?;
        said.line(way, got);
    }
    Ok(())
}

/// `sendfile` of 3 MB.
pub fn sendfile(link: &Link, said: &mut Said) -> io::Result<()> {
    const TOTAL: u64 = 3_000_000;
    let file = fs::File::from(memfd_create("rows", MemfdFlags::CLOEXEC)?);
    for offset in (0..TOTAL).step_by(100_000) {
        (&file).write_all(pattern(1, offset, 100_000))?;
    }
    let pair = link.pair(Drive::Polling)?;
    for (way, from, to) in pair.ways() {
        let got = while_reading(to, TOTAL, || {
            let mut offset = 0;
            while offset < TOTAL {
                let left = (TOTAL - offset) as usize;
                match rustix::fs::sendfile(from, &file, Some(&mut offset), left) {
                    Ok(0) => return Err(lost("the file ended")),
                    Ok(_) => {}
                    Err(Errno::AGAIN) => _ = wait(from, PollFlags::OUT, LIMIT)?,
                    Err(e) => return Err(e.into()),
                }
            }
            Ok(())
        })?;
        said.line(way, got);
    }
    Ok(())
}

/// `MSG_ZEROCOPY` tells when the sender may use its memory again.
pub fn zerocopy(link: &Link, said: &mut Said) -> io::Result<()> {
    let flags = SendFlags::from_bits_retain(libc::MSG_ZEROCOPY.cast_unsigned());
    let pair = link.pair(Drive::Polling)?;
    for (way, from, to) in pair.ways() {
        said.line(&format!("{way} set"), done(socket::set_option(from, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1)));
        let sent = send_some(from, 1, 0, 20_000, flags)?;
        said.line(&format!("{way} sent"), sent);
        said.line(&format!("{way} read"), recv_exact(to, sent, 1));
        let told = wait(from, PollFlags::empty(), NEVER)?;
        said.line(&format!("{way} told"), events(told));
        let queue =
            recvmsg(from, &mut [IoSliceMut::new(&mut [])], &mut RecvAncillaryBuffer::new(&mut []), RecvFlags::ERRQUEUE);
        said.line(&format!("{way} completion"), done(queue.map(drop)));
    }
    Ok(())
}

/// `MSG_OOB`: a byte beside the stream.
pub fn urgent(link: &Link, said: &mut Said) -> io::Result<()> {
    urgent_byte(link, said, false)
}

/// `MSG_OOB` to a reader with `SO_OOBINLINE`.
pub fn urgent_inline(link: &Link, said: &mut Said) -> io::Result<()> {
    urgent_byte(link, said, true)
}

fn urgent_byte(link: &Link, said: &mut Said, inline: bool) -> io::Result<()> {
    let pair = link.pair(Drive::Polling)?;
    for (way, from, to) in pair.ways() {
        if inline {
            sockopt::set_socket_oobinline(to, true)?;
        }
        for (bytes, flags) in [("abc", SendFlags::empty()), ("!", SendFlags::OOB), ("def", SendFlags::empty())] {
            send(from, bytes.as_bytes(), flags)?;
        }
        let urgent = wait(to, PollFlags::PRI, NEVER)?;
        said.line(&format!("{way} told"), events(urgent));
        if !inline {
            // Who is not told does not ask.
            let byte = urgent.contains(PollFlags::PRI).then(|| take(to, 1, RecvFlags::OOB));
            let byte = byte.map_or("not asked for".to_owned(), |byte| count(byte.map(|bytes| bytes.len())));
            said.line(&format!("{way} beside"), byte);
        }
        let mut stream = String::new();
        while !stream.ends_with("def") {
            if wait(to, PollFlags::IN, LIMIT)?.is_empty() {
                break;
            }
            // A read ends before the urgent byte.
            stream.push_str(&String::from_utf8_lossy(&take(to, 100, RecvFlags::empty())?));
        }
        said.line(&format!("{way} stream"), stream);
    }
    Ok(())
}

/// `TCP_NODELAY` and `TCP_CORK` hold nothing back for ever.
pub fn nodelay_cork(link: &Link, said: &mut Said) -> io::Result<()> {
    let pair = link.pair(Drive::Polling)?;
    for (way, from, to) in pair.ways() {
        sockopt::set_tcp_nodelay(from, true)?;
        said.line(&format!("{way} nodelay"), sockopt::tcp_nodelay(from)?);
        send_all(from, 10, 1)?;
        said.line(&format!("{way} at once"), recv_exact(to, 10, 1));
        sockopt::set_tcp_cork(from, true)?;
        said.line(&format!("{way} cork"), sockopt::tcp_cork(from)?);
        for part in 0..3 {
            send_some(from, 1, part * 100, 100, SendFlags::empty())?;
        }
        sockopt::set_tcp_cork(from, false)?;
        said.line(&format!("{way} uncorked"), recv_exact(to, 300, 1));
        send_some(from, 1, 0, 100, SendFlags::MORE)?;
        send_some(from, 1, 100, 100, SendFlags::empty())?;
        said.line(&format!("{way} more"), recv_exact(to, 200, 1));
    }
    Ok(())
}

/// `TCP_ULP` puts TLS on top of TCP; without keys nothing is encrypted.
pub fn ulp(link: &Link, said: &mut Said) -> io::Result<()> {
    let pair = link.pair(Drive::Polling)?;
    for (way, from, to) in pair.ways() {
        let set = socket::set_option(from, libc::IPPROTO_TCP, libc::TCP_ULP, i32::from_ne_bytes(*b"tls\0"));
        said.line(&format!("{way} set"), done(set));
        send_all(from, 1000, 1)?;
        said.line(&format!("{way} read"), recv_exact(to, 1000, 1));
    }
    Ok(())
}

/// A reader that stops until its sender is stuck, and goes on: 64 MB.
pub fn resume(link: &Link, said: &mut Said) -> io::Result<()> {
    const TOTAL: u64 = 64 << 20;
    let pair = link.pair(Drive::Polling)?;
    for (way, from, to) in pair.ways() {
        let sent = AtomicU64::new(0);
        let got = thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let mut offset = 0;
                while offset < TOTAL {
                    offset += send_some(from, 1, offset, (TOTAL - offset).min(65_536), SendFlags::empty())?;
                    sent.store(offset, Relaxed);
                }
                io::Result::Ok(())
            });
            let mut got = Got { bytes: 0, intact: true, end: None };
            for stop in [1 << 20, 20 << 20, 40 << 20] {
                let part = recv_from(to, got.bytes, stop, 1);
                got = Got { intact: got.intact && part.intact, ..part };
                still(|| sent.load(Relaxed))?;
            }
            let part = recv_from(to, got.bytes, TOTAL, 1);
            sender.join().map_err(|_| lost("the sender panicked"))??;
            io::Result::Ok(Got { intact: got.intact && part.intact, ..part })
        })?;
        said.line(way, got);
    }
    Ok(())
}

/// Waits until a count stands still.
fn still(count: impl Fn() -> u64) -> io::Result<()> {
    let (nothing, _kept) = io::pipe()?;
    let (mut last, mut same) = (count(), 0);
    until("a count to stand still", || {
        wait(&nothing, PollFlags::IN, Duration::from_millis(50))?;
        let now = count();
        same = if now == last { same + 1 } else { 0 };
        last = now;
        Ok(same >= 5)
    })
}

/// A reader that never reads: its sender is stopped somewhere, and nothing is lost.
pub fn full(link: &Link, said: &mut Said) -> io::Result<()> {
    // An agent in between has buffers of its own, as large as TCP's: two of senders, of 4 MB at most (tcp_wmem), and
    // what TCP has let its own receive buffer grow to.
    const MOST: u64 = 12_000_000;
    let pair = link.pair(Drive::Polling)?;
    for (way, from, to) in pair.ways() {
        let mut sent = 0;
        loop {
            match send(from, pattern(1, sent, 65_536), SendFlags::NOSIGNAL) {
                Ok(n) => sent += n as u64,
                Err(Errno::AGAIN) => {
                    if wait(from, PollFlags::OUT, NEVER)?.is_empty() {
                        break;
                    }
                }
                Err(e) => return Err(e.into()),
            }
            if sent > 20 * MOST {
                break;
            }
        }
        let class = if sent <= MOST { "a few megabytes".to_owned() } else { format!("{sent}, too many") };
        said.line(&format!("{way} taken"), class);
        said.line(&format!("{way} on its way"), if unsent(from)? > 0 { "some" } else { "nothing" });
        let got = recv_exact(to, sent, 1);
        said.line(
            &format!("{way} read"),
            if got.bytes == sent && got.intact { "all, intact".to_owned() } else { got.to_string() },
        );
        until("everything to be acknowledged", || Ok(unsent(from)? == 0))?;
        send_all(from, 1000, 2)?;
        arrived(to, 1000)?;
        said.line(&format!("{way} after"), recv_exact(to, 1000, 2));
    }
    Ok(())
}

/// `SO_SNDTIMEO` ends a wait for a reader that never reads.
pub fn sndtimeo(link: &Link, said: &mut Said) -> io::Result<()> {
    let pair = link.pair(Drive::Blocking)?;
    for (way, from, to) in pair.ways() {
        from.set_write_timeout(Some(NEVER))?;
        let mut sent = 0;
        let end = loop {
            match send(from, pattern(1, sent, 65_536), SendFlags::NOSIGNAL) {
                Ok(n) => sent += n as u64,
                Err(e) => break e,
            }
        };
        said.line(&format!("{way} in the end"), count(Err(end)));
        said.line(&format!("{way} read"), recv_exact(to, sent, 1).intact);
    }
    Ok(())
}

/// Bytes that the other end's kernel has not acknowledged: what SIOCOUTQ tells, as /proc shows it to others.
fn unsent(socket: &TcpStream) -> io::Result<u64> {
    let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_fd().as_raw_fd()))?;
    let link = link.to_string_lossy();
    let inode = link.trim_start_matches("socket:[").trim_end_matches(']');
    let table = fs::read_to_string("/proc/self/net/tcp")?;
    let row = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>()).find(|f| f.get(9) == Some(&inode));
    let queues = row.and_then(|fields| fields.get(4).copied()).ok_or_else(|| lost("the socket is not listed"))?;
    u64::from_str_radix(queues.split(':').next().unwrap_or(""), 16).map_err(io::Error::other)
}
