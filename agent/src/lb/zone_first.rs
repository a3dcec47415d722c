//! `zone_first`: endpoints in the own zone, and a share of calls elsewhere when too few of them are healthy.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use anyhow::{bail, ensure};

use super::{LoadBalancer, PickCx, Picker, Subset};
use crate::{
    call::{Request, Text},
    endpoint::Endpoint,
    kind::{self, BuildCx, Value},
};

/// Endpoints whose health is looked at with each pick. Looking at all of a large zone would cost more
/// than the call.
const LOOKS: usize = 4;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// The own zone; that of the agent when absent.
    zone: String,
    then: Value,
    /// Percentage of healthy endpoints below which calls leave the zone.
    spill_below: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { zone: String::new(), then: Value::Null, spill_below: 70 }
    }
}

struct ZoneFirst {
    zone: Text,
    then: Arc<dyn LoadBalancer>,
    spill_below: u32,
}

struct Zones {
    own: Subset,
    others: Subset,
    healthy: Healthy,
    spill_below: u64,
}

/// How many of some endpoints are in rotation: a count that follows them a few looks at a time.
struct Healthy {
    total: usize,
    up: AtomicUsize,
    next: AtomicUsize,
    /// What was seen of each, one bit.
    seen: Box<[AtomicU64]>,
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn LoadBalancer>> {
    let Options { zone, then, spill_below } = kind::options(options)?;
    ensure!(spill_below <= 100, "spill_below: {spill_below} is no percentage; write 0 to 100");
    let zone = if zone.is_empty() { cx.zone.clone() } else { Text::from(zone) };
    if zone.is_empty() {
        bail!("the own zone is not known; write `zone: NAME` at the top of the file or among the options");
    }
    Ok(Arc::new(ZoneFirst { zone, then: super::then(&then, cx)?, spill_below }))
}

impl LoadBalancer for ZoneFirst {
    fn picker(&self, endpoints: &[Arc<Endpoint>]) -> Box<dyn Picker> {
        let own = Subset::new(&*self.then, endpoints, |e| e.weight > 0 && e.zone == *self.zone);
        let others = Subset::new(&*self.then, endpoints, |e| e.weight > 0 && e.zone != *self.zone);
        let healthy = Healthy::of(&own);
        Box::new(Zones { own, others, healthy, spill_below: self.spill_below.into() })
    }

    fn hash(&self, req: &Request) -> Option<u64> {
        self.then.hash(req)
    }
}

impl Zones {
    /// Whether this call stays if it can: the own zone takes what its healthy endpoints are fit for,
    /// which is all of it until fewer than `spill_below` percent are left.
    fn stays(&self) -> bool {
        let (up, total) = (self.healthy.look(&self.own) as u64, self.healthy.total as u64);
        let (fit, needed) = (up * 100, total * self.spill_below);
        fit >= needed || fastrand::u64(..needed) < fit
    }
}

impl Picker for Zones {
    fn pick(&self, cx: &PickCx<'_>) -> Option<usize> {
        if self.stays() {
            return self.own.pick(cx).or_else(|| self.others.pick(cx));
        }
        self.others.pick(cx).or_else(|| self.own.pick(cx))
    }

    fn passed_over(&self, _: &PickCx<'_>, index: usize) -> &'static str {
        if self.own.contains(index) {
            "another was picked, of its zone or because too few of it are healthy"
        } else {
            "is in another zone"
        }
    }
}

impl Healthy {
    fn of(endpoints: &Subset) -> Self {
        let total = endpoints.endpoints().len();
        let this = Self {
            total,
            up: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            seen: (0..total.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
        };
        (0..total).for_each(|i| this.see(i, endpoints));
        this
    }

    /// Looks at a few and returns how many are in rotation as far as was seen.
    fn look(&self, endpoints: &Subset) -> usize {
        let looks = self.total.min(LOOKS);
        if looks > 0 {
            let from = self.next.fetch_add(looks, Relaxed);
            (from..from.saturating_add(looks)).map(|i| i % self.total).for_each(|i| self.see(i, endpoints));
        }
        self.up.load(Relaxed)
    }

    fn see(&self, index: usize, endpoints: &Subset) {
        let (word, bit) = (&self.seen[index / 64], 1 << (index % 64));
        let up = endpoints.is_up(index);
        // In the usual case nothing has changed and nothing is written.
        if (word.load(Relaxed) & bit != 0) == up {
            return;
        }
        // Whoever really turns the bit counts it.
        if up && word.fetch_or(bit, Relaxed) & bit == 0 {
            self.up.fetch_add(1, Relaxed);
        } else if !up && word.fetch_and(!bit, Relaxed) & bit != 0 {
            self.up.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::*, *};
    use crate::lb::EndpointSet;

    fn zones(options: &str, zones: &[&str]) -> EndpointSet {
        let lb = build(&serde_yaml::from_str(options).unwrap(), &BuildCx::default()).unwrap();
        let endpoints = endpoints_with(zones.len(), |i, e| e.zone = zones[i].into());
        EndpointSet::new(1, lb.picker(&endpoints), endpoints)
    }

    /// Calls of `n` that stay in the first `own` endpoints, once the picker has seen everything.
    fn stayed(set: &EndpointSet, own: usize, n: usize) -> usize {
        shares(set, 100);
        shares(set, n)[..own].iter().sum()
    }

    #[test]
    fn calls_spill_by_the_share_that_is_healthy() {
        fastrand::seed(4);
        let names: Vec<_> = ["a"; 10].into_iter().chain(["b"; 5]).collect();
        let set = zones("{zone: a, then: random}", &names);
        for out in 0..=3 {
            assert_eq!(stayed(&set, 10, 2000), 2000, "{out} of 10 out: 70 % or more are healthy");
            eject(&set.endpoints[out]);
        }
        for (out, share) in [(4, 6.0 / 7.0), (5, 5.0 / 7.0), (6, 4.0 / 7.0)] {
            let stay = stayed(&set, 10, 20_000);
            fits(&[stay, 20_000 - stay], &[(share * 7.0_f64).round() as usize, (7.0 - share * 7.0).round() as usize]);
            eject(&set.endpoints[out]);
        }
        (7..10).for_each(|i| eject(&set.endpoints[i]));
        assert_eq!(stayed(&set, 10, 100), 0);
        set.endpoints[..10].iter().for_each(|e| e.health.succeeded());
        assert_eq!(stayed(&set, 10, 100), 100, "and back");
    }

    #[test]
    fn either_side_helps_the_other_out() {
        let set = zones("{zone: a, spill_below: 100, then: round_robin}", &["a", "b", "a"]);
        eject(&set.endpoints[1]);
        eject(&set.endpoints[2]);
        assert_eq!(shares(&set, 50), [50, 0, 0], "who would leave stays when nobody is elsewhere");
        assert_eq!(set.pick(&[0], 10, None), Some(1), "the least bad at last");
        let set = zones("{zone: nowhere}", &["a", "b"]);
        assert!(shares(&set, 100).iter().all(|&c| c > 0));
    }

    #[test]
    fn the_zone_must_be_known() {
        let cx = |zone| BuildCx { zone: Text::from_static(zone), ..BuildCx::default() };
        assert!(build(&Value::Null, &cx("")).err().unwrap().to_string().contains("zone: NAME"));
        assert!(build(&Value::Null, &cx("a")).is_ok());
    }
}
