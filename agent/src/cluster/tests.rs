use std::{collections::VecDeque, sync::Mutex};

use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, StreamBody};
use model::Instance;
use tokio::time::Instant;

use super::*;
use crate::{
    call::{Body, Call, Head, ResponseHead, Retry, Status},
    config::Named,
    filter::{Outcome, Record, Verdict},
    kind::Value,
};

/// What a scripted endpoint does with an attempt.
enum Step {
    Answer(Status),
    Stream(Vec<Result<&'static str, ErrorKind>>),
    Fail(ErrorKind, Retry),
    Hang,
}

#[derive(Default)]
struct Script {
    steps: Mutex<VecDeque<Step>>,
    asked: Mutex<Vec<SocketAddr>>,
}

impl Connector for Script {
    fn call<'a>(&'a self, to: &'a Arc<Endpoint>, _: &'a mut Request) -> BoxFuture<'a, Result<Response, CallError>> {
        self.asked.lock().unwrap().push(to.addr);
        let step = self.steps.lock().unwrap().pop_front().expect("an attempt the script does not know");
        Box::pin(async move {
            let answer = |status, body| Response { status, head: ResponseHead::None, body, endpoint: Some(to.addr) };
            match step {
                Step::Answer(status) => Ok(answer(status, Body::Full("done".into()))),
                Step::Stream(frames) => {
                    let frames = frames.into_iter().map(|f| match f {
                        Ok(data) => Ok(http_body::Frame::data(data.into())),
                        Err(kind) => Err(CallError::upstream(kind, Retry::Never, "broke")),
                    });
                    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
                    Ok(answer(Status::Ok, Body::Stream(body)))
                }
                Step::Fail(kind, retry) => Err(CallError::upstream(kind, retry, "scripted")),
                Step::Hang => std::future::pending().await,
            }
        })
    }

    fn default_timeout(&self) -> Duration {
        Duration::from_secs(1)
    }
}

/// Keeps every record it is told.
#[derive(Default)]
struct Keep(Mutex<Vec<Record>>);

impl Filter for Keep {
    fn on_end(&self, record: &Record) {
        let mut copy = Record {
            call: record.call.clone(),
            cluster: record.cluster.clone(),
            outcome: record.outcome.clone(),
            notes: Default::default(),
            ..*record
        };
        copy.endpoint = record.endpoint;
        self.0.lock().unwrap().push(copy);
    }
}

/// Polls once.
async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
    poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_pending())).await
}

struct Bench {
    cluster: Arc<Cluster>,
    script: Arc<Script>,
    kept: Arc<Keep>,
}

fn bench(endpoints: usize, config: config::Cluster, steps: Vec<Step>) -> Bench {
    let script = Arc::new(Script { steps: Mutex::new(steps.into()), asked: Mutex::default() });
    let kept = Arc::new(Keep::default());
    let config = config::Cluster { filters: Vec::new(), lb: Named::plain("round_robin"), ..config };
    let mut cluster = Cluster::build(Parts {
        key: model::ServiceKey { service: "echo".to_owned(), ..Default::default() },
        direction: Direction::Outbound,
        protocol: "script",
        config: &config,
        connector: script.clone(),
        introduce: None,
        own: OwnSockets::default(),
        cx: &BuildCx::default(),
    })
    .unwrap();
    cluster.filters = Box::new([kept.clone()]);
    let instances = (1..=endpoints).map(|i| Instance::at(format!("127.0.0.1:{i}"))).collect();
    cluster.apply(&Snapshot { revision: 1, instances, stale: None });
    Bench { cluster: Arc::new(cluster), script, kept }
}

fn request() -> Request {
    let call = Call::new(Text::from_static("echo"), Text::from_static("say"));
    Request { call, head: Head::None, body: Body::Full("hello".into()) }
}

impl Bench {
    async fn call(&self) -> Result<Response, CallError> {
        self.cluster.call(&mut request()).await
    }

    fn attempts(&self) -> usize {
        self.script.asked.lock().unwrap().len()
    }

    /// The only record: every call ends exactly once.
    fn record(&self) -> Record {
        let mut kept = self.kept.0.lock().unwrap();
        assert_eq!(kept.len(), 1, "a call ends exactly once");
        kept.pop().unwrap()
    }

    fn in_flight(&self) -> u32 {
        self.cluster.endpoints().endpoints.iter().map(|e| e.in_flight()).sum()
    }
}

