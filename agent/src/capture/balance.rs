//! The kernel way as the agent sees it: tables of endpoints written for the connect hooks, what these count,
//! and connections to endpoints that have left.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use ebpf_common::{
    Origin, Service, ServiceKey,
    balance::{EndpointKey, EndpointState, RuleKey, Slot, SlotKey, Use, UseKey},
};
use model::ServiceKey as Name;
use parking_lot::Mutex;

use super::{
    convert::{self, octets, service_key, socket_addr},
    enroll,
};
use crate::{
    config::{Caller, OnAgentLoss, VirtualAddress},
    sys::{
        BpfMap,
        diag::{Diag, Tcp},
    },
};

/// Slots of a small service: shares are right to half a percent.
const FEWEST_SLOTS: usize = 256;
/// Slots for one endpoint of a large one.
const SLOTS_PER_ENDPOINT: usize = 4;
/// A connection whose endpoint spoke last is idle after this time.
const IDLE_AFTER_ANSWER: Duration = Duration::from_secs(1);
/// A connection whose program spoke last may wait for an answer.
const IDLE_AFTER_QUESTION: Duration = Duration::from_secs(60);

/// No hook runs for so long.
const RETIRE_AFTER: Duration = Duration::from_millis(50);

/// A service whose connects are sent straight to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Straight {
    /// Names it to operators.
    pub name: Name,
    /// Its number in the kernel's tables, not 0; the same after a restart.
    pub number: u32,
    /// Destinations that programs ask for.
    pub addresses: Vec<VirtualAddress>,
    /// What happens to connects when there is no endpoint.
    pub loss: OnAgentLoss,
    /// Who may connect; everyone when empty.
    pub allow: Vec<Caller>,
    /// Who may not.
    pub deny: Vec<Caller>,
    /// Where to; `None` before any registry has answered: then what is in the kernel stays.
    pub endpoints: Option<Vec<Weighted>>,
}

/// One endpoint of such a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weighted {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Relative share of connects; 0 is out.
    pub weight: u32,
    /// Whether it is in rotation.
    pub available: bool,
}

/// What one caller did with one endpoint.
#[derive(Clone, Debug)]
pub struct Used {
    /// The service's number.
    pub number: u32,
    /// The service.
    pub service: Name,
    /// The endpoint; `None` for connects refused by policy.
    pub endpoint: Option<SocketAddr>,
    /// Control group of the caller, below the mount of cgroup v2.
    pub caller: String,
    /// The counters.
    pub count: Use,
}

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
    /// Process that connected.
    pub pid: u32,
    /// Its name.
    pub process: String,
    /// Age.
    pub age: Duration,
}

/// The tables.
pub struct Balance {
    slots: BpfMap<SlotKey, Slot>,
    rules: BpfMap<RuleKey, u32>,
    states: BpfMap<EndpointKey, EndpointState>,
    uses: BpfMap<UseKey, Use>,
    connections: BpfMap<u64, Origin>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By number.
    written: HashMap<u32, Written>,
    /// Tables that no service names any more; hooks that run right now may still read them.
    retired: Vec<Retired>,
    /// Numbers of all services.
    numbers: HashSet<u32>,
    /// What an agent before this one left has been looked through.
    swept: bool,
    /// Names of numbers, kept for counters of endpoints that are gone.
    names: HashMap<u32, (Name, HashMap<u32, SocketAddr>)>,
    /// Some connections may go to endpoints that have left.
    leaving: bool,
    callers: HashMap<u64, String>,
}

struct Written {
    value: Service,
    content: Content,
    rules: Vec<RuleKey>,
}

/// What a table is made of; a new one is written when it differs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Content {
    flags: u32,
    endpoints: Vec<Weighted>,
    rules: Vec<(u32, u64)>,
}

struct Retired {
    at: Instant,
    number: u32,
    value: Service,
    rules: Vec<RuleKey>,
}

