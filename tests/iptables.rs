//! The mode `iptables`, in network namespaces of the tests' own, with each program that writes rules.

use std::net::IpAddr;

use host::{Agent, Backend, Cgroup, Cmd, Need, Net, agent::Settings, lacks, net::Inside, program, until};
use serde_json::Value;

const WEB: &str = "240.0.0.1:80";
const WEB6: &str = "[fd00:5eed::1]:80";

/// What every test here needs.
pub const PROGRAMS: [&str; 5] = ["iptables-restore", "ip6tables-restore", "nft", "python3", "ip"];

/// Rules of somebody else, which must not change.
const FOREIGN: [&str; 4] = [
    "iptables -t nat -A OUTPUT -d 192.0.2.7/32 -p tcp -m tcp --dport 9 -j REDIRECT --to-ports 10",
    "ip6tables -t nat -A OUTPUT -d 2001:db8::7/128 -p tcp -m tcp --dport 9 -j REDIRECT --to-ports 10",
    "iptables -t nat -N THEIRS",
    "nft add table inet theirs",
];

/// A namespace with an agent and a server in it, and an enrolled group.
struct World {
    agent: Agent,
    group: Cgroup,
    meshed: Backend,
    /// Reached when an address of a service is left alone.
    direct: Backend,
    services: String,
    _inside: Inside,
    net: Net,
}

impl World {
    /// `exempt` is a function of the server that is left alone.
    fn new(backend: &str, exempt: impl Fn(&Backend) -> String) -> Option<Self> {
        if lacks(&[Need::Kernel]) || lacks(&PROGRAMS.map(Need::Program)) {
            return None;
        }
        let (net, group) = (Net::new(), Cgroup::new("callers"));
        let inside = net.enter();
        for rule in FOREIGN {
            Cmd::line(rule).run().ok();
        }
        let (meshed, direct) = (Backend::named("meshed"), Backend::named("direct"));
        let services = format!(
            "referers:\n  - {{service: web, protocol: http, address: [\"{WEB}\", \"{WEB6}\", \"{}\"], endpoints: [{}]}}\n",
            direct.addr(),
            meshed.addr()
        );
        let capture = format!("iptables: {backend}, exempt: {{{}}}", exempt(&direct));
        let settings = Settings { enroll: &[&group], mode: "iptables", capture: &capture, ..Settings::default() };
        let agent = Agent::with(&settings, &services);
        Some(Self { agent, group, meshed, direct, services, _inside: inside, net })
    }

    /// Who answers at `ip:port` to a program in the group, and which peer it saw; no answer is an error.
    fn call(&self, at: &str) -> Result<String, String> {
        self.call_with(at, |cmd| cmd.cgroup(&self.group))
    }

    fn call_with(&self, at: &str, place: impl Fn(Cmd) -> Cmd) -> Result<String, String> {
        let (ip, port) = at.rsplit_once(':').unwrap();
        let ip = ip.trim_matches(['[', ']']);
        let out = place(program::python("client.py").args(["blocking", ip, port])).run();
        if !out.status.success() {
            return Err(out.err);
        }
        let seen: Value = serde_json::from_str(out.out.trim()).unwrap();
        assert_eq!(seen["peer"], at, "the program sees the address it asked for");
        Ok(seen["body"].as_str().unwrap().to_owned())
    }

    /// Everything in the tables `nat` and in those of `nft`, without what is counted.
    fn rules(&self) -> Vec<String> {
        let said = ["iptables-save -t nat", "ip6tables-save -t nat", "nft list tables", "nft list table inet theirs"]
            .map(|line| Cmd::line(line).run().out);
        said.iter().flat_map(|out| out.lines()).filter(|l| !l.starts_with('#')).map(str::to_owned).collect()
    }

    fn own_routes(&self) -> String {
        let list = |v: &str| Cmd::line(&format!("ip {v} route show table local proto 109")).run().out;
        list("-4") + &list("-6")
    }

    fn redirected(&self) -> f64 {
        self.agent.metric("sockmesh_capture_total", &["outcome=\"redirected\""])
    }
}

/// How often one of our chains, or our table, is mentioned as made.
fn ours(rules: &[String]) -> Vec<&String> {
    rules.iter().filter(|l| l.contains("SOCKMESH") || l.ends_with(" sockmesh")).collect()
}

fn reaches(backend: &str) {
    let Some(world) = World::new(backend, |_| String::new()) else { return };
    assert_eq!(world.agent.json("/config")["capture"], "iptables");
    for at in [WEB, WEB6, &world.direct.addr().to_string()] {
        assert_eq!(world.call(at).as_deref(), Ok("meshed"), "{at}");
    }
    assert_eq!(world.redirected(), 3.0);
    assert_eq!(world.direct.accepted(), 0);
    // Nobody else's, and nothing that is no service.
    let outside = world.call_with(&world.direct.addr().to_string(), |cmd| cmd);
    assert_eq!(outside.as_deref(), Ok("direct"));
    assert_eq!(world.call(&world.meshed.addr().to_string()).as_deref(), Ok("meshed"));
    assert_eq!(world.redirected(), 3.0, "only enrolled programs, only services");
    // Who dials the listener itself was not redirected, and gets nothing.
    let listener = format!("127.0.0.1:{}", world.agent.outbound());
    assert!(world.call(&listener).is_err());
    assert_eq!(world.agent.metric("sockmesh_capture_total", &["outcome=\"not_redirected\""]), 1.0);
    assert_eq!(world.redirected(), 3.0);
}

