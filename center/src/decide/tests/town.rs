//! Two data centres and more in virtual time: what the centre does to them, and when.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use model::center::{Capacity, CommandRecord, CommandState, Confidence};
use parking_lot::MutexGuard;

use super::super::*;
use crate::{capacity::pool, store::Memory};

mod sizes;

const SERVICE: &str = "com.shop.Cart";

/// A pool of the town.
#[derive(Clone)]
struct Site {
    instances: u32,
    each: f64,
    confidence: Confidence,
    /// Calls a second of the callers of this group.
    demand: f64,
    unheard: bool,
    /// What its driver was asked for.
    size: u32,
    /// Instances that cannot be called are still known.
    known: bool,
    /// Calls to it were seen, and the centre remembers that.
    seen: bool,
}

impl Site {
    /// Nobody, who would take 10/s each.
    fn empty() -> Self {
        let (each, confidence) = (10.0, Confidence::High);
        Self { instances: 0, each, confidence, demand: 0.0, unheard: false, size: 0, known: false, seen: false }
    }
}

#[derive(Default)]
struct Inner {
    sites: BTreeMap<String, Site>,
    commands: Vec<CommandRecord>,
    blind: Option<String>,
    failing: bool,
    /// Callers reach instances that the centre knows nothing of.
    reached: bool,
    /// Instances come as soon as they are asked for.
    prompt: bool,
    policies: Arc<Policies>,
    /// What was done to which pools, and when.
    log: Vec<(Instant, Vec<String>, String)>,
    /// Keys of requests to drivers.
    keys: Vec<String>,
    /// People turn down whatever is proposed, since then.
    declined: Option<Instant>,
}

/// Stands for the rest of the centre: callers obey commands at once.
#[derive(Default)]
struct Town(Mutex<Inner>);

impl Inner {
    /// Load of a group with the commands in force.
    fn load(&self, group: &str) -> f64 {
        let part = |home: &String| {
            let mut parts = BTreeMap::from([(home.clone(), 1.0)]);
            for command in self.commands.iter().filter(|c| c.state == CommandState::Active) {
                let Action::Move { from, to, percent, .. } = &command.asked.action else { continue };
                let Some(had) = parts.get(from).copied() else { continue };
                let moved = had * f64::from(*percent) / 100.0;
                parts.insert(from.clone(), had - moved);
                *parts.entry(to.clone()).or_insert(0.0) += moved;
            }
            parts.get(group).copied().unwrap_or(0.0)
        };
        self.sites.iter().map(|(home, site)| site.demand * part(home)).sum()
    }

    fn water(&self, group: &str) -> f64 {
        let site = &self.sites[group];
        self.load(group) / (site.each * f64::from(site.instances)) * 100.0
    }

    fn done(&self) -> Vec<&str> {
        self.log.iter().map(|(_, _, what)| what.as_str()).collect()
    }

    fn record(&mut self, author: &str, asked: NewCommand, state: CommandState) -> CommandRecord {
        let id = self.commands.len() as u64 + 1;
        let record = CommandRecord {
            id,
            author: author.to_owned(),
            at_ms: 0,
            asked,
            state,
            steps: Vec::new(),
            until_ms: None,
            ended: None,
            changes: Vec::new(),
            written: Vec::new(),
        };
        self.commands.push(record.clone());
        record
    }
}

impl World for Town {
    fn keys(&self) -> Vec<(String, String)> {
        let there = |(group, site): (&String, &Site)| {
            (site.instances > 0 || site.known || site.seen).then(|| (SERVICE.to_owned(), group.clone()))
        };
        self.0.lock().sites.iter().filter_map(there).collect()
    }

    fn pool(&self, policy: &PoolPolicy) -> Option<Pool> {
        let inner = self.0.lock();
        let site = inner.sites.get(&policy.group).filter(|site| site.instances > 0 || site.known)?;
        let capacity = Capacity {
            per_instance: site.each,
            confidence: site.confidence,
            highest_seen: site.each,
            basis: String::new(),
        };
        let rate = inner.load(&policy.group);
        let seen = pool::Seen { instances: site.instances, rate, bands: Vec::new(), capacity: Some(capacity) };
        Some(pool::of(policy, seen))
    }

