//! New instances take little at first: caches are cold, code is not compiled, pools of connections are empty. Their
//! weight rises from a tenth to their own over the warm-up time of their pool.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Weak},
    time::Duration,
};

use model::{
    ServiceKey,
    center::{InstanceRow, PoolPolicy},
    value,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Scalers;
use crate::{
    registry::Registry,
    store::{Batch, Store},
};

/// Share of its own weight that a new instance begins with.
const FIRST: f64 = 0.1;

/// Steps to its own weight: each is a change that all callers hear of.
const STEPS: u32 = 10;

/// Most instances that warm up at once; more are a start of everything, where nobody is warm.
const MOST: usize = 1_000;

/// How often weights are looked at.
const TICK: Duration = Duration::from_millis(500);

/// Changes of the registry within this time are one.
const COALESCE: Duration = Duration::from_millis(20);

/// Where it is kept who warms up, so that nobody stays cold when a centre ends in between.
const KEY: &str = "warm/up";

/// How long new instances of a pool warm up; zero: not at all.
pub(super) fn time(policy: &PoolPolicy, usual: Duration) -> Duration {
    match policy.options.get("warm_up") {
        Some(serde_json::Value::String(text)) => value::duration(text.trim()).unwrap_or(usual),
        _ if policy.driver.is_empty() => Duration::ZERO,
        _ => usual,
    }
}

/// An instance that warms up.
#[derive(Clone, Debug)]
struct Warming {
    since: Instant,
    over: Duration,
    /// Its own weight.
    own: u32,
    /// The one that it was given last.
    given: u32,
}

impl Warming {
    /// The weight that it should have now; `None`: its own.
    fn weight(&self, now: Instant) -> Option<u32> {
        let passed = now.duration_since(self.since).as_secs_f64() / self.over.as_secs_f64();
        if passed >= 1.0 {
            return None;
        }
        let step = (passed * f64::from(STEPS)).floor() / f64::from(STEPS);
        let share = FIRST + (1.0 - FIRST) * step;
        Some(((f64::from(self.own) * share).round() as u32).clamp(1, self.own.max(1)))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
struct Place {
    service: String,
    group: String,
    version: String,
    address: String,
}

impl Place {
    fn key(&self) -> ServiceKey {
        let (service, group, version) = (self.service.clone(), self.group.clone(), self.version.clone());
        ServiceKey { service, group, version }
    }
}

/// Who is known, and who warms up.
#[derive(Default)]
pub(super) struct Warmer {
    /// By registration: one that comes again is new again.
    known: HashMap<Place, u64>,
    warming: BTreeMap<Place, Warming>,
    /// Pools that were looked at before: whoever is there at the first look is not new.
    seen: std::collections::BTreeSet<(String, String)>,
}

/// What is to be done about an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Turn {
    place: Place,
    weight: Option<u32>,
}

impl Warmer {
    /// One look at the instances of a pool.
    fn look(&mut self, policy: &PoolPolicy, rows: &[(Place, InstanceRow)], over: Duration, now: Instant) -> Vec<Turn> {
        let pool = (policy.service.clone(), policy.group.clone());
        let first = self.seen.insert(pool);
        let mut turns = Vec::new();
        for (place, row) in rows.iter().filter(|(_, row)| row.state == "available") {
            let new = self.known.insert(place.clone(), row.since_ms) != Some(row.since_ms);
            // With nobody warm beside it, it would get the same share anyway.
            let others = rows
                .iter()
                .any(|(other, row)| other != place && row.state == "available" && !self.warming.contains_key(other));
            if new && !first && others && !over.is_zero() && row.weight > 1 && self.warming.len() < MOST {
                let mut warming = Warming { since: now, over, own: row.weight, given: row.weight };
                warming.given = warming.weight(now).unwrap_or(row.weight);
                turns.push(Turn { place: place.clone(), weight: Some(warming.given) });
                self.warming.insert(place.clone(), warming);
                continue;
            }
            let Some(warming) = self.warming.get_mut(place) else { continue };
            if row.weight != warming.given {
                // An operator gave it another one, which holds.
                self.warming.remove(place);
                continue;
            }
            match warming.weight(now) {
                Some(weight) if weight == warming.given => {}
                Some(weight) => {
                    warming.given = weight;
                    turns.push(Turn { place: place.clone(), weight: Some(weight) });
                }
                None => {
                    self.warming.remove(place);
                    turns.push(Turn { place: place.clone(), weight: None });
                }
            }
        }
        turns
    }

    /// Forgets who is not there any more. Those that left while they warmed up.
    fn forget(&mut self, policy: &PoolPolicy, rows: &[(Place, InstanceRow)]) -> Vec<Place> {
        let of_pool = |place: &Place| place.service == policy.service && place.group == policy.group;
        let there = |place: &Place| rows.iter().any(|(known, row)| known == place && row.state == "available");
        self.known.retain(|place, _| !of_pool(place) || there(place));
        let gone: Vec<Place> = self.warming.keys().filter(|p| of_pool(p) && !there(p)).cloned().collect();
        for place in &gone {
            self.warming.remove(place);
        }
        gone
    }
}

/// Looks after new instances, and has drivers there for every policy that names one, while this centre leads.
pub(super) async fn run(
    scalers: Weak<Scalers>,
    store: Arc<dyn Store>,
    policies: impl Fn() -> Vec<PoolPolicy> + Send + Sync + 'static,
) {
    let leadership = store.leadership();
    let Some(mut changes) = scalers.upgrade().map(|scalers| scalers.registry.changes()) else { return };
    let mut led: Option<(u64, Warmer)> = None;
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                tokio::time::sleep(COALESCE).await;
                changes.borrow_and_update();
            }
        }
        let Some(scalers) = scalers.upgrade() else { return };
        let Ok(epoch) = leadership.borrow().fence() else {
            led = None;
            continue;
        };
        let warmer = match &mut led {
            Some((of, warmer)) if *of == epoch => warmer,
            led => {
                restore(&scalers.registry, &store, epoch).await;
                &mut led.insert((epoch, Warmer::default())).1
            }
        };
        for policy in policies() {
            look(&scalers, warmer, &store, &policy, epoch).await;
        }
    }
}

