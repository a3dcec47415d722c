//! Connections that go straight to an endpoint: which exist, and what becomes of those whose endpoint has left.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    path::Path,
    time::Duration,
};

use ebpf_common::{AcceptorKey, End, Origin, SocketKey, balance::UseKey, is_local, join};
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
    /// The program's end; unknown in a network namespace that the agent cannot look into.
    pub local: Option<SocketAddr>,
    /// Bytes from the program and to it, 0 where unknown.
    pub bytes: (u64, u64),
    /// Its two ends are joined: bytes go past TCP.
    pub joined: bool,
    /// Why they are not, where they may be.
    pub apart: Option<&'static str>,
    /// Process that connected.
    pub pid: u32,
    /// Its name.
    pub process: String,
    /// Age.
    pub age: Duration,
}

/// TCP tells when it last sent and received in steps of its clock, which are no longer than this.
const TCP_STEP: Duration = Duration::from_millis(10);

/// What went past TCP on a joined connection, which TCP does not see.
#[derive(Clone, Copy, Debug, Default)]
struct Joined {
    /// Bytes from the program and to it.
    bytes: (u64, u64),
    /// When that was the last time, in ns; 0 for never.
    last_ns: (u64, u64),
}

/// How long ago each end has spoken.
#[derive(Clone, Copy, Debug)]
struct Spoke {
    program: Duration,
    endpoint: Duration,
}

impl Spoke {
    /// Whether the connection has been quiet for so long that nobody waits for anything. `by_tcp` is what TCP knows of
    /// it, `past_tcp` what it does not, where it is joined.
    fn is_idle(by_tcp: Self, past_tcp: Option<Self>) -> bool {
        let past = past_tcp.unwrap_or(Self { program: Duration::MAX, endpoint: Duration::MAX });
        let last = Self { program: by_tcp.program.min(past.program), endpoint: by_tcp.endpoint.min(past.endpoint) };
        // Of two clocks the coarse one must not make an answer of what is a question.
        let one_clock = (by_tcp.program <= past.program) == (by_tcp.endpoint <= past.endpoint);
        let margin = if one_clock { Duration::ZERO } else { TCP_STEP };
        let answered = last.endpoint.saturating_add(margin) <= last.program;
        let patience = if answered { IDLE_AFTER_ANSWER } else { IDLE_AFTER_QUESTION };
        last.program.min(last.endpoint) >= patience
    }
}

impl Joined {
    fn spoke(&self, now_ns: u64) -> Spoke {
        let ago = |last| match last {
            0 => Duration::MAX,
            last => Duration::from_nanos(now_ns.saturating_sub(last)),
        };
        Spoke { program: ago(self.last_ns.0), endpoint: ago(self.last_ns.1) }
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

/// Conversations about the sockets of the network namespaces of these connections, by cookie, as far as `look` can
/// look into them.
fn look_into<'a>(of: impl Iterator<Item = &'a Origin>, look: impl Fn(u64) -> Option<Diag>) -> HashMap<u64, Diag> {
    let netns: HashSet<u64> = of.map(|origin| origin.netns).collect();
    netns.into_iter().filter_map(|netns| Some((netns, look(netns)?))).collect()
}

/// All connections of these network namespaces, each with the conversation that it belongs to.
fn listed(diags: &HashMap<u64, Diag>) -> io::Result<Vec<(&Diag, Tcp)>> {
    let mut all = Vec::new();
    for diag in diags.values() {
        all.extend(diag.connections()?.into_iter().map(|tcp| (diag, tcp)));
    }
    Ok(all)
}

impl Balance {
    /// Ends idle connections to endpoints that are in no list any more; `unread` tells what an end has not read
    /// of what came past TCP. Connections of network namespaces that `look` cannot look into are left alone. Costs
    /// nothing when no list has changed.
    pub fn close_left(
        &self,
        now_ns: u64,
        look: impl Fn(u64) -> Option<Diag>,
        unread: impl Fn(&SocketKey) -> Option<u32>,
    ) -> io::Result<usize> {
        let inner = &mut *self.inner.lock();
        if !inner.leaving {
            return Ok(0);
        }
        let mut left = HashMap::new();
        for cookie in self.connections.keys(ebpf_common::MAX_TUPLES)? {
            let Some(origin) = self.connections.get(&cookie)? else { continue };
            let Some(written) = inner.written.get(&origin.service) else { continue };
            let to = socket_addr(origin.to, origin.to_port);
            if written.content.endpoints.iter().all(|e| e.addr != to) {
                left.insert(cookie, origin);
            }
        }
        let diags = look_into(left.values(), look);
        inner.leaving = left.values().any(|origin| diags.contains_key(&origin.netns));
        let mut closed = 0;
        for (diag, tcp) in listed(&diags)? {
            let Some(origin) = left.get(&tcp.cookie) else { continue };
            let key = key_of(&tcp, origin);
            let by_tcp = Spoke { program: tcp.last_sent, endpoint: tcp.last_received };
            let joined = self.joined(&key)?;
            if joined.is_some() && [key, key.flipped()].iter().any(|end| unread(end).unwrap_or(0) > 0) {
                continue;
            }
            if tcp.queued == 0 && Spoke::is_idle(by_tcp, joined.map(|joined| joined.spoke(now_ns))) {
                diag.destroy(&tcp)?;
                closed += 1;
            }
        }
        Ok(closed)
    }

