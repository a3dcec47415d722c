//! A call's record on its way to the filters' `on_end`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{Cluster, story};
use crate::{
    call::{Body, CallError, ErrorKind, Request, Response, ResponseHead, Watch, Watched},
    filter::{CallCx, Notes, Outcome, Record, code_of},
    ha::Attempt,
    metrics::{CALLERS, Ending},
};
use http_body_util::BodyExt;

/// Carries a call's record to its end; dropped before that, the caller has gone away.
pub(super) struct End {
    pub(super) record: Record,
    pub(super) cx: CallCx,
    cluster: Arc<Cluster>,
    request_bytes: Option<Arc<AtomicU64>>,
    over: bool,
}

impl End {
    pub(super) fn new(cluster: &Arc<Cluster>, req: &Request, cx: CallCx) -> Self {
        let cancelled = CallError::downstream(ErrorKind::Cancelled, "the caller went away");
        Self {
            record: Record {
                cluster: cluster.info.clone(),
                call: req.call.clone(),
                started: cx.started,
                to_head: None,
                total: Duration::ZERO,
                copied: false,
                request_bytes: req.call.request_bytes,
                response_bytes: 0,
                attempts: 0,
                endpoint: None,
                code: 0,
                outcome: Outcome::Failed(cancelled),
                notes: Notes::default(),
            },
            cx,
            cluster: cluster.clone(),
            request_bytes: None,
            over: false,
        }
    }

    /// All filters let it in: notes who they say the caller is, and counts a streamed request as it is pulled.
    pub(super) fn entered(&mut self, req: &mut Request) {
        if self.record.call.application != req.call.application {
            self.record.call.application = req.call.application.clone();
        }
        if let Body::Stream(body) = &mut req.body {
            let count = Arc::new(AtomicU64::new(0));
            self.request_bytes = Some(count.clone());
            let body = std::mem::take(body);
            req.body = Body::Stream(Watched::new(body, CountRequest(count)).boxed_unsync());
        }
    }

    pub(super) fn head(&mut self, result: &Result<Response, CallError>) {
        self.record.to_head = Some(self.record.started.elapsed());
        match result {
            Ok(response) => {
                self.record.code = code_of(response);
                self.record.outcome = Outcome::Answered(response.status);
            }
            Err(error) => {
                self.record.outcome = Outcome::Failed(error.clone());
                self.finish();
            }
        }
    }

    /// Ends the call if all of its answer is here.
    pub(super) fn is_with(&mut self, response: &Response) -> bool {
        self.record.copied = response.is_copied();
        self.record.response_bytes = match &response.body {
            _ if self.record.copied => return false,
            Body::Empty => 0,
            Body::Full(bytes) => bytes.len() as u64,
            Body::Stream(_) => return false,
        };
        self.finish();
        true
    }

    /// Ends the call when the body of its answer, or the raw connection, is through.
    pub(super) fn watch(self, response: &mut Response, attempt: Option<Attempt>) {
        let later = |end: Self| WatchAnswer { end, attempt };
        match (&mut response.head, &mut response.body) {
            (ResponseHead::Raw(raw), _) => raw.watch = Some(Box::new(later(self))),
            (ResponseHead::Http(head), _) if head.upgrade.is_some() => {
                let upgrade = head.upgrade.as_mut().expect("just seen");
                upgrade.watch = Some(Box::new(later(self)));
            }
            (_, Body::Stream(body)) => {
                let inner = std::mem::take(body);
                *body = Watched::new(inner, later(self)).boxed_unsync();
            }
            // It ends here: nothing else is to come.
            (_, Body::Empty | Body::Full(_)) => drop(later(self)),
        }
    }

    fn finish(&mut self) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let record = &mut self.record;
        record.total = record.started.elapsed();
        if let Some(count) = &self.request_bytes {
            record.request_bytes = count.load(Relaxed);
        }
        let stats = &record.cluster.stats;
        let good = record.is_success();
        let nth = if good { &stats.succeeded } else { &stats.failed }.fetch_add(1, Relaxed);
        stats.request_bytes.fetch_add(record.request_bytes, Relaxed);
        stats.response_bytes.fetch_add(record.response_bytes, Relaxed);
        stats.latency.record(record.latency());
        if let Some(callers) = stats.callers.get() {
            let row = callers.row(&record.call.application, CALLERS);
            row.ended(match &record.outcome {
                Outcome::Answered(status) => Ending::answered(record.code, status.is_failure()),
                Outcome::Failed(error) => Ending::error(error.kind.name()),
            });
            row.latency.record(record.latency());
        }
        let trail = &self.cx.trail;
        if let Some(kept) = stats.recent.wants(trail, !good || !trail.is_empty(), nth) {
            stats.recent.keep(story::of(record, &self.cluster, trail, kept));
        }
        record.notes = std::mem::take(&mut self.cx.notes);
        for filter in self.cluster.filters[..self.cx.entered].iter().rev() {
            filter.on_end(record);
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.finish();
    }
}

struct CountRequest(Arc<AtomicU64>);

impl Watch for CountRequest {
    fn data(&mut self, len: usize) {
        self.0.fetch_add(len as u64, Relaxed);
    }
    fn end(&mut self, _: Option<&CallError>) {}
}

struct WatchAnswer {
    end: End,
    attempt: Option<Attempt>,
}

impl Watch for WatchAnswer {
    fn data(&mut self, len: usize) {
        self.end.record.response_bytes += len as u64;
    }

    fn sent(&mut self, len: usize) {
        self.end.record.request_bytes += len as u64;
    }

    fn end(&mut self, error: Option<&CallError>) {
        if let Some(error) = error {
            self.end.record.outcome = Outcome::Failed(error.clone());
            if let Some(attempt) = &mut self.attempt {
                attempt.broke(error);
            }
        }
        self.end.finish();
        self.attempt = None;
    }

    fn abandon(mut self: Box<Self>) {
        self.end.over = true;
        self.end.record.cluster.stats.started.fetch_sub(1, Relaxed);
    }
}

impl Drop for WatchAnswer {
    fn drop(&mut self) {
        if !self.end.over {
            let gone = CallError::downstream(ErrorKind::Cancelled, "the caller went away during the answer");
            self.end.record.outcome = Outcome::Failed(gone);
        }
    }
}
