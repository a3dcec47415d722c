//! What is seen: figures of services, groups, instances and callers over time, who calls whom, how agents are.
//! From what agents send, from Graphite or from Prometheus.
//!
//! In the order of data: `intake` checks a report, `rows` finds the rows that it counts in, `ring` and `slot` hold
//! their windows, `series` and `points` read them. `day` keeps minutes in a file, `source` asks servers of the site,
//! `history` chooses among them.

mod agents;
mod day;
mod edges;
mod exported;
mod history;
mod intake;
mod live;
mod points;
mod ring;
mod routes;
mod rows;
mod series;
mod slot;
pub mod source;
mod time;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use model::center::{
    AgentRow, AgentStatus, CapacityPoint, Figures, Graph, GraphEdge, Histogram, Of, Report, Series, Side,
};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::watch;

pub use self::routes::routes;
use self::{
    agents::{Agents, Count, Limit},
    edges::Edges,
    history::History,
    ring::Stretch,
    rows::Table,
    time::Time,
};
use crate::{error::Error, registry::Registry, store::Store};

/// How often is looked for what may be forgotten.
const SWEEP: Duration = Duration::from_secs(10);

/// `monitor:` of the centre's file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long minutes of figures are kept in the centre's directory; zero: not at all. Without a word about it a
    /// day, and nothing when `sources` are configured.
    #[serde(deserialize_with = "keep")]
    pub keep: Option<Duration>,
    /// Servers that keep figures, asked in this order.
    pub sources: Vec<SourceChoice>,
}

fn keep<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Duration>, D::Error> {
    model::kind::duration(value).map(Some)
}

/// A kind of source and its options.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceChoice {
    /// A name in [`source::KINDS`].
    pub kind: String,
    /// The kind's own.
    #[serde(default)]
    pub options: model::kind::Value,
}

/// Everything seen.
pub struct Monitor {
    store: Arc<dyn Store>,
    registry: Arc<Registry>,
    time: Time,
    seen: Mutex<Seen>,
    config: Config,
    history: OnceLock<History>,
    live: live::Hub,
    closed: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Seen {
    table: Table,
    edges: Edges,
    agents: Agents,
    /// Reports counted.
    reports: u64,
    /// Reports that were wrong, too many, or came twice.
    refused: u64,
}

const fn other(side: Side) -> Side {
    match side {
        Side::Outbound => Side::Inbound,
        Side::Inbound => Side::Outbound,
    }
}

impl Monitor {
    /// From what it builds on.
    pub fn new(config: Config, store: Arc<dyn Store>, registry: Arc<Registry>) -> Arc<Self> {
        Arc::new(Self {
            store,
            registry,
            time: Time::new(),
            seen: Mutex::default(),
            config,
            history: OnceLock::new(),
            live: live::Hub::default(),
            closed: watch::channel(false).0,
        })
    }

