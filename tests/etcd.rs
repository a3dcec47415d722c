//! A real etcd as registry: what is in it reaches callers, and what happens to it does not.

use std::{net::SocketAddr, path::Path, sync::Arc};

use ::agent::{
    config::Config,
    kind,
    registry::{BuildCx, Registry, Scope, kinds},
};
use host::{
    Agent, Backend, Need, Net,
    caller::{Caller, answering, call},
    etcd::{self, again_empty, compact, delete, get, grant, put, put_all, put_under, revoke, serves},
    lacks,
    net::free_addr,
    program::{Place, Server},
    until,
};
use rustix::process::Signal;

const NEEDS: &[Need] = &[Need::Program("etcd")];
const SERVICE: &str = "bars.BarService";
const FOLDER: &str = "/motan/bars/bars.BarService/server";

/// A server, and an agent that knows it.
struct World {
    server: Server,
    agent: Agent,
    to: SocketAddr,
}

impl World {
    fn new() -> Self {
        Self::at(etcd::etcd(&Place::default()), "1s")
    }

    /// `lease`: short ones make the agent notice soon that a member is gone.
    fn at(server: Server, lease: &str) -> Self {
        let to = free_addr();
        let agent = agent(server.addr(), to, lease);
        Self { server, agent, to }
    }

    fn put(&self, of: &Backend) {
        put(self.server.addr(), &node(of), url(of).as_bytes());
    }

    #[track_caller]
    fn answers(&self, names: &[&str]) {
        until(&format!("{names:?} answer"), || answering(self.to) == names);
    }

    fn stale(&self) -> f64 {
        self.agent.metric("sockmesh_service_stale", &[SERVICE])
    }
}

fn agent(registry: SocketAddr, to: SocketAddr, lease: &str) -> Agent {
    Agent::start(&format!(
        "application: bars-client
registries: {{e: {{kind: etcd, address: '{registry}', lease: {lease}}}}}
referers:
  - {{service: {SERVICE}, group: bars, protocol: http, listen: {to}, registry: e, retries: 2}}
"
    ))
}

fn url(of: &Backend) -> String {
    format!("http://{}/{SERVICE}?group=bars&nodeType=service&version=1.0", of.addr())
}

fn node(of: &Backend) -> String {
    format!("{FOLDER}/{}", of.addr())
}

#[test]
fn etcd_keys_become_endpoints_and_bad_ones_cost_only_themselves() {
    if lacks(NEEDS) {
        return;
    }
    let world = World::new();
    let at = world.server.addr();
    let [a, b, c] = ["a", "b", "c"].map(Backend::named);
    world.put(&a);
    world.answers(&["a"]);
    put(at, &node(&b), format!("http://{}/{SERVICE}?nodeType=service&x=a+b%26&", b.addr()).as_bytes());
    world.answers(&["a", "b"]);
    put(at, &node(&c), b"");
    world.answers(&["a", "b", "c"]);
    put(at, &node(&b), format!("http://{}/other?", b.addr()).as_bytes());
    world.answers(&["a", "c"]);
    // The neighbors of the prefix are none of it.
    put(at, "/motan/bars/bars.BarService/serverless/10.0.0.1:1", b"");
    put(at, "/motan/bars/bars.BarService/unavailableServer/10.0.0.1:1", b"");
    assert_eq!(world.stale(), 0.0);

    let bad = [
        ("garbage", b"\xff\xfe\0".to_vec()),
        ("words", b"hello".to_vec()),
        ("port", format!("http://10.0.0.9:0/{SERVICE}?").into_bytes()),
        ("large", vec![b'x'; 10 << 20]),
    ];
    for (name, data) in &bad {
        put(at, &format!("{FOLDER}/{name}"), data);
    }
    world.put(&b);
    world.answers(&["a", "b", "c"]);
    until("operators see it", || world.stale() == 1.0);
    // The same when they are read instead of followed.
    let to = free_addr();
    let _second = agent(at, to, "1s");
    until("everybody answers", || answering(to) == ["a", "b", "c"]);
    for (name, _) in &bad {
        delete(at, &format!("{FOLDER}/{name}"));
    }
    until("all is well again", || world.stale() == 0.0);
    // Two nodes for one address: when one goes the other counts.
    put(at, &format!("{FOLDER}/twice"), url(&c).as_bytes());
    delete(at, &node(&c));
    delete(at, &node(&a));
    world.answers(&["b", "c"]);
}

