//! One task for each thing that is followed, however many look at it.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;

/// What is followed, by key. Clones are the same book.
pub(super) struct Followed<K, V>(Arc<Mutex<HashMap<K, watch::Sender<V>>>>);

impl<K, V> Default for Followed<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Clone + Eq + Hash + Send + Sync + 'static, V: Send + Sync + 'static> Followed<K, V> {
    /// The channel of `key`. When nobody looked at it so far it begins with `first`, and what `follow`
    /// returns runs as a task until nobody looks any more. Must be called within a tokio runtime.
    pub fn join<F: Future<Output = ()> + Send + 'static>(
        &self,
        key: K,
        first: V,
        follow: impl FnOnce(watch::Sender<V>) -> F,
    ) -> watch::Receiver<V> {
        let mut book = self.0.lock();
        if let Some(sender) = book.get(&key) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(first);
        book.insert(key.clone(), sender.clone());
        let (work, all) = (follow(sender.clone()), self.0.clone());
        tokio::spawn(async move {
            // What has come to its end keeps its last value as long as someone looks at it.
            let work = async {
                work.await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = unwatched(&all, &key, &sender) => {}
                () = work => {}
            }
        });
        receiver
    }
}

/// Returns when the last receiver is gone; whoever comes then begins anew.
async fn unwatched<K: Eq + Hash, V>(book: &Mutex<HashMap<K, watch::Sender<V>>>, key: &K, sender: &watch::Sender<V>) {
    loop {
        sender.closed().await;
        let mut book = book.lock();
        if sender.receiver_count() == 0 {
            book.remove(key);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_task_serves_all_and_ends_with_the_last() {
        let book = Followed::<&str, u32>::default();
        let (ended, mut end) = watch::channel(0);
        let ended = Arc::new(ended);
        let join = |first| {
            let ended = ended.clone();
            book.join("k", first, |sender| async move {
                struct End(Arc<watch::Sender<i32>>);
                impl Drop for End {
                    fn drop(&mut self) {
                        self.0.send_modify(|n| *n += 1);
                    }
                }
                let _end = End(ended);
                sender.send_modify(|n| *n += 1);
                std::future::pending::<()>().await;
            })
        };
        let mut a = join(10);
        let b = join(20);
        a.wait_for(|n| *n == 11).await.unwrap();
        drop(a);
        assert_eq!(*b.borrow(), 11);
        assert_eq!(*end.borrow(), 0);
        drop(b);
        end.wait_for(|n| *n == 1).await.unwrap();
        assert!(book.0.lock().is_empty());
        join(30).wait_for(|n| *n == 31).await.unwrap();
    }
}
