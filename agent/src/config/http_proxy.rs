//! `http_proxy`: the forward proxy that sends HTTP requests of some domains as Motan2 calls.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use super::{
    Referer,
    checks::{Role, Seen},
    keys,
    node::Node,
    problem::Report,
    read::{Map, Others, Place, items},
    values::{self, ListenAt, positive_duration, size},
};
use crate::protocol::locations::{Location, Locations};

/// The HTTP forward proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProxy {
    /// Programs dial this address.
    pub listen: Option<SocketAddr>,
    /// Programs dial this unix socket.
    pub listen_unix: Option<PathBuf>,
    /// Domain of requests whose host is none of `domains`.
    pub default_domain: Option<String>,
    /// Requests that go on as plain HTTP: time to connect, and time to the head of the answer.
    pub timeout: Duration,
    /// The same: how long an idle connection to a server is kept; zero is not at all.
    pub keep_alive: Duration,
    /// Largest body of a request that becomes a call.
    pub body_bytes: usize,
    /// Domains whose requests become calls.
    pub domains: Vec<HttpDomain>,
}

/// A domain whose requests become calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpDomain {
    /// Its name, without a port.
    pub domain: String,
    /// Group of its services; empty where each service is a referer in one group only.
    pub group: String,
    /// Which service a path belongs to: a referer that speaks `motan2`.
    pub locations: Vec<Location>,
}

impl Default for HttpProxy {
    fn default() -> Self {
        Self {
            listen: None,
            listen_unix: None,
            default_domain: None,
            timeout: Duration::from_secs(5),
            keep_alive: Duration::from_secs(5),
            body_bytes: 10 * 1024 * 1024,
            domains: Vec::new(),
        }
    }
}

/// Reads the section. `referers` are those of the file.
pub(super) fn read(
    node: &Node,
    path: &str,
    referers: &[Referer],
    seen: &mut Seen,
    report: &mut Report,
) -> Option<HttpProxy> {
    let map = Map::open(node, path, &[&keys::HTTP_PROXY], Others::Unknown, report)?;
    let mut proxy = HttpProxy::default();
    match map.read("listen", values::listen_at, report) {
        Some(ListenAt::Tcp(address)) => {
            proxy.listen = Some(address);
            seen.listener(Role::Agent, address, map.place("listen"), None, &model::ServiceKey::default());
        }
        Some(ListenAt::Unix(path)) => proxy.listen_unix = Some(path),
        None => {}
    }
    proxy.default_domain = map.read("default_domain", values::word, report);
    map.set("timeout", positive_duration, &mut proxy.timeout, report);
    map.set("keep_alive", values::duration, &mut proxy.keep_alive, report);
    map.set("body_bytes", size(1 << 10..=1 << 30), &mut proxy.body_bytes, report);
    if let Some(node) = map.get("domains") {
        for (path, node) in items(node, &map.key("domains"), report) {
            if let Some(domain) = domain(node, path, referers, report) {
                proxy.domains.push(domain);
            }
        }
    }
    if let Some(default) = &proxy.default_domain
        && proxy.domains.iter().all(|d| d.domain != *default)
        && map.get("domains").is_some()
    {
        let remedy = "add it to `domains`, or leave the key out";
        report.mistake(map.place("default_domain").problem(format!("`{default}` is none of `domains`"), remedy));
    }
    Some(proxy)
}

fn domain(node: &Node, path: String, referers: &[Referer], report: &mut Report) -> Option<HttpDomain> {
    let map = Map::open(node, path, &[&keys::HTTP_DOMAIN], Others::Unknown, report)?;
    let mut domain = HttpDomain { domain: String::new(), group: String::new(), locations: Vec::new() };
    map.set("domain", values::word, &mut domain.domain, report);
    map.set("group", values::optional_word, &mut domain.group, report);
    let Some(list) = map.get("locations") else { return Some(domain) };
    for (path, node) in items(list, &map.key("locations"), report) {
        domain.locations.extend(location(node, path, referers, report));
    }
    if let Err(error) = Locations::new(&domain.locations) {
        let text = format!("{error:#}");
        let (problem, remedy) = text.split_once("; ").unwrap_or((&text, "see docs/wire/http-mesh.md"));
        report.mistake(Place::of(list, map.key("locations")).problem(problem, remedy));
    }
    Some(domain)
}

fn location(node: &Node, path: String, referers: &[Referer], report: &mut Report) -> Option<Location> {
    let map = Map::open(node, path, &[&keys::HTTP_LOCATION], Others::Unknown, report)?;
    let mut location = Location { kind: "start".to_owned(), ..Location::default() };
    let text = |text: &str| Ok(text.to_owned());
    map.set("match", text, &mut location.matches, report);
    map.set("type", values::word, &mut location.kind, report);
    map.set("service", values::word, &mut location.service, report);
    let speaks = |r: &Referer| r.key.service == location.service && r.protocol.as_deref() == Some("motan2");
    if !location.service.is_empty() && !referers.iter().any(speaks) {
        let problem = format!("`{}` is no referer that declares `protocol: motan2`", location.service);
        report.mistake(map.place("service").problem(problem, "add it to `referers`; it needs no `listen`"));
    }
    Some(location)
}
