//! [`Bar`]: keeps calls from an endpoint for a while, set by filters.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

/// Down most of the time, when a look costs one load. While it is up, balancers pass the endpoint over; once
/// its time is over, calls come through again until someone raises it anew.
#[derive(Debug, Default)]
pub struct Bar {
    /// Milliseconds since [`EPOCH`] plus one; 0 is down.
    until: AtomicU64,
    /// Failures in a row, for whoever raises it.
    pub failures: AtomicU32,
}

/// A moment before every use, so that times fit into an atomic.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

fn now_ms() -> u64 {
    EPOCH.elapsed().as_millis() as u64 + 1
}

impl Bar {
    /// Whether the endpoint is to be passed over.
    pub fn is_up(&self) -> bool {
        let until = self.until.load(Relaxed);
        until != 0 && now_ms() < until
    }

    /// Whether it was raised and not lowered since, its time over or not.
    pub fn is_set(&self) -> bool {
        self.until.load(Relaxed) != 0
    }

    /// Up for `time` from now.
    pub fn raise(&self, time: Duration) {
        // Touched first: the epoch must not come after a moment that counts.
        self.until.store(now_ms() + time.as_millis() as u64, Relaxed);
    }

    /// Once the time is over: up for `time` again, and `true` for exactly one of all who ask.
    pub fn pass_one(&self, time: Duration) -> bool {
        let until = self.until.load(Relaxed);
        let now = now_ms();
        until != 0
            && now >= until
            && self.until.compare_exchange(until, now + time.as_millis() as u64, Relaxed, Relaxed).is_ok()
    }

    /// Down.
    pub fn lower(&self) {
        if self.is_set() {
            self.until.store(0, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_passes_each_time() {
        let bar = Bar::default();
        assert!(!bar.is_up() && !bar.is_set() && !bar.pass_one(Duration::from_secs(1)));
        bar.raise(Duration::from_secs(10));
        assert!(bar.is_up() && !bar.pass_one(Duration::from_secs(10)));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(!bar.is_up() && bar.is_set());
        let passed = (0..5).filter(|_| bar.pass_one(Duration::from_secs(10))).count();
        assert_eq!(passed, 1);
        assert!(bar.is_up());
        bar.lower();
        assert!(!bar.is_up() && !bar.is_set());
    }
}