#[tokio::test(start_paused = true)]
async fn what_never_left_goes_elsewhere_though_not_idempotent() {
    let refused = || Step::Fail(ErrorKind::Connect, Retry::NotSent);
    let b = bench(3, config::Cluster::default(), vec![refused(), refused(), Step::Answer(Status::Ok)]);
    assert_eq!(b.call().await.unwrap().status, Status::Ok);
    let asked = b.script.asked.lock().unwrap().clone();
    assert_eq!(
        asked.iter().collect::<std::collections::HashSet<_>>().len(),
        3,
        "each try on another endpoint: {asked:?}"
    );
    assert_eq!(b.record().attempts, 3);
    assert_eq!(b.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_done_is_not_done_twice() {
    let steps = || vec![Step::Fail(ErrorKind::Reset, Retry::IfIdempotent), Step::Answer(Status::Ok)];
    let b = bench(2, config::Cluster::default(), steps());
    assert_eq!(b.call().await.unwrap_err().kind, ErrorKind::Reset);
    assert_eq!(b.attempts(), 1);
    assert!(!b.record().is_success());

    let b = bench(2, config::Cluster { idempotent: true, ..Default::default() }, steps());
    assert_eq!(b.call().await.unwrap().status, Status::Ok);
    assert_eq!(b.attempts(), 2);

    let say = config::Method { idempotent: Some(true), ..Default::default() };
    let methods = [("say".to_owned(), say)].into();
    let b = bench(2, config::Cluster { methods, ..Default::default() }, steps());
    assert_eq!(b.call().await.unwrap().status, Status::Ok, "the method may say so as well");
}

#[tokio::test(start_paused = true)]
async fn a_failing_answer_is_tried_elsewhere_only_when_idempotent() {
    let steps = || vec![Step::Answer(Status::Failed(503)), Step::Answer(Status::Ok)];
    let b = bench(2, config::Cluster::default(), steps());
    assert_eq!(b.call().await.unwrap().status, Status::Failed(503));
    let b = bench(2, config::Cluster { idempotent: true, ..Default::default() }, steps());
    assert_eq!(b.call().await.unwrap().status, Status::Ok);
    let b =
        bench(2, config::Cluster { idempotent: true, ..Default::default() }, vec![Step::Answer(Status::Refused(7))]);
    assert_eq!(b.call().await.unwrap().status, Status::Refused(7), "the user's own error is an answer");
    assert!(b.record().is_success());
}

#[tokio::test(start_paused = true)]
async fn failfast_tries_once() {
    let config = config::Cluster { ha: Named::plain("failfast"), idempotent: true, ..Default::default() };
    let b = bench(3, config, vec![Step::Fail(ErrorKind::Connect, Retry::NotSent)]);
    assert_eq!(b.call().await.unwrap_err().kind, ErrorKind::Connect);
    assert_eq!(b.attempts(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_at_its_deadline() {
    let b =
        bench(2, config::Cluster { timeout: Some(Duration::from_millis(300)), ..Default::default() }, vec![Step::Hang]);
    let before = Instant::now();
    assert_eq!(b.call().await.unwrap_err().kind, ErrorKind::Timeout);
    assert_eq!(before.elapsed(), Duration::from_millis(300) + DEADLINE_GRACE);
    assert_eq!(b.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn timeouts_from_the_wire_count_within_the_range() {
    let b = bench(1, config::Cluster { timeout: Some(Duration::from_secs(1)), ..Default::default() }, vec![]);
    let ms = Duration::from_millis;
    assert_eq!(b.cluster.timeout("say", None), ms(1000));
    assert_eq!(b.cluster.timeout("say", Some(ms(600))), ms(600));
    assert_eq!(b.cluster.timeout("say", Some(ms(400))), ms(1000), "below half: not obeyed");
    assert_eq!(b.cluster.timeout("say", Some(ms(2001))), ms(1000), "above double: not obeyed");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_ends_the_attempt() {
    let b = bench(1, config::Cluster::default(), vec![Step::Hang]);
    {
        let call = b.call();
        tokio::pin!(call);
        assert!(is_pending(&mut call).await);
        assert_eq!(b.in_flight(), 1);
    }
    assert_eq!(b.in_flight(), 0);
    let record = b.record();
    assert!(matches!(record.outcome, Outcome::Failed(e) if e.kind == ErrorKind::Cancelled));
}

#[tokio::test(start_paused = true)]
async fn a_streamed_answer_ends_with_its_body() {
    let b = bench(1, config::Cluster::default(), vec![Step::Stream(vec![Ok("abc"), Ok("de")])]);
    let response = b.call().await.unwrap();
    assert_eq!(b.in_flight(), 1, "busy until the body is through");
    assert!(b.kept.0.lock().unwrap().is_empty());
    let Body::Stream(body) = response.body else { panic!("streamed") };
    assert_eq!(body.collect().await.unwrap().to_bytes(), "abcde");
    assert_eq!(b.record().response_bytes, 5);
    assert_eq!(b.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_broken_body_is_a_failed_call_and_a_dropped_one_a_cancelled_call() {
    let b = bench(1, config::Cluster::default(), vec![Step::Stream(vec![Ok("abc"), Err(ErrorKind::Reset)])]);
    let Body::Stream(body) = b.call().await.unwrap().body else { panic!("streamed") };
    assert_eq!(body.collect().await.unwrap_err().kind, ErrorKind::Reset);
    assert!(!b.record().is_success());

    let b = bench(1, config::Cluster::default(), vec![Step::Stream(vec![Ok("abc"), Ok("de")])]);
    drop(b.call().await.unwrap());
    assert!(matches!(b.record().outcome, Outcome::Failed(e) if e.kind == ErrorKind::Cancelled));
    assert_eq!(b.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn nobody_to_call_is_told_apart() {
    let b = bench(0, config::Cluster::default(), vec![]);
    assert_eq!(b.call().await.unwrap_err().kind, ErrorKind::NoEndpoint);
    let b = bench(1, config::Cluster { max_in_flight: 1, ..Default::default() }, vec![Step::Hang]);
    let first = b.call();
    tokio::pin!(first);
    assert!(is_pending(&mut first).await);
    assert_eq!(b.call().await.unwrap_err().kind, ErrorKind::Overload);
}

#[tokio::test(start_paused = true)]
async fn a_filter_may_answer_or_wait() {
    struct Gate(tokio::sync::watch::Receiver<bool>);
    impl Filter for Gate {
        fn on_request(&self, _: &mut CallCx, _: &mut Request) -> Verdict {
            let mut open = self.0.clone();
            Verdict::Wait(Box::pin(async move {
                let _ = open.wait_for(|open| *open).await;
                Verdict::Stop(Box::new(Err(CallError::mesh(ErrorKind::Rejected, "closed today"))))
            }))
        }
    }
    let (open, gate) = tokio::sync::watch::channel(false);
    let b = bench(1, config::Cluster::default(), vec![]);
    let mut cluster = Arc::into_inner(b.cluster).unwrap();
    cluster.filters = Box::new([b.kept.clone(), Arc::new(Gate(gate))]);
    let cluster = Arc::new(cluster);
    let mut request = request();
    let call = cluster.call(&mut request);
    tokio::pin!(call);
    assert!(is_pending(&mut call).await);
    open.send_replace(true);
    assert_eq!(call.await.unwrap_err().kind, ErrorKind::Rejected);
    assert_eq!(b.kept.0.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_stay_keep_what_is_known_of_them() {
    let b = bench(2, config::Cluster::default(), vec![]);
    let before = b.cluster.endpoints();
    lb::testing::eject(&before.endpoints[1]);
    let mut heavier = Instance::at("127.0.0.1:2");
    heavier.weight = 30;
    let instances = vec![Instance::at("127.0.0.1:1"), heavier, Instance::at("127.0.0.1:9"), Instance::at("nonsense")];
    let fresh = b.cluster.apply(&Snapshot { revision: 2, instances, stale: None });
    let after = b.cluster.endpoints();
    assert!(Arc::ptr_eq(&before.endpoints[0], &after.endpoints[0]));
    assert_eq!(after.endpoints[1].weight, 30);
    assert!(!after.endpoints[1].health.is_available(), "health stays through a change of weight");
    assert_eq!(after.endpoints.len(), 3);
    assert_eq!(fresh.len(), 2);
}

#[test]
fn unknown_kinds_are_named() {
    let lb = Named { name: "p2p".into(), options: Value::Null };
    let config = config::Cluster { lb, filters: Vec::new(), ..Default::default() };
    let error = Cluster::build(Parts {
        key: Default::default(),
        direction: Direction::Outbound,
        protocol: "script",
        config: &config,
        connector: Arc::new(Script::default()),
        introduce: None,
        own: OwnSockets::default(),
        cx: &BuildCx::default(),
    })
    .err()
    .unwrap();
    let known: Vec<_> = lb::KINDS.iter().map(|kind| kind.name).collect();
    assert_eq!(error.to_string(), format!("unknown load balancer `p2p`; known: {}", known.join(", ")));
}
