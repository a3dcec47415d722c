use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body, response::IntoResponse};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use model::center::Of;
use parking_lot::Mutex;
use tokio::net::TcpListener;

use super::*;

/// A server that answers everything alike, and what it was asked last.
async fn server(status: StatusCode, body: &'static str) -> (SocketAddr, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(String::new()));
    let note = asked.clone();
    let router = Router::new().fallback(move |request: Request<Body>| async move {
        let path = request.uri().path().to_owned();
        let body_of = request.into_body().collect().await.unwrap().to_bytes();
        *note.lock() = format!("{path} {}", String::from_utf8_lossy(&body_of));
        if status == StatusCode::GATEWAY_TIMEOUT {
            std::future::pending::<()>().await;
        }
        Ok::<_, Infallible>((status, body).into_response())
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    (at, asked)
}

fn asked() -> Asked {
    let of = Of { service: "com.example.Echo".to_owned(), group: "idc-a".to_owned(), ..Of::default() };
    Asked { of, from_ms: 1_000_000, to_ms: 1_060_000, step_ms: 10_000 }
}

fn source(kind: &str, at: SocketAddr) -> Arc<dyn Source> {
    let options = serde_yaml::from_str(&format!("{{address: 'http://{at}', timeout: 300ms}}")).unwrap();
    kind::build("source", KINDS, kind, &options, &BuildCx::default()).unwrap()
}

const GRAPHITE: &str = r#"[
 {"target":"rate","datapoints":[[20.0,1000],[30.0,1010],[null,1020],[50.0,1030],[-3,1040],[60,1050],[9,99999999]]},
 {"target":"failed","datapoints":[[2,1000],[0,1010],[null,1020],[null,1030],[null,1040],[1,1050]]},
 {"target":"slow","datapoints":[[20,1000],[3,1010]]},
 {"target":"p99","datapoints":[[12.5,1000],[13,1010]]},
 {"target":"sockmesh.h1.shop.outbound.x.y._all.mean","datapoints":[[1,1000],[2,1010]]},
 {"target":"sockmesh.h1.shop.outbound.x.y._all.count","datapoints":[[100,1000],[300,1010],[null,1020],[10,1030]]},
 {"target":"sockmesh.h2.shop.outbound.x.y._all.mean","datapoints":[[4,1000]]},
 {"target":"sockmesh.h2.shop.outbound.x.y._all.count","datapoints":[[100,1000],[0,1010]]}]"#;

#[tokio::test]
async fn graphite_is_asked_once_and_its_hosts_are_joined() {
    let (at, noted) = server(StatusCode::OK, GRAPHITE).await;
    let series = source("graphite", at).series(&asked()).await.unwrap();
    assert_eq!(series.at_ms, [1_010_000, 1_020_000, 1_030_000, 1_040_000, 1_050_000, 1_060_000]);
    assert_eq!(series.rate, [Some(20.0), Some(30.0), None, Some(50.0), None, Some(60.0)]);
    assert_eq!(series.success[..4], [Some(0.99), Some(1.0), None, Some(1.0)]);
    assert_eq!(series.slow[..2], [Some(0.1), Some(0.01)]);
    assert_eq!(series.mean_ms[..2], [Some(2.5), Some(2.0)]);
    assert_eq!(series.p99_ms[..3], [Some(12.5), Some(13.0), None]);
    let noted = noted.lock().clone();
    for part in [
        "/render target=alias%28sumSeries%28sockmesh.*.*.outbound.com_example_Echo.idc-a._all.rate%29%2C%22rate%22%29",
        "&from=1000&until=1060&maxDataPoints=",
    ] {
        assert!(noted.contains(part), "{part} is not in {noted}");
    }
    // Instances are not there; callers are what the prefix says.
    let of = Of { instance: "10.0.0.1:1".to_owned(), ..asked().of };
    let error = source("graphite", at).series(&Asked { of, ..asked() }).await.unwrap_err();
    assert!(error.to_string().contains("single instances"), "{error}");
    let of = Of { caller: "my shop".to_owned(), ..asked().of };
    source("graphite", at).series(&Asked { of, ..asked() }).await.unwrap();
}

const MOTAN: &str = r#"[
 {"target":"rate","datapoints":[[20.0,1000],[30.0,1010],[null,1020]]},
 {"target":"count","datapoints":[[100,1000],[150,1010]]},
 {"target":"failed","datapoints":[[1,1000]]},
 {"target":"slow","datapoints":[[10,1000],[3,1010]]},
 {"target":"p99","datapoints":[[12.5,1000],[13,1010]]},
 {"target":"rate.cluster","datapoints":[[7,1000]]},
 {"target":"motan-client-agent.shop.idc-a.byhost.10_0_0_1.s.get.avg_time","datapoints":[[1,1000]]},
 {"target":"motan-client-agent.shop.idc-a.byhost.10_0_0_1.s.get.total_count","datapoints":[[75,1000]]},
 {"target":"motan-client-agent.shop.idc-a.byhost.10_0_0_2.s.put.avg_time","datapoints":[[5,1000]]},
 {"target":"motan-client-agent.shop.idc-a.byhost.10_0_0_2.s.put.total_count","datapoints":[[25,1000]]},
 {"target":"motan-client-agent.shop.idc-a.cluster.byhost.10_0_0_2.s.put.avg_time","datapoints":[[500,1000]]},
 {"target":"motan-client-agent.shop.idc-a.cluster.byhost.10_0_0_2.s.put.total_count","datapoints":[[25,1000]]}]"#;

