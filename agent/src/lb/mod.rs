//! Picking an endpoint: work is done when the set changes, so that a pick is a few loads.

mod active_weight;
mod canary;
mod configurable_weight;
mod consistent_hash;
mod groups;
mod local_first;
mod p2c;
mod random;
mod roster;
mod round_robin;
mod subset;
mod weighted;
mod zone_first;

use std::sync::Arc;

use anyhow::anyhow;

pub use self::{canary::Canaried, groups::grouped, roster::Roster, subset::Subset};
use crate::{
    call::Request,
    endpoint::{Endpoint, Hot},
    kind::{self, BuildCx, Kind, Value},
};

/// Load balancers by name.
pub const KINDS: &[Kind<dyn LoadBalancer>] = &[
    Kind { name: "active_weight", build: active_weight::build },
    Kind { name: "configurable_weight", build: configurable_weight::build },
    Kind { name: "consistent_hash", build: consistent_hash::build },
    Kind { name: "local_first", build: local_first::build },
    Kind { name: "p2c", build: p2c::build },
    Kind { name: "random", build: random::build },
    Kind { name: "round_robin", build: round_robin::build },
    Kind { name: "weighted", build: weighted::build },
    Kind { name: "zone_first", build: zone_first::build },
];

/// The balancer that an option `then` names, `p2c` when it is absent.
fn then(value: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn LoadBalancer>> {
    let (name, options) = match value {
        Value::Null => ("p2c", &Value::Null),
        Value::String(name) => (name.as_str(), &Value::Null),
        Value::Mapping(one) if one.len() == 1 => {
            let (name, options) = one.iter().next().expect("just counted");
            (name.as_str().unwrap_or_default(), options)
        }
        _ => return Err(anyhow!("then: is not the name of a balancer; write `then: p2c`")),
    };
    kind::build("load balancer", KINDS, name, options, cx).map_err(|error| anyhow!("then: {error}"))
}

/// Makes a picker for a set of endpoints.
pub trait LoadBalancer: Send + Sync + 'static {
    /// Prepares picking from `endpoints`. Called when the set changes, off the data path.
    fn picker(&self, endpoints: &[Arc<Endpoint>]) -> Box<dyn Picker>;

    /// What decides where `req` goes, for balancers that send calls with something in common to the same
    /// endpoint. Asked once per call, and handed to [`Picker::pick`] in [`PickCx::hash`].
    fn hash(&self, _req: &Request) -> Option<u64> {
        None
    }
}

/// Picks one endpoint per attempt: no lock, no allocation, never waits.
pub trait Picker: Send + Sync + 'static {
    /// An index into `cx.endpoints` that is [`PickCx::eligible`], or `None` when there is none.
    fn pick(&self, cx: &PickCx<'_>) -> Option<usize>;

    /// Why endpoint `index`, which was eligible, was not picked just now, for operators.
    fn passed_over(&self, _cx: &PickCx<'_>, _index: usize) -> &'static str {
        "it was another's turn"
    }
}

/// What a picker may look at.
pub struct PickCx<'a> {
    /// The set the picker was made for, in the same order.
    pub endpoints: &'a [Arc<Endpoint>],
    /// Made of the same endpoints.
    pub roster: &'a Roster,
    /// Endpoints this call has tried already.
    pub tried: &'a [usize],
    /// In-flight limit of one endpoint.
    pub max_in_flight: usize,
    /// What [`LoadBalancer::hash`] said of the call.
    pub hash: Option<u64>,
    /// See [`Traits::marked`].
    pub marked: bool,
}

/// What of a call itself decides where it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// What [`LoadBalancer::hash`] said of it.
    pub hash: Option<u64>,
    /// It carries the header of a canary.
    pub marked: bool,
}

impl From<Option<u64>> for Traits {
    fn from(hash: Option<u64>) -> Self {
        Self { hash, marked: false }
    }
}

/// Random draws before the search for an eligible endpoint goes through the list.
const DRAWS: usize = 16;

