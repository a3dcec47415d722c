//! Connections that go straight to an endpoint: which exist, and what becomes of those whose endpoint has left.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use ebpf_common::{End, Origin, SocketKey, balance::UseKey};
use model::ServiceKey as Name;

use super::Balance;
use crate::{
    capture::convert::{self, octets, socket_addr},
    sys::diag::{Diag, Tcp},
};

/// A connection whose endpoint spoke last is idle after this time.
const IDLE_AFTER_ANSWER: Duration = Duration::from_secs(1);
/// A connection whose program spoke last may wait for an answer.
const IDLE_AFTER_QUESTION: Duration = Duration::from_secs(60);

/// A connection that goes straight to its endpoint.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Service, as above.
    pub service: Name,
    /// Where it goes.
    pub endpoint: SocketAddr,
    /// Where it wanted to go.
    pub destination: SocketAddr,
    /// The program's end; unknown in another network namespace.
    pub local: Option<SocketAddr>,
    /// Bytes from the program and to it, 0 where unknown.
    pub bytes: (u64, u64),
    /// Its two ends are joined: bytes go past TCP.
    pub joined: bool,
    /// Process that connected.
    pub pid: u32,
    /// Its name.
    pub process: String,
    /// Age.
    pub age: Duration,
}

/// How far a joined connection has come: TCP does not see what goes past it.
pub(super) struct Moving {
    /// Bytes from the program and to it.
    bytes: (u64, u64),
    since: Instant,
    /// The endpoint was the last to speak.
    answered: bool,
}

impl Moving {
    fn now() -> Self {
        Self { bytes: (0, 0), since: Instant::now(), answered: false }
    }

    /// Whether the endpoint spoke last, and for how long nobody has spoken. Who spoke last cannot be told when both
    /// did since the last look.
    fn look(&mut self, bytes: (u64, u64)) -> (bool, Duration) {
        if bytes != self.bytes {
            self.answered = bytes.0 == self.bytes.0;
            (self.bytes, self.since) = (bytes, Instant::now());
        }
        (self.answered, self.since.elapsed())
    }
}

/// The program's end of a connection.
fn key_of(tcp: &Tcp, origin: &Origin) -> SocketKey {
    SocketKey {
        netns: origin.netns,
        local: octets(tcp.local.ip()),
        remote: origin.to,
        local_port: tcp.local.port().to_be(),
        remote_port: origin.to_port,
        reserved: 0,
    }
}

impl Balance {
    /// Ends idle connections to endpoints that are in no list any more; `unread` tells what an end has not read
    /// of what came past TCP. Connections of other network namespaces are left alone. Costs nothing when no
    /// list has changed.
    pub fn close_left(&self, netns: u64, unread: impl Fn(&SocketKey) -> Option<u32>) -> io::Result<usize> {
        let inner = &mut *self.inner.lock();
        if !inner.leaving {
            return Ok(0);
        }
        let mut left = HashMap::new();
        for cookie in self.connections.keys(ebpf_common::MAX_TUPLES)? {
            let Some(origin) = self.connections.get(&cookie)? else { continue };
            let Some(written) = inner.written.get(&origin.service) else { continue };
            let to = socket_addr(origin.to, origin.to_port);
            if origin.netns == netns && written.content.endpoints.iter().all(|e| e.addr != to) {
                left.insert(cookie, origin);
            }
        }
        inner.leaving = !left.is_empty();
        inner.moving.retain(|cookie, _| left.contains_key(cookie));
        if left.is_empty() {
            return Ok(0);
        }
        let diag = Diag::open()?;
        let mut closed = 0;
        for tcp in diag.connections()? {
            let Some(origin) = left.get(&tcp.cookie) else { continue };
            let key = key_of(&tcp, origin);
            let by_tcp = (tcp.last_received <= tcp.last_sent, tcp.last_received.min(tcp.last_sent));
            let (answered, quiet) = match self.joined(&key)? {
                Some(bytes) => {
                    if unread(&key).unwrap_or(0) > 0 || unread(&key.flipped()).unwrap_or(0) > 0 {
                        continue;
                    }
                    let past_tcp = inner.moving.entry(tcp.cookie).or_insert_with(Moving::now).look(bytes);
                    if past_tcp.1 < by_tcp.1 { past_tcp } else { by_tcp }
                }
                None => by_tcp,
            };
            let patience = if answered { IDLE_AFTER_ANSWER } else { IDLE_AFTER_QUESTION };
            if tcp.queued == 0 && quiet >= patience {
                diag.destroy(&tcp)?;
                closed += 1;
            }
        }
        Ok(closed)
    }

