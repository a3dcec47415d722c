//! When something is missing, a connect goes where it would have gone.

use std::time::{Duration, Instant};

use agent::{capture::Capture as _, config::OnAgentLoss};
use tokio::io::AsyncWriteExt as _;

use crate::{
    bed::{Bed, direct, run_in},
    need,
};

/// Calls argv[1]:argv[2] once per line on standard input; prints what it says, or the error's number.
const CALLER: &str = "
import socket, sys
for line in sys.stdin:
    s = socket.socket()
    s.settimeout(10)
    try:
        s.connect((sys.argv[1], int(sys.argv[2])))
        print(s.recv(64).decode(), flush=True)
    except OSError as e:
        print(e.errno, flush=True)
";

const EPERM: &str = "1";

/// Answers `agent` to the next connection.
async fn serve(bed: &Bed) {
    let (mut conn, origin) = bed.accept().await;
    origin.unwrap();
    conn.write_all(b"agent").await.unwrap();
}

#[tokio::test]
async fn a_silent_agent_is_bypassed() {
    need!("a_silent_agent_is_bypassed", "python3");
    let server = direct("127.0.0.1:0").await;
    let stale_after = Duration::from_millis(400);
    let mut bed = Bed::unloaded(&[&server.to_string()], |c| c.stale_after = stale_after).await;
    bed.load(None);
    let mut caller = bed.python(CALLER, &["127.0.0.1", &server.port().to_string()]);
    // Loaded and attached, but it has not shown that it serves.
    caller.go_on().await;
    assert_eq!(caller.line().await, "direct");

    let beat = Instant::now();
    bed.apply();
    let mut captured = 0;
    loop {
        // An agent that is silent and accepts nothing more than what came in time.
        caller.go_on().await;
        let answer = tokio::select! {
            line = caller.line() => line,
            (mut conn, _) = bed.accept() => {
                conn.write_all(b"agent").await.unwrap();
                captured += 1;
                caller.line().await
            }
        };
        if answer == "direct" {
            break;
        }
        assert!(beat.elapsed() < stale_after + Duration::from_secs(5), "never bypassed");
    }
    assert!(beat.elapsed() >= stale_after, "bypassed after {:?}", beat.elapsed());
    assert!(captured > 0);

    bed.ebpf().beat();
    caller.go_on().await;
    serve(&bed).await;
    assert_eq!(caller.line().await, "agent", "one sign of life and it is back");
    // The very first found no service yet.
    assert_eq!((bed.counter("stale_direct"), bed.counter("not_service")), (1, 1));
}

#[tokio::test]
async fn a_silent_agent_means_refusal_where_the_service_says_so() {
    need!("a_silent_agent_means_refusal_where_the_service_says_so", "python3");
    let server = direct("127.0.0.1:0").await;
    let mut bed = Bed::unloaded(&[&server.to_string()], |c| c.stale_after = Duration::ZERO).await;
    bed.table.destinations[0].1 = OnAgentLoss::Refuse;
    bed.load(None);
    bed.apply();
    let mut caller = bed.python(CALLER, &["127.0.0.1", &server.port().to_string()]);
    caller.go_on().await;
    assert_eq!(caller.line().await, EPERM);
    assert_eq!(bed.counter("stale_refused"), 1);
}

#[tokio::test]
async fn a_stopping_agent_captures_nothing_more() {
    need!("a_stopping_agent_captures_nothing_more", "python3");
    let server = direct("127.0.0.1:0").await;
    let bed = Bed::new(&[&server.to_string()]).await;
    let mut caller = bed.python(CALLER, &["127.0.0.1", &server.port().to_string()]);
    caller.go_on().await;
    serve(&bed).await;
    assert_eq!(caller.line().await, "agent");
    bed.ebpf().stop_capturing();
    // The beat goes on while connections drain; it must not undo that.
    bed.ebpf().beat();
    caller.go_on().await;
    assert_eq!(caller.line().await, "direct");
    assert_eq!(bed.counter("draining"), 1);
}

