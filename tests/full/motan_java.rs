//! Motan Java 1.2.6 as client and server through the agent, with and without ZooKeeper, and speaking Motan1.

use std::net::SocketAddr;

use host::{
    Agent, Need, free_port, lacks,
    motan_libs::{all_well, java, java_server},
    program::Place,
    until, zookeeper,
};

const NEEDS: &[Need] = &[Need::Peer("motan-java"), Need::Program("java")];
const SERVICE: &str = "kit.Echo";
/// Cases of the client without agents on the way.
const CASES: usize = 21;

fn addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

#[test]
fn motan_java_client_to_server_through_two_agents() {
    if lacks(NEEDS) {
        return;
    }
    let server = java_server(&[]);
    let (to, export) = (addr(), addr());
    let _far = Agent::start(&format!(
        "services:
  - {{service: {SERVICE}, group: kit-group, protocol: motan2, export: {export}, local: '{}', timeout: 5s}}",
        server.addr()
    ));
    let _near = Agent::start(&format!(
        "application: near
referers:
  - {{service: {SERVICE}, group: kit-group, protocol: motan2, listen: {to}, endpoints: ['{export}'], timeout: 5s,
     timeout_range: 100ms..9s, gzip_over: 64}}"
    ));
    all_well(&java("client").args(["--agents", "--to"]).arg(to), CASES + 4);
}

#[test]
fn motan_java_and_agents_find_each_other_in_zookeeper() {
    if lacks(&[NEEDS, &[Need::Program("zkServer.sh")]].concat()) {
        return;
    }
    let registry = zookeeper::zookeeper(&Place::default());
    let at = registry.addr().to_string();
    let server = java_server(&["--zookeeper", &at]);
    let (to, export) = (addr(), addr());
    let zk = format!("registries: {{zk: {{kind: zookeeper, address: ['{at}']}}}}");
    // Java registers, our agent finds it, a Java client calls our agent.
    let near = Agent::start(&format!(
        "{zk}
referers:
  - {{service: {SERVICE}, group: kit-group, version: '1.0', protocol: motan2, listen: {to}, registry: zk, timeout: 5s}}"
    ));
    // It registers the host's own address, whatever it is told.
    let port = format!(":{}", server.addr().port());
    until("the server is found", || {
        near.endpoints().iter().any(|row| row["address"].as_str().is_some_and(|at| at.ends_with(&port)))
    });
    all_well(&java("client").arg("--to").arg(to), CASES);

    // Our agent registers, a Java client finds it.
    let _far = Agent::start(&format!(
        "{zk}
advertise: 127.0.0.1
services:
  - {{service: {SERVICE}, group: other-group, version: '1.0', protocol: motan2, export: {export}, local: '{}',
     timeout: 5s, registry: zk}}",
        server.addr()
    ));
    let node = format!("/motan/other-group/{SERVICE}/server/{export}");
    let mut session = zookeeper::Client::open(registry.addr());
    until("our agent is registered", || session.get(&node).is_some());
    all_well(&java("client").args(["--group", "other-group", "--zookeeper"]).arg(&at), CASES);
}

#[test]
fn motan_java_speaking_motan1_is_told_why_it_is_refused() {
    if lacks(NEEDS) {
        return;
    }
    let server = java_server(&[]);
    let to = addr();
    let _near = Agent::start(&format!(
        "referers:
  - {{service: {SERVICE}, group: kit-group, protocol: motan2, listen: {to}, endpoints: ['{}']}}",
        server.addr()
    ));
    let client =
        java("client").args(["--protocol", "motan", "--refused", "set the caller's protocol to motan2", "--to"]);
    all_well(&client.arg(to), 1);
}
