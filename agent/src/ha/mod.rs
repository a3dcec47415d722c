//! What to do when an attempt fails. A strategy is a loop over [`Attempts::send`]; the mechanics are here.

mod failfast;
mod failover;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::{
    call::{Call, CallError, ErrorKind, Request, Response, Retry},
    endpoint::{Connector, Endpoint},
    filter::{CallCx, Filter, Trying, Verdict},
    kind::Kind,
    lb::EndpointSet,
};

/// HA strategies by name.
pub const KINDS: &[Kind<dyn HaStrategy>] =
    &[Kind { name: "failfast", build: failfast::build }, Kind { name: "failover", build: failover::build }];

/// Decides how often and where a call is tried.
pub trait HaStrategy: Send + Sync + 'static {
    /// Makes attempts until one is good enough or nothing is left to try. Dropping the future cancels
    /// the attempts in flight.
    fn call<'a>(&'a self, attempts: &'a Attempts<'a>, req: &'a mut Request) -> BoxFuture<'a, Result<Sent, CallError>>;
}

/// An answer with the guard that counts its endpoint as busy until the body is through.
pub struct Sent {
    /// The answer.
    pub response: Response,
    /// Ends the attempt.
    pub attempt: Attempt,
}

/// The attempts of one call.
pub struct Attempts<'a> {
    /// The endpoints at the time the call came.
    pub set: &'a EndpointSet,
    /// Sends.
    pub connector: &'a dyn Connector,
    /// Hooks around each attempt.
    pub filters: &'a [Arc<dyn Filter>],
    /// The call.
    pub cx: &'a CallCx,
    /// What filters are told of it.
    pub call: &'a Call,
    /// Further tries after the first, for this method.
    pub retries: u32,
    /// Whether this call may be sent twice.
    pub idempotent: bool,
    /// In-flight limit of one endpoint.
    pub max_in_flight: usize,
    /// What the balancer said of the call, see [`crate::lb::LoadBalancer::hash`].
    pub hash: Option<u64>,
    /// Endpoints tried so far.
    tried: Mutex<SmallVec<[usize; 8]>>,
    sent: AtomicU32,
}

/// Tries beyond `retries` that a call may take when every one of them failed to connect: such tries
/// reached nobody, so they load nobody, and a call should not fail because several endpoints died at once.
const UNSENT_TRIES: u32 = 3;

impl<'a> Attempts<'a> {
    /// No attempt made yet.
    pub fn new(
        set: &'a EndpointSet,
        connector: &'a dyn Connector,
        filters: &'a [Arc<dyn Filter>],
        cx: &'a CallCx,
        call: &'a Call,
    ) -> Self {
        Self {
            set,
            connector,
            filters,
            cx,
            call,
            retries: 0,
            idempotent: false,
            max_in_flight: usize::MAX,
            hash: None,
            tried: Mutex::new(SmallVec::new()),
            sent: AtomicU32::new(0),
        }
    }

    /// Attempts made so far.
    pub fn count(&self) -> u32 {
        self.sent.load(Relaxed)
    }

    /// Endpoint of the last attempt.
    pub fn last(&self) -> Option<&Arc<Endpoint>> {
        self.tried.lock().last().map(|&i| &self.set.endpoints[i])
    }

    /// Picks an untried endpoint and sends the call there. Cancel safe: dropping it ends the attempt.
    ///
    /// After an error with [`Retry::NotSent`] `req` is whole; after others only if it is replayable.
    pub async fn send(&self, req: &mut Request) -> Result<Sent, CallError> {
        let index = {
            let mut tried = self.tried.lock();
            let index = self.set.pick(&tried, self.max_in_flight, self.hash).ok_or_else(|| self.nobody(&tried))?;
            tried.push(index);
            index
        };
        let endpoint = &self.set.endpoints[index];
        let number = self.sent.fetch_add(1, Relaxed) + 1;
        let trying = Trying { call: self.call, to: endpoint, number, started: Instant::now() };
        let mut hooks = Hooks { filters: self.filters, cx: self.cx, trying, entered: 0 };
        for filter in self.filters {
            hooks.entered += 1;
            let mut verdict = filter.on_attempt(self.cx, &trying, req);
            while let Verdict::Wait(wait) = verdict {
                verdict = wait.await;
            }
            if let Verdict::Stop(mut answer) = verdict {
                if let Err(error) = &mut *answer {
                    error.endpoint = Some(endpoint.addr);
                }
                hooks.end((*answer).as_ref());
                return answer.map(|response| Sent { response, attempt: Attempt::begin(endpoint) });
            }
        }
        let mut attempt = Attempt::begin(endpoint);
        let result = self.connector.call(endpoint, req).await;
        hooks.end(result.as_ref());
        match result {
            Ok(response) => {
                attempt.answered(&response);
                Ok(Sent { response, attempt })
            }
            Err(mut error) => {
                error.endpoint = Some(endpoint.addr);
                attempt.broke(&error);
                Err(error)
            }
        }
    }

