//! Requests that stay HTTP: where they go, connections that are kept, and the answer.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header, uri::Authority};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::server::{Answer, own};
use crate::{
    config,
    endpoint::{DialOptions, dial},
    protocol::upstream::raw,
    stream::{OwnSockets, Stream},
};

/// Idle connections kept, to all servers together.
const MOST_IDLE: usize = 256;

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// Sends plain HTTP.
pub(super) struct Plain {
    dial: DialOptions,
    timeout: Duration,
    keep: Duration,
    /// The one used last is at the end.
    idle: Mutex<VecDeque<Idle>>,
}

struct Idle {
    to: Authority,
    sender: SendRequest<Body>,
    since: Instant,
}

impl Plain {
    pub(super) fn new(proxy: &config::HttpProxy, own: OwnSockets) -> Self {
        let dial = DialOptions { connect_timeout: proxy.timeout, own, ..DialOptions::default() };
        Self { dial, timeout: proxy.timeout, keep: proxy.keep_alive, idle: Mutex::default() }
    }

    /// Addresses of a host; port 80 when it names none.
    pub(super) async fn addresses(&self, target: &Authority) -> Result<Vec<SocketAddr>, String> {
        let host = target.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = target.port_u16().unwrap_or(80);
        let found = tokio::time::timeout(self.timeout, tokio::net::lookup_host((host.as_str(), port))).await;
        match found {
            Ok(Ok(found)) => {
                let found: Vec<_> = found.collect();
                if found.is_empty() { Err(format!("{host} has no address")) } else { Ok(found) }
            }
            Ok(Err(error)) => Err(format!("cannot resolve {host}: {error}")),
            Err(_) => Err(format!("cannot resolve {host} within {:?}", self.timeout)),
        }
    }

    /// Opens a connection to the first address that takes one.
    pub(super) async fn connect(&self, addresses: &[SocketAddr]) -> Result<Stream, String> {
        let mut last = String::new();
        for at in addresses {
            match dial(*at, &self.dial).await {
                Ok(io) => return Ok(io),
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }

    /// Sends a request and passes on what comes back.
    pub(super) async fn send(&self, to: &Authority, addresses: &[SocketAddr], request: Request<Body>) -> Answer {
        let head = *request.method() == Method::HEAD;
        let exchange = self.exchange(to, addresses, prepared(request));
        match exchange.await {
            Ok((answer, sender)) => self.pass_on(to, answer, sender, head),
            Err(error) => own(StatusCode::BAD_GATEWAY, format!("err_msg: {error}")),
        }
    }

    async fn exchange(
        &self,
        to: &Authority,
        addresses: &[SocketAddr],
        mut request: Request<Body>,
    ) -> Result<(http::Response<Incoming>, SendRequest<Body>), String> {
        loop {
            let kept = self.take(to);
            let reused = kept.is_some();
            let mut sender = match kept {
                Some(sender) => sender,
                None => {
                    let io = self.connect(addresses).await?;
                    let (sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(|e| e.to_string())?;
                    // Ends with its last sender.
                    tokio::spawn(connection);
                    sender
                }
            };
            match tokio::time::timeout(self.timeout, sender.try_send_request(request)).await {
                Ok(Ok(answer)) => return Ok((answer, sender)),
                Ok(Err(mut error)) => match error.take_message() {
                    // The server closed it at the moment it was used again, and saw nothing of the request.
                    Some(unsent) if reused => request = unsent,
                    _ => return Err(format!("{to} broke the connection off: {}", error.into_error())),
                },
                Err(_) => return Err(format!("{to} did not answer within {:?}", self.timeout)),
            }
        }
    }

    fn pass_on(
        &self,
        to: &Authority,
        answer: http::Response<Incoming>,
        sender: SendRequest<Body>,
        head: bool,
    ) -> Answer {
        let (mut parts, body) = answer.into_parts();
        let length = parts.headers.get(header::CONTENT_LENGTH).cloned();
        let closes = parts
            .headers
            .get(header::CONNECTION)
            .is_some_and(|v| v.to_str().is_ok_and(|v| v.to_ascii_lowercase().contains("close")));
        raw::strip(&mut parts.headers);
        // Without a body the length is the only word on how long it would be.
        if head && let Some(length) = length {
            parts.headers.insert(header::CONTENT_LENGTH, length);
        }
        if !closes {
            self.put(to, sender);
        }
        let mut answer = http::Response::new(body.boxed_unsync());
        *answer.status_mut() = parts.status;
        *answer.headers_mut() = parts.headers;
        answer
    }

    fn take(&self, to: &Authority) -> Option<SendRequest<Body>> {
        let mut idle = self.idle.lock();
        let now = Instant::now();
        idle.retain(|conn| conn.since + self.keep > now && !conn.sender.is_closed());
        // One whose last answer is still being read is not ready.
        let at = idle.iter().rposition(|conn| conn.to == *to && conn.sender.is_ready())?;
        idle.remove(at).map(|conn| conn.sender)
    }

    fn put(&self, to: &Authority, sender: SendRequest<Body>) {
        if self.keep.is_zero() {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.len() >= MOST_IDLE {
            idle.pop_front();
        }
        idle.push_back(Idle { to: to.clone(), sender, since: Instant::now() });
    }
}

/// The request for a server: origin form, nothing that was said to the proxy.
fn prepared(request: Request<Body>) -> Request<Body> {
    let (mut parts, body) = request.into_parts();
    raw::strip(&mut parts.headers);
    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    let mut prepared = Request::new(body);
    *prepared.method_mut() = parts.method;
    *prepared.uri_mut() = Uri::try_from(path).unwrap_or_default();
    if !parts.headers.contains_key(header::HOST) {
        parts.headers.insert(header::HOST, HeaderValue::from_static(""));
    }
    *prepared.headers_mut() = parts.headers;
    prepared
}
