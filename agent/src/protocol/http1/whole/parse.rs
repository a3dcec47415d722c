//! Bytes to messages. `None` is never a verdict: it says that hyper shall look.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};

use super::{
    super::head::{self, BodyFraming, Lines},
    Request, Response,
};
use crate::call::Text;

/// Room in a map of fields that need not grow for most messages.
const USUAL_FIELDS: usize = 12;

/// A request of which nothing is missing, nothing is odd, and after which nothing comes.
pub(super) fn request(seen: &[u8], header_bytes: usize) -> Option<Request> {
    let end = head::find_end(seen, &mut 0).ok()??;
    if end > header_bytes {
        return None;
    }
    let framing = head::check(&seen[..end]).ok()?;
    let length = match framing.body {
        BodyFraming::None => 0,
        BodyFraming::Length(n) => usize::try_from(n).ok()?,
        BodyFraming::Chunked => return None,
    };
    if framing.upgrade || seen.len() - end != length {
        return None;
    }
    let raw = Bytes::copy_from_slice(seen);
    let mut lines = Lines(&raw[..end]);
    let line = lines.next()?;
    let mut parts = line.split(|b| *b == b' ');
    let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
    // The answer to HEAD ends elsewhere than it says.
    if version != b"HTTP/1.1" || method == b"HEAD" || !target.starts_with(b"/") {
        return None;
    }
    let uri = Uri::from_maybe_shared(raw.slice_ref(target)).ok()?;
    let path = Text::from_utf8(raw.slice_ref(&target[..uri.path().len()])).ok()?;
    let method = Method::from_bytes(method).ok()?;
    let headers = fields(&raw, lines, |_| Some(()))?;
    let body = raw.slice(end..);
    Some(Request { method, uri, path, headers, body, raw })
}

/// The same of an answer, to a request that was not HEAD.
pub(in super::super) fn response(seen: &[u8], header_bytes: usize) -> Option<Response> {
    let end = head::find_end(seen, &mut 0).ok()??;
    if end > header_bytes {
        return None;
    }
    let status = seen.strip_prefix(b"HTTP/1.1 ")?.first_chunk::<3>()?;
    if !matches!(seen.get(12), Some(b' ' | b'\r')) {
        return None;
    }
    let status = StatusCode::from_bytes(status).ok().filter(|status| !status.is_informational())?;
    let raw = Bytes::copy_from_slice(seen);
    let mut lines = Lines(&raw[..end]);
    lines.next()?;
    let mut length = None;
    let headers = fields(&raw, lines, |value| {
        let digits = head::digits(value).ok()?;
        length.replace(digits).is_none().then_some(())
    })?;
    let length = match length {
        None if has_no_body(status) => 0,
        Some(n) if !has_no_body(status) => usize::try_from(n).ok()?,
        _ => return None,
    };
    let body = raw.slice(end..);
    (body.len() == length).then_some(Response { status, headers, body })
}

