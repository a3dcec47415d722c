//! With paused time and a registry that says what the test wants.

use super::*;

struct Says(watch::Sender<Arc<Snapshot>>);

impl Registry for Says {
    fn watch(&self, _: &ServiceKey) -> List {
        self.0.subscribe()
    }
}

fn snapshot(revision: u64, n: u16, stale: Option<&str>) -> Arc<Snapshot> {
    let instances = (1..=n).map(|i| Instance::at(format!("10.0.0.1:{i}"))).collect();
    Arc::new(Snapshot { revision, instances, stale: stale.map(str::to_owned) })
}

struct Bench {
    says: watch::Sender<Arc<Snapshot>>,
    guards: Guards,
    list: List,
}

fn bench(rules: HoldBack, first: Arc<Snapshot>) -> Bench {
    let says = watch::Sender::new(first);
    let guards = Guards::new(None, rules);
    let registry: Arc<dyn Registry> = Arc::new(Says(says.clone()));
    let key = ServiceKey { service: "s".into(), ..ServiceKey::default() };
    let list = guards.watch("r", &registry, &key);
    Bench { says, guards, list }
}

impl Bench {
    /// Says it, and waits until so many are served.
    async fn say(&mut self, snapshot: Arc<Snapshot>, served: usize, stale: Option<&str>) {
        self.says.send_replace(snapshot);
        self.served(served, stale).await;
    }

    async fn served(&mut self, n: usize, stale: Option<&str>) {
        let fits = |s: &Arc<Snapshot>| {
            s.instances.len() == n
                && match (&s.stale, stale) {
                    (Some(why), Some(part)) => why.contains(part),
                    (why, part) => why.is_none() && part.is_none(),
                }
        };
        let found = tokio::time::timeout(Duration::from_secs(3600), self.list.wait_for(fits)).await.map(drop);
        assert!(found.is_ok(), "waited for {n} (stale {stale:?}), have {:?}", self.list.borrow());
    }
}

#[tokio::test(start_paused = true)]
async fn a_whole_list_is_passed_on_at_once_and_an_empty_one_never_by_itself() {
    let mut it = bench(HoldBack::default(), snapshot(0, 0, None));
    assert_eq!(it.list.borrow().revision, 0, "nothing was said yet");
    it.say(snapshot(1, 10, None), 10, None).await;
    it.say(snapshot(2, 3, None), 3, None).await;
    it.say(snapshot(3, 12, None), 12, None).await;
    it.say(snapshot(4, 0, None), 12, Some("lists 0 of 12 endpoints, 12 are kept; until")).await;
    let held = it.guards.held();
    assert_eq!((held.len(), held[0].holding.kept, held[0].holding.until), (1, 12, None));
    tokio::time::sleep(Duration::from_secs(100_000)).await;
    it.served(12, Some("held back")).await;
    // A registry that has its data again.
    it.say(snapshot(5, 11, None), 11, None).await;
    assert_eq!(it.guards.held(), []);
    assert_eq!(it.guards.confirm("s"), 0, "nothing is held");
    it.say(snapshot(6, 0, None), 11, Some("held back")).await;
    assert_eq!((it.guards.confirm("other"), it.guards.confirm("s")), (0, 1));
    it.served(0, None).await;
    // Confirmed once, it is what the next list is compared with.
    it.say(snapshot(7, 1, None), 1, None).await;
}

#[tokio::test(start_paused = true)]
async fn a_shrunken_list_is_believed_at_the_second_look() {
    let mut it = bench(HoldBack::default(), snapshot(1, 10, None));
    let begun = Instant::now();
    it.say(snapshot(2, 2, None), 10, Some("lists 2 of 10 endpoints, 8 are kept; believed in 60 s")).await;
    it.served(2, None).await;
    assert_eq!(begun.elapsed().as_secs(), 60);
    // 70 % gone is not over 70 %.
    it.say(snapshot(3, 10, None), 10, None).await;
    it.say(snapshot(4, 3, None), 3, None).await;
}

#[tokio::test(start_paused = true)]
async fn new_endpoints_serve_beside_those_that_are_held() {
    let mut it = bench(HoldBack::default(), snapshot(1, 10, None));
    let other = Snapshot { revision: 2, instances: vec![Instance::at("10.0.0.2:1")], stale: None };
    it.say(Arc::new(other), 11, Some("lists 1 of 10 endpoints, 10 are kept")).await;
    assert_eq!(it.list.borrow().instances[0].address, "10.0.0.2:1");
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_is_away_confirms_nothing() {
    let mut it = bench(HoldBack::default(), snapshot(1, 10, None));
    it.say(snapshot(2, 1, Some("no answer")), 10, Some("no answer; held back")).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    it.served(10, Some("no answer; held back")).await;
    // It is back, and was heard to say it for long enough.
    it.say(snapshot(3, 1, None), 1, None).await;
}

#[tokio::test(start_paused = true)]
async fn time_never_runs_back() {
    let mut it = bench(HoldBack::default(), snapshot(5, 3, None));
    it.say(snapshot(4, 9, None), 3, Some("from revision 5 to 4: not followed")).await;
    it.say(snapshot(6, 4, None), 4, None).await;
}

#[tokio::test(start_paused = true)]
async fn the_snapshot_serves_until_the_registry_answers_and_is_what_it_is_compared_with() {
    let dir = std::env::temp_dir().join(format!("sockmesh-guard-{}", std::process::id()));
    let key = ServiceKey { service: "s".into(), group: "g".into(), version: String::new() };
    let store = Arc::new(Store::new(dir.clone()));
    store.put("r", &key, &snapshot(1, 10, None));
    store.flush();
    let guards = Guards::new(Some(Arc::new(Store::new(dir.clone()))), HoldBack::default());
    let says = watch::Sender::new(snapshot(0, 0, Some("connection refused")));
    let registry: Arc<dyn Registry> = Arc::new(Says(says.clone()));
    let mut it = Bench { says, list: guards.watch("r", &registry, &key), guards };
    assert_eq!(it.list.borrow().revision, 1, "served at once");
    it.served(10, Some("connection refused; endpoints of a snapshot file")).await;
    // It comes back without its data.
    it.say(snapshot(1, 0, None), 10, Some("held back")).await;
    it.say(snapshot(2, 9, None), 9, None).await;
    it.guards.store().unwrap().flush();
    assert_eq!(Store::new(dir.clone()).recall("r", &key).unwrap().list.instances.len(), 9);
    let _ = std::fs::remove_dir_all(&dir);
}
