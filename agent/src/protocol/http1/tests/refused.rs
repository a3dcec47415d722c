//! Requests that are not let in: the caller gets 400 and the close, the endpoint nothing.

use super::*;
use crate::config;

const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

#[tokio::test]
async fn what_parsers_disagree_about_is_refused() {
    let backend = Backend::mirror().await;
    let mesh = backend.mesh().await;
    let field = |line: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n");
    let start = |line: &str| format!("{line}\r\nHost: a\r\n\r\n");
    let chunks = |body: &str| format!("{CHUNKED}{body}");
    let many = "X: y\r\n".repeat(99);
    let cases = [
        // How long the body is.
        field("Content-Length: 5\r\nTransfer-Encoding: chunked"),
        field("Transfer-Encoding: chunked\r\nContent-Length: 5"),
        field("Transfer-Encoding: chunked\r\nContent-Length: 0"),
        field("Content-Length: 5\r\nContent-Length: 6"),
        field("Content-Length: 5\r\nContent-Length: 5"),
        field("Content-Length: 5, 5"),
        field("Content-Length: +5"),
        field("Content-Length: -5"),
        field("Content-Length: 0x5"),
        field("Content-Length: 5 5"),
        field("Content-Length: 5;"),
        field("Content-Length: "),
        field("Content-Length: 99999999999999999999"),
        field("Transfer-Encoding: xchunked"),
        field("Transfer-Encoding: chunked, chunked"),
        field("Transfer-Encoding: gzip, chunked"),
        field("Transfer-Encoding: chunked, identity"),
        field("Transfer-Encoding: identity"),
        field("Transfer-Encoding: \"chunked\""),
        field("Transfer-Encoding:"),
        field("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        field("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
        field("Transfer-Encoding: \x0bchunked"),
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        // Where a line and a field end.
        field("Content-Length : 5"),
        field("Transfer-Encoding : chunked"),
        field("X: a\r\n b"),
        field("X: a\r\n\tb"),
        field("Transfer-Encoding:\r\n chunked"),
        field(" X: a"),
        field("X: a\rY: b"),
        field("X: a\nY: b"),
        field("X: a\0b"),
        field("X\0: a"),
        field("X: \x7f"),
        field("no colon"),
        field(": no name"),
        field("X Y: a"),
        field("X\u{e4}: a"),
        "GET / HTTP/1.1\nHost: a\n\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\r\nX: y\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\r\n\n".to_owned(),
        "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        // The request line.
        start("GET / HTTP/1.1 x"),
        start("GET  / HTTP/1.1"),
        start("GET\t/\tHTTP/1.1"),
        start(" GET / HTTP/1.1"),
        start("GET /a b HTTP/1.1"),
        start("GET /\0 HTTP/1.1"),
        start("GET / HTTPS/1.1"),
        start("GET / http/1.1"),
        start("GET /"),
        start("G(T / HTTP/1.1"),
        start("GET / HTTP/1.1\r"),
        // Where it goes.
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        field("Host: a"),
        field("Host: b"),
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n".to_owned(),
        // Chunks.
        chunks("0x5\r\nhello\r\n0\r\n\r\n"),
        chunks("+5\r\nhello\r\n0\r\n\r\n"),
        chunks("-5\r\nhello\r\n0\r\n\r\n"),
        chunks(" 5\r\nhello\r\n0\r\n\r\n"),
        chunks("5 \r\nhello\r\n0\r\n\r\n"),
        chunks("5\nhello\r\n0\r\n\r\n"),
        chunks("5;a\nb\r\nhello\r\n0\r\n\r\n"),
        chunks("5;\0\r\nhello\r\n0\r\n\r\n"),
        chunks("\r\n5\r\nhello\r\n0\r\n\r\n"),
        chunks("fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        chunks("5\r\nhello0\r\n\r\n"),
        chunks("5\r\nhello\n0\r\n\r\n"),
        chunks("4\r\nhello\r\n0\r\n\r\n"),
        chunks("0\r\nX : a\r\n\r\n"),
        chunks("0\r\nX: a\n\r\n"),
        chunks("0\r\nContent-Length: 5\r\n\r\n"),
        chunks("5;{}\r\nhello\r\n0\r\n\r\n").replace("{}", &"x".repeat(2000)),
        // Size.
        field(&format!("X: {}", "x".repeat(70_000))),
        start(&format!("GET /{} HTTP/1.1", "x".repeat(70_000))),
        format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"),
    ];
    assert!(cases.len() > 75);
    for (i, case) in cases.iter().enumerate() {
        let shown = case.chars().take(200).collect::<String>();
        let mut caller = mesh.caller().await;
        // What a smuggler would want to be taken for a request of its own comes right after.
        caller.send(format!("{case}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        let answer = caller.message().await.unwrap_or_else(|| panic!("case {i}: no answer to {shown:?}"));
        assert_eq!(answer.status(), 400, "case {i}: {shown:?}");
        assert_eq!(answer.header("connection"), Some("close"), "case {i}: {shown:?}");
        assert_eq!(answer.header("x-sockmesh-error"), Some("protocol"), "case {i}: {shown:?}");
        assert!(answer.text().starts_with("sockmesh: ") && answer.text().ends_with('\n'));
        assert!(caller.is_over().await, "case {i} goes on: {shown:?}");
    }
    assert_eq!((backend.requests(), backend.connections()), (0, 0), "nothing has left the mesh");
}

#[tokio::test]
async fn a_refused_request_waits_for_the_answers_before_it() {
    let backend = Backend::mirror().await;
    let mesh = backend.mesh().await;
    let good = "GET /good HTTP/1.1\r\nHost: a\r\n\r\n";
    for bad in ["GET /bad HTTP/1.1\r\nHost : a\r\n\r\n".to_owned(), format!("{CHUNKED}0x1\r\na\r\n0\r\n\r\n")] {
        let mut caller = mesh.caller().await;
        caller.send(format!("{good}{good}{bad}{good}")).await;
        for _ in 0..2 {
            assert!(caller.message().await.unwrap().text().starts_with("GET /good"));
        }
        assert_eq!(caller.message().await.unwrap().status(), 400);
        assert!(caller.is_over().await);
    }
    assert_eq!(backend.requests(), 4);
}

#[tokio::test]
async fn a_body_that_turns_bad_breaks_off_towards_the_endpoint() {
    let backend = Backend::start(|_, mut peer, requests| async move {
        let request = peer.message().await.unwrap();
        assert!(!request.complete, "no clean end: {request:?}");
        assert_eq!(request.text(), "hello");
        requests.fetch_add(1, Ordering::SeqCst);
    })
    .await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    caller.send(format!("{CHUNKED}5\r\nhello\r\n")).await;
    within(async {
        while backend.connections() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let answer = caller.ask("0x1\r\na\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((answer.status(), answer.header("connection")), (400, Some("close")));
    assert!(caller.is_over().await);
    within(async {
        while backend.requests() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn other_refusals_say_what_they_mean() {
    let backend = Backend::mirror().await;
    let mesh = backend.mesh().await;
    for (request, status, header) in [
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 405, "allow"),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, "connection"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "connection"),
    ] {
        let mut caller = mesh.caller().await;
        let answer = caller.ask(request).await;
        assert_eq!((answer.status(), answer.header("connection")), (status, Some("close")));
        assert!(answer.header(header).is_some());
        assert!(caller.is_over().await);
    }
    assert_eq!(backend.requests(), 0);
}

#[tokio::test]
async fn the_answer_reaches_a_caller_that_goes_on_sending() {
    let backend = Backend::mirror().await;
    let mesh = backend.mesh().await;
    let caller = mesh.caller().await;
    let (mut read, mut write) = caller.io.into_split();
    let sending = async {
        // Until the mesh has had enough; a megabyte does not fit into its buffers.
        write.write_all(b"POST / HTTP/1.1\r\nHost : a\r\nContent-Length: 100000000\r\n\r\n").await.unwrap();
        for _ in 0..64 {
            if write.write_all(&[b'x'; 16 * 1024]).await.is_err() {
                break;
            }
        }
        write
    };
    let receiving = async {
        let mut all = Vec::new();
        read.read_to_end(&mut all).await.unwrap();
        String::from_utf8(all).unwrap()
    };
    let (_write, answer) = within(async { tokio::join!(sending, receiving) }).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn empty_lines_before_a_request_are_forgiven() {
    let backend = Backend::mirror().await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    for _ in 0..2 {
        assert_eq!(caller.ask("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 200);
    }
}

#[tokio::test]
async fn the_size_of_a_head_is_configured() {
    let limits = config::Limits { header_bytes: 1000, ..Default::default() };
    let backend = Backend::mirror().await;
    let mesh = backend.mesh_with(Settings { limits, ..Default::default() }).await;
    let head = |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(n - 32));
    assert_eq!(head(1000).len(), 1000);
    assert_eq!(mesh.caller().await.ask(head(1000)).await.status(), 200);
    assert_eq!(mesh.caller().await.ask(head(1001)).await.status(), 400);
}

#[tokio::test]
async fn a_head_must_arrive_in_its_time() {
    let backend = Backend::mirror().await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    // An answer first, so that the next head is known to have reached the mesh before time stops.
    caller.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let before = mesh.live.rows()[0].received_bytes;
    caller.send("GET / HTTP/1.1\r\nHost").await;
    within(async {
        while mesh.live.rows()[0].received_bytes == before {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let started = tokio::time::Instant::now();
    tokio::time::pause();
    let answer = caller.message().await.unwrap();
    assert_eq!((answer.status(), answer.header("connection")), (408, Some("close")));
    assert!(started.elapsed() > Duration::from_secs(9), "{:?}", started.elapsed());
    assert!(caller.is_over().await);
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time() {
    let limits = config::Limits { idle_timeout: Duration::from_secs(40), ..Default::default() };
    let backend = Backend::mirror().await;
    let mesh = backend.mesh_with(Settings { limits, ..Default::default() }).await;
    let mut caller = mesh.caller().await;
    caller.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let started = tokio::time::Instant::now();
    tokio::time::pause();
    assert_eq!(caller.io.read(&mut [0]).await.unwrap(), 0, "a clean end");
    assert!(started.elapsed() > Duration::from_secs(39), "{:?}", started.elapsed());
}
