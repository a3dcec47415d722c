//! What an agent provides is found by others while it serves, and by nobody before and after.

use std::{net::SocketAddr, path::Path};

use host::{Agent, Backend, Load, Temp, agent::Settings, heavy, http, net, until};

/// An agent that provides `web` and registers it in the file.
fn provider(nodes: &Path, server: &Backend, top: &str, more: &str) -> (Agent, SocketAddr) {
    let export = net::free_addr();
    let services = services(nodes, server, export, more);
    (Agent::with(&Settings { top, ..Settings::default() }, &services), export)
}

fn services(nodes: &Path, server: &Backend, export: SocketAddr, more: &str) -> String {
    format!(
        "registries: {{nodes: {{kind: file, path: {}}}}}
services:
  - {{service: web, group: g, protocol: http, export: {export}, local: {}, registry: nodes{more}}}
",
        nodes.display(),
        server.addr()
    )
}

fn caller(nodes: &Path) -> (Agent, SocketAddr) {
    let to = net::free_addr();
    let agent = Agent::start(&format!(
        "registries: {{nodes: {{kind: file, path: {}}}}}
referers:
  - {{service: web, group: g, protocol: http, listen: {to}, registry: nodes, lb: round_robin}}
",
        nodes.display()
    ));
    (agent, to)
}

fn state(agent: &Agent) -> String {
    let rows = agent.json("/registrations")["registrations"].as_array().unwrap().clone();
    rows.iter().map(|row| row["state"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_provider_is_found_while_it_serves_and_the_operator_takes_it_out_and_in() {
    let dir = Temp::new();
    let nodes = dir.write("nodes.yaml", "services: {}\n");
    let server = Backend::named("one");
    let (mut agent, export) = provider(&nodes, &server, "start_unavailable: true\nzone: z1\n", ", weight: 20");
    until("it is registered as unavailable", || state(&agent) == "unavailable");
    let (calling, to) = caller(&nodes);
    assert_eq!(http::get(to, "/").unwrap().status(), 503, "nobody may come yet");
    assert!(agent.cli("registrations").ok().contains("callers from elsewhere may not come"));
    agent.cli("registrations --set available").ok();
    until("it is called", || http::get(to, "/").unwrap().text() == "one");
    let row = calling.endpoints()[0].clone();
    assert_eq!((row["address"].as_str(), row["weight"].as_u64()), (Some(export.to_string().as_str()), Some(20)));
    assert_eq!(state(&agent), "available");
    assert_eq!(agent.metric("sockmesh_registered", &[r#"registry="nodes""#]), 1.0);
    assert!(std::fs::read_to_string(&nodes).unwrap().contains("zone: z1"));
    agent.cli("registrations --set unavailable").ok();
    // The only one: the caller holds it, because an empty list is not believed.
    until("it is taken out", || calling.cli("endpoints").ok().contains("held back"));
    assert_eq!(http::get(to, "/").unwrap().text(), "one");
    agent.cli("registrations --set available").ok();
    until("it is back", || !calling.cli("endpoints").ok().contains("held back"));
    assert!(agent.stop().success());
    assert!(!std::fs::read_to_string(&nodes).unwrap().contains(&export.to_string()), "taken back");
}

#[test]
fn reload_registers_and_takes_back() {
    let dir = Temp::new();
    let nodes = dir.write("nodes.yaml", "services: {}\n");
    let server = Backend::named("one");
    let (agent, export) = provider(&nodes, &server, "", "");
    until("it is registered", || state(&agent) == "available");
    let holds = |what: &str| std::fs::read_to_string(&nodes).unwrap().contains(what);
    assert!(holds(&export.to_string()) && holds("weight: 10"));
    agent.rewrite(&services(&nodes, &server, export, ", weight: 33, advertise: '127.0.0.1:81'"));
    agent.cli("reload").ok();
    until("the change is there", || holds("weight: 33") && holds("127.0.0.1:81") && !holds(&export.to_string()));
    let none = services(&nodes, &server, export, "").replace(", registry: nodes", "");
    agent.rewrite(&none);
    agent.cli("reload").ok();
    until("it is gone", || !holds("127.0.0.1"));
    assert_eq!(state(&agent), "");
}

#[test]
fn a_registry_that_cannot_be_reached_is_told_and_tried_again() {
    let dir = Temp::new();
    let nodes = dir.write("nodes.yaml", "services: [broken\n");
    let server = Backend::named("one");
    let (agent, export) = provider(&nodes, &server, "", "");
    until("it is pending", || agent.cli("registrations").ok().contains("nodes.yaml"));
    assert_eq!(state(&agent), "pending");
    dir.write("nodes.yaml", "services: {}\n");
    until("it is registered", || state(&agent) == "available");
    assert!(std::fs::read_to_string(&nodes).unwrap().contains(&export.to_string()));
}

#[test]
fn a_provider_that_stops_under_load_loses_no_call() {
    let _heavy = heavy();
    let dir = Temp::new();
    let nodes = dir.write("nodes.yaml", "services: {}\n");
    let servers = [Backend::named("one"), Backend::named("two")];
    let mut agents: Vec<_> = servers.iter().map(|server| provider(&nodes, server, "", "").0).collect();
    let (calling, to) = caller(&nodes);
    until("both are called", || calling.endpoints().len() == 2);
    let load = Load::http(4, to, "/");
    load.more(200);
    assert!(agents[0].stop().success());
    load.more(200);
    agents[0].again();
    until("it is called again", || calling.endpoints().len() == 2);
    load.more(200);
    let tally = load.stop();
    tally.all_good(600);
    assert_eq!(tally.good.len(), 2);
}
