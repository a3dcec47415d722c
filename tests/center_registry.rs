//! Real agents at a real centre: services are registered, found, taken out and lost; whatever becomes of the centre,
//! calls go on.

use std::{fs, net::SocketAddr};

use host::{Agent, Backend, Center, Cmd, Load, Temp, agent::Settings, center, heavy, http, net, until};
use serde_json::{Value, json};

/// An agent that provides `web` of group `g` at the centre.
fn provider(center: SocketAddr, server: &Backend, more: &str) -> (Agent, SocketAddr) {
    let export = net::free_addr();
    let local = server.addr();
    let services = format!(
        "center: {{address: '{center}', report: 0s}}
registries: {{c: {{kind: center, ttl: 3s}}}}
services:
  - {{service: web, group: g, protocol: http, export: {export}, local: {local}, registry: c{more}}}
"
    );
    (Agent::start(&services), export)
}

/// An agent whose programs call `web`, with snapshot files in `snapshots`.
fn caller(center: &str, snapshots: &Temp) -> (Agent, SocketAddr) {
    let to = net::free_addr();
    let services = format!(
        "registries: {{c: {{kind: center, address: [{center}]}}}}
referers:
  - {{service: web, group: g, protocol: http, listen: {to}, registry: c, lb: round_robin}}
"
    );
    let top = format!("snapshots: {}\nhold_back: {{empty_after: 0s, shrunk_after: 0s}}\n", snapshots.path().display());
    (Agent::with(&Settings { top: &top, ..Settings::default() }, &services), to)
}

fn service(center: &Center) -> Value {
    center.get("/v1/service?service=web&group=g")
}

