//! HTTP messages inside Motan2 values: heads as bytes, with `HTTP_PROXY=true`.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};

/// Field lines in one head.
const MAX_FIELDS: usize = 256;

/// A request head.
#[derive(Debug)]
pub(in crate::protocol) struct RequestHead {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
}

/// A response head.
#[derive(Debug)]
pub(in crate::protocol) struct ResponseHead {
    pub status: StatusCode,
    pub headers: HeaderMap,
}

/// Reads a request head; says what is wrong with it.
pub(in crate::protocol) fn request(bytes: &[u8]) -> Result<RequestHead, &'static str> {
    let mut lines = lines(bytes);
    let mut first = lines.next().unwrap_or_default().split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) = (first.next(), first.next(), first.next(), first.next())
    else {
        return Err("the first line is no request");
    };
    if !version.starts_with(b"HTTP/1.") {
        return Err("the first line is no request of HTTP/1");
    }
    Ok(RequestHead {
        method: Method::from_bytes(method).map_err(|_| "the method is no token")?,
        uri: Uri::try_from(target).map_err(|_| "the target is no URI")?,
        headers: fields(lines)?,
    })
}

/// Reads a response head; says what is wrong with it.
pub(in crate::protocol) fn response(bytes: &[u8]) -> Result<ResponseHead, &'static str> {
    let mut lines = lines(bytes);
    let mut first = lines.next().unwrap_or_default().splitn(3, |b| *b == b' ');
    let (Some(version), Some(status)) = (first.next(), first.next()) else {
        return Err("the first line is no status");
    };
    if !version.starts_with(b"HTTP/1.") {
        return Err("the first line is no status of HTTP/1");
    }
    let status = StatusCode::from_bytes(status).map_err(|_| "the status is no number from 100 to 999")?;
    Ok(ResponseHead { status, headers: fields(lines)? })
}

/// A request head as bytes, its empty line included.
pub(in crate::protocol) fn put_request(method: &Method, target: &str, headers: &HeaderMap) -> Bytes {
    let mut out = BytesMut::with_capacity(256);
    out.put_slice(format!("{method} {target} HTTP/1.1\r\n").as_bytes());
    put_fields(headers, &mut out);
    out.freeze()
}

/// A response head as bytes, its empty line included.
pub(in crate::protocol) fn put_response(status: StatusCode, headers: &HeaderMap) -> Bytes {
    let mut out = BytesMut::with_capacity(256);
    let reason = status.canonical_reason().unwrap_or("Unknown");
    out.put_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).as_bytes());
    put_fields(headers, &mut out);
    out.freeze()
}

fn put_fields(headers: &HeaderMap, out: &mut BytesMut) {
    for (name, value) in headers {
        out.put_slice(canonical(name.as_str()).as_bytes());
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
    out.put_slice(b"\r\n");
}

/// `content-type` as `Content-Type`: how Motan's own agent names headers, whose readers compare them as they are.
pub(in crate::protocol) fn canonical(name: &str) -> String {
    let mut start = true;
    let upper = |c: char| {
        let c = if start { c.to_ascii_uppercase() } else { c };
        start = c == '-';
        c
    };
    name.chars().map(upper).collect()
}

/// Lines up to the empty one, without their ends.
fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = bytes.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.take_while(|line| !line.is_empty())
}

fn fields<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Result<HeaderMap, &'static str> {
    let mut headers = HeaderMap::new();
    for (i, line) in lines.enumerate() {
        if i == MAX_FIELDS {
            return Err("there are more than 256 header fields");
        }
        let colon = memchr::memchr(b':', line).ok_or("a header field has no colon")?;
        let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| "the name of a header field is no token")?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii())
            .map_err(|_| "the value of a header field has a control character")?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// Takes out what is said from one hop to the next (RFC 9110 section 7.6.1), and lengths, which whoever writes
/// the message knows itself.
pub(in crate::protocol) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|token| HeaderName::from_bytes(token.trim().as_bytes()).ok())
        .filter(|name| name != header::HOST)
        .collect();
    for name in named {
        headers.remove(name);
    }
    let own = [
        header::CONNECTION,
        header::TE,
        header::TRANSFER_ENCODING,
        header::CONTENT_LENGTH,
        header::UPGRADE,
        header::TRAILER,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ];
    for name in own {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_go_there_and_back() {
        let text = b"POST /a?b=c HTTP/1.1\r\nHost: h\r\nX-A:  1 \r\nX-A: 2\r\n\r\nbody";
        let head = request(text).unwrap();
        assert_eq!((head.method.as_str(), head.uri.path(), head.uri.query()), ("POST", "/a", Some("b=c")));
        assert_eq!(head.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
        let again = put_request(&head.method, "/a?b=c", &head.headers);
        assert_eq!(again, &b"POST /a?b=c HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nX-A: 2\r\n\r\n"[..]);

        let head = response(b"HTTP/1.1 404 Not Found\nContent-Type: text/plain\n\n").unwrap();
        assert_eq!(head.status, 404);
        let again = put_response(head.status, &head.headers);
        assert_eq!(again, &b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\n\r\n"[..]);
    }

    #[test]
    fn rubbish_is_told() {
        for text in
            ["", "GET", "GET / HTTP/2\r\n", "GET / HTTP/1.1 x\r\n", "G(T / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nx\r\n"]
        {
            assert!(request(text.as_bytes()).is_err(), "{text}");
        }
        for text in ["", "HTTP/1.1", "HTTP/1.1 x", "200 OK"] {
            assert!(response(text.as_bytes()).is_err(), "{text}");
        }
        let many = format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(MAX_FIELDS + 1));
        assert!(request(many.as_bytes()).is_err());
    }

    #[test]
    fn what_is_for_one_hop_goes() {
        let mut head = request(
            b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close, x-own, host\r\nX-Own: 1\r\nContent-Length: 3\r\nA: b\r\n\r\n",
        )
        .unwrap();
        strip(&mut head.headers);
        let mut left: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["a", "host"]);
    }
}