impl Retired {
    fn now(number: u32, old: Written) -> Self {
        Self { at: Instant::now(), number, value: old.value, rules: old.rules }
    }
}

/// The maps that [`Balance`] is made of.
pub struct Maps {
    /// `MESH_BALANCE`.
    pub slots: BpfMap<SlotKey, Slot>,
    /// `MESH_POLICY`.
    pub rules: BpfMap<RuleKey, u32>,
    /// `MESH_ENDPOINTS`.
    pub states: BpfMap<EndpointKey, EndpointState>,
    /// `MESH_USE`.
    pub uses: BpfMap<UseKey, Use>,
    /// `MESH_CONNECTION`.
    pub connections: BpfMap<u64, Origin>,
}

impl Balance {
    /// Nothing written yet.
    pub fn new(maps: Maps) -> Self {
        let Maps { slots, rules, states, uses, connections } = maps;
        Self { slots, rules, states, uses, connections, inner: Mutex::default() }
    }

    /// Writes the tables of `services` and returns what the table of services must say of each of their
    /// addresses. `before` is what it says now. Tables that are not named any more stay until
    /// [`retire`](Self::retire).
    pub fn write(
        &self,
        services: &[Straight],
        before: impl Fn(&ServiceKey) -> Option<Service>,
    ) -> anyhow::Result<Vec<(ServiceKey, Service)>> {
        let inner = &mut *self.inner.lock();
        let mut values = Vec::new();
        for service in services {
            let keys: Vec<_> = service.addresses.iter().map(service_key).collect();
            let known = keys.iter().filter_map(&before).find(|s| s.number == service.number);
            let value = match &service.endpoints {
                Some(endpoints) => self.write_one(inner, service, endpoints, known)?,
                // An agent before this one may have known more than this one does yet.
                None => {
                    known.unwrap_or(Service { flags: flags(service), number: service.number, ..Service::default() })
                }
            };
            values.extend(keys.into_iter().map(|key| (key, value)));
        }
        inner.numbers = services.iter().map(|s| s.number).collect();
        let gone: Vec<u32> = inner.written.keys().filter(|n| !inner.numbers.contains(n)).copied().collect();
        for number in gone {
            let old = inner.written.remove(&number);
            inner.retired.extend(old.map(|old| Retired::now(number, old)));
        }
        Ok(values)
    }

    fn write_one(
        &self,
        inner: &mut Inner,
        service: &Straight,
        endpoints: &[Weighted],
        known: Option<Service>,
    ) -> anyhow::Result<Service> {
        let number = service.number;
        let content = Content { flags: flags(service), endpoints: endpoints.to_vec(), rules: rules(service) };
        if let Some(written) = inner.written.get(&number)
            && written.content == content
        {
            return Ok(written.value);
        }
        let last = inner.written.get(&number).map(|w| w.value).or(known);
        // 0 is what an empty service starts with.
        let generation = last.map_or(1, |s| s.generation.wrapping_add(1).max(1));
        let named = inner.names.entry(number).or_insert_with(|| (service.name.clone(), HashMap::new()));
        let numbered: Vec<_> = endpoints.iter().map(|e| (*e, number_of(&mut named.1, e.addr))).collect();
        let mut usable: Vec<_> = numbered.iter().filter(|(e, _)| e.weight > 0 && e.available).collect();
        if usable.is_empty() {
            // All are out: any of them is better than none, as the agent way has it.
            usable = numbered.iter().filter(|(e, _)| e.weight > 0).collect();
        }
        let weights: Vec<u32> = usable.iter().map(|(e, _)| e.weight).collect();
        let shares = shares(&weights);
        let slots: u32 = shares.iter().sum();
        let owners = shares.iter().zip(&usable).flat_map(|(share, u)| (0..*share).map(move |_| u));
        for (place, (endpoint, of)) in (0..).zip(owners.chain(&usable)) {
            let slot =
                Slot { addr: octets(endpoint.addr.ip()), number: *of, port: endpoint.addr.port().to_be(), reserved: 0 };
            let key = SlotKey { service: number, generation, slot: place };
            self.slots
                .insert(&key, &slot)
                .with_context(|| format!("no room in the kernel's table for the endpoints of {}", service.name))?;
        }
        let rule = |(kind, value): &(u32, u64)| RuleKey {
            value: *value,
            service: number,
            generation,
            kind: *kind,
            reserved: 0,
        };
        let rules: Vec<RuleKey> = content.rules.iter().map(rule).collect();
        for rule in &rules {
            self.rules
                .insert(rule, &1)
                .with_context(|| format!("no room in the kernel's table for the rules of {}", service.name))?;
        }
        let value = Service { flags: content.flags, number, generation, slots, endpoints: usable.len() as u32 };
        tracing::debug!(service = %service.name, generation, slots, endpoints = usable.len(), "endpoints in the kernel");
        let was_out = |addr| {
            let before = inner.written.get(&number).map_or(&[][..], |w| &w.content.endpoints[..]);
            before.iter().any(|e| e.addr == addr && !e.available)
        };
        for (endpoint, of) in numbered.iter().filter(|(e, _)| e.available && was_out(e.addr)) {
            tracing::debug!(service = %service.name, endpoint = %endpoint.addr, "endpoint picked again");
            let _ = self.states.remove(&EndpointKey { service: number, endpoint: *of });
        }
        let old = inner.written.insert(number, Written { value, content, rules });
        match old {
            Some(old) => inner.retired.push(Retired::now(number, old)),
            // Of an agent before this one there may be a table.
            None => inner.swept = false,
        }
        inner.leaving = true;
        Ok(value)
    }

