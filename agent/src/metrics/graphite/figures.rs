//! What happened in an interval, by service, group, side and method.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use super::Subject;
use crate::{
    call::Text,
    metrics::{Ending, MethodStats, MethodTable, ServiceStats, Summary},
};

/// What one row of figures is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Level {
    /// All calls of a service, whatever its filters.
    Service,
    /// Calls of one method.
    Call,
    /// Attempts of calls of one method.
    Attempt,
}

/// One interval of one series.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub side: &'static str,
    pub service: Text,
    pub group: Text,
    pub application: Text,
    pub level: Level,
    /// Empty for [`Level::Service`].
    pub method: Box<str>,
    pub counts: Counts,
    /// Times of what ended.
    pub latency: Summary,
}

/// How many ended, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// All that ended.
    pub total: u64,
    /// Of them, those that the user's own code refused. Not told apart for [`Level::Service`].
    pub refused: u64,
    /// Of them, those that failed.
    pub failed: u64,
}

impl Counts {
    fn of_service(stats: &ServiceStats) -> Self {
        let failed = stats.failed.load(Relaxed);
        Self { total: stats.succeeded.load(Relaxed) + failed, refused: 0, failed }
    }

    fn of_method(stats: &MethodStats) -> Self {
        let mut counts = Self::default();
        for ending in Ending::all() {
            let n = stats.count(ending);
            counts.total += n;
            match ending.outcome() {
                "failure" => counts.failed += n,
                "success" if ending.is_refusal() => counts.refused += n,
                _ => {}
            }
        }
        counts
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            total: self.total.saturating_sub(earlier.total),
            refused: self.refused.saturating_sub(earlier.refused),
            failed: self.failed.saturating_sub(earlier.failed),
        }
    }

    fn add(&mut self, other: Self) {
        self.total += other.total;
        self.refused += other.refused;
        self.failed += other.failed;
    }
}

/// Counts of the bands that latencies fall into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bands {
    /// Below 50 ms, below 100 ms, below 200 ms, below 500 ms, and the rest; each call in one of them.
    pub each: [u64; 5],
    /// Over 200 ms.
    pub slow: u64,
}

impl Bands {
    pub(super) const NAMES: [&'static str; 5] = ["less_50ms", "less_100ms", "less_200ms", "less_500ms", "more_500ms"];

    pub(super) fn of(latency: &Summary) -> Self {
        let below = [50, 100, 200, 500].map(|ms| latency.below(Duration::from_millis(ms)));
        let each = [below[0], below[1] - below[0], below[2] - below[1], below[3] - below[2], latency.count - below[3]];
        Self { each, slow: latency.count - below[2] }
    }
}

impl Row {
    /// Mean time in milliseconds; 0 when nothing ended.
    pub(super) fn mean_ms(&self) -> f64 {
        if self.latency.count == 0 { 0.0 } else { self.latency.sum_ns as f64 / 1e6 / self.latency.count as f64 }
    }

    /// The time in milliseconds that a share `q` did not exceed; 0 when nothing ended.
    pub(super) fn quantile_ms(&self, q: f64) -> f64 {
        self.latency.quantile(q).map_or(0.0, |d| d.as_secs_f64() * 1e3)
    }

    /// Adds what else runs under the same name.
    pub(super) fn merge(&mut self, other: &Self) {
        self.counts.add(other.counts);
        self.latency.merge(&other.latency);
    }
}

/// What was counted at the last look, so that the next one sees the difference.
#[derive(Default)]
pub(super) struct Figures {
    known: HashMap<usize, Kept>,
}

/// What counts. Kept so that its address, which is the key, is not used again.
#[derive(Clone)]
enum Counted {
    Service(Arc<ServiceStats>),
    Method(Arc<MethodStats>),
}

struct Kept {
    counted: Counted,
    counts: Counts,
    latency: Summary,
    seen: bool,
}

impl Counted {
    fn key(&self) -> usize {
        match self {
            Self::Service(stats) => Arc::as_ptr(stats) as usize,
            Self::Method(stats) => Arc::as_ptr(stats) as usize,
        }
    }

    fn counts(&self) -> Counts {
        match self {
            Self::Service(stats) => Counts::of_service(stats),
            Self::Method(stats) => Counts::of_method(stats),
        }
    }

