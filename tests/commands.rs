//! Commands in a registry move traffic, for as long as they stand there, and no call is lost on the way.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use host::{
    Agent, Backend, Load, Need, Temp, heavy, http, lacks,
    motan::{self, Client, Frame},
    net,
    program::Place,
    until,
    zookeeper::{self, java_string},
};
use rustix::process::Signal;

/// Two servers in `idc-a`, one in `idc-b`, a registry file that lists them, and an agent that calls `idc-a`.
struct World {
    agent: Agent,
    to: SocketAddr,
    dir: Temp,
    list: String,
    _servers: Vec<Backend>,
}

impl World {
    fn http(more: &str) -> Self {
        Self::new("http", more, Backend::named)
    }

    fn motan(more: &str) -> Self {
        Self::new("motan2", more, |name| {
            let name = name.to_owned();
            motan::server(move |frame| {
                let mut body = vec![1];
                body.extend((name.len() as u32).to_be_bytes());
                body.extend(name.as_bytes());
                Some(frame.answer(&body))
            })
        })
    }

    fn new(protocol: &str, more: &str, server: impl Fn(&str) -> Backend) -> Self {
        let (dir, to) = (Temp::new(), net::free_addr());
        let servers: Vec<_> = ["a1", "a2", "b1"].into_iter().map(server).collect();
        let at: Vec<_> = servers.iter().map(|s| s.addr().to_string()).collect();
        let list = format!(
            "services:\n  web: [{{address: {}, group: idc-a}}, {{address: {}, group: idc-a}}, {{address: {}, group: idc-b}}]\n",
            at[0], at[1], at[2]
        );
        let nodes = dir.write("nodes.yaml", &list);
        let agent = Agent::start(&format!(
            "advertise: 10.9.9.9
registries: {{nodes: {{kind: file, path: {}}}}}
referers:
  - {{service: web, group: idc-a, protocol: {protocol}, listen: {to}, registry: nodes, lb: round_robin{more}}}
",
            nodes.display()
        ));
        Self { agent, to, dir, list, _servers: servers }
    }

    fn nodes(&self) -> PathBuf {
        self.dir.file("nodes.yaml")
    }

    /// Writes the commands of a scope, such as `groups: {idc-a: '...'}`.
    fn command(&self, commands: &str) {
        self.dir.write("nodes.yaml", format!("{}commands: {{{commands}}}\n", self.list));
    }

