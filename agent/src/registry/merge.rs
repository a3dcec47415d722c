//! Several sources of one service as one list.

use std::{collections::HashSet, sync::Arc};

use futures_util::{StreamExt, stream::FuturesUnordered};
use model::Snapshot;
use tokio::sync::watch;

type List = watch::Receiver<Arc<Snapshot>>;

/// Joins lists in their order; of an instance that several of them have, the first counts. What is known
/// is served at once, but an empty result keeps revision 0 until each list that is not gone has been
/// heard of, so that slow sources are not taken for empty ones. After that the revision grows with
/// every change.
///
/// Must be called within a tokio runtime. Ends when the result is dropped.
pub fn merge(mut lists: Vec<List>) -> List {
    if lists.len() == 1 {
        return lists.remove(0);
    }
    let (tx, rx) = watch::channel(Arc::new(join(&mut lists, 0)));
    if !lists.is_empty() {
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    any = changed(&mut lists) => if !any { break },
                    () = tx.closed() => return,
                }
                let revision = tx.borrow().revision;
                tx.send_replace(Arc::new(join(&mut lists, revision)));
            }
            // Every source is gone: what they said last stays as long as someone looks at it.
            tx.closed().await;
        });
    }
    rx
}

/// Waits until one of the lists changes; false when all of them are gone.
async fn changed(lists: &mut [List]) -> bool {
    let mut waiting: FuturesUnordered<_> = lists.iter_mut().map(|list| list.changed()).collect();
    while let Some(result) = waiting.next().await {
        if result.is_ok() {
            return true;
        }
    }
    false
}

fn join(lists: &mut [List], before: u64) -> Snapshot {
    let mut seen = HashSet::new();
    let mut joined = Snapshot::default();
    let mut complete = true;
    for list in lists {
        let gone = list.has_changed().is_err();
        let snapshot = list.borrow_and_update().clone();
        complete &= snapshot.revision > 0 || gone;
        for instance in &snapshot.instances {
            if seen.insert((instance.address.clone(), instance.group.clone())) {
                joined.instances.push(instance.clone());
            }
        }
        joined.stale = match (joined.stale.take(), &snapshot.stale) {
            (Some(a), Some(b)) => Some(format!("{a}; {b}")),
            (a, b) => a.or_else(|| b.clone()),
        };
    }
    joined.revision = if complete || !joined.instances.is_empty() { before + 1 } else { 0 };
    joined
}

#[cfg(test)]
mod tests {
    use model::Instance;

    use super::*;

    fn snapshot(revision: u64, addresses: &[&str]) -> Arc<Snapshot> {
        Arc::new(Snapshot { revision, instances: addresses.iter().copied().map(Instance::at).collect(), stale: None })
    }

    fn addresses(list: &List) -> Vec<String> {
        list.borrow().instances.iter().map(|i| i.address.clone()).collect()
    }

    #[tokio::test]
    async fn lists_are_joined_in_order_and_kept_when_their_source_is_gone() {
        let (a, ra) = watch::channel(snapshot(0, &[]));
        let (b, rb) = watch::channel(snapshot(0, &[]));
        let mut both = merge(vec![ra, rb]);
        assert_eq!(both.borrow().revision, 0, "nobody has answered yet");
        a.send_replace(snapshot(1, &["127.0.0.1:1", "127.0.0.1:2"]));
        both.changed().await.unwrap();
        assert_eq!(both.borrow_and_update().revision, 1, "what is known is served");
        b.send_replace(snapshot(1, &["127.0.0.1:2", "127.0.0.1:3"]));
        both.changed().await.unwrap();
        assert_eq!(both.borrow_and_update().revision, 2);
        assert_eq!(addresses(&both), ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]);
        drop(a);
        b.send_replace(snapshot(2, &[]));
        while addresses(&both) != ["127.0.0.1:1", "127.0.0.1:2"] {
            both.changed().await.unwrap();
        }
        drop(b);
        assert_eq!(addresses(&both), ["127.0.0.1:1", "127.0.0.1:2"]);
    }

    #[tokio::test]
    async fn no_list_at_all_is_an_empty_one() {
        let none = merge(Vec::new());
        assert_eq!(none.borrow().revision, 1);
        assert!(addresses(&none).is_empty());
    }
}
