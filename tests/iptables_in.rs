//! The mode `iptables` for callers from elsewhere, in network namespaces of the tests' own.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use host::{Agent, Backend, Cmd, Need, Net, agent::Settings, http, lacks, net::free_port, until};

use crate::iptables::PROGRAMS;

/// A namespace with servers in it.
struct There {
    servers: Vec<Backend>,
    net: Net,
}

impl There {
    fn serve(&mut self, at: SocketAddr, name: &str) -> SocketAddr {
        let _inside = self.net.enter();
        self.servers.push(Backend::named_at(at, name));
        self.servers.last().unwrap().addr()
    }
}

impl Drop for There {
    fn drop(&mut self) {
        // They are woken by a connect, which rules that are left may prevent out here.
        let _inside = self.net.enter();
        self.servers.clear();
    }
}

/// A provider and its agent; callers are out here.
struct World {
    agent: Agent,
    /// Reached by IPv4 and by IPv6, each a service of its own.
    at: [SocketAddr; 2],
    services: String,
    /// Not provided through the mesh.
    other: SocketAddr,
    there: There,
}

impl World {
    fn new(backend: &str) -> Option<Self> {
        if lacks(&[Need::Kernel]) || lacks(&PROGRAMS.map(Need::Program)) || lacks(&[Need::Program("curl")]) {
            return None;
        }
        let mut there = There { servers: Vec::new(), net: Net::new() };
        let at = [there.net.there(), there.net.add_ipv6()].map(|ip| SocketAddr::new(ip, free_port()));
        there.serve((Ipv4Addr::UNSPECIFIED, at[0].port()).into(), "provider");
        there.serve((Ipv6Addr::UNSPECIFIED, at[1].port()).into(), "provider");
        let other = there.serve(SocketAddr::new(there.net.there(), 0), "other");
        // One by its port at every address, one by an address of its own.
        let services = format!(
            "services:\n  - {{service: four, protocol: http, inbound: {}, local: \"127.0.0.1:{}\", filters: [access_log]}}\n  \
             - {{service: six, protocol: http, inbound: \"{}\", local: \"[::1]:{}\", filters: [access_log]}}\n",
            at[0].port(),
            at[0].port(),
            at[1],
            at[1].port()
        );
        let capture = format!("iptables: {backend}");
        let settings = Settings { net: Some(&there.net), mode: "iptables", capture: &capture, ..Settings::default() };
        let agent = Agent::with(&settings, &services);
        Some(Self { agent, at, services, other, there })
    }

    fn brought(&self) -> f64 {
        self.agent.metric("sockmesh_capture_total", &["outcome=\"inbound\""])
    }

    /// The port on which the agent takes callers from elsewhere.
    fn inbound(&self) -> u16 {
        let yaml = std::fs::read_to_string(self.agent.dir().file("mesh.yaml")).unwrap();
        let (_, rest) = yaml.split_once("inbound: ").unwrap();
        rest.split_once(',').unwrap().0.parse().unwrap()
    }

    fn ours(&self) -> bool {
        let list = |line: &str| Cmd::line(line).netns(&self.there.net).run().out;
        ["iptables-save -t nat", "ip6tables-save -t nat", "nft list tables"]
            .iter()
            .any(|line| list(line).lines().any(|l| l.contains("SOCKMESH") || l.ends_with(" sockmesh")))
    }
}

fn answer(at: SocketAddr) -> Result<String, std::io::Error> {
    http::get(at, "/").map(|answer| answer.text())
}

