//! Which connects come to the agent, and what the program sees.

use std::net::SocketAddr;

use agent::capture::Capture as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    bed::{Bed, direct, run_in, service},
    need,
};

/// Connects to argv[1]:argv[2]; prints the peer and what it says.
const CALL: &str = "
import socket, sys
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_STREAM)
s.settimeout(10)
if len(sys.argv) > 3: s.bind((sys.argv[3], 0))
s.connect((sys.argv[1], int(sys.argv[2])))
print('%s %d' % s.getpeername()[:2], s.recv(64).decode())
";

/// Serves one captured connection and checks whom it came from.
async fn serve(bed: &Bed, destination: &str, pid: u32) {
    let (mut conn, origin) = bed.accept().await;
    let origin = origin.unwrap();
    assert_eq!(origin.destination, destination.parse::<SocketAddr>().unwrap());
    assert_eq!(origin.pid, pid);
    assert_eq!(origin.uid, 0);
    conn.write_all(b"agent").await.unwrap();
}

#[tokio::test]
async fn curl_reaches_the_listener() {
    need!("curl_reaches_the_listener", "curl");
    let bed = Bed::new(&["240.0.0.1:80"]).await;
    let curl = run_in(&bed.enrolled, &["curl", "-sS", "--noproxy", "*", "-m", "10", "http://240.0.0.1/x"]);
    let (mut conn, origin) = bed.accept().await;
    let origin = origin.unwrap();
    assert_eq!(origin.destination, "240.0.0.1:80".parse().unwrap());
    assert_eq!((origin.pid, origin.uid, origin.process.as_str()), (curl.pid, 0, "curl"));
    let mut request = [0; 1024];
    let n = conn.read(&mut request).await.unwrap();
    assert!(request[..n].starts_with(b"GET /x HTTP/1.1\r\nHost: 240.0.0.1\r\n"));
    conn.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi").await.unwrap();
    assert_eq!(curl.done().await, "hi");
    assert_eq!((bed.counter("captured"), bed.counter("recorded")), (1, 1));
    // Taken once: nobody finds an origin that was consumed.
    assert!(bed.ebpf().origin(&conn).is_err());
}

#[tokio::test]
async fn a_program_sees_the_address_it_asked_for() {
    need!("a_program_sees_the_address_it_asked_for", "python3");
    let bed = Bed::new(&["240.0.0.1:80"]).await;
    let program = bed.python(CALL, &["240.0.0.1", "80"]);
    serve(&bed, "240.0.0.1:80", program.pid).await;
    assert_eq!(program.done().await, "240.0.0.1 80 agent");
    assert!(bed.counter("peername") >= 1);
}

#[tokio::test]
async fn every_port_of_an_address() {
    need!("every_port_of_an_address", "python3");
    let bed = Bed::new(&["240.0.0.2"]).await;
    for port in ["1", "8080", "65535"] {
        let program = bed.python(CALL, &["240.0.0.2", port]);
        serve(&bed, &format!("240.0.0.2:{port}"), program.pid).await;
        assert_eq!(program.done().await, format!("240.0.0.2 {port} agent"));
    }
}

#[tokio::test]
async fn ipv6() {
    need!("ipv6", "python3");
    let bed = Bed::new(&["[fd00:77::5]:80"]).await;
    let program = bed.python(CALL, &["fd00:77::5", "80"]);
    serve(&bed, "[fd00:77::5]:80", program.pid).await;
    assert_eq!(program.done().await, "fd00:77::5 80 agent");
}

#[tokio::test]
async fn ipv4_in_an_ipv6_socket() {
    need!("ipv4_in_an_ipv6_socket", "python3");
    let bed = Bed::new(&["240.0.0.1:80"]).await;
    let program = bed.python(CALL, &["::ffff:240.0.0.1", "80"]);
    serve(&bed, "240.0.0.1:80", program.pid).await;
    assert_eq!(program.done().await, "::ffff:240.0.0.1 80 agent");
}

