//! The registry as agents and operators use it, over a store in memory.

use model::{
    Instance,
    center::{Registration, Registrations, Role, Sync, SyncAnswer, Watched, WatchedText},
};
use tokio::time::{advance, timeout};

use super::*;
use crate::{error::Code, store::Memory};

async fn start(store: &Arc<Memory>, config: Config) -> Arc<Registry> {
    let store: Arc<dyn Store> = store.clone();
    let registry = Registry::new(config, store.clone(), Audit::new(store));
    registry.load().await.unwrap();
    registry
}

async fn fresh() -> Arc<Registry> {
    start(&Arc::new(Memory::new("c")), Config::default()).await
}

fn key(service: &str, group: &str) -> ServiceKey {
    ServiceKey { service: service.into(), group: group.into(), version: String::new() }
}

fn said(service: &str, group: &str, address: &str) -> Registration {
    Registration {
        key: key(service, group),
        protocol: "motan2".into(),
        instance: Instance::at(address),
        application: "shop".into(),
        parameters: Default::default(),
        available: true,
    }
}

fn all(agent: &str, generation: u64, registrations: Vec<Registration>) -> Registrations {
    Registrations { agent: agent.into(), ttl_ms: 10_000, generation, registrations }
}

fn operator() -> Actor {
    Actor::anyone(String::new())
}

async fn register(registry: &Registry, wanted: Registrations) -> String {
    match registry.register(&operator(), wanted).await {
        Ok(answer) => answer.refused.iter().map(|(what, why)| format!("{what}: {why}")).collect::<Vec<_>>().join("\n"),
        Err(error) => format!("{}: {error}", error.code.word()),
    }
}

fn listed(registry: &Registry, service: &str, group: &str) -> String {
    let list = registry.snapshot(&key(service, group));
    let shown = list.instances.iter().map(|i| match i.weight {
        model::DEFAULT_WEIGHT => i.address.clone(),
        weight => format!("{}*{weight}", i.address),
    });
    shown.collect::<Vec<_>>().join(" ")
}

fn states(registry: &Registry, service: &str, group: &str) -> String {
    let rows = registry.rows(&key(service, group));
    rows.iter().map(|row| format!("{} {}", row.address, row.state)).collect::<Vec<_>>().join(", ")
}

/// One long poll of agent `w`; what came is taken over into `asked`.
async fn sync(registry: &Registry, asked: &mut Sync) -> SyncAnswer {
    let pieces = registry.sync(&operator(), asked.clone()).await.unwrap();
    let answer: SyncAnswer = serde_json::from_slice(&pieces.encode()).unwrap();
    assert!(answer.stamp.follows(asked.seen));
    asked.seen = answer.stamp;
    for listed in &answer.services {
        let watched = asked.services.iter_mut().find(|watched| watched.key == listed.key).unwrap();
        watched.revision = listed.snapshot.revision;
    }
    for text in &answer.commands {
        asked.commands.iter_mut().find(|w| w.scope == text.scope).unwrap().revision = text.revision;
    }
    answer
}

