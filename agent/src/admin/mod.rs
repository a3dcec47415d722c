//! The agent's own HTTP API: what it does, how it goes, and the few commands.

mod enrolled;
mod explain;
mod export;
mod motan;
mod orders;
pub mod process;
mod registered;
mod routes;
mod server;
mod stat;
pub mod view;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use model::ServiceKey;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::{
    motan::{Debug, DynamicChange, LogControl, Motan, Shown},
    server::{Listener, serve},
};

use crate::{
    availability::Availability,
    call::Text,
    capture::{Capture, enroll::Roster},
    cluster::Cluster,
    config::{Series, Who},
    metrics::{AccessLogWriter, AgentCounters, LiveTable, RowBudget, graphite::Target},
    names::Names,
    registry::{Guards, Provided, Registry, Standing},
};

/// Everything the API may look at, and the few commands it passes on. Given by `app`.
pub struct Handles {
    /// Application name of this agent.
    pub application: Text,
    /// Failure domain that this host is in; empty when it is in none.
    pub zone: Text,
    /// Name of this agent on its host.
    pub name: String,
    /// Version of the program.
    pub version: &'static str,
    /// When it started.
    pub started: Instant,
    /// All clusters: referers, then services. Swapped by a reload.
    pub clusters: Arc<ArcSwap<Vec<Arc<Cluster>>>>,
    /// Why endpoint lists are old.
    pub stale: Arc<StaleReasons>,
    /// Connections that exist now.
    pub live: Arc<LiveTable>,
    /// The capture in use, for its name and counters.
    pub capture: Arc<dyn Capture>,
    /// Who is enrolled.
    pub enrolled: Arc<ArcSwap<Roster>>,
    /// Where the agent listens besides its own network namespace.
    pub spaces: Arc<ArcSwap<Vec<view::Space>>>,
    /// Why this capture was chosen.
    pub capture_reason: String,
    /// The configuration in use.
    pub config: Arc<ArcSwap<ConfigInfo>>,
    /// True from the moment every listener is bound until a stop begins.
    pub ready: watch::Receiver<bool>,
    /// Takes commands. A small bound will do: a full queue answers "busy".
    pub commands: mpsc::Sender<Command>,
    /// What the agent counts of itself.
    pub counters: Arc<AgentCounters>,
    /// The access log's writer, if any service logs.
    pub access_log: Option<Arc<AccessLogWriter>>,
    /// Names under `.mesh`.
    pub names: Arc<Names>,
    /// Keep lists of endpoints from going empty.
    pub guards: Guards,
    /// Clusters with the registries that command them. Swapped by a reload.
    pub steered: Arc<ArcSwap<Vec<Arc<Steered>>>>,
    /// Whether callers from elsewhere may come.
    pub availability: Availability,
    /// What is registered where.
    pub registrations: Arc<ArcSwap<Vec<Registered>>>,
    /// Servers that are sent figures.
    pub graphite: Arc<ArcSwap<Vec<Arc<Target>>>>,
    /// How many methods are counted by themselves.
    pub rows: Arc<RowBudget>,
    /// How many series there may be.
    pub series: Arc<ArcSwap<Series>>,
    /// What motan-go's management calls need besides.
    pub motan: Motan,
}

/// A cluster and who commands it.
pub struct Steered {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// Its registries by name, in their order.
    pub registries: Vec<(String, Arc<dyn Registry>)>,
    /// Application whose agents are commanded together.
    pub application: String,
}

/// One provided service in one registry.
#[derive(Clone, Debug)]
pub struct Registered {
    /// Name of the registry in the configuration.
    pub registry: String,
    /// What is registered.
    pub provided: Provided,
    /// What the registry holds of it.
    pub standing: watch::Receiver<Standing>,
}

/// Something an operator asks the agent to do.
#[derive(Debug)]
pub enum Command {
    /// Read the configuration again and apply it as a whole or not at all. Answers what changed, or
    /// all mistakes.
    Reload(oneshot::Sender<Result<String, String>>),
    /// Enroll somebody, for the given time unless it is confirmed. Answers what was done.
    Enroll(Who, Option<Duration>, oneshot::Sender<Result<String, String>>),
    /// Confirm somebody who was enrolled for a time, or all of them.
    Confirm(Option<Who>, oneshot::Sender<Result<String, String>>),
    /// Enroll somebody no more.
    Release(Who, oneshot::Sender<Result<String, String>>),
    /// Register or subscribe services, or take them back, as a whole or not at all.
    Dynamic(DynamicChange, oneshot::Sender<Result<String, String>>),
    /// Stop gracefully, as on SIGTERM.
    Drain,
}

/// Which configuration is in use.
#[derive(Clone, Debug)]
pub struct ConfigInfo {
    /// The file.
    pub path: PathBuf,
    /// 1 at start, one more with every reload that was applied.
    pub generation: u64,
    /// When this generation was loaded.
    pub loaded_at: SystemTime,
    /// What the last reload failed for; `None` once one succeeds.
    pub last_error: Option<String>,
}

/// Why endpoint lists are older than what their registries hold, by service. Written with every
/// snapshot, read by operators.
#[derive(Debug, Default)]
pub struct StaleReasons(Mutex<HashMap<ServiceKey, String>>);

impl StaleReasons {
    /// Notes what the latest snapshot of `service` says in `Snapshot::stale`.
    pub fn set(&self, service: &ServiceKey, reason: Option<&str>) {
        let mut reasons = self.0.lock();
        match reason {
            Some(reason) => reasons.insert(service.clone(), reason.to_owned()),
            None => reasons.remove(service),
        };
    }

    /// The reason, if the list is old.
    pub fn get(&self, service: &ServiceKey) -> Option<String> {
        self.0.lock().get(service).cloned()
    }
}

#[cfg(test)]
mod tests;