#[tokio::test]
async fn a_full_table_lets_connects_go_directly() {
    need!("a_full_table_lets_connects_go_directly", "python3");
    let server = direct("127.0.0.1:0").await;
    let bed = Bed::with(&[&server.to_string()], |c| c.max_connections = 2).await;
    let port = server.port().to_string();
    let mut callers: Vec<_> = (0..2).map(|_| bed.python(CALLER, &["127.0.0.1", &port])).collect();
    let mut late = bed.python(CALLER, &["127.0.0.1", &port]);
    let mut waiting = Vec::new();
    for caller in &mut callers {
        caller.go_on().await;
        // Accepted, but nobody has asked for its origin: its place is still taken.
        let accepted = tokio::time::timeout(crate::bed::LIMIT, bed.listener4.accept()).await.unwrap().unwrap();
        waiting.push(accepted.0);
    }
    late.go_on().await;
    assert_eq!(late.line().await, "direct");
    assert_eq!((bed.counter("full"), bed.counter("record_lost"), bed.counter("captured")), (1, 0, 2));

    for (conn, caller) in waiting.iter_mut().zip(&mut callers) {
        bed.ebpf().origin(conn).unwrap();
        conn.write_all(b"agent").await.unwrap();
        assert_eq!(caller.line().await, "agent");
    }
    late.go_on().await;
    serve(&bed).await;
    assert_eq!(late.line().await, "agent", "there is room again");
}

#[tokio::test]
async fn one_place_is_enough_for_one_socket() {
    need!("one_place_is_enough_for_one_socket", "python3");
    let bed = Bed::with(&["240.0.0.1:80", "240.0.0.2:80"], |c| c.max_connections = 1).await;
    // Reserved, connected, dissolved, reserved again: with room for one.
    let script = "
import ctypes, socket
s = socket.socket()
s.settimeout(10)
s.connect(('240.0.0.1', 80))
print(s.recv(64).decode(), flush=True)
assert ctypes.CDLL(None).connect(s.fileno(), bytes(16), 16) == 0
s.connect(('240.0.0.2', 80))
print(s.recv(64).decode(), flush=True)
";
    let mut program = bed.python(script, &[]);
    serve(&bed).await;
    assert_eq!(program.line().await, "agent");
    serve(&bed).await;
    assert_eq!(program.line().await, "agent");
    assert_eq!(bed.counter("full"), 0);
}

#[tokio::test]
async fn other_namespaces_and_no_ipv6_listener() {
    need!("other_namespaces_and_no_ipv6_listener", "python3", "unshare");
    let mut bed = Bed::new(&["127.0.0.1:9", "::1"]).await;
    // Nobody listens there: refused at once means that it was not brought to us.
    let script = "
import socket, sys
s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET)
print(s.connect_ex((sys.argv[1], 9)))
";
    const ECONNREFUSED: &str = "111";
    const ENETUNREACH: &str = "101";
    let far = run_in(&bed.enrolled, &["unshare", "-n", "python3", "-c", script, "127.0.0.1"]);
    // Loopback is down in a new namespace.
    assert_eq!(far.done().await, ENETUNREACH);
    assert_eq!((bed.counter("no_listener"), bed.counter("captured")), (1, 0));

    bed.table.listeners.truncate(1);
    bed.apply();
    assert_eq!(bed.python(script, &["::1"]).done().await, ECONNREFUSED);
    assert_eq!((bed.counter("no_listener6"), bed.counter("captured")), (1, 0));
}

#[tokio::test]
async fn a_socket_bound_to_a_device_is_left_alone() {
    need!("a_socket_bound_to_a_device_is_left_alone", "python3");
    let device = std::fs::read_dir("/sys/class/net")
        .unwrap()
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .find(|name| name != "lo");
    let Some(device) = device else {
        println!("SKIPPED: a_socket_bound_to_a_device_is_left_alone: this host has only loopback");
        return;
    };
    let bed = Bed::new(&["240.0.0.1:80"]).await;
    let script = "
import socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, 25, sys.argv[1].encode())
s.setblocking(False)
s.connect_ex(('240.0.0.1', 80))
";
    bed.python(script, &[&device]).done().await;
    assert_eq!((bed.counter("bound_device"), bed.counter("captured")), (1, 0));
}
