//! `etcd`: the same data under a prefix of an etcd v3 cluster, shared by several centres.
//!
//! | key under the prefix | value |
//! |---|---|
//! | `data/KEY` | an entry |
//! | `epoch` | epoch and what is added to etcd's revisions |
//! | `leader` | name of the centre that leads; under its lease |
//! | `by` | who wrote last: changed with every batch, tells one's own changes from others' |
//! | `restoring` | there while a backup is written: no centre serves |
//!
//! A batch is one transaction; one with more keys or bytes than etcd takes at once is made in parts, each of them whole.
//! Stamps are etcd's own revisions, which all centres see in the same order.
//!
//! The leader key's revision is the fence: whoever wrote that key put the epoch up by one in the same transaction, and
//! every fenced batch is made only while the key still stands at that revision. A leader that cannot renew its lease
//! stops thinking that it leads when two thirds of the lease are over, by a clock that nobody sets.

mod follow;
mod lead;
mod restore;
#[cfg(test)]
mod secured;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use model::{
    center::Stamp,
    kind::{self, Value},
};
use parking_lot::Mutex;
use registries::etcd::client::{Access, Client, Error, Range, Step};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{broadcast, mpsc, watch},
    task::JoinSet,
    time::timeout,
};

pub use self::restore::restore;
use super::{Batch, BuildCx, Changes, Entry, Leadership, Store, StoreError};

/// Most changes of one transaction: etcd takes 128, and `by` is one.
const STEPS: usize = 120;
/// Most bytes of one transaction: etcd takes 1.5 MiB.
const STEP_BYTES: usize = 1 << 20;
/// Keys read at once.
const PAGE: i64 = 1000;
/// How long the first question waits for the first list.
const READY: Duration = Duration::from_secs(10);
/// Batches of changes that wait for one follower.
const CHANGES: usize = 1024;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    address: Vec<String>,
    prefix: String,
    #[serde(deserialize_with = "kind::duration")]
    lease: Duration,
    tls: Option<Value>,
    username: Option<String>,
    password: Option<String>,
    password_file: Option<PathBuf>,
}

impl Default for Written {
    fn default() -> Self {
        Self {
            address: Vec::new(),
            prefix: "/sockmesh/center".to_owned(),
            lease: Duration::from_secs(10),
            tls: None,
            username: None,
            password: None,
            password_file: None,
        }
    }
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Store>> {
    let written = kind::options(options)?;
    Ok(Arc::new(if cx.passing { Etcd::passing(written, &cx.name)? } else { Etcd::new(written, &cx.name)? }))
}

/// What `epoch` holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Epoch {
    epoch: u64,
    /// Added to etcd's revisions: more than 0 after a restore.
    base: u64,
}

impl Epoch {
    /// Revision of a stamp from etcd's.
    fn revision(self, etcd: i64) -> u64 {
        u64::try_from(etcd).unwrap_or(0).saturating_add(self.base)
    }

    /// The other way; what was never given is a revision that no key has.
    fn etcd(self, revision: u64) -> i64 {
        match revision {
            0 => 0,
            revision => revision.checked_sub(self.base).and_then(|r| i64::try_from(r).ok()).unwrap_or(i64::MAX),
        }
    }
}

/// Who holds the leader key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Leader {
    name: String,
    /// Revision of the key; 0: nobody.
    revision: i64,
}

/// What is known of the cluster.
#[derive(Debug, Default)]
struct State {
    epoch: Epoch,
    /// Revision of the key `epoch`.
    epoch_at: i64,
    /// etcd's revision up to which all changes are known.
    revision: i64,
    /// Revision at which this centre took the lead; 0: it does not.
    fence: i64,
    /// Followed keys with their revisions, for what went while nobody looked.
    known: HashMap<String, i64>,
}

struct Shared {
    client: Client,
    prefix: String,
    name: String,
    /// Names this process in `by`.
    id: String,
    lease: Duration,
    state: Mutex<State>,
    ready: watch::Sender<bool>,
    leader: watch::Sender<Leader>,
    leadership: watch::Sender<Leadership>,
    trouble: watch::Sender<Option<String>>,
    changes: broadcast::Sender<Arc<Changes>>,
    /// Told that the lead has to be given up.
    stop: watch::Sender<bool>,
}

/// See the module.
pub struct Etcd {
    shared: Arc<Shared>,
    /// Ended on drop.
    tasks: JoinSet<()>,
}

impl Etcd {
    fn new(written: Written, name: &str) -> anyhow::Result<Self> {
        let mut etcd = Self::passing(written, name)?;
        etcd.tasks.spawn(lead::lead(etcd.shared.clone()));
        Ok(etcd)
    }

    /// One that never leads.
    fn passing(written: Written, name: &str) -> anyhow::Result<Self> {
        let shared = Shared::new(written, name)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(follow::follow(shared.clone()));
        Ok(Self { shared, tasks })
    }
}

