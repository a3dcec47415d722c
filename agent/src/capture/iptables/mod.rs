//! `iptables`: rules of this network namespace redirect connects to services to the agent.
//!
//! For hosts without the hooks of [`ebpf`](super::ebpf). There is no bypass: without an agent the rules go on
//! redirecting to a port that nobody listens on, until an agent starts again or takes them away.

mod backend;
mod callers;
mod elsewhere;
mod left;
mod rules;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use anyhow::Context as _;
use ebpf_common::AGENT_MARK;
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::TcpStream;

pub use self::backend::Backend;
use self::{
    callers::{Caller, Callers},
    left::Left,
    rules::Rules,
};
use super::{
    Capture, CaptureTable, Origin,
    enroll::Matched,
    lock::{NameLock, NameTaken},
};
use crate::config::{self, CallPath, CaptureMode, Config, Enroll, VirtualAddress, Who};

/// Looks at who is enrolled for one at where they all live, which takes longer.
const LOOKS_PER_ELSEWHERE: u32 = 4;

/// Capture by rules.
#[derive(Debug)]
pub struct Iptables {
    backend: Backend,
    reach: Reach,
    state: Mutex<State>,
    /// What is in the kernel is as it should be, also when this is dropped.
    settled: AtomicBool,
    redirected: AtomicU64,
    inbound: AtomicU64,
    not_redirected: AtomicU64,
    // Last, so that namespace and name are free only when everything above is gone.
    _locks: [NameLock; 2],
}

/// What is in force.
#[derive(Debug)]
struct State {
    left: Left,
    table: CaptureTable,
    callers: Callers,
    /// The agent's listeners for callers from elsewhere: IPv4, IPv6.
    inbound_to: [Option<u16>; 2],
    /// What went wrong last when it looked again who is enrolled, so that it is told once.
    told: Option<String>,
    /// Looks until the next one for enrolled programs that no rule reaches.
    until_elsewhere: u32,
    /// What was found then.
    elsewhere: Vec<String>,
}

/// Whose connections the rules can tell from others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// Enrolled programs only.
    Enrolled,
    /// Everybody's in the network namespace: the kernel has no match for control groups.
    Namespace,
}

impl Iptables {
    /// Finds out which program can write the rules that `config` asks for; nothing is redirected before the first
    /// [`apply`](Capture::apply). Rules that a killed agent left are kept until then, those of the other program
    /// are removed. An error names what is missing, or the agent that has this network namespace.
    pub fn prepare(config: &Config) -> anyhow::Result<Self> {
        let name = &config.name;
        let lock = NameLock::take(name)?;
        let space = lock_namespace()?;
        let (backend, reach) = choose(config)?;
        let mut found = false;
        for other in Backend::ALL {
            found |= if other == backend { other.present()? } else { other.remove()? };
        }
        let left = Left::adopt(name)?;
        if found {
            tracing::info!(%backend, "rules of an agent before this one are replaced");
        }
        Ok(Self {
            backend,
            reach,
            state: Mutex::new(State {
                left,
                table: CaptureTable::default(),
                callers: Callers::default(),
                inbound_to: [None, None],
                told: None,
                until_elsewhere: 0,
                elsewhere: Vec::new(),
            }),
            settled: AtomicBool::new(false),
            redirected: AtomicU64::new(0),
            inbound: AtomicU64::new(0),
            not_redirected: AtomicU64::new(0),
            _locks: [lock, space],
        })
    }

    /// One sentence for operators: what was chosen, and whose connections it takes.
    pub fn reason(&self, enroll: &[Enroll]) -> String {
        let version = self.backend.version().unwrap_or_else(|_| self.backend.to_string());
        let whose = match self.reach {
            Reach::Enrolled => format!("for {} enrolment(s)", enroll.len()),
            Reach::Namespace => {
                "for EVERY program of this network namespace, because the kernel cannot tell enrolled ones in rules"
                    .to_owned()
            }
        };
        format!("redirecting rules by {version} {whose}; no bypass when the agent is gone")
    }
}

