//! HTTP/1.1: what callers and servers may rely on, and what nobody gets through.

use std::{
    io::{ErrorKind, Write},
    net::{Shutdown, SocketAddr},
};

use host::{
    Agent, Backend, free_port,
    http::{self, Conn, Message},
};

/// An agent with one HTTP service in front of `endpoints`, and the address to call.
pub fn mesh(endpoints: &[SocketAddr], more: &str) -> (Agent, SocketAddr) {
    let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let list: Vec<_> = endpoints.iter().map(SocketAddr::to_string).collect();
    let agent = Agent::start(&format!(
        "referers:
  - service: web
    protocol: http
    listen: {listen}
    endpoints: [{}]
    filters: [access_log, metrics]
{more}",
        list.join(", ")
    ));
    (agent, listen)
}

/// Sends `request` through the mesh and gives what the server saw and what the caller got.
#[track_caller]
fn check(request: &str, answer: &'static str) -> (Message, Message) {
    let (tx, rx) = std::sync::mpsc::sync_channel(8);
    let server = Backend::http(move |request| {
        tx.send(request.clone()).unwrap();
        answer.as_bytes().to_vec()
    });
    let (_agent, to) = mesh(&[server.addr()], "");
    let mut conn = Conn::open(to).unwrap();
    conn.send(request).unwrap();
    let got = conn.answer().unwrap();
    (rx.recv().unwrap(), got)
}

#[test]
fn http_keeps_what_both_ends_said() {
    let (seen, got) = check(
        "POST /a%20b/../c?x=1&y=%zz HTTP/1.1\r\nHost: shop.example\r\nX-Twice: 1\r\nX-Twice: 2\r\nContent-Length: 2\r\n\r\nhi",
        "HTTP/1.1 299 Odd\r\nX-Answer: yes\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 3\r\n\r\nyo!",
    );
    assert_eq!(seen.line, "POST /a%20b/../c?x=1&y=%zz HTTP/1.1", "the target is not normalised");
    assert_eq!(seen.header("host"), Some("shop.example"));
    assert_eq!(seen.headers.iter().filter(|(n, _)| n == "x-twice").count(), 2);
    assert_eq!(seen.body, b"hi");
    assert_eq!((got.status(), got.header("x-answer"), got.text().as_str()), (299, Some("yes"), "yo!"));
    assert_eq!(got.headers.iter().filter(|(n, _)| n == "set-cookie").count(), 2);
}

#[test]
fn http_hop_by_hop_headers_end_at_the_hop() {
    let (seen, got) = check(
        "GET / HTTP/1.1\r\nHost: t\r\nConnection: keep-alive, X-Mine\r\nKeep-Alive: timeout=9\r\nX-Mine: 1\r\n\
         Proxy-Connection: keep-alive\r\nTE: gzip\r\nX-Stays: 1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nConnection: X-Theirs\r\nX-Theirs: 1\r\nKeep-Alive: timeout=1\r\nX-Stays: 2\r\n\
         Content-Length: 0\r\n\r\n",
    );
    for gone in ["x-mine", "keep-alive", "proxy-connection"] {
        assert_eq!(seen.header(gone), None, "{seen:?}");
    }
    assert_eq!(seen.header("x-stays"), Some("1"));
    for gone in ["x-theirs", "keep-alive"] {
        assert_eq!(got.header(gone), None, "{got:?}");
    }
    assert_eq!(got.header("x-stays"), Some("2"));
}

#[test]
fn http_chunks_and_trailers_go_both_ways() {
    let (seen, got) = check(
        "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\
         Connection: TE\r\nTE: trailers\r\n\r\n3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\nX-Sum: 7\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Back\r\n\r\n2\r\nok\r\n0\r\nX-Back: 2\r\n\r\n",
    );
    assert_eq!(seen.text(), "abcdefg");
    assert_eq!(seen.trailers, [("x-sum".to_owned(), "7".to_owned())]);
    assert_eq!(got.text(), "ok");
    assert_eq!(got.trailers, [("x-back".to_owned(), "2".to_owned())]);
}

#[test]
fn http_pipelined_requests_are_answered_in_order_on_a_kept_connection() {
    let server = Backend::http(|request| http::ok(&request.line));
    let (_agent, to) = mesh(&[server.addr()], "");
    let mut conn = Conn::open(to).unwrap();
    let requests: String = (0..5).map(|i| format!("GET /{i} HTTP/1.1\r\nHost: t\r\n\r\n")).collect();
    conn.send(requests).unwrap();
    for i in 0..5 {
        assert_eq!(conn.answer().unwrap().text(), format!("GET /{i} HTTP/1.1"));
    }
    for i in 0..50 {
        assert_eq!(conn.get(&format!("/{i}")).unwrap().status(), 200);
    }
    assert_eq!(server.accepted(), 1, "one caller needs one connection to the server");
}

