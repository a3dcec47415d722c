//! Guards: whether calls go as well as a command demands of them.

use model::center::{Figures, Guard, Histogram};

/// Window when a guard names none, milliseconds: what agents' figures of "lately" are.
pub(super) const WINDOW_MS: u64 = 10_000;
/// Calls below which a window is not judged, when a guard names none.
const MIN_CALLS: u64 = 20;

/// Calls of one window.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    times: Histogram,
    failed: f64,
}

/// What a guard says of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All is well.
    Holds,
    /// Too few calls to say.
    TooFew,
    /// It is not; says what was seen and what was demanded.
    Broken(String),
}

impl Seen {
    /// Adds calls: their times, and figures of the same calls.
    pub(super) fn add(&mut self, times: &Histogram, figures: &Figures) {
        self.failed += times.total() as f64 * (1.0 - figures.success.unwrap_or(1.0));
        self.times.merge(times);
    }

    /// Adds what another window saw.
    pub(super) fn merge(&mut self, other: &Self) {
        self.failed += other.failed;
        self.times.merge(&other.times);
    }

    /// Judges the calls of `whom`.
    pub(super) fn judge(&self, guard: &Guard, whom: &str) -> Verdict {
        let calls = self.times.total();
        if calls == 0 || calls < guard.min_calls.unwrap_or(MIN_CALLS) {
            return Verdict::TooFew;
        }
        let mut broken = Vec::new();
        let errors = self.failed / calls as f64 * 100.0;
        if let Some(bound) = guard.error_percent.filter(|bound| errors > *bound) {
            broken.push(format!("{errors:.1} % failed, over {bound} %"));
        }
        if let (Some(bound), Some(p99)) = (guard.p99_ms, self.times.quantile_ms(0.99))
            && p99 > bound
        {
            broken.push(format!("99 % took up to {p99:.1} ms, over {bound} ms"));
        }
        if broken.is_empty() {
            return Verdict::Holds;
        }
        Verdict::Broken(format!("of {calls} calls to {whom} {}", broken.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold_for_enough_calls() {
        let seen = |calls: u64, ms: u64, success: f64| {
            let (mut seen, mut times) = (Seen::default(), Histogram::default());
            times.add(ms * 1000, calls);
            seen.add(&times, &Figures { success: Some(success), ..Figures::default() });
            seen
        };
        let guard = Guard { p99_ms: Some(50.0), error_percent: Some(1.0), ..Guard::default() };
        assert_eq!(seen(100, 10, 1.0).judge(&guard, "s"), Verdict::Holds);
        assert_eq!(seen(19, 900, 0.0).judge(&guard, "s"), Verdict::TooFew);
        assert_eq!(seen(0, 0, 1.0).judge(&Guard { min_calls: Some(0), ..guard.clone() }, "s"), Verdict::TooFew);
        let Verdict::Broken(why) = seen(100, 80, 0.9).judge(&guard, "s") else { panic!("it is broken") };
        assert!(why.starts_with("of 100 calls to s 10.0 % failed, over 1 %, 99 % took up to 8"), "{why}");
        let mut both = seen(100, 10, 0.97);
        assert!(matches!(both.judge(&guard, "s"), Verdict::Broken(_)));
        both.merge(&seen(300, 10, 1.0));
        assert_eq!(both.judge(&guard, "s"), Verdict::Holds, "3 of 400");
    }
}
