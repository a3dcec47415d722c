//! [`Inbox`]: the read side of a connection, from bytes to frames.

use std::{
    future::Future,
    io,
    pin::pin,
    task::{Context, Poll},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::codec::{DecodeError, Decoded, decode, room};

/// First read buffer of a connection, bytes: some thirty usual frames.
const CHUNK: usize = 8 * 1024;
/// What it grows to when the peer fills it.
const MAX_CHUNK: usize = 64 * 1024;
/// A buffer larger than this is not kept once its frame is out of it.
const KEEP: usize = 256 * 1024;

/// Bytes that came and the frames in them. Frames share the buffer they came in.
#[derive(Debug)]
pub(super) struct Inbox {
    buffer: BytesMut,
    chunk: usize,
    /// Length that the first frame in the buffer is known to have at least.
    want: usize,
    limit: usize,
}

impl Inbox {
    /// Empty; `limit` bounds metadata and body of each frame.
    pub(super) fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), chunk: CHUNK, want: 0, limit }
    }

    /// Whether nothing is left of what came.
    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Reads once. 0 is the end of the stream.
    pub(super) fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        io: &mut R,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let have = self.buffer.len();
        let missing = self.want.saturating_sub(have);
        if self.spare() < missing.max(self.chunk / 4) {
            self.buffer.reserve(if missing == 0 { self.chunk } else { room(have, self.want, self.chunk) });
        }
        let spare = self.spare();
        let read = pin!(io.read_buf(&mut self.buffer)).poll(cx);
        if matches!(read, Poll::Ready(Ok(n)) if n == spare) {
            self.chunk = (self.chunk * 2).min(MAX_CHUNK);
        }
        read
    }

    /// The next whole frame, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<Decoded>, DecodeError> {
        if self.buffer.is_empty() {
            self.want = 0;
            if self.buffer.capacity() > KEEP {
                self.buffer = BytesMut::new();
            }
            return Ok(None);
        }
        Ok(match decode(&mut self.buffer, self.limit)? {
            Decoded::NeedMore(want) => {
                self.want = want;
                None
            }
            whole => Some(whole),
        })
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    fn spare(&self) -> usize {
        self.buffer.capacity() - self.buffer.len()
    }
}
