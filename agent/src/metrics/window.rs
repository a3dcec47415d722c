//! What happened lately: differences between counters now and some seconds ago.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use super::{ServiceStats, Summary};

/// Pause between samples.
pub const STEP: Duration = Duration::from_secs(2);
/// Samples kept: the window is `STEP` times as many long.
const KEPT: usize = 5;

/// Something with counters that only grow.
pub trait Counted: Send + Sync + 'static {
    /// Calls begun and ended. While they stand still the rest does too, and is not copied.
    fn calls(&self) -> (u64, u64);
    /// Of those that ended, the ones that ended badly.
    fn failed(&self) -> u64;
    /// Time of a call.
    fn latency(&self) -> Summary;
}

impl Counted for ServiceStats {
    fn calls(&self) -> (u64, u64) {
        let ended = self.succeeded.load(Relaxed) + self.failed.load(Relaxed);
        (self.started.load(Relaxed), ended)
    }

    fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    fn latency(&self) -> Summary {
        self.latency.summary()
    }
}

/// Counters at one moment.
#[derive(Clone, Debug, Default)]
struct Point {
    started: u64,
    ended: u64,
    failed: u64,
    latency: Summary,
}

impl Point {
    fn of(counted: &dyn Counted) -> Self {
        let (started, ended) = counted.calls();
        Self { started, ended, failed: counted.failed(), latency: counted.latency() }
    }
}

/// What happened within a window.
#[derive(Clone, Debug, PartialEq)]
pub struct Lately {
    /// Calls begun per second.
    pub rate: f64,
    /// Share of calls that ended well, 0 to 1; `None` when none ended.
    pub success: Option<f64>,
    /// Times of the calls that ended.
    pub latency: Summary,
}

/// The last few samples of everything that is counted.
#[derive(Default)]
pub struct Windows {
    samples: VecDeque<Sample>,
}

struct Sample {
    at: Instant,
    points: HashMap<usize, Kept>,
}

#[derive(Clone)]
struct Kept {
    // Keeps the address, which is the key, from being used again.
    _counted: Arc<dyn Counted>,
    point: Arc<Point>,
}

fn key(counted: &Arc<dyn Counted>) -> usize {
    Arc::as_ptr(counted).cast::<()>() as usize
}

impl Windows {
    /// Takes a sample of `all`; call it every [`STEP`]. What is no longer in `all` is forgotten.
    pub fn sample(&mut self, all: impl Iterator<Item = Arc<dyn Counted>>) {
        let last = self.samples.back();
        let points = all
            .map(|counted| {
                let key = key(&counted);
                let before = last.and_then(|s| s.points.get(&key));
                let kept = match before {
                    Some(same) if (same.point.started, same.point.ended) == counted.calls() => same.clone(),
                    _ => Kept { point: Arc::new(Point::of(&*counted)), _counted: counted },
                };
                (key, kept)
            })
            .collect();
        if self.samples.len() == KEPT {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { at: Instant::now(), points });
    }

    /// Length of the window now; zero before the first sample.
    pub fn length(&self) -> Duration {
        self.samples.front().map_or(Duration::ZERO, |s| s.at.elapsed())
    }

    /// What happened to `counted` within the window. What came into being meanwhile began at zero.
    pub fn lately(&self, counted: &Arc<dyn Counted>) -> Lately {
        let now = Point::of(&**counted);
        let nothing = Arc::default();
        let before = self.samples.front().and_then(|s| s.points.get(&key(counted)));
        let before = before.map_or(&nothing, |kept| &kept.point);
        // Within the first second a single call would look like a storm.
        let seconds = self.length().as_secs_f64().max(1.0);
        let ended = now.ended.saturating_sub(before.ended);
        let failed = now.failed.saturating_sub(before.failed).min(ended);
        Lately {
            rate: now.started.saturating_sub(before.started) as f64 / seconds,
            success: (ended > 0).then(|| (ended - failed) as f64 / ended as f64),
            latency: now.latency.since(&before.latency),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_window_slides() {
        let stats = Arc::new(ServiceStats::default());
        let counted: Arc<dyn Counted> = stats.clone();
        let mut windows = Windows::default();
        let call = |ms, good: bool| {
            stats.started.fetch_add(1, Relaxed);
            if good { &stats.succeeded } else { &stats.failed }.fetch_add(1, Relaxed);
            stats.latency.record(Duration::from_millis(ms));
        };
        windows.sample(std::iter::once(counted.clone()));
        for i in 0..20 {
            call(100, i % 2 == 0);
        }
        tokio::time::advance(STEP).await;
        let lately = windows.lately(&counted);
        assert_eq!((lately.rate, lately.success), (10.0, Some(0.5)));
        assert_eq!(lately.latency.count, 20);
        for _ in 0..KEPT {
            windows.sample(std::iter::once(counted.clone()));
            tokio::time::advance(STEP).await;
        }
        assert_eq!(windows.length(), STEP * KEPT as u32);
        let lately = windows.lately(&counted);
        assert_eq!((lately.rate, lately.success, lately.latency.count), (0.0, None, 0));
        call(1, true);
        let lately = windows.lately(&counted);
        assert_eq!((lately.rate, lately.success), (0.1, Some(1.0)));

        let newcomer = Arc::new(ServiceStats::default());
        newcomer.started.fetch_add(5, Relaxed);
        let newcomer: Arc<dyn Counted> = newcomer;
        assert_eq!(windows.lately(&newcomer).rate, 0.5, "it began at zero within the window");
    }
}
