use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use futures_util::future::BoxFuture;
use model::{
    Instance, ServiceKey, Snapshot,
    center::{Action, Figures, GroupWeight, Guard, Histogram, Of, Role, Side},
    command::Commands as Text,
};
use tokio::time::sleep;

use super::*;
use crate::store::Memory;

mod sizes;

/// A site of services in memory.
#[derive(Default)]
struct Fake {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Service, group (in the instance) and calls a second.
    instances: Vec<(String, Instance, f64)>,
    texts: BTreeMap<CommandScope, (u64, Option<String>)>,
    revision: u64,
    /// What the next writes are answered with.
    refusals: VecDeque<Option<Error>>,
    /// Milliseconds and success of all calls, by instance; the last for all others.
    goes: BTreeMap<String, (u64, f64)>,
    capacity: Option<f64>,
    /// Instances of each pool that its driver runs.
    sizes: BTreeMap<(String, String), u32>,
    /// Who asked drivers for what, and under which name.
    scaled: Vec<(String, u32, String)>,
    /// What drivers say instead.
    driver: Option<Error>,
    /// Drivers answer after this.
    slow: Duration,
    /// Up to this epoch nothing is written any more.
    overtaken: Option<u64>,
}

impl Site for Fake {
    fn keys(&self) -> Vec<ServiceKey> {
        let key = |(service, instance, _): &(String, Instance, f64)| ServiceKey {
            service: service.clone(),
            group: instance.group.clone(),
            version: String::new(),
        };
        let mut keys: Vec<_> = self.inner.lock().instances.iter().map(key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    fn snapshot(&self, service: &str, group: &str) -> Arc<Snapshot> {
        let inner = self.inner.lock();
        let of = inner.instances.iter().filter(|(s, i, _)| s == service && (group.is_empty() || i.group == group));
        Arc::new(Snapshot { revision: 1, instances: of.map(|(_, i, _)| i.clone()).collect(), stale: None })
    }

    fn lately(&self, of: &Of) -> Figures {
        let success = self.gone(of).map(|(_, success)| success);
        Figures { rate: self.rate(of), success, ..Figures::default() }
    }

    fn times(&self, of: &Of) -> Histogram {
        let mut times = Histogram::default();
        if let Some((ms, _)) = self.gone(of) {
            times.add(ms * 1000, (self.rate(of) * 10.0) as u64);
        }
        times
    }

    fn callers(&self, service: &str, group: &str) -> Vec<(String, f64)> {
        let of = Of { service: service.to_owned(), group: group.to_owned(), ..Of::default() };
        vec![("shop".to_owned(), self.rate(&of))]
    }

    fn capacity(&self, _: &str, _: &str) -> Option<f64> {
        self.inner.lock().capacity
    }

    fn text(&self, scope: &CommandScope) -> (u64, Option<String>) {
        self.inner.lock().texts.get(scope).cloned().unwrap_or_default()
    }

    fn size<'a>(&'a self, service: &'a str, group: &'a str) -> BoxFuture<'a, Result<u32, Error>> {
        let size = self.inner.lock().sizes.get(&(service.to_owned(), group.to_owned())).copied();
        Box::pin(async move { size.ok_or_else(|| Error::not_found("it has no driver", "name one")) })
    }

    fn scale<'a>(
        &'a self,
        actor: &'a Actor,
        (service, group): (&'a str, &'a str),
        size: u32,
        key: &'a str,
        _reason: &'a str,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let slow = self.inner.lock().slow;
            sleep(slow).await;
            let mut inner = self.inner.lock();
            inner.scaled.push((actor.name.clone(), size, key.to_owned()));
            if let Some(error) = inner.driver.clone() {
                return Err(error);
            }
            inner.sizes.insert((service.to_owned(), group.to_owned()), size);
            Ok(())
        })
    }

    fn set_text<'a>(
        &'a self,
        scope: &'a CommandScope,
        expected: u64,
        text: Option<String>,
        epoch: u64,
    ) -> BoxFuture<'a, Result<u64, Error>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut inner = self.inner.lock();
            if inner.overtaken.is_some_and(|overtaken| epoch <= overtaken) {
                return Err(crate::store::StoreError::NotLeader.into());
            }
            if let Some(Some(error)) = inner.refusals.pop_front() {
                return Err(error);
            }
            if inner.texts.get(scope).map_or(0, |(revision, _)| *revision) != expected {
                return Err(Error::conflict("changed", ""));
            }
            inner.revision += 1;
            let revision = inner.revision;
            inner.texts.insert(scope.clone(), (revision, text));
            Ok(revision)
        })
    }
}

