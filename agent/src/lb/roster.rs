//! [`Roster`]: where the hot state of a set's endpoints is, so that a pick need not go through the endpoints.

use std::sync::Arc;

use crate::endpoint::{Endpoint, Hot, Slab};

/// Slabs told apart. A cluster has a few; only endpoints made one by one have more.
const SLABS: usize = 256;
/// Bits of a place that say which cell, the others which slab.
const CELL_BITS: u32 = 24;

/// Made with a set of endpoints, for the same indices.
pub struct Roster {
    places: Places,
    weights: Weights,
    /// A bit for each endpoint of weight 0; none when there is no such endpoint.
    weightless: Option<Box<[u64]>>,
    /// See [`Slab::limit`]: the bits of all slabs know of a limit that is this or lower.
    limit: usize,
}

enum Places {
    /// Index and cell are the same: endpoints that came together.
    Same(Arc<Slab>),
    /// Slab and cell by index, in one number.
    Packed(Box<[Arc<Slab>]>, Box<[u32]>),
    /// Only the endpoints know.
    Unknown,
}

enum Weights {
    Same(u32),
    Each(Box<[u32]>),
}

impl Roster {
    /// Of these endpoints.
    pub fn new(endpoints: &[Arc<Endpoint>]) -> Self {
        let first = endpoints.first().map_or(0, |e| e.weight);
        let is_same = endpoints.iter().all(|e| e.weight == first);
        let weights =
            if is_same { Weights::Same(first) } else { Weights::Each(endpoints.iter().map(|e| e.weight).collect()) };
        let has_weightless = endpoints.iter().any(|e| e.weight == 0);
        let weightless = has_weightless.then(|| {
            let mut bits = vec![0; endpoints.len().div_ceil(64)].into_boxed_slice();
            let zero = endpoints.iter().enumerate().filter(|(_, e)| e.weight == 0);
            zero.for_each(|(i, _)| bits[i / 64] |= 1 << (i % 64));
            bits
        });
        let limit = endpoints.iter().map(|e| e.hot.slab().limit() as usize).max().unwrap_or(usize::MAX);
        Self { places: Places::of(endpoints), weights, weightless, limit }
    }

    /// Whether nothing stands against endpoint `index`, neither that its health or a bar keeps calls from it nor
    /// that it has `max_in_flight` attempts. `false` says only that one has to look.
    #[inline]
    pub(super) fn is_plain(&self, index: usize, max_in_flight: usize) -> bool {
        let (slab, cell) = match &self.places {
            Places::Same(slab) => (slab, index),
            Places::Packed(slabs, places) => at(slabs, places[index]),
            Places::Unknown => return false,
        };
        // The bits know of the limit that the cluster has, which is the one that is asked for but in tests.
        slab.is_plain(cell) && (self.limit <= max_in_flight || (slab.hot(cell).in_flight() as usize) < max_in_flight)
    }

    /// The hot state of endpoint `index` of `endpoints`, which are those that it was made of.
    #[inline]
    pub(super) fn hot<'a>(&'a self, index: usize, endpoints: &'a [Arc<Endpoint>]) -> &'a Hot {
        match &self.places {
            Places::Same(slab) => slab.hot(index),
            Places::Packed(slabs, places) => {
                let (slab, cell) = at(slabs, places[index]);
                slab.hot(cell)
            }
            Places::Unknown => &endpoints[index].hot,
        }
    }

    /// The weight of endpoint `index`.
    #[inline]
    pub(super) fn weight(&self, index: usize) -> u32 {
        match &self.weights {
            Weights::Same(weight) => *weight,
            Weights::Each(weights) => weights[index],
        }
    }

    /// Whether endpoint `index` may be picked at all.
    #[inline]
    pub(super) fn is_weighed(&self, index: usize) -> bool {
        self.weightless.as_ref().is_none_or(|bits| bits[index / 64] & (1 << (index % 64)) == 0)
    }
}

