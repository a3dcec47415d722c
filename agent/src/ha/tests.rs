use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::time::{Instant, advance};

use super::testing::{Act, bench, request};
use crate::{
    call::{Body, Call, CallError, ErrorKind, Request, Response, Retry, Status, Text},
    config,
    endpoint::{Connector, Endpoint},
    kind::BuildCx,
};

#[tokio::test(start_paused = true)]
async fn when_all_refuse_or_fail_upstream_sees_a_fifth_more_and_ten_a_second() {
    for act in [Act::Refuse, Act::Reset, Act::Answer(Status::Failed(503))] {
        for endpoints in [2, 20] {
            let b = bench(endpoints, "failover", move |_, _| act);
            let (calls, seconds) = (500, 20);
            let attempts = b.storm(calls, seconds).await;
            // While they are found out, what was refused may go to one that is still thought good.
            let found_out = u64::from(endpoints) * 2;
            let most = calls * seconds * 12 / 10 + 10 * seconds + 10 + found_out;
            assert!(attempts <= most && attempts > calls * seconds * 11 / 10, "{attempts} of {most}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_dies_under_thousands_of_calls_fails_none() {
    let b = bench(3, "{failover: {budget_percent: 0, budget_per_second: 0}}", |port, _| match port {
        2 => Act::Refuse,
        _ => Act::Slow(Duration::from_millis(50)),
    });
    let calls: FuturesUnordered<_> = (0..10_000).map(|_| b.call()).collect();
    let failed = calls.filter(|end| std::future::ready(end.is_err())).count().await;
    assert_eq!(failed, 0, "what reached nobody needs no budget while others are in rotation");
    assert_eq!(b.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_exhausted_budget_ends_the_call_with_what_it_has() {
    let b = bench(2, "{failover: {budget_percent: 0, budget_per_second: 1}}", |_, _| Act::Answer(Status::Failed(503)));
    assert_eq!(b.call().await.unwrap().status, Status::Failed(503));
    assert_eq!(b.asked().0.len(), 2);
    assert_eq!(b.call().await.unwrap().status, Status::Failed(503));
    assert_eq!(b.asked().0.len(), 1);
    advance(Duration::from_secs(1)).await;
    b.call().await.unwrap();
    assert_eq!(b.asked().0.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn attempts_after_the_first_are_marked_and_marked_calls_are_not_retried() {
    let b = bench(3, "failover", |_, call| if call.retry < 2 { Act::Reset } else { Act::Answer(Status::Ok) });
    assert!(b.call().await.is_ok());
    assert_eq!(b.asked().1, [0, 1, 2]);

    let b = bench(3, "failover", |port, _| if port == 1 { Act::Answer(Status::Ok) } else { Act::Refuse });
    for _ in 0..3 {
        assert!(b.call().await.is_ok());
    }
    assert!(b.asked().1.iter().all(|mark| *mark == 0), "what reached nobody is no retry");

    let b = bench(3, "failover", |_, _| Act::Answer(Status::Failed(500)));
    let mut marked = request();
    marked.call.retry = 1;
    assert_eq!(b.cluster.call(&mut marked).await.unwrap().status, Status::Failed(500));
    assert_eq!(b.asked().1, [1], "the one who marked it retries");

    let b = bench(2, "failover", |port, _| if port == 1 { Act::Answer(Status::Ok) } else { Act::Refuse });
    for _ in 0..2 {
        let mut marked = request();
        marked.call.retry = 1;
        assert!(b.cluster.call(&mut marked).await.is_ok(), "unsent, it still goes to one that lives");
    }
}

const HEDGED: &str = "{backup_request: {delay: 20ms}}";

#[tokio::test(start_paused = true)]
async fn a_backup_wins_over_one_that_hangs() {
    let b = bench(2, HEDGED, |_, call| if call.retry == 0 { Act::Hang } else { Act::Answer(Status::Ok) });
    let began = Instant::now();
    assert_eq!(b.call().await.unwrap().status, Status::Ok);
    assert_eq!(began.elapsed(), Duration::from_millis(20));
    let (ports, marks) = b.asked();
    assert_eq!((marks, ports[0] != ports[1]), (vec![0, 1], true));
    assert_eq!(b.in_flight(), 0, "the loser is given up");
    let loser = b.cluster.endpoints().endpoints.iter().find(|e| e.addr.port() == ports[0]).unwrap().clone();
    assert_eq!(loser.hot.ewma.expected_ns(), 20_000_000, "and known to be no faster than that");
}

#[tokio::test(start_paused = true)]
async fn the_first_wins_when_it_is_first_and_no_backup_goes_out_early() {
    let b = bench(2, HEDGED, |_, _| Act::Slow(Duration::from_millis(19)));
    b.call().await.unwrap();
    assert_eq!(b.asked().0.len(), 1);
    let b = bench(2, HEDGED, |_, call| Act::Slow(Duration::from_millis(if call.retry == 0 { 30 } else { 100 })));
    let began = Instant::now();
    b.call().await.unwrap();
    assert_eq!((b.asked().0.len(), began.elapsed()), (2, Duration::from_millis(30)));
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_followed_at_once_and_a_failing_backup_does_not_win() {
    let b = bench(3, HEDGED, |_, call| if call.retry == 0 { Act::Reset } else { Act::Answer(Status::Ok) });
    let began = Instant::now();
    b.call().await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    let b = bench(3, HEDGED, |_, call| match call.retry {
        0 => Act::Slow(Duration::from_millis(25)),
        _ => Act::Answer(Status::Failed(500)),
    });
    assert_eq!(b.call().await.unwrap().status, Status::Ok);
    let b = bench(2, HEDGED, |_, _| Act::Refuse);
    assert_eq!(b.call().await.unwrap_err().kind, ErrorKind::Connect);
}

#[tokio::test(start_paused = true)]
async fn only_what_may_be_repeated_gets_a_backup() {
    let b = bench(2, HEDGED, |_, _| Act::Slow(Duration::from_millis(100)));
    let mut marked = request();
    marked.call.retry = 1;
    b.cluster.call(&mut marked).await.unwrap();
    assert_eq!(b.asked().0.len(), 1);
    let mut streamed = request();
    streamed.body = Body::Stream(http_body_util::combinators::UnsyncBoxBody::default());
    b.cluster.call(&mut streamed).await.unwrap();
    assert_eq!(b.asked().0.len(), 1);
    b.call().await.unwrap();
    assert_eq!(b.asked().0.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn backups_are_limited_in_each_round() {
    let b = bench(2, "{backup_request: {delay: 20ms, max_percent: 15}}", |_, _| Act::Slow(Duration::from_millis(50)));
    for _ in 0..3 {
        for _ in 0..100 {
            b.call().await.unwrap();
        }
        assert_eq!(b.asked().0.len(), 115);
    }
    for _ in 0..20 {
        b.call().await.unwrap();
    }
    b.asked();
    advance(Duration::from_secs(20)).await;
    for _ in 0..20 {
        b.call().await.unwrap();
    }
    assert_eq!(b.asked().0.len(), 35, "a round that takes long begins anew");
}

#[tokio::test(start_paused = true)]
async fn the_delay_follows_the_latency() {
    let slow =
        |_: u16, call: &Call| if &*call.method == "hang" { Act::Hang } else { Act::Slow(Duration::from_millis(40)) };
    let b = bench(2, "{backup_request: {percentile: 50, initial_delay: 100ms}}", move |port, call| match call.retry {
        0 => slow(port, call),
        _ => Act::Answer(Status::Ok),
    });
    let hang = async || {
        let mut request = request();
        request.call.method = Text::from_static("hang");
        let began = Instant::now();
        b.cluster.call(&mut request).await.unwrap();
        began.elapsed()
    };
    assert_eq!(hang().await, Duration::from_millis(100), "nothing is known yet");
    for _ in 0..200 {
        b.call().await.unwrap();
    }
    let learned = hang().await;
    assert!((40..46).contains(&learned.as_millis()), "{learned:?}: the median to within a bucket");
    let b = bench(2, "backup_request", move |_, _| Act::Slow(Duration::from_millis(500)));
    b.call().await.unwrap();
    assert_eq!(b.asked().0.len(), 1, "no figure, no backup");
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_reaches_all_and_the_first_error_is_its_answer() {
    let b = bench(5, "broadcast", |_, _| Act::Answer(Status::Ok));
    assert_eq!(b.call().await.unwrap().status, Status::Ok);
    let (mut ports, marks) = b.asked();
    ports.sort_unstable();
    assert_eq!((ports, marks), (vec![1, 2, 3, 4, 5], vec![0; 5]));

    let b = bench(3, "broadcast", |port, _| match port {
        1 => Act::Slow(Duration::from_millis(30)),
        2 => Act::Answer(Status::Failed(503)),
        _ => Act::Refuse,
    });
    assert_eq!(b.call().await.unwrap().status, Status::Failed(503));
    assert_eq!(b.asked().0.len(), 3);
    assert_eq!(b.in_flight(), 0);

    let b = bench(0, "broadcast", |_, _| Act::Hang);
    assert_eq!(b.call().await.unwrap_err().kind, ErrorKind::NoEndpoint);
    let mut streamed = request();
    streamed.body = Body::Stream(http_body_util::combinators::UnsyncBoxBody::default());
    assert_eq!(b.cluster.call(&mut streamed).await.unwrap_err().kind, ErrorKind::Rejected);
}

#[test]
fn mistakes_in_options_are_named() {
    for (name, options, said) in [
        ("failover", "budget_percent: -1", "budget_percent: -1 is out of range"),
        ("backup_request", "percentile: 0", "percentile: 0 is out of range"),
        ("backup_request", "max_percent: 101", "max_percent: 101 is over 100"),
        ("backup_request", "delay: '10'", "has no unit"),
    ] {
        let options = serde_yaml::from_str(options).unwrap();
        let error = crate::kind::build("HA strategy", super::KINDS, name, &options, &BuildCx::default()).err().unwrap();
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_endpoint_stays_out_for_a_while_and_not_for_ever() {
    use crate::endpoint::{DialOptions, Probed, probe_forever};

    /// Says what it is told to, by number of the probe.
    struct Doctor(Mutex<u32>, HashMap<u32, Probed>);
    impl Connector for Doctor {
        fn call<'a>(&'a self, _: &'a Arc<Endpoint>, _: &'a mut Request) -> BoxFuture<'a, Result<Response, CallError>> {
            Box::pin(std::future::pending())
        }
        fn probe<'a>(&'a self, _: &'a Arc<Endpoint>) -> BoxFuture<'a, Result<Probed, CallError>> {
            let n = {
                let mut n = self.0.lock();
                *n += 1;
                *n
            };
            let refused = CallError::upstream(ErrorKind::Connect, Retry::NotSent, "refused");
            let said = self.1.get(&n).copied().ok_or(refused);
            Box::pin(async move { said })
        }
        fn default_timeout(&self) -> Duration {
            Duration::from_secs(1)
        }
    }
    let silent: HashMap<_, _> = (3..100).map(|n| (n, Probed::Connects)).collect();
    let answers = [(4, Probed::Answers)].into();
    for (script, probes) in [(answers, 4), (silent, 7)] {
        let doctor = Arc::new(Doctor(Mutex::new(0), script));
        let at = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut endpoint = Endpoint::new(at, Text::default(), 1, config::Eject::default(), DialOptions::default());
        endpoint.prober = Some(doctor.clone());
        let endpoint = Arc::new(endpoint);
        crate::lb::testing::eject(&endpoint);
        let probing = tokio::spawn(probe_forever(Arc::downgrade(&endpoint)));
        let deadline = Instant::now() + Duration::from_secs(600);
        while !endpoint.health.is_available() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(endpoint.health.is_available());
        assert_eq!(*doctor.0.lock(), probes);
        probing.abort();
    }
}
