//! What the API answers, as JSON: written by the agent, read by the command line and by scripts.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::metrics::window::Lately;
pub use crate::metrics::{LiveRow, LostCall, Story};

/// `GET /stat`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stat {
    /// The agent itself.
    pub agent: Agent,
    /// How long rates, shares and percentiles look back; short of ten seconds only after a start.
    pub window_seconds: f64,
    /// Services in the order of the configuration.
    pub services: Vec<Service>,
    /// Who used services with `path: kernel`.
    #[serde(default)]
    pub callers: Vec<Caller>,
}

/// What programs of one control group did with one endpoint of a service with `path: kernel`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Caller {
    /// Name of the service.
    pub service: String,
    /// The endpoint; none for connects that `allow` and `deny` refused, and for endpoints that are gone.
    pub endpoint: Option<SocketAddr>,
    /// Control group of the programs; `gone` for all that are gone.
    pub caller: String,
    /// Connects begun.
    pub connects: u64,
    /// Connects refused by `allow` and `deny`.
    pub refused: u64,
    /// Connects that were never established.
    pub failed: u64,
    /// Connections that exist now.
    pub active: u64,
    /// Payload to the endpoint, of connections that have ended.
    pub sent_bytes: u64,
    /// Payload from the endpoint, of connections that have ended.
    pub received_bytes: u64,
    /// Time that connections lasted, of those that have ended.
    pub duration_seconds: f64,
}

/// The agent itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Agent {
    /// Its name on the host.
    pub name: String,
    /// Its application.
    pub application: String,
    /// Version of the program.
    pub version: String,
    /// Whether it serves.
    pub ready: bool,
    /// Time since it started.
    pub uptime_seconds: f64,
    /// How connections come to it: `ebpf`, `iptables` or `port`.
    pub capture: String,
    /// Why so.
    pub capture_reason: String,
    /// Generation of the configuration in use.
    pub generation: u64,
    /// Connections of programs held now.
    pub connections: usize,
}

/// One service of the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Service {
    /// Its name.
    pub service: String,
    /// Group asked for.
    pub group: String,
    /// Version asked for.
    pub version: String,
    /// `outbound`: local programs call it; `inbound`: they provide it.
    pub direction: String,
    /// Protocol towards endpoints.
    pub protocol: String,
    /// Why the list of endpoints is old, if it is.
    pub stale: Option<String>,
    /// How its calls go.
    #[serde(flatten)]
    pub figures: Figures,
    /// Payload bytes from callers since the start.
    pub request_bytes: u64,
    /// Payload bytes to callers since the start.
    pub response_bytes: u64,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// What its filters count, those that count anything.
    #[serde(default)]
    pub filters: Vec<Filter>,
}

/// What one filter of a service counts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Filter {
    /// Its name.
    pub filter: String,
    /// Its figures.
    pub figures: Vec<FilterFigure>,
}

/// A figure of a filter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FilterFigure {
    /// What happened so often, or what stands so.
    pub name: String,
    /// The method, endpoint or target it is about; empty for all of the service.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub of: String,
    /// Count since the service was configured, or the value of now.
    pub value: u64,
}

/// One endpoint of a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Group it belongs to.
    pub group: String,
    /// Relative share of calls.
    pub weight: u32,
    /// Whether it may be picked.
    pub available: bool,
    /// `up`, `passed over` (for a while, by the connect hooks), `barred` (for a while, by a filter), `out`, or
    /// `weight 0`.
    pub state: String,
    /// Why it is out.
    pub reason: Option<String>,
    /// Time since it left or came back; absent when it never left.
    pub since_seconds: Option<f64>,
    /// How attempts on it go.
    #[serde(flatten)]
    pub figures: Figures,
}

/// How calls (of a service) or attempts (on an endpoint) go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Begun per second, within the window.
    pub rate: f64,
    /// Share that ended well, 0 to 1, within the window; absent when none ended.
    pub success: Option<f64>,
    /// Median time within the window.
    pub p50_seconds: Option<f64>,
    /// 99th percentile.
    pub p99_seconds: Option<f64>,
    /// 99.9th percentile.
    pub p999_seconds: Option<f64>,
    /// Not ended yet.
    pub in_flight: u64,
    /// Begun since the start.
    pub started: u64,
    /// Ended badly since the start.
    pub failed: u64,
}

