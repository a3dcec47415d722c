//! [`Attempts`]: the mechanics that every strategy is made of.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use bytes::Bytes;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{Attempt, Sent, budget::Budget};
use crate::{
    call::{Body, Call, CallError, ErrorKind, Head, Request, Response, Retry, Status},
    endpoint::{Connector, Endpoint},
    filter::{CallCx, Filter, Trying, Verdict, note},
    lb::{EndpointSet, Traits},
    metrics::{Candidate, Step, micros},
};

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
    /// What of the call itself decides where it goes.
    pub traits: Traits,
    /// Endpoints tried so far.
    tried: Mutex<SmallVec<[usize; 8]>>,
    sent: AtomicU32,
    /// Attempts that may have reached an endpoint.
    reached: AtomicU32,
    /// Attempts that are with a connector which watches the deadline itself.
    watched: AtomicU32,
}

/// What is to be sent again.
#[derive(Clone, Copy)]
pub(super) struct Resend {
    /// Its body is there as a whole.
    pub(super) replayable: bool,
    /// End of the call.
    pub(super) deadline: Instant,
}

impl Resend {
    pub(super) const fn of(req: &Request) -> Self {
        Self { replayable: !matches!(req.body, Body::Stream(_)), deadline: req.call.deadline }
    }
}

/// A request that copies are made of. Unlike the request itself it can be shared between threads.
pub(super) struct Original {
    call: Call,
    head: Head,
    body: Bytes,
}

impl Original {
    /// `None` when the body is a stream.
    pub(super) fn of(req: &Request) -> Option<Self> {
        let body = match &req.body {
            Body::Empty => Bytes::new(),
            Body::Full(bytes) => bytes.clone(),
            Body::Stream(_) => return None,
        };
        Some(Self { call: req.call.clone(), head: req.head.clone(), body })
    }

    pub(super) fn copy(&self) -> Request {
        let body = if self.body.is_empty() { Body::Empty } else { Body::Full(self.body.clone()) };
        Request { call: self.call.clone(), head: self.head.clone(), body }
    }

    pub(super) const fn resend(&self) -> Resend {
        Resend { replayable: true, deadline: self.call.deadline }
    }
}

