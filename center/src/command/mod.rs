//! Orders: switches of traffic, routes, canaries, degrade, switchers, drains; with author, reason, steps, guard,
//! time of validity, history and undo.

use std::sync::Arc;

use crate::{
    audit::Audit, auth::Actor, capacity::Capacities, error::Error, monitor::Monitor, registry::Registry, store::Store,
};
use model::center::{CommandRecord, NewCommand, Preview};
use serde::Deserialize;

use utoipa_axum::router::OpenApiRouter;

/// `commands:` of the centre's file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

/// All commands, in force and past.
pub struct Commands {
    store: Arc<dyn Store>,
    registry: Arc<Registry>,
    monitor: Arc<Monitor>,
    capacity: Arc<Capacities>,
    audit: Arc<Audit>,
}

impl Commands {
    /// From what it builds on.
    pub fn new(
        config: Config,
        store: Arc<dyn Store>,
        registry: Arc<Registry>,
        monitor: Arc<Monitor>,
        capacity: Arc<Capacities>,
        audit: Arc<Audit>,
    ) -> Arc<Self> {
        let Config {} = config;
        Arc::new(Self { store, registry, monitor, capacity, audit })
    }

    /// Reads what is kept, and goes on with what was in the middle of its steps.
    pub async fn load(self: &Arc<Self>) -> anyhow::Result<()> {
        let _ = (&self.store, &self.registry, &self.monitor, &self.capacity, &self.audit);
        Ok(())
    }

    /// What a command would do.
    ///
    /// # Errors
    /// It cannot be done: no such service, no such group, a percentage that is none.
    pub async fn preview(&self, _actor: &Actor, _wanted: &NewCommand) -> Result<Preview, Error> {
        Err(Error::not_found("no commands yet", ""))
    }

    /// Puts a command into force (its first step), or keeps it as a proposal when `propose`. Durable and told to agents
    /// when it resolves.
    ///
    /// # Errors
    /// As [`Commands::preview`]; a conflict when somebody changed the same scope since the author looked.
    pub async fn give(
        self: &Arc<Self>,
        _actor: &Actor,
        _wanted: NewCommand,
        _propose: bool,
    ) -> Result<CommandRecord, Error> {
        Err(Error::not_found("no commands yet", ""))
    }

    /// Takes a command back; later changes of others in the same text stay.
    ///
    /// # Errors
    /// There is none of this number, or it has ended.
    pub async fn undo(&self, _actor: &Actor, id: u64, _why: &str) -> Result<CommandRecord, Error> {
        Err(Error::not_found(format!("no command {id}"), "look at the history for those there are"))
    }

    /// Commands in force or proposed for a service, newest first; an empty name means all.
    pub fn active(&self, _service: &str) -> Vec<CommandRecord> {
        Vec::new()
    }
}

/// Its part of the API.
pub fn routes() -> OpenApiRouter<crate::api::Cx> {
    OpenApiRouter::new()
}
