//! `active_limit`: how many calls are in flight at once, with a queue for the others.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use serde::Deserialize;
use smallvec::SmallVec;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use super::{CallCx, Filter, Shows, Verdict, options::Time};
use crate::{
    call::{CallError, ErrorKind, Request},
    kind::{self, BuildCx, Value},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    max: Option<usize>,
    queue: usize,
    queue_timeout: Time,
    methods: BTreeMap<String, OfMethod>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfMethod {
    max: usize,
    queue: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self { max: None, queue: 0, queue_timeout: Time(Duration::from_secs(1)), methods: BTreeMap::new() }
    }
}

/// Places of a service or of one method.
struct Lane {
    /// Empty for the service.
    method: String,
    max: usize,
    /// First come, first served: it gives places to those that wait before others can take them.
    places: Arc<Semaphore>,
    queue: usize,
    waiting: AtomicUsize,
    waited: AtomicU64,
    refused: AtomicU64,
    timed_out: AtomicU64,
}

/// Places that a call holds; given back when dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "held, never looked at")]
pub(super) enum Held {
    /// Nobody was before it.
    AtOnce(SmallVec<[OwnedSemaphorePermit; 1]>),
    /// It waits, or has waited.
    Later(Arc<Mutex<SmallVec<[OwnedSemaphorePermit; 1]>>>),
}

struct ActiveLimit {
    service: Option<Arc<Lane>>,
    methods: BTreeMap<String, Arc<Lane>>,
    queue_timeout: Duration,
}

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn Filter>> {
    let o: Options = kind::options(options)?;
    anyhow::ensure!(o.max.is_some() || !o.methods.is_empty(), "no limit is given; write `max` or `methods`");
    let lane = |method: &str, max: usize, queue: usize| {
        let name = if method.is_empty() { "max".to_owned() } else { format!("methods.{method}.max") };
        let range = 1..=Semaphore::MAX_PERMITS;
        anyhow::ensure!(range.contains(&max), "{name}: {max} would let nobody through; write a number from 1");
        let places = Arc::new(Semaphore::new(max));
        let method = method.to_owned();
        let (waiting, waited) = (AtomicUsize::new(0), AtomicU64::new(0));
        let (refused, timed_out) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Arc::new(Lane { method, max, places, queue, waiting, waited, refused, timed_out }))
    };
    let methods = o.methods.iter().map(|(name, m)| {
        let lane = lane(name, m.max, m.queue.unwrap_or(o.queue))?;
        anyhow::Ok((name.clone(), lane))
    });
    Ok(Arc::new(ActiveLimit {
        methods: methods.collect::<Result<_, _>>()?,
        service: o.max.map(|max| lane("", max, o.queue)).transpose()?,
        queue_timeout: o.queue_timeout.0,
    }))
}

impl Lane {
    fn what(&self) -> String {
        let Self { method, max, queue, .. } = self;
        let of = if method.is_empty() { String::new() } else { format!(" of method {method}") };
        format!("active_limit: {max} calls{of} are in flight and {queue} may wait")
    }

    /// Waits for a place behind those that came before, within bounds.
    async fn wait(self: &Arc<Self>, until: Instant) -> Result<OwnedSemaphorePermit, CallError> {
        let Some(_in_queue) = InQueue::take(self) else {
            self.refused.fetch_add(1, Relaxed);
            return Err(CallError::mesh(ErrorKind::Overload, self.what()));
        };
        match timeout_at(until, self.places.clone().acquire_owned()).await {
            Ok(place) => {
                self.waited.fetch_add(1, Relaxed);
                Ok(place.expect("nobody closes it"))
            }
            Err(_) => {
                self.timed_out.fetch_add(1, Relaxed);
                Err(CallError::mesh(ErrorKind::Overload, format!("{}; this one waited in vain", self.what())))
            }
        }
    }

    fn figures(&self, show: &mut Shows<'_>) {
        let of = &self.method;
        show.state("in_flight", of, (self.max - self.places.available_permits()) as u64);
        show.state("waiting", of, self.waiting.load(Relaxed) as u64);
        show.event("waited", of, self.waited.load(Relaxed));
        show.event("refused", of, self.refused.load(Relaxed));
        show.event("timed_out", of, self.timed_out.load(Relaxed));
    }
}

/// A place in the queue, given back when dropped.
struct InQueue<'a>(&'a Lane);

impl<'a> InQueue<'a> {
    fn take(lane: &'a Lane) -> Option<Self> {
        let more = |waiting| (waiting < lane.queue).then_some(waiting + 1);
        lane.waiting.fetch_update(Relaxed, Relaxed, more).ok().map(|_| Self(lane))
    }
}

impl Drop for InQueue<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

impl Filter for ActiveLimit {
    fn on_request(&self, cx: &mut CallCx, req: &mut Request) -> Verdict {
        let method = self.methods.get(&*req.call.method);
        let mut places = SmallVec::new();
        // The method's place first: who waits for it must not hold one of the service meanwhile.
        let mut rest: SmallVec<[Arc<Lane>; 2]> = SmallVec::new();
        for lane in method.into_iter().chain(&self.service) {
            match lane.places.clone().try_acquire_owned() {
                Ok(place) if rest.is_empty() => places.push(place),
                _ => rest.push(lane.clone()),
            }
        }
        if rest.is_empty() {
            if !places.is_empty() {
                cx.notes.active.push(Held::AtOnce(places));
            }
            return Verdict::Continue;
        }
        if rest.iter().all(|lane| lane.queue == 0) {
            let lane = &rest[0];
            lane.refused.fetch_add(1, Relaxed);
            return Verdict::fail(CallError::mesh(ErrorKind::Overload, lane.what()));
        }
        let until = (Instant::now() + self.queue_timeout).min(req.call.deadline);
        let held = Arc::new(Mutex::new(places));
        cx.notes.active.push(Held::Later(held.clone()));
        Verdict::Wait(Box::pin(async move {
            for lane in &rest {
                match lane.wait(until).await {
                    Ok(place) => held.lock().push(place),
                    Err(error) => return Verdict::fail(error),
                }
            }
            Verdict::Continue
        }))
    }

