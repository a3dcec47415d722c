//! Programs nobody here wrote, captured without their knowledge.

use std::fs;

use host::{
    Agent, Backend, Cgroup, Cmd, Need,
    agent::Settings,
    lacks,
    program::{self, Place, Server},
    until, until_some,
};
use serde_json::Value;

const WEB: &str = "240.0.0.1:80";
const WEB6: &str = "[fd00:5eed::1]:80";
const CACHE: &str = "240.0.0.2:6379";

/// Two nginx and a redis in groups of their own, callers in an enrolled one.
struct World {
    callers: Cgroup,
    a: Server,
    b: Server,
    redis: Server,
    agent: Agent,
    _providers: [Cgroup; 2],
}

impl World {
    /// `None`, having said why, where this cannot run.
    fn new(needs: &[Need]) -> Option<Self> {
        if lacks(&[Need::Kernel, Need::Program("nginx"), Need::Program("redis-server")]) || lacks(needs) {
            return None;
        }
        let groups = [Cgroup::new("idc-a"), Cgroup::new("idc-b")];
        let [at_a, at_b] = [0, 1].map(|i| Place { cgroup: Some(&groups[i]), ..Place::default() });
        let (a, b, redis) = (program::nginx("a", &at_a), program::nginx("b", &at_b), program::redis(&at_b));
        let callers = Cgroup::new("callers");
        let agent = Agent::capturing(
            &[&callers],
            &format!(
                "referers:
  - {{service: web, protocol: http, address: [\"{WEB}\", \"{WEB6}\"], endpoints: [{}, {}], filters: [access_log, metrics]}}
  - {{service: cache, protocol: tcp, address: \"{CACHE}\", endpoints: [{}]}}
",
                a.addr(),
                b.addr(),
                redis.addr()
            ),
        );
        Some(Self { callers, a, b, redis, agent, _providers: groups })
    }

    /// Runs a client in the enrolled group and checks what it saw: the address it asked for as its peer,
    /// and only answers from the two nginx. Returns its number of calls.
    #[track_caller]
    fn check(&self, client: Cmd, peer: &str) -> usize {
        let before = self.calls();
        let out = client.cgroup(&self.callers).run().ok();
        let lines: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert!(!lines.is_empty());
        for line in &lines {
            assert_eq!(line["peer"], peer, "getpeername gives the address that was asked for: {line}");
            assert!(line["body"] == "a" || line["body"] == "b", "{line}");
        }
        until("its calls are counted", || self.calls() - before >= lines.len() as f64);
        lines.len()
    }

    fn calls(&self) -> f64 {
        self.agent.metric("sockmesh_requests_total", &[r#"service="web""#])
    }
}

#[test]
fn capture_curl() {
    let Some(world) = World::new(&[Need::Program("curl")]) else { return };
    let curl = |url: &str| {
        let curl = Cmd::new("curl").args(["-sS", "--max-time", "20", "-w", " %{remote_ip}:%{remote_port}", url]);
        curl.cgroup(&world.callers).run().ok()
    };
    let mut seen = Vec::new();
    for _ in 0..20 {
        let out = curl("http://240.0.0.1/");
        let (body, peer) = out.split_once(' ').unwrap();
        assert_eq!(peer, WEB);
        seen.push(body.to_owned());
    }
    assert!(seen.iter().any(|s| s == "a") && seen.iter().any(|s| s == "b"), "both are used: {seen:?}");
    let six = curl(&format!("http://{WEB6}/"));
    assert!(six == "a fd00:5eed::1:80" || six == "b fd00:5eed::1:80", "{six}");
    until("the access log has a line for each", || world.agent.access_log().len() >= 21);
}

#[test]
fn capture_curl_moves_10_mb_unchanged_both_ways() {
    let Some(world) = World::new(&[Need::Program("curl")]) else { return };
    let bytes: Vec<u8> = (0..10_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 23) as u8).collect();
    for server in [&world.a, &world.b] {
        fs::write(server.dir().join("files/down"), &bytes).unwrap();
    }
    let (source, down) = (world.a.dir().join("files/down"), world.agent.dir().file("down"));
    let curl = || Cmd::new("curl").args(["-sSf", "--max-time", "40"]).cgroup(&world.callers);
    curl().arg("-o").arg(down.display()).arg("http://240.0.0.1/files/down").run().ok();
    assert!(fs::read(&down).unwrap() == bytes, "the download differs");
    curl().arg("-T").arg(source.display()).arg("http://240.0.0.1/files/up").run().ok();
    let up = [&world.a, &world.b].into_iter().find_map(|s| fs::read(s.dir().join("files/up")).ok());
    assert!(up.expect("one of them has it") == bytes, "the upload differs");
}

#[test]
fn capture_wrk() {
    let Some(world) = World::new(&[Need::Program("wrk")]) else { return };
    let _heavy = host::heavy();
    let said = Cmd::line("wrk -t1 -c32 -d3s http://240.0.0.1/").cgroup(&world.callers).run().ok();
    assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
    assert!(world.calls() > 500.0, "{said}");
}

#[test]
fn capture_redis_programs() {
    let Some(world) = World::new(&[Need::Program("redis-cli"), Need::Program("redis-benchmark")]) else { return };
    let _heavy = host::heavy();
    let cli = |what: &str| {
        Cmd::line(&format!("redis-cli -h 240.0.0.2 -p 6379 {what}")).cgroup(&world.callers).run().ok().trim().to_owned()
    };
    assert_eq!(cli("set colour blue"), "OK");
    assert_eq!(cli("get colour"), "blue");
    let direct = Cmd::line(&format!("redis-cli -p {} get colour", world.redis.addr().port())).run().ok();
    assert_eq!(direct.trim(), "blue", "it is the real server that has it");
    let bench = "redis-benchmark -h 240.0.0.2 -p 6379 -q -n 20000 -c 20 -P 4 -t set,get";
    let said = Cmd::line(bench).cgroup(&world.callers).run().ok();
    assert!(said.contains("SET:") && said.contains("GET:") && !said.contains("Error"), "{said}");
}

#[test]
fn capture_python_in_every_way_of_connecting() {
    let Some(world) = World::new(&[Need::Program("python3")]) else { return };
    let python = |verb: &str| program::python("client.py").args([verb, "240.0.0.1", "80"]);
    world.check(python("blocking"), WEB);
    world.check(python("nonblocking"), WEB);
    world.check(python("mapped"), "[::ffff:240.0.0.1]:80");
    world.check(program::python("client.py").args(["blocking", "fd00:5eed::1", "80"]), WEB6);
    assert_eq!(world.check(python("asyncio_many").arg(100), WEB), 100);
}

#[test]
fn capture_a_jvm_whose_sockets_are_ipv6() {
    let Some(world) = World::new(&[Need::Program("java")]) else { return };
    let _heavy = host::heavy();
    assert_eq!(world.check(program::java("Client.java").args(["240.0.0.1", "80"]), WEB), 42);
}

#[test]
fn capture_go_net_http() {
    let Some(world) = World::new(&[Need::Program("go")]) else { return };
    let _heavy = host::heavy();
    assert_eq!(world.check(program::go("client.go").arg("http://240.0.0.1/"), WEB), 200);
}

#[test]
fn capture_io_uring() {
    let Some(world) = World::new(&[Need::Program("cc")]) else { return };
    let client = program::c("uring.c").args(["240.0.0.1", "80"]);
    if client.clone().cgroup(&world.callers).run().status.code() == Some(77) {
        return host::need::skip("this kernel does not let us use io_uring");
    }
    world.check(client, WEB);
}

#[test]
fn capture_leaves_alone_who_is_not_concerned() {
    let Some(world) = World::new(&[Need::Program("python3")]) else { return };
    // Whatever is behind that address outside the mesh (a network may answer for any), it is not ours.
    let outside = program::python("client.py").args(["blocking", "240.0.0.1", "80"]).run();
    assert!(!outside.out.contains(r#""a""#) && !outside.out.contains(r#""b""#), "{outside:?}");
    // Enrolled, to an address that is no service: as if there were no mesh.
    let other = Backend::named("other");
    let (ip, port) = (other.addr().ip().to_string(), other.addr().port().to_string());
    let inside = program::python("client.py").args(["blocking", &ip, &port]).cgroup(&world.callers).run().ok();
    let seen: Value = serde_json::from_str(&inside).unwrap();
    assert_eq!((&seen["peer"], &seen["body"]), (&other.addr().to_string().into(), &"other".into()));
    assert_eq!(world.agent.metric("sockmesh_connections_accepted_total", &[]), 0.0, "the agent saw nothing of it");
}

#[test]
fn capture_never_takes_the_agents_own_connections() {
    if lacks(&[Need::Kernel, Need::Program("python3")]) {
        return;
    }
    // The worst case: the agent in the enrolled group, and a service whose address is its own endpoint.
    let (group, server) = (Cgroup::new("all"), Backend::named("once"));
    let at = server.addr();
    let settings = Settings { enroll: &[&group], cgroup: Some(&group), ..Settings::default() };
    let service = format!("referers:\n  - {{service: s, protocol: http, address: \"{at}\", endpoints: [{at}]}}\n");
    let agent = Agent::with(&settings, &service);
    let (ip, port) = (at.ip().to_string(), at.port().to_string());
    let out = program::python("client.py").args(["blocking", &ip, &port]).cgroup(&group).run().ok();
    let seen: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&seen["peer"], &seen["body"]), (&at.to_string().into(), &"once".into()));
    assert_eq!(agent.metric("sockmesh_connections_accepted_total", &[]), 1.0, "through the mesh, once");
}

#[test]
fn capture_shows_every_connection_with_its_process() {
    let Some(world) = World::new(&[Need::Program("python3")]) else { return };
    let log = world.agent.dir().file("holder.log");
    let holder = program::python("client.py").args(["hold", "240.0.0.1", "80"]).cgroup(&world.callers).spawn(&log);
    let row = until_some("the held connection is shown", || {
        world.agent.sockets().into_iter().find(|row| row["sent_bytes"].as_u64() > Some(0))
    });
    until("the holder has its answer", || holder.said().ends_with('\n'));
    let said: Value = serde_json::from_str(&holder.said()).unwrap();
    assert_eq!(row["pid"], said["pid"]);
    assert!(row["process"].as_str().unwrap().starts_with("python"), "{row}");
    assert_eq!((&row["destination"], &row["service"], &row["captured"]), (&WEB.into(), &"web".into(), &true.into()));
    assert_eq!((&row["protocol"], &row["calls"]), (&"http".into(), &1.into()));
    let endpoint = row["endpoint"].as_str().unwrap().to_owned();
    assert!([&world.a, &world.b].iter().any(|s| s.addr().to_string() == endpoint), "{row}");
    assert_eq!(row["sent_bytes"], said["got"]);
    let table = world.agent.cli("sockets").ok();
    for part in ["python", WEB, "web", &endpoint] {
        assert!(table.contains(part), "{part} is missing in:\n{table}");
    }
    drop(holder);
    until("it is gone with the process", || world.agent.sockets().is_empty());
}

#[test]
fn capture_follows_a_reload() {
    let Some(world) = World::new(&[Need::Program("curl")]) else { return };
    let curl = |url: &str| Cmd::new("curl").args(["-sS", "--max-time", "3", url]).cgroup(&world.callers).run();
    assert_ne!(curl("http://240.0.0.9/").out, "a");
    world.agent.rewrite(&format!(
        "referers:\n  - {{service: web, protocol: http, address: 240.0.0.9, endpoints: [{}]}}\n",
        world.a.addr()
    ));
    world.agent.cli("reload").ok();
    for port in [80, 8123] {
        assert_eq!(curl(&format!("http://240.0.0.9:{port}/")).ok(), "a", "an address without a port takes every port");
    }
    let before = world.agent.metric("sockmesh_connections_accepted_total", &[]);
    assert_ne!(curl("http://240.0.0.1/").out, "a");
    assert_eq!(world.agent.metric("sockmesh_connections_accepted_total", &[]), before, "no service any more");
}

#[test]
fn capture_auto_without_the_rights_serves_by_port_and_says_why() {
    if lacks(&[Need::Kernel]) {
        return;
    }
    let (group, server, listen) = (Cgroup::new("g"), Backend::named("x"), host::net::free_addr());
    let settings = Settings { enroll: &[&group], mode: "auto", powers: Some(&[]), ..Settings::default() };
    let service = format!(
        "referers:\n  - {{service: s, protocol: http, address: \"{WEB}\", listen: {listen}, endpoints: [{}]}}\n",
        server.addr()
    );
    let mut agent = Agent::with(&settings, &service);
    assert_eq!(host::http::get(listen, "/").unwrap().text(), "x");
    let config = agent.json("/config");
    assert_eq!(config["capture"], "port");
    assert!(config["capture_reason"].as_str().unwrap().contains("CAP_BPF"), "{config}");
    assert!(agent.stop().success());
    // Asked for by name it is fatal.
    let file = agent.dir().file("mesh.yaml");
    let yaml = fs::read_to_string(&file).unwrap().replace("mode: auto", "mode: ebpf");
    fs::write(&file, yaml).unwrap();
    let said = host::agent::sockmesh("run -c").arg(file.display()).powers(&[]).run().failed();
    assert!(said.contains("CAP_BPF") && !said.contains("panicked"), "{said}");
}
