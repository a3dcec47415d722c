//! The vocabulary of the data path: what a call, its answer and its failure are, whatever the protocol.

mod body;
pub mod exception;
mod pairs;
mod text;

use std::{borrow::Cow, fmt, net::SocketAddr, time::Duration};

use http_body_util::combinators::UnsyncBoxBody;
use tokio::time::Instant;

pub use self::{
    body::{Watch, Watched},
    pairs::{Extra, OddPairs, Pairs, Rule},
    text::Text,
};
use bytes::Bytes;

use crate::stream::Stream;

/// Which way a call goes through this agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From a local program to a service.
    Outbound,
    /// From elsewhere to a local program.
    Inbound,
}

impl Direction {
    /// Stable name for logs and metric labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// Metadata key (Motan2) and header (HTTP) of a call that an agent sends again, with the number of attempts
/// before it.
pub const RETRY_MARK: &str = "x-sockmesh-retry";

/// One call on its way to an endpoint.
#[derive(Debug)]
pub struct Request {
    /// What every stage may look at.
    pub call: Call,
    /// The protocol's own part, carried along and encoded again at the end.
    pub head: Head,
    /// Payload.
    pub body: Body,
}

#[cfg(test)]
impl Request {
    /// A second copy: a few reference counts. `None` once the body is a stream, because its bytes exist only once.
    pub(crate) fn replay(&self) -> Option<Self> {
        let body = match &self.body {
            Body::Empty => Body::Empty,
            Body::Full(bytes) => Body::Full(bytes.clone()),
            Body::Stream(_) => return None,
        };
        Some(Self { call: self.call.clone(), head: self.head.clone(), body })
    }
}

/// The protocol-neutral part of a request.
#[derive(Clone, Debug)]
pub struct Call {
    /// Service the caller asks for; empty where the protocol does not name one (the listener's is used).
    pub service: Text,
    /// Method: the RPC method, or the HTTP method.
    pub method: Text,
    /// What the method is applied to, for logs: the path of an HTTP request, without its query, which may
    /// hold secrets. Empty where the protocol has none.
    pub path: Text,
    /// Group asked for, may be empty.
    pub group: Text,
    /// Version asked for, may be empty.
    pub version: Text,
    /// Application of the caller, may be empty.
    pub application: Text,
    /// Id that names this call in logs and traces on every hop; 0 where the protocol has none.
    pub request_id: u64,
    /// Socket address of the caller.
    pub peer: Option<SocketAddr>,
    /// Process of the caller, 0 when unknown.
    pub pid: u32,
    /// The address that the caller asked for, as its connection says.
    pub local: Option<SocketAddr>,
    /// Timeout that came with the call.
    pub wire_timeout: Option<Duration>,
    /// Absolute end of the call, retries included. Set by the cluster when the call enters it.
    pub deadline: Instant,
    /// What the protocol itself says about resending (HTTP method semantics); config can override.
    pub idempotent: bool,
    /// How often an agent has sent this call before, as far as it may have reached somebody; 0 for a call
    /// that its own caller makes. Marked on the wire ([`RETRY_MARK`]), and such a call is not retried again.
    pub retry: u32,
    /// The caller does not wait for an answer.
    pub one_way: bool,
    /// Payload bytes on the wire as far as they are known at decode.
    pub request_bytes: u64,
}

impl Call {
    /// A call of `method` on `service` with everything else unset.
    pub fn new(service: Text, method: Text) -> Self {
        Self {
            service,
            method,
            path: Text::default(),
            group: Text::default(),
            version: Text::default(),
            application: Text::default(),
            request_id: 0,
            peer: None,
            pid: 0,
            local: None,
            wire_timeout: None,
            deadline: Instant::now(),
            idempotent: false,
            retry: 0,
            one_way: false,
            request_bytes: 0,
        }
    }
}

/// The part of a request that only its protocol understands.
#[derive(Clone, Debug)]
pub enum Head {
    /// No protocol part: a call the agent made up itself.
    None,
    /// Motan2: message flags and the metadata block.
    Motan2(Motan2Head),
    /// HTTP/1.1: method, target, headers. Boxed: parts are large and rare in a mixed queue.
    Http(Box<HttpHead>),
}

/// What a Motan2 frame carries beside its body (spec/motan.md (a)).
#[derive(Clone, Debug, Default)]
pub struct Motan2Head {
    /// Serialization number, passed through untouched.
    pub serialization: u8,
    /// Metadata, parsed on first use.
    pub meta: Pairs,
    /// The body is still a gzip member (it could not be unpacked on arrival).
    pub gzip: bool,
    /// The call came from elsewhere for a local program, so its group stays as it came.
    pub inbound: bool,
}

/// An HTTP request head. `http::request::Parts` is not `Clone` because of its extensions; this is.
#[derive(Clone, Debug)]
pub struct HttpHead {
    /// Request method.
    pub method: http::Method,
    /// Request target, origin form.
    pub uri: http::Uri,
    /// Headers without the hop-by-hop ones.
    pub headers: http::HeaderMap,
    /// Protocol named by `Upgrade`, when the caller asks to leave HTTP.
    pub upgrade: Option<http::HeaderValue>,
}

/// Payload of a request or answer.
#[derive(Default)]
pub enum Body {
    /// No payload.
    #[default]
    Empty,
    /// All of it, shared and cheap to clone.
    Full(Bytes),
    /// Pulled frame by frame, with trailers; the puller's pace is the backpressure.
    Stream(UnsyncBoxBody<Bytes, CallError>),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Full(bytes) => write!(f, "Full({} B)", bytes.len()),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// The answer to a [`Request`].
#[derive(Debug)]
pub struct Response {
    /// How the endpoint itself says it went.
    pub status: Status,
    /// The protocol's own part.
    pub head: ResponseHead,
    /// Payload.
    pub body: Body,
    /// Endpoint that answered.
    pub endpoint: Option<SocketAddr>,
}

impl Response {
    /// Whether the connection leaves the protocol after this head, so that bytes are copied both ways.
    pub fn is_copied(&self) -> bool {
        match &self.head {
            ResponseHead::Raw(_) => true,
            ResponseHead::Http(head) => head.upgrade.is_some(),
            ResponseHead::None | ResponseHead::Motan2(_) => false,
        }
    }
}

/// The part of an answer that only its protocol understands.
#[derive(Debug)]
pub enum ResponseHead {
    /// No protocol part: an answer the agent made up itself.
    None,
    /// Motan2.
    Motan2(Motan2Head),
    /// HTTP/1.1.
    Http(Box<HttpResponseHead>),
    /// Raw TCP: the "answer" is an open connection to the endpoint.
    Raw(Raw),
}

/// An open connection to an endpoint, for whoever copies bytes between it and the caller.
pub struct Raw {
    /// The connection.
    pub io: Stream,
    /// To be told every byte and the end; set by the cluster.
    pub watch: Option<Box<dyn Watch>>,
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Raw").field(&self.io).finish()
    }
}

/// The endpoint's end of a connection that leaves HTTP after 101.
pub struct Upgrade {
    /// Resolves to the connection.
    pub on: hyper::upgrade::OnUpgrade,
    /// To be told every byte and the end; set by the cluster.
    pub watch: Option<Box<dyn Watch>>,
}

impl fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upgrade")
    }
}

