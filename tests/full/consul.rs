//! Against a real Consul: found, registered, killed, frozen, begun anew, commands, tokens.

use agent::registry::{Scope, Standing, Wanted};
use host::{
    Agent, Backend, Need,
    consul::Consul,
    free_port,
    http::{self, ok},
    lacks, until,
    wait::within,
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::kind::{Kind, key, provided};

const NEEDS: &[Need] = &[Need::Peer("consul")];

/// Puts an instance into the catalog as any program of a site would.
fn put(consul: &Consul, service: &str, id: &str, port: u16, tags: &[&str], ttl: bool) {
    let mut body = json!({"ID": id, "Name": service, "Address": "127.0.0.1", "Port": port, "Tags": tags});
    if ttl {
        body["Check"] = json!({"TTL": "30s", "Status": "passing"});
    }
    consul.put("/v1/agent/service/register", &body.to_string());
}

fn plain(consul: &Consul) -> Kind {
    Kind::new("consul", &json!({"address": consul.addr().to_string(), "layout": "plain"}).to_string())
}

fn motan(consul: &Consul, ttl: &str) -> Kind {
    Kind::new("consul", &json!({"address": consul.addr().to_string(), "ttl": ttl}).to_string())
}

/// The state of an instance's checks, worst first; `None` when it is not in the catalog.
fn state(consul: &Consul, service: &str, id: &str) -> Option<String> {
    let all = consul.get(&format!("/v1/health/service/{service}"));
    let one = all.as_array()?.iter().find(|e| e["Service"]["ID"] == id)?.clone();
    let checks: Vec<_> = one["Checks"].as_array()?.iter().map(|c| c["Status"].as_str().unwrap().to_owned()).collect();
    ["critical", "warning", "passing"].iter().find(|s| checks.iter().any(|c| c == *s)).map(|s| (*s).to_owned())
}

#[test]
fn consul_plain_services_are_followed_by_change() {
    if lacks(NEEDS) {
        return;
    }
    let consul = Consul::start();
    let registry = plain(&consul);
    let mut web = registry.watch(&key("web", ""));
    web.list(&[], false);
    put(&consul, "web", "w1", 8001, &["v1"], true);
    web.list(&["127.0.0.1:8001"], false);
    put(&consul, "web", "w2", 8002, &["v2", "g"], true);
    let both = web.list(&["127.0.0.1:8001", "127.0.0.1:8002"], false);
    assert!(both.instances.iter().all(|i| i.weight == 10), "{both:?}");
    // Which have the tag, when a group is asked for.
    registry.watch(&key("web", "g")).list(&["127.0.0.1:8002"], false);
    // A failed check takes it out, a warning changes nothing here but its weight.
    consul.put("/v1/agent/check/fail/service:w1", "");
    web.list(&["127.0.0.1:8002"], false);
    consul.put("/v1/agent/check/warn/service:w1", "");
    web.list(&["127.0.0.1:8001", "127.0.0.1:8002"], false);
    consul.put("/v1/agent/service/maintenance/w2?enable=true", "");
    web.list(&["127.0.0.1:8001"], false);
    consul.put("/v1/agent/service/deregister/w1", "");
    web.list(&[], false);
}

#[test]
fn consul_groups_of_motan_are_found_with_and_without_their_url() {
    if lacks(NEEDS) {
        return;
    }
    let consul = Consul::start();
    let url = "URL_motan2%3A%2F%2F127.0.0.1%3A8001%2Fcom.Echo%3Fgroup%3Dyf%26nodeType%3Dservice%26version%3D1.0%26META_WEIGHT%3D30%26";
    put(&consul, "motanrpc_yf", "127.0.0.1:8001-com.Echo", 8001, &["protocol_motan2", url], true);
    put(&consul, "motanrpc_yf", "127.0.0.1:8002-com.Echo", 8002, &["protocol_motan"], true);
    put(&consul, "motanrpc_yf", "127.0.0.1:8003-com.Other", 8003, &["protocol_motan2"], true);
    let registry = motan(&consul, "30s");
    let found = registry.watch(&key("com.Echo", "yf")).list(&["127.0.0.1:8001", "127.0.0.1:8002"], false);
    let weights: Vec<_> = found.instances.iter().map(|i| (i.metadata["protocol"].as_str(), i.weight)).collect();
    assert!(weights.contains(&("motan2", 30)) && weights.contains(&("motan", 10)), "{weights:?}");
    registry.watch(&key("com.Echo", "bj")).list(&[], false);
}

#[test]
fn consul_registrations_are_kept_and_taken_back() {
    if lacks(NEEDS) {
        return;
    }
    let mut consul = Consul::start();
    let registry = motan(&consul, "3s");
    let (name, id) = ("motanrpc_yf", "10.1.2.3:8001-com.Echo");
    let mut here = registry.register(&provided("com.Echo", "yf", "10.1.2.3:8001"));
    here.until(&Standing::Available);
    assert_eq!(state(&consul, name, id).as_deref(), Some("passing"));
    let found = registry.watch(&key("com.Echo", "yf")).list(&["10.1.2.3:8001"], false);
    let one = &found.instances[0];
    assert_eq!((one.weight, one.zone.as_str(), one.metadata["serialization"].as_str()), (20, "z1", "simple"));

    here.want(Wanted::Unavailable);
    here.until(&Standing::Unavailable);
    assert_eq!(state(&consul, name, id).as_deref(), Some("critical"), "known, but nobody comes");
    here.want(Wanted::Available);
    here.until(&Standing::Available);
    assert_eq!(state(&consul, name, id).as_deref(), Some("passing"));

    // Someone takes it out by hand; Consul dies and comes back without anything.
    consul.put("/v1/agent/service/deregister/10.1.2.3:8001-com.Echo", "");
    until("it is made anew", || state(&consul, name, id).as_deref() == Some("passing"));
    consul.0.proc.signal(Signal::KILL);
    consul.0.proc.wait();
    here.until_pending();
    consul.0.again();
    consul.wait();
    until("it is made anew in an empty Consul", || state(&consul, name, id).as_deref() == Some("passing"));
    here.until(&Standing::Available);
    here.want(Wanted::Gone);
    here.until(&Standing::Gone);
    assert_eq!(state(&consul, name, id), None);
}

#[test]
fn consul_a_registration_whose_agent_hangs_is_closed_by_its_ttl_and_opened_again() {
    if lacks(NEEDS) {
        return;
    }
    let consul = Consul::start();
    let (export, local) = (free_port(), Backend::named("orders"));
    let mut agent = Agent::start(&format!(
        "registries: {{consul: {{kind: consul, address: '{}', ttl: 2s}}}}
services:
  - {{service: orders, group: g, protocol: http, export: '127.0.0.1:{export}', local: '{}', registry: consul}}
",
        consul.addr(),
        local.addr()
    ));
    let (name, id) = ("motanrpc_g", format!("127.0.0.1:{export}-orders"));
    let is = |state_wanted: &str| state(&consul, name, &id).as_deref() == Some(state_wanted);
    until("the agent is registered", || is("passing"));
    agent.pause();
    assert!(within(std::time::Duration::from_secs(60), || is("critical").then_some(())).is_some(), "closed by its TTL");
    agent.resume();
    until("and opened again", || is("passing"));
    agent.stop();
    assert_eq!(state(&consul, name, &id), None, "taken back before the end");
}

#[test]
fn consul_the_last_list_serves_while_it_is_killed_frozen_and_begun_anew() {
    if lacks(NEEDS) {
        return;
    }
    let mut consul = Consul::start();
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let listen = free_port();
    put(&consul, "web", "a", a.addr().port(), &[], false);
    let agent = Agent::start(&format!(
        "registries: {{consul: {{kind: consul, address: '{}', layout: plain}}}}
referers:
  - {{service: web, protocol: http, listen: '127.0.0.1:{listen}', registry: consul, lb: round_robin}}
",
        consul.addr()
    ));
    let to = ([127, 0, 0, 1], listen).into();
    let call = || http::get(to, "/").map(|answer| (answer.status(), answer.text()));
    let good = |who: &str| matches!(call(), Ok((200, said)) if said == who);
    until("the service is found", || good("a"));
    put(&consul, "web", "b", b.addr().port(), &[], false);
    until("both are called", || good("b") && (good("a") || good("a")));

    consul.0.proc.signal(Signal::KILL);
    consul.0.proc.wait();
    until("it is shown that the list is old", || agent.metric("sockmesh_service_stale", &["service=\"web\""]) > 0.0);
    assert!((0..20).all(|_| call().is_ok_and(|(status, _)| status == 200)), "the last list serves");
    consul.0.again();
    consul.wait();
    put(&consul, "web", "b", b.addr().port(), &[], false);
    until("what the new one has is found", || {
        agent.metric("sockmesh_service_stale", &["service=\"web\""]) == 0.0 && (0..10).all(|_| good("b"))
    });

    consul.0.proc.signal(Signal::STOP);
    let stale = || (agent.metric("sockmesh_service_stale", &["service=\"web\""]) > 0.0).then_some(());
    assert!(within(std::time::Duration::from_secs(90), stale).is_some(), "a Consul that hangs is noticed");
    assert!((0..20).all(|_| good("b")), "the last list serves");
    consul.0.proc.signal(Signal::CONT);
    put(&consul, "web", "a", a.addr().port(), &[], false);
    until("it is followed again", || good("a"));
}

#[test]
fn consul_commands_are_followed_and_written_against_their_version() {
    if lacks(NEEDS) {
        return;
    }
    let consul = Consul::start();
    let registry = motan(&consul, "30s");
    let group = Scope::Group("yf".into());
    let mut text = registry.commands(&group);
    text.until("no commands", |t| t.revision > 0 && t.text.is_none());
    consul.put("/v1/kv/motan/command/yf", r#"{"clientCommandList":[]}"#);
    text.until("the operator's", |t| t.text.as_deref() == Some(r#"{"clientCommandList":[]}"#));
    let error = registry.write(&group, None, "mine").unwrap_err();
    assert!(error.contains("holds something else"), "{error}");
    registry.write(&group, Some(r#"{"clientCommandList":[]}"#), "ours ü").unwrap();
    text.until("ours", |t| t.text.as_deref() == Some("ours ü"));
    let agents = Scope::Agent("shop".into());
    registry.write(&agents, None, "first").unwrap();
    registry.commands(&agents).until("what was written first", |t| t.text.as_deref() == Some("first"));
    let kv = consul.get("/v1/kv/motan/agent/shop/command");
    assert_eq!(kv[0]["Key"], "motan/agent/shop/command", "{kv}");
    // Deleted with the key.
    let mut conn = http::Conn::open(consul.addr()).unwrap();
    conn.send("DELETE /v1/kv/motan/command/yf HTTP/1.1\r\nHost: c\r\n\r\n").unwrap();
    assert_eq!(conn.answer().unwrap().status(), 200);
    text.until("none again", |t| t.text.is_none());
}

#[test]
fn consul_asks_with_its_token_and_says_when_that_is_refused() {
    if lacks(NEEDS) {
        return;
    }
    let token = "5f0b8ae2-8a5c-4a2a-9e5b-3f9f0d3b1a77";
    let acl: Value = json!({"enabled": true, "default_policy": "deny", "tokens": {"initial_management": token}});
    let consul = Consul::with(&format!("\"acl\": {acl}"));
    let with = |token: &str| {
        let options = json!({"address": consul.addr().to_string(), "ttl": "3s", "token": token});
        Kind::new("consul", &options.to_string())
    };
    let ours = with(token);
    let mut here = ours.register(&provided("com.Echo", "yf", "10.1.2.3:8001"));
    here.until(&Standing::Available);
    ours.watch(&key("com.Echo", "yf")).list(&["10.1.2.3:8001"], false);
    let theirs = with("00000000-0000-0000-0000-00000000000f");
    let mut list = theirs.watch(&key("com.Echo", "yf"));
    let refused = list.until("a refusal", |list| list.stale.is_some());
    assert!(refused.stale.as_ref().unwrap().contains("403"), "{refused:?}");
    assert!(!format!("{refused:?}").contains(token));
}

#[test]
fn consul_garbage_from_what_is_no_consul_changes_nothing() {
    // Not Consul at all: another server's answers at its address.
    let garbage = Backend::http(|request| match request.line.contains("/v1/health/service/motanrpc_html") {
        true => ok("<html>hello</html>"),
        false => ok(vec![b'['; 1 << 20]),
    });
    let registry = Kind::new("consul", &json!({"address": garbage.addr().to_string()}).to_string());
    for group in ["html", "long"] {
        let told = registry.watch(&key("s", group)).until("an error", |list| list.stale.is_some());
        assert!(told.revision == 0 && told.instances.is_empty(), "{told:?}");
        assert!(told.stale.as_ref().unwrap().contains("not what Consul answers"), "{told:?}");
    }
}
