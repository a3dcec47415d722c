//! What happened since the last report: differences of what is counted anyway.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use model::center::{Edge, Histogram, Sample, Side};

use crate::{
    admin::Handles,
    cluster::Cluster,
    endpoint::Stats,
    filter::Direction,
    metrics::{Ending, MethodStats, MethodTable, RowBudget, ServiceStats, Summary},
};

/// Calls slower than this count as slow.
const SLOW: Duration = Duration::from_millis(200);
/// Samples of one report. A centre takes twice as many.
const SAMPLES: usize = 10_000;
/// Reports in which an endpoint or caller without calls is still told of: a centre must see the end.
const IDLE: u32 = 8;
/// Reports after which callers that do not call are forgotten.
const SWEEP: u32 = 300;
/// Reports between two looks at how bytes travel, and connections above which nobody looks.
const WAYS_EVERY: u32 = 5;
const WAYS_CONNECTIONS: usize = 5_000;

/// Something that is counted.
#[derive(Clone)]
enum Source {
    Service(Arc<ServiceStats>),
    Endpoint(Arc<Stats>),
    Caller(Arc<MethodStats>),
}

/// Its counters at one moment.
#[derive(Clone, Default)]
struct Counts {
    calls: u64,
    failed: u64,
    in_flight: u64,
    times: Summary,
}

impl Source {
    fn address(&self) -> usize {
        match self {
            Self::Service(stats) => Arc::as_ptr(stats).addr(),
            Self::Endpoint(stats) => Arc::as_ptr(stats).addr(),
            Self::Caller(stats) => Arc::as_ptr(stats).addr(),
        }
    }

    fn now(&self) -> Counts {
        match self {
            Self::Service(stats) => {
                let failed = stats.failed.load(Relaxed);
                let calls = stats.succeeded.load(Relaxed) + failed;
                let in_flight = stats.started.load(Relaxed).saturating_sub(calls);
                Counts { calls, failed, in_flight, times: stats.latency.summary() }
            }
            Self::Endpoint(stats) => Counts {
                calls: stats.ended.load(Relaxed),
                failed: stats.failed.load(Relaxed),
                in_flight: stats.started.load(Relaxed).saturating_sub(stats.ended.load(Relaxed)),
                times: stats.latency.summary(),
            },
            Self::Caller(stats) => {
                let count = |good: bool| {
                    Ending::all().filter(|e| (e.outcome() == "success") == good).map(|e| stats.count(e)).sum::<u64>()
                };
                let failed = count(false);
                Counts { calls: count(true) + failed, failed, in_flight: 0, times: stats.latency.summary() }
            }
        }
    }
}

/// What was counted before. The source is held so that another one does not get its address.
struct Before {
    _source: Source,
    counts: Counts,
    idle: u32,
}

/// How many connects one caller made to one endpoint of a service of the kernel's way, and how many failed.
type Uses = HashMap<(model::ServiceKey, Option<SocketAddr>, String), (u64, u64)>;

/// One look, to be remembered when it was told.
pub(super) struct Seen {
    pub(super) samples: Vec<Sample>,
    pub(super) edges: Vec<Edge>,
    before: HashMap<usize, Before>,
    uses: Uses,
}

/// What was told before.
pub(super) struct Counted {
    handles: Arc<Handles>,
    before: HashMap<usize, Before>,
    uses: Uses,
    looks: u32,
    /// Services most of whose bytes go past TCP.
    redirected: BTreeSet<String>,
}

impl Counted {
    pub(super) fn new(handles: Arc<Handles>) -> Self {
        Self { handles, before: HashMap::new(), uses: HashMap::new(), looks: 0, redirected: BTreeSet::new() }
    }

    /// What happened since [`Counted::took`].
    pub(super) fn look(&mut self) -> Seen {
        self.looks += 1;
        if self.looks % WAYS_EVERY == 1 {
            self.look_at_ways();
        }
        let handles = self.handles.clone();
        let advertised = advertised(&handles);
        let mut look = Look { before: &self.before, after: HashMap::new(), samples: Vec::new() };
        let mut edges = Vec::new();
        for cluster in handles.clusters.load().iter() {
            let callers = cluster.info.stats.callers.get_or_init(|| MethodTable::within(Arc::<RowBudget>::default()));
            if self.looks.is_multiple_of(SWEEP) {
                callers.sweep(2);
            }
            match cluster.info.direction {
                Direction::Outbound => {
                    let redirected = self.redirected.contains(&cluster.info.key.service);
                    let way = if redirected { "redirect" } else { "tcp" };
                    outbound(cluster, &handles.application, way, &mut look, &mut edges);
                }
                Direction::Inbound => inbound(cluster, &advertised, &mut look),
            }
        }
        let Look { after, mut samples, .. } = look;
        let uses = self.kernel(&mut samples, &mut edges);
        edges.retain(|edge| edge.calls > 0);
        samples.truncate(SAMPLES);
        edges.truncate(SAMPLES);
        Seen { samples, edges, before: after, uses }
    }

