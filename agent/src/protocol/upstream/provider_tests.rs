//! The HTTP provider towards a small HTTP server of this process; nginx is in the system tests.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    call::{Body, Call, Head, Motan2Head, Pairs, Request, Response, ResponseHead, Status, Text},
    config::{Cluster, Named},
    protocol::testing::{Front, Settings, closed_port, front},
    serialize::{Value, simple},
};

/// Answers every request with what it was: method, target, chosen headers, body.
struct Server {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<http::request::Parts>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<_>>> = Arc::default();
        let for_all = seen.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut conns = JoinSet::new();
            loop {
                let (io, _) = listener.accept().await.unwrap();
                let seen = for_all.clone();
                conns.spawn(async move {
                    let service = service_fn(|request: http::Request<Incoming>| {
                        let seen = seen.clone();
                        async move {
                            let (parts, body) = request.into_parts();
                            let body = body.collect().await.unwrap().to_bytes();
                            let text = format!("{} {} {}", parts.method, parts.uri, String::from_utf8_lossy(&body));
                            let mut answer = http::Response::new(Full::new(Bytes::from(text)));
                            if parts.uri.path().starts_with("/slow") {
                                tokio::time::sleep(Duration::from_secs(3600)).await;
                            }
                            if let Some(code) = parts.uri.path().strip_prefix("/status/") {
                                *answer.status_mut() = code.parse().unwrap();
                            }
                            answer.headers_mut().insert("x-kit", "yes".parse().unwrap());
                            seen.lock().push(parts);
                            Ok::<_, Infallible>(answer)
                        }
                    });
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
                });
            }
        });
        Self { addr, seen, _tasks: tasks }
    }

    fn header(&self, name: &str) -> String {
        let seen = self.seen.lock();
        let value = seen.last().expect("it was asked").headers.get(name);
        value.map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default()
    }
}

async fn mesh(to: SocketAddr, options: &str) -> Front {
    let options = serde_yaml::from_str(options).unwrap();
    let upstream = Some(Named { name: "http".to_owned(), options });
    let cluster = Cluster { upstream, retries: 0, ..Cluster::default() };
    front("motan2", &[to], Settings { cluster, ..Settings::default() }).await
}

async fn call(mesh: &Front, method: &str, body: impl Into<Bytes>, meta: &[(&str, &str)]) -> Response {
    let mut call = Call::new(Text::from("web"), Text::from(method));
    call.request_id = 77;
    let all = [("M_p", "web"), ("M_m", method), ("host", "10.1.1.1")].into_iter().chain(meta.iter().copied());
    let meta: Pairs = all.collect();
    let head = Motan2Head { serialization: 6, meta, inbound: true, ..Motan2Head::default() };
    let body = body.into();
    let body = if body.is_empty() { Body::Empty } else { Body::Full(body) };
    mesh.cluster.call(&mut Request { call, head: Head::Motan2(head), body }).await.unwrap()
}

fn string(text: &str) -> Bytes {
    simple::write_blocks(&[Value::from(text)])
}

fn map(pairs: &[(&str, &str)]) -> Bytes {
    let map = pairs.iter().map(|(k, v)| (Text::from(*k), Text::from(*v))).collect();
    simple::write_blocks(&[Value::StringMap(map)])
}

fn meta(response: &Response, key: &str) -> String {
    let ResponseHead::Motan2(head) = &response.head else { panic!("{response:?}") };
    head.meta.get(key).map(|v| v.to_string()).unwrap_or_default()
}

fn value(response: &Response) -> Value {
    let Body::Full(body) = &response.body else { panic!("{response:?}") };
    simple::read(body.clone()).unwrap().remove(0)
}

/// The text that was answered as bytes.
fn bytes(response: &Response) -> String {
    let Value::Bytes(bytes) = value(response) else { panic!("{response:?}") };
    String::from_utf8(bytes.into()).unwrap()
}

#[tokio::test]
async fn a_method_is_a_path_and_a_map_its_query_or_form() {
    let server = Server::start().await;
    let mesh = mesh(server.addr, "{host: web.test}").await;
    let params = map(&[("a", "1 &"), ("中", "x")]);
    let answer = call(&mesh, "/p a/中", params.clone(), &[("HTTP_QueryString", "q=0")]).await;
    assert_eq!(bytes(&answer), "GET /p%20a/%E4%B8%AD?q=0&a=1+%26&%E4%B8%AD=x ");
    assert_eq!((meta(&answer, "upstreamCode"), meta(&answer, "X-Kit")), ("200".to_owned(), "yes".to_owned()));
    assert_eq!(server.header("host"), "web.test");
    assert_eq!(server.header("x-forwarded-for"), "10.1.1.1");

    let answer = call(&mesh, "form", params, &[("HTTP_Method", "POST")]).await;
    assert_eq!(bytes(&answer), "POST /form a=1+%26&%E4%B8%AD=x");
    assert_eq!(server.header("content-type"), "application/x-www-form-urlencoded");

    let meta = [
        ("HTTP_Method", "PUT"),
        ("Content-Type", "text/x"),
        ("http_X-Own", "1"),
        ("http_Host", "other"),
        ("M_g", "grp"),
        ("remoteIP", "9.9.9.9"),
        ("Connection", "close"),
        ("content-length", "999"),
        ("k", "v"),
    ];
    let answer = call(&mesh, "/put", string("body"), &meta).await;
    assert_eq!(bytes(&answer), "PUT /put body");
    let seen = ["content-type", "x-own", "host", "motan-g", "motan-rid", "x-forwarded-for", "k", "content-length"];
    let seen = seen.map(|name| server.header(name));
    assert_eq!(seen, ["text/x", "1", "other", "grp", "77", "9.9.9.9", "v", "4"]);
    assert_eq!(bytes(&call(&mesh, "/none", "", &[]).await), "GET /none ");
}

