//! The forward proxy in front of a cluster whose endpoints are HTTP programs; the way through two agents is in
//! the system tests.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{
    config::{self, Cluster, HttpDomain, HttpProxy, Named},
    protocol::{
        locations::Location,
        testing::{self, Front, Settings, closed_port, front},
    },
    stream::OwnSockets,
};

/// An HTTP program that answers every request with its head and body, and says so; keeps connections.
struct Program {
    addr: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Program {
    async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut conns = JoinSet::new();
            loop {
                let (mut io, _) = listener.accept().await.unwrap();
                conns.spawn(async move {
                    while let Some(request) = message(&mut io).await {
                        let head = request.starts_with("HEAD ");
                        let text = format!("{name}:{request}");
                        let body = if head { "" } else { &text };
                        let answer = format!(
                            "HTTP/1.1 203 Fine\r\nX-From: {name}\r\nContent-Length: {}\r\n\r\n{body}",
                            text.len()
                        );
                        io.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        Self { addr, _tasks: tasks }
    }
}

/// One message with its body; `None` at the end.
async fn message(io: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    let (mut head, mut length) = (None, 0);
    loop {
        if let Some(end) = head
            && text.len() >= end + length
        {
            return Some(String::from_utf8(text).unwrap());
        }
        let mut buffer = [0; 4096];
        let n = io.read(&mut buffer).await.ok().filter(|n| *n > 0)?;
        text.extend(&buffer[..n]);
        if head.is_none()
            && let Some(end) = text.windows(4).position(|w| w == b"\r\n\r\n")
        {
            let lines = String::from_utf8_lossy(&text[..end]).to_ascii_lowercase();
            let found =
                lines.lines().find_map(|l| l.strip_prefix("content-length:").map(|n| n.trim().parse().unwrap()));
            length =
                if lines.starts_with("http/1.1 20") && lines.contains("x-no-body") { 0 } else { found.unwrap_or(0) };
            head = Some(end + 4);
        }
    }
}

/// A proxy whose domain `web.test` has `/call` at a program behind a cluster.
async fn changing(to: SocketAddr) -> (Front, Arc<super::Front>, HttpProxy) {
    let upstream = Some(Named::plain("http"));
    let cluster = Cluster { upstream, retries: 0, ..Cluster::default() };
    let behind = front("motan2", &[to], Settings { cluster, ..Settings::default() }).await;
    let at = |matches: &str, service: &str| Location {
        matches: matches.to_owned(),
        kind: "start".to_owned(),
        service: service.to_owned(),
        rewrite: Vec::new(),
    };
    let locations = vec![at("/call", "web"), at("/none", "unknown")];
    let domain = HttpDomain { domain: "web.test".to_owned(), group: String::new(), locations };
    let proxy = HttpProxy { domains: vec![domain], ..HttpProxy::default() };
    let protocol = super::Front::new(&config::Limits::default(), OwnSockets::default());
    protocol.apply(&proxy);
    (testing::serve(protocol.clone(), super::NAME, vec![behind.cluster.clone()]).await, protocol, proxy)
}

async fn proxy(to: SocketAddr) -> Front {
    changing(to).await.0
}

async fn ask(io: &mut TcpStream, request: &str) -> String {
    io.write_all(request.as_bytes()).await.unwrap();
    message(io).await.expect("an answer")
}

#[tokio::test]
async fn paths_of_a_domain_become_calls_and_others_go_on() {
    let (called, plain) = (Program::start("called").await, Program::start("plain").await);
    let mesh = proxy(called.addr).await;
    let mut io = mesh.connect().await;
    let request = "POST /call/a%20b?x=1 HTTP/1.1\r\nHost: Web.Test:8080\r\nX-Own: 1\r\nContent-Length: 4\r\n\r\ndata";
    let answer = ask(&mut io, request).await;
    assert!(answer.starts_with("HTTP/1.1 203 "), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("x-from: called"), "{answer}");
    assert!(answer.contains("called:POST /call/a%20b?x=1 HTTP/1.1") && answer.ends_with("data"), "{answer}");
    let seen = answer.to_ascii_lowercase();
    assert!(
        seen.contains("host: web.test:8080\r\n") && seen.contains("motan-p: web") && seen.contains("x-own: 1"),
        "{answer}"
    );

    // The same connection, a host that is no domain: the absolute form says where.
    let plain_request =
        format!("GET http://{}/p?q=1 HTTP/1.1\r\nHost: other\r\nProxy-Connection: keep-alive\r\n\r\n", plain.addr);
    for _ in 0..2 {
        let answer = ask(&mut io, &plain_request).await;
        let seen = answer.to_ascii_lowercase();
        assert!(answer.contains("plain:GET /p?q=1 HTTP/1.1"), "{answer}");
        assert!(seen.contains(&format!("host: {}", plain.addr)) && !seen.contains("proxy-connection"), "{answer}");
    }
}

#[tokio::test]
async fn a_service_without_an_endpoint_falls_back_and_a_failing_one_does_not() {
    let plain = Program::start("plain").await;
    let mesh = proxy(closed_port().await).await;
    let to = plain.addr;
    // The program cannot be reached: an exception of the provider.
    let mut io = mesh.connect().await;
    let answer = ask(&mut io, "GET /call HTTP/1.1\r\nHost: web.test\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("err_msg: "), "{answer}");
    // A location of a service that is not there, and no endpoint at all.
    let named = format!("GET http://{to}/none HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(ask(&mut io, &named).await.contains("plain:GET /none"));
    mesh.cluster.apply(&model::Snapshot { revision: 2, instances: Vec::new(), stale: None });
    let answer = ask(&mut io, "GET /call HTTP/1.1\r\nHost: web.test\r\n\r\n").await;
    assert!(answer.contains("err_msg: cannot resolve web.test"), "it went on as plain HTTP: {answer}");
}

#[tokio::test]
async fn connect_is_a_tunnel_and_the_proxy_itself_no_destination() {
    let plain = Program::start("plain").await;
    let mesh = proxy(plain.addr).await;
    let mut io = mesh.connect().await;
    io.write_all(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", plain.addr).as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(io.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    assert!(ask(&mut io, "GET /through HTTP/1.1\r\n\r\n").await.contains("plain:GET /through"));

    let own = format!("GET /x HTTP/1.1\r\nHost: {}\r\n\r\n", mesh.addr);
    assert!(ask(&mut mesh.connect().await, &own).await.starts_with("HTTP/1.1 400 "));
    let nobody = format!("GET /x HTTP/1.1\r\nHost: {}\r\n\r\n", closed_port().await);
    assert!(ask(&mut mesh.connect().await, &nobody).await.starts_with("HTTP/1.1 502 "));
    let own = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", mesh.addr);
    assert!(ask(&mut mesh.connect().await, &own).await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test]
async fn proxy_to_rpc_makes_a_call_with_one_text() {
    let called = Program::start("called").await;
    let mesh = proxy(called.addr).await;
    let mut io = mesh.connect().await;
    let get = |query: &str| format!("GET /proxy_to_rpc?{query} HTTP/1.1\r\nHost: localhost\r\nX-Own: 7\r\n\r\n");
    let answer = ask(&mut io, &get("service=web&method=/m&arg_type=string&arg=a%20b")).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("called:GET /m HTTP/1.1"), "{answer}");
    assert!(
        answer.contains("content-type: text/plain") && answer.to_ascii_lowercase().contains("x-own: 7"),
        "{answer}"
    );
    let form = "service=web&method=/m&arg_type=string&arg=x";
    let post = format!(
        "POST /proxy_to_rpc HTTP/1.1\r\nHost: l\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    );
    assert!(ask(&mut io, &post).await.starts_with("HTTP/1.1 200 "));
    for (query, status, text) in [
        ("service=web&arg_type=string", "400", "service:web or method: musn't be empty"),
        ("service=web&method=m&arg_type=int&arg=1", "400", "arg_type int not support now"),
        ("service=other&method=m&arg_type=string&arg=1", "502", "cluster not found. service: other"),
    ] {
        let answer = ask(&mut io, &get(query)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(text), "{answer}");
    }
}

#[tokio::test]
async fn what_the_configuration_says_later_holds_for_the_next_request() {
    let called = Program::start("called").await;
    let (mesh, protocol, proxy) = changing(called.addr).await;
    let mut io = mesh.connect().await;
    let request = |host: &str| format!("GET /call HTTP/1.1\r\nHost: {host}\r\n\r\n");
    assert!(ask(&mut io, &request("web.test")).await.contains("called:GET /call"));
    let mut other = proxy.clone();
    other.domains[0].domain = "other.test".to_owned();
    protocol.apply(&other);
    // The same connection.
    assert!(ask(&mut io, &request("other.test")).await.contains("called:GET /call"));
    assert!(ask(&mut io, &request("web.test")).await.contains("cannot resolve web.test"));
    other.default_domain = Some("other.test".to_owned());
    protocol.apply(&other);
    assert!(ask(&mut io, &request("web.test")).await.contains("called:GET /call"));
    protocol.apply(&HttpProxy::default());
    assert!(ask(&mut io, &request("other.test")).await.contains("cannot resolve other.test"));
}
