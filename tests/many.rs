//! Ten thousand endpoints: what they take, and how soon a change among them is seen. `--nocapture` shows the figures.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use host::{
    Agent, Temp, free_port,
    motan::{self, Client, Frame},
    until,
};

const SERVICE: &str = "com.example.Echo";
const ENDPOINTS: u32 = 10_000;
const CHANGES: usize = 40;

/// A list in which only `live` may be picked; written beside its place and moved there, as tools do.
fn write(path: &Path, live: SocketAddr, idle: SocketAddr) {
    let mut text = format!("services:\n  {SERVICE}:\n");
    for (at, weight) in [(live, 10), (idle, 0)] {
        writeln!(text, "    - {{address: \"{at}\", weight: {weight}}}").unwrap();
    }
    for i in 2..ENDPOINTS {
        writeln!(text, "    - {{address: \"10.1.{}.{}:8081\", weight: 0}}", i >> 8 & 255, i & 255).unwrap();
    }
    let fresh = path.with_extension("new");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, path).unwrap();
}

#[test]
fn many_endpoints_are_known_and_a_change_among_them_is_seen() {
    let _heavy = host::heavy();
    let dir = Temp::new();
    let file = dir.file("nodes.yaml");
    let servers = ["a", "b"]
        .map(|name| motan::server(move |request| Some(request.answer(&Frame::call(SERVICE, "echo", name).body))));
    write(&file, servers[0].addr(), servers[1].addr());
    let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let agent = Agent::start(&format!(
        "registries: {{nodes: {{kind: file, path: {}}}}}
referers:
  - {{service: {SERVICE}, protocol: motan2, listen: {to}, registry: nodes}}
",
        file.display()
    ));
    let mut client = Client::open(to).unwrap();
    let mut who = || client.call(Frame::call(SERVICE, "who", "")).unwrap().text();
    assert_eq!(who(), "a");
    let idle = agent.memory();

    let mut seen = Vec::new();
    for change in 1..=CHANGES {
        let (live, other) = (change % 2, (change + 1) % 2);
        write(&file, servers[live].addr(), servers[other].addr());
        let begun = Instant::now();
        let expected = ["a", "b"][live];
        until("the change is seen", || who() == expected);
        seen.push(begun.elapsed());
    }
    seen.sort();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let at = |q: f64| seen[((seen.len() - 1) as f64 * q).round() as usize].as_secs_f64() * 1e3;
    println!(
        "{ENDPOINTS} endpoints: {:.1} MiB resident, {:.1} MiB after {CHANGES} changes; a change is seen after {:.0} ms \
         (median), {:.0} ms (99 %)",
        mib(idle),
        mib(agent.memory()),
        at(0.5),
        at(0.99)
    );
    assert!(seen[0] > Duration::ZERO);
    // Twice what a release build takes, for builds that are not.
    assert!(mib(agent.memory()) < 100.0, "{} MiB", mib(agent.memory()));
}
