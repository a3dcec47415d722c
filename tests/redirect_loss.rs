//! The agent dies, hangs and comes back under streams that are redirected; thousands of connections come and go.

use std::path::Path;

use host::{
    Agent, Cgroup, Cmd, Need, Proc, Temp,
    agent::Settings,
    lacks,
    program::{self, Place},
    until, until_some,
    wait::now_ms,
};
use serde_json::Value;

/// What the kernel half keeps of redirected connections.
const TABLES: [&str; 2] = ["MESH_ENDS", "MESH_SOCKETS"];

fn stream(verb: &str) -> Cmd {
    program::python("stream.py").arg(verb)
}

fn lines(proc: &Proc) -> Vec<Value> {
    proc.lines().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// A server in `group` that says its address.
fn server(cmd: Cmd, group: &Cgroup, log: &Path) -> (Proc, String) {
    let proc = cmd.cgroup(group).spawn(log);
    let at = until_some("the server listens", || Some(lines(&proc).first()?["at"].as_str()?.to_owned()));
    (proc, at)
}

/// How many entries a table of the agent's kernel half has.
fn entries(agent: &Agent, table: &str) -> usize {
    let path = find(&agent.pins(), table).unwrap_or_else(|| panic!("{table} is not pinned"));
    // Values of a table of sockets cannot be read, its keys can.
    let said = Cmd::new("bpftool").args(["map", "dump", "pinned"]).arg(path.display()).run().out;
    said.lines().filter(|line| line.trim_start().starts_with("key:") || line.contains("\"key\":")).count()
}

fn find(dir: &Path, name: &str) -> Option<std::path::PathBuf> {
    std::fs::read_dir(dir).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.file_name().is_some_and(|n| n == name) { Some(path) } else { find(&path, name) }
    })
}

/// Everything pinned under the agent's name.
fn pins(agent: &Agent) -> Vec<String> {
    fn walk(dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            found.push(entry.path().display().to_string());
            walk(&entry.path(), found);
        }
    }
    let mut found = Vec::new();
    walk(&agent.pins(), &mut found);
    found.sort();
    found
}

/// Programs attached to the group.
fn attached(group: &Cgroup) -> usize {
    let out = Cmd::new("bpftool").args(["-j", "cgroup", "show"]).arg(group.path().display()).run();
    let rows: Value = serde_json::from_str(out.ok().trim()).unwrap_or_default();
    rows.as_array().map_or(0, Vec::len)
}

#[test]
fn redirect_survives_fifty_deaths_of_the_agent() {
    if lacks(&[Need::Kernel, Need::Program("python3"), Need::Program("bpftool")]) {
        return;
    }
    let _heavy = host::heavy();
    const TURNS: usize = 50;
    let (callers, servers, dir) = (Cgroup::new("callers"), Cgroup::new("servers"), Temp::new());
    let (_direct, at) = server(stream("serve").arg("direct"), &servers, &dir.file("direct.log"));
    let (_meshed, endpoint) = server(stream("serve").arg("meshed"), &servers, &dir.file("meshed.log"));
    let (host, port) = at.rsplit_once(':').unwrap();
    let settings = Settings { enroll: &[&callers, &servers], capture: "redirect: on", ..Settings::default() };
    let services =
        format!("referers:\n  - {{service: s, protocol: tcp, address: \"{at}\", endpoints: [\"{endpoint}\"]}}\n");
    let mut agent = Agent::with(&settings, &services);
    let pinned = pins(&agent);
    let survivors = stream("survivors").args([host, port, "4"]).cgroup(&callers).spawn(&dir.file("survivors.log"));
    let whole = |name: &str| lines(&survivors).iter().filter(|l| l["end"] == "whole" && l["to"] == name).count();
    until("streams are redirected", || {
        whole("meshed") > 4 && agent.metric("sockmesh_capture_total", &["outcome=\"redirected\""]) > 1000.0
    });
    let call = || stream("calls").args([host, port, "1", "1"]).cgroup(&callers).run().ok();
    let mut deaths = Vec::new();
    for turn in 0..TURNS {
        if turn % 2 == 0 {
            deaths.push(now_ms());
            agent.kill9();
            if turn % 10 == 0 {
                let before = whole("direct");
                until("streams go directly", || whole("direct") > before + 4);
                assert!(call().contains("direct"));
            }
            agent.again();
        } else {
            agent.pause();
            if turn % 10 == 5 {
                // Those that are on their way wait for it.
                until("new connections go directly", || call().contains("direct"));
            } else {
                std::thread::park_timeout(std::time::Duration::from_millis(50));
            }
            agent.resume();
        }
        let before = whole("meshed");
        until("streams go through the agent again", || whole("meshed") > before + 2);
        if turn % 10 == 9 {
            assert_eq!(pins(&agent), pinned, "what is pinned is taken over");
            until("and streams are redirected again", || {
                agent.metric("sockmesh_capture_total", &["outcome=\"redirected\""]) > 1000.0
            });
        }
    }
    let seen = lines(&survivors);
    let wrong: Vec<_> = seen.iter().filter(|l| l["wrong"].is_string()).collect();
    assert!(wrong.is_empty(), "{} streams came back changed, such as {}", wrong.len(), wrong[0]);
    let cut: Vec<_> = seen.iter().filter(|l| l["end"] == "cut").collect();
    assert!(cut.is_empty(), "{} streams ended as if they were whole, such as {}", cut.len(), cut[0]);
    let hung: Vec<_> = seen.iter().filter(|l| l["end"] == "ETIMEDOUT").collect();
    assert!(hung.is_empty(), "{} streams hung, such as {}", hung.len(), hung[0]);
    let broken = seen.iter().filter(|l| l["end"] == "ECONNRESET" || l["end"] == "EPIPE").count();
    assert!(broken > 0, "the deaths were noticed");
    // Only a second after a death may a connect fail; one that failed may have begun a moment before.
    let soon = |ms: u64| deaths.iter().any(|death| (death - 100..=death + 1000).contains(&ms));
    let late: Vec<_> = seen
        .iter()
        .filter(|l| l["connect"].is_string() && l["connect"] != "ok" && !soon(l["ms"].as_u64().unwrap()))
        .collect();
    assert!(late.is_empty(), "{} connects failed, such as {}; deaths at {deaths:?}", late.len(), late[0]);

    drop(survivors);
    until("the streams are gone", || agent.sockets().is_empty());
    for table in TABLES {
        until(&format!("{table} is empty"), || entries(&agent, table) == 0);
    }
    assert!(attached(&callers) > 0 && attached(&servers) > 0);
    assert!(agent.stop().success());
    assert_eq!(pins(&agent), Vec::<String>::new(), "an orderly stop leaves nothing");
    assert_eq!((attached(&callers), attached(&servers)), (0, 0));
    let own = host::cgroup::mount().unwrap().join(format!("sockmesh-{}", agent.name()));
    assert!(!own.exists(), "{} is still there", own.display());
}

