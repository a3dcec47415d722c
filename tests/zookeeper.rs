//! A real ZooKeeper as registry: what is in it reaches callers, and what happens to it does not.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};

use host::{
    Agent, Backend, Need, Net, http, lacks,
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

    /// Who answers, as many times as it takes to meet everybody.
    fn answering(&self) -> Vec<String> {
        let mut names: Vec<_> = (0..12).map(|_| call(self.to)).collect();
        names.sort();
        names.dedup();
        names
    }

    #[track_caller]
    fn answers(&self, names: &[&str]) {
        until(&format!("{names:?} answer"), || self.answering() == names);
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

/// The name of who answers, or what went wrong.
fn call(to: SocketAddr) -> String {
    match http::get(to, "/") {
        Ok(answer) if answer.status() == 200 => answer.text(),
        Ok(answer) => answer.status().to_string(),
        Err(e) => e.to_string(),
    }
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

/// Calls one after the other for as long as it lives.
struct Caller {
    stop: Arc<AtomicBool>,
    good: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Caller {
    fn start(to: SocketAddr) -> Self {
        let (stop, good) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (over, count) = (stop.clone(), good.clone());
        let thread = thread::spawn(move || {
            let mut bad = Vec::new();
            while !over.load(SeqCst) {
                match call(to) {
                    name if name.len() == 1 => drop(count.fetch_add(1, SeqCst)),
                    wrong => bad.push(wrong),
                }
            }
            bad
        });
        Self { stop, good, thread: Some(thread) }
    }

    /// Waits for some more good calls.
    #[track_caller]
    fn goes_on(&self) {
        let before = self.good.load(SeqCst);
        until("calls go on", || self.good.load(SeqCst) > before + 20);
    }

    /// Ends it; none of its calls may have failed.
    #[track_caller]
    fn all_good(mut self) {
        self.stop.store(true, SeqCst);
        let bad = self.thread.take().unwrap().join().unwrap();
        assert!(bad.is_empty(), "{} calls failed: {:?}", bad.len(), &bad[..bad.len().min(3)]);
    }
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
    until("the new list is taken", || world.answering().contains(&"d".to_owned()));
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
