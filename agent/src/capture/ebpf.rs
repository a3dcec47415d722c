//! `ebpf`: hooks of enrolled control groups bring connects to services to the agent.
//!
//! The kernel half is in the package `ebpf`; `docs/kernel.md` has the hooks, maps and minimum kernels.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::{Context as _, bail};
use aya::{
    EbpfLoader,
    maps::{MapData, PerCpuArray},
    programs::{Program, ProgramError},
};
use ebpf_common::{
    AGENT_MARK, LAYOUT_VERSION, Listener, Offsets, Outcome, Service, ServiceKey, TupleKey, control, dns::DnsListener,
    map,
};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tracing::{Level, info};

use super::{
    Capture, CaptureTable, Origin,
    balance::{self, Balance, Straight},
    clients::Clients,
    convert::{self, octets, service_key, socket_addr},
    enroll::{Matched, Members, PROGRAMS, space::Space},
    inbound::Inbound,
    kernel_log::{self, KernelLog},
    lock::NameLock,
    names::NameMaps,
    pins::{Found, Pins},
    redirect::{self, Redirect},
    rights,
};
use crate::{
    config::{self, OnAgentLoss, VirtualAddress},
    stream::Meter as _,
    sys::{self, BpfMap, Hook, diag::Diag},
};

/// A connection that was not accepted for this long never will be: longer than the kernel repeats a SYN.
const FORGET_AFTER_NS: u64 = 150_000_000_000;
/// Entries looked at per beat, so that a full table is gone through within two minutes at no visible cost.
const SWEEP_PER_BEAT: usize = 64;

/// Beats between two looks for connections to endpoints that have left.
const BEATS_PER_LOOK: u64 = 5;
/// Beats between two looks for rows of callers and endpoints that are gone.
const BEATS_PER_FOLD: u64 = 50;
/// Beats between two looks for connections whose end was not told.
const BEATS_PER_SWEEP: u64 = 100;

