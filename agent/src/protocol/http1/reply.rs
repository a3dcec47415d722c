//! Answers that the agent itself gives.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER},
};

use super::head::Refusal;
use crate::call::{CallError, ErrorKind, Side};

/// Names the kind of error, so that a caller can tell the mesh's answers from its service's.
const ERROR_HEADER: HeaderName = HeaderName::from_static("x-sockmesh-error");

/// Status, headers and body of an answer that the agent gives.
pub(super) struct Own {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Answers a call that nobody else answered.
pub(super) fn to_error(error: &CallError) -> Own {
    let mut own = text(status(error), error.kind.name(), &error.message);
    if matches!(error.kind, ErrorKind::Overload | ErrorKind::RateLimited | ErrorKind::CircuitOpen) {
        own.headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if error.side == Side::Downstream {
        // Where the caller's next request begins is anyone's guess.
        own.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    own
}

/// Answers a request that was not let in; the connection ends with it.
pub(super) fn to_refusal(refusal: Refusal) -> Own {
    let mut own = text(refusal.status, ErrorKind::Protocol.name(), refusal.reason);
    own.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    if refusal.status == StatusCode::METHOD_NOT_ALLOWED {
        let others = HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH, TRACE");
        own.headers.insert(http::header::ALLOW, others);
    }
    own
}

fn status(error: &CallError) -> StatusCode {
    match error.kind {
        ErrorKind::NoCluster => StatusCode::NOT_FOUND,
        // Nothing of the request has reached anyone: it is safe to come again.
        ErrorKind::NoEndpoint
        | ErrorKind::Connect
        | ErrorKind::ConnectTimeout
        | ErrorKind::Overload
        | ErrorKind::CircuitOpen
        | ErrorKind::Degraded
        | ErrorKind::Draining => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::Protocol | ErrorKind::Reset if error.side == Side::Downstream => StatusCode::BAD_REQUEST,
        ErrorKind::Protocol | ErrorKind::Reset => StatusCode::BAD_GATEWAY,
        ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::Rejected => StatusCode::FORBIDDEN,
        ErrorKind::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
        // Nobody is left to read it.
        ErrorKind::Cancelled => StatusCode::BAD_REQUEST,
    }
}

fn text(status: StatusCode, kind: &'static str, message: &str) -> Own {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(ERROR_HEADER, HeaderValue::from_static(kind));
    Own { status, headers, body: Bytes::from(format!("sockmesh: {message}\n")) }
}