impl Figures {
    /// From a window and the counters of now.
    pub fn new(lately: &Lately, in_flight: u64, started: u64, failed: u64) -> Self {
        let quantile = |q| lately.latency.quantile(q).map(|d: Duration| d.as_secs_f64());
        Self {
            rate: lately.rate,
            success: lately.success,
            p50_seconds: quantile(0.5),
            p99_seconds: quantile(0.99),
            p999_seconds: quantile(0.999),
            in_flight,
            started,
            failed,
        }
    }
}

/// `GET /endpoints`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Endpoints {
    /// One row for each endpoint of each service.
    pub endpoints: Vec<EndpointRow>,
    /// Services whose list of endpoints is old or empty.
    pub troubles: Vec<Trouble>,
}

/// One endpoint with its service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndpointRow {
    /// Name of the service.
    pub service: String,
    /// `outbound` or `inbound`.
    pub direction: String,
    /// Protocol towards it.
    pub protocol: String,
    /// Why the list it is in is old, if it is.
    pub stale: Option<String>,
    /// The endpoint.
    #[serde(flatten)]
    pub endpoint: Endpoint,
}

/// What is wrong with a service's list of endpoints.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trouble {
    /// Service, with group and version.
    pub service: String,
    /// One sentence.
    pub message: String,
}

/// `GET /sockets`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sockets {
    /// Connections of programs, oldest first.
    pub sockets: Vec<LiveRow>,
}

/// `GET /explain`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explained {
    /// Recent calls, oldest first.
    pub stories: Vec<Story>,
    /// Connections that exist now whose last call was of this service.
    pub connections: Vec<LiveRow>,
    /// What is wrong with the service itself.
    pub troubles: Vec<String>,
    /// There is no service of this name, or none at this address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<Unknown>,
    /// Calls that asked for it and reached none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<LostCall>,
}

/// What there is instead of a service that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unknown {
    /// What was asked for.
    pub wanted: String,
    /// What is looked for to find it.
    pub rule: String,
    /// Services whose names are like it, the nearest first.
    pub near: Vec<String>,
    /// All services, or the first of them.
    pub known: Vec<String>,
    /// Services that are not listed.
    pub more: usize,
    /// What a call for it is answered.
    pub answer: String,
}

/// `GET /enrolled`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Enrolled {
    /// How connections come to the agent; only `ebpf` enrolls.
    pub capture: String,
    /// Entries of the configuration, then of commands.
    pub enrolled: Vec<EnrolledRow>,
    /// Network namespaces besides its own in which the agent listens.
    pub namespaces: Vec<Space>,
    /// Network namespaces that could not be entered, and why.
    pub refused: Vec<String>,
}

/// One entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EnrolledRow {
    /// Who, as commands write it.
    pub what: String,
    /// `config` or `command`.
    pub source: String,
    /// Taken back by command, though the configuration has it.
    pub released: bool,
    /// For how long.
    pub since_seconds: f64,
    /// Time left to confirm it; absent when it need not be.
    pub confirm_within_seconds: Option<f64>,
    /// Control groups or namespaces that it stands for now.
    pub matches: Vec<String>,
    /// What an operator should know about it.
    pub note: Option<String>,
}

/// A network namespace in which the agent listens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Space {
    /// Its number in the kernel.
    pub cookie: u64,
    /// The file by which it was found.
    pub found_as: String,
    /// The agent's listeners there.
    pub listeners: Vec<SocketAddr>,
    /// Why it does not listen on both addresses.
    pub trouble: Option<String>,
}

/// `GET /names`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Names {
    /// Names in the order of the configuration; none while names are off.
    pub names: Vec<Name>,
}

/// One name under `.mesh`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Name {
    /// The name.
    pub name: String,
    /// IPv4 address, if the service has one.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address, if the service has one.
    pub ipv6: Option<Ipv6Addr>,
    /// Port in SRV answers.
    pub port: u16,
    /// Service, with group and version.
    pub service: String,
}