    fn figures(&self, show: &mut Shows<'_>) {
        self.service.iter().chain(self.methods.values()).for_each(|lane| lane.figures(show));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::testing::{Begun, Bench, is_pending, motan};

    fn wait<'a>(bench: &'a Bench, method: &str) -> (Begun<'a>, futures_util::future::BoxFuture<'static, Verdict>) {
        let mut begun = bench.enter(motan(method));
        match bench.filter.on_request(&mut begun.cx, &mut begun.req) {
            Verdict::Wait(wait) => (begun, wait),
            _ => panic!("does not wait"),
        }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_wait_are_served_in_their_order() {
        let b = Bench::new(build, "{max: 1, queue: 2}");
        let first = b.begin(motan("echo"));
        let (second, mut second_waits) = wait(&b, "echo");
        let (_third, mut third_waits) = wait(&b, "echo");
        assert!(is_pending(&mut second_waits).await);
        assert!(is_pending(&mut third_waits).await);
        assert_eq!((b.state("waiting", ""), b.state("in_flight", "")), (2, 1));
        let refused = b.call(motan("echo"), || Ok(b.good())).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Overload);
        assert_eq!(refused.message, "active_limit: 1 calls are in flight and 2 may wait");
        first.end(Ok(b.good())).unwrap();
        assert!(is_pending(&mut third_waits).await, "not before the second");
        assert!(matches!(second_waits.await, Verdict::Continue));
        second.end(Ok(b.good())).unwrap();
        assert!(matches!(third_waits.await, Verdict::Continue));
        assert_eq!((b.event("waited", ""), b.event("refused", "")), (2, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_at_its_timeout_or_the_deadline() {
        let b = Bench::new(build, "{max: 1, queue: 9, queue_timeout: 300ms}");
        let _first = b.begin(motan("echo"));
        let before = Instant::now();
        let late = b.call(motan("echo"), || Ok(b.good())).await.unwrap_err();
        assert_eq!((late.kind, before.elapsed()), (ErrorKind::Overload, ms(300)));
        let before = Instant::now();
        let mut hurried = motan("echo");
        hurried.call.deadline = before + ms(100);
        b.call(hurried, || Ok(b.good())).await.unwrap_err();
        assert_eq!(before.elapsed(), ms(100));
        assert_eq!((b.event("timed_out", ""), b.state("waiting", "")), (2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn methods_have_limits_of_their_own_beside_the_service() {
        let b = Bench::new(build, "{max: 2, methods: {slow: {max: 1}}}");
        let slow = b.begin(motan("slow"));
        let refused = b.call(motan("slow"), || Ok(b.good())).await.unwrap_err();
        assert!(refused.message.contains("of method slow"), "{refused}");
        assert_eq!(b.state("in_flight", ""), 1, "the refused one holds nothing");
        let other = b.begin(motan("echo"));
        b.call(motan("echo"), || Ok(b.good())).await.unwrap_err();
        drop((slow, other));
        assert_eq!((b.state("in_flight", ""), b.state("in_flight", "slow")), (0, 0));
        let only = Bench::new(build, "{methods: {slow: {max: 1}}}");
        let _many: Vec<_> = (0..100).map(|_| only.begin(motan("echo"))).collect();
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_goes_away_while_it_waits_leaves_the_queue() {
        let b = Bench::new(build, "{max: 1, queue: 1}");
        let first = b.begin(motan("echo"));
        let (second, mut waits) = wait(&b, "echo");
        assert!(is_pending(&mut waits).await);
        drop((waits, second));
        assert_eq!(b.state("waiting", ""), 0);
        drop(first);
        drop(b.begin(motan("echo")));
        assert_eq!(b.state("in_flight", ""), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn ten_thousand_at_once_never_exceed_the_limit() {
        let b = Arc::new(Bench::new(build, "{max: 50, queue: 100000, queue_timeout: 1h}"));
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..10_000 {
            let (b, now, most) = (b.clone(), now.clone(), most.clone());
            tasks.spawn(async move {
                let mut req = motan("echo");
                req.call.deadline += Duration::from_secs(3600);
                let inside = || {
                    most.fetch_max(now.fetch_add(1, Relaxed) + 1, Relaxed);
                    std::thread::yield_now();
                    now.fetch_sub(1, Relaxed);
                    Ok(b.good())
                };
                b.call(req, inside).await.unwrap();
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        assert!(most.load(Relaxed) <= 50, "{most:?}");
        assert_eq!((b.state("in_flight", ""), b.state("waiting", ""), b.event("refused", "")), (0, 0, 0));
    }

    #[test]
    fn options_are_checked() {
        for (wrong, says) in [("{}", "no limit"), ("{max: 0}", "max: 0"), ("{methods: {m: {max: 0}}}", "methods.m.max")]
        {
            let options: Value = serde_yaml::from_str(wrong).unwrap();
            let error = build(&options, &BuildCx::default()).err().unwrap().to_string();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }
}
