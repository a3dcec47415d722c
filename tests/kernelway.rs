//! The kernel way, with the agent as operators run it: it may die, hang and come back, endpoints may leave or
//! fall silent, and programs notice nothing but where they are sent.

use std::net::SocketAddr;

use host::{Agent, Cgroup, Cmd, Need, Net, Proc, Temp, agent::Settings, lacks, program, until, until_some};
use serde_json::Value;

/// What the programs dial.
const SERVICE: [&str; 2] = ["240.0.0.9", "5432"];

fn stream(verb: &str) -> Cmd {
    program::python("stream.py").arg(verb)
}

/// Lines of JSON that a program has said so far.
fn lines(proc: &Proc) -> Vec<Value> {
    proc.lines().iter().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

/// An endpoint in a control group of its own.
struct Server {
    at: SocketAddr,
    _proc: Proc,
    group: Cgroup,
    _dir: Temp,
}

impl Server {
    fn new(name: &str) -> Self {
        Self::start(name, stream("serve").arg(name))
    }

    fn start(name: &str, cmd: Cmd) -> Self {
        let (group, dir) = (Cgroup::new(name), Temp::new());
        let proc = cmd.cgroup(&group).spawn(&dir.file("log"));
        let at = until_some("the endpoint listens", || lines(&proc).first()?["at"].as_str()?.parse().ok());
        Self { at, _proc: proc, group, _dir: dir }
    }
}

struct World {
    agent: Agent,
    callers: Cgroup,
    a: Server,
    b: Server,
    dir: Temp,
}

fn referer(endpoints: &[SocketAddr]) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(SocketAddr::to_string).collect();
    let [host, port] = SERVICE;
    format!(
        "referers:\n  - {{service: db, protocol: tcp, path: kernel, address: \"{host}:{port}\", endpoints: [{}]}}\n",
        endpoints.join(", ")
    )
}

impl World {
    fn new() -> Option<Self> {
        if lacks(&[Need::Kernel, Need::Program("python3")]) {
            return None;
        }
        Some(Self::with(Server::new("a"), Server::new("b")))
    }

    fn with(a: Server, b: Server) -> Self {
        let callers = Cgroup::new("callers");
        let agent = Agent::capturing(&[&callers], &referer(&[a.at, b.at]));
        Self { agent, callers, a, b, dir: Temp::new() }
    }

    /// As [`new`](Self::new), with connections joined.
    fn joined() -> Option<Self> {
        if lacks(&[Need::Kernel, Need::Program("python3")]) {
            return None;
        }
        let (a, b, callers) = (Server::new("a"), Server::new("b"), Cgroup::new("callers"));
        let enroll = [&callers, &a.group, &b.group];
        let settings = Settings { enroll: &enroll, join: true, ..Settings::default() };
        let agent = Agent::with(&settings, &referer(&[a.at, b.at]));
        Some(Self { agent, callers, a, b, dir: Temp::new() })
    }

    fn spawn(&self, verb: &str, more: &[&str]) -> Proc {
        let name = format!("{verb}.log");
        stream(verb).args(SERVICE).args(more).cgroup(&self.callers).spawn(&self.dir.file(&name))
    }

    /// What `count` calls ended with.
    fn calls(&self, count: u32) -> Vec<String> {
        self.calls_within(count, "5")
    }

    /// As [`calls`](Self::calls), each given up after `timeout` seconds.
    fn calls_within(&self, count: u32, timeout: &str) -> Vec<String> {
        let said = stream("calls").args(SERVICE).arg(count).arg(timeout).cgroup(&self.callers).run().ok();
        let what = |l: &str| serde_json::from_str::<Value>(l).unwrap()["what"].as_str().unwrap().to_owned();
        said.lines().map(what).collect()
    }

    /// The agent's row of the endpoint at `at`.
    fn endpoint(&self, at: SocketAddr) -> Value {
        let rows = self.agent.endpoints();
        rows.iter().find(|row| row["address"] == at.to_string()).cloned().unwrap_or_default()
    }

    fn connects(&self) -> f64 {
        self.agent.metric("sockmesh_kernel_connects_total", &["service=\"db\""])
    }

    /// The row of `stat` of the service.
    fn stat(&self) -> Value {
        self.agent.json("/stat")["services"][0].clone()
    }
}

#[test]
fn kernelway_survives_fifty_deaths_of_the_agent() {
    if let Some(world) = World::new() {
        survives(world, 50, None);
    }
}

#[test]
fn kernelway_joined_survives_twenty_deaths_of_the_agent() {
    let Some(world) = World::joined() else { return };
    // The first connection to each endpoint only finds out that it is enrolled.
    until("both endpoints are known", || {
        world.calls(10);
        world.agent.metric("sockmesh_capture_total", &["outcome=\"redirected\""]) > 20.0
    });
    survives(world, 20, Some("joined"));
}

