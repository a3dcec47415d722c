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
    /// None when all weigh the same: then any index will do, and a draw is not a look into memory.
    table: Option<Box<[u32]>>,
}

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn LoadBalancer>> {
    kind::no_options(options)?;
    Ok(Arc::new(ActiveWeight))
}

impl LoadBalancer for ActiveWeight {
    fn picker(&self, endpoints: &[Arc<Endpoint>]) -> Box<dyn Picker> {
        let is_same = endpoints.windows(2).all(|two| two[0].weight == two[1].weight);
        Box::new(ByWeight { table: (!is_same).then(|| weighted::round_of(endpoints)) })
    }
}

impl Picker for ByWeight {
    fn pick(&self, cx: &PickCx<'_>) -> Option<usize> {
        let n = cx.endpoints.len();
        if self.table.as_ref().map_or(n, |table| table.len()) == 0 {
            return None;
        }
        // The first is drawn by weight and keeps its place among equals, so that an idle service is
        // called in proportion to the weights as well.
        let draw = || match &self.table {
            Some(table) => table[fastrand::usize(..table.len())] as usize,
            None => fastrand::usize(..n),
        };
        let Some(first) = (0..DRAWS).map(|_| draw()).find(|&i| cx.eligible(i)) else {
            return cx.random_eligible();
        };
        let load = |i: usize| Load { in_flight: cx.hot(i).in_flight(), weight: cx.weight(i) };
        let (mut best, mut least, mut next) = (first, load(first), first);
        for _ in 1..n.min(LOOKS) {
            // Nobody is freer than one that does nothing.
            if least.in_flight == 0 {
                break;
            }
            next = if n > LOOKS { draw() } else { (next + 1) % n };
            if cx.eligible(next) {
                let load = load(next);
                if load.is_less_than(least) {
                    (best, least) = (next, load);
                }
            }
        }
        Some(best)
    }

    fn passed_over(&self, _: &PickCx<'_>, _: usize) -> &'static str {
        "has more calls in flight for its weight, or was not drawn"
    }
}

/// Calls in flight for a weight.
#[derive(Clone, Copy)]
struct Load {
    in_flight: u32,
    weight: u32,
}

impl Load {
    fn is_less_than(self, other: Self) -> bool {
        u64::from(self.in_flight) * u64::from(other.weight) < u64::from(other.in_flight) * u64::from(self.weight)
    }
}

#[cfg(test)]
mod tests {
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
            endpoint.hot.set_in_flight(n);
        }
        assert_eq!(shares(&set, 100), [0, 100, 0], "4 in flight at weight 20 are fewer than 3 at weight 10");
    }

    #[test]
    fn calls_that_stay_are_spread_by_weight() {
        fastrand::seed(2);
        let set = set(&ActiveWeight, &[10, 10, 20]);
        for _ in 0..400 {
            let index = set.pick(&[], usize::MAX, None).unwrap();
            set.endpoints[index].hot.begin();
        }
        let busy: Vec<_> = set.endpoints.iter().map(|e| e.in_flight()).collect();
        assert!(busy[0].abs_diff(100) <= 1 && busy[1].abs_diff(100) <= 1 && busy[2].abs_diff(200) <= 1, "{busy:?}");
    }
}
