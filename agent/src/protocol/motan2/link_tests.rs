use std::time::Duration;

use bytes::Bytes;
use tokio::{
    io::{AsyncWriteExt, DuplexStream},
    time::timeout,
};

use super::{
    super::{codec::Head, testing::*},
    *,
};
use crate::call::Pairs;

const ADDR: ([u8; 4], u16) = ([192, 0, 2, 1], 8100);

/// A link and the endpoint's end of it, `room` bytes apart.
fn link(room: usize) -> (Arc<Link>, Peer<DuplexStream>, Arc<Stats>) {
    let (near, far) = tokio::io::duplex(room);
    let stats = Arc::new(Stats::default());
    (Arc::new(Link::spawn(near, ADDR.into(), 1 << 20, stats.clone())), Peer::new(far), stats)
}

fn start<'a>(link: &'a Link, id: u64, ms: u64, body: &'static [u8]) -> Result<Answer<'a>, NotQueued> {
    let head = Head { kind: kind::PROXY, status: 0, serialization: 6, id };
    let deadline = Instant::now() + Duration::from_millis(ms);
    link.start(id, deadline, |out| out.push(head, &Pairs::default(), &[], Bytes::from_static(body)))
}

/// Starts a call that is polled from now on.
fn call(link: &Arc<Link>, id: u64, ms: u64) -> tokio::task::JoinHandle<Result<Frame, CallError>> {
    let link = link.clone();
    tokio::spawn(async move { start(&link, id, ms, b"body").unwrap().await })
}

#[tokio::test(start_paused = true)]
async fn answers_find_their_calls_in_any_order() {
    let (link, mut endpoint, _) = link(1 << 16);
    let calls: Vec<_> = (1..=100).map(|id| (id, call(&link, id, 1000))).collect();
    let mut asked = Vec::new();
    for _ in 0..100 {
        asked.push(endpoint.frame().await);
    }
    for frame in asked.iter().rev() {
        endpoint.send(&bytes_of(&echo(frame))).await;
    }
    for (id, call) in calls {
        assert_eq!(call.await.unwrap().unwrap().head.id, id);
    }
    assert!(link.shared.state.lock().calls.is_empty());
}

#[tokio::test(start_paused = true)]
async fn each_call_has_its_own_deadline_and_late_answers_are_counted() {
    let (link, mut endpoint, stats) = link(1 << 16);
    let began = Instant::now();
    let slow = call(&link, 1, 900);
    let first = endpoint.frame().await;
    let quick = call(&link, 2, 100);
    let error = quick.await.unwrap().unwrap_err();
    assert_eq!((error.kind, error.retry), (ErrorKind::Timeout, Retry::IfIdempotent));
    assert!((100..110).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    let second = endpoint.frame().await;
    endpoint.send(&bytes_of(&echo(&second))).await;
    endpoint.send(&bytes_of(&echo(&first))).await;
    assert!(slow.await.unwrap().is_ok(), "the connection goes on");
    assert_eq!(stats.late.load(Relaxed), 1);
    assert!((100..110).contains(&began.elapsed().as_millis()), "nobody waited for anything else");
}

#[tokio::test(start_paused = true)]
async fn a_call_cancelled_in_the_queue_is_never_sent() {
    let (link, mut endpoint, stats) = link(1 << 16);
    // Nothing was awaited yet, so the link's task has taken nothing.
    drop(start(&link, 1, 1000, b"one").unwrap());
    let two = start(&link, 2, 1000, b"two").unwrap();
    drop(start(&link, 3, 1000, b"three").unwrap());
    let four = start(&link, 4, 1000, b"four").unwrap();
    for id in [2, 4] {
        let frame = endpoint.frame().await;
        assert_eq!(frame.head.id, id);
        endpoint.send(&bytes_of(&echo(&frame))).await;
    }
    assert_eq!(&two.await.unwrap().body[..], b"two");
    assert_eq!(&four.await.unwrap().body[..], b"four");

    let sent = call(&link, 5, 1000);
    let frame = endpoint.frame().await;
    sent.abort();
    assert!(sent.await.unwrap_err().is_cancelled());
    assert!(link.shared.state.lock().calls.is_empty(), "its slot is free");
    endpoint.send(&bytes_of(&echo(&frame))).await;
    let six = call(&link, 6, 1000);
    let frame = endpoint.frame().await;
    endpoint.send(&bytes_of(&echo(&frame))).await;
    assert!(six.await.unwrap().is_ok());
    assert_eq!(stats.late.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_death_tells_what_was_sent_and_what_was_not() {
    // Room for one frame, so for two once the first is read.
    let (link, mut endpoint, _) = link(21 + b"body".len());
    let calls = [call(&link, 1, 4000), call(&link, 2, 4000), call(&link, 3, 4000)];
    assert_eq!(endpoint.frame().await.head.id, 1);
    // What of an answer comes before the end is no answer.
    endpoint.send(b"\xf1\xf1\x01\x08").await;
    tokio::task::yield_now().await;
    drop(endpoint);
    let mut retries = Vec::new();
    for call in calls {
        let error = call.await.unwrap().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Reset);
        retries.push(error.retry);
    }
    assert_eq!(retries[0], Retry::IfIdempotent);
    assert_eq!(retries[2], Retry::NotSent, "no byte of the third had room: {retries:?}");
    assert!(!link.is_open());
    assert!(matches!(start(&link, 4, 1000, b""), Err(NotQueued::Closed)));
}

#[tokio::test(start_paused = true)]
async fn rubbish_ends_the_connection() {
    for rubbish in [&b"HTTP/1.1 400"[..], b"\xf1\xf1\x01\x10", b"\xf1\xf1\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0"] {
        let (link, mut endpoint, _) = link(1 << 16);
        let call = call(&link, 1, 1000);
        endpoint.frame().await;
        endpoint.send(rubbish).await;
        let error = call.await.unwrap().unwrap_err();
        assert_eq!((error.kind, error.retry), (ErrorKind::Protocol, Retry::IfIdempotent), "{error}");
        assert!(endpoint.is_closed().await);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_came_with_rubbish_still_counts() {
    let (link, mut endpoint, _) = link(1 << 16);
    let (one, two) = (call(&link, 1, 1000), call(&link, 2, 1000));
    let mut bytes = bytes_of(&echo(&endpoint.frame().await));
    bytes.extend(b"rubbish");
    endpoint.send(&bytes).await;
    assert!(one.await.unwrap().is_ok());
    assert_eq!(two.await.unwrap().unwrap_err().kind, ErrorKind::Protocol);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_takes_nothing_is_given_up() {
    let (link, endpoint, _) = link(8);
    let began = Instant::now();
    let error = call(&link, 1, 60_000).await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Reset);
    assert_eq!(began.elapsed().as_secs(), WRITE_TIMEOUT.as_secs());
    drop(endpoint);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_makes_callers_wait_for_room() {
    let (link, mut endpoint, _) = link(1 << 16);
    let queued: Vec<_> = (0..QUEUE as u64).map(|id| start(&link, id, 1000, b"").unwrap()).collect();
    assert!(matches!(start(&link, 9999, 1000, b""), Err(NotQueued::Full)));
    let room = tokio::spawn({
        let link = link.clone();
        async move { link.room().await }
    });
    endpoint.frame().await;
    timeout(Duration::from_secs(1), room).await.unwrap().unwrap();
    assert!(start(&link, 9999, 1000, b"").is_ok());
    drop(queued);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_link_ends_the_connection() {
    let (link, mut endpoint, _) = link(1 << 16);
    drop(link);
    assert!(endpoint.is_closed().await);
    let _ = endpoint.io.shutdown().await;
}
