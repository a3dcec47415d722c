//! Messages that come whole: all of one message, and nothing else, in one read. Most are, and they are read and
//! written here, without hyper, for a third of the work.
//!
//! Everything else goes to hyper, also what turns out to be odd only when half is done: it gets the bytes again
//! as if it had read them, so that there is one place that decides what odd messages mean. The caller's side
//! judges by [`super::head`], as the guard in front of hyper does.

mod parse;
mod serve;
mod write;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri};

use crate::{call::Text, stream::SCRATCH_BYTES};

pub(super) use self::{
    parse::response as parse_response,
    serve::{Next, serve},
    write::request as write_request,
};

/// Largest message that is looked at; also what a connection can be sent in one go without waiting for its reader.
pub(super) const MAX_BYTES: usize = SCRATCH_BYTES;

/// A request, without what its sender said to this hop.
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) path: Text,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// All of it as it came.
    pub(super) raw: Bytes,
}

/// An answer, without what its sender said to this hop.
pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}
