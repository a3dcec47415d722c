//! What policy decides: moving traffic away from pools above their line and back again, growing and shrinking them.
//!
//! Each look goes over all services: `plan` says what to do, this does it, one thing at a time for each service. That
//! a pool is changed is kept before it is changed, so that a centre that takes over knows.

mod api;
mod keep;
mod plan;
mod world;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use model::center::{Action, CommandRecord, NewCommand, Pool, PoolPolicy};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;

pub use self::api::routes;
use self::{
    plan::{Act, Standing, View},
    world::{Held, Parts, World},
};
use crate::{
    audit::Audit,
    auth::Actor,
    capacity::{Capacities, Policies, policy},
    clock,
    command::Commands,
    error::Error,
    scale::Scalers,
    store::{Leadership, Store},
};

/// What failed is tried again after this.
const RETRY: Duration = Duration::from_secs(10);

/// Nothing that is done takes longer.
const PATIENCE: Duration = Duration::from_secs(90);

/// Pools from which on the time is watched that looks take.
const MANY: usize = 200;

/// Share of one core that they may take.
const SHARE: f64 = 0.1;

/// Most policies that are kept.
const POLICIES: usize = 40_000;

/// Largest options of a driver in a policy, bytes.
const OPTIONS: usize = 64 << 10;

/// `pools:` of the centre's file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How often is looked at all pools.
    #[serde(deserialize_with = "model::kind::duration")]
    pub every: Duration,
    /// Policies; those written over the API go before them.
    pub policies: Vec<PoolPolicy>,
}

impl Default for Config {
    fn default() -> Self {
        Self { every: Duration::from_secs(2), policies: Vec::new() }
    }
}

/// Policies of pools, and what is done about them.
pub struct Decider {
    config: Config,
    store: Arc<dyn Store>,
    world: Arc<dyn World>,
    audit: Arc<Audit>,
    policies: Mutex<Written>,
    standings: Mutex<HashMap<(String, String), Standing>>,
}

/// Policies by where they were written.
#[derive(Default)]
struct Written {
    kept: BTreeMap<(String, String), PoolPolicy>,
    /// The file's, and the kept ones over them.
    all: Arc<Policies>,
}

impl Decider {
    /// From what it builds on.
    pub fn new(
        config: Config,
        store: Arc<dyn Store>,
        capacity: Arc<Capacities>,
        commands: Arc<Commands>,
        scalers: Arc<Scalers>,
        audit: Arc<Audit>,
    ) -> Arc<Self> {
        Self::on(config, store, Arc::new(Parts { capacity, commands, scalers }), audit)
    }

    fn on(config: Config, store: Arc<dyn Store>, world: Arc<dyn World>, audit: Arc<Audit>) -> Arc<Self> {
        let (policies, standings) = (Mutex::default(), Mutex::default());
        Arc::new(Self { config, store, world, audit, policies, standings })
    }

    /// Reads policies, and decides from now on while this centre leads. Ends with the last handle.
    ///
    /// # Errors
    /// A policy of the file cannot be obeyed, or the store cannot be read.
    pub async fn load(self: &Arc<Self>) -> anyhow::Result<()> {
        for (i, one) in self.config.policies.iter().enumerate() {
            policy::check(one).map_err(|error| anyhow::anyhow!("pools: policies[{i}]: {error}"))?;
        }
        anyhow::ensure!(!self.config.every.is_zero(), "pools: every: 0 is no pause; write 2s");
        self.read_policies().await?;
        let (weak, every) = (Arc::downgrade(self), self.config.every);
        let mut leadership = self.store.leadership();
        let mut others = self.store.changes();
        tokio::spawn(async move {
            let (mut epoch, mut pause) = (None, Duration::ZERO);
            loop {
                tokio::time::sleep(pause).await;
                let Some(decider) = weak.upgrade() else { return };
                if changed(&mut others)
                    && let Err(error) = decider.read_policies().await
                {
                    tracing::warn!(%error, "policies of pools could not be read again");
                }
                let now = leadership.borrow_and_update().clone();
                let begun = std::time::Instant::now();
                decider.led(&now, &mut epoch).await;
                // Where there are so many pools that a look takes long, there are fewer looks.
                let many = decider.world.keys().len() > MANY;
                pause = if many { every.max(begun.elapsed().div_f64(SHARE)) } else { every };
            }
        });
        Ok(())
    }