fn states(center: &Center) -> String {
    let page = service(center);
    let rows = page["instances"].as_array().unwrap().clone();
    rows.iter().map(|row| row["state"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
}

fn order(address: SocketAddr, weight: Option<u32>) -> Value {
    json!({"key": {"service": "web", "group": "g"}, "address": address.to_string(), "reason": "test", "weight": weight})
}

fn says(to: SocketAddr) -> String {
    http::get(to, "/").map(|answer| answer.text()).unwrap_or_default()
}

#[test]
fn services_are_found_and_the_operators_word_holds_over_restarts() {
    let (mut center, kept) = (Center::start(""), Temp::new());
    let servers = [Backend::named("one"), Backend::named("two")];
    let (mut one, at_one) = provider(center.addr(), &servers[0], ", weight: 20");
    let (mut two, _) = provider(center.addr(), &servers[1], "");
    let (calling, to) = caller(&format!("'{}'", center.addr()), &kept);
    until("both are found", || calling.endpoints().len() == 2);
    let row = service(&center);
    let first = row["instances"].as_array().unwrap().iter().find(|row| row["address"] == at_one.to_string()).unwrap();
    assert_eq!((&first["weight"], &first["state"]), (&json!(20), &json!("available")));
    assert_eq!(row["row"]["protocols"], json!(["http"]));
    let agents = [&one, &two].map(|agent| agent.name().to_owned());
    let named = |row: &Value| agents.iter().any(|name| row["agent"].as_str().unwrap().ends_with(name));
    assert!(row["instances"].as_array().unwrap().iter().all(named), "{row}");

    center.post("/v1/instance/out", &order(at_one, None));
    until("callers know that it is out", || calling.endpoints().len() == 1);
    assert_eq!(says(to), "two");
    // New lives of agent and centre change nothing about it.
    assert!(one.stop().success());
    one.again();
    center.kill9();
    assert_eq!(says(to), "two", "calls do not need the centre");
    center.again();
    until("the provider is known again", || states(&center) == "out available" || states(&center) == "available out");
    assert_eq!(calling.endpoints().len(), 1);
    center.post("/v1/instance/in", &order(at_one, None));
    until("it is back", || calling.endpoints().len() == 2);
    center.post("/v1/instance/weight", &order(at_one, Some(3)));
    until("its weight is the operator's", || calling.endpoints().iter().any(|row| row["weight"] == 3));
    center.post("/v1/instance/weight", &order(at_one, None));
    until("its weight is its own", || calling.endpoints().iter().any(|row| row["weight"] == 20));

    // A provider that ends in order is gone; one that dies is lost.
    assert!(two.stop().success());
    until("the one that ended is gone", || states(&center) == "available");
    one.kill9();
    until("the one that died is lost", || states(&center) == "lost");
    one.again();
    until("it finds its place again", || states(&center) == "available");
    let audit = center.get("/v1/audit").to_string();
    for what in ["instance.out", "instance.in", "instance.weight"] {
        assert!(audit.contains(what), "{what} is not on record: {audit}");
    }
}

#[test]
fn nothing_that_becomes_of_the_centre_costs_a_call() {
    let _heavy = heavy();
    let (mut center, kept) = (Center::start(""), Temp::new());
    let servers = [Backend::named("one"), Backend::named("two")];
    let providers = servers.each_ref().map(|server| provider(center.addr(), server, ""));
    let (mut calling, to) = caller(&format!("'{}'", center.addr()), &kept);
    until("both are found", || calling.endpoints().len() == 2);
    // History, so that a centre that begins anew does not catch up by chance.
    for n in 1..=40 {
        center.post("/v1/instance/weight", &order(providers[0].1, Some(n)));
    }
    let load = Load::http(2, to, "/");
    load.more(100);
    center.kill9();
    load.more(100);
    until("the caller says that the centre is away", || calling.cli("endpoints").ok().contains("cannot connect"));
    center.again();
    until("the centre is heard again", || !calling.cli("endpoints").ok().contains("cannot connect"));
    load.more(100);
    // It comes back with nothing: its empty or short list is not believed.
    center.kill9();
    center.again_empty();
    until("the caller refuses it", || calling.cli("endpoints").ok().contains("lost data or was restored"));
    load.more(100);
    let tally = load.stop();
    tally.all_good(400);
    assert_eq!(calling.endpoints().len(), 2);
    // Not even by an agent that starts now: it has the list and the stamp in its files.
    assert!(calling.stop().success());
    calling.again();
    until("the new life refuses it, too", || calling.cli("endpoints").ok().contains("lost data or was restored"));
    assert_eq!(calling.endpoints().len(), 2);
    let ahead = center.get("/v1/registry")["ahead"].to_string();
    assert!(ahead.contains(calling.name()), "the centre knows that it is behind: {ahead}");
    assert!(center.log().contains("an agent took more than this centre has"));
}

#[test]
fn any_address_that_answers_is_enough() {
    let (center, kept) = (Center::start(""), Temp::new());
    let server = Backend::named("one");
    let _provider = provider(center.addr(), &server, "");
    let nobody = net::free_addr();
    let (calling, to) = caller(&format!("'{nobody}', '{}'", center.addr()), &kept);
    until("it is found", || calling.endpoints().len() == 1);
    assert_eq!(says(to), "one");
}

#[test]
fn commands_at_the_centre_are_obeyed_and_written_by_agents() {
    let (center, kept) = (Center::start(""), Temp::new());
    let server = Backend::named("one");
    let _provider = provider(center.addr(), &server, "");
    let (calling, to) = caller(&format!("'{}'", center.addr()), &kept);
    until("it is found", || says(to) == "one");
    calling.cli("degrade web").ok();
    until("the calls are answered at once", || http::get(to, "/").unwrap().status() == 503);
    let text = center.get("/v1/registry")["texts"][0].clone();
    assert_eq!(text["scope"], json!({"group": "g"}));
    let text = text["text"].as_str().unwrap();
    let (status, refused) =
        center.send("PUT", "/v1/text", &json!({"scope": {"group": "g"}, "expected": "something else", "text": null}));
    assert_eq!((status, &refused["code"]), (409, &json!("conflict")), "{refused}");
    let (status, _) = center.send("PUT", "/v1/text", &json!({"scope": {"group": "g"}, "expected": text, "text": null}));
    assert_eq!(status, 200);
    until("they go through again", || says(to) == "one");
}

#[test]
fn one_agent_cannot_have_what_is_anothers() {
    let center = Center::start("");
    let server = Backend::named("one");
    let (provider, at) = provider(center.addr(), &server, "");
    until("it is registered", || center.get("/v1/services")["total"] == 1);
    let stolen = json!({
        "key": {"service": "web", "group": "g"},
        "protocol": "http",
        "instance": {"address": at.to_string()},
        "available": false,
    });
    let evil = json!({"agent": "evil", "ttl_ms": 30_000, "generation": 1, "registrations": [stolen]});
    let (status, answer) = center.send("PUT", "/v1/agent/registrations", &evil);
    let told = answer["refused"][0][1].as_str().unwrap().to_owned();
    assert!(status == 200 && told.contains(provider.name()) && told.contains("lives"), "{status} {answer}");
    // Under the other one's name it is an old message, unless it knows better; then the agent takes its place back.
    let name = service(&center)["instances"][0]["agent"].clone();
    let forged = json!({"agent": name, "ttl_ms": 30_000, "generation": 1, "registrations": []});
    assert_eq!(center.send("PUT", "/v1/agent/registrations", &forged).0, 409);
    let forged = json!({"agent": name, "ttl_ms": 30_000, "generation": 1u64 << 60, "registrations": []});
    assert_eq!(center.send("PUT", "/v1/agent/registrations", &forged).0, 200);
    until("the agent is back", || center.get("/v1/services")["total"] == 1 && states(&center) == "available");
    for (path, body) in
        [("/v1/agent/registrations", json!({"agent": "x", "registrations": 5})), ("/v1/agent/registrations", json!([]))]
    {
        assert_eq!(center.send("PUT", path, &body).0, 400);
    }
}

/// `sockmesh-center` with this centre's file and data; what it prints.
#[track_caller]
fn run(center: &Center, args: &[&str]) -> String {
    let (config, data) = (center.dir().join("center.yaml"), center.dir().join("data"));
    let cmd = Cmd::new(center::binary()).args(args).arg("-c").arg(config.display()).arg("--data").arg(data.display());
    cmd.run().ok()
}

#[test]
fn a_restored_backup_is_refused_by_agents_until_it_is_forced_upon_them() {
    let (mut center, kept) = (Center::start(""), Temp::new());
    let servers = [Backend::named("one"), Backend::named("two")];
    let providers = servers.each_ref().map(|server| provider(center.addr(), server, ""));
    let (calling, to) = caller(&format!("'{}'", center.addr()), &kept);
    until("both are found", || calling.endpoints().len() == 2);
    // At the time of the backup an operator has taken one out. Later it is in again, and there is more history.
    center.post("/v1/instance/out", &order(providers[0].1, None));
    until("one is out", || calling.endpoints().len() == 1);
    let file = kept.file("backup.json");
    let told = run(&center, &["backup", &file.display().to_string(), "--center", &format!("http://{}", center.addr())]);
    assert!(told.contains("entries at epoch"), "{told}");
    center.post("/v1/instance/in", &order(providers[0].1, None));
    for n in 1..=40 {
        center.post("/v1/instance/weight", &order(providers[1].1, Some(n)));
    }
    until("both are called", || calling.endpoints().len() == 2);

    // Restored onto an empty machine: everyone who has seen more stays with that, and says so.
    assert!(center.stop().success());
    fs::remove_dir_all(center.dir().join("data")).unwrap();
    run(&center, &["restore", &file.display().to_string()]);
    center.again();
    until("the agent refuses it", || calling.cli("endpoints").ok().contains("lost data or was restored"));
    assert!(states(&center).contains("out"), "that is what the backup says: {}", states(&center));
    assert_eq!(calling.endpoints().len(), 2, "and nobody goes back to it");
    assert!(["one", "two"].iter().all(|name| (0..4).any(|_| says(to) == *name)), "both are called");
    let stat = calling.cli("stat").ok();
    assert!(stat.contains("lost data or was restored"), "{stat}");
    assert!(center.get("/v1/registry")["ahead"].to_string().contains(calling.name()));

    // Forced: agents follow what it says.
    assert!(center.stop().success());
    run(&center, &["restore", &file.display().to_string(), "--force"]);
    center.again();
    until("the agent follows it", || calling.endpoints().len() == 1);
    until("and finds nothing wrong with it", || !calling.cli("endpoints").ok().contains("lost data or was restored"));
    assert_eq!(says(to), "two");
    center.post("/v1/instance/in", &order(providers[0].1, None));
    until("it obeys the centre again", || calling.endpoints().len() == 2);
}
