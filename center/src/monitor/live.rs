//! `GET /v1/live`: what changes, every second, to everybody who looks. Computed once for all of them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use model::center::{Figures, Of};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Monitor;
use crate::clock;

/// How often.
const EVERY: Duration = Duration::from_secs(1);

/// What is told in one second.
#[derive(Clone, Debug, Default)]
pub(super) struct Tick {
    /// Grows by one.
    pub number: u64,
    /// Time of day.
    pub at_ms: u64,
    /// Figures of all services by group and name.
    pub all: Arc<BTreeMap<(String, String), Figures>>,
    /// Those that are not as they were in the tick before.
    pub changed: Arc<BTreeMap<(String, String), Figures>>,
}

/// Ticks, while somebody looks.
#[derive(Debug, Default)]
pub(super) struct Hub(Mutex<Option<watch::Sender<Arc<Tick>>>>);

impl Hub {
    /// The present tick and the next ones. Must be called within a runtime.
    pub(super) fn join(&self, monitor: &Arc<Monitor>) -> watch::Receiver<Arc<Tick>> {
        let mut sender = self.0.lock();
        if let Some(sender) = sender.as_ref().filter(|sender| !sender.is_closed()) {
            return sender.subscribe();
        }
        let (new, receiver) = watch::channel(Arc::new(monitor.tick(&Tick::default())));
        *sender = Some(new.clone());
        tokio::spawn(run(Arc::downgrade(monitor), new));
        receiver
    }
}

async fn run(monitor: Weak<Monitor>, sender: watch::Sender<Arc<Tick>>) {
    let mut beat = tokio::time::interval(EVERY);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    beat.tick().await;
    loop {
        tokio::select! {
            _ = beat.tick() => {}
            () = sender.closed() => return,
        }
        let Some(monitor) = monitor.upgrade() else { return };
        let next = monitor.tick(&sender.borrow());
        sender.send_replace(Arc::new(next));
    }
}

impl Monitor {
    fn tick(&self, before: &Tick) -> Tick {
        let mut all = BTreeMap::new();
        for (service, group) in self.services() {
            let of = Of { service, group, ..Of::default() };
            let figures = self.lately(&of);
            all.insert((of.group, of.service), figures);
        }
        let differs = |(key, figures): &(&(String, String), &Figures)| before.all.get(key) != Some(figures);
        let changed = all.iter().filter(differs).map(|(key, figures)| (key.clone(), figures.clone())).collect();
        // A service that is gone has no calls.
        let gone = before.all.keys().filter(|key| !all.contains_key(*key));
        let gone: Vec<_> = gone.map(|key| (key.clone(), Figures::default())).collect();
        let mut changed: BTreeMap<_, _> = changed;
        changed.extend(gone);
        Tick { number: before.number + 1, at_ms: clock::now_ms(), all: Arc::new(all), changed: Arc::new(changed) }
    }
}
