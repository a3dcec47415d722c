//! Filters: what happens to every call of a service beside sending it.

mod access_log;
mod metrics;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use model::ServiceKey;
use tokio::time::Instant;

use crate::{
    call::{Call, CallError, ErrorKind, Request, Response, Status, Text},
    endpoint::Endpoint,
    kind::Kind,
};

/// Filters by name.
pub const KINDS: &[Kind<dyn Filter>] =
    &[Kind { name: "access_log", build: access_log::build }, Kind { name: "metrics", build: metrics::build }];

/// Hooks around a call and around each of its attempts.
///
/// `on_request` and `on_attempt` run in the order of the YAML, the other hooks in reverse, and only for
/// filters whose `on_request` was entered. Hooks are plain functions: a filter that must wait returns
/// [`Verdict::Wait`], so that the others cost no future.
pub trait Filter: Send + Sync + 'static {
    /// Before anything is picked.
    fn on_request(&self, _cx: &mut CallCx, _req: &mut Request) -> Verdict {
        Verdict::Continue
    }
    /// Before an attempt goes to `to`. `Stop` fails the attempt, and HA decides what follows.
    fn on_attempt(&self, _cx: &CallCx, _to: &Endpoint) -> Verdict {
        Verdict::Continue
    }
    /// After an attempt.
    fn on_attempt_end(&self, _cx: &CallCx, _to: &Endpoint, _end: Result<&Response, &CallError>) {}
    /// When the answer's head is there, or nothing will come any more.
    fn on_response(&self, _cx: &mut CallCx, _end: &mut Result<Response, CallError>) {}
    /// When everything is over, a streamed body included. Called exactly once, also for calls whose
    /// caller went away.
    fn on_end(&self, _record: &Record) {}
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

/// Which way a call goes through this agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From a local program to a service.
    Outbound,
    /// From elsewhere to a local program.
    Inbound,
}

impl Direction {
    /// Stable name for logs and metric labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// What is the same for all calls of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterInfo {
    /// Service, group and version.
    pub key: ServiceKey,
    /// `key.service` as text that is cheap to clone.
    pub service: Text,
    /// Which way.
    pub direction: Direction,
    /// Protocol towards endpoints.
    pub protocol: &'static str,
    /// What the agent counts of this service, whatever its filters.
    pub stats: Arc<crate::metrics::ServiceStats>,
}

/// One call as filters see it while it goes on.
#[derive(Clone, Debug)]
pub struct CallCx {
    /// The cluster.
    pub cluster: Arc<ClusterInfo>,
    /// When it entered the cluster.
    pub started: Instant,
}

/// How a call ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// An endpoint (or a filter) answered.
    Answered(Status),
    /// Nobody answered, or the answer broke off.
    Failed(CallError),
}

/// All about one call, once it is over.
#[derive(Debug)]
pub struct Record {
    /// The cluster.
    pub cluster: Arc<ClusterInfo>,
    /// The call.
    pub call: Call,
    /// When it entered the cluster.
    pub started: Instant,
    /// Until the answer's head.
    pub to_head: Option<Duration>,
    /// Until the end, body included.
    pub total: Duration,
    /// After the head the connection left the protocol and its bytes were copied: raw TCP, websocket.
    pub copied: bool,
    /// Payload bytes of the request.
    pub request_bytes: u64,
    /// Payload bytes of the answer.
    pub response_bytes: u64,
    /// Attempts made.
    pub attempts: u32,
    /// Endpoint of the last attempt.
    pub endpoint: Option<SocketAddr>,
    /// The protocol's own code, such as 304; 0 when there was no answer.
    pub code: u32,
    /// How it ended.
    pub outcome: Outcome,
}

impl Record {
    /// Whether the mesh and the endpoint did their work; the user's own errors count as success.
    pub fn is_success(&self) -> bool {
        match &self.outcome {
            Outcome::Answered(status) => !status.is_failure(),
            // The caller's own decision says nothing about the service.
            Outcome::Failed(error) => error.kind == ErrorKind::Cancelled,
        }
    }

    /// The time that the mesh and the endpoint answer for. A copied connection lasts as long as its
    /// programs like, so only the way to its head counts.
    pub fn latency(&self) -> Duration {
        self.to_head.filter(|_| self.copied).unwrap_or(self.total)
    }
}

/// Runs `on_request` of each filter in order. `Ok(n)`: all passed; `Err((n, answer))`: filter `n - 1`
/// answered. Only the first `n` filters were entered and may be told the end.
pub async fn enter(
    filters: &[Arc<dyn Filter>],
    cx: &mut CallCx,
    req: &mut Request,
) -> Result<(), (usize, Box<Result<Response, CallError>>)> {
    for (i, filter) in filters.iter().enumerate() {
        let mut verdict = filter.on_request(cx, req);
        // Tested before any await: the usual case costs no state of the future.
        while let Verdict::Wait(wait) = verdict {
            verdict = wait.await;
        }
        if let Verdict::Stop(answer) = verdict {
            return Err((i + 1, answer));
        }
    }
    Ok(())
}

/// A record for tests of filters: method `echo` of service `web`, answered well.
#[cfg(test)]
pub(crate) fn sample() -> Record {
    let info = ClusterInfo {
        key: ServiceKey { service: "web".to_owned(), group: "idc-a".to_owned(), version: String::new() },
        service: Text::from_static("web"),
        direction: Direction::Outbound,
        protocol: "motan2",
        stats: Arc::default(),
    };
    let mut call = Call::new("web".into(), "echo".into());
    call.group = "idc-a".into();
    call.request_id = 0xabc;
    call.peer = Some(SocketAddr::from(([127, 0, 0, 1], 40000)));
    Record {
        cluster: Arc::new(info),
        call,
        started: Instant::now(),
        to_head: Some(Duration::from_micros(900)),
        total: Duration::from_micros(1500),
        copied: false,
        request_bytes: 10,
        response_bytes: 2000,
        attempts: 1,
        endpoint: Some(SocketAddr::from(([10, 0, 0, 1], 8081))),
        code: 200,
        outcome: Outcome::Answered(Status::Ok),
    }
}
