//! One connection to one server: requests out, answers and events in, pings in between.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    net::IpAddr,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, split},
    net::TcpStream,
    sync::{Notify, mpsc, oneshot},
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    access::{Access, Acl},
    wire::{self, AUTH, Code, EVENT, HEADER, Identity, Malformed, Op, PING, Stat},
};
use crate::nodes::LARGEST;

/// Time for a connect with its first exchange.
const OPENING: Duration = Duration::from_secs(3);
/// Time for a server that hung up to say why.
const ASKING: Duration = Duration::from_secs(1);
/// Time for a farewell.
const CLOSING: Duration = Duration::from_secs(1);
/// Requests waiting to be written; further ones wait for room.
const WAITING: usize = 1024;
/// Largest list of children: a million nodes with long names.
const LIST_BYTES: usize = 64 << 20;

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The connection ended; nobody knows whether it was done.
    Lost,
    /// The server said no.
    Refused(Code),
    /// The answer has this many bytes, and was not read.
    TooLarge(usize),
    /// The answer makes no sense.
    Malformed,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost => f.write_str("the connection was lost"),
            Self::Refused(code) => code.fmt(f),
            Self::TooLarge(bytes) => write!(f, "has {bytes} bytes, more than {LARGEST}"),
            Self::Malformed => f.write_str("the server's answer makes no sense"),
        }
    }
}

impl From<Malformed> for Failure {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Closed {
    /// The session is over; a new one may begin.
    Expired,
    /// The server hung up without a word: it is not ready, or knows less than was seen elsewhere.
    Unanswered,
    /// The server hung up and says that it serves nobody at present: it starts, or has lost its quorum.
    Waiting,
    /// Anything else, for operators.
    Other(String),
}

/// Collects the paths whose watch fired.
#[derive(Default)]
pub(super) struct Watcher {
    paths: Mutex<HashSet<String>>,
    wake: Notify,
}

impl Watcher {
    /// Waits until a watch fired, and returns the paths of all that did since the last time.
    pub async fn fired(&self) -> HashSet<String> {
        loop {
            let paths = std::mem::take(&mut *self.paths.lock());
            if !paths.is_empty() {
                return paths;
            }
            self.wake.notified().await;
        }
    }

    fn fire(&self, path: &str) {
        self.paths.lock().insert(path.to_owned());
        self.wake.notify_one();
    }
}

/// A connection with its session. When the last clone is dropped the session is ended, so that its nodes go.
pub(super) struct Conn {
    out: mpsc::Sender<Outgoing>,
    common: Arc<Common>,
    /// The server's address as configured.
    pub server: String,
    /// Our end of the connection.
    pub local: IpAddr,
    /// Number of the session, which outlives connections.
    pub session: i64,
    password: Bytes,
    acl: Acl,
}

/// What requests share with the task that drives the connection.
struct Common {
    watches: Mutex<HashMap<String, Vec<Weak<Watcher>>>>,
    seen: AtomicI64,
    why: OnceLock<String>,
}

struct Outgoing {
    op: Op,
    body: Bytes,
    limit: usize,
    answer: oneshot::Sender<Result<Bytes, Failure>>,
}

struct Pending {
    number: i32,
    limit: usize,
    answer: oneshot::Sender<Result<Bytes, Failure>>,
}

impl Conn {
    /// Connects to `server` (`HOST:PORT`) as `identity`, for a session that survives `silence` without us.
    /// The connection is driven by a task of its own.
    pub async fn open(server: &str, identity: &Identity, silence: Duration, access: &Access) -> Result<Self, Closed> {
        let opening = async {
            let io = dial(server).await?;
            let local = io.local_addr().map_err(|e| Closed::Other(e.to_string()))?.ip();
            let mut to = Greeting { server, identity, silence, access, local };
            match &access.tls {
                None => to.say(io).await,
                Some(tls) => to.say(tls.connect(host(server), io).await.map_err(odd)?).await,
            }
        };
        let opened = timeout(OPENING, opening).await;
        let opened = opened.unwrap_or_else(|_| Err(Closed::Other(format!("no answer within {OPENING:?}"))));
        // Who has nothing to lose need not know.
        if matches!(opened, Err(Closed::Unanswered)) && identity.seen > 0 && serves_nobody(server, access).await {
            return Err(Closed::Waiting);
        }
        opened
    }

    /// What the next connection of this session shows.
    pub fn identity(&self) -> Identity {
        Identity { session: self.session, password: self.password.clone(), seen: self.common.seen.load(Relaxed) }
    }

