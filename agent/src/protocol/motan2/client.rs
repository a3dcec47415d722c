//! Client half: sends calls to endpoints over a few connections each.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout, timeout_at},
};

use super::{
    DEFAULT_TIMEOUT, Decimal,
    codec::{Frame, Head, MAGIC, encode_head, kind},
    gzip, key,
    link::NotQueued,
    pool::Pool,
};
use crate::{
    call::{
        self, Body, Call, CallError, ErrorKind, Extra, Motan2Head, Pairs, RETRY_MARK, Request, Response, ResponseHead,
        Retry, Rule, Status, Text, exception,
    },
    config,
    endpoint::{Connector, Endpoint, Probed, dial},
    stream::Stream,
};

/// Time for the answer to a heartbeat.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends Motan2 calls.
pub(super) struct Motan2Connector {
    /// Connections to each endpoint.
    connections: usize,
    content_bytes: usize,
    /// Bodies longer than this are packed; 0 is never.
    gzip_over: usize,
    application: Text,
}

impl Motan2Connector {
    pub(super) fn new(config: &config::Cluster, limits: &config::Limits, application: Text) -> Self {
        Self {
            connections: config.connections.max(1),
            content_bytes: limits.content_bytes,
            gzip_over: config.gzip_over,
            application,
        }
    }

    fn pool<'a>(&self, to: &'a Endpoint) -> &'a Pool {
        to.pool(|| Pool::new(self.connections, self.content_bytes))
    }

    async fn send(&self, to: &Endpoint, req: &mut Request) -> Result<Frame, CallError> {
        // Taken apart: a body that streams may not be shared between threads, head and call may.
        let Request { call, head, body } = req;
        let call = &*call;
        let made_up;
        let head = match &*head {
            call::Head::Motan2(head) => head,
            call::Head::None => {
                made_up = made_up_head(call);
                &made_up
            }
            call::Head::Http(_) => return Err(not_motan2("an HTTP request")),
        };
        let body = match &*body {
            Body::Empty => Bytes::new(),
            Body::Full(body) => body.clone(),
            Body::Stream(_) => return Err(not_motan2("a streamed body")),
        };
        let mut kind = kind::PROXY;
        if call.one_way {
            kind |= kind::ONE_WAY;
        }
        let pack = self.gzip_over > 0 && body.len() > self.gzip_over && !head.gzip;
        if pack || head.gzip {
            kind |= kind::GZIP;
        }
        let body = if pack { gzip::pack(body).await } else { body };
        let outgoing = Outgoing { kind, head, call, body };

        let deadline = call.deadline;
        // A connection may end between being picked and being used, or before our frame was its turn:
        // that says nothing about the endpoint, so one more is tried before anyone else hears of it.
        let mut again = true;
        loop {
            let link = self.pool(to).link(to, deadline).await?;
            let id = next_id();
            let answer = match link.start(id, deadline, |out| outgoing.write(id, self, to, out)) {
                Ok(answer) => answer,
                Err(NotQueued::Full) => {
                    let full = |_| {
                        let message = format!("the queue to {} was full until the deadline", to.addr);
                        CallError::upstream(ErrorKind::Timeout, Retry::NotSent, message)
                    };
                    timeout_at(deadline, link.room()).await.map_err(full)?;
                    continue;
                }
                Err(NotQueued::Closed) if Instant::now() < deadline => continue,
                Err(NotQueued::Closed) => return Err(closed(to)),
            };
            match answer.await {
                Err(error) if again && error.retry == Retry::NotSent && Instant::now() < deadline => again = false,
                result => return result,
            }
        }
    }

    async fn receive(&self, to: &Endpoint, frame: Frame) -> Result<Response, CallError> {
        let Frame { head, meta, mut body } = frame;
        let status = if head.status == 0 { Status::Ok } else { exception::status_of(&meta) };
        let mut still_packed = head.is(kind::GZIP) && !body.is_empty();
        if still_packed && status == Status::Ok {
            match gzip::unpack(body.clone(), self.content_bytes).await {
                Ok(unpacked) => (body, still_packed) = (unpacked, false),
                // Passed on as it is: perhaps the caller can make sense of it.
                Err(gzip::NotUnpacked::Broken) => {}
                Err(gzip::NotUnpacked::TooLarge) => {
                    let limit = self.content_bytes;
                    let message = format!("an answer of {} unpacks to more than {limit} bytes", to.addr);
                    return Err(CallError::upstream(ErrorKind::TooLarge, Retry::Never, message));
                }
            }
        }
        let head = Motan2Head { serialization: head.serialization, meta, gzip: still_packed, inbound: false };
        Ok(Response {
            status,
            head: ResponseHead::Motan2(head),
            body: if body.is_empty() { Body::Empty } else { Body::Full(body) },
            endpoint: Some(to.addr),
        })
    }
}

