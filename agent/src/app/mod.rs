//! Wiring: builds every part from the configuration and joins them; the only module that knows all.

mod balance;
mod board;
mod figures;
mod follow;
mod mesh;
mod plan;
mod registering;
mod reporting;
mod serving;
mod spaces;
mod told;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::{Semaphore, mpsc, watch},
};

use self::{
    balance::Books,
    board::Board,
    figures::FiguresOut,
    follow::Shared,
    mesh::Mesh,
    plan::Plan,
    registering::Registrar,
    serving::{Serving, bind_both},
    spaces::Spaces,
    told::{PidFile, Told},
};
use crate::{
    accept::{self, Acceptor, Target},
    admin::{self, Command, ConfigInfo, DynamicChange, Handles},
    availability::Availability,
    capture::{self, Capture, CaptureTable, enroll::Roster},
    cluster::{Cluster, Parts},
    config::{self, Config, Loaded, motan::Surroundings},
    drain::{self, Drainer},
    filter::Direction,
    kind::BuildCx,
    metrics::{AccessLogWriter, AgentCounters, LiveTable},
    names::{self, Answering, Names},
    protocol::{forward, tcp},
    registry::{Guards, ReferFilter, Store},
    route::{Destination, Route, Routes},
    stream::OwnSockets,
    switcher::Switchers,
    sys, trace,
};

/// What the command line adds to the configuration.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Show what the kernel programs say, from this level on.
    pub kernel_log: Option<tracing::Level>,
    /// Come back with what management calls brought before.
    pub recover: bool,
    /// What surrounds the file and decides with it.
    pub around: Surroundings,
    /// Changes what of the log is shown.
    pub log: admin::LogControl,
}

/// How often the kernel half is shown a sign of life.
const BEAT: Duration = Duration::from_millis(100);
/// The data runtime must have moved within this time for a beat to be honest.
const STALLED_AFTER: Duration = Duration::from_secs(2);
/// How long a stop waits for registries to take registrations back.
const TAKE_BACK: Duration = Duration::from_secs(3);
/// How long a start waits for registries before it serves without their lists.
const FIRST_SNAPSHOT: Duration = Duration::from_secs(3);

/// How long a stop waits for a collector to take the last spans.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Runs the agent until it is told to stop. Returns an error before anything is captured, or success
/// after a drain.
pub fn run(path: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    sys::keep_memory_small();
    let loaded = load(path, &options.around)?;
    let room = descriptors();
    let data = runtime::Builder::new_multi_thread()
        .worker_threads(loaded.config.threads)
        .thread_name("data")
        .enable_all()
        .build()
        .context("cannot start the data runtime")?;
    let control =
        runtime::Builder::new_current_thread().enable_all().build().context("cannot start the control runtime")?;
    let handle = data.handle().clone();
    let result = control.block_on(async move {
        let mut app = App::start(path, loaded, options, handle, room).await?;
        app.work().await;
        app.stop().await
    });
    data.shutdown_timeout(Duration::from_secs(1));
    result
}

fn load(path: &Path, around: &Surroundings) -> anyhow::Result<Loaded> {
    let mut loaded = config::load_with(path, around).map_err(|errors| anyhow::anyhow!("{errors}"))?;
    let form = if loaded.motan.is_some() { "motan-go" } else { "native" };
    tracing::info!(file = %path.display(), form, "configuration read");
    for warning in std::mem::take(&mut loaded.warnings) {
        tracing::warn!("{}", warning.line_in(Some(path)));
    }
    Ok(loaded)
}

/// Raises the limit of open files as far as allowed and returns it.
fn descriptors() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let reached = if setrlimit(Resource::Nofile, wanted).is_ok() { limit.maximum } else { limit.current };
    reached.map_or(usize::MAX, |n| n as usize)
}