    /// Whether another try after `error` is allowed: it must be safe, there must be an untried
    /// endpoint, time and a try left.
    pub fn may_retry(&self, error: &CallError, deadline: Instant) -> bool {
        let tries = self.count();
        let allowed = match error.retry {
            Retry::Never => false,
            Retry::NotSent => tries < 1 + self.retries.max(UNSENT_TRIES),
            Retry::IfIdempotent => self.may_repeat(),
        };
        allowed && self.has_another(deadline)
    }

    /// Whether another try after an answer that blames the endpoint is allowed.
    pub fn may_retry_failure(&self, deadline: Instant) -> bool {
        self.may_repeat() && self.has_another(deadline)
    }

    /// Whether what may have been done already may be done again.
    fn may_repeat(&self) -> bool {
        self.idempotent && self.count() <= self.retries
    }

    /// Whether there is time and an endpoint for one more try.
    fn has_another(&self, deadline: Instant) -> bool {
        Instant::now() < deadline && self.set.has_one(&self.tried.lock(), self.max_in_flight)
    }

    fn nobody(&self, tried: &[usize]) -> CallError {
        let service = &self.cx.cluster.key;
        if self.set.endpoints.is_empty() {
            CallError::mesh(ErrorKind::NoEndpoint, format!("no endpoint of {service} is known"))
        } else if tried.len() >= self.set.endpoints.len() {
            CallError::mesh(ErrorKind::NoEndpoint, format!("every endpoint of {service} was tried"))
        } else {
            CallError::mesh(ErrorKind::Overload, format!("every endpoint of {service} is at its in-flight limit"))
        }
    }
}

/// Filters that know of an attempt, to be told its end; dropped before that, it was given up.
struct Hooks<'a> {
    filters: &'a [Arc<dyn Filter>],
    cx: &'a CallCx,
    trying: Trying<'a>,
    entered: usize,
}

impl Hooks<'_> {
    fn end(&mut self, end: Result<&Response, &CallError>) {
        for filter in self.filters[..std::mem::take(&mut self.entered)].iter().rev() {
            filter.on_attempt_end(self.cx, &self.trying, end);
        }
    }
}

impl Drop for Hooks<'_> {
    fn drop(&mut self) {
        if self.entered > 0 {
            let gone = CallError::downstream(ErrorKind::Cancelled, "the attempt was given up");
            self.end(Err(&gone));
        }
    }
}

/// One attempt on its endpoint's books: in flight until dropped.
pub struct Attempt {
    endpoint: Arc<Endpoint>,
    started: Instant,
    failed: bool,
    /// Cancelled attempts say nothing about latency.
    timed: bool,
    /// Of a connection that is copied from here on: the time to its head, which is what counts.
    way: Option<Duration>,
}

impl Attempt {
    /// Begins an attempt on `endpoint`.
    pub fn begin(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.stats.started.fetch_add(1, Relaxed);
        endpoint.stats.in_flight.fetch_add(1, Relaxed);
        Self { endpoint: endpoint.clone(), started: Instant::now(), failed: false, timed: false, way: None }
    }

    /// The endpoint.
    pub const fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The head of an answer came.
    pub fn answered(&mut self, response: &Response) {
        let failed = response.status.is_failure();
        self.timed = true;
        self.failed = failed;
        // The head is what an endpoint's own speed shows in; the body's pace is the caller's too.
        self.endpoint.stats.ewma.observe(self.started.elapsed());
        self.way = response.is_copied().then(|| self.started.elapsed());
        if failed { self.endpoint.health.failed() } else { self.endpoint.health.succeeded() }
    }

    /// The attempt, or the body of its answer, broke.
    pub fn broke(&mut self, error: &CallError) {
        self.timed = true;
        self.failed = true;
        match error.kind {
            ErrorKind::Connect | ErrorKind::ConnectTimeout => self.endpoint.health.connect_failed(),
            ErrorKind::Timeout | ErrorKind::Reset | ErrorKind::Protocol => self.endpoint.health.failed(),
            // The caller went away or the agent itself gave up: nothing against the endpoint.
            _ => {
                self.timed = false;
                self.failed = false;
            }
        }
    }

    /// Time since it began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let stats = &self.endpoint.stats;
        stats.in_flight.fetch_sub(1, Relaxed);
        stats.ended.fetch_add(1, Relaxed);
        if self.failed {
            stats.failed.fetch_add(1, Relaxed);
        }
        if self.timed {
            stats.latency.record(self.way.unwrap_or_else(|| self.started.elapsed()));
        }
    }
}
