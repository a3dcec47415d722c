//! What endpoints speak where it is not what callers speak: calls that came as Motan2 leave as gRPC or HTTP
//! (docs/wire/grpc.md, docs/wire/http-mesh.md).
//!
//! The caller's half stays that of `motan2`; only the [`Connector`] of the cluster is another. It gets a
//! Motan2 request and gives a Motan2 answer, so nothing between caller and endpoint knows the difference.

pub(super) mod attach;
pub(super) mod convert;
mod grpc;
#[cfg(test)]
mod grpc_tests;
mod provider;
#[cfg(test)]
mod provider_tests;
pub(super) mod raw;

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    call::{self, Body, CallError, ErrorKind, Motan2Head, Pairs, Request, Response, ResponseHead, Status, Text},
    config,
    endpoint::Connector,
    kind::{BuildCx, Kind},
};

/// Further protocols towards endpoints, by name. Each has its own options.
pub const UPSTREAMS: &[Kind<dyn Upstream>] =
    &[Kind { name: "grpc", build: grpc::build }, Kind { name: "http", build: provider::build }];

/// A way to send Motan2 calls in another protocol, with its options read.
pub trait Upstream: Send + Sync + 'static {
    /// The client half for one cluster.
    fn connector(&self, config: &config::Cluster, limits: &config::Limits, cx: &BuildCx) -> Arc<dyn Connector>;
}

/// The Motan2 part of a request, and its body.
fn motan2(req: &Request) -> Result<(&Motan2Head, Bytes), CallError> {
    let call::Head::Motan2(head) = &req.head else {
        let message = "only calls that came as motan2 are converted: declare `protocol: motan2`";
        return Err(CallError::mesh(ErrorKind::Protocol, message));
    };
    match &req.body {
        Body::Empty => Ok((head, Bytes::new())),
        Body::Full(body) => Ok((head, body.clone())),
        Body::Stream(_) => Err(CallError::mesh(ErrorKind::Protocol, "a streamed body cannot be converted")),
    }
}

/// An exception as the endpoint's answer. `status` says how it counts, whatever `errtype` callers see.
fn thrown(status: Status, code: i64, errtype: i64, text: &str, endpoint: Option<std::net::SocketAddr>) -> Response {
    let json = super::motan2::exception_json(code, errtype, text);
    let meta = Pairs::from_iter([(Text::from_static(super::motan2::EXCEPTION), Text::from(json))]);
    let head = Motan2Head { meta, ..Motan2Head::default() };
    Response { status, head: ResponseHead::Motan2(head), body: Body::Empty, endpoint }
}
