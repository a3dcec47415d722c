//! Pages of the console and of the command line.

use serde::{Deserialize, Serialize};

use super::{AgentStatus, CommandRecord, Figures, Pool, Stamp, TextOf};
use crate::ServiceKey;

/// A part of a list, in the order of its keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Page<T> {
    /// At most as many as were asked for.
    pub items: Vec<T>,
    /// For `after=` of the next page; none: this was the last.
    pub next: Option<String>,
    /// How many there are in all, where that is known.
    pub total: Option<u64>,
}

/// Every answer that is no success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// Stable word for programs: `bad_request`, `unauthenticated`, `forbidden`, `not_found`, `conflict`,
    /// `no_method`, `too_large`, `too_many`, `read_only`, `unavailable`, `internal`.
    pub code: String,
    /// What is wrong, with the thing and the value.
    pub message: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

/// What a person or token may do, each includes the ones before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Role {
    /// Reads.
    Viewer,
    /// Gives commands.
    Operator,
    /// Changes rules, policies and accounts.
    Admin,
}

/// `GET /v1/me`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Me {
    /// Who.
    pub name: String,
    /// Pattern of service groups (`*`, `idc-a`) and role there.
    pub roles: Vec<(String, Role)>,
    /// For the header `x-sockmesh-csrf` of every call that changes something from a browser's session.
    pub csrf: Option<String>,
    /// Whether anyone may do anything, because no credentials are configured.
    pub open: bool,
    /// Version of the centre.
    pub version: String,
}

/// A person with a password of this centre.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UserRow {
    /// Who.
    pub name: String,
    /// See [`Me::roles`].
    pub roles: Vec<(String, Role)>,
}

/// A token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenRow {
    /// Names it.
    pub id: String,
    /// What it is for.
    pub remark: String,
    /// Patterns of agent names that it may speak for; empty: it is no agent's token.
    pub agents: Vec<String>,
    /// Patterns of services that these agents may register; empty: any.
    pub services: Vec<String>,
    /// See [`Me::roles`].
    pub roles: Vec<(String, Role)>,
    /// When it was made.
    pub at_ms: u64,
    /// When it ends.
    pub until_ms: Option<u64>,
    /// Whose own it is: it ends with that account; empty: the site's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
}

/// `GET /v1/services`: a service in one group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServiceRow {
    /// Service, group and version.
    pub key: ServiceKey,
    /// Protocols that its instances speak.
    pub protocols: Vec<String>,
    /// Instances known.
    pub instances: u32,
    /// Those that callers may use.
    pub available: u32,
    /// Of the last ten seconds, seen by callers.
    pub figures: Figures,
    /// See [`Pool::water_percent`].
    pub water_percent: Option<f64>,
    /// See [`Pool::level`].
    pub level: String,
    /// Alerts that fire.
    pub alerts: u32,
    /// Commands in force.
    pub commands: u32,
}

/// An instance of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InstanceRow {
    /// `IP:PORT`.
    pub address: String,
    /// Its group.
    pub group: String,
    /// Weight in force.
    pub weight: u32,
    /// Zone.
    pub zone: String,
    /// Version.
    pub version: String,
    /// Agent that registered it.
    pub agent: String,
    /// `available`, `unavailable` (its agent says so), `out` (an operator took it out), `draining`, `lost` (no
    /// heartbeat; kept until its time is over).
    pub state: String,
    /// Who took it out and why.
    pub reason: String,
    /// Since when it is registered.
    pub since_ms: u64,
    /// Time since its last heartbeat.
    pub heard_ms_ago: u64,
    /// Of the last ten seconds.
    pub figures: Figures,
    /// What it can take.
    pub capacity: Option<f64>,
    /// Further metadata.
    pub metadata: std::collections::BTreeMap<String, String>,
}

/// `POST /v1/instance/out`, `/in`, `/weight`, `/drain`: what an operator says of one instance. It holds until it is
/// taken back (`/in`; `/weight` without a weight), over restarts and new registrations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InstanceOrder {
    /// Service and group.
    pub key: ServiceKey,
    /// `IP:PORT`.
    pub address: String,
    /// Why, for those who come later; required for `out` and `drain`.
    #[serde(default)]
    pub reason: String,
    /// For `/weight`: the new one, 0 to 100,000; none gives it back its own.
    #[serde(default)]
    pub weight: Option<u32>,
}