    /// One look, if this centre leads. Whoever begins to lead begins with what was kept.
    async fn led(self: &Arc<Self>, now: &Leadership, epoch: &mut Option<u64>) {
        if !now.leads {
            if epoch.take().is_some() {
                self.standings.lock().clear();
            }
            return;
        }
        if *epoch != Some(now.epoch) {
            match keep::decisions(&self.store).await {
                Ok(kept) => self.begin(kept),
                Err(error) => {
                    tracing::warn!(%error, "earlier decisions could not be read; nothing is decided before");
                    return;
                }
            }
            *epoch = Some(now.epoch);
        }
        self.look(now.epoch).await;
    }

    fn begin(&self, kept: Vec<keep::Decision>) {
        let mut standings = self.standings.lock();
        standings.clear();
        for one in kept {
            let standing = Standing::after(one.moment(), one.changes, one.demand);
            standings.insert((one.service, one.group), standing);
        }
    }

    async fn read_policies(&self) -> Result<(), Error> {
        let kept = keep::policies(&self.store).await?;
        self.obey(|written| written.kept = kept);
        Ok(())
    }

    /// Changes what was written, and lets everyone obey it.
    fn obey(&self, change: impl FnOnce(&mut Written)) {
        let mut written = self.policies.lock();
        change(&mut written);
        let mut all = Policies::default();
        for one in self.config.policies.iter().chain(written.kept.values()) {
            all.set(one.clone());
        }
        written.all = Arc::new(all);
        self.world.govern(written.all.clone());
    }

    /// The policy of a pool; the usual one when nobody wrote one.
    pub fn policy(&self, service: &str, group: &str) -> PoolPolicy {
        let all = self.policies();
        all.of(service, group)
    }

    /// All policies that were written.
    pub fn policies(&self) -> Arc<Policies> {
        self.policies.lock().all.clone()
    }

    /// Replaces the policy of a pool; without a service or a group it is that of all without one of their own.
    ///
    /// # Errors
    /// It cannot be obeyed, or the store did not take it.
    pub async fn set_policy(&self, actor: &Actor, policy: PoolPolicy) -> Result<(), Error> {
        let target = format!("{}/{}", policy.group, policy.service);
        let checked = policy::check(&policy).and_then(|()| {
            let written = self.policies.lock();
            let name = (policy.service.clone(), policy.group.clone());
            if written.kept.len() >= POLICIES && !written.kept.contains_key(&name) {
                return Err(Error::bad(
                    format!("there are {POLICIES} policies"),
                    "write one for all groups or services",
                ));
            }
            if policy.options.to_string().len() > OPTIONS {
                return Err(Error::bad("`options` is too large", format!("write at most {OPTIONS} bytes")));
            }
            Ok(())
        });
        let outcome = checked.as_ref().err().map_or_else(|| "ok".to_owned(), ToString::to_string);
        let detail = serde_json::to_value(&policy).unwrap_or_default();
        self.audit.record(actor, "pool.policy", &target, &outcome, detail).await?;
        checked?;
        keep::put_policy(&self.store, &policy.service, &policy.group, Some(&policy)).await?;
        self.obey(|written| {
            written.kept.insert((policy.service.clone(), policy.group.clone()), policy);
        });
        Ok(())
    }

    /// Forgets a policy that was written over the API; one of the file, or a wider one, holds again.
    ///
    /// # Errors
    /// There is none, or the store did not take it.
    pub async fn forget_policy(&self, actor: &Actor, service: &str, group: &str) -> Result<(), Error> {
        let name = (service.to_owned(), group.to_owned());
        if !self.policies.lock().kept.contains_key(&name) {
            return Err(Error::not_found(
                format!("no policy of `{service}` in group `{group}` was written over the API"),
                "look at /v1/pools for those there are; those of the centre's file are changed there",
            ));
        }
        let target = format!("{group}/{service}");
        self.audit.record(actor, "pool.policy.forget", &target, "ok", serde_json::Value::Null).await?;
        keep::put_policy(&self.store, service, group, None).await?;
        self.obey(|written| {
            written.kept.remove(&name);
        });
        Ok(())
    }

