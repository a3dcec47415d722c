//! Latencies, counted in buckets whose width grows with the value: 1.6 % of it at most.

use std::time::Duration;

/// Buckets for each power of two.
const PART: usize = 64;

/// Counts of latencies from 1 ns to hours.
#[derive(Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    /// An empty one.
    pub fn new() -> Self {
        Self { counts: vec![0; 64 * PART], total: 0 }
    }

    /// Counts one.
    pub fn add(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
    }

    /// How many were counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The latency that this share (0 to 1) of all did not exceed, in microseconds; 0 when none was counted.
    pub fn quantile_us(&self, share: f64) -> f64 {
        let wanted = (share * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let at = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        at.map_or(0.0, |at| middle(at) / 1000.0)
    }
}

fn bucket(nanos: u64) -> usize {
    // Below PART each value has its bucket; above, the six bits after the first one choose it.
    let shift = (63 - nanos.max(1).leading_zeros()).saturating_sub(6) as usize;
    shift * PART + (nanos >> shift) as usize
}

fn middle(bucket: usize) -> f64 {
    let shift = (bucket / PART).saturating_sub(1);
    let low = (bucket - shift * PART) as f64;
    (low + 0.5) * (1_u64 << shift) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_close() {
        let mut histogram = Histogram::new();
        assert!(histogram.quantile_us(0.5) < 0.001);
        for micros in 1..=1000 {
            histogram.add(Duration::from_micros(micros));
        }
        assert_eq!(histogram.total(), 1000);
        for (share, expected) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let got = histogram.quantile_us(share);
            assert!((got - expected).abs() < expected * 0.017, "{got} is not near {expected}");
        }
        let mut last = 0;
        for nanos in (0..10_000).chain([1 << 40, u64::MAX >> 1, u64::MAX]) {
            let at = bucket(nanos);
            assert!(at >= last && at < 64 * PART, "{nanos} falls into {at}");
            let off = (middle(at) - nanos as f64).abs();
            assert!(off <= (nanos as f64) / 64.0 + 1.0, "{nanos}: the middle of its bucket is {}", middle(at));
            last = at;
        }
    }
}
