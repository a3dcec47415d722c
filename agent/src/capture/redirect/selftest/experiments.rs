//! What is tried. Each experiment says in a few words what an application sees.

use std::{
    io::{self, Read as _, Seek as _, Write as _},
    net::{Shutdown, TcpStream},
    os::fd::AsFd as _,
    sync::{
        atomic::{AtomicI32, Ordering},
        mpsc::sync_channel,
    },
    time::Duration,
};

use anyhow::Context as _;
use rustix::{
    buffer::spare_capacity,
    event::{PollFlags, epoll},
    fs::{MemfdFlags, memfd_create},
    net::{RecvFlags, SendFlags, recv, send},
};

use super::{
    Check, Way,
    lab::{Lab, Pair, pipe, readable, reset_on_close, shows, spin},
};
use crate::sys::socket::{self, Interrupts};

/// For things that must *not* happen: loopback delivers within microseconds.
const SHORT: Duration = Duration::from_millis(5);
/// For things that happen soon or never.
const SOON: Duration = Duration::from_millis(20);

/// What an application sees of `check` when bytes go as `way` says; something else when `spoil`.
pub(super) fn observe(check: Check, lab: &mut Lab, way: Way, spoil: bool) -> anyhow::Result<String> {
    match check {
        Check::SizeTcp => size_tcp(lab, way, spoil),
        Check::SizeRedirected => size_redirected(lab, way, spoil),
        Check::Wakeups => wakeups(lab, way, spoil),
        Check::OrderOvertaking => order(lab, way, false, spoil),
        Check::OrderAfterRead => order(lab, way, true, spoil),
        Check::OrderFallback => order_fallback(lab, way, spoil),
        Check::Charge => charge(lab, way, spoil),
        Check::HalfClose => half_close(lab, way, spoil),
        Check::Reset => reset(lab, way, spoil),
        Check::CloseUnread => close_unread(lab, way, spoil),
        Check::WaitAll => wait_all(lab, way, spoil),
        Check::Signal => {
            let with = signal(lab, way, true, spoil)?;
            Ok(format!("{with}, {}", signal(lab, way, false, false)?))
        }
        Check::Peek => peek(lab, way, spoil),
        Check::Splice => splice(lab, way, spoil),
        Check::Sendfile => sendfile(lab, way, spoil),
        Check::Zerocopy => zerocopy(lab, way, spoil),
        Check::LowWater => low_water(lab, way, spoil),
        Check::Urgent => urgent(lab, way, spoil),
        Check::Delete => delete(lab, way, spoil),
    }
}

/// A thousand bytes, or one less where an experiment is to go wrong.
fn bytes(spoil: bool) -> Vec<u8> {
    vec![b'x'; 1000 - usize::from(spoil)]
}

/// What a call answered, as an operator knows it.
fn said(result: io::Result<usize>) -> String {
    match result {
        Ok(0) => "EOF".to_owned(),
        Ok(n) => n.to_string(),
        Err(e) => match e.raw_os_error() {
            Some(libc::EAGAIN) => "EAGAIN".to_owned(),
            Some(libc::EINTR) => "EINTR".to_owned(),
            Some(libc::ECONNRESET) => "ECONNRESET".to_owned(),
            Some(libc::EPIPE) => "EPIPE".to_owned(),
            Some(libc::EACCES) => "EACCES".to_owned(),
            _ => e.to_string(),
        },
    }
}

/// One `recv` without waiting.
fn take(from: &TcpStream, room: usize, flags: RecvFlags) -> io::Result<Vec<u8>> {
    let mut buffer = Vec::with_capacity(room);
    recv(from, spare_capacity(&mut buffer), flags | RecvFlags::DONTWAIT)?;
    Ok(buffer)
}

/// Reads until `want` bytes are there, or nothing comes any more.
fn gather(from: &TcpStream, want: usize) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    while all.len() < want && readable(from)? {
        let more = take(from, want - all.len(), RecvFlags::empty())?;
        if more.is_empty() {
            break;
        }
        all.extend(more);
    }
    Ok(all)
}

fn size(of: &TcpStream) -> anyhow::Result<String> {
    readable(of)?;
    Ok(rustix::io::ioctl_fionread(of)?.to_string())
}