    /// Removes what [`write`](Self::write) replaced at least one beat ago.
    pub fn retire(&self) {
        let inner = &mut *self.inner.lock();
        for old in inner.retired.extract_if(.., |old| old.at.elapsed() >= RETIRE_AFTER) {
            for slot in 0..old.value.slots + old.value.endpoints {
                let _ = self.slots.remove(&SlotKey { service: old.number, generation: old.value.generation, slot });
            }
            for rule in &old.rules {
                let _ = self.rules.remove(rule);
            }
        }
        if !inner.swept {
            inner.swept = self.sweep(inner).is_ok();
        }
    }

    /// Removes tables that an agent before this one left and no service uses.
    fn sweep(&self, inner: &Inner) -> io::Result<()> {
        let retired =
            |number, generation| inner.retired.iter().any(|r| (r.number, r.value.generation) == (number, generation));
        let current = |number: u32, generation: u32| match inner.written.get(&number) {
            Some(written) => written.value.generation == generation || retired(number, generation),
            // Not written yet: what is there still serves.
            None => inner.numbers.contains(&number),
        };
        for key in self.slots.keys(ebpf_common::MAX_SLOTS)? {
            if !current(key.service, key.generation) {
                self.slots.remove(&key)?;
            }
        }
        for key in self.rules.keys(ebpf_common::MAX_RULES)? {
            if !current(key.service, key.generation) {
                self.rules.remove(&key)?;
            }
        }
        Ok(())
    }

    /// Ends idle connections to endpoints that are in no list any more. Connections of other network
    /// namespaces are left alone. Costs nothing when no list has changed.
    pub fn close_left(&self, netns: u64) -> io::Result<usize> {
        let inner = &mut *self.inner.lock();
        if !inner.leaving {
            return Ok(0);
        }
        let mut left = HashSet::new();
        for cookie in self.connections.keys(ebpf_common::MAX_TUPLES)? {
            let Some(origin) = self.connections.get(&cookie)? else { continue };
            let Some(written) = inner.written.get(&origin.service) else { continue };
            let to = socket_addr(origin.to, origin.to_port);
            if origin.netns == netns && written.content.endpoints.iter().all(|e| e.addr != to) {
                left.insert(cookie);
            }
        }
        inner.leaving = !left.is_empty();
        if left.is_empty() {
            return Ok(0);
        }
        let diag = Diag::open()?;
        let mut closed = 0;
        for tcp in diag.connections()?.iter().filter(|c| left.contains(&c.cookie)) {
            let answered = tcp.last_received <= tcp.last_sent;
            let quiet = tcp.last_received.min(tcp.last_sent);
            let patience = if answered { IDLE_AFTER_ANSWER } else { IDLE_AFTER_QUESTION };
            if tcp.queued == 0 && quiet >= patience {
                diag.destroy(tcp)?;
                closed += 1;
            }
        }
        Ok(closed)
    }

