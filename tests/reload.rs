//! A changed file is applied as a whole or not at all, and nobody who is not concerned notices.

use std::net::SocketAddr;

use host::{
    Agent, Backend, Temp,
    http::{self, Conn},
    net, until,
};
use rustix::process::Signal;

fn service(name: &str, listen: SocketAddr, endpoint: &dyn std::fmt::Display) -> String {
    format!("  - {{service: {name}, protocol: http, listen: {listen}, endpoints: [{endpoint}]}}\n")
}

struct Setup {
    agent: Agent,
    kept: String,
    kept_at: SocketAddr,
    changed_at: SocketAddr,
    after: Backend,
    _before: [Backend; 2],
}

/// Two services; `changed` is to move from `before` to `after`.
fn setup() -> Setup {
    let (kept_at, changed_at) = (net::free_addr(), net::free_addr());
    let (stays, before, after) = (Backend::named("stays"), Backend::named("before"), Backend::named("after"));
    let kept = service("kept", kept_at, &stays.addr());
    let agent = Agent::start(&format!("referers:\n{kept}{}", service("changed", changed_at, &before.addr())));
    Setup { agent, kept, kept_at, changed_at, after, _before: [stays, before] }
}

#[test]
fn reload_applies_a_change_and_leaves_the_rest_alone() {
    for by_signal in [true, false] {
        let it = setup();
        let mut kept = Conn::open(it.kept_at).unwrap();
        assert_eq!(kept.get("/").unwrap().text(), "stays");
        assert_eq!(http::get(it.changed_at, "/").unwrap().text(), "before");
        let new_at = net::free_addr();
        let new = service("new", new_at, &it.after.addr());
        it.agent.rewrite(&format!(
            "referers:\n{}{}{new}",
            it.kept,
            service("changed", it.changed_at, &it.after.addr())
        ));
        if by_signal {
            it.agent.signal(Signal::HUP);
        } else {
            it.agent.cli("reload").ok();
        }
        until("the change is in force", || http::get(it.changed_at, "/").unwrap().text() == "after");
        until("a new service listens", || http::get(new_at, "/").is_ok_and(|a| a.text() == "after"));
        assert_eq!(kept.get("/").unwrap().text(), "stays", "the connection of before goes on");
        assert_eq!(it.agent.metric("sockmesh_config_reloads_total", &[r#"outcome="ok""#]), 1.0);
        // A service that is gone is listened for no more.
        it.agent.rewrite(&format!("referers:\n{}", it.kept));
        it.agent.cli("reload").ok();
        until("its listener is gone", || Conn::open(new_at).is_err());
        assert_eq!(kept.get("/").unwrap().text(), "stays");
    }
}

#[test]
fn reload_of_a_broken_file_changes_nothing_and_says_every_mistake() {
    let it = setup();
    let good_part = service("changed", it.changed_at, &it.after.addr());
    it.agent.rewrite(&format!("referers:\n{}{good_part}  - {{servise: x, timeout: 3 parsecs}}\n", it.kept));
    let said = it.agent.cli("reload").failed();
    for part in ["servise", "service", "timeout", "3 parsecs"] {
        assert!(said.contains(part), "{part:?} is missing in: {said}");
    }
    it.agent.signal(Signal::HUP);
    until("both are counted", || it.agent.metric("sockmesh_config_reloads_total", &[r#"outcome="failed""#]) == 2.0);
    assert_eq!(http::get(it.changed_at, "/").unwrap().text(), "before", "as a whole or not at all");
    assert_eq!(http::get(it.kept_at, "/").unwrap().text(), "stays");
    assert!(it.agent.log().contains("servise"), "the log says it too");
}

#[test]
fn reload_reopens_the_access_log() {
    let at = net::free_addr();
    let server = Backend::named("x");
    let agent = Agent::start(&format!(
        "referers:\n  - {{service: s, protocol: http, listen: {at}, endpoints: [{}], filters: [access_log]}}\n",
        server.addr()
    ));
    http::get(at, "/").unwrap();
    until("a line", || agent.access_log().len() == 1);
    std::fs::rename(agent.dir().file("access.log"), agent.dir().file("old.log")).unwrap();
    agent.signal(Signal::HUP);
    until("a new file", || agent.dir().file("access.log").exists());
    http::get(at, "/").unwrap();
    until("the next line is in it", || agent.access_log().len() == 1);
    assert_eq!(std::fs::read_to_string(agent.dir().file("old.log")).unwrap().lines().count(), 1);
}

#[test]
fn reload_is_not_needed_for_a_registry_file() {
    let (at, dir) = (net::free_addr(), Temp::new());
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let list = |addr: SocketAddr| format!("services:\n  web: [\"{addr}\"]\n");
    let nodes = dir.write("nodes.yaml", list(a.addr()));
    let agent = Agent::start(&format!(
        "registries: {{nodes: {{kind: file, path: {}}}}}
referers:
  - {{service: web, protocol: http, listen: {at}, registry: nodes}}
",
        nodes.display()
    ));
    until("the list is read", || http::get(at, "/").is_ok_and(|x| x.text() == "a"));
    dir.write("nodes.yaml", list(b.addr()));
    until("a replaced file is read", || http::get(at, "/").unwrap().text() == "b");
    // Written in place, not replaced.
    std::fs::write(&nodes, list(a.addr())).unwrap();
    until("a rewritten file is read", || http::get(at, "/").unwrap().text() == "a");
    dir.write("nodes.yaml", "services: {web: [not an address");
    until("a broken file is reported", || !agent.endpoints()[0]["stale"].is_null());
    assert_eq!(http::get(at, "/").unwrap().text(), "a", "the last good list holds");
    std::fs::remove_file(&nodes).unwrap();
    assert_eq!(http::get(at, "/").unwrap().text(), "a");
    dir.write("nodes.yaml", list(b.addr()));
    until("a repaired file is read", || http::get(at, "/").unwrap().text() == "b");
}
