//! What headers are for this hop only, and what belongs to the message.

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        CONNECTION, CONTENT_LENGTH, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
    },
};

use crate::call::Body;

/// What the framer adds to every head for hyper's sake.
const TE_OF_THE_MESH: &str = "trailers, of-the-mesh";

/// Takes out what a caller said to this hop. Returns the protocol it wants to go over to.
pub(super) fn strip_request(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let upgrade = wanted_upgrade(headers);
    let said = headers.get_all(TE).iter().filter(|v| *v != TE_OF_THE_MESH).filter_map(|v| v.to_str().ok());
    let trailers = said.flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case("trailers"));
    strip(headers);
    headers.remove(UPGRADE);
    headers.remove("http2-settings");
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    upgrade
}

/// Takes out what an endpoint said to this hop.
pub(super) fn strip_response(headers: &mut HeaderMap, status: StatusCode) {
    // A length beside a transfer coding is void (RFC 9112 section 6.3).
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    // hyper has checked that several say the same; one must remain.
    if headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
        let first = headers[CONTENT_LENGTH].clone();
        headers.insert(CONTENT_LENGTH, first);
    }
    strip(headers);
    // With these two it is the message itself, for the caller.
    if !matches!(status, StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED) {
        headers.remove(UPGRADE);
    }
}

/// Whether the body is in a transfer coding that nobody takes off: `chunked` alone is hyper's work.
pub(super) fn is_coded(headers: &HeaderMap) -> bool {
    let mut codings = tokens(headers, &TRANSFER_ENCODING);
    !codings.all(|t| t.eq_ignore_ascii_case("chunked") || t.eq_ignore_ascii_case("identity"))
}

/// A small number in a header of our own; 1 for what is none.
pub(super) fn number(value: &HeaderValue) -> u32 {
    value.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Whether the sender closes the connection after this message.
pub(super) fn closes(headers: &HeaderMap) -> bool {
    tokens(headers, &CONNECTION).any(|t| t.eq_ignore_ascii_case("close"))
}

/// Makes framing headers fit the body that will be sent.
pub(super) fn frame(headers: &mut HeaderMap, body: &Body) {
    match body {
        Body::Empty => {
            if headers.get(CONTENT_LENGTH).is_some_and(|v| v != "0") {
                headers.remove(CONTENT_LENGTH);
            }
        }
        Body::Full(bytes) => {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
        }
        Body::Stream(body) => {
            if http_body::Body::size_hint(body).exact().is_none() {
                headers.remove(CONTENT_LENGTH);
                // Said aloud, because hyper sends no body with GET otherwise.
                headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
        }
    }
}

fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    if !tokens(headers, &CONNECTION).any(|t| t.eq_ignore_ascii_case("upgrade")) {
        return None;
    }
    let mut values = headers.get_all(UPGRADE).iter();
    let (value, more) = (values.next()?, values.next());
    // HTTP/2 over an upgrade would take the rest of the connection past every rule made here, and
    // servers are free to ignore the wish (RFC 9113 section 3.1 has removed it).
    let h2c = tokens(headers, &UPGRADE).any(|t| t.to_ascii_lowercase().starts_with("h2c"));
    (!h2c && more.is_none()).then(|| value.clone())
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        // These are not this hop's business, whatever a sender says: without them the message means
        // something else to the next one.
        .filter(|name| ![HOST, CONTENT_LENGTH, UPGRADE].contains(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
}

/// The comma-separated words of a header.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(str::trim).filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        map
    }

    #[test]
    fn only_what_is_for_this_hop_goes() {
        let mut headers = map(&[
            ("host", "a"),
            ("connection", "close, X-Secret, host,content-length"),
            ("connection", "te"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("proxy-authorization", "x"),
            ("te", "gzip, Trailers;q=1, trailers"),
            ("te", TE_OF_THE_MESH),
            ("trailer", "x-sum"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("upgrade", "websocket"),
            ("authorization", "mine"),
            ("x", "1"),
            ("x", "2"),
        ]);
        assert_eq!(strip_request(&mut headers), None, "Connection does not say upgrade");
        let left = [
            ("host", "a"),
            ("te", "trailers"),
            ("trailer", "x-sum"),
            ("content-length", "5"),
            ("authorization", "mine"),
            ("x", "1"),
            ("x", "2"),
        ];
        assert_eq!(headers, map(&left));
    }

    #[test]
    fn upgrades() {
        let asks = |value: &str| strip_request(&mut map(&[("connection", "keep-alive, Upgrade"), ("upgrade", value)]));
        assert_eq!(asks("websocket").unwrap(), "websocket");
        assert_eq!(asks("h2c"), None);
        assert_eq!(asks("websocket, H2C"), None);
    }

    #[test]
    fn one_length_remains_in_answers_and_none_beside_chunks() {
        let mut headers = map(&[("content-length", "5"), ("content-length", "5")]);
        strip_response(&mut headers, StatusCode::OK);
        assert_eq!(headers, map(&[("content-length", "5")]));
        let mut headers = map(&[("content-length", "5"), ("transfer-encoding", "chunked")]);
        strip_response(&mut headers, StatusCode::OK);
        assert!(headers.is_empty());
    }
}
