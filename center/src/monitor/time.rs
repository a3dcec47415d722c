//! Which window a moment belongs to: counted by a clock that nobody sets, shown as time of day.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use tokio::time::Instant;

use crate::clock;

/// A difference that is no drift: somebody has set the clock.
const JUMP_MS: u64 = 1_500;

/// Milliseconds since 1970 at the start and the time that went by since. When the time of day jumps, windows go on
/// without a gap or an overlap, and are shown at the new time.
#[derive(Debug)]
pub(super) struct Time {
    start: Instant,
    start_ms: u64,
    offset_ms: AtomicI64,
}

impl Time {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), start_ms: clock::now_ms(), offset_ms: AtomicI64::new(0) }
    }

    /// Now, for windows.
    pub(super) fn now(&self) -> u64 {
        let since = self.start.elapsed().as_millis();
        self.start_ms.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }

    /// What is added to a moment of windows to get the time of day. Stays the same while no clock jumps.
    pub(super) fn offset(&self) -> i64 {
        let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        let is = signed(clock::now_ms()).saturating_sub(signed(self.now()));
        let was = self.offset_ms.load(Relaxed);
        if is.abs_diff(was) <= JUMP_MS {
            return was;
        }
        self.offset_ms.store(is, Relaxed);
        is
    }
}
