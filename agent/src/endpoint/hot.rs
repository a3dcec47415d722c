//! What every pick looks at, of many endpoints side by side: a pick among ten thousand must not wait for memory.
//!
//! A cluster's endpoints have their [`Hot`] state in one [`Slab`], 32 bytes each, and one bit that says "nothing
//! stands against it". With ten thousand endpoints the bits are 1250 bytes, which stay in the innermost cache.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
};

use parking_lot::Mutex;

use super::Ewma;

/// What balancers compare.
#[derive(Debug, Default)]
#[repr(align(32))]
pub struct Hot {
    in_flight: AtomicU32,
    /// What latency to expect, for `p2c`.
    pub ewma: Ewma,
}

impl Hot {
    /// Attempts in flight.
    #[inline]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    fn reset(&self) {
        self.in_flight.store(0, Relaxed);
        self.ewma.forget();
    }
}

/// Hot state of several endpoints.
pub struct Slab {
    cells: Box<[Hot]>,
    /// A bit for each cell: 1 is surely eligible, 0 is "look closer". Cleared by whoever knows something against
    /// the endpoint, after having said so; set again by a look that finds nothing.
    plain: Box<[AtomicU64]>,
    /// In-flight limit that the bits know of.
    limit: u32,
    /// Cells nobody has, those to be given first at the end.
    free: Mutex<Vec<u32>>,
}

impl Slab {
    fn new(size: usize, limit: u32) -> Arc<Self> {
        Arc::new(Self {
            cells: (0..size).map(|_| Hot::default()).collect(),
            plain: (0..size.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            limit,
            free: Mutex::new((0..size as u32).rev().collect()),
        })
    }

    /// The state in cell `at`.
    #[inline]
    pub fn hot(&self, at: usize) -> &Hot {
        &self.cells[at]
    }

    /// Whether nothing at all stands against the endpoint in cell `at`: it is in rotation, not barred, and below
    /// [`Slab::limit`]. `false` says only that one has to look.
    #[inline]
    pub fn is_plain(&self, at: usize) -> bool {
        self.plain[at / 64].load(Relaxed) & (1 << (at % 64)) != 0
    }

    /// Attempts in flight from which on an endpoint is not plain.
    pub const fn limit(&self) -> u32 {
        self.limit
    }
}

/// An endpoint's place in a slab, its own until dropped.
pub struct Slot {
    slab: Arc<Slab>,
    at: u32,
}

impl Deref for Slot {
    type Target = Hot;

    #[inline]
    fn deref(&self) -> &Hot {
        self.slab.hot(self.at())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slab.free.lock().push(self.at);
    }
}

impl Slot {
    /// A place of its own, for endpoints that belong to no cluster.
    pub fn alone() -> Arc<Self> {
        Slabs::new(usize::MAX).take(1)
    }

    /// The slab.
    pub const fn slab(&self) -> &Arc<Slab> {
        &self.slab
    }

    /// Which of its cells.
    pub const fn at(&self) -> usize {
        self.at as usize
    }

    /// Counts an attempt that begins.
    pub fn begin(&self) {
        if self.in_flight.fetch_add(1, SeqCst) + 1 >= self.slab.limit {
            self.doubt();
        }
    }

    /// Counts one that ended.
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// Takes the number of attempts from whoever counts them elsewhere.
    pub fn set_in_flight(&self, attempts: u32) {
        self.in_flight.store(attempts, SeqCst);
        if attempts >= self.slab.limit {
            self.doubt();
        }
    }

    /// Something stands against the endpoint, or may: whoever picks looks closer from now on. To be called after
    /// it was written (`SeqCst`) what that is.
    pub fn doubt(&self) {
        self.word().fetch_and(!self.bit(), SeqCst);
    }

    /// Nothing stands against the endpoint as far as `is_clear` can see, which is asked before and after, and has to
    /// read `SeqCst`: of what is said in between either this or [`Slot::doubt`] has the last word.
    pub fn clear(&self, is_clear: impl Fn() -> bool) {
        let is_clear = || is_clear() && self.in_flight.load(SeqCst) < self.slab.limit;
        if is_clear() {
            self.word().fetch_or(self.bit(), SeqCst);
            if !is_clear() {
                self.doubt();
            }
        }
    }

    fn word(&self) -> &AtomicU64 {
        &self.slab.plain[self.at() / 64]
    }

