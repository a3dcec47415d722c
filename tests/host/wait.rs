//! Waiting for something to become true, with a deadline.

use std::time::{Duration, Instant, SystemTime};

/// How long an event may take on a crowded machine before it counts as lost.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `happened` is true; panics with `what` when [`PATIENCE`] is over.
#[track_caller]
pub fn until(what: &str, mut happened: impl FnMut() -> bool) {
    until_some(what, || happened().then_some(()));
}

/// Waits until `look` finds something and returns it; panics with `what` when [`PATIENCE`] is over.
#[track_caller]
pub fn until_some<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    match within(PATIENCE, look) {
        Some(found) => found,
        None => panic!("waited {PATIENCE:?} for: {what}"),
    }
}

/// Waits at most `limit` for `look` to find something.
pub fn within<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() > end {
            return None;
        }
        // Not a synchronisation: only how often we look.
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64
}