/// Candidates listed when a pick is explained.
const MAX_CANDIDATES: usize = 50;

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
            traits: Traits::default(),
            tried: Mutex::new(SmallVec::new()),
            sent: AtomicU32::new(0),
            reached: AtomicU32::new(0),
            watched: AtomicU32::new(0),
        }
    }

    /// Whether an attempt is with a connector that watches the deadline itself.
    pub fn is_watched(&self) -> bool {
        self.watched.load(Relaxed) > 0
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
        let index = self.pick()?;
        // Whoever gets this knows that the same call may have been tried before, and does not retry on its part.
        req.call.retry = self.call.retry + self.reached.load(Relaxed);
        self.attempt(index, req).await
    }

    /// Sends the call to endpoint `index`, whatever its health. Otherwise as [`Attempts::send`].
    pub async fn send_to(&self, index: usize, req: &mut Request) -> Result<Sent, CallError> {
        self.tried.lock().push(index);
        self.attempt(index, req).await
    }

    fn pick(&self) -> Result<usize, CallError> {
        let mut tried = self.tried.lock();
        let picked = self.set.pick(&tried, self.max_in_flight, self.traits);
        if self.cx.trail.is_full() {
            self.cx.trail.push(self.candidates(&tried, picked));
        }
        let index = picked.ok_or_else(|| self.nobody_but(&tried))?;
        tried.push(index);
        Ok(index)
    }

    async fn attempt(&self, index: usize, req: &mut Request) -> Result<Sent, CallError> {
        let endpoint = &self.set.endpoints[index];
        let number = self.sent.fetch_add(1, Relaxed) + 1;
        self.reached.fetch_add(1, Relaxed);
        let trying = Trying { call: self.call, to: endpoint, number, started: Instant::now() };
        let mut hooks = Hooks { filters: self.filters, cx: self.cx, trying, entered: 0, over: false };
        let mut started = trying.started;
        for (index, filter) in self.filters.iter().enumerate() {
            let mut verdict = filter.on_attempt(self.cx, &trying, req);
            if matches!(verdict, Verdict::Wait(_)) {
                let asked = Instant::now();
                while let Verdict::Wait(wait) = verdict {
                    verdict = wait.await;
                }
                note(&self.cx.trail, index, "attempt", self.cx.trail.is_full().then_some(asked), None);
                started = Instant::now();
            }
            if let Verdict::Stop(mut answer) = verdict {
                if let Err(error) = &mut *answer {
                    error.endpoint = Some(endpoint.addr);
                }
                hooks.end((*answer).as_ref());
                self.reached.fetch_sub(1, Relaxed);
                note(&self.cx.trail, index, "attempt", None, Some(&answer));
                return answer.map(|response| Sent { response, attempt: Attempt::begin(endpoint) });
            }
            hooks.entered += 1;
        }
        let mut attempt = Attempt::begin_at(endpoint, started);
        let result = {
            let _watched = self.connector.watches_deadline().then(|| Counted::new(&self.watched));
            self.connector.call(endpoint, req).await
        };
        hooks.end(result.as_ref());
        self.ended(&trying, result.as_ref());
        match result {
            Ok(response) => {
                attempt.answered(&response);
                Ok(Sent { response, attempt })
            }
            Err(mut error) => {
                error.endpoint = Some(endpoint.addr);
                attempt.broke(&error);
                if error.retry == Retry::NotSent {
                    self.reached.fetch_sub(1, Relaxed);
                }
                Err(error)
            }
        }
    }

    /// Whether to try again after `result`. It is no question after a good answer; else it must be safe, and
    /// there must be a try, a right to retry (`budget`), time and an endpoint left.
    pub(super) fn go_on(&self, result: &Result<Sent, CallError>, what: Resend, budget: &Budget) -> bool {
        let retry = match result {
            Ok(sent) if !sent.response.status.is_failure() => return false,
            Ok(_) => Retry::IfIdempotent,
            Err(error) => error.retry,
        };
        let verdict = self.may_follow(retry, what, budget);
        // Where nothing was tried there is no question of a further try.
        if let Err(why) = verdict
            && self.count() > 0
        {
            self.say(|| format!("no further try: {why}"));
        }
        verdict.is_ok()
    }

    fn may_follow(&self, retry: Retry, what: Resend, budget: &Budget) -> Result<(), &'static str> {
        let tries = self.count();
        match retry {
            Retry::Never => return Err("sending this again would be pointless or dangerous"),
            Retry::NotSent if tries > self.retries.max(UNSENT_TRIES) => return Err("no try is left"),
            Retry::NotSent => {}
            Retry::IfIdempotent if !what.replayable => return Err("the body was streamed and exists once"),
            Retry::IfIdempotent if !self.idempotent => return Err("it may have been done, and may not be done twice"),
            Retry::IfIdempotent if tries > self.retries => return Err("no try is left (`retries`)"),
            Retry::IfIdempotent if self.call.retry > 0 => return Err("the call is another agent's retry already"),
            Retry::IfIdempotent => {}
        }
        if Instant::now() >= what.deadline {
            return Err("no time is left");
        }
        let tried = self.tried.lock();
        if !self.set.has_one(&tried, self.max_in_flight) {
            return Err("no other endpoint can take it");
        }
        // What reached nobody loads nobody: as long as there is one in rotation it goes there. When all are
        // out, every try is a guess, and guesses are counted.
        if retry == Retry::NotSent && self.set.has_good(&tried, self.max_in_flight) {
            return Ok(());
        }
        drop(tried);
        if self.call.retry > 0 {
            return Err("the call is another agent's retry already");
        }
        if budget.take(&self.cx.cluster.stats) { Ok(()) } else { Err("the retry budget is used up") }
    }

    /// Whether the call may be sent to a second endpoint before the first has answered.
    pub(super) const fn may_hedge(&self) -> bool {
        self.idempotent && self.retries > 0 && self.call.retry == 0
    }

    /// Whether there is time and an endpoint for one more try.
    pub(super) fn has_another(&self, deadline: Instant) -> bool {
        Instant::now() < deadline && self.set.has_one(&self.tried.lock(), self.max_in_flight)
    }

    /// Notes a decision.
    pub(super) fn say(&self, text: impl FnOnce() -> String) {
        self.cx.trail.note(text());
    }

    fn ended(&self, trying: &Trying<'_>, end: Result<&Response, &CallError>) {
        let trail = &self.cx.trail;
        let bad = end.map_or(true, |response| response.status.is_failure());
        if bad || trail.is_full() {
            let end = match end {
                Ok(response) => match response.status {
                    Status::Ok => "answered".to_owned(),
                    Status::Refused(code) => format!("answered {code}, the service's own error"),
                    Status::Failed(code) => format!("failed with {code}"),
                },
                Err(error) => format!("{}: {error}", error.kind.name()),
            };
            let (number, endpoint) = (trying.number, trying.to.addr);
            trail.push(Step::Try { number, endpoint, micros: micros(trying.started.elapsed()), end });
        }
    }

    fn candidates(&self, tried: &[usize], picked: Option<usize>) -> Step {
        let Self { set, max_in_flight, traits, .. } = *self;
        let cx = set.cx(tried, max_in_flight, traits);
        let order = picked.into_iter().chain((0..set.endpoints.len()).filter(|i| Some(*i) != picked));
        let candidate = |i: usize| {
            let Endpoint { addr, group, zone, weight, .. } = &*set.endpoints[i];
            let reason = match (cx.refusal(i), Some(i) == picked) {
                (None, true) => "picked",
                (Some(_), true) => "picked, as the least bad: nobody is in rotation",
                (Some(reason), false) => reason,
                (None, false) => set.picker.passed_over(&cx, i),
            };
            let (group, zone) = (group.to_string(), zone.to_string());
            let in_flight = set.endpoints[i].in_flight();
            Candidate { endpoint: *addr, group, zone, weight: *weight, in_flight, reason: reason.to_owned() }
        };
        let candidates: Vec<_> = order.take(MAX_CANDIDATES).map(candidate).collect();
        let more = set.endpoints.len() - candidates.len();
        Step::Pick { picked: picked.map(|i| set.endpoints[i].addr), candidates, more }
    }

    /// Why no endpoint can take the call.
    pub(super) fn nobody(&self) -> CallError {
        self.nobody_but(&self.tried.lock())
    }

    fn nobody_but(&self, tried: &[usize]) -> CallError {
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

/// Counts one until dropped.
struct Counted<'a>(&'a AtomicU32);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Filters that know of an attempt, to be told its end; dropped before that, it was given up.
struct Hooks<'a> {
    filters: &'a [Arc<dyn Filter>],
    cx: &'a CallCx,
    trying: Trying<'a>,
    entered: usize,
    over: bool,
}

impl Hooks<'_> {
    fn end(&mut self, end: Result<&Response, &CallError>) {
        self.over = true;
        for filter in self.filters[..std::mem::take(&mut self.entered)].iter().rev() {
            filter.on_attempt_end(self.cx, &self.trying, end);
        }
    }
}

impl Drop for Hooks<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        if self.cx.trail.is_full() {
            let Trying { number, to, started, .. } = self.trying;
            let (endpoint, micros, end) = (to.addr, micros(started.elapsed()), "given up".to_owned());
            self.cx.trail.push(Step::Try { number, endpoint, micros, end });
        }
        if self.entered > 0 {
            let gone = CallError::downstream(ErrorKind::Cancelled, "the attempt was given up");
            self.end(Err(&gone));
        }
    }
}