/// The running agent, seen from the control runtime.
struct App {
    path: PathBuf,
    around: Surroundings,
    told: Told,
    switchers: Switchers,
    /// Removed when the agent ends.
    _pidfile: PidFile,
    config: Config,
    mesh: Mesh,
    registrar: Registrar,
    books: Books,
    figures: FiguresOut,
    capture: Arc<dyn Capture>,
    serving: Serving,
    inbound: Inbound,
    names: Arc<Names>,
    proxy: Arc<forward::Front>,
    /// Where captured connections arrive.
    captured_at: Vec<SocketAddr>,
    /// Who is enrolled, by the configuration and by commands.
    enrolled: Arc<ArcSwap<Roster>>,
    /// Listeners in other network namespaces.
    spaces: Spaces,
    info: Arc<ArcSwap<ConfigInfo>>,
    counters: Arc<AgentCounters>,
    access_log: Option<Arc<AccessLogWriter>>,
    exporters: trace::Exporters,
    ready: watch::Sender<bool>,
    commands: mpsc::Receiver<Command>,
    drainer: Drainer,
    pulse: Arc<AtomicU64>,
    stop: Stop,
}

struct Stop {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl App {
    async fn start(
        path: &Path,
        loaded: Loaded,
        options: &Options,
        data: runtime::Handle,
        room: usize,
    ) -> anyhow::Result<Self> {
        let stop = Stop {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        };
        if let Some(level) = loaded.motan.as_ref().and_then(|imported| imported.log_level.as_deref()) {
            options.log.ask(level);
        }
        let (told, mut config) = Told::start(loaded, &options.around, options.recover)?;
        names::assign(&mut config);
        // Everything that can be refused comes before the first thing that others could notice.
        let admin = serving::bind_admin(&config.ports)?;
        let access_log = open_access_log(&config)?;
        let exporters = trace::Exporters::new(runtime::Handle::current());
        let chosen = capture::choose(&config, options.kernel_log)?;
        tracing::info!(capture = chosen.capture.name(), reason = chosen.reason, "capture chosen");
        let (drainer, drain) = drain::new();
        let counters = Arc::new(AgentCounters::default());
        let live = Arc::new(LiveTable::default());
        let cx = BuildCx {
            application: config.application.clone(),
            zone: config.zone.clone(),
            base_dir: config.base_dir.clone(),
            state: config.snapshots.clone(),
            management: admin.port(),
            access_log: access_log.clone(),
            exporters: Some(exporters.clone()),
            agent: config.agent(),
            center: config.access(),
            ..BuildCx::default()
        };
        let switchers = cx.switchers.clone();
        register(&switchers, &config);
        let rows = cx.rows.clone();
        let own = chosen.capture.own_sockets();
        let proxy = forward::Front::new(&config.limits, own.clone());
        proxy.apply(&config.http_proxy.clone().unwrap_or_default());
        let acceptor = Arc::new(Acceptor {
            protocols: accept::protocols(&config.limits, Some(proxy.clone())),
            capture: chosen.capture.clone(),
            live: live.clone(),
            permits: Arc::new(Semaphore::new(permits(&config.limits, room))),
            limits: config.limits.clone(),
            counters: counters.clone(),
            passthrough: passthrough(&config.limits, own.clone()),
            own,
        });
        let captured = Arc::new(ArcSwap::from_pointee(Routes::default()));
        let serving = Serving::new(data.clone(), acceptor, drain.clone());
        let followed = followed(&config, &cx);
        let mut mesh = Mesh::new(serving.clone(), captured.clone(), cx, followed.clone());
        mesh.apply(&config)?;
        let mut figures = FiguresOut::new(
            &config,
            rows,
            figures::Seen {
                clusters: mesh.view.clone(),
                live: live.clone(),
                access_log: access_log.clone(),
                data: data.clone(),
                management: admin.port(),
                recovers: options.recover,
            },
        );
        let captured_at = match chosen.capture.needs_listener() {
            true => {
                let target = || Target::Captured(captured.clone());
                let listeners = bind_both(LOOPBACK, config.ports.outbound).context("ports.outbound")?;
                serving.keep(listeners, target)
            }
            false => Vec::new(),
        };
        let mut inbound = Inbound { serving: serving.clone(), open: false };
        inbound.open_for(&config, &mesh)?;
        if !mesh.first_snapshots(FIRST_SNAPSHOT).await {
            tracing::warn!("serving, though not every registry has answered yet");
        }
        let mut table = Plan::of(&config).capture_table(&config, captured_at.clone());
        table.straight = mesh.straight_now();
        chosen.capture.apply(&table).context("cannot tell the kernel what to capture")?;
        chosen.capture.beat();
        let enrolled = Arc::new(ArcSwap::from_pointee(Roster::of(&config.capture.enroll)));
        let port = captured_at.first().map_or(config.ports.outbound, SocketAddr::port);
        let answering = Answering::start(&config, &chosen.capture, &counters, &data, &drain);
        let names = answering.names().clone();
        let mut spaces = Spaces::new(chosen.capture.clone(), serving.clone(), captured.clone(), port, answering);
        spaces.update(true);
        if let Some(redirect) = chosen.capture.redirect() {
            redirect.start();
        }

        let (ready, ready_rx) = watch::channel(false);
        let (commands_tx, commands) = mpsc::channel(8);
        let info = Arc::new(ArcSwap::from_pointee(ConfigInfo {
            path: path.to_owned(),
            generation: 1,
            loaded_at: SystemTime::now(),
            last_error: None,
        }));
        let available = !config.start_unavailable || (options.recover && told.was_available());
        let availability = Availability::new(available);
        told.follow(&availability);
        let mut registrar = Registrar::new(availability.clone());
        let handles = Handles {
            application: config.application.clone(),
            zone: config.zone.clone(),
            name: config.name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            started: Instant::now(),
            clusters: mesh.view.clone(),
            stale: followed.stale.clone(),
            guards: followed.guards.clone(),
            steered: mesh.steered.clone(),
            live,
            capture: chosen.capture.clone(),
            enrolled: enrolled.clone(),
            spaces: spaces.view.clone(),
            capture_reason: chosen.reason,
            config: info.clone(),
            ready: ready_rx,
            commands: commands_tx,
            counters: counters.clone(),
            access_log: access_log.clone(),
            names: names.clone(),
            availability,
            registrations: registrar.view.clone(),
            graphite: figures.targets.clone(),
            rows: figures.rows.clone(),
            series: figures.series.clone(),
            motan: admin::Motan {
                enabled: config.ports.motan_management,
                shown: told.shown.clone(),
                switchers: switchers.clone(),
                log: options.log.clone(),
                debug: admin::Debug::new(config.ports.debug_pages),
                refers: followed.refers.clone(),
            },
        };
        figures.apply(&config);
        let admin_at = admin.to_string();
        let admin = admin.open()?;
        let handles = Arc::new(handles);
        reporting::start(config.center.as_ref(), &config.agent(), &handles);
        tokio::spawn(async move {
            if let Err(error) = admin::serve(admin, handles).await {
                tracing::error!(%error, "the admin API stopped");
            }
        });
        let pulse = Arc::new(AtomicU64::new(0));
        data.spawn(beat_of_the_data_runtime(pulse.clone()));
        sys::give_memory_back();
        ready.send_replace(true);
        registrar.apply(&config, mesh.registries());
        let pidfile = PidFile::write(config.pidfile.as_deref());
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            admin = admin_at,
            services = config.referers.len() + config.services.len(),
            "ready"
        );
        Ok(Self {
            path: path.to_owned(),
            around: options.around.clone(),
            told,
            switchers,
            _pidfile: pidfile,
            config,
            mesh,
            registrar,
            books: Books::default(),
            figures,
            capture: chosen.capture,
            serving,
            inbound,
            names,
            proxy,
            captured_at,
            enrolled,
            spaces,
            info,
            counters,
            access_log,
            exporters,
            ready,
            commands,
            drainer,
            pulse,
            stop,
        })
    }