impl Shared {
    fn new(written: Written, name: &str) -> anyhow::Result<Arc<Self>> {
        let prefix = written.prefix.trim_end_matches('/').to_owned();
        anyhow::ensure!(!prefix.is_empty(), "prefix: nothing is left of it; write it like `/sockmesh/center`");
        anyhow::ensure!(written.lease >= Duration::from_secs(2), "lease: at least 2s, etcd counts in seconds");
        let Written { address, lease, tls, username, password, password_file, .. } = written;
        let access = Access { tls, username, password, password_file };
        Ok(Arc::new(Self {
            client: Client::new(&address, access, lease)?,
            prefix,
            name: name.to_owned(),
            id: format!("{name} {:016x}", fastrand::u64(..)),
            lease,
            state: Mutex::default(),
            ready: watch::Sender::new(false),
            leader: watch::Sender::default(),
            leadership: watch::Sender::default(),
            trouble: watch::Sender::new(None),
            changes: broadcast::Sender::new(CHANGES),
            stop: watch::Sender::new(false),
        }))
    }

    fn key(&self, name: &str) -> Vec<u8> {
        format!("{}/{name}", self.prefix).into_bytes()
    }

    fn data(&self, key: &str) -> Vec<u8> {
        format!("{}/data/{key}", self.prefix).into_bytes()
    }

    /// The key of an entry, of etcd's.
    fn entry_key<'a>(&self, key: &'a [u8]) -> Option<&'a str> {
        std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?.strip_prefix("/data/")
    }

    fn failed(&self, error: &Error) -> StoreError {
        StoreError::Failed(format!("etcd at {}: {error}", self.client.members()))
    }

    /// Waits until everything was read once.
    async fn ready(&self) -> Result<(), StoreError> {
        let mut ready = self.ready.subscribe();
        if *ready.borrow() {
            return Ok(());
        }
        match timeout(READY, ready.wait_for(|ready| *ready)).await {
            Ok(_) => Ok(()),
            Err(_) => {
                let why = self.trouble.borrow().clone();
                Err(StoreError::Failed(why.unwrap_or_else(|| format!("etcd at {} is slow", self.client.members()))))
            }
        }
    }

    fn tell_trouble(&self, why: Option<String>) {
        self.trouble.send_if_modified(|trouble| {
            let new = *trouble != why;
            match &why {
                Some(why) if trouble.is_none() => tracing::error!(%why, "the store is read-only"),
                None if trouble.is_some() => tracing::info!("the store is written again"),
                _ => {}
            }
            *trouble = why;
            new
        });
    }

    async fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        self.ready().await?;
        let mut range = Range::prefix(&self.data(prefix));
        if let Some(after) = after {
            range.from = [&self.data(after)[..], &[0]].concat();
        }
        let mut entries = Vec::new();
        while entries.len() < limit {
            range.limit = i64::try_from(limit - entries.len()).unwrap_or(PAGE).min(PAGE);
            let found = self.client.range(range.clone()).await.map_err(|error| self.failed(&error))?;
            range.revision = if range.revision == 0 { found.revision } else { range.revision };
            let Some(last) = found.pairs.last() else { break };
            range.from = [&last.key[..], &[0]].concat();
            entries.extend(self.entries(found.pairs));
            if !found.more {
                break;
            }
        }
        Ok(entries)
    }

    fn entries(&self, pairs: Vec<registries::etcd::client::Pair>) -> impl Iterator<Item = Entry> {
        let epoch = self.state.lock().epoch;
        pairs.into_iter().filter_map(move |pair| {
            let key = self.entry_key(&pair.key)?.to_owned();
            Some(Entry { key, value: pair.value, revision: epoch.revision(pair.revision) })
        })
    }

    async fn commit(&self, batch: Batch) -> Result<Stamp, StoreError> {
        batch.check()?;
        self.ready().await?;
        let (epoch, fence) = {
            let state = self.state.lock();
            (state.epoch, state.fence)
        };
        let mut expected: Vec<_> =
            batch.expect.iter().map(|(key, revision)| (self.data(key), epoch.etcd(*revision))).collect();
        if expected.len() > STEPS {
            return Err(StoreError::Failed(format!("{} expectations; at most {STEPS} are taken", expected.len())));
        }
        let mut fenced = Vec::new();
        if let Some(decided_in) = batch.fenced {
            if fence == 0 || !self.leadership.borrow().leads || decided_in != epoch.epoch {
                return Err(StoreError::NotLeader);
            }
            fenced.push((self.key("leader"), fence));
        }
        let deletes = batch.delete.iter().map(|key| Step::Delete { key: self.data(key) });
        let puts = batch.put.into_iter().map(|(key, value)| Step::Put { key: self.data(&key), value, lease: 0 });
        let mut revision = 0;
        for part in parts(deletes.chain(puts)) {
            let by = Step::Put { key: self.key("by"), value: self.id.clone().into_bytes(), lease: 0 };
            let steps = part.into_iter().chain([by]).collect();
            let conditions = fenced.iter().cloned().chain(std::mem::take(&mut expected)).collect();
            match self.client.transact(conditions, steps).await {
                Ok(Some(at)) => revision = at,
                Ok(None) => return Err(self.unexpected(&batch.expect, epoch, &fenced).await?),
                Err(error) => {
                    if matches!(&error, Error::Refused(why) if why.contains("space exceeded")) {
                        self.tell_trouble(Some(format!(
                            "etcd at {} is full; compact and defragment it, raise its quota, disarm the alarm: \
                             docs/scale.md",
                            self.client.members()
                        )));
                    }
                    return Err(self.failed(&error));
                }
            }
        }
        let mut state = self.state.lock();
        state.revision = state.revision.max(revision);
        Ok(Stamp { epoch: state.epoch.epoch, revision: epoch.revision(revision) })
    }

    /// Which condition of a batch did not hold.
    async fn unexpected(
        &self,
        expect: &[(String, u64)],
        epoch: Epoch,
        fenced: &[(Vec<u8>, i64)],
    ) -> Result<StoreError, StoreError> {
        let at = async |key: Vec<u8>| {
            let range = Range { from: key, keys_only: true, ..Range::default() };
            let found = self.client.range(range).await.map_err(|error| self.failed(&error))?;
            Ok::<_, StoreError>(found.pairs.first().map_or(0, |pair| pair.revision))
        };
        for (key, revision) in fenced {
            if at(key.clone()).await? != *revision {
                return Ok(StoreError::NotLeader);
            }
        }
        for (key, revision) in expect {
            if at(self.data(key)).await? != epoch.etcd(*revision) {
                return Ok(StoreError::Conflict { key: key.clone() });
            }
        }
        // It was changed there and back meanwhile.
        let first = expect.first().map(|(key, _)| key.clone());
        Ok(first.map_or(StoreError::NotLeader, |key| StoreError::Conflict { key }))
    }

    async fn snapshot(&self, sink: mpsc::Sender<Vec<Entry>>) -> Result<Stamp, StoreError> {
        self.ready().await?;
        let mut range = Range { limit: PAGE, ..Range::prefix(&self.data("")) };
        loop {
            let found = self.client.range(range.clone()).await.map_err(|error| self.failed(&error))?;
            if range.revision == 0 {
                range.revision = found.revision;
            }
            let last = found.pairs.last().map(|pair| [&pair.key[..], &[0]].concat());
            let piece = self.entries(found.pairs).collect();
            let state = self.state.lock().epoch;
            let stamp = Stamp { epoch: state.epoch, revision: state.revision(range.revision) };
            match last {
                Some(last) if found.more => range.from = last,
                _ => {
                    // Nobody may be listening any more.
                    let _ = sink.send(piece).await;
                    return Ok(stamp);
                }
            }
            if sink.send(piece).await.is_err() {
                return Ok(stamp);
            }
        }
    }
}

