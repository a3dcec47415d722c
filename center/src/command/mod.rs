//! Orders: switches of traffic, routes, canaries, degrade, switchers, drains; with author, reason, steps, guard,
//! time of validity, history and undo.
//!
//! Each command in force is a layer of the command texts of the groups it concerns (`layers`); one that ends takes
//! its layer away and leaves the others. Only the centre that leads changes anything.

mod asked;
mod foresee;
mod give;
mod guard;
mod kept;
mod layers;
mod meant;
mod preview;
mod publish;
mod resize;
mod routes;
mod run;
mod site;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use model::center::{Action, CommandRecord, CommandScope, CommandState, NewCommand, Preview};
use parking_lot::Mutex;
use serde::Deserialize;

use self::{asked::About, kept::Kept, publish::Publisher, run::Runs, site::Site};
pub use self::{publish::SiteRegistry, routes::routes};
use crate::{
    audit::Audit,
    auth::Actor,
    capacity::Capacities,
    error::{Code, Error},
    monitor::Monitor,
    registry::Registry,
    scale::Scalers,
    store::Store,
};

/// `commands:` of the centre's file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Registries of the site that commands are written to as well, for agents and clients that listen there.
    pub registries: Vec<SiteRegistry>,
    /// How long a proposal waits for somebody; zero: for ever.
    #[serde(deserialize_with = "model::kind::duration")]
    pub proposals: Duration,
}

impl Default for Config {
    fn default() -> Self {
        // What was worked out from figures of an hour ago is no advice any more.
        Self { registries: Vec::new(), proposals: Duration::from_secs(3600) }
    }
}

/// All commands, in force and past.
pub struct Commands {
    config: Config,
    store: Arc<dyn Store>,
    site: Arc<dyn Site>,
    audit: Arc<Audit>,
    state: Mutex<State>,
    /// Held by whoever changes texts: one after the other.
    busy: tokio::sync::Mutex<()>,
    runs: Mutex<Runs>,
    publisher: ArcSwap<Publisher>,
}

/// The turn of whoever changes texts: one after the other, and only while this centre leads.
struct Turn<'a> {
    _busy: tokio::sync::MutexGuard<'a, ()>,
    /// What everything that is written in it is fenced by.
    epoch: u64,
}

/// What is known without asking the store.
#[derive(Debug, Default)]
struct State {
    /// In force or proposed, by number.
    open: BTreeMap<u64, Kept>,
    /// Proposals that drivers carry out at the moment.
    doing: BTreeSet<u64>,
    highest: u64,
    revision: u64,
}

impl Commands {
    /// From what it builds on.
    pub fn new(
        config: Config,
        store: Arc<dyn Store>,
        registry: Arc<Registry>,
        monitor: Arc<Monitor>,
        capacity: Arc<Capacities>,
        scalers: Arc<Scalers>,
        audit: Arc<Audit>,
    ) -> Arc<Self> {
        Self::on(config, store, Arc::new(site::Parts { registry, monitor, capacity, scalers }), audit)
    }

    fn on(config: Config, store: Arc<dyn Store>, site: Arc<dyn Site>, audit: Arc<Audit>) -> Arc<Self> {
        Arc::new(Self {
            config,
            store,
            site,
            audit,
            state: Mutex::default(),
            busy: tokio::sync::Mutex::default(),
            runs: Mutex::default(),
            publisher: ArcSwap::default(),
        })
    }

    /// Reads what is kept, and goes on with what was in the middle of its steps.
    ///
    /// # Errors
    /// The store cannot be read, or a registry of the site is badly configured.
    pub async fn load(self: &Arc<Self>) -> anyhow::Result<()> {
        self.publisher.store(Arc::new(Publisher::build(&self.config.registries)?));
        self.read().await?;
        run::start(self);
        Ok(())
    }

