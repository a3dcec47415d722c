//! Alerts: thresholds, burn rates, forecasts, outliers; told by webhook, once each, unless silenced.

use std::sync::Arc;

use crate::{audit::Audit, decide::Decider, monitor::Monitor, registry::Registry, store::Store};
use model::center::Alert;
use serde::Deserialize;

use utoipa_axum::router::OpenApiRouter;

/// `alerts:` of the centre's file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

/// Rules, and what they found.
pub struct Alerts {
    store: Arc<dyn Store>,
    registry: Arc<Registry>,
    monitor: Arc<Monitor>,
    decider: Arc<Decider>,
    audit: Arc<Audit>,
}

impl Alerts {
    /// From what it builds on.
    pub fn new(
        config: Config,
        store: Arc<dyn Store>,
        registry: Arc<Registry>,
        monitor: Arc<Monitor>,
        decider: Arc<Decider>,
        audit: Arc<Audit>,
    ) -> Arc<Self> {
        let Config {} = config;
        Arc::new(Self { store, registry, monitor, decider, audit })
    }

    /// Reads rules and silences, and looks from now on while this centre leads.
    pub async fn load(self: &Arc<Self>) -> anyhow::Result<()> {
        let _ = (&self.store, &self.registry, &self.monitor, &self.decider, &self.audit);
        Ok(())
    }

    /// Alerts that fire, of a service; an empty name means all.
    pub fn firing(&self, _service: &str) -> Vec<Alert> {
        Vec::new()
    }
}

/// Its part of the API.
pub fn routes() -> OpenApiRouter<crate::api::Cx> {
    OpenApiRouter::new()
}
