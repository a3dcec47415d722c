//! Where requests begin and end (RFC 9112), and whether every reader would agree.

/// What a piece of input amounts to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// All of it may pass.
    Pass,
    /// A request that asks to leave HTTP ends before byte `at`.
    Upgrade { at: usize },
    /// Byte `at` makes the request malformed.
    Violation { at: usize, what: &'static str },
}

/// Follows the requests of one connection. Input comes in pieces of any size.
pub(super) struct Framing {
    max_head: usize,
    state: State,
    /// The begun line, when it came in several pieces.
    line: Vec<u8>,
    /// Bytes of the head, or of the trailers, so far.
    size: usize,
    head: Head,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before or in a request line.
    RequestLine,
    /// Header fields.
    Fields,
    /// A body of known length, so many bytes left.
    Body(u64),
    /// The line that says how long the next chunk is.
    ChunkSize,
    /// A chunk with so many bytes left.
    Chunk(u64),
    /// The line end after a chunk.
    ChunkEnd,
    /// Fields after the last chunk.
    Trailers,
}

/// What the fields of a head say about framing.
#[derive(Default)]
struct Head {
    http_11: bool,
    connect: bool,
    length: Option<u64>,
    chunked: bool,
    host: bool,
    upgrade: bool,
}

impl Framing {
    pub(super) fn new(max_head: usize) -> Self {
        Self { max_head, state: State::RequestLine, line: Vec::new(), size: 0, head: Head::default() }
    }

    /// Takes the next piece of input. After anything but [`Step::Pass`], input from `at` on counts as
    /// not taken.
    pub(super) fn advance(&mut self, input: &[u8]) -> Step {
        let mut at = 0;
        while at < input.len() {
            let rest = &input[at..];
            match &mut self.state {
                State::Body(left) | State::Chunk(left) => {
                    let n = (*left).min(rest.len() as u64);
                    *left -= n;
                    at += n as usize;
                    match self.state {
                        State::Body(0) => {
                            if self.ends() {
                                return Step::Upgrade { at };
                            }
                        }
                        State::Chunk(0) => self.state = State::ChunkEnd,
                        _ => {}
                    }
                }
                _ => {
                    let end = memchr::memchr(b'\n', rest);
                    let taken = end.unwrap_or(rest.len());
                    self.size += taken + 1;
                    if self.size > self.max_head {
                        // The byte that is one too many, or the last one here if that was counted before.
                        let over = (self.size - self.max_head).min(taken.max(1));
                        return Step::Violation {
                            at: at + taken.saturating_sub(over).min(rest.len() - 1),
                            what: "head too large",
                        };
                    }
                    let Some(end) = end else {
                        // The line end was counted though it is not here yet.
                        self.size -= 1;
                        self.line.extend_from_slice(rest);
                        return Step::Pass;
                    };
                    let kept = std::mem::take(&mut self.line);
                    let ended = if kept.is_empty() {
                        self.line_ended(&rest[..end])
                    } else {
                        let mut whole = kept;
                        whole.extend_from_slice(&rest[..end]);
                        let ended = self.line_ended(&whole);
                        // Kept for its capacity.
                        whole.clear();
                        self.line = whole;
                        ended
                    };
                    at += end;
                    match ended {
                        Err(what) => return Step::Violation { at, what },
                        Ok(Ended::Upgrade) => return Step::Upgrade { at: at + 1 },
                        Ok(Ended::No) => at += 1,
                    }
                }
            }
        }
        Step::Pass
    }

    /// The message is complete. Whether what follows may not be HTTP.
    fn ends(&mut self) -> bool {
        self.state = State::RequestLine;
        self.size = 0;
        self.head.upgrade || self.head.connect
    }

    fn line_ended(&mut self, line: &[u8]) -> Result<Ended, &'static str> {
        let line = line.strip_suffix(b"\r").ok_or("bare LF")?;
        if line.iter().any(|&b| (b < 0x20 && b != b'\t') || b == 0x7f) {
            return Err("control character");
        }
        let ended = match self.state {
            State::RequestLine if line.is_empty() => {
                // RFC 9112 2.2: an empty line before a request is ignored; `size` bounds how many.
                false
            }
            State::RequestLine => {
                self.head = request_line(line)?;
                self.state = State::Fields;
                false
            }
            State::Fields if line.is_empty() => self.head_ended()?,
            State::Fields => {
                let (name, value) = field(line)?;
                self.head.take(name, value)?;
                false
            }
            State::ChunkSize => {
                self.size = 0;
                self.state = match chunk_size(line)? {
                    0 => State::Trailers,
                    n => State::Chunk(n),
                };
                false
            }
            State::ChunkEnd if line.is_empty() => {
                self.size = 0;
                self.state = State::ChunkSize;
                false
            }
            State::ChunkEnd => return Err("chunk longer than it says"),
            State::Trailers if line.is_empty() => self.ends(),
            State::Trailers => {
                let (name, _) = field(line)?;
                if [&b"content-length"[..], b"transfer-encoding", b"host"].iter().any(|n| name.eq_ignore_ascii_case(n))
                {
                    return Err("framing field among the trailers");
                }
                false
            }
            State::Body(_) | State::Chunk(_) => false,
        };
        Ok(if ended { Ended::Upgrade } else { Ended::No })
    }

    fn head_ended(&mut self) -> Result<bool, &'static str> {
        if self.head.http_11 && !self.head.host {
            return Err("no Host");
        }
        self.size = 0;
        self.state = match (self.head.chunked, self.head.length) {
            (true, _) => State::ChunkSize,
            (false, Some(n)) if n > 0 => State::Body(n),
            _ => return Ok(self.ends()),
        };
        Ok(false)
    }
}

