//! Whether callers from elsewhere may come to what this agent provides: one word for the whole agent, turned
//! by operators and scripts, followed by its registrations.

use std::sync::Arc;

use tokio::sync::watch;

/// Whether callers may come. Cheap to clone: clones share the word.
#[derive(Clone, Debug)]
pub struct Availability(Arc<watch::Sender<bool>>);

impl Availability {
    /// Begins with `available`.
    pub fn new(available: bool) -> Self {
        Self(Arc::new(watch::Sender::new(available)))
    }

    /// Turns it; returns how it stood. Registrations follow as fast as their registries do.
    pub fn set(&self, available: bool) -> bool {
        self.0.send_replace(available)
    }

    /// How it stands.
    pub fn get(&self) -> bool {
        *self.0.borrow()
    }

    /// How it stands, now and at every change.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.0.subscribe()
    }
}

impl Default for Availability {
    /// Available.
    fn default() -> Self {
        Self::new(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_sees_a_turn() {
        let word = Availability::default();
        let (other, seen) = (word.clone(), word.watch());
        assert!(other.set(false), "it was available");
        assert!(!word.get() && !*seen.borrow() && seen.has_changed().unwrap());
    }
}