    /// What went past TCP from the end `key` and to it; none when it is not joined with its other end.
    fn joined(&self, key: &SocketKey) -> io::Result<Option<Joined>> {
        let (own, other) = (self.ends.get(key)?, self.ends.get(&key.flipped())?);
        Ok(match (own, other) {
            (Some(own), Some(other)) if own.flags & other.flags & End::JOIN != 0 => {
                Some(Joined { bytes: (other.received, own.received), last_ns: (other.last_ns, own.last_ns) })
            }
            _ => None,
        })
    }

    /// Why the two ends of a connection that may be joined are not.
    fn apart(&self, origin: &Origin, tcp: Option<&Tcp>) -> &'static str {
        let Some(tcp) = tcp else { return "the agent cannot look into the program's network namespace" };
        if !is_local(&octets(tcp.local.ip()), &origin.to) {
            return "the endpoint is in another network namespace, or on another host";
        }
        match self.joins.get(&AcceptorKey::new(origin.netns, origin.to, origin.to_port)) {
            Ok(Some(join::YES)) => {
                "it was made before the endpoint's program was known, or one of the two asked for TCP"
            }
            _ => "the endpoint's program is not enrolled",
        }
    }

    /// Connections that exist now; `look` as above.
    pub fn connections(&self, now_ns: u64, look: impl Fn(u64) -> Option<Diag>) -> Vec<Connection> {
        let keys = self.connections.keys(ebpf_common::MAX_TUPLES).unwrap_or_default();
        let known: Vec<_> =
            keys.into_iter().filter_map(|cookie| Some((cookie, self.connections.get(&cookie).ok()??))).collect();
        let diags = look_into(known.iter().map(|(_, origin)| origin), look);
        let listed: HashMap<u64, Tcp> =
            listed(&diags).unwrap_or_default().into_iter().map(|(_, tcp)| (tcp.cookie, tcp)).collect();
        let inner = self.inner.lock();
        known
            .into_iter()
            .filter_map(|(cookie, origin)| {
                let tcp = listed.get(&cookie);
                let joined = tcp.and_then(|tcp| self.joined(&key_of(tcp, &origin)).ok().flatten());
                let may_be = origin.flags & Origin::JOIN != 0 && joined.is_none();
                let (up, down) = joined.unwrap_or_default().bytes;
                Some(Connection {
                    service: inner.names.get(&origin.service)?.0.clone(),
                    endpoint: socket_addr(origin.to, origin.to_port),
                    destination: socket_addr(origin.addr, origin.port),
                    local: tcp.map(|tcp| tcp.local),
                    bytes: tcp.map_or((0, 0), |tcp| (tcp.acked.saturating_sub(1) + up, tcp.received + down)),
                    joined: joined.is_some(),
                    apart: may_be.then(|| self.apart(&origin, tcp)),
                    pid: origin.pid,
                    process: convert::name(&origin.comm),
                    age: Duration::from_nanos(now_ns.saturating_sub(origin.since_ns)),
                })
            })
            .collect()
    }