enum Ended {
    No,
    Upgrade,
}

impl Head {
    fn take(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if name.eq_ignore_ascii_case(b"content-length") {
            if self.length.is_some() {
                return Err("two Content-Length");
            }
            if self.chunked {
                return Err("Transfer-Encoding with Content-Length");
            }
            if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
                return Err("Content-Length is no number");
            }
            let length = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
            self.length = Some(length.ok_or("Content-Length out of range")?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked {
                return Err("two Transfer-Encoding");
            }
            if self.length.is_some() {
                return Err("Transfer-Encoding with Content-Length");
            }
            if !self.http_11 {
                return Err("Transfer-Encoding in HTTP/1.0");
            }
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err("Transfer-Encoding other than chunked");
            }
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"host") {
            if self.host {
                return Err("two Host");
            }
            if value.iter().any(|b| b" \t,/?#@\\".contains(b)) {
                return Err("Host is no host");
            }
            self.host = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            // RFC 9110 7.8: a server ignores it in HTTP/1.0.
            self.upgrade |= self.http_11;
        }
        Ok(())
    }
}

/// `METHOD SP target SP HTTP/1.x` with exactly these spaces.
fn request_line(line: &[u8]) -> Result<Head, &'static str> {
    let mut parts = line.split(|&b| b == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err("request line is not METHOD TARGET VERSION");
    };
    if method.is_empty() || !method.iter().all(|&b| is_token(b)) {
        return Err("method is no token");
    }
    if target.is_empty() || line.contains(&b'\t') {
        return Err("request line is not METHOD TARGET VERSION");
    }
    let http_11 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => return Err("version is neither HTTP/1.1 nor HTTP/1.0"),
    };
    Ok(Head { http_11, connect: method == b"CONNECT", ..Head::default() })
}

/// `name:value`, the value without the white space around it.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    if matches!(line[0], b' ' | b'\t') {
        return Err("folded header line");
    }
    let colon = memchr::memchr(b':', line).ok_or("header line without a colon")?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().all(|&b| is_token(b)) {
        return Err("header name is no token");
    }
    Ok((name, value.trim_ascii()))
}

/// `1*HEXDIG`, then nothing or an extension.
fn chunk_size(line: &[u8]) -> Result<u64, &'static str> {
    let digits = line.iter().position(|b| !b.is_ascii_hexdigit()).unwrap_or(line.len());
    // 15 digits are an exabyte; more could overflow somebody's integer.
    if digits == 0 || digits > 15 || !matches!(line.get(digits), None | Some(b';')) {
        return Err("chunk size is no number");
    }
    let digits = std::str::from_utf8(&line[..digits]).expect("hexadecimal digits are ASCII");
    Ok(u64::from_str_radix(digits, 16).expect("at most 15 hexadecimal digits"))
}

