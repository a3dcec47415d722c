//! One shape for every extension point: a name in the YAML and the function that builds it.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    sync::Arc,
};

use anyhow::bail;
use parking_lot::Mutex;
/// A piece of configuration that only the kind itself understands.
pub use serde_yaml::Value;

/// A row of a `KINDS` table.
pub struct Kind<T: ?Sized + 'static> {
    /// The word in the configuration.
    pub name: &'static str,
    /// Builds it from its own part of the configuration; errors name the key and the remedy.
    pub build: fn(&Value, &BuildCx) -> anyhow::Result<Arc<T>>,
}

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

/// Builds the kind called `name`, or says which names there are.
pub fn build<T: ?Sized>(
    what: &str,
    kinds: &[Kind<T>],
    name: &str,
    value: &Value,
    cx: &BuildCx,
) -> anyhow::Result<Arc<T>> {
    let Some(kind) = kinds.iter().find(|k| k.name == name) else {
        let known: Vec<_> = kinds.iter().map(|k| k.name).collect();
        bail!("unknown {what} `{name}`; known: {}", known.join(", "));
    };
    (kind.build)(value, cx)
}

/// Reads a kind's own options. Nothing at all (`null`) means every option at its default.
pub fn options<T: serde::de::DeserializeOwned + Default>(value: &Value) -> anyhow::Result<T> {
    if value.is_null() {
        return Ok(T::default());
    }
    Ok(serde_yaml::from_value(value.clone())?)
}

/// For kinds without options: any key is a mistake worth telling.
pub fn no_options(value: &Value) -> anyhow::Result<()> {
    #[derive(Default, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct NoOptions {}
    options::<NoOptions>(value).map(|NoOptions {}| ())
}

/// Reads an option that is a duration, such as `10ms`: `#[serde(deserialize_with = "kind::duration")]`.
pub fn duration<'de, D: serde::Deserializer<'de>>(value: D) -> Result<std::time::Duration, D::Error> {
    use serde::Deserialize;
    let text = String::deserialize(value)?;
    crate::config::duration(text.trim())
        .map_err(|wrong| serde::de::Error::custom(format!("`{text}` {}; {}", wrong.problem, wrong.remedy)))
}
