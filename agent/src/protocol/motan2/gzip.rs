//! Packing and unpacking of bodies, bounded.

use std::io::{Read, Write};

use bytes::Bytes;
use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};

/// Output up to which unpacking is done in place: well below a millisecond. Above, it moves to a thread
/// that may block, so that one large body does not hold up the calls beside it.
const INLINE: usize = 256 * 1024;

/// Why a body was not unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotUnpacked {
    /// Not gzip, or cut off.
    Broken,
    /// It would be larger than the limit.
    TooLarge,
}

/// Unpacks a gzip body of at most `limit` bytes (unpacked).
pub(super) async fn unpack(body: Bytes, limit: usize) -> Result<Bytes, NotUnpacked> {
    if body.len() <= INLINE {
        match unpack_now(&body, limit.min(INLINE)) {
            Err(NotUnpacked::TooLarge) if limit > INLINE => {}
            done => return done,
        }
    }
    let unpacking = tokio::task::spawn_blocking(move || unpack_now(&body, limit));
    unpacking.await.unwrap_or(Err(NotUnpacked::Broken))
}

fn unpack_now(body: &[u8], limit: usize) -> Result<Bytes, NotUnpacked> {
    let mut out = Vec::with_capacity(body.len().saturating_mul(4).min(limit).min(INLINE));
    // One byte over the limit is enough to know.
    let read = MultiGzDecoder::new(body).take(limit as u64 + 1).read_to_end(&mut out);
    match read {
        Ok(n) if n > limit => Err(NotUnpacked::TooLarge),
        Ok(_) => Ok(out.into()),
        Err(_) => Err(NotUnpacked::Broken),
    }
}

/// Packs a body, fastest level.
pub(super) async fn pack(body: Bytes) -> Bytes {
    if body.len() <= INLINE {
        return pack_now(&body);
    }
    let same = body.clone();
    let packing = tokio::task::spawn_blocking(move || pack_now(&same));
    packing.await.unwrap_or(body)
}

fn pack_now(body: &[u8]) -> Bytes {
    let mut packer = GzEncoder::new(Vec::with_capacity(body.len() / 2), Compression::fast());
    packer.write_all(body).expect("writing into memory does not fail");
    packer.finish().expect("writing into memory does not fail").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn there_and_back_at_every_size_class() {
        for len in [0, 1, INLINE, INLINE + 1, 3 * INLINE] {
            let body = Bytes::from(vec![b'z'; len]);
            let packed = pack(body.clone()).await;
            assert_eq!(unpack(packed.clone(), len).await, Ok(body), "{len}");
            if len > 0 {
                assert_eq!(unpack(packed, len - 1).await, Err(NotUnpacked::TooLarge), "{len}");
            }
        }
    }

    #[tokio::test]
    async fn a_bomb_stops_at_the_limit_and_rubbish_is_broken() {
        let bomb = pack(Bytes::from(vec![0; 64 << 20])).await;
        assert!(bomb.len() < 1 << 20);
        assert_eq!(unpack(bomb.clone(), 10 << 20).await, Err(NotUnpacked::TooLarge));
        assert_eq!(unpack(bomb.slice(..bomb.len() / 2), 100 << 20).await, Err(NotUnpacked::Broken));
        assert_eq!(unpack(Bytes::from_static(b"\x01\x00z"), 100).await, Err(NotUnpacked::Broken));
    }
}
