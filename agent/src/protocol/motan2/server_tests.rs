use bytes::Bytes;
use tokio::io::DuplexStream;

use super::{
    super::{gzip, testing::*},
    *,
};
use crate::{call::ErrorKind, cluster::Cluster, drain, drain::Drainer, route::Direction};

struct Served {
    caller: Peer<DuplexStream>,
    drainer: Drainer,
    end: tokio::task::JoinHandle<Result<(), ConnError>>,
}

/// A connection of an agent with these clusters, `room` bytes away.
fn served(clusters: Vec<Arc<Cluster>>, room: usize, limits: config::Limits) -> Served {
    let (near, far) = tokio::io::duplex(room);
    let (drainer, drain) = drain::new();
    let route = Arc::new(Route::new(clusters[0].info.direction, "motan2", clusters));
    let caller = Caller { peer: ([127, 0, 0, 1], 5000).into(), live: None, route, limits };
    Served { caller: Peer::new(far), drainer, end: tokio::spawn(serve(near, caller, drain)) }
}

/// With one endpoint, or none.
fn kit(endpoint: Option<SocketAddr>) -> Vec<Arc<Cluster>> {
    vec![cluster(Direction::Outbound, ("kit.EchoService", "kit-group"), endpoint.as_slice(), |_| {})]
}

fn call(id: u64, body: &'static [u8]) -> Vec<u8> {
    bytes_of(&request(id, &[("M_p", "kit.EchoService"), ("M_m", "echo"), ("M_tmo", "2000")], body))
}

#[tokio::test]
async fn what_is_no_frame_closes_without_an_answer_and_disturbs_nobody() {
    let backend = Backend::new().await;
    let agent = Agent::new(kit(Some(backend.addr)), config::Limits::default()).await;
    backend.serve(echo);
    let mut bystander = agent.connect().await;
    let length = |meta: u32, body: u32| {
        let mut bytes = b"\xf1\xf1\0\x08\x30\0\0\0\0\0\0\0\x01".to_vec();
        bytes.extend(meta.to_be_bytes());
        bytes.extend(body.to_be_bytes());
        bytes
    };
    let over = 10 * 1024 * 1024 + 1;
    let mut odd = length(1, 0);
    odd.insert(17, b'a');
    let cases = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"\xf1\xf1\0\x10".to_vec(),
        odd,
        length(over, 0),
        length(0, over),
        length(1 << 31, 0),
        length(0, u32::MAX),
        // An answer, and a Motan1 call.
        b"\xf1\xf1\x01\x08\x30\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0".to_vec(),
        b"\xf1\xf1\0\0\0\0\0\0\0\0\0\x01\0\0\0\x04call".to_vec(),
    ];
    for (i, case) in cases.into_iter().enumerate() {
        let mut caller = agent.connect().await;
        caller.send(&case).await;
        assert!(caller.is_closed().await, "case {i}");
        bystander.send(&call(i as u64, b"still here")).await;
        assert_eq!(&bystander.frame().await.body[..], b"still here", "case {i}");
    }
}

#[tokio::test]
async fn a_frame_that_dribbles_in_is_a_frame() {
    let backend = Backend::new().await;
    let mut served = served(kit(Some(backend.addr)), 1, config::Limits::default());
    backend.serve(echo);
    served.caller.send(&golden("v1-string.request")).await;
    assert_eq!(&served.caller.frame().await.body[5..], b"hello motan");
}

#[tokio::test]
async fn ten_mebibytes_pass() {
    let backend = Backend::new().await;
    let mut served = served(kit(Some(backend.addr)), 1 << 16, config::Limits::default());
    backend.serve(echo);
    let mut big = frame_of(&call(1, b""));
    big.body = Bytes::from(vec![7; 10 * 1024 * 1024]);
    let bytes = bytes_of(&big);
    served.caller.send(&bytes).await;
    assert!(served.caller.frame().await.body == big.body);
}

#[tokio::test]
async fn calls_run_side_by_side_and_answers_overtake() {
    let backend = Backend::new().await;
    let mut served = served(kit(Some(backend.addr)), 1 << 16, config::Limits::default());
    for id in 0..50 {
        served.caller.send(&call(id, b"")).await;
    }
    let mut endpoint = backend.accept().await;
    let mut asked = Vec::new();
    for _ in 0..50 {
        asked.push(endpoint.frame().await);
    }
    for frame in asked.iter().rev() {
        endpoint.send(&bytes_of(&echo(frame))).await;
        let original = frame.meta.get("M_rid").unwrap();
        assert_eq!(served.caller.frame().await.head.id.to_string(), *original);
    }
}

