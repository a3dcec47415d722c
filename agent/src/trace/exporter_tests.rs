use std::{net::SocketAddr, time::UNIX_EPOCH};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::trace::{Attribute, Kind, Span};

const SOON: Duration = Duration::from_secs(20);

/// A collector: keeps the path and the body of every request, and answers with `status`.
struct Collector {
    at: SocketAddr,
    got: Arc<Mutex<Vec<(String, Value)>>>,
    status: Arc<Mutex<&'static str>>,
}

async fn collector() -> Collector {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let collector =
        Collector { at: listener.local_addr().unwrap(), got: Arc::default(), status: Arc::new(Mutex::new("200 OK")) };
    let (got, status) = (collector.got.clone(), collector.status.clone());
    tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            serve(io, &got, &status).await;
        }
    });
    collector
}

async fn serve(mut io: TcpStream, got: &Mutex<Vec<(String, Value)>>, status: &Mutex<&'static str>) {
    let mut bytes = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let n = io.read(&mut chunk).await.unwrap();
        bytes.extend_from_slice(&chunk[..n]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.to_lowercase().lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok());
        if n > 0 && body.len() < length.unwrap_or(0) {
            continue;
        }
        assert!(head.to_lowercase().contains("content-type: application/json"), "{head}");
        let status = *status.lock();
        if status.starts_with('2') {
            let path = head.split(' ').nth(1).unwrap().to_owned();
            got.lock().push((path, serde_json::from_str(body).unwrap()));
        }
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        let _ = io.write_all(answer.as_bytes()).await;
        return;
    }
}

fn spans() -> Spans {
    let span = Span {
        trace: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
        id: 0xb7ad_6b71_6920_3331,
        parent: None,
        name: "web.echo".to_owned(),
        kind: Kind::Server,
        start: UNIX_EPOCH + Duration::from_micros(1_795_255_955_123_456),
        duration: Duration::from_micros(1500),
        peer: Some("127.0.0.1:40000".parse().unwrap()),
        service: "web".into(),
        error: None,
        attributes: vec![("rpc.method", Attribute::Text("echo".to_owned())), ("attempts", Attribute::Number(1))],
        state: "a=1".into(),
    };
    let attempt = Span {
        id: 1,
        parent: Some(span.id),
        kind: Kind::Client,
        peer: Some("[::1]:8081".parse().unwrap()),
        error: Some("broke".to_owned()),
        ..span.clone()
    };
    vec![span, attempt]
}

fn exporters() -> Exporters {
    Exporters::new(Handle::current())
}