#[tokio::test]
async fn graphite_is_read_by_motan_gos_names_too() {
    let (at, noted) = server(StatusCode::OK, MOTAN).await;
    let source = |more: &str| {
        let options = serde_yaml::from_str(&format!("{{address: 'http://{at}', form: motan{more}}}")).unwrap();
        kind::build("source", KINDS, "graphite", &options, &BuildCx::default()).unwrap()
    };
    let series = source("").series(&asked()).await.unwrap();
    assert_eq!(series.rate[..3], [Some(20.0), Some(30.0), None]);
    assert_eq!(series.success[..3], [Some(0.99), Some(1.0), None]);
    assert_eq!(series.slow[..2], [Some(0.1), Some(0.02)]);
    assert_eq!(series.mean_ms[..2], [Some(2.0), None], "weighed by calls, and calls apart from attempts");
    assert_eq!(series.p99_ms[..2], [Some(12.5), Some(13.0)]);
    let last = noted.lock().clone();
    assert!(last.contains("idc-a.cluster.byhost.*.com_example_Echo.*.avg_time"), "{last}");
    // Counters of five seconds each.
    let series = source(", interval: 5s, prefix: stats").series(&asked()).await.unwrap();
    assert_eq!(series.rate[..2], [Some(4.0), Some(6.0)]);
    assert!(noted.lock().contains("target=stats.%7Bmotan-client-agent%2C"), "{}", noted.lock());
    // Sites that count calls only, by the filter `clusterMetrics`.
    let only =
        r#"[{"target":"rate.cluster","datapoints":[[7,1000]]},{"target":"count.cluster","datapoints":[[70,1000]]}]"#;
    let (at, _) = server(StatusCode::OK, only).await;
    let options = serde_yaml::from_str(&format!("{{address: 'http://{at}', form: motan}}")).unwrap();
    let other = kind::build("source", KINDS, "graphite", &options, &BuildCx::default()).unwrap();
    let series = other.series(&asked()).await.unwrap();
    assert_eq!((series.rate[0], series.success[0], series.mean_ms[0]), (Some(7.0), Some(1.0), None));
    let of = Of { side: model::center::Side::Inbound, caller: "shop".to_owned(), ..asked().of };
    let error = other.series(&Asked { of, ..asked() }).await.unwrap_err();
    assert!(error.to_string().contains("name no callers"), "{error}");
}

#[tokio::test]
async fn prometheus_is_asked_for_each_figure() {
    let body = r#"{"status":"success","data":{"resultType":"matrix","result":[{"metric":{},"values":
        [[1010,"0.5"],[1020,"NaN"],[1030,"+Inf"],[1040,"2"],["x","y"]]}]}}"#;
    let (at, _) = server(StatusCode::OK, body).await;
    let error = source("prometheus", at).series(&asked()).await.unwrap_err();
    assert!(format!("{error:#}").contains("answered no series"), "{error:#}");
    let body = r#"{"status":"success","data":{"resultType":"matrix","result":[{"metric":{},"values":
        [[1010,"0.5"],[1020,"NaN"],[1030,"+Inf"],[1040,"2"],[5,"7"],[1040.5,"x"]]}]}}"#;
    let (at, noted) = server(StatusCode::OK, body).await;
    let series = source("prometheus", at).series(&asked()).await.unwrap();
    assert_eq!(series.rate, [Some(0.5), None, None, Some(2.0), None, None]);
    assert_eq!(series.success, [Some(0.5), None, None, None, None, None], "no share is above one");
    assert!(
        noted.lock().contains("/api/v1/query_range query=") && noted.lock().contains("&start=1010&end=1060&step=10")
    );
}