#[tokio::test]
async fn a_program_that_binds_first() {
    need!("a_program_that_binds_first", "python3");
    let bed = Bed::new(&["240.0.0.1:80", "[fd00:77::5]:80"]).await;
    for (from, to) in [("127.0.0.1", "240.0.0.1"), ("0.0.0.0", "240.0.0.1"), ("127.9.9.9", "240.0.0.1")] {
        let program = bed.python(CALL, &[to, "80", from]);
        serve(&bed, &format!("{to}:80"), program.pid).await;
        assert_eq!(program.done().await, format!("{to} 80 agent"));
    }
    let program = bed.python(CALL, &["fd00:77::5", "80", "::"]);
    serve(&bed, "[fd00:77::5]:80", program.pid).await;
    assert_eq!(program.done().await, "fd00:77::5 80 agent");
}

#[tokio::test]
async fn a_program_bound_to_this_hosts_own_address() {
    need!("a_program_bound_to_this_hosts_own_address", "python3");
    // The address with which this host would call others; nothing is sent.
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = match probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr()) {
        Ok(own) => own.ip().to_string(),
        Err(_) => "127.0.0.2".to_owned(),
    };
    let bed = Bed::new(&["240.0.0.1:80"]).await;
    let program = bed.python(CALL, &["240.0.0.1", "80", &own]);
    serve(&bed, "240.0.0.1:80", program.pid).await;
    assert_eq!(program.done().await, "240.0.0.1 80 agent");
}

#[tokio::test]
async fn non_blocking() {
    need!("non_blocking", "python3");
    let bed = Bed::new(&["240.0.0.1:80"]).await;
    let script = "
import asyncio
async def main():
    reader, writer = await asyncio.open_connection('240.0.0.1', 80)
    print('%s %d' % writer.get_extra_info('peername'), (await reader.read(64)).decode())
asyncio.run(main())
";
    let program = bed.python(script, &[]);
    serve(&bed, "240.0.0.1:80", program.pid).await;
    assert_eq!(program.done().await, "240.0.0.1 80 agent");
}

#[tokio::test]
async fn non_blocking_and_asked_again() {
    need!("non_blocking_and_asked_again", "python3");
    let bed = Bed::new(&["240.0.0.1:80"]).await;
    // A second connect() on a socket that is connecting asks how it goes; no hook runs for it.
    let script = "
import errno, select, socket
s = socket.socket()
s.setblocking(False)
while True:
    e = s.connect_ex(('240.0.0.1', 80))
    if e in (0, errno.EISCONN): break
    assert e in (errno.EINPROGRESS, errno.EALREADY), e
    select.select([], [s], [], 10)
s.setblocking(True)
print('%s %d' % s.getpeername(), s.recv(64).decode())
";
    let program = bed.python(script, &[]);
    serve(&bed, "240.0.0.1:80", program.pid).await;
    assert_eq!(program.done().await, "240.0.0.1 80 agent");
    assert_eq!((bed.counter("captured"), bed.counter("recorded")), (1, 1));
}

/// A ring of its own, one connect; prints the result, the peer and what it says.
const IO_URING: &str = "
import ctypes, mmap, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
params = ctypes.create_string_buffer(120)
ring = libc.syscall(425, 4, params)
if ring < 0:
    print('unavailable', os.strerror(ctypes.get_errno())); sys.exit(0)
words = struct.unpack_from('10I', params, 0)
sq = struct.unpack_from('8I', params, 40)
cq = struct.unpack_from('8I', params, 80)
rings = mmap.mmap(ring, max(sq[6] + words[0] * 4, cq[5] + words[1] * 16), offset=0)
entries = mmap.mmap(ring, words[0] * 64, offset=0x10000000)
s = socket.socket()
address = ctypes.create_string_buffer(struct.pack('=H', socket.AF_INET) + struct.pack('>H', 80) + socket.inet_aton('240.0.0.1') + bytes(8), 16)
# opcode, flags, ioprio, fd, off (length of the address), addr
entries[0:64] = struct.pack('=BBHiQQ', 16, int(sys.argv[1]), 0, s.fileno(), 16, ctypes.addressof(address)).ljust(64, b'\\0')
struct.pack_into('I', rings, sq[6], 0)
struct.pack_into('I', rings, sq[1], 1)
if libc.syscall(426, ring, 1, 1, 1, None, 0) < 0: raise OSError(ctypes.get_errno(), 'enter')
print(struct.unpack_from('=i', rings, cq[5] + 8)[0], '%s %d' % s.getpeername(), s.recv(64).decode())
";