    /// Takes in what the store holds.
    async fn read(&self) -> Result<(), Error> {
        let (open, highest) = kept::open(&self.store).await?;
        let mut state = self.state.lock();
        state.open = open.into_iter().map(|kept| (kept.record.id, kept)).collect();
        state.highest = state.highest.max(highest);
        state.revision = self.store.stamp().revision;
        Ok(())
    }

    /// What a command would do, whole, with all of its steps taken.
    ///
    /// # Errors
    /// It cannot be done: no such service, no such group, a percentage that is none.
    pub async fn preview(&self, actor: &Actor, wanted: &NewCommand) -> Result<Preview, Error> {
        self.foresee(actor, wanted)
    }

    /// Puts a command into force (its first step), or keeps it as a proposal when `propose`. Durable and told to agents
    /// when it resolves. Dropping the future does not stop it halfway.
    ///
    /// # Errors
    /// As [`Commands::preview`]; a conflict when somebody changed the same scope since the author looked.
    pub async fn give(
        self: &Arc<Self>,
        actor: &Actor,
        wanted: NewCommand,
        propose: bool,
    ) -> Result<CommandRecord, Error> {
        let what = if propose { "command.propose" } else { "command.create" };
        let (target, detail) = (wanted.action.told(), serde_json::to_value(&wanted).unwrap_or_default());
        let (this, by) = (self.clone(), actor.clone());
        let done = whole(async move { Ok(this.tell(this.take(&by, wanted, propose).await?).await) }).await;
        self.refused(actor, what, &target, detail, &done).await;
        done
    }

    /// Puts a proposal into force, or has the driver of a pool carry it out. A proposal that a driver refused waits on.
    ///
    /// # Errors
    /// As [`Commands::give`]; there is no such proposal.
    pub async fn confirm(self: &Arc<Self>, actor: &Actor, id: u64) -> Result<CommandRecord, Error> {
        let (this, by) = (self.clone(), actor.clone());
        let done = whole(async move { Ok(this.tell(this.accept(&by, id).await?).await) }).await;
        self.refused(actor, "command.confirm", &id.to_string(), serde_json::Value::Null, &done).await;
        done
    }

    /// Takes the next step at once.
    ///
    /// # Errors
    /// There is no such command, or it has no more steps.
    pub async fn next(self: &Arc<Self>, actor: &Actor, id: u64) -> Result<CommandRecord, Error> {
        let (this, by) = (self.clone(), actor.clone());
        let done = whole(async move { Ok(this.tell(this.step(&by, id).await?).await) }).await;
        self.refused(actor, "command.step", &id.to_string(), serde_json::Value::Null, &done).await;
        done
    }

    /// Takes a command back, or turns a proposal down; later changes of others in the same text stay.
    ///
    /// # Errors
    /// There is none of this number, or it has ended.
    pub async fn undo(self: &Arc<Self>, actor: &Actor, id: u64, why: &str) -> Result<CommandRecord, Error> {
        let (this, by, reason) = (self.clone(), actor.clone(), why.chars().take(2000).collect::<String>());
        let done = whole(async move { Ok(this.tell(this.end(&by, id, &reason).await?).await) }).await;
        let detail = serde_json::json!({ "reason": why.chars().take(2000).collect::<String>() });
        self.refused(actor, "command.undo", &id.to_string(), detail, &done).await;
        done
    }

    /// Closes a proposal that nobody put into force within its time.
    ///
    /// # Errors
    /// There is no such proposal (any more), or the store does not take it.
    async fn expire(self: &Arc<Self>, id: u64) -> Result<CommandRecord, Error> {
        let this = self.clone();
        whole(async move { this.close(id).await }).await
    }