#[tokio::test]
async fn a_request_as_it_is_comes_back_as_an_answer_as_it_is() {
    let server = Server::start().await;
    let mesh = mesh(server.addr, "null").await;
    let head = b"POST /raw%2Fpath?x=%20y HTTP/1.1\r\nHost: h.test\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nX-Own: 1\r\nContent-Length: 4\r\n\r\n";
    let parts = [&head[..], b"data"].map(|part| Value::Bytes(Bytes::from_static(part)));
    let answer =
        call(&mesh, "/raw/path", simple::write_blocks(&parts), &[("HTTP_PROXY", "true"), ("M_s", "app")]).await;
    let Value::Array(items) = value(&answer) else { panic!("{answer:?}") };
    let [Value::Bytes(head), Value::Bytes(body)] = &items[..] else { panic!("{items:?}") };
    assert_eq!(body, "POST /raw%2Fpath?x=%20y data");
    let head = super::raw::response(head).unwrap();
    assert_eq!((head.status.as_u16(), head.headers["x-kit"].to_str().unwrap()), (200, "yes"));
    assert_eq!(head.headers["content-length"], "28");
    assert_eq!(meta(&answer, "upstreamCode"), "200");
    let seen = ["host", "x-own", "x-hop", "motan-s", "x-forwarded-for"].map(|name| server.header(name));
    assert_eq!(seen, ["h.test", "1", "", "app", "10.1.1.1"]);
}

#[tokio::test]
async fn a_url_of_the_configuration_takes_the_method() {
    let server = Server::start().await;
    let options =
        "{url: 'http://api.test/v1/%s.json', methods: {save: {method: POST}, list: {url: 'http://b.test/all?x=1'}}}";
    let mesh = mesh(server.addr, options).await;
    let answer = call(&mesh, "get", map(&[("id", "5")]), &[("M_g", "grp")]).await;
    assert_eq!(value(&answer), Value::from("GET /v1/get.json?requestIdFromClient=77&id=5 "));
    assert_eq!((server.header("host"), server.header("motan-g")), ("api.test".to_owned(), "grp".to_owned()));
    let answer = call(&mesh, "save", map(&[("id", "5")]), &[]).await;
    assert_eq!(value(&answer), Value::from("POST /v1/save.json requestIdFromClient=77&id=5"));
    let answer = call(&mesh, "list", "", &[]).await;
    assert_eq!(value(&answer), Value::from("GET /all?x=1&requestIdFromClient=77 "));
}

#[tokio::test]
async fn locations_rewrite_and_refuse() {
    let server = Server::start().await;
    let options = "{locations: [{match: /1/, rewrite: ['!regexp ^/2/.* ^/1/(.*) /2/$1']}]}";
    let mesh = mesh(server.addr, options).await;
    assert_eq!(bytes(&call(&mesh, "/1/a", "", &[]).await), "GET /2/a ");
    let refused = call(&mesh, "/3/a", "", &[]).await;
    assert_eq!(meta(&refused, "M_e"), r#"{"errcode":404,"errmsg":"service not found","errtype":2}"#);
    assert_eq!(refused.status, Status::Refused(404));
}

#[tokio::test]
async fn what_fails_is_an_exception_of_the_users_own_kind() {
    let server = Server::start().await;
    let plain = mesh(server.addr, "null").await;
    let answer = call(&plain, "/status/503", "", &[]).await;
    assert_eq!((answer.status, meta(&answer, "upstreamCode")), (Status::Ok, "503".to_owned()));
    let strict = mesh(server.addr, "{error_exceptions: true}").await;
    let answer = call(&strict, "/status/404", "", &[]).await;
    assert_eq!(meta(&answer, "M_e"), r#"{"errcode":404,"errmsg":"GET /status/404 ","errtype":2}"#);
    let answer = call(&plain, "/slow", "", &[]).await;
    assert_eq!(meta(&answer, "M_e"), r#"{"errcode":503,"errmsg":"timeout","errtype":2}"#);
    for (body, why) in [("\x08\x02", "http rpc unsupported parameter type: int32"), ("\x0f", "deserialize fail. err:")]
    {
        let answer = call(&plain, "/x", body, &[]).await;
        let expected = format!(r#"{{"errcode":400,"errmsg":"{why}"#);
        assert!(meta(&answer, "M_e").starts_with(&expected), "{answer:?}");
    }
    let answer = call(&plain, "/x", [string("a"), string("b")].concat(), &[]).await;
    assert!(meta(&answer, "M_e").contains("http rpc only support one parameter"), "{answer:?}");
    let answer = call(&plain, "/x", string("no head"), &[("HTTP_PROXY", "true")]).await;
    assert!(meta(&answer, "M_e").starts_with(r#"{"errcode":400,"#), "{answer:?}");
    let nobody = mesh(closed_port().await, "null").await;
    let answer = call(&nobody, "/x", "", &[]).await;
    assert!(
        meta(&answer, "M_e").starts_with(r#"{"errcode":503,"#) && meta(&answer, "M_e").ends_with(r#""errtype":2}"#)
    );
}

#[test]
fn options_are_checked() {
    let told = |options: &str| {
        let value = serde_yaml::from_str(options).unwrap();
        let built = crate::kind::build("upstream", super::UPSTREAMS, "http", &value, &crate::kind::BuildCx::default());
        format!("{:#}", built.err().expect("a mistake"))
    };
    assert!(told("{locations: [{match: '(', type: regexp}]}").starts_with("locations[0].match: `(`"));
    assert_eq!(told("{url: '/%s/%s'}"), "url: `/%s/%s` has more than one `%s`; one stands for the call's method");
    assert!(told("{hosts: x}").contains("unknown field `hosts`"));
}
