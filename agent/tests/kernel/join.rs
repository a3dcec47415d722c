//! Two programs of one host whose sockets are joined: whole, in order, held back, with or without an agent.

use std::net::SocketAddr;

use agent::{
    capture::{
        Capture as _,
        balance::{Straight, Weighted},
    },
    config::{Enroll, OnAgentLoss, Redirect},
    sys,
};
use ebpf_common::{End, SocketKey};
use tokio::time::{Instant, sleep};

use crate::{
    bed::{Bed, FLOOD, LIMIT, Running, run_in, service},
    need,
};

const ADDRESS: (&str, &str) = ("240.2.0.1", "80");

/// Says its port; then what argv[1] says, without blocking, and how each connection ended. `echo`: back what
/// comes, then the end. `silent`: reads nothing before a line comes, then all.
const SERVER: &str = "
import selectors, socket, sys
l = socket.create_server(('127.0.0.1', 0), backlog=128)
l.setblocking(False)
print(l.getsockname()[1], flush=True)
sel = selectors.DefaultSelector()
sel.register(l, selectors.EVENT_READ)
silent = sys.argv[1] == 'silent'
if silent: sel.register(sys.stdin, selectors.EVENT_READ)
class Conn:
    def __init__(self): self.back, self.got, self.ended = bytearray(), 0, False
def end(s, how):
    sel.unregister(s); s.close(); print(how, flush=True)
def want(s, c):
    full = len(c.back) > 1 << 18
    events = (0 if c.ended or full else selectors.EVENT_READ) | (selectors.EVENT_WRITE if c.back or c.ended else 0)
    sel.modify(s, events, c)
held = []
while True:
    for key, events in sel.select():
        s, c = key.fileobj, key.data
        if s is l:
            a, _ = l.accept()
            a.setblocking(False)
            if silent: held.append(a)
            else: sel.register(a, selectors.EVENT_READ, Conn())
            continue
        if s is sys.stdin:
            sel.unregister(sys.stdin)
            for a in held: sel.register(a, selectors.EVENT_READ, Conn())
            continue
        try:
            if events & selectors.EVENT_READ:
                b = s.recv(65536)
                c.got += len(b)
                if not b: c.ended = True
                elif silent: assert b == b[:1] * len(b)
                else: c.back += b
            if events & selectors.EVENT_WRITE and c.back:
                del c.back[:s.send(c.back)]
        except BlockingIOError: pass
        except OSError as e:
            end(s, 'reset %d' % c.got)
            continue
        if c.ended and not c.back: end(s, 'end %d' % c.got)
        else: want(s, c)
";

/// Without blocking, both ways at once: sends argv[3] bytes that nobody can guess, reads as many, compares, reads
/// the end. With argv[4] no faster than that many bytes per millisecond, and says `flows` when half is back.
const TALK: &str = "
import random, selectors, socket, sys, time
n, pace = int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 0
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
s.setblocking(False)
data = random.Random(n).randbytes(n)
sel = selectors.DefaultSelector()
sel.register(s, selectors.EVENT_READ | selectors.EVENT_WRITE)
sent, got, size, half, start = 0, 0, 1, False, time.time()
while got < n:
    for _, events in sel.select(60):
        if events & selectors.EVENT_WRITE and sent < n:
            size = size * 7 % 200003
            if pace: size = min(size, 1 + int(pace * (time.time() - start) * 1000) - sent)
            if size > 0:
                try: sent += s.send(data[sent:sent + size])
                except BlockingIOError: pass
            else: time.sleep(0.001)
            size = max(size, 1)
            if sent == n:
                s.shutdown(socket.SHUT_WR)
                sel.modify(s, selectors.EVENT_READ)
        if events & selectors.EVENT_READ:
            try: b = s.recv(65536)
            except BlockingIOError: continue
            assert b, 'ended after %d of %d' % (got, n)
            assert b == data[got:got + len(b)], 'other bytes at %d' % got
            got += len(b)
            if pace and not half and got * 2 > n: half = not print('flows', flush=True)
