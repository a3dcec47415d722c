//! One shape for every extension point: a name in the YAML and the function that builds it.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    sync::Arc,
};

pub use model::kind::{Value, build, duration, no_options, options};
use parking_lot::Mutex;

/// A row of a `KINDS` table.
pub type Kind<T> = model::kind::Kind<T, BuildCx>;

/// What a kind may need while it is built.
#[derive(Clone, Debug, Default)]
pub struct BuildCx {
    /// Application name of this agent.
    pub application: crate::call::Text,
    /// Failure domain that this host is in; empty when it is in none.
    pub zone: crate::call::Text,
    /// Port of the admin API, which others may be told; 0 when it has none.
    pub management: u16,
    /// Name of the service the kind is built for; empty for host-wide kinds.
    pub service: crate::call::Text,
    /// Directory that relative paths in the configuration are relative to.
    pub base_dir: std::path::PathBuf,
    /// Directory for what must not be forgotten over restarts: that of the snapshot files.
    pub state: Option<std::path::PathBuf>,
    /// Where access log lines go; `None` where nothing is served (a check of a configuration).
    pub access_log: Option<Arc<crate::metrics::AccessLogWriter>>,
    /// Where spans go; `None` where nothing is served.
    pub exporters: Option<crate::trace::Exporters>,
    /// What kinds of one type share on this host, over all services.
    pub shared: Shared,
    /// Flags that operators turn while the agent runs.
    pub switchers: crate::switcher::Switchers,
    /// How many methods all services together may count by themselves.
    pub rows: Arc<crate::metrics::RowBudget>,
    /// Name of this agent in the site: `HOST/NAME`.
    pub agent: crate::call::Text,
    /// How the governance centre is reached.
    pub center: Option<Arc<registries::Center>>,
}

impl BuildCx {
    /// What registries may know of it.
    pub fn registry(&self) -> registries::BuildCx {
        registries::BuildCx {
            application: self.application.as_str().into(),
            management: self.management,
            base_dir: self.base_dir.clone(),
            state: self.state.clone(),
            agent: self.agent.as_str().into(),
            center: self.center.clone(),
        }
    }
}

/// One value of each type, made on first use: for kinds whose state belongs to the host rather than to a
/// service. Cheap to clone: clones share the values.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>>);

impl Shared {
    /// The value of type `T`.
    pub fn get<T: Default + Any + Send + Sync>(&self) -> Arc<T> {
        let mut values = self.0.lock();
        let value = values.entry(TypeId::of::<T>()).or_insert_with(|| Arc::<T>::default()).clone();
        value.downcast().expect("kept under its own type")
    }
}
