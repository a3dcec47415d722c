//! Frames to bytes and back, without I/O (docs/wire/motan2.md, "Frame").

use bytes::{BufMut, Bytes, BytesMut};

use crate::call::{Extra, Pairs};

/// First two bytes of every frame, Motan1's too.
pub(super) const MAGIC: [u8; 2] = [0xf1, 0xf1];
/// Up to and with the length of the metadata.
const HEAD_LEN: usize = 17;
/// Motan1's outer head.
const MOTAN1_HEAD_LEN: usize = 16;
const VERSION: u8 = 1;

/// Bits of the third byte.
pub(super) mod kind {
    /// An answer; clear in a request.
    pub const RESPONSE: u8 = 0x01;
    /// Some proxy passed it on.
    pub const PROXY: u8 = 0x02;
    /// The caller does not wait for an answer.
    pub const ONE_WAY: u8 = 0x04;
    /// The body is a gzip member.
    pub const GZIP: u8 = 0x08;
    /// No call at all.
    pub const HEARTBEAT: u8 = 0x10;
}

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Bits of [`kind`].
    pub kind: u8,
    /// 0 normal, 1 exception.
    pub status: u8,
    /// Serialization number.
    pub serialization: u8,
    /// Request id.
    pub id: u64,
}

impl Head {
    pub(super) const fn is(&self, bit: u8) -> bool {
        self.kind & bit != 0
    }
}

/// One frame. Metadata and body share the buffer they were read into.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub head: Head,
    pub meta: Pairs,
    pub body: Bytes,
}

/// What [`decode`] found at the start of its input.
#[derive(Debug)]
pub(super) enum Decoded {
    /// A whole frame, taken out of the input.
    Frame(Frame),
    /// A whole Motan1 message with its outer head, taken out of the input.
    Motan1(Bytes),
    /// Nothing whole yet: what has begun will be at least this long, so that much room is of use.
    NeedMore(usize),
}

/// Input that ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("not Motan: a frame begins with f1f1, this with {0:02x}{1:02x}")]
    Magic(u8, u8),
    #[error("version {0} of Motan is unknown; 1 is Motan2, 0 is Motan1")]
    Version(u8),
    #[error("{0}")]
    Metadata(#[from] crate::call::OddPairs),
    #[error("{part} of {len} bytes is over the limit of {limit} (limits.content_bytes)")]
    TooLarge { part: &'static str, len: usize, limit: usize },
}

/// Takes the first frame out of `input`. Lengths above `limit` (metadata and body each) are an error as
/// soon as they are read, before anyone makes room for them.
pub(super) fn decode(input: &mut BytesMut, limit: usize) -> Result<Decoded, DecodeError> {
    let seen = input.len().min(2);
    if input[..seen] != MAGIC[..seen] {
        return Err(DecodeError::Magic(input[0], input.get(1).copied().unwrap_or(0)));
    }
    match input.get(3).map(|b| b >> 3) {
        Some(VERSION) => {}
        Some(0) => return motan1(input, limit),
        Some(version) => return Err(DecodeError::Version(version)),
        None => return Ok(Decoded::NeedMore(HEAD_LEN + 4)),
    }
    let Some(meta_len) = length(input, 13, "metadata", limit)? else {
        return Ok(Decoded::NeedMore(HEAD_LEN + 4));
    };
    let body_at = HEAD_LEN + meta_len + 4;
    let Some(body_len) = length(input, HEAD_LEN + meta_len, "body", limit)? else {
        return Ok(Decoded::NeedMore(body_at));
    };
    let total = body_at + body_len;
    if input.len() < total {
        return Ok(Decoded::NeedMore(total));
    }
    let bytes = input.split_to(total).freeze();
    let id = u64::from_be_bytes(bytes[5..13].try_into().expect("eight bytes"));
    let head = Head { kind: bytes[2], status: bytes[3] & 7, serialization: bytes[4] >> 3, id };
    let meta = Pairs::parse(bytes.slice(HEAD_LEN..HEAD_LEN + meta_len))?;
    Ok(Decoded::Frame(Frame { head, meta, body: bytes.slice(body_at..) }))
}

fn motan1(input: &mut BytesMut, limit: usize) -> Result<Decoded, DecodeError> {
    let Some(len) = length(input, 12, "Motan1 message", limit)? else {
        return Ok(Decoded::NeedMore(MOTAN1_HEAD_LEN));
    };
    let total = MOTAN1_HEAD_LEN + len;
    if input.len() < total {
        return Ok(Decoded::NeedMore(total));
    }
    Ok(Decoded::Motan1(input.split_to(total).freeze()))
}

fn length(input: &[u8], at: usize, part: &'static str, limit: usize) -> Result<Option<usize>, DecodeError> {
    let Some(bytes) = input.get(at..at + 4) else { return Ok(None) };
    let len = u32::from_be_bytes(bytes.try_into().expect("four bytes")) as usize;
    if len > limit {
        return Err(DecodeError::TooLarge { part, len, limit });
    }
    Ok(Some(len))
}

/// Appends everything of a frame but its body.
pub(super) fn encode_head(head: Head, meta: &Pairs, extras: &[Extra<'_>], body_len: usize, out: &mut BytesMut) {
    out.reserve(HEAD_LEN + 4);
    out.put_slice(&MAGIC);
    out.put_u8(head.kind);
    out.put_u8(VERSION << 3 | head.status);
    out.put_u8(head.serialization << 3);
    out.put_u64(head.id);
    let len_at = out.len();
    out.put_u32(0);
    meta.encode_with(extras, out);
    let meta_len = out.len() - len_at - 4;
    out[len_at..len_at + 4].copy_from_slice(&(meta_len as u32).to_be_bytes());
    out.put_u32(body_len as u32);
}

/// How much room to make in a read buffer holding `have` bytes of something `want` bytes long.
///
/// All of it at once would let a peer claim 10 MiB with a 21 byte head. So at most 32 times what came, or
/// what usually comes: frames of up to 256 KiB are not moved at all, larger ones for less than a tenth.
pub(super) fn room(have: usize, want: usize, chunk: usize) -> usize {
    let step = have.max(chunk).saturating_mul(16);
    let to = if want <= step.saturating_mul(2) { want } else { step };
    to.saturating_sub(have).max(chunk / 2)
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
