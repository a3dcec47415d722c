//! Referers, services and what they share: how calls are made.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use model::ServiceKey;

use super::{
    CallPath, Caller, Cluster, Eject, Method, OnAgentLoss, Referer, Service,
    checks::{Role, Seen},
    governance,
    instances::instances,
    keys, kinds,
    node::{Data, Node},
    problem::{Report, did_you_mean},
    read::{Map, Others, Place, entries, items, join, one_or_more, scalar},
    values::{self, ListenAt, boolean, duration_range, number, positive_duration, size},
};
use crate::{call::Text, kind::BuildCx};

const ON_AGENT_LOSS: &[(&str, OnAgentLoss)] = &[("direct", OnAgentLoss::Direct), ("refuse", OnAgentLoss::Refuse)];

const PATHS: &[(&str, CallPath)] = &[("agent", CallPath::Agent), ("kernel", CallPath::Kernel)];

/// A service that local programs call.
pub(super) fn referer(node: &Node, path: &str, cx: &BuildCx, seen: &mut Seen, report: &mut Report) -> Option<Referer> {
    let map = Map::open(node, path, &[&keys::REFERER, &keys::CLUSTER], Others::Unknown, report)?;
    let key = key(&map, report);
    let cx = BuildCx { service: Text::from(key.service.as_str()), ..cx.clone() };
    let protocol = map.read("protocol", kinds::protocol, report);

    let mut addresses = Vec::new();
    if let Some(node) = map.get("address") {
        for (path, node) in one_or_more(node, &map.key("address"), report) {
            if let Some(address) = scalar(node, &path, values::virtual_address, report) {
                seen.address(address, Place::of(node, path), report);
                addresses.push(address);
            }
        }
    }
    let (mut listen, mut listen_unix) = (None, None);
    match map.read("listen", values::listen_at, report) {
        Some(ListenAt::Tcp(address)) => listen = Some(address),
        Some(ListenAt::Unix(path)) => listen_unix = Some(path),
        None => {}
    }
    if let Some(address) = listen {
        seen.listener(Role::Referer, address, map.place("listen"), protocol.as_deref(), &key);
    }
    if map.get("address").is_none() && map.get("listen").is_none() && !seen.names && !seen.http_proxy {
        let remedy = "add `address: 240.0.0.1:80` (captured) or `listen: 127.0.0.1:18080` (dialed)";
        report.mistake(
            Place { at: node.at, key: path.to_owned(), value: None }.problem("no program can reach it", remedy),
        );
    }

    let registries = registries(&map, seen, report);
    let endpoints = endpoints(&map, report);
    let mix_groups = governance::groups(&map, "mix_groups", report);
    let application = map.read("application", |text| values::word(text).map(Text::from), report);
    let sources = [map.get("registry"), map.get("endpoints")].into_iter().flatten();
    // A source that was written, but wrongly, has been told already.
    if sources.clone().count() == 0 || sources.into_iter().all(is_empty) {
        let place = Place { at: node.at, key: path.to_owned(), value: None };
        report.mistake(place.problem("has no endpoints", "add `endpoints: [IP:PORT]` or `registry: NAME`"));
    }
    if !endpoints.is_empty() && registries.is_empty() && endpoints.iter().all(|e| e.weight == 0) {
        let remedy = "give at least one a weight above 0, or every call fails";
        report.warn(map.place("endpoints").problem("every endpoint has weight 0", remedy));
    }
    if let Some(listen) = listen
        && endpoints.iter().any(|e| e.address == listen.to_string())
    {
        report.mistake(map.place("endpoints").problem(
            format!("`{listen}` is the agent's own `listen`: calls would run in a circle"),
            "name the address of the real server",
        ));
    }

    let on_agent_loss = map.read("on_agent_loss", values::choice(ON_AGENT_LOSS), report).unwrap_or_default();
    if on_agent_loss == OnAgentLoss::Refuse && map.get("address").is_none() && !seen.names {
        let remedy = "add `address`, or leave the key out: programs that dial `listen` are refused anyway";
        report.warn(map.place("on_agent_loss").problem("`refuse` has no effect without a captured address", remedy));
    }
    let (call_path, allow, deny) = call_path(&map, protocol.as_deref(), report);
    let place = Place { at: node.at, key: path.to_owned(), value: None };
    seen.referers.push(place.clone());
    seen.service(Role::Referer, &key, place, report);
    let cluster = cluster(&map, &cx, report);
    Some(Referer {
        key,
        protocol,
        addresses,
        listen,
        listen_unix,
        on_agent_loss,
        path: call_path,
        allow,
        deny,
        registries,
        endpoints,
        mix_groups,
        application,
        cluster,
    })
}

