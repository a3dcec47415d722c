//! Keeps the kernel's tables of endpoints in step with the clusters, and the clusters' books with what the
//! kernel counted.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::{mesh::Mesh, plan::ClusterId};
use crate::{
    capture::{
        Capture,
        balance::{Straight, Weighted},
    },
    cluster::Cluster,
    endpoint::Endpoint,
};

/// Beats between two looks at the counters.
const BEATS_PER_LOOK: u32 = 5;

/// What was counted before, so that only what is new is entered.
#[derive(Default)]
pub(super) struct Books {
    beats: u32,
    counted: HashMap<(u32, Option<SocketAddr>, String), Counts>,
    failures: HashMap<(u32, SocketAddr), u32>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    connects: u64,
    refused: u64,
    failed: u64,
    closed: u64,
    up: u64,
    down: u64,
}

/// `service` with the endpoints that `cluster` has now.
pub(super) fn with_endpoints(service: &Straight, cluster: &Cluster) -> Straight {
    let set = cluster.endpoints();
    let weighted = |e: &Arc<Endpoint>| Weighted { addr: e.addr, weight: e.weight, available: e.health.is_available() };
    let endpoints = (set.revision > 0).then(|| set.endpoints.iter().map(weighted).collect());
    Straight { endpoints, ..service.clone() }
}

impl Books {
    /// Called with every beat.
    pub(super) fn beat(&mut self, mesh: &Mesh, capture: &dyn Capture) {
        if mesh.straight.is_empty() {
            return;
        }
        capture.balance(&mesh.straight_now());
        self.beats += 1;
        if self.beats >= BEATS_PER_LOOK {
            self.beats = 0;
            self.enter(mesh, capture);
        }
    }

    fn enter(&mut self, mesh: &Mesh, capture: &dyn Capture) {
        let clusters: HashMap<u32, &Arc<Cluster>> =
            mesh.straight.iter().filter_map(|(s, id)| Some((s.number, mesh.cluster(id)?))).collect();
        for used in capture.uses() {
            let Some(cluster) = clusters.get(&used.number) else { continue };
            let now = Counts {
                connects: used.count.connects,
                refused: used.count.refused,
                failed: used.count.failed,
                closed: used.count.closed,
                up: used.count.bytes_up,
                down: used.count.bytes_down,
            };
            let before = self.counted.insert((used.number, used.endpoint, used.caller), now).unwrap_or_default();
            let new = now.since(before);
            let stats = &cluster.info.stats;
            stats.started.fetch_add(new.connects + new.refused, Relaxed);
            stats.succeeded.fetch_add(new.closed.saturating_sub(new.failed), Relaxed);
            stats.failed.fetch_add(new.failed + new.refused, Relaxed);
            stats.request_bytes.fetch_add(new.up, Relaxed);
            stats.response_bytes.fetch_add(new.down, Relaxed);
            let set = cluster.endpoints();
            if let Some(endpoint) = set.endpoints.iter().find(|e| Some(e.addr) == used.endpoint) {
                let stats = &endpoint.stats;
                stats.started.fetch_add(new.connects, Relaxed);
                stats.ended.fetch_add(new.closed, Relaxed);
                stats.failed.fetch_add(new.failed, Relaxed);
                // An endpoint that left and came back begins anew, while its old connections end.
                let active = stats.started.load(Relaxed).saturating_sub(stats.ended.load(Relaxed));
                stats.in_flight.store(active as u32, Relaxed);
            }
        }
        self.judge(&clusters, capture);
    }

    /// Tells the endpoints' health what connects came to.
    fn judge(&mut self, clusters: &HashMap<u32, &Arc<Cluster>>, capture: &dyn Capture) {
        let now: HashMap<_, _> = capture.failures().into_iter().map(|(n, addr, count)| ((n, addr), count)).collect();
        let endpoint = |(number, addr): (u32, SocketAddr)| {
            let set = clusters.get(&number)?.endpoints();
            set.endpoints.iter().find(|e| e.addr == addr).cloned()
        };
        for (key, count) in &now {
            let Some(endpoint) = endpoint(*key) else { continue };
            for _ in self.failures.get(key).copied().unwrap_or(0)..*count {
                endpoint.health.connect_failed();
            }
        }
        for key in self.failures.keys().filter(|key| !now.contains_key(key)) {
            if let Some(endpoint) = endpoint(*key)
                && endpoint.health.is_available()
            {
                endpoint.health.succeeded();
            }
        }
        self.failures = now;
    }
}

impl Counts {
    /// What was added since `before`; the whole when the kernel's counters began anew.
    fn since(self, before: Self) -> Self {
        let new = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        Self {
            connects: new(self.connects, before.connects),
            refused: new(self.refused, before.refused),
            failed: new(self.failed, before.failed),
            closed: new(self.closed, before.closed),
            up: new(self.up, before.up),
            down: new(self.down, before.down),
        }
    }
}

impl Mesh {
    /// Services whose connects go straight to an endpoint, as their clusters are now.
    pub(super) fn straight_now(&self) -> Vec<Straight> {
        let now = |(service, id): &(Straight, ClusterId)| {
            self.cluster(id).map_or_else(|| service.clone(), |cluster| with_endpoints(service, cluster))
        };
        self.straight.iter().map(now).collect()
    }
}