impl Fake {
    fn rate(&self, of: &Of) -> f64 {
        if of.side == Side::Inbound {
            return 0.0;
        }
        let inner = self.inner.lock();
        let fits = |asked: &str, has: &str| asked.is_empty() || asked == has;
        let all = inner.instances.iter();
        all.filter(|(s, i, _)| fits(&of.service, s) && fits(&of.group, &i.group) && fits(&of.instance, &i.address))
            .map(|(_, _, rate)| rate)
            .sum()
    }

    fn gone(&self, of: &Of) -> Option<(u64, f64)> {
        let inner = self.inner.lock();
        inner.goes.get(&of.instance).or_else(|| inner.goes.get("")).copied()
    }

    fn goes(&self, instance: &str, ms: u64, success: f64) {
        self.inner.lock().goes.insert(instance.to_owned(), (ms, success));
    }

    fn write(&self, group: &str, text: &str) {
        let mut inner = self.inner.lock();
        inner.revision += 1;
        let revision = inner.revision;
        inner.texts.insert(scope(group), (revision, Some(text.to_owned())));
    }

    fn shares(&self, service: &str, group: &str) -> String {
        let text = self.text(&scope(group)).1.unwrap_or_default();
        let effect = layers::effect(&Text::parse(&text).unwrap(), service, group);
        effect.groups.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }
}

struct Bench {
    site: Arc<Fake>,
    store: Arc<dyn Store>,
    commands: Arc<Commands>,
}

/// `web` with two instances in idc-a and one in idc-b and in idc-c, 30 calls a second each; `web-api` in idc-a.
async fn bench() -> Bench {
    let site = Arc::new(Fake::default());
    {
        let mut inner = site.inner.lock();
        for (service, group, address) in [
            ("web", "idc-a", "10.0.0.1:80"),
            ("web", "idc-a", "10.0.0.2:80"),
            ("web", "idc-b", "10.1.0.1:80"),
            ("web", "idc-c", "10.2.0.1:80"),
            ("web-api", "idc-a", "10.0.0.9:80"),
        ] {
            let version = if address == "10.0.0.2:80" { "2" } else { "1" };
            let instance = Instance { group: group.into(), version: version.into(), ..Instance::at(address) };
            inner.instances.push((service.into(), instance, 30.0));
        }
    }
    site.goes("", 10, 1.0);
    let store: Arc<dyn Store> = Arc::new(Memory::new("center"));
    let commands = started(&site, &store).await;
    Bench { site, store, commands }
}

async fn started(site: &Arc<Fake>, store: &Arc<dyn Store>) -> Arc<Commands> {
    let commands = Commands::on(Config::default(), store.clone(), site.clone(), Audit::new(store.clone()));
    commands.load().await.unwrap();
    commands
}

fn order(action: Action) -> NewCommand {
    NewCommand {
        action,
        reason: "a test".into(),
        for_ms: None,
        steps: Vec::new(),
        step_ms: None,
        guard: None,
        expected: None,
    }
}

fn moved(from: &str, to: &str, percent: u32) -> NewCommand {
    order(Action::Move { service: "web".into(), from: from.into(), to: to.into(), percent })
}

fn switched(group: &str, to: &[(&str, u32)]) -> NewCommand {
    let to = to.iter().map(|(group, weight)| GroupWeight { group: (*group).into(), weight: Some(*weight) }).collect();
    order(Action::Switch { service: "web".into(), group: group.into(), to })
}

fn actor(name: &str) -> Actor {
    Actor { name: name.into(), roles: vec![("*".into(), Role::Operator)], ..Actor::default() }
}

impl Bench {
    async fn give(&self, wanted: NewCommand) -> Result<CommandRecord, Error> {
        self.commands.give(&actor("anna"), wanted, false).await
    }

    async fn refused(&self, wanted: NewCommand) -> String {
        let before = self.site.inner.lock().texts.clone();
        let said = self.give(wanted).await.unwrap_err().to_string();
        assert_eq!(self.site.inner.lock().texts, before, "nothing changes by a refusal: {said}");
        said
    }

    fn state(&self, id: u64) -> CommandState {
        self.commands.active("").iter().find(|record| record.id == id).map_or(CommandState::Undone, |r| r.state)
    }

