//! The caller's half: a connection whose requests are each sent one of four ways.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header, uri::Authority};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http1::Builder, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::JoinSet;

use super::{Forward, Front, calls};
use crate::{
    drain::Drain,
    metrics::Live,
    protocol::{Accepted, ConnError, upstream::attach::unpercent},
    route::Route,
};

pub(super) type Answer = Response<UnsyncBoxBody<Bytes, hyper::Error>>;

/// Who the agent's own answers say they are of: what Motan's own agent says.
const SERVER: HeaderValue = HeaderValue::from_static("motan");

/// An answer of the proxy itself.
pub(super) fn own(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let body = Full::new(text.into()).map_err(|never: Infallible| match never {});
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::SERVER, SERVER);
    answer
}

/// Serves one connection to its end, tunnels that it became included.
pub(super) async fn serve(
    front: Arc<Front>,
    conn: Accepted,
    route: Arc<Route>,
    mut drain: Drain,
) -> Result<(), ConnError> {
    let Accepted { io, peer, guard, .. } = conn;
    let (tunnels, mut opened) = tokio::sync::mpsc::channel(1);
    let live = guard.live.clone();
    let mut builder = Builder::new();
    builder
        .auto_date_header(false)
        .timer(TokioTimer::new())
        .header_read_timeout(front.limits.header_timeout)
        .max_buf_size(front.limits.header_bytes.max(8 * 1024));
    let service = service_fn(move |request| {
        let (forward, route) = (front.now.load_full(), route.clone());
        let session = Session { forward, route, peer, live: live.clone(), tunnels: tunnels.clone() };
        Box::pin(async move { Ok::<_, Infallible>(session.answer(request).await) })
    });
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service).with_upgrades());
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = drain.graceful() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // A tunnel is what its connection became: it lasts as long, and is cut with it.
    let mut tunnel = JoinSet::new();
    if let Ok(copying) = opened.try_recv() {
        tunnel.spawn(copying);
    }
    while tunnel.join_next().await.is_some() {}
    drop(guard);
    ended.map_err(|error| ConnError::Protocol(error.to_string()))
}

type Tunnel = futures_util::future::BoxFuture<'static, ()>;

struct Session {
    forward: Arc<Forward>,
    route: Arc<Route>,
    peer: SocketAddr,
    live: Arc<Live>,
    tunnels: tokio::sync::mpsc::Sender<Tunnel>,
}

impl Session {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        if request.method() == Method::CONNECT {
            return self.tunnel(request).await;
        }
        if request.uri().path() == "/proxy_to_rpc" {
            return calls::rpc(self.call_parts(), request).await;
        }
        let Some(mut target) = target(&request) else {
            return own(StatusCode::BAD_REQUEST, "err_msg: the request says no host");
        };
        let path = unpercent(request.uri().path());
        let forward = &self.forward;
        let domain = match (forward.domain(target.host()), &forward.proxy.default_domain) {
            (Some(domain), _) => Some(domain),
            (None, Some(default)) => {
                if let Ok(authority) = Authority::try_from(default.as_str()) {
                    target = authority;
                }
                forward.domain(default)
            }
            (None, None) => None,
        };
        let place = domain.and_then(|domain| Some((domain, domain.place(&path)?)));
        let mut request = request;
        if let Some((domain, place)) = place
            && calls::is_served(&self.route, place.service, &domain.group)
        {
            match calls::http(self.call_parts(), domain, place.service, &path, &target, request).await {
                calls::Outcome::Answer(answer) => return answer,
                // Nobody provides it at the moment: the domain itself may.
                calls::Outcome::NoEndpoint(back) => return self.plain(&target, *back).await,
            }
        }
        request.headers_mut().insert(header::HOST, host_value(&target));
        let request = request.map(|body| body.boxed_unsync());
        self.plain(&target, request).await
    }

    async fn plain(&self, target: &Authority, request: Request<UnsyncBoxBody<Bytes, hyper::Error>>) -> Answer {
        match self.forward.plain.addresses(target).await {
            Err(error) => own(StatusCode::BAD_GATEWAY, format!("err_msg: {error}")),
            // To come here again would go round in a circle.
            Ok(found) if found.iter().any(|at| self.is_here(*at)) => own(StatusCode::BAD_REQUEST, ""),
            Ok(found) => self.forward.plain.send(target, &found, request).await,
        }
    }

    /// Whether `at` is the proxy itself.
    fn is_here(&self, at: SocketAddr) -> bool {
        let here = self.live.destination;
        at.port() == here.port()
            && here.port() != 0
            && (at.ip().to_canonical() == here.ip().to_canonical() || at.ip().is_loopback() || at.ip().is_unspecified())
    }

    async fn tunnel(&self, request: Request<Incoming>) -> Answer {
        let Some(target) = request.uri().authority().cloned() else {
            return own(StatusCode::BAD_REQUEST, "err_msg: CONNECT needs HOST:PORT");
        };
        let opened = match self.forward.plain.addresses(&target).await {
            Ok(found) if found.iter().any(|at| self.is_here(*at)) => return own(StatusCode::BAD_REQUEST, ""),
            Ok(found) => self.forward.plain.connect(&found).await,
            Err(error) => Err(error),
        };
        let mut server = match opened {
            Ok(server) => server,
            Err(error) => return own(StatusCode::BAD_GATEWAY, format!("err_msg: {error}")),
        };
        let copying: Tunnel = Box::pin(async move {
            match hyper::upgrade::on(request).await {
                Ok(caller) => {
                    // Whichever end breaks off first, both are closed.
                    let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(caller), &mut server).await;
                }
                Err(error) => tracing::debug!(%error, "a tunnel did not come about"),
            }
        });
        // Room for one: a connection becomes one tunnel, and has no further request.
        if self.tunnels.try_send(copying).is_err() {
            return own(StatusCode::BAD_GATEWAY, "err_msg: the tunnel was not opened");
        }
        let mut answer = own(StatusCode::OK, "");
        answer.headers_mut().remove(header::SERVER);
        answer
    }

    fn call_parts(&self) -> calls::Parts<'_> {
        calls::Parts { forward: &self.forward, route: &self.route, peer: self.peer, live: &self.live }
    }
}

/// Where the request wants to go: its absolute target before `Host` (RFC 9112 section 3.2.2).
fn target(request: &Request<Incoming>) -> Option<Authority> {
    if let Some(authority) = request.uri().authority() {
        return Some(authority.clone());
    }
    let host = request.headers().get(header::HOST)?;
    Authority::try_from(host.as_bytes()).ok()
}

pub(super) fn host_value(target: &Authority) -> HeaderValue {
    let host = target.as_str().rsplit('@').next().unwrap_or_default();
    HeaderValue::from_str(host).unwrap_or_else(|_| HeaderValue::from_static(""))
}
