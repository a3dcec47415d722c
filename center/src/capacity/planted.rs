//! Estimates of servers whose limit is known, because it was planted.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::*;
use model::center::{Band, Histogram};

const SLOW_MS: f64 = 200.0;
const WINDOW_S: f64 = 10.0;

/// A server in virtual time: workers, a line before them, a limit on what is let in.
#[derive(Clone, Copy, Debug)]
struct Server {
    /// Calls served at the same time.
    workers: usize,
    /// Mean time of a call in seconds.
    mean_s: f64,
    /// Spread of the time: 0 constant, 1 exponential.
    spread: f64,
    /// Calls a second that are let in; more are refused at once.
    limit: Option<f64>,
    /// Calls that would wait longer are refused at once.
    longest_wait_s: f64,
    /// Callers who waited longer are gone.
    patience_s: f64,
    /// Share by which a call takes longer for each second that the line is long.
    thrash: f64,
    /// Failures at any load.
    faults: f64,
}

const PLAIN: Server = Server {
    workers: 4,
    mean_s: 0.04,
    spread: 0.3,
    limit: None,
    longest_wait_s: f64::INFINITY,
    patience_s: 3.0,
    thrash: 0.0,
    faults: 0.0,
};

/// Noise on top of that of chance: agents count windows that do not quite fit, and cut times into buckets.
#[derive(Clone, Copy)]
struct Noise {
    rate: f64,
    p99: f64,
}

const QUIET: Noise = Noise { rate: 0.0, p99: 0.0 };
const NOISY: Noise = Noise { rate: 0.03, p99: 0.15 };

#[derive(Clone, Default)]
struct Counted {
    times: Histogram,
    well: u64,
    failed: u64,
}

impl Server {
    /// What it can serve well: the highest steady load that has 99 % of its calls below `slow_ms` and nearly no
    /// failures besides those at any load, found by trying.
    fn truth(&self, slow_ms: f64) -> f64 {
        let mut rng = fastrand::Rng::with_seed(7);
        let (mut good, mut bad) = (0.0, self.limit.map_or(f64::INFINITY, |l| l * 1.2));
        bad = f64::min(bad, 1.2 * self.workers as f64 / self.mean_s);
        for _ in 0..9 {
            let load = f64::midpoint(good, bad);
            let all = self.simulate(&[load; 60], &mut rng).into_iter().fold(Counted::default(), |mut all, window| {
                all.times.merge(&window.times);
                Counted { well: all.well + window.well, failed: all.failed + window.failed, ..all }
            });
            let errors = all.failed as f64 / (all.well + all.failed) as f64;
            let well = all.times.quantile_ms(0.99).unwrap() <= slow_ms && errors <= self.faults + ERRORS;
            *(if well { &mut good } else { &mut bad }) = load;
        }
        good * (1.0 - self.faults)
    }

    /// What it does while the load, in calls a second, follows `loads`, a window each.
    fn simulate(&self, loads: &[f64], rng: &mut fastrand::Rng) -> Vec<Counted> {
        let mut windows = vec![Counted::default(); loads.len()];
        let mut free: BinaryHeap<Reverse<u64>> = (0..self.workers).map(|_| Reverse(0)).collect();
        let (mut now, mut tokens) = (0.0, 1.0);
        let micros = |s: f64| (s * 1e6) as u64;
        loop {
            let at = (now / WINDOW_S) as usize;
            let Some(load) = loads.get(at) else { break };
            let gap = -(1.0 - rng.f64()).ln() / load.max(0.01);
            now += gap;
            let mut end = |at_s: f64, took_s: f64, well: bool| {
                let Some(window) = windows.get_mut((at_s / WINDOW_S) as usize) else { return };
                window.times.add(micros(took_s), 1);
                if well { window.well += 1 } else { window.failed += 1 }
            };
            if rng.f64() < self.faults {
                end(now, 0.002, false);
                continue;
            }
            if let Some(limit) = self.limit {
                tokens = f64::min(tokens + gap * limit, limit);
                if tokens < 1.0 {
                    end(now, 0.001, false);
                    continue;
                }
                tokens -= 1.0;
            }
            let Some(Reverse(first)) = free.pop() else { break };
            let start = now.max(first as f64 / 1e6);
            let wait = start - now;
            if wait > self.longest_wait_s {
                free.push(Reverse(first));
                end(now, 0.001, false);
                continue;
            }
            if wait > self.patience_s {
                free.push(Reverse(first));
                end(now + self.patience_s, self.patience_s, false);
                continue;
            }
            let chance = 1.0 - self.spread + self.spread * -(1.0 - rng.f64()).ln();
            let done = start + self.mean_s * chance * (1.0 + self.thrash * wait);
            free.push(Reverse(micros(done)));
            end(done, done - now, true);
        }
        windows
    }

