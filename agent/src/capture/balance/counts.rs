//! What the kernel half counted of connects that go straight to an endpoint: by whom, to where, and where they
//! fail. Rows of callers and endpoints that are gone are added up, so that sums only ever grow and tables do not.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use ebpf_common::balance::{EndpointKey, Use, UseKey, after_failure};
use model::ServiceKey as Name;

use super::{Balance, Inner};
use crate::capture::convert::octets;

/// In the place of a caller's control group: all that are gone.
const GONE: &str = "gone";

/// What one caller did with one endpoint.
#[derive(Clone, Debug)]
pub struct Used {
    /// The service's number.
    pub number: u32,
    /// The service.
    pub service: Name,
    /// The endpoint; `None` for connects refused by policy and for endpoints that are in no list any more.
    pub endpoint: Option<SocketAddr>,
    /// Control group of the caller, below the mount of cgroup v2; `gone` for all that are gone.
    pub caller: String,
    /// The counters.
    pub count: Use,
}

/// An endpoint to which connects failed.
#[derive(Clone, Debug)]
pub struct Failing {
    /// The service's number.
    pub number: u32,
    /// The service.
    pub service: Name,
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// Connects in a row that were never established.
    pub failures: u32,
    /// For how long it is still passed over.
    pub pause: Duration,
}

impl Balance {
    /// Endpoints to which connects failed, until one is established again.
    pub fn failures(&self, now_ns: u64) -> Vec<Failing> {
        let inner = self.inner.lock();
        let keys = self.states.keys(ebpf_common::MAX_SERVICES).unwrap_or_default();
        keys.into_iter()
            .filter_map(|key| {
                let state = self.states.get(&key).ok()??;
                let (service, endpoints) = inner.names.get(&key.service)?;
                Some(Failing {
                    number: key.service,
                    service: service.clone(),
                    endpoint: *endpoints.get(&key.endpoint)?,
                    failures: state.failures,
                    pause: Duration::from_nanos(state.failed_until_ns.saturating_sub(now_ns)),
                })
            })
            .collect()
    }

    /// Tells the kernel half of a connect to `endpoint` that failed without its notice.
    pub fn failed(&self, number: u32, endpoint: SocketAddr, now_ns: u64) -> io::Result<()> {
        let inner = self.inner.lock();
        let endpoints = inner.names.get(&number).map(|(_, endpoints)| endpoints);
        let Some((of, _)) = endpoints.and_then(|e| e.iter().find(|(_, addr)| **addr == endpoint)) else {
            return Ok(());
        };
        let key = EndpointKey { service: number, endpoint: *of };
        let known = self.states.get(&key)?.unwrap_or_default();
        self.states.insert(&key, &after_failure(known, now_ns, now_ns))
    }

    /// What was counted, one row for each service, endpoint and caller.
    pub fn uses(&self) -> Vec<Used> {
        let inner = &mut *self.inner.lock();
        let keys = self.uses.keys(ebpf_common::MAX_USES).unwrap_or_default();
        self.name_callers(inner, &keys);
        let mut rows: BTreeMap<(u32, Option<SocketAddr>, String), Use> = BTreeMap::new();
        for key in keys {
            let Ok(Some(count)) = self.uses.get(&key) else { continue };
            let Some((_, endpoints)) = inner.names.get(&key.service) else { continue };
            let caller = match inner.callers.get(&key.cgroup) {
                Some(path) => format!("/{}", path.display()),
                None => GONE.to_owned(),
            };
            add(rows.entry((key.service, endpoints.get(&key.endpoint).copied(), caller)).or_default(), &count);
        }
        rows.into_iter()
            .filter_map(|((number, endpoint, caller), count)| {
                let service = inner.names.get(&number)?.0.clone();
                Some(Used { number, service, endpoint, caller, count })
            })
            .collect()
    }

    /// Finds the paths of callers that have none yet.
    fn name_callers(&self, inner: &mut Inner, keys: &[UseKey]) {
        let Some(mount) = &self.mount else { return };
        let unknown = |key: &&UseKey| key.cgroup != UseKey::GONE_CALLERS && !inner.callers.contains_key(&key.cgroup);
        let mut unknown: HashSet<u64> = keys.iter().filter(unknown).map(|key| key.cgroup).collect();
        unknown.retain(|cgroup| !inner.strange.contains(cgroup));
        if unknown.is_empty() {
            return;
        }
        let mut found = HashMap::new();
        groups(mount, mount, &mut found);
        // What is not there now never will be: numbers are not used again.
        inner.strange.extend(unknown.iter().filter(|cgroup| !found.contains_key(cgroup)));
        inner.callers.extend(found.into_iter().filter(|(cgroup, _)| unknown.contains(cgroup)));
    }

