//! A real ZooKeeper as registry: what is in it reaches callers, and what happens to it does not.

use std::{net::SocketAddr, path::Path, sync::Arc};

use ::agent::{
    config::Config,
    kind,
    registry::{BuildCx, Registry, Scope, kinds},
};
use host::{
    Agent, Backend, Need, Net,
    caller::{Caller, answering, call},
    lacks,
    net::free_addr,
    program::{Place, Server},
    until,
    zookeeper::{self, Client, again_empty, cli, java_string, serves, word},
};
use rustix::process::Signal;

const NEEDS: &[Need] = &[Need::Program("java"), Need::Program("zkServer.sh")];
const SERVICE: &str = "bars.BarService";
const FOLDER: &str = "/motan/bars/bars.BarService/server";

/// A server, an agent that knows it, and programs to be called.
struct World {
    server: Server,
    agent: Agent,
    to: SocketAddr,
}

impl World {
    fn new() -> Self {
        Self::at(zookeeper::zookeeper(&Place::default()), "1s")
    }

    /// `session`: what the agent asks for. Short ones make it notice soon that a server is gone.
    fn at(server: Server, session: &str) -> Self {
        let to = free_addr();
        let agent = agent(server.addr(), to, session);
        Self { server, agent, to }
    }

    fn client(&self) -> Client {
        Client::open(self.server.addr())
    }

    #[track_caller]
    fn answers(&self, names: &[&str]) {
        until(&format!("{names:?} answer"), || answering(self.to) == names);
    }

    fn stale(&self) -> f64 {
        self.agent.metric("sockmesh_service_stale", &[SERVICE])
    }
}

fn agent(registry: SocketAddr, to: SocketAddr, session: &str) -> Agent {
    Agent::start(&format!(
        "application: bars-client
registries: {{zk: {{kind: zookeeper, address: '{registry}', session_timeout: {session}}}}}
referers:
  - {{service: {SERVICE}, group: bars, protocol: http, listen: {to}, registry: zk, retries: 2}}
"
    ))
}

fn java_url(of: &Backend) -> Vec<u8> {
    java_string(&format!(
        "http://{}/{SERVICE}?module=bars&nodeType=service&version=1.0&group=bars&export=http%3A1&x=a+b%26c&",
        of.addr()
    ))
}

fn node(of: &Backend) -> String {
    format!("{FOLDER}/{}", of.addr())
}

#[test]
fn zookeeper_nodes_in_every_form_become_endpoints() {
    if lacks(NEEDS) {
        return;
    }
    let world = World::new();
    let mut client = world.client();
    // The folder comes after the agent looked for it.
    until("the agent signed as a caller", || client.children("/motan/bars/bars.BarService/client") == ["127.0.0.1:0"]);
    let signed = client.get("/motan/bars/bars.BarService/client/127.0.0.1:0").unwrap();
    assert_ne!(signed.owner, 0, "it goes with the agent");
    assert!(signed.data.starts_with(b"\xac\xed\0\x05\x74"), "{signed:?}");

    let itself = format!("127.0.0.1:{}", world.agent.admin().port());
    until("the agent signed as itself", || client.children("/motan/agent/bars-client/node") == [itself.as_str()]);

    let [a, b, c] = ["a", "b", "c"].map(Backend::named);
    client.create(&node(&a), &java_url(&a));
    world.answers(&["a"]);
    // motan-go writes text.
    client.create(&node(&b), format!("http://{}/{SERVICE}?group=bars&nodeType=service", b.addr()).as_bytes());
    world.answers(&["a", "b"]);
    // A person wrote nothing.
    client.create(&node(&c), b"");
    world.answers(&["a", "b", "c"]);

    // None of these is for this service.
    for (at, text) in [
        ("10.0.0.1:1", format!("http://10.0.0.1:1/{SERVICE}?nodeType=referer")),
        ("10.0.0.2:1", "http://10.0.0.2:1/other.Service?nodeType=service".to_owned()),
        ("10.0.0.3:1", format!("motan2://10.0.0.3:1/{SERVICE}?nodeType=service")),
    ] {
        client.create(&format!("{FOLDER}/{at}"), &java_string(&text));
    }
    // A node that is replaced by one of the same name, and one whose data changes.
    client.set(&node(&b), format!("http://{}/other?", b.addr()).as_bytes());
    world.answers(&["a", "c"]);
    client.delete(&node(&c));
    client.create(&node(&c), format!("http://{}/other?", c.addr()).as_bytes());
    world.answers(&["a"]);
    client.set(&node(&b), &java_url(&b));
    client.delete(&node(&c));
    world.answers(&["a", "b"]);
    assert_eq!(world.stale(), 0.0);
    let list = cli(world.server.addr(), &["ls", FOLDER]);
    assert!(list.contains(&b.addr().to_string()), "{list}");
}

