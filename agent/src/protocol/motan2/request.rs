//! From a frame to a call of its cluster.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    answer::Done,
    codec::{Frame, kind},
    gzip, key,
};
use crate::{
    call::{
        Body, Call, CallError, ErrorKind, Head, Motan2Head, Pairs, RETRY_MARK, Request, Response, ResponseHead, Status,
        Text, exception,
    },
    meta,
    metrics::Live,
    route::{Cluster, Direction, Route},
    serialize::{Value, simple},
};

/// What must be known of a call when its answer is written.
pub(super) struct Ticket {
    /// The caller's id.
    pub id: u64,
    pub started: Instant,
    /// Metadata as it came.
    pub meta: Pairs,
    /// Bytes it keeps in memory.
    pub bytes: usize,
    /// Where it went; `None` when nowhere.
    pub cluster: Option<Arc<Cluster>>,
}

/// A call ready to be carried.
pub(super) struct Incoming {
    pub ticket: Ticket,
    cluster: Arc<Cluster>,
    req: Request,
    /// Largest body.
    limit: usize,
}

/// Reads frames of one connection.
pub(super) struct Reader {
    route: Arc<Route>,
    peer: SocketAddr,
    /// The address it asked for, and its process.
    local: Option<SocketAddr>,
    pid: u32,
    /// The peer's address as `host` has it.
    host: Text,
    limit: usize,
}

impl Reader {
    pub(super) fn new(route: Arc<Route>, peer: SocketAddr, live: Option<&Live>, limit: usize) -> Self {
        let host = Text::from(peer.ip().to_canonical().to_string());
        let (local, pid) = live.map_or((None, 0), |live| (Some(live.destination), live.pid));
        Self { route, peer, local, pid, host, limit }
    }

    /// Makes a call of a request, or the answer when it goes nowhere.
    pub(super) fn read(&self, frame: Frame) -> Result<Incoming, Box<Done>> {
        let Frame { head, mut meta, body } = frame;
        let inbound = self.route.direction == Direction::Inbound;
        let mut call = Call::new(Text::default(), Text::default());
        call.request_id = head.id;
        call.peer = Some(self.peer);
        call.local = self.local;
        call.pid = self.pid;
        call.one_way = head.is(kind::ONE_WAY);
        call.request_bytes = body.len() as u64;
        let (mut attached_application, mut framework, mut forwarded) = (None, false, false);
        // One walk for all keys. A later duplicate overwrites an earlier one.
        for (key, value) in meta.came() {
            let slot = match std::str::from_utf8(key) {
                Ok(key::SERVICE) => &mut call.service,
                Ok(key::METHOD) => &mut call.method,
                Ok(key::GROUP) => &mut call.group,
                Ok(key::VERSION) => &mut call.version,
                Ok(key::SOURCE) => &mut call.application,
                Ok(key::APPLICATION) => {
                    attached_application = meta.text(value);
                    continue;
                }
                Ok(key::REQUEST_ID) => {
                    let id = meta.text(value).and_then(|id| id.parse::<i64>().ok());
                    call.request_id = id.map_or(head.id, i64::cast_unsigned);
                    continue;
                }
                Ok(key::TIMEOUT) => {
                    let ms = meta.text(value).and_then(|ms| ms.parse().ok()).filter(|ms| *ms > 0);
                    call.wire_timeout = ms.map(Duration::from_millis);
                    continue;
                }
                Ok(RETRY_MARK) => {
                    call.retry = meta.text(value).map_or(0, |n| n.parse().unwrap_or(1));
                    continue;
                }
                Ok(key::FRAMEWORK) => {
                    framework = !value.is_empty();
                    continue;
                }
                Ok(key::FORWARDED | key::FORWARDED_HTTP) => {
                    forwarded = !value.is_empty();
                    continue;
                }
                _ => continue,
            };
            *slot = meta.text(value).unwrap_or_default();
        }
        if call.application.is_empty() {
            call.application = attached_application.unwrap_or_default();
        }
        let bytes = body.len() + meta.as_raw().len();
        let mut ticket = Ticket { id: head.id, started: Instant::now(), meta: meta.clone(), bytes, cluster: None };
        if framework && inbound {
            return Err(Box::new(Done { result: framework_service(&call), ticket }));
        }
        let cluster = match self.route.select_speaking(&call, || meta.get(key::PROTOCOL)) {
            Ok(cluster) => cluster,
            Err(error) => return Err(Box::new(Done { result: Err(error), ticket })),
        };
        ticket.cluster = Some(cluster.clone());
        meta.set(Text::from_static(key::HOST), self.host.clone());
        if inbound && !forwarded {
            meta.set(Text::from_static(key::FORWARDED), self.host.clone());
        }
        // An empty body has nothing to unpack.
        let gzip = head.is(kind::GZIP) && !body.is_empty();
        let head = Head::Motan2(Motan2Head { serialization: head.serialization, meta, gzip, inbound });
        let req = Request { call, head, body: if body.is_empty() { Body::Empty } else { Body::Full(body) } };
        Ok(Incoming { ticket, cluster, req, limit: self.limit })
    }
}