/// An HTTP response head.
#[derive(Debug)]
pub struct HttpResponseHead {
    /// Status code.
    pub status: http::StatusCode,
    /// Headers without the hop-by-hop ones.
    pub headers: http::HeaderMap,
    /// The endpoint's end of an upgraded connection, after 101.
    pub upgrade: Option<Upgrade>,
}

/// How an endpoint says a call went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Success.
    Ok,
    /// The user's own code answered with an error: a business exception, an HTTP 4xx.
    /// Not a failure of the endpoint, never retried.
    Refused(u32),
    /// The endpoint failed: a framework exception, an HTTP 5xx.
    Failed(u32),
}

impl Status {
    /// Whether the call counts as a failure of the endpoint.
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::Failed(_))
    }

    /// The protocol's code: 200 for success.
    pub const fn code(self) -> u32 {
        match self {
            Self::Ok => 200,
            Self::Refused(code) | Self::Failed(code) => code,
        }
    }
}

/// A call that got no answer from an endpoint.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    /// What went wrong.
    pub kind: ErrorKind,
    /// Who is to blame.
    pub side: Side,
    /// Whether sending again is safe; decided where the error is born.
    pub retry: Retry,
    /// For operators and, where the protocol has room, for callers.
    pub message: Cow<'static, str>,
    /// Endpoint of the attempt that failed; set where attempts are made.
    pub endpoint: Option<SocketAddr>,
    /// Callers compare the text: a Motan caller gets it as it is, with code 400, whatever the kind.
    pub verbatim: bool,
}

impl CallError {
    /// An error of the mesh itself (route, filter, queue): resending changes nothing.
    pub fn mesh(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, side: Side::Mesh, retry: Retry::Never, message: message.into(), endpoint: None, verbatim: false }
    }

    /// An error between agent and endpoint.
    pub fn upstream(kind: ErrorKind, retry: Retry, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, side: Side::Upstream, retry, message: message.into(), endpoint: None, verbatim: false }
    }

    /// An error between caller and agent.
    pub fn downstream(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { side: Side::Downstream, ..Self::mesh(kind, message) }
    }

    /// The same, its text meant for callers to the letter.
    pub fn verbatim(self) -> Self {
        Self { verbatim: true, ..self }
    }
}

/// What went wrong with a call. The name in logs and metric labels is [`ErrorKind::name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No cluster for the service asked for.
    NoCluster,
    /// The cluster has no endpoint at all.
    NoEndpoint,
    /// The endpoint refused the connection or could not be reached.
    Connect,
    /// The endpoint did not accept the connection in time.
    ConnectTimeout,
    /// No answer before the deadline.
    Timeout,
    /// The connection broke before the answer was complete.
    Reset,
    /// The peer does not speak the protocol.
    Protocol,
    /// A message over the configured limit.
    TooLarge,
    /// A queue or limit is full.
    Overload,
    /// A filter said no.
    Rejected,
    /// More calls than a limit of their rate allows.
    RateLimited,
    /// A circuit breaker is open.
    CircuitOpen,
    /// The caller did not prove who it is.
    Unauthorized,
    /// An operator has turned the service (or method) off.
    Degraded,
    /// The agent is stopping.
    Draining,
    /// The caller went away before the answer.
    Cancelled,
}

impl ErrorKind {
    /// Stable name for logs and metric labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoCluster => "no_cluster",
            Self::NoEndpoint => "no_endpoint",
            Self::Connect => "connect",
            Self::ConnectTimeout => "connect_timeout",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Protocol => "protocol",
            Self::TooLarge => "too_large",
            Self::Overload => "overload",
            Self::Rejected => "rejected",
            Self::RateLimited => "rate_limited",
            Self::CircuitOpen => "circuit_open",
            Self::Unauthorized => "unauthorized",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Who is to blame for an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller.
    Downstream,
    /// The agent.
    Mesh,
    /// The endpoint, or the way to it.
    Upstream,
}

/// Whether a failed call may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Sending again is pointless or dangerous.
    Never,
    /// No byte of the call reached the endpoint: always safe.
    NotSent,
    /// The endpoint may have done the work: safe only for idempotent calls.
    IfIdempotent,
}