    fn unheard(&self, policy: &PoolPolicy) -> bool {
        self.0.lock().sites[&policy.group].unheard
    }

    fn held(&self, policy: &PoolPolicy) -> Held {
        match &self.0.lock().sites[&policy.group] {
            site if site.instances > 0 => Held::Usable,
            site if site.known => Held::Unusable,
            _ => Held::Nothing,
        }
    }

    fn answered(&self, policy: &PoolPolicy) -> Option<f64> {
        let inner = self.0.lock();
        let share = if inner.sites[&policy.group].instances > 0 || inner.reached { 1.0 } else { 0.0 };
        (inner.load(&policy.group) > 0.0 && inner.blind.is_none()).then_some(share)
    }

    fn warm_up(&self, _policy: &PoolPolicy) -> Duration {
        Duration::from_secs(90)
    }

    fn blind(&self) -> Option<String> {
        self.0.lock().blind.clone()
    }

    fn govern(&self, policies: Arc<Policies>) {
        self.0.lock().policies = policies;
    }

    fn commands(&self, _service: &str) -> Vec<CommandRecord> {
        let open = |c: &&CommandRecord| matches!(c.state, CommandState::Active | CommandState::Proposed);
        self.0.lock().commands.iter().rev().filter(open).cloned().collect()
    }

    fn author(&self) -> String {
        "centre".to_owned()
    }

    fn give(&self, wanted: NewCommand, propose: bool) -> BoxFuture<'_, Result<CommandRecord, Error>> {
        Box::pin(async move {
            let mut inner = self.0.lock();
            if propose {
                return Ok(inner.record("centre", wanted, CommandState::Proposed));
            }
            let Action::Move { from, to, percent, .. } = wanted.action.clone() else { panic!("{wanted:?}") };
            if inner.failing {
                return Err(Error::conflict("somebody was faster", ""));
            }
            let record = inner.record("centre", wanted, CommandState::Active);
            // What must hold whatever happens.
            let policy = inner.policies.of(SERVICE, &to);
            assert!(inner.water(&to) <= policy.safety_percent + 1e-6, "{to} is filled to {:.1} %", inner.water(&to));
            inner.log.push((Instant::now(), vec![from.clone(), to.clone()], format!("{percent} % of {from} to {to}")));
            Ok(record)
        })
    }

    fn declined<'a>(&'a self, _action: &'a Action) -> BoxFuture<'a, Result<Option<(CommandRecord, Duration)>, Error>> {
        Box::pin(async move {
            let inner = self.0.lock();
            let Some(at) = inner.declined else { return Ok(None) };
            let left = Duration::from_secs(3600).saturating_sub(at.elapsed());
            let mut record = inner.commands.last().unwrap().clone();
            record.ended = Some((0, "anna".to_owned(), String::new()));
            Ok((!left.is_zero()).then_some((record, left)))
        })
    }

    fn undo<'a>(&'a self, id: u64, _reason: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let mut inner = self.0.lock();
            let command = inner.commands.iter_mut().find(|c| c.id == id).unwrap();
            let was = std::mem::replace(&mut command.state, CommandState::Undone);
            if was == CommandState::Active {
                let Action::Move { from, to, .. } = command.asked.action.clone() else { panic!() };
                inner.log.push((Instant::now(), vec![from, to], format!("{id} undone")));
            }
            Ok(())
        })
    }

    fn size<'a>(&'a self, policy: &'a PoolPolicy) -> BoxFuture<'a, Result<u32, Error>> {
        Box::pin(async move { Ok(self.0.lock().sites[&policy.group].size) })
    }

    fn scale<'a>(
        &'a self,
        policy: &'a PoolPolicy,
        size: u32,
        key: &'a str,
        _reason: &'a str,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let mut inner = self.0.lock();
            inner.keys.push(key.to_owned());
            if inner.failing {
                return Err(Error::internal("the driver does not answer", ""));
            }
            let prompt = inner.prompt;
            let site = inner.sites.get_mut(&policy.group).unwrap();
            let what = format!("{} from {} to {size}", policy.group, site.size);
            site.size = size;
            if prompt {
                site.instances = size;
            }
            inner.log.push((Instant::now(), vec![policy.group.clone()], what));
            Ok(())
        })
    }
}