fn size_tcp(lab: &mut Lab, way: Way, spoil: bool) -> anyhow::Result<String> {
    let mut pair = lab.pair()?;
    if way == Way::Redirect {
        lab.insert_reader(&pair)?;
    }
    pair.sender.write_all(&bytes(spoil))?;
    size(&pair.reader)
}

fn size_redirected(lab: &mut Lab, way: Way, spoil: bool) -> anyhow::Result<String> {
    let mut pair = lab.joined(way)?;
    pair.sender.write_all(&bytes(spoil))?;
    size(&pair.reader)
}

fn wakeups(lab: &mut Lab, way: Way, spoil: bool) -> anyhow::Result<String> {
    let mut pair = lab.joined(way)?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&poll, &pair.reader, epoll::EventData::new_u64(0), epoll::EventFlags::IN | epoll::EventFlags::ET)?;
    let mut woken = 0;
    for i in 0..100 {
        if !(spoil && i == 50) {
            pair.sender.write_all(b"x")?;
        }
        let mut events = Vec::with_capacity(1);
        let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        if epoll::wait(&poll, spare_capacity(&mut events), Some(&wait))? > 0 {
            woken += 1;
            // Up to the EAGAIN after which the edge is armed again.
            while take(&pair.reader, 16, RecvFlags::empty()).is_ok_and(|some| !some.is_empty()) {}
        } else if woken + 3 < i {
            break;
        }
    }
    Ok(woken.to_string())
}

/// Bytes by TCP, then redirected ones, which begin before or after the first have been read.
fn order(lab: &mut Lab, way: Way, after_read: bool, spoil: bool) -> anyhow::Result<String> {
    let mut pair = lab.pair()?;
    if way == Way::Redirect {
        lab.insert_reader(&pair)?;
        lab.insert_sender(&pair)?;
    }
    pair.sender.write_all(b"1")?;
    readable(&pair.reader)?;
    let mut all = if after_read { gather(&pair.reader, 1)? } else { Vec::new() };
    lab.redirect(way == Way::Redirect)?;
    pair.sender.write_all(if spoil { b"0" } else { b"2" })?;
    all.extend(gather(&pair.reader, 2 - all.len())?);
    Ok(in_order(&all, b"12"))
}

fn order_fallback(lab: &mut Lab, way: Way, spoil: bool) -> anyhow::Result<String> {
    let mut pair = lab.joined(way)?;
    pair.sender.write_all(b"1")?;
    pair.sender.write_all(if spoil { b"0" } else { b"2" })?;
    lab.redirect(false)?;
    pair.sender.write_all(b"3")?;
    // The last one may still be on its way.
    let all = gather(&pair.reader, 3)?;
    Ok(in_order(&all, b"123"))
}

fn in_order(found: &[u8], wanted: &[u8]) -> String {
    if found == wanted { "in order".to_owned() } else { format!("reordered ({})", found.escape_ascii()) }
}

fn charge(lab: &mut Lab, way: Way, spoil: bool) -> anyhow::Result<String> {
    let pair = lab.joined(way)?;
    let block = [b'x'; 65_536];
    let mut sent = 0;
    for _ in 0..16 {
        match send(&pair.sender, &block, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(n) => sent += n,
            Err(_) => break,
        }
    }
    readable(&pair.reader)?;
    // By TCP some of it waits at the sender; redirected, all of it has arrived.
    let unread = match way {
        Way::Tcp => rustix::io::ioctl_fionread(&pair.reader)?,
        Way::Redirect => sent as u64,
    };
    let charged = u64::from(socket::receive_memory(&pair.reader)?);
    Ok(if charged >= unread + if spoil { 1 << 30 } else { 0 } { "charged" } else { "not charged" }.to_owned())
}

/// What a reader sees that reads to the end.
fn all(reader: &TcpStream) -> anyhow::Result<String> {
    let mut count = 0;
    loop {
        readable(reader)?;
        match take(reader, 4096, RecvFlags::empty()) {
            Ok(some) if !some.is_empty() => count += some.len(),
            other => return Ok(format!("{count}, {}", said(other.map(|b| b.len())))),
        }
    }
}

