//! A ZooKeeper of three: what happens among its members reaches neither callers nor registrations.

use std::{collections::BTreeMap, fs, net::SocketAddr};

use host::{
    Agent, Backend, Cmd, Need, Net,
    caller::{Caller, answering, call},
    ensemble::{Ensemble, MEMBERS},
    heavy, lacks,
    load::Load,
    net::free_addr,
    program::Place,
    until,
    zookeeper::{self, Client, java_string, serves},
};
use rustix::process::Signal;

const NEEDS: &[Need] = &[Need::Program("java"), Need::Program("zkServer.sh")];
const SERVICE: &str = "bars.BarService";
const FOLDER: &str = "/motan/bars/bars.BarService/server";

/// Two agents that provide the service, `a` and `b`, and one that calls it.
struct Site {
    providers: Vec<(Agent, SocketAddr)>,
    caller: Agent,
    to: SocketAddr,
    _servers: Vec<Backend>,
}

impl Site {
    fn new(registry: &str) -> Self {
        let registries = format!("registries: {{zk: {{kind: zookeeper, {registry}}}}}\n");
        let servers: Vec<_> = ["a", "b"].map(Backend::named).into();
        let provider = |server: &Backend| {
            let export = free_addr();
            let services = format!(
                "services:\n  - {{service: {SERVICE}, group: bars, protocol: http, export: {export}, local: {}, registry: zk}}\n",
                server.addr()
            );
            (Agent::start(&format!("{registries}{services}")), export)
        };
        let providers = servers.iter().map(provider).collect();
        let to = free_addr();
        let caller = Agent::start(&format!(
            "{registries}referers:\n  - {{service: {SERVICE}, group: bars, protocol: http, listen: {to}, registry: zk, retries: 2, lb: round_robin}}\n"
        ));
        let site = Self { providers, caller, to, _servers: servers };
        site.answers(&["a", "b"]);
        site
    }

    #[track_caller]
    fn answers(&self, names: &[&str]) {
        until(&format!("{names:?} answer"), || answering(self.to) == names);
    }

    fn is_stale(&self) -> bool {
        self.caller.metric("sockmesh_service_stale", &[SERVICE]) == 1.0
    }

    /// Sessions that own the registrations, by provider; empty when one of them is not there.
    fn owners(&self, client: &mut Client) -> BTreeMap<SocketAddr, i64> {
        let owner = |at: &SocketAddr| client.get(&format!("{FOLDER}/{at}")).map(|node| (*at, node.owner));
        self.providers.iter().map(|(_, at)| at).map(owner).collect::<Option<_>>().unwrap_or_default()
    }

