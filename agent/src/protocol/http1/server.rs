//! The server half: requests of one connection, one after the other, each a call.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use http::{
    HeaderMap, HeaderValue, Method, Request as HttpRequest, Response as HttpResponse, StatusCode, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, UPGRADE},
    request::Parts as RequestParts,
    uri::PathAndQuery,
};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    server::conn::http1::{Builder, Parts},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;

use super::{
    body::{FromCaller, ToCaller, chain},
    guard::{Guard, Shared},
    headers,
    reply::{self, Own},
    upgrade,
    whole::{self, Next},
};
use crate::{
    call::{
        Body, Call, CallError, ErrorKind, Head, HttpHead, RETRY_MARK, Request, Response, ResponseHead, Text, Upgrade,
    },
    cluster::Cluster,
    config,
    drain::Drain,
    metrics::Live,
    protocol::{Accepted, ConnError, tcp::Report},
    route::Route,
};

/// Bodies up to this size are waited for when their request may be sent twice. Larger ones stream, and
/// are sent once.
const MAX_GATHERED_BYTES: u64 = 64 * 1024;

/// Serves one connection to its end, what comes after an upgrade included.
pub(super) async fn serve(
    conn: Accepted,
    route: Arc<Route>,
    mut drain: Drain,
    limits: config::Limits,
) -> Result<(), ConnError> {
    let Accepted { io, peer, guard: row, dialled } = conn;
    // Detection hands such a connection over to the pool; nothing else makes one for HTTP.
    drop(dialled);
    let shared = Arc::new(Shared::default());
    let mut guard = Guard::new(io, shared.clone(), &limits);
    let session = Arc::new(Session {
        peer,
        route,
        shared,
        live: row.live.clone(),
        requests: AtomicU64::new(0),
        answer: Mutex::new(None),
        tunnel: Mutex::new(None),
    });
    let mut builder = Builder::new();
    builder
        // What an endpoint did not say is not added on its behalf.
        .auto_date_header(false)
        .max_buf_size(super::buffer_bytes(limits.header_bytes));
    loop {
        if let Next::End = whole::serve(&mut guard, &session, &mut drain).await? {
            return Ok(());
        }
        let service = service_fn(|request| {
            let session = session.clone();
            // Boxed, because hyper keeps the room for one of these as long as the connection lives.
            Box::pin(async move { Ok::<_, Infallible>(session.answer(request).await) })
        });
        // Boxed: gone while the connection idles.
        let mut connection = Box::new(builder.serve_connection(TokioIo::new(guard), service));
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = stop(&mut drain, &session.shared) => (&mut connection).await,
        };
        ended.map_err(|error| ConnError::Protocol(chain(&error)))?;
        let Parts { io, read_buf, .. } = connection.into_parts();
        guard = io.into_inner();
        let tunnel = session.tunnel.lock().take();
        if let Some(endpoint) = tunnel {
            let report = Report { live: row.live.clone(), watch: None, idle_timeout: limits.idle_timeout };
            return Box::pin(upgrade::run(guard, read_buf, endpoint, report)).await;
        }
        if !guard.is_parked() {
            // hyper has shut it down.
            return Ok(());
        }
    }
}

/// Waits for a stop to be asked for, once, and lets everyone know.
pub(super) async fn stop(drain: &mut Drain, shared: &Shared) {
    if shared.draining.load(Relaxed) {
        std::future::pending::<()>().await;
    }
    drain.graceful().await;
    // Not hyper's own way, which closes idle connections at once: a caller that has just got an answer is
    // about to send its next request, and would lose it.
    shared.draining.store(true, Relaxed);
}

/// One caller's connection.
pub(super) struct Session {
    peer: SocketAddr,
    route: Arc<Route>,
    pub(super) shared: Arc<Shared>,
    live: Arc<Live>,
    /// Those that hyper has seen.
    requests: AtomicU64,
    /// What hyper shall answer to its next request.
    answer: Mutex<Option<Result<Response, CallError>>>,
    /// The endpoint's end of a connection that has left HTTP.
    tunnel: Mutex<Option<Upgrade>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.route.clusters().iter().for_each(|cluster| cluster.left(self.peer));
    }
}

/// What must be known of a request when its answer is written.
struct Asked {
    version: Version,
    /// The body has been asked for, so that a caller who waited for that sends it.
    polled: Arc<AtomicBool>,
    expects: bool,
}

