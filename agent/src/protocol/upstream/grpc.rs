//! gRPC towards endpoints: HTTP/2 in clear text, one connection each, unary calls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Upstream,
    attach::{attachments, unpercent},
    motan2, thrown,
};
use crate::{
    call::{Body, CallError, ErrorKind, Motan2Head, Request, Response, ResponseHead, Retry, Status, Text},
    config,
    endpoint::{Connector, Endpoint, dial},
    kind::{self, BuildCx, Value},
};

/// One raw message as the body: what endpoints answer in.
const GRPC_PB: u8 = 1;
/// As of Motan2 calls, which these are to their callers.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
/// Flag and length before a message.
const PREFIX: usize = 5;
/// Calls in a row without any answer in time before a connection is given up: gRPC servers punish pings,
/// so this is how a silent one is noticed.
pub(super) const SILENT: u32 = 3;

pub(super) fn build(value: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn Upstream>> {
    kind::no_options(value)?;
    Ok(Arc::new(Grpc))
}

struct Grpc;

impl Upstream for Grpc {
    fn connector(&self, _: &config::Cluster, limits: &config::Limits, cx: &BuildCx) -> Arc<dyn Connector> {
        Arc::new(GrpcConnector { content_bytes: limits.content_bytes, application: cx.application.clone() })
    }
}

struct GrpcConnector {
    content_bytes: usize,
    application: Text,
}

/// The connection to one endpoint.
#[derive(Default)]
struct Shared {
    current: Mutex<Option<Arc<Conn>>>,
    /// Held while dialling; remembers how the last dial failed, and when.
    dial: tokio::sync::Mutex<Option<(Instant, CallError)>>,
}

struct Conn {
    sender: SendRequest<Full<Bytes>>,
    /// Calls in a row that got no answer in time.
    silent: AtomicU32,
}

impl Shared {
    fn open(&self) -> Option<Arc<Conn>> {
        let good = |conn: &&Arc<Conn>| !conn.sender.is_closed() && conn.silent.load(Relaxed) < SILENT;
        self.current.lock().as_ref().filter(good).cloned()
    }

    /// The connection, opened if there is none. Those who come while it is being dialled share the result.
    async fn connect(&self, to: &Endpoint) -> Result<Arc<Conn>, CallError> {
        if let Some(conn) = self.open() {
            return Ok(conn);
        }
        let came = Instant::now();
        let mut last = self.dial.lock().await;
        if let Some(conn) = self.open() {
            return Ok(conn);
        }
        if let Some((at, error)) = &*last
            && *at >= came
        {
            return Err(error.clone());
        }
        match self.dial(to).await {
            Ok(conn) => {
                *last = None;
                *self.current.lock() = Some(conn.clone());
                Ok(conn)
            }
            Err(error) => {
                *last = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn dial(&self, to: &Endpoint) -> Result<Arc<Conn>, CallError> {
        let io = dial(to.addr, &to.dial).await?;
        let handshake = Builder::new(TokioExecutor::new()).handshake(TokioIo::new(io)).await;
        let (sender, connection) = handshake.map_err(|error| broken(to, &error, Retry::NotSent))?;
        let addr = to.addr;
        // Ends by itself when its last sender is gone and its last call is over.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(endpoint = %addr, %error, "connection to a gRPC endpoint is over");
            }
        });
        Ok(Arc::new(Conn { sender, silent: AtomicU32::new(0) }))
    }
}

impl GrpcConnector {
    async fn exchange(
        &self,
        to: &Arc<Endpoint>,
        mut message: http::Request<Full<Bytes>>,
    ) -> Result<Response, CallError> {
        let shared: &Shared = to.pool(Shared::default);
        let mut fresh = false;
        let (conn, answer) = loop {
            let conn = shared.connect(to).await?;
            let mut sender = conn.sender.clone();
            if sender.ready().await.is_err() {
                // Closed, or told to go away, since it was looked at. One that is so when it is new is no server.
                if std::mem::replace(&mut fresh, true) {
                    let what = format!("{} closes gRPC connections as soon as they open", to.addr);
                    return Err(CallError::upstream(ErrorKind::Reset, Retry::NotSent, what));
                }
                shared.forget(&conn);
                continue;
            }
            let copy = copy_of(&message);
            match answered(&conn, sender.try_send_request(message)).await {
                Ok(answer) => break (conn, answer),
                Err(mut error) => {
                    let unsent = error.take_message().is_some() || is_refused(error.error());
                    if unsent && !std::mem::replace(&mut fresh, true) {
                        shared.forget(&conn);
                        message = copy;
                        continue;
                    }
                    let retry = if unsent { Retry::NotSent } else { Retry::IfIdempotent };
                    return Err(broken(to, error.error(), retry));
                }
            }
        };
        let answer = self.read(to, answer).await;
        conn.silent.store(0, Relaxed);
        answer
    }

    fn message(&self, to: &Endpoint, req: &Request) -> Result<http::Request<Full<Bytes>>, CallError> {
        let (head, body) = motan2(req)?;
        let call = &req.call;
        let uri = http::Uri::builder()
            .scheme("http")
            .authority(to.addr.to_string())
            .path_and_query(format!("/{}/{}", &*call.service, &*call.method))
            .build()
            .map_err(|_| {
                let what = format!("`{}` or `{}` cannot stand in a gRPC path", &*call.service, &*call.method);
                CallError::mesh(ErrorKind::Protocol, what)
            })?;
        let mut framed = BytesMut::with_capacity(PREFIX + body.len());
        framed.put_u8(0);
        framed.put_u32(body.len() as u32);
        framed.put_slice(&body);
        let mut message = http::Request::post(uri)
            .version(Version::HTTP_2)
            .body(Full::new(framed.freeze()))
            .expect("method, version and URI were made by typed values");
        let headers = message.headers_mut();
        for (key, value) in attachments(call, head, &self.application, &to.group) {
            if let Some((name, value)) = field(&key, &value) {
                headers.append(name, value);
            }
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static("sockmesh"));
        let left = call.deadline.saturating_duration_since(Instant::now()).as_millis();
        // At most eight digits (gRPC over HTTP/2, "Timeout").
        headers.insert("grpc-timeout", HeaderValue::try_from(format!("{}m", left.min(99_999_999))).expect("digits"));
        Ok(message)
    }

    async fn read(&self, to: &Endpoint, answer: http::Response<Incoming>) -> Result<Response, CallError> {
        let (head, mut body) = answer.into_parts();
        let mut trailers = HeaderMap::new();
        let mut message = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| broken(to, &error, Retry::IfIdempotent))?;
            match frame.into_data() {
                Ok(data) if message.len() + data.len() > self.content_bytes + PREFIX => {
                    let what = format!("an answer of {} is over {} bytes", to.addr, self.content_bytes);
                    return Err(CallError::upstream(ErrorKind::TooLarge, Retry::Never, what));
                }
                Ok(data) => message.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
            }
        }
        let said = |name| trailers.get(name).or_else(|| head.headers.get(name)).and_then(|v| v.to_str().ok());
        let code = match said("grpc-status").and_then(|code| code.parse::<u32>().ok()) {
            Some(code) => code,
            None if head.status == StatusCode::OK => return Err(not_grpc(to, "without a grpc-status")),
            None => code_of(head.status),
        };
        if code != 0 {
            let text = said("grpc-message").map(unpercent).unwrap_or_else(|| match head.status {
                StatusCode::OK => String::new(),
                status => format!("HTTP status {status}"),
            });
            // The code in both places, as Motan's own agent has it.
            return Ok(thrown(verdict(code), code.into(), code.into(), &text, Some(to.addr)));
        }
        let body = unframe(message.freeze()).map_err(|what| not_grpc(to, what))?;
        let head = Motan2Head { serialization: GRPC_PB, ..Motan2Head::default() };
        Ok(Response {
            status: Status::Ok,
            head: ResponseHead::Motan2(head),
            body: if body.is_empty() { Body::Empty } else { Body::Full(body) },
            endpoint: Some(to.addr),
        })
    }
}

