//! Figures over time from windows of rows.

use std::collections::BTreeMap;

use model::center::{Figures, Of, Series};

use super::{
    ring::{Keep, Rings, STEPS, Stretch},
    slot::Slot,
};

/// Points of one series: what a screen can show.
const POINTS: u64 = 400;
/// The most points that may be asked for.
const MOST_POINTS: u64 = 5_000;

/// Which windows a series has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    /// Which ring they come from.
    pub level: usize,
    /// Windows of the ring in one of the series.
    pub every: u64,
    /// First and last window, by number: start divided by the step.
    pub first: u64,
    pub last: u64,
}

impl Grid {
    /// Windows for `from_ms..to_ms`, which are as long as was asked for or, where that does not reach back so far or
    /// would be too many, longer. `complete_ms`: windows that end later are left out.
    pub(super) fn new(from_ms: u64, to_ms: u64, step_ms: u64, now_ms: u64, keep: &Keep) -> Self {
        let to_ms = to_ms.min(now_ms);
        let span = to_ms.saturating_sub(from_ms).max(1);
        let points = if step_ms == 0 { POINTS } else { MOST_POINTS };
        let shortest = step_ms.max(span.div_ceil(points));
        let back = now_ms.saturating_sub(from_ms);
        let reaches = |level: &usize| back <= Rings::reach(*level, keep).saturating_sub(STEPS[*level]);
        let finest = (0..STEPS.len()).find(reaches).unwrap_or(STEPS.len() - 1);
        let level = (finest..STEPS.len()).rev().find(|level| STEPS[*level] <= shortest).unwrap_or(finest);
        let every = shortest.div_ceil(STEPS[level]).max(1);
        let step = every * STEPS[level];
        Self { level, every, first: from_ms / step, last: (to_ms / step).saturating_sub(1) }
    }

    pub(super) fn step_ms(&self) -> u64 {
        self.every * STEPS[self.level]
    }

    /// Windows of the ring that it needs.
    pub(super) fn ring(&self) -> (u64, u64) {
        (self.first * self.every, (self.last + 1) * self.every - 1)
    }

    fn indices(&self) -> impl Iterator<Item = u64> {
        let last = if self.last < self.first { self.first } else { self.last + 1 };
        self.first..last
    }
}

/// Windows of one series, while rows are added to it.
#[derive(Debug)]
pub(super) struct Builder {
    grid: Grid,
    windows: BTreeMap<u64, Stretch>,
}

impl Builder {
    pub(super) fn new(grid: Grid) -> Self {
        Self { grid, windows: BTreeMap::new() }
    }

    /// Adds one row; windows of its ring may miss.
    pub(super) fn add(&mut self, row: impl IntoIterator<Item = (u64, Stretch)>) {
        let mut of_row: BTreeMap<u64, (f64, Stretch)> = BTreeMap::new();
        for (index, stretch) in row {
            let window = index / self.grid.every;
            if (self.grid.first..=self.grid.last).contains(&window) {
                let (calls, all) = of_row.entry(window).or_default();
                *calls += stretch.rate * stretch.seconds;
                all.seconds += stretch.seconds;
                all.counts.merge(&stretch.counts);
            }
        }
        for (window, (calls, mut all)) in of_row {
            all.rate = if all.seconds > 0.0 { calls / all.seconds } else { 0.0 };
            self.windows.entry(window).or_default().join(&all);
        }
    }

    /// Adds one row from minutes that were kept in a file.
    pub(super) fn add_minutes(&mut self, minutes: impl IntoIterator<Item = Slot>) {
        let seconds = STEPS[2] as f64 / 1000.0;
        self.add(
            minutes
                .into_iter()
                .map(|slot| (slot.index, Stretch { rate: slot.calls as f64 / seconds, seconds, counts: slot })),
        );
    }

    /// The series; `offset_ms` makes times of day of windows.
    pub(super) fn build(self, of: &Of, source: &str, offset_ms: i64) -> Series {
        let step_ms = self.grid.step_ms();
        let mut series = Series { of: of.clone(), source: source.to_owned(), step_ms, ..Series::default() };
        for index in self.grid.indices() {
            let known = self.windows.get(&index).map(figures);
            let at_ms = ((index + 1) * step_ms).saturating_add_signed(offset_ms);
            push(&mut series, at_ms, known.as_ref());
        }
        series
    }
}

/// Figures of a stretch.
pub(super) fn figures(stretch: &Stretch) -> Figures {
    let counts = &stretch.counts;
    let figures = Figures::of(stretch.seconds, counts.calls, counts.failed, counts.slow, &stretch.times());
    Figures { rate: stretch.rate, ..figures }
}

/// Adds a window to every column.
pub(super) fn push(series: &mut Series, at_ms: u64, known: Option<&Figures>) {
    series.at_ms.push(at_ms);
    series.rate.push(known.map(|f| f.rate));
    series.success.push(known.and_then(|f| f.success));
    series.mean_ms.push(known.and_then(|f| f.mean_ms));
    series.p50_ms.push(known.and_then(|f| f.p50_ms));
    series.p99_ms.push(known.and_then(|f| f.p99_ms));
    series.p999_ms.push(known.and_then(|f| f.p999_ms));
    series.slow.push(known.and_then(|f| f.slow));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_as_long_as_they_must_be() {
        const KEEP: Keep = [150, 360, 180];
        let now = 1_000_000_000;
        let minute = 60_000;
        for (back, step, level, every) in [
            (4 * minute, 0, 0, 1),
            (10 * minute, 0, 1, 1),
            (10 * minute, 2_000, 1, 1),
            (4 * minute, 10_000, 1, 1),
            (4 * minute, 15_000, 1, 2),
            (60 * minute, 0, 2, 1),
            (59 * minute, 0, 1, 1),
            (24 * 60 * minute, 0, 2, 4),
            (24 * 60 * minute, 60_000, 2, 1),
        ] {
            let grid = Grid::new(now - back, now, step, now, &KEEP);
            assert_eq!((grid.level, grid.every), (level, every), "{back} {step}");
            assert!(grid.indices().count() as u64 <= back / grid.step_ms() + 1);
        }
        // Nothing at all, and everything that ever was.
        assert!(Grid::new(now, now, 0, now, &KEEP).indices().count() <= 1);
        assert!(Grid::new(0, u64::MAX, 1, u64::MAX / 2, &KEEP).indices().count() <= 5001);
        assert!(Grid::new(u64::MAX, 0, 0, now, &KEEP).indices().count() <= 1);
    }
}
