//! What a configuration amounts to: clusters, the addresses that lead to them, listeners. Pure.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use model::{Instance, ServiceKey};

use crate::{
    call::Text,
    capture::{
        CaptureTable,
        balance::{self, Straight},
    },
    config::{self, CallPath, Config, VirtualAddress},
    filter::Direction,
    protocol,
};

/// Everything a configuration asks for.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) clusters: Vec<ClusterPlan>,
    /// Addresses that captured connections may have wanted to go to.
    pub(super) captured: Vec<(VirtualAddress, AddressPlan)>,
    /// Addresses of local programs at which callers from elsewhere are captured.
    pub(super) inbound: Vec<(VirtualAddress, AddressPlan)>,
    /// Listeners that programs or other agents dial.
    pub(super) listeners: BTreeMap<At, AddressPlan>,
    /// Services whose connects go straight to an endpoint, with the cluster that knows their endpoints.
    pub(super) straight: Vec<(Straight, ClusterId)>,
}

/// Where the agent listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum At {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Names a cluster across reloads.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ClusterId {
    inbound: bool,
    pub(super) key: ServiceKey,
    pub(super) protocol: &'static str,
    /// Tells entries of the same service apart, in the order of the file.
    nth: usize,
}

impl ClusterId {
    pub(super) const fn direction(&self) -> Direction {
        if self.inbound { Direction::Inbound } else { Direction::Outbound }
    }
}

#[derive(Debug)]
pub(super) struct ClusterPlan {
    pub(super) id: ClusterId,
    pub(super) config: config::Cluster,
    /// Told to callees; the agent's when `None`.
    pub(super) application: Option<Text>,
    pub(super) source: SourcePlan,
}

/// Where the endpoints of a cluster come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct SourcePlan {
    /// Names of registries, asked in this order.
    pub(super) registries: Vec<String>,
    /// Listed in the configuration itself.
    pub(super) instances: Vec<Instance>,
    /// Groups used together instead of the own one.
    pub(super) mix_groups: Vec<String>,
}

/// The clusters behind an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AddressPlan {
    pub(super) inbound: bool,
    /// Connections are the forward proxy's, whatever the clusters speak.
    pub(super) proxy: bool,
    /// The protocol is found out for each connection; `clusters` has one for each protocol then.
    pub(super) detect: bool,
    /// There is a listener even without a cluster; it answers calls of this protocol that there is none.
    pub(super) bare: Option<&'static str>,
    pub(super) clusters: Vec<ClusterId>,
}

impl Plan {
    pub(super) fn of(config: &Config) -> Self {
        let mut plan = Self::default();
        for referer in &config.referers {
            let source = SourcePlan {
                registries: referer.registries.clone(),
                instances: referer.endpoints.clone(),
                mix_groups: referer.mix_groups.clone(),
            };
            let address = plan.add(false, &referer.key, referer.protocol.as_deref(), &referer.cluster, &source);
            for cluster in plan.clusters.iter_mut().filter(|c| address.clusters.contains(&c.id)) {
                cluster.application.clone_from(&referer.application);
            }
            if let (CallPath::Kernel, Some(cluster)) = (referer.path, address.clusters.first()) {
                plan.straight.push((straight(referer), cluster.clone()));
            }
            for virtual_address in &referer.addresses {
                plan.captured.push((*virtual_address, address.clone()));
            }
            if let Some(path) = &referer.listen_unix {
                plan.listen(At::Unix(path.clone()), address.clone());
            }
            if let Some(listen) = referer.listen {
                plan.listen(At::Tcp(listen), address);
            }
        }
        for service in &config.services {
            let local = Instance::at(service.local.to_string());
            let source = SourcePlan { instances: vec![local], ..SourcePlan::default() };
            let address = plan.add(true, &service.key, service.protocol.as_deref(), &service.cluster, &source);
            plan.inbound.extend(service.inbound.iter().map(|at| (*at, address.clone())));
            if let Some(export) = service.export {
                plan.listen(At::Tcp(export), address);
            }
        }
        if let Some(proxy) = &config.http_proxy {
            let callable = plan.clusters.iter().filter(|c| !c.id.inbound && c.id.protocol == protocol::motan2::NAME);
            let clusters = callable.map(|c| c.id.clone()).collect();
            let address = AddressPlan { proxy: true, clusters, ..AddressPlan::default() };
            let listen = [proxy.listen.map(At::Tcp), proxy.listen_unix.clone().map(At::Unix)];
            listen.into_iter().flatten().for_each(|at| plan.listen(at, address.clone()));
        }
        if let Some(forward) = config.ports.forward {
            plan.listeners.entry(At::Tcp(forward)).or_default().bare = Some(protocol::motan2::NAME);
        }
        let names: Vec<_> = plan.straight.iter().map(|(s, _)| s.name.clone()).collect();
        for ((straight, _), number) in plan.straight.iter_mut().zip(balance::numbers(&names)) {
            straight.number = number;
        }
        plan
    }