impl Shared {
    /// Takes `conn` out, if it has not been replaced already.
    fn forget(&self, conn: &Arc<Conn>) {
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|now| Arc::ptr_eq(now, conn)) {
            *current = None;
        }
    }
}

/// Waits for an answer; a call given up while it waits counts against the connection.
async fn answered<T>(conn: &Conn, answer: impl Future<Output = T>) -> T {
    struct Waiting<'a>(Option<&'a Conn>);
    impl Drop for Waiting<'_> {
        fn drop(&mut self) {
            if let Some(conn) = self.0 {
                conn.silent.fetch_add(1, Relaxed);
            }
        }
    }
    let mut waiting = Waiting(Some(conn));
    let answer = answer.await;
    waiting.0 = None;
    answer
}

impl Connector for GrpcConnector {
    fn call<'a>(&'a self, to: &'a Arc<Endpoint>, req: &'a mut Request) -> BoxFuture<'a, Result<Response, CallError>> {
        Box::pin(async move {
            let deadline = req.call.deadline;
            let message = self.message(to, req)?;
            let exchange = Box::pin(self.exchange(to, message));
            tokio::time::timeout_at(deadline, exchange).await.unwrap_or_else(|_| {
                let what = format!("{} did not answer in time", to.addr);
                Err(CallError::upstream(ErrorKind::Timeout, Retry::IfIdempotent, what))
            })
        })
    }

    fn default_timeout(&self) -> Duration {
        DEFAULT_TIMEOUT
    }
}

