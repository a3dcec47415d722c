//! What an operator types and reads.

use host::{
    Agent, Backend, Cgroup, Need, Temp,
    agent::{Settings, sockmesh},
    http, lacks, net, until,
};
use serde_json::Value;

#[test]
fn cli_check_tells_what_this_host_can() {
    let dir = Temp::new();
    // Ports of its own: the usual ones may be those of an agent that runs on this machine.
    let (admin, outbound, inbound) = (net::free_addr(), net::free_port(), net::free_port());
    let file = dir.write(
        "mesh.yaml",
        format!(
            "capture: port
ports: {{admin: \"{admin}\", outbound: {outbound}, inbound: {inbound}}}
referers:
  - {{service: s, listen: 127.0.0.1:0, endpoints: [127.0.0.1:1]}}
"
        ),
    );
    let said = sockmesh("check -c").arg(file.display()).run().ok();
    for about in ["cgroup", "bpffs", "BTF"] {
        assert!(said.to_lowercase().contains(&about.to_lowercase()), "nothing about {about}:\n{said}");
    }
    assert!(said.lines().all(|line| line.chars().count() <= 160), "one line each:\n{said}");
    let json: Value = serde_json::from_str(&sockmesh("check -o json -c").arg(file.display()).run().ok()).unwrap();
    assert!(json.is_object() || json.is_array(), "{json}");
}

#[test]
fn cli_check_fails_when_something_asked_for_is_missing() {
    let dir = Temp::new();
    let file = dir.write(
        "mesh.yaml",
        "capture: {mode: ebpf, enroll: [{cgroup: /sys/fs/cgroup/no-such-group}]}
referers:
  - {service: s, address: 240.0.0.1:80, endpoints: [127.0.0.1:1]}
",
    );
    let said = sockmesh("check -c").arg(file.display()).run().failed();
    assert!(said.contains("no-such-group"), "{said}");
}

#[test]
fn cli_config_names_every_mistake_with_its_line() {
    let dir = Temp::new();
    let good = dir.write(
        "good.yaml",
        "referers:\n  - {service: s, protocol: http, listen: 127.0.0.1:1234, endpoints: [127.0.0.1:1]}\n",
    );
    sockmesh("config").arg(good.display()).run().ok();
    let bad = dir.write(
        "bad.yaml",
        "drain: ten seconds
prots: {admin: 127.0.0.1:1}
referers:
  - service: s
    protocol: htpp
    listen: 127.0.0.1:70000
    endponts: [127.0.0.1:1]
  - service: t
    address: not-an-address
    lb: rnd
",
    );
    let said = sockmesh("config").arg(bad.display()).run().failed();
    for (line, parts) in [
        (1, ["drain", "ten seconds"]),
        (2, ["prots", "ports"]),
        (5, ["protocol", "http"]),
        (6, ["listen", "70000"]),
        (7, ["endponts", "endpoints"]),
        (9, ["address", "not-an-address"]),
        (10, ["lb", "random"]),
    ] {
        let place = format!(":{line}");
        let told = said.lines().any(|l| {
            (l.contains(&place) || l.contains(&format!("line {line}"))) && parts.iter().all(|part| l.contains(part))
        });
        assert!(told, "line {line} {parts:?} is missing in:\n{said}");
    }
}

#[test]
fn cli_shows_the_mesh_as_tables_and_as_json() {
    let (server, at) = (Backend::named("x"), net::free_addr());
    let agent = Agent::start(&format!(
        "referers:\n  - {{service: shop, protocol: http, listen: {at}, endpoints: [{}]}}\n",
        server.addr()
    ));
    let mut conn = http::Conn::open(at).unwrap();
    for _ in 0..30 {
        conn.get("/").unwrap();
    }
    let endpoint = server.addr().to_string();
    until("calls are counted", || agent.metric("sockmesh_requests_total", &[r#"service="shop""#]) == 30.0);
    for (verb, parts) in [
        ("stat --once", vec!["shop", &endpoint]),
        ("endpoints", vec!["shop", &endpoint]),
        ("sockets", vec!["shop", &endpoint]),
    ] {
        let table = agent.cli(verb).ok();
        for part in &parts {
            assert!(table.contains(*part), "{verb}: {part} is missing in:\n{table}");
        }
        let json = agent.cli(&format!("{verb} -o json")).ok();
        let value: Value = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{verb}: {e}:\n{json}"));
        for part in &parts {
            assert!(value.to_string().contains(*part), "{verb}: {part} is missing in {value}");
        }
    }
}

#[test]
fn cli_says_what_is_wrong_with_what_was_typed() {
    for (line, part) in [
        ("run", "-c"),
        ("run --confg x", "--confg"),
        ("statt", "stat"),
        ("run -c /no/such/file.yaml", "/no/such/file.yaml"),
        ("stat --admin 127.0.0.1:1", "127.0.0.1:1"),
    ] {
        let said = sockmesh(line).run().failed();
        assert!(said.contains(part), "{line}: {part} is missing in:\n{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
    assert!(sockmesh("--version").run().ok().starts_with("sockmesh "));
    assert!(sockmesh("--help").run().ok().contains("sockets"));
}

#[test]
fn cli_run_names_the_port_that_is_taken() {
    let (taken, dir) = (Backend::named("x"), Temp::new());
    let yaml = |admin| {
        format!(
            "name: taken\ncapture: port\nports: {{admin: {admin}, outbound: {}, inbound: {}}}\n",
            net::free_port(),
            net::free_port()
        )
    };
    let file = dir.write("mesh.yaml", yaml(taken.addr()));
    let said = sockmesh("run -c").arg(file.display()).run().failed();
    assert!(said.contains(&taken.addr().to_string()) && said.contains("admin"), "{said}");
}

#[test]
fn cli_two_agents_of_one_name_do_not_share_a_host() {
    if lacks(&[Need::Kernel]) {
        return;
    }
    let (group, dir) = (Cgroup::new("one"), Temp::new());
    let service = "referers:\n  - {service: s, address: 240.0.0.1:80, endpoints: [127.0.0.1:1]}\n";
    let agent = Agent::with(&Settings { enroll: &[&group], ..Settings::default() }, service);
    let file = dir.write(
        "mesh.yaml",
        format!(
            "name: {}\nports: {{admin: {}, outbound: {}, inbound: {}}}\ncapture: {{mode: ebpf, enroll: [{{cgroup: {}}}]}}\n{service}",
            agent.name(),
            net::free_addr(),
            net::free_port(),
            net::free_port(),
            group.path().display()
        ),
    );
    let said = sockmesh("run -c").arg(file.display()).run().failed();
    assert!(said.contains(agent.name()), "{said}");
    assert!(agent.is_ready(), "the first one goes on");
}
