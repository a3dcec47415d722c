//! What filters are told of a call: while it goes on, and once it is over.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use model::ServiceKey;
use tokio::time::Instant;

use super::Notes;
use crate::{
    call::{Call, CallError, Direction, ErrorKind, Status, Text},
    metrics::Trail,
};

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
#[derive(Debug)]
pub struct CallCx {
    /// The cluster.
    pub cluster: Arc<ClusterInfo>,
    /// When it entered the cluster.
    pub started: Instant,
    /// What filters remember of it.
    pub notes: Notes,
    /// Filters whose `on_request` was entered.
    pub entered: usize,
    /// Takes notes for operators.
    pub trail: Trail,
}

impl CallCx {
    /// A call that begins now.
    pub fn new(cluster: Arc<ClusterInfo>) -> Self {
        let trail = cluster.stats.recent.begin();
        Self { cluster, started: Instant::now(), notes: Notes::default(), entered: 0, trail }
    }
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
    /// What filters remember of it.
    pub notes: Notes,
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
        notes: Notes::default(),
    }
}
