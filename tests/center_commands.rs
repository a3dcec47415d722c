//! Commands of a real centre, obeyed by real agents: shares are exact, steps and undo reach them, nothing is lost on
//! the way, and sites that listen to a registry of their own obey as well.

use std::{collections::BTreeMap, net::SocketAddr, sync::mpsc, time::Duration};

use host::{
    Agent, Backend, Center, Load, Need, heavy, http, lacks, net,
    program::Place,
    until,
    wait::PATIENCE,
    zookeeper::{self, Client, java_string},
};
use serde_json::{Value, json};

/// `a1` and `a2` (of version 2) in idc-a, `b1` in idc-b, known to a centre; and an agent that calls idc-a.
struct World {
    center: Center,
    agent: Agent,
    to: SocketAddr,
    servers: Vec<Backend>,
}

impl World {
    fn new() -> Self {
        Self::of(["a1", "a2", "b1"].into_iter().map(Backend::named).collect())
    }

    fn of(servers: Vec<Backend>) -> Self {
        let (center, to) = (Center::start(""), net::free_addr());
        let registration = |(server, group, version): (&Backend, &str, &str)| {
            json!({
                "key": {"service": "web", "group": group},
                "protocol": "http",
                "instance": {"address": server.addr().to_string(), "version": version},
                "available": true
            })
        };
        let places = [(&servers[0], "idc-a", "1"), (&servers[1], "idc-a", "2"), (&servers[2], "idc-b", "1")];
        let all: Vec<_> = places.into_iter().map(registration).collect();
        let wanted = json!({"agent": "host/servers", "ttl_ms": 600_000, "generation": 1, "registrations": all});
        let (status, said) = center.send("PUT", "/v1/agent/registrations", &wanted);
        assert!(status == 200 && said["refused"].is_null(), "{status} {said}");
        let agent = Agent::start(&format!(
            "center: {{address: '{}', report: 1s}}
registries: {{c: {{kind: center}}}}
referers:
  - {{service: web, group: idc-a, protocol: http, listen: {to}, registry: c, lb: round_robin}}
",
            center.addr()
        ));
        until("both are found", || agent.endpoints().len() == 2);
        Self { center, agent, to, servers }
    }

    fn give(&self, command: &Value) -> Value {
        self.center.post("/v1/commands", command)
    }

    fn undo(&self, command: &Value) {
        let undone = self.center.post(&format!("/v1/commands/{}/undo", command["id"]), &json!({"reason": "enough"}));
        assert_eq!(undone["state"], "undone", "{undone}");
    }