    fn latency(&self) -> Summary {
        match self {
            Self::Service(stats) => stats.latency.summary(),
            Self::Method(stats) => stats.latency.summary(),
        }
    }
}

impl Figures {
    /// What happened since the last look; rows in which nothing did have a total of 0. What came into being
    /// meanwhile began at zero.
    pub(super) fn take(&mut self, subjects: &[Subject]) -> Vec<Row> {
        let mut rows = Vec::new();
        for subject in subjects {
            let row = |level, method: Box<str>, (counts, latency)| Row {
                side: subject.side,
                service: subject.service.clone(),
                group: subject.group.clone(),
                application: subject.application.clone(),
                level,
                method,
                counts,
                latency,
            };
            rows.push(row(Level::Service, "".into(), self.since(Counted::Service(subject.stats.clone()))));
            let mut table = |table: &MethodTable, level| {
                for (method, stats) in table.rows() {
                    rows.push(row(level, method, self.since(Counted::Method(stats))));
                }
            };
            table(&subject.stats.methods, Level::Call);
            table(&subject.stats.attempts, Level::Attempt);
        }
        self.known.retain(|_, kept| std::mem::take(&mut kept.seen));
        rows
    }

    fn since(&mut self, counted: Counted) -> (Counts, Summary) {
        let counts = counted.counts();
        let kept = self.known.entry(counted.key()).or_insert_with(|| Kept {
            counted,
            counts: Counts::default(),
            latency: Summary::default(),
            seen: false,
        });
        if kept.seen {
            // Two services with the same counters: once is enough.
            return <_>::default();
        }
        kept.seen = true;
        if counts == kept.counts {
            return <_>::default();
        }
        let latency = kept.counted.latency();
        let difference = (counts.since(kept.counts), latency.since(&kept.latency));
        (kept.counts, kept.latency) = (counts, latency);
        difference
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(stats: &Arc<ServiceStats>) -> Subject {
        let text = Text::from_static;
        Subject {
            side: "outbound",
            service: text("web"),
            group: text("idc-a"),
            application: text("demo"),
            stats: stats.clone(),
        }
    }

    fn end(stats: &ServiceStats, ending: Ending, ms: u64) {
        let row = stats.methods.row("echo", 64);
        row.ended(ending);
        row.latency.record(Duration::from_millis(ms));
        stats.started.fetch_add(1, Relaxed);
        if ending.outcome() == "failure" { &stats.failed } else { &stats.succeeded }.fetch_add(1, Relaxed);
        stats.latency.record(Duration::from_millis(ms));
    }

    #[test]
    fn each_interval_has_what_happened_in_it() {
        let stats = Arc::new(ServiceStats::default());
        let subjects = [subject(&stats)];
        let mut figures = Figures::default();
        end(&stats, Ending::answered(200, false), 1);
        figures.take(&subjects);
        end(&stats, Ending::answered(200, false), 10);
        end(&stats, Ending::answered(30412, false), 70);
        end(&stats, Ending::error("timeout"), 300);
        end(&stats, Ending::error("cancelled"), 1000);
        let rows = figures.take(&subjects);
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].level, rows[0].counts.total, rows[0].counts.failed), (Level::Service, 4, 1));
        let echo = &rows[1];
        assert_eq!((&*echo.method, echo.counts), ("echo", Counts { total: 4, refused: 1, failed: 1 }));
        assert_eq!(Bands::of(&echo.latency), Bands { each: [1, 1, 0, 1, 1], slow: 2 });
        assert!((echo.mean_ms() - 345.0).abs() < 0.01, "{}", echo.mean_ms());
        assert!(figures.take(&subjects).iter().all(|row| row.counts.total == 0 && row.latency.count == 0));
        // What is gone is forgotten.
        figures.take(&[]);
        assert!(figures.known.is_empty());
    }

    #[test]
    fn bands_have_the_borders_they_name_within_a_percent() {
        for (ms, band) in [(49, 0), (51, 1), (99, 1), (101, 2), (199, 2), (202, 3), (499, 3), (504, 4)] {
            let histogram = crate::metrics::Histogram::default();
            histogram.record(Duration::from_millis(ms));
            let bands = Bands::of(&histogram.summary());
            assert_eq!(bands.each.iter().position(|n| *n == 1), Some(band), "{ms}: {bands:?}");
            assert_eq!(bands.slow, u64::from(ms > 200), "{ms}");
        }
    }
}
