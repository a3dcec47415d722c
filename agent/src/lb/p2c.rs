//! `p2c`: the better of two random endpoints, by latency times calls in flight.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::{LoadBalancer, PickCx, Picker};
use crate::{
    endpoint::Endpoint,
    kind::{self, BuildCx, Value},
};

struct P2c;

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn LoadBalancer>> {
    kind::no_options(options)?;
    Ok(Arc::new(P2c))
}

impl LoadBalancer for P2c {
    fn picker(&self, _: &[Arc<Endpoint>]) -> Box<dyn Picker> {
        Box::new(Self)
    }
}

impl Picker for P2c {
    fn pick(&self, cx: &PickCx<'_>) -> Option<usize> {
        let n = cx.endpoints.len();
        if n < 2 {
            return (n == 1 && cx.eligible(0)).then_some(0);
        }
        let a = cx.first_eligible_from(fastrand::usize(..n))?;
        // The second of a different endpoint: shift within the other n - 1.
        let b = (a + 1 + fastrand::usize(..n - 1)) % n;
        if cx.eligible(b) && load(&cx.endpoints[b]) < load(&cx.endpoints[a]) { Some(b) } else { Some(a) }
    }
}

/// Expected wait at this endpoint, divided by its weight. An endpoint nobody measured yet counts as
/// free of load, so that it is tried.
fn load(endpoint: &Endpoint) -> u64 {
    let ewma_us = endpoint.stats.ewma_ns.load(Relaxed) / 1000;
    (ewma_us + 1) * u64::from(endpoint.in_flight() + 1) * 100 / u64::from(endpoint.weight.max(1))
}

#[cfg(test)]
mod tests {
    use super::{super::testing::*, *};

    #[test]
    fn prefers_the_faster_and_the_less_busy() {
        let set = set(&P2c, &[10, 10, 10]);
        set.endpoints[0].stats.ewma_ns.store(50_000_000, Relaxed);
        set.endpoints[1].stats.ewma_ns.store(1_000_000, Relaxed);
        set.endpoints[2].stats.ewma_ns.store(1_000_000, Relaxed);
        set.endpoints[2].stats.in_flight.store(9, Relaxed);
        let counts = shares(&set, 3000);
        assert!(counts[1] > counts[2] && counts[2] > counts[0], "{counts:?}");
        // The slowest never wins a comparison.
        assert_eq!(counts[0], 0, "{counts:?}");
    }
}
