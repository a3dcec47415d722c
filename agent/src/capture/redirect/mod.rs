//! Redirect: bytes between a program and the agent go from socket to socket, past the TCP/IP stack.
//!
//! Which connections is decided in the kernel (`ebpf/src/exe.rs`, `ebpf/src/pair.rs`), which messages too
//! (`ebpf/src/msg.rs`); `ebpf_common::pair` says why no byte can overtake another. Here is the agent's side:
//! loading, the switch, verdicts on program files, and what the kernel half knows of each connection.

pub mod btf;
mod group;
pub mod learn;
pub mod learner;
pub mod selftest;

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use ebpf_common::{
    AcceptorKey, Asked, End, Executable, ExecutableKey, MAX_ACCEPTORS, MAX_EXECUTABLES, Offsets, SocketKey, Way,
    control, map, program, redirect,
};
use parking_lot::Mutex;
use tokio::net::TcpStream;

use self::group::OwnGroup;
use super::{
    convert::octets,
    ebpf::{load_program, open},
    pins::Pins,
};
use crate::{
    config,
    stream::Meter,
    sys::{self, BpfMap},
};

/// How long a stop waits for programs to read what was redirected to them.
const READ_WITHIN: Duration = Duration::from_secs(2);

/// The agent's side of redirect. All calls may be made from any thread.
#[derive(Debug)]
pub struct Redirect {
    control: BpfMap<u32, u64>,
    ends: BpfMap<SocketKey, End>,
    executables: BpfMap<ExecutableKey, Executable>,
    acceptors: BpfMap<AcceptorKey, u32>,
    /// Answers how much an end has not read; none when redirect cannot be had here.
    fill: Option<OwnedFd>,
    group: Option<OwnGroup>,
    state: Mutex<State>,
    room: usize,
}

#[derive(Debug)]
struct State {
    mode: config::Redirect,
    /// Why nothing can be redirected on this host, whatever the mode.
    unusable: Option<String>,
    /// Why `auto` does not redirect on this host.
    distrusted: Option<String>,
}

/// What the kernel half knows of both ends of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ways {
    /// How the last bytes went that this end sent.
    pub sent: Way,
    /// How the last bytes went that the other end sent.
    pub received: Way,
}

/// The offsets for the programs, all zero with the reason when redirect cannot be had here.
pub fn offsets() -> (Offsets, Option<String>) {
    const PERFMON: u64 = 1 << 38;
    const SYS_ADMIN: u64 = 1 << 21;
    let none = |reason: String| (Offsets::default(), Some(reason));
    if !super::ebpf::has_right(PERFMON | SYS_ADMIN) {
        return none("this process lacks CAP_PERFMON".to_owned());
    }
    let lockdown = std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if lockdown.contains("[confidentiality]") {
        return none("the kernel is locked down for confidentiality".to_owned());
    }
    match btf::offsets(Path::new(btf::VMLINUX)) {
        Ok(found) => (found, None),
        Err(error) => none(format!("{error:#}")),
    }
}

impl Redirect {
    /// Takes the programs for sockets out of `ebpf`. `unusable` says why they cannot work, if so; what fails
    /// here is remembered as such a reason and costs redirect, not the capture.
    pub(super) fn load(
        ebpf: &mut aya::Ebpf,
        pins: &Pins,
        name: &str,
        sockops: BorrowedFd<'_>,
        config: &config::Capture,
        mut unusable: Option<String>,
    ) -> anyhow::Result<Self> {
        let mut parts = None;
        if unusable.is_none() {
            match Self::prepare(ebpf, pins, name, sockops) {
                Ok(loaded) => parts = Some(loaded),
                Err(error) => unusable = Some(format!("{error:#}")),
            }
        }
        if let Some(reason) = &unusable {
            tracing::warn!(reason, "no redirect on this host: all bytes go by TCP");
        }
        let (fill, group) = parts.unzip();
        Ok(Self {
            control: open(pins, map::CONTROL)?,
            ends: open(pins, map::ENDS)?,
            executables: open(pins, map::EXECUTABLES)?,
            acceptors: open(pins, map::ACCEPTORS)?,
            fill,
            group,
            state: Mutex::new(State { mode: config.redirect, unusable, distrusted: None }),
            room: config.max_connections as usize * 2,
        })
    }

    fn prepare(
        ebpf: &mut aya::Ebpf,
        pins: &Pins,
        name: &str,
        sockops: BorrowedFd<'_>,
    ) -> anyhow::Result<(OwnedFd, OwnGroup)> {
        let load = |ebpf: &mut aya::Ebpf, name| load_program(ebpf, name).map_err(|e| super::ebpf::refusal(name, &e));
        let message = load(ebpf, program::MSG)?;
        let fill = load(ebpf, program::FILL)?;
        let sockets = sys::obj_get(&pins.map(map::SOCKETS)).context("cannot open the table of sockets")?;
        // Before the first socket enters: each takes the program over that it finds. It stays as long as the map.
        sys::map_attach(message.as_fd(), sockets.as_fd()).context("cannot attach to the table of sockets")?;
        let group = OwnGroup::enter(name)?;
        group.attach(sockops, &pins.own_link()).inspect_err(|_| group.leave())?;
        Ok((fill, group))
    }

    /// Tells the kernel half what holds now.
    pub(super) fn switch(&self) -> io::Result<()> {
        let state = self.state.lock();
        let value = match state.mode {
            _ if state.unusable.is_some() => redirect::OFF,
            config::Redirect::Off => redirect::OFF,
            config::Redirect::Auto if state.distrusted.is_some() => redirect::OFF,
            config::Redirect::Auto => redirect::AUTO,
            config::Redirect::On => redirect::ON,
        };
        self.control.insert(&control::REDIRECT, &value)
    }

