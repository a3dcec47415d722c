//! Types, constants and pure logic shared by the kernel half and the agent.
//!
//! Everything that can be decided without a kernel context is decided here, in functions that run in unit
//! tests on the host. Shared types hold integers only, have no hidden padding (asserted when they are
//! compiled) and keep addresses and ports in network byte order.
#![cfg_attr(not(test), no_std)]

mod asked;
pub mod balance;
mod client;
mod decide;
pub mod dns;
pub mod inbound;
mod outcome;
mod pair;
mod types;
mod workload;

pub use asked::Asked;
pub use client::{Client, is_within};
pub use decide::{
    Admission, address, control, first_look, is_redirected, is_sent_to, loopback, mapped, normalise, now_stale, words,
};
pub use outcome::Outcome;
pub use pair::{
    AGENT_MESSAGES_BOUND, AcceptorKey, End, Executable, ExecutableKey, Flow, Look, MAX_ACCEPTORS, MAX_EXECUTABLES,
    MAX_SOCKETS, MESSAGES_BOUND, Offsets, PROGRAM_BOUND, SocketKey, Way, is_local, join, may_send, redirect,
    unread_messages,
};
pub use types::{Address, Listener, Origin, OriginState, Service, ServiceKey, TupleKey};
pub use workload::{MAX_DEPTH, MAX_MEMBERS, MAX_STRANGERS, MAX_WORKLOADS, Workload, members};

/// Changes whenever the meaning or the shape of any pinned map changes. An agent adopts what another left
/// behind only if this is equal.
pub const LAYOUT_VERSION: u64 = 3;

/// Mark of the agent's own sockets (`SO_MARK`), which every hook leaves alone. Setting a mark takes a
/// capability, so an enrolled program without rights cannot put it on to escape. Spells "mesh".
pub const AGENT_MARK: u32 = 0x6d65_7368;

/// Mark of the sockets on which an agent tries out what redirecting does to them: no program but the
/// self-test's may touch those.
pub const SELFTEST_MARK: u32 = AGENT_MARK + 1;

/// Names of the maps as the kernel shows them, at most 15 bytes each.
pub mod map {
    /// Destinations that are services.
    pub const SERVICES: &str = "MESH_SERVICES";
    /// The agent's listeners by network namespace.
    pub const LISTENERS: &str = "MESH_LISTENERS";
    /// Heartbeat and switches, one number a slot.
    pub const CONTROL: &str = "MESH_CONTROL";
    /// Origin by socket, for `getpeername`.
    pub const ORIGINS: &str = "MESH_ORIGINS";
    /// Origin by source address, for the agent's `accept`.
    pub const TUPLES: &str = "MESH_TUPLES";
    /// Enrolled control groups, when the kernel must ask.
    pub const WORKLOADS: &str = "MESH_WORKLOADS";
    /// Enrolled users.
    pub const UIDS: &str = "MESH_UIDS";
    /// Enrolled network namespaces.
    pub const NETNS: &str = "MESH_NETNS";
    /// Network namespaces in which the agent does not listen and an enrolled program wanted it to.
    pub const STRANGERS: &str = "MESH_STRANGERS";
    /// Destinations of callers from elsewhere that are brought to the agent.
    pub const INBOUND: &str = "MESH_INBOUND";
    /// The agent's listeners for them.
    pub const IN_SOCKETS: &str = "MESH_IN_SOCKETS";
    /// Callers, by the socket that the agent opened for them.
    pub const CLIENTS: &str = "MESH_CLIENTS";
    /// Where questions for names are answered, by network namespace.
    pub const DNS: &str = "MESH_DNS";
    /// Resolvers that programs asked, by number.
    pub const RESOLVERS: &str = "MESH_RESOLVERS";
    /// How often each outcome happened, by CPU.
    pub const COUNTERS: &str = "MESH_COUNTERS";
    /// The self-test's sockets: reader at 0, sender at 1. Never pinned.
    pub const SELFTEST_SOCKETS: &str = "SELFTEST_SOCKS";
    /// The self-test's switch: 1 while the sender's bytes go straight to the reader. Never pinned.
    pub const SELFTEST_SWITCH: &str = "SELFTEST_SWITCH";
    /// Endpoints by service, generation and slot.
    pub const BALANCE: &str = "MESH_BALANCE";
    /// Who may connect to a service.
    pub const POLICY: &str = "MESH_POLICY";
    /// Endpoints that failed.
    pub const ENDPOINTS: &str = "MESH_ENDPOINTS";
    /// Counters by service, endpoint and caller.
    pub const USE: &str = "MESH_USE";
    /// Listening sockets to which connections are joined.
    pub const JOINS: &str = "MESH_JOINS";
    /// Connections that went straight to an endpoint.
    pub const CONNECTIONS: &str = "MESH_CONNECTION";
    /// Sockets that bytes can be redirected to.
    pub const SOCKETS: &str = "MESH_SOCKETS";
    /// What is known of each of these sockets.
    pub const ENDS: &str = "MESH_ENDS";
    /// What each of these sockets knows as a sender.
    pub const FLOWS: &str = "MESH_FLOWS";
    /// Verdicts about program files.
    pub const EXECUTABLES: &str = "MESH_EXECUTABLE";
    /// Listening sockets whose connections may be redirected.
    pub const ACCEPTORS: &str = "MESH_ACCEPTORS";
}

/// Names of the programs as the kernel shows them, at most 15 bytes each.
pub mod program {
    /// `connect()` of IPv4 sockets.
    pub const CONNECT4: &str = "mesh_connect4";
    /// `connect()` of IPv6 sockets.
    pub const CONNECT6: &str = "mesh_connect6";
    /// `getpeername()` of IPv4 sockets.
    pub const PEERNAME4: &str = "mesh_peername4";
    /// `getpeername()` of IPv6 sockets.
    pub const PEERNAME6: &str = "mesh_peername6";
    /// Connections from elsewhere.
    pub const INBOUND: &str = "mesh_inbound";
    /// Datagrams sent to an address by IPv4 sockets.
    pub const SENDMSG4: &str = "mesh_sendmsg4";
    /// Datagrams sent to an address by IPv6 sockets.
    pub const SENDMSG6: &str = "mesh_sendmsg6";
    /// Datagrams received by IPv4 sockets.
    pub const RECVMSG4: &str = "mesh_recvmsg4";
    /// Datagrams received by IPv6 sockets.
    pub const RECVMSG6: &str = "mesh_recvmsg6";
    /// Options of sockets.
    pub const SETSOCKOPT: &str = "mesh_setsockopt";
    /// TCP state changes.
    pub const SOCKOPS: &str = "mesh_sockops";
    /// Redirects the self-test's bytes.
    pub const SELFTEST: &str = "selftest_msg";
    /// Each message of a socket that bytes can be redirected from.
    pub const MSG: &str = "mesh_msg";
    /// Asked by the agent how much a socket's reader has not read.
    pub const FILL: &str = "mesh_fill";
}

/// Room in the table of services; an apply that needs more fails and says so.
pub const MAX_SERVICES: usize = 16_384;
/// Room in the table of provided services that are captured.
pub const MAX_INBOUND: usize = 4096;
/// Room in the table of listeners.
pub const MAX_LISTENERS: usize = 1024;
/// Room for connections between `connect` and `accept`, unless the configuration says otherwise.
pub const MAX_TUPLES: usize = 65_536;
/// Room in the table of endpoints, all services and their slots together.
pub const MAX_SLOTS: usize = 262_144;
/// Room in the table of rules.
pub const MAX_RULES: usize = 16_384;
/// Room in the table of counters.
pub const MAX_USES: usize = 65_536;