impl Session {
    async fn answer(&self, request: HttpRequest<Incoming>) -> HttpResponse<ToCaller> {
        let number = self.requests.fetch_add(1, Relaxed);
        self.shared.busy.fetch_add(1, Relaxed);
        let version = request.version();
        if let Some(refusal) = self.shared.refusal(number) {
            return self.own(reply::to_refusal(refusal));
        }
        let held = request.headers().contains_key(UPGRADE);
        let (parts, body) = request.into_parts();
        let expects = expects_continue(&parts);
        let asked = Asked { version, polled: Arc::default(), expects };
        let body = if http_body::Body::is_end_stream(&body) {
            Body::Empty
        } else {
            let (polled, shared) = (asked.polled.clone(), self.shared.clone());
            Body::Stream(FromCaller { inner: body, polled, shared, request: number }.boxed_unsync())
        };
        let kept = self.answer.lock().take();
        let (result, rest) = match kept {
            Some(result) => {
                // The call had it; hyper must see its end, too.
                if let Body::Stream(body) = body {
                    let _ = body.collect().await;
                }
                (result, Body::Empty)
            }
            None => self.call(parts, body).await,
        };
        let goes_on = discard(rest, expects);
        let (mut response, endpoint) = match result {
            Ok(response) => self.pass_on(response, &asked),
            Err(error) => {
                // A body that turned out malformed while it was read.
                let own = match self.shared.refusal(number) {
                    Some(refusal) => reply::to_refusal(refusal),
                    None => reply::to_error(&error),
                };
                (self.own(own), None)
            }
        };
        match endpoint {
            Some(endpoint) => *self.tunnel.lock() = Some(endpoint),
            None if held => self.shared.resume(),
            None => {}
        }
        if !goes_on {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        } else if self.shared.draining.load(Relaxed) && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().append(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Whether a stop was asked for.
    pub(super) fn is_draining(&self) -> bool {
        self.shared.draining.load(Relaxed)
    }

    /// A stop was asked for: answers say so from now on.
    pub(super) fn drains(&self) {
        self.shared.draining.store(true, Relaxed);
    }

    /// Keeps what hyper shall answer to its next request.
    pub(super) fn keep(&self, answer: Result<Response, CallError>) {
        *self.answer.lock() = Some(answer);
    }

    /// Makes the call; what of the body nobody asked for comes back.
    async fn call(&self, parts: RequestParts, body: Body) -> (Result<Response, CallError>, Body) {
        let RequestParts { method, uri, mut headers, .. } = parts;
        let upgrade = headers::strip_request(&mut headers);
        if let Some(authority) = uri.authority().filter(|_| uri.scheme().is_some()) {
            // The absolute form overrides Host (RFC 9112 section 3.2.2).
            let host = authority.as_str().rsplit('@').next().unwrap_or_default();
            headers.insert(HOST, HeaderValue::try_from(host).expect("an authority is printable ASCII"));
        }
        if matches!(body, Body::Empty) {
            headers.remove(EXPECT);
        }
        let uri = origin_form(uri);
        let path = Text::from(uri.path());
        self.forward(HttpHead { method, uri, headers, upgrade }, path, body).await
    }

    /// Makes a call of a request that came whole.
    pub(super) async fn whole(&self, request: whole::Request) -> Result<Response, CallError> {
        let whole::Request { method, uri, path, headers, body, raw: _ } = request;
        let body = if body.is_empty() { Body::Empty } else { Body::Full(body) };
        self.forward(HttpHead { method, uri, headers, upgrade: None }, path, body).await.0
    }

    async fn forward(&self, head: HttpHead, path: Text, mut body: Body) -> (Result<Response, CallError>, Body) {
        let HttpHead { method, headers, .. } = &head;
        let cluster = match self.cluster(headers) {
            Ok(cluster) => cluster,
            Err(error) => return (Err(error), body),
        };
        let mut call = Call::new(cluster.info.service.clone(), method_text(method));
        call.peer = Some(self.peer);
        call.local = Some(self.live.destination);
        call.pid = self.live.pid;
        call.path = path;
        call.retry = headers.get(RETRY_MARK).map_or(0, headers::number);
        // RFC 9110 section 9.2.2.
        call.idempotent = method.is_idempotent();
        if cluster.may_repeat(&call) && !headers.contains_key(EXPECT) {
            body = match gather(body).await {
                Ok(body) => body,
                Err(error) => return (Err(error), Body::Empty),
            };
        }
        if let Body::Full(bytes) = &body {
            call.request_bytes = bytes.len() as u64;
        }
        let head = Head::Http(Box::new(head));
        let mut request = Request { call, head, body };
        let result = cluster.call(&mut request).await;
        let endpoint = result.as_ref().map_or_else(|error| error.endpoint, |response| response.endpoint);
        self.live.called(&cluster.info.service, endpoint);
        (result, request.body)
    }

    /// The only cluster, or the one whose service is named by Host.
    fn cluster(&self, headers: &HeaderMap) -> Result<Arc<Cluster>, CallError> {
        let clusters = self.route.clusters();
        if let [only] = &clusters[..] {
            return Ok(only.clone());
        }
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        let found = clusters.iter().find(|c| c.info.key.service.eq_ignore_ascii_case(name));
        found.cloned().ok_or_else(|| {
            let message = format!("no service `{name}` here: several share this address and Host says which");
            CallError::mesh(ErrorKind::NoCluster, message)
        })
    }

    /// The answer for hyper, and the endpoint's end of the connection if HTTP ends with it.
    fn pass_on(&self, response: Response, asked: &Asked) -> (HttpResponse<ToCaller>, Option<Upgrade>) {
        let Response { head, body, status, .. } = response;
        let (status, mut headers, upgrade) = match head {
            ResponseHead::Http(head) => (head.status, head.headers, head.upgrade),
            // A filter's own answer.
            _ => {
                let code = u16::try_from(status.code()).ok().and_then(|code| StatusCode::from_u16(code).ok());
                (code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), HeaderMap::new(), None)
            }
        };
        if matches!(status, StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED) {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        }
        if asked.expects && !asked.polled.load(Relaxed) {
            // The body was never asked for, and whether it comes nevertheless cannot be known.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let close_delimited = asked.version < Version::HTTP_11
            && !headers.contains_key(CONTENT_LENGTH)
            && matches!(body, Body::Stream(_));
        let mut response = HttpResponse::new(ToCaller { body, shared: self.shared.clone(), close_delimited });
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        (response, upgrade)
    }

    fn own(&self, own: Own) -> HttpResponse<ToCaller> {
        let shared = self.shared.clone();
        let mut response = HttpResponse::new(ToCaller { body: Body::Full(own.body), shared, close_delimited: false });
        *response.status_mut() = own.status;
        *response.headers_mut() = own.headers;
        response
    }
}

/// A small body all at once, so that it can be sent twice; others as they are.
async fn gather(body: Body) -> Result<Body, CallError> {
    match body {
        Body::Stream(stream) if stream.size_hint().exact().is_some_and(|n| n <= MAX_GATHERED_BYTES) => {
            Ok(Body::Full(stream.collect().await?.to_bytes()))
        }
        other => Ok(other),
    }
}

/// Has what is left of a body that nobody asked for read, so that the caller's connection goes on: by itself hyper ends
/// it without a word unless all of it is there already. `false` when it is too much for that, or only comes when asked
/// for: then the answer has to tell of the end.
fn discard(rest: Body, expects: bool) -> bool {
    match rest {
        Body::Stream(rest) if rest.is_end_stream() => true,
        Body::Stream(rest) if expects || rest.size_hint().exact().is_none_or(|n| n > MAX_GATHERED_BYTES) => false,
        Body::Stream(rest) => {
            // Ends with the connection at the latest.
            tokio::spawn(async move { rest.collect().await.map(drop) });
            true
        }
        Body::Empty | Body::Full(_) => true,
    }
}

fn expects_continue(parts: &RequestParts) -> bool {
    // hyper, which sends the 100, looks at it the same way.
    parts.version == Version::HTTP_11
        && parts.headers.get(EXPECT).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// What endpoints are asked for, however the caller wrote it.
fn origin_form(uri: Uri) -> Uri {
    if uri.scheme().is_none() {
        return uri;
    }
    let target = uri.into_parts().path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
    Uri::from(target)
}

fn method_text(method: &Method) -> Text {
    match *method {
        Method::GET => Text::from_static("GET"),
        Method::POST => Text::from_static("POST"),
        Method::PUT => Text::from_static("PUT"),
        Method::HEAD => Text::from_static("HEAD"),
        Method::DELETE => Text::from_static("DELETE"),
        Method::OPTIONS => Text::from_static("OPTIONS"),
        Method::PATCH => Text::from_static("PATCH"),
        _ => Text::from(method.as_str()),
    }
}
