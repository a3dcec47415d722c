//! Redirect: bytes between a program and the agent go from socket to socket, past the TCP/IP stack.
//!
//! Which connections is decided in the kernel (`ebpf/src/exe.rs`, `ebpf/src/pair.rs`), which messages too
//! (`ebpf/src/msg.rs`); `ebpf_common::pair` says why no byte can overtake another. Here is the agent's side:
//! loading, the switch, verdicts on program files, and what the kernel half knows of each connection.

pub mod btf;
mod group;
pub mod learn;
pub mod learner;
mod owners;
pub mod selftest;
mod verdicts;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use ebpf_common::{
    AcceptorKey, Asked, End, Executable, ExecutableKey, MAX_ACCEPTORS, MAX_EXECUTABLES, Offsets, Origin, SocketKey,
    Way, control, map, program, redirect,
};
use parking_lot::Mutex;
use tokio::{net::TcpStream, runtime};

use self::{
    group::OwnGroup,
    learn::{File, Reason, Verdict},
    learner::{Learner, Seen},
    verdicts::Verdicts,
};
use super::{
    convert::{octets, socket_addr},
    ebpf::{load_program, open, own_netns},
    pins::Pins,
    rights,
};
use crate::{
    config,
    stream::{Meter, Socket},
    sys::{self, BpfMap},
};

/// How long a stop waits for programs to read what was redirected to them.
const READ_WITHIN: Duration = Duration::from_secs(2);
/// How often it is told that others own sockets.
const OWNERS_AGAIN: Duration = Duration::from_secs(60);
/// Connections opened to a program that is not known yet, after which it is not waited for any more.
const UNDECIDED_DIALS: u32 = 256;
/// How often one connection of all programs that are redirected is looked at.
const CALLERS_AGAIN: Duration = Duration::from_secs(1);

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
    /// The network namespace that the agent dials from.
    netns: u64,
    learning: OnceLock<Learning>,
    /// Number of the program for messages; 0 if that is not known.
    message: u32,
    /// When it was told last that others own sockets, and how many that were.
    told_of_owners: Mutex<(Option<Instant>, u64)>,
}

/// What began with [`Redirect::start`].
#[derive(Debug)]
struct Learning {
    learner: Learner,
    runtime: runtime::Handle,
    /// When programs that are known were last looked at again.
    again: Mutex<Again>,
}

#[derive(Debug)]
struct Again {
    callers: Instant,
    acceptors: HashMap<SocketAddr, Instant>,
    /// How often connections were opened to programs that were not known then.
    undecided: HashMap<SocketAddr, u32>,
}

#[derive(Debug)]
struct State {
    mode: config::Redirect,
    /// Why nothing can be redirected on this host, whatever the mode.
    unusable: Option<String>,
    /// Why `auto` does not redirect on this host.
    distrusted: Option<String>,
    /// The self-test has begun.
    tested: bool,
}

impl State {
    /// What the kernel half is told: a value of [`redirect`].
    fn switch(&self) -> u64 {
        match self.mode {
            _ if self.unusable.is_some() => redirect::OFF,
            config::Redirect::Off => redirect::OFF,
            config::Redirect::Auto if self.distrusted.is_some() => redirect::OFF,
            config::Redirect::Auto => redirect::AUTO,
            config::Redirect::On => redirect::ON,
        }
    }
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
    let none = |reason: String| (Offsets::default(), Some(reason));
    if !rights::PERFMON.is_held() {
        return none(rights::PERFMON.missing());
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
        let (fill, group, message) = match parts {
            Some((fill, group, message)) => (Some(fill), Some(group), message),
            None => (None, None, 0),
        };
        Ok(Self {
            control: open(pins, map::CONTROL)?,
            ends: open(pins, map::ENDS)?,
            executables: open(pins, map::EXECUTABLES)?,
            acceptors: open(pins, map::ACCEPTORS)?,
            fill,
            group,
            state: Mutex::new(State {
                mode: config.redirect,
                unusable,
                distrusted: Some("the self-test has not been made yet".to_owned()),
                tested: false,
            }),
            room: config.max_connections as usize * 2,
            netns: own_netns()?,
            learning: OnceLock::new(),
            message,
            told_of_owners: Mutex::default(),
        })
    }

