//! What the agent is told: typed, checked, complete. `docs/config.md` has every key.
//!
//! `node` turns text into a tree with positions, `keys` is the table of all keys, `read` and `values`
//! read one against the other, `load` and `services` fill the structs below, `checks` compares parts
//! with each other. Another file format would fill the same structs.

mod center;
mod checks;
mod enroll;
mod exempt;
mod governance;
mod graphite;
mod http_proxy;
mod instances;
mod keys;
mod kinds;
mod load;
pub mod motan;
mod node;
mod problem;
mod read;
mod services;
mod values;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

pub use self::{
    center::Center,
    enroll::{Enroll, Who},
    exempt::{Exempt, Network},
    governance::{Advertise, HoldBack},
    graphite::{Graphite, GraphiteForm, Series},
    http_proxy::{HttpDomain, HttpProxy},
    keys::tables,
    load::{Base, Loaded, load, load_with, parse},
    problem::{ConfigErrors, Problem},
};
pub(crate) use self::{
    exempt::network,
    instances::{Instances, instances, registry_file},
    node::{Data, Node},
    problem::Report,
    values::duration,
};
use crate::{call::Text, kind::Value};

/// The whole configuration of one agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Name of this agent on its host; two agents with different names do not share pins.
    pub name: String,
    /// Application name given to callees when the caller names none.
    pub application: Text,
    /// Where the file lies; relative paths start here.
    pub base_dir: PathBuf,
    /// Ports of the agent itself.
    pub ports: Ports,
    /// How connections come to the agent.
    pub capture: Capture,
    /// Protection of the agent from its peers.
    pub limits: Limits,
    /// Worker threads of the data runtime.
    pub threads: usize,
    /// Where the access log goes.
    pub access_log: AccessLog,
    /// Servers that are sent figures.
    pub graphite: Vec<Graphite>,
    /// How many series there may be.
    pub series: Series,
    /// The governance centre, if there is one.
    pub center: Option<Center>,
    /// How long a stop may take before the rest is cut.
    pub drain: Duration,
    /// Address of this host that callers of its services are told; found out when `None`.
    pub advertise: Option<IpAddr>,
    /// Failure domain that this host is in; empty when it is in none.
    pub zone: Text,
    /// Folder of the snapshot files; none are kept when `None`.
    pub snapshots: Option<PathBuf>,
    /// When a list that a registry says is not believed at once.
    pub hold_back: HoldBack,
    /// Registered services stay unavailable after a start until the operator says otherwise.
    pub start_unavailable: bool,
    /// File with the number of the process while the agent runs.
    pub pidfile: Option<PathBuf>,
    /// Folder for what the agent was told by management calls and shall know after a crash.
    pub runtime_dir: Option<PathBuf>,
    /// Switchers that exist from the start, and how they stand.
    pub switchers: BTreeMap<String, bool>,
    /// Registries by name.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// The HTTP forward proxy, if there is one.
    pub http_proxy: Option<HttpProxy>,
    /// Services that local programs call.
    pub referers: Vec<Referer>,
    /// Services that local programs provide.
    pub services: Vec<Service>,
}

/// Ports of the agent itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Captured outbound connections arrive here, on loopback.
    pub outbound: u16,
    /// Captured inbound connections arrive here.
    pub inbound: u16,
    /// Questions for names arrive here, on loopback, UDP and TCP.
    pub dns: u16,
    /// Admin API and `/metrics`.
    pub admin: SocketAddr,
    /// First and last port for the admin API, whose first free one is taken instead of that of `admin`.
    pub admin_range: Option<(u16, u16)>,
    /// Unix socket of the admin API, which has no TCP port then.
    pub admin_socket: Option<PathBuf>,
    /// Programs dial every service here that is subscribed while the agent runs.
    pub forward: Option<SocketAddr>,
    /// Services that are registered while the agent runs are exported here.
    pub reverse: Option<SocketAddr>,
    /// The admin API answers motan-go's management calls as well.
    pub motan_management: bool,
    /// Its pages below `/debug` are answered as well.
    pub debug_pages: bool,
}

