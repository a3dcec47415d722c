//! What travels, and what does not.

use super::*;
use crate::{
    config,
    protocol::{Detect, Protocol},
};

#[tokio::test]
async fn one_connection_serves_many_requests_on_both_sides() {
    let backend = Backend::mirror().await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    for i in 0..5 {
        let answer = caller.ask(format!("GET /{i}?q HTTP/1.1\r\nHost: Web.example:80\r\n\r\n")).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.text(), format!("GET /{i}?q HTTP/1.1\r\nhost: Web.example:80\r\n\n"));
    }
    assert_eq!((backend.connections(), backend.requests()), (1, 5));
    assert_eq!(mesh.ended(), (5, 0));
    let row = &mesh.live.rows()[0];
    assert_eq!((row.calls, row.service.as_str(), row.endpoint), (5, "web", Some(backend.addr)));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let backend = Backend::mirror().await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    let request = |i| format!("POST /{i} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{i:02}");
    let all: String = (0..20).map(request).collect();
    caller.send(all).await;
    for i in 0..20 {
        let answer = caller.message().await.unwrap();
        assert!(answer.text().starts_with(&format!("POST /{i} ")));
        assert!(answer.text().ends_with(&format!("\n{i:02}")));
    }
}

#[tokio::test]
async fn a_message_is_written_anew_without_what_was_for_this_hop() {
    let backend = Backend::answering(|request| {
        let mut answer = "HTTP/1.1 200 Fine\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
                          Proxy-Authenticate: no\r\nServer: s\r\nDate: d\r\nContent-Length: "
            .to_owned();
        answer.push_str(&format!("{}\r\n\r\n{}", request.head.len(), request.head));
        answer
    })
    .await;
    let mesh = backend.mesh().await;
    let answer = mesh
        .caller()
        .await
        .ask(
            "GET http://other:81/p?q HTTP/1.1\r\nHost: web\r\nConnection: keep-alive, x-secret\r\nX-Secret: 1\r\n\
              Keep-Alive: 5\r\nProxy-Connection: close\r\nTE: gzip, trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\
              Cookie: a=b\r\nX-Empty:\r\nX: 1\r\nX:  2 \r\n\r\n",
        )
        .await;
    let wanted = "GET /p?q HTTP/1.1\r\nhost: other:81\r\nte: trailers\r\ncookie: a=b\r\nx-empty: \r\nx: 1\r\nx: 2\r\n";
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines[1..].sort();
        lines
    };
    assert_eq!(sorted(answer.text()), sorted(wanted));
    for gone in ["connection", "x-hop", "keep-alive", "proxy-authenticate"] {
        assert_eq!(answer.header(gone), None);
    }
    assert_eq!((answer.header("server"), answer.header("date")), (Some("s"), Some("d")));
}

#[tokio::test]
async fn chunks_and_trailers_travel_both_ways() {
    let backend = Backend::answering(|request| {
        assert_eq!(request.header("transfer-encoding"), Some("chunked"), "{}", request.head);
        assert_eq!(request.header("trailer"), Some("X-Sum"));
        assert_eq!(request.trailers, "x-sum: 7\r\n");
        format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Back\r\n\r\n\
             1;ext=1\r\n<\r\n{:x}\r\n{}\r\n0\r\nX-Back: 8\r\n\r\n",
            request.body.len(),
            request.text()
        )
    })
    .await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    for method in ["POST", "GET"] {
        let answer = caller
            .ask(format!(
                "{method} / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                 5;name=\"v\"\r\nhello\r\n06\r\n world\r\n0\r\nX-Sum: 7\r\n\r\n"
            ))
            .await;
        assert_eq!(answer.text(), "<hello world", "{method}");
        assert_eq!(answer.trailers, "x-back: 8\r\n");
        assert_eq!(answer.header("content-length"), None);
    }
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn trailers_reach_callers_that_did_not_ask() {
    let backend = Backend::answering(|request| {
        assert_eq!(request.header("te"), None, "nobody is told what the caller did not say");
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Back\r\n\r\n0\r\nX-Back: 8\r\n\r\n".to_owned()
    })
    .await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    for _ in 0..2 {
        assert_eq!(caller.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.trailers, "x-back: 8\r\n");
    }
    assert_eq!((backend.connections(), mesh.ended()), (1, (2, 0)));
}