#[test]
fn iptables_reaches_services_through_nft() {
    reaches("nft");
}

#[test]
fn iptables_reaches_services_through_iptables() {
    reaches("iptables");
}

fn comes_and_goes(backend: &str) {
    let Some(mut world) = World::new(backend, |_| String::new()) else { return };
    let installed = world.rules();
    assert!(!ours(&installed).is_empty(), "{installed:?}");
    assert!(world.own_routes().contains("240.0.0.1") && world.own_routes().contains("fd00:5eed::1"));
    // Installed twice is installed once.
    world.agent.cli("reload").ok();
    assert_eq!(world.rules(), installed);
    // Left by a killed one, used by the next.
    world.agent.kill9();
    assert_eq!(world.rules(), installed, "rules outlive the agent");
    assert!(world.call(WEB).is_err(), "and without it nobody answers: this mode has no bypass");
    world.agent.again();
    assert_eq!(world.rules(), installed);
    assert_eq!(world.call(WEB).as_deref(), Ok("meshed"));
    // Left by a killed one, replaced by the other program's.
    world.agent.kill9();
    let other = if backend == "nft" { "iptables" } else { "nft" };
    let services = world.services.clone();
    world.agent.rewrite_head(&format!("iptables: {backend}"), &format!("iptables: {other}"), &services);
    world.agent.again();
    assert_eq!(world.call(WEB6).as_deref(), Ok("meshed"));
    let table = world.rules().iter().any(|l| l.ends_with("inet sockmesh"));
    let chains = world.rules().iter().any(|l| l.contains("SOCKMESH"));
    assert_eq!((table, chains), (other == "nft", other == "iptables"));
    // An orderly stop leaves what others put there, and nothing of ours.
    assert!(world.agent.stop().success());
    let after = world.rules();
    assert_eq!(ours(&after), Vec::<&String>::new());
    assert_eq!(world.own_routes(), "");
    let foreign: Vec<_> = installed.iter().filter(|l| !ours(std::slice::from_ref(*l)).contains(l)).collect();
    assert_eq!(after.iter().collect::<Vec<_>>(), foreign, "rules of others are as they were");
    for rule in &FOREIGN[..2] {
        let (_, wanted) = rule.split_once("-t nat ").unwrap();
        assert!(after.iter().any(|l| l == wanted), "{wanted} in {after:?}");
    }
    // What a killed one left goes with the next start in another mode, too.
    world.agent.again();
    world.agent.kill9();
    assert!(!ours(&world.rules()).is_empty());
    world.agent.rewrite_head("mode: iptables", "mode: port", &services);
    world.agent.again();
    assert_eq!(ours(&world.rules()), Vec::<&String>::new());
    assert_eq!(world.own_routes(), "");
}

/// The lines for operators in docs/operate.md, after an agent that will not come back.
fn by_hand(backend: &str) {
    let Some(mut world) = World::new(backend, |_| String::new()) else { return };
    let page = std::fs::read_to_string(host::top_dir().join("docs/operate.md")).unwrap();
    let (_, lines) = page.split_once("remove the rules by hand:\n\n```sh\n").unwrap();
    let lines = lines.split_once("```").unwrap().0;
    let foreign: Vec<_> = world.rules();
    let foreign: Vec<_> = foreign.iter().filter(|l| !ours(std::slice::from_ref(*l)).contains(l)).collect();
    world.agent.kill9();
    assert!(!ours(&world.rules()).is_empty() && !world.own_routes().is_empty());
    for _ in 0..2 {
        Cmd::line("sh -c").arg(lines).run();
        assert_eq!(world.rules().iter().collect::<Vec<_>>(), foreign, "nothing of ours, all of theirs");
        assert_eq!(world.own_routes(), "");
    }
    world.agent.again();
    assert_eq!(world.call(WEB).as_deref(), Ok("meshed"));
}

#[test]
fn iptables_rules_can_be_removed_by_hand_as_written_with_nft() {
    by_hand("nft");
}

#[test]
fn iptables_rules_can_be_removed_by_hand_as_written_with_iptables() {
    by_hand("iptables");
}

#[test]
fn iptables_rules_of_nft_come_and_go_as_a_whole() {
    comes_and_goes("nft");
}

#[test]
fn iptables_rules_of_iptables_come_and_go_as_a_whole() {
    comes_and_goes("iptables");
}