impl PickCx<'_> {
    /// Whether endpoint `index` may take this attempt.
    #[inline]
    pub fn eligible(&self, index: usize) -> bool {
        let is_asked = self.roster.is_weighed(index) && !self.tried.contains(&index);
        is_asked && (self.roster.is_plain(index, self.max_in_flight) || self.has_nothing_against(index))
    }

    /// Looks at the endpoint itself, which few picks have to.
    #[cold]
    fn has_nothing_against(&self, index: usize) -> bool {
        let endpoint = &self.endpoints[index];
        endpoint.look_closer();
        endpoint.is_available() && (endpoint.in_flight() as usize) < self.max_in_flight
    }

    /// Whether it could if its health were no matter: weighed at all, not tried yet, not at its limit.
    fn possible(&self, index: usize) -> bool {
        let is_asked = self.roster.is_weighed(index) && !self.tried.contains(&index);
        is_asked && (self.hot(index).in_flight() as usize) < self.max_in_flight
    }

    /// What balancers compare of endpoint `index`.
    #[inline]
    pub fn hot(&self, index: usize) -> &Hot {
        self.roster.hot(index, self.endpoints)
    }

    /// The weight of endpoint `index`.
    #[inline]
    pub fn weight(&self, index: usize) -> u32 {
        self.roster.weight(index)
    }

    /// The first eligible index from `start` on, wrapping around.
    pub fn first_eligible_from(&self, start: usize) -> Option<usize> {
        let n = self.endpoints.len();
        (0..n).map(|i| (start + i) % n).find(|&i| self.eligible(i))
    }

    /// An eligible index by chance. Draws again rather than taking the neighbor of one that is out, which
    /// would get that one's share on top of its own.
    pub fn random_eligible(&self) -> Option<usize> {
        let n = self.endpoints.len();
        if n == 0 {
            return None;
        }
        let drawn = (0..DRAWS).map(|_| fastrand::usize(..n)).find(|&i| self.eligible(i));
        drawn.or_else(|| self.first_eligible_from(fastrand::usize(..n)))
    }

    /// Why endpoint `index` cannot take this attempt, for operators; `None` when it can.
    pub fn refusal(&self, index: usize) -> Option<&'static str> {
        let endpoint = &self.endpoints[index];
        if self.tried.contains(&index) {
            Some("tried already")
        } else if endpoint.weight == 0 {
            Some("weight 0")
        } else if let Some(reason) = endpoint.health.standing().reason {
            Some(reason)
        } else if endpoint.in_flight() as usize >= self.max_in_flight {
            Some("at its in-flight limit")
        } else {
            None
        }
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
    roster: Roster,
}

impl EndpointSet {
    /// `endpoints`, and the `picker` that was made for them.
    pub fn new(revision: u64, picker: Box<dyn Picker>, endpoints: Vec<Arc<Endpoint>>) -> Self {
        Self { revision, roster: Roster::new(&endpoints), endpoints, picker }
    }

    /// What its picker is asked with.
    pub fn cx<'a>(&'a self, tried: &'a [usize], max_in_flight: usize, traits: impl Into<Traits>) -> PickCx<'a> {
        let Traits { hash, marked } = traits.into();
        PickCx { endpoints: &self.endpoints, roster: &self.roster, tried, max_in_flight, hash, marked }
    }

    /// Picks for one attempt. When nothing is eligible the least bad untried endpoint is taken rather
    /// than none: a wrong health verdict on all of them must not stop a service that works.
    /// `None` only when every endpoint was tried, is weighed 0 or is at its in-flight limit.
    pub fn pick(&self, tried: &[usize], max_in_flight: usize, traits: impl Into<Traits>) -> Option<usize> {
        let cx = self.cx(tried, max_in_flight, traits);
        let possible = || (0..self.endpoints.len()).filter(|&i| cx.possible(i));
        self.picker.pick(&cx).or_else(|| possible().min_by_key(|&i| self.endpoints[i].health.badness()))
    }

    /// Whether [`EndpointSet::pick`] would find one. Asks without picking, which would move a round robin on.
    pub fn has_one(&self, tried: &[usize], max_in_flight: usize) -> bool {
        let cx = self.cx(tried, max_in_flight, None);
        (0..self.endpoints.len()).any(|i| cx.possible(i))
    }

