use super::*;
use crate::{
    call::{Body, Head, Motan2Head},
    filter::testing::{Bench, failed, http, motan},
};

fn breaker(options: &str) -> Bench {
    Bench::new(build, options)
}

fn thrown(code: i64, errtype: i64) -> Result<Response, CallError> {
    let exception = Exception { code, text: "mine".into(), errtype };
    crate::filter::answer::exception(
        &Head::Motan2(Motan2Head::default()),
        &exception,
        http::StatusCode::INTERNAL_SERVER_ERROR,
    )
}

fn text(end: &Result<Response, CallError>) -> &str {
    &end.as_ref().unwrap_err().message
}

#[tokio::test(start_paused = true)]
async fn texts_are_those_that_motan_callers_know() {
    let b = breaker("{requests: 2, timeout: 300ms, max_concurrent: 1}");
    let slow = b.call_taking(motan("echo"), Duration::from_millis(300), || Err(failed(ErrorKind::Timeout))).await;
    assert_eq!(text(&slow), "hystrix: timeout");
    assert!(slow.unwrap_err().verbatim);
    let first = b.begin(motan("echo"));
    let second = b.call(motan("echo"), || Ok(b.good())).await;
    assert_eq!(text(&second), "hystrix: max concurrency");
    first.end(Err(failed(ErrorKind::Reset))).unwrap_err();
    let open = b.call(motan("echo"), || Ok(b.good())).await;
    assert_eq!((text(&open), open.as_ref().unwrap_err().kind), ("hystrix: circuit open", ErrorKind::CircuitOpen));
    assert_eq!((b.state("circuit", ""), b.event("opened", ""), b.event("refused_open", "")), (2, 1, 1));
    assert_eq!((b.event("refused_concurrent", ""), b.event("timed_out", "")), (1, 1));
    tokio::time::advance(Duration::from_secs(5)).await;
    assert!(b.call(motan("echo"), || Ok(b.good())).await.is_ok());
    assert_eq!(b.state("circuit", ""), 0);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_says_nothing_and_leaves_no_place_taken() {
    let b = breaker("{requests: 1, max_concurrent: 1}");
    for _ in 0..3 {
        drop(b.begin(motan("echo")));
    }
    assert_eq!((b.state("in_flight", ""), b.state("circuit", "")), (0, 0));
    // Nor does a trial that was given up keep the circuit open for ever.
    b.call(motan("echo"), || Err(failed(ErrorKind::Reset))).await.unwrap_err();
    tokio::time::advance(Duration::from_secs(5)).await;
    drop(b.begin(motan("echo")));
    assert!(b.call(motan("echo"), || Ok(b.good())).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn two_of_them_keep_their_own_books() {
    let (one, other) = (breaker("{max_concurrent: 9}"), breaker("{max_concurrent: 8}"));
    let mut begun = one.begin(motan("echo"));
    assert!(matches!(other.filter.on_request(&mut begun.cx, &mut begun.req), Verdict::Continue));
    let mut end = Ok(one.good());
    other.filter.on_response(&mut begun.cx, &mut end);
    assert_eq!((one.state("in_flight", ""), other.state("in_flight", "")), (1, 0));
    begun.end(end).unwrap();
    assert_eq!(one.state("in_flight", ""), 0);
}

#[tokio::test(start_paused = true)]
async fn what_counts_as_an_error_is_told_by_the_protocol_and_the_options() {
    let refused = || Ok(crate::filter::answer::http(http::StatusCode::NOT_FOUND, Default::default(), "x".into()));
    for (options, motan_opens) in [("{requests: 2}", true), ("{requests: 2, business_errors: false}", false)] {
        let b = breaker(options);
        for _ in 0..2 {
            let _ = b.call(motan("echo"), || thrown(30412, 2)).await;
        }
        assert_eq!(b.state("circuit", "") == 2, motan_opens, "{options}");
    }
    let b = breaker("{requests: 2}");
    for _ in 0..4 {
        let _ = b.call(http("GET"), refused).await;
        let _ = b.call(http("GET"), || Err(failed(ErrorKind::RateLimited))).await;
    }
    assert_eq!(b.state("circuit", ""), 0);
    for _ in 0..4 {
        let _ = b.call(http("GET"), || Err(failed(ErrorKind::Connect))).await;
    }
    assert_eq!(b.state("circuit", ""), 2);
}

#[tokio::test(start_paused = true)]
async fn exceptions_are_replaced_only_when_asked() {
    let b = breaker("{}");
    let kept = b.call(motan("echo"), || thrown(30412, 2)).await;
    assert_eq!(kept.unwrap().status, Status::Refused(30412));
    let b = breaker("{replace_errors: true}");
    let end = b.call(motan("echo"), || thrown(30412, 2)).await.unwrap_err();
    assert!(end.verbatim && end.message == "mine", "{end:?}");
    let end = b.call(motan("echo"), || Err(failed(ErrorKind::Connect))).await.unwrap_err();
    assert!(end.verbatim && end.message == "can not get a channel", "{end:?}");
    let good = b.call(motan("echo"), || Ok(b.good())).await.unwrap();
    assert!(matches!(good.body, Body::Full(_)));
    let end = b.call(http("GET"), || Err(failed(ErrorKind::Connect))).await;
    assert!(end.is_err());
}

#[tokio::test(start_paused = true)]
async fn each_method_has_its_circuit_and_there_are_not_too_many() {
    let b = breaker("{scope: method, requests: 1}");
    b.call(motan("bad"), || Err(failed(ErrorKind::Reset))).await.unwrap_err();
    assert_eq!(text(&b.call(motan("bad"), || Ok(b.good())).await), "hystrix: circuit open");
    assert!(b.call(motan("echo"), || Ok(b.good())).await.is_ok());
    for i in 0..1000 {
        let _ = b.call(motan(&format!("m{i}")), || Ok(b.good())).await;
    }
    assert_eq!(b.figures().iter().filter(|f| f.name == "circuit").count(), METHODS + 1);
    assert_eq!(b.state("circuit", "bad"), 2);
}

#[tokio::test(start_paused = true)]
async fn an_open_endpoint_is_passed_over_until_one_trial_shows_it_well() {
    let b = breaker("{scope: endpoint, requests: 1}");
    let (one, two) = (b.endpoint(1), b.endpoint(2));
    b.attempt(&one, Err(failed(ErrorKind::Reset))).unwrap();
    assert!(!one.is_available() && two.is_available());
    let refused = b.attempt(&one, Ok(())).unwrap_err();
    assert_eq!((&*refused.message, refused.retry), ("hystrix: circuit open", Retry::NotSent));
    b.attempt(&two, Ok(())).unwrap();
    tokio::time::advance(Duration::from_secs(5)).await;
    assert!(one.is_available(), "picked again for a trial");
    b.attempt(&one, Err(failed(ErrorKind::Reset))).unwrap();
    assert!(!one.is_available());
    tokio::time::advance(Duration::from_secs(5)).await;
    b.attempt(&one, Ok(())).unwrap();
    assert!(one.is_available());
    b.attempt(&one, Ok(())).unwrap();
    assert_eq!((b.state("circuit", "127.0.0.1:1"), b.event("opened", "127.0.0.1:1")), (0, 1));
    assert!(b.call(motan("echo"), || Ok(b.good())).await.is_ok());
    assert_eq!(b.state("in_flight", "127.0.0.1:1"), 0);
}

#[tokio::test(start_paused = true)]
async fn circuits_of_endpoints_that_are_gone_are_forgotten() {
    let b = breaker("{scope: endpoint}");
    let circuits = Circuits::<SocketAddr>::default();
    for port in 1..=KEPT as u16 {
        circuits.get(&SocketAddr::from(([127, 0, 0, 1], port)));
    }
    tokio::time::advance(UNUSED).await;
    circuits.get(&SocketAddr::from(([127, 0, 0, 2], 1)));
    circuits.forget_idle();
    assert_eq!(circuits.map.load().len(), 1);
    b.endpoint(1);
    assert_eq!(b.state("circuit", "127.0.0.1:1"), 0);
}

#[test]
fn options_are_checked() {
    for (wrong, says) in [("{window: 0s}", "window"), ("{error_percent: 101}", "0 to 100"), ("{slow: 5}", "5ms")] {
        let options: Value = serde_yaml::from_str(wrong).unwrap();
        let error = build(&options, &BuildCx::default()).err().unwrap().to_string();
        assert!(error.contains(says), "{wrong}: {error}");
    }
}