impl Connector for Motan2Connector {
    fn call<'a>(&'a self, to: &'a Arc<Endpoint>, req: &'a mut Request) -> BoxFuture<'a, Result<Response, CallError>> {
        Box::pin(async move {
            let frame = self.send(to, req).await?;
            self.receive(to, frame).await
        })
    }

    fn watches_deadline(&self) -> bool {
        true
    }

    /// A heartbeat, as Motan's own clients send it: a program that hangs still accepts connections.
    fn probe<'a>(&'a self, to: &'a Arc<Endpoint>) -> BoxFuture<'a, Result<Probed, CallError>> {
        Box::pin(async move {
            let io = dial(to.addr, &to.dial).await?;
            Ok(match timeout(PROBE_TIMEOUT, heartbeat(io)).await {
                Ok(Ok(())) => Probed::Answers,
                Ok(Err(_)) | Err(_) => Probed::Connects,
            })
        })
    }

    fn adopt(&self, to: &Arc<Endpoint>, io: Stream) {
        self.pool(to).adopt(to, io);
    }

    fn default_timeout(&self) -> Duration {
        DEFAULT_TIMEOUT
    }
}

/// Sends one and reads the head of what comes back.
async fn heartbeat(mut io: Stream) -> std::io::Result<()> {
    let head = Head { kind: kind::HEARTBEAT, status: 0, serialization: 0, id: next_id() };
    let mut frame = BytesMut::new();
    encode_head(head, &Pairs::default(), &[], 0, &mut frame);
    io.write_all(&frame).await?;
    let mut answer = [0; 3];
    io.read_exact(&mut answer).await?;
    // An exception would do as well: whoever says anything in Motan2 is alive.
    let is_answer = answer[..2] == MAGIC && answer[2] & kind::RESPONSE != 0;
    if is_answer { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

/// A request with all that does not depend on the connection it takes.
struct Outgoing<'a> {
    kind: u8,
    head: &'a Motan2Head,
    call: &'a Call,
    body: Bytes,
}

impl Outgoing<'_> {
    /// Writes what a hop changes along with what came (docs/wire/motan2.md, "A hop").
    fn write(&self, id: u64, connector: &Motan2Connector, to: &Endpoint, out: &mut super::outbox::Outbox) {
        let Self { kind, head, call, body } = self;
        let original = Decimal::of(call.request_id.cast_signed());
        let source = if call.application.is_empty() { &connector.application } else { &call.application };
        let retry = if call.retry > 0 { Decimal::of(call.retry.into()) } else { Decimal::none() };
        let extras = [
            Extra { key: RETRY_MARK, value: retry.as_str(), rule: Rule::Replace },
            Extra { key: key::REQUEST_ID, value: original.as_str(), rule: Rule::IfAbsent },
            Extra { key: key::SOURCE, value: source, rule: Rule::IfAbsent },
            Extra { key: key::GROUP, value: &to.group, rule: Rule::Replace },
        ];
        let mut extras = &extras[..];
        if head.inbound {
            // The last hop: the program sees who called it and as what.
            extras = &extras[..2];
        } else if to.group.is_empty() {
            // Nothing better to say than what the caller said.
            extras = &extras[..3];
        }
        let frame = Head { kind: *kind, status: 0, serialization: head.serialization, id };
        out.push(frame, &head.meta, extras, body.clone());
    }
}

fn made_up_head(call: &Call) -> Motan2Head {
    let pairs = [(key::SERVICE, &call.service), (key::METHOD, &call.method), (key::VERSION, &call.version)];
    let meta = Pairs::from_iter(pairs.map(|(key, value)| (Text::from_static(key), value.clone())));
    Motan2Head { meta, ..Motan2Head::default() }
}

fn not_motan2(what: &str) -> CallError {
    CallError::mesh(ErrorKind::Protocol, format!("{what} cannot be sent to a motan2 endpoint"))
}

fn closed(to: &Endpoint) -> CallError {
    let message = format!("connections to {} close as soon as they open", to.addr);
    CallError::upstream(ErrorKind::Reset, Retry::NotSent, message)
}

/// A request id that no other call of this process has. Begins with the time, as ids of Motan's own
/// agent do, so that ids of a process before this one do not come again either.
fn next_id() -> u64 {
    static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        AtomicU64::new(since.as_nanos() as u64 & !0xf_ffff)
    });
    NEXT.fetch_add(1, Relaxed)
}
