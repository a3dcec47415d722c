//! The kernel way: connects that the hooks send straight to an endpoint.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use agent::{
    capture::{
        Capture as _,
        balance::{Straight, Weighted},
        enroll::Cgroup,
    },
    config::{Caller, OnAgentLoss},
    sys,
};
use ebpf_common::balance::{Use, UseKey};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::{Instant, sleep},
};

use crate::{
    bed::{Bed, LIMIT, run_in, service},
    need,
};

/// Connects argv[3] times to argv[1]:argv[2], as user argv[4] if given; prints for each the peer and what it
/// says, or the error.
const CALLS: &str = "
import errno, os, socket, sys
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
if len(sys.argv) > 4: os.setuid(int(sys.argv[4]))
for _ in range(int(sys.argv[3])):
    s = socket.socket(family, socket.SOCK_STREAM)
    s.settimeout(10)
    try:
        s.connect((sys.argv[1], int(sys.argv[2])))
        print('%s %d' % s.getpeername()[:2], s.recv(64).decode())
    except OSError as e:
        print(errno.errorcode[e.errno])
    s.close()
";

/// Connects without blocking, sends 10 bytes, reads what comes, says so, and waits for the end or a line.
const HOLD: &str = "
import errno, select, socket, sys
s = socket.socket()
s.setblocking(False)
assert s.connect_ex((sys.argv[1], int(sys.argv[2]))) == errno.EINPROGRESS
select.select([], [s], [])
assert s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
s.setblocking(True)
s.sendall(b'0123456789')
print(s.recv(64).decode(), flush=True)
select.select([s, sys.stdin], [], [])
try:
    s.setblocking(False)
    print('end' if s.recv(64) == b'' else 'more', flush=True)
except OSError as e:
    print(errno.errorcode[e.errno], flush=True)
";

/// As `CALLS`, but gives a connect up after 0.3 s (`slow`).
const IMPATIENT: &str = "
import socket, sys
for _ in range(int(sys.argv[3])):
    s = socket.socket()
    s.settimeout(0.3)
    try:
        s.connect((sys.argv[1], int(sys.argv[2])))
        s.settimeout(10)
        print(s.recv(64).decode())
    except socket.timeout:
        print('slow')
    s.close()
";

/// Begins connects until one is not answered, then waits for a line with that one open.
const PATIENT: &str = "
import select, socket, sys
held = []
while True:
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex((sys.argv[1], int(sys.argv[2])))
    held.append(s)
    if not select.select([], [s], [], 0.3)[1]: break
print('pending', flush=True)
sys.stdin.readline()
";

/// Connects to argv[1]:argv[2] from an IPv6 socket that is bound to argv[3] (`-` for not) and IPv6-only if
/// argv[4]; prints what comes, or the error.
const BOUND: &str = "
import errno, socket, sys
s = socket.socket(socket.AF_INET6)
s.settimeout(10)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, len(sys.argv) > 4)
if sys.argv[3] != '-': s.bind((sys.argv[3], 0))
try:
    s.connect((sys.argv[1], int(sys.argv[2])))
    print(s.recv(64).decode())
except OSError as e:
    print(errno.errorcode[e.errno])
";

