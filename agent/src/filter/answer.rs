//! Answers that filters make up, in the protocol of the caller.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE};

use crate::call::{
    Body, CallError, ErrorKind, Head, HttpResponseHead, Motan2Head, Response, ResponseHead, Status,
    exception::{BUSINESS, Exception},
};

/// The exception as its caller sees it: a Motan2 exception, or an HTTP answer with `status` and the text. A
/// protocol that cannot say it gets an error, and ends the connection.
pub(super) fn exception(head: &Head, exception: &Exception, status: StatusCode) -> Result<Response, CallError> {
    let code = u32::try_from(exception.code).unwrap_or(500);
    let counts = if exception.errtype == BUSINESS { Status::Refused(code) } else { Status::Failed(code) };
    match head {
        Head::Motan2(_) => {
            let meta = [("M_e", &*exception.to_json())].into_iter().collect();
            let head = Motan2Head { meta, ..Motan2Head::default() };
            Ok(Response { status: counts, head: ResponseHead::Motan2(head), body: Body::Empty, endpoint: None })
        }
        Head::Http(_) => {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            Ok(http(status, headers, Bytes::from(format!("{}\n", exception.text))))
        }
        Head::None => Err(CallError::mesh(ErrorKind::Rejected, exception.text.clone())),
    }
}

/// An answer of Motan2.
pub(super) fn motan2(serialization: u8, body: Bytes) -> Response {
    let head = Motan2Head { serialization, ..Motan2Head::default() };
    let body = if body.is_empty() { Body::Empty } else { Body::Full(body) };
    Response { status: Status::Ok, head: ResponseHead::Motan2(head), body, endpoint: None }
}

/// An answer of HTTP.
pub(super) fn http(status: StatusCode, headers: HeaderMap, body: Bytes) -> Response {
    let code = u32::from(status.as_u16());
    let counts = match code {
        500.. => Status::Failed(code),
        400.. => Status::Refused(code),
        _ => Status::Ok,
    };
    let head = HttpResponseHead { status, headers, upgrade: None };
    let body = if body.is_empty() { Body::Empty } else { Body::Full(body) };
    Response { status: counts, head: ResponseHead::Http(Box::new(head)), body, endpoint: None }
}