    /// What agents would see of it meanwhile.
    fn run(&self, loads: &[f64], noise: Noise, rng: &mut fastrand::Rng) -> Vec<CapacityPoint> {
        let windows = self.simulate(loads, rng);
        let blur = |by: f64, rng: &mut fastrand::Rng| 1.0 + by * (rng.f64() + rng.f64() + rng.f64() - 1.5) * 2.0;
        let mut points = Vec::new();
        for (i, window) in windows.iter().enumerate() {
            let all = window.well + window.failed;
            let Some(p99_ms) = window.times.quantile_ms(0.99) else { continue };
            points.push(CapacityPoint {
                at_ms: (i as u64 + 1) * 10_000,
                instance: "10.0.0.1:80".to_owned(),
                rate: window.well as f64 / WINDOW_S * blur(noise.rate, rng),
                load: Band::load(&Band::of(&window.times, WINDOW_S, SLOW_MS)),
                p99_ms: p99_ms * blur(noise.p99, rng),
                errors: window.failed as f64 / all as f64,
            });
        }
        points
    }
}

/// Loads that rise from `from` to `to` and fall again, as over a day.
fn day(from: f64, to: f64, windows: usize) -> Vec<f64> {
    let wave = |i: usize| (1.0 - (i as f64 / windows as f64 * std::f64::consts::TAU).cos()) / 2.0;
    (0..windows).map(|i| from + (to - from) * wave(i)).collect()
}

/// The limit is found within 10 %, with confidence, whatever chance does. `planted` is where it is by construction.
#[track_caller]
fn found(server: Server, up_to: f64, planted: f64, slow_ms: f64) {
    let truth = server.truth(slow_ms);
    assert!((truth / planted - 1.0).abs() < 0.05, "planted {planted:.1}, and it takes {truth:.1} in truth");
    for seed in 0..8 {
        let noise = if seed % 2 == 0 { QUIET } else { NOISY };
        let mut rng = fastrand::Rng::with_seed(seed);
        let points = server.run(&day(0.1 * planted, up_to * planted, 120), noise, &mut rng);
        let found = estimate(&points, slow_ms, None).unwrap();
        let off = found.per_instance / planted - 1.0;
        println!("takes {planted:.1}, found {:.1} ({:+.1} %): {}", found.per_instance, off * 100.0, found.basis);
        assert!(off.abs() < 0.1, "takes {planted:.1}, seed {seed}: {found:?}");
        assert!(found.confidence >= Confidence::Medium, "seed {seed}: {found:?}");
    }
}

#[test]
fn fixed_concurrency_is_found() {
    found(PLAIN, 1.3, 98.0, 1000.0);
    found(Server { workers: 1, mean_s: 0.01, ..PLAIN }, 1.5, 98.0, 1000.0);
    found(Server { workers: 32, mean_s: 0.1, spread: 0.0, ..PLAIN }, 1.15, 320.0, 400.0);
    // Where queueing is slow long before the servers are full.
    found(PLAIN, 1.3, 88.0, SLOW_MS);
    found(Server { workers: 1, mean_s: 0.02, ..PLAIN }, 1.5, 37.0, SLOW_MS);
}

