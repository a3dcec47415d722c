//! What every kind of store promises.

use std::sync::Arc;

use super::*;

/// A batch that writes pairs of texts.
pub(super) fn put(pairs: &[(&str, &str)]) -> Batch {
    let put = pairs.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect();
    Batch { put, ..Batch::default() }
}

/// `key=value` of what a scan finds.
pub(super) async fn texts(store: &dyn Store, prefix: &str, after: Option<&str>, limit: usize) -> Vec<String> {
    let entries = store.scan(prefix, after, limit).await.unwrap();
    entries.iter().map(|e| format!("{}={}", e.key, String::from_utf8_lossy(&e.value))).collect()
}

/// Everything that holds of all of them. The store is empty.
pub(super) async fn keeps_its_promises(store: Arc<dyn Store>) {
    // Order, prefix, place, number.
    let all = [("a/1", "one"), ("a/2", "two"), ("a/3", "three"), ("b/1", "b"), ("a", "short")];
    let first = store.commit(put(&all)).await.unwrap();
    assert_eq!(texts(&*store, "a/", None, 9).await, ["a/1=one", "a/2=two", "a/3=three"]);
    assert_eq!(texts(&*store, "a/", Some("a/1"), 1).await, ["a/2=two"]);
    // A place that is no key any more, or never was.
    assert_eq!(texts(&*store, "a/", Some("a/20"), 9).await, ["a/3=three"]);
    assert_eq!(texts(&*store, "c", None, 9).await.len(), 0);

    // Stamps only grow, and entries stand at the stamp of their batch.
    let second = store.commit(put(&[("a/2", "zwei")])).await.unwrap();
    assert!(second.revision > first.revision && second.epoch == first.epoch, "{first:?} {second:?}");
    let at: Vec<_> = store.scan("a/", None, 9).await.unwrap().iter().map(|e| e.revision).collect();
    assert_eq!(at, [first.revision, second.revision, first.revision]);

    // Compare and swap: all or nothing.
    let expect = |pairs: &[(&str, u64)]| pairs.iter().map(|(key, at)| ((*key).to_owned(), *at)).collect::<Vec<_>>();
    let stale =
        Batch { expect: expect(&[("a/1", first.revision), ("a/2", first.revision)]), ..put(&[("a/1", "lost")]) };
    assert_eq!(store.commit(stale).await, Err(StoreError::Conflict { key: "a/2".into() }));
    let there = Batch { expect: expect(&[("a/1", 0)]), delete: vec!["a/3".into()], ..Batch::default() };
    assert_eq!(store.commit(there).await, Err(StoreError::Conflict { key: "a/1".into() }));
    assert_eq!(texts(&*store, "a/", None, 9).await, ["a/1=one", "a/2=zwei", "a/3=three"]);
    let good = Batch {
        expect: expect(&[("a/2", second.revision), ("a/9", 0)]),
        delete: vec!["a/1".into(), "a/none".into()],
        ..put(&[("a/9", "new")])
    };
    let third = store.commit(good).await.unwrap();
    assert_eq!(texts(&*store, "a/", None, 9).await, ["a/2=zwei", "a/3=three", "a/9=new"]);
    assert!(store.stamp() >= third);

    // Of many who want the same, one gets it.
    let mut racing = tokio::task::JoinSet::new();
    for i in 0..20 {
        let store = store.clone();
        let want = Batch { expect: vec![("race".into(), 0)], ..put(&[("race", &i.to_string())]) };
        racing.spawn(async move { store.commit(want).await.is_ok() });
    }
    assert_eq!(racing.join_all().await.into_iter().filter(|won| *won).count(), 1);

    // Duties of a leader are bound to its epoch.
    let leadership = store.leadership().borrow().clone();
    assert!(leadership.leads && leadership.epoch == store.stamp().epoch, "{leadership:?}");
    let fenced = |epoch| Batch { fenced: Some(epoch), ..put(&[("duty", "done")]) };
    assert_eq!(store.commit(fenced(leadership.epoch - 1)).await, Err(StoreError::NotLeader));
    assert_eq!(store.commit(fenced(leadership.epoch + 1)).await, Err(StoreError::NotLeader));
    store.commit(fenced(leadership.epoch)).await.unwrap();

    // More than any store takes at once.
    let large = Batch { put: vec![("large".into(), vec![0; BATCH_BYTES])], ..Batch::default() };
    assert!(matches!(store.commit(large).await, Err(StoreError::Failed(why)) if why.contains("at most")));

    // A batch is one change however many keys it has.
    let many: Vec<_> = (0..500).map(|i| (format!("many/{i:03}"), vec![b'x'; 40])).collect();
    let stamp = store.commit(Batch { put: many, ..Batch::default() }).await.unwrap();
    let found = store.scan("many/", None, 1000).await.unwrap();
    assert_eq!(found.len(), 500);
    assert!(found.iter().all(|entry| entry.revision <= stamp.revision));

    let (sink, mut pieces) = mpsc::channel(1);
    let reading = async {
        let mut all = Vec::new();
        while let Some(piece) = pieces.recv().await {
            all.extend(piece);
        }
        all
    };
    let (stamp, all) = tokio::join!(store.snapshot(sink), reading);
    assert_eq!(stamp.unwrap(), store.stamp());
    assert_eq!(all, store.scan("", None, 10_000).await.unwrap());
    assert!(all.len() > 500);
    assert_eq!(*store.trouble().borrow(), None);
}

#[tokio::test]
async fn memory_keeps_its_promises() {
    keeps_its_promises(Arc::new(Memory::new("me"))).await;
}
