//! [`Watched`]: a streamed body that tells someone how it ended.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::CallError;

/// Told about a body's bytes and end. Dropping the body before its end drops the watcher without
/// [`Watch::end`], which is how a watcher learns that the reader went away.
pub trait Watch: Send + Sync + Unpin + 'static {
    /// `len` payload bytes passed towards the caller.
    fn data(&mut self, len: usize);
    /// `len` payload bytes passed towards the endpoint (connections that are copied both ways).
    fn sent(&mut self, _len: usize) {}
    /// The body is complete, or broke with `error`. Called at most once.
    fn end(&mut self, error: Option<&CallError>);
    /// The call never took place as far as anyone counts: detection opened a connection in vain.
    fn abandon(self: Box<Self>) {}
}

/// A body that passes everything on and reports to `W`.
pub struct Watched<B, W> {
    inner: B,
    watch: Option<W>,
}

impl<B: HttpBody<Data = Bytes, Error = CallError> + Unpin, W: Watch> Watched<B, W> {
    /// Watches `inner`. A body known to be empty ends at once.
    pub fn new(inner: B, mut watch: W) -> Self {
        let watch = if inner.is_end_stream() {
            watch.end(None);
            None
        } else {
            Some(watch)
        };
        Self { inner, watch }
    }
}

impl<B: HttpBody<Data = Bytes, Error = CallError> + Unpin, W: Watch> HttpBody for Watched<B, W> {
    type Data = Bytes;
    type Error = CallError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CallError>>> {
        let this = &mut *self;
        let polled = std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let Some(watch) = &mut this.watch {
            match &polled {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        watch.data(data.len());
                    }
                    // hyper does not ask again after a body said it is at its end.
                    if this.inner.is_end_stream() {
                        watch.end(None);
                        this.watch = None;
                    }
                }
                Some(Err(error)) => {
                    watch.end(Some(error));
                    this.watch = None;
                }
                None => {
                    watch.end(None);
                    this.watch = None;
                }
            }
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