s.settimeout(60)
assert s.recv(1) == b''
print('whole')
";

/// Sends 1000 bytes; `half`: ends its half and reads all that comes back; `reset`: closes by a reset; `hold`: reads
/// it back, says so, and closes when a line comes.
const ENDS: &str = "
import socket, struct, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
s.settimeout(20)
s.sendall(b'x' * 1000)
def read(n):
    got = 0
    while got < n:
        b = s.recv(4096)
        if not b: break
        got += len(b)
    return got
if sys.argv[3] == 'half':
    s.shutdown(socket.SHUT_WR)
    print(read(1 << 20))
else:
    print(read(1000), flush=True)
    if sys.argv[3] == 'hold': sys.stdin.readline()
    if sys.argv[3] == 'reset': s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    s.close()
";

/// Sends 1000 bytes, reads them back, says so, and waits, not inside a read, for what ends the connection.
const WAITS: &str = "
import errno, select, socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
s.sendall(b'x' * 1000)
got = 0
while got < 1000: got += len(s.recv(4096))
print(got, flush=True)
select.select([s], [], [])
try: print('end' if not s.recv(1) else 'more', flush=True)
except OSError as e: print(errno.errorcode[e.errno], flush=True)
";

/// A server in a control group of its own and callers in `bed.enrolled`, which may be joined to it.
struct Joined {
    bed: Bed,
    server: Running,
}

impl Joined {
    async fn new(server: &str, server_is_enrolled: bool) -> Self {
        let mut bed = Bed::unloaded(&[], |c| c.redirect = Redirect::On).await;
        let group = bed.other.clone();
        let mut server = run_in(&group, &["python3", "-c", SERVER, server]);
        let at: SocketAddr = format!("127.0.0.1:{}", server.line().await).parse().unwrap();
        bed.table.straight = vec![Straight {
            name: model::ServiceKey { service: "db".to_owned(), ..Default::default() },
            number: 7,
            addresses: vec![service("240.2.0.1:80")],
            loss: OnAgentLoss::Direct,
            allow: Vec::new(),
            deny: Vec::new(),
            endpoints: Some(vec![Weighted { addr: at, weight: 1, available: true }]),
        }];
        bed.table.enroll = vec![Enroll { join: true, ..Enroll::cgroup(bed.enrolled.clone()) }];
        if server_is_enrolled {
            bed.table.enroll.push(Enroll::cgroup(group));
        }
        bed.load(None);
        bed.apply();
        Self { bed, server }
    }

    fn talk(&self, bytes: usize) -> Running {
        self.bed.python(TALK, &[ADDRESS.0, ADDRESS.1, &bytes.to_string()])
    }

    /// A first connection, which is not joined, so that further ones are.
    async fn introduce(&mut self) {
        self.ends("half").await;
        assert_eq!(self.server.line().await, "end 1000");
        assert_eq!(self.bed.counter("redirected"), 0, "nobody knew yet that both are enrolled");
    }

    async fn ends(&self, how: &str) {
        let said = self.bed.python(ENDS, &[ADDRESS.0, ADDRESS.1, how]).done().await;
        assert_eq!(said, "1000");
    }

    fn ends_in_the_kernel(&self) -> usize {
        let map = sys::obj_get(&self.bed.pins().join("maps/MESH_ENDS")).unwrap();
        sys::BpfMap::<SocketKey, End>::new(map).unwrap().keys(10_000).unwrap().len()
    }

