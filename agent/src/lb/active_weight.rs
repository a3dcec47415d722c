//! `active_weight`: the fewest calls in flight for its weight.

use std::sync::Arc;

use super::{DRAWS, LoadBalancer, PickCx, Picker, weighted};
use crate::{
    endpoint::Endpoint,
    kind::{self, BuildCx, Value},
};

/// Endpoints looked at for one pick. Sets of this size or smaller are looked at whole.
const LOOKS: usize = 10;

pub(super) struct ActiveWeight;

/// Indices, each as often as its weight: one drawn from it is drawn by weight.
struct ByWeight {
    table: Box<[u32]>,
}

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn LoadBalancer>> {
    kind::no_options(options)?;
    Ok(Arc::new(ActiveWeight))
}

impl LoadBalancer for ActiveWeight {
    fn picker(&self, endpoints: &[Arc<Endpoint>]) -> Box<dyn Picker> {
        Box::new(ByWeight { table: weighted::round_of(endpoints) })
    }
}

impl Picker for ByWeight {
    fn pick(&self, cx: &PickCx<'_>) -> Option<usize> {
        let n = cx.endpoints.len();
        if self.table.is_empty() {
            return None;
        }
        // The first is drawn by weight and keeps its place among equals, so that an idle service is
        // called in proportion to the weights as well.
        let draw = || self.table[fastrand::usize(..self.table.len())] as usize;
        let Some(first) = (0..DRAWS).map(|_| draw()).find(|&i| cx.eligible(i)) else {
            return cx.random_eligible();
        };
        let mut best = first;
        for look in 1..n.min(LOOKS) {
            let other = if n <= LOOKS { (first + look) % n } else { draw() };
            if cx.eligible(other) && is_freer(&cx.endpoints[other], &cx.endpoints[best]) {
                best = other;
            }
        }
        Some(best)
    }

    fn passed_over(&self, _: &PickCx<'_>, _: usize) -> &'static str {
        "has more calls in flight for its weight, or was not drawn"
    }
}

/// Whether `a` has fewer calls in flight for its weight than `b`.
fn is_freer(a: &Endpoint, b: &Endpoint) -> bool {
    u64::from(a.in_flight()) * u64::from(b.weight) < u64::from(b.in_flight()) * u64::from(a.weight)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::{super::testing::*, *};

    #[test]
    fn an_idle_service_is_called_by_weight() {
        fastrand::seed(1);
        fits(&shares(&set(&ActiveWeight, &[10, 30, 60]), 10_000), &[10, 30, 60]);
        fits(&shares(&set(&ActiveWeight, &[7; 40]), 40_000), &[7; 40]);
    }

    #[test]
    fn the_least_busy_for_its_weight_wins() {
        let set = set(&ActiveWeight, &[10, 20, 10]);
        let busy = [3, 4, 3];
        for (endpoint, n) in set.endpoints.iter().zip(busy) {
            endpoint.stats.in_flight.store(n, Relaxed);
        }
        assert_eq!(shares(&set, 100), [0, 100, 0], "4 in flight at weight 20 are fewer than 3 at weight 10");
    }

    #[test]
    fn calls_that_stay_are_spread_by_weight() {
        fastrand::seed(2);
        let set = set(&ActiveWeight, &[10, 10, 20]);
        for _ in 0..400 {
            let index = set.pick(&[], usize::MAX, None).unwrap();
            set.endpoints[index].stats.in_flight.fetch_add(1, Relaxed);
        }
        let busy: Vec<_> = set.endpoints.iter().map(|e| e.in_flight()).collect();
        assert!(busy[0].abs_diff(100) <= 1 && busy[1].abs_diff(100) <= 1 && busy[2].abs_diff(200) <= 1, "{busy:?}");
    }
}
