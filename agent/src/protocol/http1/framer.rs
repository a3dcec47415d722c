//! Where messages begin and end in what a caller sends, and that nothing else gets through.
//!
//! A pure state machine, fed with bytes and asked for those that may go on to the parser. Heads, chunk
//! lines and trailers are held until they are complete and judged; payload passes as it comes.

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::ReadBuf;

use super::head::{self, BodyFraming, Framing, Refusal, bad};

/// Takes the place of a refused request, so that the parser asks for the answer in its turn.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";
/// Ends every head on its way to the parser. hyper writes trailers of an answer only for a request with
/// `TE: trailers`, but callers take them without having said so; whether this one did is for
/// [`super::headers`] to find out.
const END_OF_HEAD: &[u8] = b"te: trailers, of-the-mesh\r\n\r\n";
/// Empty lines before a request line: some old clients send one after a body.
const MAX_EMPTY_LINES: usize = 4;
/// A chunk's first line, extensions included.
const MAX_CHUNK_LINE_BYTES: usize = 1024;
/// hyper's own limit for a trailer section.
const MAX_TRAILER_BYTES: usize = 16 * 1024;

/// The state machine of one connection.
pub(super) struct Framer {
    state: State,
    /// The state after the message under way.
    after_message: State,
    /// Received and not judged yet.
    raw: BytesMut,
    /// Part of `raw` that was searched for an end already.
    scanned: usize,
    /// Judged, waiting for room.
    out: Bytes,
    /// Comes after `out`.
    end: &'static [u8],
    header_bytes: usize,
    heads: u64,
    refused: Option<(u64, Refusal)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before or inside a head, after this many empty lines.
    Head(usize),
    /// Inside a body of known length.
    Length(u64),
    /// Inside a chunk's first line.
    Size,
    /// Inside a chunk.
    Chunk(u64),
    /// Between a chunk's last byte and the next line.
    ChunkEnd,
    /// After the last chunk.
    Trailers,
    /// After a request that asked to leave HTTP, until its answer is known.
    Held,
    /// After a refusal.
    Dead,
}

/// Why nothing more comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The buffer is full.
    Full,
    /// More must be received.
    Empty,
    /// Until [`Framer::resume`].
    Held,
    /// For ever.
    Dead,
}

impl Framer {
    /// Before the first request, whose head may have `header_bytes`.
    pub(super) fn new(header_bytes: usize) -> Self {
        Self {
            state: State::Head(0),
            after_message: State::Head(0),
            raw: BytesMut::new(),
            scanned: 0,
            out: Bytes::new(),
            end: b"",
            header_bytes,
            heads: 0,
            refused: None,
        }
    }

    /// The refused message and its number, counted from 0.
    pub(super) const fn refused(&self) -> Option<(u64, Refusal)> {
        self.refused
    }

    /// Whether the next request has begun but its head is not complete.
    pub(super) fn is_in_head(&self) -> bool {
        matches!(self.state, State::Head(_)) && !self.raw.is_empty()
    }

    /// Whether nothing of a message is under way.
    pub(super) fn is_between_messages(&self) -> bool {
        matches!(self.state, State::Head(_)) && self.raw.is_empty() && self.out.is_empty() && self.end.is_empty()
    }

    /// Largest head.
    pub(super) const fn header_bytes(&self) -> usize {
        self.header_bytes
    }

    /// Bytes received and not passed on.
    pub(super) fn held_bytes(&self) -> usize {
        self.raw.len()
    }

    /// HTTP goes on after a request that asked to leave it.
    pub(super) fn resume(&mut self) {
        if self.state == State::Held {
            self.state = State::Head(0);
        }
    }

    /// Everything received and not passed on, for whatever protocol comes after HTTP.
    pub(super) fn into_rest(mut self) -> Bytes {
        if self.out.is_empty() {
            return self.raw.freeze();
        }
        let mut rest = BytesMut::from(&self.out[..]);
        rest.extend_from_slice(&self.raw.split());
        rest.freeze()
    }

