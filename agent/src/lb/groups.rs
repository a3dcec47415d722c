//! Groups with shares around any balancer: which group a call goes to is dealt from a ring, which endpoint of
//! the group is the balancer's choice.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use model::share;

use super::{LoadBalancer, PickCx, Picker, Subset};
use crate::endpoint::Endpoint;

/// Slots of the ring that are looked at before every group is asked once.
const SLOTS: usize = 16;

/// One round written out, exact and spread, and the groups it deals from.
struct Groups {
    groups: Box<[Subset]>,
    order: Box<[u32]>,
    next: AtomicUsize,
}

/// A picker of `lb` for `endpoints`, dealt to their groups by `shares`: exact in each round of the ring, whose
/// length is the sum of the shares over their common divisor. Groups without endpoints are left out, and with
/// them their shares; endpoints of other groups get nothing. Of a group that is out of rotation, the share goes
/// to the others.
pub fn grouped(lb: &dyn LoadBalancer, endpoints: &[Arc<Endpoint>], shares: &[(&str, u32)]) -> Box<dyn Picker> {
    let has_somebody = |group: &str| endpoints.iter().any(|e| &*e.group == group && e.weight > 0);
    let Some(share::Ring { groups, order }) = share::ring(shares, has_somebody) else { return lb.picker(endpoints) };
    let groups = groups.iter().map(|&i| Subset::new(lb, endpoints, |e| &*e.group == shares[i].0)).collect();
    // Agents that hear of a command together must not all begin with the same group.
    let next = AtomicUsize::new(fastrand::usize(..order.len()));
    Box::new(Groups { groups, order, next })
}

impl Groups {
    fn group_of(&self, index: usize) -> Option<&Subset> {
        self.groups.iter().find(|group| group.contains(index))
    }
}

impl Picker for Groups {
    fn pick(&self, cx: &PickCx<'_>) -> Option<usize> {
        if let Some(last) = cx.tried.last() {
            // A further try stays in its group and takes no turn of the ring, or failures would move the shares.
            let same = self.group_of(*last).and_then(|group| group.pick(cx));
            return same.or_else(|| self.groups.iter().find_map(|group| group.pick(cx)));
        }
        let n = self.order.len();
        let mut slots = (0..n.min(SLOTS)).map(|_| self.order[self.next.fetch_add(1, Relaxed) % n] as usize);
        slots
            .find_map(|group| self.groups[group].pick(cx))
            .or_else(|| self.groups.iter().find_map(|group| group.pick(cx)))
    }

    fn passed_over(&self, cx: &PickCx<'_>, index: usize) -> &'static str {
        match self.group_of(index) {
            None => "its group has no share",
            Some(_) if cx.tried.is_empty() => "it was another group's or another endpoint's turn",
            Some(_) => "a further try stays in its group",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{EndpointSet, testing::*},
        *,
    };

    /// Endpoints of these groups, one for each letter.
    fn set(lb: &str, groups: &str, shares: &[(&str, u32)]) -> EndpointSet {
        let letters: Vec<String> = groups.chars().map(String::from).collect();
        let endpoints = endpoints_with(letters.len(), |i, e| e.group = letters[i].as_str().into());
        EndpointSet::new(1, grouped(&*by_name(lb), &endpoints, shares), endpoints)
    }

    fn by_group(set: &EndpointSet, n: usize) -> String {
        let mut counts = std::collections::BTreeMap::<String, usize>::new();
        for (endpoint, count) in set.endpoints.iter().zip(shares(set, n)) {
            *counts.entry(endpoint.group.to_string()).or_default() += count;
        }
        counts.iter().map(|(group, count)| format!("{group}{count}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn shares_are_exact_in_each_round_whatever_the_balancer() {
        for lb in super::super::KINDS.iter().map(|k| k.name) {
            let set = set(lb, "aaab", &[("a", 1), ("b", 3)]);
            for _ in 0..5 {
                assert_eq!(by_group(&set, 40), "a10 b30", "{lb}");
                assert_eq!(by_group(&set, 4), "a1 b3", "{lb}");
            }
            let thirds = self::set(lb, "abc", &[("a", 20), ("b", 80), ("c", 100)]);
            assert_eq!(by_group(&thirds, 10), "a1 b4 c5", "{lb}");
        }
    }

    #[test]
    fn groups_without_endpoints_are_left_out() {
        assert_eq!(by_group(&set("round_robin", "ab", &[("a", 1), ("b", 1), ("x", 98)]), 100), "a50 b50");
        assert_eq!(by_group(&set("round_robin", "abc", &[("a", 1), ("b", 1)]), 100), "a50 b50 c0");
        assert_eq!(by_group(&set("round_robin", "ab", &[("a", 1), ("b", 0)]), 100), "a100 b0");
        // None at all: better any endpoint than none.
        assert_eq!(by_group(&set("round_robin", "ab", &[("x", 1)]), 100), "a50 b50");
    }

    #[test]
    fn a_group_that_is_out_gives_its_share_to_the_others_and_takes_it_back() {
        let set = set("round_robin", "aab", &[("a", 1), ("b", 1)]);
        eject(&set.endpoints[2]);
        assert_eq!(by_group(&set, 100), "a100 b0");
        set.endpoints[2].health.succeeded();
        assert_eq!(by_group(&set, 100), "a50 b50");
    }

    #[test]
    fn further_tries_stay_in_the_group_while_it_has_somebody() {
        let set = set("round_robin", "aabb", &[("a", 1), ("b", 1)]);
        for _ in 0..10 {
            let first = set.pick(&[], usize::MAX, None).unwrap();
            let second = set.pick(&[first], usize::MAX, None).unwrap();
            assert_eq!(set.endpoints[first].group, set.endpoints[second].group);
            let third = set.pick(&[first, second], usize::MAX, None).unwrap();
            assert_ne!(set.endpoints[first].group, set.endpoints[third].group);
        }
        // Only first tries took turns: ten calls, five for each group.
        assert_eq!(by_group(&set, 10), "a5 b5");
    }
}
