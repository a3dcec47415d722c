//! One circuit: counts of the last while, and whether calls pass.

use std::{
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Parts of the window; the oldest one is forgotten as a whole.
const PARTS: usize = 10;

/// When a circuit opens and closes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub window: Duration,
    /// Fewer calls than this within the window say nothing.
    pub requests: u32,
    pub error_percent: f64,
    /// Calls from this time on are slow; zero: none is.
    pub slow: Duration,
    pub slow_percent: f64,
    pub sleep: Duration,
    /// 0: no limit.
    pub max_concurrent: u32,
}

/// What a call says of whoever answered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Good,
    Bad,
    /// Nothing: given up by its caller, or refused before it got that far.
    Nothing,
}

/// Why a call may not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Open,
    MaxConcurrent,
}

pub(super) const CLOSED: u8 = 0;
pub(super) const HALF_OPEN: u8 = 1;
pub(super) const OPEN: u8 = 2;

/// A circuit. Whoever passes with [`Circuit::enter`] says how it ended with [`Circuit::leave`], exactly once.
#[derive(Debug)]
pub(super) struct Circuit {
    /// Written under the lock; read without it, so that a closed circuit costs one load on the way in.
    state: AtomicU8,
    in_flight: AtomicU32,
    inner: Mutex<Inner>,
    pub opened: AtomicU64,
    pub refused_open: AtomicU64,
    pub refused_concurrent: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    parts: [Part; PARTS],
    born: Instant,
    /// When it opened, or the last trial failed.
    opened_at: Instant,
    /// A trial is on its way.
    trial: bool,
    used_at: Instant,
}

#[derive(Clone, Copy, Debug, Default)]
struct Part {
    /// Which part of all time since `born` it counts.
    number: u64,
    calls: u32,
    bad: u32,
    slow: u32,
}

impl Circuit {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let inner = Inner { parts: [Part::default(); PARTS], born: now, opened_at: now, trial: false, used_at: now };
        Self {
            state: AtomicU8::new(CLOSED),
            in_flight: AtomicU32::new(0),
            inner: Mutex::new(inner),
            opened: AtomicU64::new(0),
            refused_open: AtomicU64::new(0),
            refused_concurrent: AtomicU64::new(0),
        }
    }

    pub(super) fn state(&self) -> u8 {
        self.state.load(Relaxed)
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Nobody has used it for `time`, and nobody does.
    pub(super) fn is_idle(&self, time: Duration) -> bool {
        self.in_flight() == 0 && self.inner.lock().used_at.elapsed() >= time
    }

    /// Lets a call pass, or says why not. `Ok(true)`: it is the one trial of a circuit that was open.
    pub(super) fn enter(&self, rules: &Rules) -> Result<bool, Refused> {
        let trial = self.state() != CLOSED && {
            let mut inner = self.inner.lock();
            match self.state() {
                CLOSED => false,
                HALF_OPEN if !inner.trial => {
                    inner.trial = true;
                    true
                }
                OPEN if inner.opened_at.elapsed() >= rules.sleep => {
                    self.state.store(HALF_OPEN, Relaxed);
                    inner.trial = true;
                    true
                }
                _ => {
                    self.refused_open.fetch_add(1, Relaxed);
                    return Err(Refused::Open);
                }
            }
        };
        let before = self.in_flight.fetch_add(1, Relaxed);
        if rules.max_concurrent > 0 && before >= rules.max_concurrent {
            self.in_flight.fetch_sub(1, Relaxed);
            self.refused_concurrent.fetch_add(1, Relaxed);
            if trial {
                self.inner.lock().trial = false;
            }
            return Err(Refused::MaxConcurrent);
        }
        Ok(trial)
    }

    /// A call that passed is over. Returns the state if it changed.
    pub(super) fn leave(&self, rules: &Rules, trial: bool, said: Said, took: Duration) -> Option<u8> {
        self.in_flight.fetch_sub(1, Relaxed);
        if said == Said::Nothing && !trial {
            return None;
        }
        let slow = !rules.slow.is_zero() && took >= rules.slow;
        let mut inner = self.inner.lock();
        let now = Instant::now();
        inner.used_at = now;
        if trial {
            inner.trial = false;
            // Slow again is no recovery of a circuit that opens for slowness.
            let state = match said {
                // The next call is the trial, at once.
                Said::Nothing => return None,
                Said::Good if !slow => CLOSED,
                Said::Good | Said::Bad => OPEN,
            };
            if state == CLOSED {
                inner.parts = [Part::default(); PARTS];
            } else {
                inner.opened_at = now;
            }
            self.state.store(state, Relaxed);
            return Some(state);
        }
        if self.state() != CLOSED {
            // Begun before it opened: the trial decides, not what was known already.
            return None;
        }
        let (calls, bad, slow) = inner.count(rules, now, said == Said::Bad, slow);
        let share = |part: u32| f64::from(part) * 100.0 / f64::from(calls);
        let too_bad = bad > 0 && share(bad) >= rules.error_percent;
        let too_slow = slow > 0 && share(slow) >= rules.slow_percent;
        if calls < rules.requests || !(too_bad || too_slow) {
            return None;
        }
        inner.opened_at = now;
        self.state.store(OPEN, Relaxed);
        self.opened.fetch_add(1, Relaxed);
        Some(OPEN)
    }
}