    /// Whether the connection has ended.
    pub fn is_over(&self) -> bool {
        self.out.is_closed()
    }

    /// Waits until the connection has ended, and says why.
    pub async fn ended(&self) -> String {
        self.out.closed().await;
        self.common.why.get().cloned().unwrap_or_else(|| "the connection was lost".to_owned())
    }

    /// Names below `path`, and the folder itself.
    pub async fn children(&self, path: &str, watcher: Option<&Arc<Watcher>>) -> Result<(Vec<String>, Stat), Failure> {
        let answer = self.look(Op::GetChildren2, path, watcher, LIST_BYTES).await?;
        Ok(wire::children(answer)?)
    }

    /// The data of a node.
    pub async fn data(&self, path: &str, watcher: Option<&Arc<Watcher>>) -> Result<(Bytes, Stat), Failure> {
        let answer = self.look(Op::GetData, path, watcher, LARGEST + 128).await?;
        Ok(wire::data(answer)?)
    }

    /// Whether a node is there. The watch holds in either case.
    pub async fn exists(&self, path: &str, watcher: Option<&Arc<Watcher>>) -> Result<Option<Stat>, Failure> {
        match self.look(Op::Exists, path, watcher, LARGEST).await {
            Ok(mut answer) => Ok(Some(wire::stat(&mut answer)?)),
            Err(Failure::Refused(Code::NO_NODE)) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Makes a node, and the folders above it where they are missing.
    pub async fn create(&self, path: &str, data: &[u8], ephemeral: bool) -> Result<(), Failure> {
        // Whoever clears the tree at this moment will not do so for ever.
        for _ in 0..8 {
            match self.ask(Op::Create, wire::create(path, data, self.acl.entries(), ephemeral), LARGEST).await {
                Err(Failure::Refused(Code::NO_NODE)) => self.create_above(path).await?,
                other => return other.map(drop),
            }
        }
        Err(Failure::Refused(Code::NO_NODE))
    }

    async fn create_above(&self, path: &str) -> Result<(), Failure> {
        for (end, _) in path.match_indices('/').skip(1) {
            match self.ask(Op::Create, wire::create(&path[..end], &[], self.acl.entries(), false), LARGEST).await {
                Ok(_) | Err(Failure::Refused(Code::NODE_EXISTS)) => {}
                // A parent that may not be seen or written is perhaps there all the same.
                Err(Failure::Refused(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// Deletes a node if it is there.
    pub async fn delete(&self, path: &str) -> Result<(), Failure> {
        match self.ask(Op::Delete, wire::delete(path, -1), LARGEST).await {
            Ok(_) | Err(Failure::Refused(Code::NO_NODE)) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Replaces the data of a node that has this version.
    pub async fn set_data(&self, path: &str, data: &[u8], version: i32) -> Result<(), Failure> {
        self.ask(Op::SetData, wire::set_data(path, data, version), LARGEST).await.map(drop)
    }

    async fn look(&self, op: Op, path: &str, watcher: Option<&Arc<Watcher>>, limit: usize) -> Result<Bytes, Failure> {
        if let Some(watcher) = watcher {
            // Before the request: the event may follow on the heels of the answer.
            let mut watches = self.common.watches.lock();
            let known = watches.entry(path.to_owned()).or_default();
            known.retain(|w| w.strong_count() > 0);
            if !known.iter().any(|w| std::ptr::eq(w.as_ptr(), Arc::as_ptr(watcher))) {
                known.push(Arc::downgrade(watcher));
            }
        }
        self.ask(op, wire::look(path, watcher.is_some()), limit).await
    }

    async fn ask(&self, op: Op, body: Bytes, limit: usize) -> Result<Bytes, Failure> {
        let (answer, answered) = oneshot::channel();
        self.out.send(Outgoing { op, body, limit, answer }).await.map_err(|_| Failure::Lost)?;
        answered.await.unwrap_or(Err(Failure::Lost))
    }
}

async fn dial(server: &str) -> Result<TcpStream, Closed> {
    let io = TcpStream::connect(server).await.map_err(|e| Closed::Other(format!("cannot connect: {e}")))?;
    let _ = io.set_nodelay(true);
    Ok(io)
}

/// The name or address in `HOST:PORT`, without brackets.
fn host(server: &str) -> &str {
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

fn odd(why: anyhow::Error) -> Closed {
    Closed::Other(format!("{why:#}"))
}

/// Whether a server says that it serves nobody at present. One that does not say so, or is forbidden to, may serve.
async fn serves_nobody(server: &str, access: &Access) -> bool {
    async fn said(mut io: impl AsyncRead + AsyncWrite + Unpin) -> bool {
        // One of the words that servers answer unless they are told not to.
        let mut said = Vec::with_capacity(256);
        let asked = io.write_all(b"srvr").await;
        asked.is_ok()
            && io.take(256).read_to_end(&mut said).await.is_ok()
            && String::from_utf8_lossy(&said).contains("not currently serving")
    }
    let asking = async {
        let io = dial(server).await.ok()?;
        Some(match &access.tls {
            None => said(io).await,
            Some(tls) => said(tls.connect(host(server), io).await.ok()?).await,
        })
    };
    timeout(ASKING, asking).await.ok().flatten().unwrap_or(false)
}

/// The beginning of a connection.
struct Greeting<'a> {
    server: &'a str,
    identity: &'a Identity,
    silence: Duration,
    access: &'a Access,
    local: IpAddr,
}

impl Greeting<'_> {
    async fn say(&mut self, mut io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Conn, Closed> {
        let asked = i32::try_from(self.silence.as_millis()).unwrap_or(i32::MAX);
        io.write_all(&wire::hello(self.identity, asked)).await.map_err(|_| Closed::Unanswered)?;
        io.flush().await.map_err(|_| Closed::Unanswered)?;
        let length = io.read_i32().await.map_err(|_| Closed::Unanswered)?;
        let strange = || Closed::Other("what listens there is no ZooKeeper server".to_owned());
        if !(16..1024).contains(&length) {
            return Err(strange());
        }
        let mut answer = vec![0; length as usize];
        io.read_exact(&mut answer).await.map_err(|_| Closed::Unanswered)?;
        let welcome = wire::welcome(answer.into()).map_err(|_| strange())?;
        if welcome.timeout <= 0 {
            return Err(Closed::Expired);
        }
        if let Some(login) = &self.access.login {
            // Before everything else: what follows is done with its rights.
            let said = wire::request(AUTH, Op::Auth, &wire::auth(login.text()));
            io.write_all(&said).await.map_err(|_| Closed::Unanswered)?;
        }
        let silence = Duration::from_millis(welcome.timeout as u64);
        let seen = AtomicI64::new(self.identity.seen);
        let common = Arc::new(Common { watches: Mutex::default(), seen, why: OnceLock::new() });
        let (out, requests) = mpsc::channel(WAITING);
        tokio::spawn(drive(io, requests, common.clone(), silence));
        Ok(Conn {
            out,
            common,
            server: self.server.to_owned(),
            local: self.local,
            session: welcome.session,
            password: welcome.password,
            acl: self.access.acl,
        })
    }
}

/// Runs a connection until it breaks or nobody has any use for it.
async fn drive(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    requests: mpsc::Receiver<Outgoing>,
    common: Arc<Common>,
    silence: Duration,
) {
    let (read, write) = split(io);
    let pending = Mutex::new(VecDeque::new());
    let mut reader = Reader {
        io: BufReader::with_capacity(64 << 10, read),
        pending: &pending,
        common: &common,
        patience: silence * 2 / 3,
    };
    // `requests` lives until the reason is known, so that whoever sees the end finds it.
    let (mut requests, mut writer) = (requests, write);
    let why = tokio::select! {
        why = reader.run() => Some(why),
        result = write_all(&mut writer, &mut requests, &pending, silence / 3) => match result {
            Ok(()) => None,
            Err(e) => Some(format!("cannot write: {e}")),
        },
    };
    match why {
        Some(why) => drop(common.why.set(why)),
        None => {
            let farewell = async {
                writer.write_all(&wire::request(0, Op::CloseSession, &[])).await?;
                writer.flush().await?;
                // The server hangs up when it is done.
                while reader.io.read_u8().await.is_ok() {}
                Ok::<_, std::io::Error>(())
            };
            let _ = timeout(CLOSING, farewell).await;
        }
    }
}

/// Writes requests and pings; `Ok` when nobody will ask again.
async fn write_all(
    io: &mut (impl AsyncWrite + Unpin),
    requests: &mut mpsc::Receiver<Outgoing>,
    pending: &Mutex<VecDeque<Pending>>,
    beat: Duration,
) -> std::io::Result<()> {
    let mut number = 0_i32;
    let mut pings = interval(beat);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut batch = BytesMut::new();
    loop {
        let first = tokio::select! {
            biased;
            _ = pings.tick() => None,
            request = requests.recv() => match request {
                Some(request) => Some(request),
                None => return Ok(()),
            },
        };
        if first.is_none() {
            batch.extend_from_slice(&wire::request(PING, Op::Ping, &[]));
        }
        let mut next = first;
        while let Some(Outgoing { op, body, limit, answer }) = next {
            number = number.checked_add(1).unwrap_or(1);
            batch.extend_from_slice(&wire::request(number, op, &body));
            pending.lock().push_back(Pending { number, limit, answer });
            next = if batch.len() < 64 << 10 { requests.try_recv().ok() } else { None };
        }
        io.write_all(&batch).await?;
        io.flush().await?;
        batch.clear();
    }
}

/// The incoming half.
struct Reader<'a, R> {
    io: BufReader<R>,
    pending: &'a Mutex<VecDeque<Pending>>,
    common: &'a Common,
    patience: Duration,
}

impl<R: AsyncRead + Unpin> Reader<'_, R> {
    /// Takes in messages until the connection is of no more use; says why.
    async fn run(&mut self) -> String {
        loop {
            if let Err(why) = self.message().await {
                return why;
            }
        }
    }

    async fn message(&mut self) -> Result<(), String> {
        let strange = |_: Malformed| "the server sent what makes no sense".to_owned();
        let head = self.take(4 + HEADER).await?;
        let (length, head) = head.split_first_chunk::<4>().ok_or(Malformed).map_err(strange)?;
        let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
        let Some(rest) = length.checked_sub(HEADER).filter(|rest| *rest <= LIST_BYTES) else {
            return Err(strange(Malformed));
        };
        let (number, transaction, code) = wire::header(head).map_err(strange)?;
        if transaction > 0 {
            self.common.seen.fetch_max(transaction, Relaxed);
        }
        match number {
            PING => self.skip(rest).await,
            AUTH if code != 0 => Err(format!("login: {}", Code(code))),
            AUTH => self.skip(rest).await,
            EVENT => {
                if rest > LARGEST {
                    return Err(strange(Malformed));
                }
                if let Some(path) = wire::event(self.take(rest).await?).map_err(strange)? {
                    self.fire(&path);
                }
                Ok(())
            }
            number => {
                let pending = self.pending.lock().pop_front();
                let Some(pending) = pending.filter(|p| p.number == number) else { return Err(strange(Malformed)) };
                let answer = if rest > pending.limit {
                    self.skip(rest).await?;
                    Err(Failure::TooLarge(rest))
                } else {
                    let body = self.take(rest).await?;
                    if code == 0 { Ok(body) } else { Err(Failure::Refused(Code(code))) }
                };
                let _ = pending.answer.send(answer);
                Ok(())
            }
        }
    }

    fn fire(&self, path: &str) {
        let watchers = self.common.watches.lock().remove(path).unwrap_or_default();
        for watcher in watchers.iter().filter_map(Weak::upgrade) {
            watcher.fire(path);
        }
    }

    /// Room grows as bytes come, not as they are announced.
    async fn take(&mut self, length: usize) -> Result<Bytes, String> {
        let mut bytes = BytesMut::with_capacity(length.min(64 << 10));
        while bytes.len() < length {
            let missing = length - bytes.len();
            let got = some(&mut (&mut self.io).take(missing as u64), &mut bytes, self.patience).await?;
            debug_assert!(got > 0);
        }
        Ok(bytes.freeze())
    }

    async fn skip(&mut self, mut length: usize) -> Result<(), String> {
        let mut waste = BytesMut::with_capacity(16 << 10);
        while length > 0 {
            waste.clear();
            length -= some(&mut (&mut self.io).take(length.min(16 << 10) as u64), &mut waste, self.patience).await?;
        }
        Ok(())
    }
}

/// Reads at least one byte within `patience`.
async fn some(io: &mut (impl AsyncRead + Unpin), into: &mut BytesMut, patience: Duration) -> Result<usize, String> {
    match timeout(patience, io.read_buf(into)).await {
        Ok(Ok(0)) => Err("the server closed the connection".to_owned()),
        Ok(Ok(got)) => Ok(got),
        Ok(Err(e)) => Err(format!("cannot read: {e}")),
        Err(_) => Err(format!("the server is silent for {patience:?}")),
    }
}