#[tokio::test]
async fn io_uring() {
    need!("io_uring", "python3");
    let bed = Bed::new(&["240.0.0.1:80"]).await;
    // Inline in the caller, and (IOSQE_ASYNC) on a worker thread of the kernel's.
    for flags in ["0", "16"] {
        let program = bed.python(IO_URING, &[flags]);
        serve(&bed, "240.0.0.1:80", program.pid).await;
        assert_eq!(program.done().await, "0 240.0.0.1 80 agent", "flags {flags}");
    }
}

#[tokio::test]
async fn who_is_not_enrolled_is_not_touched() {
    need!("who_is_not_enrolled_is_not_touched", "python3");
    let server = direct("127.0.0.1:0").await;
    let bed = Bed::new(&[&server.to_string()]).await;
    let port = server.port().to_string();
    let program = run_in(&bed.other, &["python3", "-c", CALL, "127.0.0.1", &port]);
    assert_eq!(program.done().await, format!("127.0.0.1 {port} direct"));
    assert!(bed.ebpf().counters().values().all(|n| *n == 0), "no hook ran");
}

#[tokio::test]
async fn what_is_no_service_is_not_touched() {
    need!("what_is_no_service_is_not_touched", "python3");
    let server = direct("127.0.0.1:0").await;
    let bed = Bed::new(&["240.0.0.1:80"]).await;
    let port = server.port().to_string();
    let program = bed.python(CALL, &["127.0.0.1", &port]);
    assert_eq!(program.done().await, format!("127.0.0.1 {port} direct"));
    assert_eq!((bed.counter("not_service"), bed.counter("captured")), (1, 0));
}

/// Connects to argv[1]:argv[2], dissolves the association, connects to argv[3]:argv[4], prints the second peer.
const TWICE: &str = "
import ctypes, socket, sys
s = socket.socket()
s.settimeout(10)
s.connect((sys.argv[1], int(sys.argv[2])))
first = '%s %d' % s.getpeername()
assert s.recv(64) == b'agent'
assert ctypes.CDLL(None).connect(s.fileno(), bytes(16), 16) == 0
s.connect((sys.argv[3], int(sys.argv[4])))
print(first, '%s %d' % s.getpeername(), s.recv(64).decode())
";

#[tokio::test]
async fn a_socket_used_again_tells_the_truth() {
    need!("a_socket_used_again_tells_the_truth", "python3");
    let server = direct("127.0.0.1:0").await;
    let bed = Bed::new(&["240.0.0.1:80", "240.0.0.2:81"]).await;
    let port = server.port().to_string();
    let program = bed.python(TWICE, &["240.0.0.1", "80", "127.0.0.1", &port]);
    serve(&bed, "240.0.0.1:80", program.pid).await;
    assert_eq!(program.done().await, format!("240.0.0.1 80 127.0.0.1 {port} direct"));

    let program = bed.python(TWICE, &["240.0.0.1", "80", "240.0.0.2", "81"]);
    serve(&bed, "240.0.0.1:80", program.pid).await;
    serve(&bed, "240.0.0.2:81", program.pid).await;
    assert_eq!(program.done().await, "240.0.0.1 80 240.0.0.2 81 agent");
}

#[tokio::test]
async fn who_dials_the_listener_was_not_captured() {
    need!("who_dials_the_listener_was_not_captured", "python3");
    let bed = Bed::new(&["240.0.0.1:80"]).await;
    let port = bed.listener4.local_addr().unwrap().port().to_string();
    // On a socket that was captured before, too: what it asked for then says nothing about now.
    let program = bed.python(TWICE, &["240.0.0.1", "80", "127.0.0.1", &port]);
    serve(&bed, "240.0.0.1:80", program.pid).await;
    let (mut conn, origin) = bed.accept().await;
    assert_eq!(origin.unwrap_err().kind(), std::io::ErrorKind::NotFound);
    conn.write_all(b"agent").await.unwrap();
    assert_eq!(program.done().await, format!("240.0.0.1 80 127.0.0.1 {port} agent"));
}

