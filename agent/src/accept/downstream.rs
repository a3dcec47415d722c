//! [`Downstream`]: a program's end of a connection.

use std::{
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{metrics::Live, stream::Stream};

/// A program's connection: what detection read comes first again, and every byte is counted.
pub struct Downstream {
    io: Stream,
    prefix: Bytes,
    live: Arc<Live>,
}

impl Downstream {
    /// Puts `prefix` back in front of `io`.
    pub fn new(io: Stream, prefix: Bytes, live: Arc<Live>) -> Self {
        live.received.fetch_add(prefix.len() as u64, Relaxed);
        Self { io, prefix, live }
    }

    /// The socket and what was read of it but not consumed. Whoever takes it counts bytes itself.
    pub fn into_parts(self) -> (Stream, Bytes) {
        (self.io, self.prefix)
    }

    /// Puts bytes that were read from it back, in front of all others.
    pub fn unread(&mut self, bytes: Bytes) {
        self.prefix = if self.prefix.is_empty() { bytes } else { [bytes, self.prefix.split_off(0)].concat().into() };
    }

    /// Whether there are bytes that were put back.
    pub const fn has_unread(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// The socket, for its options and addresses.
    pub const fn socket(&self) -> &TcpStream {
        self.io.socket()
    }
}

impl AsyncRead for Downstream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.has_remaining() {
            let n = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix.split_to(n));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.live.received.fetch_add((buf.filled().len() - before) as u64, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Downstream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.io).poll_write(cx, data))?;
        self.live.sent.fetch_add(n as u64, Relaxed);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, data))?;
        self.live.sent.fetch_add(n as u64, Relaxed);
        Poll::Ready(Ok(n))
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
