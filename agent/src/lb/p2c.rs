//! `p2c`: the better of two random endpoints, by latency times calls in flight.

use std::sync::Arc;

use super::{LoadBalancer, PickCx, Picker};
use crate::{
    endpoint::{Endpoint, Ewma},
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
        let a = cx.random_eligible()?;
        // The second of a different endpoint: shift within the other n - 1.
        let b = (a + 1 + fastrand::usize(..n - 1)) % n;
        // Only a clearly smaller load counts: between equals chance decides, or the one that was a little
        // faster last would get everything.
        if !cx.eligible(b) {
            return Some(a);
        }
        let now = Ewma::now();
        let better = load(cx, b, now).saturating_mul(4) < load(cx, a, now).saturating_mul(3);
        Some(if better { b } else { a })
    }

    fn passed_over(&self, _: &PickCx<'_>, _: usize) -> &'static str {
        "was not drawn, or is slower or busier than the one picked"
    }
}

/// Expected wait at this endpoint, divided by its weight. An endpoint nobody measured yet counts as
/// free of load, so that it is tried.
fn load(cx: &PickCx<'_>, index: usize, now: u64) -> u64 {
    let hot = cx.hot(index);
    let ewma_us = hot.ewma.expected_at(now) / 1000;
    (ewma_us + 1) * u64::from(hot.in_flight() + 1) * 100 / u64::from(cx.weight(index).max(1))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::testing::*, *};

    fn busy(set: &crate::lb::EndpointSet, index: usize, latency_ms: u64, in_flight: u32) {
        let hot = &set.endpoints[index].hot;
        hot.ewma.observe(Duration::from_millis(latency_ms));
        hot.set_in_flight(in_flight);
    }

    #[tokio::test(start_paused = true)]
    async fn prefers_the_faster_and_the_less_busy() {
        let set = set(&P2c, &[10, 10, 10]);
        busy(&set, 0, 50, 0);
        busy(&set, 1, 1, 0);
        busy(&set, 2, 1, 9);
        let counts = shares(&set, 3000);
        assert!(counts[1] > counts[2] && counts[2] > counts[0], "{counts:?}");
        // The slowest never wins a comparison.
        assert_eq!(counts[0], 0, "{counts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn equals_share_alike_and_who_was_slow_once_is_tried_again() {
        let set = set(&P2c, &[10, 10]);
        busy(&set, 0, 10, 0);
        busy(&set, 1, 11, 0);
        let counts = shares(&set, 2000);
        assert!(counts.iter().all(|&c| c > 800), "nearly equal: {counts:?}");
        busy(&set, 0, 10_000, 0);
        assert_eq!(shares(&set, 100)[0], 0);
        for _ in 0..12 {
            tokio::time::advance(Duration::from_secs(2)).await;
            busy(&set, 1, 11, 0);
        }
        assert!(shares(&set, 100)[0] > 0, "an endpoint that is not called is forgiven with time");
    }
}
