//! The dynamic meta of this process: what operators tell callers about it while it runs (a weight, say), asked
//! for by Motan's meta service. One for the process, as its environment is.

use std::{collections::BTreeMap, sync::LazyLock};

use parking_lot::RwLock;

static META: LazyLock<RwLock<BTreeMap<String, String>>> = LazyLock::new(RwLock::default);

/// Notes a value.
pub fn update(key: &str, value: &str) {
    META.write().insert(key.to_owned(), value.to_owned());
}

/// Forgets a value.
pub fn delete(key: &str) {
    META.write().remove(key);
}

/// A value, if there is one.
pub fn get(key: &str) -> Option<String> {
    META.read().get(key).cloned()
}

/// All values.
pub fn all() -> BTreeMap<String, String> {
    META.read().clone()
}
