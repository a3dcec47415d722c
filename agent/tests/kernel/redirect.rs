//! Bytes between a program and the agent past TCP: whole, in order, held back, and really redirected.

use agent::{
    capture::{Capture as _, redirect::key_of},
    config::Redirect,
    stream::{Meter, Stream},
};
use ebpf_common::{End, Executable, Way};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    bed::{Bed, FLOOD, LIMIT},
    need,
};

/// Without blocking, both ways at once: sends argv[3] bytes in pieces of all sizes, reads as many, and checks
/// that what comes back is what was sent. The stream is the bytes of a linear congruence.
const TALK: &str = "
import selectors, socket, sys
n = int(sys.argv[3])
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
s = socket.socket(family)
s.connect((sys.argv[1], int(sys.argv[2])))
s.setblocking(False)
x, data = 1, bytearray()
for _ in range(n // 4):
    x = (x * 1103515245 + 12345) & 0xffffffff
    data += x.to_bytes(4, 'little')
n = len(data)
sel = selectors.DefaultSelector()
sel.register(s, selectors.EVENT_READ | selectors.EVENT_WRITE)
sent, got, size = 0, 0, 1
while got < n:
    for _, events in sel.select(30):
        if events & selectors.EVENT_WRITE and sent < n:
            size = size * 7 % 200003
            try: sent += s.send(data[sent:sent + size])
            except BlockingIOError: pass
            if sent == n:
                s.shutdown(socket.SHUT_WR)
                sel.modify(s, selectors.EVENT_READ)
        if events & selectors.EVENT_READ:
            # Told in vain where bytes by TCP come just now (docs/kernel.md).
            try: b = s.recv(65536)
            except BlockingIOError: continue
            assert b, 'ended after %d of %d' % (got, n)
            assert b == data[got:got + len(b)], 'other bytes at %d' % got
            got += len(b)
s.setblocking(True)
assert s.recv(1) == b''
print('whole')
";

/// Says back what it is told until the other half ends, then ends its own.
async fn echo(io: &mut Stream) -> std::io::Result<u64> {
    let (mut read, mut write) = io.split();
    let mut buffer = vec![0; 64 * 1024];
    let mut all = 0;
    loop {
        let n = read.read(&mut buffer).await?;
        if n == 0 {
            write.shutdown().await?;
            return Ok(all);
        }
        all += n as u64;
        write.write_all(&buffer[..n]).await?;
    }
}

async fn redirecting(services: &[&str]) -> Bed {
    Bed::with(services, |c| c.redirect = Redirect::On).await
}

/// The end that the test, as the agent, holds.
fn wrap(bed: &Bed, io: TcpStream) -> Stream {
    let meter: std::sync::Arc<dyn Meter> = bed.ebpf().redirect().unwrap();
    Stream::new(io, Some(&meter))
}

async fn talk(bed: &Bed, host: &str, bytes: usize) {
    let port = "80";
    let program = bed.python(TALK, &[host, port, &bytes.to_string()]);
    let (io, origin) = bed.accept().await;
    origin.unwrap();
    let mut io = wrap(bed, io);
    let echoed = timeout(LIMIT, echo(&mut io)).await.expect("the echo hangs");
    assert_eq!(program.done().await, "whole");
    assert_eq!(echoed.unwrap(), bytes as u64);
}

#[tokio::test]
async fn bytes_are_whole_both_ways_and_really_redirected() {
    need!("bytes_are_whole_both_ways_and_really_redirected", "python3");
    let bed = redirecting(&["240.0.0.1:80", "[fd00::1]:80"]).await;
    assert_eq!(bed.ebpf().redirect().unwrap().disabled(), None);
    for host in ["240.0.0.1", "::ffff:240.0.0.1", "fd00::1"] {
        let before = bed.counter("redirected");
        talk(&bed, host, 4 << 20).await;
        assert!(bed.counter("redirected") > before, "{host}: nothing was redirected: {:?}", bed.ebpf().counters());
    }
}

#[tokio::test]
async fn off_and_an_unknown_program_stay_on_tcp() {
    need!("off_and_an_unknown_program_stay_on_tcp", "python3");
    let mut bed = redirecting(&["240.0.0.1:80"]).await;
    let redirect = bed.ebpf().redirect().unwrap();
    assert!(redirect.disabled().is_none());
    bed.table.redirect = Redirect::Auto;
    bed.apply();
    assert!(redirect.disabled().unwrap().contains("self-test"));
    redirect.trust().unwrap();
    talk(&bed, "240.0.0.1", 1 << 16).await;
    assert_eq!((bed.counter("redirected"), bed.counter("paired")), (0, 0));
    assert_eq!(bed.counter("unknown_program"), 1);

    // Now somebody has looked.
    let [(key, seen)] = redirect.executables().unwrap()[..] else { panic!("one program ran") };
    assert_eq!((seen.verdict, seen.connects), (Executable::UNKNOWN, 1));
    let python = std::fs::metadata("/proc/self/exe").unwrap();
    assert_ne!(key.inode, std::os::unix::fs::MetadataExt::ino(&python), "python's, not the test's");
    redirect.set_executable(&key, &Executable { verdict: Executable::ON, ..seen }).unwrap();
    talk(&bed, "240.0.0.1", 1 << 16).await;
    assert!(bed.counter("redirected") > 0);

    let before = bed.counter("paired");
    bed.table.redirect = Redirect::Off;
    bed.apply();
    talk(&bed, "240.0.0.1", 1 << 16).await;
    assert_eq!(bed.counter("paired"), before);
    assert!(redirect.disabled().unwrap().contains("capture.redirect"));
}

/// Connects, says that it has, and reads nothing until it is told to; then all there is.
const SILENT: &str = "
import hashlib, socket, sys
s = socket.create_connection((sys.argv[1], 80))
print('connected', flush=True)
sys.stdin.readline()
n = 0
while True:
    b = s.recv(65536)
    if not b: break
    assert all(x == 7 for x in (b[0], b[-1]))
    n += len(b)
print(n)
";

#[tokio::test]
async fn a_reader_that_never_reads_holds_little_of_the_agents() {
    need!("a_reader_that_never_reads_holds_little_of_the_agents", "python3");
    let bed = redirecting(&["240.0.0.1:80"]).await;
    let mut program = bed.python(SILENT, &["240.0.0.1"]);
    let (io, _) = bed.accept().await;
    assert_eq!(program.line().await, "connected");
    let key = key_of(&io).unwrap();
    let mut io = wrap(&bed, io);
    let all = 64 << 20;
    let written = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let so_far = written.clone();
    let writer = tokio::spawn(async move {
        let piece = vec![7; 64 * 1024];
        while so_far.load(std::sync::atomic::Ordering::Relaxed) < all {
            io.write_all(&piece).await.unwrap();
            so_far.fetch_add(piece.len(), std::sync::atomic::Ordering::Relaxed);
        }
    });
    // It has stopped when it says the same for as long as its longest wait, many times over.
    let mut last = 0;
    let mut same = 0;
    while same < 20 {
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        let now = written.load(std::sync::atomic::Ordering::Relaxed);
        same = if now == last && now > 0 { same + 1 } else { 0 };
        last = now;
    }
    assert!(last < 4_500_000, "{last} bytes are held");
    let ways = bed.ebpf().redirect().unwrap().ends(&key).unwrap();
    assert_eq!((ways.sent, ways.received), (Way::Redirect, Way::Idle), "the agent never falls back");
    program.go_on().await;
    timeout(LIMIT, writer).await.expect("the writer hangs").unwrap();
    assert_eq!(program.done().await, all.to_string());
}

#[tokio::test]
async fn a_program_falls_back_to_tcp_before_a_full_reader_and_comes_back() {
    need!("a_program_falls_back_to_tcp_before_a_full_reader_and_comes_back", "python3");
    let bed = redirecting(&["240.0.0.1:80"]).await;
    let mut program = bed.python(FLOOD, &["240.0.0.1", "80", "67108864"]);
    let (mut io, _) = bed.accept().await;
    let key = key_of(&io).unwrap();
    let held: usize = program.line().await.parse().unwrap();
    assert!(held < 5_000_000, "{held} bytes are held");
    assert!(bed.counter("redirect_full") > 0 && bed.counter("redirected") > 0, "{:?}", bed.ebpf().counters());
    program.go_on().await;
    let read = async {
        let (mut n, mut buffer) = (0, vec![0; 65536]);
        loop {
            let got = io.read(&mut buffer).await.unwrap();
            if got == 0 {
                return n;
            }
            assert!(buffer[..got].iter().all(|b| *b == 7));
            n += got;
        }
    };
    let n = timeout(LIMIT, read).await.expect("the reader hangs");
    assert_eq!(program.done().await, n.to_string());
    assert!(bed.ebpf().redirect().unwrap().end(&key).unwrap().is_some_and(|end| end.flags & End::AGENT != 0));
}

/// Sends argv[2] bytes, says so and waits for one.
const QUESTION: &str = "
import socket, sys
s = socket.create_connection((sys.argv[1], 80))
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for _ in range(int(sys.argv[2]) // 10000): s.sendall(bytes([7]) * 10000)
print('asked', flush=True)
print(s.recv(1))
";

#[tokio::test]
async fn bytes_of_both_queues_are_read_though_nothing_comes_after_them() {
    need!("bytes_of_both_queues_are_read_though_nothing_comes_after_them", "python3");
    let bed = redirecting(&["240.0.0.1:80"]).await;
    let all = 300_000;
    let mut program = bed.python(QUESTION, &["240.0.0.1", &all.to_string()]);
    let (io, _) = bed.accept().await;
    // Part of it came by TCP, because nobody has read so far.
    assert_eq!(program.line().await, "asked");
    let mut io = wrap(&bed, io);
    let (mut n, mut buffer) = (0, vec![0; 60_000]);
    while n < all {
        n += timeout(LIMIT, io.read(&mut buffer)).await.expect("what came by TCP is not read").unwrap();
    }
    io.write_all(b"!").await.unwrap();
    assert_eq!(program.done().await, "b'!'");
    assert!(bed.counter("redirected") > 1 && bed.counter("redirect_full") > 0, "{:?}", bed.ebpf().counters());
}

#[tokio::test]
async fn a_full_table_costs_redirect_only() {
    need!("a_full_table_costs_redirect_only", "python3");
    // Room for four sockets: two connections.
    let bed = Bed::with(&["240.0.0.1:80"], |c| {
        c.redirect = Redirect::On;
        c.max_connections = 2;
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut program = bed.python(SILENT, &["240.0.0.1"]);
        let (io, _) = bed.accept().await;
        program.line().await;
        held.push((program, io));
    }
    assert_eq!(bed.counter("paired"), 4);
    talk(&bed, "240.0.0.1", 1 << 18).await;
    assert!(bed.counter("pair_full") > 0);
    assert_eq!(bed.counter("redirected"), 0);
    for (mut program, io) in held {
        drop(io);
        program.go_on().await;
        assert_eq!(program.done().await, "0");
    }
}

/// Sends what it is told the length of and goes.
const GONE: &str = "
import socket, struct, sys
s = socket.create_connection((sys.argv[1], 80))
s.send(b'x' * 1000)
if sys.argv[2] == 'reset': s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
s.close()
print('gone')
";

#[tokio::test]
async fn ends_are_ends_and_resets_are_resets() {
    need!("ends_are_ends_and_resets_are_resets", "python3");
    let bed = redirecting(&["240.0.0.1:80"]).await;
    for how in ["close", "reset"] {
        let program = bed.python(GONE, &["240.0.0.1", how]);
        let (mut io, _) = bed.accept().await;
        assert_eq!(program.done().await, "gone");
        let mut all = Vec::new();
        let end = timeout(LIMIT, io.read_to_end(&mut all)).await.expect("no end");
        match how {
            "close" => assert_eq!((end.unwrap(), all.len()), (1000, 1000)),
            _ => assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
    assert!(bed.counter("redirected") >= 2);
}

/// Ends its half and sends all the same.
const SHUT: &str = "
import errno, socket, sys
s = socket.create_connection((sys.argv[1], 80))
s.sendall(b'x' * 10)
s.shutdown(socket.SHUT_WR)
try: print(s.send(b'y'))
except OSError as e: print(errno.errorcode[e.errno])
";

#[tokio::test]
async fn nothing_is_sent_after_the_end() {
    need!("nothing_is_sent_after_the_end", "python3");
    let bed = redirecting(&["240.0.0.1:80"]).await;
    let program = bed.python(SHUT, &["240.0.0.1"]);
    let (mut io, _) = bed.accept().await;
    assert_eq!(program.done().await, "EPIPE");
    let mut all = Vec::new();
    timeout(LIMIT, io.read_to_end(&mut all)).await.expect("no end").unwrap();
    assert_eq!((all.len(), bed.counter("redirected")), (10, 1));
}

/// Says how many were served and how many of them wrongly; a reset is no corruption.
/// Twenty at once, again and again until argv[2] have been: each sends two lines and reads both back.
const BURST: &str = "
import selectors, socket, sys
left, bad, reset, done = int(sys.argv[2]), 0, 0, 0
sel = selectors.DefaultSelector()
def start():
    global left
    left -= 1
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex((sys.argv[1], 80))
    sel.register(s, selectors.EVENT_WRITE, [0, b''])
for _ in range(20): start()
while done < int(sys.argv[2]):
    for key, events in sel.select(30):
        s, state = key.fileobj, key.data
        try:
            if events & selectors.EVENT_WRITE:
                s.send(b'first line %d\\n' % s.fileno())
                s.send(b'second line %d\\n' % s.fileno())
                sel.modify(s, selectors.EVENT_READ, state)
                continue
            state[1] += s.recv(4096)
        except OSError as e:
            state[1] = b'%r' % e
        want = b'first line %d\\nsecond line %d\\n' % (s.fileno(), s.fileno())
        if len(state[1]) >= len(want):
            if state[1].startswith(b'ConnectionReset'): reset += 1
            elif state[1] != want: bad += 1
            done += 1
            sel.unregister(s)
            s.close()
            if left: start()
print(reset, 'reset', file=sys.stderr)
print(done, bad)
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overflowing_backlog_corrupts_nothing() {
    need!("an_overflowing_backlog_corrupts_nothing", "python3");
    let mut bed = Bed::unloaded(&["240.0.0.1:80"], |c| c.redirect = Redirect::On).await;
    // The shortest backlog there is, on the listener that the connections come to.
    let short = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    short.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    short.listen(1).unwrap();
    short.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(short.into()).unwrap();
    bed.table.listeners[0] = listener.local_addr().unwrap();
    bed.load(None);
    bed.apply();
    let streams = "10000";
    let program = bed.python(BURST, &["240.0.0.1", streams]);
    let serve = async {
        loop {
            let (mut io, _) = listener.accept().await.unwrap();
            bed.ebpf().origin(&io).unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = io.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    };
    let said = tokio::select! {
        said = program.done() => said,
        () = serve => unreachable!("it goes on for ever"),
    };
    assert_eq!(said, format!("{streams} 0"));
    assert!(bed.counter("redirected") > 0);
}