#[test]
fn zookeeper_bad_nodes_cost_only_themselves() {
    if lacks(NEEDS) {
        return;
    }
    let world = World::new();
    let mut client = world.client();
    let [a, b] = ["a", "b"].map(Backend::named);
    client.create(&node(&a), &java_url(&a));
    world.answers(&["a"]);
    let bad = [
        ("garbage", b"\xff\xfe\0\0hello".to_vec()),
        ("cut", java_url(&a)[..40].to_vec()),
        ("object", b"\xac\xed\0\x05sr\0\x10java.util.HashMap".to_vec()),
        ("port", java_string(&format!("http://10.0.0.9:0/{SERVICE}?"))),
        ("words", b"hello".to_vec()),
        ("large", vec![b'x'; 10 << 20]),
    ];
    for (name, data) in &bad {
        client.create(&format!("{FOLDER}/{name}"), data);
    }
    client.create(&node(&b), &java_url(&b));
    world.answers(&["a", "b"]);
    until("operators see it", || world.stale() == 1.0);
    let log = world.agent.log();
    assert!(log.contains("nodes left out"), "{log}");
    for (name, _) in &bad {
        client.delete(&format!("{FOLDER}/{name}"));
    }
    until("all is well again", || world.stale() == 0.0);
    world.answers(&["a", "b"]);
}

#[test]
fn zookeeper_killed_frozen_and_emptied_costs_no_call() {
    if lacks(NEEDS) {
        return;
    }
    let mut world = World::new();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(Backend::named);
    world.client().create(&node(&a), &java_url(&a));
    world.answers(&["a"]);
    let caller = Caller::start(world.to);

    world.server.proc.signal(Signal::KILL);
    world.server.proc.wait();
    until("operators see it", || world.stale() == 1.0);
    caller.goes_on();
    world.server.again();
    serves(&world.server);
    world.client().create(&node(&b), &java_url(&b));
    world.answers(&["a", "b"]);
    until("all is well again", || world.stale() == 0.0);

    world.server.proc.signal(Signal::STOP);
    until("operators see it", || world.stale() == 1.0);
    caller.goes_on();
    world.server.proc.signal(Signal::CONT);
    world.client().create(&node(&c), &java_url(&c));
    world.answers(&["a", "b", "c"]);

    // It forgot everything, even what the agent has seen of it.
    world.server.proc.signal(Signal::KILL);
    world.server.proc.wait();
    again_empty(&mut world.server);
    caller.goes_on();
    world.client().create(&node(&d), &java_url(&d));
    until("the new list is taken", || answering(world.to).contains(&"d".to_owned()));
    caller.all_good();
}

#[test]
fn zookeeper_behind_a_partition_is_asked_again_when_it_heals() {
    if lacks(&[Need::Root, NEEDS[0], NEEDS[1]]) {
        return;
    }
    let net = Net::new();
    let world = World::at(zookeeper::zookeeper(&Place { net: Some(&net), ..Place::default() }), "1s");
    let [a, b] = ["a", "b"].map(Backend::named);
    world.client().create(&node(&a), &java_url(&a));
    world.answers(&["a"]);
    let caller = Caller::start(world.to);
    net.black_hole();
    until("operators see it", || world.stale() == 1.0);
    caller.goes_on();
    net.heal();
    until("the agent is back", || world.stale() == 0.0);
    world.client().create(&node(&b), &java_url(&b));
    world.answers(&["a", "b"]);
    caller.all_good();
}

#[test]
fn zookeeper_that_is_down_at_the_start_is_found_later() {
    if lacks(NEEDS) {
        return;
    }
    let mut server = zookeeper::zookeeper(&Place::default());
    let a = Backend::named("a");
    Client::open(server.addr()).create(&node(&a), &java_url(&a));
    server.proc.signal(Signal::KILL);
    server.proc.wait();
    let to = free_addr();
    let agent = agent(server.addr(), to, "1s");
    assert_eq!(agent.metric("sockmesh_service_stale", &[SERVICE]), 1.0);
    server.again();
    until("a answers", || call(to) == "a");
}