    /// Takes what was received; everything taken before has been pulled as far as it goes. Returns how
    /// many of the first bytes may go to the parser where they are; the others are kept here.
    pub(super) fn push(&mut self, fresh: &[u8]) -> usize {
        let (mut direct, mut direct_head) = (0, 0);
        if self.raw.is_empty() && self.out.is_empty() && self.end.is_empty() {
            direct = match self.state {
                State::Length(n) | State::Chunk(n) => {
                    let now = usize::try_from(n).map_or(fresh.len(), |n| n.min(fresh.len()));
                    self.payload_passed(now);
                    now
                }
                // The usual request is one whole head and nothing else: no copy of it is made.
                State::Head(_) => match head::find_end(fresh, &mut 0) {
                    Ok(Some(end)) if end <= self.header_bytes && !fresh.starts_with(b"\r\n") => {
                        match head::check(&fresh[..end]) {
                            Ok(framing) => {
                                self.head_passed(framing);
                                direct_head = end;
                                end - 2
                            }
                            Err(_) => 0,
                        }
                    }
                    _ => 0,
                },
                _ => 0,
            };
        }
        self.raw.extend_from_slice(&fresh[direct.max(direct_head)..]);
        direct
    }

    /// Moves what may go to the parser into `dst`.
    pub(super) fn pull(&mut self, dst: &mut ReadBuf<'_>) -> Stop {
        loop {
            if !self.out.is_empty() {
                let n = self.out.len().min(dst.remaining());
                dst.put_slice(&self.out.split_to(n));
                if !self.out.is_empty() {
                    return Stop::Full;
                }
            }
            if !self.end.is_empty() {
                let (now, later) = self.end.split_at(self.end.len().min(dst.remaining()));
                dst.put_slice(now);
                self.end = later;
                if !later.is_empty() {
                    return Stop::Full;
                }
            }
            match self.advance(dst) {
                Ok(None) => {}
                Ok(Some(stop)) => {
                    if self.raw.is_empty() {
                        // An idle connection holds no buffer.
                        self.raw = BytesMut::new();
                    }
                    return stop;
                }
                Err(refusal) => self.refuse(refusal),
            }
        }
    }

    /// Ends the connection's input at this point with an answer to the message under way.
    pub(super) fn refuse(&mut self, refusal: Refusal) {
        let instead: &[u8] = match self.state {
            State::Head(_) => {
                self.heads += 1;
                STAND_IN
            }
            // What the parser rejects wherever it stands.
            State::Trailers => b"\r\0",
            _ => b"\0",
        };
        self.out = Bytes::from_static(instead);
        self.refused = Some((self.heads - 1, refusal));
        self.raw = BytesMut::new();
        self.state = State::Dead;
    }

