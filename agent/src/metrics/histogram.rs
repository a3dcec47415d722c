//! A latency histogram that is cheap to write from every thread and exact at its bucket borders.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Buckets of one doubling. 8 keep the error of a percentile under 1/16 = 6 %.
const SUB: usize = 8;
/// Shortest time told apart, as a power of two of nanoseconds: 2^13 = 8.2 us.
const MIN_EXP: u32 = 13;
/// Longest: 2^37 ns = 137 s.
const MAX_EXP: u32 = 37;
const BUCKETS: usize = (MAX_EXP - MIN_EXP) as usize * SUB + 1;

/// Counts of durations in logarithmic buckets, 8 to each doubling from 8 us to 137 s.
///
/// Takes no memory until the first record (services and endpoints nobody calls cost nothing), 1.5 KiB after.
#[derive(Default)]
pub struct Histogram {
    cells: OnceLock<Box<Cells>>,
}

struct Cells {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

/// A copy of a [`Histogram`] at one moment; the difference of two is what happened in between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    buckets: Vec<u64>,
    /// Records.
    pub count: u64,
    /// Sum of all durations in nanoseconds.
    pub sum_ns: u64,
}

fn index(ns: u64) -> usize {
    if ns < 1 << MIN_EXP {
        return 0;
    }
    let exp = ns.ilog2();
    if exp >= MAX_EXP {
        return BUCKETS - 1;
    }
    let sub = (ns >> (exp - SUB.ilog2())) as usize & (SUB - 1);
    ((exp - MIN_EXP) as usize * SUB + sub + 1).min(BUCKETS - 1)
}

/// Exclusive upper border of a bucket in nanoseconds.
fn border(index: usize) -> u64 {
    let exp = MIN_EXP + (index / SUB) as u32;
    (1 << exp) + ((index % SUB) as u64 * ((1 << exp) / SUB as u64))
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let summary = self.summary();
        write!(f, "Histogram({} records, p50 {:?})", summary.count, summary.quantile(0.5))
    }
}

impl Histogram {
    /// Counts one duration. Never blocks.
    pub fn record(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let cells = self.cells.get_or_init(|| {
            Box::new(Cells { buckets: [const { AtomicU64::new(0) }; BUCKETS], sum_ns: AtomicU64::new(0) })
        });
        cells.buckets[index(ns)].fetch_add(1, Relaxed);
        cells.sum_ns.fetch_add(ns, Relaxed);
    }

    /// Copies the counts. Records that happen meanwhile are in or not.
    pub fn summary(&self) -> Summary {
        let Some(cells) = self.cells.get() else { return Summary::default() };
        let buckets: Vec<u64> = cells.buckets.iter().map(|b| b.load(Relaxed)).collect();
        Summary { count: buckets.iter().sum(), buckets, sum_ns: cells.sum_ns.load(Relaxed) }
    }
}

impl Summary {
    /// What was recorded after `earlier`, a summary of the same histogram.
    pub fn since(&self, earlier: &Self) -> Self {
        let buckets: Vec<u64> = self
            .buckets
            .iter()
            .enumerate()
            .map(|(i, now)| now.saturating_sub(earlier.buckets.get(i).copied().unwrap_or(0)))
            .collect();
        Self { count: buckets.iter().sum(), buckets, sum_ns: self.sum_ns.saturating_sub(earlier.sum_ns) }
    }

    /// Adds another histogram's counts.
    pub fn merge(&mut self, other: &Self) {
        if self.buckets.len() < other.buckets.len() {
            self.buckets.resize(other.buckets.len(), 0);
        }
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum_ns += other.sum_ns;
    }

    /// The duration that a share `q` (0 to 1) of all records did not exceed; `None` without records.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        if self.count == 0 {
            return None;
        }
        let rank = ((q * self.count as f64).ceil() as u64).clamp(1, self.count);
        let mut seen = 0;
        for (i, n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= rank {
                return Some(Duration::from_nanos(border(i)));
            }
        }
        None
    }

    /// Middle of each bucket that holds something, and how many it holds.
    pub fn middles(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        let held = self.buckets.iter().enumerate().filter(|(_, n)| **n > 0);
        held.map(|(i, n)| {
            let below = i.checked_sub(1).map_or(0, border);
            (Duration::from_nanos(below.midpoint(border(i))), *n)
        })
    }

    /// Records below the bucket's border that is nearest to `limit`: for 50, 100, 200 and 500 ms that is 0.7 %
    /// above.
    pub fn below(&self, limit: Duration) -> u64 {
        let ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        let nearest = (0..BUCKETS).min_by_key(|i| border(*i).abs_diff(ns)).expect("there are buckets");
        self.buckets.iter().take(nearest + 1).sum()
    }

    /// Cumulative counts at each doubling from 8 us to 69 s: (upper border, records below it). What
    /// Prometheus calls `le` buckets, exact because borders coincide. The last bucket has no border:
    /// it also holds what took longer.
    pub fn doublings(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        let mut below = 0;
        self.buckets.iter().take(BUCKETS - 1).enumerate().filter_map(move |(i, n)| {
            below += n;
            (i % SUB == 0).then(|| (Duration::from_nanos(border(i)), below))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_is_below_its_border_and_not_below_the_one_before() {
        let mut ns = 1u64;
        while ns < 1 << MAX_EXP {
            let i = index(ns);
            assert!(ns < border(i), "{ns} in {i} up to {}", border(i));
            assert!(i == 0 || ns >= border(i - 1), "{ns} in {i} from {}", border(i - 1));
            ns += 1 + ns / 7;
        }
        assert_eq!(index(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_within_an_eighth() {
        let h = Histogram::default();
        for ms in 1..=1000 {
            h.record(Duration::from_millis(ms));
        }
        let s = h.summary();
        assert_eq!(s.count, 1000);
        for (q, ms) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0)] {
            let got = s.quantile(q).unwrap().as_secs_f64() * 1000.0;
            assert!((got / ms - 1.0).abs() < 0.13, "p{q}: {got}");
        }
        assert_eq!(s.since(&s).count, 0);
        assert_eq!(Histogram::default().summary().quantile(0.5), None);
    }
}