    /// Bytes that went past TCP from the end `key` and to it; none when it is not joined with its other end.
    fn joined(&self, key: &SocketKey) -> io::Result<Option<(u64, u64)>> {
        let (own, other) = (self.ends.get(key)?, self.ends.get(&key.flipped())?);
        Ok(match (own, other) {
            (Some(own), Some(other)) if own.flags & other.flags & End::JOIN != 0 => {
                Some((other.received, own.received))
            }
            _ => None,
        })
    }

    /// Connections that exist now.
    pub fn connections(&self, now_ns: u64) -> Vec<Connection> {
        let keys = self.connections.keys(ebpf_common::MAX_TUPLES).unwrap_or_default();
        if keys.is_empty() {
            return Vec::new();
        }
        let listed = Diag::open().and_then(|diag| diag.connections()).unwrap_or_default();
        let listed: HashMap<u64, &Tcp> = listed.iter().map(|tcp| (tcp.cookie, tcp)).collect();
        let inner = self.inner.lock();
        keys.into_iter()
            .filter_map(|cookie| {
                let origin = self.connections.get(&cookie).ok()??;
                let tcp = listed.get(&cookie);
                let joined = tcp.and_then(|tcp| self.joined(&key_of(tcp, &origin)).ok().flatten());
                let (up, down) = joined.unwrap_or_default();
                Some(Connection {
                    service: inner.names.get(&origin.service)?.0.clone(),
                    endpoint: socket_addr(origin.to, origin.to_port),
                    destination: socket_addr(origin.addr, origin.port),
                    local: tcp.map(|tcp| tcp.local),
                    bytes: tcp.map_or((0, 0), |tcp| (tcp.acked.saturating_sub(1) + up, tcp.received + down)),
                    joined: joined.is_some(),
                    pid: origin.pid,
                    process: convert::name(&origin.comm),
                    age: Duration::from_nanos(now_ns.saturating_sub(origin.since_ns)),
                })
            })
            .collect()
    }

    /// Takes connections from the list whose end no program was told, because its control group was released
    /// meanwhile: what is missing twice in a row is gone. Costs nothing when none is listed.
    pub fn sweep_connections(&self, netns: u64, now_ns: u64) -> io::Result<usize> {
        let inner = &mut *self.inner.lock();
        let listed = self.connections.keys(ebpf_common::MAX_TUPLES)?;
        if listed.is_empty() {
            inner.missing.clear();
            return Ok(0);
        }
        let alive: HashSet<u64> = Diag::open()?.cookies()?.into_iter().collect();
        let (mut missing, mut gone) = (HashSet::new(), 0);
        for cookie in listed.into_iter().filter(|cookie| !alive.contains(cookie)) {
            let Some(origin) = self.connections.get(&cookie)? else { continue };
            let here = origin.netns == netns;
            // Sockets of other network namespaces are not seen: as long as their program lives, they may.
            if !here && Path::new("/proc").join(origin.pid.to_string()).exists() {
                continue;
            }
            if !inner.missing.contains(&cookie) {
                missing.insert(cookie);
            } else if self.connections.take(&cookie)?.is_some() {
                gone += 1;
                let key = UseKey { cgroup: origin.cgroup, service: origin.service, endpoint: origin.endpoint };
                // Elsewhere it may have been handed on, and its end be counted yet.
                if here && let Some(mut count) = self.uses.get(&key)? {
                    count.closed += 1;
                    count.duration_ns += now_ns.saturating_sub(origin.since_ns);
                    self.uses.insert(&key, &count)?;
                }
            }
        }
        inner.missing = missing;
        Ok(gone)
    }
}
