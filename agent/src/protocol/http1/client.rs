//! The client half: a pool of connections per endpoint, one call at a time on each.

use std::{
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::{
    HeaderValue, StatusCode, Version,
    header::{CONNECTION, EXPECT, HOST, UPGRADE},
};
use http_body_util::BodyExt;
use hyper::{body::Incoming, client::conn::http1::Builder};

use super::{
    body::{FromEndpoint, Sending, ToEndpoint, chain, is_garbage, source},
    headers,
    pool::{Conn, Lease, Pool},
    whole,
};
use crate::{
    call::{
        Body, CallError, ErrorKind, Head, HttpResponseHead, RETRY_MARK, Request, Response, ResponseHead, Retry, Status,
        Upgrade,
    },
    config,
    endpoint::{Connector, Endpoint, dial_for},
    stream::Stream,
};

/// Time up to the head of an answer when the configuration does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Sends HTTP/1.1 requests.
pub(in crate::protocol) struct HttpConnector {
    config: config::Cluster,
    builder: Builder,
    header_bytes: usize,
}

/// What came of one try on a connection.
enum Through {
    Answered(Box<Response>),
    /// Nothing was written: the next connection.
    Unsent,
    /// It was closed at the moment it was used again, and the same may be sent once more on a new one.
    Raced,
}

impl HttpConnector {
    /// For one cluster; heads of answers may have `header_bytes`.
    pub(in crate::protocol) fn new(config: &config::Cluster, header_bytes: usize) -> Self {
        let mut builder = Builder::new();
        builder.max_buf_size(super::buffer_bytes(header_bytes)).max_header_size(header_bytes);
        Self { config: config.clone(), builder, header_bytes }
    }

    async fn exchange(&self, to: &Arc<Endpoint>, req: &mut Request) -> Result<Response, CallError> {
        let pool = Pool::of(to, &self.config);
        let client = to.dial.client(req.call.peer);
        let mut only_fresh = false;
        loop {
            let pooled = if only_fresh { None } else { pool.take(client).await };
            let reused = pooled.is_some();
            let mut conn = match pooled {
                Some(conn) => conn,
                // Boxed like all that is rare, so that the usual call needs little room.
                None => Conn::new(Box::pin(dial_for(to.addr, &to.dial, client)).await?, client),
            };
            if conn.is_bare()
                && let Head::Http(head) = &req.head
                && let Some(request) = whole::write_request(head, &req.body, req.call.retry)
                && let Some(answer) = conn.exchange(&request, self.header_bytes).await
            {
                pool.put(conn);
                return Ok(whole_answer(to, answer));
            }
            match Box::pin(self.through_hyper(to, req, conn, reused)).await? {
                Through::Answered(response) => return Ok(*response),
                Through::Unsent => {}
                Through::Raced => only_fresh = true,
            }
        }
    }

    /// One try on `conn`, which may have been `reused`.
    async fn through_hyper(
        &self,
        to: &Arc<Endpoint>,
        req: &mut Request,
        mut conn: Conn,
        reused: bool,
    ) -> Result<Through, CallError> {
        conn.speak(&self.builder).await.map_err(|error| failed(to, &error, Retry::NotSent))?;
        let replayable = !matches!(req.body, Body::Stream(_));
        let message = message(req, to)?;
        let sending = message.body().sending().clone();
        let upgrade = matches!(&req.head, Head::Http(head) if head.upgrade.is_some());
        let mut error = match conn.send(message, upgrade).await {
            Ok(answer) => {
                let pool = Arc::downgrade(Pool::of(to, &self.config));
                let lease = Lease { conn, pool, endpoint: to.addr, keep: false, sending };
                return self.answer(to, req, answer, lease).map(|response| Through::Answered(Box::new(response)));
            }
            Err(error) => error,
        };
        match error.take_message() {
            Some(unsent) => {
                // Not a byte of it was written: as good as new.
                req.body = unsent.into_body().into_inner();
                if reused { Ok(Through::Unsent) } else { Err(failed(to, &error.into_error(), Retry::NotSent)) }
            }
            // The endpoint closed a connection at the moment it was used again. One more try where
            // doing it twice does no harm; whether to try elsewhere is for others to decide.
            None if reused && replayable && req.call.idempotent && !is_garbage(error.error()) => Ok(Through::Raced),
            None => {
                let retry = if replayable { Retry::IfIdempotent } else { Retry::Never };
                Err(failed(to, &error.into_error(), retry))
            }
        }
    }

    fn answer(
        &self,
        to: &Arc<Endpoint>,
        req: &Request,
        mut answer: http::Response<Incoming>,
        mut lease: Lease,
    ) -> Result<Response, CallError> {
        lease.sending.answered();
        let status = answer.status();
        let asked = matches!(&req.head, Head::Http(head) if head.upgrade.is_some());
        let upgrade = if status == StatusCode::SWITCHING_PROTOCOLS {
            if !asked {
                let message = format!("{} switched protocols without being asked", to.addr);
                return Err(CallError::upstream(ErrorKind::Protocol, Retry::Never, message));
            }
            Some(Upgrade { on: hyper::upgrade::on(&mut answer), watch: None })
        } else {
            None
        };
        let (mut head, inner) = answer.into_parts();
        if headers::is_coded(&head.headers) {
            let message = format!("{} answers in a transfer coding other than chunked", to.addr);
            return Err(CallError::upstream(ErrorKind::Protocol, Retry::Never, message));
        }
        // To an HTTP/1.0 server hyper would send a body of unknown length as none at all, so such a
        // connection is used for one request only.
        lease.keep = head.version == Version::HTTP_11 && !headers::closes(&head.headers);
        headers::strip_response(&mut head.headers, status);
        let body = if upgrade.is_some() {
            lease.conn.upgrading();
            Body::Empty
        } else if http_body::Body::is_end_stream(&inner) {
            lease.give_back();
            Body::Empty
        } else {
            if !lease.sending.is_done() {
                // The request must go on even while the caller does not read the answer.
                lease.conn.detach();
            }
            Body::Stream(FromEndpoint::new(inner, lease).boxed_unsync())
        };
        let head = HttpResponseHead { status, headers: head.headers, upgrade };
        Ok(Response {
            status: verdict(status),
            head: ResponseHead::Http(Box::new(head)),
            body,
            endpoint: Some(to.addr),
        })
    }
}

impl Connector for HttpConnector {
    fn call<'a>(&'a self, to: &'a Arc<Endpoint>, req: &'a mut Request) -> BoxFuture<'a, Result<Response, CallError>> {
        Box::pin(async move {
            let deadline = req.call.deadline;
            tokio::time::timeout_at(deadline, self.exchange(to, req)).await.unwrap_or_else(|_| {
                let message = format!("{} did not answer in time", to.addr);
                Err(CallError::upstream(ErrorKind::Timeout, Retry::Never, message))
            })
        })
    }

    fn watches_deadline(&self) -> bool {
        true
    }

    fn left(&self, to: &Arc<Endpoint>, caller: SocketAddr) {
        Pool::of(to, &self.config).left(caller);
    }

    fn adopt(&self, to: &Arc<Endpoint>, io: Stream) {
        let pool = Pool::of(to, &self.config);
        pool.put(Conn::new(io, None));
    }

    fn default_timeout(&self) -> Duration {
        DEFAULT_TIMEOUT
    }
}

