//! A ZooKeeper that does not let everybody in: accounts, access lists, TLS.

use std::net::SocketAddr;

use host::{
    Agent, Backend, Need,
    caller::call,
    certs::Certs,
    lacks,
    net::{free_addr, free_port},
    program::Place,
    until,
    zookeeper::{self, Client, java_string},
};

const NEEDS: &[Need] = &[Need::Program("java"), Need::Program("zkServer.sh")];
const SERVICE: &str = "bars.BarService";
const FOLDER: &str = "/motan/bars/bars.BarService/server";
/// What ZooKeeper says to who may not.
const NOT_PERMITTED: i32 = -102;

/// An agent that provides the service and calls it through the registry.
fn agent(registry: &str, server: &Backend) -> (Agent, SocketAddr, String) {
    let (export, to) = (free_addr(), free_addr());
    let agent = Agent::start(&format!(
        "registries: {{zk: {{kind: zookeeper, session_timeout: 2s, {registry}}}}}
referers:
  - {{service: {SERVICE}, group: bars, protocol: http, listen: {to}, registry: zk}}
services:
  - {{service: {SERVICE}, group: bars, protocol: http, export: {export}, local: {}, registry: zk}}
",
        server.addr()
    ));
    (agent, to, format!("{FOLDER}/{export}"))
}

#[test]
fn zookeeper_accounts_own_what_they_make_and_see_what_is_theirs() {
    if lacks(NEEDS) {
        return;
    }
    let server = zookeeper::zookeeper(&Place::default());
    let at = format!("address: '{}', username: mesh, password: open sesame", server.addr());
    let a = Backend::named("a");
    let (mut writes, to, node) = agent(&format!("{at}, acl: owner_writes, chroot: /one"), &a);
    until("a answers", || call(to) == "a");
    let mut stranger = Client::open(server.addr());
    let node = format!("/one{node}");
    assert_eq!((stranger.reading(&node), stranger.deleting(&node)), (0, NOT_PERMITTED));
    let mut wrong = Client::open(server.addr());
    wrong.login("mesh:open");
    assert_eq!(wrong.deleting(&node), NOT_PERMITTED);
    let mut own = Client::open(server.addr());
    own.login("mesh:open sesame");
    assert_eq!(own.deleting(&node), 0);
    until("it is made again", || stranger.reading(&node) == 0);
    assert!(!writes.log().contains("sesame"), "{}", writes.log());
    writes.stop();
    assert_ne!(stranger.reading(&node), 0, "taken back");

    let (_only, to, node) = agent(&format!("{at}, acl: owner_only, chroot: /two"), &a);
    until("a answers", || call(to) == "a");
    let node = format!("/two{node}");
    assert_eq!(
        (stranger.reading(&node), stranger.deleting(&node), own.reading(&node)),
        (NOT_PERMITTED, NOT_PERMITTED, 0)
    );
    // An agent that nobody told the account: it may not look, and says so.
    let (without, _, _) = agent(&format!("address: '{}', chroot: /two", server.addr()), &a);
    until("it is told", || without.cli("registrations").ok().contains("access list keeps this agent out"));
    until("it is told", || without.log().contains("access list keeps this agent out"));
    // The account may be taken into use later, beside nodes that are open to all.
    let (_open, to, node) = agent(&format!("{at}, chroot: /three"), &a);
    until("a answers", || call(to) == "a");
    assert_eq!(stranger.deleting(&format!("/three{node}")), 0);
    // Its commands as well.
    let (with, _, _) = agent(&format!("{at}, acl: owner_writes, chroot: /four"), &a);
    with.cli(&format!("switch {SERVICE} bars bars-b")).ok();
    assert_eq!(stranger.deleting("/four/motan/bars/command"), NOT_PERMITTED);
}

#[test]
fn zookeeper_over_tls_with_certificates_on_both_sides() {
    if lacks(&[NEEDS[0], NEEDS[1], Need::Program("openssl")]) {
        return;
    }
    let (certs, port) = (Certs::new(), free_port());
    let file = |name: &str| certs.file(name).display().to_string();
    // As its own documentation sets it up: TLS is for its other way to listen.
    let server = zookeeper::configured(
        &Place::default(),
        &["-Dzookeeper.serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory"],
        &format!(
            "secureClientPort={port}\nsecureClientPortAddress=127.0.0.1\nssl.keyStore.location={}\nssl.keyStore.type=PEM\n\
             ssl.trustStore.location={}\nssl.trustStore.type=PEM\nssl.clientAuth=need\n",
            file("server.both"),
            file("ca.pem")
        ),
    );
    let a = Backend::named("a");
    let own = format!("cert_file: {}, key_file: {}", file("client.pem"), file("client.key"));
    let at = format!("address: 'localhost:{port}'");
    let (_agent, to, node) = agent(&format!("{at}, tls: {{ca_file: {}, {own}}}", file("ca.pem")), &a);
    until("a answers", || call(to) == "a");
    let mut client = Client::open(server.addr());
    assert!(client.get(&node).is_some(), "what is written over TLS is seen without");
    let b = Backend::named("b");
    client.create(
        &format!("{FOLDER}/{}", b.addr()),
        &java_string(&format!("http://{}/{SERVICE}?nodeType=service&version=1.0&group=bars&", b.addr())),
    );
    until("b answers", || call(to) == "b");
    // Who shows nothing is sent away, who does not believe the server goes away.
    for (tls, why) in [
        (format!("{{ca_file: {}}}", file("ca.pem")), "ertificate"),
        (format!("{{ca_file: {}, {own}}}", file("client.pem")), "TLS"),
    ] {
        let (agent, _, _) = agent(&format!("{at}, tls: {tls}"), &a);
        until("it is told", || {
            let said = agent.cli("registrations").ok();
            said.contains(why) || agent.log().contains(why)
        });
        assert!(agent.log().contains("no server can be reached"), "{}", agent.log());
    }
}
