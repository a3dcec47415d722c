//! `weighted`: round robin in proportion to the weights, spread evenly.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use model::share::round;

use super::{LoadBalancer, PickCx, Picker};
use crate::{
    endpoint::Endpoint,
    kind::{self, BuildCx, Value},
};

struct Weighted;

/// One round written out: endpoint indices in the order in which they are picked.
struct Round {
    order: Box<[u32]>,
    next: AtomicUsize,
}

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn LoadBalancer>> {
    kind::no_options(options)?;
    Ok(Arc::new(Weighted))
}

impl LoadBalancer for Weighted {
    fn picker(&self, endpoints: &[Arc<Endpoint>]) -> Box<dyn Picker> {
        let order = round_of(endpoints);
        let start = fastrand::usize(..=order.len());
        Box::new(Round { order, next: AtomicUsize::new(start) })
    }
}

impl Picker for Round {
    fn pick(&self, cx: &PickCx<'_>) -> Option<usize> {
        let n = self.order.len();
        // A slot of an endpoint that is out goes to the next slot, whose owner is another one in
        // proportion to the weights; after a few of those look at every endpoint once instead.
        for _ in 0..n.min(16) {
            let index = self.order[self.next.fetch_add(1, Relaxed) % n] as usize;
            if cx.eligible(index) {
                return Some(index);
            }
        }
        (n > 0).then(|| cx.random_eligible()).flatten()
    }
}

/// The round of endpoints by their weights.
pub(super) fn round_of(endpoints: &[Arc<Endpoint>]) -> Box<[u32]> {
    let weights: Vec<u64> = endpoints.iter().map(|e| u64::from(e.weight)).collect();
    round(&weights)
}

#[cfg(test)]
mod tests {
    use super::{super::testing::*, *};

    #[test]
    fn shares_follow_weights() {
        assert_eq!(shares(&set(&Weighted, &[1, 3, 0, 6]), 1000), [100, 300, 0, 600]);
        let many = vec![7; 10_000];
        assert!(shares(&set(&Weighted, &many), 20_000).iter().all(|&c| c <= 4));
    }
}