    /// Takes connections from the list whose end no program was told, because its control group was released
    /// meanwhile: what is missing twice in a row is gone. Costs nothing when none is listed. `look` as above.
    pub fn sweep_connections(&self, now_ns: u64, look: impl Fn(u64) -> Option<Diag>) -> io::Result<usize> {
        let inner = &mut *self.inner.lock();
        let mut known = Vec::new();
        for cookie in self.connections.keys(ebpf_common::MAX_TUPLES)? {
            known.extend(self.connections.get(&cookie)?.map(|origin| (cookie, origin)));
        }
        let diags = look_into(known.iter().map(|(_, origin)| origin), look);
        let mut alive = HashSet::new();
        for diag in diags.values() {
            alive.extend(diag.cookies()?);
        }
        let (mut missing, mut gone) = (HashSet::new(), 0);
        for (cookie, origin) in known.into_iter().filter(|(cookie, _)| !alive.contains(cookie)) {
            let seen = diags.contains_key(&origin.netns);
            // Sockets of other network namespaces may not be seen: as long as their program lives, they may live.
            if !seen && Path::new("/proc").join(origin.pid.to_string()).exists() {
                continue;
            }
            if !inner.missing.contains(&cookie) {
                missing.insert(cookie);
            } else if self.connections.take(&cookie)?.is_some() {
                gone += 1;
                let key = UseKey { cgroup: origin.cgroup, service: origin.service, endpoint: origin.endpoint };
                // Unseen it may have been handed on, and its end be counted yet.
                if seen && let Some(mut count) = self.uses.get(&key)? {
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

#[cfg(test)]
mod tests {
    use super::*;

    const fn spoke(program_ms: u64, endpoint_ms: u64) -> Spoke {
        Spoke { program: Duration::from_millis(program_ms), endpoint: Duration::from_millis(endpoint_ms) }
    }

    #[test]
    fn who_was_answered_is_idle_soon_and_who_waits_is_not() {
        assert!(Spoke::is_idle(spoke(1500, 1000), None));
        assert!(!Spoke::is_idle(spoke(1500, 999), None), "answered a moment ago");
        assert!(!Spoke::is_idle(spoke(1000, 1500), None), "waits for an answer");
        assert!(Spoke::is_idle(spoke(60_000, 61_000), None), "waits for nothing any more");
    }

    #[test]
    fn of_a_joined_connection_counts_what_went_past_tcp() {
        let old = spoke(30_000, 30_000);
        assert!(Spoke::is_idle(old, Some(spoke(1500, 1400))));
        assert!(!Spoke::is_idle(old, Some(spoke(1400, 1500))), "waits for an answer");
        assert!(!Spoke::is_idle(old, Some(spoke(900, 800))), "busy");
        assert!(Spoke::is_idle(old, Some(Spoke { program: Duration::MAX, endpoint: Duration::MAX })), "never used");
        // The question went past TCP, the answer by it, or the other way round.
        assert!(Spoke::is_idle(spoke(30_000, 1400), Some(spoke(1500, 30_000))));
        assert!(!Spoke::is_idle(spoke(1401, 30_000), Some(spoke(30_000, 1400))), "cannot be told apart");
        let joined = Joined { bytes: (1, 1), last_ns: (0, 2_000_000_000) };
        assert_eq!(joined.spoke(3_000_000_000).endpoint, Duration::from_secs(1));
        assert_eq!(joined.spoke(1_000_000_000).endpoint, Duration::ZERO, "a clock that was read before");
    }
}