    /// Adds the rows of control groups that are gone to one row, and so those of endpoints that are in no list
    /// any more and have no connection; forgets services that are not configured. Sums stay what they were.
    pub fn fold(&self) -> io::Result<()> {
        let inner = &mut *self.inner.lock();
        let keys = self.uses.keys(ebpf_common::MAX_USES)?;
        self.name_callers(inner, &keys);
        let Some(mount) = &self.mount else { return Ok(()) };
        inner.callers.retain(|cgroup, path| number_at(&mount.join(path)) == Some(*cgroup));
        for key in &keys {
            if !inner.numbers.contains(&key.service) {
                self.uses.remove(key)?;
                continue;
            }
            // Before its registries have answered nothing is known of a service's endpoints.
            let Some(written) = inner.written.get(&key.service) else { continue };
            let Some(count) = self.uses.get(key)? else { continue };
            let names = inner.names.get(&key.service).map(|(_, endpoints)| endpoints);
            let addr = names.and_then(|endpoints| endpoints.get(&key.endpoint));
            let listed = addr.is_some_and(|addr| written.content.endpoints.iter().any(|e| e.addr == *addr));
            let mut to = *key;
            if !inner.callers.contains_key(&key.cgroup) {
                to.cgroup = UseKey::GONE_CALLERS;
            }
            if key.endpoint != 0 && !listed && count.closed >= count.connects {
                to.endpoint = UseKey::GONE_ENDPOINTS;
            }
            if to == *key {
                continue;
            }
            // Added before it is taken away: whoever is killed in between counts twice rather than backwards.
            let mut sum = self.uses.get(&to)?.unwrap_or_default();
            add(&mut sum, &count);
            self.uses.insert(&to, &sum)?;
            if let Some(last) = self.uses.take(key)?
                && last != count
            {
                add(&mut sum, &since(&last, &count));
                self.uses.insert(&to, &sum)?;
            }
        }
        self.forget_endpoints(inner)
    }

    /// Forgets states and names of endpoints that are in no list and no row.
    fn forget_endpoints(&self, inner: &mut Inner) -> io::Result<()> {
        let rows: HashSet<_> =
            self.uses.keys(ebpf_common::MAX_USES)?.iter().map(|key| (key.service, key.endpoint)).collect();
        let Inner { names, written, numbers, callers, strange, .. } = inner;
        names.retain(|number, _| numbers.contains(number));
        for (number, (_, endpoints)) in names.iter_mut() {
            let Some(written) = written.get(number) else { continue };
            let listed: HashSet<SocketAddr> = written.content.endpoints.iter().map(|e| e.addr).collect();
            endpoints.retain(|of, addr| listed.contains(addr) || rows.contains(&(*number, *of)));
        }
        for key in self.states.keys(ebpf_common::MAX_SERVICES)? {
            let known = names.get(&key.service).map(|(_, endpoints)| endpoints.contains_key(&key.endpoint));
            if known == Some(false) && written.contains_key(&key.service) || !numbers.contains(&key.service) {
                self.states.remove(&key)?;
            }
        }
        let used: HashSet<_> = self.uses.keys(ebpf_common::MAX_USES)?.iter().map(|key| key.cgroup).collect();
        // Listening sockets that joined connections went to, but no endpoint is there any more.
        let listed: HashSet<_> =
            written.values().flat_map(|w| &w.content.endpoints).map(|e| (octets(e.addr.ip()), e.addr.port())).collect();
        for key in self.joins.keys(ebpf_common::MAX_ACCEPTORS)? {
            if numbers.len() == written.len() && !listed.contains(&(key.addr, u16::from_be(key.port))) {
                self.joins.remove(&key)?;
            }
        }
        callers.retain(|cgroup, _| used.contains(cgroup));
        strange.retain(|cgroup| used.contains(cgroup));
        Ok(())
    }
}

fn add(to: &mut Use, more: &Use) {
    let Use { picked, connects, refused, failed, closed, bytes_up, bytes_down, duration_ns } = more;
    to.picked += picked;
    to.connects += connects;
    to.refused += refused;
    to.failed += failed;
    to.closed += closed;
    to.bytes_up += bytes_up;
    to.bytes_down += bytes_down;
    to.duration_ns += duration_ns;
}

/// What was counted between two readings of one row.
fn since(now: &Use, before: &Use) -> Use {
    Use {
        picked: now.picked - before.picked,
        connects: now.connects - before.connects,
        refused: now.refused - before.refused,
        failed: now.failed - before.failed,
        closed: now.closed - before.closed,
        bytes_up: now.bytes_up - before.bytes_up,
        bytes_down: now.bytes_down - before.bytes_down,
        duration_ns: now.duration_ns - before.duration_ns,
    }
}

/// Number of the control group whose folder this is.
fn number_at(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|meta| meta.ino())
}

/// Notes the paths of all control groups below `dir`, itself included, as seen from `mount`.
fn groups(mount: &Path, dir: &Path, found: &mut HashMap<u64, PathBuf>) {
    if let Some(number) = number_at(dir) {
        found.insert(number, dir.strip_prefix(mount).unwrap_or(dir).to_owned());
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            groups(mount, &entry.path(), found);
        }
    }
}