    /// The pool as it is now, with what is advised.
    pub fn pool(&self, service: &str, group: &str) -> Option<Pool> {
        let policy = self.policy(service, group);
        let known = self.world.pool(&policy);
        let standings = self.standings.lock();
        let standing = standings.get(&(service.to_owned(), group.to_owned()));
        let was_there = standing.is_some_and(|standing| standing.was_there(Instant::now()));
        let mut pool = known.or_else(|| was_there.then(|| Pool { level: "fatal".to_owned(), ..empty(&policy) }))?;
        pool.advice = standing.filter(|s| !s.advice.is_empty()).map(|s| s.advice.join("; "));
        Some(pool)
    }

    /// Looks at all pools once, and begins what is to be done.
    async fn look(self: &Arc<Self>, epoch: u64) {
        let blind = self.world.blind();
        let policies = self.policies();
        let begun: BTreeSet<(String, String)> = policies.iter().filter(|policy| begins(policy)).map(name).collect();
        let mut keys = self.world.keys();
        keys.extend(begun.iter().cloned());
        keys.sort_unstable();
        keys.dedup();
        {
            // Pools that are gone are forgotten once their period is over: they may come back.
            let day = Duration::from_secs(24 * 3600);
            let gone = |name: &(String, String)| keys.binary_search(name).is_err();
            let waits = |s: &Standing| s.busy || s.retry.is_some_and(|retry| Instant::now() < retry);
            let there = |s: &Standing| s.was_there(Instant::now());
            let old = |s: &Standing| !waits(s) && !there(s) && s.changed.is_none_or(|at| at.elapsed() > day);
            self.standings.lock().retain(|name, standing| !gone(name) || !old(standing));
        }
        for groups in keys.chunk_by(|a, b| a.0 == b.0) {
            let views: Vec<View> = groups
                .iter()
                .filter_map(|(service, group)| {
                    let policy = policies.of(service, group);
                    self.view(&policy, begun.contains(&name(&policy)))
                })
                .collect();
            if !views.is_empty() {
                self.decide(&groups[0].0, views, blind.as_deref(), epoch);
            }
            tokio::task::yield_now().await;
        }
    }

    /// A pool as it is now; one that lost its last instance lately is there, too, and one that is to begin.
    fn view(&self, policy: &PoolPolicy, begins: bool) -> Option<View> {
        let held = self.world.held(policy);
        let now = Instant::now();
        let was_there = {
            let mut all = self.standings.lock();
            if held == Held::Usable {
                all.entry(name(policy)).or_default().usable = Some(now);
            }
            all.get(&name(policy)).is_some_and(|standing| standing.was_there(now))
        };
        let lost = held == Held::Unusable || (held == Held::Nothing && was_there);
        let pool = self.world.pool(policy).or_else(|| (lost || begins).then(|| empty(policy)))?;
        let (unheard, answered) = (self.world.unheard(policy), self.world.answered(policy));
        Some(View { unheard, lost, answered, warm_up: self.world.warm_up(policy), pool })
    }

    /// Decides on one service.
    fn decide(self: &Arc<Self>, service: &str, views: Vec<View>, blind: Option<&str>, epoch: u64) {
        let commands = self.world.commands(service);
        let names: Vec<_> = views.iter().map(|v| (v.pool.service.clone(), v.pool.group.clone())).collect();
        let mut all = self.standings.lock();
        let mut standings: Vec<Standing> =
            names.iter().map(|name| all.get(name).cloned().unwrap_or_default()).collect();
        if standings.iter().any(|standing| standing.busy) {
            return;
        }
        let author = self.world.author();
        let acts = plan::plan(service, &views, &mut standings, &commands, &author, blind, Instant::now());
        if !acts.is_empty() {
            standings.iter_mut().for_each(|standing| standing.busy = true);
        }
        all.extend(names.iter().cloned().zip(standings));
        drop(all);
        if !acts.is_empty() {
            self.begin_acts(names, views, acts, epoch);
        }
    }

    /// Does what was decided about these pools, which are busy until it is done.
    fn begin_acts(self: &Arc<Self>, names: Vec<(String, String)>, views: Vec<View>, acts: Vec<Act>, epoch: u64) {
        let this = self.clone();
        tokio::spawn(async move {
            for act in acts {
                let done = tokio::time::timeout(PATIENCE, this.carry_out(&views, &act, epoch)).await;
                let done =
                    done.unwrap_or_else(|_| Err(Error::internal("it took too long", "look at the centre's log")));
                this.settle(&views, &act, done);
            }
            let mut all = this.standings.lock();
            names.iter().for_each(|name| {
                if let Some(standing) = all.get_mut(name) {
                    standing.busy = false;
                }
            });
        });
    }