fn brings(backend: &str) {
    let Some(mut world) = World::new(backend) else { return };
    for (n, at) in world.at.into_iter().enumerate() {
        assert_eq!(answer(at).unwrap(), "provider", "{at}");
        assert_eq!(world.brought(), n as f64 + 1.0, "{at}");
    }
    for service in ["four", "six"] {
        until("the call stands in the access log", || world.agent.access_log().iter().any(|l| l.contains(service)));
    }

    // What is not named, what comes by loopback and what the agent dials itself is left alone.
    assert_eq!(answer(world.other).unwrap(), "other");
    for at in world.at {
        let port = at.port();
        for host in [at.to_string(), format!("localhost:{port}")] {
            let inside =
                Cmd::line("curl -sfg --noproxy * --max-time 10").arg(format!("http://{host}/")).netns(&world.there.net);
            assert_eq!(inside.run().ok(), "provider", "{host}");
        }
    }
    assert_eq!(world.brought(), 2.0);

    // Who dials the listener itself gets nothing, by either family.
    for ip in world.at.map(|at| at.ip()) {
        assert!(answer(SocketAddr::new(ip, world.inbound())).is_err());
    }
    assert_eq!(world.agent.metric("sockmesh_capture_total", &["outcome=\"not_redirected\""]), 2.0);

    // A reload takes the one and leaves the other.
    let (four, six) = world.services.split_once("\n  - {service: six").unwrap();
    let only_six = format!("services:\n  - {{service: six{six}");
    world.agent.rewrite(&only_six);
    world.agent.cli("reload").ok();
    for at in world.at {
        assert_eq!(answer(at).unwrap(), "provider", "{at}");
    }
    assert_eq!(world.brought(), 3.0, "directly by IPv4");
    world.agent.rewrite(&format!("{four}\n"));
    world.agent.cli("reload").ok();
    for at in world.at {
        assert_eq!(answer(at).unwrap(), "provider", "{at}");
    }
    assert_eq!(world.brought(), 4.0, "directly by IPv6");

    // A dead agent's rules are taken over; a stopped one leaves none.
    world.agent.kill9();
    assert!(world.ours());
    assert!(answer(world.at[0]).is_err(), "no bypass");
    assert_eq!(answer(world.at[1]).unwrap(), "provider");
    world.agent.rewrite(&world.services);
    world.agent.again();
    for at in world.at {
        assert_eq!(answer(at).unwrap(), "provider", "{at}");
    }
    assert_eq!(world.brought(), 2.0);
    assert!(world.agent.stop().success());
    assert!(!world.ours());
    for at in world.at {
        assert_eq!(answer(at).unwrap(), "provider", "{at}");
    }
}

#[test]
fn iptables_brings_callers_from_elsewhere_with_nft() {
    brings("nft");
}

#[test]
fn iptables_brings_callers_from_elsewhere_with_iptables() {
    brings("iptables");
}

/// Callers in and out of the same namespace at once: each direction by its own rules.
fn both_ways(backend: &str) {
    if lacks(&[Need::Kernel]) || lacks(&PROGRAMS.map(Need::Program)) || lacks(&[Need::Program("curl")]) {
        return;
    }
    let group = host::Cgroup::new("callers");
    let mut there = There { servers: Vec::new(), net: Net::new() };
    let provider = there.serve((Ipv4Addr::UNSPECIFIED, free_port()).into(), "provider");
    let net = &there.net;
    let far = Backend::named_at(SocketAddr::new(net.here(), 0), "far");
    let at = SocketAddr::new(net.there(), provider.port());
    let services = format!(
        "referers:\n  - {{service: self, protocol: http, address: [\"240.0.0.1:80\", \"{at}\"], endpoints: [\"{at}\"]}}\n  \
         - {{service: far, protocol: http, address: \"240.0.0.2:80\", endpoints: [\"{}\"]}}\n\
         services:\n  - {{service: web, protocol: http, inbound: {}, local: \"{at}\", filters: [access_log]}}\n",
        far.addr(),
        at.port()
    );
    let capture = format!("iptables: {backend}");
    let settings =
        Settings { net: Some(net), enroll: &[&group], mode: "iptables", capture: &capture, ..Settings::default() };
    let agent = Agent::with(&settings, &services);
    let counted = |outcome: &str| agent.metric("sockmesh_capture_total", &[&format!("outcome=\"{outcome}\"")]);
    let brought = || (counted("redirected"), counted("inbound"));
    let curl = |to: &str| {
        let line = format!("curl -sf --noproxy * --max-time 10 http://{to}/");
        Cmd::line(&line).netns(net).cgroup(&group).run().ok()
    };
    // To itself by both addresses, out and in: never twice through the agent, never in a circle.
    assert_eq!(curl("240.0.0.1"), "provider");
    assert_eq!(curl(&at.to_string()), "provider");
    assert_eq!(curl("240.0.0.2"), "far");
    assert_eq!(brought(), (3.0, 0.0));
    assert_eq!(agent.access_log().len(), 0, "nobody came from elsewhere");
    assert_eq!(answer(at).unwrap(), "provider");
    assert_eq!(brought(), (3.0, 1.0));
}

#[test]
fn iptables_serves_both_directions_at_once_with_nft() {
    both_ways("nft");
}

#[test]
fn iptables_serves_both_directions_at_once_with_iptables() {
    both_ways("iptables");
}