fn exempts(backend: &str) {
    type Exempt = fn(&Backend) -> String;
    let cases: [(&str, Exempt); 3] = [
        ("port", |direct| format!("ports: [{}]", direct.addr().port())),
        ("network", |_| "networks: [127.0.0.0/8]".to_owned()),
        ("uid", |_| "uids: [12345], gids: [23456]".to_owned()),
    ];
    for (what, exempt) in cases {
        let Some(world) = World::new(backend, exempt) else { return };
        let at = world.direct.addr().to_string();
        if what != "uid" {
            assert_eq!(world.call(&at).as_deref(), Ok("direct"), "an exempt {what} is left alone");
            assert_eq!(world.call(WEB).as_deref(), Ok("meshed"), "only that {what}");
            continue;
        }
        assert_eq!(world.call(&at).as_deref(), Ok("meshed"), "root is not exempt");
        for (user, change) in [("uid", "os.setreuid(12345, 12345)"), ("gid", "os.setregid(23456, 23456)")] {
            let script = "import os, socket, sys\n\
                          exec(sys.argv[3])\n\
                          s = socket.socket(); s.settimeout(10); s.connect((sys.argv[1], int(sys.argv[2])))\n\
                          s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n\
                          data = b''\n\
                          while not data.endswith((b'direct', b'meshed')): data += s.recv(999) or sys.exit('cut')\n\
                          print(data.decode().rsplit('\\n', 1)[-1])";
            let (ip, port) = at.rsplit_once(':').unwrap();
            let said = Cmd::line("python3 -c").arg(script).args([ip, port, change]).cgroup(&world.group).run().ok();
            assert_eq!(said.trim(), "direct", "an exempt {user} is left alone");
        }
    }
}

#[test]
fn iptables_leaves_alone_what_is_exempt_with_nft() {
    exempts("nft");
}

#[test]
fn iptables_leaves_alone_what_is_exempt_with_iptables() {
    exempts("iptables");
}

fn loops(backend: &str) {
    if lacks(&[Need::Kernel]) || lacks(&PROGRAMS.map(Need::Program)) {
        return;
    }
    // The worst case: the agent in the enrolled group, and a service whose address is its own endpoint.
    let (net, group) = (Net::new(), Cgroup::new("all"));
    let _inside = net.enter();
    let server = Backend::named("once");
    let at = server.addr();
    let services = format!("referers:\n  - {{service: s, protocol: http, address: \"{at}\", endpoints: [{at}]}}\n");
    let capture = format!("iptables: {backend}");
    let settings = Settings {
        enroll: &[&group],
        cgroup: Some(&group),
        mode: "iptables",
        capture: &capture,
        ..Settings::default()
    };
    let agent = Agent::with(&settings, &services);
    let (ip, port) = (at.ip().to_string(), at.port().to_string());
    let out = program::python("client.py").args(["blocking", &ip, &port]).cgroup(&group).run().ok();
    assert!(out.contains("once"), "{out}");
    assert_eq!(agent.metric("sockmesh_connections_accepted_total", &[]), 1.0, "through the mesh, once");
}

#[test]
fn iptables_never_takes_the_agents_own_connections_with_nft() {
    loops("nft");
}

#[test]
fn iptables_never_takes_the_agents_own_connections_with_iptables() {
    loops("iptables");
}

#[test]
fn iptables_needs_no_route_where_there_is_one() {
    let Some(world) = World::new("auto", |_| String::new()) else { return };
    let reason = world.agent.json("/config")["capture_reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("nftables") && reason.contains("no bypass"), "{reason}");
    assert!(world.own_routes().contains("240.0.0.1"));
    // With a way out of the namespace the addresses are reachable as far as the kernel can tell.
    let here: IpAddr = world.net.here();
    Cmd::line(&format!("ip route add default via {here}")).run().ok();
    world.agent.rewrite(&world.services.replace(WEB, "240.0.0.2:80"));
    world.agent.cli("reload").ok();
    until("the route of before is gone", || !world.own_routes().contains("240."));
    assert_eq!(world.call("240.0.0.2:80").as_deref(), Ok("meshed"));
}

#[test]
fn iptables_refuses_a_second_agent_in_the_same_namespace() {
    let Some(world) = World::new("auto", |_| String::new()) else { return };
    let other = world.agent.dir().file("mesh.yaml");
    let yaml = std::fs::read_to_string(other).unwrap();
    let yaml = yaml.replace(world.agent.name(), "another").replace(&world.agent.admin().to_string(), "127.0.0.1:0");
    let file = world.agent.dir().write("another.yaml", yaml);
    let said = host::agent::sockmesh("run -c").arg(file.display()).run().failed();
    assert!(said.contains("belong to another agent"), "{said}");
    assert!(said.contains(&format!("process {}", world.agent.pid())), "{said}");
    assert_eq!(world.call(WEB).as_deref(), Ok("meshed"), "the first one goes on");
}
