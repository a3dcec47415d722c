//! How long a registry is left alone after a failure.

use std::time::Duration;

const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// Growing pauses with jitter, so that a thousand agents do not come back at one moment: 0.1 s, doubled
/// with every further failure up to 10 s, each between half and all of that.
#[derive(Clone, Debug)]
pub(super) struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(SHORTEST)
    }
}

impl Pause {
    /// The next pause.
    pub fn next(&mut self) -> Duration {
        let full = self.0;
        self.0 = (full * 2).min(LONGEST);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Begins with the shortest again: it worked.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Returns after `pause`, or never when there is none.
pub(super) async fn after(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_start_again() {
        let mut pause = Pause::default();
        for full in [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
            let (full, next) = (Duration::from_millis(full), pause.next());
            assert!(full / 2 <= next && next <= full, "{next:?} of {full:?}");
        }
        pause.reset();
        assert!(pause.next() <= SHORTEST);
    }
}
