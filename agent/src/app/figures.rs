//! Figures: how many series there are, and their way to Graphite.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use arc_swap::ArcSwap;
use tokio::{runtime, time::Instant};

use super::mesh::Mesh;
use crate::{
    admin::process::Process,
    call::{Direction, Text},
    cluster::Cluster,
    config::{Config, Series},
    metrics::{
        AccessLogWriter, LiveTable, PANICS, RowBudget, UNKNOWN_SERVICES,
        graphite::{Exporters, Source, Status, Subject, Target},
    },
};

/// Looks at idle methods within the time after which they are forgotten.
const SWEEPS: u32 = 6;

/// What figures are taken from.
pub(super) struct Seen {
    pub(super) clusters: Arc<ArcSwap<Vec<Arc<Cluster>>>>,
    pub(super) live: Arc<LiveTable>,
    pub(super) access_log: Option<Arc<AccessLogWriter>>,
    pub(super) data: runtime::Handle,
    /// Port of the admin API; 0 when it has none.
    pub(super) management: u16,
    /// Whether this run was told to recover what a former one left.
    pub(super) recovers: bool,
}

/// Exporters and the bounds of what they export.
pub(super) struct FiguresOut {
    exporters: Exporters,
    /// Targets in use, for admin.
    pub(super) targets: Arc<ArcSwap<Vec<Arc<Target>>>>,
    pub(super) rows: Arc<RowBudget>,
    pub(super) series: Arc<ArcSwap<Series>>,
    swept: Instant,
}

impl FiguresOut {
    /// Nothing is exported before [`FiguresOut::apply`].
    pub(super) fn new(config: &Config, rows: Arc<RowBudget>, seen: Seen) -> Self {
        rows.set_limit(config.series.methods);
        let application = config.application.clone();
        let clusters = seen.clusters.clone();
        let subjects = move || {
            let subject = |cluster: &Arc<Cluster>| Subject {
                side: cluster.info.direction.name(),
                service: cluster.info.service.clone(),
                group: cluster.info.key.group.as_str().into(),
                application: application.clone(),
                stats: cluster.info.stats.clone(),
            };
            clusters.load().iter().map(subject).collect()
        };
        let source = Source {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            application: config.application.clone(),
            name: config.name.clone(),
            subjects: Box::new(subjects),
            management: seen.management,
            failing: Box::new(failing(seen.clusters.clone())),
            status: Box::new(status(seen)),
        };
        Self {
            exporters: Exporters::new(source),
            targets: Arc::default(),
            rows,
            series: Arc::new(ArcSwap::from_pointee(config.series.clone())),
            swept: Instant::now(),
        }
    }

    /// Follows the configuration.
    pub(super) fn apply(&mut self, config: &Config) {
        self.rows.set_limit(config.series.methods);
        self.series.store(Arc::new(config.series.clone()));
        self.exporters.apply(&config.graphite);
        self.targets.store(Arc::new(self.exporters.targets()));
    }

    /// Forgets methods that nobody calls, now and then.
    pub(super) fn beat(&mut self, mesh: &Mesh) {
        let idle = self.series.load().idle;
        if idle.is_zero() || self.swept.elapsed() < idle / SWEEPS {
            return;
        }
        self.swept = Instant::now();
        for cluster in mesh.view.load().iter() {
            let stats = &cluster.info.stats;
            stats.methods.sweep(SWEEPS);
            stats.attempts.sweep(SWEEPS);
        }
    }

    /// Sends what is left; waits a second at most.
    pub(super) async fn finish(&mut self) {
        self.exporters.finish().await;
    }
}

fn failing(clusters: Arc<ArcSwap<Vec<Arc<Cluster>>>>) -> impl Fn() -> Vec<Text> {
    let has_failing = |cluster: &&Arc<Cluster>| {
        let set = cluster.endpoints();
        cluster.info.direction == Direction::Outbound && set.endpoints.iter().any(|e| e.health.has_failed_calls())
    };
    move || {
        let clusters = clusters.load();
        let mut services: Vec<_> = clusters.iter().filter(has_failing).map(|c| c.info.service.clone()).collect();
        services.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        services.dedup();
        services
    }
}

fn status(seen: Seen) -> impl Fn() -> Status {
    let process = Process::new();
    let control = runtime::Handle::current();
    move || Status {
        resident_bytes: process.resident_bytes().unwrap_or(0),
        cpu: process.cpu(),
        tasks: (seen.data.metrics().num_alive_tasks() + control.metrics().num_alive_tasks()) as u64,
        unknown_services: UNKNOWN_SERVICES.load(Relaxed),
        connections: seen.live.len() as u64,
        log_lines_lost: seen.access_log.as_ref().map_or(0, |log| log.dropped()),
        panics: PANICS.load(Relaxed),
        recoveries: seen.recovers.into(),
    }
}
