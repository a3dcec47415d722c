//! The way of spans to a collector: a bounded queue, batches by size and time, tries again with pauses.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::bail;
use http::Method;
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::{Spans, otlp, zipkin};
use registries::fetch::{Answer, Peer};

use crate::call::Text;

/// Calls in one request at most.
const BATCH: usize = 256;
/// How long the first call of a batch waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// How long a collector may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Tries for a batch, and the pause before the second; it doubles with each.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(200);

/// Where spans go, and in which form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// OTLP/HTTP with JSON. A URL without a path means `/v1/traces`.
    Otlp(String),
    /// Zipkin v2 JSON. A URL without a path means `/api/v2/spans`.
    Zipkin(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Otlp(url) | Self::Zipkin(url)) = self;
        f.write_str(url)
    }
}

impl Target {
    /// Whom to ask, and for which path. Errors name the URL and the remedy.
    pub fn parse(&self) -> anyhow::Result<(Peer, String)> {
        let (url, port, usual) = match self {
            Self::Otlp(url) => (url, 4318, "/v1/traces"),
            Self::Zipkin(url) => (url, 9411, "/api/v2/spans"),
        };
        let Some(rest) = url.strip_prefix("http://") else { bail!("`{url}` is no address; write http://HOST:PORT") };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = if path.len() > 1 { path } else { usual };
        Ok((Peer::parse(&format!("http://{authority}"), port)?, path.to_owned()))
    }

    fn encode(&self, application: &str, spans: &Spans) -> Vec<u8> {
        match self {
            Self::Otlp(_) => otlp::encode(application, spans),
            Self::Zipkin(_) => zipkin::encode(application, spans),
        }
    }
}

enum Message {
    Call(Spans),
    /// Send what is here at once, then answer.
    Flush(oneshot::Sender<()>),
}

/// Takes spans for one target. With its last holder the queue is sent and its task ends.
pub struct Exporter {
    queue: mpsc::Sender<Message>,
    counts: Arc<Counts>,
}

/// What became of spans.
#[derive(Debug, Default)]
struct Counts {
    exported: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exporter({:?})", self.counts)
    }
}

impl Exporter {
    /// Queues the spans of a call; drops and counts them when the queue is full. Never waits.
    pub fn take(&self, spans: Spans) {
        let count = spans.len() as u64;
        if self.queue.try_send(Message::Call(spans)).is_err() {
            self.counts.dropped.fetch_add(count, Relaxed);
        }
    }

    /// Spans that the collector took, that it did not take, and that found the queue full.
    pub fn counts(&self) -> (u64, u64, u64) {
        let Counts { exported, failed, dropped } = &*self.counts;
        (exported.load(Relaxed), failed.load(Relaxed), dropped.load(Relaxed))
    }

    /// Calls in the queue.
    pub fn queued(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }
}

/// All exporters of this agent, one for each target. Cheap to clone.
#[derive(Clone)]
pub struct Exporters {
    runtime: Handle,
    all: Arc<Mutex<HashMap<Target, Weak<Exporter>>>>,
}

impl fmt::Debug for Exporters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exporters({})", self.all.lock().len())
    }
}

impl Exporters {
    /// None yet; their tasks will run on `runtime`.
    pub fn new(runtime: Handle) -> Self {
        Self { runtime, all: Arc::default() }
    }

    /// The exporter to `target`, started if there is none. `queue` calls wait at most, as the first who
    /// asked has it.
    pub fn get(&self, target: &Target, application: &Text, queue: usize) -> anyhow::Result<Arc<Exporter>> {
        let (peer, path) = target.parse()?;
        let mut all = self.all.lock();
        all.retain(|_, exporter| exporter.strong_count() > 0);
        if let Some(exporter) = all.get(target).and_then(Weak::upgrade) {
            return Ok(exporter);
        }
        let (sender, receiver) = mpsc::channel(queue);
        let counts = Arc::<Counts>::default();
        let carrier = Carrier {
            target: target.clone(),
            peer,
            path,
            application: application.clone(),
            counts: counts.clone(),
            refused: false,
        };
        self.runtime.spawn(carrier.carry(receiver));
        let exporter = Arc::new(Exporter { queue: sender, counts });
        all.insert(target.clone(), Arc::downgrade(&exporter));
        Ok(exporter)
    }

    /// Sends what waits in all queues, `patience` at most.
    pub async fn flush(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let all: Vec<_> = self.all.lock().values().filter_map(Weak::upgrade).collect();
        let mut waits = Vec::new();
        for exporter in all {
            let (done, wait) = oneshot::channel();
            if let Ok(Ok(())) = timeout_at(until, exporter.queue.send(Message::Flush(done))).await {
                waits.push(wait);
            }
        }
        for wait in waits {
            let _ = timeout_at(until, wait).await;
        }
    }
}

/// The task's own half.
struct Carrier {
    target: Target,
    peer: Peer,
    path: String,
    application: Text,
    counts: Arc<Counts>,
    /// The last request failed; told once.
    refused: bool,
}

impl Carrier {
    async fn carry(mut self, mut queue: mpsc::Receiver<Message>) {
        let mut open = true;
        while open {
            let mut spans = Spans::new();
            let mut flush = None;
            let mut until = None;
            let mut calls = 0;
            while calls < BATCH && flush.is_none() {
                let next = match until {
                    None => queue.recv().await,
                    Some(until) => match timeout_at(until, queue.recv()).await {
                        Ok(next) => next,
                        Err(_) => break,
                    },
                };
                match next {
                    Some(Message::Call(more)) => {
                        spans.extend(more);
                        calls += 1;
                        until.get_or_insert_with(|| Instant::now() + LINGER);
                    }
                    Some(Message::Flush(done)) => flush = Some(done),
                    None => {
                        open = false;
                        break;
                    }
                }
            }
            if !spans.is_empty() {
                // Nobody waits for a collector that is away while this agent stops.
                let tries = if open && flush.is_none() { TRIES } else { 1 };
                self.send(spans, tries).await;
            }
            if let Some(done) = flush {
                let _ = done.send(());
            }
        }
    }

    async fn send(&mut self, spans: Spans, tries: u32) {
        let count = spans.len() as u64;
        let body = bytes::Bytes::from(self.target.encode(&self.application, &spans));
        drop(spans);
        let mut pause = PAUSE;
        for attempt in 1..=tries {
            let headers = [("content-type", "application/json")];
            let answer = self.peer.ask(Method::POST, &self.path, &headers, body.clone(), PATIENCE).await;
            match answer.and_then(Answer::success) {
                Ok(_) => {
                    self.counts.exported.fetch_add(count, Relaxed);
                    if std::mem::take(&mut self.refused) {
                        tracing::info!(target_url = %self.target, "the collector takes spans again");
                    }
                    return;
                }
                Err(error) if attempt == tries => {
                    self.counts.failed.fetch_add(count, Relaxed);
                    if !std::mem::replace(&mut self.refused, true) {
                        tracing::warn!(target_url = %self.target, error = format!("{error:#}"), "spans are lost");
                    }
                }
                Err(_) => {
                    // Jitter, so that many agents do not come back in step.
                    tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
                    pause *= 2;
                }
            }
        }
    }
}

/// Waits until `condition` holds, `patience` at most. For tests of exporters.
#[cfg(test)]
pub(super) async fn until(what: &str, patience: Duration, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(patience, waiting).await.unwrap_or_else(|_| panic!("{what} did not come about"));
}

#[cfg(test)]
#[path = "exporter_tests.rs"]
mod tests;