/// One agent per network namespace writes rules.
fn lock_namespace() -> anyhow::Result<NameLock> {
    NameLock::take(&format!("rules-{}", left::namespace()?)).map_err(|e| match e.downcast::<NameTaken>() {
        Ok(taken) => taken.instead("the redirecting rules of this network namespace belong to another agent").into(),
        Err(e) => e,
    })
}

/// What is the same for every table.
fn basis(config: &config::Exempt) -> Rules {
    let uid = rustix::process::geteuid();
    let own = (!uid.is_root()).then(|| (uid.as_raw(), rustix::process::getegid().as_raw()));
    Rules { mark: AGENT_MARK, own, exempt: config.clone(), ..Rules::default() }
}

/// The first program that can tell enrolled programs from others; if none can and the mode was asked for, the first
/// that works at all.
fn choose(config: &Config) -> anyhow::Result<(Backend, Reach)> {
    let asked = &config.capture;
    // With nobody enrolled yet it is tried for everyone, and nothing is installed.
    let callers = wanted(config)?.filter(|callers| !callers.is_empty());
    let v6 = ipv6().then_some(1);
    let anyone = Rules {
        // Addresses for documentation (RFC 5737, RFC 3849): tried, never installed.
        services: ["192.0.2.1", "2001:db8::1"]
            .map(|ip| VirtualAddress { ip: ip.parse().expect("an address"), port: Some(80) })
            .into(),
        callers: None,
        outbound: [Some(1), v6],
        inbound: if config.has_inbound() { [(1, None)].into() } else { [].into() },
        inbound_to: [Some(1), v6],
        ..basis(&asked.exempt)
    };
    let mut errors = Vec::new();
    let enrolled = Rules { callers, ..anyone.clone() };
    let mut tries = vec![(&enrolled, Reach::Enrolled)];
    // Programs that nobody enrolled are redirected only where someone asked for this mode by name.
    if asked.mode == CaptureMode::Iptables && enrolled.callers.is_some() {
        tries.push((&anyone, Reach::Namespace));
    }
    let last = tries.len() - 1;
    for (i, (rules, reach)) in tries.into_iter().enumerate() {
        for backend in Backend::wanted(asked.iptables) {
            match backend.probe(rules) {
                Ok(()) => return Ok((*backend, reach)),
                // The last tries lack what the first ones lack, said without the control group.
                Err(error) if i == last => errors.push(format!("{error:#}")),
                Err(_) => {}
            }
        }
    }
    anyhow::bail!("{}", errors.join("; "))
}

/// Whom `config` enrolls; an error when it asks for what no rule can do.
fn wanted(config: &Config) -> anyhow::Result<Option<Vec<Caller>>> {
    let policed =
        config.referers.iter().find(|r| r.path == CallPath::Kernel && !(r.allow.is_empty() && r.deny.is_empty()));
    if let Some(referer) = policed {
        anyhow::bail!("{}", no_policy(&referer.key.to_string()));
    }
    Ok(Callers::of(&config.capture.enroll, Who::must_exist)?.rules)
}

/// Rules cannot ask who calls a single service.
fn no_policy(service: &str) -> String {
    format!("`{service}` has `path: kernel` with `allow` or `deny`, which no rule enforces: it needs `capture: ebpf`")
}

fn ipv6() -> bool {
    std::path::Path::new("/proc/thread-self/net/if_inet6").exists()
}

/// Whether `backend` could be used for `config`, for `sockmesh check`; it also tries what cannot be tried without
/// making a chain for a moment if the mode is asked for.
pub fn check(backend: Backend, config: &Config) -> anyhow::Result<String> {
    let version = backend.version()?;
    wanted(config)?;
    if backend == Backend::Iptables && config.capture.mode != CaptureMode::Iptables {
        return Ok(format!("{version}; tried only when asked for by `capture: iptables`"));
    }
    let iptables = match backend {
        Backend::Nft => config::Iptables::Nft,
        Backend::Iptables => config::Iptables::Iptables,
    };
    let capture = config::Capture { iptables, ..config.capture.clone() };
    let (_, reach) = choose(&Config { capture, ..config.clone() })?;
    Ok(match reach {
        Reach::Enrolled => format!("{version}, the kernel takes the rules"),
        Reach::Namespace => format!("{version}, but the kernel has no match for control groups: it redirects everyone"),
    })
}