fn watching(services: &[(&str, &str)], groups: &[&str]) -> Sync {
    let services = services.iter().map(|(service, group)| Watched { key: key(service, group), revision: 0 });
    let scope = |group: &&str| WatchedText { scope: CommandScope::Group((*group).to_owned()), revision: 0 };
    Sync {
        agent: "w".into(),
        services: services.collect(),
        commands: groups.iter().map(scope).collect(),
        wait_ms: 30_000,
        ..Sync::default()
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_says_all_it_has_and_what_it_leaves_out_is_taken_back() {
    let registry = fresh().await;
    let mut changes = registry.changes();
    let (one, two) = (said("s", "a", "127.0.0.1:1"), said("t", "a", "127.0.0.1:2"));
    assert_eq!(register(&registry, all("h/a", 5, vec![one.clone(), two.clone()])).await, "");
    assert!(changes.has_changed().unwrap());
    changes.borrow_and_update();
    assert_eq!((listed(&registry, "s", "a"), listed(&registry, "t", "")), ("127.0.0.1:1".into(), "127.0.0.1:2".into()));
    let first = registry.store.stamp();
    assert_eq!(register(&registry, all("h/a", 5, vec![one.clone(), two])).await, "");
    assert_eq!(registry.store.stamp(), first, "said again is nothing new");
    assert!(!changes.has_changed().unwrap());
    let off = Registration { available: false, ..one };
    assert_eq!(register(&registry, all("h/a", 6, vec![off])).await, "");
    assert_eq!((listed(&registry, "s", "a"), listed(&registry, "t", "a")), (String::new(), String::new()));
    assert_eq!(states(&registry, "s", "a"), "127.0.0.1:1 unavailable");
    let old = register(&registry, all("h/a", 5, vec![])).await;
    assert!(
        old.starts_with("conflict: registrations of agent `h/a` of generation 5 are older than those of 6"),
        "{old}"
    );
    assert_eq!((registry.keys().len(), registry.registered_by("h/a")), (1, 1));
    assert_eq!(register(&registry, all("h/a", 7, vec![])).await, "");
    assert_eq!((registry.keys().len(), registry.registered_by("h/a")), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn watchers_hear_of_what_concerns_them_once_and_soon() {
    let registry = fresh().await;
    let mut asked = watching(&[("s", "a"), ("s", "")], &["a"]);
    let first = sync(&registry, &mut asked).await;
    assert_eq!((first.services.len(), first.commands.len()), (2, 0), "empty lists are told at once");
    let began = tokio::time::Instant::now();
    let quiet = sync(&registry, &mut asked).await;
    assert_eq!((quiet.services.len(), began.elapsed().as_secs()), (0, 30), "nothing came in its time");
    let change = async {
        for port in 1..=5 {
            register(&registry, all(&format!("p{port}"), 1, vec![said("s", "a", &format!("127.0.0.1:{port}"))])).await;
        }
        register(&registry, all("q", 1, vec![said("other", "a", "127.0.0.1:9")])).await;
    };
    let began = tokio::time::Instant::now();
    let (told, ()) = tokio::join!(sync(&registry, &mut asked), change);
    assert_eq!(told.services.len(), 2);
    assert_eq!(told.services[0].snapshot.instances.len(), 5, "a burst is one answer");
    assert!(began.elapsed().as_millis() <= 21);
    let (told, revision) = tokio::join!(sync(&registry, &mut asked), async {
        registry.set_text(&CommandScope::Group("a".into()), 0, Some("{}".into()), None).await.unwrap()
    });
    assert_eq!((told.services.len(), told.commands[0].text.as_deref()), (0, Some("{}")));
    let stale = registry.set_text(&CommandScope::Group("a".into()), 0, Some("{ }".into()), None).await.unwrap_err();
    assert_eq!(stale.code, Code::Conflict);
    registry.set_text(&CommandScope::Group("a".into()), revision, None, None).await.unwrap();
    let told = sync(&registry, &mut asked).await;
    assert_eq!(told.commands[0].text, None);
    assert!(told.commands[0].revision > revision, "taken away is a change too");
    let closing = async {
        tokio::task::yield_now().await;
        registry.close();
    };
    let (told, ()) = tokio::join!(timeout(Duration::from_secs(1), sync(&registry, &mut asked)), closing);
    assert_eq!(told.unwrap().services.len(), 0, "the end of the centre holds nobody up");
}

#[tokio::test(start_paused = true)]
async fn silent_agents_lose_their_place_and_find_it_again() {
    let registry =
        start(&Arc::new(Memory::new("c")), Config { forget: Duration::from_secs(60), ..Config::default() }).await;
    let one = said("s", "a", "127.0.0.1:1");
    register(&registry, all("h/a", 5, vec![one.clone()])).await;
    let mut asked = watching(&[("s", "a")], &[]);
    sync(&registry, &mut asked).await;
    let beat = Heartbeat { agent: "h/a".into(), generation: 5 };
    for _ in 0..5 {
        advance(Duration::from_secs(9)).await;
        assert!(registry.heartbeat(&operator(), &beat).await.unwrap().known);
    }
    let told = sync(&registry, &mut asked).await;
    assert_eq!(told.services[0].snapshot.instances, [], "told as soon as it was lost");
    assert_eq!(states(&registry, "s", "a"), "127.0.0.1:1 lost");
    assert!(!registry.heartbeat(&operator(), &beat).await.unwrap().known);
    register(&registry, all("h/a", 5, vec![one.clone()])).await;
    assert_eq!(listed(&registry, "s", "a"), "127.0.0.1:1");
    // Another one may not have it while this one lives, and may when it is lost.
    let other = register(&registry, all("evil", 1, vec![one.clone()])).await;
    assert_eq!(
        other,
        "a/s@127.0.0.1:1: agent `h/a` has registered it and lives; end that agent, or wait until it is lost"
    );
    sync(&registry, &mut asked).await;
    sync(&registry, &mut asked).await;
    assert_eq!(states(&registry, "s", "a"), "127.0.0.1:1 lost");
    assert_eq!(register(&registry, all("next", 1, vec![one])).await, "");
    assert_eq!(registry.rows(&key("s", "a"))[0].agent, "next");
    let mut changes = registry.changes();
    changes.wait_for(|_| registry.keys().is_empty()).await.unwrap();
    assert_eq!(registry.leases.record("next").generation, 0, "nothing is left in the end");
}

#[tokio::test(start_paused = true)]
async fn the_operators_word_outlives_agents_and_centres() {
    let store = Arc::new(Memory::new("c"));
    let registry = start(&store, Config::default()).await;
    let (one, two) = (said("s", "a", "127.0.0.1:1"), said("s", "a", "127.0.0.1:2"));
    register(&registry, all("h/a", 5, vec![one.clone(), two.clone()])).await;
    let (s, by) = (key("s", "a"), operator());
    registry.take_out(&by, &s, "127.0.0.1:1", Some("disk broken")).await.unwrap();
    registry.set_weight(&by, &s, "127.0.0.1:2", Some(3)).await.unwrap();
    assert_eq!(listed(&registry, "s", "a"), "127.0.0.1:2*3");
    assert_eq!(registry.rows(&s)[0].reason, "local: disk broken");
    register(&registry, all("h/a", 6, vec![])).await;
    assert_eq!(states(&registry, "s", "a"), "127.0.0.1:1 out, 127.0.0.1:2 lost", "what was said of them stays");
    register(&registry, all("h/a", 7, vec![one.clone(), two.clone()])).await;
    assert_eq!(listed(&registry, "s", "a"), "127.0.0.1:2*3");
    registry.drain(&by, &s, "127.0.0.1:2", "goes home").await.unwrap();
    registry.set_text(&CommandScope::Agent("shop".into()), 0, Some("x".into()), None).await.unwrap();
    drop(registry);

    let registry = start(&store, Config::default()).await;
    assert_eq!(listed(&registry, "s", "a"), "127.0.0.1:2*0", "a restart changes nothing");
    assert_eq!(states(&registry, "s", "a"), "127.0.0.1:1 out, 127.0.0.1:2 draining");
    assert_eq!(registry.text(&CommandScope::Agent("shop".into())).1.as_deref(), Some("x"));
    let beat = Heartbeat { agent: "h/a".into(), generation: 7 };
    assert!(registry.heartbeat(&by, &beat).await.unwrap().known, "nobody has to register again");
    registry.take_out(&by, &s, "127.0.0.1:1", None).await.unwrap();
    registry.take_out(&by, &s, "127.0.0.1:2", None).await.unwrap();
    registry.set_weight(&by, &s, "127.0.0.1:2", None).await.unwrap();
    assert_eq!(listed(&registry, "s", "a"), "127.0.0.1:1 127.0.0.1:2");
    register(&registry, all("h/a", 8, vec![])).await;
    assert_eq!(registry.keys(), [], "taken back is forgotten");
    let gone = registry.take_out(&by, &s, "127.0.0.1:1", Some("x")).await.unwrap_err();
    assert_eq!((gone.code, gone.message.as_str()), (Code::NotFound, "no instance `a/s@127.0.0.1:1`"));
    assert_eq!(registry.set_weight(&by, &s, "x", Some(100_001)).await.unwrap_err().code, Code::BadRequest);
    let viewer = Actor { roles: vec![("*".into(), Role::Viewer)], ..operator() };
    assert_eq!(registry.drain(&viewer, &s, "x", "y").await.unwrap_err().code, Code::Forbidden);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_is_refused_and_the_rest_holds() {
    let store = Arc::new(Memory::new("c"));
    let config = Config { instances: 3, services: 2, per_agent: 9, agents: 2, ..Config::default() };
    let registry = start(&store, config).await;
    let long = "x".repeat(300);
    let bad = vec![
        said("s", "a", "127.0.0.1:1"),
        said("s", "a", "127.0.0.1:1"),
        said("", "a", "127.0.0.1:1"),
        said(&long, "a", "127.0.0.1:1"),
        said("s\n", "a", "127.0.0.1:1"),
        said("s", "a", "localhost:1"),
        said("s", "a", "0.0.0.0:1"),
        Registration { instance: Instance { group: "b".into(), ..Instance::at("127.0.0.1:9") }, ..said("s", "a", "") },
        Registration { parameters: [("k".into(), "v".repeat(20_000))].into(), ..said("s", "a", "127.0.0.1:9") },
    ];
    let told = register(&registry, all("h/a", 1, bad)).await;
    for part in [
        "a/s@127.0.0.1:1: it is said twice",
        "the service has no name",
        "has a name of 300 bytes",
        "control characters",
        "`localhost:1` names a host",
        "is no address to connect to",
        "`b` and `a` differ",
        "20001 bytes of metadata",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert_eq!((told.lines().count(), listed(&registry, "s", "a")), (8, "127.0.0.1:1".into()));
    let more = (1..=9).map(|port| said(&format!("s{port}"), "a", &format!("127.0.0.1:{port}"))).collect();
    let told = register(&registry, all("h/b", 1, more)).await;
    assert_eq!((told.lines().count(), registry.keys().len()), (8, 2));
    assert!(told.contains("raise `registry.instances`"), "{told}");
    for (wanted, why) in [
        (all("", 1, vec![]), "bad_request: the agent has no name"),
        (all("h/a", 0, vec![]), "bad_request: agent `h/a` says generation 0"),
        (Registrations { ttl_ms: 10, ..all("h/a", 1, vec![]) }, "bad_request: agent `h/a` promises"),
        (all("h/a", 1, vec![said("s", "a", ""); 10]), "bad_request: agent `h/a` registers 10"),
        (all("h/c", 1, vec![]), "too_many: agent `h/c` would be one more than the 2"),
    ] {
        let told = register(&registry, wanted).await;
        assert!(told.starts_with(why), "{told}");
    }
    // Nothing of all that is in the store.
    let again = start(&store, Config::default()).await;
    assert_eq!(again.keys(), registry.keys());
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_held_back_and_others_are_not() {
    let registry = fresh().await;
    let one = said("s", "a", "127.0.0.1:1");
    let mut answered = 0;
    for generation in 1..=1000 {
        answered += usize::from(register(&registry, all("flood", generation, vec![one.clone()])).await.is_empty());
    }
    assert_eq!(answered, 20);
    assert_eq!(register(&registry, all("calm", 1, vec![said("s", "a", "127.0.0.1:2")])).await, "");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_took_more_than_this_centre_has_is_noticed() {
    let registry = fresh().await;
    let mut asked = watching(&[], &[]);
    asked.wait_ms = 0;
    asked.seen = Stamp { epoch: 3, revision: 900 };
    let pieces = registry.sync(&operator(), asked).await.unwrap();
    assert!(!pieces.stamp.follows(Stamp { epoch: 3, revision: 900 }));
    assert_eq!(registry.taken_by("w"), Stamp { epoch: 3, revision: 900 });
    assert_eq!(registry.ahead(), Some(("w".into(), Stamp { epoch: 3, revision: 900 })));
}

#[tokio::test(start_paused = true)]
async fn who_leads_no_more_gives_no_weights_and_writes_no_commands_of_its_own() {
    let store = Arc::new(Memory::new("c"));
    let registry = start(&store, Config::default()).await;
    register(&registry, all("h/a", 1, vec![said("s", "a", "127.0.0.1:1")])).await;
    let (s, scope) = (key("s", "a"), CommandScope::Group("a".into()));
    let epoch = store.leadership().borrow().fence().unwrap();
    registry.warm(&s, "127.0.0.1:1", Some(2), epoch).await.unwrap();
    let revision = registry.set_text(&scope, 0, Some("{}".into()), Some(epoch)).await.unwrap();
    store.overtake();
    assert_eq!(registry.warm(&s, "127.0.0.1:1", Some(3), epoch).await.unwrap_err().code, Code::ReadOnly);
    let late = registry.set_text(&scope, revision, Some("{ }".into()), Some(epoch)).await.unwrap_err();
    assert_eq!(late.code, Code::ReadOnly);
    assert_eq!(listed(&registry, "s", "a"), "127.0.0.1:1*2");
    assert_eq!(registry.text(&scope).1.as_deref(), Some("{}"));
    // What any centre may write is written.
    registry.set_weight(&operator(), &s, "127.0.0.1:1", Some(4)).await.unwrap();
    assert_eq!(listed(&registry, "s", "a"), "127.0.0.1:1*4");
}