fn half_close(lab: &mut Lab, way: Way, spoil: bool) -> anyhow::Result<String> {
    let mut pair = lab.joined(way)?;
    pair.sender.write_all(&bytes(spoil))?;
    pair.sender.shutdown(Shutdown::Write)?;
    all(&pair.reader)
}

fn reset(lab: &mut Lab, way: Way, spoil: bool) -> anyhow::Result<String> {
    let Pair { mut sender, reader } = lab.joined(way)?;
    sender.write_all(&bytes(spoil))?;
    reset_on_close(&sender)?;
    drop(sender);
    shows(&reader, PollFlags::HUP, SOON)?;
    all(&reader)
}

fn close_unread(lab: &mut Lab, way: Way, spoil: bool) -> anyhow::Result<String> {
    let Pair { mut sender, reader } = lab.joined(way)?;
    sender.write_all(b"x")?;
    readable(&reader)?;
    if spoil {
        // Read, so that nothing is unread.
        take(&reader, 1, RecvFlags::empty())?;
    }
    drop(reader);
    readable(&sender)?;
    Ok(said(take(&sender, 1, RecvFlags::empty()).map(|b| b.len())))
}

/// Runs `recv` with `flags` in a thread that waits in the kernel when `then` is called with its number;
/// what it answered.
fn blocked_recv(
    pair: &mut Pair,
    room: usize,
    flags: RecvFlags,
    then: impl FnOnce(&mut TcpStream, i32, &dyn Fn() -> bool) -> io::Result<()>,
) -> anyhow::Result<io::Result<usize>> {
    let tid = AtomicI32::new(0);
    let (tx, rx) = sync_channel(1);
    let (sender, reader) = (&mut pair.sender, &pair.reader);
    // A socket with a time limit would end the call with EINTR, whatever the handler asks for.
    reader.set_read_timeout(None)?;
    let result = std::thread::scope(|scope| -> anyhow::Result<_> {
        let thread = scope.spawn(|| {
            let mut buffer = Vec::with_capacity(room);
            tid.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::SeqCst);
            let result = recv(reader, spare_capacity(&mut buffer), flags).map(|(n, _)| n);
            // The receiver waits for it.
            let _ = tx.send(());
            result.map_err(io::Error::from)
        });
        let ended = || thread.is_finished();
        spin(|| ended() || tid.load(Ordering::SeqCst) != 0 && is_waiting(tid.load(Ordering::SeqCst)));
        let outcome = then(sender, tid.load(Ordering::SeqCst), &ended);
        // Whatever happened, the thread must not wait for ever.
        if outcome.is_err() || rx.recv_timeout(SOON * 10).is_err() {
            let _ = reader.shutdown(Shutdown::Both);
        }
        let answer = thread.join().map_err(|_| anyhow::anyhow!("the reading thread panicked"))?;
        outcome?;
        Ok(answer)
    })?;
    Ok(result)
}

/// Whether a thread of this process sleeps.
fn is_waiting(tid: i32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap_or_default();
    state.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
}

fn wait_all(lab: &mut Lab, way: Way, spoil: bool) -> anyhow::Result<String> {
    let mut pair = lab.joined(way)?;
    pair.sender.write_all(&[b'x'; 100])?;
    readable(&pair.reader)?;
    let second = if spoil { 99 } else { 100 };
    let got = blocked_recv(&mut pair, 200, RecvFlags::WAITALL, |sender, _, _| sender.write_all(&vec![b'x'; second]))?;
    Ok(said(got))
}

fn signal(lab: &mut Lab, way: Way, restart: bool, spoil: bool) -> anyhow::Result<String> {
    let mut pair = lab.joined(way)?;
    let signals = Interrupts::install(restart).context("cannot set a signal's handler")?;
    let got = blocked_recv(&mut pair, 1, RecvFlags::empty(), |sender, tid, ended| {
        if spoil {
            return sender.shutdown(Shutdown::Write);
        }
        signals.send(tid)?;
        spin(|| signals.heard() > 0);
        // A call that was not restarted has ended or is about to; it must not see the byte.
        if restart || !spin(ended) { sender.write_all(b"x") } else { Ok(()) }
    })?;
    Ok(match said(got).as_str() {
        "1" => "restarted".to_owned(),
        other => other.to_owned(),
    })
}

