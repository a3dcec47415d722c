//! Found and registered through the management port of Motan's own agent.

use std::net::SocketAddr;

use host::{
    Agent, Need, free_port, http, lacks,
    motan::{Client, Frame},
    motan_libs::{go_agent, go_server},
    until,
};

const NEEDS: &[Need] = &[Need::Peer("motan-go")];
const SERVICE: &str = "kit.EchoService";

fn addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

fn answered(to: SocketAddr) -> bool {
    let Ok(mut client) = Client::open(to) else { return false };
    client.call(Frame::call(SERVICE, "echoString", "there?")).is_ok_and(|answer| answer.status == 0)
}

#[test]
fn mesh_services_are_found_and_registered_through_motans_own_agent() {
    if lacks(NEEDS) {
        return;
    }
    let server = go_server(&[]);
    let (forward, management, reverse, to, export) = (addr(), addr(), addr(), addr(), addr());
    let behind = format!("direct://127.0.0.1:{}", server.addr().port());
    let mut other = go_agent(
        forward,
        &format!(
            "motan-agent: {{port: {}, mport: {}, eport: {}, log_dir: stdout, application: other, motanEpAsyncInit: false}}
motan-registry:
  behind: {{protocol: direct, host: 127.0.0.1, port: {}}}
",
            forward.port(),
            management.port(),
            reverse.port(),
            server.addr().port()
        ),
    );
    let agent = Agent::start(&format!(
        "advertise: 127.0.0.1
registries: {{other: {{kind: mesh, address: '{management}', proxy_registry: '{behind}'}}}}
referers:
  - {{service: {SERVICE}, group: kit-group, version: '1.0', protocol: motan2, listen: {to}, registry: other, timeout: 5s}}
services:
  - {{service: kit.Other, group: kit-group, version: '1.0', protocol: motan2, export: {export}, local: '{}', registry: other}}
",
        server.addr()
    ));
    until("the other agent carries the calls", || answered(to));
    let endpoints = agent.endpoints();
    assert!(endpoints.iter().any(|e| e["address"] == forward.to_string()), "{endpoints:?}");
    let listed = || {
        let page = http::get(management, "/registry/list").map(|page| page.text()).unwrap_or_default();
        page.contains("kit.Other") && page.contains(SERVICE)
    };
    until("the other agent exports the service", listed);
    until("and that is shown", || agent.json("/registrations")["registrations"][0]["state"] == "available");
    // Started again, it has forgotten all, and is told again.
    other.proc.signal(rustix::process::Signal::KILL);
    other.proc.wait();
    other.again();
    until("it is told again", || listed() && answered(to));
}
