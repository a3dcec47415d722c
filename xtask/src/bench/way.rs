//! The ways from a caller to its server, and the agent's configuration for each.

use std::{fmt::Write as _, net::SocketAddr, path::Path};

use anyhow::{Result, bail};

use super::cell;

/// A way through the mesh, or past it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// No mesh: plain loopback.
    Direct,
    /// Callers dial the agent.
    Port,
    /// The connect hook brings callers to the agent; every byte goes by TCP.
    Ebpf,
    /// The same, and bytes go from socket to socket.
    Redirect,
    /// The connect hook picks the endpoint; no agent on the way.
    Kernel,
    /// The same, and the two programs' sockets are joined.
    Joined,
    /// NAT rules bring callers to the agent.
    Iptables,
    /// Callers dial HAProxy.
    Haproxy,
    /// Callers dial nginx.
    Nginx,
    /// Callers dial Envoy.
    Envoy,
    /// Callers dial the agent of Weibo Mesh.
    MotanGo,
    /// Callers dial our agent, which leads to another one before the server.
    Pair,
    /// The same with the agents of Weibo Mesh.
    MotanGoPair,
}

/// What callers dial where something captures them: an address that exists nowhere.
const VIRTUAL: &str = "240.0.0.1";
/// Added to a server's port where callers dial the agent.
pub const DIALED: u16 = 10_000;
/// The agent's admin API, in a namespace of its own.
pub const ADMIN: &str = "127.0.0.1:8002";

impl Way {
    /// In the order of the table.
    pub const ALL: &[Self] =
        &[Self::Direct, Self::Port, Self::Ebpf, Self::Redirect, Self::Kernel, Self::Joined, Self::Iptables];

    /// Other proxies, measured on request.
    pub const PEERS: &[Self] = &[Self::Haproxy, Self::Nginx, Self::Envoy, Self::MotanGo];

    /// Those of `bench motan`.
    pub const MOTAN: &[Self] = &[Self::Direct, Self::MotanGoPair, Self::Pair, Self::Redirect];