    fn add(
        &mut self,
        inbound: bool,
        key: &ServiceKey,
        protocol: Option<&str>,
        config: &config::Cluster,
        source: &SourcePlan,
    ) -> AddressPlan {
        let mut address = AddressPlan { inbound, detect: protocol.is_none(), ..AddressPlan::default() };
        for kind in protocol::KINDS.iter().filter(|k| protocol.is_none_or(|p| p == k.name)) {
            let mut id = ClusterId { inbound, key: key.clone(), protocol: kind.name, nth: 0 };
            while self.clusters.iter().any(|c| c.id == id) {
                id.nth += 1;
            }
            address.clusters.push(id.clone());
            self.clusters.push(ClusterPlan { id, config: config.clone(), application: None, source: source.clone() });
        }
        address
    }

    fn listen(&mut self, at: At, address: AddressPlan) {
        let shared = self.listeners.entry(at).or_default();
        shared.inbound = address.inbound;
        shared.proxy = address.proxy;
        shared.detect |= address.detect;
        shared.clusters.extend(address.clusters);
    }

    /// What the capture is told.
    pub(super) fn capture_table(&self, config: &Config, listeners: Vec<SocketAddr>) -> CaptureTable {
        let agents = config.referers.iter().filter(|r| r.path == CallPath::Agent);
        let destinations = agents.flat_map(|r| r.addresses.iter().map(|a| (*a, r.on_agent_loss))).collect();
        let straight = self.straight.iter().map(|(straight, _)| straight.clone()).collect();
        let inbound = self.inbound.iter().map(|(at, _)| *at).collect();
        let introduced = config.services.iter().filter(|s| s.cluster.client_address);
        let clients = introduced.map(|s| s.local).collect();
        let config::Capture { enroll, exempt, redirect, .. } = config.capture.clone();
        CaptureTable { destinations, straight, listeners, inbound, clients, enroll, exempt, redirect }
    }
}

fn straight(referer: &config::Referer) -> Straight {
    Straight {
        name: referer.key.clone(),
        number: 0,
        addresses: referer.addresses.clone(),
        loss: referer.on_agent_loss,
        allow: referer.allow.clone(),
        deny: referer.deny.clone(),
        endpoints: None,
    }
}

