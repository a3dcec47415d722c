//! How near a pool is to what it can take, and what would become of the others if it were lost. No I/O, no clock.

use std::collections::BTreeMap;

use model::center::{Band, Capacity, Confidence, Pool, PoolPolicy, WhatIf};

/// Below this share of what it can take a pool is idle, percent.
const IDLE_PERCENT: f64 = 10.0;

/// What is seen of a pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Instances that callers may use.
    pub instances: u32,
    /// Calls a second.
    pub rate: f64,
    /// The same by bands of time.
    pub bands: Vec<Band>,
    /// What one instance can take.
    pub capacity: Option<Capacity>,
}

/// The pool that is seen, under its policy; without advice.
pub fn of(policy: &PoolPolicy, seen: Seen) -> Pool {
    let banded = Band::load(&seen.bands);
    let mut pool = Pool {
        service: policy.service.clone(),
        group: policy.group.clone(),
        instances: seen.instances,
        rate: seen.rate,
        load: if banded > 0.0 { banded } else { seen.rate },
        bands: seen.bands,
        capacity: seen.capacity,
        water_percent: None,
        redundancy_percent: None,
        level: String::new(),
        policy: policy.clone(),
        advice: None,
    };
    settle(&mut pool);
    pool
}

/// Load that all instances together can take; none when nothing is known. Only what was seen going well counts of an
/// extrapolated estimate: nobody is sent where nobody was.
pub fn takes(pool: &Pool) -> Option<f64> {
    let capacity = pool.capacity.as_ref()?;
    let each = match capacity.confidence {
        Confidence::Low => capacity.highest_seen.min(capacity.per_instance),
        _ => capacity.per_instance,
    };
    Some(each * f64::from(pool.instances))
}

/// Whether the limit of the pool is known, and not only that it takes this much.
pub fn limit_known(pool: &Pool) -> bool {
    pool.capacity.as_ref().is_some_and(|capacity| capacity.confidence > Confidence::LowerBound)
}

/// Load in percent of what is known to go well; where no limit was seen, the water level at most.
fn reckoned(pool: &Pool) -> Option<f64> {
    let all = pool.capacity.as_ref().map(|capacity| capacity.per_instance * f64::from(pool.instances));
    all.filter(|all| *all > 0.0).map(|all| pool.load / all * 100.0)
}

/// Reckons water level, redundancy and level from load, instances and capacity.
fn settle(pool: &mut Pool) {
    let water = reckoned(pool);
    let word = match water {
        None if pool.instances == 0 && pool.load > 0.0 => "fatal",
        None => "unknown",
        Some(water) if water < IDLE_PERCENT => "idle",
        Some(water) if water < pool.policy.warning_percent => "normal",
        // It takes at least this much, and perhaps far more: nobody need be alarmed.
        Some(_) if !limit_known(pool) => "unknown",
        Some(water) if water < pool.policy.fatal_percent => "warning",
        Some(_) => "fatal",
    };
    pool.level = word.to_owned();
    // A number near a hundred would be read as an alarm, by people and by rules.
    pool.water_percent = water.filter(|_| word != "unknown");
    pool.redundancy_percent = pool.water_percent.map(|water| (1.0 - water / pool.policy.fatal_percent) * 100.0);
}

/// The pool with another load, in the same mix of fast and slow calls.
pub fn with_load(pool: &Pool, load: f64) -> Pool {
    let mut then = pool.clone();
    let factor = if pool.load > 0.0 { load / pool.load } else { 0.0 };
    then.rate = if pool.load > 0.0 { pool.rate * factor } else { load };
    for band in &mut then.bands {
        band.rate *= factor;
    }
    then.load = load;
    settle(&mut then);
    then
}

/// Fewest instances with which `load` leaves `redundancy_percent` of them to lose before `fatal_percent`.
pub fn needed(load: f64, each: f64, fatal_percent: f64, redundancy_percent: f64) -> u32 {
    let one = each * fatal_percent / 100.0 * (1.0 - redundancy_percent / 100.0);
    if one <= 0.0 {
        return u32::MAX;
    }
    // Rounding must not ask for one more than a whole number.
    (load / one - 1e-9).ceil().clamp(0.0, f64::from(u32::MAX)) as u32
}