#[test]
fn http_answers_without_a_body_have_none() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
    let server = Backend::http(move |request| match request.line.split(' ').nth(1).unwrap() {
        "/204" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        "/304" => b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n".to_vec(),
        _ if request.line.starts_with("HEAD") => head.as_bytes().to_vec(),
        _ => http::ok("full"),
    });
    let (_agent, to) = mesh(&[server.addr()], "");
    let mut conn = Conn::open(to).unwrap();
    conn.send("HEAD / HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    let answer = conn.answer_head().unwrap();
    assert_eq!((answer.status(), answer.header("content-length")), (200, Some("1000")));
    assert_eq!(conn.get("/204").unwrap().status(), 204);
    let not_modified = conn.get("/304").unwrap();
    assert_eq!((not_modified.status(), not_modified.header("etag")), (304, Some("\"x\"")));
    assert_eq!(conn.get("/").unwrap().text(), "full", "the connection is still in step");
}

#[test]
fn http_expect_continue_reaches_a_server_that_decides() {
    let server = Backend::tcp(|stream| {
        let mut conn = Conn::of(stream);
        let head = conn.answer_head().unwrap();
        // A server that has read no body yet and refuses it.
        if head.line.contains("/no") {
            let _ = conn.send("HTTP/1.1 417 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return;
        }
        conn.send("HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        let mut body = Vec::new();
        conn.exactly(5, &mut body).unwrap();
        conn.send(http::ok(&body)).unwrap();
    });
    let (_agent, to) = mesh(&[server.addr()], "");
    let mut conn = Conn::open(to).unwrap();
    conn.send("POST / HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").unwrap();
    assert_eq!(conn.answer().unwrap().status(), 100, "asked to send before anything was sent");
    conn.send("hello").unwrap();
    assert_eq!(conn.answer().unwrap().text(), "hello");
}

#[test]
fn http_upgrade_joins_the_two_ends() {
    let server = Backend::tcp(|stream| {
        let mut conn = Conn::of(stream);
        let request = conn.answer_head().unwrap();
        assert_eq!(request.header("upgrade"), Some("chat"));
        conn.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\nhi").unwrap();
        let said = conn.line().unwrap();
        conn.send(said.chars().rev().collect::<String>()).unwrap();
    });
    let (_agent, to) = mesh(&[server.addr()], "");
    let mut conn = Conn::open(to).unwrap();
    conn.send("GET / HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n").unwrap();
    let answer = conn.answer_head().unwrap();
    assert_eq!((answer.status(), answer.header("upgrade")), (101, Some("chat")));
    let mut hi = Vec::new();
    conn.exactly(2, &mut hi).unwrap();
    assert_eq!(hi, b"hi", "the server may speak first");
    conn.send("abc\n").unwrap();
    assert_eq!(conn.rest().unwrap(), b"cba", "and its end is passed on");
}

#[test]
fn http_large_bodies_arrive_whole() {
    let server = Backend::http(|request| http::ok(&request.body));
    let (_agent, to) = mesh(&[server.addr()], "");
    let body: Vec<u8> = (0..10_000_000u32).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect();
    let mut conn = Conn::open(to).unwrap();
    let mut half = conn.socket().try_clone().unwrap();
    let (head, sent) = (format!("PUT / HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n", body.len()), body.clone());
    let writer = std::thread::spawn(move || half.write_all(head.as_bytes()).and_then(|()| half.write_all(&sent)));
    let answer = conn.answer().unwrap();
    writer.join().unwrap().unwrap();
    assert!(answer.body == body, "10 MB came back changed");
}

#[test]
fn http_what_two_readers_could_read_differently_is_refused() {
    let server = Backend::http(|request| http::ok(&request.line));
    let (_agent, to) = mesh(&[server.addr()], "");
    let long = format!("GET / HTTP/1.1\r\nHost: t\r\nX-Long: {}\r\n\r\n", "a".repeat(70_000));
    let many = format!("GET / HTTP/1.1\r\nHost: t\r\n{}\r\n", "X-A: b\r\n".repeat(20_000));
    let bad = [
        (
            "TE with CL",
            "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ("two CLs", "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        ("two CLs in one", "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 1, 2\r\n\r\nab"),
        ("CL +5", "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: +5\r\n\r\nabcde"),
        ("CL 0x5", "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 0x5\r\n\r\nabcde"),
        ("CL -1", "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: -1\r\n\r\n"),
        ("CL over 64 bits", "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999999999999999\r\n\r\n"),
        ("TE xchunked", "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ("TE not last", "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        ("bare LF", "GET / HTTP/1.1\nHost: t\n\n"),
        ("bare LF in a header", "GET / HTTP/1.1\r\nHost: t\r\nX: a\nY: b\r\n\r\n"),
        ("bare CR", "GET / HTTP/1.1\r\nHost: t\r\nX: a\rb\r\n\r\n"),
        ("NUL in a value", "GET / HTTP/1.1\r\nHost: t\r\nX: a\0b\r\n\r\n"),
        ("NUL in a name", "GET / HTTP/1.1\r\nHost: t\r\nX\0: a\r\n\r\n"),
        ("space before colon", "GET / HTTP/1.1\r\nHost: t\r\nContent-Length : 0\r\n\r\n"),
        ("obs-fold", "GET / HTTP/1.1\r\nHost: t\r\nX: a\r\n b\r\n\r\n"),
        ("no colon", "GET / HTTP/1.1\r\nHost: t\r\nnonsense\r\n\r\n"),
        ("no Host", "GET / HTTP/1.1\r\nX: y\r\n\r\n"),
        ("two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        ("chunk size +3", "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n"),
        (
            "chunk of other length",
            "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
        ),
        ("an oversized header", &long),
        ("too many headers", &many),
    ];
    let mut wrong = Vec::new();
    for (name, request) in bad {
        let mut conn = Conn::open(to).unwrap();
        // A second request behind it must not be taken for one either. The agent may have closed by now.
        let _ = conn.send(format!("{request}GET /smuggled HTTP/1.1\r\nHost: t\r\n\r\n"));
        match conn.answer() {
            Ok(answer) if answer.status() == 400 => {}
            other => wrong.push(format!("{name}: {other:?}")),
        }
        match conn.rest() {
            Ok(rest) if rest.is_empty() => {}
            // Bytes we sent were still unread when it closed.
            Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
            other => wrong.push(format!("{name}: not closed but {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(http::get(to, "/fine").unwrap().text(), "GET /fine HTTP/1.1", "others do not notice");
}

#[test]
fn http_a_caller_that_leaves_takes_its_call_along() {
    let (tx, rx) = std::sync::mpsc::sync_channel(1);
    let server = Backend::tcp(move |stream| {
        let mut conn = Conn::of(stream);
        conn.answer_head().unwrap();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nfirst").unwrap();
        // Nothing more: the server waits for the end of the connection.
        tx.send(conn.rest().map(|rest| rest.len()).map_err(|e| e.kind())).unwrap();
    });
    let (agent, to) = mesh(&[server.addr()], "");
    let mut conn = Conn::open(to).unwrap();
    conn.send("GET / HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    conn.answer_head().unwrap();
    conn.socket().shutdown(Shutdown::Both).unwrap();
    drop(conn);
    let end = rx.recv_timeout(host::wait::PATIENCE).expect("the server learns that its caller is gone");
    assert!(matches!(end, Ok(0) | Err(ErrorKind::ConnectionReset)), "{end:?}");
    host::until("the call is off the books", || agent.sockets().is_empty());
}

#[test]
fn http_each_call_leaves_a_line_and_a_count() {
    let server = Backend::http(|request| match request.line.contains("/bad") {
        true => b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n".to_vec(),
        false => http::ok("fine"),
    });
    let (agent, to) = mesh(&[server.addr()], "    retries: 0\n");
    for path in ["/good?token=secret", "/bad"] {
        http::get(to, path).unwrap();
    }
    host::until("two lines in the access log", || agent.access_log().len() == 2);
    let lines = agent.access_log();
    let endpoint = format!("endpoint={}", server.addr());
    for (line, code) in lines.iter().zip(["code=200", "code=503"]) {
        for part in ["service=web", "method=GET", "attempts=1", code, &endpoint] {
            assert!(line.contains(part), "{part} is missing in {line}");
        }
    }
    assert!(lines[0].contains("path=/good ") && lines[1].contains("path=/bad "), "without the query: {lines:?}");
    host::until("both calls are counted", || agent.metric("sockmesh_requests_total", &[r#"service="web""#]) == 2.0);
}

#[test]
fn http_goes_through_both_roles() {
    let server = Backend::http(|request| http::ok(format!("{} {}", request.line, request.text())));
    let export = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let provider = Agent::start(&format!(
        "services:\n  - {{service: web, protocol: http, export: {export}, local: {}}}\n",
        server.addr()
    ));
    let (caller, to) = mesh(&[export], "");
    let mut conn = Conn::open(to).unwrap();
    for i in 0..10 {
        assert_eq!(conn.post(&format!("/{i}"), b"body").unwrap().text(), format!("POST /{i} HTTP/1.1 body"));
    }
    host::until("both agents count every call", || {
        let counts =
            |agent: &Agent, direction| agent.metric("sockmesh_requests_total", &[r#"service="web""#, direction]);
        counts(&caller, r#"direction="outbound""#) == 10.0 && counts(&provider, r#"direction="inbound""#) == 10.0
    });
}