    /// Reads what is kept in `data` and begins what goes on beside requests, which ends with the last handle. A centre
    /// whose store keeps nothing (`memory`) keeps no figures either.
    ///
    /// # Errors
    /// An option is wrong. A file of figures that cannot be opened is none: they are kept in memory only.
    pub async fn load(self: &Arc<Self>, data: &Path, store: &str) -> anyhow::Result<()> {
        let history = History::open(&self.config, (store != "memory").then_some(data))?;
        self.restore(&history);
        let keeps = history.keeps();
        let _ = self.history.set(history);
        if keeps {
            history::keep(self);
        }
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SWEEP).await;
                let Some(monitor) = weak.upgrade() else { return };
                monitor.sweep();
            }
        });
        Ok(())
    }

    fn sweep(&self) {
        let now = self.time.now();
        let mut seen = self.seen.lock();
        seen.table.sweep(now);
        seen.edges.sweep(now);
        seen.agents.sweep();
    }

    /// Takes in what an agent saw; one that is wrong is left out.
    pub fn report(&self, report: Report) {
        if let Err(error) = self.take(&report, Limit::None) {
            tracing::debug!(agent = report.agent, %error, "report refused");
        }
    }

    /// Takes in all of a report or nothing.
    fn take(&self, report: &Report, limit: Limit) -> Result<(), Error> {
        let checked = intake::check(report);
        let now = self.time.now();
        let window = Duration::from_secs_f64(if checked.is_ok() { report.window_seconds } else { 0.0 });
        let from = now.saturating_sub(u64::try_from(window.as_millis()).unwrap_or(u64::MAX));
        let mut seen = self.seen.lock();
        let count = checked.and_then(|()| seen.agents.heard(report, limit));
        match count {
            Ok(Count::Yes) => {
                let (mut room, refused) = (seen.agents.room(&report.agent), seen.table.refused);
                seen.table.add(report, from, now, &mut room);
                let refused = seen.table.refused > refused;
                seen.agents.brought(&report.agent, room, refused);
                seen.edges.add(&report.edges, from, now);
                seen.reports += 1;
                Ok(())
            }
            Ok(Count::Twice) => {
                seen.refused += 1;
                Ok(())
            }
            Err(error) => {
                seen.refused += 1;
                Err(error)
            }
        }
    }

    /// Figures of the last ten seconds, of the side that is asked for, or of the other one when nobody tells of that.
    pub fn lately(&self, of: &Of) -> Figures {
        self.stretch(of).map(|stretch| series::figures(&stretch)).unwrap_or_default()
    }

    /// Times of the calls of the last ten seconds, and how many seconds these are; sides as [`Monitor::lately`].
    pub fn times(&self, of: &Of) -> (f64, Histogram) {
        let stretch = self.stretch(of).unwrap_or_default();
        let times = stretch.times();
        // So that a count divided by it is a rate, whatever part of the agents was heard last.
        let seconds = if stretch.rate > 0.0 { stretch.counts.calls as f64 / stretch.rate } else { stretch.seconds };
        (seconds, times)
    }

    fn stretch(&self, of: &Of) -> Option<Stretch> {
        let now = self.time.now();
        let seen = self.seen.lock();
        let of_other = || seen.table.lately(&Of { side: other(of.side), ..of.clone() }, now);
        seen.table.lately(of, now).or_else(of_other)
    }

    /// Services in groups of which agents told, registered or not, sorted.
    pub fn services(&self) -> Vec<(String, String)> {
        let seen = self.seen.lock();
        seen.table.services().into_iter().map(|(s, g)| (s.to_owned(), g.to_owned())).collect()
    }

    /// Applications that call a service lately, and how their bytes travel; those with the most calls first.
    pub fn callers(&self, service: &str, group: &str) -> Vec<(String, Figures, String)> {
        let now = self.time.now();
        let seen = self.seen.lock();
        let edges = seen.edges.now(now, |ends| &*ends.service == service && &*ends.group == group);
        let way = |caller: &str| {
            let of_caller = edges.iter().filter(|edge| &*edge.ends.caller == caller);
            of_caller.max_by(|a, b| a.rate.total_cmp(&b.rate)).map(|edge| edge.way.clone()).unwrap_or_default()
        };
        let mut all: BTreeMap<String, Figures> = BTreeMap::new();
        let keep = seen.table.keep_of_parts();
        for side in [Side::Outbound, Side::Inbound] {
            for (caller, row) in seen.table.callers(service, group, side) {
                if let Some(stretch) = row.lately(now, keep).filter(|stretch| stretch.counts.calls > 0) {
                    all.entry(caller.to_owned()).or_insert_with(|| series::figures(&stretch));
                }
            }
        }
        for edge in &edges {
            let figures = Figures { rate: edge.rate, success: edge.success, ..Figures::default() };
            all.entry(edge.ends.caller.to_string()).or_insert(figures);
        }
        let mut all: Vec<_> = all.into_iter().map(|(caller, f)| (caller.clone(), f, way(&caller))).collect();
        all.sort_by(|a, b| b.1.rate.total_cmp(&a.1.rate));
        all
    }

    /// Figures over time; `step_ms` 0 lets the span decide. Windows are longer than was asked for where that does not
    /// reach back so far.
    ///
    /// # Errors
    /// The source that is configured does not answer, and agents' own figures do not reach back so far.
    pub async fn series(&self, of: &Of, from_ms: u64, to_ms: u64, step_ms: u64) -> Result<Series, Error> {
        if !of.instance.is_empty() && !of.caller.is_empty() {
            let remedy = "ask for one of both";
            return Err(Error::bad("figures of one caller at one instance are not kept", remedy));
        }
        self.history(of, from_ms, to_ms, step_ms).await
    }

    /// Whether servers of the site are asked for figures.
    pub fn has_sources(&self) -> bool {
        !self.config.sources.is_empty()
    }

    /// Ends what is watched, so that the centre can stop.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Operating points of the instances of a service in a group, oldest first; `slow_ms` weighs what is slow, as
    /// [`Band`](model::center::Band) does. As each instance's own agent sees it, or where that tells nothing, its callers'.
    pub fn points(&self, service: &str, group: &str, slow_ms: f64) -> Vec<CapacityPoint> {
        let (now, offset) = (self.time.now(), self.time.offset());
        let seen = self.seen.lock();
        let instances = seen.table.instances(service, group);
        let of = |(instance, row): (&str, &ring::Rings)| points::of(instance, row, now, slow_ms, offset);
        let mut all: Vec<_> = instances.into_iter().flat_map(of).collect();
        drop(seen);
        all.sort_by_key(|point| point.at_ms);
        all
    }

    /// Who calls whom, of the last minute: applications call services, and services are served by applications.
    pub fn graph(&self) -> Graph {
        self.graph_of(|_| true)
    }

    /// The same, of services in groups that `fits`.
    fn graph_of(&self, fits: impl Fn(&str) -> bool) -> Graph {
        let now = self.time.now();
        let seen = self.seen.lock();
        let mut graph = edges::Builder::default();
        let lately = |side, service: &str, group: &str| {
            let (service, group) = (service.to_owned(), group.to_owned());
            let of = Of { side, service, group, ..Of::default() };
            seen.table.lately(&of, now).map(|stretch| series::figures(&stretch))
        };
        let figures = |service: &str, group: &str| {
            let of_side = |side| lately(side, service, group);
            of_side(Side::Outbound).or_else(|| of_side(Side::Inbound)).unwrap_or_default()
        };
        for edge in seen.edges.now(now, |ends| fits(&ends.group)) {
            let (service, group) = (&edge.ends.service, &edge.ends.group);
            let from = graph.application(&edge.ends.caller);
            let to = graph.service(service, group, || figures(service, group));
            let (rate, success, way) = (edge.rate, edge.success, edge.way);
            graph.edge(GraphEdge { from, to, rate, success, protocol: edge.ends.protocol.to_string(), way });
        }
        for (service, group) in seen.table.services().into_iter().filter(|(_, group)| fits(group)) {
            // Callers without an agent are known to the agents of those they call.
            let keep = seen.table.keep_of_parts();
            for (caller, row) in seen.table.callers(service, group, Side::Inbound) {
                let from = format!("application:{caller}");
                if graph.calls(&from, service, group) {
                    continue;
                }
                let Some(stretch) = row.lately(now, keep).filter(|stretch| stretch.counts.calls > 0) else { continue };
                let told = series::figures(&stretch);
                let (from, to) = (graph.application(caller), graph.service(service, group, || figures(service, group)));
                let (rate, success, way) = (told.rate, told.success, "tcp".to_owned());
                graph.edge(GraphEdge { from, to, rate, success, protocol: String::new(), way });
            }
            let Some(served) = lately(Side::Inbound, service, group).filter(|f| f.rate > 0.0) else { continue };
            let providers = seen.table.providers(service, group);
            for provider in &providers {
                let from = graph.service(service, group, || figures(service, group));
                let to = graph.application(provider);
                let rate = served.rate / providers.len() as f64;
                let (protocol, way) = ("serves".to_owned(), String::new());
                graph.edge(GraphEdge { from, to, rate, success: served.success, protocol, way });
            }
        }
        graph.build()
    }

    /// All agents, by name.
    pub fn agents(&self) -> Vec<AgentRow> {
        let wanted = self.store.stamp().revision;
        let seen = self.seen.lock();
        // What an agent took it says with every long poll; one that follows nothing says it in its reports, if at all.
        let status = |name: &str, agent: &agents::Seen| {
            let taken = self.registry.taken_by(name).max(agent.status.seen);
            AgentStatus { seen: taken, ..agent.status.clone() }
        };
        let row = |name: &str, agent: &agents::Seen, status: AgentStatus| AgentRow {
            agent: name.to_owned(),
            heard_ms_ago: u64::try_from(agent.heard.elapsed().as_millis()).unwrap_or(u64::MAX),
            lost: agent.lost(),
            registrations: self.registry.registered_by(name),
            // An agent hears of a revision only when something changes that it follows.
            wanted_revision: status.seen.revision.min(wanted),
            applied_revision: status.seen.revision,
            status,
        };
        let mut rows: Vec<_> =
            seen.agents.0.iter().map(|(name, agent)| row(name, agent, status(name, agent))).collect();
        drop(seen);
        rows.sort_by(|a, b| a.agent.cmp(&b.agent));
        rows
    }
}

#[cfg(test)]
mod tests;