#[tokio::test]
async fn answers_without_bodies_keep_their_headers() {
    let backend = Backend::answering(|request| {
        if request.head.starts_with("HEAD") {
            "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n".to_owned()
        } else if request.head.starts_with("DELETE") {
            "HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n".to_owned()
        } else {
            "HTTP/1.1 304 Not Modified\r\nETag: e\r\n\r\n".to_owned()
        }
    })
    .await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    for _ in 0..2 {
        caller.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(caller.head().await.unwrap().header("content-length"), Some("1234"));
        let answer = caller.ask("DELETE / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!((answer.status(), answer.header("x")), (204, Some("1")));
        let answer = caller.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!((answer.status(), answer.header("etag")), (304, Some("e")));
    }
    assert_eq!((backend.connections(), backend.requests()), (1, 6));
}

#[tokio::test]
async fn old_callers_are_understood() {
    let backend = Backend::answering(|request| match request.head.contains("/stream") {
        true => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_owned(),
        false => ok(&request.head),
    })
    .await;
    let mesh = backend.mesh().await;
    // Without Host, and closed after the answer.
    let mut caller = mesh.caller().await;
    let answer = caller.ask("GET /a HTTP/1.0\r\n\r\n").await;
    assert!(answer.head.starts_with("HTTP/1.0 200"));
    assert_eq!(answer.text(), format!("GET /a HTTP/1.1\r\nhost: {}\r\n", backend.addr));
    assert!(caller.is_over().await);
    // Kept open when asked to.
    let mut caller = mesh.caller().await;
    for _ in 0..2 {
        let answer = caller.ask("GET /a HTTP/1.0\r\nConnection: keep-alive\r\nHost: b\r\n\r\n").await;
        assert_eq!(answer.header("connection"), Some("keep-alive"));
    }
    // Chunks are unknown to it: the end of the connection is the end of the answer.
    let answer = mesh.caller().await.ask("GET /stream HTTP/1.0\r\n\r\n").await;
    assert_eq!((answer.text(), answer.header("transfer-encoding"), answer.complete), ("abc", None, true));
}

#[tokio::test]
async fn old_endpoints_are_understood() {
    let backend = Backend::start(|_, mut peer, _| async move {
        peer.message().await;
        peer.send("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nuntil the end").await;
    })
    .await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    for i in 1..3 {
        let answer = caller.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!((answer.text(), answer.header("transfer-encoding")), ("until the end", Some("chunked")));
        assert_eq!(backend.connections(), i);
    }
}

#[tokio::test]
async fn odd_targets_travel_unchanged() {
    let backend = Backend::mirror().await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    for target in ["*", "/a//b/../c;d?e=%2e%2E&f=[]", "/?", "//x", "/{}|^\"\\~"] {
        let method = if target == "*" { "OPTIONS" } else { "GET" };
        let answer = caller.ask(format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert!(answer.text().starts_with(&format!("{method} {target} HTTP/1.1\r\n")), "{}", answer.text());
    }
}

#[tokio::test]
async fn several_services_behind_one_address_are_told_apart_by_host() {
    let (web, shop) = (Backend::answering(|_| ok("web")).await, Backend::answering(|_| ok("shop")).await);
    let mesh = web.mesh_with(Settings { more: vec![("shop", vec![shop.addr])], ..Default::default() }).await;
    let mut caller = mesh.caller().await;
    for (host, wanted) in [("web", "web"), ("Shop:18080", "shop"), ("WEB", "web")] {
        assert_eq!(caller.ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await.text(), wanted);
    }
    let answer = caller.ask("GET / HTTP/1.1\r\nHost: nobody:80\r\n\r\n").await;
    assert_eq!((answer.status(), answer.header("x-sockmesh-error")), (404, Some("no_cluster")));
    assert!(answer.text().contains("`nobody`"), "{}", answer.text());
    // The connection lives on.
    assert_eq!(caller.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.text(), "shop");
}

#[tokio::test]
async fn first_bytes_tell_http_from_others() {
    let http = super::super::build(&config::Limits::default());
    let detect = |prefix: &[u8]| Protocol::detect(&*http, prefix);
    for yes in ["GET / HTTP/1.1", "POST /", "OPTIONS *", "CONNECT a:1"] {
        assert_eq!(detect(yes.as_bytes()), Detect::Yes);
        assert_eq!(detect(&yes.as_bytes()[..3]), Detect::NeedMore);
    }
    for no in ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "get / ", "GETX", "\r\n", "\x16\x03\x01", "*1\r\n$4\r\nPING", "PRI"]
    {
        assert_eq!(detect(no.as_bytes()), Detect::No, "{no:?}");
    }
    assert_eq!(detect(b"P"), Detect::NeedMore);
}
