//! What pools can take and how near to that they are.

pub mod estimate;

use std::sync::Arc;

use crate::{monitor::Monitor, registry::Registry};
use model::center::{Capacity, Pool, PoolPolicy, WhatIf};

use utoipa_axum::router::OpenApiRouter;

/// Estimates, from operating points.
pub struct Capacities {
    registry: Arc<Registry>,
    monitor: Arc<Monitor>,
}

impl Capacities {
    /// From what it builds on.
    pub fn new(registry: Arc<Registry>, monitor: Arc<Monitor>) -> Arc<Self> {
        Arc::new(Self { registry, monitor })
    }

    /// What one instance of the pool can take.
    pub fn estimate(&self, _service: &str, _group: &str) -> Option<Capacity> {
        let _ = (&self.registry, &self.monitor);
        None
    }

    /// The pool as it is now, under `policy`.
    pub fn pool(&self, _policy: &PoolPolicy) -> Option<Pool> {
        None
    }

    /// What would become of these pools if `lost` groups were gone.
    pub fn what_if(&self, _pools: &[PoolPolicy], lost: &[String]) -> WhatIf {
        WhatIf { lost: lost.to_vec(), ..WhatIf::default() }
    }
}

/// Its part of the API.
pub fn routes() -> OpenApiRouter<crate::api::Cx> {
    OpenApiRouter::new()
}
