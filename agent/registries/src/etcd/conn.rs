//! One connection to one member: single requests, and one stream of events for everything that is watched.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::stream;
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use prost::Message;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, timeout, timeout_at},
};
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::{
    access::{Access, Login},
    wire::{
        AuthenticateRequest, AuthenticateResponse, Event, KeyValue, RangeRequest, RangeResponse, WatchCancel,
        WatchCreate, WatchProgress, WatchRequest, WatchResponse, WatchUnion,
    },
};

/// Time for a connect with its first exchange.
const OPENING: Duration = Duration::from_secs(3);
/// Time for one answer.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
/// Largest answer: a page of nodes, some of them very large.
const ANSWER_BYTES: usize = 64 << 20;
/// Keys read at once.
const PAGE: i64 = 1000;
/// Batches of events that wait for one watcher; who is later than that reads everything again.
const EVENTS: usize = 256;

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The connection is of no more use.
    Lost,
    /// What was asked for is history that the members have given up.
    Compacted,
    /// The member said no.
    Refused(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lost => f.write_str("the connection was lost"),
            Self::Compacted => f.write_str("the history was compacted meanwhile"),
            Self::Refused(why) => f.write_str(why),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::OutOfRange if status.message().contains("compacted") => Self::Compacted,
            _ => Self::Refused(told(&status)),
        }
    }
}

/// What a status says, with its cause where it says nothing itself.
fn told(status: &Status) -> String {
    let mut said = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let more = error.to_string();
        if !said.contains(&more) {
            said = if said.is_empty() { more } else { format!("{said}: {more}") };
        }
        cause = error.source();
    }
    if said.is_empty() { status.code().to_string() } else { said }
}

/// A connection. Watches end with it.
pub(super) struct Conn {
    /// The member's address as configured.
    pub server: String,
    channel: Channel,
    ticket: Ticket,
    asks: mpsc::Sender<WatchRequest>,
    common: Arc<Common>,
}

/// Who asks: what the member gave for name and password. It forgets that after some minutes without a question.
struct Ticket {
    login: Option<Login>,
    token: Mutex<Option<MetadataValue<Ascii>>>,
}

impl Ticket {
    /// Puts it on a request.
    fn show<T>(&self, request: &mut Request<T>) {
        if let Some(token) = self.token.lock().clone() {
            request.metadata_mut().insert("token", token);
        }
    }

    /// Gets another one. Members that ask nobody who he is give none.
    async fn renew(&self, channel: &Channel) -> Result<(), Failure> {
        let Some(Login { user, password }) = self.login.clone() else { return Ok(()) };
        let request = AuthenticateRequest { name: user, password };
        let path = PathAndQuery::from_static("/etcdserverpb.Auth/Authenticate");
        let codec = ProstCodec::<AuthenticateRequest, AuthenticateResponse>::default();
        let mut grpc = Grpc::new(channel.clone());
        grpc.ready().await.map_err(|_| Failure::Lost)?;
        let token = match grpc.unary(Request::new(request), path, codec).await {
            Ok(answer) => Some(answer.into_inner().token),
            Err(status) if status.message().contains("authentication is not enabled") => None,
            Err(status) => return Err(status.into()),
        };
        let token = token.map(MetadataValue::try_from).transpose();
        *self.token.lock() = token.map_err(|_| Failure::Refused("the member's token is no text".to_owned()))?;
        Ok(())
    }
}

/// Whether a member does not know (any more) who asks.
fn is_unknown(said: &str) -> bool {
    ["invalid auth token", "revision of auth store is old", "user name is empty"].iter().any(|part| said.contains(part))
}

struct Common {
    watches: Mutex<HashMap<i64, mpsc::Sender<Vec<Event>>>>,
    next: AtomicI64,
    /// Why the connection has ended, when it has.
    why: watch::Sender<Option<String>>,
}

/// All keys of a range at one revision.
pub(super) struct Listed {
    pub kvs: Vec<KeyValue>,
    pub revision: i64,
}

/// Events of a range from a revision on. Cancelled on drop.
pub(super) struct Watching {
    id: i64,
    events: mpsc::Receiver<Vec<Event>>,
    conn: Arc<Conn>,
}

