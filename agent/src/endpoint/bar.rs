//! [`Bar`]: keeps calls from an endpoint for a while, set by filters.

use std::{
    sync::{
        Arc, Weak,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use parking_lot::Mutex;

use super::{Slot, clock::now_ms};

/// Down most of the time, when a look costs one load. While it is up, balancers pass the endpoint over; once
/// its time is over, calls come through again until someone raises it anew.
#[derive(Default)]
pub struct Bar {
    /// Milliseconds of the agent's clock; 0 is down.
    until: AtomicU64,
    /// Failures in a row, for whoever raises it.
    pub failures: AtomicU32,
    /// Those that it keeps calls from.
    kept: Mutex<Vec<Weak<Slot>>>,
}

impl Bar {
    /// From now on it is known of the endpoint that has `slot` whether this bar is up.
    pub fn keep(&self, slot: &Arc<Slot>) {
        let mut kept = self.kept.lock();
        if kept.iter().any(|known| known.as_ptr() == Arc::as_ptr(slot)) {
            return;
        }
        // Grows by doubling: looked through only when it would have to grow.
        if kept.len() == kept.capacity() {
            kept.retain(|slot| slot.strong_count() > 0);
            let more = kept.len().max(1);
            kept.reserve_exact(more);
        }
        kept.push(Arc::downgrade(slot));
        slot.doubt();
    }

    /// Whether the endpoint is to be passed over.
    pub fn is_up(&self) -> bool {
        let until = self.until.load(Relaxed);
        until != 0 && now_ms() < until
    }

    /// Whether it was raised and not lowered since, its time over or not.
    pub fn is_set(&self) -> bool {
        self.until.load(SeqCst) != 0
    }

    /// Up for `time` from now.
    pub fn raise(&self, time: Duration) {
        self.until.store((now_ms() + time.as_millis() as u64).max(1), SeqCst);
        self.kept.lock().iter().filter_map(Weak::upgrade).for_each(|slot| slot.doubt());
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

    #[test]
    fn those_it_keeps_calls_from_are_looked_at_again() {
        let (bar, slots) = (Bar::default(), [Slot::alone(), Slot::alone()]);
        for slot in &slots {
            bar.keep(slot);
            slot.clear(|| !bar.is_set());
            assert!(slot.slab().is_plain(0));
        }
        bar.raise(Duration::ZERO);
        assert!(slots.iter().all(|slot| !slot.slab().is_plain(0)));
        slots[0].clear(|| !bar.is_set());
        assert!(!slots[0].slab().is_plain(0), "its time is over, yet one who asks may be let pass");
        bar.lower();
        slots[0].clear(|| !bar.is_set());
        assert!(slots[0].slab().is_plain(0));

        for _ in 0..1000 {
            bar.keep(&Slot::alone());
        }
        assert!(bar.kept.lock().len() <= 8, "those that are gone are forgotten");
    }

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
