//! Bytes both ways between a program and an endpoint, each half ended the way its sender ended it.
//!
//! A FIN is passed on as a FIN of that half, a reset as a reset. Whatever ends the copy otherwise
//! (idle time, a forced stop, a dropped future, the death of the agent) shows as a reset on both sides,
//! never as a clean end.

use std::{
    future::poll_fn,
    io,
    os::fd::AsFd,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::Instant,
};

use crate::{
    call::{CallError, ErrorKind, Retry, Watch},
    metrics::Live,
    stream::{Reader, SCRATCH_BYTES, Stream, Writer, with_scratch},
};

/// Buffer of a direction that has filled the one that all share. Larger ones win nothing on loopback.
const BULK_BUFFER_BYTES: usize = 64 * 1024;

/// One connection and what was already read from it.
pub struct Side {
    /// The connection.
    pub io: Stream,
    /// Read from `io` before; goes to the other side first.
    pub prefix: Bytes,
}

/// Who is told about the copy.
pub struct Report {
    /// The caller's row in the table of live connections. Prefixes are counted there already.
    pub live: Arc<Live>,
    /// The call.
    pub watch: Option<Box<dyn Watch>>,
    /// Without a byte for this long the copy ends; zero means never.
    pub idle_timeout: Duration,
}

/// Copies until both halves have ended or one connection broke.
///
/// Dropping the future resets both connections. Buffers exist only while there is something to pass on,
/// so an idle connection holds none. The caller's connection is one of a listener that is [`ready_to_copy`], and ends
/// with a reset until it is told otherwise.
pub fn both_ways(
    caller: Side,
    endpoint: Side,
    report: Report,
) -> impl Future<Output = Result<(), CallError>> + Send + 'static {
    let Report { live, watch, idle_timeout } = report;
    keep_urgent(endpoint.io.socket());
    // From the start, because the kernel closes the sockets of a process that is killed. Undone at a clean end.
    reset_on_close(endpoint.io.socket());
    let mut pair = Pair {
        caller: caller.io,
        endpoint: endpoint.io,
        watch: Mutex::new(Watched { watch, last: Instant::now() }),
        clean: false,
    };
    let prefixes = (caller.prefix, endpoint.prefix);
    // An async block rather than an async fn: arguments of the latter are stored twice, for as long as
    // the connection lives.
    async move {
        let result = pair.copy(prefixes, &live, idle_timeout).await;
        pair.clean = result.is_ok();
        if let Some(watch) = &mut pair.watch.get_mut().watch {
            watch.end(result.as_ref().err());
        }
        result
    }
}

/// Sets of a listener, before it listens, what its connections inherit and would each be a system call for: nothing
/// waits for an acknowledgement, urgent data stays in its place, and closing is a reset from the first moment on, so
/// that should this process be killed, nobody takes what came so far for all there is. Who serves them otherwise takes
/// the last back: [`end_on_close`].
///
/// # Errors
/// Those of `setsockopt(2)`.
pub fn ready_to_copy(listener: &impl AsFd) -> io::Result<()> {
    let listener = socket2::SockRef::from(listener);
    listener.set_tcp_nodelay(true)?;
    listener.set_out_of_band_inline(true)?;
    listener.set_linger(Some(Duration::ZERO))
}

/// Has urgent data read in its place in the stream. Else a byte sent with `MSG_OOB` would be dropped here,
/// which its sender could not know.
fn keep_urgent(io: &TcpStream) {
    // Fails only on a socket that is gone already.
    let _ = socket2::SockRef::from(io).set_out_of_band_inline(true);
}

/// Makes the coming close of `io` a reset, so that its peer sees a failure and no clean end.
pub fn reset_on_close(io: &impl AsFd) {
    // Fails only on a socket that is gone already.
    let _ = socket2::SockRef::from(io).set_linger(Some(Duration::ZERO));
}

/// Takes [`reset_on_close`] back: what was written arrives, and then the end.
pub fn end_on_close(io: &TcpStream) {
    // Fails only on a socket that is gone already.
    let _ = socket2::SockRef::from(io).set_linger(None);
}

struct Pair {
    caller: Stream,
    endpoint: Stream,
    watch: Mutex<Watched>,
    clean: bool,
}

