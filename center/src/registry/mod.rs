//! Services, groups and instances: registered by agents, kept alive by heartbeats, watched by agents, taken out
//! and brought back by operators. Answers come from memory.

use std::sync::Arc;

use crate::{audit::Audit, auth::Actor, error::Error, store::Store};
use model::{
    ServiceKey, Snapshot,
    center::{CommandScope, InstanceRow},
};
use serde::Deserialize;
use tokio::sync::watch;

use utoipa_axum::router::OpenApiRouter;

/// `registry:` of the centre's file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

/// All that is registered.
pub struct Registry {
    store: Arc<dyn Store>,
    audit: Arc<Audit>,
}

impl Registry {
    /// From what it builds on.
    pub fn new(config: Config, store: Arc<dyn Store>, audit: Arc<Audit>) -> Arc<Self> {
        let Config {} = config;
        Arc::new(Self { store, audit })
    }

    /// Reads what is kept. Nothing is answered before.
    pub async fn load(&self) -> anyhow::Result<()> {
        let _ = &self.store;
        Ok(())
    }

    /// Every service in every group, sorted.
    pub fn keys(&self) -> Vec<ServiceKey> {
        Vec::new()
    }

    /// The instances that callers of `key` may use; an empty group means all groups. Cheap: shared.
    pub fn snapshot(&self, _key: &ServiceKey) -> Arc<Snapshot> {
        Arc::default()
    }

    /// All instances of `key`, those that callers may not use included; figures and capacities are left empty.
    pub fn rows(&self, _key: &ServiceKey) -> Vec<InstanceRow> {
        Vec::new()
    }

    /// The revision, now and at every change of a registration or of what operators said of one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }

    /// Takes an instance out (`Some` with the reason) or brings it back.
    ///
    /// # Errors
    /// There is no such instance, or the store did not take it.
    pub async fn take_out(
        &self,
        _actor: &Actor,
        _key: &ServiceKey,
        address: &str,
        _out: Option<&str>,
    ) -> Result<(), Error> {
        let _ = &self.audit;
        Err(Error::not_found(format!("no instance `{address}`"), "look at the service's page for those there are"))
    }

    /// Gives an instance another weight than it registered with, or its own again.
    ///
    /// # Errors
    /// As [`Registry::take_out`].
    pub async fn set_weight(
        &self,
        _actor: &Actor,
        _key: &ServiceKey,
        address: &str,
        _weight: Option<u32>,
    ) -> Result<(), Error> {
        Err(Error::not_found(format!("no instance `{address}`"), "look at the service's page for those there are"))
    }

    /// The command text of a scope, and its revision (0: there never was one).
    pub fn text(&self, _scope: &CommandScope) -> (u64, Option<String>) {
        (0, None)
    }

    /// Replaces the command text of a scope if it still stands at `expected`, durably, and tells agents that watch it.
    /// Answers the new revision.
    ///
    /// # Errors
    /// [`Code::Conflict`](crate::error::Code::Conflict) when it does not stand there.
    pub async fn set_text(&self, _scope: &CommandScope, _expected: u64, _text: Option<String>) -> Result<u64, Error> {
        Err(Error::not_found("no texts yet", ""))
    }
}

/// Its part of the API.
pub fn routes() -> OpenApiRouter<crate::api::Cx> {
    OpenApiRouter::new()
}
