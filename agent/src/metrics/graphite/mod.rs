//! Figures on their way to Graphite: each interval what happened in it, taken from what is counted anyway.
//!
//! `figures` takes differences, the forms write them: `plain` as lines for Carbon through `queue` and
//! `carrier`, `motan` as motan-go's packets.

mod carrier;
mod figures;
mod motan;
mod plain;
mod queue;

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval_at},
};

use self::figures::{Figures, Row};
use super::ServiceStats;
use crate::{
    call::Text,
    config::{Graphite, GraphiteForm},
};

/// Time that a target gets to take what is left when it goes or the agent stops.
pub const LAST_WORDS: Duration = Duration::from_secs(1);

/// One service as figures are named by.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Which way its calls go: `outbound` or `inbound`.
    pub side: &'static str,
    /// Its name.
    pub service: Text,
    /// Its group, may be empty.
    pub group: Text,
    /// Application that the figures stand under.
    pub application: Text,
    /// What is counted of it.
    pub stats: Arc<ServiceStats>,
}

/// How the agent itself is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Status {
    /// Resident memory.
    pub resident_bytes: u64,
    /// Processor time used so far, by all threads.
    pub cpu: Duration,
    /// Tasks of the runtimes.
    pub tasks: u64,
    /// Calls so far that named a service nobody configured.
    pub unknown_services: u64,
    /// Connections of programs held.
    pub connections: u64,
    /// Access log lines lost so far.
    pub log_lines_lost: u64,
    /// Panics so far.
    pub panics: u64,
    /// 1 when this run was told to recover what a former one left.
    pub recoveries: u64,
}

/// What exporters read.
pub struct Source {
    /// Name of this host.
    pub host: String,
    /// Application name of this agent.
    pub application: Text,
    /// Name of this agent on its host.
    pub name: String,
    /// All services as they are now.
    pub subjects: Box<dyn Fn() -> Vec<Subject> + Send + Sync>,
    /// How the agent is now.
    pub status: Box<dyn Fn() -> Status + Send + Sync>,
    /// Port of the management calls, which some names have in them; 0 when there is none.
    pub management: u16,
    /// Services called here that have an endpoint out of rotation because calls failed there, each once.
    pub failing: Box<dyn Fn() -> Vec<Text> + Send + Sync>,
}

/// One target and how it goes with it, for operators.
#[derive(Debug)]
pub struct Target {
    /// What was configured.
    pub config: Graphite,
    /// Lines handed to the network.
    pub sent: AtomicU64,
    /// Lines given up: the queue was full, or a packet was refused.
    pub dropped: AtomicU64,
    /// Lines waiting now.
    pub waiting: AtomicU64,
    /// Connects that failed and connections that broke.
    pub failures: AtomicU64,
    /// Whether a connection stands; always for UDP once a packet went out.
    pub connected: AtomicBool,
}

impl Target {
    fn new(config: Graphite) -> Arc<Self> {
        Arc::new(Self {
            config,
            sent: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            connected: AtomicBool::new(false),
        })
    }

    /// Notes a failure, and logs the first of a row.
    fn failed(&self, error: &anyhow::Error) {
        let first = self.connected.swap(false, Relaxed) || self.failures.load(Relaxed) == 0;
        self.failures.fetch_add(1, Relaxed);
        let (graphite, form) = (&self.config.address, self.config.form.name());
        if first {
            tracing::warn!(graphite, form, error = format!("{error:#}"), "figures wait: it is tried again");
        } else {
            tracing::debug!(graphite, form, error = format!("{error:#}"), "figures still wait");
        }
    }

    fn works(&self) {
        if !self.connected.swap(true, Relaxed) {
            tracing::info!(graphite = self.config.address, form = self.config.form.name(), "figures are sent");
        }
    }
}

/// What carries figures in one form. Lives in a task of its own.
trait Form: Send {
    /// Takes what happened in an interval of length `lasted`. Never waits for the target.
    fn take(&mut self, rows: &[Row], lasted: Duration);
    /// Resolves when everything taken so far is with the network. Cancel safe.
    fn settled(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// Builds the form of a target.
type Build = fn(&Arc<Target>, &Arc<Source>) -> Box<dyn Form>;

/// Forms by the configuration's choice.
const KINDS: &[(GraphiteForm, Build)] = &[(GraphiteForm::Plain, plain::build), (GraphiteForm::Motan, motan::build)];

/// All targets of the configuration in force.
pub struct Exporters {
    source: Arc<Source>,
    running: Vec<Running>,
    /// Those that were taken out and say their last words.
    leaving: JoinSet<()>,
}

struct Running {
    target: Arc<Target>,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<bool>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Exporters {
    /// None yet; `source` is what all of them read.
    pub fn new(source: Source) -> Self {
        Self { source: Arc::new(source), running: Vec::new(), leaving: JoinSet::new() }
    }

    /// Makes the targets those of `wanted`. Those that stay keep their connection and queue; those that go send
    /// what they have, for a second at most. Must be called within a runtime.
    pub fn apply(&mut self, wanted: &[Graphite]) {
        let mut before = std::mem::take(&mut self.running);
        for config in wanted {
            let same = before.iter().position(|r| r.target.config == *config);
            let running = same.map_or_else(|| self.start(config.clone()), |i| before.swap_remove(i));
            self.running.push(running);
        }
        while self.leaving.try_join_next().is_some() {}
        for gone in before {
            self.leaving.spawn(gone.finish());
        }
    }

    /// The targets in the order of the configuration.
    pub fn targets(&self) -> Vec<Arc<Target>> {
        self.running.iter().map(|r| r.target.clone()).collect()
    }

    /// Sends what happened since the last interval and ends all targets; waits a second at most.
    pub async fn finish(&mut self) {
        for running in std::mem::take(&mut self.running) {
            self.leaving.spawn(running.finish());
        }
        while self.leaving.join_next().await.is_some() {}
    }

    fn start(&self, config: Graphite) -> Running {
        let target = Target::new(config);
        let (stop, asked) = watch::channel(false);
        let (end, ended) = watch::channel(false);
        let task = tokio::spawn(export(target.clone(), self.source.clone(), asked, end)).abort_handle();
        Running { target, stop, ended, task }
    }
}

impl Running {
    async fn finish(mut self) {
        self.stop.send_replace(true);
        // The task bounds its last words itself; this bounds a task that does not get to run.
        let _ = tokio::time::timeout(2 * LAST_WORDS, self.ended.wait_for(|ended| *ended)).await;
    }
}

async fn export(target: Arc<Target>, source: Arc<Source>, mut asked: watch::Receiver<bool>, end: watch::Sender<bool>) {
    let every = target.config.interval;
    let build = KINDS.iter().find(|(form, _)| *form == target.config.form).expect("every form has its row").1;
    let mut form = build(&target, &source);
    let mut figures = Figures::default();
    // What happened before belongs to no interval of ours.
    figures.take(&(source.subjects)());
    let mut since = Instant::now();
    let mut tick = interval_at(since + every, every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let stop = tokio::select! {
            _ = asked.wait_for(|stop| *stop) => true,
            _ = tick.tick() => false,
        };
        let rows = figures.take(&(source.subjects)());
        let now = Instant::now();
        form.take(&rows, now - since);
        since = now;
        if stop {
            let _ = tokio::time::timeout(LAST_WORDS, form.settled()).await;
            end.send_replace(true);
            return;
        }
    }
}

#[cfg(test)]
mod tests;