    const fn bit(&self) -> u64 {
        1 << (self.at % 64)
    }
}

/// The slabs of a cluster. What its endpoints have at first lies in one; each further one is as large as all before
/// it, so they are few however often the list changes.
pub struct Slabs {
    limit: u32,
    slabs: Vec<Arc<Slab>>,
}

impl Slabs {
    /// None yet, for endpoints that take `max_in_flight` attempts at once.
    pub fn new(max_in_flight: usize) -> Self {
        Self { limit: u32::try_from(max_in_flight).unwrap_or(u32::MAX), slabs: Vec::new() }
    }

    /// A place that nobody has, its state as new. `coming` is how many may be asked for now, this one included.
    pub fn take(&mut self, coming: usize) -> Arc<Slot> {
        let found = self.slabs.iter().find_map(|slab| slab.free.lock().pop().map(|at| (slab.clone(), at)));
        let (slab, at) = found.unwrap_or_else(|| {
            let all: usize = self.slabs.iter().map(|slab| slab.cells.len()).sum();
            let slab = Slab::new(coming.max(all).max(1), self.limit);
            let at = slab.free.lock().pop().expect("a new slab has a cell");
            self.slabs.push(slab.clone());
            (slab, at)
        });
        let slot = Slot { slab, at };
        slot.reset();
        slot.doubt();
        Arc::new(slot)
    }

    /// Lets slabs go in which nobody has a place.
    pub fn shrink(&mut self) {
        self.slabs.retain(|slab| slab.free.lock().len() < slab.cells.len());
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicBool, time::Duration};

    use super::*;

    #[test]
    fn places_are_given_side_by_side_and_again_as_new() {
        assert_eq!(size_of::<Hot>(), 32);
        let mut slabs = Slabs::new(100);
        let mut slots: Vec<_> = (0..70).map(|i| slabs.take(70 - i)).collect();
        assert!(slots.iter().enumerate().all(|(i, slot)| slot.at() == i && Arc::ptr_eq(slot.slab(), slots[0].slab())));
        slots[5].begin();
        slots[5].ewma.observe(Duration::from_millis(5));
        slots[5].clear(|| true);
        assert!(slots[5].slab().is_plain(5));
        slots.remove(5);
        let again = slabs.take(1);
        assert_eq!((again.at(), again.in_flight(), again.ewma.expected_ns()), (5, 0, 0));
        assert!(!again.slab().is_plain(5), "nobody has looked yet");
        let more: Vec<_> = (0..71).map(|_| slabs.take(1)).collect();
        assert_eq!(slabs.slabs.iter().map(|slab| slab.cells.len()).collect::<Vec<_>>(), [70, 70, 140]);
        drop((slots, again));
        slabs.shrink();
        assert_eq!(slabs.slabs.len(), 2, "one is used by nobody");
        drop(more);
    }

    #[test]
    fn what_was_said_against_it_stands() {
        let slot = Slabs::new(2).take(1);
        slot.clear(|| false);
        assert!(!slot.slab().is_plain(0));
        slot.clear(|| true);
        assert!(slot.slab().is_plain(0));
        slot.begin();
        assert!(slot.slab().is_plain(0));
        slot.begin();
        assert!(!slot.slab().is_plain(0), "at its limit");
        slot.clear(|| true);
        assert!(!slot.slab().is_plain(0), "still is");
        slot.end();
        slot.clear(|| true);
        assert!(slot.slab().is_plain(0));
        slot.set_in_flight(7);
        assert!(!slot.slab().is_plain(0));
        slot.set_in_flight(0);

        // Somebody says it between the two looks.
        let out = AtomicBool::new(false);
        let looks = AtomicU32::new(0);
        slot.clear(|| {
            if looks.fetch_add(1, SeqCst) == 1 {
                out.store(true, SeqCst);
            }
            !out.load(SeqCst)
        });
        assert!(!slot.slab().is_plain(0));
    }

    #[test]
    fn saying_and_looking_at_once_never_leave_it_plain() {
        let slot = Slot::alone();
        for _ in 0..2_000 {
            let out = AtomicBool::new(false);
            slot.clear(|| true);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    out.store(true, SeqCst);
                    slot.doubt();
                });
                scope.spawn(|| slot.clear(|| !out.load(SeqCst)));
            });
            assert!(!slot.slab().is_plain(0));
        }
    }
}
