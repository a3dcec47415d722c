//! `rate_limit`: calls per second by token bucket, for a service and for single methods.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde::Deserialize;
use tokio::time::Instant;

use super::{
    CallCx, Filter, Shows, Verdict,
    options::{Time, go_duration},
};
use crate::{
    call::{CallError, ErrorKind, Request},
    kind::{self, BuildCx, Value},
};

/// While cold, a bucket gives this share of its rate.
const COLD: f64 = 1.0 / 3.0;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    rate: Option<f64>,
    burst: Option<f64>,
    wait: Time,
    warm_up: Time,
    methods: BTreeMap<String, OfMethod>,
    switcher: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfMethod {
    rate: f64,
    burst: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rate: None,
            burst: None,
            wait: Time(Duration::from_secs(1)),
            warm_up: Time(Duration::ZERO),
            methods: BTreeMap::new(),
            switcher: None,
        }
    }
}

/// A token bucket without a lock, kept as one moment: when the next token is there for those that took all
/// before. That moment lies in the past by as much time as there are tokens left.
struct Bucket {
    /// Empty for the service.
    method: String,
    /// Time for one token when warm.
    interval_ns: f64,
    /// Time for a whole burst.
    room_ns: u64,
    warm_up_ns: u64,
    born: Instant,
    /// Nanoseconds since `born`, shifted by `room_ns` so that it begins full.
    next: AtomicU64,
    /// When it began to warm up, in the same measure.
    cold_at: AtomicU64,
    waited: AtomicU64,
    refused: AtomicU64,
}

/// A token that was taken, to be waited for or given back.
struct Token {
    wait: Duration,
    cost_ns: u64,
}