    /// Who answers `n` calls with this header, and how often.
    fn dealt(&self, n: usize, header: &str) -> String {
        let mut counts = BTreeMap::<String, usize>::new();
        for _ in 0..n {
            let mut conn = http::Conn::open(self.to).unwrap();
            conn.send(format!("GET / HTTP/1.1\r\nHost: web\r\n{header}\r\n")).unwrap();
            *counts.entry(conn.answer().unwrap().text()).or_default() += 1;
        }
        counts.iter().map(|(who, n)| format!("{who}:{n}")).collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn until_dealt(&self, n: usize, expected: &str) {
        let mut last = String::new();
        let reached = host::wait::within(PATIENCE, || {
            last = self.dealt(n, "");
            (last == expected).then_some(())
        });
        assert!(reached.is_some(), "waited for {expected}, have {last}\n{}", self.agent.page("/commands"));
    }
}

fn moved(percent: u32, more: &Value) -> Value {
    let mut command = json!({
        "action": {"kind": "move", "service": "web", "from": "idc-a", "to": "idc-b", "percent": percent},
        "reason": "a test"
    });
    let (all, more) = (command.as_object_mut().unwrap(), more.as_object().cloned().unwrap_or_default());
    all.extend(more);
    command
}

#[test]
fn a_move_is_exact_in_each_of_its_steps_and_undone_without_a_trace() {
    let it = World::new();
    assert_eq!(it.dealt(20, ""), "a1:10 a2:10");
    let preview = it.center.post("/v1/commands/preview", &moved(20, &Value::Null));
    assert_eq!(preview["services"], json!(["web"]), "{preview}");
    assert_eq!(preview["endpoints"].as_array().unwrap().len(), 3, "{preview}");
    assert_eq!(preview["changes"][0]["scope"], "group idc-a");
    let steps = json!({"steps": [25, 100], "step_ms": 3_600_000, "expected": preview["revision"]});
    let given = it.give(&moved(20, &steps));
    assert_eq!(given["state"], "stepping", "{given}");
    until("5 % go", || it.dealt(100, "").ends_with(" b1:5"));
    let next = it.center.post(&format!("/v1/commands/{}/next", given["id"]), &Value::Null);
    assert_eq!((&next["state"], next["steps"].as_array().unwrap().len()), (&json!("active"), 2));
    it.until_dealt(100, "a1:40 a2:40 b1:20");
    let shown = it.agent.cli("commands").ok();
    assert!(shown.contains("idc-a:80 idc-b:20") && shown.contains("by local: a test"), "{shown}");
    // A second operator has not seen it.
    let (status, said) = it.center.send("POST", "/v1/commands", &moved(50, &json!({"expected": preview["revision"]})));
    assert_eq!((status, &said["code"]), (409, &json!("conflict")), "{said}");
    it.undo(&given);
    it.until_dealt(20, "a1:10 a2:10");
    let history = it.center.get("/v1/commands?service=web");
    assert_eq!((&history["items"][0]["state"], &history["items"][0]["ended"][2]), (&json!("undone"), &json!("enough")));
    let audit = it.center.get("/v1/audit").to_string();
    for what in ["command.create", "command.step", "command.undo"] {
        assert!(audit.contains(what), "{what} is not on record: {audit}");
    }
}

#[test]
fn commands_hold_over_a_new_life_of_the_centre_and_without_it() {
    let mut it = World::new();
    let given = it.give(&moved(20, &json!({"for_ms": 3_600_000})));
    it.until_dealt(100, "a1:40 a2:40 b1:20");
    it.center.kill9();
    assert_eq!(it.dealt(100, ""), "a1:40 a2:40 b1:20");
    it.center.again();
    let again = it.center.get(&format!("/v1/commands/{}", given["id"]));
    assert_eq!((&again["state"], &again["until_ms"]), (&json!("active"), &given["until_ms"]), "{again}");
    it.undo(&given);
    it.until_dealt(20, "a1:10 a2:10");
}

#[test]
fn canaries_and_drains_are_obeyed_and_no_call_is_lost() {
    let _heavy = heavy();
    let it = World::new();
    let load = Load::http(2, it.to, "/");
    load.more(50);
    let of = |kind: &str, more: Value| {
        let mut action = json!({"kind": kind, "service": "web", "group": "idc-a"});
        action.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"action": action, "reason": "a test"})
    };
    let canary = it.give(&of("canary", json!({"version": "2", "percent": 10, "header": "x-canary=yes"})));
    until("the agent knows", || it.agent.page("/commands").contains("10 % to version 2"));
    // The load takes its turns, too: marked calls only, which take none.
    assert_eq!(it.dealt(20, "X-Canary: yes\r\n"), "a2:20");
    it.undo(&canary);
    let drain = it.give(&of("drain", json!({"instance": it.servers[0].addr().to_string()})));
    until("nobody is sent there", || it.dealt(10, "") == "a2:10");
    load.more(50);
    it.undo(&drain);
    until("it is back", || it.dealt(10, "").contains("a1"));
    load.more(50);
    load.stop().all_good(150);
    let canary = it.give(&of("canary", json!({"version": "2", "percent": 10})));
    it.until_dealt(100, "a1:90 a2:10");
    it.undo(&canary);
    let degraded = it.give(&of("degrade", json!({})));
    until("calls are answered at once", || http::get(it.to, "/").unwrap().status() == 503);
    it.undo(&degraded);
    it.until_dealt(20, "a1:10 a2:10");
    let (status, said) = it.center.send("POST", "/v1/commands", &of("canary", json!({"version": "7", "percent": 10})));
    assert_eq!((status, &said["code"]), (404, &json!("not_found")), "{said}");
}

/// Answers its name after this time.
fn slow(name: &'static str, time: Duration) -> Backend {
    Backend::http(move |_| {
        let (_held, never) = mpsc::sync_channel::<()>(0);
        let _ = never.recv_timeout(time);
        http::ok(name)
    })
}

/// The share of calls of each endpoint, now and as predicted, in their order.
fn shares(preview: &Value) -> Option<(Vec<f64>, Vec<f64>)> {
    let of = |name: &str| {
        let rates = preview["endpoints"].as_array().unwrap().iter().map(|e| e[name].as_f64().unwrap());
        let rates: Vec<f64> = rates.collect();
        let sum: f64 = rates.iter().sum();
        (sum > 0.0).then(|| rates.iter().map(|rate| rate / sum).collect::<Vec<_>>())
    };
    Some((of("rate_now")?, of("rate_then")?))
}

#[test]
fn what_a_preview_says_is_what_comes() {
    let _heavy = heavy();
    let it = World::new();
    let load = Load::http(2, it.to, "/");
    let preview = || it.center.post("/v1/commands/preview", &moved(30, &json!({"expected": 1_000_000})));
    let predicted = host::wait::until_some("calls are seen", || shares(&preview())).1;
    let expected = [0.35, 0.35, 0.3];
    assert!(predicted.iter().zip(expected).all(|(is, shall)| (is - shall).abs() < 0.01), "{predicted:?}");
    it.give(&moved(30, &Value::Null));
    let mut last = Vec::new();
    let measured = host::wait::within(PATIENCE * 2, || {
        last = shares(&preview())?.0;
        last.iter().zip(&predicted).all(|(is, said)| (is - said).abs() < 0.01).then_some(())
    });
    assert!(measured.is_some(), "measured {last:?}, predicted {predicted:?}");
    load.stop().all_good(100);
}

