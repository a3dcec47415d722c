//! `backup_request`: a second endpoint is asked when the first takes long, and the first good answer wins.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::ensure;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::{
    Attempts, HaStrategy, Sent,
    attempts::Original,
    budget::{self, Budget},
    failover,
};
use crate::{
    call::{CallError, Request},
    kind::{self, BuildCx, Value},
    metrics::{ServiceStats, Summary},
};

/// How long the latency is watched before the delay follows it.
const PERIOD: Duration = Duration::from_secs(5);
/// Calls of a round, in which backups are limited.
const ROUND_CALLS: u32 = 100;
/// A round that is not full by then begins anew.
const ROUND_TIME: Duration = Duration::from_secs(20);

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// Fixed; zero follows `percentile`.
    #[serde(deserialize_with = "kind::duration")]
    delay: Duration,
    /// Of the service's latency in the last period.
    percentile: f64,
    /// While nothing is known of the latency; zero sends no backup then.
    #[serde(deserialize_with = "kind::duration")]
    initial_delay: Duration,
    /// The shortest delay.
    #[serde(deserialize_with = "kind::duration")]
    floor: Duration,
    /// Backups in a round of calls.
    max_percent: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            percentile: 90.0,
            initial_delay: Duration::ZERO,
            floor: Duration::from_millis(10),
            max_percent: 15,
        }
    }
}

struct BackupRequest {
    options: Options,
    /// For attempts that follow a failed one, as of `failover`.
    budget: Budget,
    round: Mutex<Round>,
    observed: Mutex<Observed>,
    /// Delay by the last period in nanoseconds; 0 while nothing is known.
    delay_ns: AtomicU64,
    /// When the next period begins, in milliseconds after `born`.
    next_ms: AtomicU64,
    born: Instant,
}

struct Round {
    since: Instant,
    calls: u32,
    backups: u32,
}

#[derive(Default)]
struct Observed {
    before: Summary,
}

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn HaStrategy>> {
    let options: Options = kind::options(options)?;
    let Options { percentile, max_percent, .. } = options;
    ensure!((1.0..=99.99).contains(&percentile), "percentile: {percentile} is out of range; write 1 to 99.99");
    ensure!(max_percent <= 100, "max_percent: {max_percent} is over 100; write 0 to 100");
    Ok(Arc::new(BackupRequest {
        options,
        budget: Budget::new(budget::Options::default()),
        round: Mutex::new(Round { since: Instant::now(), calls: 0, backups: 0 }),
        observed: Mutex::default(),
        delay_ns: AtomicU64::new(0),
        next_ms: AtomicU64::new(PERIOD.as_millis() as u64),
        born: Instant::now(),
    }))
}

impl HaStrategy for BackupRequest {
    fn call<'a>(&'a self, attempts: &'a Attempts<'a>, req: &'a mut Request) -> BoxFuture<'a, Result<Sent, CallError>> {
        Box::pin(async move {
            let delay = self.delay(&attempts.cx.cluster.stats);
            self.round.lock().call();
            let original = attempts.may_hedge().then(|| Original::of(req)).flatten();
            match (delay, original) {
                (Some(delay), Some(original)) => self.race(attempts, original, delay).await,
                _ => failover::run(attempts, req, &self.budget).await,
            }
        })
    }
}

impl BackupRequest {
    /// Sends copies of `original`: one now, another after each `delay` without an answer, as far as retries
    /// and limits go, and another at once when one fails. The attempts that lose are dropped.
    async fn race(&self, attempts: &Attempts<'_>, original: Original, delay: Duration) -> Result<Sent, CallError> {
        let send = |mut copy: Request| async move { attempts.send(&mut copy).await };
        let mut running = FuturesUnordered::new();
        running.push(send(original.copy()));
        let mut backups = attempts.retries;
        let timer = sleep(delay);
        tokio::pin!(timer);
        let mut last = None;
        loop {
            tokio::select! {
                biased;
                Some(result) = running.next() => {
                    let again = attempts.go_on(&result, original.resend(), &self.budget);
                    if result.as_ref().is_ok_and(|sent| !sent.response.status.is_failure()) {
                        return result;
                    }
                    last = Some(result);
                    if again {
                        running.push(send(original.copy()));
                    }
                }
                () = &mut timer, if backups > 0 && !running.is_empty() => {
                    backups -= 1;
                    if !attempts.has_another(original.resend().deadline) || attempts.count() > attempts.retries {
                        backups = 0;
                    } else if self.round.lock().backup(self.options.max_percent) {
                        attempts.say(|| format!("no answer after {delay:?}: a backup goes to another endpoint"));
                        running.push(send(original.copy()));
                        timer.as_mut().reset(Instant::now() + delay);
                    } else {
                        attempts.say(|| "no backup: this round of calls has had its share (max_percent)".to_owned());
                        backups = 0;
                    }
                }
                else => return last.unwrap_or_else(|| Err(attempts.nobody())),
            }
        }
    }

    /// How long to wait for the first answer; `None` when nothing says.
    fn delay(&self, stats: &ServiceStats) -> Option<Duration> {
        let Options { delay, initial_delay, floor, .. } = self.options;
        if !delay.is_zero() {
            return Some(delay.max(floor));
        }
        let now_ms = self.born.elapsed().as_millis() as u64;
        if now_ms >= self.next_ms.load(Relaxed)
            && let Some(mut observed) = self.observed.try_lock()
        {
            self.next_ms.store(now_ms + PERIOD.as_millis() as u64, Relaxed);
            let now = stats.latency.summary();
            // A period without calls teaches nothing.
            if let Some(found) = now.since(&observed.before).quantile(self.options.percentile / 100.0) {
                self.delay_ns.store(found.as_nanos() as u64, Relaxed);
            }
            observed.before = now;
        }
        let found = match self.delay_ns.load(Relaxed) {
            0 => initial_delay,
            ns => Duration::from_nanos(ns),
        };
        (!found.is_zero()).then(|| found.max(floor))
    }
}

impl Round {
    fn call(&mut self) {
        if self.calls >= ROUND_CALLS || self.since.elapsed() >= ROUND_TIME {
            *self = Self { since: Instant::now(), calls: 0, backups: 0 };
        }
        self.calls += 1;
    }

    fn backup(&mut self, max_percent: u32) -> bool {
        let allowed = self.backups < max_percent * ROUND_CALLS / 100;
        self.backups += u32::from(allowed);
        allowed
    }
}