#[tokio::test]
async fn otlp_is_what_a_collector_reads() {
    let (collector, exporters) = (collector().await, exporters());
    let target = Target::Otlp(format!("http://{}", collector.at));
    let exporter = exporters.get(&target, &"shop".into(), 16).unwrap();
    exporter.take(spans());
    exporters.flush(SOON).await;
    let (path, body) = collector.got.lock().remove(0);
    assert_eq!(path, "/v1/traces");
    let resource = &body["resourceSpans"][0];
    let name = &resource["resource"]["attributes"][0];
    assert_eq!((&name["key"], &name["value"]["stringValue"]), (&"service.name".into(), &"shop".into()));
    let spans = resource["scopeSpans"][0]["spans"].as_array().unwrap();
    let (call, attempt) = (&spans[0], &spans[1]);
    assert_eq!(call["traceId"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(
        (&call["spanId"], &call["kind"], &call["name"]),
        (&"b7ad6b7169203331".into(), &2.into(), &"web.echo".into())
    );
    assert_eq!(call["startTimeUnixNano"], "1795255955123456000");
    assert_eq!(call["endTimeUnixNano"], "1795255955124956000");
    assert_eq!(
        (&call["traceState"], call.get("parentSpanId"), &call["status"]),
        (&"a=1".into(), None, &serde_json::json!({}))
    );
    let number = serde_json::json!({"key": "attempts", "value": {"intValue": "1"}});
    assert!(call["attributes"].as_array().unwrap().contains(&number), "{call}");
    assert_eq!((&attempt["parentSpanId"], &attempt["kind"]), (&call["spanId"], &3.into()));
    assert_eq!(attempt["status"], serde_json::json!({"code": 2, "message": "broke"}));
    let address = serde_json::json!({"key": "server.address", "value": {"stringValue": "::1"}});
    assert!(attempt["attributes"].as_array().unwrap().contains(&address), "{attempt}");
    assert_eq!(exporter.counts(), (2, 0, 0));
}

#[tokio::test]
async fn zipkin_is_what_its_api_says() {
    let (collector, exporters) = (collector().await, exporters());
    let target = Target::Zipkin(format!("http://{}/", collector.at));
    exporters.get(&target, &"shop".into(), 16).unwrap().take(spans());
    // Nobody holds the exporter any more: what it has still goes out.
    until("spans", SOON, || !collector.got.lock().is_empty()).await;
    let (path, body) = collector.got.lock().remove(0);
    assert_eq!(path, "/api/v2/spans");
    let (call, attempt) = (&body[0], &body[1]);
    assert_eq!(call["traceId"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(
        (&call["id"], &call["kind"], call.get("parentId")),
        (&"b7ad6b7169203331".into(), &"SERVER".into(), None)
    );
    assert_eq!((&call["timestamp"], &call["duration"]), (&1_795_255_955_123_456u64.into(), &1500.into()));
    assert_eq!(call["localEndpoint"]["serviceName"], "shop");
    assert_eq!(call["remoteEndpoint"], serde_json::json!({"ipv4": "127.0.0.1", "port": 40000}));
    assert_eq!((&call["tags"]["rpc.method"], &call["tags"]["attempts"]), (&"echo".into(), &"1".into()));
    assert_eq!((&attempt["parentId"], &attempt["tags"]["error"]), (&call["id"], &"broke".into()));
    let remote = serde_json::json!({"ipv6": "::1", "port": 8081, "serviceName": "web"});
    assert_eq!((&attempt["kind"], &attempt["remoteEndpoint"]), (&"CLIENT".into(), &remote));
}

#[tokio::test]
async fn a_batch_is_tried_again_and_then_lost_and_counted() {
    let (collector, exporters) = (collector().await, exporters());
    *collector.status.lock() = "503 Busy";
    let exporter = exporters.get(&Target::Otlp(format!("http://{}/own/path", collector.at)), &"a".into(), 16).unwrap();
    exporter.take(spans());
    exporters.flush(SOON).await;
    assert_eq!(exporter.counts(), (0, 2, 0), "a flush tries once");
    *collector.status.lock() = "202 Accepted";
    exporter.take(spans());
    exporters.flush(SOON).await;
    assert_eq!(exporter.counts(), (2, 2, 0));
    assert_eq!(collector.got.lock()[0].0, "/own/path");
}

#[tokio::test]
async fn a_collector_that_comes_back_gets_the_batch_that_waited() {
    let (collector, exporters) = (collector().await, exporters());
    *collector.status.lock() = "500 Oops";
    let exporter = exporters.get(&Target::Otlp(format!("http://{}", collector.at)), &"a".into(), BATCH).unwrap();
    for _ in 0..BATCH {
        exporter.take(spans());
    }
    // A whole batch goes at once.
    until("an empty queue", SOON, || exporter.queued() == 0).await;
    *collector.status.lock() = "200 OK";
    until("spans", SOON, || exporter.counts().0 == 2 * BATCH as u64).await;
    assert_eq!(exporter.counts().1, 0);
}

#[tokio::test]
async fn a_full_queue_drops_and_counts_and_never_waits() {
    // Nobody listens there, and the runtime has no time for the task while we take.
    let exporters = exporters();
    let exporter = exporters.get(&Target::Otlp("http://127.0.0.1:9".to_owned()), &"a".into(), 4).unwrap();
    for _ in 0..10 {
        exporter.take(spans());
    }
    assert_eq!((exporter.counts().2, exporter.queued()), (12, 4));
    let same = exporters.get(&Target::Otlp("http://127.0.0.1:9".to_owned()), &"a".into(), 4).unwrap();
    assert!(Arc::ptr_eq(&same, &exporter), "one for each target");
    exporters.flush(Duration::from_millis(1)).await;
}

#[test]
fn addresses_are_checked() {
    for bad in ["collector:4318", "ftp://collector", "http://:1", "http:///v1"] {
        assert!(Target::Otlp(bad.to_owned()).parse().is_err(), "{bad}");
    }
    let (peer, path) = Target::Zipkin("http://zipkin".to_owned()).parse().unwrap();
    assert_eq!((peer.to_string(), path), ("http://zipkin:9411".to_owned(), "/api/v2/spans".to_owned()));
}
