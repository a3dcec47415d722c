//! A caller's connection with a strict look at its input, in front of hyper.
//!
//! hyper lets pass some of what other servers read another way. [`Guard`] holds each head and chunk line
//! until [`Framer`] has judged it, and puts a stand-in where it refuses one, so that hyper asks the
//! service for the answer in the right turn and closes after it. It also keeps the times: for a head to
//! arrive, for a connection to be idle, for a peer to take an answer to what it should not have sent.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use super::{
    framer::{Framer, Stop},
    head::Refusal,
};
use crate::{
    accept::Downstream,
    config,
    protocol::tcp::reset_on_close,
    stream::{Stream, with_scratch},
};

/// How long an answer given in the middle of a request may take to be read before the connection goes.
/// Closing at once would reset it, and the reset would overtake the answer.
const LINGER: Duration = Duration::from_secs(2);
/// How long a connection must have been idle for hyper's buffers to be given back, 16 KiB and more.
const PARK_IDLE: Duration = Duration::from_millis(200);
/// How long a connection must have been idle to be closed by a stop. One that was used a moment ago will
/// probably be used again in a moment, and that request then gets its answer with `Connection: close`.
const DRAIN_IDLE: Duration = Duration::from_millis(500);
/// Early bytes of a protocol that comes after HTTP, kept before its answer is known.
const MAX_EARLY_BYTES: usize = 64 * 1024;

/// What the guard and the service on top of hyper tell each other.
#[derive(Default)]
pub(super) struct Shared {
    refused: OnceLock<(u64, Refusal)>,
    resume: Mutex<Resume>,
    /// Calls whose answer is not through.
    pub(super) busy: AtomicUsize,
    /// A stop was asked for: no request after those that come now.
    pub(super) draining: AtomicBool,
    /// The connection must not look as if it ended well.
    pub(super) broken: AtomicBool,
}

#[derive(Default)]
struct Resume {
    asked: bool,
    waker: Option<Waker>,
}

impl Shared {
    /// Why the request with this number, counted from 0, was refused.
    pub(super) fn refusal(&self, request: u64) -> Option<Refusal> {
        self.refused.get().filter(|(number, _)| *number == request).map(|(_, refusal)| *refusal)
    }

    /// HTTP goes on after a request that asked to leave it. To be called exactly once for each such
    /// request that did not leave it.
    pub(super) fn resume(&self) {
        let mut resume = self.resume.lock();
        resume.asked = true;
        if let Some(waker) = resume.waker.take() {
            waker.wake();
        }
    }
}

/// What a connection without hyper has come to.
pub(super) enum Came<T> {
    /// A request that was taken.
    Whole(T),
    /// Something else, which was not consumed.
    Other,
    /// The caller's end, or that of its time.
    End,
}

/// The connection as hyper sees it.
pub(super) struct Guard {
    // `None` only after `into_parts`.
    io: Option<Downstream>,
    framer: Framer,
    shared: Arc<Shared>,
    header_timeout: Duration,
    idle_timeout: Duration,
    /// When a byte came last.
    last: Instant,
    /// When the head under way began.
    head_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    /// hyper has more to write than the peer reads.
    blocked: bool,
    /// hyper was told that the input has ended, so that its state can go while nothing happens.
    parked: bool,
    ending: Option<Pin<Box<Sleep>>>,
}

impl Guard {
    pub(super) fn new(io: Downstream, shared: Arc<Shared>, limits: &config::Limits) -> Self {
        Self {
            io: Some(io),
            framer: Framer::new(limits.header_bytes),
            shared,
            header_timeout: limits.header_timeout,
            idle_timeout: limits.idle_timeout,
            last: Instant::now(),
            head_since: None,
            timer: None,
            blocked: false,
            parked: false,
            ending: None,
        }
    }

