//! Services, groups and instances: registered by agents, kept alive by heartbeats, watched by agents, taken out
//! and brought back by operators. Answers come from memory.
//!
//! What agents and operators say is durable before it is answered (`write`); heartbeats are not kept (`leases`). Lists
//! are made once for each change and sent to all who wait for them (`catalog`, `watchers`, `sync`).

mod api;
mod catalog;
mod check;
mod follow;
mod leases;
mod pages;
mod record;
mod sync;
mod watchers;
mod write;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_shared;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use model::{
    ServiceKey, Snapshot,
    center::{CommandScope, Heartbeat, HeartbeatAnswer, InstanceRow, Stamp},
};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::watch;

use self::{catalog::Catalog, leases::Leases, record::Place, watchers::Watchers, write::Word};
use crate::{audit::Audit, auth::Actor, error::Error, store::Store};

pub use self::api::routes;

/// `registry:` of the centre's file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of this centre among several on one store; the file says it at its top.
    #[serde(skip)]
    pub center: String,
    /// Agents at most.
    pub agents: usize,
    /// Services at most.
    pub services: usize,
    /// Instances at most, in all services.
    pub instances: usize,
    /// Services that one agent may register.
    pub per_agent: usize,
    /// Services and command texts that one agent may follow.
    pub watched: usize,
    /// Requests a second that one agent may make, four times as many after a rest; registering counts as ten.
    pub requests: u32,
    /// How long an instance is kept after its agent was lost.
    #[serde(deserialize_with = "model::kind::duration")]
    pub forget: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            center: String::new(),
            agents: 20_000,
            services: 20_000,
            instances: 200_000,
            per_agent: 2_000,
            watched: 10_000,
            requests: 50,
            forget: Duration::from_secs(3600),
        }
    }
}

/// All that is registered.
pub struct Registry {
    me: Weak<Self>,
    config: Config,
    store: Arc<dyn Store>,
    audit: Arc<Audit>,
    catalog: Catalog,
    leases: Arc<Leases>,
    watchers: Arc<Watchers>,
    changed: watch::Sender<u64>,
    ahead: Mutex<Option<(String, Stamp)>>,
}