    /// Serves until told to stop.
    async fn work(&mut self) {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut seen = (self.pulse.load(Relaxed), Instant::now());
        let mut beats = 0u64;
        loop {
            tokio::select! {
                biased;
                _ = beat.tick() => {
                    let now = self.pulse.load(Relaxed);
                    if now != seen.0 {
                        seen = (now, Instant::now());
                    }
                    // With the data runtime stuck, direct connections are better than captured ones.
                    if seen.1.elapsed() < STALLED_AFTER {
                        self.capture.beat();
                    }
                    beats += 1;
                    self.follow(beats);
                    self.books.beat(&self.mesh, &*self.capture);
                    self.figures.beat(&self.mesh);
                }
                _ = self.stop.term.recv() => return,
                _ = self.stop.int.recv() => return,
                _ = self.stop.hup.recv() => {
                    if let Some(log) = &self.access_log {
                        log.reopen();
                    }
                    // Nobody waits for the answer; the log has it, and `/config` as `last_error`.
                    let _ = self.reload();
                }
                Some(command) = self.commands.recv() => match command {
                    Command::Reload(answer) => {
                        // The asker may have gone; the reload took place all the same.
                        let _ = answer.send(self.reload());
                    }
                    Command::Enroll(who, trial, answer) => {
                        let _ = answer.send(self.change_enrolled(|roster| roster.enroll(&who, trial)));
                    }
                    Command::Confirm(who, answer) => {
                        let _ = answer.send(self.change_enrolled(|roster| roster.confirm(who.as_ref())));
                    }
                    Command::Release(who, answer) => {
                        let _ = answer.send(self.change_enrolled(|roster| roster.release(&who)));
                    }
                    Command::Dynamic(change, answer) => {
                        let _ = answer.send(self.change_dynamic(change));
                    }
                    Command::Drain => return,
                },
            }
        }
    }

