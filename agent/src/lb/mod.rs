//! Picking an endpoint: work is done when the set changes, so that a pick is a few loads.

mod p2c;
mod random;
mod round_robin;
mod weighted;

use std::sync::Arc;

use crate::{endpoint::Endpoint, kind::Kind};

/// Load balancers by name.
pub const KINDS: &[Kind<dyn LoadBalancer>] = &[
    Kind { name: "p2c", build: p2c::build },
    Kind { name: "random", build: random::build },
    Kind { name: "round_robin", build: round_robin::build },
    Kind { name: "weighted", build: weighted::build },
];

/// Makes a picker for a set of endpoints.
pub trait LoadBalancer: Send + Sync + 'static {
    /// Prepares picking from `endpoints`. Called when the set changes, off the data path.
    fn picker(&self, endpoints: &[Arc<Endpoint>]) -> Box<dyn Picker>;
}

/// Picks one endpoint per attempt: no lock, no allocation, never waits.
pub trait Picker: Send + Sync + 'static {
    /// An index into `cx.endpoints` that is [`PickCx::eligible`], or `None` when there is none.
    fn pick(&self, cx: &PickCx<'_>) -> Option<usize>;
}

/// What a picker may look at.
pub struct PickCx<'a> {
    /// The set the picker was made for, in the same order.
    pub endpoints: &'a [Arc<Endpoint>],
    /// Endpoints this call has tried already.
    pub tried: &'a [usize],
    /// In-flight limit of one endpoint.
    pub max_in_flight: usize,
}

impl PickCx<'_> {
    /// Whether endpoint `index` may take this attempt.
    pub fn eligible(&self, index: usize) -> bool {
        self.endpoints[index].is_available() && self.possible(index)
    }

    /// Whether it could if its health were no matter: weighed at all, not tried yet, not at its limit.
    fn possible(&self, index: usize) -> bool {
        let endpoint = &self.endpoints[index];
        endpoint.weight > 0 && !self.tried.contains(&index) && (endpoint.in_flight() as usize) < self.max_in_flight
    }

    /// The first eligible index from `start` on, wrapping around.
    pub fn first_eligible_from(&self, start: usize) -> Option<usize> {
        let n = self.endpoints.len();
        (0..n).map(|i| (start + i) % n).find(|&i| self.eligible(i))
    }
}

/// Endpoints and the picker made for them, swapped as one value, so that an index is always valid.
pub struct EndpointSet {
    /// Revision of the snapshot it was made from.
    pub revision: u64,
    /// All endpoints, also those that are out.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Picks among `endpoints`.
    pub picker: Box<dyn Picker>,
}

impl EndpointSet {
    /// Picks for one attempt. When nothing is eligible the least bad untried endpoint is taken rather
    /// than none: a wrong health verdict on all of them must not stop a service that works.
    /// `None` only when every endpoint was tried, is weighed 0 or is at its in-flight limit.
    pub fn pick(&self, tried: &[usize], max_in_flight: usize) -> Option<usize> {
        let cx = PickCx { endpoints: &self.endpoints, tried, max_in_flight };
        let possible = || (0..self.endpoints.len()).filter(|&i| cx.possible(i));
        self.picker.pick(&cx).or_else(|| possible().min_by_key(|&i| self.endpoints[i].health.badness()))
    }

    /// Whether [`EndpointSet::pick`] would find one. Asks without picking, which would move a round robin on.
    pub fn has_one(&self, tried: &[usize], max_in_flight: usize) -> bool {
        let cx = PickCx { endpoints: &self.endpoints, tried, max_in_flight };
        (0..self.endpoints.len()).any(|i| cx.possible(i))
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::{config, endpoint::DialOptions};

    /// Endpoints 127.0.0.1:1.. with these weights.
    pub(crate) fn endpoints(weights: &[u32]) -> Vec<Arc<Endpoint>> {
        let at = |i: usize| std::net::SocketAddr::from(([127, 0, 0, 1], i as u16 + 1));
        let new = |(i, w): (usize, &u32)| {
            Arc::new(Endpoint::new(at(i), Default::default(), *w, config::Eject::default(), DialOptions::default()))
        };
        weights.iter().enumerate().map(new).collect()
    }

    /// A set of them, picked by `lb`.
    pub(crate) fn set(lb: &dyn LoadBalancer, weights: &[u32]) -> EndpointSet {
        let endpoints = endpoints(weights);
        EndpointSet { revision: 1, picker: lb.picker(&endpoints), endpoints }
    }

    /// How often each endpoint is picked in `n` first attempts.
    pub(crate) fn shares(set: &EndpointSet, n: usize) -> Vec<usize> {
        let mut counts = vec![0; set.endpoints.len()];
        for _ in 0..n {
            counts[set.pick(&[], usize::MAX).unwrap()] += 1;
        }
        counts
    }

    /// Puts an endpoint out of rotation.
    pub(crate) fn eject(endpoint: &Endpoint) {
        for _ in 0..100 {
            endpoint.health.connect_failed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};

    #[test]
    fn every_kind_skips_what_is_out_and_falls_back_to_the_least_bad() {
        for kind in KINDS {
            let lb = (kind.build)(&crate::kind::Value::Null, &Default::default()).unwrap();
            let set = set(&*lb, &[10, 10, 10, 0]);
            eject(&set.endpoints[1]);
            let counts = shares(&set, 3000);
            assert_eq!((counts[1], counts[3]), (0, 0), "{}: {counts:?}", kind.name);
            assert!(counts[0] > 1000 && counts[2] > 1000, "{}: {counts:?}", kind.name);

            assert_eq!(set.pick(&[0], usize::MAX), Some(2), "{}", kind.name);
            eject(&set.endpoints[0]);
            eject(&set.endpoints[2]);
            assert!(set.pick(&[], usize::MAX).is_some(), "{}: all out, yet one is tried", kind.name);
            assert_eq!(set.pick(&[0, 1, 2], usize::MAX), None, "{}", kind.name);
        }
    }
}
