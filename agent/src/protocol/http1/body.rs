//! Bodies between hyper and the pipeline: four kinds, one for each place where one is handed over.

use std::{
    error::Error,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::{guard::Shared, pool::Lease};
use crate::call::{Body, CallError, ErrorKind, Retry};

/// How long an endpoint may keep a caller waiting that asked before sending its body. Endpoints that do
/// not know `Expect` never answer it (RFC 9110 section 10.1.1).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// A request's body as it comes from a caller. The first poll makes hyper send `100 Continue` if the
/// caller waits for it.
pub(super) struct FromCaller {
    pub(super) inner: Incoming,
    pub(super) polled: Arc<AtomicBool>,
    pub(super) shared: Arc<Shared>,
    pub(super) request: u64,
}

impl HttpBody for FromCaller {
    type Data = Bytes;
    type Error = CallError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CallError>>> {
        let this = &mut *self;
        this.polled.store(true, Ordering::Relaxed);
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            frame.map_err(|error| match this.shared.refusal(this.request) {
                Some(refusal) => CallError::downstream(ErrorKind::Protocol, refusal.reason),
                None => {
                    let message = format!("the caller broke the request off: {}", chain(&error));
                    CallError::downstream(ErrorKind::Cancelled, message)
                }
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// What the sender of a request and its body tell each other.
#[derive(Default)]
pub(super) struct Sending {
    /// The whole body has left.
    done: AtomicBool,
    gate: AtomicU8,
    waker: AtomicWaker,
}

const CLOSED_FOR_NOW: u8 = 0;
const OPEN: u8 = 1;
const CLOSED_FOR_GOOD: u8 = 2;

impl Sending {
    /// Whether the whole body has left.
    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// The endpoint wants the body.
    pub(super) fn go_on(&self) {
        let _ = self.gate.compare_exchange(CLOSED_FOR_NOW, OPEN, Ordering::AcqRel, Ordering::Acquire);
        self.waker.wake();
    }

    /// The endpoint has answered: a body that has not begun never will.
    pub(super) fn answered(&self) {
        let _ = self.gate.compare_exchange(CLOSED_FOR_NOW, CLOSED_FOR_GOOD, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// A request's body on its way to an endpoint.
pub(super) struct ToEndpoint {
    body: Body,
    sending: Arc<Sending>,
    /// Waits for `100 Continue` until then.
    wait: Option<Pin<Box<Sleep>>>,
}

impl ToEndpoint {
    /// With `expects`, nothing of `body` is asked for before the endpoint wants it or has been given
    /// time enough.
    pub(super) fn new(body: Body, expects: bool) -> Self {
        let sending = Arc::new(Sending::default());
        if matches!(body, Body::Empty) {
            sending.done.store(true, Ordering::Release);
        }
        let wait = expects.then(|| Box::pin(tokio::time::sleep(CONTINUE_WAIT)));
        Self { body, sending, wait }
    }

    pub(super) const fn sending(&self) -> &Arc<Sending> {
        &self.sending
    }

    /// The body, of a request that was not sent.
    pub(super) fn into_inner(self) -> Body {
        self.body
    }

    fn poll_gate(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(wait) = &mut self.wait else { return Poll::Ready(()) };
        self.sending.waker.register(cx.waker());
        match self.sending.gate.load(Ordering::Acquire) {
            OPEN => {}
            // The answer goes on being read while this waits for ever; the connection is not used again.
            CLOSED_FOR_GOOD => return Poll::Pending,
            _ => {
                ready!(wait.as_mut().poll(cx));
                self.sending.go_on();
            }
        }
        self.wait = None;
        Poll::Ready(())
    }
}

impl HttpBody for ToEndpoint {
    type Data = Bytes;
    type Error = CallError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CallError>>> {
        let this = &mut *self;
        ready!(this.poll_gate(cx));
        let (frame, done) = match &mut this.body {
            Body::Empty => (None, true),
            Body::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.body = Body::Empty;
                (Some(Ok(Frame::data(bytes))), true)
            }
            Body::Stream(body) => {
                let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
                let done = match &frame {
                    None => true,
                    Some(Ok(frame)) => frame.is_trailers() || body.is_end_stream(),
                    Some(Err(_)) => false,
                };
                (frame, done)
            }
        };
        if done {
            this.sending.done.store(true, Ordering::Release);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Body::Empty => true,
            Body::Full(bytes) => bytes.is_empty(),
            Body::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        size_hint(&self.body)
    }
}

/// An answer's body as it comes from an endpoint. Gives the connection back at its end and closes it
/// when dropped before.
pub(super) struct FromEndpoint {
    inner: Incoming,
    lease: Option<Lease>,
    /// Trailers have come. hyper's writer stops asking after them, so it must be said.
    ended: bool,
    /// Told with the next poll.
    broken: Option<CallError>,
}

impl FromEndpoint {
    pub(super) fn new(inner: Incoming, lease: Lease) -> Self {
        Self { inner, lease: Some(lease), ended: false, broken: None }
    }

    fn over(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

impl HttpBody for FromEndpoint {
    type Data = Bytes;
    type Error = CallError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CallError>>> {
        let this = &mut *self;
        if let Some(error) = this.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let mut inner = Pin::new(&mut this.inner);
        let frame = match &mut this.lease {
            Some(lease) => lease.conn.poll_with(cx, |cx| inner.as_mut().poll_frame(cx)),
            None => inner.poll_frame(cx),
        };
        match ready!(frame) {
            Some(Err(error)) => {
                let endpoint = this.lease.take().map(|lease| lease.endpoint());
                let kind = if is_garbage(&error) { ErrorKind::Protocol } else { ErrorKind::Reset };
                let message = format!("the endpoint broke off in the middle of its answer: {}", chain(&error));
                this.broken = Some(CallError { endpoint, ..CallError::upstream(kind, Retry::Never, message) });
                // hyper writes out what came before only when it has to wait.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Ok(frame)) => {
                this.ended = frame.is_trailers();
                if this.is_end_stream() {
                    this.over();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            None => {
                this.over();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// An answer's body on its way to the caller.
pub(super) struct ToCaller {
    pub(super) body: Body,
    pub(super) shared: Arc<Shared>,
    /// Only the end of the connection will tell the caller where the answer ends.
    pub(super) close_delimited: bool,
}

impl HttpBody for ToCaller {
    type Data = Bytes;
    type Error = CallError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CallError>>> {
        let this = &mut *self;
        match &mut this.body {
            Body::Empty => Poll::Ready(None),
            Body::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.body = Body::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Body::Stream(body) => {
                let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
                if this.close_delimited && matches!(frame, Some(Err(_))) {
                    this.shared.broken.store(true, Ordering::Relaxed);
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Body::Empty => true,
            Body::Full(bytes) => bytes.is_empty(),
            Body::Stream(body) => UnsyncBoxBody::is_end_stream(body),
        }
    }

    fn size_hint(&self) -> SizeHint {
        size_hint(&self.body)
    }
}

impl Drop for ToCaller {
    fn drop(&mut self) {
        self.shared.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

fn size_hint(body: &Body) -> SizeHint {
    match body {
        Body::Empty => SizeHint::with_exact(0),
        Body::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
        Body::Stream(body) => body.size_hint(),
    }
}

/// Whether a peer sent something that is no HTTP, as opposed to too little.
pub(super) fn is_garbage(error: &hyper::Error) -> bool {
    let invalid = |error: &std::io::Error| {
        matches!(error.kind(), std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData)
    };
    error.is_parse() || source(error).is_some_and(invalid)
}

/// The first error of type `T` below `error`.
pub(super) fn source<T: Error + 'static>(error: &hyper::Error) -> Option<&T> {
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// An error with its causes in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
