//! The kernel way as the agent sees it: tables of endpoints written for the connect hooks, what these count,
//! and connections to endpoints that have left.

mod counts;
mod live;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use ebpf_common::{
    AcceptorKey, End, Origin, Service, ServiceKey, SocketKey,
    balance::{EndpointKey, EndpointState, RuleKey, Slot, SlotKey, Use, UseKey},
};
use model::ServiceKey as Name;
use parking_lot::Mutex;

pub use self::{
    counts::{Failing, Used},
    live::Connection,
};
use super::{
    convert::{octets, service_key},
    enroll,
};
use crate::{
    config::{Caller, OnAgentLoss, VirtualAddress},
    sys::BpfMap,
};

/// Slots of a small service: shares are right to half a percent.
const FEWEST_SLOTS: usize = 256;
/// Slots for one endpoint of a large one.
const SLOTS_PER_ENDPOINT: usize = 4;
/// No hook runs for so long.
const RETIRE_AFTER: Duration = Duration::from_millis(50);
/// How old the numbers of control groups that rules name may be.
const RESOLVE_EVERY: Duration = Duration::from_secs(1);

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

/// The tables.
pub struct Balance {
    slots: BpfMap<SlotKey, Slot>,
    rules: BpfMap<RuleKey, u32>,
    states: BpfMap<EndpointKey, EndpointState>,
    uses: BpfMap<UseKey, Use>,
    connections: BpfMap<u64, Origin>,
    ends: BpfMap<SocketKey, End>,
    joins: BpfMap<AcceptorKey, u32>,
    inner: Mutex<Inner>,
    /// Where cgroup v2 is mounted.
    mount: Option<PathBuf>,
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
    /// Rules as the kernel knows them, and when they were looked up.
    resolved: HashMap<u32, Resolved>,
    /// Some connections may go to endpoints that have left.
    leaving: bool,
    /// Control groups that were seen in counters, by number, below the mount.
    callers: HashMap<u64, PathBuf>,
    /// Numbers in counters that no control group has any more.
    strange: HashSet<u64>,
    /// Listed connections that did not exist when they were last looked for.
    missing: HashSet<u64>,
}

struct Resolved {
    at: Instant,
    of: (Vec<Caller>, Vec<Caller>),
    rules: Vec<(u32, u64)>,
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
    /// `MESH_ENDS`.
    pub ends: BpfMap<SocketKey, End>,
    /// `MESH_JOINS`.
    pub joins: BpfMap<AcceptorKey, u32>,
}

impl Balance {
    /// Nothing written yet.
    pub fn new(maps: Maps) -> Self {
        let Maps { slots, rules, states, uses, connections, ends, joins } = maps;
        Self { slots, rules, states, uses, connections, ends, joins, inner: Mutex::default(), mount: enroll::mount() }
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
        inner.resolved.retain(|number, _| inner.numbers.contains(number));
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
        let rules = self.resolve(inner, service);
        let content = Content { flags: flags(service), endpoints: endpoints.to_vec(), rules };
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

    /// The rules of `service` as the kernel knows them. A control group that does not exist has no number:
    /// nobody is in it. One that is made later counts within a second.
    fn resolve(&self, inner: &mut Inner, service: &Straight) -> Vec<(u32, u64)> {
        if service.allow.is_empty() && service.deny.is_empty() {
            return Vec::new();
        }
        if let Some(known) = inner.resolved.get(&service.number)
            && known.at.elapsed() < RESOLVE_EVERY
            && (&known.of.0, &known.of.1) == (&service.allow, &service.deny)
        {
            return known.rules.clone();
        }
        let rule = |caller: &Caller, uid: u32, cgroup: u32| match caller {
            Caller::Uid(value) => Some((uid, u64::from(*value))),
            Caller::Cgroup(path) => Some((cgroup, enroll::number(path, self.mount.as_deref()?)?)),
        };
        let allow = service.allow.iter().filter_map(|c| rule(c, RuleKey::ALLOW_UID, RuleKey::ALLOW_CGROUP));
        let deny = service.deny.iter().filter_map(|c| rule(c, RuleKey::DENY_UID, RuleKey::DENY_CGROUP));
        let rules: Vec<_> = allow.chain(deny).collect();
        let of = (service.allow.clone(), service.deny.clone());
        inner.resolved.insert(service.number, Resolved { at: Instant::now(), of, rules: rules.clone() });
        rules
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
}

fn flags(service: &Straight) -> u32 {
    let when = |yes: bool, flag: u32| if yes { flag } else { 0 };
    when(service.loss == OnAgentLoss::Refuse, Service::REFUSE_ON_LOSS)
        | when(!service.allow.is_empty(), Service::HAS_ALLOW)
        | when(!service.deny.is_empty(), Service::HAS_DENY)
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
    while known.get(&number).is_some_and(|other| *other != addr) || [0, UseKey::GONE_ENDPOINTS].contains(&number) {
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