impl Registry {
    /// From what it builds on.
    pub fn new(config: Config, store: Arc<dyn Store>, audit: Arc<Audit>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            leases: Leases::new(&config),
            config,
            store,
            audit,
            catalog: Catalog::default(),
            watchers: Arc::default(),
            changed: watch::Sender::new(0),
            ahead: Mutex::default(),
        })
    }

    fn arc(&self) -> Arc<Self> {
        self.me.upgrade().expect("whoever calls holds it")
    }

    /// Reads what is kept. Nothing is answered before. From then on, what other centres on the same store change is
    /// followed, and agents that are silent for too long are lost.
    ///
    /// # Errors
    /// The store cannot be read, or holds what is no registration.
    pub async fn load(&self) -> anyhow::Result<()> {
        follow::load(&self.arc()).await
    }

    /// Answers all long polls, and lets no more wait: this centre ends.
    pub fn close(&self) {
        self.watchers.close();
    }

    /// Everything that an agent registered lives on.
    ///
    /// # Errors
    /// It may not speak for that name, asks too often, or the store does not take that this centre hears it now.
    pub async fn heartbeat(&self, actor: &Actor, beat: &Heartbeat) -> Result<HeartbeatAnswer, Error> {
        check::name("agent", &beat.agent)?;
        actor.may_speak_for(&beat.agent)?;
        self.leases.admit(&beat.agent, 1.0)?;
        // Another centre may have lost it before it came here.
        if self.catalog.has_lost(&beat.agent) {
            return Ok(HeartbeatAnswer { known: false, generation: self.leases.record(&beat.agent).generation });
        }
        let (answer, moved) = self.leases.heartbeat(&beat.agent, beat.generation, &self.config.center);
        if let Some(record) = moved {
            self.take_over(beat.agent.clone(), record).await?;
        }
        Ok(answer)
    }

    /// Every service in every group, sorted; versions are left empty.
    pub fn keys(&self) -> Vec<ServiceKey> {
        self.catalog.keys()
    }

    /// The instances that callers of `key` may use; an empty group means all groups. Cheap: shared.
    /// [`Snapshot::revision`] names the contents: another list has another one, and the same list the same again.
    pub fn snapshot(&self, key: &ServiceKey) -> Arc<Snapshot> {
        self.catalog.view(key).snapshot.clone()
    }

    /// All instances of `key`, those that callers may not use included; an empty group means all groups, the version
    /// is not looked at. Figures and capacities are left empty.
    pub fn rows(&self, key: &ServiceKey) -> Vec<InstanceRow> {
        let all = self.catalog.instances(key);
        all.iter().map(|(group, held)| pages::row(group, held, &self.leases)).collect()
    }

    /// How many services an agent registered.
    pub fn registered_by(&self, agent: &str) -> u32 {
        u32::try_from(self.catalog.count_of_agent(agent)).unwrap_or(u32::MAX)
    }

    /// The highest stamp that an agent said it took from any centre; zero before it followed anything here.
    pub fn taken_by(&self, agent: &str) -> Stamp {
        self.leases.taken(agent)
    }

    /// The revision, now and at every change of a registration or of what operators said of one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Takes an instance out (`Some` with the reason) or brings it back. It holds until it is taken back, over
    /// restarts and new registrations; bringing back ends draining too.
    ///
    /// # Errors
    /// There is no such instance, the actor may not, or the store did not take it.
    pub async fn take_out(
        &self,
        actor: &Actor,
        key: &ServiceKey,
        address: &str,
        out: Option<&str>,
    ) -> Result<(), Error> {
        let what = if out.is_some() { "instance.out" } else { "instance.in" };
        let out = out.map(str::to_owned);
        let word = Word { actor, what, detail: serde_json::json!({"reason": out}), fenced: None };
        self.mark(word, Place::new(key, address), move |mark| {
            if out.is_none() {
                mark.drain = None;
            }
            mark.out.clone_from(&out);
        })
        .await
    }

    /// Lets an instance end what it does: its weight is 0 until it is brought back by [`Registry::take_out`].
    ///
    /// # Errors
    /// As [`Registry::take_out`].
    pub async fn drain(&self, actor: &Actor, key: &ServiceKey, address: &str, reason: &str) -> Result<(), Error> {
        let detail = serde_json::json!({"reason": reason});
        let reason = reason.to_owned();
        let change = move |mark: &mut record::Mark| mark.drain = Some(reason.clone());
        let word = Word { actor, what: "instance.drain", detail, fenced: None };
        self.mark(word, Place::new(key, address), change).await
    }

    /// Gives an instance another weight than it registered with, or its own again.
    ///
    /// # Errors
    /// As [`Registry::take_out`]; a weight above 100,000.
    pub async fn set_weight(
        &self,
        actor: &Actor,
        key: &ServiceKey,
        address: &str,
        weight: Option<u32>,
    ) -> Result<(), Error> {
        if let Some(weight) = weight.filter(|weight| *weight > record::MAX_WEIGHT) {
            return Err(Error::bad(format!("weight {weight} of `{address}`"), "give 0 to 100,000"));
        }
        let detail = serde_json::json!({"weight": weight});
        let word = Word { actor, what: "instance.weight", detail, fenced: None };
        self.mark(word, Place::new(key, address), move |mark| mark.weight = weight).await
    }

    /// As [`Registry::set_weight`], on behalf of the centre that leads in `epoch`: nothing is changed when another one
    /// does.
    ///
    /// # Errors
    /// As [`Registry::take_out`].
    pub async fn warm(&self, key: &ServiceKey, address: &str, weight: Option<u32>, epoch: u64) -> Result<(), Error> {
        let (actor, detail) = (Actor::center(), serde_json::json!({"weight": weight}));
        let word = Word { actor: &actor, what: "instance.weight", detail, fenced: Some(epoch) };
        self.mark(word, Place::new(key, address), move |mark| mark.weight = weight).await
    }

    /// The command text of a scope, and its revision (0: there never was one).
    pub fn text(&self, scope: &CommandScope) -> (u64, Option<String>) {
        self.catalog.text(scope).map_or((0, None), |text| (text.revision, text.text.clone()))
    }
}
