//! `Expect: 100-continue`, end to end.

use super::*;

const ASK: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";

#[tokio::test]
async fn the_body_is_sent_when_the_endpoint_wants_it() {
    let backend = Backend::start(|_, mut peer, _| async move {
        while let Some(head) = peer.block().await {
            assert!(head.contains("expect: 100-continue"));
            assert!(peer.seen.is_empty(), "the body waits");
            peer.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            let request = peer.body(head, false).await;
            peer.send(ok(request.text())).await;
        }
    })
    .await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    for _ in 0..3 {
        caller.send(ASK).await;
        assert_eq!(caller.block().await.unwrap(), "HTTP/1.1 100 Continue\r\n");
        let answer = caller.ask("hello").await;
        assert_eq!((answer.status(), answer.text()), (200, "hello"));
    }
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn the_body_stays_with_the_caller_when_the_endpoint_does_not_want_it() {
    for status in ["417 Expectation Failed", "413 Content Too Large", "200 OK"] {
        let backend = Backend::start(move |_, mut peer, requests| async move {
            peer.block().await.unwrap();
            peer.send(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno")).await;
            // Nothing may follow the head but the end.
            assert!(peer.is_over().await);
            requests.fetch_add(1, Ordering::SeqCst);
        })
        .await;
        let mesh = backend.mesh().await;
        let mut caller = mesh.caller().await;
        let answer = caller.ask(ASK).await;
        assert!(status.starts_with(&answer.status().to_string()));
        assert_eq!((answer.text(), answer.header("connection")), ("no", Some("close")));
        assert!(caller.is_over().await);
        within(async {
            while backend.requests() == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn an_endpoint_that_does_not_know_it_gets_the_body_after_a_second() {
    let backend = Backend::start(|_, mut peer, requests| async move {
        let head = peer.block().await.unwrap();
        requests.fetch_add(1, Ordering::SeqCst);
        let request = peer.body(head, false).await;
        peer.send(ok(request.text())).await;
    })
    .await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    caller.send(ASK).await;
    within(async {
        while backend.requests() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let before = tokio::time::Instant::now();
    tokio::time::pause();
    assert_eq!(caller.block().await.unwrap(), "HTTP/1.1 100 Continue\r\n");
    assert!(before.elapsed() > Duration::from_millis(900));
    tokio::time::resume();
    assert_eq!(caller.ask("hello").await.text(), "hello");
}

#[tokio::test]
async fn a_caller_that_does_not_wait_is_served() {
    let backend = Backend::start(|_, mut peer, _| async move {
        let head = peer.block().await.unwrap();
        peer.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        let request = peer.body(head, false).await;
        peer.send(ok(request.text())).await;
    })
    .await;
    let mesh = backend.mesh().await;
    let mut caller = mesh.caller().await;
    caller.send(format!("{ASK}hello")).await;
    let mut head = caller.block().await.unwrap();
    if head.starts_with("HTTP/1.1 100") {
        head = caller.block().await.unwrap();
    }
    assert_eq!(caller.body(head, false).await.text(), "hello");
}