#[test]
fn a_limit_on_the_rate_is_found() {
    for limit in [20.0, 150.0] {
        let server = Server { limit: Some(limit), workers: 64, mean_s: 0.01, ..PLAIN };
        found(server, 1.3, limit, SLOW_MS);
        found(server, 2.5, limit, SLOW_MS);
    }
}

#[test]
fn a_queue_before_a_processor_is_found() {
    let queue = Server { workers: 1, mean_s: 0.01, spread: 1.0, ..PLAIN };
    // 99 % of an exponential queue take less than ln(100) / (what it can do - what comes).
    for slow_ms in [150.0, 200.0, 400.0] {
        found(queue, 1.25, 100.0 - 100_f64.ln() / (slow_ms / 1000.0), slow_ms);
    }
    // One that refuses instead of waiting.
    found(Server { longest_wait_s: 0.3, ..queue }, 1.4, 95.0, 400.0);
}

#[test]
fn one_that_serves_less_the_more_comes_is_found() {
    found(Server { thrash: 0.3, ..PLAIN }, 1.3, 84.0, SLOW_MS);
}

#[test]
fn usual_failures_are_no_limit() {
    found(Server { faults: 0.02, ..PLAIN }, 1.3, 98.0, 1000.0);
}

#[test]
fn what_was_not_seen_is_not_made_up() {
    for seed in 0..8 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let points = PLAIN.run(&day(5.0, 40.0, 120), NOISY, &mut rng);
        let bound = estimate(&points, SLOW_MS, None).unwrap();
        assert_eq!(bound.confidence, Confidence::LowerBound, "{bound:?}");
        assert!(bound.per_instance <= bound.highest_seen, "{bound:?}");
        assert!((30.0..=50.0).contains(&bound.per_instance), "{bound:?}");
        assert!(bound.basis.contains("no limit was seen"), "{bound:?}");
        // A little beyond, and told, where calls are getting slower.
        let queue = Server { workers: 1, mean_s: 0.01, spread: 1.0, ..PLAIN };
        let points = queue.run(&day(5.0, 70.0, 120), QUIET, &mut rng);
        let low = estimate(&points, 1000.0, None).unwrap();
        assert_eq!(low.confidence, Confidence::Low, "{low:?}");
        assert!(low.per_instance <= FURTHEST * low.highest_seen && low.per_instance > 65.0, "{low:?}");
        assert!(low.basis.starts_with("extrapolated"), "{low:?}");
    }
}

#[test]
fn a_fault_at_low_load_is_no_limit() {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut points = PLAIN.run(&day(5.0, 60.0, 120), QUIET, &mut rng);
    // Something behind it was slow, or broken, for five minutes, at loads that went well before and after.
    for (i, point) in points.iter_mut().enumerate().filter(|(i, _)| (45..75).contains(i)) {
        point.p99_ms = 900.0;
        point.errors = if i % 2 == 0 { 0.3 } else { 0.0 };
        point.rate *= 1.0 - point.errors;
    }
    points.extend(PLAIN.run(&day(30.0, 60.0, 120), QUIET, &mut rng));
    let found = estimate(&points, SLOW_MS, None).unwrap();
    assert!(found.confidence <= Confidence::Low && found.per_instance > 50.0, "{found:?}");
}

#[test]
fn a_limit_that_moved_is_followed() {
    let mut rng = fastrand::Rng::with_seed(1);
    let slower = Server { mean_s: 0.08, ..PLAIN };
    for (first, then, truth) in [(PLAIN, slower, 48.0), (slower, PLAIN, 97.0)] {
        let mut points = first.run(&day(5.0, 130.0, 120), QUIET, &mut rng);
        let end = points.last().unwrap().at_ms;
        let later = then.run(&day(5.0, 130.0, 120), QUIET, &mut rng);
        points.extend(later.into_iter().map(|p| CapacityPoint { at_ms: p.at_ms + end, ..p }));
        let found = estimate(&points, 1000.0, None).unwrap();
        assert!((found.per_instance / truth - 1.0).abs() < 0.1, "{truth}: {found:?}");
    }
}