/// `path` and the keys that mean something for it only.
fn call_path(map: &Map<'_>, protocol: Option<&str>, report: &mut Report) -> (CallPath, Vec<Caller>, Vec<Caller>) {
    let path = map.read("path", values::choice(PATHS), report).unwrap_or_default();
    let (allow, deny) = (callers(map, "allow", report), callers(map, "deny", report));
    if path == CallPath::Agent {
        // A `path` that was written, but wrongly, has been told already.
        let agents =
            map.get("path").is_none_or(|_| map.read("path", values::choice(PATHS), &mut Report::default()).is_some());
        let lists = [("allow", &allow), ("deny", &deny)];
        for (name, _) in lists.into_iter().filter(|(_, list)| agents && !list.is_empty()) {
            let remedy = "add `path: kernel` and `protocol: tcp`, or leave the key out";
            report.mistake(map.place(name).problem("works with `path: kernel` only", remedy));
        }
        return (path, allow, deny);
    }
    if protocol != Some("tcp") {
        let problem = match protocol {
            Some(protocol) => format!("`kernel` cannot carry `{protocol}`: nobody would read its calls"),
            None => "`kernel` without a declared protocol: nobody would read its calls".to_owned(),
        };
        report.mistake(map.place("path").problem(problem, "write `protocol: tcp`, or take `path: agent`"));
    }
    if map.get("address").is_none() {
        let remedy = "add `address`, or take `path: agent`";
        report.mistake(map.place("path").problem("`kernel` has no effect without a captured address", remedy));
    }
    (path, allow, deny)
}

fn callers(map: &Map<'_>, name: &str, report: &mut Report) -> Vec<Caller> {
    let Some(node) = map.get(name) else { return Vec::new() };
    let mut callers = Vec::new();
    for (path, node) in items(node, &map.key(name), report) {
        let place = Place { at: node.at, key: path.clone(), value: None };
        let Some(map) = Map::open(node, path, &[&keys::CALLER], Others::Unknown, report) else { continue };
        let written = (map.get("uid").is_some(), map.get("cgroup").is_some());
        let uid = map.read("uid", number(0..=u32::MAX - 1), report).map(Caller::Uid);
        let cgroup = map.read("cgroup", values::absolute_path, report).map(Caller::Cgroup);
        match written {
            (true, false) | (false, true) => callers.extend(uid.or(cgroup)),
            (true, true) => {
                report.mistake(place.problem("names a user and a control group", "make two entries of it"));
            }
            (false, false) => report.mistake(place.problem("names nobody", "write `uid: 1000` or `cgroup: /path`")),
        }
    }
    callers
}