/// How connections come to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// Which way.
    pub mode: CaptureMode,
    /// Who is captured. Nothing by default.
    pub enroll: Vec<Enroll>,
    /// Control group where the programs for users and network namespaces are attached; the root of the mount
    /// of cgroup v2 when `None`.
    pub root: Option<PathBuf>,
    /// Connects go directly when the agent showed no life for this long.
    pub stale_after: Duration,
    /// Room in the kernel's tables, in connections.
    pub max_connections: u32,
    /// Where bpffs is mounted (or will be).
    pub bpffs: PathBuf,
    /// Whether services have names under `.mesh`.
    pub dns: bool,
    /// Which program writes the rules of the mode `iptables`.
    pub iptables: Iptables,
    /// What those rules leave alone.
    pub exempt: Exempt,
    /// Whether bytes go past TCP.
    pub redirect: Redirect,
}

impl Capture {
    /// Whether programs may find services by name, should the host be able to capture.
    pub fn has_names(&self) -> bool {
        let captures = match self.mode {
            // Programs may be enrolled later.
            CaptureMode::Ebpf => true,
            CaptureMode::Auto => !self.enroll.is_empty(),
            CaptureMode::Iptables | CaptureMode::Port => false,
        };
        self.dns && captures
    }
}

/// Which way connections come to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureMode {
    /// eBPF where the host can, else iptables, else port; says why.
    Auto,
    /// Connect hooks; failing to install them is fatal.
    Ebpf,
    /// Rules that redirect connects; failing to install them is fatal.
    Iptables,
    /// Programs dial the agent's own listeners.
    Port,
}

/// Which program writes the rules of the mode `iptables`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Iptables {
    /// `nft` where the host can, else `iptables`.
    #[default]
    Auto,
    /// `iptables-restore` and `ip6tables-restore`.
    Iptables,
    /// `nft`, in a table of its own.
    Nft,
}

/// Whether bytes between a program and the agent go from socket to socket, past TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Redirect {
    /// Where this host can and the program is known not to notice.
    #[default]
    Auto,
    /// Wherever this host can.
    On,
    /// Never.
    Off,
}

/// Protection of the agent from its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections held at once, all listeners together.
    pub connections: usize,
    /// File descriptors kept free so that admin answers and logs rotate in a shortage.
    pub reserved_descriptors: usize,
    /// HTTP request head, bytes.
    pub header_bytes: usize,
    /// Time to receive a complete HTTP head.
    pub header_timeout: Duration,
    /// Motan2 metadata and body, bytes each.
    pub content_bytes: usize,
    /// Calls in flight on one multiplexed connection.
    pub calls_per_connection: usize,
    /// How long the first bytes of an undeclared protocol may dribble before it is taken for TCP.
    pub detect_timeout: Duration,
    /// A connection without a byte in either direction for this long is closed; zero means never.
    pub idle_timeout: Duration,
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// File; standard output when `None`.
    pub path: Option<PathBuf>,
    /// Lines waiting for the disk before further ones are dropped and counted.
    pub buffer_lines: usize,
    /// When the file is put aside and a new one begun.
    pub rotate: Rotate,
}

/// When a log's file is put aside under the name of its hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rotate {
    /// Others do that, and send SIGHUP.
    #[default]
    Never,
    /// `NAME.log` of an hour that is over becomes `NAME-YYYYMMDD-HH.log`.
    Hourly,
}

/// One registry by name.
#[derive(Clone, Debug, PartialEq)]
pub struct RegistryConfig {
    /// A name in `registry::kinds`.
    pub kind: String,
    /// The kind's own options.
    pub options: Value,
}

/// Where an agent's listener for one service stands, as the programs see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VirtualAddress {
    /// Address that programs connect to; it need not exist anywhere.
    pub ip: IpAddr,
    /// Port; `None` means every port.
    pub port: Option<u16>,
}