    /// Does it.
    async fn carry_out(&self, views: &[View], act: &Act, epoch: u64) -> Result<Done, Error> {
        match act {
            Act::Move { from, to, percent, propose, reason } => {
                let (from, to) = (&views[*from].pool, &views[*to].pool);
                let action = Action::Move {
                    service: from.service.clone(),
                    from: from.group.clone(),
                    to: to.group.clone(),
                    percent: *percent,
                };
                let given = if *propose {
                    match self.propose(action, reason).await? {
                        Ok(given) => given,
                        Err(declined) => return Ok(declined),
                    }
                } else {
                    self.keep(&[from, to], &format!("{percent} % of {} to {}", from.group, to.group), epoch).await?;
                    self.world.give(order(action, reason), false).await?
                };
                tracing::info!(
                    service = from.service,
                    from = from.group,
                    to = to.group,
                    percent,
                    proposed = propose,
                    command = given.id,
                    "decided to move traffic"
                );
                Ok(Done::Changed)
            }
            Act::Undo { id, pools, reason } => {
                let changed: Vec<&Pool> = pools.iter().map(|i| &views[*i].pool).collect();
                if !changed.is_empty() {
                    self.keep(&changed, &format!("command {id} taken back"), epoch).await?;
                }
                self.world.undo(*id, reason).await?;
                tracing::info!(command = id, reason, "decided to take a command back");
                Ok(Done::Changed)
            }
            Act::Scale { pool, wanted, propose, reason } => {
                let pool = &views[*pool].pool;
                let size = self.world.size(&pool.policy).await?;
                // Those that were asked for and are not there yet count, whoever else runs instances of this pool.
                let coming = pool.instances.max(size);
                let grows = *wanted > pool.instances;
                let wanted = if grows {
                    size + wanted.saturating_sub(coming)
                } else {
                    size.saturating_sub(coming.saturating_sub(*wanted))
                };
                let wanted = wanted.clamp(pool.policy.min, pool.policy.max);
                if wanted == size {
                    return Ok(Done::Nothing("instances that were asked for are not there yet"));
                }
                if grows != (wanted > size) {
                    return Ok(Done::Nothing("its driver does not run the instances that are too many"));
                }
                if *propose {
                    let (service, group) = (pool.service.clone(), pool.group.clone());
                    let action = Action::Scale { service, group, from: size, to: wanted };
                    return Ok(match self.propose(action, reason).await? {
                        Ok(given) => {
                            let command = given.id;
                            tracing::info!(pool.service, pool.group, size, wanted, command, "proposed to scale");
                            Done::Changed
                        }
                        Err(declined) => declined,
                    });
                }
                let changes = self.keep(&[pool], &format!("from {size} to {wanted} instances"), epoch).await?;
                let key = format!("{}@{}-{epoch}-{changes}-{wanted}", pool.service, pool.group);
                self.world.scale(&pool.policy, wanted, &key, reason).await?;
                tracing::info!(service = pool.service, group = pool.group, size, wanted, "decided to scale");
                Ok(Done::Changed)
            }
        }
    }

    /// Proposes it, unless people have turned the like down lately.
    async fn propose(&self, action: Action, reason: &str) -> Result<Result<CommandRecord, Done>, Error> {
        if let Some((declined, left)) = self.world.declined(&action).await? {
            let by = declined.ended.as_ref().map_or("somebody", |(_, by, _)| by.as_str());
            let why = format!("proposal {} was turned down by {by}", declined.id);
            return Ok(Err(Done::Declined { left, why }));
        }
        self.world.give(order(action, reason), true).await.map(Ok)
    }

