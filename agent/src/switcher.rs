//! Switchers: named flags that operators and commands turn while the agent runs.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;

/// All switchers of this agent. Cheap to clone: clones share the flags.
#[derive(Clone, Debug, Default)]
pub struct Switchers(Arc<Mutex<BTreeMap<String, Arc<AtomicBool>>>>);

impl Switchers {
    /// The flag called `name`, registered with `default` if nobody did before. Whoever asks on the data path
    /// keeps the flag, so that a look is one load.
    pub fn register(&self, name: &str, default: bool) -> Arc<AtomicBool> {
        let mut all = self.0.lock();
        all.entry(name.to_owned()).or_insert_with(|| Arc::new(AtomicBool::new(default))).clone()
    }

    /// Turns a flag; the value it had, or `None` if nobody registered the name.
    pub fn set(&self, name: &str, value: bool) -> Option<bool> {
        self.0.lock().get(name).map(|flag| flag.swap(value, Relaxed))
    }

    /// How a flag stands.
    pub fn get(&self, name: &str) -> Option<bool> {
        self.0.lock().get(name).map(|flag| flag.load(Relaxed))
    }

    /// All flags in the order of their names.
    pub fn all(&self) -> Vec<(String, bool)> {
        self.0.lock().iter().map(|(name, flag)| (name.clone(), flag.load(Relaxed))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_registered_names_are_turned_and_everyone_sees_it() {
        let switchers = Switchers::default();
        assert_eq!((switchers.set("a", true), switchers.get("a")), (None, None));
        let flag = switchers.register("a", true);
        assert!(switchers.clone().register("a", false).load(Relaxed), "the first default counts");
        assert_eq!(switchers.set("a", false), Some(true));
        assert!(!flag.load(Relaxed));
        assert_eq!(switchers.all(), [("a".to_owned(), false)]);
    }
}