    /// The socket, and what came from it and did not go to hyper.
    pub(super) fn into_parts(mut self) -> (Stream, Bytes) {
        let io = self.io.take().expect("only this takes it, and it takes `self`");
        let framer = std::mem::replace(&mut self.framer, Framer::new(0));
        let (socket, prefix) = io.into_parts();
        debug_assert!(prefix.is_empty(), "HTTP was spoken, so the prefix was read");
        (socket, framer.into_rest())
    }

    /// Whether hyper has ended only because nothing happened.
    pub(super) const fn is_parked(&self) -> bool {
        self.parked
    }

    /// Whether hyper has ended with something left to write, which it does when HTTP is left.
    pub(super) const fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Without hyper, and with nothing under way: waits for the next request and has `take` look at it, with the
    /// limit of heads. What that does not take is there again for hyper. Cancel safe.
    pub(super) fn poll_whole<T>(
        &mut self,
        cx: &mut Context<'_>,
        take: impl Fn(&[u8], usize) -> Option<T>,
    ) -> Poll<io::Result<Came<T>>> {
        self.parked = false;
        if !self.framer.is_between_messages() {
            return Poll::Ready(Ok(Came::Other));
        }
        let came = with_scratch(|scratch| {
            let mut seen = ReadBuf::new(scratch);
            ready!(self.io().poll_read(cx, &mut seen))?;
            let seen = seen.filled();
            if seen.is_empty() {
                return Poll::Ready(Ok(Came::End));
            }
            self.last = Instant::now();
            // The last answers tell the caller to close, which is for hyper.
            let draining = self.shared.draining.load(Relaxed);
            Poll::Ready(Ok(match take(seen, self.framer.header_bytes()).filter(|_| !draining) {
                Some(whole) => Came::Whole(whole),
                None => {
                    self.unread(Bytes::copy_from_slice(seen));
                    Came::Other
                }
            }))
        });
        if came.is_ready() {
            return came;
        }
        ready!(self.poll_time(cx, None));
        Poll::Ready(Ok(Came::End))
    }

    /// While a request is answered without hyper: ready when its caller has ended the connection. What it sends
    /// meanwhile stays for later.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.io().has_unread() {
            return Poll::Pending;
        }
        let early = with_scratch(|scratch| {
            let mut seen = ReadBuf::new(scratch);
            ready!(self.io().poll_read(cx, &mut seen))?;
            Poll::Ready(io::Result::Ok(Bytes::copy_from_slice(seen.filled())))
        });
        let early = ready!(early)?;
        if early.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.unread(early);
        Poll::Pending
    }

    /// Puts bytes back in front of all that were not read.
    pub(super) fn unread(&mut self, bytes: Bytes) {
        self.io.as_mut().expect("only `into_parts` takes it, and that takes `self`").unread(bytes);
    }

    /// Something happened on the connection just `now`.
    pub(super) const fn moved(&mut self, now: Instant) {
        self.last = now;
    }

    fn io(&mut self) -> Pin<&mut Downstream> {
        Pin::new(self.io.as_mut().expect("only `into_parts` takes it, and that takes `self`"))
    }

    /// Whether HTTP goes on; else the service will wake `cx`.
    fn may_resume(&self, cx: &Context<'_>) -> bool {
        let mut resume = self.shared.resume.lock();
        if std::mem::take(&mut resume.asked) {
            return true;
        }
        resume.waker = Some(cx.waker().clone());
        false
    }

    fn deadline(&self) -> Option<Instant> {
        match self.head_since {
            Some(since) => Some(since + self.header_timeout),
            None if self.shared.draining.load(Relaxed) && self.framer.is_between_messages() => {
                Some(self.last + DRAIN_IDLE)
            }
            None => (!self.idle_timeout.is_zero()).then(|| self.last + self.idle_timeout),
        }
    }

    /// Ready when what is waited for did not come in time, or has been waited for so long that it is
    /// better done without hyper.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let park = self.framer.is_between_messages().then_some(PARK_IDLE);
        self.poll_time(cx, park)
    }

    /// Ready at the deadline, or after so long without a byte.
    fn poll_time(&mut self, cx: &mut Context<'_>, idle: Option<Duration>) -> Poll<()> {
        loop {
            let idle = idle.map(|idle| self.last + idle);
            let Some(deadline) = self.deadline().into_iter().chain(idle).min() else { return Poll::Pending };
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            // A timer that fires too early is cheaper than one that is moved with every byte.
            if timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }

    fn refused(&mut self, refusal: Option<Refusal>) {
        if let Some(refusal) = refusal {
            self.framer.refuse(refusal);
        }
        if let Some(refused) = self.framer.refused() {
            // Set once: nothing is judged after the first refusal.
            let _ = self.shared.refused.set(refused);
        }
    }
}

