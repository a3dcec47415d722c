//! [`Budget`]: how many further attempts a cluster's calls may cost altogether.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use anyhow::ensure;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::metrics::ServiceStats;

/// How long a right to retry is kept. Without an end, a quiet hour would pay for a storm.
const KEPT: Duration = Duration::from_secs(10);

/// Options of strategies that have a budget.
#[derive(Clone, Copy, Debug, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Options {
    /// Further attempts for a hundred calls.
    budget_percent: f64,
    /// Further attempts a second besides, so that a service with few calls can retry at all.
    budget_per_second: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self { budget_percent: 20.0, budget_per_second: 10.0 }
    }
}

/// Pays for retries: a share of the calls and a few a second. All calls of the cluster pay in, whether they
/// fail or not; they do it by being counted, so a call that goes well costs nothing here.
pub(super) struct Budget {
    options: Options,
    state: Mutex<State>,
}

struct State {
    level: f64,
    /// Calls that have paid in.
    calls: u64,
    at: Instant,
}

impl Options {
    pub(super) fn check(self) -> anyhow::Result<Self> {
        for (name, value) in [("budget_percent", self.budget_percent), ("budget_per_second", self.budget_per_second)] {
            ensure!((0.0..=1e6).contains(&value), "{name}: {value} is out of range; write 0 or more, such as 20");
        }
        Ok(self)
    }
}

impl Budget {
    /// One second's worth to begin with.
    pub(super) fn new(options: Options) -> Self {
        let state = State { level: options.budget_per_second, calls: 0, at: Instant::now() };
        Self { options, state: Mutex::new(state) }
    }

    /// Takes one further attempt out, if there is one.
    pub(super) fn take(&self, stats: &ServiceStats) -> bool {
        let calls = stats.started.load(Relaxed);
        let now = Instant::now();
        let mut state = self.state.lock();
        let elapsed = now.saturating_duration_since(state.at).as_secs_f64();
        // What was paid in long ago fades; of a longer pause only the last part counts.
        let kept = KEPT.as_secs_f64();
        let recent = if elapsed > kept { kept / elapsed } else { 1.0 };
        let paid = calls.saturating_sub(state.calls) as f64 * recent * self.options.budget_percent / 100.0;
        state.level *= (1.0 - elapsed / kept).max(0.0);
        state.level += paid + self.options.budget_per_second * elapsed.min(kept);
        (state.calls, state.at) = (calls, now);
        if state.level < 1.0 {
            return false;
        }
        state.level -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_share_of_the_calls_and_a_few_a_second() {
        let budget = Budget::new(Options::default());
        let stats = ServiceStats::default();
        let mut taken = 0;
        for _ in 0..60 {
            for _ in 0..100 {
                stats.started.fetch_add(10, Relaxed);
                taken += (0..10).filter(|_| budget.take(&stats)).count();
                tokio::time::advance(Duration::from_millis(10)).await;
            }
        }
        // 60,000 calls in 60 seconds, each wants a retry.
        let most = 60_000 / 5 + 60 * 10 + 10;
        assert!(taken <= most && taken > most * 95 / 100, "{taken} of {most}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_hour_pays_for_nothing() {
        let budget = Budget::new(Options::default());
        let stats = ServiceStats::default();
        stats.started.fetch_add(3600 * 100, Relaxed);
        tokio::time::advance(Duration::from_secs(3600)).await;
        let taken = (0..10_000).filter(|_| budget.take(&stats)).count();
        assert_eq!(taken, 300, "10 s of 100 calls a second and 10 a second");
    }

    #[tokio::test(start_paused = true)]
    async fn none_is_none_and_mistakes_are_named() {
        let none = Options { budget_percent: 0.0, budget_per_second: 0.0 };
        let stats = ServiceStats::default();
        stats.started.fetch_add(1000, Relaxed);
        assert!(!Budget::new(none.check().unwrap()).take(&stats));
        let wrong = Options { budget_percent: -1.0, ..none };
        assert!(wrong.check().unwrap_err().to_string().starts_with("budget_percent: -1 is out of range; write"));
    }
}
