//! Which endpoints calls may go to and in which proportions: what agents pick by, and what the governance centre
//! predicts with. One code for both, so that a preview is no guess.

use crate::command::{Canary, GroupShare, RouteRule, is_weighted, route};

/// Longest round that is written out; above it weights are scaled down, losing at most 1 part in 4096.
const MAX_ROUND: u64 = 4096;

/// Smooth weighted round robin (each step: everyone gains its weight, the richest is picked and pays
/// the total), run once for a whole round. Exact per round for weights whose sum over their common
/// divisor is within 4096. Empty when no weight is above 0.
pub fn round(weights: &[u64]) -> Box<[u32]> {
    let divisor = weights.iter().copied().filter(|&w| w > 0).fold(0, gcd).max(1);
    let mut weights: Vec<u64> = weights.iter().map(|w| w / divisor).collect();
    let total: u64 = weights.iter().sum();
    if total > MAX_ROUND {
        for w in weights.iter_mut().filter(|w| **w > 0) {
            *w = (*w * MAX_ROUND).div_ceil(total);
        }
    }
    let total: u64 = weights.iter().sum();
    let positive: Vec<usize> = (0..weights.len()).filter(|&i| weights[i] > 0).collect();
    let mut credit = vec![0i64; weights.len()];
    let mut order = Vec::with_capacity(total as usize);
    for _ in 0..total {
        let mut best = positive[0];
        for &i in &positive {
            credit[i] += weights[i] as i64;
            if credit[i] > credit[best] {
                best = i;
            }
        }
        credit[best] -= total as i64;
        order.push(best as u32);
    }
    order.into_boxed_slice()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Which group each call of a round goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Those of the shares that take part, by their places.
    pub groups: Vec<usize>,
    /// Indices into `groups`, in the order in which calls are dealt.
    pub order: Box<[u32]>,
}

/// The ring of groups with shares. Groups of share 0 and those of which `has_somebody` says no are left out, and
/// with them their shares. `None` when that leaves none.
pub fn ring<'a>(shares: &[(&'a str, u32)], has_somebody: impl Fn(&'a str) -> bool) -> Option<Ring> {
    let groups: Vec<usize> = (0..shares.len()).filter(|&i| shares[i].1 > 0 && has_somebody(shares[i].0)).collect();
    if groups.is_empty() {
        return None;
    }
    let weights: Vec<u64> = groups.iter().map(|&i| u64::from(shares[i].1)).collect();
    Some(Ring { order: round(&weights), groups })
}

/// Groups with their shares; `None` when all endpoints are one pool. Beside groups with a weight, one without
/// counts 1.
pub fn shares(groups: &[GroupShare]) -> Option<Vec<(&str, u32)>> {
    is_weighted(groups).then(|| groups.iter().map(|g| (g.group.as_str(), g.weight.unwrap_or(1))).collect())
}

/// Which side each unmarked call of a round goes to while a canary gets `percent` of them: 0 the canary, 1 the rest.
pub fn canary_round(percent: u32) -> Box<[u32]> {
    let percent = u64::from(percent.min(100));
    round(&[percent, 100 - percent])
}

/// What is ordered of the endpoints of one service.
#[derive(Clone, Copy, Debug, Default)]
pub struct Orders<'a> {
    /// Groups instead of the own one; the own one when empty.
    pub groups: &'a [GroupShare],
    /// Rules by address.
    pub routes: &'a [RouteRule],
    /// `IP:PORT` of instances that get no calls.
    pub drained: &'a [String],
    /// A version that is tried.
    pub canary: Option<&'a Canary>,
}

/// What [`choose`] leaves.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen<T> {
    /// The endpoints.
    pub kept: Vec<T>,
    /// Groups in use; the own one when empty.
    pub groups: Vec<GroupShare>,
    /// What is ordered and not done, and why.
    pub troubles: Vec<String>,
}

/// The endpoints that `orders` leave to a caller of `own_group` at address `host`. Nothing that is ordered leaves
/// nobody: groups without endpoints give way to the own one, rules and drains that would empty the list do not
/// count. `members` lists the endpoints of some groups, `address` is the `IP:PORT` of one, `version` its version.
pub fn choose<'a, T>(
    orders: &Orders<'_>,
    own_group: &str,
    host: &str,
    members: impl Fn(&[&str]) -> Vec<T>,
    address: impl Fn(&T) -> &'a str,
    version: impl Fn(&T) -> &'a str,
) -> Chosen<T> {
    let own = [own_group];
    let ordered: Vec<&str> = orders.groups.iter().map(|g| g.group.as_str()).collect();
    let used = if ordered.is_empty() { &own[..] } else { &ordered };
    let (mut kept, mut groups, mut troubles) = (members(used), orders.groups.to_vec(), Vec::new());
    if kept.is_empty() && !ordered.is_empty() {
        kept = members(&own);
        if !kept.is_empty() {
            troubles.push(format!("no endpoint in {}: the own group serves", used.join(", ")));
            groups.clear();
        }
    }
    let is_drained = |one: &T| orders.drained.iter().any(|d| d == address(one));
    if kept.iter().any(is_drained) {
        if kept.iter().all(is_drained) {
            troubles.push("all endpoints are drained: none of the drains counts".to_owned());
        } else {
            kept.retain(|one| !is_drained(one));
        }
    }
    let (kept, emptied) = route(orders.routes, host, kept, |one| host_of(address(one)));
    if let Some(rule) = emptied {
        troubles.push(format!("the rule `{rule}` would leave no endpoint: no rule counts"));
    }
    if let Some(canary) = orders.canary
        && !kept.is_empty()
        && !kept.iter().any(|one| version(one) == canary.version)
    {
        troubles.push(format!("no endpoint has version {}: its canary gets no calls", canary.version));
    }
    Chosen { kept, groups, troubles }
}

