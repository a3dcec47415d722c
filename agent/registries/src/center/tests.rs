//! Against a stand-in; `tests/center_registry.rs` has a real centre.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
};

use model::{
    Instance,
    center::{Heartbeat, Listed, Registrations, Stamp, Sync, SyncAnswer, TextOf},
};
use parking_lot::Mutex;
use serde_json::json;

use super::*;
use crate::testing::{Answer, Asked, StandIn, list, refusal};

fn registry(addresses: &[std::net::SocketAddr], more: &str, cx: &BuildCx) -> Arc<dyn Registry> {
    let addresses: Vec<_> = addresses.iter().map(|at| format!("'{at}'")).collect();
    let yaml = format!("{{address: [{}]{more}}}", addresses.join(", "));
    build(&serde_yaml::from_str(&yaml).unwrap(), cx).unwrap()
}

fn cx() -> BuildCx {
    BuildCx { agent: "host/shop".into(), ..BuildCx::default() }
}

fn key(service: &str) -> ServiceKey {
    ServiceKey { service: service.into(), group: "g".into(), version: String::new() }
}

fn ok(body: impl serde::Serialize) -> Option<Answer> {
    Some((200, vec![], serde_json::to_string(&body).unwrap()))
}

fn synced(epoch: u64, revision: u64, lists: &[(&str, &[&str])]) -> SyncAnswer {
    let listed = |(service, addresses): &(&str, &[&str])| {
        let instances: Vec<_> = addresses.iter().map(|at| Instance::at(*at)).collect();
        let revision = 1 + instances.len() as u64;
        Listed { key: key(service), snapshot: Snapshot { revision, instances, stale: None } }
    };
    let services = lists.iter().map(listed).collect();
    SyncAnswer { stamp: Stamp { epoch, revision }, services, commands: vec![] }
}

fn asked_for(asked: &Asked) -> Sync {
    serde_json::from_str(&asked.body).unwrap()
}

#[tokio::test]
async fn all_that_is_followed_is_one_question() {
    let server = StandIn::start(|asked| {
        assert_eq!(asked.headers["authorization"], "Bearer secret");
        let sync = asked_for(asked);
        assert_eq!(sync.agent, "host/shop");
        let has = |service: &str| sync.services.iter().find(|w| w.key == key(service)).map(|w| w.revision);
        let text = sync.commands.first().map(|w| w.revision);
        match (has("a"), has("b"), text) {
            (Some(0), Some(0), _) => {
                let scope = CommandScope::Group("g".into());
                let commands = vec![TextOf { scope, revision: 5, text: Some("{}".into()) }];
                ok(SyncAnswer { commands, ..synced(1, 9, &[("a", &["10.0.0.1:1", "10.0.0.2:1"]), ("b", &[])]) })
            }
            (Some(3), Some(1), Some(5)) => {
                assert_eq!((sync.wait_ms, sync.seen), (20_000, Stamp { epoch: 1, revision: 9 }));
                ok(synced(1, 10, &[("b", &["10.0.0.3:1"])]))
            }
            // Something was added between.
            (Some(3), Some(2), Some(5)) => None,
            other => panic!("{other:?}"),
        }
    })
    .await;
    let registry = registry(&[server.at], ", token: secret", &cx());
    let (mut a, mut b) = (registry.watch(&key("a")), registry.watch(&key("b")));
    let mut text = registry.commands(&Scope::Group("g".into())).unwrap();
    list(&mut a, "10.0.0.1:1 10.0.0.2:1", false).await;
    list(&mut b, "10.0.0.3:1", false).await;
    text.wait_for(|t| t.text.as_deref() == Some("{}")).await.unwrap();
    assert!(a.borrow().revision == 1 && b.borrow().revision == 2, "counted by what changes here");
}

#[tokio::test]
async fn any_centre_that_answers_is_enough_and_none_keeps_everything() {
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let server = StandIn::start(|asked| match asked_for(asked).services[0].revision {
        0 => ok(synced(1, 1, &[("a", &["10.0.0.1:1"])])),
        _ if asked_for(asked).wait_ms == 0 => ok(synced(1, 1, &[])),
        _ => None,
    })
    .await;
    let busy =
        StandIn::start(|_| Some((503, vec![], json!({"code": "read_only", "message": "no room"}).to_string()))).await;
    let at = server.at;
    let registry = registry(&[nobody, busy.at, at], "", &cx());
    let mut a = registry.watch(&key("a"));
    list(&mut a, "10.0.0.1:1", false).await;
    server.asked("POST /v1/agent/sync").await;
    drop(server);
    let told = list(&mut a, "10.0.0.1:1", true).await.stale.clone().unwrap();
    assert!(told.contains("no room") && told.contains("cannot connect"), "{told}");
}