    /// The proposal like `action` that people turned down lately, and how long they are left alone with another one.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn declined(&self, author: &str, action: &Action) -> Result<Option<(CommandRecord, Duration)>, Error> {
        resize::declined(&self.store, author, action).await
    }

    /// Commands in force or proposed for a service, newest first; an empty name means all.
    pub fn active(&self, service: &str) -> Vec<CommandRecord> {
        let state = self.state.lock();
        let concerned = |kept: &&Kept| service.is_empty() || meant::concerns(kept, service);
        state.open.values().rev().filter(concerned).map(|kept| self.shown(kept)).collect()
    }

    /// Grows with every change of a command.
    pub fn revision(&self) -> u64 {
        self.state.lock().revision
    }

    /// A command, also one that has ended.
    ///
    /// # Errors
    /// There is none, or the store does not answer.
    pub async fn one(&self, id: u64) -> Result<CommandRecord, Error> {
        if let Some(kept) = self.state.lock().open.get(&id) {
            return Ok(self.shown(kept));
        }
        kept::one(&self.store, id).await?.map(|kept| kept.record).ok_or_else(|| unknown(id))
    }

    /// Commands with a number below `before`, newest first, and where the next page begins.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn history(
        &self,
        before: Option<u64>,
        limit: usize,
        wanted: impl Fn(&CommandRecord) -> bool,
    ) -> Result<(Vec<CommandRecord>, Option<u64>), Error> {
        kept::page(&self.store, before, limit, wanted).await
    }

    /// A command with what became of it in registries of the site by now.
    fn shown(&self, kept: &Kept) -> CommandRecord {
        let mut record = kept.record.clone();
        let publisher = self.publisher.load();
        if kept.in_force() && !publisher.is_empty() {
            record.written = publisher.now(&kept.scopes);
        }
        record
    }

    /// Puts on record what was refused; what was done is on record already. Who may not is recorded by whoever asked.
    async fn refused<T: Sync>(
        &self,
        actor: &Actor,
        what: &str,
        target: &str,
        detail: serde_json::Value,
        done: &Result<T, Error>,
    ) {
        let Err(error) = done else { return };
        if error.code == Code::Forbidden {
            return;
        }
        if let Err(lost) = self.audit.record(actor, what, target, &error.to_string(), detail).await {
            tracing::warn!(actor = %actor.name, what, target, %lost, "a refusal could not be recorded");
        }
    }

    /// Waits until nobody else changes texts. An error while another centre leads.
    async fn turn(&self) -> Result<Turn<'_>, Error> {
        let _busy = self.busy.lock().await;
        Ok(Turn { _busy, epoch: self.leads()? })
    }

    /// The epoch in which this centre may change anything now.
    fn leads(&self) -> Result<u64, Error> {
        let leadership = self.store.leadership();
        let now = leadership.borrow();
        if let Ok(epoch) = now.fence() {
            return Ok(epoch);
        }
        let who = if now.leader.is_empty() { "another centre" } else { &now.leader };
        let remedy = "ask that one, or repeat in a few seconds";
        Err(Error::new(Code::ReadOnly, format!("{who} leads at the moment, and gives commands"), remedy))
    }

    /// All names of services, sorted.
    fn services(&self) -> Vec<String> {
        let names: BTreeSet<String> = self.site.keys().into_iter().map(|key| key.service).collect();
        names.into_iter().collect()
    }
}

/// Runs to its end even when nobody waits any more.
async fn whole<T: Send + 'static>(work: impl Future<Output = Result<T, Error>> + Send + 'static) -> Result<T, Error> {
    tokio::spawn(work).await.unwrap_or_else(|lost| {
        let message = format!("the command was broken off: {lost}");
        Err(Error::new(Code::Internal, message, "look at the centre's log, and at the command's state"))
    })
}

fn unknown(id: u64) -> Error {
    Error::not_found(format!("no command {id}"), "look at the history for those there are")
}

fn scope(group: &str) -> CommandScope {
    CommandScope::Group(group.to_owned())
}

/// Whether a record is in force.
fn holds(state: CommandState) -> bool {
    matches!(state, CommandState::Stepping | CommandState::Active)
}