    /// Whether it would find one that is in rotation.
    pub fn has_good(&self, tried: &[usize], max_in_flight: usize) -> bool {
        let cx = self.cx(tried, max_in_flight, None);
        (0..self.endpoints.len()).any(|i| cx.eligible(i))
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

    /// `n` endpoints of weight 10, changed by `change`.
    pub(crate) fn endpoints_with(n: usize, change: impl Fn(usize, &mut Endpoint)) -> Vec<Arc<Endpoint>> {
        let mut endpoints = endpoints(&vec![10; n]);
        endpoints.iter_mut().enumerate().for_each(|(i, e)| change(i, Arc::get_mut(e).unwrap()));
        endpoints
    }

    /// A balancer without options.
    pub(crate) fn by_name(name: &str) -> Arc<dyn LoadBalancer> {
        let cx = BuildCx { zone: "here".into(), ..BuildCx::default() };
        kind::build("load balancer", KINDS, name, &Value::Null, &cx).unwrap()
    }

    /// `counts` are draws with these relative probabilities, as far as chi square can tell (1 in 10,000
    /// true draws would fail; seeds are fixed, so none does).
    #[track_caller]
    pub(crate) fn fits(counts: &[usize], weights: &[usize]) {
        let (n, total) = (counts.iter().sum::<usize>() as f64, weights.iter().sum::<usize>() as f64);
        let term = |(c, w): (&usize, &usize)| {
            let expected = n * *w as f64 / total;
            (*c as f64 - expected).powi(2) / expected
        };
        let chi2: f64 = counts.iter().zip(weights).map(term).sum();
        // Wilson and Hilferty: the quantile of chi square at 3.72 standard deviations.
        let df = (counts.len() - 1) as f64;
        let limit = df * (1.0 - 2.0 / (9.0 * df) + 3.72 * (2.0 / (9.0 * df)).sqrt()).powi(3);
        assert!(chi2 <= limit, "chi square {chi2:.1} over {limit:.1}: {counts:?} for {weights:?}");
    }

    /// A set of them, picked by `lb`.
    pub(crate) fn set(lb: &dyn LoadBalancer, weights: &[u32]) -> EndpointSet {
        let endpoints = endpoints(weights);
        EndpointSet::new(1, lb.picker(&endpoints), endpoints)
    }

    /// How often each endpoint is picked in `n` first attempts.
    pub(crate) fn shares(set: &EndpointSet, n: usize) -> Vec<usize> {
        let mut counts = vec![0; set.endpoints.len()];
        for _ in 0..n {
            counts[set.pick(&[], usize::MAX, None).unwrap()] += 1;
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
        fastrand::seed(5);
        for kind in KINDS {
            let set = set(&*by_name(kind.name), &[10, 10, 10, 0]);
            eject(&set.endpoints[1]);
            let counts = shares(&set, 3000);
            assert_eq!((counts[1], counts[3]), (0, 0), "{}: {counts:?}", kind.name);
            assert!(counts[0] > 1000 && counts[2] > 1000, "{}: {counts:?}", kind.name);

            assert_eq!(set.pick(&[0], usize::MAX, None), Some(2), "{}", kind.name);
            eject(&set.endpoints[0]);
            eject(&set.endpoints[2]);
            assert!(set.pick(&[], usize::MAX, None).is_some(), "{}: all out, yet one is tried", kind.name);
            assert_eq!(set.pick(&[0, 1, 2], usize::MAX, None), None, "{}", kind.name);
        }
    }

    #[test]
    fn equal_endpoints_get_equal_shares_also_around_dead_ones() {
        fastrand::seed(6);
        for kind in KINDS.iter().filter(|k| k.name != "consistent_hash") {
            let set = set(&*by_name(kind.name), &[10; 12]);
            fits(&shares(&set, 24_000), &[1; 12]);
            // Neighbors, so that one who inherits from them would stand out.
            (3..6).for_each(|i| eject(&set.endpoints[i]));
            let counts = shares(&set, 18_000);
            let living: Vec<_> = (0..12).filter(|i| !(3..6).contains(i)).map(|i| counts[i]).collect();
            assert_eq!(living.iter().sum::<usize>(), 18_000, "{}", kind.name);
            fits(&living, &[1; 9]);
        }
    }

    #[test]
    fn why_one_was_not_picked() {
        let set = set(&*by_name("random"), &[10, 0, 10, 10, 10]);
        eject(&set.endpoints[2]);
        set.endpoints[3].hot.set_in_flight(7);
        let cx = set.cx(&[0], 7, None);
        let said: Vec<_> = (0..5).map(|i| cx.refusal(i).unwrap_or("eligible")).collect();
        assert_eq!(said, ["tried already", "weight 0", "connections failed", "at its in-flight limit", "eligible"]);
    }
}
