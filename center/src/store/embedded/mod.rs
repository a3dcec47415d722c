//! `embedded`: a redb database in the centre's own directory. One process at a time; no server, no setup.
//!
//! One thread writes. It takes everything that waits, makes one transaction of it and one sync, and answers all: a
//! thousand registrations that come together cost one sync, and what was acknowledged is on the disk. A batch whose
//! expectations do not hold is left out of the transaction as a whole. Every start is a new epoch.
//!
//! A disk that is full, or broken, turns the store read-only: what waits is refused with the reason, the database is
//! opened again (redb gives up a database after an error of the disk), and once a second a small write tries whether
//! there is room again.

mod file;
mod lock;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

use anyhow::Context;
use futures_util::future::BoxFuture;
use model::{
    center::Stamp,
    kind::{self, Value},
};
use tokio::sync::{mpsc, oneshot, watch};

pub use self::file::restore;
use self::{
    file::{ENTRIES, Opener},
    lock::Lock,
    writer::{Shared, Writer},
};
use super::{Batch, BuildCx, Entry, Leadership, Store, StoreError};
use crate::database;

/// Name of the database in the directory.
const FILE: &str = "center.redb";
/// Entries handed over at once in a snapshot.
const PIECE: usize = 1000;

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Store>> {
    kind::no_options(options)?;
    Ok(Arc::new(Embedded::open(&cx.data, &cx.name)?))
}

/// Whether a process uses the store in `dir`.
pub fn in_use(dir: &Path) -> bool {
    exists(dir) && Lock::take(dir).is_err()
}

/// Whether there is a store in `dir`.
pub fn exists(dir: &Path) -> bool {
    dir.join(FILE).exists()
}

/// See the module.
pub struct Embedded {
    shared: Arc<Shared>,
    leadership: watch::Sender<Leadership>,
    thread: Option<JoinHandle<()>>,
    // Last: nobody else may open the database before it is closed.
    _lock: Lock,
}

impl Embedded {
    /// Opens the database in `dir`, or begins a new one; in a new epoch. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// Another process uses it (says which); it is damaged; the directory cannot be written.
    pub fn open(dir: &Path, name: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot make the directory {}; choose another with --data", dir.display()))?;
        let lock = Lock::take(dir)?;
        let path = dir.join(FILE);
        let opener = Box::new(move || database::open(&path));
        Self::start(opener, lock, dir.to_owned(), name)
    }

    fn start(opener: Opener, lock: Lock, dir: PathBuf, name: &str) -> anyhow::Result<Self> {
        let writer = Writer::begin(opener, dir)?;
        let shared = writer.shared.clone();
        let leadership = Leadership { leads: true, leader: name.to_owned(), epoch: shared.stamp().epoch };
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || writer.run());
        let thread = Some(thread.context("cannot start the thread that writes")?);
        Ok(Self { shared, leadership: watch::Sender::new(leadership), thread, _lock: lock })
    }

    /// Runs `read` on the newest state, beside everything else.
    async fn reading<T: Send + 'static>(
        &self,
        read: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = self.shared.clone();
        let reading = tokio::task::spawn_blocking(move || {
            // The database itself is let go at once: after an error of the disk the writer opens it anew, and must not
            // have to wait for readers.
            let transaction = shared.begin_read()?;
            read(&transaction).map_err(|error| StoreError::Failed(error.to_string()))
        });
        reading.await.unwrap_or_else(|error| Err(StoreError::Failed(error.to_string())))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(thread) = self.thread.take() {
            // It ends after the transaction that it is in; a panic there has been reported.
            let _ = thread.join();
        }
    }
}

impl Store for Embedded {
    fn scan<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Entry>, StoreError>> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        Box::pin(self.reading(move |transaction| {
            let table = transaction.open_table(ENTRIES)?;
            let mut entries = Vec::new();
            for row in table.range(after.as_deref().unwrap_or(&prefix)..)? {
                let (key, value) = row?;
                let key = key.value();
                if entries.len() >= limit || !key.starts_with(&prefix) {
                    break;
                }
                if after.as_deref() == Some(key) {
                    continue;
                }
                let (revision, value) = value.value();
                entries.push(Entry { key: key.to_owned(), value: value.to_owned(), revision });
            }
            Ok(entries)
        }))
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Stamp, StoreError>> {
        Box::pin(async move {
            batch.check()?;
            let room = self.shared.room(batch.size()).await;
            let (done, answer) = oneshot::channel();
            self.shared.push(batch, done, room);
            answer.await.unwrap_or_else(|_| Err(StoreError::Failed("the centre is stopping".to_owned())))
        })
    }

    fn stamp(&self) -> Stamp {
        self.shared.stamp()
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.shared.trouble.subscribe()
    }

    fn snapshot(&self, sink: mpsc::Sender<Vec<Entry>>) -> BoxFuture<'_, Result<Stamp, StoreError>> {
        Box::pin(self.reading(move |transaction| {
            let stamp = file::stamp_of(&transaction.open_table(file::META)?)?;
            let table = transaction.open_table(ENTRIES)?;
            let mut piece = Vec::new();
            for row in table.range::<&str>(..)? {
                let (key, value) = row?;
                let (revision, value) = value.value();
                piece.push(Entry { key: key.value().to_owned(), value: value.to_owned(), revision });
                if piece.len() == PIECE && sink.blocking_send(std::mem::take(&mut piece)).is_err() {
                    return Ok(stamp);
                }
            }
            // Nobody may be listening any more.
            let _ = sink.blocking_send(piece);
            Ok(stamp)
        }))
    }
}