async fn look(scalers: &Scalers, warmer: &mut Warmer, store: &Arc<dyn Store>, policy: &PoolPolicy, epoch: u64) {
    if !policy.driver.is_empty() {
        // Built when it is first asked for: what an earlier centre ran is found again now, not when it is scaled.
        scalers.wake(policy).await;
    }
    let over = time(policy, scalers.config.warm_up);
    if over.is_zero() {
        return;
    }
    let registry = &scalers.registry;
    let keys = registry.keys().into_iter();
    let keys = keys.filter(|key| key.service == policy.service && key.group == policy.group);
    let rows: Vec<(Place, InstanceRow)> = keys.flat_map(|key| rows(registry, &key)).collect();
    let before: Vec<Place> = warmer.warming.keys().cloned().collect();
    let gone = warmer.forget(policy, &rows);
    let turns = warmer.look(policy, &rows, over, Instant::now());
    let after: Vec<&Place> = warmer.warming.keys().collect();
    if before.iter().collect::<Vec<_>>() != after {
        // Before the first weight is given: else nobody would know of it after an end in between.
        keep(store, &after, epoch).await;
    }
    for place in gone {
        set(registry, &Turn { place, weight: None }, epoch).await;
    }
    for turn in turns {
        set(registry, &turn, epoch).await;
    }
}

fn rows(registry: &Registry, key: &ServiceKey) -> Vec<(Place, InstanceRow)> {
    let place = |address: &String| Place {
        service: key.service.clone(),
        group: key.group.clone(),
        version: key.version.clone(),
        address: address.clone(),
    };
    registry.rows(key).into_iter().map(|row| (place(&row.address), row)).collect()
}

async fn set(registry: &Registry, turn: &Turn, epoch: u64) {
    let done = registry.warm(&turn.place.key(), &turn.place.address, turn.weight, epoch).await;
    if let Err(error) = done {
        tracing::debug!(address = %turn.place.address, %error, "an instance that warms up is not given its weight");
    }
}

async fn keep(store: &Arc<dyn Store>, places: &[&Place], epoch: u64) {
    let value = serde_json::to_vec(places).unwrap_or_default();
    let batch = Batch { put: vec![(KEY.to_owned(), value)], fenced: Some(epoch), ..Batch::default() };
    if let Err(error) = store.commit(batch).await {
        tracing::warn!(%error, "it could not be kept which instances warm up");
    }
}