/// RFC 9110 5.6.2.
const fn is_token(b: u8) -> bool {
    matches!(b, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~'
        | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z')
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 256;

    /// The first step that is not `Pass`, whatever the pieces; and that no cut changes it.
    fn verdict(input: &[u8]) -> Step {
        let whole = Framing::new(MAX).advance(input);
        for cut in 1..input.len() {
            let mut framing = Framing::new(MAX);
            let (a, b) = input.split_at(cut);
            let step = match framing.advance(a) {
                Step::Pass => match framing.advance(b) {
                    Step::Pass => Step::Pass,
                    Step::Upgrade { at } => Step::Upgrade { at: at + cut },
                    Step::Violation { at, what } => Step::Violation { at: at + cut, what },
                },
                early => early,
            };
            match (&step, &whole) {
                (Step::Violation { what: a, .. }, Step::Violation { what: b, .. }) => assert_eq!(a, b, "cut at {cut}"),
                _ => assert_eq!(step, whole, "cut at {cut}"),
            }
        }
        let mut framing = Framing::new(MAX);
        let one_by_one = input.iter().find_map(|b| match framing.advance(&[*b]) {
            Step::Pass => None,
            other => Some(std::mem::discriminant(&other)),
        });
        assert_eq!(one_by_one.unwrap_or(std::mem::discriminant(&Step::Pass)), std::mem::discriminant(&whole));
        whole
    }

    fn wrong(input: &str) -> &'static str {
        match verdict(input.as_bytes()) {
            Step::Violation { what, .. } => what,
            other => panic!("{input:?} gave {other:?}"),
        }
    }

    #[test]
    fn what_every_reader_reads_alike_passes() {
        for good in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\nGET / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost:b\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\nTE: \n\0\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nab\n\0c\r\nA;x=y\r\n0123456789\r\n0\r\nT: 1\r\n\r\nGET / HTTP/1.0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 0\r\nX:\t y \t\r\n\r\n",
        ] {
            assert_eq!(verdict(good.as_bytes()), Step::Pass, "{good:?}");
        }
    }

    #[test]
    fn what_readers_disagree_about_does_not() {
        let head = |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
        for (fields, what) in [
            ("Content-Length: 5\r\nTransfer-Encoding: chunked", "Transfer-Encoding with Content-Length"),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5", "Transfer-Encoding with Content-Length"),
            ("Content-Length: 5\r\nContent-Length: 5", "two Content-Length"),
            ("Content-Length: 5, 5", "Content-Length is no number"),
            ("Content-Length: +5", "Content-Length is no number"),
            ("Content-Length: -1", "Content-Length is no number"),
            ("Content-Length: 0x5", "Content-Length is no number"),
            ("Content-Length:", "Content-Length is no number"),
            ("Content-Length: 99999999999999999999", "Content-Length out of range"),
            ("Transfer-Encoding: xchunked", "Transfer-Encoding other than chunked"),
            ("Transfer-Encoding: gzip, chunked", "Transfer-Encoding other than chunked"),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "two Transfer-Encoding"),
            ("Content-Length : 5", "header name is no token"),
            ("X: a\r\n b", "folded header line"),
            ("X: a\nY: b", "bare LF"),
            ("X: a\rY: b", "control character"),
            ("X: a\0b", "control character"),
            ("X", "header line without a colon"),
            (": x", "header name is no token"),
            ("Host: b", "two Host"),
        ] {
            assert_eq!(wrong(&head(fields)), what, "{fields:?}");
        }
        for (request, what) in [
            ("GET / HTTP/1.1\r\n\r\n", "no Host"),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "request line is not METHOD TARGET VERSION"),
            ("GET /\r\nHost: a\r\n\r\n", "request line is not METHOD TARGET VERSION"),
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", "version is neither HTTP/1.1 nor HTTP/1.0"),
            ("G\"T / HTTP/1.1\r\nHost: a\r\n\r\n", "method is no token"),
            ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "bare LF"),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "Host is no host"),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "Transfer-Encoding in HTTP/1.0"),
        ] {
            assert_eq!(wrong(request), what, "{request:?}");
        }
        for (chunks, what) in [
            ("0x5\r\n", "chunk size is no number"),
            ("+5\r\n", "chunk size is no number"),
            ("5 \r\n", "chunk size is no number"),
            ("\r\n", "chunk size is no number"),
            ("5\nabcde", "bare LF"),
            ("ffffffffffffffffff\r\n", "chunk size is no number"),
            ("2\r\nabc\r\n", "chunk longer than it says"),
            ("0\r\nContent-Length: 5\r\n\r\n", "framing field among the trailers"),
        ] {
            assert_eq!(wrong(&(head("Transfer-Encoding: chunked") + chunks)), what, "{chunks:?}");
        }
    }

    #[test]
    fn heads_and_trailers_are_bounded() {
        let long = "x".repeat(MAX);
        assert_eq!(wrong(&format!("GET /{long} HTTP/1.1\r\n")), "head too large");
        assert_eq!(wrong(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}")), "head too large");
        assert_eq!(wrong(&"\r\n".repeat(MAX)), "head too large");
        let trailers = "X: y\r\n".repeat(MAX);
        assert_eq!(
            wrong(&format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{trailers}")),
            "head too large"
        );
    }

    #[test]
    fn upgrades_end_with_their_message() {
        let get = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n";
        assert_eq!(verdict(format!("{get}\x01\x02").as_bytes()), Step::Upgrade { at: get.len() });
        let post = "POST / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(verdict(format!("{post}\x01").as_bytes()), Step::Upgrade { at: post.len() });
        let chunked =
            "POST / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n";
        assert_eq!(verdict(format!("{chunked}\x01").as_bytes()), Step::Upgrade { at: chunked.len() });
        let connect = "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n";
        assert_eq!(verdict(format!("{connect}\x01").as_bytes()), Step::Upgrade { at: connect.len() });
        assert_eq!(verdict(b"GET / HTTP/1.0\r\nUpgrade: x\r\n\r\n"), Step::Pass, "not in HTTP/1.0");
    }

    #[test]
    fn no_input_at_all_is_a_panic_or_grows_memory() {
        for _ in 0..2000 {
            let mut framing = Framing::new(MAX);
            let alphabet = b"GET / HTTP/1.1\r\n:\0 x50;ChunkedTransfer-Encoding";
            for _ in 0..20 {
                let piece: Vec<u8> =
                    (0..fastrand::usize(1..40)).map(|_| *fastrand::choice(alphabet).unwrap()).collect();
                match framing.advance(&piece) {
                    Step::Pass => assert!(framing.line.len() <= MAX),
                    Step::Violation { at, .. } => {
                        assert!(at < piece.len());
                        break;
                    }
                    Step::Upgrade { at } => {
                        assert!(at <= piece.len());
                        break;
                    }
                }
            }
        }
    }
}
