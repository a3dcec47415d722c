//! Milliseconds that fit into an atomic.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

/// A moment before every use. An hour back, because a test's clock may stand a little behind the real one.
static EPOCH: LazyLock<Instant> = LazyLock::new(|| {
    let now = Instant::now();
    now.checked_sub(Duration::from_secs(3600)).unwrap_or(now)
});

/// Milliseconds since a moment that is the same for the whole process; never 0 after its first second.
pub(super) fn now_ms() -> u64 {
    tokio::time::Instant::now().into_std().saturating_duration_since(*EPOCH).as_millis() as u64
}