#[tokio::test]
async fn slow_empty_or_wrong_is_an_error_that_says_so() {
    const EMPTY: &str = r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#;
    for (kind, status, body, part) in [
        ("graphite", 504, "", "no answer within 300ms"),
        ("graphite", 200, "[]", "nothing of that name"),
        ("graphite", 200, r#"[{"target":"rate","datapoints":[[null,1000],[null,1010]]}]"#, "nothing of that name"),
        ("graphite", 200, r#"[{"target":"rate","datapoints":[[1,10],[1,20]]}]"#, "nothing of that name"),
        ("graphite", 200, "<html>log in</html>", "answered no series: `<html>log in"),
        ("graphite", 200, r#"{"rate":1}"#, "answered no series"),
        ("graphite", 200, r#"[{"target":"rate","datapoints":[["a",1000]]}]"#, "answered no series"),
        ("graphite", 200, "\u{0}\u{1}", "answered no series"),
        ("graphite", 500, "Traceback (most recent call last)", "500"),
        ("prometheus", 504, "", "no answer within 300ms"),
        ("prometheus", 200, EMPTY, "nothing of that name"),
        ("prometheus", 200, "[]", "answered no series"),
        ("prometheus", 200, r#"{"status":"error","error":"bad query"}"#, "bad query"),
        ("prometheus", 422, r#"{"status":"error","error":"too many points"}"#, "too many points"),
        ("prometheus", 503, "starting", "503"),
        ("prometheus", 200, "<html>", "answered no series"),
    ] {
        let (at, _) = server(StatusCode::from_u16(status).unwrap(), body).await;
        let error = source(kind, at).series(&asked()).await.expect_err(body);
        let error = format!("{error:#}");
        assert!(error.contains(part) && error.contains(&at.to_string()), "{kind} {body:?}: {error}");
        assert!(error.len() < 500, "{error}");
    }
    // Nobody listens at all.
    let at = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for kind in ["graphite", "prometheus"] {
        assert!(source(kind, at).series(&asked()).await.is_err());
    }
}

#[tokio::test]
async fn whatever_a_server_answers_nothing_panics() {
    let mut random = fastrand::Rng::with_seed(11);
    for text in [GRAPHITE, r#"{"status":"success","data":{"result":[{"values":[[1010,"0.5"]]}]}}"#] {
        for _ in 0..60 {
            let mut body = text.as_bytes().to_vec();
            for _ in 0..random.usize(1..6) {
                let at = random.usize(..body.len());
                body[at] = random.u8(..);
            }
            body.truncate(random.usize(..=body.len()));
            let body: &'static str = Box::leak(String::from_utf8_lossy(&body).into_owned().into_boxed_str());
            let (at, _) = server(StatusCode::OK, body).await;
            for kind in ["graphite", "prometheus"] {
                if let Ok(series) = source(kind, at).series(&asked()).await {
                    assert_eq!(series.rate.len(), series.at_ms.len());
                    assert!(series.rate.iter().flatten().all(|rate| rate.is_finite() && *rate >= 0.0));
                }
            }
        }
    }
}

#[test]
fn options_are_checked() {
    for (kind, options) in [
        ("graphite", "{}"),
        ("graphite", "{address: '10.0.0.1'}"),
        ("graphite", "{address: 'http://a', prefix: 'a(b)'}"),
        ("graphite", "{address: 'http://a', nonsense: 1}"),
        ("graphite", "{address: 'http://a', form: udp}"),
        ("graphite", "{address: 'http://a', form: motan, interval: 0s}"),
        ("prometheus", "{address: 'ftp://a'}"),
        ("prometheus", "{address: 'http://a', labels: 'a}b'}"),
        ("prometheus", "{address: 'http://a', window: 1ms}"),
    ] {
        let options = serde_yaml::from_str(options).unwrap();
        assert!(kind::build("source", KINDS, kind, &options, &BuildCx::default()).is_err(), "{kind} {options:?}");
    }
    assert_eq!(PATIENCE, Duration::from_secs(5));
}