/// A service that local programs call.
#[derive(Clone, Debug, PartialEq)]
pub struct Referer {
    /// Service, group and version asked for.
    pub key: model::ServiceKey,
    /// A name in `protocol::KINDS`; detected from the first bytes when `None`.
    pub protocol: Option<String>,
    /// Destinations that are captured for this service.
    pub addresses: Vec<VirtualAddress>,
    /// Port mode: programs dial this address. Several services may share one.
    pub listen: Option<SocketAddr>,
    /// Programs dial this unix socket, instead of or beside an address. Several services may share one.
    pub listen_unix: Option<PathBuf>,
    /// What happens to connects when the agent is gone.
    pub on_agent_loss: OnAgentLoss,
    /// Who is on the way of the bytes.
    pub path: CallPath,
    /// [`CallPath::Kernel`]: who may connect; everyone when empty.
    pub allow: Vec<Caller>,
    /// [`CallPath::Kernel`]: who may not connect, whatever `allow` says.
    pub deny: Vec<Caller>,
    /// Names of registries to ask, merged in order.
    pub registries: Vec<String>,
    /// Endpoints written into the configuration itself (registry `direct`).
    pub endpoints: Vec<model::Instance>,
    /// Groups used together instead of the own one while no command says otherwise, each possibly with a
    /// weight (`idc-a:3`).
    pub mix_groups: Vec<String>,
    /// Application told to callees of this service; the agent's when `None`.
    pub application: Option<Text>,
    /// How calls are made.
    pub cluster: Cluster,
}

/// What happens to connects when the agent is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnAgentLoss {
    /// They go where the program asked, as if there were no mesh.
    #[default]
    Direct,
    /// They are refused: for services that must not be called unfiltered.
    Refuse,
}

/// Who is on the way of a connection's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CallPath {
    /// The agent.
    #[default]
    Agent,
    /// Nobody: the connect hook picks an endpoint and connects the program to it.
    Kernel,
}

/// Callers told apart by the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Processes of this user, a number of the initial user namespace.
    Uid(u32),
    /// Processes in this control group (v2) and below it.
    Cgroup(PathBuf),
}

/// A service that a local program provides.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Service, group and version provided.
    pub key: model::ServiceKey,
    /// A name in `protocol::KINDS`; detected from the first bytes when `None`.
    pub protocol: Option<String>,
    /// Address the mesh listens on for callers. Several services may share one. `None` only with `inbound`.
    pub export: Option<SocketAddr>,
    /// The program's own addresses at which callers from elsewhere are brought to the agent; `0.0.0.0` stands
    /// for every local address.
    pub inbound: Vec<VirtualAddress>,
    /// Address of the local program, the only endpoint.
    pub local: SocketAddr,
    /// Where and how it is made known.
    pub registration: Registration,
    /// How calls are made.
    pub cluster: Cluster,
}

/// Where and how a provided service is made known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Names of registries to register with; a service in none is not registered.
    pub registries: Vec<String>,
    /// Where callers dial; the agent's `advertise` with the port of `export` when `None`.
    pub advertise: Option<Advertise>,
    /// Share of calls relative to its siblings.
    pub weight: u32,
    /// Failure domain; the agent's when `None`.
    pub zone: Option<String>,
    /// Further parameters, by the names that callers know.
    pub metadata: BTreeMap<String, String>,
}

/// How calls to one service are made.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Time for a whole call, retries included, up to the head of the answer. `None`: the protocol's default.
    pub timeout: Option<Duration>,
    /// Range in which a timeout that came with the call is obeyed.
    pub timeout_range: Option<(Duration, Duration)>,
    /// Time to establish a connection to an endpoint.
    pub connect_timeout: Duration,
    /// A name in `ha::KINDS` with its options.
    pub ha: Named,
    /// A name in `lb::KINDS` with its options.
    pub lb: Named,
    /// Names in `filter::KINDS` with their options, outermost first.
    pub filters: Vec<Named>,
    /// Further tries after the first.
    pub retries: u32,
    /// Every method may be sent twice.
    pub idempotent: bool,
    /// Exceptions for single methods, by name.
    pub methods: BTreeMap<String, Method>,
    /// Connections to one endpoint, for protocols that multiplex.
    pub connections: usize,
    /// Idle connections kept to one endpoint, for protocols that do not multiplex.
    pub idle_connections: usize,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// Calls in flight to one endpoint before the balancer passes it over.
    pub max_in_flight: usize,
    /// When an endpoint leaves and how it comes back.
    pub eject: Eject,
    /// Motan2: bodies longer than this are compressed towards the endpoint; zero means never.
    pub gzip_over: usize,
    /// A name in `protocol::UPSTREAMS` with its options: what endpoints speak. `None`: what callers speak.
    pub upstream: Option<Named>,
    /// The endpoint, a local program, listens on this unix socket; its address only stands for it.
    pub local_unix: Option<PathBuf>,
    /// The endpoint, a local program, sees the caller as its peer. Only of services that local programs provide.
    pub client_address: bool,
}

