//! Windows of one row of figures at three lengths, bounded in number.

use std::collections::VecDeque;

use model::center::{Histogram, Sample};

use super::slot::{Slot, parts};

/// Lengths of windows in milliseconds: as often as agents report, as long as a look at a page, a minute.
pub(super) const STEPS: [u64; 3] = [2_000, 10_000, 60_000];

/// Time that "lately" means.
const LATELY_MS: u64 = 10_000;

/// How many windows of each length are kept.
pub(super) type Keep = [usize; 3];

/// Windows of one length, oldest first; those in which nobody looked are left out.
#[derive(Clone, Debug, Default)]
struct Ring(VecDeque<Slot>);

impl Ring {
    fn slot(&mut self, index: u64, keep: usize) -> Option<&mut Slot> {
        let newest = self.0.back().map_or(index, |slot| slot.index.max(index));
        if index + keep as u64 <= newest {
            return None;
        }
        // Before one is put there: there are very many rings, and one more than is kept may be twice the memory.
        self.trim(newest, keep);
        // Nearly always the last or the one before.
        let after = self.0.iter().rev().take_while(|slot| slot.index > index).count();
        let at = self.0.len() - after;
        if at > 0 && self.0[at - 1].index == index {
            return self.0.get_mut(at - 1);
        }
        self.0.insert(at, Slot::at(index));
        self.0.get_mut(at)
    }

    fn trim(&mut self, newest: u64, keep: usize) {
        while self.0.front().is_some_and(|slot| slot.index + keep as u64 <= newest) {
            self.0.pop_front();
        }
    }

    fn between(&self, first: u64, last: u64) -> impl Iterator<Item = &Slot> {
        let from = self.0.partition_point(|slot| slot.index < first);
        self.0.range(from..).take_while(move |slot| slot.index <= last)
    }
}

/// What is known of a stretch of time of one row.
#[derive(Clone, Debug, Default)]
pub(super) struct Stretch {
    /// Calls a second.
    pub rate: f64,
    /// Time that it rests on, in seconds.
    pub seconds: f64,
    /// Counts.
    pub counts: Slot,
}

impl Stretch {
    /// Adds another row of the same time.
    pub(super) fn join(&mut self, other: &Self) {
        self.rate += other.rate;
        self.seconds = self.seconds.max(other.seconds);
        self.counts.merge(&other.counts);
    }

    pub(super) fn times(&self) -> Histogram {
        self.counts.times()
    }
}

/// All windows of one row.
#[derive(Clone, Debug)]
pub(super) struct Rings {
    rings: [Ring; 3],
    /// Since when anything is known.
    born_ms: u64,
    /// End of the newest report.
    pub last_ms: u64,
    /// How often its agents report.
    period_ms: u64,
}

impl Rings {
    pub(super) fn new(born_ms: u64) -> Self {
        Self { rings: Default::default(), born_ms, last_ms: 0, period_ms: STEPS[0] }
    }

    /// Counts what one agent saw from `from_ms` to `to_ms`.
    pub(super) fn add(&mut self, samples: &[&Sample], from_ms: u64, to_ms: u64, keep: &Keep) {
        for ((ring, step), keep) in self.rings.iter_mut().zip(STEPS).zip(keep) {
            for part in parts(from_ms, to_ms, step) {
                // Newest first: what is older has gone, too.
                let Some(slot) = ring.slot(part.index, *keep) else { break };
                slot.add(samples, part);
            }
        }
        self.born_ms = self.born_ms.min(from_ms);
        self.last_ms = self.last_ms.max(to_ms);
        self.period_ms = (to_ms - from_ms).clamp(STEPS[0], STEPS[2]);
    }

    /// Puts a minute back that was kept elsewhere; what was counted since stays.
    pub(super) fn restore(&mut self, minute: &Slot, keep: &Keep) {
        self.born_ms = self.born_ms.min(minute.index * STEPS[2]);
        if let Some(slot) = self.rings[2].slot(minute.index, keep[2]) {
            slot.merge(minute);
        }
    }

    /// Forgets windows beyond what is kept.
    pub(super) fn trim(&mut self, now_ms: u64, keep: &Keep) {
        for ((ring, step), keep) in self.rings.iter_mut().zip(STEPS).zip(keep) {
            ring.trim(now_ms / step, *keep);
        }
    }

    /// The minute of this number.
    pub(super) fn minute(&self, index: u64) -> Option<&Slot> {
        self.rings[2].between(index, index).next()
    }

    /// How many agents look at this row, from the time that they looked at the window of length `step`.
    fn agents(&self, covered_ms: u64, step: u64) -> f64 {
        // One that began within the window counts whole; two whose windows overlap by a little are not three.
        (covered_ms as f64 / step as f64 - 0.25).ceil().max(1.0)
    }

    /// The last ten seconds; none when nobody has looked for longer. Reports of several agents arrive one after the
    /// other, so that the newest windows are seen by some of them only: those count for as long as they were seen.
    pub(super) fn lately(&self, now_ms: u64, keep: &Keep) -> Option<Stretch> {
        let step = STEPS[0];
        if now_ms > self.last_ms + LATELY_MS.max(3 * self.period_ms) {
            return None;
        }
        let span = LATELY_MS.max(2 * self.period_ms);
        let last = now_ms / step;
        let first = (now_ms.saturating_sub(span)).div_ceil(step).max((last + 1).saturating_sub(keep[0] as u64));
        let slots = || self.rings[0].between(first, last);
        let agents = self.agents(slots().map(|slot| slot.covered_ms).max()?, step);
        let mut counts = Slot::default();
        let mut seconds = 0.0;
        let complete = now_ms.saturating_sub(2 * self.period_ms) / step;
        for slot in slots() {
            counts.merge(slot);
            if slot.index >= complete {
                seconds += (slot.covered_ms as f64 / agents).min(step as f64) / 1000.0;
            }
        }
        let since = (first * step).max(self.born_ms);
        seconds += (complete * step).saturating_sub(since) as f64 / 1000.0;
        let rate = if seconds > 0.0 { counts.calls as f64 / seconds } else { 0.0 };
        Some(Stretch { rate, seconds, counts })
    }