impl AsyncRead for Guard {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let start = buf.filled().len();
        loop {
            let stop = this.framer.pull(buf);
            this.refused(None);
            if !this.framer.is_in_head() {
                this.head_since = None;
            }
            if buf.filled().len() > start {
                return Poll::Ready(Ok(()));
            }
            match stop {
                Stop::Dead => return Poll::Pending,
                Stop::Held if this.may_resume(cx) => {
                    this.framer.resume();
                    continue;
                }
                Stop::Held if this.framer.held_bytes() > MAX_EARLY_BYTES => return Poll::Pending,
                Stop::Held | Stop::Empty | Stop::Full => {}
            }
            match this.io().poll_read(cx, buf) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    ready!(this.poll_deadline(cx));
                    if this.head_since.take().is_some() {
                        let status = StatusCode::REQUEST_TIMEOUT;
                        this.refused(Some(Refusal { status, reason: "the head of the request did not come in time" }));
                        continue;
                    }
                    if this.shared.busy.load(Relaxed) > 0 || this.blocked {
                        this.last = Instant::now();
                        continue;
                    }
                    if this.framer.is_between_messages() {
                        this.parked = this.deadline().is_none_or(|deadline| Instant::now() < deadline);
                        return Poll::Ready(Ok(()));
                    }
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
            let fresh = buf.filled().len() - start;
            if fresh == 0 {
                return Poll::Ready(Ok(()));
            }
            let direct = this.framer.push(&buf.filled()[start..]);
            buf.set_filled(start + direct);
            this.last = Instant::now();
            if direct > 0 {
                // What else may pass goes along as far as there is room.
                this.framer.pull(buf);
                this.refused(None);
                this.head_since = this.framer.is_in_head().then_some(this.last);
                return Poll::Ready(Ok(()));
            }
            if this.framer.is_in_head() {
                this.head_since.get_or_insert(this.last);
            }
        }
    }
}

impl AsyncWrite for Guard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.io().poll_write(cx, data);
        self.blocked = written.is_pending();
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.io().poll_write_vectored(cx, data);
        self.blocked = written.is_pending();
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.parked {
            // hyper has written everything, and only hyper ends.
            return Poll::Ready(Ok(()));
        }
        if this.ending.is_none() {
            ready!(this.io().poll_shutdown(cx))?;
            if this.framer.is_between_messages() {
                return Poll::Ready(Ok(()));
            }
            this.ending = Some(Box::pin(tokio::time::sleep(LINGER)));
        }
        loop {
            let mut scratch = [0; 4096];
            let mut buf = ReadBuf::new(&mut scratch);
            match this.io().poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                // The peer's end, or its reset: it needs no more patience.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
            if this.ending.as_ref().is_some_and(|end| end.deadline() <= Instant::now()) {
                return Poll::Ready(Ok(()));
            }
        }
        match &mut this.ending {
            Some(end) => end.as_mut().poll(cx).map(Ok),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(io) = self.io.as_ref().filter(|_| self.shared.broken.load(Relaxed)) {
            reset_on_close(io.socket());
        }
    }
}