#[test]
fn etcd_killed_frozen_and_emptied_costs_no_call() {
    if lacks(NEEDS) {
        return;
    }
    let mut world = World::new();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(Backend::named);
    world.put(&a);
    world.answers(&["a"]);
    let caller = Caller::start(world.to);

    world.server.proc.signal(Signal::KILL);
    world.server.proc.wait();
    until("operators see it", || world.stale() == 1.0);
    caller.goes_on();
    world.server.again();
    serves(&world.server);
    // What happened meanwhile is history that nobody has any more.
    world.put(&b);
    compact(world.server.addr());
    world.answers(&["a", "b"]);
    until("all is well again", || world.stale() == 0.0);

    world.server.proc.signal(Signal::STOP);
    until("operators see it", || world.stale() == 1.0);
    caller.goes_on();
    world.server.proc.signal(Signal::CONT);
    world.put(&c);
    world.answers(&["a", "b", "c"]);

    world.server.proc.signal(Signal::KILL);
    world.server.proc.wait();
    again_empty(&mut world.server);
    caller.goes_on();
    world.put(&d);
    until("the new list is taken", || answering(world.to).contains(&"d".to_owned()));
    caller.all_good();
}

#[test]
fn etcd_members_are_left_when_they_lose_their_leader() {
    if lacks(NEEDS) {
        return;
    }
    let mut members = etcd::cluster();
    let addrs: Vec<_> = members.iter().map(|m| format!("'{}'", m.addr())).collect();
    let (to, export) = (free_addr(), free_addr());
    let [a, b, c] = ["a", "b", "c"].map(Backend::named);
    let agent = Agent::start(&format!(
        "registries: {{e: {{kind: etcd, address: [{}], lease: 2s}}}}
referers:
  - {{service: {SERVICE}, group: bars, protocol: http, listen: {to}, registry: e, retries: 2}}
services:
  - {{service: other, group: bars, protocol: http, export: {export}, local: {}, registry: e}}
",
        addrs.join(", "),
        a.addr()
    ));
    put(members[0].addr(), &node(&a), url(&a).as_bytes());
    until("a answers", || call(to) == "a");
    let caller = Caller::start(to);
    let registered = format!("/motan/bars/other/server/{export}");

    // Whoever leads is killed; the others choose another one.
    let leader = members.iter().position(|m| etcd::leads(m.addr())).unwrap();
    members[leader].proc.signal(Signal::KILL);
    members[leader].proc.wait();
    let left: Vec<_> = (0..3).filter(|i| *i != leader).collect();
    until("there is another one", || left.iter().any(|i| etcd::leads(members[*i].addr())));
    put(members[left[0]].addr(), &node(&b), url(&b).as_bytes());
    until("b answers as well", || answering(to) == ["a", "b"]);
    until("the service is registered", || get(members[left[0]].addr(), &registered).is_some());

    // One alone knows nothing for certain, whether or not it is the one that is asked.
    members[left[0]].proc.signal(Signal::STOP);
    until("operators see it", || agent.metric("sockmesh_service_stale", &[SERVICE]) == 1.0);
    caller.goes_on();
    members[left[0]].proc.signal(Signal::CONT);
    until("all is well again", || agent.metric("sockmesh_service_stale", &[SERVICE]) == 0.0);
    put(members[left[1]].addr(), &node(&c), url(&c).as_bytes());
    until("c answers as well", || answering(to) == ["a", "b", "c"]);
    until("the service is registered", || get(members[left[0]].addr(), &registered).is_some());
    caller.all_good();
}