/// Kills and stops the agent in turn while programs stream, by what `sockets` calls `how`, and connect.
fn survives(mut world: World, turns: usize, how: Option<&str>) {
    const STREAMS: usize = 4;
    let mut streams = world.spawn("streams", &[&STREAMS.to_string()]);
    until("the streams flow", || lines(&streams).len() == STREAMS);
    let callers = world.spawn("asks", &[]);
    let calls = || lines(&callers).len();
    let more = |what: &str| {
        let before = calls();
        until(what, || calls() > before + 2);
    };
    more("programs connect");
    let pins = pins(&world.agent);
    for turn in 0..turns {
        let before = world.connects();
        if turn % 2 == 0 {
            world.agent.kill9();
            more("programs connect without an agent");
            world.agent.again();
            assert!(world.connects() >= before, "turn {turn}: {} after {before}", world.connects());
        } else {
            world.agent.pause();
            more("programs connect beside an agent that hangs");
            world.agent.resume();
        }
    }
    assert_eq!(self::pins(&world.agent), pins, "what is pinned was adopted every time");
    let made = calls() as u64;
    // The counters of the kernel are entered anew into the books of each new agent.
    until("stat has all that was ever counted", || world.stat()["started"].as_u64().unwrap() >= made);
    let rows = world.agent.sockets();
    let by = |row: &Value| row["redirect"].as_str().map(str::to_owned);
    let open = |row: &&Value| row["pid"] == streams.pid() && row["endpoint"].is_string() && by(row).as_deref() == how;
    assert_eq!(rows.iter().filter(open).count(), STREAMS, "{rows:?}");
    assert!(streams.stop().success());
    let ended: Vec<_> = lines(&streams).into_iter().filter(|l| !l["ended"].is_null()).collect();
    assert_eq!(ended.len(), STREAMS);
    for row in ended {
        assert!(row["wrong"].is_null() && row["sent"] == row["got"] && row["sent"].as_u64() > Some(100_000), "{row}");
    }
    let said = lines(&callers);
    let bad: Vec<_> = said.iter().filter(|l| l["what"] != "a" && l["what"] != "b").collect();
    assert!(bad.is_empty(), "of {} connects, {}: {:?}", said.len(), bad.len(), bad[0]);
    let gap = said.windows(2).map(|w| w[1]["ms"].as_u64().unwrap() - w[0]["ms"].as_u64().unwrap()).max();
    assert!(gap < Some(1000), "{gap:?} ms from one connect to the next");
}

#[test]
fn kernelway_leaves_an_endpoint_that_left() {
    let Some(world) = World::new() else { return };
    let idle: Vec<_> = (0..8)
        .map(|n| stream("idle").args(SERVICE).cgroup(&world.callers).spawn(&world.dir.file(&format!("idle{n}"))))
        .collect();
    let to = |proc: &Proc| lines(proc).first().map(|l| l["to"].as_str().unwrap().to_owned());
    let went: Vec<_> = idle.iter().map(|proc| until_some("it is connected", || to(proc))).collect();
    let mut busy = world.spawn("streams", &["4"]);
    until("the streams flow", || lines(&busy).len() == 4);
    let before = world.connects();

    world.agent.rewrite(&referer(&[world.b.at]));
    world.agent.cli("reload").ok();
    assert!(world.calls(50).iter().all(|c| c == "b"), "no new connect goes to what has left");
    for (proc, to) in idle.iter().zip(&went) {
        if to == "a" {
            until("the idle connection is closed", || lines(proc).len() == 2);
            assert_eq!(lines(proc)[1]["end"], "ECONNABORTED");
        }
    }
    let kept: Vec<_> = idle.iter().zip(&went).filter(|(_, to)| *to == "b").collect();
    assert!(kept.iter().all(|(proc, _)| lines(proc).len() == 1), "those to endpoints that stay are left alone");
    let a_lives = |row: &Value| row["endpoint"] == world.a.at.to_string();
    let busy_there = lines(&busy).iter().filter(|l| l["to"] == "a").count();
    until("only busy connections go to what has left", || {
        world.agent.sockets().iter().filter(|row| a_lives(row)).count() == busy_there
    });
    assert!(world.connects() >= before + 50.0, "what has left stays in the sums");

    world.agent.rewrite(&referer(&[world.a.at]));
    world.agent.cli("reload").ok();
    assert!(world.calls(50).iter().all(|c| c == "a"));
    assert!(busy.stop().success());
    for row in lines(&busy).iter().filter(|l| !l["ended"].is_null()) {
        assert!(row["wrong"].is_null() && row["sent"] == row["got"], "{row}");
    }
}