    /// Connects in a row that were never established, by service and endpoint.
    pub fn failures(&self) -> Vec<(u32, SocketAddr, u32)> {
        let inner = self.inner.lock();
        let keys = self.states.keys(ebpf_common::MAX_SERVICES).unwrap_or_default();
        keys.into_iter()
            .filter_map(|key| {
                let state = self.states.get(&key).ok()??;
                let addr = inner.names.get(&key.service)?.1.get(&key.endpoint)?;
                Some((key.service, *addr, state.failures))
            })
            .collect()
    }

    /// What was counted. Callers whose control group is gone keep the name they had, or show its number.
    pub fn uses(&self) -> Vec<Used> {
        let inner = &mut *self.inner.lock();
        let mut used = Vec::new();
        for key in self.uses.keys(ebpf_common::MAX_USES).unwrap_or_default() {
            let Ok(Some(count)) = self.uses.get(&key) else { continue };
            let Some((service, endpoints)) = inner.names.get(&key.service) else { continue };
            let endpoint = endpoints.get(&key.endpoint).copied();
            // An endpoint that left before this agent started has no name any more.
            if endpoint.is_none() && key.endpoint != 0 {
                continue;
            }
            used.push((key, service.clone(), endpoint, count));
        }
        if used.iter().any(|(key, ..)| !inner.callers.contains_key(&key.cgroup))
            && let Some(mount) = enroll::mount()
        {
            groups(&mount, &mount, &mut inner.callers);
        }
        let caller = |cgroup: u64| inner.callers.get(&cgroup).cloned().unwrap_or_else(|| format!("#{cgroup}"));
        used.into_iter()
            .map(|(key, service, endpoint, count)| Used {
                number: key.service,
                service,
                endpoint,
                caller: caller(key.cgroup),
                count,
            })
            .collect()
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
                Some(Connection {
                    service: inner.names.get(&origin.service)?.0.clone(),
                    endpoint: socket_addr(origin.to, origin.to_port),
                    destination: socket_addr(origin.addr, origin.port),
                    local: listed.get(&cookie).map(|tcp| tcp.local),
                    bytes: listed.get(&cookie).map_or((0, 0), |tcp| (tcp.acked.saturating_sub(1), tcp.received)),
                    pid: origin.pid,
                    process: convert::name(&origin.comm),
                    age: Duration::from_nanos(now_ns.saturating_sub(origin.since_ns)),
                })
            })
            .collect()
    }
}

fn flags(service: &Straight) -> u32 {
    let when = |yes: bool, flag: u32| if yes { flag } else { 0 };
    when(service.loss == OnAgentLoss::Refuse, Service::REFUSE_ON_LOSS)
        | when(!service.allow.is_empty(), Service::HAS_ALLOW)
        | when(!service.deny.is_empty(), Service::HAS_DENY)
}

/// Rules as the kernel knows them. A control group that does not exist now has no number: nobody is in it.
fn rules(service: &Straight) -> Vec<(u32, u64)> {
    let number = |path: &Path| enroll::Cgroup::open(path).ok().map(|group| group.id);
    let rule = |caller: &Caller, uid: u32, cgroup: u32| match caller {
        Caller::Uid(value) => Some((uid, u64::from(*value))),
        Caller::Cgroup(path) => number(path).map(|value| (cgroup, value)),
    };
    let allow = service.allow.iter().filter_map(|c| rule(c, RuleKey::ALLOW_UID, RuleKey::ALLOW_CGROUP));
    let deny = service.deny.iter().filter_map(|c| rule(c, RuleKey::DENY_UID, RuleKey::DENY_CGROUP));
    allow.chain(deny).collect()
}