#[test]
fn etcd_behind_a_partition_is_asked_again_when_it_heals() {
    if lacks(&[Need::Root, NEEDS[0]]) {
        return;
    }
    let net = Net::new();
    let world = World::at(etcd::etcd(&Place { net: Some(&net), ..Place::default() }), "1s");
    let [a, b] = ["a", "b"].map(Backend::named);
    world.put(&a);
    world.answers(&["a"]);
    let caller = Caller::start(world.to);
    net.black_hole();
    until("operators see it", || world.stale() == 1.0);
    caller.goes_on();
    net.heal();
    until("the agent is back", || world.stale() == 0.0);
    world.put(&b);
    world.answers(&["a", "b"]);
    caller.all_good();
}

#[test]
fn etcd_that_is_down_at_the_start_is_found_later() {
    if lacks(NEEDS) {
        return;
    }
    let mut server = etcd::etcd(&Place::default());
    let a = Backend::named("a");
    put(server.addr(), &node(&a), url(&a).as_bytes());
    server.proc.signal(Signal::KILL);
    server.proc.wait();
    let to = free_addr();
    let agent = agent(server.addr(), to, "1s");
    assert_eq!(agent.metric("sockmesh_service_stale", &[SERVICE]), 1.0);
    server.again();
    until("a answers", || call(to) == "a");
}