#[inline]
fn at(slabs: &[Arc<Slab>], place: u32) -> (&Arc<Slab>, usize) {
    (&slabs[(place >> CELL_BITS) as usize], (place & ((1 << CELL_BITS) - 1)) as usize)
}

impl Places {
    fn of(endpoints: &[Arc<Endpoint>]) -> Self {
        let Some(first) = endpoints.first().map(|e| e.hot.slab()) else { return Self::Unknown };
        let mut slots = endpoints.iter().map(|e| &e.hot).enumerate();
        if slots.all(|(i, slot)| slot.at() == i && Arc::ptr_eq(slot.slab(), first)) {
            return Self::Same(first.clone());
        }
        let mut slabs: Vec<Arc<Slab>> = Vec::new();
        let mut places = Vec::with_capacity(endpoints.len());
        for slot in endpoints.iter().map(|e| &e.hot) {
            let known = slabs.iter().position(|slab| Arc::ptr_eq(slab, slot.slab()));
            let slab = known.unwrap_or_else(|| {
                slabs.push(slot.slab().clone());
                slabs.len() - 1
            });
            if slab >= SLABS || slot.at() >= 1 << CELL_BITS {
                return Self::Unknown;
            }
            places.push((slab as u32) << CELL_BITS | slot.at() as u32);
        }
        Self::Packed(slabs.into(), places.into())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{EndpointSet, testing::*},
        *,
    };
    use crate::{
        config,
        endpoint::{DialOptions, Slabs},
    };

    fn endpoint(slabs: &mut Slabs, port: u16, coming: usize) -> Arc<Endpoint> {
        let at = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let (eject, dial) = (config::Eject::default(), DialOptions::default());
        Arc::new(Endpoint::new_at(slabs.take(coming), at, Default::default(), 10, eject, dial))
    }

    /// Whatever the places, picks see what endpoints are.
    fn check(endpoints: Vec<Arc<Endpoint>>, is_as_expected: fn(&Places) -> bool) {
        let set = EndpointSet::new(1, by_name("random").picker(&endpoints), endpoints);
        assert!(is_as_expected(&Roster::new(&set.endpoints).places));
        let n = set.endpoints.len();
        let picked = |max| {
            let counts = (0..n * 60).filter_map(|_| set.pick(&[], max, None));
            counts.fold(vec![0; n], |mut counts, i| {
                counts[i] += 1;
                counts
            })
        };
        assert!(picked(8).iter().all(|c| *c > 0));
        eject(&set.endpoints[0]);
        set.endpoints[1].hot.set_in_flight(8);
        set.endpoints[2].bar.raise(std::time::Duration::from_secs(1000));
        let counts = picked(8);
        assert_eq!(counts[..3], [0; 3]);
        assert!(counts[3..].iter().all(|c| *c > 0));
        assert_eq!(picked(0), vec![0; n], "a limit below that of the cluster holds as well");
        assert!(picked(9)[1] > 0, "and one above it");
        set.endpoints[0].health.succeeded();
        set.endpoints[1].hot.set_in_flight(7);
        set.endpoints[2].bar.lower();
        assert!(picked(8).iter().all(|c| *c > 0), "and all come back");
    }

    #[test]
    fn picks_see_the_same_wherever_the_hot_state_is() {
        fastrand::seed(9);
        let mut slabs = Slabs::new(8);
        let together: Vec<_> = (0..8).map(|i| endpoint(&mut slabs, i, 8)).collect();
        check(together.clone(), |places| matches!(places, Places::Same(_)));
        let mut mixed = together;
        mixed.rotate_left(3);
        mixed.truncate(6);
        mixed.extend((20..26).map(|i| endpoint(&mut slabs, i, 1)));
        check(mixed, |places| matches!(places, Places::Packed(slabs, _) if slabs.len() == 2));
        check(endpoints(&[10; 5]), |places| matches!(places, Places::Packed(..)));
        check(endpoints(&[10; 300]), |places| matches!(places, Places::Unknown));
    }
}
