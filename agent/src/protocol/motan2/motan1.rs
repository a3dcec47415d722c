//! Motan1 on a Motan2 port: its heartbeat is answered, its calls are refused with an exception that its clients
//! can read (docs/wire/motan2.md, "Motan1").

use bytes::{BufMut, Bytes, BytesMut};

/// What callers are told.
pub(super) const REFUSED: &str = "Motan1 calls are not carried here: set the caller's protocol to motan2";

/// Flag of an answer that is an exception.
const EXCEPTION: u8 = 0x05;
/// Block data with processing time 0 and the class of the exception, then the class of a byte array, whose length
/// and bytes follow.
const EXCEPTION_HEAD: &[u8] = b"\xac\xed\x00\x05\x77\x3d\
    \x00\x00\x00\x00\x00\x00\x00\x00\x00\x33com.weibo.api.motan.exception.MotanServiceException\
    \x75\x72\x00\x02[B\xac\xf3\x17\xf8\x06\x08\x54\xe0\x02\x00\x00\x78\x70";
/// The exception in Hessian 2 up to its text: two classes with their fields, the fields before it null, status 503,
/// code 10001 ("service default error").
const EXCEPTION_BODY: &[u8] = b"C\x30\x33com.weibo.api.motan.exception.MotanServiceException\
    \x96\x08errorMsg\x0ddetailMessage\x05cause\x0dmotanErrorMsg\x0astackTrace\x14suppressedExceptions\
    \x60NNN\
    C\x30\x2bcom.weibo.api.motan.exception.MotanErrorMsg\x93\x06status\x09errorcode\x07message\
    \x61\xc9\xf7\xd4\x27\x11";

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

/// The answer to `message` (with both heads): to a heartbeat another, to a call a refusal, `None` to what is no
/// request.
pub(super) fn answer(message: &[u8]) -> Option<Bytes> {
    let (heads, body) = message.split_at_checked(2 * HEAD_LEN)?;
    // Inner head: magic f0f0, version, flag 00 for a request.
    let request = heads[2..4] == [0, 0] && heads[16..18] == [0xf0, 0xf0] && heads[19] == 0;
    if !request {
        return None;
    }
    Some(if body == HEARTBEAT { framed(heads, 0x01, ANSWER) } else { framed(heads, EXCEPTION, &refusal()) })
}

fn refusal() -> Vec<u8> {
    let mut exception = EXCEPTION_BODY.to_vec();
    // Hessian counts characters: 32 to 1023 of them have two bytes for it.
    let length = REFUSED.len() as u16;
    exception.extend((0x3000 | length).to_be_bytes());
    exception.extend(REFUSED.as_bytes());
    // The trace and what was suppressed: null.
    exception.extend(b"NN");
    let mut body = EXCEPTION_HEAD.to_vec();
    body.extend((exception.len() as u32).to_be_bytes());
    body.extend(exception);
    body
}

/// `body` with both heads, as the answer to the request whose heads these are.
fn framed(heads: &[u8], flag: u8, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(2 * HEAD_LEN + body.len());
    out.put_slice(&[0xf1, 0xf1, 0x00, 0x01]);
    out.put_slice(&heads[4..12]);
    out.put_u32((HEAD_LEN + body.len()) as u32);
    out.put_slice(&[0xf0, 0xf0, heads[18], flag]);
    out.put_slice(&heads[20..28]);
    out.put_u32(body.len() as u32);
    out.put_slice(body);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::super::testing::golden;
    use super::*;

    #[test]
    fn the_recorded_heartbeat_is_answered_byte_for_byte() {
        let (asked, answered) = (golden("v5-motan1-heartbeat.request"), golden("v5-motan1-heartbeat.answer"));
        assert_eq!(answer(&asked).unwrap(), answered);
        for cut in 0..2 * HEAD_LEN {
            assert_eq!(answer(&asked[..cut]), None);
        }
        assert_eq!(answer(&answered), None, "what is an answer itself is not answered");
    }

    #[test]
    fn a_call_is_refused_with_lengths_that_fit() {
        let mut call = golden("v5-motan1-heartbeat.request").to_vec();
        *call.last_mut().unwrap() = 1;
        let refused = answer(&call).unwrap();
        let number = |at: usize| u32::from_be_bytes(refused[at..at + 4].try_into().unwrap()) as usize;
        assert_eq!((number(12), number(28)), (refused.len() - HEAD_LEN, refused.len() - 2 * HEAD_LEN));
        assert_eq!((&refused[..4], &refused[4..12]), (&[0xf1, 0xf1, 0, 1][..], &call[4..12]));
        assert_eq!((refused[19], &refused[20..28]), (EXCEPTION, &call[20..28]));
        let array = 2 * HEAD_LEN + EXCEPTION_HEAD.len();
        assert_eq!(number(array), refused.len() - array - 4);
        let text = refused.windows(REFUSED.len()).position(|w| w == REFUSED.as_bytes()).unwrap();
        assert_eq!(refused.len() - text - REFUSED.len(), 2);
        assert!((32..1024).contains(&REFUSED.len()) && REFUSED.is_ascii(), "its length is written in two bytes");
    }
}