fn copy_of(message: &http::Request<Full<Bytes>>) -> http::Request<Full<Bytes>> {
    let mut copy = http::Request::new(message.body().clone());
    *copy.method_mut() = message.method().clone();
    *copy.uri_mut() = message.uri().clone();
    *copy.version_mut() = message.version();
    *copy.headers_mut() = message.headers().clone();
    copy
}

/// An attachment as a header field; `None` for one that cannot be.
fn field(key: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    /// What HTTP and gRPC say themselves, and what an HTTP/2 message may not carry.
    const OWN: [&str; 12] = [
        "host",
        "content-type",
        "content-length",
        "te",
        "user-agent",
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
        "trailer",
        "expect",
    ];
    let key = key.to_ascii_lowercase();
    if OWN.contains(&&*key) || key.starts_with("grpc-") {
        return None;
    }
    let value = if key.ends_with("-bin") { STANDARD_NO_PAD.encode(value) } else { value.to_owned() };
    Some((HeaderName::try_from(key).ok()?, HeaderValue::try_from(value).ok()?))
}

/// The message after its prefix.
fn unframe(mut body: Bytes) -> Result<Bytes, &'static str> {
    let Some(prefix) = body.get(..PREFIX) else { return Err("without a message") };
    if prefix[0] != 0 {
        return Err("with a compressed message, which was not asked for");
    }
    let len = u32::from_be_bytes(prefix[1..].try_into().expect("four bytes")) as usize;
    if body.len() != PREFIX + len {
        return Err("with a message that is cut off, or with several");
    }
    Ok(body.split_off(PREFIX))
}

/// The code for an answer that is no gRPC at all (gRPC, "HTTP to gRPC Status Code Mapping").
fn code_of(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// How a code counts: UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE and DATA_LOSS are
/// the endpoint's failures, the rest is its answer to a call it did not like.
fn verdict(code: u32) -> Status {
    if matches!(code, 2 | 4 | 8 | 13 | 14 | 15) { Status::Failed(code) } else { Status::Refused(code) }
}

fn not_grpc(to: &Endpoint, what: &str) -> CallError {
    let message = format!("{} does not speak gRPC: it answered {what}", to.addr);
    CallError::upstream(ErrorKind::Protocol, Retry::IfIdempotent, message)
}

fn broken(to: &Endpoint, error: &hyper::Error, retry: Retry) -> CallError {
    let mut message = format!("{} broke a gRPC connection off: {error}", to.addr);
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message += &format!(": {cause}");
        source = cause.source();
    }
    CallError::upstream(ErrorKind::Reset, retry, message)
}

/// Whether the endpoint says that it has not begun with the call: a refused stream, or an orderly goodbye,
/// which ends only streams that it has not looked at (RFC 9113, sections 6.8 and 8.7).
fn is_refused(error: &hyper::Error) -> bool {
    // The library's own error type is not among our dependencies, but its words are.
    let said = format!("{error:?}");
    said.contains("REFUSED_STREAM") || said.contains("GoAway") && said.contains("NO_ERROR")
}