#[test]
fn zookeeper_session_that_expired_is_begun_anew() {
    if lacks(NEEDS) {
        return;
    }
    let world = World::new();
    let mut client = world.client();
    let [a, b] = ["a", "b"].map(Backend::named);
    client.create(&node(&a), &java_url(&a));
    world.answers(&["a"]);
    let signature = "/motan/bars/bars.BarService/client/127.0.0.1:0";
    let first = client.get(signature).unwrap().owner;
    world.agent.pause();
    until("the session expires", || client.get(signature).is_none());
    client.create(&node(&b), &java_url(&b));
    world.agent.resume();
    world.answers(&["a", "b"]);
    until("the agent signed again", || client.get(signature).is_some_and(|node| node.owner != first));
    let watches = word(world.server.addr(), "wchp").unwrap();
    assert!(watches.contains(FOLDER), "{watches}");
}

#[test]
fn zookeeper_with_a_hundred_thousand_nodes_is_read_whole() {
    if lacks(NEEDS) {
        return;
    }
    let _alone = host::heavy();
    let world = World::at(zookeeper::zookeeper(&Place::default()), "10s");
    let mut client = world.client();
    let a = Backend::named("a");
    // Of another version and so of no concern, but for one.
    let other = java_string(&format!("http://10.0.0.1:1/{SERVICE}.other?nodeType=service&version=1.0&"));
    client.create(&format!("{FOLDER}/first"), &other);
    client.create_all((0..100_000).map(|i| (format!("{FOLDER}/10.0.{}.{}:80", i / 250, i % 250), other.clone())));
    client.create(&node(&a), &java_url(&a));
    world.answers(&["a"]);
    // A change among so many is found without reading all of them.
    let b = Backend::named("b");
    client.create(&node(&b), &java_url(&b));
    world.answers(&["a", "b"]);
    client.delete(&node(&a));
    world.answers(&["b"]);
    assert_eq!(world.stale(), 0.0);
}

/// One command: `pattern` goes to `groups`.
fn command(pattern: &str, groups: &str) -> String {
    format!(
        r#"{{"clientCommandList":[{{"index":1,"version":"1.0","dc":"","commandType":0,"pattern":"{pattern}","mergeGroups":["{groups}"],"routeRules":[],"remark":"x"}}]}}"#
    )
}

#[test]
fn zookeeper_commands_move_traffic_and_their_end_is_obeyed() {
    if lacks(NEEDS) {
        return;
    }
    let world = World::new();
    let mut client = world.client();
    let [a, b] = ["a", "b"].map(Backend::named);
    client.create(&node(&a), &java_url(&a));
    client.create(&node(&b).replace("/bars/", "/bars-b/"), &java_url(&b));
    world.answers(&["a"]);
    let caller = Caller::start(world.to);
    let at = "/motan/bars/command";
    let (to_b, to_a) = (command("bars.*", "bars-b:1"), command("bars.*", "bars"));
    client.create(at, &java_string(&to_b));
    world.answers(&["b"]);
    client.delete(at);
    world.answers(&["a"]);
    client.create(at, to_b.as_bytes());
    world.answers(&["b"]);
    client.set(at, b"");
    world.answers(&["a"]);
    // Neither form: ignored as a whole.
    client.set(at, b"\xff\xfe\0");
    client.set(at, &vec![b'x'; 10 << 20]);
    world.answers(&["a"]);
    // As many as they come, and the last one counts.
    for _ in 0..500 {
        client.set(at, &java_string(&to_a));
        client.set(at, &java_string(&to_b));
    }
    world.answers(&["b"]);
    // The agents of an application go before.
    client.create("/motan/agent/bars-client/command", &java_string(&to_a));
    world.answers(&["a"]);
    caller.all_good();
}

fn registry(more: &str) -> Arc<dyn Registry> {
    let config =
        Config::parse(&format!("services: []\nregistries: {{r: {{kind: zookeeper, {more}}}}}"), Path::new("/"));
    let wanted = &config.unwrap().registries["r"];
    kind::build("registry", &kinds(), &wanted.kind, &wanted.options, &BuildCx::default()).unwrap()
}

