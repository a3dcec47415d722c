//! `/v1/agent/*`: what agents tell and ask. All four calls name the agent, and a token limits which names it may use.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Histogram, Stamp};
use crate::{Instance, ServiceKey, Snapshot};

/// One service that an agent provides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Registration {
    /// Service, group and version.
    pub key: ServiceKey,
    /// What callers must speak, e.g. `motan2`.
    pub protocol: String,
    /// Where callers dial, with weight, zone and metadata.
    pub instance: Instance,
    /// Application that provides it.
    #[serde(default)]
    pub application: String,
    /// Further parameters, by their names on the wire of Motan.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
    /// Whether callers may come; false keeps it known and out of the lists.
    pub available: bool,
}

/// `PUT /v1/agent/registrations`: everything that this agent provides. What it said before and does not say now is
/// taken back; an empty list takes back all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Registrations {
    /// Name of the agent, unique in the site: `HOST/NAME`.
    pub agent: String,
    /// How long they hold without a heartbeat.
    pub ttl_ms: u64,
    /// Grows with every change by this agent; a lower one than the centre has is an old message and refused.
    pub generation: u64,
    /// All of them.
    pub registrations: Vec<Registration>,
}

/// What became of [`Registrations`]: durable when it is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RegistrationsAnswer {
    /// State of the centre with them in it.
    pub stamp: Stamp,
    /// Those not taken: the key as it is shown (`group/service:version`), `@`, the address; and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<(String, String)>,
}

/// `POST /v1/agent/heartbeat`: everything registered by this agent lives on. One message for all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Heartbeat {
    /// Name of the agent.
    pub agent: String,
    /// Generation of its registrations.
    pub generation: u64,
}

/// Answer to [`Heartbeat`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HeartbeatAnswer {
    /// False: the centre holds another generation, or nothing; the agent says its registrations again.
    pub known: bool,
    /// Generation that the centre holds; 0: none. The agent says its own under a higher one.
    #[serde(default)]
    pub generation: u64,
}

/// A service and what the watcher has of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Watched {
    /// The service; an empty group means all groups.
    pub key: ServiceKey,
    /// [`Snapshot::revision`] of the list it has; 0: none. It names the contents: lists of one revision are the same,
    /// whichever centre said them.
    #[serde(default)]
    pub revision: u64,
}

/// Whom a command text governs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum CommandScope {
    /// All services of a group.
    Group(String),
    /// All services of one application's agents.
    Agent(String),
}

/// A command text and what the watcher has of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WatchedText {
    /// Whose.
    pub scope: CommandScope,
    /// Revision of the text it has; 0: none.
    #[serde(default)]
    pub revision: u64,
}

/// `POST /v1/agent/sync`: a long poll for everything an agent follows. Answered at once when anything differs from
/// what it has, else when something changes or after `wait_ms`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Sync {
    /// Name of the agent.
    pub agent: String,
    /// The highest stamp that it took from any centre.
    pub seen: Stamp,
    /// Services it calls.
    #[serde(default)]
    pub services: Vec<Watched>,
    /// Commands it obeys.
    #[serde(default)]
    pub commands: Vec<WatchedText>,
    /// How long to wait for a change; at most 60,000.
    #[serde(default)]
    pub wait_ms: u64,
}

/// A service's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Listed {
    /// As it was asked for.
    pub key: ServiceKey,
    /// All of its instances that callers may use; the revision names the contents and does not grow.
    pub snapshot: Snapshot,
}

/// A command text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TextOf {
    /// Whose.
    pub scope: CommandScope,
    /// Revision of its last change.
    pub revision: u64,
    /// In the form that Motan's clients read; none when there is none (any more).
    pub text: Option<String>,
}

/// `PUT /v1/text`: a command text as a whole, for those who write texts instead of giving commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewText {
    /// Whose.
    pub scope: CommandScope,
    /// Text that is replaced; refused when another one holds by now.
    pub expected: Option<String>,
    /// The new one; none takes it away.
    pub text: Option<String>,
}

/// Answer to [`Sync`]: what differs, nothing when the time was over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SyncAnswer {
    /// State of the centre.
    pub stamp: Stamp,
    /// Lists that differ.
    #[serde(default)]
    pub services: Vec<Listed>,
    /// Texts that differ.
    #[serde(default)]
    pub commands: Vec<TextOf>,
}

/// How an agent is, for operators.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct AgentStatus {
    /// Version of its program.
    pub version: String,
    /// Application it serves.
    pub application: String,
    /// Zone it is in.
    pub zone: String,
    /// Kernel of its host.
    pub kernel: String,
    /// How connections are captured: `ebpf`, `iptables`, `port`.
    pub capture: String,
    /// Why, in words.
    pub capture_reason: String,
    /// Whether bytes move socket to socket: `on`, `auto`, `off`.
    pub redirect: String,
    /// Why it is off, or what it is limited by.
    pub redirect_reason: String,
    /// Configuration that its file says.
    pub config_wanted: u64,
    /// Configuration that is applied.
    pub config_applied: u64,
    /// Why they differ.
    pub config_error: Option<String>,
    /// Revision of what it took from the centre.
    pub seen: Stamp,
    /// Lists held back and why, one line each.
    pub held: Vec<String>,
    /// Seconds since it was started.
    pub uptime_seconds: f64,
    /// Memory of its process.
    pub resident_bytes: u64,
    /// Open connections.
    pub connections: u64,
}

/// Which side of a call was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Side {
    /// By the caller's agent: what callers feel, failed connections and retries included.
    #[default]
    Outbound,
    /// By the provider's agent.
    Inbound,
}

/// What was counted of one kind of calls within the reported window. The same calls may be told several times: all
/// together, by instance, by caller, by method. They are counted once in each.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Sample {
    /// Which side.
    pub side: Side,
    /// The service.
    pub service: String,
    /// Its group.
    pub group: String,
    /// `IP:PORT` that took the calls; empty: all of them together.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub instance: String,
    /// Application that called; empty where it is not known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub caller: String,
    /// Method; empty: all of them together.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub method: String,
    /// Calls that ended within the window.
    pub calls: u64,
    /// Of these, those that failed.
    pub failed: u64,
    /// Of these, those slower than the service's threshold (200 ms unless configured).
    pub slow: u64,
    /// Times of the calls that ended.
    pub times: Histogram,
    /// Calls in flight at the end of the window.
    pub in_flight: u64,
}

/// Connections or calls from one program to one service, for the dependency graph.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Edge {
    /// Application or program that calls.
    pub caller: String,
    /// The service that is called.
    pub service: String,
    /// Its group.
    pub group: String,
    /// `motan2`, `http1`, `tcp`, ...
    pub protocol: String,
    /// Calls, or connections of raw TCP, within the window.
    pub calls: u64,
    /// Of these, those that failed.
    pub failed: u64,
    /// `redirect`, `joined`, `kernel` or `tcp`: how most of its bytes travel.
    pub way: String,
}

/// `POST /v1/agent/report`: what an agent saw since its last report. Losing one loses figures, nothing else.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Report {
    /// Name of the agent.
    pub agent: String,
    /// Length of the window in seconds; its end is the moment of arrival, so that no clock of an agent counts.
    pub window_seconds: f64,
    /// Grows by one with each report, so that one that arrives twice counts once.
    pub sequence: u64,
    /// How the agent is.
    pub status: AgentStatus,
    /// Figures.
    pub samples: Vec<Sample>,
    /// Who called whom.
    pub edges: Vec<Edge>,
}
