//! What one instance can take, from what its instances were seen to do: windows that went well and windows that did
//! not. No I/O, no clock.
//!
//! An instance takes as many calls a second as it can serve well: 99 % of them faster than the pool's `slow_ms`, and
//! failures not more than one in a hundred above what the service always has. A limit counts as seen when windows
//! near the highest good load, or above it, went badly, and windows at that load did not as often go well: then it
//! was the load, and no fault beside it.
//!
//! * Far beyond the limit (many failures, or calls four times slower than slow) what ends well is what the instance
//!   can do at most. Slow calls begin a little before that: near saturation `99 %` grows with the reciprocal of what is
//!   left, which tells how much before.
//! * Only a little beyond it, the limit is the rate that separates good windows from bad ones best.
//! * Never beyond it, the highest load that went well is a lower bound. Where calls are getting slower the bend is
//!   followed, at most a fifth beyond what was seen, and the answer says so.

use model::center::{Capacity, CapacityPoint, Confidence};

/// Failures above what the service always has.
const ERRORS: f64 = 0.01;
/// More failures than these above the usual are far beyond the limit.
const DEEP_ERRORS: f64 = 0.05;
/// Calls this many times slower than slow are far beyond the limit.
const DEEP_TIMES: f64 = 4.0;
/// The limit is seen in no fewer windows than these.
const FEWEST: usize = 3;
/// Never further than this beyond what was seen.
const FURTHEST: f64 = 1.2;
/// Newest windows that are looked at.
const WINDOWS: usize = 20_000;

/// A window of one instance, made usable.
#[derive(Clone, Copy, Debug)]
struct Window {
    at_ms: u64,
    /// Calls a second that went well.
    served: f64,
    /// Calls a second that came.
    offered: f64,
    p99_ms: f64,
    errors: f64,
}

impl Window {
    fn of(point: &CapacityPoint) -> Option<Self> {
        let usable = |value: f64| value.is_finite() && value >= 0.0;
        if ![point.rate, point.p99_ms, point.errors].into_iter().all(usable) || point.errors > 1.0 || point.rate <= 0.0
        {
            return None;
        }
        // Where next to nothing went well nobody knows what came.
        let offered = if point.errors < 0.98 { point.rate / (1.0 - point.errors) } else { point.rate };
        Some(Self { at_ms: point.at_ms, served: point.rate, offered, p99_ms: point.p99_ms, errors: point.errors })
    }
}

/// What one instance of a pool can take. `slow_ms` is what the pool's policy calls slow, `stated` what it says that an
/// instance takes. `None` when nothing was seen going well and nothing is stated.
pub fn estimate(points: &[CapacityPoint], slow_ms: f64, stated: Option<f64>) -> Option<Capacity> {
    let newest = &points[points.len().saturating_sub(WINDOWS)..];
    let windows: Vec<Window> = newest.iter().filter_map(Window::of).collect();
    let seen = lately(&windows, slow_ms).map(|seen| unlike(seen, newest, slow_ms));
    let stated = stated.filter(|rate| rate.is_finite() && *rate > 0.0);
    match (seen, stated) {
        (Some(seen), Some(stated)) if seen.confidence <= Confidence::Low => Some(beside(seen, stated)),
        (None, Some(stated)) => Some(Capacity {
            per_instance: stated,
            confidence: Confidence::Medium,
            highest_seen: 0.0,
            basis: format!("stated by the pool's policy; nothing near {stated:.0}/s was seen yet"),
        }),
        (seen, _) => seen,
    }
}

/// A statement counts where no limit was seen, unless more was seen going well.
fn beside(seen: Capacity, stated: f64) -> Capacity {
    let highest = seen.highest_seen;
    if highest > stated {
        let basis = format!("{}; the pool's policy states {stated:.0}/s, which was passed well", seen.basis);
        return Capacity { basis, ..seen };
    }
    Capacity {
        per_instance: stated,
        confidence: Confidence::Medium,
        highest_seen: highest,
        basis: format!("stated by the pool's policy; up to {highest:.0}/s were seen going well, no limit yet"),
    }
}

