//! Against a real r-nacos, by both APIs: found, registered, killed, frozen, begun anew, commands.

use agent::registry::{Scope, Standing, Wanted};
use host::{Agent, Backend, Need, free_port, http, lacks, nacos::Nacos, until, wait::within};
use rustix::process::Signal;
use serde_json::json;

use crate::kind::{Kind, key, provided};

const NEEDS: &[Need] = &[Need::Peer("rnacos")];
const APIS: [&str; 2] = ["grpc", "http"];

fn registry(nacos: &Nacos, api: &str) -> Kind {
    Kind::new("nacos", &json!({"address": nacos.addr().to_string(), "api": api}).to_string())
}

/// Whether an instance is listed as one that may be called.
fn is_open(nacos: &Nacos, group: &str, service: &str, at: &str) -> bool {
    nacos.hosts(group, service).iter().any(|host| {
        format!("{}:{}", host["ip"].as_str().unwrap(), host["port"]) == at
            && host["healthy"] == true
            && host["enabled"] == true
    })
}

#[test]
fn nacos_services_are_followed() {
    if lacks(NEEDS) {
        return;
    }
    let nacos = Nacos::start();
    for api in APIS {
        let registry = registry(&nacos, api);
        let group = format!("g-{api}");
        let mut list = registry.watch(&key("com.Echo", &group));
        list.list(&[], false);
        nacos.put(
            &group,
            "com.Echo",
            "10.0.0.1:8001",
            "weight=3&metadata=%7B%22version%22%3A%221.0%22%2C%22zone%22%3A%22a%22%7D",
        );
        let found = list.list(&["10.0.0.1:8001"], false);
        let one = &found.instances[0];
        assert_eq!((one.weight, one.version.as_str(), one.zone.as_str()), (30, "1.0", "a"), "{api}");
        nacos.put(&group, "com.Echo", "10.0.0.2:8001", "");
        nacos.put(&group, "com.Other", "10.0.0.3:8001", "");
        list.list(&["10.0.0.1:8001", "10.0.0.2:8001"], false);
        nacos.delete(&group, "com.Echo", "10.0.0.1:8001", false);
        list.list(&["10.0.0.2:8001"], false);
        registry.watch(&key("com.Other", &group)).list(&["10.0.0.3:8001"], false);
    }
}

#[test]
fn nacos_lets_in_who_has_an_account() {
    if lacks(NEEDS) {
        return;
    }
    let nacos = Nacos::guarded("ops", "p.q-r_s");
    let as_who = |api: &str, who: serde_json::Value| {
        let mut options = json!({"address": nacos.addr().to_string(), "api": api});
        options.as_object_mut().unwrap().extend(who.as_object().unwrap().clone());
        Kind::new("nacos", &options.to_string())
    };
    for api in APIS {
        let (group, at) = (format!("g-{api}"), "10.1.2.3:8001");
        let ours = as_who(api, json!({"username": "ops", "password": "p.q-r_s"}));
        let mut here = ours.register(&provided("com.Echo", &group, at));
        here.until(&Standing::Available);
        until("it is listed", || is_open(&nacos, &group, "com.Echo", at));
        ours.watch(&key("com.Echo", &group)).list(&[at], false);
        here.want(Wanted::Gone);
        here.until(&Standing::Gone);
        until("it is gone", || nacos.hosts(&group, "com.Echo").is_empty());

        // Nobody else, and it is said whose name was refused.
        let stranger = as_who(api, json!({"username": "ops", "password": "wrong"}));
        let mut there = stranger.register(&provided("com.Echo", &group, at));
        let why = there.until_pending();
        assert!(why.contains("ops"), "{api}: {why}");
        as_who(api, json!({})).register(&provided("com.Echo", &group, at)).until_pending();
        assert_eq!(nacos.hosts(&group, "com.Echo"), [serde_json::Value::Null; 0], "{api}");
    }
}

#[test]
fn nacos_registrations_are_kept_and_taken_back() {
    if lacks(NEEDS) {
        return;
    }
    for api in APIS {
        let mut nacos = Nacos::start();
        let registry = registry(&nacos, api);
        let at = "10.1.2.3:8001";
        let mut here = registry.register(&provided("com.Echo", "yf", at));
        here.until(&Standing::Available);
        until("it is listed", || is_open(&nacos, "yf", "com.Echo", at));
        let found = registry.watch(&key("com.Echo", "yf")).list(&[at], false);
        let one = &found.instances[0];
        assert_eq!((one.weight, one.zone.as_str(), one.metadata["serialization"].as_str()), (20, "z1", "simple"));

        here.want(Wanted::Unavailable);
        here.until(&Standing::Unavailable);
        until("nobody comes", || !is_open(&nacos, "yf", "com.Echo", at));
        here.want(Wanted::Available);
        here.until(&Standing::Available);
        until("it is open again", || is_open(&nacos, "yf", "com.Echo", at));

        // The server dies and comes back without anything.
        nacos.kill();
        here.until_pending();
        nacos.again();
        until("it is made anew in an empty server", || is_open(&nacos, "yf", "com.Echo", at));
        here.until(&Standing::Available);
        nacos.delete("yf", "com.Echo", at, true);
        let back = || is_open(&nacos, "yf", "com.Echo", at).then_some(());
        assert!(
            within(std::time::Duration::from_secs(60), back).is_some(),
            "{api}: taken out by hand, it is made anew"
        );
        here.want(Wanted::Gone);
        here.until(&Standing::Gone);
        until("it is gone", || nacos.hosts("yf", "com.Echo").is_empty());
    }
}

