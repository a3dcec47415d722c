//! What happened within one window of one row of figures, and how reports are cut to such windows.

use model::center::{Histogram, Sample};

/// Counts of one window. Small: there are very many.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Slot {
    /// Number of the window: its start divided by its length.
    pub index: u64,
    /// Time that reports looked at, of all agents together. Twice the window's length: two agents saw all of it.
    pub covered_ms: u64,
    /// Calls that ended.
    pub calls: u64,
    /// Of these, those that failed.
    pub failed: u64,
    /// Of these, those slower than the threshold.
    pub slow: u64,
    sum_us: u64,
    /// As in [`Histogram`], half as large.
    buckets: Vec<(u16, u32)>,
}

/// The part of a report's window that falls into one slot: `from..to` of `whole`, all in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub index: u64,
    pub from: u64,
    pub to: u64,
    pub whole: u64,
}

impl Part {
    /// This part's share of a count. The shares of all parts add up to exactly the count.
    fn of(self, count: u64) -> u64 {
        if self.to - self.from == self.whole {
            return count;
        }
        let until = |ms: u64| u128::from(count) * u128::from(ms) / u128::from(self.whole.max(1));
        u64::try_from(until(self.to) - until(self.from)).unwrap_or(u64::MAX)
    }
}

/// Cuts the window `from_ms..to_ms` at the borders of slots of `step_ms`, newest first.
pub(super) fn parts(from_ms: u64, to_ms: u64, step_ms: u64) -> impl Iterator<Item = Part> {
    let whole = to_ms.saturating_sub(from_ms);
    let slots = if whole == 0 { 0..0 } else { from_ms / step_ms..(to_ms - 1) / step_ms + 1 };
    slots.rev().map(move |index| Part {
        index,
        from: (index * step_ms).max(from_ms) - from_ms,
        to: ((index + 1) * step_ms).min(to_ms) - from_ms,
        whole,
    })
}

impl Slot {
    pub(super) fn at(index: u64) -> Self {
        Self { index, ..Self::default() }
    }

    /// Counts a part of what one agent saw; `samples` are together one row.
    pub(super) fn add(&mut self, samples: &[&Sample], part: Part) {
        self.covered_ms = self.covered_ms.saturating_add(part.to - part.from);
        for sample in samples {
            // More of them than calls is no sense, and a share above one would be believed.
            let (failed, slow) = (sample.failed.min(sample.calls), sample.slow.min(sample.calls));
            self.calls = self.calls.saturating_add(part.of(sample.calls));
            self.failed = self.failed.saturating_add(part.of(failed));
            self.slow = self.slow.saturating_add(part.of(slow));
            self.sum_us = self.sum_us.saturating_add(part.of(sample.times.sum_us));
            for (bucket, count) in &sample.times.buckets {
                let count = u32::try_from(part.of(*count)).unwrap_or(u32::MAX);
                self.count(*bucket, count);
            }
        }
    }

    fn count(&mut self, bucket: u16, count: u32) {
        if count == 0 {
            return;
        }
        match self.buckets.binary_search_by_key(&bucket, |(b, _)| *b) {
            Ok(at) => self.buckets[at].1 = self.buckets[at].1.saturating_add(count),
            Err(at) => {
                // Millions of windows have some buckets each: none are held in reserve.
                if self.buckets.len() == self.buckets.capacity() {
                    self.buckets.reserve_exact(2);
                }
                self.buckets.insert(at, (bucket, count));
            }
        }
    }

    /// Adds another slot, of whatever window.
    pub(super) fn merge(&mut self, other: &Self) {
        self.covered_ms = self.covered_ms.saturating_add(other.covered_ms);
        self.calls = self.calls.saturating_add(other.calls);
        self.failed = self.failed.saturating_add(other.failed);
        self.slow = self.slow.saturating_add(other.slow);
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        for (bucket, count) in &other.buckets {
            self.count(*bucket, *count);
        }
    }