/// A kind chosen by name, with its own options.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// A name in the `KINDS` table.
    pub name: String,
    /// The kind's own options; `null` when none were given.
    pub options: Value,
}

impl Named {
    /// `name` without options.
    pub fn plain(name: &str) -> Self {
        Self { name: name.to_owned(), options: Value::Null }
    }
}

/// What one method does differently.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Method {
    /// Instead of the service's.
    pub timeout: Option<Duration>,
    /// Instead of the service's.
    pub retries: Option<u32>,
    /// Instead of the service's.
    pub idempotent: Option<bool>,
}

/// When an endpoint leaves and how it comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eject {
    /// Failed connects in a row.
    pub connect_failures: u32,
    /// Failed calls in a row.
    pub failures: u32,
    /// Pause before the first probe; doubles with every failed one.
    pub pause: Duration,
    /// The longest pause.
    pub max_pause: Duration,
}

impl Config {
    /// Whether any service captures callers from elsewhere.
    pub fn has_inbound(&self) -> bool {
        self.services.iter().any(|s| !s.inbound.is_empty())
    }

    /// Whether any program is to see the callers that the agent calls it for.
    pub fn has_introduced(&self) -> bool {
        self.services.iter().any(|s| s.cluster.client_address)
    }
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            outbound: 15001,
            inbound: 15006,
            dns: 15053,
            admin: SocketAddr::from(([127, 0, 0, 1], 8002)),
            admin_range: None,
            admin_socket: None,
            forward: None,
            reverse: None,
            motan_management: false,
            debug_pages: false,
        }
    }
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            mode: CaptureMode::Auto,
            enroll: Vec::new(),
            root: None,
            // Killed or stopped agents must be bypassed within a second; the beat comes every 100 ms.
            stale_after: Duration::from_millis(900),
            max_connections: 65_536,
            bpffs: PathBuf::from("/sys/fs/bpf"),
            dns: true,
            iptables: Iptables::Auto,
            exempt: Exempt::default(),
            redirect: Redirect::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8192,
            reserved_descriptors: 64,
            header_bytes: 64 * 1024,
            header_timeout: Duration::from_secs(10),
            // motan-go's `maxContentLength`.
            content_bytes: 10 * 1024 * 1024,
            calls_per_connection: 1024,
            detect_timeout: Duration::from_millis(200),
            idle_timeout: Duration::from_secs(3600),
        }
    }
}

impl Default for AccessLog {
    fn default() -> Self {
        // motan-go's `log_buffer_size`.
        Self { path: None, buffer_lines: 5000, rotate: Rotate::Never }
    }
}

impl Default for Eject {
    fn default() -> Self {
        Self {
            connect_failures: 2,
            failures: 10,
            pause: Duration::from_millis(500),
            max_pause: Duration::from_secs(30),
        }
    }
}

impl Default for Registration {
    fn default() -> Self {
        Self {
            registries: Vec::new(),
            advertise: None,
            weight: model::DEFAULT_WEIGHT,
            zone: None,
            metadata: BTreeMap::new(),
        }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            timeout: None,
            timeout_range: None,
            connect_timeout: Duration::from_millis(250),
            ha: Named::plain("failover"),
            lb: Named::plain("p2c"),
            filters: vec![Named::plain("metrics")],
            retries: 1,
            idempotent: false,
            methods: BTreeMap::new(),
            connections: 2,
            idle_connections: 128,
            idle_timeout: Duration::from_secs(60),
            max_in_flight: 10_000,
            eject: Eject::default(),
            gzip_over: 0,
            upstream: None,
            local_unix: None,
            client_address: false,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "sockmesh".to_owned(),
            application: Text::from_static("sockmesh"),
            base_dir: PathBuf::from("."),
            ports: Ports::default(),
            capture: Capture::default(),
            limits: Limits::default(),
            threads: std::thread::available_parallelism().map_or(2, usize::from),
            access_log: AccessLog::default(),
            graphite: Vec::new(),
            series: Series::default(),
            center: None,
            drain: Duration::from_secs(10),
            advertise: None,
            zone: Text::default(),
            snapshots: None,
            hold_back: HoldBack::default(),
            start_unavailable: false,
            pidfile: None,
            runtime_dir: None,
            switchers: BTreeMap::new(),
            registries: BTreeMap::new(),
            http_proxy: None,
            referers: Vec::new(),
            services: Vec::new(),
        }
    }
}
