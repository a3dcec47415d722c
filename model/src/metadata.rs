//! Texts by name that go with an instance.

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Texts by name. Copies share them until one is changed: lists of instances are copied at every change, and
/// most instances of a service say the same.
#[derive(Clone, Debug, Default, Eq)]
pub struct Metadata(Arc<BTreeMap<String, String>>);

impl Metadata {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Deref for Metadata {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Metadata {
    fn deref_mut(&mut self) -> &mut Self::Target {
        Arc::make_mut(&mut self.0)
    }
}

impl From<BTreeMap<String, String>> for Metadata {
    fn from(map: BTreeMap<String, String>) -> Self {
        // All that have none are one.
        if map.is_empty() { Self::default() } else { Self(Arc::new(map)) }
    }
}

impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_ref().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_one_until_they_differ() {
        let mut a = Metadata::from(BTreeMap::from([("k".to_owned(), "v".to_owned())]));
        let b = a.clone();
        assert!(Arc::ptr_eq(&a.0, &b.0));
        a.insert("k".into(), "w".into());
        assert_eq!((a["k"].as_str(), b["k"].as_str()), ("w", "v"));
        assert_ne!(a, b);
        let text = serde_json::to_string(&b).unwrap();
        assert_eq!(text, r#"{"k":"v"}"#);
        assert_eq!(serde_json::from_str::<Metadata>(&text).unwrap(), b);
    }
}
