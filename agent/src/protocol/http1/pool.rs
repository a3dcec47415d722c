//! Connections to one endpoint that wait for the next request.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http1::{Builder, Connection, SendRequest},
    },
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::JoinHandle,
    time::Instant,
};

use super::{
    body::{Sending, ToEndpoint},
    whole,
};
use crate::{
    config,
    endpoint::Endpoint,
    stream::{Stream, with_scratch},
};

/// How long a connection may take between the end of an answer and being ready for the next request.
/// It is a matter of a task being scheduled; one that takes longer is stuck.
const READY_WAIT: Duration = Duration::from_millis(100);

/// How long a connection must have been idle before someone waits for its end. Busy ones are used again
/// before that, and the next call looks itself.
const WATCH_AFTER: Duration = Duration::from_millis(500);

/// Connections to one endpoint.
pub(super) struct Pool {
    max_idle: usize,
    idle_timeout: Duration,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// The one used last is at the end and taken first, so that surplus ones time out.
    conns: Vec<Waiting>,
    keeper: Keeper,
}

impl Idle {
    /// The connection for `client` that was used last.
    fn take(&mut self, client: Option<SocketAddr>) -> Option<Conn> {
        let at = self.conns.iter().rposition(|waiting| waiting.conn.client == client)?;
        Some(self.conns.remove(at).conn)
    }
}

/// A connection that nobody uses.
struct Waiting {
    conn: Conn,
    since: Instant,
}

/// The task that closes idle connections: one for a pool, and only while there are any.
#[derive(Default)]
enum Keeper {
    #[default]
    None,
    /// Looks again within [`WATCH_AFTER`].
    Looking,
    /// Watches all there are and must be told of new ones.
    Watching(Waker),
}

impl Pool {
    /// The pool that `endpoint` keeps.
    pub(super) fn of<'a>(endpoint: &'a Endpoint, config: &config::Cluster) -> &'a Arc<Self> {
        endpoint.pool(|| {
            Arc::new(Self {
                max_idle: config.idle_connections,
                idle_timeout: config.idle_timeout,
                idle: Mutex::default(),
            })
        })
    }

    /// A connection for `client` that was used before and looks good.
    pub(super) async fn take(&self, client: Option<SocketAddr>) -> Option<Conn> {
        loop {
            let mut conn = self.idle.lock().take(client)?;
            // Without anyone to wake: who sends the next request polls it again.
            conn.driver.drive(&mut Context::from_waker(Waker::noop()));
            if conn.is_ready() {
                return Some(conn);
            }
            if !conn.is_closed() && matches!(tokio::time::timeout(READY_WAIT, conn.ready()).await, Ok(true)) {
                return Some(conn);
            }
        }
    }

    /// Closes the connections that were kept for `client`.
    pub(super) fn left(&self, client: SocketAddr) {
        let its = |waiting: &mut Waiting| waiting.conn.client == Some(client);
        let ended: Vec<_> = self.idle.lock().conns.extract_if(.., its).collect();
        drop(ended);
    }

    /// Puts a connection on which nothing is under way back, or closes it when there are enough.
    pub(super) fn put(self: &Arc<Self>, conn: Conn) {
        if self.max_idle == 0 || self.idle_timeout.is_zero() || conn.is_closed() {
            return;
        }
        let now = Instant::now();
        if conn.good_until.is_some_and(|until| until <= now) {
            return;
        }
        let waiting = Waiting { conn, since: now };
        let (surplus, keeper) = {
            let mut idle = self.idle.lock();
            let Idle { conns, keeper } = &mut *idle;
            if conns.len() >= self.max_idle {
                conns.retain(|waiting| !waiting.conn.is_closed());
            }
            let surplus = (conns.len() >= self.max_idle).then(|| conns.remove(0));
            conns.push(waiting);
            let keeper = match keeper {
                Keeper::Looking => None,
                _ => Some(std::mem::replace(keeper, Keeper::Looking)),
            };
            (surplus, keeper)
        };
        drop(surplus);
        match keeper {
            Some(Keeper::Watching(waker)) => waker.wake(),
            Some(_) => drop(tokio::spawn(keep(Arc::downgrade(self)))),
            None => {}
        }
    }

    /// Closes connections whose time is over or whose endpoint has ended them, and waits for the next.
    /// Returns when to look again, or that there is nothing to keep.
    fn look(&self, cx: &mut Context<'_>) -> Option<Instant> {
        let now = Instant::now();
        let mut next = None;
        let mut all_watched = true;
        let mut idle = self.idle.lock();
        let Idle { conns, keeper } = &mut *idle;
        let over = |waiting: &mut Waiting| {
            let end = waiting.since + self.idle_timeout;
            let watch = waiting.since + WATCH_AFTER;
            let wait = if now < watch {
                all_watched = false;
                end.min(watch)
            } else {
                waiting.conn.driver.drive(cx);
                end
            };
            let over = end <= now || waiting.conn.is_closed();
            if !over {
                next = Some(next.map_or(wait, |next: Instant| next.min(wait)));
            }
            over
        };
        let ended: Vec<_> = conns.extract_if(.., over).collect();
        *keeper = match next {
            None => Keeper::None,
            Some(_) if all_watched => Keeper::Watching(cx.waker().clone()),
            Some(_) => Keeper::Looking,
        };
        // Sockets are closed without the lock.
        drop(idle);
        drop(ended);
        next
    }

    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.idle.lock().conns.len()
    }
}