/// Whether such an answer ends with its head whatever that says (RFC 9112 section 6.3).
pub(super) fn has_no_body(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// The fields but for those of one hop. `length` judges the value of a Content-Length.
fn fields(raw: &Bytes, lines: Lines<'_>, mut length: impl FnMut(&[u8]) -> Option<()>) -> Option<HeaderMap> {
    let mut headers = HeaderMap::with_capacity(USUAL_FIELDS);
    for (count, line) in lines.enumerate() {
        let (name, value) = head::field(line).ok()?;
        match kind(name) {
            Kind::Message => {}
            Kind::Length => length(value)?,
            Kind::Hop => continue,
            Kind::Connection if value.eq_ignore_ascii_case(b"keep-alive") => continue,
            Kind::Connection | Kind::Odd => return None,
        }
        if count == head::MAX_FIELDS {
            return None;
        }
        let name = HeaderName::from_bytes(name).ok()?;
        headers.append(name, HeaderValue::from_maybe_shared(raw.slice_ref(value)).ok()?);
    }
    Some(headers)
}

enum Kind {
    /// Goes along.
    Message,
    Length,
    /// Said to this hop, which does not care.
    Hop,
    Connection,
    /// Changes what the message means or how it is answered.
    Odd,
}

fn kind(name: &[u8]) -> Kind {
    let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
    // Lengths first: few names are as long as any of these.
    match name.len() {
        2 if is("te") => Kind::Odd,
        6 if is("expect") => Kind::Odd,
        7 if is("upgrade") => Kind::Odd,
        10 if is("connection") => Kind::Connection,
        10 if is("keep-alive") => Kind::Hop,
        14 if is("content-length") => Kind::Length,
        14 if is("http2-settings") => Kind::Hop,
        16 if is("proxy-connection") => Kind::Hop,
        17 if is("transfer-encoding") => Kind::Odd,
        18 if is("proxy-authenticate") => Kind::Hop,
        19 if is("proxy-authorization") => Kind::Hop,
        _ => Kind::Message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1000;

    fn listed(headers: &HeaderMap) -> String {
        headers.iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap())).collect()
    }

    #[test]
    fn a_whole_request_is_taken_apart() {
        let seen = b"POST /a/b?c=d HTTP/1.1\r\nHost: a\r\nX:  y \r\nConnection: Keep-Alive\r\nKeep-Alive: 5\r\n\
            Proxy-Authorization: z\r\nx: 2\r\nContent-Length: 5\r\n\r\nhello";
        let Request { method, uri, path, headers, body, raw } = request(seen, LIMIT).unwrap();
        assert_eq!((method, uri.to_string().as_str(), path.as_str()), (Method::POST, "/a/b?c=d", "/a/b"));
        assert_eq!(listed(&headers), "host: a\nx: y\nx: 2\ncontent-length: 5\n");
        assert_eq!((&body[..], &raw[..]), (&b"hello"[..], &seen[..]));
        for end in 0..seen.len() {
            assert!(request(&seen[..end], LIMIT).is_none(), "{end} bytes are not all");
        }
        assert!(request(&[&seen[..], b"G"].concat(), LIMIT).is_none(), "the next one has begun");
        assert!(request(seen, 20).is_none(), "a head over the limit");
    }

    #[test]
    fn odd_requests_are_left_to_hyper() {
        let with = |field: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
        assert!(request(with("A: b").as_bytes(), LIMIT).is_some());
        for odd in [
            with("Connection: close"),
            with("Connection: keep-alive, x"),
            with("TE: trailers"),
            with("Expect: 100-continue"),
            with("Upgrade: websocket"),
            with("Transfer-Encoding: chunked"),
            with("Host: b"),
            with("A : b"),
            with("Content-Length: 1"),
            "GET / HTTP/1.0\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\n\r\n".to_owned(),
            "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET /<> HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        ] {
            assert!(request(odd.as_bytes(), LIMIT).is_none(), "{odd}");
        }
    }

    #[test]
    fn a_whole_answer_is_taken_apart() {
        let seen = b"HTTP/1.1 404 Nothing here\r\nContent-Length: 2\r\nConnection: keep-alive\r\nA: b\r\n\r\nno";
        let Response { status, headers, body } = response(seen, LIMIT).unwrap();
        assert_eq!((status, &body[..]), (StatusCode::NOT_FOUND, &b"no"[..]));
        assert_eq!(listed(&headers), "content-length: 2\na: b\n");
        for end in 0..seen.len() {
            assert!(response(&seen[..end], LIMIT).is_none(), "{end} bytes are not all");
        }
        assert!(response(b"HTTP/1.1 204 No Content\r\n\r\n", LIMIT).unwrap().body.is_empty());
        assert!(response(b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", LIMIT).is_some());
    }

    #[test]
    fn odd_answers_are_left_to_hyper() {
        for odd in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
            "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
            "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\nx",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxx",
            "HTTP/1.1 204 No Content\r\nContent-Length: 1\r\n\r\nx",
            "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
            "SSH-2.0-OpenSSH\r\n\r\n",
        ] {
            assert!(response(odd.as_bytes(), LIMIT).is_none(), "{odd}");
        }
    }

    #[test]
    fn never_panics_on_noise() {
        let samples: [&[u8]; 2] = [
            b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nabc",
        ];
        let mut random = fastrand::Rng::with_seed(11);
        for _ in 0..20_000 {
            for sample in samples {
                let mut seen = sample.to_vec();
                for _ in 0..random.usize(1..4) {
                    let at = random.usize(..seen.len());
                    seen[at] = random.u8(..);
                }
                // What is let through here would be let through by the guard, too.
                if let Some(taken) = request(&seen, LIMIT) {
                    assert!(head::check(&taken.raw[..taken.raw.len() - taken.body.len()]).is_ok());
                }
                let _ = response(&seen, LIMIT);
            }
        }
    }
}