    /// Waits (in paused time) until a command stands as wanted.
    async fn until(&self, id: u64, wanted: impl Fn(&CommandRecord) -> bool) -> CommandRecord {
        for _ in 0..2000 {
            let record = self.commands.one(id).await.unwrap();
            if wanted(&record) {
                return record;
            }
            sleep(Duration::from_millis(100)).await;
        }
        panic!("it never is: {:?}", self.commands.one(id).await);
    }
}

#[tokio::test]
async fn a_move_is_written_and_undone_and_both_are_history() {
    let it = bench().await;
    let given = it.give(moved("idc-a", "idc-b", 20)).await.unwrap();
    assert_eq!((given.id, given.state, given.author.as_str()), (1, CommandState::Active, "anna"));
    assert_eq!(it.site.shares("web", "idc-a"), "idc-a:80 idc-b:20");
    assert_eq!(it.site.shares("web-api", "idc-a"), "idc-a", "another service whose name begins alike");
    assert_eq!(given.changes.len(), 1);
    assert_eq!(given.changes[0].scope, "group idc-a");
    let names = |service: &str| it.commands.active(service).iter().map(|r| r.id).collect::<Vec<_>>();
    assert_eq!((names("web"), names("web-api"), names("")), (vec![1], vec![], vec![1]));
    let undone = it.commands.undo(&actor("bob"), 1, "enough").await.unwrap();
    assert_eq!(undone.state, CommandState::Undone);
    assert_eq!(undone.ended.map(|(_, by, why)| (by, why)), Some(("bob".into(), "enough".into())));
    assert_eq!(it.site.shares("web", "idc-a"), "idc-a");
    let again = it.commands.undo(&actor("bob"), 1, "again").await.unwrap_err();
    assert!(again.message.contains("has ended (by bob: enough)"), "{again}");
    assert_eq!(it.commands.undo(&actor("bob"), 7, "").await.unwrap_err().code, Code::NotFound);
    it.give(switched("idc-a", &[("idc-b", 100)])).await.unwrap();
    let (all, next) = it.commands.history(None, 1, |_| true).await.unwrap();
    assert_eq!((all[0].id, next), (2, Some(2)));
    let (all, next) = it.commands.history(next, 10, |_| true).await.unwrap();
    assert_eq!((all[0].id, all.len(), next), (1, 1, None));
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let it = bench().await;
    let no_such =
        NewCommand { action: Action::Degrade { service: "wob".into(), group: "idc-a".into() }, ..moved("a", "b", 1) };
    assert!(it.refused(no_such).await.contains("no service `wob`; there are web, web-api"));
    let begins = order(Action::Degrade { service: "we".into(), group: "idc-a".into() });
    assert!(it.refused(begins).await.contains("no service `we`"), "the beginning of a name is no name");
    assert!(
        it.refused(moved("idc-a", "idc-x", 20)).await.contains("in no group `idc-x`; it is in idc-a, idc-b, idc-c")
    );
    assert!(it.refused(moved("idc-x", "idc-a", 20)).await.contains("in no group `idc-x`"));
    let drain = |instance: &str| {
        order(Action::Drain { service: "web".into(), group: "idc-a".into(), instance: instance.into() })
    };
    assert!(it.refused(drain("10.9.9.9:1")).await.contains("no instance `10.9.9.9:1`"));
    let canary = |version: &str| {
        let (service, group) = ("web".into(), "idc-a".into());
        order(Action::Canary { service, group, version: version.into(), percent: 10, header: None })
    };
    assert!(it.refused(canary("7")).await.contains("version `7`"));
    // Other rights than for all groups concerned.
    let half = Actor { name: "carl".into(), roles: vec![("idc-a".into(), Role::Operator)], ..Actor::default() };
    let said = it.commands.give(&half, moved("idc-a", "idc-b", 20), false).await.unwrap_err();
    assert_eq!(said.code, Code::Forbidden);
    it.site.write("idc-a", "nonsense");
    assert!(it.refused(moved("idc-a", "idc-b", 20)).await.contains("what is there is not JSON"));
    it.site.write("idc-a", r#"{"clientCommandList":[{"pattern":"*","mergeGroups":["idc-c"]}]}"#);
    assert!(it.refused(switched("idc-a", &[("idc-b", 1)])).await.contains("has no index, so it goes first"));
    it.site.write("idc-a", "");
    it.give(drain("10.0.0.1:80")).await.unwrap();
    it.give(canary("2")).await.unwrap();
    let text = it.site.text(&scope("idc-a")).1.unwrap();
    let text = Text::parse(&text).unwrap();
    assert_eq!((text.drained("web").count(), text.canary("web").unwrap().percent), (1, 10));
}

#[tokio::test]
async fn nobody_overwrites_what_he_has_not_seen() {
    let it = bench().await;
    let seen = it.commands.preview(&actor("anna"), &moved("idc-a", "idc-b", 20)).await.unwrap().revision;
    it.give(moved("idc-a", "idc-b", 20)).await.unwrap();
    let said = it.refused(moved("idc-a", "idc-c", 20)).await;
    assert!(said.contains("command 1 of anna (20 % of web from idc-a to idc-b) is in force"), "{said}");
    let late = NewCommand { expected: Some(seen), ..moved("idc-a", "idc-c", 20) };
    let said = it.refused(late.clone()).await;
    assert!(said.contains("were changed since") && said.contains("group `idc-a`"), "{said}");
    let now = it.commands.preview(&actor("bob"), &late).await.unwrap();
    assert!(now.warnings.iter().any(|w| w.contains("command 1 of anna")), "{:?}", now.warnings);
    it.give(NewCommand { expected: Some(now.revision), ..late }).await.unwrap();
    assert_eq!(it.site.shares("web", "idc-a"), "idc-a:64 idc-b:20 idc-c:16");
    // The lower one goes, and the upper one stays: relative to what is left.
    it.commands.undo(&actor("anna"), 1, "").await.unwrap();
    assert_eq!(it.site.shares("web", "idc-a"), "idc-a:80 idc-c:20");
    // What does not contend needs nothing seen.
    it.give(order(Action::Degrade { service: "web-api".into(), group: "idc-a".into() })).await.unwrap();
}

#[tokio::test]
async fn a_move_takes_the_callers_of_other_groups_along() {
    let it = bench().await;
    it.give(switched("idc-c", &[("idc-a", 50), ("idc-c", 50)])).await.unwrap();
    let wanted = moved("idc-a", "idc-b", 20);
    let preview = it.commands.preview(&actor("anna"), &wanted).await.unwrap();
    let scopes: Vec<_> = preview.changes.iter().map(|change| change.scope.as_str()).collect();
    assert_eq!(scopes, ["group idc-a", "group idc-c"]);
    it.give(NewCommand { expected: Some(preview.revision), ..wanted.clone() }).await.unwrap();
    assert_eq!(it.site.shares("web", "idc-a"), "idc-a:80 idc-b:20");
    assert_eq!(it.site.shares("web", "idc-c"), "idc-a:40 idc-c:50 idc-b:10");
    it.commands.undo(&actor("anna"), 2, "").await.unwrap();
    assert_eq!(it.site.shares("web", "idc-c"), "idc-a:50 idc-c:50");
    // One of two texts is not taken: neither holds.
    let ill = || Some(Error::new(Code::ReadOnly, "disk full", ""));
    it.site.inner.lock().refusals.extend([None, ill()]);
    let seen = it.commands.preview(&actor("anna"), &wanted).await.unwrap().revision;
    let said = it.refused_but_clean(NewCommand { expected: Some(seen), ..wanted.clone() }).await;
    assert!(said.contains("disk full"), "{said}");
    assert_eq!(it.commands.one(3).await.unwrap().state, CommandState::Failed);
    assert_eq!(it.site.shares("web", "idc-a"), "idc-a");
    assert_eq!(it.site.shares("web", "idc-c"), "idc-a:50 idc-c:50");
}

impl Bench {
    async fn refused_but_clean(&self, wanted: NewCommand) -> String {
        self.give(wanted).await.unwrap_err().to_string()
    }
}

#[tokio::test]
async fn what_others_write_meanwhile_stays() {
    let it = bench().await;
    let theirs = r#"{"clientCommandList":[{"index":4,"pattern":"other","mergeGroups":["x"]}]}"#;
    it.site.inner.lock().refusals.push_back(Some(Error::conflict("changed", "")));
    it.site.write("idc-a", theirs);
    it.give(moved("idc-a", "idc-b", 20)).await.unwrap();
    assert_eq!(
        (it.site.shares("web", "idc-a"), it.site.shares("other", "idc-a")),
        ("idc-a:80 idc-b:20".into(), "x".into())
    );
    // Somebody throws ours away: they come back.
    it.site.write("idc-a", theirs);
    it.commands.put_right().await.unwrap();
    assert_eq!(it.site.shares("web", "idc-a"), "idc-a:80 idc-b:20");
    it.commands.undo(&actor("anna"), 1, "").await.unwrap();
    assert_eq!((it.site.shares("web", "idc-a"), it.site.shares("other", "idc-a")), ("idc-a".into(), "x".into()));
}

#[tokio::test]
async fn a_preview_deals_the_rates_of_now_as_agents_do() {
    let it = bench().await;
    it.site.inner.lock().capacity = Some(50.0);
    let rows = async |wanted: NewCommand| {
        let preview = it.commands.preview(&actor("anna"), &wanted).await.unwrap();
        let rows: Vec<_> =
            preview.endpoints.iter().map(|e| (e.instance.clone(), e.rate_then.round() as i64, e.over)).collect();
        (rows, preview)
    };
    let (then, preview) = rows(moved("idc-a", "idc-b", 50)).await;
    let expected =
        [("10.0.0.1:80", 15, false), ("10.0.0.2:80", 15, false), ("10.1.0.1:80", 60, true), ("10.2.0.1:80", 30, false)];
    assert_eq!(then, expected.map(|(a, n, o)| (a.to_owned(), n, o)));
    assert!(preview.warnings.contains(&"1 endpoints would get more than they can take".to_owned()), "{preview:?}");
    assert!(preview.warnings.iter().any(|w| w.contains("web-api")), "{:?}", preview.warnings);
    assert_eq!(preview.callers, [("shop".to_owned(), 60.0)]);
    assert_eq!(it.site.inner.lock().revision, 0, "nothing is changed");
    // A canary of a version, a drain, a switch to a group that is named alone, degrade.
    let (service, group): (String, String) = ("web".into(), "idc-a".into());
    let canary = Action::Canary {
        service: service.clone(),
        group: group.clone(),
        version: "2".into(),
        percent: 10,
        header: None,
    };
    let thens = |rows: Vec<(String, i64, bool)>| rows.into_iter().map(|(_, n, _)| n).collect::<Vec<_>>();
    assert_eq!(thens(rows(order(canary)).await.0), [54, 6, 30, 30]);
    let drain = Action::Drain { service: service.clone(), group: group.clone(), instance: "10.0.0.1:80".into() };
    assert_eq!(thens(rows(order(drain)).await.0), [0, 60, 30, 30]);
    assert_eq!(thens(rows(switched("idc-a", &[("idc-b", 100)])).await.0), [0, 0, 90, 30]);
    assert_eq!(thens(rows(order(Action::Degrade { service, group })).await.0), [0, 0, 30, 30]);
    // With a switch in force, the rates of callers are sought from what endpoints get.
    it.give(switched("idc-a", &[("idc-a", 50), ("idc-b", 50)])).await.unwrap();
    it.site.inner.lock().instances.iter_mut().for_each(|(_, i, rate)| {
        *rate = match i.group.as_str() {
            "idc-a" => 20.0,
            "idc-b" => 100.0,
            _ => 30.0,
        }
    });
    let undoing = NewCommand { expected: Some(9), ..switched("idc-a", &[("idc-a", 100)]) };
    assert_eq!(thens(rows(undoing).await.0), [40, 40, 60, 30]);
}

#[tokio::test(start_paused = true)]
async fn steps_are_taken_in_their_time_and_the_end_comes() {
    let it = bench().await;
    let wanted = NewCommand {
        steps: vec![5, 50, 100],
        step_ms: Some(5000),
        for_ms: Some(60_000),
        ..moved("idc-a", "idc-b", 100)
    };
    let given = it.give(wanted).await.unwrap();
    assert_eq!((given.state, given.steps.len()), (CommandState::Stepping, 1));
    assert_eq!(it.site.shares("web", "idc-a"), "idc-a:95 idc-b:5");
    assert_eq!(given.steps[0].before.as_ref().unwrap().rate, 120.0);
    sleep(Duration::from_millis(4000)).await;
    assert_eq!(it.site.shares("web", "idc-a"), "idc-a:95 idc-b:5", "held");
    it.until(1, |r| r.steps.len() == 2).await;
    assert_eq!(it.site.shares("web", "idc-a"), "idc-a:50 idc-b:50");
    let done = it.until(1, |r| r.state == CommandState::Active).await;
    assert_eq!((done.steps.last().unwrap().percent, it.site.shares("web", "idc-a").as_str()), (100, "idc-b"));
    let ended = it.until(1, |r| r.state == CommandState::Undone).await;
    assert_eq!(ended.ended.map(|(_, by, why)| (by, why)), Some(("centre".into(), "its time is over".into())));
    assert_eq!(it.site.shares("web", "idc-a"), "idc-a");
    // By hand, and no further than there are steps.
    let given = it.give(NewCommand { steps: vec![5, 100], ..moved("idc-a", "idc-b", 50) }).await.unwrap();
    let next = it.commands.next(&actor("anna"), given.id).await.unwrap();
    assert_eq!((next.state, it.site.shares("web", "idc-a").as_str()), (CommandState::Active, "idc-a:50 idc-b:50"));
    assert_eq!(it.commands.next(&actor("anna"), given.id).await.unwrap_err().code, Code::Conflict);
}

#[tokio::test(start_paused = true)]
async fn a_guard_undoes_what_goes_ill_and_holds_back_what_is_not_seen() {
    let it = bench().await;
    let guard = Some(Guard { p99_ms: Some(50.0), error_percent: Some(1.0), ..Guard::default() });
    let wanted = NewCommand { steps: vec![20, 100], step_ms: Some(1000), guard, ..moved("idc-a", "idc-b", 100) };
    // The group that takes the calls is slow: seen there, although all calls together still look well.
    it.site.goes("10.1.0.1:80", 90, 1.0);
    let preview = it.commands.preview(&actor("anna"), &wanted).await.unwrap();
    assert!(preview.warnings.iter().any(|w| w.contains("the guard would undo it at once")), "{:?}", preview.warnings);
    it.give(wanted.clone()).await.unwrap();
    let ended = it.until(1, |r| r.state == CommandState::Undone).await;
    let (_, by, why) = ended.ended.unwrap();
    assert_eq!((by.as_str(), ended.steps.len()), ("centre", 1));
    assert!(why.contains("web in idc-b") && why.contains("over 50 ms"), "{why}");
    assert_eq!(it.site.shares("web", "idc-a"), "idc-a");
    // Well, but too few calls to say: it stays at its step until there are more.
    it.site.goes("10.1.0.1:80", 10, 1.0);
    let rates = |rate: f64| it.site.inner.lock().instances.iter_mut().for_each(|(_, _, r)| *r = rate);
    rates(0.1);
    let given = it.give(wanted.clone()).await.unwrap();
    sleep(Duration::from_secs(120)).await;
    assert_eq!(it.state(given.id), CommandState::Stepping);
    rates(30.0);
    it.until(given.id, |r| r.state == CommandState::Active).await;
    // The guard goes on to hold, over a longer window too.
    it.commands.undo(&actor("anna"), given.id, "").await.unwrap();
    let guard = Some(Guard { error_percent: Some(1.0), window_ms: Some(30_000), ..Guard::default() });
    let given = it.give(NewCommand { guard, ..wanted }).await.unwrap();
    it.until(given.id, |r| r.state == CommandState::Active).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(it.state(given.id), CommandState::Active);
    it.site.goes("", 10, 0.5);
    let ended = it.until(given.id, |r| r.state == CommandState::Undone).await;
    assert!(ended.ended.unwrap().2.contains("failed, over 1 %"));
}

#[tokio::test(start_paused = true)]
async fn a_start_goes_on_with_what_was_in_the_middle() {
    let it = bench().await;
    let wanted = NewCommand { steps: vec![10, 100], step_ms: Some(5000), ..moved("idc-a", "idc-b", 100) };
    it.give(wanted).await.unwrap();
    let proposed = it.commands.give(&Actor::center(), moved("idc-c", "idc-b", 10), true).await.unwrap();
    assert_eq!((proposed.state, it.site.shares("web", "idc-c").as_str()), (CommandState::Proposed, "idc-c"));
    let Bench { site, store, commands } = it;
    drop(commands);
    // Texts were lost on the way; what is kept says how they are.
    site.inner.lock().texts.clear();
    let it = Bench { commands: started(&site, &store).await, site, store };
    assert_eq!(it.commands.active("web").len(), 2);
    it.until(1, |r| r.state == CommandState::Active).await;
    assert_eq!(it.site.shares("web", "idc-a"), "idc-b");
    let said = it.refused_but_clean(moved("idc-b", "idc-c", 10)).await;
    assert!(said.contains("command 1 of anna"), "{said}");
    it.commands.undo(&actor("bob"), 1, "").await.unwrap();
    let confirmed = it.commands.confirm(&actor("bob"), 2).await.unwrap();
    assert_eq!((confirmed.state, confirmed.author.as_str()), (CommandState::Active, "centre"));
    assert_eq!(it.site.shares("web", "idc-c"), "idc-c:90 idc-b:10");
    assert_eq!(it.commands.confirm(&actor("bob"), 2).await.unwrap_err().code, Code::Conflict);
    let next = it.give(order(Action::Degrade { service: "web*".into(), group: "idc-a".into() })).await.unwrap();
    assert_eq!(next.id, 3);
    assert_eq!(it.commands.active("web-api").len(), 1);
    assert!(it.store.stamp().revision > 0);
}

/// Two operators who look, think and order at random, each step at random moments: whoever was told yes had seen what
/// he changed, texts are always what the commands in force make of what others wrote, and nothing is left at the end.
#[tokio::test]
async fn two_operators_at_random() {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let it = bench().await;
        it.site.write(
            "idc-a",
            r#"{"clientCommandList":[{"index":2,"pattern":"web","mergeGroups":["idc-a:3","idc-c:1"]}]}"#,
        );
        let before = it.site.shares("web", "idc-a");
        let mut seen: [Option<(u64, Vec<u64>)>; 2] = [None, None];
        for _ in 0..60 {
            let who = random.usize(..2);
            let groups = ["idc-a", "idc-b", "idc-c"];
            let (from, to) = (random.usize(..3), random.usize(1..3));
            let wanted = moved(groups[from], groups[(from + to) % 3], random.u32(1..=100));
            let open = || it.commands.active("").iter().map(|r| r.id).collect::<Vec<_>>();
            match random.u8(..6) {
                0 | 1 => {
                    let revision = it.commands.preview(&actor("x"), &wanted).await.unwrap().revision;
                    // Of all texts, not only of those that this one would change.
                    let all = groups.map(|g| it.site.text(&scope(g)).0).into_iter().max().unwrap_or(0);
                    assert!(revision <= all);
                    seen[who] = Some((all, open()));
                }
                2..=4 => {
                    let looked = seen[who].clone();
                    let stale = looked.as_ref().is_none_or(|(_, then)| *then != open());
                    let asked = NewCommand { expected: looked.map(|(revision, _)| revision), ..wanted };
                    // Both at once now and then.
                    let both = random.bool();
                    let other = NewCommand { expected: asked.expected, ..asked.clone() };
                    let (one, two) = if both {
                        let (a, b) = (actor("anna"), actor("bob"));
                        tokio::join!(it.commands.give(&a, asked, false), it.commands.give(&b, other, false))
                    } else {
                        (it.give(asked).await, Err(Error::conflict("", "")))
                    };
                    assert!(one.is_err() || two.is_err(), "seed {seed}: both were told yes");
                    if let (Ok(record), true, Some((_, then))) = (&one.or(two), stale, &seen[who]) {
                        // He had not seen all, yet nothing of what he had not seen is in the texts that he changed.
                        let unseen =
                            it.commands.active("").into_iter().filter(|r| !then.contains(&r.id) && r.id != record.id);
                        let changed: Vec<_> = record.changes.iter().map(|c| c.scope.clone()).collect();
                        for other in unseen {
                            assert!(
                                !other.changes.iter().any(|c| changed.contains(&c.scope)),
                                "seed {seed}: {other:?}"
                            );
                        }
                    }
                }
                _ => {
                    if let Some(id) = random.choice(open()) {
                        it.commands.undo(&actor("bob"), id, "").await.unwrap();
                    }
                }
            }
            let texts = it.site.inner.lock().texts.clone();
            it.commands.put_right().await.unwrap();
            assert_eq!(it.site.inner.lock().texts, texts, "seed {seed}: texts are what the commands say");
        }
        for record in it.commands.active("") {
            it.commands.undo(&actor("bob"), record.id, "").await.unwrap();
        }
        assert_eq!(it.site.shares("web", "idc-a"), before, "seed {seed}");
        assert_eq!((it.site.shares("web", "idc-b"), it.site.shares("web", "idc-c")), ("idc-b".into(), "idc-c".into()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_proposal_waits_for_its_time_and_a_newer_one_takes_its_place() {
    let it = bench().await;
    let propose = async |percent| it.commands.give(&Actor::center(), moved("idc-a", "idc-b", percent), true).await;
    let first = propose(10).await.unwrap();
    assert_eq!(first.until_ms, Some(first.at_ms + 3_600_000));
    // Another pool's stays; the newer one for the same pool is the advice now.
    let other = it.commands.give(&Actor::center(), moved("idc-c", "idc-b", 10), true).await.unwrap();
    let second = propose(30).await.unwrap();
    let replaced = it.commands.one(first.id).await.unwrap();
    assert_eq!(replaced.state, CommandState::Undone);
    assert_eq!(replaced.ended.unwrap().2, format!("proposal {} takes its place", second.id));
    let anna = it.commands.give(&actor("anna"), moved("idc-a", "idc-b", 5), true).await.unwrap();
    assert_eq!(it.state(second.id), CommandState::Proposed, "people's and the centre's are not one");
    it.commands.undo(&actor("anna"), anna.id, "").await.unwrap();
    sleep(Duration::from_secs(1800)).await;
    let confirmed = it.commands.confirm(&actor("anna"), other.id).await.unwrap();
    assert_eq!((confirmed.state, confirmed.until_ms), (CommandState::Active, None));
    assert_eq!(it.state(second.id), CommandState::Proposed);
    sleep(Duration::from_secs(1810)).await;
    let expired = it.commands.one(second.id).await.unwrap();
    assert_eq!(expired.state, CommandState::Expired);
    let (_, by, why) = expired.ended.unwrap();
    assert_eq!((by.as_str(), why.as_str()), ("centre", "nobody put it into force within 1 h"));
    assert_eq!(it.commands.confirm(&actor("anna"), second.id).await.unwrap_err().code, Code::Conflict);
    assert_eq!(it.state(other.id), CommandState::Active, "what was confirmed holds");
    assert_eq!(it.site.shares("web", "idc-a"), "idc-a");
    let audit = Audit::new(it.store.clone()).page(None, 50).await.unwrap();
    let told = audit.iter().find(|entry| entry.what == "command.expire").unwrap();
    assert_eq!((told.actor.as_str(), told.detail["id"].as_u64()), ("centre", Some(second.id)));
    // After a restart the time of one that waits goes on, and one of a longer life does not last for ever.
    let third = propose(40).await.unwrap();
    let again = started(&it.site, &it.store).await;
    sleep(Duration::from_secs(3610)).await;
    assert_eq!(again.one(third.id).await.unwrap().state, CommandState::Expired);
}

#[tokio::test(start_paused = true)]
async fn who_leads_no_more_changes_nothing_though_it_has_not_heard_of_it() {
    let Bench { site, .. } = bench().await;
    let memory = Arc::new(Memory::new("center"));
    let store: Arc<dyn Store> = memory.clone();
    let commands = started(&site, &store).await;
    let me = Actor::center();
    let stepping = NewCommand { steps: vec![10, 100], step_ms: Some(3_600_000), ..moved("idc-a", "idc-b", 40) };
    let given = commands.give(&me, stepping, false).await.unwrap();
    // Whatever else is in force.
    let seen = |wanted| NewCommand { expected: Some(u64::MAX), ..wanted };
    let proposed = commands.give(&me, seen(moved("idc-c", "idc-b", 20)), true).await.unwrap();
    let shares = site.shares("web", "idc-a");

    let epoch = store.leadership().borrow().fence().unwrap();
    memory.overtake();
    site.inner.lock().overtaken = Some(epoch);
    let refused = [
        commands.next(&me, given.id).await.err(),
        commands.undo(&me, given.id, "late").await.err(),
        commands.confirm(&me, proposed.id).await.err(),
        commands.undo(&me, proposed.id, "late").await.err(),
        commands.give(&me, seen(moved("idc-b", "idc-c", 20)), true).await.err(),
        commands.give(&me, seen(moved("idc-b", "idc-c", 20)), false).await.err(),
    ];
    for (n, error) in refused.iter().enumerate() {
        assert_eq!(error.as_ref().map(|error| error.code), Some(Code::ReadOnly), "{n}: {error:?}");
    }
    assert_eq!(site.shares("web", "idc-a"), shares);
    for (id, state) in [(given.id, CommandState::Stepping), (proposed.id, CommandState::Proposed)] {
        let kept = kept::one(&store, id).await.unwrap().unwrap();
        assert_eq!(kept.record.state, state);
        assert!(kept.record.steps.len() <= 1 && kept.record.ended.is_none());
    }
    assert!(kept::one(&store, proposed.id + 1).await.unwrap().is_none());
    // Texts are not put right either.
    site.write("idc-a", "{\"clientCommandList\":[]}");
    commands.put_right().await.unwrap();
    assert_eq!(site.text(&scope("idc-a")).1.as_deref(), Some("{\"clientCommandList\":[]}"));
}