impl Iptables {
    /// Makes the kernel do what `table` says, for those whom it enrolls now.
    fn put(&self, state: &mut State, table: &CaptureTable, callers: &Callers) -> anyhow::Result<()> {
        if let Some(policed) = table.straight.iter().find(|s| !(s.allow.is_empty() && s.deny.is_empty())) {
            anyhow::bail!("{}", no_policy(&policed.name.to_string()));
        }
        let mut rules = basis(&table.exempt);
        rules.outbound = ports(&table.listeners);
        rules.inbound_to = state.inbound_to;
        rules.services = table.destinations.iter().map(|(address, _)| *address).collect();
        // There is no way around the agent here.
        rules.services.extend(table.straight.iter().flat_map(|s| &s.addresses));
        rules.inbound = table
            .inbound
            .iter()
            .filter_map(|at| Some((at.port?, Some(at.ip).filter(|ip| !ip.is_unspecified()))))
            .collect();
        rules.callers = match self.reach {
            _ if table.enroll.is_empty() => Some(Vec::new()),
            Reach::Enrolled => callers.rules.clone(),
            Reach::Namespace => None,
        };
        // Addresses that nothing is redirected from need no route either.
        let reached = if rules.callers.as_ref().is_some_and(Vec::is_empty) { None } else { Some(&rules.services) };
        let reached = reached.into_iter().flatten().map(|s| s.ip);
        let reached = reached.filter(|ip| rules.outbound[usize::from(ip.is_ipv6())].is_some()).collect();
        state.left.write()?;
        if rules.is_empty() {
            self.backend.remove().context("cannot remove the redirecting rules")?;
            state.left.clear()?;
        } else {
            state.left.set_routes(&reached)?;
            self.backend.install(&rules).context("cannot install the redirecting rules")?;
        }
        self.settled.store(true, Relaxed);
        tracing::debug!(services = rules.services.len(), backend = %self.backend, "redirecting rules installed");
        Ok(())
    }

    /// Follows control groups that came, went or were made anew.
    fn follow(&self, state: &mut State) -> anyhow::Result<()> {
        let callers = Callers::of(&state.table.enroll, |_| false)?;
        if callers.rules != state.callers.rules {
            let table = state.table.clone();
            self.put(state, &table, &callers)?;
            for matched in callers.matched.iter().filter(|m| !state.callers.matched.contains(m)) {
                let groups = matched.found.join(" ");
                tracing::info!(who = %matched.who, groups, "enrolled");
            }
        }
        state.callers = callers;
        Ok(())
    }
}

/// Port of the first of `listeners` of each family: IPv4, IPv6.
fn ports(listeners: &[SocketAddr]) -> [Option<u16>; 2] {
    [true, false].map(|v4| listeners.iter().find(|a| a.is_ipv4() == v4).map(SocketAddr::port))
}