/// `GET /v1/registry`: how the registry is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct RegistryPage {
    /// Where it stands.
    pub stamp: Stamp,
    /// Name of this centre.
    pub center: String,
    /// Whether it leads.
    pub leads: bool,
    /// Name of the one that leads.
    pub leader: String,
    /// Services, in all groups.
    pub services: u32,
    /// Instances known.
    pub instances: u32,
    /// By state, see [`InstanceRow::state`].
    pub states: std::collections::BTreeMap<String, u32>,
    /// Agents that registered something.
    pub agents: u32,
    /// Long polls that wait now.
    pub watchers: u32,
    /// By group: services and instances.
    pub groups: Vec<RegistryGroup>,
    /// Command texts that there are.
    pub texts: Vec<TextOf>,
    /// An agent that took a higher stamp than this centre has: it has lost data or was restored from a backup.
    pub ahead: Option<(String, Stamp)>,
}

/// A group of [`RegistryPage`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RegistryGroup {
    /// Its name.
    pub group: String,
    /// Services that have an instance in it.
    pub services: u32,
    /// Their instances.
    pub instances: u32,
}

/// An application that calls a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CallerRow {
    /// The application.
    pub caller: String,
    /// Of the last ten seconds.
    pub figures: Figures,
    /// How its bytes travel: `redirect`, `joined`, `kernel`, `tcp`.
    pub way: String,
}

/// `GET /v1/service`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServicePage {
    /// The row of the list.
    pub row: ServiceRow,
    /// Groups in which the service exists.
    pub groups: Vec<String>,
    /// Its instances in this group.
    pub instances: Vec<InstanceRow>,
    /// Who calls it.
    pub callers: Vec<CallerRow>,
    /// Commands in force or proposed.
    pub commands: Vec<CommandRecord>,
    /// Its capacity.
    pub pool: Option<Pool>,
}

/// `GET /v1/graph`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Graph {
    /// Applications and services.
    pub nodes: Vec<GraphNode>,
    /// Who calls whom.
    pub edges: Vec<GraphEdge>,
}

/// A node of the graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GraphNode {
    /// Names it in edges.
    pub id: String,
    /// `application` or `service`.
    pub kind: String,
    /// For people.
    pub name: String,
    /// Group of a service.
    pub group: String,
    /// Of calls to it.
    pub figures: Figures,
}

/// An edge of the graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GraphEdge {
    /// Caller.
    pub from: String,
    /// Callee.
    pub to: String,
    /// Calls a second.
    pub rate: f64,
    /// Share that went well.
    pub success: Option<f64>,
    /// `motan2`, `http1`, `tcp`, ...
    pub protocol: String,
    /// `redirect`, `joined`, `kernel` or `tcp`.
    pub way: String,
}

/// `GET /v1/agents`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AgentRow {
    /// `HOST/NAME`.
    pub agent: String,
    /// As it said.
    pub status: AgentStatus,
    /// Time since its last report.
    pub heard_ms_ago: u64,
    /// It has not been heard of for three reports.
    pub lost: bool,
    /// Services it registered.
    pub registrations: u32,
    /// Newest revision that it should have taken, of what it watches.
    pub wanted_revision: u64,
    /// The one it took.
    pub applied_revision: u64,
}

/// `GET /v1/audit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditEntry {
    /// Grows with every entry.
    pub id: u64,
    /// When.
    pub at_ms: u64,
    /// Who.
    pub actor: String,
    /// From where.
    pub from: String,
    /// What: `command.create`, `instance.out`, `login`, ...
    pub what: String,
    /// On which thing.
    pub target: String,
    /// `ok`, or why it was refused.
    pub outcome: String,
    /// What was asked, secrets left out.
    pub detail: serde_json::Value,
}

/// One event of `GET /v1/live` (server-sent events, every second): what changed since the last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Event {
    /// Time of the centre.
    pub at_ms: u64,
    /// Figures by `group/service`, those that changed.
    pub figures: std::collections::BTreeMap<String, Figures>,
    /// Revision of registrations; a page of instances is read again when it differs.
    pub registry: u64,
    /// Revision of commands.
    pub commands: u64,
    /// Alerts that fire.
    pub alerts: u32,
}

/// `GET /v1/store`: what a centre keeps its data in, and how that is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StoreStatus {
    /// `embedded`, `etcd` or `memory`.
    pub kind: String,
    /// See [`Stamp`].
    pub epoch: u64,
    /// See [`Stamp`].
    pub revision: u64,
    /// Whether this centre leads: gives commands' steps, decides, scales, alerts.
    pub leads: bool,
    /// Name of the one that does, where it is known.
    pub leader: String,
    /// Why nothing is written at the moment, with the remedy.
    pub trouble: Option<String>,
}
