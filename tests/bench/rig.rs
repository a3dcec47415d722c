//! The whole Motan2 line in this process: caller, server half, cluster with its metrics, client half,
//! server. Caller and server are plain threads that allocate nothing once they are warm, so every
//! allocation that is counted is the agent's.

#![allow(dead_code, reason = "each of its two users takes a part")]

use std::{
    alloc::System,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use agent::{
    accept::{Accepted, Downstream},
    call::Text,
    cluster::{Cluster, Parts},
    config, drain,
    kind::BuildCx,
    metrics::LiveTable,
    protocol,
    route::{Direction, Route},
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Nothing here takes longer than this.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running line.
pub struct Rig {
    /// Where the agent listens for callers.
    pub agent: SocketAddr,
    /// Where the server listens.
    pub server: SocketAddr,
    /// The agent's one cluster.
    pub cluster: Arc<Cluster>,
    // Dropped last: its threads carry everything.
    _runtime: tokio::runtime::Runtime,
    _drainer: drain::Drainer,
}

/// What calling cost, per call.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Allocations, growth of an existing one included.
    pub allocations: f64,
    /// Bytes allocated.
    pub bytes: f64,
    /// Wall time.
    pub time: Duration,
}

impl Rig {
    /// Starts a server and an agent before it.
    pub fn start() -> Self {
        let server = serve();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let agent = listener.local_addr().unwrap();
        let (drainer, drain) = drain::new();
        let kind = protocol::KINDS.iter().find(|kind| kind.name == "motan2").unwrap();
        let protocol = (kind.build)(&config::Limits::default());
        // Both filters that most services have: counting and logging a call belong to its cost.
        let filters = vec![config::Named::plain("access_log"), config::Named::plain("metrics")];
        let timeout = Some(Duration::from_secs(10));
        let config = config::Cluster { timeout, filters, ..config::Cluster::default() };
        let log =
            agent::metrics::AccessLogWriter::start(Some("/dev/null".into()), 100_000, config::Rotate::Never).unwrap();
        let access_log = Some(Arc::new(log));
        let cx = BuildCx { application: Text::from_static("bench"), access_log, ..BuildCx::default() };
        let cluster = Cluster::build(Parts {
            key: model::ServiceKey {
                service: "kit.EchoService".into(),
                group: "kit-group".into(),
                ..Default::default()
            },
            direction: Direction::Outbound,
            protocol: kind.name,
            config: &config,
            connector: protocol.connector(&config, &cx).unwrap(),
            introduce: None,
            own: agent::stream::OwnSockets::default(),
            cx: &cx,
        });
        let cluster = Arc::new(cluster.unwrap());
        let instances = vec![model::Instance::at(server.to_string())];
        cluster.apply(&model::Snapshot { revision: 1, instances, stale: None });
        let route = Arc::new(Route::new(Direction::Outbound, kind.name, vec![cluster.clone()]));
        runtime.spawn(async move {
            let live = Arc::new(LiveTable::default());
            while let Ok((io, peer)) = listener.accept().await {
                let guard = live.add(peer, agent, (0, String::new()), false, None);
                let io = Downstream::new(io.into(), bytes::Bytes::new(), guard.live.clone());
                let accepted = Accepted { io, peer, guard, dialled: None };
                tokio::spawn(protocol.clone().serve(accepted, route.clone(), drain.clone()));
            }
        });
        Self { agent, server, cluster, _runtime: runtime, _drainer: drainer }
    }
}

/// A caller: `depth` calls at once with bodies of `body` bytes, the next lot when all are answered.
pub struct Caller {
    io: TcpStream,
    lot: Vec<u8>,
    depth: usize,
    reader: Reader,
    /// Has its next call explained before each lot.
    pub explained: Option<Arc<Cluster>>,
}

impl Caller {
    /// Connects to `to`: the agent, or the server itself for the plain figure.
    pub fn new(to: SocketAddr, depth: usize, body: usize) -> Self {
        let io = TcpStream::connect(to).unwrap();
        io.set_nodelay(true).unwrap();
        io.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut lot = Vec::new();
        for id in 0..depth as u64 {
            frame(0, id + 1, META, &vec![b'x'; body], &mut lot);
        }
        Self { io, lot, depth, reader: Reader::default(), explained: None }
    }

    /// Makes at least `calls` calls and says what one cost.
    pub fn run(&mut self, calls: usize) -> Cost {
        let lots = calls.div_ceil(self.depth);
        let region = Region::new(COUNTING);
        let started = Instant::now();
        for _ in 0..lots {
            if let Some(cluster) = &self.explained {
                cluster.info.stats.recent.ask();
            }
            // More than the sockets hold would lock up a caller that does not read meanwhile.
            for part in self.lot.chunks(self.lot.len() / self.depth) {
                self.io.write_all(part).unwrap();
                if self.lot.len() > 128 * 1024 {
                    self.reader.next(&mut self.io, |head, _| assert_eq!(head[3], 8, "no exception")).unwrap();
                }
            }
            if self.lot.len() <= 128 * 1024 {
                for _ in 0..self.depth {
                    self.reader.next(&mut self.io, |head, _| assert_eq!(head[3], 8, "no exception")).unwrap();
                }
            }
        }
        let (time, change, calls) = (started.elapsed(), region.change(), (lots * self.depth) as f64);
        Cost {
            allocations: (change.allocations + change.reallocations) as f64 / calls,
            bytes: (change.bytes_allocated as f64) / calls,
            time: time.div_f64(calls),
        }
    }
}

const META: &[u8] = b"M_p\nkit.EchoService\nM_m\nechoString\nM_pp\nmotan2\nM_g\nkit-group";

fn frame(kind: u8, id: u64, meta: &[u8], body: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xf1, 0xf1, kind, 8, 0x30]);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&(meta.len() as u32).to_be_bytes());
    out.extend_from_slice(meta);
    out.extend_from_slice(&(body.len() as u32).to_be_bytes());
    out.extend_from_slice(body);
}

