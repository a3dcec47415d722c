//! A version that is tried, around any balancer: a share of the calls and those that are marked go to its endpoints,
//! the others to the rest.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use model::{command::Canary, share};

use super::{LoadBalancer, PickCx, Picker, Subset};
use crate::{call::Request, endpoint::Endpoint};

/// A balancer that keeps the endpoints of a version apart.
pub struct Canaried {
    /// Picks on either side.
    inner: Arc<dyn LoadBalancer>,
    canary: Canary,
}

/// Sides in the order in which unmarked calls are dealt to them.
struct Sides {
    tried: Subset,
    rest: Subset,
    /// 0 for `tried`, 1 for `rest`.
    order: Box<[u32]>,
    next: AtomicUsize,
}

impl Canaried {
    /// Around `inner`.
    pub fn new(inner: Arc<dyn LoadBalancer>, canary: Canary) -> Self {
        Self { inner, canary }
    }
}

impl LoadBalancer for Canaried {
    fn picker(&self, endpoints: &[Arc<Endpoint>]) -> Box<dyn Picker> {
        let is_tried = |e: &Endpoint| *e.version == *self.canary.version;
        let somebody = |tried: bool| endpoints.iter().any(|e| e.weight > 0 && is_tried(e) == tried);
        if !(somebody(true) && somebody(false)) {
            return self.inner.picker(endpoints);
        }
        let order = share::canary_round(self.canary.percent);
        // As with groups: agents must not all begin at the same place.
        let next = AtomicUsize::new(fastrand::usize(..order.len().max(1)));
        Box::new(Sides {
            tried: Subset::new(&*self.inner, endpoints, is_tried),
            rest: Subset::new(&*self.inner, endpoints, |e| !is_tried(e)),
            order,
            next,
        })
    }

    fn hash(&self, req: &Request) -> Option<u64> {
        self.inner.hash(req)
    }
}

impl Picker for Sides {
    fn pick(&self, cx: &PickCx<'_>) -> Option<usize> {
        let is_tried = if cx.marked {
            true
        } else if cx.tried.is_empty() {
            self.order[self.next.fetch_add(1, Relaxed) % self.order.len()] == 0
        } else {
            // A further try goes to what is known to work, and takes no turn.
            false
        };
        let (first, second) = if is_tried { (&self.tried, &self.rest) } else { (&self.rest, &self.tried) };
        first.pick(cx).or_else(|| second.pick(cx))
    }

    fn passed_over(&self, cx: &PickCx<'_>, index: usize) -> &'static str {
        match (self.tried.contains(index), cx.marked) {
            (false, true) => "the call is marked for the version that is tried",
            (true, _) => "its version is tried with other calls, or another endpoint of it was picked",
            (false, false) => "it was the turn of another endpoint, or of the version that is tried",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{EndpointSet, Traits, grouped, testing::*},
        *,
    };

    fn canaried(lb: &str, percent: u32) -> Canaried {
        Canaried::new(by_name(lb), Canary { version: "2".into(), percent, ..Canary::default() })
    }

    /// One endpoint for each letter: upper case runs version 2, the letter is the group.
    fn set(lb: &Canaried, letters: &str, shares: &[(&str, u32)]) -> EndpointSet {
        let letters: Vec<char> = letters.chars().collect();
        let endpoints = endpoints_with(letters.len(), |i, e| {
            e.version = if letters[i].is_uppercase() { "2" } else { "1" }.into();
            e.group = letters[i].to_lowercase().to_string().as_str().into();
        });
        let picker = if shares.is_empty() { lb.picker(&endpoints) } else { grouped(lb, &endpoints, shares) };
        EndpointSet::new(1, picker, endpoints)
    }

    #[test]
    fn the_share_is_exact_whatever_the_balancer() {
        for lb in super::super::KINDS.iter().map(|kind| kind.name) {
            let set = set(&canaried(lb, 10), "aaAA", &[]);
            let counts = shares(&set, 1000);
            assert_eq!((counts[0] + counts[1], counts[2] + counts[3]), (900, 100), "{lb}");
            for _ in 0..50 {
                let marked = Traits { hash: None, marked: true };
                assert!(set.pick(&[], usize::MAX, marked).unwrap() >= 2, "{lb}: a marked call");
            }
        }
    }

    #[test]
    fn groups_come_first_and_none_alone_gets_all() {
        let both = set(&canaried("round_robin", 20), "aAbB", &[("a", 50), ("b", 50)]);
        assert_eq!(shares(&both, 1000), [400, 100, 400, 100]);
        assert_eq!(shares(&set(&canaried("round_robin", 20), "aa", &[]), 100), [50, 50], "nobody to try");
        assert_eq!(shares(&set(&canaried("round_robin", 20), "AA", &[]), 100), [50, 50], "nobody else");
        assert_eq!(shares(&set(&canaried("round_robin", 0), "aA", &[]), 100), [100, 0], "only marked ones");
    }

    #[test]
    fn either_side_helps_the_other_out_and_further_tries_go_to_the_rest() {
        let set = set(&canaried("round_robin", 50), "aaA", &[]);
        assert!(set.pick(&[2], usize::MAX, None).unwrap() < 2);
        assert_eq!(set.pick(&[0, 1], usize::MAX, None), Some(2));
        eject(&set.endpoints[2]);
        assert_eq!(shares(&set, 100), [50, 50, 0]);
        let marked = Traits { hash: None, marked: true };
        assert!(set.pick(&[], usize::MAX, marked).unwrap() < 2, "rather than none");
    }
}