    /// Applies the file as it is now, as a whole or not at all.
    fn reload(&mut self) -> Result<String, String> {
        let result = self.try_reload();
        let mut info = ConfigInfo::clone(&self.info.load());
        match &result {
            Ok(message) => {
                info.generation += 1;
                info.loaded_at = SystemTime::now();
                info.last_error = None;
                self.counters.reloads_ok.fetch_add(1, Relaxed);
                tracing::info!(generation = info.generation, now = message, "configuration reloaded");
            }
            Err(error) => {
                info.last_error = Some(error.clone());
                self.counters.reloads_failed.fetch_add(1, Relaxed);
                tracing::error!(error, "configuration not reloaded, the old one stays in force");
            }
        }
        self.info.store(Arc::new(info));
        result
    }

    fn try_reload(&mut self) -> Result<String, String> {
        let loaded = load(&self.path, &self.around).map_err(|e| format!("{e:#}"))?;
        let mut new = self.told.reloaded(&loaded)?;
        names::assign(&mut new);
        let message = self.put(new)?;
        self.told.take(Some(loaded), None, &self.config);
        Ok(message)
    }

    /// Adds or removes services as a management call says, as a whole or not at all.
    fn change_dynamic(&mut self, change: DynamicChange) -> Result<String, String> {
        let Some((dynamic, mut new)) = self.told.changed(change)? else { return Ok("nothing to change".to_owned()) };
        names::assign(&mut new);
        let message = self.put(new)?;
        self.told.take(None, Some(dynamic), &self.config);
        tracing::info!(target: "audit", change = message, "services were registered or subscribed");
        Ok(message)
    }

    /// Puts another configuration in force.
    fn put(&mut self, new: Config) -> Result<String, String> {
        let fixed = plan::needs_restart(&self.config, &new);
        if !fixed.is_empty() {
            return Err(format!(
                "changed but fixed for a running agent: {}; restart it to apply them",
                fixed.join(", ")
            ));
        }
        register(&self.switchers, &new);
        self.inbound.open_for(&new, &self.mesh).map_err(|e| format!("{e:#}"))?;
        self.mesh.apply(&new).map_err(|e| format!("{e:#}"))?;
        let mut enrolled = Roster::clone(&self.enrolled.load());
        enrolled.reload(&new.capture.enroll);
        if let Err(error) = self.capture.apply(&self.table(&new, &enrolled)) {
            // Back to what was in force, which the kernel had accepted before.
            let restored = self.mesh.apply(&self.config);
            self.registrar.apply(&self.config, self.mesh.registries());
            let restored = restored.and_then(|()| self.capture.apply(&self.table(&self.config, &self.enrolled.load())));
            let after =
                restored.err().map(|e| format!("; restoring the old one failed too: {e:#}")).unwrap_or_default();
            return Err(format!("the kernel refused the new table: {error:#}{after}"));
        }
        self.enrolled.store(Arc::new(enrolled));
        self.spaces.update(true);
        self.names.set(&new);
        self.proxy.apply(&new.http_proxy.clone().unwrap_or_default());
        self.registrar.apply(&new, self.mesh.registries());
        self.figures.apply(&new);
        let message = format!("{} services called, {} provided", new.referers.len(), new.services.len());
        self.config = new;
        Ok(message)
    }

