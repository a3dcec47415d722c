//! What the centre keeps: values under keys, changed in batches that are durable when they are acknowledged.
//!
//! Everything that the centre decides by stands in memory too; the store is read once at the start, and by pages for
//! what only grows (audit, points of figures). Keys are paths, values JSON; the first part of a key says whose it is:
//!
//! | key | value | owner |
//! |---|---|---|
//! | `meta/...` | epoch, revision, layout | `store` |
//! | `instance/SERVICE/GROUP/ADDRESS` | registration, what operators said of it | `registry` |
//! | `agent/NAME`, `center/NAME` | generation, time to live; centres that live | `registry` |
//! | `text/SCOPE` | command text | `command` |
//! | `command/ID` | command with its history | `command` |
//! | `pool/SERVICE/GROUP`, `decision/SERVICE/GROUP` | policy; when a pool was changed last | `decide` |
//! | `rule/NAME`, `silence/ID`, `alert/ID` | alerts | `alert` |
//! | `user/NAME`, `token/ID`, `session/ID` | accounts | `auth` |
//! | `audit/ID` | audit | `audit` |

mod api;
pub mod backup;
mod embedded;
mod etcd;
mod memory;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use model::{center::Stamp, kind};
use tokio::sync::{broadcast, mpsc, watch};

pub use self::{
    api::routes,
    embedded::{Embedded, exists, in_use, restore},
    etcd::{Etcd, restore as restore_etcd},
    memory::Memory,
};

/// A row of [`KINDS`].
pub type Kind = kind::Kind<dyn Store, BuildCx>;

/// Stores by name.
pub const KINDS: &[Kind] = &[
    Kind { name: "embedded", build: embedded::build },
    Kind { name: "etcd", build: etcd::build },
    Kind { name: "memory", build: memory::build },
];

/// Largest batch that is taken: what the largest agent registers at once, many times over.
pub const BATCH_BYTES: usize = 16 << 20;

/// What a store may need while it is built.
#[derive(Clone, Debug, Default)]
pub struct BuildCx {
    /// Directory of this centre's data.
    pub data: std::path::PathBuf,
    /// Name of this centre among several on one store.
    pub name: String,
    /// Only here for one command: never leads.
    pub passing: bool,
}

/// A value and the revision of its last change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// Revision of the batch that wrote it.
    pub revision: u64,
}

/// Changes that are made together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Keys that must stand at this revision (`0`: must not exist), else nothing is changed.
    pub expect: Vec<(String, u64)>,
    /// Keys and their new values.
    pub put: Vec<(String, Vec<u8>)>,
    /// Keys that go.
    pub delete: Vec<String>,
    /// Duties of the leader: the epoch of the [`Leadership`] in which the changes were decided. They are made only while
    /// that still holds, else [`StoreError::NotLeader`]: one that was leader and slept must not write over the next
    /// one's work. `None` for what any centre may write (registrations, accounts, audit).
    pub fenced: Option<u64>,
}

impl Batch {
    /// Bytes of keys and values, as far as they count.
    pub fn size(&self) -> usize {
        let put = self.put.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        let names = self.delete.iter().chain(self.expect.iter().map(|(key, _)| key)).map(String::len).sum::<usize>();
        put + names
    }

    /// Refuses what no store could take.
    ///
    /// # Errors
    /// It is larger than [`BATCH_BYTES`].
    pub fn check(&self) -> Result<(), StoreError> {
        match self.size() {
            size if size > BATCH_BYTES => {
                Err(StoreError::Failed(format!("{size} bytes at once; at most {BATCH_BYTES} are taken")))
            }
            _ => Ok(()),
        }
    }
}

/// What others changed on a shared store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// Their stamp.
    pub stamp: Stamp,
    /// New values.
    pub put: Vec<Entry>,
    /// Keys that went.
    pub delete: Vec<String>,
}

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Entries written.
    pub entries: u64,
    /// Where the store stands now.
    pub stamp: Stamp,
    /// Where the store that was there before went.
    pub kept: Option<std::path::PathBuf>,
}

/// What a restored store is ahead by: more epochs and revisions than anyone can have made since the backup, and few
/// enough that a thousand restores stay numbers which every reader of JSON can hold.
const EPOCHS_AHEAD: u64 = 1 << 20;
const REVISIONS_AHEAD: u64 = 1 << 36;

/// A stamp above both of these and above everything that can have come after them.
fn above(one: Stamp, other: Stamp) -> Stamp {
    Stamp {
        epoch: one.epoch.max(other.epoch).saturating_add(EPOCHS_AHEAD),
        revision: one.revision.max(other.revision).saturating_add(REVISIONS_AHEAD),
    }
}

/// Why a batch was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// An expectation does not hold.
    #[error("`{key}` was changed by somebody else")]
    Conflict {
        /// The first that does not.
        key: String,
    },
    /// Another centre leads.
    #[error("another centre leads")]
    NotLeader,
    /// Disk or network; nothing of the batch holds, or it is not known whether it does (a lost answer of a shared
    /// store): read before repeating.
    #[error("{0}")]
    Failed(String),
}

/// Whether this centre leads: gives commands, decides, scales, alerts. Registrations and questions are taken by all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// This one does.
    pub leads: bool,
    /// Name of the one that does, where it is known.
    pub leader: String,
    /// Epoch in which it does.
    pub epoch: u64,
}

impl Leadership {
    /// The epoch for [`Batch::fenced`], where this centre leads.
    ///
    /// # Errors
    /// [`StoreError::NotLeader`].
    pub fn fence(&self) -> Result<u64, StoreError> {
        if self.leads { Ok(self.epoch) } else { Err(StoreError::NotLeader) }
    }
}

/// Keeps what the centre knows.
pub trait Store: Send + Sync + 'static {
    /// Every entry whose key begins with `prefix`, in the order of keys, after `after`, at most `limit`.
    fn scan<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Entry>, StoreError>>;

    /// Makes the changes. Durable when it resolves; answers the stamp with them. Dropping the future does not take
    /// them back.
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Stamp, StoreError>>;

    /// Where it stands.
    fn stamp(&self) -> Stamp;

    /// What other centres change, from the moment of this call (audit left out); `None`: nobody else can. Whoever
    /// receives `Lagged` reads everything again. After a lost connection one's own changes may be among them, and
    /// changes come once more: an entry that is not newer than the one that is known is left alone.
    fn changes(&self) -> Option<broadcast::Receiver<Arc<Changes>>> {
        None
    }

    /// Who leads, now and at every change.
    fn leadership(&self) -> watch::Receiver<Leadership>;

    /// Why nothing is written at the moment (a full disk, a lost server), for operators; `None`: all is well. What was
    /// read stays known, and writing begins again by itself.
    fn trouble(&self) -> watch::Receiver<Option<String>>;

    /// Every entry as it stands at one moment, in the order of keys and in pieces; answers the stamp of that moment.
    /// Ends early without an error when nobody receives any more.
    fn snapshot(&self, sink: mpsc::Sender<Vec<Entry>>) -> BoxFuture<'_, Result<Stamp, StoreError>>;

    /// Gives up the lead, where another centre can take it, before the process ends.
    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}
