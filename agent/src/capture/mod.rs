//! How connections of local programs come to the agent.

pub mod port;

use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc};

use serde::Serialize;
use tokio::net::TcpStream;

use crate::config::{Enroll, OnAgentLoss, VirtualAddress};

/// A way to capture connections.
pub trait Capture: Send + Sync + 'static {
    /// Name for operators: `ebpf`, `port`.
    fn name(&self) -> &'static str;

    /// Whether captured connections arrive on the agent's outbound listener.
    fn needs_listener(&self) -> bool {
        true
    }

    /// Brings connections to destinations in `table` to the agent from now on, replacing the table of
    /// before as a whole. Connections that exist are not touched.
    fn apply(&self, table: &CaptureTable) -> anyhow::Result<()>;

    /// Where a captured connection, accepted on the agent's outbound listener, wanted to go, and who made
    /// it. An error means that it was not captured (someone dialled the listener) or that it is unknown.
    fn origin(&self, conn: &TcpStream) -> io::Result<Origin>;

    /// Shows that the agent is alive; called ten times a second. Without it the kernel half sends
    /// connections directly.
    fn beat(&self) {}

    /// No further connection is captured; those that exist go on. First step of a stop.
    fn stop_capturing(&self) {}

    /// Takes everything back: programs, maps, links, pins. A crash skips this, and the next start adopts
    /// or replaces what it left.
    fn uninstall(&self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Mark that the agent's own sockets must carry to be left alone by this capture.
    fn mark(&self) -> Option<u32> {
        None
    }

    /// Counters of every outcome, by name.
    fn counters(&self) -> BTreeMap<&'static str, u64> {
        BTreeMap::new()
    }
}

/// What is captured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureTable {
    /// Destinations and what happens to them when the agent is gone.
    pub destinations: Vec<(VirtualAddress, OnAgentLoss)>,
    /// The agent's listeners for captured connections, IPv4 and IPv6 loopback.
    pub listeners: Vec<SocketAddr>,
    /// Whose connections.
    pub enroll: Vec<Enroll>,
}

/// Where a captured connection wanted to go, and who made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// The address the program asked for, IPv4 in its plain form.
    pub destination: SocketAddr,
    /// Process that called `connect`, 0 when unknown.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its name at that moment.
    pub process: String,
}

/// What was chosen and why, for operators.
pub struct Chosen {
    /// The capture in use.
    pub capture: Arc<dyn Capture>,
    /// One sentence: what it is, and in `auto` why not something better.
    pub reason: String,
}