/// Reads frames into a buffer that it keeps.
#[derive(Default)]
struct Reader {
    buffer: Vec<u8>,
    from: usize,
    to: usize,
}

impl Reader {
    /// Hands the next frame's head and body to `with`. `None` at the end.
    fn next<T>(&mut self, io: &mut TcpStream, with: impl FnOnce(&[u8], &[u8]) -> T) -> Option<T> {
        loop {
            if let Some((body, total)) = self.whole() {
                let frame = &self.buffer[self.from..self.from + total];
                let result = with(&frame[..17], &frame[body..]);
                self.from += total;
                return Some(result);
            }
            if self.from > 0 {
                self.buffer.copy_within(self.from..self.to, 0);
                (self.from, self.to) = (0, self.to - self.from);
            }
            if self.to == self.buffer.len() {
                self.buffer.resize((2 * self.to).max(1 << 18), 0);
            }
            match io.read(&mut self.buffer[self.to..]) {
                Ok(0) | Err(_) => return None,
                Ok(n) => self.to += n,
            }
        }
    }

    /// Whether a frame is here that need not be waited for.
    fn has_more(&self) -> bool {
        self.whole().is_some()
    }

    /// Where the body of the first frame begins, and its end.
    fn whole(&self) -> Option<(usize, usize)> {
        let have = &self.buffer[self.from..self.to];
        let length = |at: usize| Some(u32::from_be_bytes(have.get(at..at + 4)?.try_into().ok()?) as usize);
        let body = 21 + length(13)?;
        let total = body + length(body - 4)?;
        (total <= have.len()).then_some((body, total))
    }
}

/// A server that gives every body back.
fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for io in listener.incoming() {
            let mut io = io.unwrap();
            io.set_nodelay(true).unwrap();
            thread::spawn(move || {
                let (mut reader, mut out) = (Reader::default(), Vec::with_capacity(1 << 18));
                loop {
                    let answered = reader.next(&mut io, |head, body| {
                        let id = u64::from_be_bytes(head[5..13].try_into().unwrap());
                        frame(1, id, b"M_pt\n0", body, &mut out);
                    });
                    if answered.is_none() {
                        return;
                    }
                    if !reader.has_more() {
                        if io.write_all(&out).is_err() {
                            return;
                        }
                        out.clear();
                    }
                }
            });
        }
    });
    addr
}
