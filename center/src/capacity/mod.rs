//! What pools can take and how near to that they are.
//!
//! A pool is the instances of one service in one group. Its load is the calls a second that its callers feel, slow
//! ones counted several times; what it can take is what one instance can ([`estimate`]) times its instances.

mod api;
pub mod estimate;
pub mod policy;
pub mod pool;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use model::{
    ServiceKey,
    center::{Band, Capacity, CapacityPoint, Confidence, Of, Pool, PoolPolicy, Side, WhatIf},
};
use parking_lot::Mutex;
use tokio::time::Instant;

pub use self::{api::routes, policy::Policies};
use crate::{monitor::Monitor, registry::Registry};

/// An estimate is used for this long at least.
const FRESH: Duration = Duration::from_secs(5);

/// And for this long at most, however many pools there are.
const STALE: Duration = Duration::from_secs(600);

/// Share of one core that estimates may take.
const SHARE: f64 = 0.05;

/// Most estimates that are kept.
const POOLS: usize = 40_000;

/// Points count as of now for this long.
const NOW_MS: u64 = 120_000;

/// What is registered of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nothing.
    Nothing,
    /// Instances, none of which may be called.
    Unusable,
    /// Instances that may be called.
    Usable,
}

/// Groups by service.
type Groups = HashMap<String, Vec<String>>;

/// Estimates, from operating points.
pub struct Capacities {
    registry: Arc<Registry>,
    monitor: Arc<Monitor>,
    policies: Mutex<Arc<Policies>>,
    known: Mutex<Known>,
    /// Groups by service, and when they were looked for.
    groups: Mutex<Option<(Instant, Arc<Groups>)>>,
}

#[derive(Default)]
struct Known {
    pools: HashMap<(String, String), Arc<Estimate>>,
    /// Mean time that one estimate takes.
    each: Duration,
}

/// What was found of a pool.
struct Estimate {
    at: Instant,
    /// What it was made for.
    slow_ms: f64,
    stated: Option<f64>,
    capacity: Option<Capacity>,
    /// Instances that were seen serving lately.
    serving: u32,
}

impl Capacities {
    /// From what it builds on.
    pub fn new(registry: Arc<Registry>, monitor: Arc<Monitor>) -> Arc<Self> {
        Arc::new(Self {
            registry,
            monitor,
            policies: Mutex::default(),
            known: Mutex::default(),
            groups: Mutex::default(),
        })
    }

    /// Estimates obey these policies from now on: what is slow, what an instance is known to take.
    pub fn govern(&self, policies: Arc<Policies>) {
        *self.policies.lock() = policies;
    }

    /// The policy of a pool; the usual one when nobody wrote one.
    pub fn policy(&self, service: &str, group: &str) -> PoolPolicy {
        let policies = self.policies.lock().clone();
        policies.of(service, group)
    }

    /// All policies.
    pub fn policies(&self) -> Arc<Policies> {
        self.policies.lock().clone()
    }

    /// What one instance of the pool can take: as it was seen there, else as in other groups of the service.
    pub fn estimate(&self, service: &str, group: &str) -> Option<Capacity> {
        self.capacity(&self.policy(service, group))
    }

    fn capacity(&self, policy: &PoolPolicy) -> Option<Capacity> {
        let own = self.known(policy).capacity.clone();
        if own.as_ref().is_some_and(|own| own.confidence >= Confidence::Medium) {
            return own;
        }
        let groups = self.groups();
        let others = groups.get(&policy.service).into_iter().flatten().filter(|group| **group != policy.group);
        let seen = others.filter_map(|group| {
            let capacity = self.known(&self.policy(&policy.service, group)).capacity.clone()?;
            (capacity.confidence >= Confidence::Medium).then_some((group.clone(), capacity))
        });
        estimate::beside_others(own, seen)
    }

    fn groups(&self) -> Arc<Groups> {
        if let Some((at, groups)) = &*self.groups.lock()
            && at.elapsed() < FRESH
        {
            return groups.clone();
        }
        let mut all = Groups::new();
        for (service, group) in self.keys() {
            all.entry(service).or_default().push(group);
        }
        let all = Arc::new(all);
        *self.groups.lock() = Some((Instant::now(), all.clone()));
        all
    }

    /// Operating points of the pool's instances, oldest first, the newest `limit`.
    pub fn points(&self, service: &str, group: &str, limit: usize) -> Vec<CapacityPoint> {
        let mut points = self.monitor.points(service, group, self.policy(service, group).slow_ms);
        points.split_off(points.len().saturating_sub(limit))
    }