/// A service that a local program provides.
pub(super) fn service(node: &Node, path: &str, cx: &BuildCx, seen: &mut Seen, report: &mut Report) -> Option<Service> {
    let map = Map::open(node, path, &[&keys::SERVICE, &keys::CLUSTER], Others::Unknown, report)?;
    let key = key(&map, report);
    let cx = BuildCx { service: Text::from(key.service.as_str()), ..cx.clone() };
    let protocol = map.read("protocol", kinds::protocol, report);
    let export = map.read("export", values::listen_address, report);
    let at = map.read("local", values::connect_to, report);
    let (local, local_unix) = match at {
        Some(ListenAt::Tcp(address)) => (Some(address), None),
        // Stands for it wherever an address is shown.
        Some(ListenAt::Unix(path)) => (Some(SocketAddr::from(([127, 0, 0, 1], 0))), Some(path)),
        None => (None, None),
    };
    if let Some(export) = export {
        seen.listener(Role::Service, export, map.place("export"), protocol.as_deref(), &key);
    }
    if let (Some(export), Some(local)) = (export, local)
        && super::checks::overlap(export, local)
    {
        let problem = format!("`{local}` is the service's own `export`: calls would run in a circle");
        report.mistake(map.place("local").problem(problem, "let the program listen on another port"));
    }
    let mut inbound = Vec::new();
    if let Some(node) = map.get("inbound") {
        for (path, node) in one_or_more(node, &map.key("inbound"), report) {
            if let Some(address) = scalar(node, &path, values::inbound_address, report) {
                seen.inbound(address, Place::of(node, path), report);
                inbound.push(address);
            }
        }
    }
    let place = Place { at: node.at, key: path.to_owned(), value: None };
    if map.get("export").is_none() && map.get("inbound").is_none() {
        let remedy = "add `export: 0.0.0.0:8080` (callers dial the agent) or `inbound: 8080` (captured)";
        report.mistake(place.problem("no caller can reach it", remedy));
    }
    seen.service(Role::Service, &key, place, report);
    let registries = registries(&map, seen, report);
    let registration = governance::registration(&map, registries, protocol.as_deref(), report);
    let mut cluster = cluster(&map, &cx, report);
    cluster.local_unix = local_unix;
    map.set("client_address", boolean, &mut cluster.client_address, report);
    if cluster.client_address && !matches!(protocol.as_deref(), Some("http" | "tcp")) {
        let problem = "needs a protocol in which callers share no connection, declared as `protocol: http` or `tcp`";
        let remedy = "declare it; Motan2 programs find the caller's address in the call's metadata";
        report.mistake(map.place("client_address").problem(problem, remedy));
    }
    Some(Service { key, protocol, export, inbound, local: local?, registration, cluster })
}

fn is_empty(node: &Node) -> bool {
    match &node.data {
        Data::Null => true,
        Data::Scalar { text, .. } => text.is_empty(),
        Data::List(list) => list.is_empty(),
        Data::Map(_) => false,
    }
}

fn key(map: &Map<'_>, report: &mut Report) -> ServiceKey {
    let mut key = ServiceKey::default();
    map.set("service", values::word, &mut key.service, report);
    map.set("group", values::optional_word, &mut key.group, report);
    map.set("version", values::optional_word, &mut key.version, report);
    key
}

fn registries(map: &Map<'_>, seen: &Seen, report: &mut Report) -> Vec<String> {
    let mut names = Vec::new();
    let Some(node) = map.get("registry") else { return names };
    for (path, node) in one_or_more(node, &map.key("registry"), report) {
        let Some(name) = scalar(node, &path, values::word, report) else { continue };
        let place = Place::of(node, path);
        if !seen.registries.contains(&name) {
            let known: Vec<_> = seen.registries.iter().map(String::as_str).collect();
            let remedy = match known.is_empty() {
                true => format!("declare it: `registries: {{{name}: {{kind: file, path: nodes.yaml}}}}`"),
                false => did_you_mean(&name, &known),
            };
            report.mistake(place.problem(format!("`{name}` is not declared under `registries`"), remedy));
        } else if names.contains(&name) {
            report.mistake(place.problem(format!("`{name}` stands in the list twice"), "keep one of them"));
        } else {
            names.push(name);
        }
    }
    names
}

fn endpoints(map: &Map<'_>, report: &mut Report) -> Vec<model::Instance> {
    let Some(node) = map.get("endpoints") else { return Vec::new() };
    let found = instances(node, &map.key("endpoints"), report);
    // In a registry's file a bad address costs one endpoint; here a person is at hand to correct it.
    found.left_out.into_iter().for_each(|p| report.mistake(p));
    found.good
}