fn policy() -> PoolPolicy {
    PoolPolicy { switch: true, ..PoolPolicy::default() }
}

/// A town of groups with ten instances each that take 10/s, at these water levels, and its decider, which follows
/// `policy` everywhere.
async fn town(policy: PoolPolicy, waters: &[(&str, f64)]) -> (Arc<Town>, Arc<Decider>) {
    let town = Arc::new(Town::default());
    for (group, water) in waters {
        let site = Site { instances: 10, demand: *water, size: 10, ..Site::empty() };
        town.0.lock().sites.insert((*group).to_owned(), site);
    }
    town.0.lock().prompt = true;
    let decider = decider(&town, Arc::new(Memory::new("one")), policy).await;
    (town, decider)
}

async fn decider(town: &Arc<Town>, store: Arc<dyn Store>, policy: PoolPolicy) -> Arc<Decider> {
    let config = Config { policies: vec![policy], ..Config::default() };
    let decider = Decider::on(config, store.clone(), town.clone(), Audit::new(store));
    decider.load().await.unwrap();
    decider
}

impl Town {
    fn now(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }

    fn demand(&self, group: &str, demand: f64) {
        self.now().sites.get_mut(group).unwrap().demand = demand;
    }
}

/// Virtual time goes by.
async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

fn advice(decider: &Decider, group: &str) -> String {
    decider.pool(SERVICE, group).unwrap().advice.unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_fifth_of_idc_a_goes_to_idc_b_and_comes_back() {
    let (town, decider) = town(policy(), &[("idc-a", 80.0), ("idc-b", 30.0)]).await;
    seconds(20).await;
    assert!(town.now().log.is_empty(), "not before it has lasted");
    assert!(advice(&decider, "idc-a").contains("watched"), "{}", advice(&decider, "idc-a"));
    seconds(15).await;
    assert_eq!(town.now().done(), ["20 % of idc-a to idc-b"]);
    assert!((town.now().water("idc-a") - 64.0).abs() < 1e-9 && (town.now().water("idc-b") - 46.0).abs() < 1e-9);
    let reason = town.now().commands[0].asked.reason.clone();
    assert!(reason.starts_with("idc-a is at 80 % of what it can take, its warning line is 70 %"), "{reason}");
    seconds(3600).await;
    assert_eq!(town.now().log.len(), 1, "it stays as long as it is needed");
    assert!(advice(&decider, "idc-a").contains("(now 80 %)"), "{}", advice(&decider, "idc-a"));
    // Below the line, and not far enough to stay there.
    town.demand("idc-a", 68.0);
    seconds(3600).await;
    assert_eq!(town.now().log.len(), 1);
    town.demand("idc-a", 64.0);
    seconds(20).await;
    assert_eq!(town.now().log.len(), 1, "not before it has lasted");
    seconds(15).await;
    assert_eq!(town.now().done(), ["20 % of idc-a to idc-b", "1 undone"]);
    seconds(3600).await;
    assert_eq!(town.now().log.len(), 2);
    assert_eq!(advice(&decider, "idc-a"), "");
}

#[tokio::test(start_paused = true)]
async fn a_load_that_trembles_at_the_line_changes_nothing() {
    let (town, _decider) = town(policy(), &[("idc-a", 69.0), ("idc-b", 30.0)]).await;
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..3600 {
        town.demand("idc-a", 67.0 + rng.f64() * 5.0);
        seconds(2).await;
    }
    assert!(town.now().log.is_empty(), "{:?}", town.now().done());
    // Over it once for long: one switch, and the trembling does not take it back.
    town.demand("idc-a", 75.0);
    seconds(60).await;
    for _ in 0..3600 {
        town.demand("idc-a", 65.5 + rng.f64() * 9.0);
        seconds(2).await;
    }
    assert_eq!(town.now().done().len(), 1, "{:?}", town.now().done());
}

#[tokio::test(start_paused = true)]
async fn the_receiver_stays_below_its_safety_line() {
    let (town, decider) = town(policy(), &[("a", 90.0), ("b", 55.0), ("c", 40.0)]).await;
    seconds(40).await;
    assert_eq!(town.now().done(), ["22 % of a to c"], "as much as fits, where the most room is");
    seconds(120).await;
    assert_eq!(town.now().done(), ["22 % of a to c", "7 % of a to b"], "the rest, a period later");
    seconds(3600).await;
    assert_eq!(town.now().log.len(), 2, "as far as it goes: {:?}", town.now().done());
    assert!(town.now().water("a") < 66.0);
    town.demand("a", 200.0);
    seconds(3600).await;
    assert!(advice(&decider, "a").contains("no other group has room"), "{}", advice(&decider, "a"));
    // What is only extrapolated or unknown is no room.
    let bound = Confidence::LowerBound;
    town.now().sites.get_mut("a").unwrap().confidence = bound;
    seconds(60).await;
    assert!(!advice(&decider, "a").contains("no other group"), "a lower bound is no line");
}

#[tokio::test(start_paused = true)]
async fn a_pool_of_which_nothing_is_registered_is_begun_and_begun_again() {
    let town = Arc::new(Town::default());
    let none = Site { demand: 5.0, ..Site::empty() };
    town.now().sites.insert("new".to_owned(), none);
    town.now().failing = true;
    let (service, group, driver) = (SERVICE.to_owned(), "new".to_owned(), "local".to_owned());
    let policy = PoolPolicy { service, group, driver, scale: true, min: 2, ..PoolPolicy::default() };
    let _decider = decider(&town, Arc::new(Memory::new("one")), policy).await;
    seconds(30).await;
    assert_eq!(town.now().keys.len(), 3, "a driver that fails is asked again, not at every look");
    town.now().failing = false;
    seconds(30).await;
    assert_eq!(town.now().done(), ["new from 0 to 2"]);
    seconds(600).await;
    assert_eq!(town.now().log.len(), 1, "they are on their way");
    town.now().prompt = true;
    town.now().sites.get_mut("new").unwrap().size = 0;
    seconds(30).await;
    assert_eq!(town.now().done(), ["new from 0 to 2", "new from 0 to 2"]);
    assert_eq!(town.now().sites["new"].instances, 2);
    // Nothing is known of what they can take, and there are fewer than there shall be.
    town.now().sites.get_mut("new").unwrap().each = 0.0;
    town.now().sites.get_mut("new").unwrap().instances = 1;
    town.now().sites.get_mut("new").unwrap().size = 1;
    seconds(300).await;
    assert_eq!(town.now().done().last(), Some(&"new from 1 to 2"));
}

#[tokio::test(start_paused = true)]
async fn without_leave_it_proposes() {
    let (town, decider) = town(PoolPolicy::default(), &[("a", 80.0), ("b", 30.0)]).await;
    seconds(600).await;
    {
        let now = town.now();
        assert!(now.log.is_empty());
        assert_eq!(now.commands.len(), 1, "one proposal, not one for each look");
        assert_eq!(now.commands[0].state, CommandState::Proposed);
    }
    assert!(advice(&decider, "a").contains("proposal 1 to move 20 % to b waits"), "{}", advice(&decider, "a"));
    // It would have to be another one now.
    town.demand("a", 100.0);
    seconds(300).await;
    {
        let now = town.now();
        assert_eq!((now.commands[0].state, now.commands[1].state), (CommandState::Undone, CommandState::Proposed));
        assert!(matches!(now.commands[1].asked.action, Action::Move { percent: 30, .. }), "{:?}", now.commands[1]);
    }
    // A person takes it; the centre takes it back when it is over, as it said.
    town.now().commands[1].state = CommandState::Active;
    seconds(300).await;
    assert_eq!(town.now().commands.len(), 2);
    town.demand("a", 50.0);
    seconds(300).await;
    assert_eq!(town.now().done(), ["2 undone"]);
    // One that nobody took goes when it is not needed.
    town.demand("a", 80.0);
    seconds(60).await;
    town.demand("a", 50.0);
    seconds(60).await;
    assert_eq!(town.now().commands[2].state, CommandState::Undone);
    assert_eq!(town.now().commands.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_proposal_gives_way_to_leave() {
    let (town, decider) = town(PoolPolicy::default(), &[("a", 80.0), ("b", 30.0)]).await;
    seconds(60).await;
    assert_eq!(town.now().commands[0].state, CommandState::Proposed);
    decider.set_policy(&Actor::center(), policy()).await.unwrap();
    seconds(120).await;
    assert_eq!(town.now().commands[0].state, CommandState::Undone);
    assert_eq!(town.now().done(), ["20 % of a to b"]);
}

#[tokio::test(start_paused = true)]
async fn whatever_the_load_does_one_change_in_a_period_and_no_safety_line_passed() {
    for seed in 0..6 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let scaled = PoolPolicy { scale: true, driver: "any".into(), shrink_hold_ms: 60_000, ..policy() };
        let (town, _decider) = town(scaled, &[("a", 40.0), ("b", 40.0), ("c", 40.0)]).await;
        for _ in 0..1500 {
            let group = ["a", "b", "c"][rng.usize(..3)];
            if rng.u8(..4) == 0 {
                town.demand(group, rng.f64() * 130.0);
            }
            if rng.u8(..10) == 0 {
                let mut now = town.now();
                now.failing = rng.u8(..4) == 0;
                now.blind = (rng.u8(..8) == 0).then(|| "3 of 9 agents are not heard of".to_owned());
                let site = now.sites.get_mut(group).unwrap();
                site.confidence = [Confidence::High, Confidence::Medium, Confidence::LowerBound][rng.usize(..3)];
                site.unheard = rng.u8(..5) == 0;
            }
            seconds(rng.u64(1..20)).await;
        }
        let now = town.now();
        let period = Duration::from_millis(PoolPolicy::default().period_ms);
        for group in ["a", "b", "c"] {
            let times: Vec<Instant> =
                now.log.iter().filter(|(_, pools, _)| pools.iter().any(|p| p == group)).map(|(at, ..)| *at).collect();
            assert!(times.windows(2).all(|two| two[1] - two[0] >= period), "seed {seed}: {group} changed too often");
        }
        assert!(now.log.len() > 20, "seed {seed}: only {:?}", now.done());
    }
}

#[tokio::test(start_paused = true)]
async fn an_operators_command_is_not_touched() {
    let (town, decider) = town(policy(), &[("a", 80.0), ("b", 30.0)]).await;
    let theirs = NewCommand {
        action: Action::Move { service: SERVICE.into(), from: "b".into(), to: "a".into(), percent: 1 },
        reason: "trial".into(),
        for_ms: None,
        steps: Vec::new(),
        step_ms: None,
        guard: None,
        expected: None,
    };
    town.now().record("ann", theirs, CommandState::Active);
    seconds(600).await;
    assert!(town.now().log.is_empty());
    assert!(advice(&decider, "a").contains("command 1 of ann is in force"), "{}", advice(&decider, "a"));
    town.now().commands[0].state = CommandState::Undone;
    seconds(60).await;
    assert_eq!(town.now().done(), ["20 % of a to b"]);
}

#[tokio::test(start_paused = true)]
async fn silence_is_not_taken_for_calm() {
    let (town, decider) = town(policy(), &[("a", 80.0), ("b", 30.0)]).await;
    seconds(40).await;
    town.demand("a", 0.0);
    town.now().blind = Some("3 of 9 agents are not heard of".to_owned());
    seconds(600).await;
    assert_eq!(town.now().log.len(), 1, "{:?}", town.now().done());
    town.now().blind = None;
    town.now().sites.get_mut("a").unwrap().unheard = true;
    seconds(600).await;
    assert_eq!(town.now().log.len(), 1, "{:?}", town.now().done());
    town.now().sites.get_mut("a").unwrap().unheard = false;
    seconds(60).await;
    assert_eq!(town.now().done()[1], "1 undone");
    town.demand("a", 90.0);
    town.now().blind = Some("3 of 9 agents are not heard of".to_owned());
    seconds(600).await;
    assert!(advice(&decider, "a").contains("3 of 9 agents"), "{}", advice(&decider, "a"));
    assert_eq!(town.now().log.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_receiver_in_need_gives_back_first() {
    let (town, _decider) = town(policy(), &[("a", 80.0), ("b", 30.0), ("c", 80.0)]).await;
    town.demand("c", 0.0);
    seconds(40).await;
    town.demand("c", 69.0);
    assert_eq!(town.now().done(), ["20 % of a to c"], "where there is the most room");
    // `c` is above its line with it; without, `a` would be too, and `b` has room.
    seconds(300).await;
    assert_eq!(town.now().done().len(), 2);
    assert!(town.now().done()[1].ends_with("of c to b"), "{:?}", town.now().done());
    // `a` could have its calls again.
    town.demand("a", 68.0);
    town.demand("c", 120.0);
    seconds(600).await;
    assert_eq!(town.now().done()[2], "1 undone", "{:?}", town.now().done());
}

#[tokio::test(start_paused = true)]
async fn too_few_instances_are_more_soon_and_too_many_fewer_later() {
    let scaled = PoolPolicy { scale: true, driver: "any".into(), min: 2, max: 14, ..PoolPolicy::default() };
    let (town, decider) = town(scaled, &[("a", 50.0)]).await;
    // 50/s at 10/s each and 30 % to lose are 8 instances, with the margin as well; ten are too many after five minutes.
    seconds(290).await;
    assert!(town.now().log.is_empty());
    seconds(700).await;
    assert_eq!(town.now().done(), ["a from 10 to 8"]);
    town.demand("a", 80.0);
    seconds(20).await;
    assert_eq!(town.now().log.len(), 1, "not before it has lasted");
    seconds(200).await;
    assert_eq!(town.now().done()[1], "a from 8 to 12");
    town.demand("a", 500.0);
    seconds(600).await;
    assert_eq!(town.now().done()[2..], ["a from 12 to 14"], "never above its bounds");
    assert!(advice(&decider, "a").contains("`max` is 14"), "{}", advice(&decider, "a"));
    town.demand("a", 0.0);
    seconds(24 * 3600).await;
    let now = town.now();
    assert_eq!(now.sites["a"].size, 2, "never below them");
    let period = Duration::from_secs(120);
    assert!(now.log.windows(2).all(|two| two[1].0 - two[0].0 >= period));
    assert!(now.done()[3..].iter().all(|what| what.starts_with("a from")), "{:?}", now.done());
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_fails_is_asked_again_by_the_same_name() {
    let scaled = PoolPolicy { scale: true, driver: "any".into(), ..PoolPolicy::default() };
    let (town, decider) = town(scaled, &[("a", 80.0)]).await;
    town.now().failing = true;
    town.now().prompt = false;
    seconds(60).await;
    let tried = town.now().keys.clone();
    assert!((2..6).contains(&tried.len()) && tried.iter().all(|key| *key == tried[0]), "{tried:?}");
    assert!(advice(&decider, "a").contains("the driver does not answer"), "{}", advice(&decider, "a"));
    town.now().failing = false;
    seconds(15).await;
    assert_eq!(town.now().done(), ["a from 10 to 12"]);
    assert_eq!(town.now().keys.last(), Some(&tried[0]));
    // Those that were asked for are waited for, however long they take.
    seconds(900).await;
    assert_eq!(town.now().log.len(), 1, "{:?}", town.now().done());
    assert!(advice(&decider, "a").contains("not there yet"), "{}", advice(&decider, "a"));
    town.now().sites.get_mut("a").unwrap().instances = 12;
    town.demand("a", 100.0);
    seconds(300).await;
    assert_eq!(town.now().done()[1], "a from 12 to 15");
    assert_ne!(town.now().keys.last(), Some(&tried[0]));
}

#[tokio::test(start_paused = true)]
async fn a_lower_bound_lets_nothing_grow() {
    let scaled = PoolPolicy { scale: true, driver: "any".into(), ..policy() };
    let (town, _decider) = town(scaled, &[("a", 99.0), ("b", 1.0)]).await;
    town.now().sites.get_mut("a").unwrap().confidence = Confidence::LowerBound;
    town.now().sites.get_mut("b").unwrap().size = 1;
    town.now().sites.get_mut("b").unwrap().instances = 1;
    seconds(3600).await;
    assert!(town.now().log.is_empty(), "{:?}", town.now().done());
}

#[tokio::test(start_paused = true)]
async fn one_that_takes_over_keeps_the_period() {
    let store: Arc<dyn Store> = Arc::new(Memory::new("one"));
    let (town, first) = town(policy(), &[("a", 80.0), ("b", 30.0)]).await;
    drop(first);
    seconds(5).await;
    let long = PoolPolicy { period_ms: 3_600_000, ..policy() };
    let first = decider(&town, store.clone(), long.clone()).await;
    seconds(60).await;
    assert_eq!(town.now().log.len(), 1);
    drop(first);
    seconds(5).await;
    town.demand("a", 10.0);
    let second = decider(&town, store.clone(), long).await;
    seconds(1800).await;
    assert_eq!(town.now().log.len(), 1, "{:?}", town.now().done());
    assert!(advice(&second, "a").contains("was changed lately"), "{}", advice(&second, "a"));
    seconds(1900).await;
    assert_eq!(town.now().done()[1], "1 undone");
}

#[tokio::test(start_paused = true)]
async fn policies_are_kept_and_forgotten() {
    let store: Arc<dyn Store> = Arc::new(Memory::new("one"));
    let town = Arc::new(Town::default());
    let wide = PoolPolicy { max: 7, ..PoolPolicy::default() };
    let first = decider(&town, store.clone(), wide.clone()).await;
    let actor = Actor::center();
    let own = PoolPolicy { service: "a/b".into(), group: "c".into(), max: 9, ..PoolPolicy::default() };
    first.set_policy(&actor, own.clone()).await.unwrap();
    assert_eq!((first.policy("a/b", "c").max, first.policy("a", "b/c").max), (9, 7));
    let ill = PoolPolicy { warning_percent: -1.0, ..own.clone() };
    assert!(first.set_policy(&actor, ill).await.unwrap_err().message.contains("warning_percent"));
    let second = decider(&town, store.clone(), wide).await;
    assert_eq!(second.policy("a/b", "c"), own);
    assert_eq!(town.now().policies.of("a/b", "c"), own, "estimates obey it");
    second.forget_policy(&actor, "a/b", "c").await.unwrap();
    assert_eq!(second.policy("a/b", "c").max, 7);
    assert!(second.forget_policy(&actor, "", "").await.is_err(), "that one is the file's");
    let wrong = Config { policies: vec![PoolPolicy { min: 3, max: 1, ..PoolPolicy::default() }], ..Config::default() };
    let third = Decider::on(wrong, store.clone(), town.clone(), Audit::new(store));
    assert!(third.load().await.unwrap_err().to_string().contains("policies[0]"));
}

impl Town {
    /// A pool has so many instances from now on; those that it had are known to be lost, or are simply gone.
    fn instances(&self, group: &str, instances: u32, known: bool) {
        let mut now = self.now();
        let site = now.sites.get_mut(group).unwrap();
        (site.instances, site.known, site.seen) = (instances, known, true);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_lost_its_last_instance_gives_its_calls_and_gets_them_back_warm() {
    for known in [true, false] {
        let (town, decider) = town(policy(), &[("a", 50.0), ("b", 10.0)]).await;
        seconds(60).await;
        town.instances("a", 0, known);
        seconds(20).await;
        assert!(town.now().log.is_empty(), "not before it has lasted");
        seconds(15).await;
        assert_eq!(town.now().done(), ["100 % of a to b"], "known: {known}");
        let reason = town.now().commands[0].asked.reason.clone();
        assert!(reason.starts_with("no instance can be called in a, callers want 50/s; b stays below"), "{reason}");
        seconds(1800).await;
        assert_eq!(town.now().log.len(), 1);
        // Too few for what callers want, then enough, then for long enough.
        town.instances("a", 4, known);
        seconds(600).await;
        assert_eq!(town.now().log.len(), 1, "{:?}", town.now().done());
        assert!(advice(&decider, "a").contains("(now 125 %)"), "{}", advice(&decider, "a"));
        town.instances("a", 10, known);
        seconds(80).await;
        assert_eq!(town.now().log.len(), 1, "they are not warm");
        seconds(15).await;
        assert_eq!(town.now().done(), ["100 % of a to b", "1 undone"]);
        seconds(3600).await;
        assert_eq!(town.now().log.len(), 2);
        assert_eq!(advice(&decider, "a"), "");
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_no_room_elsewhere_stays_and_that_is_said() {
    let (town, decider) = town(policy(), &[("a", 80.0), ("b", 30.0), ("c", 50.0)]).await;
    town.instances("a", 0, true);
    // It was never seen serving: what its callers try says what they want.
    seconds(35).await;
    assert_eq!(town.now().done(), ["37 % of a to b"]);
    assert!(town.now().commands[0].asked.reason.contains("no room for the rest"));
    seconds(120).await;
    assert_eq!(town.now().done(), ["37 % of a to b", "19 % of a to c"], "a period later, where there is room still");
    seconds(3600).await;
    assert_eq!(town.now().log.len(), 2, "{:?}", town.now().done());
    let said = advice(&decider, "a");
    assert!(said.contains("callers want 41/s; no other group has room below its safety line"), "{said}");
    // Back again: one after the other, as far as it can take it.
    town.instances("a", 10, true);
    seconds(3600).await;
    assert_eq!(town.now().done()[2..], ["2 undone"]);
    town.demand("a", 60.0);
    seconds(300).await;
    assert_eq!(town.now().done()[3..], ["1 undone"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_moved_away_from_a_pool_that_only_seems_lost() {
    let (town, decider) = town(policy(), &[("a", 50.0), ("b", 10.0)]).await;
    seconds(60).await;
    // The centre is cut off from its agents, and callers reach it.
    town.now().reached = true;
    town.instances("a", 0, true);
    seconds(600).await;
    assert!(advice(&decider, "a").contains("callers still reach it"), "{}", advice(&decider, "a"));
    // Nobody is heard of at all.
    town.now().reached = false;
    town.now().blind = Some("3 of 9 agents are not heard of".to_owned());
    seconds(600).await;
    assert!(advice(&decider, "a").contains("3 of 9 agents are not heard of"), "{}", advice(&decider, "a"));
    assert!(town.now().log.is_empty(), "{:?}", town.now().done());
    // Nobody calls.
    town.now().blind = None;
    town.instances("a", 10, true);
    town.demand("a", 0.0);
    seconds(10).await;
    town.instances("a", 0, true);
    seconds(600).await;
    assert!(advice(&decider, "a").contains("nobody calls it"), "{}", advice(&decider, "a"));
    assert!(town.now().log.is_empty(), "{:?}", town.now().done());
}

#[tokio::test(start_paused = true)]
async fn a_lost_pool_without_leave_is_a_proposal_and_one_that_takes_over_knows_what_was_wanted() {
    let (town, decider) = town(PoolPolicy::default(), &[("a", 50.0), ("b", 10.0)]).await;
    seconds(60).await;
    town.instances("a", 0, true);
    seconds(300).await;
    {
        let now = town.now();
        assert_eq!(now.commands.len(), 1, "{:?}", now.commands);
        assert!(matches!(now.commands[0].asked.action, Action::Move { percent: 100, .. }), "{:?}", now.commands[0]);
        assert_eq!(now.commands[0].state, CommandState::Proposed);
    }
    assert!(advice(&decider, "a").contains("proposal 1 to move 100 % waits"), "{}", advice(&decider, "a"));
    // They are back before anybody looked.
    town.instances("a", 10, true);
    seconds(60).await;
    assert_eq!(town.now().commands[0].state, CommandState::Undone);
    drop(decider);
    seconds(5).await;
    let store: Arc<dyn Store> = Arc::new(Memory::new("one"));
    let first = self::decider(&town, store.clone(), policy()).await;
    seconds(60).await;
    town.instances("a", 0, true);
    seconds(60).await;
    assert_eq!(town.now().done(), ["100 % of a to b"]);
    drop(first);
    seconds(5).await;
    let _second = self::decider(&town, store, policy()).await;
    town.instances("a", 6, true);
    seconds(1800).await;
    assert_eq!(town.now().log.len(), 1, "six would be at 83 %: {:?}", town.now().done());
    town.instances("a", 10, true);
    seconds(300).await;
    assert_eq!(town.now().done()[1], "2 undone");
}