#[tokio::test]
async fn a_full_window_stops_reading_until_an_answer_is_written() {
    let backend = Backend::new().await;
    let limits = config::Limits { calls_per_connection: 2, ..config::Limits::default() };
    let mut served = served(kit(Some(backend.addr)), 1 << 16, limits);
    for id in 0..4 {
        served.caller.send(&call(id, b"")).await;
    }
    let mut endpoint = backend.accept().await;
    let first = endpoint.frame().await;
    endpoint.frame().await;
    let third = tokio::time::timeout(Duration::from_millis(100), endpoint.next()).await;
    assert!(third.is_err(), "two calls are in flight, which is all that may be: {third:?}");
    endpoint.send(&bytes_of(&echo(&first))).await;
    assert_eq!(served.caller.frame().await.head.id, 0);
    assert_eq!(endpoint.frame().await.meta.get("M_rid").unwrap(), "2");
}

#[tokio::test]
async fn a_flood_of_calls_to_nowhere_is_answered_through_a_small_window() {
    let limits = config::Limits { calls_per_connection: 3, ..config::Limits::default() };
    let mut served = served(kit(None), 1 << 20, limits);
    let ask: Vec<u8> = (0..2000).flat_map(|id| bytes_of(&request(id, &[("M_p", "kit.Nowhere")], b""))).collect();
    served.caller.send(&ask).await;
    for id in 0..2000 {
        let answer = served.caller.frame().await;
        assert_eq!((answer.head.id, answer.head.status), (id, 1));
    }
}