/// What an instance takes whose own limit was not seen, as instances of the same service in other groups are known to:
/// the least of these, told as extrapolated, unless more was seen going well here.
pub fn beside_others(own: Option<Capacity>, others: impl Iterator<Item = (String, Capacity)>) -> Option<Capacity> {
    let least = others.min_by(|a, b| a.1.per_instance.total_cmp(&b.1.per_instance));
    let Some((group, other)) = least else { return own };
    let here = own.as_ref().map_or(0.0, |own| own.highest_seen);
    if own.as_ref().is_some_and(|own| own.per_instance >= other.per_instance) {
        return own;
    }
    Some(Capacity {
        per_instance: other.per_instance,
        confidence: Confidence::Low,
        // Of any instance of the service.
        highest_seen: other.highest_seen.max(here),
        basis: format!(
            "as in group {group}: {}; here up to {here:.0}/s were seen going well, no limit yet",
            other.basis
        ),
    })
}

/// The estimate from all windows, unless the newer ones show a lower limit: a new version may take less.
fn lately(windows: &[Window], slow_ms: f64) -> Option<Capacity> {
    let all = fit(windows, slow_ms)?;
    let mut rest: Vec<Window> = windows.to_vec();
    let mut bound = all.per_instance;
    let mut lower = None;
    // What went well at higher loads before hides what a new version does; so each time only what came after it.
    for _ in 0..24 {
        let well = |w: &&Window| w.served >= 0.9 * bound && w.p99_ms <= slow_ms && w.errors <= ERRORS;
        let Some(last) = rest.iter().filter(well).map(|w| w.at_ms).max() else { break };
        rest.retain(|w| w.at_ms > last);
        let Some(now) = (rest.len() >= 20).then(|| fit(&rest, slow_ms)).flatten() else { break };
        bound = now.per_instance;
        if now.confidence == Confidence::High && bound < 0.8 * all.per_instance && entered(&rest, bound, slow_ms) {
            lower = Some(now);
        }
    }
    let Some(now) = lower else { return Some(all) };
    let basis = format!("{}; it was {:.0}/s before", now.basis, all.per_instance);
    Some(Capacity { confidence: Confidence::Medium, highest_seen: all.highest_seen, basis, ..now })
}

/// Whether this limit was met while the load rose. One that is only seen while an overload goes on tells nothing of a
/// server that recovered from it.
fn entered(windows: &[Window], rate: f64, slow_ms: f64) -> bool {
    let well = |w: &Window| w.p99_ms <= slow_ms && w.errors <= ERRORS;
    let beyond = windows.iter().filter(|w| !well(w) && w.offered >= 0.8 * rate);
    let mut times: Vec<u64> = beyond.map(|w| w.at_ms).collect();
    times.sort_unstable();
    let Some(middle) = times.get(times.len() / 2) else { return false };
    windows.iter().filter(|w| well(w) && w.at_ms < *middle).count() >= FEWEST
}

/// Where instances have limits that differ, one of them is taken for none of the others: the mean of those that were
/// seen, which the whole pool takes when each gets its part.
fn unlike(all: Capacity, points: &[CapacityPoint], slow_ms: f64) -> Capacity {
    let own = by_instance(points, slow_ms);
    let known: Vec<&(String, Capacity)> = own.iter().filter(|(_, c)| c.confidence >= Confidence::Medium).collect();
    let by_rate = |a: &&&(String, Capacity), b: &&&(String, Capacity)| a.1.per_instance.total_cmp(&b.1.per_instance);
    let (Some(least), Some(most)) = (known.iter().min_by(by_rate), known.iter().max_by(by_rate)) else { return all };
    let note = format!(
        "instances differ: {} takes {:.0}/s, {} takes {:.0}/s",
        least.0, least.1.per_instance, most.0, most.1.per_instance
    );
    if most.1.per_instance > 1.25 * least.1.per_instance {
        return Capacity {
            per_instance: known.iter().map(|(_, c)| c.per_instance).sum::<f64>() / known.len() as f64,
            confidence: known.iter().map(|(_, c)| c.confidence).min().unwrap_or(all.confidence),
            highest_seen: all.highest_seen,
            basis: format!("mean of {} instances whose limits were seen; {note}", known.len()),
        };
    }
    if all.confidence <= Confidence::Low && all.per_instance > 1.25 * most.1.per_instance {
        let basis = format!("{}; yet {} takes only {:.0}/s", all.basis, least.0, least.1.per_instance);
        return Capacity { basis, ..all };
    }
    all
}

