//! The agent dies or hangs: enrolled programs go on without it, and with it again when it is back.

use std::path::Path;

use host::{Agent, Backend, Cgroup, Cmd, Need, Proc, lacks, program, until, wait::now_ms};
use serde_json::Value;

/// A service at the address of a real server that answers `direct`; through the mesh `meshed` answers.
struct World {
    agent: Agent,
    group: Cgroup,
    callers: Proc,
    _servers: [Backend; 2],
}

/// One call of the program that never stops calling.
#[derive(Debug)]
struct Call {
    ms: u64,
    what: String,
}

impl World {
    fn new(on_agent_loss: &str) -> Option<Self> {
        if lacks(&[Need::Kernel, Need::Program("python3")]) {
            return None;
        }
        let (group, direct, meshed) = (Cgroup::new("callers"), Backend::named("direct"), Backend::named("meshed"));
        let at = direct.addr();
        let agent = Agent::capturing(
            &[&group],
            &format!(
                "referers:
  - {{service: s, protocol: http, address: \"{at}\", endpoints: [{}], on_agent_loss: {on_agent_loss}}}
",
                meshed.addr()
            ),
        );
        let args = ["callers".to_owned(), at.ip().to_string(), at.port().to_string()];
        let log = agent.dir().file("callers.log");
        let callers = program::python("client.py").args(args).cgroup(&group).spawn(&log);
        let world = Self { agent, group, callers, _servers: [direct, meshed] };
        world.becomes("meshed");
        Some(world)
    }

    fn calls(&self) -> Vec<Call> {
        let parse = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            Call { ms: line["ms"].as_u64().unwrap(), what: line["what"].as_str().unwrap().to_owned() }
        };
        self.callers.lines().iter().map(|line| parse(line)).collect()
    }

    /// Waits until the last 20 calls ended with `what`.
    #[track_caller]
    fn becomes(&self, what: &str) {
        until(&format!("calls end with {what}"), || {
            let calls = self.calls();
            calls.len() >= 20 && calls[calls.len() - 20..].iter().all(|c| c.what.starts_with(what))
        });
    }

    /// From one second after `from` on every call ended with `what`.
    #[track_caller]
    fn within_a_second(&self, from: u64, what: &str) {
        let late: Vec<_> =
            self.calls().into_iter().filter(|c| c.ms > from + 1000 && !c.what.starts_with(what)).collect();
        assert!(late.is_empty(), "{} calls did not end with {what}, such as {:?}", late.len(), late[0]);
    }
}

#[test]
fn loss_of_a_killed_agent_is_bypassed_within_a_second() {
    let Some(mut world) = World::new("direct") else { return };
    let killed = now_ms();
    world.agent.kill9();
    world.becomes("direct");
    world.within_a_second(killed, "direct");
    // What it left behind is taken over, not doubled.
    let pins = pins(&world.agent);
    assert!(!pins.is_empty(), "programs and maps outlive a crash");
    world.agent.again();
    world.becomes("meshed");
    assert_eq!(self::pins(&world.agent), pins);
    // And again, now that pins were adopted.
    let killed = now_ms();
    world.agent.kill9();
    world.becomes("direct");
    world.within_a_second(killed, "direct");
    world.agent.again();
    world.becomes("meshed");
    world.agent.stop();
    world.becomes("direct");
    assert_eq!(self::pins(&world.agent), Vec::<String>::new(), "an orderly stop leaves nothing");
}

#[test]
fn loss_of_a_hung_agent_is_bypassed_until_it_wakes() {
    let Some(world) = World::new("direct") else { return };
    let paused = now_ms();
    world.agent.pause();
    world.becomes("direct");
    world.within_a_second(paused, "direct");
    world.agent.resume();
    world.becomes("meshed");
}

#[test]
fn loss_refuses_where_nothing_may_go_unfiltered() {
    let Some(mut world) = World::new("refuse") else { return };
    world.agent.kill9();
    world.becomes("error");
    assert!(world.calls().iter().all(|c| c.what != "direct"), "not one call went past the mesh");
    // Only the service is refused, not the program.
    let other = Backend::named("other");
    let (ip, port) = (other.addr().ip().to_string(), other.addr().port().to_string());
    let out = program::python("client.py").args(["blocking", &ip, &port]).cgroup(&world.group).run().ok();
    assert!(out.contains("other"), "{out}");
    world.agent.again();
    world.becomes("meshed");
}

#[test]
fn loss_by_an_orderly_stop_leaves_the_group_without_programs() {
    let Some(mut world) = World::new("direct") else { return };
    if lacks(&[Need::Program("bpftool")]) {
        return;
    }
    let attached = |group: &Path| {
        let out = Cmd::new("bpftool").args(["-j", "cgroup", "show"]).arg(group.display()).run();
        let rows: Value = serde_json::from_str(out.ok().trim()).unwrap_or_default();
        rows.as_array().map_or(0, Vec::len)
    };
    assert!(attached(world.group.path()) >= 2);
    assert!(world.agent.stop().success());
    world.becomes("direct");
    assert_eq!(attached(world.group.path()), 0);
    let failed: Vec<_> = world.calls().into_iter().filter(|c| c.what.starts_with("error")).collect();
    assert!(failed.len() <= 1, "new connects go directly before the agent closes its door: {failed:?}");
}

/// Everything pinned under the agent's name.
fn pins(agent: &Agent) -> Vec<String> {
    fn walk(dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            found.push(entry.path().display().to_string());
            if entry.path().is_dir() {
                walk(&entry.path(), found);
            }
        }
    }
    let mut found = Vec::new();
    walk(&agent.pins(), &mut found);
    found.sort();
    found
}