#[test]
fn zookeeper_commands_are_written_over_nothing_but_what_was_seen() {
    if lacks(NEEDS) {
        return;
    }
    let server = zookeeper::zookeeper(&Place::default());
    let mut client = Client::open(server.addr());
    let scope = Scope::Group("bars".into());
    let at = "/motan/bars/command";
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(async {
        let java = registry(&format!("address: '{}', session_timeout: 2s", server.addr()));
        java.write_commands(&scope, None, "one").await.unwrap();
        assert_eq!(client.get(at).unwrap().data, java_string("one"));
        assert_eq!(client.get(at).unwrap().owner, 0, "it stays");
        let refused = java.write_commands(&scope, None, "two").await.unwrap_err();
        assert!(format!("{refused:#}").contains("changed meanwhile: one"), "{refused:#}");
        java.write_commands(&scope, Some("one"), "two").await.unwrap();
        assert_eq!((client.get(at).unwrap().data, client.get(at).unwrap().version), (java_string("two"), 1));
        let mut followed = java.commands(&scope).unwrap();
        let heard = followed.wait_for(|c| c.revision > 0).await.unwrap().clone();
        assert_eq!((heard.text.as_deref(), heard.stale.as_deref()), (Some("two"), None));
        client.delete(at);
        followed.wait_for(|c| c.text.is_none()).await.unwrap();

        let plain = registry(&format!("address: '{}', encoding: plain, chroot: /x", server.addr()));
        plain.write_commands(&scope, Some(""), "three").await.unwrap();
        assert_eq!(client.get("/x/motan/bars/command").unwrap().data, b"three");
        drop((java, plain, followed));
    });
    // Sessions end with their last user.
    until("no session is left but ours", || {
        word(server.addr(), "cons").is_ok_and(|said| said.matches("sid=0x").count() == 1)
    });
}

#[test]
fn zookeeper_registrations_outlive_everything_but_the_agent() {
    if lacks(NEEDS) {
        return;
    }
    let mut server = zookeeper::zookeeper(&Place::default());
    let (export, backend) = (free_addr(), Backend::named("a"));
    let (on, off) = (format!("{FOLDER}/{export}"), format!("/motan/bars/bars.BarService/unavailableServer/{export}"));
    // What a killed agent left, whose session still lasts.
    let mut former = Client::open(server.addr());
    former.create_ephemeral(&on, b"former");
    former.create_ephemeral(&off, b"former");
    let mut agent = Agent::start(&format!(
        "application: bars-server
registries: {{zk: {{kind: zookeeper, address: ['127.0.0.1:1', '{}'], session_timeout: 1s}}}}
services:
  - {{service: {SERVICE}, group: bars, protocol: http, export: {export}, local: {}, registry: zk, weight: 20}}
",
        server.addr(),
        backend.addr()
    ));
    let mut client = Client::open(server.addr());
    let text = format!(
        "http://{export}/{SERVICE}?META_WEIGHT=20&application=bars-server&group=bars&nodeType=service&version=1.0&"
    );
    let is = |client: &mut Client, on: &str, off: &str| {
        client.get(on).is_some_and(|n| n.owner != 0 && n.data == java_string(&text)) && client.get(off).is_none()
    };
    until("it is registered", || is(&mut client, &on, &off));
    assert_ne!(client.get(&on).unwrap().owner, former.session);
    assert_eq!(call(export), "a");
    let shown = cli(server.addr(), &["get", &on]);
    assert!(shown.contains(&text), "{shown}");
    drop(former);

    agent_says(&agent, "unavailable");
    until("it is taken out", || is(&mut client, &off, &on));
    agent_says(&agent, "available");
    until("it is back", || is(&mut client, &on, &off));

    client.delete(&on);
    until("it is made again", || is(&mut client, &on, &off));

    // Somebody takes the address over, and gives it back.
    let mut thief = Client::open(server.addr());
    while thief.get(&on).is_none_or(|n| n.owner != thief.session) {
        thief.steal(&on, b"thief");
    }
    until("operators see it", || agent.cli("registrations").ok().contains("exists already"));
    assert_eq!(thief.get(&on).unwrap().data, b"thief");
    drop(thief);
    until("it is made again", || is(&mut client, &on, &off));

    let first = client.get(&on).unwrap().owner;
    agent.pause();
    until("the session expires", || client.get(&on).is_none());
    agent.resume();
    until("it is made again", || is(&mut client, &on, &off));
    assert_ne!(client.get(&on).unwrap().owner, first);

    for empty in [false, true] {
        server.proc.signal(Signal::KILL);
        server.proc.wait();
        until("operators see it", || agent.cli("registrations").ok().contains("pending"));
        assert_eq!(call(export), "a");
        if empty {
            again_empty(&mut server);
        } else {
            server.again();
            serves(&server);
        }
        client = Client::open(server.addr());
        until("it is registered again", || is(&mut client, &on, &off));
    }
    agent.stop();
    assert_eq!((client.get(&on), client.get(&off)), (None, None), "taken back before the agent ends");
}

fn agent_says(agent: &Agent, word: &str) {
    let admin = agent.admin().to_string();
    host::agent::sockmesh("registrations").args(["--admin", &admin, "--set", word]).run().ok();
}
