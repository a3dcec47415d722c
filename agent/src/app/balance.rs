//! Keeps the kernel's tables of endpoints in step with the clusters, and the clusters' books with what the
//! kernel counted.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use ebpf_common::balance::Use;
use model::share::{self, Member};

use super::{mesh::Mesh, plan::ClusterId};
use crate::{
    capture::{
        Capture,
        balance::{Straight, Weighted},
    },
    cluster::{Cluster, Steering},
    endpoint::Endpoint,
};

/// Beats between two looks at the counters.
const BEATS_PER_LOOK: u32 = 5;

/// Weight that stands for all calls.
const WHOLE: u32 = 1_000_000;

/// What was counted before, so that only what is new is entered.
#[derive(Default)]
pub(super) struct Books {
    beats: u32,
    /// Nothing was entered yet: what failed before this agent began is not told again.
    begun: bool,
    services: HashMap<u32, Counts>,
    endpoints: HashMap<(u32, SocketAddr), Counts>,
    unsent: HashMap<(u32, SocketAddr), Unsent>,
    failures: HashMap<(u32, SocketAddr), u32>,
}

/// Counters of all callers together. These only grow: rows of what is gone are added to others.
#[derive(Clone, Copy, Default)]
struct Counts {
    picked: u64,
    connects: u64,
    refused: u64,
    failed: u64,
    closed: u64,
    up: u64,
    down: u64,
}

/// Connects to an endpoint that ended before a SYN left.
#[derive(Clone, Copy, Default)]
struct Unsent {
    /// As many as there seemed to be at the last look; some may just have been on their way.
    seen: u64,
    told: u64,
}

/// `service` with the endpoints that `cluster` has now.
pub(super) fn with_endpoints(service: &Straight, cluster: &Cluster) -> Straight {
    let set = cluster.endpoints();
    let weights = weights(&set.endpoints, &cluster.steering());
    let weighted =
        |(e, weight): (&Arc<Endpoint>, u32)| Weighted { addr: e.addr, weight, available: e.health.is_available() };
    let endpoints = (set.revision > 0).then(|| set.endpoints.iter().zip(weights).map(weighted).collect());
    Straight { endpoints, ..service.clone() }
}

/// What the kernel deals by: the endpoints' own weights, or, when a command deals calls to groups or tries a version,
/// the shares that this comes to. Headers are not seen there.
fn weights(endpoints: &[Arc<Endpoint>], steering: &Steering) -> Vec<u32> {
    if share::shares(&steering.groups).is_none() && steering.canary.is_none() {
        return endpoints.iter().map(|e| e.weight).collect();
    }
    let members: Vec<_> =
        endpoints.iter().map(|e| Member { group: &e.group, version: &e.version, weight: e.weight }).collect();
    let loads = share::loads(&steering.groups, steering.canary.as_ref(), &members);
    loads.into_iter().map(|load| (load * f64::from(WHOLE)).round() as u32).collect()
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
        let (mut services, mut endpoints) = (HashMap::new(), HashMap::new());
        for used in capture.uses() {
            services.entry(used.number).or_insert_with(Counts::default).add(&used.count);
            if let Some(addr) = used.endpoint {
                endpoints.entry((used.number, addr)).or_insert_with(Counts::default).add(&used.count);
            }
        }
        for (number, now) in &services {
            let Some(cluster) = clusters.get(number) else { continue };
            let new = now.since(self.services.get(number));
            let stats = &cluster.info.stats;
            stats.started.fetch_add(new.connects + new.refused, Relaxed);
            stats.succeeded.fetch_add(new.closed.saturating_sub(new.failed), Relaxed);
            stats.failed.fetch_add(new.failed + new.refused, Relaxed);
            stats.request_bytes.fetch_add(new.up, Relaxed);
            stats.response_bytes.fetch_add(new.down, Relaxed);
        }
        let mut unsent = HashMap::new();
        for (key, now) in &endpoints {
            let Some(cluster) = clusters.get(&key.0) else { continue };
            let set = cluster.endpoints();
            let Some(endpoint) = set.endpoints.iter().find(|e| e.addr == key.1) else { continue };
            let new = now.since(self.endpoints.get(key));
            let stats = &endpoint.stats;
            let before = self.unsent.get(key).copied().unwrap_or_default();
            let seen = now.picked.saturating_sub(now.connects);
            let told = if self.begun { before.told.max(seen.min(before.seen)) } else { seen };
            unsent.insert(*key, Unsent { seen, told });
            let lost = if self.begun { told - before.told } else { 0 };
            // One program that cannot go there says little as long as others can.
            if lost > 0 && new.connects == 0 {
                capture.failed(key.0, key.1);
            }
            cluster.info.stats.started.fetch_add(lost, Relaxed);
            cluster.info.stats.failed.fetch_add(lost, Relaxed);
            stats.started.fetch_add(new.connects + lost, Relaxed);
            stats.ended.fetch_add(new.closed + lost, Relaxed);
            stats.failed.fetch_add(new.failed + lost, Relaxed);
            // An endpoint that left and came back begins anew, while its old connections end.
            let active = stats.started.load(Relaxed).saturating_sub(stats.ended.load(Relaxed));
            endpoint.hot.set_in_flight(active as u32);
        }
        (self.services, self.endpoints, self.unsent, self.begun) = (services, endpoints, unsent, true);
        self.judge(&clusters, capture);
    }

    /// Tells the endpoints' health what connects came to.
    fn judge(&mut self, clusters: &HashMap<u32, &Arc<Cluster>>, capture: &dyn Capture) {
        let now: HashMap<_, _> = capture.failures().into_iter().map(|f| ((f.number, f.endpoint), f.failures)).collect();
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
    fn add(&mut self, more: &Use) {
        self.picked += more.picked;
        self.connects += more.connects;
        self.refused += more.refused;
        self.failed += more.failed;
        self.closed += more.closed;
        self.up += more.bytes_up;
        self.down += more.bytes_down;
    }

    /// What was added since `before`; the whole when the kernel's counters began anew.
    fn since(self, before: Option<&Self>) -> Self {
        let before = before.copied().unwrap_or_default();
        let new = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        Self {
            picked: new(self.picked, before.picked),
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

#[cfg(test)]
mod tests {
    use model::command::{Canary, group_shares};

    use super::*;
    use crate::lb::testing::endpoints_with;

    #[test]
    fn the_kernel_deals_by_what_commands_come_to() {
        let endpoints = endpoints_with(4, |i, e| {
            e.group = if i < 3 { "a" } else { "b" }.into();
            e.version = if i == 2 { "2" } else { "1" }.into();
            e.weight = if i == 0 { 20 } else { 10 };
        });
        let weights = |steering: &Steering| weights(&endpoints, steering);
        assert_eq!(weights(&Steering::default()), [20, 10, 10, 10]);
        let mixed = Steering { groups: group_shares(["a", "b"]), ..Steering::default() };
        assert_eq!(weights(&mixed), [20, 10, 10, 10]);
        let shared = Steering { groups: group_shares(["a:80", "b:20"]), ..Steering::default() };
        assert_eq!(weights(&shared), [400_000, 200_000, 200_000, 200_000]);
        let canary = Canary { version: "2".into(), percent: 10, ..Canary::default() };
        let tried = Steering { canary: Some(canary), ..shared };
        assert_eq!(weights(&tried), [480_000, 240_000, 80_000, 200_000]);
    }
}