/// Steps in as many transactions as they need; one even when there are none.
fn parts(steps: impl Iterator<Item = Step>) -> Vec<Vec<Step>> {
    let (mut parts, mut bytes) = (vec![Vec::new()], 0);
    for step in steps {
        let size = match &step {
            Step::Put { key, value, .. } => key.len() + value.len(),
            Step::Delete { key } => key.len(),
        };
        let last = parts.len() - 1;
        if !parts[last].is_empty() && (parts[last].len() >= STEPS || bytes + size > STEP_BYTES) {
            parts.push(vec![step]);
            bytes = size;
        } else {
            parts[last].push(step);
            bytes += size;
        }
    }
    parts
}

impl Store for Etcd {
    fn scan<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Entry>, StoreError>> {
        Box::pin(self.shared.scan(prefix, after, limit))
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Stamp, StoreError>> {
        Box::pin(async move {
            // In a task of its own: dropping the future does not take back what was asked.
            let shared = self.shared.clone();
            let made = tokio::spawn(async move { shared.commit(batch).await }).await;
            made.unwrap_or_else(|error| Err(StoreError::Failed(error.to_string())))
        })
    }

    fn stamp(&self) -> Stamp {
        let state = self.shared.state.lock();
        Stamp { epoch: state.epoch.epoch, revision: state.epoch.revision(state.revision) }
    }

    fn changes(&self) -> Option<broadcast::Receiver<Arc<Changes>>> {
        Some(self.shared.changes.subscribe())
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.shared.leadership.subscribe()
    }

    fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.shared.trouble.subscribe()
    }

    fn snapshot(&self, sink: mpsc::Sender<Vec<Entry>>) -> BoxFuture<'_, Result<Stamp, StoreError>> {
        Box::pin(self.shared.snapshot(sink))
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(lead::give_up(&self.shared))
    }
}
