//! Messages to bytes, as hyper would write them. `None` says that hyper shall.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING},
};

use super::{MAX_BYTES, parse::has_no_body};
use crate::call::{Body, HttpHead, RETRY_MARK};

/// What a head is likely to need.
const USUAL_HEAD_BYTES: usize = 512;

/// A request with all of its body.
pub(in super::super) fn request(head: &HttpHead, body: &Body, retry: u32) -> Option<Vec<u8>> {
    let body: &[u8] = match body {
        Body::Empty => b"",
        Body::Full(bytes) if bytes.len() <= MAX_BYTES => bytes,
        Body::Full(_) | Body::Stream(_) => return None,
    };
    let HttpHead { method, uri, headers, upgrade } = head;
    let odd = [EXPECT, CONNECTION, TRANSFER_ENCODING].iter().any(|name| headers.contains_key(name));
    let target = uri.path_and_query().filter(|target| target.as_str().starts_with('/'))?;
    if odd || upgrade.is_some() || uri.authority().is_some() || !headers.contains_key(HOST) {
        return None;
    }
    if [Method::HEAD, Method::CONNECT].contains(method) {
        return None;
    }
    let mut out = Vec::with_capacity(USUAL_HEAD_BYTES + body.len());
    for part in [method.as_str(), " ", target.as_str(), " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    let mut length = (!body.is_empty()).then_some(body.len());
    for (name, value) in headers {
        if name == CONTENT_LENGTH {
            match length.take() {
                Some(n) => number(&mut out, name, n),
                // Said of no body it may stay.
                None if body.is_empty() && value == "0" => field(&mut out, name, value),
                None => {}
            }
        } else if retry == 0 || name != RETRY_MARK {
            field(&mut out, name, value);
        }
    }
    if let Some(n) = length {
        number(&mut out, &CONTENT_LENGTH, n);
    }
    if retry > 0 {
        number(&mut out, &HeaderName::from_static(RETRY_MARK), retry as usize);
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
    Some(out)
}

/// An answer with all of its body, to a request that was not HEAD.
pub(super) fn response(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Option<Vec<u8>> {
    let odd = [CONNECTION, TRANSFER_ENCODING].iter().any(|name| headers.contains_key(name));
    let kept =
        !matches!(status, StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED | StatusCode::RESET_CONTENT);
    if odd || !kept || status.is_informational() {
        return None;
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let said = lengths.next();
    let fits = match said {
        _ if has_no_body(status) => said.is_none() && body.is_empty(),
        None => true,
        Some(said) => is_number(said, body.len()) && lengths.next().is_none(),
    };
    if !fits {
        return None;
    }
    let mut out = Vec::with_capacity(USUAL_HEAD_BYTES + body.len());
    for part in ["HTTP/1.1 ", status.as_str(), " ", status.canonical_reason()?, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for (name, value) in headers {
        field(&mut out, name, value);
    }
    if said.is_none() && !has_no_body(status) {
        number(&mut out, &CONTENT_LENGTH, body.len());
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
    Some(out)
}

fn field(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
        out.extend_from_slice(part);
    }
}

fn number(out: &mut Vec<u8>, name: &HeaderName, n: usize) {
    field(out, name, &HeaderValue::from(n));
}

fn is_number(value: &HeaderValue, n: usize) -> bool {
    value.to_str().is_ok_and(|text| text.parse() == Ok(n))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn head(method: Method, uri: &'static str, fields: &[(&'static str, &'static str)]) -> HttpHead {
        HttpHead { method, uri: uri.parse().unwrap(), headers: map(fields), upgrade: None }
    }

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn text(out: Option<Vec<u8>>) -> Option<String> {
        out.map(|out| String::from_utf8(out).unwrap())
    }

    #[test]
    fn requests_say_their_length_and_how_often_they_came() {
        let body = Body::Full(Bytes::from_static(b"abc"));
        let post = head(Method::POST, "/a?b", &[("host", "h"), ("content-length", "9"), (RETRY_MARK, "7"), ("x", "y")]);
        assert_eq!(
            text(request(&post, &body, 2)).unwrap(),
            format!("POST /a?b HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\nx: y\r\n{RETRY_MARK}: 2\r\n\r\nabc")
        );
        let none = format!("POST /a?b HTTP/1.1\r\nhost: h\r\n{RETRY_MARK}: 7\r\nx: y\r\n\r\n");
        assert_eq!(text(request(&post, &Body::Empty, 0)).unwrap(), none);
        let zero = head(Method::POST, "/", &[("host", "h"), ("content-length", "0")]);
        let said = "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(text(request(&zero, &Body::Empty, 0)).unwrap(), said);
        let fresh = head(Method::PUT, "/", &[("host", "h")]);
        let said = "PUT / HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabc";
        assert_eq!(text(request(&fresh, &body, 0)).unwrap(), said);
    }

    #[test]
    fn odd_requests_are_left_to_hyper() {
        let large = Body::Full(Bytes::from(vec![0; MAX_BYTES + 1]));
        let get = head(Method::GET, "/", &[("host", "h")]);
        assert!(request(&get, &Body::Empty, 0).is_some());
        assert!(request(&get, &large, 0).is_none());
        for odd in [
            head(Method::HEAD, "/", &[("host", "h")]),
            head(Method::GET, "/", &[]),
            head(Method::OPTIONS, "*", &[("host", "h")]),
            head(Method::GET, "http://a/", &[("host", "h")]),
            head(Method::GET, "/", &[("host", "h"), ("expect", "100-continue")]),
            HttpHead { upgrade: Some(HeaderValue::from_static("x")), ..get.clone() },
        ] {
            assert!(request(&odd, &Body::Empty, 0).is_none(), "{odd:?}");
        }
    }

    #[test]
    fn answers_say_their_length() {
        let headers = map(&[("content-length", "2"), ("x", "y")]);
        let said = "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\nx: y\r\n\r\nno";
        assert_eq!(text(response(StatusCode::NOT_FOUND, &headers, b"no")).unwrap(), said);
        let said = "HTTP/1.1 503 Service Unavailable\r\nx: y\r\ncontent-length: 2\r\n\r\nno";
        assert_eq!(text(response(StatusCode::SERVICE_UNAVAILABLE, &map(&[("x", "y")]), b"no")).unwrap(), said);
        let said = "HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(text(response(StatusCode::NO_CONTENT, &map(&[]), b"")).unwrap(), said);
    }

    #[test]
    fn odd_answers_are_left_to_hyper() {
        for (status, fields) in [
            (200, &[("connection", "close")][..]),
            (200, &[("content-length", "3")]),
            (200, &[("content-length", "2"), ("content-length", "2")]),
            (204, &[("content-length", "2")]),
            (101, &[]),
            (426, &[]),
            (799, &[]),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert!(response(status, &map(fields), b"no").is_none(), "{status} {fields:?}");
        }
    }
}