    /// One step; `None` when there may be another.
    fn advance(&mut self, dst: &mut ReadBuf<'_>) -> Result<Option<Stop>, Refusal> {
        match self.state {
            State::Head(empty_lines) => {
                if self.raw.starts_with(b"\r\n") {
                    if empty_lines == MAX_EMPTY_LINES {
                        return Err(bad("empty lines instead of a request"));
                    }
                    self.raw.advance(2);
                    self.state = State::Head(empty_lines + 1);
                    return Ok(None);
                }
                if self.raw.len() < 2 {
                    return if self.raw.first() == Some(&b'\n') {
                        Err(bad("a line ends without CR"))
                    } else {
                        Ok(Some(Stop::Empty))
                    };
                }
                let Some(end) = self.find_end(self.header_bytes, "the head is larger than limits.header_bytes")? else {
                    return Ok(Some(Stop::Empty));
                };
                let framing = head::check(&self.raw[..end])?;
                self.out = self.raw.split_to(end - 2).freeze();
                self.raw.advance(2);
                self.head_passed(framing);
            }
            State::Length(n) | State::Chunk(n) => {
                let n = usize::try_from(n).map_or(self.raw.len(), |n| n.min(self.raw.len()));
                let n = n.min(dst.remaining());
                if n == 0 {
                    return Ok(Some(if self.raw.is_empty() { Stop::Empty } else { Stop::Full }));
                }
                dst.put_slice(&self.raw[..n]);
                self.raw.advance(n);
                self.payload_passed(n);
            }
            State::Size => {
                let Some(lf) = memchr::memchr(b'\n', &self.raw) else {
                    if self.raw.len() > MAX_CHUNK_LINE_BYTES {
                        return Err(bad("a chunk line without end"));
                    }
                    return Ok(Some(Stop::Empty));
                };
                if lf > MAX_CHUNK_LINE_BYTES {
                    return Err(bad("a chunk line without end"));
                }
                let Some(line) = self.raw[..lf].strip_suffix(b"\r") else {
                    return Err(bad("a chunk line ends without CR"));
                };
                let size = head::chunk_size(line)?;
                self.raw.advance(lf + 1);
                // Written anew: extensions do not travel, and nobody behind can read the line another way.
                self.out = Bytes::from(format!("{size:x}\r\n"));
                self.state = if size == 0 { State::Trailers } else { State::Chunk(size) };
            }
            State::ChunkEnd => {
                let known = self.raw.len().min(2);
                if self.raw[..known] != b"\r\n"[..known] {
                    return Err(bad("a chunk is longer than its size"));
                }
                if known < 2 {
                    return Ok(Some(Stop::Empty));
                }
                self.raw.advance(2);
                self.out = Bytes::from_static(b"\r\n");
                self.state = State::Size;
            }
            State::Trailers => {
                let limit = self.header_bytes.min(MAX_TRAILER_BYTES - 1);
                let Some(end) = self.find_end(limit, "the trailers are too large")? else {
                    return Ok(Some(Stop::Empty));
                };
                head::check_trailers(&self.raw[..end])?;
                self.out = self.raw.split_to(end).freeze();
                self.state = self.after_message;
            }
            State::Held => return Ok(Some(Stop::Held)),
            State::Dead => return Ok(Some(Stop::Dead)),
        }
        Ok(None)
    }

    fn find_end(&mut self, limit: usize, too_large: &'static str) -> Result<Option<usize>, Refusal> {
        let end = head::find_end(&self.raw, &mut self.scanned)?;
        if end.unwrap_or(self.raw.len()) > limit {
            return Err(bad(too_large));
        }
        if end.is_some() {
            self.scanned = 0;
        }
        Ok(end)
    }

    fn head_passed(&mut self, framing: Framing) {
        self.heads += 1;
        self.end = END_OF_HEAD;
        self.scanned = 0;
        self.after_message = if framing.upgrade { State::Held } else { State::Head(0) };
        self.state = match framing.body {
            BodyFraming::None => self.after_message,
            BodyFraming::Length(n) => State::Length(n),
            BodyFraming::Chunked => State::Size,
        };
    }