    /// What the capture is told under `config`, which the mesh has applied, with `enrolled`.
    fn table(&self, config: &Config, enrolled: &Roster) -> CaptureTable {
        let mut table = Plan::of(config).capture_table(config, self.captured_at.clone());
        table.enroll = enrolled.wanted();
        table.straight = self.mesh.straight_now();
        table
    }

    /// Follows who is enrolled as control groups, processes and network namespaces come and go, and takes back
    /// what nobody confirmed.
    fn follow(&mut self, beats: u64) {
        let now = Instant::now();
        if self.enrolled.load().is_overdue(now) {
            let undone = self.change_enrolled(|roster| {
                let who: Vec<_> = roster.expire(now).iter().map(ToString::to_string).collect();
                Ok(format!("{} undone: not confirmed in time", who.join(", ")))
            });
            if let Err(error) = undone {
                tracing::error!(error, "an enrolment that was not confirmed cannot be undone: it is tried again");
            }
        }
        if beats.is_multiple_of(5) {
            self.capture.refresh();
        }
        self.spaces.update(beats.is_multiple_of(10));
    }

    /// Changes who is enrolled, as a whole or not at all. Each change leaves a line in the log.
    fn change_enrolled(
        &mut self,
        change: impl FnOnce(&mut Roster) -> Result<String, String>,
    ) -> Result<String, String> {
        if !self.capture.can_enroll() {
            return Err(format!(
                "this agent captures by `{}`, which enrolls nobody: set `capture: ebpf` or `iptables` and restart it",
                self.capture.name()
            ));
        }
        let mut enrolled = Roster::clone(&self.enrolled.load());
        let said = change(&mut enrolled)?;
        if let Err(error) = self.capture.apply(&self.table(&self.config, &enrolled)) {
            let restored = self.capture.apply(&self.table(&self.config, &self.enrolled.load()));
            let after = restored.err().map(|e| format!("; restoring who was enrolled failed too: {e:#}"));
            return Err(format!("{error:#}{}", after.unwrap_or_default()));
        }
        self.enrolled.store(Arc::new(enrolled));
        self.spaces.update(true);
        tracing::info!(target: "audit", change = said, "who is enrolled has changed");
        Ok(said)
    }

    /// Tells callers from elsewhere to go to others, before anything is refused. A further signal cuts the wait.
    async fn take_back(&mut self) {
        let done = self.registrar.take_back(TAKE_BACK);
        tokio::pin!(done);
        let mut beat = tokio::time::interval(BEAT);
        loop {
            tokio::select! {
                () = &mut done => return,
                _ = beat.tick() => self.capture.beat(),
                _ = self.stop.term.recv() => return,
                _ = self.stop.int.recv() => return,
            }
        }
    }

    /// Finishes what is held, takes everything back, ends.
    async fn stop(mut self) -> anyhow::Result<ExitCode> {
        tracing::info!(deadline = ?self.config.drain, "stopping: no new connections, finishing those that are here");
        self.ready.send_replace(false);
        self.take_back().await;
        self.capture.stop_capturing();
        self.serving.release_drain();
        let finish = self.drainer.drain(self.config.drain);
        tokio::pin!(finish);
        // The beat goes on: connections that were captured before the stop must still find us alive.
        let mut beat = tokio::time::interval(BEAT);
        let in_time = loop {
            tokio::select! {
                in_time = &mut finish => break in_time,
                _ = beat.tick() => self.capture.beat(),
                _ = self.stop.term.recv() => break false,
                _ = self.stop.int.recv() => break false,
            }
        };
        if !in_time {
            tracing::warn!("the drain deadline passed or a second signal came: the rest was cut");
        }
        self.capture.uninstall().context("cannot take back everything from the kernel: run `sockmesh check`")?;
        self.figures.finish().await;
        if let Some(log) = &self.access_log {
            log.flush(Duration::from_secs(1));
        }
        self.exporters.flush(LAST_SPANS).await;
        tracing::info!("stopped");
        Ok(ExitCode::SUCCESS)
    }
}

fn register(switchers: &Switchers, config: &Config) {
    for (name, on) in &config.switchers {
        switchers.register(name, *on);
    }
}

/// Listens for connections from elsewhere once the first service asks for it.
struct Inbound {
    serving: Serving,
    open: bool,
}

