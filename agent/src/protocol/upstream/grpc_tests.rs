//! gRPC towards an HTTP/2 server of this process; the real one is in the full tests.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::{
    net::TcpListener,
    sync::Notify,
    task::{AbortHandle, JoinSet},
};

use crate::{
    call::{Body, Call, CallError, ErrorKind, Head, Motan2Head, Pairs, Request, Response, ResponseHead, Status, Text},
    config::{Cluster, Named},
    protocol::testing::{Front, Settings, front},
};

type Answer = http::Response<UnsyncBoxBody<Bytes, std::convert::Infallible>>;

/// A server that answers by method and remembers what it was asked.
struct Server {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<(http::request::Parts, Bytes)>>>,
    connections: Arc<AtomicUsize>,
    current: Arc<Mutex<Vec<AbortHandle>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (seen, connections, current) = (Arc::default(), Arc::new(AtomicUsize::new(0)), Arc::default());
        let server = Self { addr, seen, connections, current, _tasks: JoinSet::new() };
        let (seen, connections, current) = (server.seen.clone(), server.connections.clone(), server.current.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut conns = JoinSet::new();
            loop {
                let (io, _) = listener.accept().await.unwrap();
                connections.fetch_add(1, Relaxed);
                let seen = seen.clone();
                current.lock().push(conns.spawn(async move {
                    let leave = Arc::new(Notify::new());
                    let left = leave.clone();
                    let service = service_fn(move |request: http::Request<Incoming>| {
                        let (seen, leave) = (seen.clone(), leave.clone());
                        async move {
                            let (parts, body) = request.into_parts();
                            let body = body.collect().await.unwrap().to_bytes();
                            let method = parts.uri.path().rsplit('/').next().unwrap().to_owned();
                            seen.lock().push((parts, body.clone()));
                            if method == "Leave" {
                                leave.notify_one();
                            }
                            Ok::<_, std::convert::Infallible>(answer(&method, body).await)
                        }
                    });
                    let serving = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(io), service);
                    tokio::pin!(serving);
                    tokio::select! {
                        _ = serving.as_mut() => return,
                        () = left.notified() => serving.as_mut().graceful_shutdown(),
                    }
                    let _ = serving.await;
                }));
            }
        });
        Self { _tasks: tasks, ..server }
    }

    fn seen(&self) -> (http::request::Parts, Bytes) {
        self.seen.lock().pop().expect("it was asked")
    }
}

fn framed(message: &[u8]) -> Bytes {
    let mut out = vec![0];
    out.extend((message.len() as u32).to_be_bytes());
    out.extend(message);
    out.into()
}

async fn answer(method: &str, body: Bytes) -> Answer {
    let trailers = |pairs: &[(&'static str, &str)]| {
        pairs.iter().map(|(k, v)| (k.parse::<http::HeaderName>().unwrap(), v.parse().unwrap())).collect::<HeaderMap>()
    };
    let ok = trailers(&[("grpc-status", "0")]);
    let frames = match method {
        "Echo" | "Leave" => vec![Frame::data(body), Frame::trailers(ok)],
        // In pieces, cut inside the prefix.
        "Pieces" => vec![Frame::data(body.slice(..3)), Frame::data(body.slice(3..)), Frame::trailers(ok)],
        "Slow" => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            Vec::new()
        }
        "Busy" => vec![Frame::trailers(trailers(&[("grpc-status", "14"), ("grpc-message", "try later")]))],
        "Packed" => vec![Frame::data(Bytes::from_static(b"\x01\0\0\0\x01z")), Frame::trailers(ok)],
        "Long" => vec![Frame::data(framed(&vec![7; 11 << 20])), Frame::trailers(ok)],
        "Silent" => vec![Frame::data(body)],
        _ => Vec::new(),
    };
    let frames = stream::iter(frames.into_iter().map(Ok));
    let mut answer = http::Response::new(StreamBody::new(frames).boxed_unsync());
    answer.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    match method {
        // A status without a message comes in the head alone.
        "Fail" => {
            answer.headers_mut().extend(trailers(&[("grpc-status", "3"), ("grpc-message", "kit%20fail: %E4%B8%AD")]));
        }
        "Gone" => *answer.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE,
        _ => {}
    }
    answer
}

async fn mesh(server: SocketAddr) -> Front {
    let cluster = Cluster { upstream: Some(Named::plain("grpc")), retries: 0, ..Cluster::default() };
    front("motan2", &[server], Settings { cluster, ..Settings::default() }).await
}

async fn call(mesh: &Front, method: &str, body: &'static [u8], meta: &[(&str, &str)]) -> Result<Response, CallError> {
    let mut call = Call::new(Text::from("kit.GrpcService"), Text::from(method));
    call.request_id = 77;
    call.application = Text::from("app");
    call.wire_timeout = Some(Duration::from_millis(1500));
    let meta: Pairs = meta.iter().copied().collect();
    let head = Head::Motan2(Motan2Head { serialization: 1, meta, ..Motan2Head::default() });
    let body = if body.is_empty() { Body::Empty } else { Body::Full(Bytes::from_static(body)) };
    mesh.cluster.call(&mut Request { call, head, body }).await
}

fn thrown(response: &Response) -> String {
    let ResponseHead::Motan2(head) = &response.head else { panic!("{response:?}") };
    head.meta.get("M_e").unwrap().to_string()
}

fn body(response: Response) -> Bytes {
    match response.body {
        Body::Full(bytes) => bytes,
        Body::Empty => Bytes::new(),
        Body::Stream(_) => panic!("streamed"),
    }
}