#[tokio::test]
async fn a_centre_that_lost_its_data_is_not_followed_even_after_a_restart() {
    let folder = std::env::temp_dir().join(format!("sockmesh-stamps-{}", std::process::id()));
    let cx = BuildCx { state: Some(folder.clone()), ..cx() };
    let revision = Arc::new(AtomicU64::new(900));
    let now = revision.clone();
    let server = StandIn::start(move |asked| {
        let (sync, revision) = (asked_for(asked), now.load(SeqCst));
        match sync.wait_ms {
            0 if revision < 900 => ok(synced(3, revision, &[("a", &[])])),
            0 if sync.services[0].revision == 2 => ok(synced(3, revision, &[])),
            0 => ok(synced(3, revision, &[("a", &["10.0.0.1:1"])])),
            _ if revision < 900 => ok(synced(3, revision, &[("a", &[])])),
            _ => Some((500, vec![], "goes".into())),
        }
    })
    .await;
    let first = registry(&[server.at], "", &cx);
    let mut a = first.watch(&key("a"));
    list(&mut a, "10.0.0.1:1", false).await;
    revision.store(7, SeqCst);
    let told = a.wait_for(|s| s.stale.as_ref().is_some_and(|why| why.contains("revision 7"))).await.unwrap().clone();
    let why = told.stale.as_deref().unwrap();
    assert!(why.contains("epoch 3 and revision 7, older than epoch 3 and revision 900"), "{why}");
    assert!(why.contains("sockmesh-center restore FILE --force"), "{why}");
    assert_eq!(told.instances.len(), 1, "the list stays");
    drop((a, first));
    let second = registry(&[server.at], "", &cx);
    let mut a = second.watch(&key("a"));
    a.wait_for(|s| s.stale.as_ref().is_some_and(|why| why.contains("older than epoch 3"))).await.unwrap();
    assert_eq!(a.borrow().revision, 0, "nothing was taken from it");
    revision.store(901, SeqCst);
    list(&mut a, "10.0.0.1:1", false).await;
    // The last stamp may be written still.
    let _ = std::fs::remove_dir_all(folder);
}

fn provided(service: &str, port: u16) -> Provided {
    Provided {
        key: key(service),
        protocol: "motan2".into(),
        instance: Instance::at(format!("10.1.2.3:{port}")),
        application: "shop".into(),
        parameters: Default::default(),
    }
}

/// A centre that holds what one agent says.
#[derive(Default)]
struct OneAgent {
    held: Mutex<Option<Registrations>>,
    refuses: Mutex<Option<&'static str>>,
    beats: AtomicUsize,
}

impl OneAgent {
    fn answer(&self, asked: &Asked) -> Option<Answer> {
        let mut held = self.held.lock();
        let generation = held.as_ref().map_or(0, |held| held.generation);
        if asked.line.starts_with("POST /v1/agent/heartbeat") {
            self.beats.fetch_add(1, SeqCst);
            let beat: Heartbeat = serde_json::from_str(&asked.body).unwrap();
            return ok(json!({"known": generation > 0 && beat.generation == generation, "generation": generation}));
        }
        assert_eq!(asked.line, "PUT /v1/agent/registrations");
        let said: Registrations = serde_json::from_str(&asked.body).unwrap();
        if said.generation < generation {
            return Some((409, vec![], json!({"code": "conflict", "message": "old"}).to_string()));
        }
        *held = Some(said);
        let refused: Vec<_> = self.refuses.lock().iter().map(|name| (*name, "not yours")).collect();
        ok(json!({"stamp": {"epoch": 1, "revision": 1}, "refused": refused}))
    }