/// Keeps the idle connections of a pool until there are none, or no pool.
async fn keep(pool: Weak<Pool>) {
    let mut look = pin!(tokio::time::sleep(WATCH_AFTER));
    poll_fn(|cx| {
        loop {
            let Some(next) = pool.upgrade().and_then(|pool| pool.look(cx)) else { return Poll::Ready(()) };
            look.as_mut().reset(next);
            ready!(look.as_mut().poll(cx));
        }
    })
    .await;
}

type ToHyper = Connection<TokioIo<ToServer>, ToEndpoint>;

/// A connection. Dropping it closes it, whatever is under way.
pub(super) struct Conn {
    // First, because a driver that is gone needs not be told that the sender is.
    driver: Driver,
    /// Once hyper speaks on it.
    sender: Option<SendRequest<ToEndpoint>>,
    /// Set while hyper is shown again what was sent and received without it.
    again: Option<Arc<AtomicBool>>,
    /// The caller that the endpoint sees as its peer; the connection is good for no other.
    client: Option<SocketAddr>,
    /// Until then it is kept.
    good_until: Option<Instant>,
}

/// Who moves a connection's bytes.
enum Driver {
    /// Whoever uses it, without hyper so far: all of its messages came whole.
    Bare(Box<ToServer>),
    /// Whoever waits for something from it, in its own task: no task is woken in between.
    User(Box<ToHyper>),
    /// A task, where both directions must move although nobody waits for one of them. It ends with its
    /// owner: no connection outlives the pool that keeps it or the answer that is read from it.
    Task(Task),
    /// Nobody: it has ended.
    None,
}

/// Ends its task when dropped, unless it was let go of.
struct Task(Option<JoinHandle<()>>);

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

impl Conn {
    /// A connection just opened, for `client` alone if there is one.
    pub(super) fn new(io: Stream, client: Option<SocketAddr>) -> Self {
        let good_until = io.good_until();
        let driver = Driver::Bare(Box::new(ToServer { io, broken: None, again: None }));
        Self { driver, sender: None, again: None, client, good_until }
    }

    /// Sends a whole request and waits for a whole answer. `None` when that is not what comes, or hyper speaks here
    /// already: then [`Conn::send`] must follow with the same request, and finds out.
    pub(super) async fn exchange(&mut self, request: &[u8], header_bytes: usize) -> Option<whole::Response> {
        let Driver::Bare(io) = &mut self.driver else { return None };
        let mut sent = 0;
        let seen = poll_fn(|cx| {
            while sent < request.len() {
                match ready!(Pin::new(&mut **io).poll_write(cx, &request[sent..])) {
                    // Reading tells how it ends.
                    Ok(0) | Err(_) => break,
                    Ok(n) => sent += n,
                }
            }
            with_scratch(|scratch| {
                let mut seen = ReadBuf::new(scratch);
                Poll::Ready(match ready!(Pin::new(&mut **io).poll_read(cx, &mut seen)) {
                    Ok(()) => match whole::parse_response(seen.filled(), header_bytes) {
                        Some(answer) => Ok(answer),
                        None => Err(Bytes::copy_from_slice(seen.filled())),
                    },
                    Err(error) => {
                        io.broken.get_or_insert(error.kind());
                        Err(Bytes::new())
                    }
                })
            })
        })
        .await;
        match seen {
            Ok(answer) => Some(answer),
            Err(seen) => {
                let flag = Arc::new(AtomicBool::new(true));
                io.again = Some(Again { flag: flag.clone(), seen, written: false, reader: None });
                self.again = Some(flag);
                None
            }
        }
    }

