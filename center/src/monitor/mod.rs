//! What is seen: figures of services, groups, instances and callers over time, who calls whom, how agents are.
//! From what agents send, from Graphite or from Prometheus.

use std::sync::Arc;

use crate::{error::Error, registry::Registry, store::Store};
use model::center::{AgentRow, CapacityPoint, Figures, Graph, Histogram, Of, Report, Series};
use serde::Deserialize;

use utoipa_axum::router::OpenApiRouter;

/// `monitor:` of the centre's file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

/// Everything seen.
pub struct Monitor {
    store: Arc<dyn Store>,
    registry: Arc<Registry>,
}

impl Monitor {
    /// From what it builds on.
    pub fn new(config: Config, store: Arc<dyn Store>, registry: Arc<Registry>) -> Arc<Self> {
        let Config {} = config;
        Arc::new(Self { store, registry })
    }

    /// Takes in what an agent saw.
    pub fn report(&self, _report: Report) {
        let _ = (&self.store, &self.registry);
    }

    /// Figures of the last ten seconds.
    pub fn lately(&self, _of: &Of) -> Figures {
        Figures::default()
    }

    /// Seconds that [`Monitor::lately`] looks back, and the times of the calls that ended within; for weighted load.
    pub fn times(&self, _of: &Of) -> (f64, Histogram) {
        (10.0, Histogram::default())
    }

    /// Applications that call a service lately, and how their bytes travel.
    pub fn callers(&self, _service: &str, _group: &str) -> Vec<(String, Figures, String)> {
        Vec::new()
    }

    /// Figures over time; `step_ms` 0 lets the span decide.
    ///
    /// # Errors
    /// The source that is configured does not answer, and agents' own figures do not reach back so far.
    pub async fn series(&self, of: &Of, _from_ms: u64, _to_ms: u64, _step_ms: u64) -> Result<Series, Error> {
        Ok(Series { of: of.clone(), source: "agents".to_owned(), ..Series::default() })
    }

    /// Operating points of the instances of a service in a group, oldest first; `slow_ms` weighs what is slow.
    pub fn points(&self, _service: &str, _group: &str, _slow_ms: f64) -> Vec<CapacityPoint> {
        Vec::new()
    }

    /// Who calls whom, of the last minute.
    pub fn graph(&self) -> Graph {
        Graph::default()
    }

    /// All agents.
    pub fn agents(&self) -> Vec<AgentRow> {
        Vec::new()
    }
}

/// Its part of the API.
pub fn routes() -> OpenApiRouter<crate::api::Cx> {
    OpenApiRouter::new()
}