/// `GET /config`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// The file.
    pub path: String,
    /// 1 at start, one more with every reload that was applied.
    pub generation: u64,
    /// When it was loaded, seconds since 1970 (UTC).
    pub loaded_at_seconds: f64,
    /// What the last reload failed for.
    pub last_error: Option<String>,
    /// How connections come to the agent.
    pub capture: String,
    /// Why this way.
    pub capture_reason: String,
}

/// `GET /version`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Version {
    /// Version of the running agent.
    pub version: String,
}

/// Answer to a command that was done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Done {
    /// What was done.
    pub done: String,
}

/// Any answer that is not 2xx.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Error {
    /// What is wrong and what to do.
    pub error: String,
}

/// `GET /registrations`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Registrations {
    /// Whether callers from elsewhere may come.
    pub available: bool,
    /// Each provided service in each of its registries.
    pub registrations: Vec<Registration>,
}

/// One provided service in one registry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Registration {
    /// Name of the service.
    pub service: String,
    /// Group it is provided in.
    pub group: String,
    /// Version it is provided as.
    pub version: String,
    /// What callers speak.
    pub protocol: String,
    /// Name of the registry in the configuration.
    pub registry: String,
    /// Where callers dial.
    pub address: String,
    /// Share of calls relative to other providers.
    pub weight: u32,
    /// What the registry holds: `available`, `unavailable`, `pending` or `gone`.
    pub state: String,
    /// Why it is pending.
    pub why: Option<String>,
}

/// `GET /commands`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Commands {
    /// What stands in registries.
    pub texts: Vec<CommandText>,
    /// What holds for services that local programs call.
    pub services: Vec<SteeredService>,
    /// What this agent undoes later.
    pub undo: Vec<Undo>,
}

/// The commands of one scope in one registry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CommandText {
    /// Name of the registry in the configuration.
    pub registry: String,
    /// `group NAME` or `application NAME`.
    pub scope: String,
    /// As it is written; `null` when there is none.
    pub text: Option<String>,
    /// Why it may be old.
    pub stale: Option<String>,
    /// In the order in which they are tried.
    pub commands: Vec<Command>,
    /// What is left out and why.
    pub troubles: Vec<String>,
}

/// One command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Command {
    /// The lowest that matches wins.
    pub index: Option<i64>,
    /// 0 traffic, 1 degrade, 2 switchers.
    pub kind: u8,
    /// Which services it is about.
    pub pattern: String,
    /// Groups, each possibly with `:WEIGHT`.
    pub groups: Vec<String>,
    /// Rules by address.
    pub routes: Vec<String>,
    /// Switchers as `NAME:VALUE`.
    pub switchers: Vec<String>,
    /// For people.
    pub remark: String,
}

/// What commands make of one service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SteeredService {
    /// Its name.
    pub service: String,
    /// Its own group.
    pub group: String,
    /// Protocol towards endpoints.
    pub protocol: String,
    /// The command in force; `null` when there is none.
    pub by: Option<String>,
    /// Groups in use; the own one when empty.
    pub groups: Vec<String>,
    /// Why its calls are answered at once with an error.
    pub degraded: Option<String>,
    /// What is ordered and not done.
    pub troubles: Vec<String>,
}

/// A command that is undone later.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Undo {
    /// `group NAME`.
    pub scope: String,
    /// Which service it is about.
    pub service: String,
    /// 0 traffic, 1 degrade.
    pub kind: u8,
    /// Time left.
    pub in_seconds: f64,
}

/// `POST /switch?dry_run`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Preview {
    /// The service.
    pub service: String,
    /// Its calls per second through this agent now.
    pub rate: f64,
    /// Endpoints of now and then.
    pub rows: Vec<PreviewRow>,
    /// What is odd.
    pub notes: Vec<String>,
}

/// What one endpoint gets and would get.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PreviewRow {
    /// Its group.
    pub group: String,
    /// Where it listens.
    pub address: String,
    /// Attempts per second now.
    pub rate_now: f64,
    /// Calls per second then.
    pub rate_then: f64,
    /// Share of all calls then, 0 to 1.
    pub share: f64,
}