/// The object that `cargo xtask build` left, if there was one when the agent was built.
#[cfg(ebpf_object)]
pub static OBJECT: Option<&[u8]> = Some(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sockmesh-ebpf")));
/// The object that `cargo xtask build` left, if there was one when the agent was built.
#[cfg(not(ebpf_object))]
pub static OBJECT: Option<&[u8]> = None;

/// Capture by connect hooks.
pub struct Ebpf {
    services: BpfMap<ServiceKey, Service>,
    listeners: BpfMap<u64, Listener>,
    control: BpfMap<u32, u64>,
    tuples: BpfMap<TupleKey, ebpf_common::Origin>,
    names: NameMaps,
    counters: PerCpuArray<MapData, u64>,
    balance: Balance,
    beats: AtomicU64,
    programs: Vec<(Hook, OwnedFd)>,
    inbound: Inbound,
    redirect: Arc<Redirect>,
    clients: Clients,
    /// Held while services, listeners or links change, so that two changes do not mix.
    change: Mutex<Members>,
    pins: Pins,
    netns: u64,
    sweep: Mutex<Option<TupleKey>>,
    swept: AtomicU64,
    found: Found,
    /// What is in the kernel is as it should be, also when this is dropped.
    settled: AtomicBool,
    _kernel_log: Option<KernelLog>,
    // Last, so that the name is free only when everything above is closed.
    _lock: NameLock,
}

impl Ebpf {
    /// Loads the programs for the agent called `name` and attaches them to the control groups of `config`.
    /// Nothing is captured before the first [`apply`](Capture::apply). What an agent of that name left in
    /// the kernel is adopted, its programs replaced without a gap, or removed if it does not fit.
    /// With `kernel_log`, what the programs say up to that level goes to the log.
    pub fn load(name: &str, config: &config::Capture, kernel_log: Option<Level>) -> anyhow::Result<Self> {
        let Some(object) = OBJECT else {
            bail!("this build has no eBPF object: run `cargo xtask build`");
        };
        if let Some(missing) = missing_rights() {
            bail!("this process lacks {missing}: run it as root, or give it CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON");
        }
        let lock = NameLock::take(name)?;
        let netns = own_netns()?;
        let (pins, found) = Pins::open(&config.bpffs, name, config.max_connections)?;
        match Self::load_into(&pins, object, name, config, kernel_log) {
            Ok(parts) => {
                let this = parts.join(pins, netns, found, lock);
                // Attached but showing no life: connects pass until `apply`.
                this.reset(config)?;
                let mut members = this.change.lock();
                let resolved = members.resolve(&config.enroll)?;
                let cgroups = resolved.groups();
                members.set(&this.control, &this.programs, &config.enroll, resolved)?;
                drop(members);
                info!(?found, cgroups, "connect hooks attached");
                Ok(this)
            }
            Err(e) => {
                if found != Found::Adopted {
                    let _ = pins.remove();
                }
                // Without it the verifier forbids what it lets pass otherwise, and says nothing of rights.
                Err(if rights::PERFMON.is_held() { e } else { e.context(rights::PERFMON.missing()) })
            }
        }
    }

    fn load_into(
        pins: &Pins,
        object: &[u8],
        name: &str,
        config: &config::Capture,
        kernel_log: Option<Level>,
    ) -> anyhow::Result<Parts> {
        let (offsets, unusable) = redirect::offsets();
        match Self::load_with(pins, object, (name, config), kernel_log, &offsets, unusable.clone()) {
            Err(error) if unusable.is_none() => {
                // Without what redirect needs the rest may still load.
                let reason = format!("{error:#}");
                Self::load_with(pins, object, (name, config), kernel_log, &Offsets::default(), Some(reason))
            }
            result => result,
        }
    }

    fn load_with(
        pins: &Pins,
        object: &[u8],
        (name, config): (&str, &config::Capture),
        kernel_log: Option<Level>,
        offsets: &Offsets,
        unusable: Option<String>,
    ) -> anyhow::Result<Parts> {
        let level = kernel_log.map_or(kernel_log::SILENT, kernel_log::number);
        let mut loader = EbpfLoader::new();
        loader
            .allow_unsupported_maps()
            .override_global(aya_log::LEVEL, &level, false)
            .override_global("MESH_OFFSETS", offsets, true)
            .map_max_entries(map::SOCKETS, config.max_connections.saturating_mul(2))
            .map_max_entries(map::ENDS, config.max_connections.saturating_mul(2))
            .map_max_entries(map::TUPLES, config.max_connections);
        if kernel_log.is_none() {
            // Nobody writes to it: one page is the least the kernel gives.
            loader.map_max_entries("AYA_LOGS", 4096);
        }
        for name in Pins::map_names() {
            loader.map_pin_path(name, pins.map(name));
        }
        let mut ebpf = loader.load(object).context("the kernel does not take the maps of the eBPF object")?;
        let programs = load_programs(&mut ebpf)?;
        let inbound = Inbound::load(&mut ebpf, pins)?;
        let sockops = programs.iter().find(|(hook, _)| *hook == Hook::SockOps).context("no program for TCP")?;
        let redirect = Redirect::load(&mut ebpf, pins, name, sockops.1.as_fd(), config, unusable)?;
        let clients = Clients::new(pins, &programs)?;
        let counters = ebpf.take_map(map::COUNTERS).context("the eBPF object has no counters")?;
        let kernel_log = match kernel_log {
            Some(_) => Some(KernelLog::start(&mut ebpf)?),
            None => None,
        };
        Ok(Parts {
            services: open(pins, map::SERVICES)?,
            listeners: open(pins, map::LISTENERS)?,
            control: open(pins, map::CONTROL)?,
            tuples: open(pins, map::TUPLES)?,
            members: Members::new(
                open(pins, map::WORKLOADS)?,
                open(pins, map::UIDS)?,
                open(pins, map::NETNS)?,
                open(pins, map::STRANGERS)?,
                pins.links(),
                config.root.clone(),
            ),
            names: NameMaps { listeners: open(pins, map::DNS)?, resolvers: open(pins, map::RESOLVERS)? },
            counters: PerCpuArray::try_from(counters).context("the counters have another shape")?,
            balance: Balance::new(balance::Maps {
                slots: open(pins, map::BALANCE)?,
                rules: open(pins, map::POLICY)?,
                states: open(pins, map::ENDPOINTS)?,
                uses: open(pins, map::USE)?,
                connections: open(pins, map::CONNECTIONS)?,
                ends: open(pins, map::ENDS)?,
                joins: open(pins, map::JOINS)?,
            }),
            programs,
            inbound,
            redirect,
            clients,
            kernel_log,
        })
    }

    /// Makes what was adopted silent and correct: no life until the first beat, nothing on its way.
    fn reset(&self, config: &config::Capture) -> anyhow::Result<()> {
        let stale_after = u64::try_from(config.stale_after.as_nanos()).unwrap_or(u64::MAX);
        for (slot, value) in [
            (control::BEAT_NS, 0),
            (control::STALE_AFTER_NS, stale_after),
            (control::DRAINING, 0),
            (control::CLIENTS, 0),
            (control::PID, u64::from(std::process::id())),
            (control::LAYOUT, LAYOUT_VERSION),
        ] {
            self.control.insert(&slot, &value).context("cannot write the control map")?;
        }
        // Listeners of an agent before this one are gone, in whichever network namespace.
        for key in self.listeners.keys(ebpf_common::MAX_LISTENERS)? {
            self.listeners.remove(&key)?;
        }
        self.names.clear().context("cannot write the table of name listeners")?;
        self.redirect.switch().context("cannot write the control map")?;
        for key in self.tuples.keys(config.max_connections as usize)? {
            self.tuples.remove(&key)?;
        }
        Ok(())
    }

    /// An error where connections from elsewhere cannot be brought to the agent, with the reason.
    pub fn inbound_usable(&self) -> anyhow::Result<()> {
        self.inbound.usable()
    }

    /// What was found when it was loaded.
    pub const fn found(&self) -> Found {
        self.found
    }

    fn set_services(
        &self,
        destinations: &[(VirtualAddress, OnAgentLoss)],
        straight: &[Straight],
    ) -> anyhow::Result<()> {
        let mut wanted = HashMap::new();
        for (address, loss) in destinations {
            let flags = match loss {
                OnAgentLoss::Direct => 0,
                OnAgentLoss::Refuse => Service::REFUSE_ON_LOSS,
            };
            let key = service_key(address);
            // Two services at one address: the stricter one decides.
            wanted.entry(key).or_insert(Service { flags, ..Service::default() }).flags |= flags;
        }
        wanted.extend(self.balance.write(straight, |key| self.services.get(key).ok().flatten())?);
        if wanted.len() > ebpf_common::MAX_SERVICES {
            bail!("{} service addresses, the kernel's table holds {}", wanted.len(), ebpf_common::MAX_SERVICES);
        }
        let old = self.services.keys(ebpf_common::MAX_SERVICES)?;
        // New ones before old ones go, so that no service is missing in between, unless there is no room.
        let (gone, kept): (Vec<_>, Vec<_>) = old.into_iter().partition(|key| !wanted.contains_key(key));
        let fits = gone.len() + wanted.len() <= ebpf_common::MAX_SERVICES;
        let remove = || gone.iter().try_for_each(|key| self.services.remove(key));
        if !fits {
            remove().context("cannot remove services from the kernel's table")?;
        }
        for (key, service) in &wanted {
            self.services.insert(key, service).context("cannot add a service to the kernel's table")?;
        }
        if fits {
            remove().context("cannot remove services from the kernel's table")?;
        }
        tracing::debug!(services = wanted.len(), kept = kept.len(), removed = gone.len(), "services in the kernel");
        Ok(())
    }

    fn set_listeners(&self, addresses: &[SocketAddr]) -> anyhow::Result<()> {
        let listener = ports(addresses);
        self.listeners.insert(&self.netns, &listener).context("cannot write the kernel's table of listeners")
    }

    /// Begins conversations about the sockets of a network namespace; none where the agent cannot enter it, or knows
    /// no program there any more.
    fn looks(&self) -> impl Fn(u64) -> Option<Diag> + use<> {
        // Looked up now: whoever calls it may hold locks that are taken after this one.
        let (own, spaces) = (self.netns, self.change.lock().known_spaces());
        move |netns| {
            if netns == own {
                return Diag::open().ok();
            }
            spaces.iter().find(|space| space.cookie == netns)?.enter(Diag::open).ok()
        }
    }

    /// How often that has happened since the tables were made.
    fn counted(&self, outcome: Outcome) -> u64 {
        self.counters.get(&(outcome as u32), 0).map_or(0, |by_cpu| by_cpu.iter().sum())
    }

    /// Forgets connections that were captured and never accepted, a few per call.
    fn sweep(&self, now_ns: u64) {
        let mut cursor = self.sweep.lock();
        for _ in 0..SWEEP_PER_BEAT {
            match self.tuples.next_key(cursor.as_ref()) {
                Ok(Some(key)) => {
                    if let Ok(Some(origin)) = self.tuples.get(&key)
                        && now_ns.saturating_sub(origin.since_ns) > FORGET_AFTER_NS
                        && self.tuples.remove(&key).is_ok()
                    {
                        self.swept.fetch_add(1, Relaxed);
                    }
                    *cursor = Some(key);
                }
                _ => {
                    *cursor = None;
                    return;
                }
            }
        }
    }
}

impl Capture for Ebpf {
    fn name(&self) -> &'static str {
        "ebpf"
    }

    fn apply(&self, table: &CaptureTable) -> anyhow::Result<()> {
        let mut members = self.change.lock();
        let resolved = members.resolve(&table.enroll)?;
        self.set_listeners(&table.listeners)?;
        self.set_services(&table.destinations, &table.straight)?;
        self.inbound.set(&table.inbound)?;
        members.set(&self.control, &self.programs, &table.enroll, resolved)?;
        self.redirect.set_mode(table.redirect).context("cannot write the control map")?;
        self.clients.set(&self.control, &table.clients, &members.attached())?;
        drop(members);
        self.settled.store(true, Relaxed);
        self.beat();
        Ok(())
    }

    fn listen_inbound(&self, listeners: &[TcpListener]) -> anyhow::Result<()> {
        self.inbound.listen(listeners)
    }

    fn origin(&self, conn: &TcpStream) -> io::Result<Origin> {
        let peer = conn.peer_addr()?;
        let netns = sys::netns_cookie(conn)?;
        let key = TupleKey::new(netns, octets(peer.ip()), peer.port().to_be());
        let Some(origin) = self.tuples.take(&key)? else {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{peer} was not captured")));
        };
        Ok(Origin {
            destination: socket_addr(origin.addr, origin.port),
            pid: origin.pid,
            uid: origin.uid,
            process: convert::name(&origin.comm),
            socket: self.redirect.accepted(netns, peer, &origin),
        })
    }

    fn beat(&self) {
        let now = monotonic_ns();
        if let Err(error) = self.control.insert(&control::BEAT_NS, &now) {
            tracing::warn!(%error, "cannot tell the kernel half that the agent lives");
        }
        self.sweep(now);
    }

    fn can_enroll(&self) -> bool {
        true
    }

    fn refresh(&self) {
        let mut members = self.change.lock();
        members.refresh(&self.control, &self.programs);
        self.clients.follow(&members.attached());
        drop(members);
        self.redirect.tell_of_other_owners(self.counted(Outcome::PairBusy));
    }

    fn spaces(&self, all: bool) -> Vec<Space> {
        self.change.lock().spaces(all)
    }

    fn set_space(&self, space: &Space, listeners: &[SocketAddr]) -> io::Result<()> {
        if listeners.is_empty() {
            self.listeners.remove(&space.cookie)
        } else {
            self.listeners.insert(&space.cookie, &ports(listeners))
        }
    }

    fn matched(&self) -> (Vec<Matched>, Vec<String>) {
        let members = self.change.lock();
        (members.matched(), members.refused())
    }

    fn balance(&self, services: &[Straight]) {
        let beat = self.beats.fetch_add(1, Relaxed);
        let links = self.change.lock();
        // What was replaced in the beat before has no reader any more.
        self.balance.retire();
        let read = |key: &ServiceKey| self.services.get(key).ok().flatten();
        let result = self.balance.write(services, read).and_then(|values| {
            for (key, value) in values {
                if read(&key) != Some(value) {
                    self.services.insert(&key, &value).context("cannot change a service in the kernel's table")?;
                }
            }
            Ok(())
        });
        drop(links);
        if let Err(error) = result {
            tracing::warn!(error = format!("{error:#}"), "endpoints not written to the kernel, the last list stays");
        }
        let told = |what: &str, result: io::Result<usize>| match result {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "{what}"),
            Err(error) => tracing::warn!(%error, "failed: {what}"),
        };
        if beat.is_multiple_of(BEATS_PER_LOOK) {
            let closed = self.balance.close_left(monotonic_ns(), self.looks(), |end| self.redirect.unread(end));
            told("idle connections to endpoints that have left were closed", closed);
        }
        if beat % BEATS_PER_FOLD == 1 {
            told("rows of callers and endpoints that are gone were added up", self.balance.fold().map(|()| 0));
        }
        if beat % BEATS_PER_SWEEP == 2 {
            let swept = self.balance.sweep_connections(monotonic_ns(), self.looks());
            told("connections whose end was not seen were taken from the list", swept);
        }
    }

    fn uses(&self) -> Vec<balance::Used> {
        self.balance.uses()
    }

    fn failures(&self) -> Vec<balance::Failing> {
        self.balance.failures(monotonic_ns())
    }

    fn failed(&self, number: u32, endpoint: SocketAddr) {
        if let Err(error) = self.balance.failed(number, endpoint, monotonic_ns()) {
            tracing::warn!(%endpoint, %error, "cannot tell the kernel half that an endpoint is not reached");
        }
    }

    fn connections(&self) -> Vec<balance::Connection> {
        self.balance.connections(monotonic_ns(), self.looks())
    }

    fn stop_capturing(&self) {
        if let Err(error) = self.control.insert(&control::DRAINING, &1) {
            tracing::warn!(%error, "cannot tell the kernel half that the agent stops");
        }
    }

    fn uninstall(&self) -> anyhow::Result<()> {
        let _links = self.change.lock();
        // What a program has not read would be lost with the table of sockets. Without links no further
        // connection enters it, and what is left behind the next start adopts or removes.
        self.redirect.set_mode(config::Redirect::Off).context("cannot write the control map")?;
        if !self.redirect.wait_until_read() {
            self.pins.links().clear()?;
            self.settled.store(true, Relaxed);
            bail!(
                "programs have not read what was redirected to them: {} stays until the next start, or remove it later",
                self.pins.map(map::SOCKETS).display()
            );
        }
        self.pins.remove()?;
        self.redirect.leave();
        self.settled.store(true, Relaxed);
        Ok(())
    }

    fn answer_names(&self, space: Option<&Space>, at: Option<DnsListener>) -> anyhow::Result<()> {
        let netns = space.map_or(self.netns, |space| space.cookie);
        self.names.set(netns, at).context("cannot tell the kernel half where names are answered")
    }

    fn names(&self) -> bool {
        true
    }

    fn resolver(&self, number: u32) -> Option<IpAddr> {
        self.names.resolver(number)
    }

    fn can_introduce(&self) -> bool {
        true
    }

    fn introduce(&self, socket: BorrowedFd<'_>, client: SocketAddr) -> io::Result<()> {
        self.clients.introduce(socket, client)
    }

    fn mark(&self) -> Option<u32> {
        Some(AGENT_MARK)
    }

    fn redirect(&self) -> Option<Arc<Redirect>> {
        Some(self.redirect.clone())
    }

    fn counters(&self) -> BTreeMap<&'static str, u64> {
        let mut counters: BTreeMap<_, _> =
            Outcome::ALL.iter().map(|outcome| (outcome.name(), self.counted(*outcome))).collect();
        counters.insert("never_accepted", self.swept.load(Relaxed));
        counters
    }
}