impl Inner {
    /// Counts a call and sums up the window: calls, bad ones, slow ones.
    fn count(&mut self, rules: &Rules, now: Instant, bad: bool, slow: bool) -> (u32, u32, u32) {
        let length = (rules.window / PARTS as u32).max(Duration::from_millis(1));
        let number = ((now - self.born).as_nanos() / length.as_nanos()) as u64;
        let part = &mut self.parts[(number % PARTS as u64) as usize];
        if part.number != number {
            *part = Part { number, ..Part::default() };
        }
        part.calls += 1;
        part.bad += u32::from(bad);
        part.slow += u32::from(slow);
        let recent = self.parts.iter().filter(|p| p.number + PARTS as u64 > number);
        recent.fold((0, 0, 0), |(calls, bad, slow), p| (calls + p.calls, bad + p.bad, slow + p.slow))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const RULES: Rules = Rules {
        window: Duration::from_secs(10),
        requests: 20,
        error_percent: 50.0,
        slow: Duration::from_millis(100),
        slow_percent: 80.0,
        sleep: Duration::from_secs(5),
        max_concurrent: 100,
    };
    const FAST: Duration = Duration::from_millis(1);

    fn call(circuit: &Circuit, said: Said, took: Duration) -> Result<bool, Refused> {
        let trial = circuit.enter(&RULES)?;
        circuit.leave(&RULES, trial, said, took);
        Ok(trial)
    }

    async fn advance(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn opens_at_the_share_of_errors_and_closes_after_a_good_trial() {
        let circuit = Circuit::new();
        for _ in 0..10 {
            call(&circuit, Said::Good, FAST).unwrap();
        }
        for _ in 0..9 {
            call(&circuit, Said::Bad, FAST).unwrap();
        }
        assert_eq!(circuit.state(), CLOSED, "19 calls are too few");
        call(&circuit, Said::Bad, FAST).unwrap();
        assert_eq!(circuit.state(), OPEN);
        assert_eq!(call(&circuit, Said::Good, FAST), Err(Refused::Open));
        advance(5).await;
        let trial = circuit.enter(&RULES);
        assert_eq!(trial, Ok(true));
        assert_eq!(circuit.enter(&RULES), Err(Refused::Open), "one trial at a time");
        assert_eq!(circuit.leave(&RULES, true, Said::Bad, FAST), Some(OPEN));
        assert_eq!(circuit.enter(&RULES), Err(Refused::Open), "sleeps again");
        advance(5).await;
        assert_eq!(circuit.enter(&RULES), Ok(true));
        assert_eq!(circuit.leave(&RULES, true, Said::Nothing, FAST), None);
        assert_eq!(circuit.enter(&RULES), Ok(true), "a trial that said nothing is followed by another");
        assert_eq!(circuit.leave(&RULES, true, Said::Good, FAST), Some(CLOSED));
        assert_eq!(call(&circuit, Said::Bad, FAST), Ok(false), "what was before is forgotten");
        assert_eq!(circuit.state(), CLOSED);
        assert_eq!((circuit.opened.load(Relaxed), circuit.in_flight()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_older_than_the_window_does_not_count() {
        let circuit = Circuit::new();
        for _ in 0..19 {
            call(&circuit, Said::Bad, FAST).unwrap();
        }
        advance(11).await;
        call(&circuit, Said::Bad, FAST).unwrap();
        assert_eq!(circuit.state(), CLOSED);
        assert!(!circuit.is_idle(FAST));
        advance(1).await;
        assert!(circuit.is_idle(FAST));
    }

    #[tokio::test(start_paused = true)]
    async fn opens_for_slowness_and_stays_open_while_trials_are_slow() {
        let circuit = Circuit::new();
        let slow = Duration::from_millis(100);
        for i in 0..20 {
            call(&circuit, Said::Good, if i < 4 { FAST } else { slow }).unwrap();
        }
        assert_eq!(circuit.state(), OPEN);
        advance(5).await;
        call(&circuit, Said::Good, slow).unwrap();
        assert_eq!(circuit.state(), OPEN);
        advance(5).await;
        call(&circuit, Said::Good, FAST).unwrap();
        assert_eq!(circuit.state(), CLOSED);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_in_flight_are_limited_and_late_ones_do_not_decide() {
        let circuit = Circuit::new();
        let passed = (0..150).filter(|_| circuit.enter(&RULES).is_ok()).count();
        assert_eq!(passed, 100);
        assert_eq!(circuit.refused_concurrent.load(Relaxed), 50);
        for i in 0..100 {
            // All bad: opens at the twentieth, and the other eighty change nothing.
            let changed = circuit.leave(&RULES, false, Said::Bad, FAST);
            assert_eq!(changed, (i == 19).then_some(OPEN));
        }
        // A trial that finds no room gives its turn back.
        advance(5).await;
        let crowded = Rules { max_concurrent: 1, ..RULES };
        circuit.in_flight.store(1, Relaxed);
        assert_eq!(circuit.enter(&crowded), Err(Refused::MaxConcurrent));
        circuit.in_flight.store(0, Relaxed);
        assert_eq!(circuit.enter(&crowded), Ok(true));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn ten_thousand_at_once_never_pass_the_limit_and_open_it_once() {
        let circuit = Arc::new(Circuit::new());
        let most = Arc::new(AtomicU32::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..10_000 {
            let (circuit, most) = (circuit.clone(), most.clone());
            tasks.spawn(async move {
                match circuit.enter(&RULES) {
                    Ok(trial) => {
                        most.fetch_max(circuit.in_flight(), Relaxed);
                        tokio::task::yield_now().await;
                        circuit.leave(&RULES, trial, Said::Bad, FAST);
                        true
                    }
                    Err(_) => false,
                }
            });
        }
        let mut passed = 0;
        while let Some(done) = tasks.join_next().await {
            passed += u64::from(done.unwrap());
        }
        let refused = circuit.refused_open.load(Relaxed) + circuit.refused_concurrent.load(Relaxed);
        assert_eq!(passed + refused, 10_000);
        // One refused at the limit was in flight for a moment.
        assert!(passed >= 20 && most.load(Relaxed) <= 100 + 4, "{passed}, {most:?}");
        assert_eq!((circuit.in_flight(), circuit.opened.load(Relaxed), circuit.state()), (0, 1, OPEN));
    }
}
