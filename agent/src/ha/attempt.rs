//! [`Attempt`]: what one attempt does to its endpoint's books.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    call::{Body, CallError, ErrorKind, Response},
    endpoint::Endpoint,
};

/// One attempt on its endpoint's books: in flight until dropped.
pub struct Attempt {
    endpoint: Arc<Endpoint>,
    started: Instant,
    failed: bool,
    /// Cancelled attempts say nothing about latency.
    timed: bool,
    /// The time to its head, where that is what counts: of an answer that came whole, of a connection that is
    /// copied from here on.
    way: Option<Duration>,
}

impl Attempt {
    /// Begins an attempt on `endpoint`.
    pub fn begin(endpoint: &Arc<Endpoint>) -> Self {
        Self::begin_at(endpoint, Instant::now())
    }

    /// The same, at a moment that is known already.
    pub fn begin_at(endpoint: &Arc<Endpoint>, started: Instant) -> Self {
        endpoint.stats.started.fetch_add(1, Relaxed);
        endpoint.hot.begin();
        Self { endpoint: endpoint.clone(), started, failed: false, timed: false, way: None }
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
        let elapsed = self.started.elapsed();
        self.endpoint.hot.ewma.observe(elapsed);
        let ends_later = matches!(response.body, Body::Stream(_)) && !response.is_copied();
        self.way = (!ends_later).then_some(elapsed);
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
        self.endpoint.hot.end();
        stats.ended.fetch_add(1, Relaxed);
        if self.failed {
            stats.failed.fetch_add(1, Relaxed);
        }
        if self.timed {
            stats.latency.record(self.way.unwrap_or_else(|| self.started.elapsed()));
        } else if self.started.elapsed().as_nanos() > u128::from(self.endpoint.hot.ewma.expected_ns()) {
            // Given up before an answer, which would have taken longer still: one that loses every race must
            // not be taken for a fast one.
            self.endpoint.hot.ewma.observe(self.started.elapsed());
        }
    }
}