fn whole_answer(to: &Endpoint, answer: whole::Response) -> Response {
    let whole::Response { status, headers, body } = answer;
    Response {
        status: verdict(status),
        head: ResponseHead::Http(Box::new(HttpResponseHead { status, headers, upgrade: None })),
        body: if body.is_empty() { Body::Empty } else { Body::Full(body) },
        endpoint: Some(to.addr),
    }
}

/// The request for hyper. Takes a streamed body out of `req` and leaves everything else.
fn message(req: &mut Request, to: &Endpoint) -> Result<http::Request<ToEndpoint>, CallError> {
    let Head::Http(head) = &req.head else {
        return Err(CallError::mesh(ErrorKind::Protocol, "the call is not HTTP and is not converted"));
    };
    let body = match &mut req.body {
        Body::Empty => Body::Empty,
        Body::Full(bytes) => Body::Full(bytes.clone()),
        Body::Stream(body) => Body::Stream(std::mem::take(body)),
    };
    let mut headers = head.headers.clone();
    headers::frame(&mut headers, &body);
    if req.call.retry > 0 {
        headers.insert(RETRY_MARK, HeaderValue::from(req.call.retry));
    }
    if !headers.contains_key(HOST) {
        // HTTP/1.0 knows no Host, but what is sent here is HTTP/1.1.
        let host = HeaderValue::try_from(to.addr.to_string()).expect("an address is printable ASCII");
        headers.insert(HOST, host);
    }
    if let Some(upgrade) = &head.upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade.clone());
    }
    let expects = headers.get(EXPECT).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let body = ToEndpoint::new(body, expects);
    let sending: Weak<Sending> = Arc::downgrade(body.sending());
    let mut message = http::Request::new(body);
    *message.method_mut() = head.method.clone();
    *message.uri_mut() = head.uri.clone();
    *message.headers_mut() = headers;
    if expects {
        hyper::ext::on_informational(&mut message, move |answer| {
            if answer.status() == StatusCode::CONTINUE
                && let Some(sending) = sending.upgrade()
            {
                sending.go_on();
            }
        });
    }
    Ok(message)
}

fn failed(to: &Endpoint, error: &hyper::Error, retry: Retry) -> CallError {
    // The request's own body failed: that is the caller's doing, and says nothing about the endpoint.
    if let Some(own) = source::<CallError>(error) {
        return own.clone();
    }
    let kind = if is_garbage(error) { ErrorKind::Protocol } else { ErrorKind::Reset };
    let what = if kind == ErrorKind::Protocol { "does not answer in HTTP" } else { "broke the connection off" };
    CallError::upstream(kind, retry, format!("{} {what}: {}", to.addr, chain(error)))
}

fn verdict(status: StatusCode) -> Status {
    let code = u32::from(status.as_u16());
    match code {
        500.. => Status::Failed(code),
        400.. => Status::Refused(code),
        _ => Status::Ok,
    }
}