    /// Has hyper speak from now on.
    pub(super) async fn speak(&mut self, builder: &Builder) -> hyper::Result<()> {
        self.driver = match std::mem::replace(&mut self.driver, Driver::None) {
            Driver::Bare(io) => {
                let (sender, connection) = builder.handshake(TokioIo::new(*io)).await?;
                self.sender = Some(sender);
                Driver::User(Box::new(connection))
            }
            other => other,
        };
        Ok(())
    }

    /// Whether hyper was not needed on it so far.
    pub(super) const fn is_bare(&self) -> bool {
        matches!(self.driver, Driver::Bare(_))
    }

    fn is_ready(&self) -> bool {
        self.is_bare() || self.sender.as_ref().is_some_and(SendRequest::is_ready)
    }

    fn is_closed(&self) -> bool {
        !self.is_bare() && self.sender.as_ref().is_none_or(SendRequest::is_closed)
    }

    /// Sends a request and waits for the head of the answer. With `upgrade` the connection may leave HTTP
    /// after it. Comes after [`Conn::speak`].
    pub(super) async fn send(
        &mut self,
        message: Request<ToEndpoint>,
        upgrade: bool,
    ) -> Result<Response<Incoming>, TrySendError<Request<ToEndpoint>>> {
        if upgrade {
            self.detach();
        }
        // Not held up by the budget of the task: running out of it would be told to nobody below.
        let sender = self.sender.as_mut().expect("`speak` comes first");
        let mut answer = pin!(tokio::task::unconstrained(sender.try_send_request(message)));
        let driver = &mut self.driver;
        poll_fn(|cx| driver.poll_with(cx, |cx| answer.as_mut().poll(cx))).await
    }

    /// Asks for what comes out of the connection, an answer's body.
    pub(super) fn poll_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        ask: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.driver.poll_with(cx, ask)
    }

    /// Lets a task move the bytes from now on.
    pub(super) fn detach(&mut self) {
        self.driver = match std::mem::replace(&mut self.driver, Driver::None) {
            Driver::User(connection) => {
                let task = tokio::spawn(async move { ended(connection.with_upgrades().await) });
                Driver::Task(Task(Some(task)))
            }
            other => other,
        };
    }

    /// Lets go of a connection that is leaving HTTP: its task ends by handing the socket over.
    pub(super) fn upgrading(mut self) {
        if let Driver::Task(task) = &mut self.driver {
            task.0 = None;
        }
    }

    /// Waits until the next request may be sent; false when none may.
    async fn ready(&mut self) -> bool {
        let Some(sender) = &mut self.sender else { return false };
        poll_fn(|cx| {
            self.driver.drive(cx);
            sender.poll_ready(cx)
        })
        .await
        .is_ok()
    }
}

impl Driver {
    /// Asks for something that comes out of the connection, and moves the connection's bytes meanwhile.
    fn poll_with<T>(&mut self, cx: &mut Context<'_>, mut ask: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        if matches!(self, Self::Task(_)) {
            return ask(cx);
        }
        // It comes out of `drive` only, so that nobody needs to be woken for it.
        let nobody = &mut Context::from_waker(Waker::noop());
        let there = ask(nobody);
        if there.is_ready() {
            return there;
        }
        self.drive(cx);
        ask(nobody)
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        match self {
            Self::User(connection) => {
                if let Poll::Ready(end) = Pin::new(connection).poll(cx) {
                    ended(end);
                    *self = Self::None;
                }
            }
            Self::Bare(io) => {
                // Whatever comes while nothing was asked for: the end, or nothing that could be believed.
                let came = Pin::new(&mut **io).poll_read(cx, &mut ReadBuf::new(&mut [0]));
                if came.is_ready() {
                    *self = Self::None;
                }
            }
            Self::Task(_) | Self::None => {}
        }
    }
}

