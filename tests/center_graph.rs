//! Who calls whom, and how the bytes travel, as a centre shows it of real traffic: past the agent, past TCP, joined.

use std::net::SocketAddr;

use host::{
    Agent, Center, Cgroup, Cmd, Need, Proc, Temp,
    agent::Settings,
    lacks,
    program::python,
    until, until_some,
    wait::{PATIENCE, within},
};
use serde_json::Value;

/// What the programs dial.
const SERVICE: [&str; 2] = ["240.0.9.1", "5432"];

/// A centre, a server and programs that call it, each in a group of its own, and an agent that reports.
struct World {
    center: Center,
    agent: Agent,
    callers: Cgroup,
    _server: (Proc, Cgroup),
    dir: Temp,
}

fn stream(verb: &str) -> Cmd {
    python("stream.py").arg(verb)
}

impl World {
    /// `path`: further keys of the service; `capture`: of the agent's capture. With `both` the server is enrolled, too.
    fn new(path: &str, capture: &str, join: bool, both: bool) -> Option<Self> {
        if lacks(&[Need::Kernel, Need::Program("python3")]) {
            return None;
        }
        let (center, dir) = (Center::start(""), Temp::new());
        let (callers, servers) = (Cgroup::new("shop"), Cgroup::new("db"));
        let server = stream("serve").arg("a").cgroup(&servers).spawn(&dir.file("server.log"));
        let at: SocketAddr = until_some("the server listens", || {
            let first = server.lines().first().cloned()?;
            serde_json::from_str::<Value>(&first).ok()?["at"].as_str()?.parse().ok()
        });
        let [host, port] = SERVICE;
        let top = format!("application: agent\ncenter: {{address: '{}', report: 500ms}}\n", center.addr());
        let groups = [&callers, &servers];
        let enroll = if both { &groups[..] } else { &groups[..1] };
        let settings = Settings { enroll, join, capture, top: &top, ..Settings::default() };
        let agent = Agent::with(
            &settings,
            &format!(
                "referers:
  - {{service: db, group: idc-a, protocol: tcp{path}, address: '{host}:{port}', endpoints: [{at}]}}
"
            ),
        );
        Some(Self { center, agent, callers, _server: (server, servers), dir })
    }

    /// So many short calls.
    fn call(&self, count: u32) {
        stream("calls").args(SERVICE).arg(count).arg("5").cgroup(&self.callers).run().ok();
    }

    /// Connections that stay, with bytes on them.
    fn streams(&self, name: &str) -> Proc {
        stream("streams").args(SERVICE).arg("2").cgroup(&self.callers).spawn(&self.dir.file(name))
    }

    /// Waits until the graph shows calls of the programs by this way.
    #[track_caller]
    fn shows(&self, from: &str, way: &str) {
        let mut last = Value::Null;
        let shown = within(PATIENCE * 2, || {
            self.call(10);
            last = self.center.get("/v1/graph");
            let edges = last["edges"].as_array().unwrap();
            let fits = |edge: &&Value| edge["from"].as_str().unwrap().contains(from) && edge["way"] == way;
            let edge = edges.iter().find(fits)?;
            assert_eq!(edge["to"], "service:idc-a/db", "{last}");
            (edge["rate"].as_f64()? > 0.0 && edge["success"].as_f64()? > 0.99).then_some(())
        });
        assert!(shown.is_some(), "no calls of {from} by {way}: {last:#}\n{:#?}", self.agent.sockets());
    }
}

#[test]
fn kernelway_calls_that_no_agent_carries_are_seen() {
    let Some(world) = World::new(", path: kernel", "", false, false) else { return };
    world.shows("shop", "kernel");
}

#[test]
fn kernelway_joined_calls_are_seen_as_such() {
    let Some(world) = World::new(", path: kernel", "", true, true) else { return };
    // The first connection only finds out that the server is enrolled.
    until("connections are joined", || {
        world.call(10);
        world.agent.metric("sockmesh_capture_total", &["outcome=\"redirected\""]) > 20.0
    });
    let _held = world.streams("joined.log");
    world.shows("shop", "joined");
}

#[test]
fn redirect_calls_whose_bytes_go_past_tcp_are_seen_as_such() {
    let Some(world) = World::new("", "redirect: on", false, true) else { return };
    until("the self-test has been made", || world.agent.page("/metrics").contains("sockmesh_redirect_selftest{"));
    let _held = world.streams("redirected.log");
    world.shows("agent", "redirect");
}
