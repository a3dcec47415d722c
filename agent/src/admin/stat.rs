//! From the running parts to what operators see of services and endpoints.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, UNIX_EPOCH},
};

use super::{Handles, view};
use crate::{
    capture::balance::{Failing, Used},
    cluster::Cluster,
    endpoint,
    filter::Shows,
    metrics::{
        Summary,
        window::{Counted, Windows},
    },
};

impl Counted for endpoint::Stats {
    fn calls(&self) -> (u64, u64) {
        (self.started.load(Relaxed), self.ended.load(Relaxed))
    }

    fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    fn latency(&self) -> Summary {
        self.latency.summary()
    }
}

/// Everything that windows are kept of.
pub(super) fn counted(clusters: &[Arc<Cluster>]) -> impl Iterator<Item = Arc<dyn Counted>> + '_ {
    clusters.iter().flat_map(|cluster| {
        let endpoints = cluster.endpoints();
        let endpoints: Vec<_> = endpoints.endpoints.iter().map(|e| e.stats.clone() as Arc<dyn Counted>).collect();
        std::iter::once(cluster.info.stats.clone() as Arc<dyn Counted>).chain(endpoints)
    })
}

pub(super) fn stat(handles: &Handles, windows: &Windows) -> view::Stat {
    let failing = handles.capture.failures();
    view::Stat {
        agent: agent(handles),
        window_seconds: windows.length().as_secs_f64(),
        services: handles.clusters.load().iter().map(|c| service(handles, windows, &failing, c)).collect(),
        callers: handles.capture.uses().iter().map(caller).collect(),
    }
}

fn caller(used: &Used) -> view::Caller {
    let count = &used.count;
    view::Caller {
        service: used.service.service.clone(),
        endpoint: used.endpoint,
        caller: used.caller.clone(),
        connects: count.connects,
        refused: count.refused,
        failed: count.failed,
        active: in_flight((count.connects, count.closed)),
        sent_bytes: count.bytes_up,
        received_bytes: count.bytes_down,
        duration_seconds: Duration::from_nanos(count.duration_ns).as_secs_f64(),
    }
}

/// Connections of programs, those that go straight to an endpoint last.
pub(super) fn sockets(handles: &Handles) -> view::Sockets {
    let redirect = handles.capture.redirect();
    let mut sockets = handles.live.rows_with(|socket, pid| Some(redirect.as_ref()?.describe(socket, pid)));
    let disabled = redirect.as_ref().and_then(|redirect| redirect.disabled());
    sockets.extend(handles.capture.connections().into_iter().map(|c| {
        let unspecified =
            if c.destination.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        view::LiveRow {
            pid: c.pid,
            process: c.process,
            peer: c.local.unwrap_or(SocketAddr::new(unspecified, 0)),
            destination: c.destination,
            captured: true,
            protocol: "tcp".to_owned(),
            service: c.service.service,
            endpoint: Some(c.endpoint),
            calls: 1,
            received_bytes: c.bytes.0,
            sent_bytes: c.bytes.1,
            age_seconds: c.age.as_secs_f64(),
            redirect: match c.apart {
                Some(why) => Some(format!("not joined: {}", disabled.as_deref().unwrap_or(why))),
                None => c.joined.then(|| "joined".to_owned()),
            },
        }
    }));
    view::Sockets { sockets }
}

fn agent(handles: &Handles) -> view::Agent {
    view::Agent {
        name: handles.name.clone(),
        application: handles.application.to_string(),
        version: handles.version.to_owned(),
        ready: *handles.ready.borrow(),
        uptime_seconds: handles.started.elapsed().as_secs_f64(),
        capture: handles.capture.name().to_owned(),
        capture_reason: handles.capture_reason.clone(),
        generation: handles.config.load().generation,
        connections: handles.live.len(),
    }
}

fn service(handles: &Handles, windows: &Windows, failing: &[Failing], cluster: &Cluster) -> view::Service {
    let info = &cluster.info;
    let stats = &info.stats;
    let lately = windows.lately(&(stats.clone() as Arc<dyn Counted>));
    view::Service {
        service: info.key.service.clone(),
        group: info.key.group.clone(),
        version: info.key.version.clone(),
        direction: info.direction.name().to_owned(),
        protocol: info.protocol.to_owned(),
        stale: handles.stale.get(&info.key),
        figures: view::Figures::new(
            &lately,
            in_flight(stats.calls()),
            stats.started.load(Relaxed),
            stats.failed.load(Relaxed),
        ),
        request_bytes: stats.request_bytes.load(Relaxed),
        response_bytes: stats.response_bytes.load(Relaxed),
        endpoints: cluster.endpoints().endpoints.iter().map(|e| endpoint(windows, cluster, failing, e)).collect(),
        filters: filters(cluster),
    }
}

