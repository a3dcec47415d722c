//! Times of calls in buckets that every agent cuts alike, so that counts of many agents can be added.

use serde::{Deserialize, Serialize};

/// Buckets to a doubling: a value is known within 9 %.
const PER_DOUBLING: u32 = 8;
/// Number of buckets: up to 2^27 microseconds, a little over two minutes; slower ones count as that.
const BUCKETS: u16 = 8 * 28;

/// Counts by time. Sparse: only buckets that hold something are written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Histogram {
    /// Bucket and count, in the order of buckets.
    pub buckets: Vec<(u16, u64)>,
    /// Sum of all times in microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// The bucket of a time.
    pub fn bucket(micros: u64) -> u16 {
        if micros < 2 {
            return 0;
        }
        let position = (micros as f64).log2() * f64::from(PER_DOUBLING);
        // Positive, and far below what fits.
        (position as u16).min(BUCKETS - 1)
    }

    /// The upper end of a bucket in microseconds.
    pub fn upper(bucket: u16) -> f64 {
        (f64::from(bucket + 1) / f64::from(PER_DOUBLING)).exp2()
    }

    /// Counts `count` calls of this time.
    pub fn add(&mut self, micros: u64, count: u64) {
        self.sum_us = self.sum_us.saturating_add(micros.saturating_mul(count));
        self.count(Self::bucket(micros), count);
    }

    fn count(&mut self, bucket: u16, count: u64) {
        match self.buckets.binary_search_by_key(&bucket, |(b, _)| *b) {
            Ok(at) => self.buckets[at].1 = self.buckets[at].1.saturating_add(count),
            Err(at) => self.buckets.insert(at, (bucket, count)),
        }
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Self) {
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        for (bucket, count) in &other.buckets {
            self.count((*bucket).min(BUCKETS - 1), *count);
        }
    }

    /// Number of calls.
    pub fn total(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// The time in milliseconds that this share (0 to 1) of all calls stayed below; `None` without calls.
    pub fn quantile_ms(&self, share: f64) -> Option<f64> {
        let total = self.total();
        let wanted = (total as f64 * share).ceil().max(1.0);
        let mut below = 0.0;
        for (bucket, count) in &self.buckets {
            below += *count as f64;
            if below >= wanted {
                return Some(Self::upper(*bucket) / 1000.0);
            }
        }
        None
    }

    /// Mean in milliseconds; `None` without calls.
    pub fn mean_ms(&self) -> Option<f64> {
        let total = self.total();
        (total > 0).then(|| self.sum_us as f64 / total as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_bucket_and_sums_are_exact() {
        let mut all = Histogram::default();
        let mut parts = [Histogram::default(), Histogram::default()];
        for micros in 1..=10_000u64 {
            all.add(micros, 1);
            parts[(micros % 2) as usize].add(micros, 1);
        }
        let [mut a, b] = parts;
        a.merge(&b);
        assert_eq!(a, all);
        assert_eq!(all.total(), 10_000);
        assert_eq!(all.mean_ms(), Some(5.0005));
        for (share, micros) in [(0.5, 5000.0), (0.99, 9900.0), (0.999, 9990.0), (1.0, 10_000.0)] {
            let told = all.quantile_ms(share).unwrap() * 1000.0;
            assert!(told >= micros && told <= micros * 1.0906, "{share}: {told}");
        }
        assert_eq!(Histogram::default().quantile_ms(0.5), None);
    }

    #[test]
    fn any_time_has_a_bucket() {
        for micros in [0, 1, 2, 3, u64::MAX] {
            assert!(Histogram::bucket(micros) < BUCKETS);
        }
        let mut histogram = Histogram::default();
        histogram.add(u64::MAX, u64::MAX);
        histogram.merge(&Histogram { buckets: vec![(u16::MAX, 1)], sum_us: 1 });
        assert_eq!(histogram.total(), u64::MAX);
    }
}