/// The estimate of every instance by itself, by address. Instances that were seen in few windows are left out.
pub fn by_instance(points: &[CapacityPoint], slow_ms: f64) -> Vec<(String, Capacity)> {
    let mut windows: std::collections::BTreeMap<&str, Vec<Window>> = std::collections::BTreeMap::new();
    for point in &points[points.len().saturating_sub(WINDOWS)..] {
        windows.entry(&point.instance).or_default().extend(Window::of(point));
    }
    let enough = windows.into_iter().filter(|(_, windows)| windows.len() >= 20);
    enough.filter_map(|(name, windows)| Some((name.to_owned(), lately(&windows, slow_ms)?))).collect()
}

/// The estimate from windows of one instance, or of instances that are alike.
fn fit(windows: &[Window], slow_ms: f64) -> Option<Capacity> {
    let usual = usual_errors(windows);
    let went_well = |w: &Window| w.p99_ms <= slow_ms && w.errors <= usual + ERRORS;
    let (good, bad): (Vec<Window>, Vec<Window>) = windows.iter().partition(|w| went_well(w));
    let mut best: Vec<f64> = good.iter().map(|w| w.served).collect();
    best.sort_by(|a, b| b.total_cmp(a));
    let highest_seen = *best.first()?;
    // One window may hold calls that queued in the one before.
    let steady = best[best.len().min(FEWEST) - 1];
    let beyond: Vec<Window> =
        bad.into_iter().filter(|w| w.offered >= 0.8 * steady && w.served >= 0.3 * steady).collect();
    if beyond.len() < FEWEST || !by_load(&good, &beyond) {
        return Some(unlimited(&good, steady, highest_seen, slow_ms, usual));
    }
    let (deep, _): (Vec<Window>, Vec<Window>) =
        beyond.iter().partition(|w| w.p99_ms > DEEP_TIMES * slow_ms || w.errors > usual + DEEP_ERRORS);
    let between = separating(&good, &beyond);
    let (rate, how) = if deep.len() >= FEWEST {
        let most = quantile(deep.iter().map(|w| w.served), 0.6);
        if most < 0.9 * steady {
            (between.max(steady), format!("with more it serves less: {most:.0}/s"))
        } else {
            let rate = slow_before(&good, &beyond, most, slow_ms).map_or(between, |before| most - before);
            (rate.min(most), format!("overloaded it serves {most:.0}/s"))
        }
    } else if beyond.iter().filter(|w| w.p99_ms <= slow_ms).count() * 2 > beyond.len() {
        // What it refuses tells what it takes.
        let most = quantile(beyond.iter().map(|w| w.served), 0.5);
        (most, format!("it serves {most:.0}/s and refuses the rest"))
    } else {
        (between, format!("above {between:.0}/s more than 1 % take longer than {slow_ms:.0} ms"))
    };
    let close = good.iter().filter(|w| w.served >= 0.8 * rate).count();
    let both_sides = close >= 5 && beyond.len() >= 8;
    let confidence = if both_sides { Confidence::High } else { Confidence::Medium };
    let gap = if close == 0 { format!("; nothing was seen between {steady:.0}/s and that") } else { String::new() };
    let basis =
        format!("{how}; {} windows beyond the limit, {} just below it{gap}{}", beyond.len(), close, errors_note(usual));
    Some(Capacity { per_instance: rate, confidence, highest_seen, basis })
}

/// Failures that a service has whatever its load: what half of its quiet windows have, at most one in twenty.
fn usual_errors(windows: &[Window]) -> f64 {
    let quiet = quantile(windows.iter().map(|w| w.offered), 0.2);
    quantile(windows.iter().filter(|w| w.offered <= quiet).map(|w| w.errors), 0.5).min(0.05)
}

fn errors_note(usual: f64) -> String {
    if usual > 0.002 { format!("; {:.1} % fail at any load", usual * 100.0) } else { String::new() }
}

/// Whether windows went badly because of their load: at such loads they rarely go well.
fn by_load(good: &[Window], beyond: &[Window]) -> bool {
    let middle = quantile(beyond.iter().map(|w| w.offered), 0.5);
    let at_least = |windows: &[Window]| windows.iter().filter(|w| w.offered >= middle).count();
    at_least(good) <= at_least(beyond)
}