/// Takes away what an agent called `name`, which no longer runs, left in the kernel. Says whether there was
/// anything; an error when an agent of that name runs or rights are missing.
pub fn remove_left(name: &str, config: &config::Capture) -> anyhow::Result<bool> {
    let Some(pins) = Pins::existing(&config.bpffs, name) else { return Ok(false) };
    let _lock = NameLock::take(name)?;
    pins.remove().map(|()| true)
}

impl Drop for Ebpf {
    /// A start that failed half-way leaves nothing behind; one that captured leaves all to its successor.
    fn drop(&mut self) {
        if !self.settled.load(Relaxed)
            && self.found != Found::Adopted
            && let Err(error) = {
                self.redirect.leave();
                self.pins.remove()
            }
        {
            tracing::warn!(error = format!("{error:#}"), "cannot take back what was put into the kernel");
        }
    }
}

struct Parts {
    services: BpfMap<ServiceKey, Service>,
    listeners: BpfMap<u64, Listener>,
    control: BpfMap<u32, u64>,
    tuples: BpfMap<TupleKey, ebpf_common::Origin>,
    names: NameMaps,
    counters: PerCpuArray<MapData, u64>,
    balance: Balance,
    programs: Vec<(Hook, OwnedFd)>,
    members: Members,
    inbound: Inbound,
    redirect: Redirect,
    clients: Clients,
    kernel_log: Option<KernelLog>,
}