/// Gives those who warmed up when a centre ended their own weights.
async fn restore(registry: &Registry, store: &Arc<dyn Store>, epoch: u64) {
    let Ok(entries) = store.scan(KEY, None, 1).await else { return };
    let places: Vec<Place> = entries.first().and_then(|e| serde_json::from_slice(&e.value).ok()).unwrap_or_default();
    for place in &places {
        set(registry, &Turn { place: place.clone(), weight: None }, epoch).await;
    }
    if !places.is_empty() {
        keep(store, &[], epoch).await;
    }
}

#[cfg(test)]
mod tests {
    use model::center::Figures;

    use super::*;

    fn row(address: &str, weight: u32, since_ms: u64) -> (Place, InstanceRow) {
        let row = InstanceRow {
            address: address.to_owned(),
            group: "a".to_owned(),
            weight,
            zone: String::new(),
            version: String::new(),
            agent: String::new(),
            state: "available".to_owned(),
            reason: String::new(),
            since_ms,
            heard_ms_ago: 0,
            figures: Figures::default(),
            capacity: None,
            metadata: BTreeMap::new(),
        };
        let (service, group, version) = ("echo".to_owned(), "a".to_owned(), String::new());
        (Place { service, group, version, address: address.to_owned() }, row)
    }

    fn policy(options: serde_json::Value) -> PoolPolicy {
        let (service, group) = ("echo".to_owned(), "a".to_owned());
        PoolPolicy { service, group, driver: "local".to_owned(), options, ..PoolPolicy::default() }
    }

    #[test]
    fn the_time_is_the_policys_else_the_usual_one_of_pools_with_a_driver() {
        let usual = Duration::from_secs(20);
        let none = serde_json::Value::Null;
        assert_eq!(time(&policy(none.clone()), usual), usual);
        assert_eq!(time(&PoolPolicy { driver: String::new(), ..policy(none) }, usual), Duration::ZERO);
        assert_eq!(time(&policy(serde_json::json!({"warm_up": "3s"})), usual), Duration::from_secs(3));
        assert_eq!(time(&policy(serde_json::json!({"warm_up": "0s"})), usual), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_instance_rises_to_its_own_weight_and_nobody_else_is_touched() {
        let (policy, over) = (policy(serde_json::Value::Null), Duration::from_secs(10));
        let mut warmer = Warmer::default();
        let look = |warmer: &mut Warmer, rows: &[(Place, InstanceRow)]| {
            warmer.forget(&policy, rows);
            let turns = warmer.look(&policy, rows, over, Instant::now());
            turns.into_iter().map(|turn| (turn.place.address, turn.weight)).collect::<Vec<_>>()
        };
        assert_eq!(look(&mut warmer, &[row("x", 10, 1)]), [], "who is there at the first look is not new");
        assert_eq!(look(&mut warmer, &[row("x", 10, 1), row("y", 10, 2)]), [("y".to_owned(), Some(1))]);
        let mut weight = 1;
        let mut given = vec![1];
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(1)).await;
            for (address, turn) in look(&mut warmer, &[row("x", 10, 1), row("y", weight, 2)]) {
                assert_eq!(address, "y");
                weight = turn.unwrap_or(10);
                given.push(turn.unwrap_or(0));
            }
        }
        assert_eq!(given, [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]);
        assert_eq!(look(&mut warmer, &[row("x", 10, 1), row("y", 10, 2)]), []);
        // It was started again: new again.
        assert_eq!(look(&mut warmer, &[row("x", 10, 1), row("y", 10, 3)]), [("y".to_owned(), Some(1))]);
        // An operator's weight holds.
        assert_eq!(look(&mut warmer, &[row("x", 10, 1), row("y", 7, 3)]), []);
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(look(&mut warmer, &[row("x", 10, 1), row("y", 7, 3)]), []);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_warm_sibling_there_is_nothing_to_spare() {
        let (policy, over) = (policy(serde_json::Value::Null), Duration::from_secs(10));
        let mut warmer = Warmer::default();
        assert_eq!(warmer.look(&policy, &[], over, Instant::now()), []);
        assert_eq!(warmer.look(&policy, &[row("x", 10, 1)], over, Instant::now()), []);
        let turns = warmer.look(&policy, &[row("x", 10, 1), row("y", 10, 1)], over, Instant::now());
        assert_eq!(turns.len(), 1);
        assert_eq!(warmer.forget(&policy, &[row("x", 10, 1)]).len(), 1, "it left while it warmed up");
    }
}
