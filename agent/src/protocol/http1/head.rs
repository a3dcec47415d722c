//! What a request head must look like to be let in: stricter than any parser behind it.
//!
//! Two parsers that disagree on where a message ends are how requests are smuggled past a proxy, so
//! everything on which parsers are known to disagree is refused here (RFC 9112 sections 2.2, 3.2, 5, 6, 7).

use http::StatusCode;
use memchr::memchr;

/// Field lines in one head. hyper takes one more, which the framer adds.
pub(super) const MAX_FIELDS: usize = 99;
/// Digits of a length: nobody sends more than 10^18 bytes, and so it always fits a `u64`.
const MAX_LENGTH_DIGITS: usize = 18;

/// Why a message is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The answer.
    pub(super) status: StatusCode,
    /// One line for the caller.
    pub(super) reason: &'static str,
}

/// A malformed message.
pub(super) const fn bad(reason: &'static str) -> Refusal {
    Refusal { status: StatusCode::BAD_REQUEST, reason }
}

/// How the message goes on after its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Framing {
    pub(super) body: BodyFraming,
    /// The caller asks to leave HTTP: what follows may be another protocol.
    pub(super) upgrade: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyFraming {
    None,
    Length(u64),
    Chunked,
}

/// Looks for the empty line that ends a head or a trailer section, from `scanned` on, which it moves.
/// Lines must end in CRLF.
pub(super) fn find_end(buf: &[u8], scanned: &mut usize) -> Result<Option<usize>, Refusal> {
    while let Some(i) = memchr(b'\n', &buf[*scanned..]) {
        let lf = *scanned + i;
        if lf == 0 || buf[lf - 1] != b'\r' {
            return Err(bad("a line ends without CR"));
        }
        *scanned = lf + 1;
        if lf == 1 || buf[lf - 2] == b'\n' {
            return Ok(Some(lf + 1));
        }
    }
    *scanned = buf.len();
    Ok(None)
}

/// Judges a complete head, its empty line included.
pub(super) fn check(head: &[u8]) -> Result<Framing, Refusal> {
    let mut lines = Lines(head);
    let http_11 = request_line(lines.next().unwrap_or_default())?;
    let mut host = 0;
    let mut length = None;
    let mut chunked = false;
    let mut upgrade = false;
    let mut fields = 0;
    for line in lines {
        let (name, value) = field(line)?;
        fields += 1;
        if fields > MAX_FIELDS {
            return Err(bad("more than 99 header fields"));
        }
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        // Lengths first: few names are as long as any of these.
        match name.len() {
            4 if is("host") => {
                host += 1;
                if host > 1 {
                    return Err(bad("more than one Host"));
                }
                if value.iter().any(|b| b" \t,/?#@\\".contains(b)) {
                    return Err(bad("Host is no host name"));
                }
            }
            7 if is("upgrade") => upgrade = true,
            14 if is("content-length") => {
                let before = length.replace(digits(value)?);
                if before.is_some() {
                    return Err(bad("more than one Content-Length"));
                }
            }
            17 if is("transfer-encoding") => {
                if std::mem::replace(&mut chunked, true) {
                    return Err(bad("more than one Transfer-Encoding"));
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(bad("a Transfer-Encoding other than chunked"));
                }
                if !http_11 {
                    return Err(bad("Transfer-Encoding in HTTP/1.0"));
                }
            }
            _ => {}
        }
    }
    if host == 0 && http_11 {
        return Err(bad("no Host"));
    }
    let body = match (length, chunked) {
        (Some(_), true) => return Err(bad("both Content-Length and Transfer-Encoding")),
        (None, true) => BodyFraming::Chunked,
        (None | Some(0), false) => BodyFraming::None,
        (Some(n), false) => BodyFraming::Length(n),
    };
    Ok(Framing { body, upgrade })
}

/// Judges a trailer section, its empty line included.
pub(super) fn check_trailers(section: &[u8]) -> Result<(), Refusal> {
    for (i, line) in Lines(section).enumerate() {
        if i == MAX_FIELDS {
            return Err(bad("more than 99 trailer fields"));
        }
        let (name, _) = field(line)?;
        let framing = ["content-length", "transfer-encoding", "host"];
        if framing.iter().any(|f| name.eq_ignore_ascii_case(f.as_bytes())) {
            return Err(bad("a trailer field that belongs into the head"));
        }
    }
    Ok(())
}

/// The size in a chunk's first line, given without its CRLF. Extensions are checked and forgotten.
pub(super) fn chunk_size(line: &[u8]) -> Result<u64, Refusal> {
    let (size, extension) = match memchr(b';', line) {
        Some(i) => line.split_at(i),
        None => (line, &line[..0]),
    };
    if extension.iter().any(|&b| !is_text(b)) {
        return Err(bad("a control character in a chunk extension"));
    }
    let hex = |b: &u8| char::from(*b).to_digit(16).map(u64::from);
    if size.is_empty() || size.len() > 15 {
        return Err(bad("a chunk size that is no number"));
    }
    let size = size.iter().try_fold(0, |n, b| Some(n * 16 + hex(b)?));
    size.ok_or(bad("a chunk size that is no number"))
}