    /// Who answers `n` calls, and how often.
    fn dealt(&self, n: usize) -> String {
        let mut counts = BTreeMap::<String, usize>::new();
        for _ in 0..n {
            *counts.entry(http::get(self.to, "/").unwrap().text()).or_default() += 1;
        }
        counts.iter().map(|(who, n)| format!("{who}:{n}")).collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn until_dealt(&self, n: usize, expected: &str) {
        let mut last = String::new();
        let reached = host::wait::within(host::wait::PATIENCE, || {
            last = self.dealt(n);
            (last == expected).then_some(())
        });
        assert!(reached.is_some(), "waited for {expected}, have {last}\n{}", self.agent.page("/commands"));
    }
}

#[test]
fn a_switch_is_exact_and_its_end_brings_the_own_group_back() {
    let it = World::http("");
    assert_eq!(it.dealt(20), "a1:10 a2:10");
    let said = it.agent.cli("switch web idc-a=20 idc-b=80").ok();
    assert!(said.contains("idc-a:20 idc-b:80"), "{said}");
    it.until_dealt(40, "a1:4 a2:4 b1:32");
    for _ in 0..5 {
        assert_eq!(it.dealt(10), "a1:1 a2:1 b1:8", "exact in each round");
    }
    let shown = it.agent.cli("commands").ok();
    assert!(shown.contains("idc-a:20 idc-b:80") && shown.contains("idc-a/web goes by group idc-a"), "{shown}");
    // Another switch takes its place.
    it.agent.cli("switch web idc-b").ok();
    it.until_dealt(20, "b1:20");
    it.agent.cli("switch web --end").ok();
    it.until_dealt(20, "a1:10 a2:10");
    let text = std::fs::read_to_string(it.nodes()).unwrap();
    assert!(text.contains(r#"{"clientCommandList":[]}"#), "what every client reads as none: {text}");
    let said = it.agent.cli("switch web --end").ok();
    assert!(said.contains("no command for exactly this name"), "{said}");
}

#[test]
fn what_cannot_be_ordered_is_refused_with_a_reason() {
    let it = World::http("");
    for (verb, expected) in [
        ("switch web idc-a=0", "leave idc-a out"),
        ("switch web idc-a=101", "1 to 100"),
        ("switch nobody idc-a", "calls no service `nobody`; it calls web"),
        ("switch web", "required"),
    ] {
        let said = it.agent.cli(verb).failed();
        assert!(said.contains(expected), "{verb}: {said}");
    }
    it.command(r#"groups: {idc-a: '{"clientCommandList":[{"pattern":"*"}]}'}"#);
    until("it is read", || {
        it.agent.page("/commands").contains("goes by") || it.agent.page("/commands").contains("group idc-a (")
    });
    let said = it.agent.cli("switch web idc-b").failed();
    assert!(said.contains("has no index, so it goes first"), "{said}");
    it.command("groups: {idc-a: nonsense}");
    until("it is told", || it.agent.page("/commands").contains("not JSON"));
    let said = it.agent.cli("switch web idc-b").failed();
    assert!(said.contains("not JSON"), "{said}");
}

#[test]
fn a_dry_run_shows_the_loads_and_changes_nothing() {
    let it = World::http("");
    let before = std::fs::read_to_string(it.nodes()).unwrap();
    it.dealt(50);
    let said = it.agent.cli("switch web idc-a=20 idc-b=80 --dry-run -o json").ok();
    let page: serde_json::Value = serde_json::from_str(&said).unwrap();
    let share = |group: &str| -> f64 {
        let rows = page["rows"].as_array().unwrap().iter().filter(|row| row["group"] == group);
        rows.map(|row| row["share"].as_f64().unwrap()).sum()
    };
    assert!((share("idc-a") - 0.2).abs() < 0.001 && (share("idc-b") - 0.8).abs() < 0.001, "{said}");
    let rate = page["rate"].as_f64().unwrap();
    assert!(rate > 0.0, "{said}");
    let then: f64 = page["rows"].as_array().unwrap().iter().map(|row| row["rate_then"].as_f64().unwrap()).sum();
    assert!((then - rate).abs() < rate * 0.01, "every call goes somewhere: {said}");
    let shown = it.agent.cli("switch web idc-a idc-c --dry-run").ok();
    assert!(shown.contains("group idc-c has no endpoint") && shown.contains("nothing was changed"), "{shown}");
    assert_eq!(std::fs::read_to_string(it.nodes()).unwrap(), before);
    assert_eq!(it.dealt(20), "a1:10 a2:10");
}

#[test]
fn degraded_calls_are_answered_at_once_and_the_agent_undoes_it_in_time() {
    let it = World::http("");
    it.agent.cli("degrade web --for 2s").ok();
    until("503", || http::get(it.to, "/").unwrap().status() == 503);
    let answer = http::get(it.to, "/").unwrap();
    assert!(answer.text().contains("cluster not available, maybe caused by degrade"), "{}", answer.text());
    assert_eq!(it.agent.metric("sockmesh_service_degraded", &[r#"service="web""#]), 1.0);
    assert!(it.agent.cli("commands").ok().contains("the degrade of web is undone in"));
    until("undone", || http::get(it.to, "/").unwrap().status() == 200);
    assert!(std::fs::read_to_string(it.nodes()).unwrap().contains(r#"{"clientCommandList":[]}"#));

    let it = World::motan("");
    let mut client = Client::open(it.to).unwrap();
    let mut call = || client.call(Frame::call("web", "hello", "x").with("M_g", "idc-a")).unwrap();
    assert!(["a1", "a2"].contains(&call().text().as_str()));
    it.agent.cli("degrade web").ok();
    until("an exception", || call().status == 1);
    assert_eq!(call().thrown(), (500, 1, "cluster not available, maybe caused by degrade".to_owned()));
    it.agent.cli("degrade web --end").ok();
    until("an answer", || call().status == 0);
}

#[test]
fn what_was_there_before_comes_back_when_the_time_is_over() {
    let it = World::http("");
    it.agent.cli("switch web idc-a=50 idc-b=50").ok();
    it.until_dealt(20, "a1:5 a2:5 b1:10");
    it.agent.cli("switch web idc-b --for 2s").ok();
    it.until_dealt(20, "b1:20");
    it.until_dealt(20, "a1:5 a2:5 b1:10");
    assert!(!it.agent.page("/commands").contains("in_seconds"), "nothing is left to undo");
}

#[test]
fn an_agent_that_was_killed_undoes_in_time_what_it_ordered() {
    let mut it = World::http("");
    it.agent.cli("switch web idc-a=50 idc-b=50").ok();
    it.until_dealt(20, "a1:5 a2:5 b1:10");
    it.agent.cli("switch web idc-b --for 1m").ok();
    it.agent.cli("switch web idc-a --for 6s").ok();
    it.agent.kill9();
    it.agent.again();
    until("it is known again", || it.agent.cli("commands").ok().contains("the switch of web is undone in"));
    it.until_dealt(20, "a1:5 a2:5 b1:10");
    assert!(!it.agent.page("/commands").contains("in_seconds"), "nothing is left to undo");

    // The time is over while it is away.
    it.agent.cli("degrade web --for 1s").ok();
    it.agent.kill9();
    it.agent.again();
    until("undone", || http::get(it.to, "/").unwrap().status() == 200);
    until("and taken out", || !std::fs::read_to_string(it.nodes()).unwrap().contains("\"commandType\":1"));
    it.until_dealt(20, "a1:5 a2:5 b1:10");
    // What another agent ordered is none of its business.
    let text = std::fs::read_to_string(it.nodes()).unwrap();
    assert!(!text.contains("term"), "{text}");
}

#[test]
fn rules_by_address_and_mixed_groups() {
    let it = World::http(", mix_groups: [idc-a, idc-b]");
    it.until_dealt(30, "a1:10 a2:10 b1:10");
    // A command goes before it. All of these servers have the same address.
    let command = |rule: &str| {
        it.command(&format!(
            r#"groups: {{idc-a: {{clientCommandList: [{{index: 1, pattern: "w*b|web", routeRules: ["{rule}"]}}]}}}}"#
        ));
    };
    command("10.9.* to 127.0.0.1");
    it.until_dealt(20, "a1:10 a2:10");
    assert_eq!(it.agent.json("/commands")["services"][0]["troubles"].as_array().unwrap().len(), 0);
    command("10.9.* to !127.0.0.1");
    until("it is told", || it.agent.page("/commands").contains("would leave no endpoint: no rule counts"));
    assert_eq!(it.dealt(20), "a1:10 a2:10");
    command("11.* to !127.0.0.1");
    until("it concerns others", || !it.agent.page("/commands").contains("would leave no endpoint"));
}

#[test]
fn an_ill_text_counts_for_nothing_and_the_application_goes_before_the_group() {
    let it = World::http("");
    it.command(r#"groups: {idc-a: {clientCommandList: [{index: 1, pattern: web, mergeGroups: [idc-b]}]}}"#);
    it.until_dealt(10, "b1:10");
    it.command(r#"groups: {idc-a: '{"clientCommandList":[{"pattern":"web","mergeGroups":"idc-b"}]}'}"#);
    it.until_dealt(10, "a1:5 a2:5");
    let shown = it.agent.cli("commands").ok();
    assert!(shown.contains("clientCommandList[0]: `mergeGroups` is no list of texts"), "{shown}");
    assert!(it.agent.cli("endpoints").ok().contains("none of them counts"));
    it.command(
        r#"groups: {idc-a: {clientCommandList: [{index: 1, pattern: web, mergeGroups: [idc-a]}]},}, agents: {sockmesh: {clientCommandList: [{index: 1, pattern: "*", mergeGroups: [idc-b]}]}}"#,
    );
    it.until_dealt(10, "b1:10");
    // A group of nobody: the own one serves, and that is told.
    it.command(r#"groups: {idc-a: {clientCommandList: [{index: 1, pattern: web, mergeGroups: [idc-x]}]}}"#);
    it.until_dealt(10, "a1:5 a2:5");
    assert!(it.agent.cli("endpoints").ok().contains("no endpoint in idc-x: the own group serves"));
}

#[test]
fn a_storm_of_commands_under_load_loses_no_call() {
    let _heavy = heavy();
    let it = World::http("");
    let load = Load::http(4, it.to, "/");
    let commands = [
        "groups: {idc-a: {clientCommandList: [{index: 1, pattern: web, mergeGroups: ['idc-a:1', 'idc-b:3']}]}}",
        "groups: {idc-a: {clientCommandList: [{index: 1, pattern: web, mergeGroups: [idc-b]}]}}",
        "groups: {idc-a: {clientCommandList: [{index: 1, pattern: web, mergeGroups: [idc-a, idc-b, idc-c]}]}}",
        "groups: {idc-a: nonsense}",
        "groups: {idc-a: {clientCommandList: []}}",
    ];
    for i in 0..60 {
        it.command(commands[i % commands.len()]);
        load.more(20);
    }
    it.command(commands[1]);
    it.until_dealt(10, "b1:10");
    load.stop().all_good(1000);
    // It still stops in good order.
    it.agent.signal(Signal::TERM);
}

#[test]
fn a_switch_in_a_real_zookeeper_is_written_as_java_reads_it() {
    if lacks(&[Need::Program("java"), Need::Program("zkServer.sh")]) {
        return;
    }
    let server = zookeeper::zookeeper(&Place::default());
    let mut client = zookeeper::Client::open(server.addr());
    let backends = ["a", "b"].map(Backend::named);
    for (backend, group) in backends.iter().zip(["bars", "bars-b"]) {
        let url = format!("http://{}/bars.BarService?nodeType=service&version=1.0&group={group}&", backend.addr());
        client.create(&format!("/motan/{group}/bars.BarService/server/{}", backend.addr()), &java_string(&url));
    }
    let to = net::free_addr();
    let agent = Agent::start(&format!(
        "registries: {{zk: {{kind: zookeeper, address: '{}'}}}}
referers:
  - {{service: bars.BarService, group: bars, protocol: http, listen: {to}, registry: zk, lb: round_robin}}
",
        server.addr()
    ));
    let dealt = |n: usize| {
        let b = (0..n).filter(|_| http::get(to, "/").unwrap().text() == "b").count();
        (n - b, b)
    };
    until("the own group serves", || http::get(to, "/").unwrap().text() == "a");
    let load = Load::http(2, to, "/");
    agent.cli("switch bars.BarService bars=1 bars-b=3").ok();
    until("both serve", || dealt(4).1 > 0);
    load.more(100);
    load.stop().all_good(100);
    assert_eq!(dealt(40), (10, 30), "exact");
    let data = client.get("/motan/bars/command").unwrap().data;
    assert!(data.starts_with(b"\xac\xed\0\x05\x74"), "{data:02x?}");
    let text = String::from_utf8_lossy(&data[7..]).into_owned();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["clientCommandList"][0]["mergeGroups"], serde_json::json!(["bars:1", "bars-b:3"]));

    // What somebody else writes counts as well, plain or serialized, and so does that it is deleted.
    let degrade = r#"{"clientCommandList":[{"index":1,"commandType":1,"pattern":"bars"}]}"#;
    client.set("/motan/bars/command", degrade.as_bytes());
    until("degraded", || http::get(to, "/").unwrap().status() == 503);
    let only_b = r#"{"clientCommandList":[{"index":1,"commandType":0,"pattern":"bars.*","mergeGroups":["bars-b"]}]}"#;
    client.set("/motan/bars/command", &java_string(only_b));
    until("the other group", || dealt(4) == (0, 4));
    client.delete("/motan/bars/command");
    until("the own group", || dealt(4) == (4, 0));
}

#[test]
fn sets_that_change_under_a_load_of_motan2_lose_no_call() {
    let _heavy = heavy();
    let it = World::motan("");
    let whole = it.list.clone();
    let rows: Vec<String> = whole.split('{').skip(1).map(|r| format!("{{{}}}", r.split('}').next().unwrap())).collect();
    assert_eq!(rows.len(), 3, "{whole}");
    let to = it.to;
    let load = Load::start(4, || {
        let mut client: Option<Client> = None;
        move || {
            let mut open = match client.take() {
                Some(open) => open,
                None => Client::open(to).map_err(|e| format!("connect: {e}"))?,
            };
            let frame = Frame::call("web", "hello", "x").with("M_g", "idc-a");
            let answer = open.call(frame).map_err(|e| format!("call: {e}"))?;
            client = Some(open);
            if answer.status == 0 { Ok(answer.text()) } else { Err(format!("{:?}", answer.thrown())) }
        }
    });
    load.more(100);
    // Each of the two of the own group alone, both, a weight of none, another group's in between, and all again.
    let one = |row: &str| format!("services:\n  web: [{row}]\n");
    let sets = [
        one(&rows[0]),
        one(&rows[1]),
        one(&format!("{}, {}", rows[1], rows[2])),
        one(&format!("{}, {}", rows[0].replace('}', ", weight: 0}"), rows[1])),
        whole.clone(),
    ];
    let orders = [
        "",
        "commands: {groups: {idc-a: {clientCommandList: [{index: 1, pattern: web, mergeGroups: [idc-a, idc-b]}]}}}\n",
    ];
    for i in 0..60 {
        it.dir.write("nodes.yaml", format!("{}{}", sets[i % sets.len()], orders[i / 7 % 2]));
        load.more(50);
    }
    it.dir.write("nodes.yaml", one(&rows[1]));
    let mut client = Client::open(to).unwrap();
    let mut by = || client.call(Frame::call("web", "hello", "x").with("M_g", "idc-a")).unwrap().text();
    until("only the second is left", || (0..6).all(|_| by() == "a2"));
    let tally = load.stop();
    tally.all_good(3000);
    assert!(["a1", "a2", "b1"].iter().all(|who| tally.good.contains_key(*who)), "{:?}", tally.good);
}