    /// The centre knows of it.
    pub(super) fn took(&mut self, seen: Seen) {
        (self.before, self.uses) = (seen.before, seen.uses);
    }

    fn look_at_ways(&mut self) {
        let redirect = self.handles.capture.redirect().filter(|redirect| redirect.disabled().is_none());
        let Some(redirect) = redirect else { return self.redirected.clear() };
        if self.handles.live.len() > WAYS_CONNECTIONS {
            return;
        }
        let mut all: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for row in self.handles.live.rows_with(|socket, pid| Some(redirect.describe(socket, pid))) {
            let (past, bytes) = all.entry(row.service).or_default();
            let size = 1 + row.received_bytes + row.sent_bytes;
            *bytes += size;
            if row.redirect.is_some_and(|way| way == "on" || way.contains("the program; ")) {
                *past += size;
            }
        }
        self.redirected = all.into_iter().filter(|(_, (past, all))| past * 2 > *all).map(|(name, _)| name).collect();
    }

    /// Connects that the kernel sent straight to endpoints.
    fn kernel(&self, samples: &mut Vec<Sample>, edges: &mut Vec<Edge>) -> Uses {
        let mut now = Uses::new();
        let joined: BTreeSet<_> =
            self.handles.capture.connections().into_iter().filter(|c| c.joined).map(|c| c.service).collect();
        for used in self.handles.capture.uses() {
            let caller = caller_of(&used.caller);
            let key = (used.service.clone(), used.endpoint, caller.clone());
            let count = now.entry(key).or_default();
            count.0 += used.count.connects;
            count.1 += used.count.failed;
        }
        for ((service, endpoint, caller), (calls, failed)) in &now {
            let key = (service.clone(), *endpoint, caller.clone());
            let before = self.uses.get(&key).copied().unwrap_or_default();
            let (calls, failed) = (calls.saturating_sub(before.0), failed.saturating_sub(before.1));
            let group = service.group.clone();
            samples.push(Sample {
                service: service.service.clone(),
                group: group.clone(),
                instance: endpoint.map(|at| at.to_string()).unwrap_or_default(),
                caller: caller.clone(),
                calls,
                failed,
                ..Sample::default()
            });
            edges.push(Edge {
                caller: caller.clone(),
                service: service.service.clone(),
                group,
                protocol: "tcp".to_owned(),
                calls,
                failed,
                way: if joined.contains(service) { "joined" } else { "kernel" }.to_owned(),
            });
        }
        now
    }
}

/// The name of a unit or container, from its control group.
fn caller_of(cgroup: &str) -> String {
    let name = cgroup.rsplit('/').find(|part| !part.is_empty()).unwrap_or(cgroup);
    name.strip_suffix(".service").unwrap_or(name).to_owned()
}

/// Addresses under which provided services are registered.
fn advertised(handles: &Handles) -> HashMap<model::ServiceKey, String> {
    let rows = handles.registrations.load();
    rows.iter().map(|row| (row.provided.key.clone(), row.provided.instance.address.clone())).collect()
}

/// One look at everything.
struct Look<'a> {
    before: &'a HashMap<usize, Before>,
    after: HashMap<usize, Before>,
    samples: Vec<Sample>,
}

impl Look<'_> {
    /// What happened at `source`; none when nothing has for a while.
    fn since(&mut self, source: Source) -> Option<Sample> {
        let address = source.address();
        let now = source.now();
        let before = self.before.get(&address);
        let earlier = before.map(|b| &b.counts);
        let none = Counts::default();
        let earlier = earlier.unwrap_or(&none);
        let times = now.times.since(&earlier.times);
        let sample = Sample {
            calls: now.calls.saturating_sub(earlier.calls),
            failed: now.failed.saturating_sub(earlier.failed),
            slow: times.count - times.below(SLOW).min(times.count),
            in_flight: now.in_flight,
            times: histogram(&times),
            ..Sample::default()
        };
        let ever = now.calls > 0 || now.in_flight > 0;
        let idle = if sample.calls > 0 { 0 } else { before.map_or(0, |b| b.idle).saturating_add(1) };
        let always = matches!(source, Source::Service(_));
        self.after.insert(address, Before { _source: source, counts: now, idle });
        (ever && (always || idle <= IDLE)).then_some(sample)
    }
}

fn histogram(times: &Summary) -> Histogram {
    let mut histogram = Histogram::default();
    for (middle, count) in times.middles() {
        histogram.add(u64::try_from(middle.as_micros()).unwrap_or(u64::MAX), count);
    }
    histogram.sum_us = times.sum_ns / 1000;
    histogram
}

