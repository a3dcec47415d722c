//! [`Subset`]: some endpoints of a set with a picker of their own, for balancers made of others.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{LoadBalancer, PickCx, Picker, Roster};
use crate::endpoint::Endpoint;

/// Some endpoints of a set, and the picker made for them. Indices go in and come out as the whole set
/// has them.
pub struct Subset {
    endpoints: Box<[Arc<Endpoint>]>,
    roster: Roster,
    /// Where `endpoints` stand in the whole set, ascending.
    indices: Box<[u32]>,
    picker: Box<dyn Picker>,
}

impl Subset {
    /// The `endpoints` of which `keep` says yes, picked by `lb`.
    pub fn new(lb: &dyn LoadBalancer, endpoints: &[Arc<Endpoint>], keep: impl Fn(&Endpoint) -> bool) -> Self {
        let kept = endpoints.iter().enumerate().filter(|(_, e)| keep(e));
        let (indices, endpoints): (Vec<u32>, Vec<_>) = kept.map(|(i, e)| (i as u32, e.clone())).unzip();
        let (picker, roster) = (lb.picker(&endpoints), Roster::new(&endpoints));
        Self { picker, roster, endpoints: endpoints.into(), indices: indices.into() }
    }

    /// Its endpoints.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// Whether the `nth` of its endpoints is in rotation.
    pub fn is_up(&self, nth: usize) -> bool {
        self.roster.is_plain(nth, usize::MAX) || self.endpoints[nth].health.is_available()
    }

    /// Whether the endpoint that is `index` in the whole set is one of these.
    pub fn contains(&self, index: usize) -> bool {
        self.position(index).is_some()
    }

    /// Picks one of these; `cx` is of the whole set, and so is the index that comes out.
    pub fn pick(&self, cx: &PickCx<'_>) -> Option<usize> {
        if self.endpoints.is_empty() {
            return None;
        }
        let tried: SmallVec<[usize; 8]> = cx.tried.iter().filter_map(|&i| self.position(i)).collect();
        let inner = PickCx { endpoints: &self.endpoints, roster: &self.roster, tried: &tried, ..*cx };
        self.picker.pick(&inner).map(|i| self.indices[i] as usize)
    }

    fn position(&self, index: usize) -> Option<usize> {
        self.indices.binary_search(&(index as u32)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{EndpointSet, testing::*},
        *,
    };

    #[test]
    fn indices_are_those_of_the_whole_set() {
        let endpoints = endpoints(&[10, 1, 10, 1, 10]);
        let subset = Subset::new(&*by_name("round_robin"), &endpoints, |e| e.weight == 10);
        assert_eq!(subset.endpoints().len(), 3);
        assert!(subset.contains(2) && !subset.contains(3));
        let set = EndpointSet::new(1, by_name("random").picker(&endpoints), endpoints);
        let mut tried = Vec::new();
        while let Some(index) = subset.pick(&set.cx(&tried, usize::MAX, None)) {
            tried.push(index);
        }
        tried.sort_unstable();
        assert_eq!(tried, [0, 2, 4]);
    }
}