    fn known(&self, policy: &PoolPolicy) -> Arc<Estimate> {
        let key = (policy.service.clone(), policy.group.clone());
        {
            let known = self.known.lock();
            let pools = known.pools.len() as f64;
            let fresh = Duration::from_secs_f64(known.each.as_secs_f64() * pools / SHARE).clamp(FRESH, STALE);
            let found = known.pools.get(&key).filter(|found| {
                found.at.elapsed() < fresh && found.slow_ms == policy.slow_ms && found.stated == policy.capacity
            });
            if let Some(found) = found {
                return found.clone();
            }
        }
        let begun = std::time::Instant::now();
        let points = self.monitor.points(&policy.service, &policy.group, policy.slow_ms);
        let newest = points.last().map_or(0, |point| point.at_ms);
        let lately = points.iter().rev().take_while(|point| point.at_ms + NOW_MS > newest);
        let serving = lately.map(|point| point.instance.as_str()).collect::<BTreeSet<_>>().len();
        let found = Arc::new(Estimate {
            at: Instant::now(),
            slow_ms: policy.slow_ms,
            stated: policy.capacity,
            capacity: estimate::estimate(&points, policy.slow_ms, policy.capacity),
            serving: u32::try_from(serving).unwrap_or(u32::MAX),
        });
        let mut known = self.known.lock();
        known.each = known.each.mul_f64(0.9) + begun.elapsed().mul_f64(0.1);
        if known.pools.len() >= POOLS {
            known.pools.retain(|_, found| found.at.elapsed() < STALE);
        }
        if known.pools.len() < POOLS {
            known.pools.insert(key, found.clone());
        }
        found
    }

    /// The pool as it is now, under `policy`; `None`: neither instances nor calls are known.
    pub fn pool(&self, policy: &PoolPolicy) -> Option<Pool> {
        let (service, group) = (policy.service.clone(), policy.group.clone());
        let key = ServiceKey { service: service.clone(), group: group.clone(), version: String::new() };
        // Without a group the registry tells of all.
        let rows: Vec<_> = self.registry.rows(&key).into_iter().filter(|row| row.group == group).collect();
        // Some callers may have no agent, and some instances none: whoever saw more of the load tells it.
        let seen = |side| {
            let of = Of { side, service: service.clone(), group: group.clone(), ..Of::default() };
            let figures = self.monitor.lately(&of);
            let (seconds, times) = self.monitor.times(&of);
            (figures, Band::of(&times, seconds, policy.slow_ms))
        };
        let (out, into) = (seen(Side::Outbound), seen(Side::Inbound));
        let (figures, bands) = if Band::load(&into.1) > 1.05 * Band::load(&out.1) { into } else { out };
        if rows.is_empty() && figures.success.is_none() {
            return None;
        }
        let usable = rows.iter().filter(|row| row.state == "available" && row.weight > 0).count();
        // Where instances are registered elsewhere, those count that are seen serving.
        let instances =
            if rows.is_empty() { self.known(policy).serving } else { u32::try_from(usable).unwrap_or(u32::MAX) };
        let capacity = self.capacity(policy);
        Some(pool::of(policy, pool::Seen { instances, rate: figures.rate, bands, capacity }))
    }

    /// Whether instances of the pool are not heard of: their calls may be missing in its load.
    pub fn unheard(&self, policy: &PoolPolicy) -> bool {
        let (service, group) = (policy.service.clone(), policy.group.clone());
        let key = ServiceKey { service, group: group.clone(), version: String::new() };
        self.registry.rows(&key).iter().any(|row| row.group == group && row.state == "lost")
    }

    /// What is registered of the pool.
    pub fn held(&self, policy: &PoolPolicy) -> Held {
        let (service, group) = (policy.service.clone(), policy.group.clone());
        let key = ServiceKey { service, group: group.clone(), version: String::new() };
        let rows: Vec<_> = self.registry.rows(&key).into_iter().filter(|row| row.group == group).collect();
        match rows.iter().any(|row| row.state == "available" && row.weight > 0) {
            true => Held::Usable,
            false if rows.is_empty() => Held::Nothing,
            false => Held::Unusable,
        }
    }

    /// Share of its callers' calls that go well lately; `None`: none are seen.
    pub fn answered(&self, policy: &PoolPolicy) -> Option<f64> {
        let (service, group) = (policy.service.clone(), policy.group.clone());
        self.monitor.lately(&Of { side: Side::Outbound, service, group, ..Of::default() }).success
    }

    /// Why the figures as a whole are not to be trusted: too many agents are not heard of.
    pub fn blind(&self) -> Option<String> {
        let agents = self.monitor.agents();
        let lost = agents.iter().filter(|agent| agent.lost).count();
        (lost * 5 > agents.len()).then(|| format!("{lost} of {} agents are not heard of", agents.len()))
    }

    /// Every service in every group of which anything is known, sorted.
    pub fn keys(&self) -> Vec<(String, String)> {
        let registered = self.registry.keys().into_iter().map(|key| (key.service, key.group));
        let all: BTreeSet<(String, String)> = registered.chain(self.monitor.services()).collect();
        all.into_iter().collect()
    }

    /// What would become of these pools if `lost` groups were gone.
    pub fn what_if(&self, pools: &[PoolPolicy], lost: &[String]) -> WhatIf {
        pool::what_if(pools.iter().filter_map(|policy| self.pool(policy)).collect(), lost)
    }
}
