//! Connections that leave HTTP.

use super::*;

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Key: k\r\n\r\n";
const YES: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Accept: a\r\n\r\n";

#[tokio::test]
async fn bytes_go_both_ways_and_each_half_ends_alone() {
    let backend = Backend::start(|_, mut peer, _| async move {
        let request = peer.message().await.unwrap();
        assert_eq!(request.header("connection"), Some("upgrade"));
        assert_eq!(request.header("upgrade"), Some("websocket"));
        // The first bytes of the new protocol come in one packet with the answer.
        peer.send(format!("{YES}first")).await;
        let mut said = std::mem::take(&mut peer.seen);
        within(peer.io.read_to_end(&mut said)).await.unwrap();
        assert_eq!(said, b"early, later");
        peer.send(" last").await;
    })
    .await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    // Nobody may send before the answer, but some do.
    caller.send(format!("{ASK}early")).await;
    let answer = caller.message().await.unwrap();
    assert_eq!(answer.status(), 101);
    assert_eq!(answer.header("upgrade"), Some("websocket"));
    assert_eq!(answer.header("connection"), Some("upgrade"));
    assert_eq!(answer.header("sec-websocket-accept"), Some("a"));
    caller.send(", later").await;
    caller.io.shutdown().await.unwrap();
    let mut said = std::mem::take(&mut caller.seen);
    within(caller.io.read_to_end(&mut said)).await.unwrap();
    assert_eq!(said, b"first last");
    mesh.quiet().await;
    assert_eq!(mesh.ended(), (1, 0));
    let stats = &mesh.cluster.info.stats;
    assert_eq!(stats.request_bytes.load(Ordering::Relaxed), 12);
    assert_eq!(stats.response_bytes.load(Ordering::Relaxed), 10);
}

#[tokio::test]
async fn http_goes_on_when_the_endpoint_says_no() {
    let backend = Backend::answering(|request| match request.head.contains("/chat") {
        true => "HTTP/1.1 426 Upgrade Required\r\nUpgrade: foo\r\nConnection: Upgrade\r\nContent-Length: 1\r\n\r\nx"
            .to_owned(),
        false => ok("http"),
    })
    .await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    for _ in 0..2 {
        // The next request comes before the answer.
        let answer = caller.ask(format!("{ASK}GET / HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!((answer.status(), answer.header("upgrade")), (426, Some("foo")));
        assert_eq!(caller.message().await.unwrap().text(), "http");
    }
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn what_follows_a_refused_upgrade_is_judged_as_http() {
    let backend = Backend::answering(|_| ok("no")).await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    assert_eq!(caller.ask(format!("{ASK}\x01\x02 what is this\r\n\r\n")).await.text(), "no");
    assert_eq!(caller.message().await.unwrap().status(), 400);
    assert_eq!(backend.requests(), 1);
}

#[tokio::test]
async fn a_reset_of_the_new_protocol_stays_one() {
    let backend = Backend::start(|_, mut peer, _| async move {
        peer.message().await.unwrap();
        peer.send(YES).await;
        peer.take(1).await.unwrap();
        crate::protocol::tcp::reset_on_close(&peer.io);
    })
    .await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    assert_eq!(caller.ask(ASK).await.status(), 101);
    caller.send("x").await;
    let error = within(caller.io.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    mesh.quiet().await;
    assert_eq!(mesh.ended(), (0, 1));
}

#[tokio::test]
async fn nobody_switches_unasked() {
    let backend = Backend::answering(|_| YES.to_owned()).await;
    let mesh = backend.mesh().await;
    for upgrade in ["", "Connection: Upgrade\r\nUpgrade: h2c\r\n", "Upgrade: websocket\r\n"] {
        let answer = mesh.caller().await.ask(format!("GET / HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n")).await;
        assert_eq!((answer.status(), answer.header("x-sockmesh-error")), (502, Some("protocol")));
    }
}

#[tokio::test]
async fn a_caller_that_leaves_while_waiting_is_noticed() {
    let backend = Backend::start(|_, mut peer, requests| async move {
        peer.message().await.unwrap();
        requests.fetch_add(1, Ordering::SeqCst);
        assert!(peer.is_over().await);
        requests.fetch_add(1, Ordering::SeqCst);
    })
    .await;
    let mesh = backend.mesh().await;
    for request in [ASK, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let before = backend.requests();
        let mut caller = mesh.caller().await;
        caller.send(request).await;
        within(async {
            while backend.requests() == before {
                tokio::task::yield_now().await;
            }
        })
        .await;
        drop(caller);
        within(async {
            while backend.requests() == before + 1 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}