    async fn until(&self, what: &str, mut done: impl FnMut(&Bed) -> bool) {
        let start = Instant::now();
        while !done(&self.bed) {
            assert!(start.elapsed() < LIMIT, "never: {what}");
            self.bed.ebpf().balance(&self.bed.table.straight);
            sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn joined_bytes_are_whole_and_counted() {
    need!("joined_bytes_are_whole_and_counted", "python3");
    const BYTES: usize = 64 << 20;
    let mut joined = Joined::new("echo", true).await;
    joined.introduce().await;
    let mut held = joined.bed.python(ENDS, &[ADDRESS.0, ADDRESS.1, "hold"]);
    assert_eq!(held.line().await, "1000");
    // What went by TCP before the other end was known counts when it is acknowledged.
    let shown = |bed: &Bed| matches!(&bed.ebpf().connections()[..], [c] if c.joined && c.bytes == (1000, 1000));
    joined.until("the connection is shown as joined", shown).await;
    held.go_on().await;
    let _ = held.done().await;
    let before = joined.bed.counter("redirected");
    let talk = joined.talk(BYTES);
    assert_eq!(talk.done().await, "whole");
    // How many depends on how often a reader is behind.
    assert!(joined.bed.counter("redirected") > before, "{:?}", joined.bed.ebpf().counters());
    joined.until("all is counted", |bed| bed.ebpf().uses()[0].count.closed == 3).await;
    let count = joined.bed.ebpf().uses()[0].count;
    let all = BYTES as u64 + 2000;
    assert_eq!((count.bytes_up, count.bytes_down), (all, all));
    assert_eq!(joined.ends_in_the_kernel(), 0, "nothing stays");
}

#[tokio::test]
async fn joined_ends_are_ends_and_resets_are_resets() {
    need!("joined_ends_are_ends_and_resets_are_resets", "python3");
    let mut joined = Joined::new("echo", true).await;
    joined.introduce().await;
    for (how, told) in [("half", "end 1000"), ("close", "end 1000"), ("reset", "reset 1000"), ("half", "end 1000")] {
        let before = joined.bed.counter("redirected");
        joined.ends(how).await;
        assert_eq!(joined.server.line().await, told, "{how}");
        assert!(joined.bed.counter("redirected") >= before + 2, "{how}");
    }
}

#[tokio::test]
async fn a_joined_reader_that_never_reads_holds_little() {
    need!("a_joined_reader_that_never_reads_holds_little", "python3");
    let mut joined = Joined::new("silent", true).await;
    let total = (64 << 20).to_string();
    // The first one asks, and goes by TCP.
    let asks = joined.bed.python(ENDS, &[ADDRESS.0, ADDRESS.1, "half"]);
    joined.until("it was asked", |bed| bed.ebpf().uses().iter().any(|u| u.count.connects == 1)).await;
    let mut flood = joined.bed.python(FLOOD, &[ADDRESS.0, ADDRESS.1, &total]);
    let held: usize = flood.line().await.parse().unwrap();
    assert!(held < 4_500_000, "{held} bytes are held");
    assert!(joined.bed.counter("redirected") > 0 && joined.bed.counter("redirect_full") > 0);
    flood.go_on().await;
    joined.server.go_on().await;
    let sent: usize = flood.done().await.parse().unwrap();
    drop(asks);
    let mut told = [joined.server.line().await, joined.server.line().await];
    told.sort();
    assert!(told.contains(&format!("end {sent}")), "{told:?}");
}

#[tokio::test]
async fn joined_connections_outlive_twenty_agents() {
    need!("joined_connections_outlive_twenty_agents", "python3");
    let mut joined = Joined::new("echo", true).await;
    joined.introduce().await;
    let bytes = (24 << 20).to_string();
    let mut talks = Vec::new();
    for _ in 0..3 {
        talks.push(joined.bed.python(TALK, &[ADDRESS.0, ADDRESS.1, &bytes, "4000"]));
    }
    for _ in 0..20 {
        drop(joined.bed.ebpf.take());
        joined.ends("half").await;
        joined.bed.load(None);
        joined.bed.apply();
        joined.ends("half").await;
    }
    for talk in talks {
        assert_eq!(talk.done().await, "flows\nwhole");
    }
    assert!(joined.bed.counter("redirected") > 100, "{:?}", joined.bed.ebpf().counters());
}

#[tokio::test]
async fn who_is_not_enrolled_is_not_joined() {
    need!("who_is_not_enrolled_is_not_joined", "python3");
    let mut joined = Joined::new("echo", false).await;
    for _ in 0..3 {
        joined.ends("half").await;
        assert_eq!(joined.server.line().await, "end 1000");
    }
    assert_eq!((joined.bed.counter("paired"), joined.bed.counter("redirected")), (0, 0));
    // Enrolled from now on; and the caller's mark taken away after that.
    joined.bed.table.enroll.push(Enroll::cgroup(joined.bed.other.clone()));
    joined.bed.apply();
    joined.ends("half").await;
    joined.ends("half").await;
    let redirected = joined.bed.counter("redirected");
    assert!(redirected >= 2);
    joined.bed.table.enroll[0].join = false;
    joined.bed.apply();
    joined.ends("half").await;
    assert_eq!(joined.bed.counter("redirected"), redirected);
}

#[tokio::test]
async fn a_joined_connection_that_is_busy_outlives_its_endpoint_in_the_list() {
    need!("a_joined_connection_that_is_busy_outlives_its_endpoint_in_the_list", "python3");
    let mut joined = Joined::new("echo", true).await;
    joined.introduce().await;
    let bytes = (24 << 20).to_string();
    // TCP sees nothing of it for seconds.
    let mut talk = joined.bed.python(TALK, &[ADDRESS.0, ADDRESS.1, &bytes, "4000"]);
    joined.until("it flows", |bed| bed.ebpf().connections().iter().any(|c| c.joined && c.bytes.1 > 1 << 20)).await;
    joined.bed.table.straight[0].endpoints = Some(Vec::new());
    let start = Instant::now();
    while talk.child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < LIMIT, "it hangs");
        joined.bed.ebpf().balance(&joined.bed.table.straight);
        sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(talk.done().await, "flows\nwhole");
}

#[tokio::test]
async fn a_joined_connection_that_was_answered_is_closed_when_its_endpoint_leaves() {
    need!("a_joined_connection_that_was_answered_is_closed_when_its_endpoint_leaves", "python3");
    let mut joined = Joined::new("echo", true).await;
    joined.introduce().await;
    let mut idle = joined.bed.python(WAITS, &[ADDRESS.0, ADDRESS.1]);
    assert_eq!(idle.line().await, "1000");
    assert!(joined.bed.counter("redirected") >= 2, "{:?}", joined.bed.ebpf().counters());
    let mut closed = tokio::spawn(async move { idle.line().await });
    let balance = |joined: &Joined| joined.bed.ebpf().balance(&joined.bed.table.straight);
    joined.until("it is shown as joined", |bed| bed.ebpf().connections().iter().any(|c| c.joined)).await;
    joined.bed.table.straight[0].endpoints = Some(Vec::new());
    // Who would wait for an answer has 60 s, longer than this waits.
    let said = tokio::time::timeout(LIMIT / 2, async {
        loop {
            balance(&joined);
            tokio::select! {
                said = &mut closed => return said.unwrap(),
                () = sleep(std::time::Duration::from_millis(20)) => {}
            }
        }
    });
    assert_eq!(said.await.expect("it is closed"), "ECONNABORTED");
}

#[tokio::test]
async fn off_holds_for_joined_connections_too() {
    need!("off_holds_for_joined_connections_too", "python3");
    let mut joined = Joined::new("echo", true).await;
    joined.introduce().await;
    let bytes = (8 << 20).to_string();
    let mut talk = joined.bed.python(TALK, &[ADDRESS.0, ADDRESS.1, &bytes, "4000"]);
    assert_eq!(talk.line().await, "flows");
    joined.bed.table.redirect = Redirect::Off;
    joined.bed.apply();
    assert_eq!(talk.done().await, "whole");
    assert!(joined.bed.counter("redirect_off") > 0 && joined.bed.counter("redirected") > 0);
}