    /// Changes the host's mode. Connections that exist keep to what they are, except that `off` holds for the
    /// next byte.
    pub fn set_mode(&self, mode: config::Redirect) -> io::Result<()> {
        self.state.lock().mode = mode;
        self.switch()
    }

    /// `auto` redirects nothing on this host from now on, because of `reason`; `on` still does.
    pub fn distrust(&self, reason: String) -> io::Result<()> {
        self.state.lock().distrusted = Some(reason);
        self.switch()
    }

    /// Takes [`distrust`](Self::distrust) back.
    pub fn trust(&self) -> io::Result<()> {
        self.state.lock().distrusted = None;
        self.switch()
    }

    /// Why nothing is redirected on this host; none if something can be.
    pub fn disabled(&self) -> Option<String> {
        let state = self.state.lock();
        match state.mode {
            config::Redirect::Off => Some("capture.redirect is off".to_owned()),
            config::Redirect::Auto if state.unusable.is_none() => state.distrusted.clone(),
            _ => state.unusable.clone(),
        }
    }

    /// Whether something can be redirected on this host.
    pub fn enabled(&self) -> bool {
        self.disabled().is_none()
    }

    /// Program files seen, with what is known of them.
    pub fn executables(&self) -> io::Result<Vec<(ExecutableKey, Executable)>> {
        let keys = self.executables.keys(MAX_EXECUTABLES)?;
        keys.into_iter().filter_map(|k| self.executables.get(&k).map(|e| e.map(|e| (k, e))).transpose()).collect()
    }

    /// Gives the verdict on a program file: it holds for connects from now on. A program that has asked for what
    /// redirect cannot keep stays refused.
    pub fn set_executable(&self, key: &ExecutableKey, executable: &Executable) -> io::Result<()> {
        let known = self.executables.get(key)?;
        if known.is_some_and(|known| known.verdict == Executable::OFF && Asked::from_number(known.reason).is_some()) {
            return Ok(());
        }
        self.executables.insert(key, executable)
    }

    /// Forgets a program file.
    pub fn forget_executable(&self, key: &ExecutableKey) -> io::Result<()> {
        self.executables.remove(key)
    }

    /// Whether connections that the agent dials to `addr` in the network namespace `netns` may be redirected
    /// to the program that accepts them.
    pub fn set_acceptor(&self, netns: u64, addr: SocketAddr, on: bool) -> io::Result<()> {
        let key = AcceptorKey { netns, addr: octets(addr.ip()), port: addr.port().to_be(), reserved: [0; 3] };
        if on { self.acceptors.insert(&key, &1) } else { self.acceptors.remove(&key) }
    }

    /// The listening programs to which the agent's connections may be redirected.
    pub fn acceptors(&self) -> io::Result<Vec<AcceptorKey>> {
        self.acceptors.keys(MAX_ACCEPTORS)
    }

    /// What the kernel half knows of the end `key`; none when it is not in the table of sockets.
    pub fn end(&self, key: &SocketKey) -> io::Result<Option<End>> {
        self.ends.get(key)
    }

    /// How the bytes of the connection of the end `key` go; none when it goes by TCP both ways.
    pub fn ends(&self, key: &SocketKey) -> Option<Ways> {
        let way = |end: End| Way::ALL.get(end.way as usize).copied().unwrap_or(Way::Idle);
        let own = self.ends.get(key).ok()??;
        let other = self.ends.get(&key.flipped()).ok()??;
        Some(Ways { sent: way(own), received: way(other) })
    }

    /// Waits, not for long, until nobody has unread bytes that were redirected, which would be lost with the
    /// table of sockets. Says whether that came true.
    pub(super) fn wait_until_read(&self) -> bool {
        let Some(fill) = &self.fill else { return true };
        let until = Instant::now() + READ_WITHIN;
        loop {
            let Ok(keys) = self.ends.keys(self.room) else { return true };
            let unread = keys.iter().any(|k| sys::test_run(fill.as_fd(), k).is_ok_and(|n| n != u32::MAX && n > 0));
            if !unread || Instant::now() >= until {
                return !unread;
            }
            // Nothing tells that a program has read; a stop may take its time.
            let pause = rustix::thread::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            let _ = rustix::thread::nanosleep(&pause);
        }
    }

    /// Leaves the agent's own control group.
    pub(super) fn leave(&self) {
        if let Some(group) = &self.group {
            group.leave();
        }
    }
}

impl Meter for Redirect {
    fn key(&self, io: &TcpStream) -> io::Result<SocketKey> {
        key_of(io)
    }

    fn unread(&self, reader: &SocketKey) -> Option<u32> {
        let fill = self.fill.as_ref()?;
        sys::test_run(fill.as_fd(), reader).ok().filter(|n| *n != u32::MAX)
    }

    fn is_on(&self) -> bool {
        self.enabled()
    }
}

/// The key of `io`'s own end.
pub fn key_of(io: &TcpStream) -> io::Result<SocketKey> {
    let (local, remote) = (io.local_addr()?, io.peer_addr()?);
    Ok(SocketKey {
        netns: sys::netns_cookie(io)?,
        local: octets(local.ip()),
        remote: octets(remote.ip()),
        local_port: local.port().to_be(),
        remote_port: remote.port().to_be(),
        reserved: 0,
    })
}