#[test]
fn kernelway_leaves_an_endpoint_that_left_in_other_network_namespaces_too() {
    if lacks(&[Need::Kernel, Need::Program("python3"), Need::Program("ip")]) {
        return;
    }
    let net = Net::new();
    let near = |name: &str| Server::start(name, stream("serve").args([name, &net.here().to_string()]));
    let world = World::with(near("a"), near("b"));
    let idle = |n: usize| {
        let idle = stream("idle").args(SERVICE).cgroup(&world.callers).netns(&net);
        idle.spawn(&world.dir.file(&format!("idle{n}")))
    };
    let idle: Vec<_> = (0..8).map(idle).collect();
    let to = |proc: &Proc| lines(proc).first().map(|l| l["to"].as_str().unwrap().to_owned());
    let went: Vec<_> = idle.iter().map(|proc| until_some("it is connected", || to(proc))).collect();
    assert!(went.iter().any(|to| to == "a"), "{went:?}");
    until("their ends there are shown", || {
        let rows = world.agent.sockets();
        let there = |row: &&Value| row["peer"].as_str().unwrap().starts_with(&format!("{}:", net.there()));
        rows.iter().filter(there).filter(|row| row["sent_bytes"].as_u64() > Some(0)).count() == idle.len()
    });
    world.agent.rewrite(&referer(&[world.b.at]));
    world.agent.cli("reload").ok();
    for (proc, _) in idle.iter().zip(&went).filter(|(_, to)| *to == "a") {
        until("the idle connection is closed", || lines(proc).len() == 2);
        assert_eq!(lines(proc)[1]["end"], "ECONNABORTED");
    }
    let kept: Vec<_> = idle.iter().zip(&went).filter(|(_, to)| *to == "b").collect();
    assert!(kept.iter().all(|(proc, _)| lines(proc).len() == 1), "those to endpoints that stay are left alone");
}

#[test]
fn kernelway_joined_says_why_a_connection_is_not() {
    if lacks(&[Need::Kernel, Need::Program("python3"), Need::Program("ip")]) {
        return;
    }
    let net = Net::new();
    let (callers, dir) = (Cgroup::new("callers"), Temp::new());
    let near = Server::start("a", stream("serve").args(["a", &net.here().to_string()]));
    let enroll = [&callers, &near.group];
    let settings = Settings { enroll: &enroll, join: true, capture: "redirect: on", ..Settings::default() };
    let mut agent = Agent::with(&settings, &referer(&[near.at]));
    let how = |agent: &Agent, cmd: Cmd| {
        let idle = cmd.args(SERVICE).cgroup(&callers).spawn(&dir.file("idle"));
        until_some("the connection is shown", || {
            let rows = agent.sockets();
            rows.iter().find(|row| row["pid"] == idle.pid())?["redirect"].as_str().map(str::to_owned)
        })
    };
    let elsewhere = "not joined: the endpoint is in another network namespace, or on another host";
    until("a program elsewhere is told why", || how(&agent, stream("idle").netns(&net)) == elsewhere);
    let said = agent.cli("sockets").ok();
    assert!(!said.contains("joined"), "nobody is connected now: {said}");
    until("beside it, it is joined", || how(&agent, stream("idle")) == "joined");
    let fresh = Server::new("b");
    agent.rewrite(&referer(&[fresh.at]));
    agent.cli("reload").ok();
    until("the endpoint's program is not enrolled", || {
        how(&agent, stream("idle")) == "not joined: the endpoint's program is not enrolled"
    });
    agent.rewrite_head("redirect: on", "redirect: off", &referer(&[fresh.at]));
    agent.cli("reload").ok();
    assert_eq!(how(&agent, stream("idle")), "not joined: capture.redirect is off");
    assert!(agent.stop().success());
}