fn filters(cluster: &Cluster) -> Vec<view::Filter> {
    let shown = cluster.filters().map(|(name, filter)| {
        let mut figures = Vec::new();
        filter.figures(&mut Shows::new(&mut |figure| {
            figures.push(view::FilterFigure { name: figure.name.to_owned(), of: figure.of, value: figure.value });
        }));
        view::Filter { filter: name.to_owned(), figures }
    });
    shown.filter(|filter| !filter.figures.is_empty()).collect()
}

fn in_flight((started, ended): (u64, u64)) -> u64 {
    // The two are not read at one moment.
    started.saturating_sub(ended)
}

fn endpoint(
    windows: &Windows,
    cluster: &Cluster,
    failing: &[Failing],
    endpoint: &endpoint::Endpoint,
) -> view::Endpoint {
    let standing = endpoint.health.standing();
    let passed_over = failing
        .iter()
        .find(|f| f.endpoint == endpoint.addr && f.service == cluster.info.key && !f.pause.is_zero())
        .filter(|_| standing.available && endpoint.weight > 0);
    let stats = &endpoint.stats;
    let lately = windows.lately(&(stats.clone() as Arc<dyn Counted>));
    let state = match (standing.available, endpoint.weight) {
        (_, 0) => "weight 0",
        (true, _) if passed_over.is_some() => "passed over",
        (true, _) if !endpoint.is_available() => "barred",
        (true, _) => "up",
        (false, _) => "out",
    };
    let why =
        passed_over.map(|f| format!("connects failed: {}, tried again in {} s", f.failures, f.pause.as_secs() + 1));
    view::Endpoint {
        address: endpoint.addr,
        group: endpoint.group.to_string(),
        weight: endpoint.weight,
        available: endpoint.is_available() && endpoint.weight > 0,
        state: state.to_owned(),
        reason: why
            .or_else(|| standing.reason.map(str::to_owned))
            .or_else(|| (!endpoint.is_available()).then(|| "a filter keeps calls away after failures".to_owned())),
        since_seconds: standing.since.map(|d| d.as_secs_f64()),
        figures: view::Figures::new(
            &lately,
            endpoint.in_flight().into(),
            stats.started.load(Relaxed),
            stats.failed.load(Relaxed),
        ),
    }
}

pub(super) fn endpoints(handles: &Handles, windows: &Windows) -> view::Endpoints {
    let failing = handles.capture.failures();
    let mut rows = Vec::new();
    let mut troubles: Vec<view::Trouble> = Vec::new();
    for cluster in handles.clusters.load().iter() {
        let info = &cluster.info;
        let stale = handles.stale.get(&info.key);
        let set = cluster.endpoints();
        let message = match &stale {
            Some(reason) => Some(format!("the list of endpoints is old: {reason}")),
            None if set.endpoints.is_empty() => Some("no endpoint is known".to_owned()),
            None => None,
        };
        let name = info.key.to_string();
        // A service whose protocol is detected is here once for each protocol.
        if let Some(message) = message
            && !troubles.iter().any(|t| t.service == name && t.message == message)
        {
            troubles.push(view::Trouble { service: name, message });
        }
        rows.extend(set.endpoints.iter().map(|e| view::EndpointRow {
            service: info.key.service.clone(),
            direction: info.direction.name().to_owned(),
            protocol: info.protocol.to_owned(),
            stale: stale.clone(),
            endpoint: endpoint(windows, cluster, &failing, e),
        }));
    }
    view::Endpoints { endpoints: rows, troubles }
}

pub(super) fn names(handles: &Handles) -> view::Names {
    let zone = handles.names.zone();
    let rows = zone.rows().map(|(name, entry)| view::Name {
        name: name.to_owned(),
        ipv4: entry.v4,
        ipv6: entry.v6,
        port: entry.port,
        service: entry.key.to_string(),
    });
    view::Names { names: rows.collect() }
}

pub(super) fn config(handles: &Handles) -> view::Config {
    let info = handles.config.load();
    let loaded_at = info.loaded_at.duration_since(UNIX_EPOCH).unwrap_or_default();
    view::Config {
        path: info.path.display().to_string(),
        generation: info.generation,
        loaded_at_seconds: loaded_at.as_secs_f64(),
        last_error: info.last_error.clone(),
        capture: handles.capture.name().to_owned(),
        capture_reason: handles.capture_reason.clone(),
    }
}

/// Calls per second of a cluster, and attempts per second of its endpoints by address and group.
pub(super) fn rates(windows: &Windows, cluster: &Cluster) -> (f64, HashMap<(String, String), f64>) {
    let rate = |stats: Arc<dyn Counted>| windows.lately(&stats).rate;
    let set = cluster.endpoints();
    let rows = set.endpoints.iter();
    let rows = rows.map(|e| ((e.addr.to_string(), e.group.to_string()), rate(e.stats.clone())));
    (rate(cluster.info.stats.clone()), rows.collect())
}
