//! Several centres on one store.

use futures_util::future::BoxFuture;
use model::{
    Instance,
    center::{Registration, Registrations},
};
use tokio::{
    sync::broadcast,
    time::{advance, sleep},
};

use super::*;
use crate::store::{Batch, Changes, Entry, Leadership, Memory, StoreError};

/// What one centre has of a store that another one writes, too.
struct Shared {
    kept: Arc<Memory>,
    from_others: broadcast::Sender<Arc<Changes>>,
    to_others: broadcast::Sender<Arc<Changes>>,
    leads: watch::Sender<Leadership>,
}

impl Store for Shared {
    fn scan<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Entry>, StoreError>> {
        self.kept.scan(prefix, after, limit)
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Stamp, StoreError>> {
        Box::pin(async move {
            let stamp = self.kept.commit(batch.clone()).await?;
            let put = batch.put.into_iter().map(|(key, value)| Entry { key, value, revision: stamp.revision });
            let changes = Changes { stamp, put: put.collect(), delete: batch.delete };
            // Nobody listens while the other one is down.
            let _ = self.to_others.send(Arc::new(changes));
            Ok(stamp)
        })
    }

    fn stamp(&self) -> Stamp {
        self.kept.stamp()
    }

    fn changes(&self) -> Option<broadcast::Receiver<Arc<Changes>>> {
        Some(self.from_others.subscribe())
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leads.subscribe()
    }

    fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.kept.trouble()
    }

    fn snapshot(&self, sink: tokio::sync::mpsc::Sender<Vec<Entry>>) -> BoxFuture<'_, Result<Stamp, StoreError>> {
        self.kept.snapshot(sink)
    }
}

/// Two centres; `missed` changes in a row are too many to be told one by one.
fn pair(missed: usize) -> [Arc<Shared>; 2] {
    let kept = Arc::new(Memory::new("x"));
    let (a, b) = (broadcast::Sender::new(missed), broadcast::Sender::new(missed));
    let one = |from_others: &broadcast::Sender<_>, to_others: &broadcast::Sender<_>, leads| {
        let leads = watch::Sender::new(Leadership { leads, leader: "a".into(), epoch: 1 });
        Arc::new(Shared { kept: kept.clone(), from_others: from_others.clone(), to_others: to_others.clone(), leads })
    };
    [one(&a, &b, true), one(&b, &a, false)]
}

async fn start(store: &Arc<Shared>, name: &str) -> Arc<Registry> {
    let store: Arc<dyn Store> = store.clone();
    let config = Config { center: name.into(), ..Config::default() };
    let registry = Registry::new(config, store.clone(), Audit::new(store));
    registry.load().await.unwrap();
    registry
}

fn key() -> ServiceKey {
    ServiceKey { service: "s".into(), group: "g".into(), version: String::new() }
}

fn all(generation: u64, ports: &[u16]) -> Registrations {
    let said = |port: &u16| Registration {
        key: key(),
        protocol: "motan2".into(),
        instance: Instance::at(format!("127.0.0.1:{port}")),
        application: "shop".into(),
        parameters: Default::default(),
        available: true,
    };
    let registrations = ports.iter().map(said).collect();
    Registrations { agent: "h/a".into(), ttl_ms: 10_000, generation, registrations }
}

fn anyone() -> Actor {
    Actor::anyone(String::new())
}

async fn listed(registry: &Registry, wanted: &str) {
    let shown = || {
        let list = registry.snapshot(&key());
        list.instances.iter().map(|i| i.address.rsplit_once(':').unwrap().1.to_owned()).collect::<Vec<_>>().join(" ")
    };
    let mut changes = registry.changes();
    let found = tokio::time::timeout(Duration::from_secs(1), changes.wait_for(|_| shown() == wanted)).await;
    assert!(found.is_ok(), "waited for `{wanted}`, have `{}`", shown());
}