impl Parts {
    fn join(self, pins: Pins, netns: u64, found: Found, lock: NameLock) -> Ebpf {
        Ebpf {
            services: self.services,
            listeners: self.listeners,
            control: self.control,
            tuples: self.tuples,
            names: self.names,
            counters: self.counters,
            balance: self.balance,
            beats: AtomicU64::new(0),
            programs: self.programs,
            inbound: self.inbound,
            clients: self.clients,
            change: Mutex::new(self.members),
            redirect: Arc::new(self.redirect),
            pins,
            netns,
            sweep: Mutex::new(None),
            swept: AtomicU64::new(0),
            found,
            settled: AtomicBool::new(false),
            _kernel_log: self.kernel_log,
            _lock: lock,
        }
    }
}

/// The map called `name`, which is pinned.
pub(super) fn open<K: aya::Pod, V: aya::Pod>(pins: &Pins, name: &str) -> anyhow::Result<BpfMap<K, V>> {
    let path: PathBuf = pins.map(name);
    sys::obj_get(&path).and_then(BpfMap::new).with_context(|| format!("cannot use the map {}", path.display()))
}

/// Loads every program; errors name the one that the kernel refused and why.
pub fn load_programs(ebpf: &mut aya::Ebpf) -> anyhow::Result<Vec<(Hook, OwnedFd)>> {
    PROGRAMS
        .iter()
        .map(|(name, hook)| load_program(ebpf, name).map(|fd| (*hook, fd)).map_err(|e| refusal(name, &e)))
        .collect()
}