    fn prepare(
        ebpf: &mut aya::Ebpf,
        pins: &Pins,
        name: &str,
        sockops: BorrowedFd<'_>,
    ) -> anyhow::Result<(OwnedFd, OwnGroup, u32)> {
        let load = |ebpf: &mut aya::Ebpf, name| load_program(ebpf, name).map_err(|e| super::ebpf::refusal(name, &e));
        let message = load(ebpf, program::MSG)?;
        let fill = load(ebpf, program::FILL)?;
        let sockets = sys::obj_get(&pins.map(map::SOCKETS)).context("cannot open the table of sockets")?;
        // Before the first socket enters: each takes the program over that it finds. It stays as long as the map.
        sys::map_attach(message.as_fd(), sockets.as_fd()).context("cannot attach to the table of sockets")?;
        let group = OwnGroup::enter(name)?;
        group.attach(sockops, &pins.own_link()).inspect_err(|_| group.leave())?;
        Ok((fill, group, owners::number(message.as_fd())))
    }

    /// Tells the kernel half what holds now.
    pub(super) fn switch(&self) -> io::Result<()> {
        // Locked until it is written: of two changes the later one must hold.
        let state = self.state.lock();
        self.control.insert(&control::REDIRECT, &state.switch())
    }

    /// Changes the host's mode. Connections that exist keep to what they are, except that `off` holds for the
    /// next byte.
    pub fn set_mode(self: &Arc<Self>, mode: config::Redirect) -> io::Result<()> {
        self.state.lock().mode = mode;
        self.test();
        self.switch()
    }

    /// Begins to learn how programs use their sockets and makes the self-test, which `auto` waits for. Called
    /// once, on the runtime that is to do this, which must not be the one that moves bytes.
    pub fn start(self: &Arc<Self>) {
        let state = self.state.lock();
        if state.unusable.is_some() {
            return;
        }
        if state.mode == config::Redirect::Auto && !rights::SYS_PTRACE.is_held() {
            let without = format!("{}; {}", rights::SYS_PTRACE.without, rights::REMEDY);
            tracing::warn!(missing = rights::SYS_PTRACE.name, without, "redirect: auto cannot look at every program");
        }
        drop(state);
        let learner = Learner::start(Arc::new(Verdicts::new(self)));
        let again = Mutex::new(Again { callers: Instant::now(), acceptors: HashMap::new(), undecided: HashMap::new() });
        let learning = Learning { learner, runtime: runtime::Handle::current(), again };
        if self.learning.set(learning).is_ok() {
            self.test();
        }
    }

    /// Makes the self-test, once and only where something may be redirected: who has switched that off does
    /// not want it tried either.
    fn test(self: &Arc<Self>) {
        let Some(learning) = self.learning.get() else { return };
        let mut state = self.state.lock();
        if state.mode == config::Redirect::Off || std::mem::replace(&mut state.tested, true) {
            return;
        }
        drop(state);
        let this = self.clone();
        learning.runtime.spawn_blocking(move || {
            let report = selftest::of_this_host();
            sys::give_memory_back();
            let told = match report.refusal() {
                None => this.trust(),
                Some(reason) => {
                    tracing::warn!(reason, "redirect: auto does not redirect on this host");
                    this.distrust(reason)
                }
            };
            if let Err(error) = told {
                tracing::warn!(%error, "cannot tell the kernel half whether to redirect");
            }
        });
    }

