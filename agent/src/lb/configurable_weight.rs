//! `configurable_weight`: shares of groups as configured, `active_weight` within a group.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use anyhow::ensure;
use model::share;

use super::{LoadBalancer, PickCx, Picker, Subset, active_weight::ActiveWeight};
use crate::{
    endpoint::Endpoint,
    kind::{self, BuildCx, Value},
};

/// Largest weight of a group.
const MAX_WEIGHT: u32 = 10_000;

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// Shares of groups relative to each other; those not named get calls only when the named have nobody.
    weights: BTreeMap<String, u32>,
}

struct ConfigurableWeight {
    weights: BTreeMap<String, u32>,
}

/// Groups in the order in which they are picked, exact per round.
struct Groups {
    subsets: Box<[Subset]>,
    order: Box<[u32]>,
    next: AtomicUsize,
}

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn LoadBalancer>> {
    let Options { weights } = kind::options(options)?;
    for (group, weight) in &weights {
        ensure!(*weight <= MAX_WEIGHT, "weights: {weight} of {group} is too large; write at most {MAX_WEIGHT}");
    }
    let all_zero = !weights.is_empty() && weights.values().all(|w| *w == 0);
    ensure!(!all_zero, "weights: every group has weight 0; give at least one a weight above 0");
    if weights.is_empty() {
        return Ok(Arc::new(ActiveWeight));
    }
    Ok(Arc::new(ConfigurableWeight { weights }))
}

impl LoadBalancer for ConfigurableWeight {
    fn picker(&self, endpoints: &[Arc<Endpoint>]) -> Box<dyn Picker> {
        let mut groups: Vec<&str> = endpoints.iter().map(|e| &*e.group).collect();
        groups.sort_unstable();
        groups.dedup();
        let weights: Vec<u64> = groups.iter().map(|g| u64::from(self.weights.get(*g).copied().unwrap_or(0))).collect();
        let subset = |group: &&str| Subset::new(&ActiveWeight, endpoints, |e| e.group == *group);
        let order = share::round(&weights);
        let next = AtomicUsize::new(fastrand::usize(..=order.len()));
        Box::new(Groups { subsets: groups.iter().map(subset).collect(), order, next })
    }
}

impl Picker for Groups {
    fn pick(&self, cx: &PickCx<'_>) -> Option<usize> {
        let n = self.order.len();
        // The share of a group that has nobody goes to the owners of the next slots.
        let turns = (0..n.min(16)).map(|_| self.order[self.next.fetch_add(1, Relaxed) % n] as usize);
        let mut by_turn = turns.filter_map(|group| self.subsets[group].pick(cx));
        by_turn.next().or_else(|| self.subsets.iter().find_map(|subset| subset.pick(cx)))
    }

    fn passed_over(&self, _: &PickCx<'_>, _: usize) -> &'static str {
        "it was another group's turn, or another was freer"
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::*, *};

    fn grouped(weights: &str, groups: &[&str]) -> crate::lb::EndpointSet {
        let lb = build(&serde_yaml::from_str(weights).unwrap(), &BuildCx::default()).unwrap();
        let endpoints = endpoints_with(groups.len(), |i, e| e.group = groups[i].into());
        crate::lb::EndpointSet::new(1, lb.picker(&endpoints), endpoints)
    }

    #[test]
    fn groups_share_as_configured_and_others_only_help_out() {
        let set = grouped("weights: {a: 80, b: 20}", &["a", "a", "b", "c"]);
        let counts = shares(&set, 1000);
        assert_eq!((counts[0] + counts[1], counts[2], counts[3]), (800, 200, 0), "exact per round");
        fits(&counts[..2], &[1, 1]);
        eject(&set.endpoints[2]);
        let counts = shares(&set, 100);
        assert_eq!((counts[0] + counts[1], counts[3]), (100, 0), "the share of a dead group goes to its siblings");
        eject(&set.endpoints[0]);
        eject(&set.endpoints[1]);
        assert_eq!(shares(&set, 10), [0, 0, 0, 10]);
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = |yaml| build(&serde_yaml::from_str(yaml).unwrap(), &BuildCx::default()).err().unwrap().to_string();
        assert!(wrong("weights: {a: 0}").starts_with("weights: every group"));
        assert!(wrong("weights: {a: 10001}").starts_with("weights: 10001 of a"));
        assert!(build(&Value::Null, &BuildCx::default()).is_ok());
    }
}
