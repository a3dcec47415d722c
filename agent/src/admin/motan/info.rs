//! Calls that show something.

use std::{collections::BTreeMap, fs, sync::Arc};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Answer, Api, Form, go_json, is_available, text, totals};
use crate::{cluster::Cluster, filter::Direction, registry::Standing};

#[derive(Serialize)]
struct MethodStatus {
    name: String,
    period_call_count: u64,
}

#[derive(Serialize)]
struct ServiceStatus {
    group: String,
    name: String,
    methods: Vec<MethodStatus>,
}

#[derive(Serialize)]
struct Status {
    status: u16,
    service_period_call_count: u64,
    services: Vec<ServiceStatus>,
}

#[derive(Serialize)]
struct Coded<T> {
    code: u16,
    body: T,
}

/// Calls of exported services within the last whole period.
pub(super) fn status(api: &Api) -> Answer {
    let now = totals(api);
    let counts = api.periods.0.lock();
    let mut result = Status { status: code(api), service_period_call_count: 0, services: Vec::new() };
    for cluster in api.handles.clusters.load().iter().filter(|c| c.info.direction == Direction::Inbound) {
        let of_cluster = Arc::as_ptr(&cluster.info) as usize;
        let mut methods = Vec::new();
        for (key, total) in now.iter().filter(|((cluster, _), _)| *cluster == of_cluster) {
            // Before the first period is over, what there is so far.
            let last = counts.last.get(key).copied().unwrap_or(*total);
            let count = last.saturating_sub(counts.before.get(key).copied().unwrap_or(0));
            if count > 0 {
                result.service_period_call_count += count;
                methods.push(MethodStatus { name: key.1.to_string(), period_call_count: count });
            }
        }
        methods.sort_by(|a, b| a.name.cmp(&b.name));
        let key = &cluster.info.key;
        result.services.push(ServiceStatus { group: key.group.clone(), name: key.service.clone(), methods });
    }
    let mut page = Vec::new();
    let indented = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut out = serde_json::Serializer::with_formatter(&mut page, indented);
    Coded { code: 200, body: result }.serialize(&mut out).expect("texts and numbers");
    text(page)
}

fn code(api: &Api) -> u16 {
    if is_available(api) { 200 } else { 503 }
}

/// What registries hold of exported services, in motan-go's words.
pub(super) fn registry_status(api: &Api) -> Answer {
    let wanted = api.handles.availability.get();
    let mut all = if wanted { "register-success" } else { "unregister-success" };
    let mut rows = Vec::new();
    for registered in api.handles.registrations.load().iter() {
        let standing = registered.standing.borrow().clone();
        let (status, why) = match &standing {
            Standing::Available => ("register-success", ""),
            Standing::Unavailable | Standing::Gone => ("unregister-success", ""),
            Standing::Pending(Some(why)) if wanted => ("register-failed", why.as_str()),
            Standing::Pending(Some(why)) => ("unregister-failed", why.as_str()),
            Standing::Pending(None) => ("not-register", ""),
        };
        let worse = match (all, status) {
            ("register-failed" | "unregister-failed", _) => false,
            (_, "register-failed") => wanted,
            (_, "unregister-failed") => !wanted,
            (_, "not-register") => true,
            _ => false,
        };
        if worse {
            all = status;
        }
        let key = &registered.provided.key;
        rows.push(format!(
            "{{\"group\":{},\"service\":{},\"registry\":{},\"status\":\"{status}\",\"errMsg\":{},\"isCheck\":true}}",
            go_json(&key.group),
            go_json(&key.service),
            go_json(&registered.registry),
            go_json(&why),
        ));
    }
    let rows = if rows.is_empty() { "null".to_owned() } else { format!("[{}]", rows.join(",")) };
    text(format!("{{\"status\":\"{all}\",\"registryStatus\":{rows}}}"))
}

/// The configuration: as merged when it is motan-go's, else the file.
pub(super) fn config(api: &Api) -> Answer {
    let shown = api.handles.motan.shown.load();
    let page = match &shown.text {
        Some(merged) => merged.clone(),
        None => fs::read_to_string(&api.handles.config.load().path).unwrap_or_else(|error| error.to_string()),
    };
    text(page)
}

/// `GROUP_VERSION_PROTOCOL_PATH`.
fn name(cluster: &Cluster) -> String {
    let key = &cluster.info.key;
    let version = if key.version.is_empty() { "1.0" } else { &key.version };
    format!("{}_{version}_{}_{}", key.group, cluster.info.protocol, key.service)
}