/// Carries a call to its end.
#[expect(clippy::manual_async_fn, reason = "an `async fn` would keep its argument beside what it makes of it")]
pub(super) fn carry(mut incoming: Incoming) -> impl Future<Output = Done> {
    async move {
        if let (Head::Motan2(head), Body::Full(body)) = (&mut incoming.req.head, &mut incoming.req.body)
            && head.gzip
        {
            match gzip::unpack(body.clone(), incoming.limit).await {
                Ok(unpacked) => (*body, head.gzip) = (unpacked, false),
                // Passed on as it is: perhaps the endpoint can make sense of it.
                Err(gzip::NotUnpacked::Broken) => {}
                Err(gzip::NotUnpacked::TooLarge) => {
                    let limit = incoming.limit;
                    let message = format!("the body unpacks to more than {limit} bytes (limits.content_bytes)");
                    let result = Err(CallError::downstream(ErrorKind::TooLarge, message));
                    return Done { result, ticket: incoming.ticket };
                }
            }
        }
        let result = incoming.cluster.call(&mut incoming.req).await;
        Done { result, ticket: incoming.ticket }
    }
}

/// Services of the receiving process itself. The agent has one: what operators tell callers about it, such as
/// the weight they give it, as a map of strings.
fn framework_service(call: &Call) -> Result<Response, CallError> {
    const META_SERVICE: &str = "com.weibo.api.motan.runtime.meta.MetaService";
    if call.service != META_SERVICE || call.method != "getDynamicMeta" {
        return Err(CallError::mesh(ErrorKind::Rejected, exception::NO_FRAMEWORK_SERVICE));
    }
    Ok(Response {
        status: Status::Ok,
        head: ResponseHead::Motan2(Motan2Head { serialization: simple::NUMBER, ..Motan2Head::default() }),
        body: Body::Full(meta_body(&meta::all())),
        endpoint: None,
    })
}

fn meta_body(map: &BTreeMap<String, String>) -> Bytes {
    let map = map.iter().map(|(key, value)| (Text::from(key.as_str()), Text::from(value.as_str()))).collect();
    simple::write_blocks(&[Value::StringMap(map)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_is_written_as_motan_go_reads_it() {
        assert_eq!(&meta_body(&BTreeMap::new())[..], [2, 0, 0, 0, 0]);
        let map = BTreeMap::from([("k1".to_owned(), "v1".to_owned()), ("k".to_owned(), String::new())]);
        let expected = [2, 0, 0, 0, 21, 0, 0, 0, 1, b'k', 0, 0, 0, 0, 0, 0, 0, 2, b'k', b'1', 0, 0, 0, 2, b'v', b'1'];
        assert_eq!(meta_body(&map)[..], expected);
    }
}