/// Slots for each of `weights` (none is 0) by largest remainder, at least one each.
fn shares(weights: &[u32]) -> Vec<u32> {
    let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
    let slots = FEWEST_SLOTS.max(weights.len() * SLOTS_PER_ENDPOINT) as u64;
    let parts: Vec<(u64, u64)> = weights
        .iter()
        .map(|w| u64::from(*w) * slots)
        .map(|exact| (exact.checked_div(total).unwrap_or(0), exact.checked_rem(total).unwrap_or(0)))
        .collect();
    let mut missing = slots - parts.iter().map(|(whole, _)| whole).sum::<u64>();
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(parts[*i].1));
    let mut shares: Vec<u32> = parts.iter().map(|(whole, _)| *whole as u32).collect();
    for i in order {
        if missing > 0 {
            shares[i] += 1;
            missing -= 1;
        }
        shares[i] = shares[i].max(1);
    }
    shares
}

/// Number of the endpoint at `addr`, not 0 and the same after a restart unless two addresses meet in one.
fn number_of(known: &mut HashMap<u32, SocketAddr>, addr: SocketAddr) -> u32 {
    let mut number = stable(addr.to_string().as_bytes());
    while known.get(&number).is_some_and(|other| *other != addr) || number == 0 {
        number = number.wrapping_add(1);
    }
    known.insert(number, addr);
    number
}

/// FNV-1a: small and, unlike the standard library's, the same in every build.
fn stable(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Numbers for services in the order of the configuration: not 0, unique, the same after a restart.
pub fn numbers(names: &[Name]) -> Vec<u32> {
    let mut taken: BTreeMap<u32, ()> = BTreeMap::new();
    let number = |name: &Name| {
        let text = format!("{}\n{}\n{}", name.service, name.group, name.version);
        let mut number = stable(text.as_bytes());
        while number == 0 || taken.contains_key(&number) {
            number = number.wrapping_add(1);
        }
        taken.insert(number, ());
        number
    };
    names.iter().map(number).collect()
}

/// Notes the paths of all control groups below `dir`.
fn groups(mount: &Path, dir: &Path, found: &mut HashMap<u64, String>) {
    if let Ok(meta) = fs::metadata(dir) {
        let below = dir.strip_prefix(mount).unwrap_or(dir);
        found.insert(meta.ino(), format!("/{}", below.display()));
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            groups(mount, &entry.path(), found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_weights() {
        assert_eq!(shares(&[1, 1]), [128, 128]);
        assert_eq!(shares(&[3, 1]), [192, 64]);
        assert_eq!(shares(&[1, 1, 1]), [86, 85, 85]);
        assert_eq!(shares(&[100_000, 1]), [256, 1], "the lightest is not forgotten");
        assert_eq!(shares(&[]), [0; 0]);
        let many = shares(&vec![7; 1000]);
        assert!(many.iter().all(|s| *s == 4));
        assert_eq!(shares(&[u32::MAX, u32::MAX]), [128, 128]);
    }

    #[test]
    fn numbers_last_and_differ() {
        let name = |service: &str| Name { service: service.to_owned(), ..Name::default() };
        let names = [name("a"), name("b"), name("a")];
        let first = numbers(&names);
        assert_eq!(first, numbers(&names));
        assert_eq!(first.iter().collect::<HashSet<_>>().len(), 3);
        let mut known = HashMap::new();
        let (a, b) = ("10.0.0.1:80".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
        assert_ne!(number_of(&mut known, a), number_of(&mut known, b));
        assert_eq!(number_of(&mut known, a), number_of(&mut HashMap::new(), a));
    }
}