fn cluster(map: &Map<'_>, cx: &BuildCx, report: &mut Report) -> Cluster {
    let mut cluster = Cluster::default();
    let c = &mut cluster;
    c.timeout = map.read("timeout", positive_duration, report);
    c.timeout_range = map.read("timeout_range", duration_range, report);
    map.set("connect_timeout", positive_duration, &mut c.connect_timeout, report);
    if let Some(named) = map.get("ha").and_then(|n| kinds::HA.named(n, &map.key("ha"), cx, report)) {
        c.ha = named;
    }
    if let Some(named) = map.get("lb").and_then(|n| kinds::LB.named(n, &map.key("lb"), cx, report)) {
        c.lb = named;
    }
    if let Some(node) = map.get("filters") {
        c.filters = kinds::FILTER.list(node, &map.key("filters"), cx, report);
    }
    map.set("retries", number(0..=100), &mut c.retries, report);
    map.set("idempotent", boolean, &mut c.idempotent, report);
    if let Some(node) = map.get("methods") {
        c.methods = methods(node, &map.key("methods"), report);
    }
    map.set("connections", number(1..=1024), &mut c.connections, report);
    map.set("idle_connections", number(0..=65_536), &mut c.idle_connections, report);
    map.set("idle_timeout", positive_duration, &mut c.idle_timeout, report);
    map.set("max_in_flight", number(1..=1_000_000), &mut c.max_in_flight, report);
    if let Some(node) = map.get("eject") {
        eject(node, &map.key("eject"), &mut c.eject, report);
    }
    map.set("gzip_over", size(0..=1 << 30), &mut c.gzip_over, report);
    if let Some(node) = map.get("upstream") {
        c.upstream = kinds::UPSTREAM.named(node, &map.key("upstream"), cx, report);
        let motan2 =
            map.get("protocol").is_some_and(|n| matches!(&n.data, Data::Scalar { text, .. } if text == "motan2"));
        if c.upstream.is_some() && !motan2 {
            let remedy = "declare `protocol: motan2`, or leave it out";
            report.mistake(map.place("upstream").problem("converts only calls that come as Motan2", remedy));
        }
    }
    if c.timeout.is_some_and(|t| c.connect_timeout > t) && map.get("connect_timeout").is_some() {
        let problem = "is longer than the `timeout` of the whole call";
        report.warn(map.place("connect_timeout").problem(problem, "make it shorter, or a retry never has time"));
    }
    cluster
}

fn methods(node: &Node, path: &str, report: &mut Report) -> BTreeMap<String, Method> {
    let mut methods = BTreeMap::new();
    for entry in entries(node, path, report).unwrap_or_default() {
        let path = join(path, &entry.key);
        let Some(map) = Map::open(&entry.value, path, &[&keys::METHOD], Others::Unknown, report) else { continue };
        let method = Method {
            timeout: map.read("timeout", positive_duration, report),
            retries: map.read("retries", number(0..=100), report),
            idempotent: map.read("idempotent", boolean, report),
        };
        methods.insert(entry.key.clone(), method);
    }
    methods
}

fn eject(node: &Node, path: &str, eject: &mut Eject, report: &mut Report) {
    let Some(map) = Map::open(node, path, &[&keys::EJECT], Others::Unknown, report) else { return };
    map.set("connect_failures", number(1..=1_000_000), &mut eject.connect_failures, report);
    map.set("failures", number(1..=1_000_000), &mut eject.failures, report);
    map.set("pause", positive_duration, &mut eject.pause, report);
    map.set("max_pause", positive_duration, &mut eject.max_pause, report);
    if eject.pause > eject.max_pause {
        let text = |d: Duration| format!("{d:?}");
        let problem = format!("pause ({}) is longer than max_pause ({})", text(eject.pause), text(eject.max_pause));
        let at = if map.get("pause").is_some() { "pause" } else { "max_pause" };
        report.mistake(map.place(at).problem(problem, "make max_pause at least as long"));
    }
}