async fn beat(registry: &Registry, generation: u64) -> bool {
    let beat = Heartbeat { agent: "h/a".into(), generation };
    registry.heartbeat(&anyone(), &beat).await.unwrap().known
}

#[tokio::test(start_paused = true)]
async fn what_one_centre_is_told_all_know_and_an_agent_may_change_between_them() {
    let [store_a, store_b] = pair(100);
    let (a, b) = (start(&store_a, "a").await, start(&store_b, "b").await);
    a.register(&anyone(), all(1, &[1, 2])).await.unwrap();
    listed(&b, "1 2").await;
    let scope = CommandScope::Group("g".into());
    let revision = a.set_text(&scope, 0, Some("{}".into()), None).await.unwrap();
    assert!(beat(&b, 1).await, "any of them is enough");
    assert_eq!(b.text(&scope), (revision, Some("{}".into())));
    let late = b.set_text(&scope, 0, None, None).await.unwrap_err();
    assert_eq!(late.code, crate::error::Code::Conflict);
    b.take_out(&anyone(), &key(), "127.0.0.1:1", Some("x")).await.unwrap();
    listed(&a, "2").await;
    b.register(&anyone(), all(2, &[1])).await.unwrap();
    listed(&a, "").await;
    b.take_out(&anyone(), &key(), "127.0.0.1:1", None).await.unwrap();
    listed(&a, "1").await;
    // The one that hears it counts for it; the other one does not lose it.
    for _ in 0..5 {
        sleep(Duration::from_secs(8)).await;
        assert!(beat(&b, 2).await);
    }
    listed(&a, "1").await;
    sleep(Duration::from_secs(25)).await;
    listed(&b, "").await;
    listed(&a, "").await;
    assert!(!beat(&a, 2).await);
}

#[tokio::test(start_paused = true)]
async fn agents_of_a_centre_that_is_gone_are_counted_by_the_one_that_leads() {
    let [store_a, store_b] = pair(100);
    let (a, b) = (start(&store_a, "a").await, start(&store_b, "b").await);
    b.register(&anyone(), all(1, &[1])).await.unwrap();
    listed(&a, "1").await;
    sleep(Duration::from_secs(9)).await;
    beat(&b, 1).await;
    drop(b);
    // Within its own time it comes over.
    sleep(Duration::from_secs(9)).await;
    listed(&a, "1").await;
    assert!(beat(&a, 1).await, "it came over");
    for _ in 0..5 {
        sleep(Duration::from_secs(8)).await;
        assert!(beat(&a, 1).await);
    }
    sleep(Duration::from_secs(11)).await;
    listed(&a, "").await;
    // One that comes over to nobody: 15 s until its centre counts as gone, and its own time, which began before.
    let b = start(&store_b, "b").await;
    b.register(&anyone(), all(2, &[2])).await.unwrap();
    listed(&a, "2").await;
    drop(b);
    sleep(Duration::from_secs(60)).await;
    listed(&a, "").await;
}

#[tokio::test(start_paused = true)]
async fn who_missed_too_much_reads_everything_anew() {
    let [store_a, store_b] = pair(2);
    let (a, b) = (start(&store_a, "a").await, start(&store_b, "b").await);
    a.register(&anyone(), all(1, &[1, 2, 3])).await.unwrap();
    listed(&b, "1 2 3").await;
    // Not a word of these reaches `b` before all are said: nothing here waits for anything but the store.
    for generation in 2..40 {
        store_a.to_others.send(Arc::new(Changes { stamp: store_a.stamp(), put: vec![], delete: vec![] })).unwrap();
        if generation == 39 {
            a.register(&anyone(), all(generation, &[3])).await.unwrap();
        }
    }
    advance(Duration::from_millis(1)).await;
    listed(&b, "3").await;
    assert_eq!(b.rows(&key()).len(), 1, "what went is gone here, too");
    assert!(beat(&b, 39).await);
}