    /// The agent accepted a captured connection from `peer`: its end, where bytes may go past TCP. Shows the
    /// program to the learner.
    pub(super) fn accepted(&self, netns: u64, peer: SocketAddr, origin: &Origin) -> Option<Socket> {
        self.fill.as_ref()?;
        let to = socket_addr(origin.to, origin.to_port);
        let key = SocketKey {
            netns,
            local: origin.to,
            remote: octets(peer.ip()),
            local_port: origin.to_port,
            remote_port: peer.port().to_be(),
            reserved: 0,
        };
        if let Some(learning) = self.learning.get()
            && (origin.flags & Origin::UNKNOWN_PROGRAM != 0
                || (origin.flags & Origin::REDIRECT != 0 && learning.again.lock().is_time_for_a_caller()))
        {
            learning.learner.seen(Seen::Caller { pid: origin.pid, local: peer, remote: to });
        }
        Some(Socket { key, flags: origin.flags })
    }

    /// How the bytes of a connection go, for operators.
    pub fn describe(&self, socket: &Socket, pid: u32) -> String {
        if let Some(reason) = self.disabled() {
            return format!("off: {reason}");
        }
        if let Some(Ways { sent, received }) = self.ends(&socket.key) {
            let by_tcp = |way: Way| !matches!(way, Way::Redirect | Way::Idle);
            return match (by_tcp(sent), by_tcp(received)) {
                (false, false) => "on".to_owned(),
                (true, false) => format!("from the program; to it by TCP: {}", sent.describe()),
                (false, true) => format!("to the program; from it by TCP: {}", received.describe()),
                (true, true) => format!("by TCP: {}", received.describe()),
            };
        }
        match socket.flags {
            flags if flags & Origin::REFUSED_WORKLOAD != 0 => "off: enrolled so".to_owned(),
            flags if flags & (Origin::REFUSED_PROGRAM | Origin::UNKNOWN_PROGRAM) != 0 => match self.verdict(pid) {
                Some(Verdict::On) => "off: came before the program was known".to_owned(),
                Some(verdict @ Verdict::Learning(_)) if !rights::SYS_PTRACE.is_held() => unseen(verdict),
                Some(verdict) => verdict.text(),
                None if !rights::SYS_PTRACE.is_held() => unseen(Verdict::Learning(0)),
                None => Verdict::Learning(0).text(),
            },
            flags if flags & Origin::REDIRECT != 0 => "off: the kernel did not take both sockets".to_owned(),
            _ => "off: came before redirect was on".to_owned(),
        }
    }

    /// Told how many sockets the kernel has refused so far because another program's table has them, says so in
    /// the log when they have become more. Not for the runtime that moves bytes.
    pub(super) fn tell_of_other_owners(&self, refused: u64) {
        let now = Instant::now();
        let mut told = self.told_of_owners.lock();
        if refused > told.1 && told.0.is_none_or(|at| now.duration_since(at) >= OWNERS_AGAIN) {
            tracing::warn!(
                sockets = refused - told.1,
                owners = owners::others(self.message),
                "redirect: another program's table of sockets has sockets that were to be redirected, they go by TCP"
            );
            *told = (Some(now), refused);
        }
    }

    /// The verdict on the program that process `pid` runs.
    fn verdict(&self, pid: u32) -> Option<Verdict> {
        let (file, _) = learn::executable(pid).ok()?;
        let (_, known) = self.entry(file, pid).ok()??;
        Some(match known.verdict {
            Executable::ON => Verdict::On,
            Executable::OFF => Verdict::Off(Reason::from_number(known.reason).unwrap_or(Reason::Unreadable)),
            // How many were seen.
            _ => Verdict::Learning(known.reason),
        })
    }

