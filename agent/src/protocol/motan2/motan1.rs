//! Motan1 on a Motan2 port: its heartbeat is answered, its calls are not carried
//! (docs/wire/motan2.md, "Motan1").

use bytes::{BufMut, Bytes, BytesMut};

/// What a Motan1 heartbeat carries after the two heads: block data of 56 bytes with service, method and
/// parameter types, as Java writes UTF, then an empty list of attachments.
const HEARTBEAT: &[u8] = b"\xac\xed\x00\x05\x77\x38\
    \x00\x21com.weibo.api.motan.rpc.heartbeat\x00\x09heartbeat\x00\x04void\x00\x00\x00\x00";

/// The answer's: block data with processing time 0 and the class name, then the text `heartbeat`
/// serialized into a byte array.
const ANSWER: &[u8] = b"\xac\xed\x00\x05\x77\x1a\
    \x00\x00\x00\x00\x00\x00\x00\x00\x00\x10java.lang.String\
    \x75\x72\x00\x02[B\xac\xf3\x17\xf8\x06\x08\x54\xe0\x02\x00\x00\x78\x70\
    \x00\x00\x00\x0a\x09heartbeat";

const HEAD_LEN: usize = 16;

/// The answer to `message` (with both heads) if it is a heartbeat.
pub(super) fn heartbeat_answer(message: &[u8]) -> Option<Bytes> {
    let (heads, body) = message.split_at_checked(2 * HEAD_LEN)?;
    // Inner head: magic f0f0, version, flag 00 for a request.
    let request = heads[2..4] == [0, 0] && heads[16..18] == [0xf0, 0xf0] && heads[19] == 0;
    if !request || body != HEARTBEAT {
        return None;
    }
    let mut out = BytesMut::with_capacity(2 * HEAD_LEN + ANSWER.len());
    out.put_slice(&[0xf1, 0xf1, 0x00, 0x01]);
    out.put_slice(&heads[4..12]);
    out.put_u32((HEAD_LEN + ANSWER.len()) as u32);
    out.put_slice(&[0xf0, 0xf0, heads[18], 0x01]);
    out.put_slice(&heads[20..28]);
    out.put_u32(ANSWER.len() as u32);
    out.put_slice(ANSWER);
    Some(out.freeze())
}

#[cfg(test)]
mod tests {
    use super::super::testing::golden;
    use super::*;

    #[test]
    fn the_recorded_heartbeat_is_answered_byte_for_byte() {
        let (asked, answered) = (golden("v5-motan1-heartbeat.request"), golden("v5-motan1-heartbeat.answer"));
        assert_eq!(heartbeat_answer(&asked).unwrap(), answered);
        for cut in 0..asked.len() {
            assert_eq!(heartbeat_answer(&asked[..cut]), None);
        }
        assert_eq!(heartbeat_answer(&answered), None);
    }
}