    /// Times of its calls.
    pub(super) fn times(&self) -> Histogram {
        let buckets = self.buckets.iter().map(|(bucket, count)| (*bucket, u64::from(*count))).collect();
        Histogram { buckets, sum_us: self.sum_us }
    }

    /// For the file: numbers of seven bits each, the rest of a number in the next byte.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + 4 * self.buckets.len());
        for value in [self.covered_ms, self.calls, self.failed, self.slow, self.sum_us] {
            put(&mut out, value);
        }
        let mut before = 0;
        for (bucket, count) in &self.buckets {
            put(&mut out, u64::from(bucket - before));
            put(&mut out, u64::from(*count));
            before = *bucket;
        }
        out
    }

    /// Reads what [`Slot::encode`] wrote; `None` for anything else.
    pub(super) fn decode(index: u64, mut bytes: &[u8]) -> Option<Self> {
        let mut slot = Self::at(index);
        for field in [&mut slot.covered_ms, &mut slot.calls, &mut slot.failed, &mut slot.slow, &mut slot.sum_us] {
            *field = take(&mut bytes)?;
        }
        let mut bucket = 0u16;
        while !bytes.is_empty() {
            bucket = bucket.checked_add(u16::try_from(take(&mut bytes)?).ok()?)?;
            slot.count(bucket, u32::try_from(take(&mut bytes)?).ok()?);
        }
        Some(slot)
    }
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(calls: u64, micros: u64) -> Sample {
        let mut sample = Sample { calls, failed: calls / 3, slow: calls / 7, ..Sample::default() };
        sample.times.add(micros, calls);
        sample
    }

    #[test]
    fn parts_of_a_window_add_up_to_it() {
        for (from, to) in [(0, 2000), (1, 1999), (1500, 3600), (1999, 2001), (0, 1), (7, 60_007), (5, 5)] {
            let sample = sample(1001, 3000);
            let mut all = Slot::default();
            let mut last = u64::MAX;
            for part in parts(from, to, 2000) {
                assert!(part.index < last && part.index >= from / 2000 && part.index * 2000 < to, "{part:?}");
                last = part.index;
                let mut slot = Slot::at(part.index);
                slot.add(&[&sample], part);
                all.merge(&slot);
            }
            let calls = if to > from { 1001 } else { 0 };
            assert_eq!((all.covered_ms, all.calls, all.times().total()), (to - from, calls, calls), "{from}..{to}");
            if calls > 0 {
                assert_eq!((all.failed, all.slow, all.times()), (333, 143, sample.times.clone()));
            }
        }
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let mut slot = Slot::at(7);
        for (calls, micros) in [(1, 0), (200, 150), (70_000, 900_000), (3, u64::MAX)] {
            let part = Part { index: 7, from: 0, to: 60_000, whole: 60_000 };
            slot.add(&[&sample(calls, micros)], part);
        }
        let bytes = slot.encode();
        assert_eq!(Slot::decode(7, &bytes), Some(slot));
        for n in 0..bytes.len() {
            // A cut between two buckets is a shorter list; nothing may panic.
            let _ = Slot::decode(7, &bytes[..n]);
        }
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..10_000 {
            let bytes: Vec<u8> = (0..random.usize(..40)).map(|_| random.u8(..)).collect();
            let _ = Slot::decode(0, &bytes);
        }
    }

    #[test]
    fn senseless_counts_stay_within_sense() {
        let sample = Sample { calls: u64::MAX, failed: u64::MAX, slow: u64::MAX, ..Sample::default() };
        let mut slot = Slot::at(0);
        for part in parts(0, 3000, 2000) {
            slot.add(&[&sample, &sample], part);
        }
        assert_eq!((slot.calls, slot.failed), (u64::MAX, u64::MAX));
        let few = Sample { calls: 1, failed: 9, slow: 9, ..Sample::default() };
        let mut slot = Slot::at(0);
        slot.add(&[&few], Part { index: 0, from: 0, to: 1, whole: 1 });
        assert_eq!((slot.calls, slot.failed, slot.slow), (1, 1, 1));
    }
}
