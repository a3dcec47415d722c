//! [`Outbox`]: frames waiting to be written, bodies never copied.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use super::codec::{Head, encode_head};
use crate::call::{Extra, Pairs};

/// Slices in one `writev`: 32 frames, a few microseconds of work for the kernel.
const SLICES: usize = 64;
/// Room for heads kept while nothing is written, in bytes.
const KEEP: usize = 256 * 1024;

/// Frames waiting to be written: heads back to back in one buffer that is reused, bodies as they came.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    heads: BytesMut,
    frames: VecDeque<Waiting>,
    /// Written of the first frame.
    begun: usize,
    body_bytes: usize,
    written: u64,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    head_len: usize,
    body: Bytes,
    /// Nobody wants it any more; its head is still in `heads`.
    skip: bool,
}

impl Outbox {
    /// Appends a frame.
    pub(super) fn push(&mut self, head: Head, meta: &Pairs, extras: &[Extra<'_>], body: Bytes) {
        let before = self.heads.len();
        encode_head(head, meta, extras, body.len(), &mut self.heads);
        self.push_waiting(head.id, self.heads.len() - before, body);
    }

    /// Appends bytes that are complete as they are.
    pub(super) fn push_raw(&mut self, bytes: Bytes) {
        self.push_waiting(0, 0, bytes);
    }

    fn push_waiting(&mut self, id: u64, head_len: usize, body: Bytes) {
        self.body_bytes += body.len();
        self.frames.push_back(Waiting { id, head_len, body, skip: false });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Frames not wholly written.
    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    /// Bytes of the bodies of frames not wholly written.
    pub(super) const fn body_bytes(&self) -> usize {
        self.body_bytes
    }

    /// Bytes written since the beginning: whether there is progress.
    pub(super) const fn written(&self) -> u64 {
        self.written
    }

    /// Drops frames for which `wanted` says no, unless they are begun.
    pub(super) fn retain(&mut self, mut wanted: impl FnMut(u64) -> bool) {
        let begun = usize::from(self.begun > 0);
        for frame in self.frames.iter_mut().skip(begun).filter(|f| !f.skip && !wanted(f.id)) {
            frame.skip = true;
            self.body_bytes -= frame.body.len();
            frame.body = Bytes::new();
        }
        self.drop_skipped();
    }

    /// Ids of frames of which no byte was written.
    pub(super) fn untouched(&self) -> impl Iterator<Item = u64> + '_ {
        self.frames.iter().skip(usize::from(self.begun > 0)).map(|f| f.id)
    }

    /// Writes until everything is out. `Pending` may have written something: see [`Outbox::written`].
    pub(super) fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        io: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let filled = self.slices(&mut slices);
            let n = ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices[..filled]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(n);
        }
        Poll::Ready(Ok(()))
    }

    fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES]) -> usize {
        let (mut filled, mut at, mut begun) = (0, 0, self.begun);
        for frame in &self.frames {
            let head = &self.heads[at..at + frame.head_len];
            at += frame.head_len;
            if frame.skip {
                continue;
            }
            let from = begun.min(head.len());
            for part in [&head[from..], &frame.body[begun - from..]] {
                if !part.is_empty() {
                    slices[filled] = IoSlice::new(part);
                    filled += 1;
                }
            }
            begun = 0;
            if filled + 2 > SLICES {
                break;
            }
        }
        filled
    }

    fn advance(&mut self, mut n: usize) {
        self.written += n as u64;
        while n > 0 {
            let first = self.frames.front().expect("no more is written than there is");
            let left = first.head_len + first.body.len() - self.begun;
            if n < left {
                self.begun += n;
                return;
            }
            n -= left;
            self.begun = 0;
            self.pop();
            self.drop_skipped();
        }
    }

    fn drop_skipped(&mut self) {
        while self.begun == 0 && self.frames.front().is_some_and(|f| f.skip) {
            self.pop();
        }
    }

    fn pop(&mut self) {
        let Some(first) = self.frames.pop_front() else { return };
        self.heads.advance(first.head_len);
        self.body_bytes -= first.body.len();
        if self.frames.is_empty() {
            // Back to the start of the buffer: a steady state allocates nothing. Giant metadata must not
            // stay for as long as the connection, though.
            if self.heads.capacity() > KEEP { self.heads = BytesMut::new() } else { self.heads.clear() }
        }
    }
}
