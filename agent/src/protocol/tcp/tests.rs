use std::{io::ErrorKind, net::SocketAddr, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{NAME, Report, Side, both_ways, reset_on_close};
use crate::{
    config,
    protocol::testing::{Front, Settings, closed_port, front},
};

/// Anything here takes milliseconds; a hang must fail, not stall.
const LIMIT: Duration = Duration::from_secs(20);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("takes milliseconds when it works")
}

/// A mesh in front of one endpoint, with both ends of a connection through it.
async fn pair() -> (Front, TcpStream, TcpStream) {
    pair_with(Settings::default()).await
}

async fn pair_with(settings: Settings) -> (Front, TcpStream, TcpStream) {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let front = front(NAME, &[backend.local_addr().unwrap()], settings).await;
    let caller = front.connect().await;
    let (endpoint, _) = within(backend.accept()).await.unwrap();
    (front, caller, endpoint)
}

async fn read_all(io: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    within(io.read_to_end(&mut all)).await?;
    Ok(all)
}

#[tokio::test]
async fn halves_close_separately() {
    for caller_first in [true, false] {
        let (front, caller, endpoint) = pair().await;
        let (mut a, mut b) = if caller_first { (caller, endpoint) } else { (endpoint, caller) };
        a.write_all(b"question").await.unwrap();
        a.shutdown().await.unwrap();
        assert_eq!(read_all(&mut b).await.unwrap(), b"question");
        // The other half still works after the end of the first was seen.
        b.write_all(b"answer").await.unwrap();
        b.shutdown().await.unwrap();
        assert_eq!(read_all(&mut a).await.unwrap(), b"answer");
        within(async {
            while !front.live.is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let stats = &front.cluster.info.stats;
        assert_eq!((stats.succeeded.load(Relaxed), stats.failed.load(Relaxed)), (1, 0));
        assert_eq!(stats.request_bytes.load(Relaxed) + stats.response_bytes.load(Relaxed), 14);
    }
}

#[tokio::test]
async fn resets_stay_resets() {
    for caller_first in [true, false] {
        for half_closed in [false, true] {
            let (front, caller, endpoint) = pair().await;
            let (mut a, mut b) = if caller_first { (caller, endpoint) } else { (endpoint, caller) };
            a.write_all(b"x").await.unwrap();
            b.read_exact(&mut [0]).await.unwrap();
            if half_closed {
                a.shutdown().await.unwrap();
                assert_eq!(b.read(&mut [0]).await.unwrap(), 0);
            }
            reset_on_close(&a);
            drop(a);
            let error = if half_closed {
                // The reading half has ended already: a reset shows when writing.
                within(async {
                    loop {
                        if let Err(error) = b.write_all(b"y").await {
                            break error;
                        }
                        tokio::task::yield_now().await;
                    }
                })
                .await
            } else {
                read_all(&mut b).await.unwrap_err()
            };
            assert!(
                matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
                "caller first {caller_first}, half closed {half_closed}: {error}"
            );
            let stats = &front.cluster.info.stats;
            within(async {
                while !front.live.is_empty() {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            let failed = u64::from(!caller_first);
            assert_eq!(stats.failed.load(Relaxed), failed, "only the endpoint's resets count as failures");
        }
    }
}

#[tokio::test]
async fn what_was_said_before_a_reset_arrives() {
    let (_front, mut caller, mut endpoint) = pair().await;
    endpoint.write_all(b"too many connections").await.unwrap();
    reset_on_close(&endpoint);
    // Waits until the mesh has passed it on: a reset discards what is still under way.
    let mut heard = [0; 20];
    within(caller.peek(&mut heard)).await.unwrap();
    drop(endpoint);
    within(caller.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"too many connections");
    assert_eq!(caller.read(&mut heard).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn servers_that_speak_first_are_heard() {
    let (_front, mut caller, mut endpoint) = pair().await;
    endpoint.write_all(b"220 ready\r\n").await.unwrap();
    let mut greeting = [0; 11];
    within(caller.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
}

#[tokio::test]
async fn big_transfers_arrive_intact_both_ways() {
    let (front, caller, endpoint) = pair().await;
    let bytes = |seed: u64| -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..3_000_001).map(|_| random.u8(..)).collect()
    };
    let talk = |io: TcpStream, seed: u64| async move {
        let (mut read, mut write) = io.into_split();
        let sending = async {
            let data = bytes(seed);
            let mut rest = &data[..];
            let mut random = fastrand::Rng::with_seed(seed + 10);
            while !rest.is_empty() {
                let n = random.usize(1..200_000).min(rest.len());
                write.write_all(&rest[..n]).await.unwrap();
                rest = &rest[n..];
            }
            write.shutdown().await.unwrap();
        };
        let receiving = async {
            let mut all = Vec::new();
            read.read_to_end(&mut all).await.unwrap();
            assert!(all == bytes(3 - seed));
        };
        tokio::join!(sending, receiving);
    };
    within(async { tokio::join!(talk(caller, 1), talk(endpoint, 2)) }).await;
    within(async {
        while !front.live.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let stats = &front.cluster.info.stats;
    assert_eq!(stats.request_bytes.load(Relaxed), 3_000_001);
    assert_eq!(stats.response_bytes.load(Relaxed), 3_000_001);
}

#[tokio::test]
async fn urgent_bytes_keep_their_place() {
    for caller_first in [true, false] {
        let (_front, caller, endpoint) = pair().await;
        let (mut a, mut b) = if caller_first { (caller, endpoint) } else { (endpoint, caller) };
        a.write_all(b"abc").await.unwrap();
        socket2::SockRef::from(&a).send_out_of_band(b"!").unwrap();
        a.write_all(b"def").await.unwrap();
        a.shutdown().await.unwrap();
        assert_eq!(read_all(&mut b).await.unwrap(), b"abc!def");
    }
}

#[tokio::test]
async fn nobody_there_is_a_reset() {
    let front = front(NAME, &[closed_port().await], Settings::default()).await;
    let mut caller = front.connect().await;
    let error = read_all(&mut caller).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn another_endpoint_is_tried_when_one_refuses() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = backend.local_addr().unwrap();
    let front = front(NAME, &[closed_port().await, here], Settings::default()).await;
    for _ in 0..4 {
        let mut caller = front.connect().await;
        let (mut endpoint, _) = within(backend.accept()).await.unwrap();
        endpoint.write_all(b"!").await.unwrap();
        within(caller.read_exact(&mut [0])).await.unwrap();
        let rows = front.live.rows();
        assert_eq!(rows.last().unwrap().endpoint, Some::<SocketAddr>(here));
    }
}

#[tokio::test]
async fn idle_connections_are_reset_after_their_time() {
    let limits = config::Limits { idle_timeout: Duration::from_secs(3600), ..Default::default() };
    let (_front, mut caller, mut endpoint) = pair_with(Settings { limits, ..Default::default() }).await;
    // Traffic first, so that the timer is armed for certain before time stops.
    caller.write_all(b"x").await.unwrap();
    within(endpoint.read_exact(&mut [0])).await.unwrap();
    tokio::time::pause();
    let before = tokio::time::Instant::now();
    let error = caller.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(before.elapsed() >= Duration::from_secs(3599), "{:?}", before.elapsed());
    assert_eq!(endpoint.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_forced_stop_is_no_clean_end() {
    let (mut front, mut caller, mut endpoint) = pair().await;
    caller.write_all(b"x").await.unwrap();
    within(endpoint.read_exact(&mut [0])).await.unwrap();
    drop(front.drainer.take());
    drop(front);
    assert_eq!(within(caller.read(&mut [0])).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(within(endpoint.read(&mut [0])).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_idle_connection_costs_little_memory() {
    let limits = config::Limits::default();
    let protocol = crate::protocol::testing::protocol(NAME, &limits);
    let (front, caller, endpoint) = pair().await;
    let guard = front.live.add(front.addr, front.addr, (0, String::new()), false, None);
    let live = guard.live.clone();
    let io = crate::accept::Downstream::new(front.connect().await.into(), Default::default(), live.clone());
    let conn = crate::protocol::Accepted { io, peer: front.addr, guard, dialled: None };
    let clusters = vec![front.cluster.clone()];
    let route = crate::route::Route::new(crate::route::Direction::Outbound, NAME, clusters);
    let (_drainer, drain) = crate::drain::new();
    let serving = protocol.serve(conn, route.into(), drain);
    let side = |io| Side { io, prefix: Default::default() };
    let report = Report { live, watch: None, idle_timeout: limits.idle_timeout };
    let copying = both_ways(side(caller.into()), side(endpoint.into()), report);
    // Buffers are given back while nothing flows, so these two are nearly all of it.
    let bytes = size_of_val(&*serving) + size_of_val(&copying);
    assert!(bytes <= 2048, "{} + {}", size_of_val(&*serving), size_of_val(&copying));
}
