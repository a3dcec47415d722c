//! `memory`: nothing outlives the process. For tests, and for looking around.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::BoxFuture;
use model::{
    center::Stamp,
    kind::{self, Value},
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::{Batch, BuildCx, Entry, Leadership, Store, StoreError};

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Store>> {
    kind::no_options(options)?;
    Ok(Arc::new(Memory::new(&cx.name)))
}

/// Nobody else writes, ever: the first one stays.
const EPOCH: u64 = 1;

/// See the module.
#[derive(Debug)]
pub struct Memory {
    inner: Mutex<Inner>,
    leadership: watch::Sender<Leadership>,
    trouble: watch::Sender<Option<String>>,
}

#[derive(Debug)]
struct Inner {
    epoch: u64,
    revision: u64,
    entries: BTreeMap<String, (u64, Vec<u8>)>,
}

impl Memory {
    /// An empty one.
    pub fn new(name: &str) -> Self {
        let leadership = Leadership { leads: true, leader: name.to_owned(), epoch: EPOCH };
        let inner = Mutex::new(Inner { epoch: EPOCH, revision: 0, entries: BTreeMap::new() });
        Self { inner, leadership: watch::Sender::new(leadership), trouble: watch::Sender::new(None) }
    }

    /// Another centre has taken the lead, and this one has not heard of it yet.
    #[cfg(test)]
    pub fn overtake(&self) {
        self.inner.lock().epoch += 1;
    }

    /// This centre has taken the lead again, and hears of it.
    #[cfg(test)]
    pub fn lead(&self) {
        let mut inner = self.inner.lock();
        inner.epoch += 1;
        self.leadership.send_modify(|leadership| leadership.epoch = inner.epoch);
    }
}

impl Store for Memory {
    fn scan<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Entry>, StoreError>> {
        Box::pin(async move {
            let inner = self.inner.lock();
            let from = after.unwrap_or(prefix).to_owned();
            let entries = inner.entries.range(from..).filter(|(key, _)| after.is_none_or(|after| *key != after));
            let entries = entries.take_while(|(key, _)| key.starts_with(prefix)).take(limit);
            let entry = |(key, (revision, value)): (&String, &(u64, Vec<u8>))| Entry {
                key: key.clone(),
                value: value.clone(),
                revision: *revision,
            };
            Ok(entries.map(entry).collect())
        })
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Stamp, StoreError>> {
        Box::pin(async move {
            batch.check()?;
            let mut inner = self.inner.lock();
            if batch.fenced.is_some_and(|epoch| epoch != inner.epoch) {
                return Err(StoreError::NotLeader);
            }
            for (key, revision) in batch.expect {
                if inner.entries.get(&key).map_or(0, |(at, _)| *at) != revision {
                    return Err(StoreError::Conflict { key });
                }
            }
            inner.revision += 1;
            let revision = inner.revision;
            for key in batch.delete {
                inner.entries.remove(&key);
            }
            for (key, value) in batch.put {
                inner.entries.insert(key, (revision, value));
            }
            Ok(Stamp { epoch: inner.epoch, revision })
        })
    }

    fn stamp(&self) -> Stamp {
        let inner = self.inner.lock();
        Stamp { epoch: inner.epoch, revision: inner.revision }
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    fn snapshot(&self, sink: mpsc::Sender<Vec<Entry>>) -> BoxFuture<'_, Result<Stamp, StoreError>> {
        Box::pin(async move {
            let (stamp, all) = {
                let inner = self.inner.lock();
                let entry = |(key, (revision, value)): (&String, &(u64, Vec<u8>))| Entry {
                    key: key.clone(),
                    value: value.clone(),
                    revision: *revision,
                };
                let all: Vec<_> = inner.entries.iter().map(entry).collect();
                (Stamp { epoch: inner.epoch, revision: inner.revision }, all)
            };
            // Nobody may be listening any more.
            let _ = sink.send(all).await;
            Ok(stamp)
        })
    }
}