    /// Its name in options, tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Port => "port",
            Self::Ebpf => "ebpf",
            Self::Redirect => "ebpf+redirect",
            Self::Kernel => "kernel",
            Self::Joined => "kernel+joined",
            Self::Iptables => "iptables",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
            Self::MotanGo => "motan-go",
            Self::Pair => "pair",
            Self::MotanGoPair => "motan-go pair",
        }
    }

    /// Whether bytes go past TCP on it: where they do not, something else is measured.
    pub fn is_redirected(self) -> bool {
        matches!(self, Self::Redirect | Self::Joined)
    }

    /// Whether it is another proxy than ours.
    pub fn is_peer(self) -> bool {
        Self::PEERS.contains(&self)
    }

    /// Whether two agents are on it.
    pub fn is_pair(self) -> bool {
        matches!(self, Self::Pair | Self::MotanGoPair)
    }

    /// Whether it has this load at all.
    pub fn carries(self, load: &str) -> bool {
        match self {
            // Debian's packages of nginx leave its layer 4 out.
            Self::Nginx => load == "http",
            Self::MotanGo => load == "motan2",
            Self::Haproxy | Self::Envoy => load != "motan2",
            _ => true,
        }
    }

    /// The way with this name.
    pub fn named(name: &str) -> Result<Self> {
        Self::find(Self::ALL, name)
    }

    /// The other proxy with this name.
    pub fn peer(name: &str) -> Result<Self> {
        Self::find(Self::PEERS, name)
    }

    fn find(all: &[Self], name: &str) -> Result<Self> {
        let Some(way) = all.iter().find(|way| way.name() == name) else {
            let names: Vec<_> = all.iter().map(|way| way.name()).collect();
            bail!("unknown path {name:?}: expected one of {}", names.join(", "));
        };
        Ok(*way)
    }

    /// Whether callers need a route towards addresses that exist nowhere: NAT comes after routing.
    pub fn needs_route(self) -> bool {
        self == Self::Iptables
    }

    /// What a caller of this load dials.
    pub fn dialed(self, load: &str) -> Result<SocketAddr> {
        let Some(port) = cell::port(load) else { bail!("no port for {load}") };
        Ok(match self {
            Self::Direct => format!("127.0.0.1:{port}"),
            way if way == Self::Port || way.is_peer() || way.is_pair() => format!("127.0.0.1:{}", port + DIALED),
            _ => format!("{VIRTUAL}:{port}"),
        }
        .parse()?)
    }

    /// The agent's configurations for this way, best first: an agent that does not know redirect has it off.
    /// None for [`Way::Direct`], pairs and other proxies. `groups` holds the control groups `callers` and `servers`,
    /// `ports` the loads that are served.
    pub fn yaml(self, name: &str, groups: &Path, ports: &[(&str, u16)]) -> Vec<String> {
        let callers = format!("cgroup: \"{}/callers\"", groups.display());
        let servers = format!("cgroup: \"{}/servers\"", groups.display());
        let capture = match self {
            Self::Direct | Self::Haproxy | Self::Nginx | Self::Envoy | Self::MotanGo => vec![],
            Self::Pair | Self::MotanGoPair => vec![],
            Self::Port => vec!["port".to_owned()],
            Self::Ebpf => vec![
                format!("{{mode: ebpf, redirect: off, enroll: [{{{callers}}}]}}"),
                format!("{{mode: ebpf, enroll: [{{{callers}}}]}}"),
            ],
            Self::Redirect => vec![format!("{{mode: ebpf, redirect: auto, enroll: [{{{callers}}}, {{{servers}}}]}}")],
            Self::Kernel => vec![
                format!("{{mode: ebpf, redirect: off, enroll: [{{{callers}}}]}}"),
                format!("{{mode: ebpf, enroll: [{{{callers}}}]}}"),
            ],
            Self::Joined => vec![format!(
                "{{mode: ebpf, redirect: auto, enroll: [{{{callers}, join: true}}, {{{servers}, join: true}}]}}"
            )],
            Self::Iptables => vec![format!("{{mode: iptables, enroll: [{{{callers}}}]}}")],
        };
        let mut services = String::new();
        for (load, port) in ports {
            // Without an agent on the way, everything is a stream of bytes.
            let kernel = matches!(self, Self::Kernel | Self::Joined);
            let (protocol, filters) = match *load {
                "http" | "motan2" if !kernel => (*load, "[access_log, metrics]"),
                "motan32" if !kernel => ("motan2", "[access_log, metrics]"),
                _ => ("tcp", "[metrics]"),
            };
            // Motan2 names the service on the wire.
            let named = if protocol == "motan2" {
                "service: bench.Echo, group: bench".to_owned()
            } else {
                format!("service: {load}")
            };
            let reach = match self {
                Self::Port => format!("listen: \"127.0.0.1:{}\"", port + DIALED),
                _ => format!("address: \"{VIRTUAL}:{port}\""),
            };
            let path = if kernel { ", path: kernel" } else { "" };
            _ = writeln!(
                services,
                "  - {{{named}, protocol: {protocol}{path}, {reach}, endpoints: [\"127.0.0.1:{port}\"], \
                 filters: {filters}}}"
            );
        }
        let yaml = |capture| {
            format!(
                "name: {name}\n\
                 application: bench\n\
                 drain: 1s\n\
                 ports: {{admin: \"{ADMIN}\"}}\n\
                 capture: {capture}\n\
                 access_log: {{path: access.log}}\n\
                 referers:\n{services}"
            )
        };
        capture.iter().map(yaml).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_has_a_name_and_a_configuration_of_its_own() {
        for way in Way::ALL {
            assert_eq!(Way::named(way.name()).unwrap(), *way);
        }
        let yaml = |way: Way| way.yaml("bench-1", Path::new("/sys/fs/cgroup/x"), cell::PORTS).concat();
        assert!(yaml(Way::Direct).is_empty());
        assert!(yaml(Way::Port).contains("listen: \"127.0.0.1:17001\""));
        assert!(yaml(Way::Ebpf).contains("address: \"240.0.0.1:7004\", endpoints: [\"127.0.0.1:7004\"]"));
        assert!(yaml(Way::Kernel).contains("{service: http, protocol: tcp, path: kernel"));
        assert!(yaml(Way::Joined).contains("cgroup: \"/sys/fs/cgroup/x/servers\", join: true"));
        assert_eq!(Way::Port.dialed("http").unwrap(), "127.0.0.1:17004".parse().unwrap());
    }
}