    fn payload_passed(&mut self, n: usize) {
        match &mut self.state {
            State::Length(left) => {
                *left -= n as u64;
                if *left == 0 {
                    self.state = self.after_message;
                }
            }
            State::Chunk(left) => {
                *left -= n as u64;
                if *left == 0 {
                    self.state = State::ChunkEnd;
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    /// Everything the parser would get when `input` comes in pieces of `piece` bytes, and how it ended.
    fn run(input: &[u8], piece: usize, room: usize) -> (Vec<u8>, Framer, Stop) {
        let mut framer = Framer::new(1000);
        let mut passed = Vec::new();
        let mut stop = Stop::Empty;
        for fresh in input.chunks(piece) {
            let direct = framer.push(fresh);
            passed.extend_from_slice(&fresh[..direct]);
            loop {
                let mut memory = vec![0; room];
                let mut dst = ReadBuf::new(&mut memory);
                stop = framer.pull(&mut dst);
                passed.extend_from_slice(dst.filled());
                if stop != Stop::Full {
                    break;
                }
            }
        }
        (passed, framer, stop)
    }

    const STREAM: &[u8] = b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\
        \r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n\
        POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
        0A;x=y\r\n0123456789\r\n1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n\
        GET /4 HTTP/1.1\r\nHost: a\r\n\r\n";

    #[test]
    fn however_it_is_cut_the_same_comes_out() {
        let wanted = String::from_utf8_lossy(STREAM).replace("hello\r\n", "hello").replace("0A;x=y", "a");
        let wanted = wanted.replace("\r\n\r\n", &format!("\r\n{}", String::from_utf8_lossy(END_OF_HEAD)));
        let wanted = wanted.replace("X-Sum: 1\r\nte: trailers, of-the-mesh\r\n", "X-Sum: 1\r\n");
        for piece in 1..STREAM.len() {
            for room in [1, 7, 8192] {
                let (passed, framer, stop) = run(STREAM, piece, room);
                assert_eq!(String::from_utf8_lossy(&passed), wanted, "pieces of {piece}");
                assert_eq!((stop, framer.refused(), framer.heads), (Stop::Empty, None, 4));
                assert!(framer.is_between_messages());
            }
        }
    }

    #[test]
    fn a_refused_head_is_answered_in_its_turn() {
        let input = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost : a\r\n\r\nGET /3 HTTP/1.1\r\n";
        for piece in 1..input.len() {
            let (passed, framer, stop) = run(input, piece, 8192);
            assert_eq!(&passed[26 + END_OF_HEAD.len()..], STAND_IN);
            assert_eq!(stop, Stop::Dead);
            let (number, refusal) = framer.refused().unwrap();
            assert_eq!((number, refusal.status), (1, StatusCode::BAD_REQUEST));
        }
    }

    #[test]
    fn what_follows_an_upgrade_waits() {
        let ask = b"GET /1 HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n";
        let input = [&ask[..], b"\0\x01 anything"].concat();
        for piece in 1..input.len() {
            let (passed, mut framer, stop) = run(&input, piece, 8192);
            assert_eq!((&passed[..], stop), (&[&ask[..ask.len() - 2], END_OF_HEAD].concat()[..], Stop::Held));
            assert_eq!(framer.held_bytes(), 11);
            if piece % 2 == 0 {
                assert_eq!(framer.into_rest(), &b"\0\x01 anything"[..]);
            } else {
                framer.resume();
                framer.push(b"\r\n\r\n");
                let mut memory = [0; 100];
                let mut dst = ReadBuf::new(&mut memory);
                assert_eq!(framer.pull(&mut dst), Stop::Dead, "HTTP again, and this is none");
            }
        }
    }

    #[test]
    fn noise_in_a_body_stops_the_body() {
        let head = b"POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (body, passes) in [
            ("0x5\r\nhello\r\n0\r\n\r\n", "\0"),
            ("5\nhello\r\n0\r\n\r\n", "\0"),
            ("5\r\nhello\n0\r\n\r\n", "5\r\nhello\0"),
            ("5\r\nhello!\r\n0\r\n\r\n", "5\r\nhello\0"),
            ("0\r\nA : b\r\n\r\n", "0\r\n\r\0"),
            ("0\r\nA: b\n\r\n", "0\r\n\r\0"),
            ("0\r\nHost: b\r\n\r\n", "0\r\n\r\0"),
        ] {
            let input = [head, body.as_bytes()].concat();
            for piece in 1..input.len() {
                let (passed, framer, stop) = run(&input, piece, 8192);
                assert_eq!(
                    &passed[head.len() - 2 + END_OF_HEAD.len()..],
                    passes.as_bytes(),
                    "{body:?} in pieces of {piece}"
                );
                assert_eq!(stop, Stop::Dead);
                assert_eq!(framer.refused().unwrap().0, 0);
            }
        }
    }

    #[test]
    fn limits_hold_before_the_end_is_there() {
        for input in [
            [b"GET / HTTP/1.1\r\nHost: a\r\nX: ".as_slice(), &[b'x'; 1000]].concat(),
            [b"GET /".as_slice(), &[b'x'; 1000]].concat(),
            b"\r\n".repeat(5),
            [b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;".as_slice(), &[b'x'; 1100]].concat(),
        ] {
            assert_eq!(run(&input, 64, 8192).2, Stop::Dead);
        }
    }
}
