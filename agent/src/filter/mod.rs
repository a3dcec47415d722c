//! Filters: what happens to every call of a service beside sending it.

mod access_log;
mod active_limit;
mod answer;
mod auth;
mod circuit_breaker;
mod convert;
mod failfast;
mod fault;
mod figures;
mod metrics;
mod mock;
mod notes;
mod options;
mod rate_limit;
mod record;
mod spans;
mod switcher;
#[cfg(test)]
pub(crate) mod testing;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

#[cfg(test)]
pub(crate) use self::record::sample;
pub use self::{
    figures::{Figure, Shows},
    notes::Notes,
    record::{CallCx, ClusterInfo, Outcome, Record},
};
pub use crate::call::Direction;
use crate::{
    call::{Call, CallError, Request, Response, ResponseHead},
    endpoint::Endpoint,
    kind::Kind,
    metrics::{Step, Trail, micros},
};

/// Filters by name.
pub const KINDS: &[Kind<dyn Filter>] = &[
    Kind { name: "access_log", build: access_log::build },
    Kind { name: "active_limit", build: active_limit::build },
    Kind { name: "auth", build: auth::build },
    Kind { name: "circuit_breaker", build: circuit_breaker::build },
    Kind { name: "convert", build: convert::build },
    Kind { name: "failfast", build: failfast::build },
    Kind { name: "fault", build: fault::build },
    Kind { name: "metrics", build: metrics::build },
    Kind { name: "mock", build: mock::build },
    Kind { name: "rate_limit", build: rate_limit::build },
    Kind { name: "switcher", build: switcher::build },
    Kind { name: "tracing", build: spans::build },
];

/// Hooks around a call and around each of its attempts.
///
/// `on_request` and `on_attempt` run in the order of the YAML, the other hooks in reverse, and only for
/// filters whose `on_request` (or `on_attempt`) was entered. Hooks are plain functions: a filter that must
/// wait returns [`Verdict::Wait`], so that the others cost no future. What a filter must remember of a call
/// stands in [`CallCx::notes`].
pub trait Filter: Send + Sync + 'static {
    /// Before anything is picked.
    fn on_request(&self, _cx: &mut CallCx, _req: &mut Request) -> Verdict {
        Verdict::Continue
    }
    /// Before an attempt is sent. `Stop` fails (or answers) the attempt, and HA decides what follows. What it
    /// changes in `req` is there for later attempts as well.
    fn on_attempt(&self, _cx: &CallCx, _attempt: &Trying<'_>, _req: &mut Request) -> Verdict {
        Verdict::Continue
    }
    /// After an attempt that this filter let pass, exactly once, with [`crate::call::ErrorKind::Cancelled`]
    /// for those that were given up.
    fn on_attempt_end(&self, _cx: &CallCx, _attempt: &Trying<'_>, _end: Result<&Response, &CallError>) {}
    /// When the answer's head is there, or nothing will come any more.
    fn on_response(&self, _cx: &mut CallCx, _end: &mut Result<Response, CallError>) {}
    /// When everything is over, a streamed body included. Called exactly once, also for calls whose
    /// caller went away.
    fn on_end(&self, _record: &Record) {}
    /// An endpoint that is new to the cluster. Off the data path.
    fn on_endpoint(&self, _endpoint: &Endpoint) {}
    /// What operators see of it, in `/metrics` and `/stat`.
    fn figures(&self, _show: &mut Shows<'_>) {}
}

/// What a filter says.
pub enum Verdict {
    /// On to the next one.
    Continue,
    /// This is the answer. Boxed: returning it inline made every `Continue` cost 150 ns.
    Stop(Box<Result<Response, CallError>>),
    /// Ask again when this is done.
    Wait(BoxFuture<'static, Verdict>),
}

impl Verdict {
    /// Ends the call (or the attempt) with `error`.
    pub fn fail(error: CallError) -> Self {
        Self::Stop(Box::new(Err(error)))
    }
}

/// One attempt as filters see it.
#[derive(Clone, Copy, Debug)]
pub struct Trying<'a> {
    /// The call, as it came out of `on_request`.
    pub call: &'a Call,
    /// Where the attempt goes.
    pub to: &'a Arc<Endpoint>,
    /// 1 for the first of its call.
    pub number: u32,
    /// When it began.
    pub started: Instant,
}

/// The protocol's own code of an answer, such as 304.
pub(crate) fn code_of(response: &Response) -> u32 {
    match &response.head {
        ResponseHead::Http(head) => head.status.as_u16().into(),
        _ => response.status.code(),
    }
}

/// Runs `on_request` of each filter in order and counts in `cx` those entered, which will be told the end.
/// An error is the answer of the last one entered.
pub async fn enter(
    filters: &[Arc<dyn Filter>],
    cx: &mut CallCx,
    req: &mut Request,
) -> Result<(), Box<Result<Response, CallError>>> {
    for filter in filters {
        let asked = cx.trail.is_full().then(Instant::now);
        let index = cx.entered;
        cx.entered += 1;
        let mut verdict = filter.on_request(cx, req);
        // Tested before any await: the usual case costs no state of the future.
        while let Verdict::Wait(wait) = verdict {
            verdict = wait.await;
        }
        let stopped = if let Verdict::Stop(answer) = verdict { Some(answer) } else { None };
        note(&cx.trail, index, "request", asked, stopped.as_deref());
        if let Some(answer) = stopped {
            return Err(answer);
        }
    }
    Ok(())
}

/// Notes what filter `index` did, if somebody wants to know: it was `asked` then, and ended the call if it
/// `stopped`.
pub fn note(
    trail: &Trail,
    index: usize,
    at: &str,
    asked: Option<Instant>,
    stopped: Option<&Result<Response, CallError>>,
) {
    if asked.is_none() && stopped.is_none() {
        return;
    }
    let said = stopped.map(|answer| match answer {
        Ok(response) => format!("answered {}", response.status.code()),
        Err(error) => error.to_string(),
    });
    let micros = asked.map_or(0, |asked| micros(asked.elapsed()));
    trail.push(Step::Filter { index, name: String::new(), at: at.to_owned(), micros, said });
}