    fn state(&self) -> String {
        let row = |agent: &Agent| agent.json("/registrations")["registrations"][0]["state"].to_string();
        self.providers.iter().map(|(agent, _)| row(agent)).collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn registered(&self) {
        until("the registrations are held", || self.state() == r#""available" "available""#);
    }
}

fn java_url(of: &Backend) -> Vec<u8> {
    java_string(&format!("http://{}/{SERVICE}?nodeType=service&version=1.0&group=bars&", of.addr()))
}

/// Something changes, is seen, and changes back.
#[track_caller]
fn changes_are_seen(site: &Site, client: &mut Client) {
    let c = Backend::named("c");
    let node = format!("{FOLDER}/{}", c.addr());
    client.create(&node, &java_url(&c));
    site.answers(&["a", "b", "c"]);
    client.delete(&node);
    site.answers(&["a", "b"]);
}

#[test]
fn zookeeper_ensemble_loses_leader_members_and_quorum_and_keeps_calls_and_registrations() {
    if lacks(NEEDS) {
        return;
    }
    let _alone = heavy();
    let mut zk = Ensemble::start();
    // As long as ten ticks may be: what happens below takes less, so that no session may be lost.
    let site = Site::new(&format!("address: '{}', session_timeout: 10s", zk.addresses()));
    let first = site.owners(&mut zk.client(0));
    assert_eq!(first.len(), 2);
    let caller = Caller::start(site.to);

    // The leader dies: the others elect another one.
    let leader = zk.leader();
    zk.kill(leader);
    caller.goes_on();
    let next = zk.leader();
    assert_ne!(next, leader);
    let mut client = zk.client(next);
    changes_are_seen(&site, &mut client);
    site.registered();
    assert_eq!(site.owners(&mut client), first, "the same sessions");
    drop(client);
    zk.again(leader);
    zk.serves(leader);

    // One after the other is restarted, whoever uses it.
    for member in 0..MEMBERS {
        zk.kill(member);
        caller.goes_on();
        zk.again(member);
        zk.serves(member);
        let leader = zk.leader();
        changes_are_seen(&site, &mut zk.client(leader));
    }
    site.registered();
    let leader = zk.leader();
    assert_eq!(site.owners(&mut zk.client(leader)), first, "the same sessions");

    // Two are gone: the third one serves nobody, and is not taken for an empty one.
    let alone = zk.leader();
    let others: Vec<_> = (0..MEMBERS).filter(|&i| i != alone).collect();
    others.iter().for_each(|&i| zk.kill(i));
    until("operators see it", || site.is_stale() && site.caller.log().contains("it has no quorum"));
    caller.goes_on();
    site.answers(&["a", "b"]);
    zk.again(others[0]);
    zk.serves(others[0]);
    until("the list is current again", || !site.is_stale());
    site.registered();
    let mut client = zk.client(others[0]);
    assert_eq!(site.owners(&mut client), first, "the same sessions");
    changes_are_seen(&site, &mut client);
    caller.all_good();
}

#[test]
fn zookeeper_member_that_hangs_or_lags_is_left_and_never_turns_time_back() {
    if lacks(NEEDS) {
        return;
    }
    let _alone = heavy();
    let zk = Ensemble::start();
    let site = Site::new(&format!("address: '{}', session_timeout: 3s", zk.addresses()));
    let caller = Caller::start(site.to);
    // Whoever is a follower, each in its turn: agents that hang on it go to the others and miss nothing.
    let leader = zk.leader();
    for member in (0..MEMBERS).filter(|&i| i != leader) {
        zk.signal(member, Signal::STOP);
        changes_are_seen(&site, &mut zk.client(leader));
        caller.goes_on();
        zk.signal(member, Signal::CONT);
        zk.serves(member);
    }
    site.registered();
    caller.all_good();
}

#[test]
fn zookeeper_member_that_knows_less_is_not_believed() {
    if lacks(NEEDS) {
        return;
    }
    let [a, b] = ["a", "b"].map(Backend::named);
    let node = |of: &Backend| format!("{FOLDER}/{}", of.addr());
    let mut server = zookeeper::zookeeper(&Place::default());
    Client::open(server.addr()).create(&node(&a), &java_url(&a));
    // A copy of what it knows now, for a member that missed what came later.
    let mut behind = zookeeper::zookeeper(&Place::default());
    for stopped in [&mut server, &mut behind] {
        stopped.proc.signal(Signal::KILL);
        stopped.proc.wait();
    }
    fs::remove_dir_all(behind.dir().join("data")).unwrap();
    let copied = [server.dir(), behind.dir()].map(|dir| dir.join("data").display().to_string());
    Cmd::new("cp").arg("-r").args(copied).run().ok();
    server.again();
    serves(&server);
    let mut client = Client::open(server.addr());
    client.create(&node(&b), &java_url(&b));
    client.delete(&node(&a));
    let to = free_addr();
    let agent = Agent::start(&format!(
        "registries: {{zk: {{kind: zookeeper, address: '{},{}', session_timeout: 10s}}}}
referers:
  - {{service: {SERVICE}, group: bars, protocol: http, listen: {to}, registry: zk}}
",
        server.addr(),
        behind.addr()
    ));
    until("b answers", || call(to) == "b");
    let caller = Caller::start(to);
    behind.again();
    serves(&behind);
    drop(client);
    server.proc.signal(Signal::KILL);
    server.proc.wait();
    let hung_up = format!("{}: closed the connection without an answer", behind.addr());
    until("the one behind was asked", || agent.log().contains(&hung_up));
    caller.goes_on();
    assert_eq!(answering(to), ["b"], "what it knows is of no interest");
    server.again();
    serves(&server);
    until("the list is current again", || agent.metric("sockmesh_service_stale", &[SERVICE]) == 0.0);
    assert_eq!(answering(to), ["b"]);
    caller.all_good();
}

#[test]
fn zookeeper_sessions_that_expire_under_load_cost_no_call() {
    if lacks(&[Need::Root, NEEDS[0], NEEDS[1]]) {
        return;
    }
    let _alone = heavy();
    let net = Net::new();
    let server = zookeeper::zookeeper(&Place { net: Some(&net), ..Place::default() });
    let site = Site::new(&format!("address: '{}', session_timeout: 1s", server.addr()));
    let first = site.owners(&mut Client::open(server.addr()));
    assert_eq!(first.len(), 2);
    let load = Load::http(8, site.to, "/");
    load.more(500);
    for round in 0..3 {
        net.black_hole();
        {
            // The server lives, and forgets all of them; only there that can be seen.
            let _inside = net.enter();
            let mut client = Client::open(server.addr());
            until("the sessions expire", || client.children(FOLDER).is_empty());
        }
        load.more(2000);
        net.heal();
        until(&format!("round {round}: they begin anew"), || {
            let now = site.owners(&mut Client::open(server.addr()));
            now.len() == 2 && now.iter().all(|(at, owner)| first[at] != *owner)
        });
        until("the list is current again", || !site.is_stale());
        load.more(500);
    }
    site.registered();
    load.stop().all_good(8000);
    assert!(site.caller.log().contains("the session expired"), "that is what was tested");
    site.answers(&["a", "b"]);
}