#[tokio::test]
async fn a_caller_that_closed_its_side_still_gets_what_it_asked_for() {
    let backend = Backend::new().await;
    let mut served = served(kit(Some(backend.addr)), 1 << 16, config::Limits::default());
    served.caller.send(&call(1, b"one")).await;
    served.caller.send(&call(2, b"two")).await;
    served.caller.io.shutdown().await.unwrap();
    let mut endpoint = backend.accept().await;
    for _ in 0..2 {
        let asked = endpoint.frame().await;
        endpoint.send(&bytes_of(&echo(&asked))).await;
    }
    let mut bodies = [served.caller.frame().await.body, served.caller.frame().await.body];
    bodies.sort();
    assert_eq!(bodies, ["one", "two"]);
    assert!(served.caller.is_closed().await);
    assert!(served.end.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_stop_finishes_what_is_held_and_closes() {
    let backend = Backend::new().await;
    let mut served = served(kit(Some(backend.addr)), 1 << 16, config::Limits::default());
    served.caller.send(&call(1, b"held")).await;
    let mut endpoint = backend.accept().await;
    let asked = endpoint.frame().await;
    // Half a frame is under way when the stop comes: it is served, too.
    let half = call(2, b"half");
    served.caller.send(&half[..30]).await;
    let draining = tokio::spawn(served.drainer.drain(PATIENCE));
    tokio::task::yield_now().await;
    served.caller.send(&half[30..]).await;
    let second = endpoint.frame().await;
    for frame in [&asked, &second] {
        endpoint.send(&bytes_of(&echo(frame))).await;
    }
    let mut bodies = [served.caller.frame().await.body, served.caller.frame().await.body];
    bodies.sort();
    assert_eq!(bodies, ["half", "held"]);
    assert!(served.caller.is_closed().await);
    drop(served.caller);
    assert!(draining.await.unwrap(), "in time");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_takes_no_answers_is_given_up_after_five_seconds() {
    let mut served = served(kit(None), 64, config::Limits::default());
    let began = Instant::now();
    let ask = bytes_of(&request(1, &[("M_p", "kit.Nowhere")], b""));
    served.caller.send(&ask).await;
    let error = served.end.await.unwrap().unwrap_err();
    assert!(matches!(&error, ConnError::Io(e) if e.kind() == io::ErrorKind::TimedOut), "{error}");
    assert_eq!(began.elapsed().as_secs(), WRITE_TIMEOUT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_connection_nobody_uses_is_closed() {
    let limits = config::Limits { idle_timeout: Duration::from_secs(60), ..config::Limits::default() };
    let mut served = served(kit(None), 1 << 16, limits);
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(40)).await;
    served.caller.send(&golden("v4-heartbeat.request")).await;
    served.caller.frame().await;
    served.end.await.unwrap().unwrap();
    assert_eq!(began.elapsed().as_secs(), 100, "a minute after the heartbeat");
}

#[tokio::test]
async fn a_bomb_is_refused_and_the_connection_goes_on() {
    let backend = Backend::new().await;
    let mut served = served(kit(Some(backend.addr)), 1 << 16, config::Limits::default());
    backend.serve(echo);
    let mut bomb = frame_of(&call(1, b""));
    bomb.head.kind = kind::GZIP;
    bomb.body = gzip::pack(Bytes::from(vec![0; 11 << 20])).await;
    served.caller.send(&bytes_of(&bomb)).await;
    let answer = served.caller.frame().await;
    assert_eq!((answer.head.id, answer.head.status), (1, 1));
    assert!(answer.meta.get("M_e").unwrap().contains("limits.content_bytes"));
    served.caller.send(&call(2, b"and on")).await;
    assert_eq!(&served.caller.frame().await.body[..], b"and on");
}

#[tokio::test]
async fn inbound_calls_keep_their_group_and_tell_where_they_come_from() {
    let backend = Backend::new().await;
    let inbound = || vec![cluster(Direction::Inbound, ("kit.EchoService", "kit-group"), &[backend.addr], |_| {})];
    let mut near = served(inbound(), 1 << 16, config::Limits::default());
    let meta = [("M_p", "kit.EchoService"), ("M_m", "echo"), ("M_g", "asked"), ("M_rid", "-5"), ("host", "10.0.0.1")];
    near.caller.send(&bytes_of(&request(1, &meta, b""))).await;
    let mut endpoint = backend.accept().await;
    let seen = meta_of(&endpoint.frame().await);
    let expected = [("M_g", "asked"), ("M_rid", "-5"), ("host", "127.0.0.1"), ("x-forwarded-for", "127.0.0.1")];
    for (key, value) in expected {
        assert_eq!(seen[key], value, "{key}");
    }
    assert!(!seen.contains_key("M_s"), "the caller's name is the caller's to give");

    let mut second = frame_of(&bytes_of(&request(2, &meta, b"")));
    second.meta.set("X-Forwarded-For".into(), "10.9.9.9".into());
    near.caller.send(&bytes_of(&second)).await;
    let seen = meta_of(&endpoint.frame().await);
    assert!(!seen.contains_key("x-forwarded-for") && seen["X-Forwarded-For"] == "10.9.9.9");
}

#[tokio::test]
async fn framework_services_are_the_agents_own() {
    let inbound = vec![cluster(Direction::Inbound, ("kit.EchoService", "kit-group"), &[], |_| {})];
    let mut near = served(inbound, 1 << 16, config::Limits::default());
    let service = "com.weibo.api.motan.runtime.meta.MetaService";
    let meta = [("M_p", service), ("M_m", "getDynamicMeta"), ("M_fws", "y")];
    near.caller.send(&bytes_of(&request(1, &meta, b""))).await;
    let answer = near.caller.frame().await;
    assert_eq!((answer.head.status, answer.head.serialization, &answer.body[..]), (0, 6, &[2, 0, 0, 0, 0][..]));

    near.caller.send(&bytes_of(&request(2, &[("M_p", "other"), ("M_fws", "y")], b""))).await;
    let thrown = near.caller.frame().await.meta.get("M_e").unwrap();
    assert_eq!(thrown, r#"{"errcode":501,"errmsg":"service not support","errtype":1}"#);

    let meta = [("M_p", "kit.EchoService"), ("M_m", "echo")];
    near.caller.send(&bytes_of(&request(3, &meta, b""))).await;
    let thrown = near.caller.frame().await.meta.get("M_e").unwrap();
    assert!(thrown.starts_with(r#"{"errcode":503,"errmsg":"reverse proxy call err: "#), "{thrown}");
}

#[tokio::test]
async fn endpoints_that_refuse_or_hang_up_are_told_apart() {
    let refusing = Backend::new().await.addr;
    let mut near = served(kit(Some(refusing)), 1 << 16, config::Limits::default());
    near.caller.send(&call(1, b"")).await;
    let answer = near.caller.frame().await;
    assert_eq!(answer.meta.get("M_e").unwrap(), r#"{"errcode":1002,"errmsg":"can not get a channel","errtype":1}"#);
    assert_eq!(answer.meta.get("x-forwarded-for").unwrap(), refusing.to_string().as_str());

    let backend = Backend::new().await;
    let mut near = served(kit(Some(backend.addr)), 1 << 16, config::Limits::default());
    near.caller.send(&call(1, b"")).await;
    let mut endpoint = backend.accept().await;
    let asked = endpoint.frame().await;
    let answer = bytes_of(&echo(&asked));
    endpoint.send(&answer[..answer.len() - 1]).await;
    drop(endpoint);
    let thrown = near.caller.frame().await.meta.get("M_e").unwrap();
    assert!(thrown.contains("channel call error:the channel has been shutdown"), "{thrown}");

    // The next call opens another connection.
    near.caller.send(&call(2, b"again")).await;
    let mut endpoint = backend.accept().await;
    let asked = endpoint.frame().await;
    endpoint.send(&bytes_of(&echo(&asked))).await;
    assert_eq!(&near.caller.frame().await.body[..], b"again");

    let mut nobody = served(kit(None), 1 << 16, config::Limits::default());
    nobody.caller.send(&call(77, b"")).await;
    let thrown = nobody.caller.frame().await.meta.get("M_e").unwrap();
    let text = "No refers for request, RequestID: 77, Request info: map[M_m:echo M_p:kit.EchoService M_tmo:2000]";
    assert_eq!(thrown, format!(r#"{{"errcode":1001,"errmsg":"{text}","errtype":1}}"#).as_str());
    assert_eq!(ErrorKind::NoEndpoint.name(), "no_endpoint");
}

/// Bytes that a future of this function takes.
fn size_of<A, F: Future>(_: impl FnOnce(A) -> F) -> usize {
    std::mem::size_of::<F>()
}

#[test]
fn futures_stay_small() {
    // One for each call in flight: moved once, and most of it is the request on its way down.
    let call = size_of(request::carry);
    assert!(call <= 4608, "a call takes {call} bytes");
    // One for each connection, 5000 of which may be open.
    let connection = size_of(|(io, caller, drain): (DuplexStream, Caller, Drain)| serve(io, caller, drain));
    assert!(connection <= 2560, "a connection takes {connection} bytes");
}

/// Sends a call that may be repeated once; gives the caller's end, the first who is asked, and the other.
async fn repeatable(meta: &[(&'static str, &str)]) -> (Served, Peer<tokio::net::TcpStream>, Backend) {
    let (one, two) = (Backend::new().await, Backend::new().await);
    let kit = cluster(Direction::Outbound, ("kit.EchoService", "kit-group"), &[one.addr, two.addr], |config| {
        config.retries = 1;
        config.idempotent = true;
    });
    let mut served = served(vec![kit], 1 << 16, config::Limits::default());
    served.caller.send(&bytes_of(&request(1, meta, b"again"))).await;
    tokio::select! {
        peer = one.accept() => (served, peer, two),
        peer = two.accept() => (served, peer, one),
    }
}

#[tokio::test]
async fn a_retry_is_marked_on_the_wire_and_a_marked_call_is_not_retried() {
    let meta = [("M_p", "kit.EchoService"), ("M_m", "echo")];
    let (mut served, mut first, other) = repeatable(&meta).await;
    assert!(!meta_of(&first.frame().await).contains_key("x-sockmesh-retry"));
    drop(first);
    let mut second = other.accept().await;
    let asked = second.frame().await;
    assert_eq!(meta_of(&asked)["x-sockmesh-retry"], "1");
    second.send(&bytes_of(&echo(&asked))).await;
    assert_eq!(&served.caller.frame().await.body[..], b"again");

    let (mut served, mut only, _other) = repeatable(&[meta[0], meta[1], ("x-sockmesh-retry", "1")]).await;
    assert_eq!(meta_of(&only.frame().await)["x-sockmesh-retry"], "1");
    drop(only);
    assert_eq!(served.caller.frame().await.head.status, 1, "whoever marked it tries again");
}

#[tokio::test]
async fn a_probe_asks_for_a_heartbeat() {
    use crate::endpoint::{DialOptions, Endpoint, Probed};

    let protocol = super::super::build(&config::Limits::default());
    let connector = protocol.connector(&config::Cluster::default(), &crate::kind::BuildCx::default()).unwrap();
    let at = |addr| {
        let eject = config::Eject::default();
        Arc::new(Endpoint::new(addr, "".into(), 1, eject, DialOptions::default()))
    };
    let lively = Backend::new().await;
    let endpoint = at(lively.addr);
    lively.serve(|asked| {
        assert!(asked.head.is(kind::HEARTBEAT));
        Frame { head: Head { kind: kind::HEARTBEAT | kind::RESPONSE, ..asked.head }, ..asked.clone() }
    });
    assert_eq!(connector.probe(&endpoint).await.unwrap(), Probed::Answers);
    // Accepts in the kernel and says nothing, as a program that hangs does.
    let hanging = Backend::new().await;
    assert_eq!(connector.probe(&at(hanging.addr)).await.unwrap(), Probed::Connects);
    let addr = hanging.addr;
    drop(hanging);
    assert!(connector.probe(&at(addr)).await.is_err());
}
