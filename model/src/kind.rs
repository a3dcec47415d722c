//! One shape for every extension point: a name in the YAML and the function that builds it.

use std::sync::Arc;

use anyhow::bail;
use serde::{Deserialize, de::DeserializeOwned};
/// A piece of configuration that only the kind itself understands.
pub use serde_yaml::Value;

/// A row of a `KINDS` table; `Cx` is what kinds of this type may need while they are built.
pub struct Kind<T: ?Sized + 'static, Cx: 'static> {
    /// The word in the configuration.
    pub name: &'static str,
    /// Builds it from its own part of the configuration; errors name the key and the remedy.
    pub build: fn(&Value, &Cx) -> anyhow::Result<Arc<T>>,
}

impl<T: ?Sized, Cx> Clone for Kind<T, Cx> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: ?Sized, Cx> Copy for Kind<T, Cx> {}

/// Builds the kind called `name`, or says which names there are.
pub fn build<T: ?Sized, Cx>(
    what: &str,
    kinds: &[Kind<T, Cx>],
    name: &str,
    value: &Value,
    cx: &Cx,
) -> anyhow::Result<Arc<T>> {
    let Some(kind) = kinds.iter().find(|k| k.name == name) else {
        let known: Vec<_> = kinds.iter().map(|k| k.name).collect();
        bail!("unknown {what} `{name}`; known: {}", known.join(", "));
    };
    (kind.build)(value, cx)
}

/// Reads a kind's own options. Nothing at all (`null`) means every option at its default.
pub fn options<T: DeserializeOwned + Default>(value: &Value) -> anyhow::Result<T> {
    if value.is_null() {
        return Ok(T::default());
    }
    Ok(serde_yaml::from_value(value.clone())?)
}

/// For kinds without options: any key is a mistake worth telling.
pub fn no_options(value: &Value) -> anyhow::Result<()> {
    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct NoOptions {}
    options::<NoOptions>(value).map(|NoOptions {}| ())
}

/// Reads an option that is a duration, such as `10ms`: `#[serde(deserialize_with = "kind::duration")]`.
pub fn duration<'de, D: serde::Deserializer<'de>>(value: D) -> Result<std::time::Duration, D::Error> {
    let text = String::deserialize(value)?;
    crate::value::duration(text.trim()).map_err(|wrong| serde::de::Error::custom(wrong.of(&text)))
}