impl Capture for Iptables {
    fn name(&self) -> &'static str {
        "iptables"
    }

    fn apply(&self, table: &CaptureTable) -> anyhow::Result<()> {
        let mut state = self.state.lock();
        let known = |who: &Who| state.table.enroll.iter().any(|e| e.who == *who);
        let callers = Callers::of(&table.enroll, |who| who.must_exist() && !known(who))?;
        for matched in &callers.matched {
            if let Some(note) = &matched.note
                && !state.callers.matched.contains(matched)
            {
                tracing::warn!(who = %matched.who, note, "enrolled");
            }
        }
        self.put(&mut state, table, &callers)?;
        state.table = table.clone();
        state.callers = callers;
        Ok(())
    }

    fn inbound_at(&self) -> [IpAddr; 2] {
        // Where a rule sends a connection is an address of the interface that it came in by.
        [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
    }

    fn listen_inbound(&self, listeners: &[TcpListener]) -> anyhow::Result<()> {
        let addresses = listeners.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>();
        self.state.lock().inbound_to = ports(&addresses.context("a listener without address")?);
        Ok(())
    }

    fn inbound_destination(&self, conn: &TcpStream) -> io::Result<SocketAddr> {
        self.redirected_from(conn, &self.inbound)
    }

    fn can_enroll(&self) -> bool {
        true
    }

    fn refresh(&self) {
        let mut state = self.state.lock();
        let told = self.follow(&mut state).err().map(|e| format!("{e:#}"));
        if told != state.told
            && let Some(error) = &told
        {
            tracing::warn!(error, "cannot follow who is enrolled; it is tried again");
        }
        state.told = told;
        if state.until_elsewhere == 0 {
            let found = elsewhere::notes(&state.callers);
            for note in found.iter().filter(|note| !state.elsewhere.contains(note)) {
                tracing::warn!(note, "enrolled programs that no rule reaches connect directly");
            }
            state.elsewhere = found;
        }
        state.until_elsewhere = (state.until_elsewhere + 1) % LOOKS_PER_ELSEWHERE;
    }

    fn matched(&self) -> (Vec<Matched>, Vec<String>) {
        let state = self.state.lock();
        (state.callers.matched.clone(), state.elsewhere.clone())
    }

    fn origin(&self, conn: &TcpStream) -> io::Result<Origin> {
        Ok(Origin::of(self.redirected_from(conn, &self.redirected)?))
    }

    fn stop_capturing(&self) {
        // The kernel goes on translating connections that exist; routes stay, because those need them.
        if let Err(error) = self.backend.remove() {
            tracing::warn!(error = format!("{error:#}"), "cannot remove the redirecting rules");
        }
    }

    fn uninstall(&self) -> anyhow::Result<()> {
        self.backend.remove().context("cannot remove the redirecting rules")?;
        self.state.lock().left.clear()?;
        self.settled.store(true, Relaxed);
        Ok(())
    }

    fn mark(&self) -> Option<u32> {
        Some(AGENT_MARK)
    }

    fn counters(&self) -> BTreeMap<&'static str, u64> {
        [("redirected", &self.redirected), ("inbound", &self.inbound), ("not_redirected", &self.not_redirected)]
            .map(|(name, count)| (name, count.load(Relaxed)))
            .into()
    }
}

impl Iptables {
    /// Where `conn`, accepted by a listener of the agent, wanted to go; an error when no rule brought it.
    fn redirected_from(&self, conn: &TcpStream, count: &AtomicU64) -> io::Result<SocketAddr> {
        let local = conn.local_addr()?;
        match original_destination(conn, local) {
            Ok(destination) if destination != local => {
                count.fetch_add(1, Relaxed);
                Ok(destination)
            }
            asked => {
                self.not_redirected.fetch_add(1, Relaxed);
                let why = asked.err().map_or_else(String::new, |e| format!(": {e}"));
                Err(io::Error::new(io::ErrorKind::NotFound, format!("no rule brought it{why}")))
            }
        }
    }
}

/// Where `conn`, accepted at `local`, wanted to go before a rule changed that.
fn original_destination(conn: &TcpStream, local: SocketAddr) -> io::Result<SocketAddr> {
    let socket = SockRef::from(conn);
    let address = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() }?;
    let mut address = address.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    if let SocketAddr::V6(v6) = &mut address {
        // So that it can be compared: what is not of a link has no scope.
        v6.set_scope_id(0);
    }
    Ok(address)
}

impl Drop for Iptables {
    /// A start that failed half-way leaves nothing behind; one that redirected leaves all to its successor.
    fn drop(&mut self) {
        if !self.settled.load(Relaxed)
            && let Err(error) = self.uninstall()
        {
            tracing::warn!(error = format!("{error:#}"), "cannot take the redirecting rules back");
        }
    }
}

/// Takes away the rules and routes that an agent called `name`, which no longer runs, left in this network
/// namespace. Says whether there was anything.
pub fn remove_left(name: &str) -> anyhow::Result<bool> {
    // Without its notes nothing is asked, so that hosts without rules load no module of them.
    let Some(mut left) = Left::read()?.filter(|left| left.name == name) else { return Ok(false) };
    let _lock = lock_namespace()?;
    for backend in Backend::ALL {
        backend.remove()?;
    }
    left.clear()?;
    Ok(true)
}
