//! Policies of pools: which one holds, and what makes one impossible.

use std::collections::BTreeMap;

use model::center::PoolPolicy;

use crate::error::Error;

/// Longest name of a service or group.
const NAME: usize = 500;

/// All policies that were written. One without a service or a group holds for all of them that have none of their own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policies(BTreeMap<(String, String), PoolPolicy>);

impl Policies {
    /// The policy of a pool: its own, else the one of its service, else the one of its group, else the one of all, else
    /// the usual one. Service and group are those that were asked for.
    pub fn of(&self, service: &str, group: &str) -> PoolPolicy {
        let wide = [(service, group), (service, ""), ("", group), ("", "")];
        let found = wide.iter().find_map(|(s, g)| self.0.get(&((*s).to_owned(), (*g).to_owned())));
        let policy = found.cloned().unwrap_or_default();
        PoolPolicy { service: service.to_owned(), group: group.to_owned(), ..policy }
    }

    /// Puts a policy in the place of the one with the same service and group.
    pub fn set(&mut self, policy: PoolPolicy) {
        self.0.insert((policy.service.clone(), policy.group.clone()), policy);
    }

    /// Takes a policy away; `None`: there was none.
    pub fn remove(&mut self, service: &str, group: &str) -> Option<PoolPolicy> {
        self.0.remove(&(service.to_owned(), group.to_owned()))
    }

    /// All of them, by service and group.
    pub fn iter(&self) -> impl Iterator<Item = &PoolPolicy> {
        self.0.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether a policy can be kept: lines in their order, bounds that hold something, times that are times.
///
/// # Errors
/// Names the field, its value, and what it may be.
pub fn check(policy: &PoolPolicy) -> Result<(), Error> {
    let PoolPolicy { warning_percent: warning, safety_percent: safety, fatal_percent: fatal, .. } = *policy;
    let named = |field: &str, value: f64, least: f64, most: f64| {
        if value.is_finite() && (least..=most).contains(&value) {
            return Ok(());
        }
        Err(Error::bad(format!("`{field}` is {value}"), format!("write a number from {least} to {most}")))
    };
    named("fatal_percent", fatal, 1.0, 1000.0)?;
    named("warning_percent", warning, 1.0, fatal)?;
    named("safety_percent", safety, 1.0, warning)?;
    named("redundancy_percent", policy.redundancy_percent, 0.0, 95.0)?;
    named("margin_percent", policy.margin_percent, 0.0, 50.0_f64.min(warning - 1.0))?;
    named("slow_ms", policy.slow_ms, 0.001, 3_600_000.0)?;
    if let Some(capacity) = policy.capacity {
        named("capacity", capacity, 0.001, 1e9)?;
    }
    if policy.min > policy.max || policy.max > 100_000 {
        return Err(Error::bad(
            format!("`min` is {}, `max` {}", policy.min, policy.max),
            "write a `max` that is at least `min` and at most 100000",
        ));
    }
    let day_ms = 24 * 3600 * 1000;
    for (field, ms) in
        [("hold_ms", policy.hold_ms), ("period_ms", policy.period_ms), ("shrink_hold_ms", policy.shrink_hold_ms)]
    {
        if ms > day_ms {
            return Err(Error::bad(format!("`{field}` is {ms}"), format!("write at most {day_ms}, a day")));
        }
    }
    for (field, name) in [("service", &policy.service), ("group", &policy.group), ("driver", &policy.driver)] {
        if name.len() > NAME || name.contains(char::is_control) {
            return Err(Error::bad(
                format!("`{field}` is {} bytes long, or has control characters", name.len()),
                format!("write at most {NAME} plain ones"),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_policy_holds() {
        let policy = |service: &str, group: &str, max| PoolPolicy {
            service: service.to_owned(),
            group: group.to_owned(),
            max,
            ..PoolPolicy::default()
        };
        let mut all = Policies::default();
        assert_eq!(all.of("s", "g"), policy("s", "g", 100));
        for (i, (s, g)) in [("", ""), ("", "g"), ("s", ""), ("s", "g")].into_iter().enumerate() {
            all.set(policy(s, g, 10 + i as u32));
            assert_eq!(all.of("s", "g"), policy("s", "g", 10 + i as u32));
        }
        assert_eq!(all.of("t", "g").max, 11);
        assert_eq!(all.of("t", "h").max, 10);
        assert!(all.remove("s", "g").is_some() && all.remove("s", "g").is_none());
        assert_eq!((all.of("s", "g").max, all.len()), (12, 3));
    }

    #[test]
    fn impossible_ones_are_refused_with_the_field() {
        let usual = PoolPolicy::default();
        assert_eq!(check(&usual), Ok(()));
        let ill = [
            (PoolPolicy { warning_percent: f64::NAN, ..usual.clone() }, "warning_percent"),
            (PoolPolicy { safety_percent: 80.0, ..usual.clone() }, "safety_percent"),
            (PoolPolicy { fatal_percent: 0.0, ..usual.clone() }, "fatal_percent"),
            (PoolPolicy { redundancy_percent: 100.0, ..usual.clone() }, "redundancy_percent"),
            (PoolPolicy { slow_ms: 0.0, ..usual.clone() }, "slow_ms"),
            (PoolPolicy { capacity: Some(-1.0), ..usual.clone() }, "capacity"),
            (PoolPolicy { min: 7, max: 3, ..usual.clone() }, "min"),
            (PoolPolicy { hold_ms: u64::MAX, ..usual.clone() }, "hold_ms"),
            (PoolPolicy { group: "g\n".into(), ..usual }, "group"),
        ];
        for (policy, field) in ill {
            let error = check(&policy).unwrap_err();
            assert!(error.message.contains(field) && !error.remedy.is_empty(), "{error}");
        }
    }
}