fn ended(end: hyper::Result<()>) {
    // Whoever waits for an answer has been told the same.
    if let Err(error) = end {
        tracing::trace!(error = %super::body::chain(&error), "connection to an endpoint ended");
    }
}

/// A connection in use, on its way back to its pool.
pub(super) struct Lease {
    pub(super) conn: Conn,
    pub(super) pool: Weak<Pool>,
    pub(super) endpoint: SocketAddr,
    /// The endpoint keeps the connection after this answer.
    pub(super) keep: bool,
    /// The request that was answered.
    pub(super) sending: Arc<Sending>,
}

impl Lease {
    /// Endpoint of the connection.
    pub(super) const fn endpoint(&self) -> SocketAddr {
        self.endpoint
    }

    /// After the whole answer: pools the connection if it can be used again, else closes it. An endpoint
    /// that is no more leaves no pool.
    pub(super) fn give_back(self) {
        // A request still being sent is one that its endpoint did not want to read to the end.
        if self.keep
            && self.sending.is_done()
            && let Some(pool) = self.pool.upgrade()
        {
            let mut conn = self.conn;
            if let Some(again) = conn.again.take() {
                again.store(false, Relaxed);
            }
            pool.put(conn);
        }
    }
}

/// A connection to an endpoint as hyper sees it. An endpoint that answers early and closes resets what
/// is still being sent to it; hyper would then never read the answer. So a failed write is kept to
/// itself, and reading tells how it ends.
pub(super) struct ToServer {
    io: Stream,
    broken: Option<io::ErrorKind>,
    again: Option<Again>,
}

/// A request was sent and something received before hyper was asked: it shall see what it would have seen.
struct Again {
    /// Until the answer is through, what hyper writes was written.
    flag: Arc<AtomicBool>,
    /// What was received, for after the first write.
    seen: Bytes,
    written: bool,
    reader: Option<Waker>,
}

impl Again {
    /// Takes what hyper writes; false when that must go out.
    fn write(&mut self) -> bool {
        if !self.flag.load(Relaxed) {
            return false;
        }
        self.written = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        true
    }

    /// What hyper reads; `None` when that is up to the socket.
    fn read(&mut self, cx: &Context<'_>, buf: &mut ReadBuf<'_>) -> Option<Poll<()>> {
        if !self.written {
            self.reader = Some(cx.waker().clone());
            return Some(Poll::Pending);
        }
        if self.seen.is_empty() {
            return None;
        }
        let n = self.seen.len().min(buf.remaining());
        buf.put_slice(&self.seen.split_to(n));
        Some(Poll::Ready(()))
    }
}

impl ToServer {
    /// The socket.
    pub(super) fn into_inner(self) -> Stream {
        self.io
    }

    /// Whether there is no use in writing: it was, or would fail.
    fn is_written(&mut self) -> bool {
        self.again.as_mut().is_some_and(Again::write) || self.broken.is_some()
    }

    fn written(&mut self, len: usize, written: io::Result<usize>) -> io::Result<usize> {
        match written {
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                self.broken = Some(error.kind());
                Ok(len)
            }
            other => other,
        }
    }
}

impl AsyncRead for ToServer {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(read) = self.again.as_mut().and_then(|again| again.read(cx, buf)) {
            return read.map(Ok);
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if buf.filled().len() == before
            && let Some(kind) = self.broken
        {
            // The socket has told its error to the write and looks as if it ended well.
            return Poll::Ready(Err(kind.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ToServer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_written() {
            return Poll::Ready(Ok(data.len()));
        }
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, data));
        Poll::Ready(self.written(data.len(), written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len = data.iter().map(|slice| slice.len()).sum();
        if self.is_written() {
            return Poll::Ready(Ok(len));
        }
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, data));
        Poll::Ready(self.written(len, written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