    /// What is known of the windows `first..=last` of the length `STEPS[level]`, with their numbers, oldest first.
    pub(super) fn windows(&self, level: usize, first: u64, last: u64, now_ms: u64) -> Vec<(u64, Stretch)> {
        let step = STEPS[level];
        let complete = now_ms.saturating_sub(2 * self.period_ms) / step;
        // How many agents there are is told by the windows that all of them have seen.
        let newest: u64 =
            self.rings[level].between(complete.saturating_sub(3), u64::MAX).map(|s| s.covered_ms).max().unwrap_or(0);
        let agents = self.agents(newest, step);
        let seen = |slot: &Slot| {
            let whole = step as f64 / 1000.0;
            let seconds = if slot.index >= complete {
                (slot.covered_ms as f64 / agents / 1000.0).min(whole)
            } else if slot.index * step < self.born_ms {
                ((slot.index + 1) * step - self.born_ms) as f64 / 1000.0
            } else {
                whole
            };
            let rate = if seconds > 0.0 { slot.calls as f64 / seconds } else { 0.0 };
            (slot.index, Stretch { rate, seconds, counts: slot.clone() })
        };
        self.rings[level].between(first, last).map(seen).collect()
    }

    /// How far back windows of this level may reach, in milliseconds.
    pub(super) fn reach(level: usize, keep: &Keep) -> u64 {
        STEPS[level] * keep[level] as u64
    }

    /// Windows held.
    pub(super) fn len(&self) -> usize {
        self.rings.iter().map(|ring| ring.0.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Keep = [30, 10, 5];

    fn calls(calls: u64) -> Sample {
        let mut sample = Sample { calls, ..Sample::default() };
        sample.times.add(1000, calls);
        sample
    }

    #[test]
    fn one_report_is_a_rate_at_once() {
        let mut rings = Rings::new(u64::MAX);
        rings.add(&[&calls(200)], 100_500, 102_500, &KEEP);
        let lately = rings.lately(102_500, &KEEP).unwrap();
        assert!((lately.rate - 100.0).abs() < 0.5, "{}", lately.rate);
        assert_eq!(lately.counts.calls, 200);
        assert!(rings.lately(102_500 + 10_001, &KEEP).is_none(), "long ago");
    }

    #[test]
    fn many_agents_out_of_step_are_counted_right_at_any_moment() {
        // Seven agents, each 100 calls a second in reports of about two seconds.
        let mut rings = Rings::new(u64::MAX);
        let mut random = fastrand::Rng::with_seed(3);
        let mut ends: Vec<u64> = (0..7).map(|i| 1_000_000 + i * 290).collect();
        let mut now = 1_000_000;
        while now < 1_060_000 {
            now += 50;
            for end in &mut ends {
                if now >= *end + 2000 {
                    let to = now + random.u64(..40);
                    rings.add(&[&calls((to - *end) / 10)], *end, to, &KEEP);
                    *end = to;
                }
            }
            if now > 1_015_000 {
                let rate = rings.lately(now, &KEEP).unwrap().rate;
                assert!((rate - 700.0).abs() < 40.0, "{rate} at {now}");
            }
        }
        for (index, window) in rings.windows(0, 502, now / 2000 - 1, now) {
            assert!((window.rate - 700.0).abs() < 60.0, "{} in {index}", window.rate);
        }
    }

    #[test]
    fn a_row_without_calls_sinks_to_zero_and_is_known_to_be() {
        let mut rings = Rings::new(u64::MAX);
        for i in 0..10 {
            rings.add(&[&calls(200)], i * 2000, (i + 1) * 2000, &KEEP);
        }
        for i in 10..20 {
            rings.add(&[&calls(0)], i * 2000, (i + 1) * 2000, &KEEP);
        }
        assert_eq!(rings.lately(40_000, &KEEP).unwrap().rate, 0.0);
        let windows = rings.windows(1, 0, 3, 60_000);
        assert_eq!(windows.iter().map(|(_, w)| w.rate).collect::<Vec<_>>(), [100.0, 100.0, 0.0, 0.0]);
    }

    #[test]
    fn never_more_windows_than_are_kept() {
        let mut rings = Rings::new(u64::MAX);
        for i in 0..1000 {
            rings.add(&[&calls(1)], i * 2000, (i + 1) * 2000, &KEEP);
            assert!(rings.len() <= KEEP.iter().sum());
        }
        // One from long ago, one over everything, one of the future.
        rings.add(&[&calls(1)], 0, 2000, &KEEP);
        rings.add(&[&calls(1)], 0, 2_000_000, &KEEP);
        rings.add(&[&calls(1)], 10_000_000, 10_002_000, &KEEP);
        assert!(rings.len() <= KEEP.iter().sum());
        rings.trim(u64::MAX / 2, &KEEP);
        assert_eq!(rings.len(), 0);
    }
}