#[tokio::test]
async fn a_call_goes_out_as_grpc_says_and_its_message_comes_back() {
    let server = Server::start().await;
    let mesh = mesh(server.addr).await;
    let meta = [
        ("M_p", "kit.GrpcService"),
        ("Kit-Own", "v"),
        ("host", "10.0.0.1"),
        ("trace-bin", "ab"),
        ("connection", "x"),
        ("grpc-timeout", "1S"),
        ("bad key", "1"),
    ];
    let message = b"\x0a\x05hello";
    let response = call(&mesh, "Echo", message, &meta).await.unwrap();
    assert_eq!((response.status, response.endpoint), (Status::Ok, Some(server.addr)));
    let ResponseHead::Motan2(head) = &response.head else { panic!("{response:?}") };
    assert_eq!(head.serialization, 1);
    assert_eq!(body(response), &message[..]);

    let (parts, sent) = server.seen();
    assert_eq!(sent, framed(message));
    let target = (parts.method.as_str(), parts.uri.path());
    assert_eq!(target, ("POST", "/kit.GrpcService/Echo"));
    let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("-");
    for (name, expected) in [
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("m_p", "kit.GrpcService"),
        ("m_rid", "77"),
        ("m_s", "app"),
        ("kit-own", "v"),
        ("trace-bin", "YWI"),
        ("host", "-"),
        ("connection", "-"),
    ] {
        assert_eq!(header(name), expected, "{name}");
    }
    let left: u64 = header("grpc-timeout").strip_suffix('m').unwrap().parse().unwrap();
    assert!(left > 0 && left <= 1500, "{left}");
}

#[tokio::test]
async fn messages_without_a_byte_and_in_pieces_are_messages() {
    let server = Server::start().await;
    let mesh = mesh(server.addr).await;
    assert_eq!(body(call(&mesh, "Echo", b"", &[]).await.unwrap()), "");
    assert_eq!(server.seen().1, framed(b""));
    assert_eq!(body(call(&mesh, "Pieces", b"abc", &[]).await.unwrap()), "abc");
    assert_eq!(server.connections.load(Relaxed), 1, "all on one connection");
}

#[tokio::test]
async fn statuses_become_exceptions_with_the_code_twice() {
    let server = Server::start().await;
    let mesh = mesh(server.addr).await;
    let failed = call(&mesh, "Fail", b"x", &[]).await.unwrap();
    assert_eq!(thrown(&failed), r#"{"errcode":3,"errmsg":"kit fail: 中","errtype":3}"#);
    assert_eq!(failed.status, Status::Refused(3), "the caller's own fault says nothing about the endpoint");
    let busy = call(&mesh, "Busy", b"x", &[]).await.unwrap();
    assert_eq!(thrown(&busy), r#"{"errcode":14,"errmsg":"try later","errtype":14}"#);
    assert_eq!(busy.status, Status::Failed(14));
    let gone = call(&mesh, "Gone", b"x", &[]).await.unwrap();
    assert_eq!(thrown(&gone), r#"{"errcode":14,"errmsg":"HTTP status 503 Service Unavailable","errtype":14}"#);
}

#[tokio::test]
async fn what_is_no_answer_of_grpc_is_an_error() {
    let server = Server::start().await;
    let mesh = mesh(server.addr).await;
    for (method, kind) in
        [("Packed", ErrorKind::Protocol), ("Silent", ErrorKind::Protocol), ("Long", ErrorKind::TooLarge)]
    {
        let error = call(&mesh, method, b"x", &[]).await.unwrap_err();
        assert_eq!(error.kind, kind, "{method}: {error}");
    }
    assert_eq!(body(call(&mesh, "Echo", b"still", &[]).await.unwrap()), "still");
}

#[tokio::test]
async fn a_lost_connection_is_opened_again_and_a_silent_one_is_left() {
    let server = Server::start().await;
    let mesh = mesh(server.addr).await;
    assert_eq!(body(call(&mesh, "Echo", b"1", &[]).await.unwrap()), "1");
    let open: Vec<_> = server.current.lock().drain(..).collect();
    open.iter().for_each(AbortHandle::abort);
    // Whether the end was noticed before the next call or by it, nothing of that call was carried out.
    let mut again = call(&mesh, "Echo", b"2", &[]).await;
    if again.is_err() {
        again = call(&mesh, "Echo", b"2", &[]).await;
    }
    assert_eq!(body(again.unwrap()), "2");
    let before = server.connections.load(Relaxed);
    for _ in 0..super::grpc::SILENT {
        let error = call(&mesh, "Slow", b"x", &[]).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Timeout);
    }
    assert_eq!(body(call(&mesh, "Echo", b"3", &[]).await.unwrap()), "3");
    assert_eq!(server.connections.load(Relaxed), before + 1);
}

#[tokio::test]
async fn a_server_that_says_goodbye_loses_no_call() {
    let server = Server::start().await;
    let mesh = mesh(server.addr).await;
    for _ in 0..5 {
        let said = call(&mesh, "Leave", b"bye", &[]).await.unwrap();
        assert_eq!(body(said), "bye", "the call that it left after is answered");
        assert_eq!(body(call(&mesh, "Echo", b"next", &[]).await.unwrap()), "next");
    }
}

#[tokio::test]
async fn nobody_there_is_a_failed_connect() {
    let mesh = mesh(crate::protocol::testing::closed_port().await).await;
    let error = call(&mesh, "Echo", b"x", &[]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Connect, "{error}");
}