/// The rate that the fewest good windows are above and the fewest bad ones below; the middle where several are.
fn separating(good: &[Window], beyond: &[Window]) -> f64 {
    let mut all: Vec<(f64, bool)> = good.iter().map(|w| (w.served, true)).collect();
    all.extend(beyond.iter().map(|w| (w.served, false)));
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    // With the line below all of them every good one is on the wrong side. A bad window below it is worse than a
    // good one above: near the limit windows go well by luck.
    let mut wrong = good.len();
    let mut fewest = usize::MAX;
    let (mut first, mut last) = (0.0, 0.0);
    for (i, (rate, went_well)) in all.iter().enumerate() {
        wrong = if *went_well { wrong - 1 } else { wrong + 3 };
        let line = all.get(i + 1).map_or(*rate, |(next, _)| f64::midpoint(*rate, *next));
        if wrong < fewest {
            (fewest, first) = (wrong, line);
        }
        if wrong == fewest {
            last = line;
        }
    }
    f64::midpoint(first, last)
}

/// How far before saturation at `most` calls begin to be slow: `99 %` grows as `k / (most - rate)`.
fn slow_before(good: &[Window], beyond: &[Window], most: f64, slow_ms: f64) -> Option<f64> {
    let quiet_ms = quiet(good);
    let room = (slow_ms - quiet_ms).max(0.05 * slow_ms);
    // Bad windows as well: the good ones alone would be those that went well by luck.
    let bent: Vec<f64> = good
        .iter()
        .chain(beyond)
        .filter(|w| w.served >= 0.6 * most && w.served <= 0.97 * most)
        .map(|w| (w.p99_ms - quiet_ms).max(0.0) * (most - w.served))
        .collect();
    (bent.len() >= 5).then(|| (quantile(bent.into_iter(), 0.6) / room).min(0.5 * most))
}

/// Time of calls without load.
fn quiet(good: &[Window]) -> f64 {
    let third = quantile(good.iter().map(|w| w.offered), 0.33);
    quantile(good.iter().filter(|w| w.offered <= third).map(|w| w.p99_ms), 0.5)
}

/// No limit was seen: a lower bound, or a little more where calls are getting slower.
fn unlimited(good: &[Window], steady: f64, highest_seen: f64, slow_ms: f64, usual: f64) -> Capacity {
    let note = errors_note(usual);
    let bound = Capacity {
        per_instance: steady,
        confidence: Confidence::LowerBound,
        highest_seen,
        basis: format!(
            "{steady:.0}/s went well in {} windows and no limit was seen: it may take any more{note}",
            good.len()
        ),
    };
    let busy: Vec<&Window> = good.iter().filter(|w| w.served >= 0.5 * steady).collect();
    let top = quantile(good.iter().filter(|w| w.served >= 0.9 * steady).map(|w| w.p99_ms), 0.5);
    if busy.len() < 20 || top < 2.0 * quiet(good) {
        return bound;
    }
    // Near saturation 1 / 99 % falls in a straight line with the rate.
    let n = busy.len() as f64;
    let reciprocal = |w: &Window| 1.0 / w.p99_ms.max(1e-3);
    let mean_x = busy.iter().map(|w| w.served).sum::<f64>() / n;
    let mean_y = busy.iter().map(|w| reciprocal(w)).sum::<f64>() / n;
    let across = busy.iter().map(|w| (w.served - mean_x) * (reciprocal(w) - mean_y)).sum::<f64>();
    let along = busy.iter().map(|w| (w.served - mean_x).powi(2)).sum::<f64>();
    let slope = across / along.max(1e-9);
    if slope >= 0.0 {
        return bound;
    }
    let meets = mean_x + (1.0 / slow_ms - mean_y) / slope;
    let rate = meets.clamp(steady, FURTHEST * steady);
    let least = if meets > rate { "at least " } else { "" };
    Capacity {
        per_instance: rate,
        confidence: Confidence::Low,
        highest_seen,
        basis: format!(
            "extrapolated: {steady:.0}/s went well and calls are getting slower, which leads to {least}{rate:.0}/s{note}"
        ),
    }
}

/// The value that this share of all stay below; 0 without any.
fn quantile(values: impl Iterator<Item = f64>, share: f64) -> f64 {
    let mut values: Vec<f64> = values.collect();
    if values.is_empty() {
        return 0.0;
    }
    let at = ((values.len() - 1) as f64 * share).round() as usize;
    *values.select_nth_unstable_by(at, f64::total_cmp).1
}

#[cfg(test)]
#[path = "planted.rs"]
mod planted;
