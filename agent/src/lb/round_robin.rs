//! `round_robin`: one after the other.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::{LoadBalancer, PickCx, Picker};
use crate::{
    endpoint::Endpoint,
    kind::{self, BuildCx, Value},
};

struct RoundRobin;

struct Ring {
    next: AtomicUsize,
}

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn LoadBalancer>> {
    kind::no_options(options)?;
    Ok(Arc::new(RoundRobin))
}

impl LoadBalancer for RoundRobin {
    fn picker(&self, endpoints: &[Arc<Endpoint>]) -> Box<dyn Picker> {
        // Agents that start together must not all begin with the first endpoint.
        Box::new(Ring { next: AtomicUsize::new(fastrand::usize(..=endpoints.len())) })
    }
}

impl Picker for Ring {
    fn pick(&self, cx: &PickCx<'_>) -> Option<usize> {
        let n = cx.endpoints.len();
        if n == 0 {
            return None;
        }
        // Each eligible endpoint in turn: a skipped one moves the ring on, or its neighbour would get two shares.
        (0..n).map(|_| self.next.fetch_add(1, Relaxed) % n).find(|&i| cx.eligible(i))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::*, *};

    #[test]
    fn shares_are_equal_also_around_a_dead_endpoint() {
        let set = set(&RoundRobin, &[1, 1, 1, 1]);
        assert_eq!(shares(&set, 400), [100; 4]);
        eject(&set.endpoints[2]);
        let counts = shares(&set, 300);
        assert_eq!(counts[2], 0);
        assert!(counts.iter().enumerate().all(|(i, &c)| i == 2 || (99..=101).contains(&c)), "{counts:?}");
    }
}