    /// Keeps that these pools are changed now. Answers how often the first was.
    async fn keep(&self, pools: &[&Pool], what: &str, epoch: u64) -> Result<u64, Error> {
        let made: Vec<keep::Decision> = {
            let all = self.standings.lock();
            let row = |pool: &&Pool| {
                let standing = all.get(&(pool.service.clone(), pool.group.clone()));
                keep::Decision {
                    service: pool.service.clone(),
                    group: pool.group.clone(),
                    at_ms: clock::now_ms(),
                    changes: standing.map_or(0, |standing| standing.changes) + 1,
                    what: what.to_owned(),
                    demand: standing.and_then(|standing| standing.demand),
                }
            };
            pools.iter().map(row).collect()
        };
        keep::put_decisions(&self.store, epoch, &made).await?;
        Ok(made.first().map_or(0, |one| one.changes))
    }

    /// Remembers what became of it.
    fn settle(&self, views: &[View], act: &Act, done: Result<Done, Error>) {
        let now = Instant::now();
        let mut all = self.standings.lock();
        let mut of = |i: usize, change: &dyn Fn(&mut Standing)| {
            let pool = &views[i].pool;
            if let Some(standing) = all.get_mut(&(pool.service.clone(), pool.group.clone())) {
                change(standing);
            }
        };
        let concerned = || act.pools().into_iter().chain(act.about());
        match done {
            Ok(Done::Changed) => {
                concerned().for_each(|i| of(i, &|standing| (standing.trouble, standing.retry) = (None, None)));
                for i in act.pools() {
                    of(i, &|standing| {
                        standing.changed = Some(now);
                        standing.changes += 1;
                    });
                }
            }
            Ok(Done::Nothing(why)) => concerned().for_each(|i| {
                of(i, &|standing| {
                    standing.retry = Some(now + RETRY);
                    standing.trouble = Some(why.to_owned());
                });
            }),
            Ok(Done::Declined { left, why }) => {
                let Some(kind) = act.proposes() else { return };
                concerned().for_each(|i| {
                    of(i, &|standing| standing.declined[kind as usize] = Some((now + left, why.clone())));
                });
            }
            Err(error) => {
                tracing::warn!(?act, %error, "what was decided could not be done");
                let trouble = format!("what was decided could not be done: {error}");
                for i in concerned() {
                    of(i, &|standing| {
                        standing.trouble = Some(trouble.clone());
                        standing.retry = Some(now + RETRY);
                    });
                }
            }
        }
    }
}

/// What became of something that was decided.
#[derive(Clone, Debug, PartialEq)]
enum Done {
    /// It is done, or proposed.
    Changed,
    /// There is nothing that the driver could be asked for.
    Nothing(&'static str),
    /// People turned the like of it down; it is not proposed for so long.
    Declined { left: Duration, why: String },
}

/// A command of the centre's own.
fn order(action: Action, reason: &str) -> NewCommand {
    NewCommand {
        action,
        reason: reason.to_owned(),
        for_ms: None,
        steps: Vec::new(),
        step_ms: None,
        guard: None,
        expected: None,
    }
}

fn name(policy: &PoolPolicy) -> (String, String) {
    (policy.service.clone(), policy.group.clone())
}

/// Whether a policy wants instances of its pool although nobody has registered one: those of a service that starts with
/// its centre, and those whose last instance is gone.
fn begins(policy: &PoolPolicy) -> bool {
    let named = !policy.service.is_empty() && !policy.group.is_empty();
    named && policy.min > 0 && !policy.driver.is_empty()
}

/// A pool of which nothing is registered.
fn empty(policy: &PoolPolicy) -> Pool {
    Pool {
        service: policy.service.clone(),
        group: policy.group.clone(),
        instances: 0,
        rate: 0.0,
        bands: Vec::new(),
        load: 0.0,
        capacity: None,
        water_percent: None,
        redundancy_percent: None,
        level: "unknown".to_owned(),
        policy: policy.clone(),
        advice: None,
    }
}

/// Whether other centres wrote policies, or may have.
fn changed(others: &mut Option<tokio::sync::broadcast::Receiver<Arc<crate::store::Changes>>>) -> bool {
    use tokio::sync::broadcast::error::TryRecvError;
    let Some(receiver) = others else { return false };
    let mut any = false;
    loop {
        match receiver.try_recv() {
            Ok(changes) => {
                let keys = changes.put.iter().map(|entry| &entry.key).chain(&changes.delete);
                any |= keys.into_iter().any(|key| key.starts_with(keep::POLICIES));
            }
            Err(TryRecvError::Lagged(_)) => any = true,
            Err(TryRecvError::Empty | TryRecvError::Closed) => return any,
        }
    }
}