impl Inbound {
    fn open_for(&mut self, config: &Config, mesh: &Mesh) -> anyhow::Result<()> {
        if self.open || !config.has_inbound() || !self.serving.is_open() {
            return Ok(());
        }
        let capture = &self.serving.acceptor().capture;
        let listeners = bind_both(capture.inbound_at(), config.ports.inbound).context("ports.inbound")?;
        capture.listen_inbound(&listeners)?;
        self.serving.keep(listeners, || Target::Inbound(mesh.inbound.clone()));
        self.open = true;
        Ok(())
    }
}

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

fn open_access_log(config: &Config) -> anyhow::Result<Option<Arc<AccessLogWriter>>> {
    let clusters = config.referers.iter().map(|r| &r.cluster).chain(config.services.iter().map(|s| &s.cluster));
    let wanted = clusters.flat_map(|c| &c.filters).any(|f| f.name == "access_log");
    let path = config.access_log.path.as_ref().map(|p| config.base_dir.join(p));
    // Opened also when nothing logs yet but a file is named: a reload may bring the first filter.
    if !wanted && path.is_none() {
        return Ok(None);
    }
    // Scripts of a site may count on a folder that the agent before made.
    if let Some(folder) = path.as_deref().and_then(Path::parent).filter(|folder| !folder.exists()) {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("access_log.path: cannot make {}", folder.display()))?;
    }
    let writer = AccessLogWriter::start(path.clone(), config.access_log.buffer_lines, config.access_log.rotate)
        .with_context(|| format!("access_log.path: cannot open {path:?}"))?;
    Ok(Some(Arc::new(writer)))
}

/// What those who follow registries share; starts writing snapshot files.
fn followed(config: &Config, cx: &BuildCx) -> Shared {
    let store = config.snapshots.clone().map(|dir| Arc::new(Store::new(dir)));
    if let Some(store) = &store {
        tokio::spawn(store.clone().keep());
    }
    Shared {
        stale: Arc::default(),
        guards: Guards::new(store, config.hold_back.clone()),
        board: Board::new(cx.switchers.clone()),
        own: config.advertise.or_else(registering::own_ip),
        refers: ReferFilter::default(),
    }
}

/// Each connection may need a second descriptor towards its endpoint.
fn permits(limits: &config::Limits, descriptors: usize) -> usize {
    let room = descriptors.saturating_sub(limits.reserved_descriptors) / 2;
    if room < limits.connections {
        tracing::warn!(
            connections = room,
            wanted = limits.connections,
            descriptors,
            "fewer connections than `limits.connections`: raise the limit of open files (LimitNOFILE=)"
        );
    }
    // The semaphore's own limit is far above any table of descriptors.
    room.clamp(1, limits.connections.clamp(1, Semaphore::MAX_PERMITS))
}

/// Carries a captured connection whose service has gone since to where it wanted to go.
fn passthrough(limits: &config::Limits, own: OwnSockets) -> Box<dyn Fn(SocketAddr) -> Destination + Send + Sync> {
    let plain = config::Cluster { filters: Vec::new(), ..config::Cluster::default() };
    let protocols = accept::protocols(limits, None);
    Box::new(move |destination| {
        let (_, tcp) = protocols.iter().find(|(name, _)| *name == tcp::NAME).expect("tcp is in KINDS");
        let cluster = Cluster::build(Parts {
            key: model::ServiceKey { service: destination.to_string(), ..model::ServiceKey::default() },
            direction: Direction::Outbound,
            protocol: tcp::NAME,
            config: &plain,
            connector: tcp.connector(&plain, &BuildCx::default()).expect("defaults are valid"),
            introduce: None,
            own: own.clone(),
            cx: &BuildCx::default(),
        })
        .expect("defaults are valid");
        cluster.apply(&model::Snapshot {
            revision: 1,
            instances: vec![model::Instance::at(destination.to_string())],
            stale: None,
        });
        Destination::Declared(Arc::new(Route::new(Direction::Outbound, tcp::NAME, vec![Arc::new(cluster)])))
    })
}

async fn beat_of_the_data_runtime(pulse: Arc<AtomicU64>) {
    let mut tick = tokio::time::interval(BEAT);
    loop {
        tick.tick().await;
        pulse.fetch_add(1, Relaxed);
    }
}