fn peek(lab: &mut Lab, way: Way, spoil: bool) -> anyhow::Result<String> {
    let mut pair = lab.joined(way)?;
    pair.sender.write_all(&bytes(spoil))?;
    readable(&pair.reader)?;
    let peeked = take(&pair.reader, 2000, RecvFlags::PEEK)?.len();
    Ok(format!("{peeked}, {}", take(&pair.reader, 2000, RecvFlags::empty())?.len()))
}

fn splice(lab: &mut Lab, way: Way, spoil: bool) -> anyhow::Result<String> {
    let mut pair = lab.joined(way)?;
    pair.sender.write_all(&bytes(spoil))?;
    readable(&pair.reader)?;
    // Else it waits in the kernel, flag or no flag.
    pair.reader.set_nonblocking(true)?;
    let (_reader, writer) = pipe()?;
    Ok(said(socket::splice(&pair.reader, &writer, 2000)))
}

fn sendfile(lab: &mut Lab, way: Way, spoil: bool) -> anyhow::Result<String> {
    let pair = lab.joined(way)?;
    let mut file = std::fs::File::from(memfd_create("sockmesh-selftest", MemfdFlags::CLOEXEC)?);
    let sent: Vec<u8> = (0..65_536u32).map(|i| (i % 251) as u8).collect();
    file.write_all(&sent)?;
    file.rewind()?;
    let mut done = 0;
    while done < sent.len() {
        match rustix::fs::sendfile(&pair.sender, file.as_fd(), None, sent.len() - done)? {
            0 => break,
            n => done += n,
        }
    }
    let got = gather(&pair.reader, sent.len())?;
    Ok(if got == sent && !spoil { "intact" } else { "damaged" }.to_owned())
}

fn zerocopy(lab: &mut Lab, way: Way, spoil: bool) -> anyhow::Result<String> {
    let mut pair = lab.pair()?;
    socket::set_option(&pair.sender, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1)?;
    if way == Way::Redirect {
        lab.insert_reader(&pair)?;
        lab.insert_sender(&pair)?;
        lab.redirect(true)?;
    }
    let flags = if spoil { SendFlags::empty() } else { SendFlags::from_bits_retain(libc::MSG_ZEROCOPY as _) };
    send(&pair.sender, &[b'x'; 1000], flags)?;
    let mut got = [0; 1000];
    pair.reader.read_exact(&mut got)?;
    let done = shows(&pair.sender, PollFlags::ERR, SOON)?;
    Ok(if done { "completed" } else { "no completion" }.to_owned())
}

fn low_water(lab: &mut Lab, way: Way, spoil: bool) -> anyhow::Result<String> {
    let mut pair = lab.joined(way)?;
    socket::set_option(&pair.reader, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 100)?;
    pair.sender.write_all(&vec![b'x'; if spoil { 100 } else { 10 }])?;
    let woken = shows(&pair.reader, PollFlags::IN, SHORT)?;
    Ok(if woken { "readable" } else { "not readable" }.to_owned())
}

fn urgent(lab: &mut Lab, way: Way, spoil: bool) -> anyhow::Result<String> {
    let pair = lab.joined(way)?;
    send(&pair.sender, b"x", if spoil { SendFlags::empty() } else { SendFlags::OOB })?;
    let urgent = shows(&pair.reader, PollFlags::PRI, SOON)?;
    Ok(if urgent { "out of band" } else { "inline" }.to_owned())
}

fn delete(lab: &mut Lab, way: Way, spoil: bool) -> anyhow::Result<String> {
    let mut pair = lab.joined(way)?;
    pair.sender.write_all(b"1")?;
    readable(&pair.reader)?;
    if way == Way::Redirect {
        lab.remove_reader()?;
    }
    pair.sender.write_all(if spoil { b"0" } else { b"2" })?;
    let got = gather(&pair.reader, if way == Way::Redirect { 1 } else { 2 })?;
    let rest = take(&pair.reader, 2, RecvFlags::empty()).unwrap_or_default();
    let all = [got, rest].concat();
    Ok(if all == b"12" { "delivered".to_owned() } else { format!("lost ({} left)", all.escape_ascii()) })
}