fn referers(api: &Api) -> Vec<Arc<Cluster>> {
    let clusters = api.handles.clusters.load();
    clusters.iter().filter(|c| c.info.direction == Direction::Outbound).cloned().collect()
}

fn is_reachable(cluster: &Cluster) -> bool {
    cluster.endpoints().endpoints.iter().any(|e| e.is_available())
}

#[derive(Serialize)]
struct Refer {
    name: String,
    status: bool,
}

#[derive(Serialize)]
struct Refers {
    service: Vec<Refer>,
}

pub(super) fn refer_services(api: &Api) -> Answer {
    let refer = |cluster: &Arc<Cluster>| Refer { name: name(cluster), status: is_reachable(cluster) };
    let service = referers(api).iter().map(refer).collect();
    text(go_json(&Coded { code: 200, body: Refers { service } }))
}

pub(super) fn all_services(api: &Api) -> Answer {
    let shown = api.handles.motan.shown.load();
    let services = if shown.services.is_empty() { "null".to_owned() } else { go_json(&shown.services) };
    text(format!("{{\"dynamic_services\":{},\"services\":{services}}}", go_json(&shown.dynamic.register_nodes)))
}

/// Everything of the running agent, or of `keys`.
pub(super) fn runtime(api: &Api, form: &Form) -> Answer {
    let handles = &api.handles;
    let shown = handles.motan.shown.load();
    let mut clusters = Map::new();
    let mut exporters = Map::new();
    for cluster in handles.clusters.load().iter() {
        match cluster.info.direction {
            Direction::Outbound => drop(clusters.insert(name(cluster), cluster_info(cluster))),
            Direction::Inbound => {
                let key = &cluster.info.key;
                let url = format!("{}://{}/{}?group={}", cluster.info.protocol, shown.host, key.service, key.group);
                let provider = json!({ "name": "motan2", "isAvailable": is_reachable(cluster) });
                let exporter = json!({ "url": url, "provider": provider, "isAvailable": is_available(api) });
                exporters.insert(format!("{}_{}", key.group, key.service), exporter);
            }
        }
    }
    let mut servers = Map::new();
    if let Some(port) = shown.forward {
        let handler = json!({ "messageHandlerType": "agentMessageHandler" });
        let server = json!({ "proxy": true, "heartbeatEnabled": true, "messageHandler": handler,
            "url": format!("motan2://:{port}/{0}?group={0}", &*handles.application) });
        servers.insert("agentServer".to_owned(), server);
    }
    let memory = api.process.resident_bytes().unwrap_or(0) >> 20;
    let seconds = handles.started.elapsed().as_secs_f64().max(1.0);
    let cpu = (api.process.cpu().as_secs_f64() * 100.0 / seconds) as u64;
    let mut all: BTreeMap<&str, Value> = BTreeMap::from([
        ("clusters", clusters.into()),
        ("httpClusters", json!({})),
        ("exporters", exporters.into()),
        ("extensionFactory", json!({})),
        ("servers", servers.into()),
        ("basic", json!({ "cpuPercent": cpu, "rssMemory": memory })),
    ]);
    let keys: Vec<_> = form.get("keys").split(',').map(str::trim).filter(|k| !k.is_empty()).collect();
    if !keys.is_empty() {
        all.retain(|key, _| keys.contains(key));
    }
    all.insert("result", json!("ok"));
    all.insert("instanceType", json!("motan-agent"));
    text(go_json(&all))
}

fn cluster_info(cluster: &Cluster) -> Value {
    let key = &cluster.info.key;
    let (mut available, mut unavailable) = (Map::new(), Map::new());
    let set = cluster.endpoints();
    for (i, endpoint) in set.endpoints.iter().enumerate() {
        let protocol = cluster.info.protocol;
        let identity = format!("{i}-{protocol}://{}/{}?group={}", endpoint.addr, key.service, endpoint.group);
        let info = json!({ "name": protocol, "available": endpoint.is_available() });
        match endpoint.is_available() {
            true => available.insert(identity, info),
            false => unavailable.insert(identity, info),
        };
    }
    let filters: Vec<_> = cluster.config.filters.iter().map(|f| json!({ "name": f.name })).collect();
    json!({
        "name": cluster.config.ha.name,
        "url": format!("{}://:0/{}?group={}", cluster.info.protocol, key.service, key.group),
        "refererSize": set.endpoints.len(),
        "referers": { "available": available, "unavailable": unavailable },
        "filters": filters,
    })
}
