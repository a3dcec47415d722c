//! Connections to one endpoint that wait for the next request.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::JoinHandle,
    time::Instant,
};

use super::body::{Sending, ToEndpoint};
use crate::{config, endpoint::Endpoint};

/// How long a connection may take between the end of an answer and being ready for the next request.
/// It is a matter of a task being scheduled; one that takes longer is stuck.
const READY_WAIT: Duration = Duration::from_millis(100);

/// Connections to one endpoint.
pub(super) struct Pool {
    max_idle: usize,
    idle_timeout: Duration,
    /// The one used last is at the end and taken first, so that surplus ones time out.
    idle: Mutex<Vec<Conn>>,
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

    /// A connection that was used before and looks good.
    pub(super) async fn take(&self) -> Option<Conn> {
        loop {
            let mut conn = self.idle.lock().pop()?;
            *conn.idle_since.lock() = None;
            if conn.sender.is_ready() {
                return Some(conn);
            }
            if !conn.sender.is_closed()
                && matches!(tokio::time::timeout(READY_WAIT, conn.sender.ready()).await, Ok(Ok(())))
            {
                return Some(conn);
            }
        }
    }

    /// Puts a connection on which nothing is under way back, or closes it when there are enough.
    pub(super) fn put(&self, conn: Conn) {
        if self.max_idle == 0 || self.idle_timeout.is_zero() || conn.sender.is_closed() {
            return;
        }
        *conn.idle_since.lock() = Some(Instant::now());
        let surplus = {
            let mut idle = self.idle.lock();
            if idle.len() >= self.max_idle {
                idle.retain(|conn| !conn.sender.is_closed());
            }
            let surplus = (idle.len() >= self.max_idle).then(|| idle.remove(0));
            idle.push(conn);
            surplus
        };
        drop(surplus);
    }

    /// Speaks HTTP on a connection just opened.
    pub(super) async fn open(&self, builder: &Builder, io: TcpStream) -> hyper::Result<Conn> {
        let io = TokioIo::new(ToServer { io, broken: None });
        let (sender, connection) = builder.handshake(io).await?;
        let idle_since = Arc::new(Mutex::new(None));
        let driver = tokio::spawn(drive(connection, idle_since.clone(), self.idle_timeout));
        Ok(Conn { sender, driver: Driver(Some(driver)), idle_since })
    }

    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.idle.lock().len()
    }
}

/// A connection. Dropping it closes it, whatever is under way.
pub(super) struct Conn {
    pub(super) sender: SendRequest<ToEndpoint>,
    driver: Driver,
    idle_since: Arc<Mutex<Option<Instant>>>,
}

impl Conn {
    /// Lets go of a connection that is leaving HTTP: its task ends by handing the socket over.
    pub(super) fn upgrading(mut self) {
        self.driver.0 = None;
    }
}

/// The task that moves a connection's bytes. It ends with its owner: no connection outlives the pool
/// that keeps it or the answer that is read from it.
struct Driver(Option<JoinHandle<()>>);

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

async fn drive(
    connection: Connection<TokioIo<ToServer>, ToEndpoint>,
    idle_since: Arc<Mutex<Option<Instant>>>,
    idle_timeout: Duration,
) {
    let mut connection = std::pin::pin!(connection.with_upgrades());
    if idle_timeout.is_zero() {
        let _ = connection.await;
        return;
    }
    let mut look = Instant::now() + idle_timeout;
    loop {
        match tokio::time::timeout_at(look, &mut connection).await {
            // Whoever waits for an answer has been told the same.
            Ok(ended) => {
                if let Err(error) = ended {
                    tracing::trace!(error = %super::body::chain(&error), "connection to an endpoint ended");
                }
                return;
            }
            Err(_) => {
                let now = Instant::now();
                let end = idle_since.lock().map(|since| since + idle_timeout);
                if end.is_some_and(|end| end <= now) {
                    return;
                }
                look = end.unwrap_or(now + idle_timeout);
            }
        }
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
            pool.put(self.conn);
        }
    }
}

/// A connection to an endpoint as hyper sees it. An endpoint that answers early and closes resets what
/// is still being sent to it; hyper would then never read the answer. So a failed write is kept to
/// itself, and reading tells how it ends.
pub(super) struct ToServer {
    io: TcpStream,
    broken: Option<io::ErrorKind>,
}

impl ToServer {
    /// The socket.
    pub(super) fn into_inner(self) -> TcpStream {
        self.io
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
        if self.broken.is_some() {
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
        if self.broken.is_some() {
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