/// Whether the version is 1.1.
fn request_line(line: &[u8]) -> Result<bool, Refusal> {
    let mut parts = line.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(bad("the request line is not METHOD TARGET VERSION"));
    };
    if method.is_empty() || !method.iter().all(|b| is_token(*b)) {
        return Err(bad("the method is no token"));
    }
    if target.is_empty() || target.iter().any(|b| *b <= b' ' || *b == 0x7f) {
        return Err(bad("the request target is empty or has control characters"));
    }
    let http_11 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => {
            let status = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
            return Err(Refusal { status, reason: "only HTTP/1.1 and HTTP/1.0 are spoken here" });
        }
        _ => return Err(bad("the request line does not end in an HTTP version")),
    };
    if method == b"CONNECT" {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        return Err(Refusal { status, reason: "CONNECT: the mesh is no forward proxy" });
    }
    Ok(http_11)
}

/// Name and value of a field line, the value without the space around it.
pub(super) fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(bad("a header field continued on a second line"));
    }
    let Some(colon) = memchr(b':', line) else {
        return Err(bad("a header line without colon"));
    };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().all(|b| is_token(*b)) {
        // A space before the colon ends up here too.
        return Err(bad("a header name that is no token"));
    }
    if value.iter().any(|&b| !is_text(b)) {
        return Err(bad("a control character in a header value"));
    }
    Ok((name, trim(value)))
}

/// A length.
pub(super) fn digits(value: &[u8]) -> Result<u64, Refusal> {
    if value.is_empty() || value.len() > MAX_LENGTH_DIGITS || !value.iter().all(u8::is_ascii_digit) {
        return Err(bad("a Content-Length that is no number"));
    }
    Ok(value.iter().fold(0, |n, b| n * 10 + u64::from(b - b'0')))
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

const fn is_token(b: u8) -> bool {
    matches!(b, b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*'
        | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
}

const fn is_text(b: u8) -> bool {
    matches!(b, b'\t' | b' '..=b'~' | 0x80..)
}

/// Lines of a block that is known to consist of CRLF lines and to end in an empty one.
pub(super) struct Lines<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let lf = memchr(b'\n', self.0)?;
        let line = self.0[..lf].strip_suffix(b"\r")?;
        self.0 = &self.0[lf + 1..];
        // A CR inside a line is caught as a control character or a broken token.
        (!line.is_empty()).then_some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_are_let_in() {
        let none = BodyFraming::None;
        for (head, body) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", none),
            ("GET / HTTP/1.0\r\n\r\n", none),
            ("OPTIONS * HTTP/1.1\r\nhost:a\r\n\r\n", none),
            ("GET http://a/b?c HTTP/1.1\r\nHost: a:80\r\nX:\r\nY: \tz \r\n\r\n", none),
            ("GET /\u{e4}|{} HTTP/1.1\r\nHost: [::1]:80\r\nX: \u{e4}\r\n\r\n", none),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", none),
            ("POST / HTTP/1.1\r\nHost: a\r\nCONTENT-LENGTH:  007 \r\n\r\n", BodyFraming::Length(7)),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n", BodyFraming::Chunked),
        ] {
            let mut scanned = 0;
            assert_eq!(find_end(head.as_bytes(), &mut scanned), Ok(Some(head.len())), "{head:?}");
            assert_eq!(check(head.as_bytes()), Ok(Framing { body, upgrade: false }), "{head:?}");
        }
        let upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n";
        assert!(check(upgrade).unwrap().upgrade);
    }

    #[test]
    fn chunk_sizes() {
        for (line, size) in [("0", 0), ("5", 5), ("00aF", 0xaf), ("5;a=b", 5), ("5;", 5), ("5; a=\"x\"", 5)] {
            assert_eq!(chunk_size(line.as_bytes()), Ok(size), "{line}");
        }
        for line in ["", "0x5", "+5", "-5", " 5", "5 ", "5 ;a", "g", ";a", "5;\0", "5;\r", "fffffffffffffffff"] {
            assert!(chunk_size(line.as_bytes()).is_err(), "{line:?}");
        }
    }

    #[test]
    fn never_panics_on_any_prefix_or_noise() {
        let sample = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        for end in 0..sample.len() {
            let mut scanned = 0;
            assert_eq!(find_end(&sample[..end], &mut scanned), Ok(None));
            let _ = check(&sample[..end]);
        }
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let mut head = sample.to_vec();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..head.len());
                head[at] = random.u8(..);
            }
            let mut scanned = 0;
            let _ = find_end(&head, &mut scanned);
            let _ = check(&head);
            let _ = check_trailers(&head);
            let _ = chunk_size(&head);
        }
    }
}