impl Pair {
    async fn copy(&mut self, prefixes: (Bytes, Bytes), live: &Live, idle_timeout: Duration) -> Result<(), CallError> {
        let (from_caller, to_caller) = self.caller.split();
        let (from_endpoint, to_endpoint) = self.endpoint.split();
        let watch = &self.watch;
        let up = pin!(one_way(from_caller, to_endpoint, prefixes.0, |n, first| {
            if !first {
                live.received.fetch_add(n as u64, Relaxed);
            }
            watch.lock().passed(|watch| watch.sent(n));
        }));
        let down = pin!(one_way(from_endpoint, to_caller, prefixes.1, |n, _| {
            live.sent.fetch_add(n as u64, Relaxed);
            watch.lock().passed(|watch| watch.data(n));
        }));
        tokio::select! {
            result = join(up, down) => result,
            () = idle(watch, idle_timeout) => Err(CallError::mesh(
                ErrorKind::Cancelled,
                format!("no byte in either direction for {idle_timeout:?} (limits.idle_timeout)"),
            )),
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if self.clean {
            end_on_close(self.caller.socket());
            end_on_close(self.endpoint.socket());
        }
    }
}

struct Watched {
    watch: Option<Box<dyn Watch>>,
    last: Instant,
}

impl Watched {
    fn passed(&mut self, tell: impl FnOnce(&mut dyn Watch)) {
        self.last = Instant::now();
        if let Some(watch) = &mut self.watch {
            tell(&mut **watch);
        }
    }
}

async fn idle(shared: &Mutex<Watched>, timeout: Duration) {
    if timeout.is_zero() {
        return std::future::pending().await;
    }
    loop {
        // Looked up when the timer fires rather than reset with every byte.
        let until = shared.lock().last + timeout;
        if until <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(until).await;
    }
}

/// Which end of a direction broke.
enum Broken {
    Reading(io::Error),
    Writing(io::Error),
}

/// Runs both directions to their ends. `up` reads from the caller.
async fn join<'a>(
    mut up: Pin<&mut impl Future<Output = Result<Reader<'a>, Broken>>>,
    mut down: Pin<&mut impl Future<Output = Result<Reader<'a>, Broken>>>,
) -> Result<(), CallError> {
    tokio::select! {
        first = &mut up => match first {
            Ok(half) => tokio::select! {
                second = down => match second {
                    Ok(_) => Ok(()),
                    Err(Broken::Reading(error)) => Err(endpoint_broke(&error)),
                    Err(Broken::Writing(error)) => Err(caller_broke(&error)),
                },
                error = half.failed() => Err(caller_broke(&error)),
            },
            Err(Broken::Reading(error)) => Err(caller_broke(&error)),
            Err(Broken::Writing(error)) => {
                // What the endpoint said before it broke is still in its socket, and ends with its error.
                let _ = down.await;
                Err(endpoint_broke(&error))
            }
        },
        first = &mut down => match first {
            Ok(half) => tokio::select! {
                second = up => match second {
                    Ok(_) => Ok(()),
                    Err(Broken::Reading(error)) => Err(caller_broke(&error)),
                    Err(Broken::Writing(error)) => Err(endpoint_broke(&error)),
                },
                error = half.failed() => Err(endpoint_broke(&error)),
            },
            Err(Broken::Reading(error)) => Err(endpoint_broke(&error)),
            Err(Broken::Writing(error)) => {
                let _ = up.await;
                Err(caller_broke(&error))
            }
        },
    }
}

fn caller_broke(error: &io::Error) -> CallError {
    CallError::downstream(ErrorKind::Cancelled, format!("the caller broke the connection off: {error}"))
}

fn endpoint_broke(error: &io::Error) -> CallError {
    CallError::upstream(ErrorKind::Reset, Retry::Never, format!("the endpoint broke the connection off: {error}"))
}

/// Copies one direction to its end and passes the end on. Gives the reading half back, because a reset
/// can still come there.
async fn one_way<'a>(
    mut from: Reader<'a>,
    mut to: Writer<'a>,
    prefix: Bytes,
    passed: impl Fn(usize, bool),
) -> Result<Reader<'a>, Broken> {
    if !prefix.is_empty() {
        to.write_all(&prefix).await.map_err(Broken::Writing)?;
        passed(prefix.len(), true);
        drop(prefix);
    }
    loop {
        let (n, rest) = poll_fn(|cx| pass_on(&mut from, &mut to, cx)).await?;
        if n == 0 {
            break;
        }
        if !rest.is_empty() {
            to.write_all(&rest).await.map_err(Broken::Writing)?;
        }
        passed(n, false);
        if n == SCRATCH_BYTES && bulk(&from, &mut to, &passed).await? {
            break;
        }
    }
    to.shutdown().await.map_err(Broken::Writing)?;
    Ok(from)
}

/// Passes on what is there, without a buffer of this direction's own. Returns how much that was, 0 at the end, and
/// what of it is still to be written.
fn pass_on(from: &mut Reader<'_>, to: &mut Writer<'_>, cx: &mut Context<'_>) -> Poll<Result<(usize, Vec<u8>), Broken>> {
    with_scratch(|scratch| {
        let mut buffer = ReadBuf::new(scratch);
        ready!(Pin::new(from).poll_read(cx, &mut buffer)).map_err(Broken::Reading)?;
        let read = buffer.filled();
        if read.is_empty() {
            return Poll::Ready(Ok((0, Vec::new())));
        }
        let written = match Pin::new(to).poll_write(cx, read) {
            Poll::Ready(written) => written.map_err(Broken::Writing)?,
            Poll::Pending => 0,
        };
        Poll::Ready(Ok((read.len(), read[written..].to_vec())))
    })
}

/// Copies in large pieces for as long as there is something to read. Returns whether that was all.
async fn bulk(from: &Reader<'_>, to: &mut Writer<'_>, passed: &impl Fn(usize, bool)) -> Result<bool, Broken> {
    let mut buffer = Vec::with_capacity(BULK_BUFFER_BYTES);
    loop {
        // Not the polling kind: that one is pending, too, when the task has had its turn. Writing is what yields here.
        match from.try_read_buf(&mut buffer) {
            Ok(0) => return Ok(true),
            Ok(n) => {
                to.write_all(&buffer).await.map_err(Broken::Writing)?;
                passed(n, false);
                buffer.clear();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(Broken::Reading(error)),
        }
    }
}