#[test]
fn a_group_that_is_slow_trips_the_guard_and_its_calls_come_back() {
    let _heavy = heavy();
    let servers = vec![Backend::named("a1"), Backend::named("a2"), slow("b1", Duration::from_millis(300))];
    let it = World::of(servers);
    let load = Load::http(4, it.to, "/");
    let given = it.give(&moved(
        50,
        &json!({
            "steps": [20, 100],
            "step_ms": 3_600_000,
            "guard": {"p99_ms": 250, "window_ms": 2000, "min_calls": 5}
        }),
    ));
    assert_eq!(given["state"], "stepping");
    let path = format!("/v1/commands/{}", given["id"]);
    let ended = host::wait::within(PATIENCE * 2, || {
        let command = it.center.get(&path);
        (command["state"] == "undone").then_some(command)
    });
    let ended = ended.unwrap_or_else(|| panic!("it is not undone: {}", it.center.get(&path)));
    let why = ended["ended"][2].as_str().unwrap();
    assert!(ended["ended"][1] == "centre" && why.contains("its guard") && why.contains("over 250 ms"), "{ended}");
    load.stop().all_good(20);
    until("nobody is sent there", || !it.dealt(20, "").contains("b1"));
}

#[test]
fn a_site_that_listens_to_zookeeper_obeys_as_well() {
    if lacks(&[Need::Program("java"), Need::Program("zkServer.sh")]) {
        return;
    }
    let _heavy = heavy();
    let zk = zookeeper::zookeeper(&Place::default());
    let servers: Vec<_> = ["a1", "b1"].into_iter().map(Backend::named).collect();
    let mut client = Client::open(zk.addr());
    let mut all = Vec::new();
    for (server, group) in servers.iter().zip(["idc-a", "idc-b"]) {
        let url = format!("http://{}/web?group={group}&nodeType=service", server.addr());
        client.create(&format!("/motan/{group}/web/server/{}", server.addr()), &java_string(&url));
        all.push(json!({"key": {"service": "web", "group": group}, "protocol": "http", "available": true,
            "instance": {"address": server.addr().to_string()}}));
    }
    let theirs = r#"{"clientCommandList":[{"index":5,"pattern":"other","mergeGroups":["x"]}]}"#;
    client.create("/motan/idc-a/command", &java_string(theirs));
    let mut center = Center::start(&format!(
        "commands: {{registries: [{{kind: zookeeper, options: {{address: '{}'}}, groups: ['idc-*']}}]}}",
        zk.addr()
    ));
    let wanted = json!({"agent": "host/servers", "ttl_ms": 600_000, "generation": 1, "registrations": all});
    assert_eq!(center.send("PUT", "/v1/agent/registrations", &wanted).0, 200);
    let to = net::free_addr();
    let _agent = Agent::start(&format!(
        "registries: {{zk: {{kind: zookeeper, address: '{}'}}}}
referers:
  - {{service: web, group: idc-a, protocol: http, listen: {to}, registry: zk, lb: round_robin}}
",
        zk.addr()
    ));
    let share = || (0..20).filter(|_| http::get(to, "/").is_ok_and(|answer| answer.text() == "b1")).count();
    until("it serves", || http::get(to, "/").is_ok_and(|answer| answer.text() == "a1"));
    let given = center.post("/v1/commands", &moved(20, &Value::Null));
    until("the agent obeys", || share() == 4);
    let path = format!("/v1/commands/{}", given["id"]);
    let told = || center.get(&path)["written"].to_string();
    until("it is told", || told() == r#"[["zookeeper, group idc-a","written"]]"#);
    // What the site's own people wrote is there all the time, and alone at the end.
    let text =
        |client: &mut Client| String::from_utf8_lossy(&client.get("/motan/idc-a/command").unwrap().data).into_owned();
    assert!(text(&mut client).contains(r#""pattern":"other""#) && text(&mut client).contains("sockmesh-1"));
    center.kill9();
    assert_eq!(share(), 4, "nobody needs the centre for that");
    center.again();
    center.post(&format!("{path}/undo"), &Value::Null);
    until("its end is obeyed", || share() == 0);
    until("theirs is left", || {
        let left = text(&mut client);
        left.contains(r#""pattern":"other""#) && !left.contains("sockmesh-1")
    });
}

/// What etcd holds for idc-a.
struct InEtcd(SocketAddr);

impl host::site::Texts for InEtcd {
    fn get(&self) -> Option<String> {
        host::etcd::get(self.0, "/motan/idc-a/command").map(|found| String::from_utf8(found.value).unwrap())
    }

    fn put(&self, text: &str) {
        host::etcd::put(self.0, "/motan/idc-a/command", text.as_bytes());
    }
}

#[test]
fn a_site_that_listens_to_etcd_obeys_as_well() {
    if lacks(&[Need::Program("etcd")]) {
        return;
    }
    let _heavy = heavy();
    let etcd = host::etcd::etcd(&Place::default());
    host::site::obeys("etcd", &format!("address: '{}'", etcd.addr()), &InEtcd(etcd.addr()));
}