/// Calls of local programs: under the groups that took them, which commands may have changed.
fn outbound(cluster: &Arc<Cluster>, application: &str, way: &str, look: &mut Look<'_>, edges: &mut Vec<Edge>) {
    let info = &cluster.info;
    let own = info.key.group.as_str();
    let mut groups: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    for endpoint in &cluster.endpoints().endpoints {
        let group = if endpoint.group.is_empty() { own } else { endpoint.group.as_str() };
        let of_group = groups.entry(group.to_owned()).or_default();
        if let Some(sample) = look.since(Source::Endpoint(endpoint.stats.clone())) {
            of_group.push(Sample { instance: endpoint.addr.to_string(), ..sample });
        }
    }
    let total = look.since(Source::Service(info.stats.clone()));
    let callers = callers(&info.stats, look);
    let Some(total) = total else { return };
    let called = groups.values().filter(|samples| samples.iter().any(|s| s.calls > 0)).count();
    if groups.is_empty() {
        groups.insert(own.to_owned(), Vec::new());
    }
    // With one group all is known exactly. With several the callers of each are told by its share of the calls.
    let one = groups.len() == 1;
    let sum: u64 = groups.values().flatten().map(|s| s.calls).sum();
    for (group, instances) in groups {
        let part: u64 = instances.iter().map(|s| s.calls).sum();
        let failed: u64 = instances.iter().map(|s| s.failed).sum();
        if !one && called > 0 && instances.is_empty() {
            continue;
        }
        let named = |sample: Sample| Sample { service: info.key.service.clone(), group: group.clone(), ..sample };
        let share = |count: u64| match sum {
            _ if one => count,
            0 => 0,
            _ => u64::try_from(u128::from(count) * u128::from(part) / u128::from(sum)).unwrap_or(u64::MAX),
        };
        let edge = |caller: &str, calls: u64, failed: u64| Edge {
            caller: if caller.is_empty() { application.to_owned() } else { caller.to_owned() },
            service: info.key.service.clone(),
            group: group.clone(),
            protocol: info.protocol.to_owned(),
            calls,
            failed,
            way: way.to_owned(),
        };
        if one {
            look.samples.push(named(total.clone()));
        } else {
            // All of the group's instances together.
            let mut all = Sample { calls: part, failed, ..Sample::default() };
            for sample in &instances {
                all.slow += sample.slow;
                all.in_flight += sample.in_flight;
                all.times.merge(&sample.times);
            }
            look.samples.push(named(all));
        }
        look.samples.extend(instances.into_iter().map(named));
        for (caller, sample) in &callers {
            let name = if caller.is_empty() { application } else { caller };
            let mut scaled = sample.clone();
            for count in [&mut scaled.calls, &mut scaled.failed, &mut scaled.slow] {
                *count = share(*count);
            }
            scaled.times.buckets.iter_mut().for_each(|(_, count)| *count = share(*count));
            scaled.times.buckets.retain(|(_, count)| *count > 0);
            scaled.times.sum_us = share(scaled.times.sum_us);
            edges.push(edge(caller, scaled.calls, scaled.failed));
            look.samples.push(named(Sample { caller: name.to_owned(), ..scaled }));
        }
        if callers.is_empty() {
            let (calls, failed) = if one { (total.calls, total.failed) } else { (part, failed) };
            edges.push(edge("", calls, failed));
        }
    }
}

/// Calls of others to a local program, at the address that they know it by.
fn inbound(cluster: &Arc<Cluster>, advertised: &HashMap<model::ServiceKey, String>, look: &mut Look<'_>) {
    let info = &cluster.info;
    let total = look.since(Source::Service(info.stats.clone()));
    let callers = callers(&info.stats, look);
    let Some(total) = total else { return };
    let named = |sample: Sample| Sample {
        side: Side::Inbound,
        service: info.key.service.clone(),
        group: info.key.group.clone(),
        ..sample
    };
    if let Some(instance) = advertised.get(&info.key) {
        look.samples.push(named(Sample { instance: instance.clone(), ..total.clone() }));
    }
    look.samples.push(named(total));
    for (caller, sample) in callers.into_iter().filter(|(caller, _)| !caller.is_empty()) {
        look.samples.push(named(Sample { caller, ..sample }));
    }
}

fn callers(stats: &ServiceStats, look: &mut Look<'_>) -> Vec<(String, Sample)> {
    let rows = stats.callers.get().map(MethodTable::rows).unwrap_or_default();
    let told = |(name, row): (Box<str>, Arc<MethodStats>)| Some((String::from(name), look.since(Source::Caller(row))?));
    rows.into_iter().filter_map(told).collect()
}