/// What would become of `pools` without the groups in `lost`: their load is spread over what remains of each service,
/// by what each pool can take; where that is not known of all, by instances.
pub fn what_if(pools: Vec<Pool>, lost: &[String]) -> WhatIf {
    let mut services: BTreeMap<String, (f64, Vec<Pool>)> = BTreeMap::new();
    for pool in pools {
        let (homeless, rest) = services.entry(pool.service.clone()).or_default();
        if lost.contains(&pool.group) {
            *homeless += pool.load;
        } else {
            rest.push(pool);
        }
    }
    let mut answer = WhatIf { lost: lost.to_vec(), ..WhatIf::default() };
    for (service, (homeless, rest)) in services {
        let known = rest.iter().all(|pool| takes(pool).is_some());
        let part = |pool: &Pool| if known { takes(pool).unwrap_or(0.0) } else { f64::from(pool.instances) };
        let whole: f64 = rest.iter().map(part).sum();
        if whole <= 0.0 {
            if homeless > 0.0 || rest.is_empty() {
                answer.fails.push(format!("{service}: no group is left for {homeless:.0}/s"));
            }
            answer.pools.extend(rest);
            continue;
        }
        for pool in rest {
            let more = homeless * part(&pool) / whole;
            let mut then = with_load(&pool, pool.load + more);
            judge(&mut then, more, &mut answer);
            answer.pools.push(then);
        }
    }
    answer
}