impl Watching {
    /// The next changes; `None` when the watch is over and everything has to be read again.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        self.events.recv().await
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if self.conn.common.watches.lock().remove(&self.id).is_some() {
            let cancel = WatchUnion::Cancel(WatchCancel { watch_id: self.id });
            // Without room the events go on, to nobody.
            let _ = self.conn.asks.try_send(WatchRequest { union: Some(cancel) });
        }
    }
}

impl Conn {
    /// Connects to `server` (`HOST:PORT`). A member that says nothing for two thirds of `silence` is given up.
    pub async fn open(server: &str, access: &Access, silence: Duration) -> Result<Self, String> {
        let opening = async {
            // Members that hang take no farewell either: in the end the connection goes. More often than every
            // five seconds they would take it for an attack.
            let settings = |endpoint: Endpoint| {
                let endpoint = endpoint.connect_timeout(OPENING).tcp_nodelay(true);
                endpoint.http2_keep_alive_interval(Duration::from_secs(30)).keep_alive_while_idle(true)
            };
            let channel = access.connect(server, settings).await?;
            let ticket = Ticket { login: access.login.clone(), token: Mutex::default() };
            ticket.renew(&channel).await.map_err(|failure| failure.to_string())?;
            let (asks, requests) = mpsc::channel(64);
            let progress = || WatchRequest { union: Some(WatchUnion::Progress(WatchProgress {})) };
            // The stream's answer begins when it has something to say.
            asks.try_send(progress()).map_err(|e| e.to_string())?;
            let requests = stream::unfold(requests, async |mut requests| {
                let next = requests.recv().await?;
                Some((next, requests))
            });
            let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
            let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES);
            grpc.ready().await.map_err(|e| e.to_string())?;
            let mut request = Request::new(requests);
            // A member that has lost its leader must say so instead of saying nothing.
            request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
            ticket.show(&mut request);
            let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
            let events = grpc.streaming(request, path, codec).await.map_err(|s| told(&s))?.into_inner();
            let common =
                Arc::new(Common { watches: Mutex::default(), next: AtomicI64::new(1), why: watch::Sender::new(None) });
            let driver = drive(events, asks.downgrade(), common.clone(), silence);
            Ok((channel, ticket, asks, common, driver))
        };
        let opened = timeout(OPENING, opening).await;
        let (channel, ticket, asks, common, driver) =
            opened.unwrap_or_else(|_| Err(format!("no answer within {OPENING:?}")))?;
        tokio::spawn(driver);
        Ok(Self { server: server.to_owned(), channel, ticket, asks, common })
    }

    /// Whether the connection has ended.
    pub fn is_over(&self) -> bool {
        self.common.why.borrow().is_some()
    }

    /// Waits until the connection has ended, and says why.
    pub async fn ended(&self) -> String {
        let mut why = self.common.why.subscribe();
        let why = why.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        why.unwrap_or_else(|| "the connection was lost".to_owned())
    }

    /// One request to `path`, such as `/etcdserverpb.KV/Put`.
    pub async fn ask<A, B>(&self, path: &'static str, request: A) -> Result<B, Failure>
    where
        A: Message + Clone + 'static,
        B: Message + Default + 'static,
    {
        let asking = async {
            let once = async |request: A| {
                let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES);
                grpc.ready().await.map_err(|_| Failure::Lost)?;
                let path = PathAndQuery::from_static(path);
                let mut request = Request::new(request);
                self.ticket.show(&mut request);
                let answer = grpc.unary(request, path, ProstCodec::<A, B>::default()).await?;
                Ok(answer.into_inner())
            };
            if self.ticket.login.is_none() {
                return once(request).await;
            }
            match once(request.clone()).await {
                // Refused before anything was done.
                Err(Failure::Refused(why)) if is_unknown(&why) => {
                    self.ticket.renew(&self.channel).await?;
                    once(request).await
                }
                answer => answer,
            }
        };
        tokio::select! {
            biased;
            answer = timeout(ANSWER, asking) => {
                answer.unwrap_or_else(|_| Err(Failure::Refused(format!("no answer within {ANSWER:?}"))))
            }
            _ = self.ended() => Err(Failure::Lost),
        }
    }

    /// A stream of requests and one of answers.
    pub async fn stream<A, B>(
        &self,
        path: &'static str,
        requests: impl futures_util::Stream<Item = A> + Send + 'static,
    ) -> Result<Streaming<B>, Failure>
    where
        A: Message + 'static,
        B: Message + Default + 'static,
    {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|_| Failure::Lost)?;
        let mut request = Request::new(requests);
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        self.ticket.show(&mut request);
        let opening = grpc.streaming(request, PathAndQuery::from_static(path), ProstCodec::<A, B>::default());
        match timeout(ANSWER, opening).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => Err(Failure::Refused(format!("no answer within {ANSWER:?}"))),
        }
    }

    /// All keys from `key` up to `end` (only `key` when that is empty), as a majority of the members knows them.
    pub async fn list(&self, key: &[u8], end: &[u8]) -> Result<Listed, Failure> {
        let mut listed = Listed { kvs: Vec::new(), revision: 0 };
        let mut from = key.to_vec();
        loop {
            let request = RangeRequest {
                key: from,
                range_end: end.to_vec(),
                limit: PAGE,
                revision: listed.revision,
                ..RangeRequest::default()
            };
            let page: RangeResponse = self.ask("/etcdserverpb.KV/Range", request).await?;
            if listed.revision == 0 {
                listed.revision = page.header.map_or(0, |header| header.revision);
            }
            // The first key behind the last one read.
            from = page.kvs.last().map(|kv| [&kv.key[..], &[0]].concat()).unwrap_or_default();
            let more = page.more && !from.is_empty();
            listed.kvs.extend(page.kvs);
            if !more {
                return Ok(listed);
            }
        }
    }

    /// Changes of a range from `revision` on.
    pub async fn watch(self: &Arc<Self>, key: &[u8], end: &[u8], revision: i64) -> Result<Watching, Failure> {
        let id = self.common.next.fetch_add(1, Relaxed);
        let (sender, events) = mpsc::channel(EVENTS);
        self.common.watches.lock().insert(id, sender);
        let watching = Watching { id, events, conn: self.clone() };
        let create = WatchCreate { key: key.to_vec(), range_end: end.to_vec(), start_revision: revision, watch_id: id };
        let request = WatchRequest { union: Some(WatchUnion::Create(create)) };
        self.asks.send(request).await.map_err(|_| Failure::Lost)?;
        Ok(watching)
    }
}

