//! Strict request framing in front of hyper.
//!
//! hyper reads requests as leniently as RFC 9112 allows: it takes a bare LF for a line end, prefers
//! `Transfer-Encoding` over `Content-Length`, and merges equal lengths. Each of these is read otherwise by
//! some server behind a proxy, which is how requests are smuggled. [`Guard`] follows the framing of every
//! request as the bytes pass, and where it is not beyond doubt it puts a NUL in place of the offending
//! byte: hyper then answers 400 itself, after the answers to requests before it, and closes.

mod framing;

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use self::framing::{Framing, Step};

/// How long and how much a refused peer may go on sending before the connection is closed. Closing with
/// unread bytes would reset the connection, and the reset could overtake the 400.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 * 1024;

/// Passes a connection's bytes, and nothing of a malformed request.
pub(super) struct Guard<T> {
    io: T,
    framing: Framing,
    /// Bytes read after the point where the guard waits.
    held: Vec<u8>,
    gate: Gate,
    linger: Option<(Pin<Box<Sleep>>, usize)>,
}

/// The handler's side of a [`Guard`].
#[derive(Clone)]
pub(super) struct Gate(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    mode: Mode,
    violation: Option<&'static str>,
    waiting: Option<Waker>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Mode {
    /// Requests follow each other.
    #[default]
    Http,
    /// What follows is no longer HTTP.
    Tunnel,
    /// What follows depends on the answer to a request for an upgrade.
    Undecided,
    /// A malformed request came; nothing passes any more.
    Refused,
}

impl Gate {
    /// The connection has left HTTP: everything passes from now on.
    pub(super) fn tunnel(&self) {
        self.decide(Mode::Tunnel);
    }

    /// The upgrade was not granted: the next request may come.
    pub(super) fn http(&self) {
        self.decide(Mode::Http);
    }

    /// What was wrong with the request that ended the connection, if one did.
    pub(super) fn violated(&self) -> Option<&'static str> {
        self.0.lock().violation
    }

    fn decide(&self, mode: Mode) {
        let mut state = self.0.lock();
        // A decision before the guard has reached the end of the request counts as well.
        if state.mode != Mode::Refused {
            state.mode = mode;
        }
        if let Some(waker) = state.waiting.take() {
            waker.wake();
        }
    }
}

impl<T> Guard<T> {
    /// Guards `io`. Heads, and trailers, of more than `max_head` bytes are refused.
    pub(super) fn new(io: T, max_head: usize) -> (Self, Gate) {
        let gate = Gate(Arc::default());
        (Self { io, framing: Framing::new(max_head), held: Vec::new(), gate: gate.clone(), linger: None }, gate)
    }

    /// Checks what `buf` holds from `start` on, and leaves in it what may pass.
    fn check(&mut self, buf: &mut ReadBuf<'_>, start: usize) {
        let filled = buf.filled_mut();
        match self.framing.advance(&filled[start..]) {
            Step::Pass => {}
            Step::Upgrade { at } => {
                let end = start + at;
                let mut state = self.gate.0.lock();
                state.mode = Mode::Undecided;
                drop(state);
                self.held.splice(..0, filled[end..].iter().copied());
                buf.set_filled(end);
            }
            Step::Violation { at, what } => {
                let end = start + at;
                filled[end] = 0;
                buf.set_filled(end + 1);
                self.held = Vec::new();
                let mut state = self.gate.0.lock();
                state.mode = Mode::Refused;
                state.violation = Some(what);
            }
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Guard<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mode = {
            let mut state = this.gate.0.lock();
            if matches!(state.mode, Mode::Undecided | Mode::Refused) {
                state.waiting = Some(cx.waker().clone());
                return Poll::Pending;
            }
            state.mode
        };
        let start = buf.filled().len();
        if this.held.is_empty() {
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        } else {
            let n = this.held.len().min(buf.remaining());
            buf.put_slice(&this.held[..n]);
            this.held.drain(..n);
        }
        if mode == Mode::Http {
            this.check(buf, start);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        if this.gate.0.lock().mode != Mode::Refused {
            return Poll::Ready(Ok(()));
        }
        let (timer, read) = this.linger.get_or_insert_with(|| (Box::pin(sleep(LINGER)), 0));
        let mut scratch = [0u8; 4096];
        while *read < LINGER_BYTES && timer.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut this.io).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => *read += buf.filled().len(),
                // The peer has closed, or is gone.
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn a_malformed_request_ends_in_a_nul_and_nothing_after_it_passes() {
        let (mut client, server) = duplex(4096);
        let (mut guard, gate) = Guard::new(server, 1024);
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\nHost: b\r\n\r\n").await.unwrap();
        let mut seen = vec![0; 4096];
        let n = guard.read(&mut seen).await.unwrap();
        assert_eq!(&seen[..n], b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\0");
        assert_eq!(gate.violated(), Some("bare LF"));
        client.write_all(b"more").await.unwrap();
        let again = tokio::time::timeout(Duration::from_millis(1), guard.read(&mut seen)).await;
        assert!(again.is_err(), "nothing passes any more");
        drop(client);
        guard.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn a_request_for_an_upgrade_waits_for_the_answer() {
        let request = b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n";
        for tunnel in [true, false] {
            let (mut client, server) = duplex(4096);
            let (mut guard, gate) = Guard::new(server, 1024);
            client.write_all(request).await.unwrap();
            client.write_all(if tunnel { b"\n\0raw" } else { b"GET /\0raw" }).await.unwrap();
            let mut seen = vec![0; 4096];
            let n = guard.read(&mut seen).await.unwrap();
            assert_eq!(&seen[..n], request);
            assert!(tokio::time::timeout(Duration::from_millis(1), guard.read(&mut seen)).await.is_err());
            if tunnel {
                gate.tunnel();
                let n = guard.read(&mut seen).await.unwrap();
                assert_eq!(&seen[..n], b"\n\0raw");
            } else {
                gate.http();
                drop(client);
                while guard.read(&mut seen).await.unwrap() > 0 {}
                assert_eq!(gate.violated(), None, "the line has not ended, so nothing is known of it");
            }
        }
    }
}