/// Says of a pool that got `more` whether it would fail, and what it would need.
fn judge(pool: &mut Pool, more: f64, answer: &mut WhatIf) {
    let name = format!("{}/{}", pool.group, pool.service);
    let Some(capacity) = &pool.capacity else {
        if more > 0.0 {
            pool.advice = Some("nothing is known of what it can take: say it in `capacity` of its policy".to_owned());
            answer
                .fails
                .push(format!("{name}: nothing is known of what it can take, and it would get {more:.0}/s more"));
        }
        return;
    };
    let (water, policy) = (reckoned(pool).unwrap_or(0.0), &pool.policy);
    if water > policy.fatal_percent {
        let at_most = if limit_known(pool) { "" } else { " at most, for its limit was never seen" };
        answer.fails.push(format!(
            "{name}: would be at {water:.0} %{at_most}, its fatal line is {:.0} %",
            policy.fatal_percent
        ));
    }
    let enough = needed(pool.load, capacity.per_instance, policy.safety_percent, 0.0);
    if enough > pool.instances && more > 0.0 {
        answer.needed.push((name, enough - pool.instances));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity(per_instance: f64, confidence: Confidence) -> Capacity {
        Capacity { per_instance, confidence, highest_seen: per_instance * 0.9, basis: String::new() }
    }

    fn pool(group: &str, instances: u32, rate: f64, each: Option<f64>) -> Pool {
        let policy = PoolPolicy { service: "s".into(), group: group.into(), ..PoolPolicy::default() };
        let capacity = each.map(|each| capacity(each, Confidence::High));
        of(&policy, Seen { instances, rate, bands: Vec::new(), capacity })
    }

    #[test]
    fn water_redundancy_and_level() {
        let check = |rate: f64, water: f64, redundancy: f64, level: &str| {
            let pool = pool("g", 10, rate, Some(100.0));
            assert_eq!((pool.water_percent, pool.redundancy_percent), (Some(water), Some(redundancy)));
            assert_eq!(pool.level, level);
        };
        check(50.0, 5.0, 95.0, "idle");
        check(500.0, 50.0, 50.0, "normal");
        check(750.0, 75.0, 25.0, "warning");
        check(1250.0, 125.0, -25.0, "fatal");
        assert_eq!(pool("g", 3, 10.0, None).level, "unknown");
        assert_eq!(pool("g", 0, 10.0, Some(100.0)).level, "fatal");
        assert_eq!(pool("g", 0, 0.0, None).level, "unknown");
    }

    #[test]
    fn slow_calls_raise_the_water() {
        let policy = PoolPolicy::default();
        let mut times = model::center::Histogram::default();
        times.add(10_000, 900);
        times.add(5_000_000, 100);
        let bands = Band::of(&times, 10.0, policy.slow_ms);
        let seen = Seen { instances: 2, rate: 100.0, bands, capacity: Some(capacity(100.0, Confidence::High)) };
        let pool = of(&policy, seen);
        assert_eq!(pool.load, 90.0 + 10.0 * 8.0);
        assert_eq!(pool.level, "warning");
        let half = with_load(&pool, pool.load / 2.0);
        assert_eq!((half.rate, half.bands[0].rate, half.level.as_str()), (50.0, 45.0, "normal"));
    }

    #[test]
    fn a_lower_bound_alarms_nobody_and_is_not_passed() {
        let policy = PoolPolicy::default();
        let with = |rate, confidence| {
            of(&policy, Seen { instances: 1, rate, bands: Vec::new(), capacity: Some(capacity(100.0, confidence)) })
        };
        let unknown = with(95.0, Confidence::LowerBound);
        assert_eq!(
            (unknown.level.as_str(), unknown.water_percent, unknown.redundancy_percent),
            ("unknown", None, None)
        );
        assert_eq!(with(50.0, Confidence::LowerBound).level, "normal");
        assert_eq!(with(95.0, Confidence::Low).level, "warning");
        assert_eq!(takes(&with(1.0, Confidence::Low)), Some(90.0), "extrapolated capacity is not given away");
        assert_eq!(takes(&with(1.0, Confidence::Medium)), Some(100.0));
    }

    #[test]
    fn a_lost_centre_is_spread_by_capacity() {
        let pools = vec![
            pool("idc-a", 10, 400.0, Some(100.0)),
            pool("idc-b", 5, 100.0, Some(100.0)),
            pool("idc-c", 5, 100.0, Some(300.0)),
        ];
        let answer = what_if(pools, &["idc-a".to_owned()]);
        let load = |group: &str| answer.pools.iter().find(|p| p.group == group).unwrap().load;
        assert_eq!((load("idc-b"), load("idc-c")), (200.0, 400.0));
        assert_eq!(answer.fails, [""; 0]);
        assert_eq!(answer.needed, []);
        let all: f64 = answer.pools.iter().map(|p| p.load).sum();
        assert_eq!(all, 600.0, "no call is lost or made up");
    }

    #[test]
    fn what_would_fail_is_told_with_what_is_needed() {
        let pools = || vec![pool("a", 10, 800.0, Some(100.0)), pool("b", 5, 100.0, Some(100.0))];
        let answer = what_if(pools(), &["a".to_owned()]);
        assert!(answer.fails[0].starts_with("b/s: would be at 180 %"), "{:?}", answer.fails);
        assert_eq!(answer.needed, [("b/s".to_owned(), 10)], "900/s at 60 % of 100/s each are 15 instances");
        let none = what_if(pools(), &["a".to_owned(), "b".to_owned()]);
        assert_eq!((none.pools.len(), none.fails.as_slice()), (0, &["s: no group is left for 900/s".to_owned()][..]));
        let unknown = what_if(vec![pool("a", 1, 10.0, None), pool("b", 1, 10.0, None)], &["a".to_owned()]);
        assert!(unknown.fails[0].contains("nothing is known"), "{:?}", unknown.fails);
        assert_eq!(unknown.pools[0].load, 20.0);
        let nothing = what_if(pools(), &[]);
        assert_eq!((nothing.fails.len(), nothing.needed.len()), (0, 0));
    }

    #[test]
    fn instances_needed_are_not_one_too_many() {
        assert_eq!(needed(700.0, 100.0, 100.0, 30.0), 10);
        assert_eq!(needed(701.0, 100.0, 100.0, 30.0), 11);
        assert_eq!(needed(0.0, 100.0, 100.0, 30.0), 0);
        assert_eq!(needed(1.0, 0.0, 100.0, 30.0), u32::MAX);
    }
}
