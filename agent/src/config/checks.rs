//! What no single value shows: listeners that collide, addresses claimed twice, parts without effect.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use model::ServiceKey;

use super::{CaptureMode, Config, Referer, VirtualAddress, problem::Report, read::Place};

/// What was seen on the way through the file, with positions.
#[derive(Default)]
pub(super) struct Seen {
    /// Names declared under `registries`.
    pub registries: BTreeSet<String>,
    /// `ports.outbound`, `ports.inbound`, `ports.dns`, `ports.admin`.
    pub ports: [Place; 4],
    /// Programs may find services by name, which then need no address.
    pub names: bool,
    /// There is an HTTP forward proxy, which calls services that need no address either.
    pub http_proxy: bool,
    pub capture: Place,
    /// Every referer, in order.
    pub referers: Vec<Place>,
    addresses: HashMap<VirtualAddress, Place>,
    inbound: HashMap<VirtualAddress, Place>,
    services: HashMap<(Role, ServiceKey), Place>,
    listeners: Vec<Listener>,
}

/// Whose listener it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    Agent,
    Referer,
    Service,
}

struct Listener {
    role: Role,
    address: SocketAddr,
    place: Place,
    protocol: Option<String>,
    key: ServiceKey,
}

impl Seen {
    /// A captured destination; one belongs to one referer.
    pub fn address(&mut self, address: VirtualAddress, place: Place, report: &mut Report) {
        match self.addresses.get(&address) {
            Some(first) => {
                let problem = format!("`{}` is taken by {} (line {})", shown(&place), first.key, first.at.line);
                report.mistake(place.problem(problem, "give each service an address or a port of its own"));
            }
            None => drop(self.addresses.insert(address, place)),
        }
    }

    /// A captured address of a provided service; one belongs to one service.
    pub fn inbound(&mut self, address: VirtualAddress, place: Place, report: &mut Report) {
        match self.inbound.get(&address) {
            Some(first) => {
                let problem = format!("`{}` is taken by {} (line {})", shown(&place), first.key, first.at.line);
                report.mistake(place.problem(problem, "an address belongs to one service: keep one of them"));
            }
            None => drop(self.inbound.insert(address, place)),
        }
    }

    /// An address on which the agent will listen for one service.
    pub fn listener(
        &mut self,
        role: Role,
        address: SocketAddr,
        place: Place,
        protocol: Option<&str>,
        key: &ServiceKey,
    ) {
        let protocol = protocol.map(str::to_owned);
        self.listeners.push(Listener { role, address, place, protocol, key: key.clone() });
    }

    /// A service declared as called or as provided.
    pub fn service(&mut self, role: Role, key: &ServiceKey, place: Place, report: &mut Report) {
        if key.service.is_empty() {
            return;
        }
        match self.services.get(&(role, key.clone())) {
            Some(first) => {
                let problem = format!("`{key}` is declared before, as {} (line {})", first.key, first.at.line);
                let remedy = "list all addresses in one place, or tell them apart by group or version";
                report.warn(place.problem(problem, remedy));
            }
            None => drop(self.services.insert((role, key.clone()), place)),
        }
    }
}

fn shown(place: &Place) -> &str {
    place.value.as_deref().unwrap_or_default()
}

/// Whether two sockets cannot both listen, or a connect to one may reach the other.
pub(super) fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let wide = |a: IpAddr, b: IpAddr| match a {
        IpAddr::V4(v4) => v4.is_unspecified() && b.is_ipv4(),
        // The agent's IPv6 listeners take no IPv4.
        IpAddr::V6(v6) => v6.is_unspecified() && b.is_ipv6(),
    };
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || wide(a.ip(), b.ip()) || wide(b.ip(), a.ip()))
}

/// Everything that needs the whole file.
pub(super) fn check(config: &Config, seen: &Seen, report: &mut Report) {
    listeners(config, seen, report);
    capture(config, seen, report);
    if config.referers.is_empty() && config.services.is_empty() && report.mistakes.is_empty() {
        let place = Place::default();
        report.warn(place.problem("there is nothing to do", "add `referers:` or `services:`"));
    }
}

