//! What a source heard, put into the channels of those who watch.

use std::sync::Arc;

use model::Snapshot;
use tokio::sync::watch;

use super::CommandText;

/// A value with a revision, that may be older than what its source holds.
pub(super) trait Told: Clone + PartialEq {
    /// Its revision.
    fn revision(&mut self) -> &mut u64;
    /// Why it may be old.
    fn stale(&mut self) -> &mut Option<String>;
}

impl Told for Snapshot {
    fn revision(&mut self) -> &mut u64 {
        &mut self.revision
    }

    fn stale(&mut self) -> &mut Option<String> {
        &mut self.stale
    }
}

impl Told for CommandText {
    fn revision(&mut self) -> &mut u64 {
        &mut self.revision
    }

    fn stale(&mut self) -> &mut Option<String> {
        &mut self.stale
    }
}

/// Everything that one question to a source brings, before it is looked at for one service.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Heard<T> {
    pub revision: u64,
    pub value: Arc<T>,
    pub stale: Option<String>,
}

impl<T: Clone + PartialEq> Told for Heard<T> {
    fn revision(&mut self) -> &mut u64 {
        &mut self.revision
    }

    fn stale(&mut self) -> &mut Option<String> {
        &mut self.stale
    }
}

/// The source was heard: `change` makes its last value the present one. Nobody is woken when nothing changed.
/// True when it was stale before.
pub(super) fn good<T: Told>(to: &watch::Sender<Arc<T>>, change: impl FnOnce(&mut T)) -> bool {
    let mut was_stale = false;
    to.send_if_modified(|current| {
        let mut next = (**current).clone();
        change(&mut next);
        let differs = next != **current || *next.revision() == 0;
        was_stale = next.stale().take().is_some();
        if differs {
            *next.revision() += 1;
        }
        let modified = differs || was_stale;
        if modified {
            *current = Arc::new(next);
        }
        modified
    });
    was_stale
}

/// The source was not heard, for this reason: its last value stays. True when it was not stale before.
pub(super) fn stale<T: Told>(to: &watch::Sender<Arc<T>>, reason: &str) -> bool {
    let mut was_good = false;
    to.send_if_modified(|current| {
        let mut next = (**current).clone();
        let before = next.stale().replace(reason.to_owned());
        was_good = before.is_none();
        let modified = before.as_deref() != Some(reason);
        if modified {
            *current = Arc::new(next);
        }
        modified
    });
    was_good
}

#[cfg(test)]
mod tests {
    use model::Instance;

    use super::*;

    #[test]
    fn revisions_grow_with_contents_and_stale_keeps_them() {
        let (to, mut rx) = watch::channel(Arc::new(Snapshot::default()));
        assert!(stale(&to, "no answer"));
        assert!(!stale(&to, "no answer"), "told once");
        let mut now = || {
            let now = rx.borrow_and_update();
            (now.revision, now.instances.len(), now.stale.clone())
        };
        assert_eq!(now(), (0, 0, Some("no answer".into())));
        assert!(good(&to, |_| ()), "an empty list is an answer");
        assert_eq!(now(), (1, 0, None));
        assert!(!good(&to, |_| ()));
        good(&to, |next| next.instances = vec![Instance::at("127.0.0.1:1")]);
        assert_eq!(now(), (2, 1, None));
        assert!(stale(&to, "gone"));
        assert_eq!(now(), (2, 1, Some("gone".into())), "the last list stays");
    }
}