#[test]
fn redirect_churn_leaves_nothing_behind() {
    if lacks(&[Need::Kernel, Need::Program("python3"), Need::Program("bpftool"), Need::Program("nginx")]) {
        return;
    }
    let _heavy = host::heavy();
    const ROUNDS: usize = 16;
    const WIDTH: usize = 1000;
    let (callers, servers) = (Cgroup::new("callers"), Cgroup::new("servers"));
    let place = Place { cgroup: Some(&servers), ..Place::default() };
    let sink = program::nginx("sink", &place);
    let at = sink.addr();
    let settings = Settings {
        enroll: &[&callers, &servers],
        capture: "redirect: on",
        descriptors: Some(20_000),
        ..Settings::default()
    };
    let services =
        format!("referers:\n  - {{service: s, protocol: tcp, address: \"240.0.8.1:80\", endpoints: [\"{at}\"]}}\n");
    let agent = Agent::with(&settings, &services);
    // Of the whole host, with what others do meanwhile.
    let slab = || {
        let all = std::fs::read_to_string("/proc/slabinfo").unwrap_or_default();
        let line = all.lines().find(|l| l.starts_with("TCP ")).unwrap_or("TCP 0").to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
    };
    let counter = |outcome: &str| agent.metric("sockmesh_capture_total", &[&format!("outcome=\"{outcome}\"")]);
    let churn = |rounds: usize| {
        let cmd = stream("churn").args(["240.0.8.1", "80"]).args([rounds, WIDTH]).cgroup(&callers);
        assert!(cmd.run().ok().contains(&format!("{}", rounds * WIDTH)));
        until("the connections are gone", || agent.sockets().is_empty());
        for table in TABLES {
            until(&format!("{table} is empty"), || entries(&agent, table) == 0);
        }
    };
    // Before, so that what is kept for ever is there.
    churn(ROUNDS);
    let (memory, slab_before) = (agent.memory(), slab());
    churn(ROUNDS);
    let made = (WIDTH * ROUNDS * 2) as f64;
    // Some of the callers are gone before the agent has dialled.
    assert!(counter("paired") >= made * 2.5, "both legs: {}", counter("paired"));
    assert!(counter("redirected") >= made, "{}", counter("redirected"));
    assert_eq!((counter("pair_full"), counter("record_lost")), (0.0, 0.0));
    until("the kernel has its memory back", || slab() < slab_before + ROUNDS * WIDTH / 4);
    let grown = agent.memory().saturating_sub(memory);
    assert!(grown < 16 << 20, "the agent grew by {grown} bytes");
}

#[test]
fn redirect_beside_another_owner_of_sockets_goes_by_tcp_and_names_it() {
    if lacks(&[Need::Kernel, Need::Program("python3")]) {
        return;
    }
    let (agents, servers, dir) = (Cgroup::new("agents"), Cgroup::new("servers"), Temp::new());
    let (_server, at) = server(stream("serve").arg("s"), &servers, &dir.file("server.log"));
    // Two agents in one control group: what the second dials is in the first one's table before it is in its own.
    let [first, second] = [1, 2].map(|number| {
        let callers = Cgroup::new("callers");
        let settings = Settings {
            enroll: &[&callers, &servers],
            cgroup: Some(&agents),
            capture: "redirect: on",
            ..Settings::default()
        };
        let vip = format!("240.0.8.{number}");
        let services =
            format!("referers:\n  - {{service: s, protocol: tcp, address: \"{vip}:80\", endpoints: [\"{at}\"]}}\n");
        let agent = Agent::with(&settings, &services);
        let calls = stream("calls").args([&vip, "80", "20"]).cgroup(&callers).run().ok();
        assert_eq!(calls.matches(r#""what": "s""#).count(), 20, "{calls}");
        (agent, callers)
    });
    let busy = |agent: &Agent| agent.metric("sockmesh_capture_total", &["outcome=\"pair_busy\""]);
    assert_eq!(busy(&first.0), 0.0, "it was there before");
    assert!(busy(&second.0) >= 20.0, "{}", second.0.page("/metrics"));
    until("it says who has them", || {
        let log = second.0.log();
        log.contains("another program's table of sockets") && log.contains("(mesh_msg)")
    });
    // With the owner gone its table is as well.
    drop(first);
    let before = busy(&second.0);
    let calls = stream("calls").args(["240.0.8.2", "80", "20"]).cgroup(&second.1).run().ok();
    assert_eq!(calls.matches(r#""what": "s""#).count(), 20, "{calls}");
    assert_eq!(busy(&second.0), before);
}