fn listeners(config: &Config, seen: &Seen, report: &mut Report) {
    let [outbound, inbound, dns, admin] = &seen.ports;
    let at = |ip: IpAddr, port: u16, place: &Place| Listener {
        role: Role::Agent,
        address: SocketAddr::new(ip, port),
        place: place.clone(),
        protocol: None,
        key: ServiceKey::default(),
    };
    let ports = &config.ports;
    let own = [
        at(Ipv4Addr::LOCALHOST.into(), ports.outbound, outbound),
        at(Ipv6Addr::LOCALHOST.into(), ports.outbound, outbound),
        at(Ipv4Addr::UNSPECIFIED.into(), ports.inbound, inbound),
        at(Ipv6Addr::UNSPECIFIED.into(), ports.inbound, inbound),
        at(Ipv4Addr::LOCALHOST.into(), ports.dns, dns),
        at(Ipv6Addr::LOCALHOST.into(), ports.dns, dns),
        at(ports.admin.ip(), ports.admin.port(), admin),
    ];
    // Only sockets of one port can collide.
    let mut by_port: BTreeMap<u16, Vec<&Listener>> = BTreeMap::new();
    for listener in own.iter().chain(&seen.listeners).filter(|l| l.address.port() != 0) {
        by_port.entry(listener.address.port()).or_default().push(listener);
    }
    // One complaint per listener: with the first it collides with.
    let mut complained = HashSet::new();
    for group in by_port.values() {
        for (i, listener) in group.iter().enumerate() {
            for first in group[..i].iter().filter(|l| l.place.key != listener.place.key) {
                if complained.contains(&listener.place.key) {
                    break;
                }
                let shared =
                    first.role == listener.role && first.role != Role::Agent && first.address == listener.address;
                let told = if shared { sharing(first, listener, report) } else { clash(first, listener, report) };
                if told {
                    complained.insert(&listener.place.key);
                }
            }
        }
    }
    // A captured destination that is the agent's own socket would be carried to itself for ever.
    for (address, place) in &seen.addresses {
        let own = own.iter().chain(&seen.listeners).find(|l| {
            let port = address.port.unwrap_or(l.address.port());
            overlap(SocketAddr::new(address.ip, port), l.address) && address.ip.is_loopback()
        });
        if let Some(own) = own {
            let problem = format!("`{}` is where the agent itself listens ({})", shown(place), own.place.key);
            report.mistake(place.problem(problem, "take an address that exists nowhere, such as 240.0.0.1"));
        }
    }
}

fn clash(first: &Listener, second: &Listener, report: &mut Report) -> bool {
    if !overlap(first.address, second.address) {
        return false;
    }
    // The later one is told, unless it is a default that nobody wrote.
    let (told, other) = if second.place.value.is_some() { (second, first) } else { (first, second) };
    let line = match other.place.value {
        Some(_) => format!("line {}", other.place.at.line),
        None => "the default".to_owned(),
    };
    let problem = format!("`{}` collides with {} = {} ({line})", told.address, other.place.key, other.address);
    report.mistake(told.place.problem(problem, "take another port"));
    true
}

/// Several services behind one listener: the protocol must tell them apart.
fn sharing(first: &Listener, second: &Listener, report: &mut Report) -> bool {
    let with = format!("shares `{}` with {} (line {})", second.address, first.place.key, first.place.at.line);
    let name = |l: &Listener| l.protocol.clone().map_or("no protocol".to_owned(), |p| format!("`{p}`"));
    let remedy = "declare `protocol: motan2` or `protocol: http` in all of them, or take another port";
    if first.protocol != second.protocol {
        let problem = format!("{with}, but declares {} instead of {}", name(second), name(first));
        report.mistake(second.place.problem(problem, remedy));
    } else if !matches!(second.protocol.as_deref(), Some("motan2" | "http")) {
        let cannot = "cannot tell services apart";
        let problem = match &second.protocol {
            Some(protocol) => format!("{with}, but `{protocol}` {cannot}"),
            None => format!("{with}, but without a declared protocol the agent {cannot}"),
        };
        report.mistake(second.place.problem(problem, remedy));
    } else if first.key == second.key {
        let problem = format!("{with}, and both are the service `{}`", second.key);
        report.mistake(second.place.problem(problem, "keep one of them, or give them different groups or versions"));
    } else {
        return false;
    }
    true
}

fn capture(config: &Config, seen: &Seen, report: &mut Report) {
    let named = seen.names && !config.referers.is_empty();
    let captured = named || config.referers.iter().any(|r| !r.addresses.is_empty());
    let place = &seen.capture;
    let mode = if config.capture.mode == CaptureMode::Iptables { "iptables" } else { "ebpf" };
    match config.capture.mode {
        // Callers from elsewhere are captured, whoever is enrolled.
        CaptureMode::Ebpf if config.has_inbound() || config.has_introduced() => {}
        CaptureMode::Ebpf | CaptureMode::Iptables if config.capture.enroll.is_empty() => {
            let remedy = "add `enroll: [{cgroup: /sys/fs/cgroup/...}]` under `capture`, or ask `sockmesh enroll` later";
            report.warn(place.problem(format!("`{mode}` with nobody enrolled captures nothing"), remedy));
        }
        CaptureMode::Ebpf | CaptureMode::Iptables if !captured && report.mistakes.is_empty() => {
            let remedy = "add `address` to a referer";
            report.warn(place.problem(format!("`{mode}` with no `address` in any referer captures nothing"), remedy));
        }
        // With mistakes the two lists need not go together.
        CaptureMode::Port if report.mistakes.is_empty() => {
            let referers = config.referers.iter().zip(&seen.referers);
            // The forward proxy calls those that speak Motan2.
            let proxied = |r: &Referer| config.http_proxy.is_some() && r.protocol.as_deref() == Some("motan2");
            let reached = |r: &Referer| r.listen.is_some() || r.listen_unix.is_some() || proxied(r);
            for (referer, place) in referers.filter(|(r, _)| !reached(r)) {
                let problem = format!("`{}` has no `listen`, so no program reaches it in mode `port`", referer.key);
                report.warn(place.problem(problem, "add `listen: 127.0.0.1:18080`"));
            }
        }
        _ => {}
    }
}