#[test]
fn instances_that_differ_are_told_apart() {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut points = PLAIN.run(&day(10.0, 130.0, 120), QUIET, &mut rng);
    let large = Server { workers: 12, ..PLAIN };
    let more = large.run(&day(30.0, 390.0, 120), QUIET, &mut rng);
    points.extend(more.into_iter().map(|p| CapacityPoint { instance: "10.0.0.2:80".to_owned(), ..p }));
    points.sort_by_key(|p| p.at_ms);
    let found = estimate(&points, SLOW_MS, None).unwrap();
    assert!((found.per_instance / 200.0 - 1.0).abs() < 0.1, "{found:?}");
    assert!(found.basis.contains("instances differ: 10.0.0.1:80"), "{found:?}");
}

#[test]
fn what_a_policy_states_counts_until_the_limit_is_seen() {
    let mut rng = fastrand::Rng::with_seed(1);
    let quiet = PLAIN.run(&day(5.0, 40.0, 60), QUIET, &mut rng);
    let stated = estimate(&quiet, SLOW_MS, Some(90.0)).unwrap();
    assert_eq!((stated.per_instance, stated.confidence), (90.0, Confidence::Medium));
    let passed = estimate(&quiet, SLOW_MS, Some(20.0)).unwrap();
    assert!(passed.per_instance > 30.0 && passed.basis.contains("states 20/s"), "{passed:?}");
    let full = PLAIN.run(&day(5.0, 130.0, 120), QUIET, &mut rng);
    assert!(estimate(&full, SLOW_MS, Some(300.0)).unwrap().per_instance < 110.0);
    assert_eq!(estimate(&[], SLOW_MS, Some(90.0)).unwrap().per_instance, 90.0);
}

#[test]
fn a_group_that_was_never_full_is_as_its_siblings() {
    let capacity = |per_instance, confidence| Capacity {
        per_instance,
        confidence,
        highest_seen: per_instance,
        basis: "seen".to_owned(),
    };
    let others = || [("b".to_owned(), 90.0), ("c".to_owned(), 80.0)].map(|(g, c)| (g, capacity(c, Confidence::High)));
    let own = Some(capacity(20.0, Confidence::LowerBound));
    let found = beside_others(own.clone(), others().into_iter()).unwrap();
    assert_eq!((found.per_instance, found.confidence), (80.0, Confidence::Low));
    assert!(found.basis.starts_with("as in group c: seen; here up to 20/s"), "{found:?}");
    assert_eq!(beside_others(own.clone(), std::iter::empty()), own);
    let more = Some(capacity(85.0, Confidence::LowerBound));
    assert_eq!(beside_others(more.clone(), others().into_iter()), more, "more was seen here");
    assert_eq!(beside_others(None, others().into_iter()).unwrap().per_instance, 80.0);
}

#[test]
fn nothing_usable_is_nothing() {
    assert_eq!(estimate(&[], SLOW_MS, None), None);
    let odd = |rate: f64, p99_ms: f64, errors: f64| CapacityPoint {
        at_ms: 0,
        instance: String::new(),
        rate,
        load: 0.0,
        p99_ms,
        errors,
    };
    let points = [
        odd(f64::NAN, 1.0, 0.0),
        odd(1.0, f64::INFINITY, 0.0),
        odd(1.0, 1.0, 7.0),
        odd(-1.0, 1.0, 0.0),
        odd(0.0, 0.0, 1.0),
        odd(1.0, 900.0, 0.0),
    ];
    assert_eq!(estimate(&points, SLOW_MS, Some(f64::NAN)), None);
    for n in 1..12 {
        let few: Vec<CapacityPoint> = (0..n).map(|i| odd(f64::from(i) + 1.0, 1e9, f64::from(i % 3) / 3.0)).collect();
        estimate(&few, SLOW_MS, None);
        estimate(&few, 1e12, None);
        estimate(&few, 0.0, None);
    }
}
