//! `weighted`: round robin in proportion to the weights, spread evenly.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::{LoadBalancer, PickCx, Picker};
use crate::{
    endpoint::Endpoint,
    kind::{self, BuildCx, Value},
};

/// Longest round that is written out; above it weights are scaled down, losing at most 1 part in 4096.
const MAX_ROUND: u64 = 4096;

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

/// The [`round`] of endpoints by their weights.
pub(super) fn round_of(endpoints: &[Arc<Endpoint>]) -> Box<[u32]> {
    let weights: Vec<u64> = endpoints.iter().map(|e| u64::from(e.weight)).collect();
    round(&weights)
}

/// Smooth weighted round robin (each step: everyone gains its weight, the richest is picked and pays
/// the total), run once for a whole round. Exact per round for weights whose sum over their common
/// divisor is within [`MAX_ROUND`].
pub(super) fn round(weights: &[u64]) -> Box<[u32]> {
    let divisor = weights.iter().copied().filter(|&w| w > 0).fold(0, gcd).max(1);
    let mut weights: Vec<u64> = weights.iter().map(|w| w / divisor).collect();
    let total: u64 = weights.iter().sum();
    if total > MAX_ROUND {
        for w in weights.iter_mut().filter(|w| **w > 0) {
            *w = (*w * MAX_ROUND).div_ceil(total);
        }
    }
    let total: u64 = weights.iter().sum();
    let positive: Vec<usize> = (0..weights.len()).filter(|&i| weights[i] > 0).collect();
    let mut credit = vec![0i64; weights.len()];
    let mut order = Vec::with_capacity(total as usize);
    for _ in 0..total {
        let mut best = positive[0];
        for &i in &positive {
            credit[i] += weights[i] as i64;
            if credit[i] > credit[best] {
                best = i;
            }
        }
        credit[best] -= total as i64;
        order.push(best as u32);
    }
    order.into_boxed_slice()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::*, *};

    #[test]
    fn a_round_is_exact_and_spread() {
        assert_eq!(*round(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(*round(&[30, 10]), [0, 0, 1, 0]);
        assert!(round(&[0, 0]).is_empty());
    }

    #[test]
    fn shares_follow_weights() {
        assert_eq!(shares(&set(&Weighted, &[1, 3, 0, 6]), 1000), [100, 300, 0, 600]);
        let many = vec![7; 10_000];
        assert!(shares(&set(&Weighted, &many), 20_000).iter().all(|&c| c <= 4));
    }
}