#[tokio::test]
async fn the_agents_own_sockets_are_left_alone() {
    need!("the_agents_own_sockets_are_left_alone", "python3");
    let server = direct("127.0.0.1:0").await;
    let bed = Bed::new(&[&server.to_string()]).await;
    let script = "
import socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, 36, int(sys.argv[2]))
s.connect(('127.0.0.1', int(sys.argv[1])))
print(s.recv(64).decode())
";
    let mark = bed.ebpf().mark().unwrap().to_string();
    let program = bed.python(script, &[&server.port().to_string(), &mark]);
    assert_eq!(program.done().await, "direct");
    assert_eq!((bed.counter("own"), bed.counter("captured")), (1, 0));
}

#[tokio::test]
async fn what_is_not_tcp_is_left_alone() {
    need!("what_is_not_tcp_is_left_alone", "python3");
    let server = direct("127.0.0.1:0").await;
    let bed = Bed::new(&["127.0.0.1", "::1"]).await;
    let script = "
import socket, sys
port = int(sys.argv[1])
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect(('127.0.0.1', port)); print(u.getpeername()[1])
u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); u.connect(('::1', port)); print(u.getpeername()[1])
";
    let port = server.port().to_string();
    assert_eq!(bed.python(script, &[&port]).done().await, format!("{port}\n{port}"));
    assert_eq!((bed.counter("not_tcp"), bed.counter("captured")), (2, 0));
}

#[tokio::test]
async fn mptcp_is_captured_as_the_tcp_it_starts_as() {
    need!("mptcp_is_captured_as_the_tcp_it_starts_as", "python3");
    if std::fs::read_to_string("/proc/sys/net/mptcp/enabled").is_ok_and(|v| v.trim() == "1") {
        let bed = Bed::new(&["240.0.0.1:80"]).await;
        let script = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
s.connect(('240.0.0.1', 80))
print(s.recv(64).decode())
";
        let program = bed.python(script, &[]);
        serve(&bed, "240.0.0.1:80", program.pid).await;
        assert_eq!(program.done().await, "agent");
    } else {
        println!("SKIPPED: mptcp_is_captured_as_the_tcp_it_starts_as: this kernel has no MPTCP");
    }
}

#[tokio::test]
async fn nested_control_groups_capture_once() {
    need!("nested_control_groups_capture_once", "python3");
    let mut bed = Bed::new(&["240.0.0.1:80"]).await;
    let inner = bed.cgroup(&bed.enrolled, "inner");
    bed.table.enroll.push(agent::config::Enroll::cgroup(inner.clone()));
    bed.apply();
    let program = run_in(&inner, &["python3", "-c", CALL, "240.0.0.1", "80"]);
    serve(&bed, "240.0.0.1:80", program.pid).await;
    assert_eq!(program.done().await, "240.0.0.1 80 agent");
    assert_eq!((bed.counter("captured"), bed.counter("already"), bed.counter("recorded")), (1, 1, 1));
    assert_eq!(bed.counter("not_service"), 0);
}

#[tokio::test]
async fn a_reload_changes_services_and_groups() {
    need!("a_reload_changes_services_and_groups", "python3");
    let server = direct("127.0.0.1:0").await;
    let port = server.port().to_string();
    let mut bed = Bed::new(&["240.0.0.1:80"]).await;
    let to_server = |group| run_in(group, &["python3", "-c", CALL, "127.0.0.1", &port]);
    assert_eq!(to_server(&bed.enrolled).done().await, format!("127.0.0.1 {port} direct"));

    bed.table.destinations = vec![(service(&server.to_string()), agent::config::OnAgentLoss::Direct)];
    bed.apply();
    let program = to_server(&bed.enrolled);
    serve(&bed, &server.to_string(), program.pid).await;
    assert_eq!(program.done().await, format!("127.0.0.1 {port} agent"));

    bed.table.enroll = vec![agent::config::Enroll::cgroup(bed.other.clone())];
    bed.apply();
    assert_eq!(to_server(&bed.enrolled).done().await, format!("127.0.0.1 {port} direct"));
    let program = to_server(&bed.other);
    serve(&bed, &server.to_string(), program.pid).await;
    assert_eq!(program.done().await, format!("127.0.0.1 {port} agent"));
}
