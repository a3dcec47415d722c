//! Connections that exist now: what `sockmesh sockets` shows.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{call::Text, stream::Socket};

/// One connection between a program and the agent.
#[derive(Debug)]
pub struct Live {
    id: u64,
    /// The program's end.
    pub peer: SocketAddr,
    /// The address the program asked for.
    pub destination: SocketAddr,
    /// Process that connected, 0 when unknown.
    pub pid: u32,
    /// Its name.
    pub process: String,
    /// Whether a hook brought it (else the program dialled the agent).
    pub captured: bool,
    /// The agent's end, where bytes may go past TCP.
    pub socket: Option<Socket>,
    /// Bytes from the program.
    pub received: AtomicU64,
    /// Bytes to the program.
    pub sent: AtomicU64,
    since: Instant,
    now: Mutex<Now>,
}

#[derive(Debug, Default, Clone)]
struct Now {
    protocol: &'static str,
    service: Text,
    endpoint: Option<SocketAddr>,
    calls: u64,
}

/// A row for operators.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LiveRow {
    /// Process that connected, 0 when unknown.
    pub pid: u32,
    /// Its name.
    pub process: String,
    /// The program's end.
    pub peer: SocketAddr,
    /// The address the program asked for.
    pub destination: SocketAddr,
    /// Whether a hook brought it.
    pub captured: bool,
    /// Protocol spoken; empty before it is known.
    pub protocol: String,
    /// Service of the last call.
    pub service: String,
    /// Endpoint of the last call.
    pub endpoint: Option<SocketAddr>,
    /// Calls so far.
    pub calls: u64,
    /// Bytes from the program.
    pub received_bytes: u64,
    /// Bytes to the program.
    pub sent_bytes: u64,
    /// Age in seconds.
    pub age_seconds: f64,
    /// Whether its bytes go past TCP, and if not, why; none where that cannot be.
    #[serde(default)]
    pub redirect: Option<String>,
}

impl Live {
    /// The protocol is known.
    pub fn set_protocol(&self, protocol: &'static str) {
        self.now.lock().protocol = protocol;
    }

    /// A call of `service` was answered by `endpoint`.
    pub fn called(&self, service: &Text, endpoint: Option<SocketAddr>) {
        let mut now = self.now.lock();
        if now.service != *service {
            now.service = service.clone();
        }
        if endpoint.is_some() {
            now.endpoint = endpoint;
        }
        now.calls += 1;
    }

    fn row(&self) -> LiveRow {
        let now = self.now.lock().clone();
        LiveRow {
            pid: self.pid,
            process: self.process.clone(),
            peer: self.peer,
            destination: self.destination,
            captured: self.captured,
            protocol: now.protocol.to_owned(),
            service: now.service.to_string(),
            endpoint: now.endpoint,
            calls: now.calls,
            received_bytes: self.received.load(Relaxed),
            sent_bytes: self.sent.load(Relaxed),
            age_seconds: self.since.elapsed().as_secs_f64(),
            redirect: None,
        }
    }
}

/// All connections that exist now.
#[derive(Debug, Default)]
pub struct LiveTable {
    next: AtomicU64,
    rows: Mutex<HashMap<u64, Arc<Live>>>,
}

/// Keeps a connection in the table until dropped.
pub struct LiveGuard {
    table: Arc<LiveTable>,
    /// The row.
    pub live: Arc<Live>,
}

impl LiveTable {
    /// Adds a connection.
    pub fn add(
        self: &Arc<Self>,
        peer: SocketAddr,
        destination: SocketAddr,
        process: (u32, String),
        captured: bool,
        socket: Option<Socket>,
    ) -> LiveGuard {
        let live = Arc::new(Live {
            id: self.next.fetch_add(1, Relaxed),
            peer,
            destination,
            pid: process.0,
            process: process.1,
            captured,
            socket,
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            since: Instant::now(),
            now: Mutex::default(),
        });
        self.rows.lock().insert(live.id, live.clone());
        LiveGuard { table: self.clone(), live }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.lock().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, oldest first.
    pub fn rows(&self) -> Vec<LiveRow> {
        self.rows_with(|_, _| None)
    }

    /// The same; `redirect` tells how the bytes of a connection go, told its socket and the program's process.
    pub fn rows_with(&self, redirect: impl Fn(&Socket, u32) -> Option<String>) -> Vec<LiveRow> {
        let mut all: Vec<_> = self.rows.lock().values().cloned().collect();
        all.sort_unstable_by_key(|live| live.id);
        let row = |live: &Arc<Live>| LiveRow {
            redirect: live.socket.as_ref().and_then(|socket| redirect(socket, live.pid)),
            ..live.row()
        };
        all.iter().map(row).collect()
    }
}

impl Drop for LiveGuard {
    fn drop(&mut self) {
        self.table.rows.lock().remove(&self.live.id);
    }
}