    fn says(&self) -> String {
        let held = self.held.lock();
        let all = held.iter().flat_map(|held| &held.registrations);
        let shown = all.map(|r| format!("{}{}", r.key.service, if r.available { "" } else { "-" }));
        shown.collect::<Vec<_>>().join(" ")
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(tokio::time::Instant::now() < end, "waited for {what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn everything_provided_is_one_message_and_one_heartbeat() {
    let center = Arc::new(OneAgent::default());
    // The centre knows this agent from a time when its clock was ahead.
    let ahead = u64::MAX / 2;
    *center.held.lock() = Some(Registrations { generation: ahead, ..Registrations::default() });
    let rule = center.clone();
    let server = StandIn::start(move |asked| rule.answer(asked)).await;
    let registry = registry(&[server.at], ", ttl: 1s", &cx());
    let hold = |service: &str, port| {
        let (want, wanted) = watch::channel(Wanted::Available);
        (want, registry.register(&provided(service, port), wanted).unwrap())
    };
    let ((want_a, mut a), (want_b, mut b)) = (hold("a", 1), hold("b", 2));
    a.wait_for(|s| *s == Standing::Available).await.unwrap();
    b.wait_for(|s| *s == Standing::Available).await.unwrap();
    assert_eq!(center.says(), "a b");
    assert!(center.held.lock().as_ref().unwrap().generation > ahead);
    want_a.send_replace(Wanted::Unavailable);
    a.wait_for(|s| *s == Standing::Unavailable).await.unwrap();
    assert_eq!(center.says(), "a- b");
    let before = center.held.lock().as_ref().unwrap().generation;
    // It forgets all of it, and is told again.
    *center.held.lock() = None;
    until("a new message", || center.says() == "a- b").await;
    assert_eq!(center.held.lock().as_ref().unwrap().generation, before, "nothing new under a new name");
    *center.refuses.lock() = Some("g/c@10.1.2.3:3");
    let (want_c, mut c) = hold("c", 3);
    c.wait_for(|s| *s == Standing::Pending(Some("not yours".into()))).await.unwrap();
    *center.refuses.lock() = None;
    c.wait_for(|s| *s == Standing::Available).await.unwrap();
    // Nobody wants it any more; another one is taken back in words.
    drop(want_b);
    b.wait_for(|s| *s == Standing::Gone).await.unwrap();
    want_a.send_replace(Wanted::Gone);
    want_c.send_replace(Wanted::Gone);
    a.wait_for(|s| *s == Standing::Gone).await.unwrap();
    c.wait_for(|s| *s == Standing::Gone).await.unwrap();
    assert_eq!(center.says(), "");
    let (_want, mut again) = hold("d", 4);
    again.wait_for(|s| *s == Standing::Available).await.unwrap();
    assert_eq!(center.says(), "d");
}

#[tokio::test]
async fn what_an_older_life_takes_back_is_not_what_a_younger_one_said() {
    let center = Arc::new(OneAgent::default());
    let rule = center.clone();
    let server = StandIn::start(move |asked| rule.answer(asked)).await;
    let (old, young) = (registry(&[server.at], "", &cx()), registry(&[server.at], "", &cx()));
    let (want_old, wanted) = watch::channel(Wanted::Available);
    let mut standing_old = old.register(&provided("a", 1), wanted).unwrap();
    standing_old.wait_for(|s| *s == Standing::Available).await.unwrap();
    let (_want, wanted) = watch::channel(Wanted::Available);
    let mut standing = young.register(&provided("b", 2), wanted).unwrap();
    standing.wait_for(|s| *s == Standing::Available).await.unwrap();
    want_old.send_replace(Wanted::Gone);
    standing_old.wait_for(|s| *s == Standing::Gone).await.unwrap();
    assert_eq!(center.says(), "b");
}

#[tokio::test]
async fn commands_are_written_and_a_refusal_is_told() {
    let server = StandIn::start(|asked| {
        assert_eq!(asked.line, "PUT /v1/text");
        match asked.body.contains("\"expected\":\"old\"") {
            true => ok(json!({"scope": {"group": "g"}, "revision": 1, "text": "new"})),
            false => {
                Some((409, vec![], json!({"code": "conflict", "message": "it is x", "remedy": "look"}).to_string()))
            }
        }
    })
    .await;
    let registry = registry(&[server.at], "", &cx());
    let group = Scope::Group("g".into());
    registry.write_commands(&group, Some("old"), "new").await.unwrap();
    let told = registry.write_commands(&group, None, "new").await.unwrap_err();
    assert!(format!("{told:#}").ends_with(": it is x; look"), "{told:#}");
}

#[test]
fn says_what_is_wrong_with_its_options() {
    let told = |yaml: &str| refusal(build, yaml);
    assert!(told("{}").contains("add `address: [HOST:7480]`"));
    assert!(told("{adress: x}").contains("unknown field `adress`"));
    assert!(told("{address: x, ttl: 10ms}").contains("write 1s to 1h"));
    let center = crate::Center { addresses: vec!["127.0.0.1:7480".into()], token: None, ca: None };
    let cx = BuildCx { center: Some(Arc::new(center)), ..BuildCx::default() };
    assert!(build(&Value::Null, &cx).is_ok(), "the agent's own section says where the centre is");
}