struct RateLimit {
    service: Option<Bucket>,
    methods: BTreeMap<String, Bucket>,
    wait: Duration,
    on: Option<Arc<AtomicBool>>,
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Filter>> {
    let o: Options = kind::options(options)?;
    anyhow::ensure!(o.rate.is_some() || !o.methods.is_empty(), "no limit is given; write `rate` or `methods`");
    let bucket = |method: &str, rate: f64, burst: Option<f64>| {
        let name = if method.is_empty() { String::new() } else { format!("methods.{method}.") };
        anyhow::ensure!((0.001..=1e9).contains(&rate), "{name}rate: {rate} is no rate; write calls per second");
        let burst = burst.unwrap_or(rate).max(1.0);
        anyhow::ensure!((1.0..=1e9).contains(&burst), "{name}burst: {burst} is too much; write a number of calls");
        Ok(Bucket::new(method, rate, burst, o.warm_up.0))
    };
    let methods = o.methods.iter().map(|(name, m)| anyhow::Ok((name.clone(), bucket(name, m.rate, m.burst)?)));
    Ok(Arc::new(RateLimit {
        methods: methods.collect::<Result<_, _>>()?,
        service: o.rate.map(|rate| bucket("", rate, o.burst)).transpose()?,
        wait: o.wait.0,
        on: o.switcher.map(|name| cx.switchers.register(&name, true)),
    }))
}

impl Bucket {
    fn new(method: &str, rate: f64, burst: f64, warm_up: Duration) -> Self {
        let interval_ns = 1e9 / rate;
        Self {
            method: method.to_owned(),
            interval_ns,
            room_ns: (burst * interval_ns) as u64,
            warm_up_ns: warm_up.as_nanos() as u64,
            born: Instant::now(),
            next: AtomicU64::new(0),
            cold_at: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Nanoseconds that a token costs now: more while cold.
    fn cost(&self, now: u64, next: u64) -> u64 {
        if self.warm_up_ns == 0 {
            return self.interval_ns as u64;
        }
        // Cold again after a pause as long as the warming.
        if now > next.saturating_add(self.room_ns).saturating_add(self.warm_up_ns) {
            self.cold_at.store(now, Relaxed);
        }
        let warm = now.saturating_sub(self.cold_at.load(Relaxed)) as f64 / self.warm_up_ns as f64;
        (self.interval_ns / (COLD + (1.0 - COLD) * warm.min(1.0))) as u64
    }

    /// Takes a token that is there within `patience`.
    fn take(&self, patience: Duration) -> Option<Token> {
        let now = self.born.elapsed().as_nanos() as u64 + self.room_ns;
        let mut next = self.next.load(Relaxed);
        loop {
            let cost_ns = self.cost(now, next);
            let after = next.max(now - self.room_ns) + cost_ns;
            let wait = Duration::from_nanos(after.saturating_sub(now));
            if wait > patience {
                return None;
            }
            match self.next.compare_exchange_weak(next, after, Relaxed, Relaxed) {
                Ok(_) => return Some(Token { wait, cost_ns }),
                Err(other) => next = other,
            }
        }
    }

    fn give_back(&self, token: &Token) {
        self.next.fetch_sub(token.cost_ns, Relaxed);
    }

    fn refuse(&self, wait: Duration) -> Verdict {
        self.refused.fetch_add(1, Relaxed);
        let method = if self.method.is_empty() { String::new() } else { format!("method {} ", self.method) };
        let text = format!("[rateLimit] {method}wait time exceed timeout({})", go_duration(wait));
        Verdict::fail(CallError::mesh(ErrorKind::RateLimited, text).verbatim())
    }

    fn figures(&self, show: &mut Shows<'_>) {
        show.event("waited", &self.method, self.waited.load(Relaxed));
        show.event("refused", &self.method, self.refused.load(Relaxed));
    }
}

impl Filter for RateLimit {
    fn on_request(&self, _: &mut CallCx, req: &mut Request) -> Verdict {
        if self.on.as_ref().is_some_and(|on| !on.load(Relaxed)) {
            return Verdict::Continue;
        }
        let patience = self.wait.min(req.call.deadline.saturating_duration_since(Instant::now()));
        let method = match self.methods.get(&*req.call.method) {
            None => None,
            Some(bucket) => match bucket.take(patience) {
                Some(token) => Some((bucket, token)),
                None => return bucket.refuse(patience),
            },
        };
        let service = match &self.service {
            None => None,
            Some(bucket) => match bucket.take(patience) {
                Some(token) => Some((bucket, token)),
                None => {
                    if let Some((bucket, token)) = method {
                        bucket.give_back(&token);
                    }
                    return bucket.refuse(patience);
                }
            },
        };
        let mut wait = Duration::ZERO;
        for (bucket, token) in method.into_iter().chain(service) {
            if !token.wait.is_zero() {
                bucket.waited.fetch_add(1, Relaxed);
                wait = wait.max(token.wait);
            }
        }
        if wait.is_zero() {
            return Verdict::Continue;
        }
        Verdict::Wait(Box::pin(async move {
            tokio::time::sleep(wait).await;
            Verdict::Continue
        }))
    }

    fn figures(&self, show: &mut Shows<'_>) {
        self.service.iter().chain(self.methods.values()).for_each(|bucket| bucket.figures(show));
        if let Some(on) = &self.on {
            show.state("on", "", on.load(Relaxed).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::testing::{Bench, motan};

    async fn call(b: &Bench, method: &str) -> Result<(), CallError> {
        b.call(motan(method), || Ok(b.good())).await.map(drop)
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_at_once_and_then_the_rate() {
        let b = Bench::new(build, "{rate: 10, burst: 5, wait: 0s}");
        for _ in 0..5 {
            call(&b, "echo").await.unwrap();
        }
        let refused = call(&b, "echo").await.unwrap_err();
        assert_eq!(refused.message, "[rateLimit] wait time exceed timeout(0s)");
        assert!(refused.verbatim && refused.kind == ErrorKind::RateLimited);
        for _ in 0..20 {
            tokio::time::advance(Duration::from_millis(100)).await;
            call(&b, "echo").await.unwrap();
            call(&b, "echo").await.unwrap_err();
        }
        tokio::time::advance(Duration::from_secs(3600)).await;
        let passed = {
            let mut passed = 0;
            while call(&b, "echo").await.is_ok() {
                passed += 1;
            }
            passed
        };
        assert_eq!(passed, 5, "a long pause saves no more than a burst");
        assert_eq!((b.event("refused", ""), b.event("waited", "")), (22, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn waits_in_order_as_long_as_told_and_no_longer_than_the_deadline() {
        let b = Bench::new(build, "{rate: 10, burst: 1, wait: 250ms}");
        let before = Instant::now();
        call(&b, "echo").await.unwrap();
        let (one, two, three) = tokio::join!(call(&b, "echo"), call(&b, "echo"), call(&b, "echo"));
        one.unwrap();
        two.unwrap();
        assert_eq!(three.unwrap_err().message, "[rateLimit] wait time exceed timeout(250ms)");
        // Timers have steps of a millisecond.
        assert!(before.elapsed() >= Duration::from_millis(200) && before.elapsed() <= Duration::from_millis(202));
        assert_eq!((b.event("waited", ""), b.event("refused", "")), (2, 1));
        let mut hurried = motan("echo");
        hurried.call.deadline = Instant::now() + Duration::from_millis(50);
        b.call(hurried, || Ok(b.good())).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_method_has_its_own_bucket_and_takes_nothing_from_the_service_when_refused() {
        let b = Bench::new(build, "{rate: 2, burst: 2, wait: 0s, methods: {slow: {rate: 1, burst: 1}}}");
        call(&b, "slow").await.unwrap();
        for _ in 0..10 {
            let refused = call(&b, "slow").await.unwrap_err();
            assert_eq!(refused.message, "[rateLimit] method slow wait time exceed timeout(0s)");
        }
        call(&b, "echo").await.unwrap();
        call(&b, "echo").await.unwrap_err();
        // And when the service refuses, the method keeps its token.
        tokio::time::advance(Duration::from_secs(1)).await;
        call(&b, "echo").await.unwrap();
        call(&b, "echo").await.unwrap();
        call(&b, "slow").await.unwrap_err();
        tokio::time::advance(Duration::from_millis(500)).await;
        call(&b, "slow").await.unwrap();
        assert_eq!(b.event("refused", "slow"), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn warms_up_from_a_third_and_is_cold_again_after_a_pause() {
        let b = Bench::new(build, "{rate: 90, burst: 9, wait: 0s, warm_up: 10s}");
        let passed_in = async |seconds: u64| {
            let mut passed = 0;
            for _ in 0..seconds * 1000 {
                tokio::time::advance(Duration::from_millis(1)).await;
                passed += u32::from(call(&b, "echo").await.is_ok());
            }
            passed
        };
        let cold = passed_in(1).await;
        assert!((30..=40).contains(&cold), "{cold}");
        passed_in(9).await;
        let warm = passed_in(1).await;
        assert!((88..=91).contains(&warm), "{warm}");
        tokio::time::advance(Duration::from_secs(30)).await;
        let cold = passed_in(1).await;
        assert!((30..=40).contains(&cold), "{cold}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_switcher_turns_it_off() {
        let cx = BuildCx::default();
        let b = Bench::with(build, "{rate: 1, wait: 0s, switcher: CONFID_rateLimit}", &cx);
        call(&b, "echo").await.unwrap();
        call(&b, "echo").await.unwrap_err();
        assert_eq!(cx.switchers.set("CONFID_rateLimit", false), Some(true));
        call(&b, "echo").await.unwrap();
        assert_eq!(b.state("on", ""), 0);
    }

    #[test]
    fn ten_thousand_takers_on_many_threads_get_the_burst_and_not_one_more() {
        let bucket = Bucket::new("", 0.001, 1000.0, Duration::ZERO);
        let taken = AtomicU64::new(0);
        std::thread::scope(|threads| {
            for _ in 0..8 {
                threads.spawn(|| {
                    for _ in 0..1250 {
                        taken.fetch_add(u64::from(bucket.take(Duration::ZERO).is_some()), Relaxed);
                    }
                });
            }
        });
        assert_eq!(taken.load(Relaxed), 1000);
    }

    #[test]
    fn options_are_checked() {
        for (wrong, says) in
            [("{}", "no limit"), ("{rate: 0}", "rate: 0"), ("{methods: {m: {rate: -1}}}", "methods.m.rate")]
        {
            let options: Value = serde_yaml::from_str(wrong).unwrap();
            let error = build(&options, &BuildCx::default()).err().unwrap().to_string();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }
}