/// Loads one program.
pub fn load_program(ebpf: &mut aya::Ebpf, name: &str) -> Result<OwnedFd, ProgramError> {
    let program = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?;
    match program {
        Program::CgroupSockAddr(p) => p.load()?,
        Program::SockOps(p) => p.load()?,
        Program::CgroupSockopt(p) => p.load()?,
        Program::SkLookup(p) => p.load()?,
        Program::SkMsg(p) => p.load()?,
        Program::SchedClassifier(p) => p.load()?,
        _ => return Err(ProgramError::UnexpectedProgramType),
    }
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}

/// Why the kernel refused a program, for operators; the verifier's words go to the debug log.
pub fn refusal(name: &str, error: &ProgramError) -> anyhow::Error {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            tracing::debug!(program = name, log, "the verifier's words");
            let statistics = ["processed", "stack depth", "verification time"];
            let says = |l: &&str| !l.is_empty() && !statistics.iter().any(|s| l.starts_with(s));
            let last = log.lines().rev().find(says).unwrap_or_default();
            anyhow::anyhow!(
                "the kernel refuses program {name}: {io_error}. {last} (`sockmesh check` tells what this kernel lacks)"
            )
        }
        other => anyhow::anyhow!("the kernel refuses program {name}: {other}"),
    }
}