/// The host of `IP:PORT`, without brackets; a text that is none as it is.
pub fn host_of(address: &str) -> &str {
    let Ok(parsed) = address.parse::<std::net::SocketAddr>() else { return address };
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    if parsed.is_ipv6() { host.trim_start_matches('[').trim_end_matches(']') } else { host }
}

/// What decides about the share of one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// Its group.
    pub group: &'a str,
    /// Its version.
    pub version: &'a str,
    /// Its weight.
    pub weight: u32,
}

/// The share of all calls (0 to 1) that each of `members` gets: groups by their ring, sides of a canary by its
/// round, endpoints by their weights. Calls that carry a canary's header are not among them.
pub fn loads(groups: &[GroupShare], canary: Option<&Canary>, members: &[Member<'_>]) -> Vec<f64> {
    let mut loads = vec![0.0; members.len()];
    let all: Vec<usize> = (0..members.len()).collect();
    let shares = shares(groups).unwrap_or_default();
    let has_somebody = |group: &str| members.iter().any(|m| m.group == group && m.weight > 0);
    match ring(&shares, has_somebody) {
        None => by_version(canary, members, &all, 1.0, &mut loads),
        Some(ring) => {
            for (nth, part) in parts(&ring.order, ring.groups.len()).into_iter().enumerate() {
                let group = shares[ring.groups[nth]].0;
                let of: Vec<usize> = all.iter().copied().filter(|&i| members[i].group == group).collect();
                by_version(canary, members, &of, part, &mut loads);
            }
        }
    }
    loads
}

fn by_version(canary: Option<&Canary>, members: &[Member<'_>], of: &[usize], part: f64, loads: &mut [f64]) {
    let is_canary = |i: &usize| canary.is_some_and(|c| members[*i].version == c.version);
    let (tried, rest): (Vec<usize>, Vec<usize>) = of.iter().partition(|i| is_canary(i));
    let has_somebody = |side: &[usize]| side.iter().any(|&i| members[i].weight > 0);
    match canary {
        Some(canary) if has_somebody(&tried) && has_somebody(&rest) => {
            let sides = parts(&canary_round(canary.percent), 2);
            by_weight(members, &tried, part * sides[0], loads);
            by_weight(members, &rest, part * sides[1], loads);
        }
        _ => by_weight(members, of, part, loads),
    }
}

fn by_weight(members: &[Member<'_>], of: &[usize], part: f64, loads: &mut [f64]) {
    let weights: Vec<u64> = of.iter().map(|&i| u64::from(members[i].weight)).collect();
    let order = round(&weights);
    for (nth, share) in parts(&order, of.len()).into_iter().enumerate() {
        loads[of[nth]] += part * share;
    }
}

/// How much of a round is whose.
fn parts(order: &[u32], owners: usize) -> Vec<f64> {
    let mut counts = vec![0u32; owners];
    order.iter().for_each(|&owner| counts[owner as usize] += 1);
    counts.into_iter().map(|n| f64::from(n) / order.len().max(1) as f64).collect()
}

/// Weights as commands write them: fractions (0 to 1, in sum 1) as whole numbers of a hundred. What is above 0 gets at
/// least 1; what is 0 gets 0.
pub fn whole(fractions: &[f64]) -> Vec<u32> {
    let sum: f64 = fractions.iter().filter(|f| f.is_finite() && **f > 0.0).sum();
    if sum <= 0.0 {
        return vec![0; fractions.len()];
    }
    // Little enough to be a fault of addition is nothing.
    let exact: Vec<f64> =
        fractions.iter().map(|f| if f.is_finite() && *f / sum > 1e-9 { f / sum * 100.0 } else { 0.0 }).collect();
    let mut whole: Vec<u32> =
        exact.iter().map(|e| if *e > 0.0 { ((e + 1e-9).floor() as u32).max(1) } else { 0 }).collect();
    loop {
        let total: u32 = whole.iter().sum();
        let missing = |i: &usize| exact[*i] - f64::from(whole[*i]);
        let by = |a: &usize, b: &usize| missing(a).total_cmp(&missing(b));
        let all = 0..whole.len();
        if total < 100 {
            let Some(poorest) = all.filter(|&i| whole[i] > 0).max_by(by) else { return whole };
            whole[poorest] += 1;
        } else if total > 100 {
            let Some(richest) = all.filter(|&i| whole[i] > 1).min_by(by) else { return whole };
            whole[richest] -= 1;
        } else {
            return whole;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(text: &str) -> GroupShare {
        GroupShare::parse(text).unwrap()
    }

    #[test]
    fn a_round_is_exact_and_spread() {
        assert_eq!(*round(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(*round(&[30, 10]), [0, 0, 1, 0]);
        assert!(round(&[0, 0]).is_empty() && round(&[]).is_empty());
        assert_eq!(round(&[u64::from(u32::MAX), 1]).len(), 4097);
    }

    #[test]
    fn a_ring_leaves_out_who_has_nobody() {
        let shares = [("a", 1), ("b", 1), ("x", 98), ("z", 0)];
        let ring = ring(&shares, |group| group != "x").unwrap();
        assert_eq!((ring.groups, &*ring.order), (vec![0, 1], &[0, 1][..]));
        assert_eq!(super::ring(&shares, |_| false), None);
    }

    #[test]
    fn loads_follow_groups_versions_and_weights() {
        let member = |group: &'static str, version: &'static str, weight| Member { group, version, weight };
        let members = [member("a", "1", 10), member("a", "1", 30), member("b", "1", 10), member("b", "2", 10)];
        let close = |loads: Vec<f64>, expected: [f64; 4]| {
            assert!(loads.iter().zip(expected).all(|(l, e)| (l - e).abs() < 1e-9), "{loads:?}, not {expected:?}");
        };
        close(loads(&[group("a:80"), group("b:20")], None, &members), [0.2, 0.6, 0.1, 0.1]);
        let canary = Canary { version: "2".into(), percent: 10, ..Canary::default() };
        close(loads(&[group("a:80"), group("b:20")], Some(&canary), &members), [0.2, 0.6, 0.18, 0.02]);
        close(loads(&[group("a"), group("b")], None, &members), [1.0 / 6.0, 0.5, 1.0 / 6.0, 1.0 / 6.0]);
        close(loads(&[group("x:1")], None, &members), [1.0 / 6.0, 0.5, 1.0 / 6.0, 1.0 / 6.0]);
        close(loads(&[group("b:1")], Some(&canary), &members), [0.0, 0.0, 0.9, 0.1]);
        assert!(loads(&[], None, &[]).is_empty());
    }

    #[test]
    fn nothing_that_is_ordered_leaves_nobody() {
        let all = [("10.0.0.1:1", "a"), ("10.0.0.2:1", "a"), ("10.1.0.1:1", "b")];
        let chosen = |orders: &Orders<'_>| {
            let members = |groups: &[&str]| all.iter().filter(|(_, g)| groups.contains(g)).collect::<Vec<_>>();
            let chosen = choose(orders, "a", "10.9.9.9", members, |one| one.0, |_| "");
            let kept: Vec<_> = chosen.kept.iter().map(|one| one.0.split_once(':').unwrap().0).collect();
            (kept.join(" "), chosen.troubles.join("; "))
        };
        let drained = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(chosen(&Orders::default()), ("10.0.0.1 10.0.0.2".into(), String::new()));
        let groups = [group("b:1")];
        assert_eq!(chosen(&Orders { groups: &groups, ..Orders::default() }).0, "10.1.0.1");
        let (kept, trouble) = chosen(&Orders { groups: &[group("x")], ..Orders::default() });
        assert_eq!((kept.as_str(), trouble.as_str()), ("10.0.0.1 10.0.0.2", "no endpoint in x: the own group serves"));
        let one = drained(&["10.0.0.1:1"]);
        assert_eq!(chosen(&Orders { drained: &one, ..Orders::default() }), ("10.0.0.2".into(), String::new()));
        let (kept, trouble) = chosen(&Orders { drained: &drained(&["10.0.0.1:1", "10.0.0.2:1"]), ..Orders::default() });
        assert_eq!(kept, "10.0.0.1 10.0.0.2");
        assert!(trouble.contains("none of the drains counts"), "{trouble}");
        let canary = Canary { version: "9".into(), ..Canary::default() };
        let (_, trouble) = chosen(&Orders { canary: Some(&canary), ..Orders::default() });
        assert!(trouble.contains("no endpoint has version 9"), "{trouble}");
    }

    #[test]
    fn hosts_of_addresses() {
        assert_eq!((host_of("10.0.0.1:80"), host_of("[fd00::1]:80"), host_of("x")), ("10.0.0.1", "fd00::1", "x"));
    }

    #[test]
    fn whole_numbers_of_a_hundred() {
        assert_eq!(whole(&[0.8, 0.2]), [80, 20]);
        assert_eq!(whole(&[1.0 / 3.0; 3]).iter().sum::<u32>(), 100);
        assert_eq!(whole(&[0.999, 0.001]), [99, 1]);
        assert_eq!(whole(&[1.0, 0.0]), [100, 0]);
        assert_eq!(whole(&[0.0]), [0]);
        assert_eq!(whole(&[f64::NAN, 0.5, 0.5]), [0, 50, 50]);
        assert_eq!(whole(&[0.72, 0.18, 0.1]), [72, 18, 10]);
        assert_eq!(whole(&vec![0.004; 250]).iter().sum::<u32>(), 250, "more groups than percents");
    }
}