#[test]
fn etcd_with_a_hundred_thousand_keys_is_read_whole() {
    if lacks(NEEDS) {
        return;
    }
    let _alone = host::heavy();
    let server = etcd::etcd(&Place::default());
    let [a, b] = ["a", "b"].map(Backend::named);
    let other = format!("http://10.0.0.1:1/{SERVICE}.other?nodeType=service&version=1.0&");
    put_all(server.addr(), (0..100_000).map(|i| (format!("{FOLDER}/10.0.{}.{}:80", i / 250, i % 250), other.clone())));
    let world = World::at(server, "10s");
    world.put(&a);
    world.answers(&["a"]);
    world.put(&b);
    world.answers(&["a", "b"]);
    delete(world.server.addr(), &node(&a));
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
fn etcd_commands_move_traffic_and_their_end_is_obeyed() {
    if lacks(NEEDS) {
        return;
    }
    let world = World::new();
    let server = world.server.addr();
    let [a, b] = ["a", "b"].map(Backend::named);
    world.put(&a);
    put(server, &node(&b).replace("/bars/", "/bars-b/"), url(&b).as_bytes());
    world.answers(&["a"]);
    let caller = Caller::start(world.to);
    let at = "/motan/bars/command";
    let (to_b, to_a) = (command("bars.*", "bars-b:1"), command("bars.*", "bars"));
    put(server, at, to_b.as_bytes());
    world.answers(&["b"]);
    delete(server, at);
    world.answers(&["a"]);
    put(server, at, to_b.as_bytes());
    world.answers(&["b"]);
    put(server, at, b"");
    world.answers(&["a"]);
    put(server, at, b"\xff\xfe\0");
    put(server, at, &vec![b'x'; 10 << 20]);
    world.answers(&["a"]);
    for _ in 0..500 {
        put(server, at, to_a.as_bytes());
        put(server, at, to_b.as_bytes());
    }
    world.answers(&["b"]);
    put(server, "/motan/agent/bars-client/command", to_a.as_bytes());
    world.answers(&["a"]);
    caller.all_good();
}

fn registry(more: &str) -> Arc<dyn Registry> {
    let config = Config::parse(&format!("services: []\nregistries: {{r: {{kind: etcd, {more}}}}}"), Path::new("/"));
    let wanted = &config.unwrap().registries["r"];
    kind::build("registry", &kinds(), &wanted.kind, &wanted.options, &BuildCx::default()).unwrap()
}

#[test]
fn etcd_commands_are_written_over_nothing_but_what_was_seen() {
    if lacks(NEEDS) {
        return;
    }
    let server = etcd::etcd(&Place::default());
    let scope = Scope::Group("bars".into());
    let value = |key: &str| get(server.addr(), key).map(|found| String::from_utf8(found.value).unwrap());
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(async {
        let etcd = registry(&format!("address: '{}'", server.addr()));
        etcd.write_commands(&scope, None, "one").await.unwrap();
        assert_eq!(value("/motan/bars/command").unwrap(), "one");
        let refused = etcd.write_commands(&scope, None, "two").await.unwrap_err();
        assert!(format!("{refused:#}").contains("changed meanwhile: one"), "{refused:#}");
        etcd.write_commands(&scope, Some("one"), "two").await.unwrap();
        let mut followed = etcd.commands(&scope).unwrap();
        let heard = followed.wait_for(|c| c.revision > 0).await.unwrap().clone();
        assert_eq!((heard.text.as_deref(), heard.stale.as_deref()), (Some("two"), None));
        delete(server.addr(), "/motan/bars/command");
        followed.wait_for(|c| c.text.is_none()).await.unwrap();
        let other = registry(&format!("address: '{}', prefix: /x/y/", server.addr()));
        other.write_commands(&scope, Some(""), "three").await.unwrap();
        assert_eq!(value("/x/y/bars/command").unwrap(), "three");
    });
}

#[test]
fn etcd_registrations_outlive_everything_but_the_agent() {
    if lacks(NEEDS) {
        return;
    }
    let mut server = etcd::etcd(&Place::default());
    let (at, export, backend) = (server.addr(), free_addr(), Backend::named("a"));
    let (on, off) = (format!("{FOLDER}/{export}"), format!("/motan/bars/bars.BarService/unavailableServer/{export}"));
    // What a killed agent left, whose lease still lasts.
    let former = grant(at, 600);
    put_under(at, &on, b"former", former);
    put_under(at, &off, b"former", former);
    let mut agent = Agent::start(&format!(
        "application: bars-server
registries: {{e: {{kind: etcd, address: ['127.0.0.1:1', '{at}'], lease: 2s}}}}
services:
  - {{service: {SERVICE}, group: bars, protocol: http, export: {export}, local: {}, registry: e, weight: 20}}
",
        backend.addr()
    ));
    let text = format!(
        "http://{export}/{SERVICE}?META_WEIGHT=20&application=bars-server&group=bars&nodeType=service&version=1.0"
    );
    let is = |on: &str, off: &str| {
        get(at, on).is_some_and(|n| n.lease != 0 && n.value == text.as_bytes()) && get(at, off).is_none()
    };
    until("it is registered", || is(&on, &off));
    revoke(at, former);
    assert!(is(&on, &off), "it is under a lease of its own");
    assert_eq!(call(export), "a");

    agent_says(&agent, "unavailable");
    until("it is taken out", || is(&off, &on));
    agent_says(&agent, "available");
    until("it is back", || is(&on, &off));
    delete(at, &on);
    until("it is written again", || is(&on, &off));

    // Somebody takes the address over, and gives it back.
    let thief = grant(at, 600);
    put_under(at, &on, b"thief", thief);
    until("operators see it", || agent.cli("registrations").ok().contains("written by another one"));
    assert_eq!(get(at, &on).unwrap().value, b"thief");
    revoke(at, thief);
    until("it is written again", || is(&on, &off));

    let first = get(at, &on).unwrap().lease;
    agent.pause();
    until("the lease ends", || get(at, &on).is_none());
    agent.resume();
    until("it is written again", || is(&on, &off));
    assert_ne!(get(at, &on).unwrap().lease, first);

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
        until("it is registered again", || is(&on, &off));
    }
    agent.stop();
    assert_eq!((get(at, &on), get(at, &off)), (None, None), "taken back before the agent ends");
}

fn agent_says(agent: &Agent, word: &str) {
    let admin = agent.admin().to_string();
    host::agent::sockmesh("registrations").args(["--admin", &admin, "--set", word]).run().ok();
}