#[test]
fn kernelway_passes_over_an_endpoint_behind_a_black_hole() {
    if lacks(&[Need::Kernel, Need::Program("python3"), Need::Program("ip")]) {
        return;
    }
    let net = Net::new();
    let far = Server::start("b", stream("serve").args(["b", &net.there().to_string()]).netns(&net));
    let world = World::with(Server::new("a"), far);
    let answered = |said: &[String], by: &str| said.iter().filter(|s| *s == by).count();
    let said = world.calls(60);
    assert!(answered(&said, "a") > 0 && answered(&said, "b") > 0, "{said:?}");

    net.black_hole();
    let mut silent = Vec::new();
    let shown = until_some("an endpoint that answers nothing is shown", || {
        silent.extend(world.calls_within(10, "0.3"));
        let row = world.endpoint(world.b.at);
        (row["state"] != "up").then_some(row)
    });
    assert!(shown["reason"].as_str().unwrap().contains("connect"), "{shown}");
    assert!(answered(&silent, "timeout") >= 1 && answered(&silent, "b") == 0, "{silent:?}");
    // From then on it is tried by one connect now and then, and no more once the agent takes it out.
    until("it is out", || {
        world.calls_within(10, "0.3");
        world.endpoint(world.b.at)["state"] == "out"
    });
    let said = world.calls_within(50, "0.3");
    assert_eq!(answered(&said, "a"), 50, "{said:?}");
    assert!(world.agent.metric("sockmesh_kernel_failed_total", &["service=\"db\""]) >= 1.0);

    net.heal();
    until("it is tried again", || answered(&world.calls(20), "b") > 0);
    until("nothing is held against it", || world.endpoint(world.b.at)["state"] == "up");
}

#[test]
fn kernelway_passes_over_an_endpoint_without_a_route() {
    if lacks(&[Need::Kernel, Need::Program("python3"), Need::Program("ip")]) {
        return;
    }
    // Callers live where there is a route to one endpoint only: the other's connects end before a SYN leaves.
    let net = Net::new();
    let near = Server::start("a", stream("serve").args(["a", &net.here().to_string()]));
    let mut world = World::with(near, Server::new("b"));
    world.b.at = "203.0.113.1:1".parse().unwrap();
    world.agent.rewrite(&referer(&[world.a.at, world.b.at]));
    world.agent.cli("reload").ok();
    let calls = || {
        let said = stream("calls").args(SERVICE).args(["10"]).cgroup(&world.callers).netns(&net).run().ok();
        said.lines().filter(|l| l.contains("ENETUNREACH")).count()
    };
    let shown = until_some("an endpoint without a route is shown", || {
        calls();
        let row = world.endpoint(world.b.at);
        (row["state"] != "up").then_some(row)
    });
    assert!(shown["failed"].as_u64() > Some(0), "{shown}");
    until("it is out", || {
        calls();
        world.endpoint(world.b.at)["state"] == "out"
    });
    assert_eq!(calls(), 0);
}

#[test]
fn kernelway_churn_leaves_nothing_behind() {
    if lacks(&[Need::Kernel, Need::Program("python3"), Need::Program("ip")]) {
        return;
    }
    let _alone = host::heavy();
    const ROUNDS: usize = 16;
    const WIDTH: usize = 1000;
    let net = Net::new();
    let sink = || Server::start("sink", stream("sink").netns(&net));
    let world = World::with(sink(), sink());
    // Sockets of this namespace alone, and of the whole host's tables with what others do meanwhile.
    let sockets = || {
        let said = Cmd::line("cat /proc/net/sockstat").netns(&net).run().ok();
        let line = said.lines().find(|l| l.starts_with("TCP:")).unwrap().to_owned();
        line.split(' ').nth(2).unwrap().parse::<usize>().unwrap()
    };
    let slab = || {
        let all = std::fs::read_to_string("/proc/slabinfo").unwrap_or_default();
        let line = all.lines().find(|l| l.starts_with("TCP ")).unwrap_or("TCP 0").to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
    };
    let (sockets_before, slab_before) = (sockets(), slab());
    let churn = stream("churn").args(SERVICE).args([ROUNDS, WIDTH]).cgroup(&world.callers).netns(&net);
    assert!(churn.run().ok().contains(&format!("{}", ROUNDS * WIDTH)));
    let made = (ROUNDS * WIDTH) as f64;
    let metric = |name: &str| world.agent.metric(&format!("sockmesh_kernel_{name}"), &["service=\"db\""]);
    until("every connect was counted", || (metric("connects_total") - made).abs() < 0.5);
    until("and its end", || metric("active") < 0.5);
    assert!((metric("sent_bytes_total") - made * 4.0).abs() < 0.5, "{}", world.agent.page("/metrics"));
    assert!(world.agent.sockets().is_empty());
    until("the sockets are gone", || sockets() <= sockets_before);
    until("so is their memory", || slab() < slab_before + ROUNDS * WIDTH / 4);
    assert!(world.agent.metric("sockmesh_capture_total", &["outcome=\"unlisted\""]) < 0.5);
}

/// Everything pinned under the agent's name.
fn pins(agent: &Agent) -> Vec<String> {
    let mut found: Vec<_> = std::fs::read_dir(agent.pins())
        .unwrap()
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            let inner = std::fs::read_dir(&path).into_iter().flatten().map(|e| e.unwrap().path());
            inner.chain([path.clone()]).collect::<Vec<_>>()
        })
        .map(|path| path.display().to_string())
        .collect();
    found.sort();
    found
}