#[test]
fn nacos_a_registration_ends_with_its_agent_and_comes_back_with_it() {
    if lacks(NEEDS) {
        return;
    }
    let nacos = Nacos::start();
    let (export, local) = (free_port(), Backend::named("orders"));
    let mut agent = Agent::start(&format!(
        "registries: {{nacos: {{kind: nacos, address: '{}'}}}}
services:
  - {{service: orders, group: g, protocol: http, export: '127.0.0.1:{export}', local: '{}', registry: nacos}}
",
        nacos.addr(),
        local.addr()
    ));
    let at = format!("127.0.0.1:{export}");
    until("the agent is registered", || is_open(&nacos, "g", "orders", &at));
    // A hung agent does not answer the server's detection: the connection, and all that belongs to it, is dropped.
    agent.pause();
    let closed = || (!is_open(&nacos, "g", "orders", &at)).then_some(());
    assert!(within(std::time::Duration::from_secs(90), closed).is_some(), "the session of a hung agent ends");
    agent.resume();
    until("and it is registered again", || is_open(&nacos, "g", "orders", &at));
    agent.stop();
    until("it is taken back", || nacos.hosts("g", "orders").is_empty());
}

#[test]
fn nacos_the_last_list_serves_while_it_is_killed_frozen_and_begun_anew() {
    if lacks(NEEDS) {
        return;
    }
    for api in APIS {
        let mut nacos = Nacos::start();
        let (a, b) = (Backend::named("a"), Backend::named("b"));
        let listen = free_port();
        nacos.put("DEFAULT_GROUP", "web", &a.addr().to_string(), "");
        let agent = Agent::start(&format!(
            "registries: {{nacos: {{kind: nacos, address: '{}', api: {api}}}}}
referers:
  - {{service: web, protocol: http, listen: '127.0.0.1:{listen}', registry: nacos, lb: round_robin}}
",
            nacos.addr()
        ));
        let to = ([127, 0, 0, 1], listen).into();
        let good = |who: &str| http::get(to, "/").is_ok_and(|answer| answer.status() == 200 && answer.text() == who);
        let served = || http::get(to, "/").is_ok_and(|answer| answer.status() == 200);
        let stale = || agent.metric("sockmesh_service_stale", &["service=\"web\""]) > 0.0;
        until("the service is found", || good("a"));

        nacos.kill();
        until("it is shown that the list is old", stale);
        assert!((0..20).all(|_| good("a")), "{api}: the last list serves");
        nacos.again();
        assert!((0..20).all(|_| good("a")), "{api}: an empty list is not believed at once");
        nacos.put("DEFAULT_GROUP", "web", &a.addr().to_string(), "");
        nacos.put("DEFAULT_GROUP", "web", &b.addr().to_string(), "");
        until("what is new is found, and nothing is held any more", || good("b") && !stale());

        nacos.server.proc.signal(Signal::STOP);
        assert!(
            within(std::time::Duration::from_secs(60), || stale().then_some(())).is_some(),
            "a hung one is noticed"
        );
        assert!((0..20).all(|_| served()), "{api}: the last list serves");
        nacos.server.proc.signal(Signal::CONT);
        let followed = within(std::time::Duration::from_secs(60), || (!stale()).then_some(()));
        assert!(followed.is_some(), "{api}: followed again");
    }
}

#[test]
fn nacos_commands_are_configurations() {
    if lacks(NEEDS) {
        return;
    }
    let nacos = Nacos::start();
    for api in APIS {
        let registry = registry(&nacos, api);
        let name = format!("yf-{api}");
        let group = Scope::Group(name.clone());
        let mut text = registry.commands(&group);
        text.until("no commands", |t| t.revision > 0 && t.text.is_none());
        nacos.ask(
            "POST",
            "/nacos/v1/cs/configs",
            &format!("dataId=motan.command&group={name}&content=%7B%22a%22%3A1%7D"),
        );
        text.until("the operator's", |t| t.text.as_deref() == Some(r#"{"a":1}"#));
        let error = registry.write(&group, None, "mine").unwrap_err();
        assert!(error.contains("holds something else"), "{api}: {error}");
        registry.write(&group, Some(r#"{"a":1}"#), "{\"ours\":\"ü\"}").unwrap();
        text.until("ours", |t| t.text.as_deref() == Some("{\"ours\":\"ü\"}"));
        let agents = Scope::Agent(format!("shop-{api}"));
        registry.write(&agents, None, "{}").unwrap();
        registry.commands(&agents).until("what was written first", |t| t.text.as_deref() == Some("{}"));
        nacos.ask("DELETE", &format!("/nacos/v1/cs/configs?dataId=motan.command&group={name}"), "");
        text.until("none again", |t| t.text.is_none());
    }
}
