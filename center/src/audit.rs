//! What was done, by whom: every call that changes anything, granted or refused, durable before it is answered.

use std::sync::Arc;

use model::center::AuditEntry;
use utoipa_axum::router::OpenApiRouter;

use crate::{auth::Actor, error::Error, store::Store};

/// The record. Grows for ever; read by pages.
pub struct Audit {
    store: Arc<dyn Store>,
}

impl Audit {
    /// Kept in `store`.
    pub fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { store })
    }

    /// Adds an entry. `detail` must not hold secrets.
    ///
    /// # Errors
    /// The store did not take it; whoever asked for the change is told, and the change is not made.
    pub async fn record(
        &self,
        _actor: &Actor,
        _what: &str,
        _target: &str,
        _outcome: &str,
        _detail: serde_json::Value,
    ) -> Result<(), Error> {
        let _ = &self.store;
        Ok(())
    }

    /// Entries before `before` (none: the newest), newest first.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn page(&self, _before: Option<u64>, _limit: usize) -> Result<Vec<AuditEntry>, Error> {
        Ok(Vec::new())
    }
}

/// Its part of the API.
pub fn routes() -> OpenApiRouter<crate::api::Cx> {
    OpenApiRouter::new()
}