/// A loader that keeps nothing: for probing what this kernel takes. What only redirect needs is left out of the
/// programs when the `offsets` are all zero.
pub fn probe(object: &[u8], offsets: &Offsets) -> anyhow::Result<aya::Ebpf> {
    let mut loader = EbpfLoader::new();
    loader
        .allow_unsupported_maps()
        .override_global(aya_log::LEVEL, &kernel_log::SILENT, false)
        .override_global("MESH_OFFSETS", offsets, true)
        .map_max_entries(map::TUPLES, 1)
        .map_max_entries("AYA_LOGS", 4096);
    loader.load(object).context("the kernel does not take the maps of the eBPF object")
}

fn ports(addresses: &[SocketAddr]) -> Listener {
    let port = |v6: bool| addresses.iter().find(|a| a.is_ipv6() == v6).map_or(0, |a| a.port().to_be());
    Listener { port4: port(false), port6: port(true) }
}

/// Cookie of the network namespace that the agent listens in.
pub fn own_netns() -> anyhow::Result<u64> {
    // Any socket will do: bound nowhere in particular, gone at once.
    let socket = TcpListener::bind(("127.0.0.1", 0)).context("no IPv4 loopback in this network namespace")?;
    sys::netns_cookie(&socket)
        .context("the kernel gives no cookie of network namespaces: Linux 5.14 or newer is needed")
}

/// The capabilities that loading and attaching need and this process has not.
pub fn missing_rights() -> Option<String> {
    let missing: Vec<_> = [rights::BPF, rights::NET_ADMIN].iter().filter(|r| !r.is_held()).map(|r| r.name).collect();
    (!missing.is_empty()).then(|| missing.join(" and "))
}

/// `CLOCK_MONOTONIC`, which is what programs read.
fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_page_lists_every_counter_program_and_map() {
        let page = include_str!("../../../docs/kernel.md");
        let counters = Outcome::ALL.iter().map(|o| o.name()).chain(["never_accepted"]);
        for name in counters
            .chain(PROGRAMS.iter().map(|(name, _)| *name))
            .chain([ebpf_common::program::INBOUND, ebpf_common::program::MSG, ebpf_common::program::FILL])
            .chain(Pins::map_names())
        {
            assert!(page.contains(&format!("\n| `{name}` | ")), "docs/kernel.md has no row for `{name}`");
        }
    }
}