/// Settings that a running agent cannot change, with a word for each that differs.
pub(super) fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let pairs = [
        ("name", old.name == new.name),
        ("application", old.application == new.application),
        ("ports", old.ports == new.ports),
        ("capture.mode", old.capture.mode == new.capture.mode),
        ("capture.stale_after", old.capture.stale_after == new.capture.stale_after),
        ("capture.max_connections", old.capture.max_connections == new.capture.max_connections),
        ("capture.root", old.capture.root == new.capture.root),
        ("capture.dns", old.capture.dns == new.capture.dns),
        ("capture.bpffs", old.capture.bpffs == new.capture.bpffs),
        ("capture.iptables", old.capture.iptables == new.capture.iptables),
        ("limits", old.limits == new.limits),
        ("threads", old.threads == new.threads),
        ("access_log", old.access_log == new.access_log),
        ("zone", old.zone == new.zone),
        ("snapshots", old.snapshots == new.snapshots),
        ("hold_back", old.hold_back == new.hold_back),
        ("center", old.center == new.center),
        ("start_unavailable", old.start_unavailable == new.start_unavailable),
    ];
    pairs.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{OnAgentLoss, Referer};

    fn referer(service: &str, protocol: Option<&str>, listen: &str) -> Referer {
        Referer {
            key: ServiceKey { service: service.to_owned(), ..ServiceKey::default() },
            protocol: protocol.map(str::to_owned),
            addresses: Vec::new(),
            listen: Some(listen.parse().unwrap()),
            listen_unix: None,
            on_agent_loss: OnAgentLoss::Direct,
            path: CallPath::Agent,
            allow: Vec::new(),
            deny: Vec::new(),
            registries: Vec::new(),
            endpoints: vec![Instance::at("127.0.0.1:1")],
            mix_groups: Vec::new(),
            application: None,
            cluster: config::Cluster::default(),
        }
    }

    #[test]
    fn services_share_a_listener_and_undeclared_ones_get_a_cluster_for_each_protocol() {
        let referers = vec![
            referer("a", Some("motan2"), "127.0.0.1:9000"),
            referer("b", Some("motan2"), "127.0.0.1:9000"),
            referer("c", None, "127.0.0.1:9001"),
        ];
        let plan = Plan::of(&Config { referers, ..Config::default() });
        assert_eq!(plan.listeners.len(), 2);
        let shared = &plan.listeners[&At::Tcp("127.0.0.1:9000".parse().unwrap())];
        assert_eq!((shared.clusters.len(), shared.detect), (2, false));
        let undeclared = &plan.listeners[&At::Tcp("127.0.0.1:9001".parse().unwrap())];
        assert_eq!((undeclared.clusters.len(), undeclared.detect), (protocol::KINDS.len(), true));
    }

    #[test]
    fn settings_that_need_a_restart_are_documented() {
        let old = Config::default();
        let new = Config {
            name: "other".into(),
            application: "other".into(),
            ports: config::Ports { outbound: 1, ..old.ports.clone() },
            capture: config::Capture {
                mode: config::CaptureMode::Port,
                stale_after: std::time::Duration::MAX,
                max_connections: 1,
                bpffs: "/other".into(),
                root: Some("/other".into()),
                dns: false,
                iptables: config::Iptables::Nft,
                ..old.capture.clone()
            },
            limits: config::Limits { connections: 1, ..old.limits.clone() },
            threads: old.threads + 1,
            access_log: config::AccessLog { buffer_lines: 1, ..old.access_log.clone() },
            zone: "z".into(),
            snapshots: Some("/other".into()),
            hold_back: config::HoldBack { shrunk_percent: 1, ..old.hold_back.clone() },
            start_unavailable: true,
            ..Config::default()
        };
        let docs = include_str!("../../../docs/operate.md");
        let fixed = needs_restart(&old, &new);
        assert_eq!(fixed.len(), 17);
        for name in fixed {
            assert!(docs.contains(&format!("`{name}`")), "docs/operate.md does not name `{name}`");
        }
        assert!(needs_restart(&old, &Config { drain: std::time::Duration::ZERO, ..old.clone() }).is_empty());
    }

    #[test]
    fn the_same_service_twice_is_two_clusters() {
        let twice = vec![referer("a", Some("tcp"), "127.0.0.1:9000"), referer("a", Some("tcp"), "127.0.0.1:9001")];
        let plan = Plan::of(&Config { referers: twice, ..Config::default() });
        assert_ne!(plan.clusters[0].id, plan.clusters[1].id);
    }
}
