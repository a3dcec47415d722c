//! Who waits for which change.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use model::{ServiceKey, center::CommandScope};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// What can change.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Topic {
    /// A list: service and group; an empty group means all groups.
    List(String, String),
    /// A command text.
    Text(CommandScope),
}

impl Topic {
    pub fn list(key: &ServiceKey) -> Self {
        Self::List(key.service.clone(), key.group.clone())
    }
}

/// Long polls that wait now.
#[derive(Default)]
pub(super) struct Watchers {
    book: Mutex<Book>,
    count: AtomicUsize,
}

#[derive(Default)]
struct Book {
    last: u64,
    topics: HashMap<Topic, HashMap<u64, Arc<Notify>>>,
    closed: bool,
}

impl Watchers {
    /// Waits for all of these from now on: a change after this call is never missed.
    pub fn join(self: &Arc<Self>, topics: Vec<Topic>) -> Watcher {
        let wake = Arc::new(Notify::new());
        let mut book = self.book.lock();
        book.last += 1;
        let number = book.last;
        for topic in &topics {
            book.topics.entry(topic.clone()).or_default().insert(number, wake.clone());
        }
        if book.closed {
            wake.notify_one();
        }
        self.count.fetch_add(1, Relaxed);
        Watcher { all: self.clone(), number, topics, wake }
    }

    /// Wakes those that wait for any of these, each once.
    pub fn changed(&self, topics: impl IntoIterator<Item = Topic>) {
        let book = self.book.lock();
        for topic in topics {
            for wake in book.topics.get(&topic).into_iter().flat_map(HashMap::values) {
                wake.notify_one();
            }
        }
    }

    /// A list of this service in this group changed.
    pub fn list_changed(&self, service: &str, group: &str) {
        let all = (!group.is_empty()).then(|| Topic::List(service.to_owned(), String::new()));
        self.changed([Topic::List(service.to_owned(), group.to_owned())].into_iter().chain(all));
    }

    /// Wakes everyone for the last time: nobody waits any more from now on.
    pub fn close(&self) {
        let mut book = self.book.lock();
        book.closed = true;
        for wake in book.topics.values().flat_map(HashMap::values) {
            wake.notify_one();
        }
    }

    pub fn is_closed(&self) -> bool {
        self.book.lock().closed
    }

    pub fn count(&self) -> usize {
        self.count.load(Relaxed)
    }
}

/// One that waits; forgotten when it is dropped.
pub(super) struct Watcher {
    all: Arc<Watchers>,
    number: u64,
    topics: Vec<Topic>,
    wake: Arc<Notify>,
}

impl Watcher {
    /// Resolves when something changed since it resolved last, or since it joined.
    pub async fn changed(&self) {
        self.wake.notified().await;
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut book = self.all.book.lock();
        for topic in &self.topics {
            if let Some(waiting) = book.topics.get_mut(topic) {
                waiting.remove(&self.number);
                if waiting.is_empty() {
                    book.topics.remove(topic);
                }
            }
        }
        self.all.count.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn only_those_concerned_are_woken_and_none_is_missed() {
        let all = Arc::new(Watchers::default());
        let list = |group: &str| Topic::List("s".into(), group.into());
        let (one, every) = (all.join(vec![list("a")]), all.join(vec![list(""), list("a")]));
        let none = all.join(vec![list("b"), Topic::Text(CommandScope::Group("a".into()))]);
        all.list_changed("s", "a");
        all.list_changed("s", "a");
        one.changed().await;
        every.changed().await;
        assert!(one.changed().now_or_never().is_none(), "twice before it looked is once");
        assert!(none.changed().now_or_never().is_none());
        all.changed([Topic::Text(CommandScope::Group("a".into()))]);
        none.changed().await;
        assert_eq!(all.count(), 3);
        all.close();
        one.changed().await;
        let late = all.join(vec![]);
        late.changed().await;
        drop((one, every, none, late));
        assert!(all.book.lock().topics.is_empty() && all.count() == 0);
    }
}
