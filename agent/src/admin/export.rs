//! `/metrics`: everything that is counted, as Prometheus text.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use ebpf_common::balance::Use;
use model::ServiceKey;

use super::{Handles, process::Process};
use crate::{
    capture::redirect::selftest::{self, Consequence},
    cluster::Cluster,
    endpoint::Endpoint,
    filter::Shows,
    metrics::{
        Ending, MethodStats, PANICS, UNKNOWN_SERVICES,
        graphite::Target,
        prometheus::{Family, Labels, Page, Type},
    },
    registry::Standing,
};

/// Name, type, help and labels of a family.
pub(super) type Head = (&'static str, Type, &'static str, &'static str);

type PerMethod = fn(&mut Family<'_>, &Labels, &MethodStats);
type PerService = fn(&mut Family<'_>, &Labels, &Handles, &Cluster);
type PerCaller = fn(&Use) -> f64;
type PerEndpoint = fn(&Endpoint) -> u64;
type PerTarget = fn(&Target) -> u64;

const CLUSTER: &str = "as the service";

/// By method, where the `metrics` filter is on.
const METHODS: [(Head, PerMethod); 6] = [
    (
        (
            "sockmesh_requests_total",
            Type::Counter,
            "Calls that ended, by class of code and outcome.",
            "as the service, and method, code, outcome",
        ),
        |family, labels, row| {
            for ending in Ending::all() {
                let count = row.count(ending);
                if count > 0 {
                    let labels = labels.clone().with("code", ending.code()).with("outcome", ending.outcome());
                    family.sample(&labels, count);
                }
            }
        },
    ),
    (
        (
            "sockmesh_request_duration_seconds",
            Type::Histogram,
            "Time of a call, body included; of a raw or upgraded connection only the way to its endpoint.",
            "as the service, and method",
        ),
        |family, labels, row| family.histogram(labels, &row.latency.summary()),
    ),
    (
        ("sockmesh_request_bytes_total", Type::Counter, "Payload bytes from callers.", "as the service, and method"),
        |family, labels, row| family.sample(labels, row.request_bytes.load(Relaxed)),
    ),
    (
        ("sockmesh_response_bytes_total", Type::Counter, "Payload bytes to callers.", "as the service, and method"),
        |family, labels, row| family.sample(labels, row.response_bytes.load(Relaxed)),
    ),
    (
        ("sockmesh_attempts_total", Type::Counter, "Attempts made for calls that ended.", "as the service, and method"),
        |family, labels, row| family.sample(labels, row.attempts.load(Relaxed)),
    ),
    (
        (
            "sockmesh_retries_total",
            Type::Counter,
            "Of the attempts, those after the first.",
            "as the service, and method",
        ),
        |family, labels, row| family.sample(labels, row.retries.load(Relaxed)),
    ),
];

/// By method, where the `metrics` filter counts attempts.
const ATTEMPTS: [(Head, PerMethod); 2] = [
    (
        (
            "sockmesh_attempt_results_total",
            Type::Counter,
            "Attempts that ended, by class of code and outcome.",
            "as the service, and method, code, outcome",
        ),
        METHODS[0].1,
    ),
    (
        (
            "sockmesh_attempt_duration_seconds",
            Type::Histogram,
            "Time of an attempt, up to the head of the answer.",
            "as the service, and method",
        ),
        METHODS[1].1,
    ),
];

/// By service, whatever its filters.
const SERVICES: [(Head, PerService); 4] = [
    (
        (
            "sockmesh_service_calls_total",
            Type::Counter,
            "Calls that ended, whatever the filters; a call that the user's own code refused is a success.",
            "as the service, and outcome",
        ),
        |family, labels, _, cluster| {
            let stats = &cluster.info.stats;
            family.sample(&labels.clone().with("outcome", "success"), stats.succeeded.load(Relaxed));
            family.sample(&labels.clone().with("outcome", "failure"), stats.failed.load(Relaxed));
        },
    ),
    (
        ("sockmesh_service_in_flight", Type::Gauge, "Calls and raw connections that have not ended.", CLUSTER),
        |family, labels, _, cluster| {
            let stats = &cluster.info.stats;
            let ended = stats.succeeded.load(Relaxed) + stats.failed.load(Relaxed);
            family.sample(labels, stats.started.load(Relaxed).saturating_sub(ended));
        },
    ),
    (
        (
            "sockmesh_service_stale",
            Type::Gauge,
            "1 while the list of endpoints is older than what its registry holds.",
            CLUSTER,
        ),
        |family, labels, handles, cluster| {
            family.sample(labels, u8::from(handles.stale.get(&cluster.info.key).is_some()));
        },
    ),
    (
        (
            "sockmesh_service_degraded",
            Type::Gauge,
            "1 while a command has its calls answered at once with an error.",
            CLUSTER,
        ),
        |family, labels, _, cluster| family.sample(labels, u8::from(cluster.steering().degraded.is_some())),
    ),
];

/// What filters count, one family for events and one for states.
const FILTERS: [Head; 2] = [
    (
        "sockmesh_filter_events_total",
        Type::Counter,
        "What filters did, see docs/filters.md.",
        "as the service, and filter, event, of",
    ),
    (
        "sockmesh_filter_state",
        Type::Gauge,
        "How filters stand now, see docs/filters.md.",
        "as the service, and filter, state, of",
    ),
];

const ENDPOINT: &str = "as the service, and endpoint, endpoint_group";

/// By endpoint.
const ENDPOINTS: [(Head, PerEndpoint); 4] = [
    (("sockmesh_endpoint_up", Type::Gauge, "1 while the endpoint may be picked.", ENDPOINT), |e| {
        u64::from(e.is_available() && e.weight > 0)
    }),
    (("sockmesh_endpoint_in_flight", Type::Gauge, "Attempts in flight.", ENDPOINT), |e| u64::from(e.in_flight())),
    (("sockmesh_endpoint_attempts_total", Type::Counter, "Attempts begun.", ENDPOINT), |e| {
        e.stats.started.load(Relaxed)
    }),
    (("sockmesh_endpoint_failures_total", Type::Counter, "Attempts that ended badly.", ENDPOINT), |e| {
        e.stats.failed.load(Relaxed)
    }),
];

const TARGET: &str = "target, form";

const CALLER: &str = "service, group, version, endpoint, caller";

/// By endpoint and control group of the caller, for services with `path: kernel`.
const CALLERS: [(Head, PerCaller); 7] = [
    (("sockmesh_kernel_connects_total", Type::Counter, "Connects sent straight to an endpoint.", CALLER), |u| {
        u.connects as f64
    }),
    (("sockmesh_kernel_refused_total", Type::Counter, "Connects refused by `allow` and `deny`.", CALLER), |u| {
        u.refused as f64
    }),
    (
        ("sockmesh_kernel_failed_total", Type::Counter, "Of the connects, those that were never established.", CALLER),
        |u| u.failed as f64,
    ),
    (("sockmesh_kernel_active", Type::Gauge, "Connections straight to an endpoint that exist now.", CALLER), |u| {
        u.connects.saturating_sub(u.closed) as f64
    }),
    (("sockmesh_kernel_sent_bytes_total", Type::Counter, "Payload to endpoints, of ended connections.", CALLER), |u| {
        u.bytes_up as f64
    }),
    (
        (
            "sockmesh_kernel_received_bytes_total",
            Type::Counter,
            "Payload from endpoints, of ended connections.",
            CALLER,
        ),
        |u| u.bytes_down as f64,
    ),
    (("sockmesh_kernel_duration_seconds_total", Type::Counter, "Time that ended connections lasted.", CALLER), |u| {
        std::time::Duration::from_nanos(u.duration_ns).as_secs_f64()
    }),
];

const CONNECTIONS: Head = ("sockmesh_connections", Type::Gauge, "Connections of programs held now.", "");
const CAPTURE: Head =
    ("sockmesh_capture_total", Type::Counter, "Connects seen by the kernel half, by what became of them.", "outcome");
const CAPTURE_INFO: Head = ("sockmesh_capture_info", Type::Gauge, "1 for the way of capture in use.", "capture");
const SELF_TEST: Head = (
    "sockmesh_redirect_selftest",
    Type::Gauge,
    "1 where redirected sockets do as TCP's, 0 where not; by check of the self-test.",
    "check, consequence",
);
const HELD: Head = (
    "sockmesh_endpoints_held",
    Type::Gauge,
    "Endpoints that a registry lists no more and that are kept until that is confirmed.",
    "service, group, registry",
);
const SNAPSHOTS: Head =
    ("sockmesh_snapshot_files_total", Type::Counter, "Writes of snapshot files, by outcome.", "outcome");
const REGISTERED: Head = (
    "sockmesh_registered",
    Type::Gauge,
    "1 while a registry holds the service as it shall, 0 while it does not.",
    "service, group, registry, address",
);
const LOG_LINES: Head = ("sockmesh_access_log_lines_total", Type::Counter, "Access log lines written.", "");
const LOG_DROPPED: Head = (
    "sockmesh_access_log_dropped_total",
    Type::Counter,
    "Access log lines lost because the disk did not keep up or refused them.",
    "",
);
const GRAPHITE: [(Head, PerTarget); 5] = [
    (
        ("sockmesh_graphite_lines_sent_total", Type::Counter, "Lines of figures handed to the network.", TARGET),
        |target| target.sent.load(Relaxed),
    ),
    (
        (
            "sockmesh_graphite_lines_dropped_total",
            Type::Counter,
            "Lines of figures given up: the queue was full, or a packet was refused.",
            TARGET,
        ),
        |target| target.dropped.load(Relaxed),
    ),
    (
        ("sockmesh_graphite_waiting_lines", Type::Gauge, "Lines of figures that wait for their server.", TARGET),
        |target| target.waiting.load(Relaxed),
    ),
    (
        (
            "sockmesh_graphite_failures_total",
            Type::Counter,
            "Connects to the server that failed, and connections that broke.",
            TARGET,
        ),
        |target| target.failures.load(Relaxed),
    ),
    (
        (
            "sockmesh_graphite_connected",
            Type::Gauge,
            "1 while a connection stands; with `motan` once a packet went out.",
            TARGET,
        ),
        |target| u64::from(target.connected.load(Relaxed)),
    ),
];
const SERIES_USED: Head =
    ("sockmesh_series_used", Type::Gauge, "Methods, and endpoints, that have series of their own.", "of");
const SERIES_LIMIT: Head = ("sockmesh_series_limit", Type::Gauge, "How many of them there may be: key `series`.", "of");
const SERIES_REFUSED: Head = (
    "sockmesh_series_refused_total",
    Type::Counter,
    "Calls that were counted under the method `other` because there was no room.",
    "",
);
const UNKNOWN: Head = (
    "sockmesh_unknown_service_total",
    Type::Counter,
    "Calls that named a service, group or version that nobody configured.",
    "",
);
const PANICKED: Head = (
    "sockmesh_panics_total",
    Type::Counter,
    "Panics of the agent: each is a fault of its own, and ended one task.",
    "",
);
const READY: Head = ("sockmesh_ready", Type::Gauge, "1 while the agent serves, 0 while it starts or drains.", "");
const GENERATION: Head =
    ("sockmesh_config_generation", Type::Gauge, "Generation of the configuration in use, 1 at start.", "");
const UPTIME: Head = ("sockmesh_uptime_seconds", Type::Gauge, "Time since the agent started.", "");
const BUILD: Head = ("sockmesh_build_info", Type::Gauge, "1, with the version of the program.", "version");
const RESIDENT: Head = ("sockmesh_process_resident_bytes", Type::Gauge, "Memory of the agent's process.", "");
const CPU: Head =
    ("sockmesh_process_cpu_seconds_total", Type::Counter, "Processor time that the agent's process used.", "");
const FDS: Head = ("sockmesh_process_open_fds", Type::Gauge, "Open file descriptors.", "");
const MAX_FDS: Head = ("sockmesh_process_max_fds", Type::Gauge, "Limit of open file descriptors.", "");

/// Clusters with their labels, which are unique.
type Labelled = Vec<(Arc<Cluster>, Labels)>;

fn labelled(handles: &Handles) -> Labelled {
    let mut seen = HashSet::new();
    let mut labelled = Labelled::new();
    for cluster in handles.clusters.load().iter() {
        let info = &cluster.info;
        let mut labels = Labels::default()
            .with("service", &info.key.service)
            .with("group", &info.key.group)
            .with("direction", info.direction.name())
            .with("protocol", info.protocol);
        if !info.key.version.is_empty() {
            labels = labels.with("version", &info.key.version);
        }
        // A scraper throws the whole page away when a sample comes twice.
        let unique = (1..).map(|n| if n == 1 { labels.clone() } else { labels.clone().with("nth", n) });
        let labels = unique.into_iter().find(|l| seen.insert(l.clone())).expect("some number is free");
        labelled.push((cluster.clone(), labels));
    }
    labelled
}

/// Labels of a service that are as unique as its key.
fn of_key(key: &ServiceKey) -> Labels {
    let labels = Labels::default().with("service", &key.service).with("group", &key.group);
    if key.version.is_empty() { labels } else { labels.with("version", &key.version) }
}

fn head<'a>(page: &'a mut Page, (name, kind, help, _): Head) -> Family<'a> {
    page.family(name, kind, help)
}

fn gauge(page: &mut Page, of: Head, value: impl std::fmt::Display) {
    head(page, of).sample(&Labels::default(), value);
}

/// The page.
pub(super) fn metrics(handles: &Handles, process: &Process) -> String {
    let mut page = Page::default();
    let clusters = labelled(handles);
    services(&mut page, handles, &clusters);
    filters(&mut page, &clusters);
    let limit = handles.series.load().endpoints;
    let shown = endpoints(&mut page, &clusters, limit);
    callers(&mut page, handles);
    agent(&mut page, handles);
    series(&mut page, handles, (shown, limit));

    if let Some(bytes) = process.resident_bytes() {
        gauge(&mut page, RESIDENT, bytes);
    }
    gauge(&mut page, CPU, process.cpu().as_secs_f64());
    if let Some(open) = process.open_descriptors() {
        gauge(&mut page, FDS, open);
    }
    if let Some(max) = process.max_descriptors() {
        gauge(&mut page, MAX_FDS, max);
    }
    page.into_text()
}

fn services(page: &mut Page, handles: &Handles, clusters: &Labelled) {
    let methods: Vec<_> = clusters
        .iter()
        .flat_map(|(cluster, labels)| {
            let rows = cluster.info.stats.methods.rows();
            rows.into_iter().map(|(method, row)| (labels.clone().with("method", method), row))
        })
        .collect();
    for (of, sample) in METHODS {
        let mut family = head(page, of);
        for (labels, row) in &methods {
            sample(&mut family, labels, row);
        }
    }
    for (of, sample) in ATTEMPTS {
        let mut family = head(page, of);
        for (cluster, labels) in clusters {
            for (method, row) in cluster.info.stats.attempts.rows() {
                sample(&mut family, &labels.clone().with("method", method), &row);
            }
        }
    }
    for (of, sample) in SERVICES {
        let mut family = head(page, of);
        for (cluster, labels) in clusters {
            sample(&mut family, labels, handles, cluster);
        }
    }
}

fn filters(page: &mut Page, clusters: &Labelled) {
    let mut figures = Vec::new();
    for (cluster, labels) in clusters {
        for (name, filter) in cluster.filters() {
            filter.figures(&mut Shows::new(&mut |figure| figures.push((labels.clone().with("filter", name), figure))));
        }
    }
    for (of, grows, what) in [(FILTERS[0], true, "event"), (FILTERS[1], false, "state")] {
        let mut family = head(page, of);
        for (labels, figure) in figures.iter().filter(|(_, figure)| figure.grows == grows) {
            family.sample(&labels.clone().with(what, figure.name).with("of", &figure.of), figure.value);
        }
    }
}

/// Writes the series of at most `limit` endpoints; returns of how many.
fn endpoints(page: &mut Page, clusters: &Labelled, limit: usize) -> usize {
    let mut endpoints: Vec<_> = clusters
        .iter()
        .flat_map(|(cluster, labels)| {
            cluster.endpoints().endpoints.iter().map(|e| (labels, e.clone())).collect::<Vec<_>>()
        })
        .collect();
    if endpoints.len() > limit {
        // Those somebody may ask for; the order of the others stays, so that the same ones are shown each time.
        endpoints.sort_by_key(|(_, e)| e.health.is_available() && e.stats.started.load(Relaxed) == 0);
        endpoints.truncate(limit);
    }
    let mut seen = HashSet::new();
    let endpoints: Vec<_> = endpoints
        .into_iter()
        .map(|(labels, e)| (labels.clone().with("endpoint", e.addr).with("endpoint_group", &e.group), e))
        .filter(|(labels, _)| seen.insert(labels.clone()))
        .collect();
    for (of, value) in ENDPOINTS {
        let mut family = head(page, of);
        for (labels, endpoint) in &endpoints {
            family.sample(labels, value(endpoint));
        }
    }
    endpoints.len()
}

fn callers(page: &mut Page, handles: &Handles) {
    let uses = handles.capture.uses();
    for (of, value) in CALLERS {
        let mut family = head(page, of);
        for used in &uses {
            let endpoint = used.endpoint.map_or_else(String::new, |e| e.to_string());
            let labels = Labels::default()
                .with("service", &used.service.service)
                .with("group", &used.service.group)
                .with("version", &used.service.version)
                .with("endpoint", endpoint)
                .with("caller", &used.caller);
            family.sample(&labels, value(&used.count));
        }
    }
}

fn agent(page: &mut Page, handles: &Handles) {
    let rows = handles.counters.rows();
    for rows in rows.chunk_by(|a, b| a.name == b.name) {
        let mut family = page.family(rows[0].name, Type::Counter, rows[0].help);
        for row in rows {
            let labels = row.label.map_or_else(Labels::default, |(l, v)| Labels::default().with(l, v));
            family.sample(&labels, row.value);
        }
    }
    gauge(page, CONNECTIONS, handles.live.len());
    let mut capture = head(page, CAPTURE);
    for (outcome, count) in handles.capture.counters() {
        capture.sample(&Labels::default().with("outcome", outcome), count);
    }
    head(page, CAPTURE_INFO).sample(&Labels::default().with("capture", handles.capture.name()), 1);
    if let Some(report) = selftest::made() {
        let mut family = head(page, SELF_TEST);
        for row in &report.rows {
            let consequence = row.consequence().map_or("", Consequence::text);
            let labels = Labels::default().with("check", row.check).with("consequence", consequence);
            family.sample(&labels, u8::from(row.passed()));
        }
    }
    if let Some(log) = &handles.access_log {
        gauge(page, LOG_LINES, log.written());
        gauge(page, LOG_DROPPED, log.dropped());
    }
    let mut family = head(page, HELD);
    for held in handles.guards.held() {
        let labels = of_key(&held.service).with("registry", &held.registry);
        family.sample(&labels, held.holding.kept);
    }
    if let Some(store) = handles.guards.store() {
        let (state, mut family) = (store.state(), head(page, SNAPSHOTS));
        family.sample(&Labels::default().with("outcome", "written"), state.written);
        family.sample(&Labels::default().with("outcome", "failed"), state.failed);
    }
    let mut family = head(page, REGISTERED);
    for one in handles.registrations.load().iter() {
        let key = &one.provided.key;
        let labels = of_key(key).with("registry", &one.registry).with("address", &one.provided.instance.address);
        family.sample(&labels, u8::from(!matches!(*one.standing.borrow(), Standing::Pending(_))));
    }
    gauge(page, READY, u8::from(*handles.ready.borrow()));
    gauge(page, GENERATION, handles.config.load().generation);
    gauge(page, UPTIME, handles.started.elapsed().as_secs_f64());
    head(page, BUILD).sample(&Labels::default().with("version", handles.version), 1);
}

fn series(page: &mut Page, handles: &Handles, endpoints: (usize, usize)) {
    let of = |name| Labels::default().with("of", name);
    let rows = &handles.rows;
    let mut family = head(page, SERIES_USED);
    family.sample(&of("methods"), rows.used());
    family.sample(&of("endpoints"), endpoints.0);
    let mut family = head(page, SERIES_LIMIT);
    family.sample(&of("methods"), rows.limit());
    family.sample(&of("endpoints"), endpoints.1);
    gauge(page, SERIES_REFUSED, rows.refused());
    gauge(page, UNKNOWN, UNKNOWN_SERVICES.load(Relaxed));
    gauge(page, PANICKED, PANICS.load(Relaxed));
    let targets = handles.graphite.load();
    for (of, value) in GRAPHITE {
        let mut family = head(page, of);
        for target in targets.iter() {
            let labels =
                Labels::default().with("target", &target.config.address).with("form", target.config.form.name());
            family.sample(&labels, value(target));
        }
    }
}

/// Every family that there can be, for the manual.
#[cfg(test)]
pub(super) fn heads() -> Vec<Head> {
    let mut all: Vec<Head> = Vec::new();
    all.extend(METHODS.iter().map(|(head, _)| *head));
    all.extend(ATTEMPTS.iter().map(|(head, _)| *head));
    all.extend(SERVICES.iter().map(|(head, _)| *head));
    all.extend(FILTERS);
    all.extend(ENDPOINTS.iter().map(|(head, _)| *head));
    all.extend(CALLERS.iter().map(|(head, _)| *head));
    let rows = crate::metrics::AgentCounters::default().rows();
    all.extend(
        rows.chunk_by(|a, b| a.name == b.name)
            .map(|rows| (rows[0].name, Type::Counter, rows[0].help, rows[0].label.map_or("", |l| l.0))),
    );
    all.extend(GRAPHITE.iter().map(|(head, _)| *head));
    all.extend([
        SERIES_USED,
        SERIES_LIMIT,
        SERIES_REFUSED,
        UNKNOWN,
        PANICKED,
        CONNECTIONS,
        CAPTURE,
        CAPTURE_INFO,
        SELF_TEST,
        HELD,
        SNAPSHOTS,
        REGISTERED,
        LOG_LINES,
        LOG_DROPPED,
        READY,
        GENERATION,
        UPTIME,
        BUILD,
        RESIDENT,
        CPU,
        FDS,
        MAX_FDS,
    ]);
    all
}
