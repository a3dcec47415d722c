//! What is said on the wire: a question of each load, its answer, and where either ends.

/// Bytes of a body.
pub const BODY: usize = 128;

/// What is asked of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// The same bytes back, over and over on one connection.
    Echo,
    /// The same bytes back, once; the server closes.
    Churn,
    /// Bytes are counted; the sum comes back when the caller has closed its half.
    Bulk,
    /// HTTP/1.1, connections kept.
    Http,
    /// Motan2, connections kept.
    Motan2,
    /// The same, an echo of 32 bytes.
    Motan32,
}

/// All loads.
pub const ALL: [Load; 6] = [Load::Echo, Load::Churn, Load::Bulk, Load::Http, Load::Motan2, Load::Motan32];

/// Bytes of a body of [`Load::Motan32`].
const SHORT: usize = 32;
/// Where the id of a call stands in a Motan2 frame.
const ID: std::ops::Range<usize> = 5..13;

impl Load {
    /// The load with this name.
    pub fn named(name: &str) -> Option<Self> {
        let names = ["echo", "churn", "bulk", "http", "motan2", "motan32"];
        names.iter().position(|n| *n == name).map(|at| ALL[at])
    }

    /// Where `load serve` serves it.
    pub fn port(self) -> u16 {
        match self {
            Self::Echo => 7001,
            Self::Churn => 7002,
            Self::Bulk => 7003,
            Self::Http => 7004,
            Self::Motan2 => 7005,
            Self::Motan32 => 7006,
        }
    }

    /// One question. Empty for [`Load::Bulk`], which is no dialog.
    pub fn question(self) -> Vec<u8> {
        match self {
            Self::Echo | Self::Churn => vec![b'e'; BODY],
            Self::Bulk => Vec::new(),
            Self::Http => b"GET /bench HTTP/1.1\r\nhost: bench\r\nuser-agent: load\r\naccept: */*\r\n\r\n".to_vec(),
            Self::Motan2 | Self::Motan32 => {
                let mut out = Vec::new();
                let meta = b"M_p\nbench.Echo\nM_m\necho\nM_pp\nmotan2\nM_g\nbench";
                frame(0, &1_u64.to_be_bytes(), meta, &[b'e'; BODY][..self.body()], &mut out);
                out
            }
        }
    }

    /// Length of the first whole question or answer in `bytes`; `None` while more of it has to come.
    pub fn whole(self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::Echo | Self::Churn => (bytes.len() >= BODY).then_some(BODY),
            Self::Bulk => None,
            Self::Http => {
                let head = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
                let total = head + content_length(&bytes[..head]);
                (bytes.len() >= total).then_some(total)
            }
            Self::Motan2 | Self::Motan32 => {
                let length = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize);
                let body = 21 + length(13)?;
                let total = body + length(body - 4)?;
                (bytes.len() >= total).then_some(total)
            }
        }
    }

    /// Appends the answer to one whole question.
    pub fn answer(self, question: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Echo | Self::Churn => out.extend_from_slice(question),
            Self::Bulk => {}
            Self::Http => {
                out.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 128\r\n\r\n");
                out.extend_from_slice(&[b'h'; BODY]);
            }
            Self::Motan2 | Self::Motan32 => {
                frame(1, &question[ID], b"M_pt\n0", &[b'm'; BODY][..self.body()], out);
            }
        }
    }

    /// Whether a whole answer is the good one; an agent may have answered in the server's place.
    pub fn is_good(self, answer: &[u8]) -> bool {
        match self {
            Self::Echo | Self::Churn => answer.iter().all(|byte| *byte == b'e'),
            Self::Bulk => false,
            Self::Http => answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(&[b'h'; BODY]),
            Self::Motan2 | Self::Motan32 => {
                answer.starts_with(&[0xf1, 0xf1]) && answer.ends_with(&[b'm'; BODY][..self.body()])
            }
        }
    }

    fn body(self) -> usize {
        if self == Self::Motan32 { SHORT } else { BODY }
    }

    /// Whether one connection may carry several questions at once.
    pub fn is_shared(self) -> bool {
        matches!(self, Self::Motan2 | Self::Motan32)
    }

    /// Gives a question another id than others of its connection, from 1 on.
    pub fn number(self, question: &mut [u8], id: u64) {
        question[ID].copy_from_slice(&id.to_be_bytes());
    }

    /// The id of the question that a whole answer is for.
    pub fn numbered(self, answer: &[u8]) -> Option<u64> {
        Some(u64::from_be_bytes(answer.get(ID)?.try_into().ok()?))
    }
}

/// A Motan2 frame with the serialization of plain bytes (docs/wire/motan2.md).
fn frame(kind: u8, id: &[u8], meta: &[u8], body: &[u8], out: &mut Vec<u8>) {
    let length = |part: &[u8]| u32::try_from(part.len()).expect("parts are short").to_be_bytes();
    out.extend_from_slice(&[0xf1, 0xf1, kind, 8, 0x30]);
    out.extend_from_slice(id);
    out.extend_from_slice(&length(meta));
    out.extend_from_slice(meta);
    out.extend_from_slice(&length(body));
    out.extend_from_slice(body);
}

fn content_length(head: &[u8]) -> usize {
    let name = b"content-length:";
    let lines = head.split(|byte| *byte == b'\n');
    let line = lines.into_iter().find(|l| l.len() > name.len() && l[..name.len()].eq_ignore_ascii_case(name));
    let value = line.and_then(|line| std::str::from_utf8(&line[name.len()..]).ok());
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    #[test]
    fn every_answer_answers_its_question() {
        for load in [Load::Echo, Load::Churn, Load::Http, Load::Motan2, Load::Motan32] {
            let question = load.question();
            for end in 0..question.len() {
                assert_eq!(load.whole(&question[..end]), None, "{load:?}");
            }
            assert_eq!(load.whole(&question), Some(question.len()), "{load:?}");
            let mut answer = Vec::new();
            load.answer(&question, &mut answer);
            assert_eq!(load.whole(&answer), Some(answer.len()), "{load:?}");
            assert_eq!(load.whole(&answer[..answer.len() - 1]), None, "{load:?}");
            assert!(load.is_good(&answer), "{load:?}");
        }
        assert!(!Load::Http.is_good(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"));
        assert_eq!(content_length(b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n"), 17);
    }
}