/// A server that says its name and waits until the other end closes.
async fn named(address: &str, name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut conn, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = conn.write_all(name.as_bytes()).await;
                let _ = conn.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    address
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

fn straight(address: &str, endpoints: &[(SocketAddr, u32)]) -> Straight {
    let weighted = |(addr, weight): &(SocketAddr, u32)| Weighted { addr: *addr, weight: *weight, available: true };
    Straight {
        name: model::ServiceKey { service: "db".to_owned(), ..Default::default() },
        number: 7,
        addresses: vec![service(address)],
        loss: OnAgentLoss::Direct,
        allow: Vec::new(),
        deny: Vec::new(),
        endpoints: Some(endpoints.iter().map(weighted).collect()),
    }
}

async fn bed(services: Vec<Straight>) -> Bed {
    let mut bed = Bed::unloaded(&[], |_| {}).await;
    bed.table.straight = services;
    bed.load(None);
    bed.apply();
    bed
}

/// What `calls` connects ended with, counted.
async fn calls(bed: &Bed, address: &str, port: &str, calls: u32) -> HashMap<String, u32> {
    let said = bed.python(CALLS, &[address, port, &calls.to_string()]).done().await;
    let mut count = HashMap::new();
    for line in said.lines() {
        *count.entry(line.to_owned()).or_default() += 1;
    }
    count
}

/// Connects of all callers to all endpoints.
fn connects(bed: &Bed) -> u64 {
    bed.ebpf().uses().iter().map(|u| u.count.connects).sum()
}

/// Rows of counters in the kernel.
fn rows(bed: &Bed) -> usize {
    let map = sys::obj_get(&bed.pins().join("maps/MESH_USE")).unwrap();
    sys::BpfMap::<UseKey, Use>::new(map).unwrap().keys(10_000).unwrap().len()
}

/// Beats until `done`.
async fn beat_until(bed: &Bed, services: &[Straight], what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "never: {what}");
        bed.ebpf().balance(services);
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn connects_are_spread_by_weight() {
    need!("connects_are_spread_by_weight", "python3");
    let (a, b, out) = (named("127.0.0.1:0", "a").await, named("127.0.0.1:0", "b").await, nobody().await);
    let bed = bed(vec![straight("240.1.0.1:80", &[(a, 3), (b, 1), (out, 0)])]).await;
    let said = calls(&bed, "240.1.0.1", "80", 400).await;
    let (a, b) = (said["240.1.0.1 80 a"], said["240.1.0.1 80 b"]);
    assert_eq!(a + b, 400, "{said:?}");
    // Four standard deviations: 35.
    assert!((265..=335).contains(&a), "{said:?}");
    assert_eq!((bed.counter("balanced"), bed.counter("captured")), (400, 0));
    assert_eq!(connects(&bed), 400);
}

#[tokio::test]
async fn families_that_suit_the_socket() {
    need!("families_that_suit_the_socket", "python3");
    let (v4, v6) = (named("127.0.0.1:0", "v4").await, named("[::1]:0", "v6").await);
    let mut services = vec![
        straight("240.1.0.1:80", &[(v4, 1), (v6, 1)]),
        straight("[fd00:77::1]:80", &[(v4, 1), (v6, 1)]),
        straight("[fd00:77::2]:80", &[(v4, 1)]),
        straight("127.0.0.3:81", &[(v6, 1)]),
    ];
    for (number, service) in (1..).zip(&mut services) {
        service.number = number;
    }
    let bed = bed(services).await;
    let only = |said: HashMap<String, u32>| {
        assert_eq!(said.len(), 1, "{said:?}");
        said.into_keys().next().unwrap()
    };
    assert_eq!(only(calls(&bed, "240.1.0.1", "80", 20).await), "240.1.0.1 80 v4");
    let mapped = calls(&bed, "::ffff:240.1.0.1", "80", 40).await;
    assert_eq!(mapped.keys().filter(|k| k.starts_with("::ffff:240.1.0.1 80 v")).count(), 2, "{mapped:?}");
    assert_eq!(only(calls(&bed, "fd00:77::1", "80", 20).await), "fd00:77::1 80 v6");
    assert_eq!(only(calls(&bed, "fd00:77::2", "80", 20).await), "fd00:77::2 80 v4");
    // An IPv4 socket and an IPv6 endpoint: it goes where the program asked.
    assert_eq!(only(calls(&bed, "127.0.0.3", "81", 1).await), "ECONNREFUSED");
    assert_eq!(bed.counter("no_endpoint"), 1);
}

#[tokio::test]
async fn policy_by_user_and_control_group() {
    need!("policy_by_user_and_control_group", "python3");
    let a = named("127.0.0.1:0", "a").await;
    let mut bed = bed(Vec::new()).await;
    let inner = bed.cgroup(&bed.enrolled, "inner");
    let one =
        |allow: Vec<Caller>, deny: Vec<Caller>| vec![Straight { allow, deny, ..straight("240.1.0.1:80", &[(a, 1)]) }];
    let (ok, refused) = ("240.1.0.1 80 a", "EPERM");
    let group = |path: &std::path::Path| Caller::Cgroup(path.to_owned());
    let cases = [
        (one(vec![], vec![]), ok, ok, ok),
        (one(vec![Caller::Uid(0)], vec![]), ok, refused, ok),
        (one(vec![], vec![Caller::Uid(65534)]), ok, refused, ok),
        (one(vec![group(&inner)], vec![]), refused, refused, ok),
        (one(vec![group(&bed.enrolled)], vec![group(&inner)]), ok, ok, refused),
        (one(vec![group("/nowhere/at/all".as_ref())], vec![]), refused, refused, refused),
    ];
    for (i, (services, root, nobody, below)) in cases.into_iter().enumerate() {
        bed.table.straight = services;
        bed.apply();
        assert_eq!(bed.python(CALLS, &["240.1.0.1", "80", "1"]).done().await, root, "case {i}");
        assert_eq!(bed.python(CALLS, &["240.1.0.1", "80", "1", "65534"]).done().await, nobody, "case {i}");
        let inside = run_in(&inner, &["python3", "-c", CALLS, "240.1.0.1", "80", "1"]);
        assert_eq!(inside.done().await, below, "case {i}");
    }
    assert_eq!(bed.counter("policy_refused"), 8);
    let refused: u64 = bed.ebpf().uses().iter().map(|u| u.count.refused).sum();
    assert_eq!(refused, 8);
}

#[tokio::test]
async fn a_control_group_that_is_made_later_counts() {
    need!("a_control_group_that_is_made_later_counts", "python3");
    let a = named("127.0.0.1:0", "a").await;
    let bed = bed(Vec::new()).await;
    let later = bed.enrolled.join("later");
    let service = |deny| vec![Straight { deny, ..straight("240.1.0.1:80", &[(a, 1)]) }];
    let services = service(vec![Caller::Cgroup(later.clone())]);
    let mut table = bed.table.clone();
    table.straight = services.clone();
    bed.ebpf().apply(&table).unwrap();
    let call = || async { run_in(&later, &["python3", "-c", CALLS, "240.1.0.1", "80", "1"]).done().await };
    std::fs::create_dir(&later).unwrap();
    let start = Instant::now();
    while call().await != "EPERM" {
        assert!(start.elapsed() < LIMIT, "it never counts");
        bed.ebpf().balance(&services);
    }
    bed.ebpf().balance(&service(Vec::new()));
    assert_eq!(call().await, "240.1.0.1 80 a", "a rule that is taken away counts at once");
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_passed_over() {
    need!("an_endpoint_that_does_not_answer_is_passed_over", "python3");
    let (a, down) = (named("127.0.0.1:0", "a").await, nobody().await);
    let services = vec![straight("240.1.0.1:80", &[(a, 1), (down, 1)])];
    let bed = bed(services).await;
    let said = calls(&bed, "240.1.0.1", "80", 60).await;
    // Passed over for a second after the first failure; sixty connects may take longer than that.
    let failed = said["ECONNREFUSED"];
    assert!(failed <= 5 && said["240.1.0.1 80 a"] == 60 - failed, "{said:?}");
    let failures = bed.ebpf().failures();
    assert!(matches!(&failures[..], [f] if f.endpoint == down && f.failures == failed), "{failures:?}");
    let counted: u64 = bed.ebpf().uses().iter().map(|u| u.count.failed).sum();
    assert_eq!(counted, u64::from(failed));
}

/// A listener that answers no SYN: its queue is full. The connections that fill it are for the caller to keep.
fn silent() -> (SocketAddr, socket2::Socket, Vec<socket2::Socket>) {
    let new = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let listener = new();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(1).unwrap();
    let at = listener.local_addr().unwrap();
    let fill = |_| {
        let socket = new();
        socket.connect_timeout(&at, Duration::from_millis(200)).ok().map(|()| socket)
    };
    let queued: Vec<_> = (0..8).map_while(fill).collect();
    assert!(queued.len() < 8, "the queue never is full");
    (at.as_socket().unwrap(), listener, queued)
}

#[tokio::test]
async fn an_endpoint_that_is_silent_is_passed_over() {
    need!("an_endpoint_that_is_silent_is_passed_over", "python3");
    let a = named("127.0.0.1:0", "a").await;
    let (down, _listener, _queued) = silent();
    let bed = bed(vec![straight("240.1.0.1:80", &[(a, 1), (down, 1)])]).await;
    let count = |said: &str, what: &str| said.lines().filter(|l| *l == what).count();
    // Programs that give up soon: the next connect goes elsewhere.
    let said = bed.python(IMPATIENT, &["240.1.0.1", "80", "40"]).done().await;
    assert!(count(&said, "slow") <= 3 && count(&said, "a") >= 37, "{said}");
}

#[tokio::test]
async fn a_program_that_waits_for_an_answer_warns_others() {
    need!("a_program_that_waits_for_an_answer_warns_others", "python3");
    let a = named("127.0.0.1:0", "a").await;
    let (down, _listener, _queued) = silent();
    let services = vec![straight("240.1.0.1:80", &[(a, 1), (down, 1)])];
    let bed = bed(services.clone()).await;
    let mut patient = bed.python(PATIENT, &["240.1.0.1", "80"]);
    assert_eq!(patient.line().await, "pending");
    let known = || bed.ebpf().failures().iter().any(|f| f.endpoint == down);
    beat_until(&bed, &services, "the first SYN is repeated", known).await;
    let failed: u64 = bed.ebpf().uses().iter().map(|u| u.count.failed).sum();
    assert_eq!(failed, 0, "nobody has given up yet");
    let said = bed.python(IMPATIENT, &["240.1.0.1", "80", "20"]).done().await;
    assert!(said.lines().filter(|l| *l == "slow").count() <= 1, "{said}");
    patient.go_on().await;
    let _ = patient.done().await;
}

#[tokio::test]
async fn an_endpoint_that_failed_is_tried_again() {
    need!("an_endpoint_that_failed_is_tried_again", "python3");
    let (a, down) = (named("127.0.0.1:0", "a").await, nobody().await);
    let services = vec![straight("240.1.0.1:80", &[(a, 1), (down, 1)])];
    let bed = bed(services.clone()).await;
    let failed = || bed.ebpf().failures().iter().any(|f| f.endpoint == down);
    while !failed() {
        calls(&bed, "240.1.0.1", "80", 5).await;
    }
    named(&down.to_string(), "b").await;
    let start = Instant::now();
    while !calls(&bed, "240.1.0.1", "80", 5).await.contains_key("240.1.0.1 80 b") {
        assert!(start.elapsed() < LIMIT, "never tried again");
    }
    assert!(!failed(), "nothing is held against it");
    let said = calls(&bed, "240.1.0.1", "80", 100).await;
    assert_eq!(said.len(), 2, "{said:?}");
}

#[tokio::test]
async fn failures_lengthen_the_pause() {
    need!("failures_lengthen_the_pause", "python3");
    let down = nobody().await;
    let bed = bed(vec![straight("240.1.0.1:80", &[(down, 1)])]).await;
    // All of them dial it: there is no other.
    let said = calls(&bed, "240.1.0.1", "80", 3).await;
    assert_eq!(said["ECONNREFUSED"], 3);
    bed.ebpf().failed(7, down);
    let [failing] = &bed.ebpf().failures()[..] else { panic!("{:?}", bed.ebpf().failures()) };
    assert_eq!(failing.failures, 4, "one after the other");
    assert!(failing.pause > Duration::from_secs(2), "{failing:?}");
}

#[tokio::test]
async fn sockets_that_are_bound_or_speak_one_family() {
    need!("sockets_that_are_bound_or_speak_one_family", "python3");
    let (v4, v6) = (named("127.0.0.1:0", "v4").await, named("[::1]:0", "v6").await);
    // Where a connect that is left alone finds nobody.
    let closed = TcpListener::bind("[::1]:0").await.unwrap().local_addr().unwrap();
    let (mixed, strict) = ("[fd00:77::1]:80", "[fd00:77::3]:80");
    let mut services = vec![
        straight(mixed, &[(v4, 1), (v6, 1)]),
        straight(&closed.to_string(), &[(v4, 1)]),
        straight("240.1.0.1:80", &[(v4, 1), (v6, 1)]),
        Straight { loss: OnAgentLoss::Refuse, ..straight(strict, &[(v4, 1)]) },
    ];
    for (number, service) in (1..).zip(&mut services) {
        service.number = number;
    }
    let bed = bed(services).await;
    let closed = closed.to_string();
    for (to, from, only, said) in [
        (mixed, "-", "", "v6"),
        (mixed, "-", "only", "v6"),
        (mixed, "::1", "", "v6"),
        (&closed, "-", "", "v4"),
        (&closed, "::", "", "v4"),
        (&closed, "-", "only", "ECONNREFUSED"),
        (&closed, "::1", "", "ECONNREFUSED"),
        (strict, "-", "only", "EPERM"),
        ("[::ffff:240.1.0.1]:80", "::ffff:127.0.0.1", "", "v4"),
    ] {
        let to: SocketAddr = to.parse().unwrap();
        let (ip, port) = (to.ip().to_string(), to.port().to_string());
        for _ in 0..4 {
            let mut args = vec![ip.as_str(), &port, from];
            args.extend(Some(only).filter(|o| !o.is_empty()));
            let got = bed.python(BOUND, &args).done().await;
            assert_eq!(got, said, "to {to} from {from} {only}");
        }
    }
    assert_eq!((bed.counter("v6_only"), bed.counter("no_endpoint"), bed.counter("no_endpoint_refused")), (8, 4, 4));
}

#[tokio::test]
async fn a_provider_that_calls_its_own_service_goes_round_no_loop() {
    need!("a_provider_that_calls_its_own_service_goes_round_no_loop", "python3");
    // Listens, then connects to itself by the address that is also the service's, bound first.
    const OWN: &str = "
import socket, sys
l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen()
print(l.getsockname()[1], flush=True)
sys.stdin.readline()
s = socket.socket(); s.settimeout(10); s.bind(('127.0.0.1', 0))
s.connect(l.getsockname())
a, _ = l.accept(); a.sendall(b'own')
print('%s %s' % (s.recv(9).decode(), s.getpeername() == l.getsockname()))
";
    let mut bed = bed(Vec::new()).await;
    let mut program = bed.python(OWN, &[]);
    let own: SocketAddr = format!("127.0.0.1:{}", program.line().await).parse().unwrap();
    let other = named("127.0.0.1:0", "other").await;
    // A service at the provider's own address, and one whose endpoint is an address of yet another service.
    let mut services = vec![
        straight(&own.to_string(), &[(own, 1)]),
        straight("240.1.0.1:80", &[(other, 1)]),
        straight(&other.to_string(), &[(own, 1)]),
    ];
    for (number, service) in (1..).zip(&mut services) {
        service.number = number;
    }
    bed.table.straight = services;
    bed.apply();
    program.go_on().await;
    assert_eq!(program.done().await, "own True");
    assert_eq!((bed.counter("balanced"), connects(&bed)), (1, 1), "sent once");
    let said = calls(&bed, "240.1.0.1", "80", 1).await;
    assert_eq!(said["240.1.0.1 80 other"], 1, "an endpoint is no service: {said:?}");
    assert_eq!(bed.counter("balanced"), 2);
}

#[tokio::test]
async fn rows_of_what_is_gone_are_added_up() {
    need!("rows_of_what_is_gone_are_added_up", "python3");
    let (a, b) = (named("127.0.0.1:0", "a").await, named("127.0.0.1:0", "b").await);
    let both = vec![straight("240.1.0.1:80", &[(a, 1), (b, 1)])];
    let bed = bed(both.clone()).await;
    let connects_in = |group: std::path::PathBuf| async move {
        run_in(&group, &["python3", "-c", CALLS, "240.1.0.1", "80", "20"]).done().await
    };
    for n in 0..4 {
        let group = bed.cgroup(&bed.enrolled, &format!("short-{n}"));
        connects_in(group.clone()).await;
        std::fs::remove_dir(&group).unwrap();
    }
    let lasting = bed.cgroup(&bed.enrolled, "lasting");
    connects_in(lasting).await;
    let callers = || bed.ebpf().uses().iter().map(|u| u.caller.clone()).collect::<std::collections::BTreeSet<_>>();
    beat_until(&bed, &both, "callers that are gone are one row", || rows(&bed) == 4).await;
    assert!(callers().len() == 2 && callers().contains("gone"), "{:?}", callers());
    assert_eq!(connects(&bed), 100);
    let one = vec![straight("240.1.0.1:80", &[(b, 1)])];
    beat_until(&bed, &one, "endpoints that are gone are one row", || {
        bed.ebpf().uses().iter().all(|u| u.endpoint != Some(a)) && rows(&bed) == 4
    })
    .await;
    assert_eq!(connects(&bed), 100);
    assert_eq!(bed.ebpf().uses().iter().map(|u| u.count.closed).sum::<u64>(), 100);
    beat_until(&bed, &[], "a service that is gone leaves nothing", || rows(&bed) == 0).await;
}

#[tokio::test]
async fn connections_of_a_released_group_leave_the_list() {
    need!("connections_of_a_released_group_leave_the_list", "python3");
    let a = named("127.0.0.1:0", "a").await;
    let services = vec![straight("240.1.0.1:80", &[(a, 1)])];
    let mut bed = bed(services.clone()).await;
    let mut program = bed.python(HOLD, &["240.1.0.1", "80"]);
    assert_eq!(program.line().await, "a");
    bed.table.enroll = Vec::new();
    bed.apply();
    // The kernel detaches what is unpinned by and by.
    let group = Cgroup::open(&bed.enrolled).unwrap();
    let start = Instant::now();
    while !group.attached(sys::Hook::SockOps).unwrap().programs.is_empty() {
        assert!(start.elapsed() < LIMIT, "never detached");
        sleep(Duration::from_millis(20)).await;
    }
    program.go_on().await;
    let _ = program.done().await;
    assert_eq!(bed.ebpf().connections().len(), 1, "nobody told");
    beat_until(&bed, &services, "its end is found out", || bed.ebpf().connections().is_empty()).await;
    assert_eq!(bed.ebpf().uses()[0].count.closed, 1);
}

#[tokio::test]
async fn connections_are_counted_with_their_caller() {
    need!("connections_are_counted_with_their_caller", "python3");
    let a = named("127.0.0.1:0", "hello").await;
    let services = vec![straight("240.1.0.1:80", &[(a, 1)])];
    let bed = bed(services.clone()).await;
    let mut program = bed.python(HOLD, &["240.1.0.1", "80"]);
    assert_eq!(program.line().await, "hello");
    let [connection] = &bed.ebpf().connections()[..] else { panic!("{:?}", bed.ebpf().connections()) };
    assert_eq!((connection.endpoint, connection.pid), (a, program.pid));
    assert_eq!(connection.destination, "240.1.0.1:80".parse().unwrap());
    let count = bed.ebpf().uses()[0].count;
    assert_eq!((count.connects, count.closed), (1, 0));
    program.go_on().await;
    let _ = program.done().await;
    let closed = || bed.ebpf().uses()[0].count.closed == 1;
    beat_until(&bed, &services, "the end is counted", closed).await;
    let used = &bed.ebpf().uses()[0];
    assert_eq!((used.count.bytes_up, used.count.bytes_down), (10, 5));
    assert!(used.count.duration_ns > 0);
    assert!(used.caller.ends_with("/enrolled"), "{}", used.caller);
    assert_eq!(used.endpoint, Some(a));
    assert!(bed.ebpf().connections().is_empty());
}

#[tokio::test]
async fn an_endpoint_that_leaves_loses_its_idle_connections() {
    need!("an_endpoint_that_leaves_loses_its_idle_connections", "python3");
    let (a, b) = (named("127.0.0.1:0", "a").await, named("127.0.0.1:0", "b").await);
    let bed = bed(vec![straight("240.1.0.1:80", &[(a, 1)])]).await;
    let mut program = bed.python(HOLD, &["240.1.0.1", "80"]);
    assert_eq!(program.line().await, "a");
    let now = vec![straight("240.1.0.1:80", &[(b, 1)])];
    bed.ebpf().balance(&now);
    let said = calls(&bed, "240.1.0.1", "80", 50).await;
    assert_eq!(said["240.1.0.1 80 b"], 50, "{said:?}");
    beat_until(&bed, &now, "the idle connection is closed", || bed.ebpf().connections().is_empty()).await;
    assert_eq!(program.line().await, "ECONNABORTED");
}

#[tokio::test]
async fn tables_change_without_a_gap() {
    need!("tables_change_without_a_gap", "python3");
    let (a, b) = (named("127.0.0.1:0", "a").await, named("127.0.0.1:0", "b").await);
    let bed = bed(vec![straight("240.1.0.1:80", &[(a, 1)])]).await;
    let mut program = bed.python(CALLS, &["240.1.0.1", "80", "300"]);
    let mut turn = 0u32;
    while program.child.try_wait().unwrap().is_none() {
        turn += 1;
        bed.ebpf().balance(&[straight("240.1.0.1:80", &[(a, 1 + turn % 2), (b, 1)])]);
        sleep(Duration::from_millis(5)).await;
    }
    let said = program.done().await;
    assert_eq!(said.lines().filter(|l| l.starts_with("240.1.0.1 80 ")).count(), 300, "{said}");
    assert_eq!((bed.counter("no_endpoint"), bed.counter("balanced")), (0, 300));
}

#[tokio::test]
async fn goes_on_without_an_agent_and_is_taken_over() {
    need!("goes_on_without_an_agent_and_is_taken_over", "python3");
    let (a, b) = (named("127.0.0.1:0", "a").await, named("127.0.0.1:0", "b").await);
    let mut bed = bed(vec![straight("240.1.0.1:80", &[(a, 1)])]).await;
    drop(bed.ebpf.take());
    let said = calls(&bed, "240.1.0.1", "80", 20).await;
    assert_eq!(said["240.1.0.1 80 a"], 20, "{said:?}");
    // A new agent that knows no endpoints yet leaves the table as it is.
    bed.load(None);
    bed.table.straight = vec![Straight { endpoints: None, ..straight("240.1.0.1:80", &[]) }];
    bed.apply();
    let unknown = bed.table.straight.clone();
    bed.ebpf().balance(&unknown);
    let said = calls(&bed, "240.1.0.1", "80", 20).await;
    assert_eq!(said["240.1.0.1 80 a"], 20, "{said:?}");
    bed.ebpf().balance(&[straight("240.1.0.1:80", &[(b, 1)])]);
    let said = calls(&bed, "240.1.0.1", "80", 20).await;
    assert_eq!(said["240.1.0.1 80 b"], 20, "{said:?}");
    assert_eq!(connects(&bed), 60, "what the agent before counted is still there");
}