/// Deals out events until the member falls silent or nobody has any use for the connection.
async fn drive(
    mut events: Streaming<WatchResponse>,
    asks: mpsc::WeakSender<WatchRequest>,
    common: Arc<Common>,
    silence: Duration,
) {
    let mut beats = interval(silence / 3);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    let why = loop {
        let patience = silence * 2 / 3;
        tokio::select! {
            _ = beats.tick() => {
                let Some(asks) = asks.upgrade() else { break None };
                // Any answer shows that it lives, and this one costs next to nothing.
                let _ = asks.try_send(WatchRequest { union: Some(WatchUnion::Progress(WatchProgress {})) });
            }
            answer = timeout_at(heard + patience, events.message()) => match answer {
                Ok(Ok(Some(answer))) => {
                    heard = Instant::now();
                    // The stream shows what it was opened with. Another connection shows another one.
                    if answer.canceled && is_denied(&answer.cancel_reason) {
                        break Some(answer.cancel_reason);
                    }
                    common.deal(answer);
                }
                Ok(Ok(None)) => break Some("the member closed the connection".to_owned()),
                Ok(Err(status)) => break Some(told(&status)),
                Err(_) => break Some(format!("the member is silent for {patience:?}")),
            },
        }
    };
    common.why.send_replace(Some(why.unwrap_or_else(|| "it was of no more use".to_owned())));
    common.watches.lock().clear();
}

/// Whether a watch was ended because of who asked.
fn is_denied(reason: &str) -> bool {
    is_unknown(reason) || reason.contains("permission denied")
}

impl Common {
    fn deal(&self, answer: WatchResponse) {
        let mut watches = self.watches.lock();
        if answer.canceled {
            // Compacted, or refused: its watcher reads everything again.
            if watches.remove(&answer.watch_id).is_some() {
                let (reason, compacted) = (&answer.cancel_reason, answer.compact_revision);
                tracing::debug!(reason, compacted, "etcd: a watch was cancelled");
            }
            return;
        }
        if answer.events.is_empty() {
            return;
        }
        if let Some(watcher) = watches.get(&answer.watch_id)
            && watcher.try_send(answer.events).is_err()
        {
            watches.remove(&answer.watch_id);
        }
    }
}