    /// What the kernel half knows of `file`, which process `pid` runs. Numbers of inodes are used again: of several
    /// entries it is the one that this process connected with last, and the others are of files that are gone.
    fn entry(&self, file: File, pid: u32) -> io::Result<Option<(ExecutableKey, Executable)>> {
        let same =
            |(key, _): &(ExecutableKey, Executable)| (key.inode, key.device) == (file.inode, file.kernel_device());
        let mut found: Vec<_> = self.executables()?.into_iter().filter(same).collect();
        if found.len() < 2 {
            return Ok(found.pop());
        }
        let Some(at) = found.iter().position(|(_, known)| known.pid == pid) else { return Ok(None) };
        let live = found.swap_remove(at);
        for (gone, _) in found {
            self.forget_executable(&gone)?;
        }
        Ok(Some(live))
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

    /// What the operator wants.
    pub fn mode(&self) -> config::Redirect {
        self.state.lock().mode
    }

    /// Whether anything can be redirected on this host, now or after a change of its settings.
    pub fn is_possible(&self) -> bool {
        self.fill.is_some()
    }

    /// Whether something can be redirected on this host now.
    pub fn enabled(&self) -> bool {
        self.state.lock().switch() != redirect::OFF
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

    /// The verdict (of [`Executable`]) on the program that accepts at `addr` what the agent dials; none when
    /// no enrolled program was seen there.
    pub fn acceptor(&self, addr: SocketAddr) -> io::Result<Option<u32>> {
        self.acceptors.get(&self.acceptor_key(addr))
    }

    /// Gives that verdict: it holds for connections from now on.
    pub fn set_acceptor(&self, addr: SocketAddr, verdict: u32) -> io::Result<()> {
        self.acceptors.insert(&self.acceptor_key(addr), &verdict)
    }

    fn acceptor_key(&self, addr: SocketAddr) -> AcceptorKey {
        AcceptorKey::new(self.netns, octets(addr.ip()), addr.port().to_be())
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

    fn dialled(&self, io: &TcpStream) -> bool {
        let Some(learning) = self.learning.get().filter(|_| self.enabled()) else { return false };
        let (Ok(from), Ok(at)) = (io.local_addr(), io.peer_addr()) else { return false };
        if !at.ip().is_loopback() && at.ip() != from.ip() {
            return false;
        }
        // The kernel half has entered it by now if the program there is enrolled.
        let Ok(Some(verdict)) = self.acceptor(at) else { return false };
        let unknown = verdict == Executable::UNKNOWN;
        let mut again = learning.again.lock();
        let undecided = again.is_undecided(at, unknown && self.mode() == config::Redirect::Auto);
        if unknown || again.is_time_for(at) {
            drop(again);
            learning.learner.seen(Seen::Acceptor { at, from });
        }
        undecided
    }
}

impl Again {
    /// Whether a caller that is known should be looked at again, and notes that it is.
    fn is_time_for_a_caller(&mut self) -> bool {
        let now = Instant::now();
        let is_time = now.duration_since(self.callers) >= CALLERS_AGAIN;
        if is_time {
            self.callers = now;
        }
        is_time
    }

    /// Whether a connection to `at`, whose program is `unknown` or not, should be opened again later: as long as it
    /// is unknown, but not for ever, because some programs cannot be looked at.
    fn is_undecided(&mut self, at: SocketAddr, unknown: bool) -> bool {
        if !unknown {
            self.undecided.remove(&at);
            return false;
        }
        if self.undecided.len() >= MAX_ACCEPTORS {
            self.undecided.clear();
        }
        let times = self.undecided.entry(at).or_insert(0);
        *times = times.saturating_add(1);
        *times <= UNDECIDED_DIALS
    }

    fn is_time_for(&mut self, at: SocketAddr) -> bool {
        let now = Instant::now();
        if self.acceptors.len() >= MAX_ACCEPTORS {
            self.acceptors.clear();
        }
        let last = self.acceptors.entry(at).or_insert(now);
        let is_time = now.duration_since(*last) >= learn::AGAIN;
        if is_time {
            *last = now;
        }
        is_time
    }
}

/// A verdict that may never come, because the program cannot be looked at.
fn unseen(verdict: Verdict) -> String {
    format!("{}; looking at programs of others takes {}", verdict.text(), rights::SYS_PTRACE.name)
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
