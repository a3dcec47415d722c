//! The database itself: its tables, how it is opened, how a backup becomes one.

use std::{
    fs::{self, File},
    path::Path,
};

use anyhow::{Context, bail};
use model::center::Stamp;
use redb::{Database, DatabaseError, ReadableTable, TableDefinition};

use super::{FILE, lock::Lock};
use crate::{
    database::open,
    store::{Batch, Entry, Restored, above},
};

/// Keys, with the revision of the last change and the value.
pub(super) const ENTRIES: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("entries");
/// `epoch`, `revision`, `layout`.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// What the tables mean. A centre refuses a higher one.
pub(super) const LAYOUT: u64 = 1;
/// Opens the database; called again after an error of the disk.
pub(super) type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send>;

/// Where the database stands.
pub(super) fn stamp_of(meta: &impl ReadableTable<&'static str, u64>) -> Result<Stamp, redb::Error> {
    let read = |name| Ok::<_, redb::Error>(meta.get(name)?.map_or(0, |value| value.value()));
    Ok(Stamp { epoch: read("epoch")?, revision: read("revision")? })
}

/// Refuses a database of a later version.
pub(super) fn check_layout(layout: u64) -> anyhow::Result<()> {
    if layout > LAYOUT {
        bail!(
            "the store has layout {layout}, this version knows {LAYOUT}; start the newer version that wrote it, or \
             restore a backup from before"
        );
    }
    Ok(())
}

/// Makes the store in `dir` from `entries` taken at `stamp`. A store that is there already is only replaced with
/// `force`, and kept beside; then the new one stands above everything that agents may have seen, so that they follow.
/// The store that was there is untouched until the new one is whole and on the disk.
///
/// # Errors
/// There is a store and no `force`; it is in use; an entry is broken; the disk does not take it.
pub fn restore(
    dir: &Path,
    stamp: Stamp,
    entries: impl Iterator<Item = anyhow::Result<Entry>>,
    force: bool,
) -> anyhow::Result<Restored> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
    let _lock = Lock::take(dir)?;
    let path = dir.join(FILE);
    let there = fs::metadata(&path).is_ok_and(|file| file.len() > 0);
    if there && !force {
        bail!("{} is there already; --force replaces it, keeps it beside, and makes agents follow", path.display());
    }
    let mut now = stamp;
    if force {
        // Best known is what stands there; where it cannot be read, the distance alone must do.
        let before = if there { standing(&path) } else { Stamp::default() };
        now = above(stamp, before);
    }
    let fresh = dir.join(format!("{FILE}.restoring"));
    // One that was broken off.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", fresh.display()));
        }
        _ => {}
    }
    let count = write(&fresh, now, entries).with_context(|| fresh.display().to_string())?;
    let mut kept = None;
    if there {
        let beside = dir.join(format!("{FILE}.before-{}", crate::clock::now_ms()));
        // A second name first: at no moment is there none.
        fs::hard_link(&path, &beside).with_context(|| format!("cannot keep the old store as {}", beside.display()))?;
        kept = Some(beside);
    }
    fs::rename(&fresh, &path).with_context(|| format!("cannot put {} in place", path.display()))?;
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("cannot sync {}", dir.display()))?;
    Ok(Restored { entries: count, stamp: now, kept })
}

/// Where the store at `path` stands, as far as it can be read.
fn standing(path: &Path) -> Stamp {
    let read = || {
        let transaction = redb::ReadableDatabase::begin_read(&open(path)?)?;
        stamp_of(&transaction.open_table(META)?)
    };
    read().unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "the store that is replaced cannot be read");
        Stamp::default()
    })
}

/// A new database with everything in one transaction.
fn write(path: &Path, stamp: Stamp, entries: impl Iterator<Item = anyhow::Result<Entry>>) -> anyhow::Result<u64> {
    let database = open(path)?;
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    let mut count = 0;
    {
        let mut table = transaction.open_table(ENTRIES)?;
        for entry in entries {
            let entry = entry?;
            table.insert(entry.key.as_str(), (entry.revision, entry.value.as_slice()))?;
            count += 1;
        }
        let mut meta = transaction.open_table(META)?;
        for (name, value) in [("epoch", stamp.epoch), ("revision", stamp.revision), ("layout", LAYOUT)] {
            meta.insert(name, value)?;
        }
    }
    transaction.commit()?;
    Ok(count)
}

/// What became of one batch of a transaction.
pub(super) enum Outcome {
    /// Its changes are part of it, at this revision.
    Made(u64),
    /// This expectation does not hold.
    Conflict(String),
    /// It was decided in another epoch.
    NotLeader,
}

/// Makes the changes of all `batches` in one transaction and syncs it. Those whose expectations do not hold, with the
/// ones before them made, are left out.
pub(super) fn apply<'a>(
    database: &Database,
    stamp: Stamp,
    batches: impl Iterator<Item = &'a Batch>,
) -> Result<(u64, Vec<Outcome>), redb::Error> {
    let mut transaction = database.begin_write()?;
    // After a SIGKILL the next start takes milliseconds however large the file is, instead of reading all of it.
    transaction.set_quick_repair(true);
    let mut revision = stamp.revision;
    let mut outcomes = Vec::new();
    {
        let mut table = transaction.open_table(ENTRIES)?;
        for batch in batches {
            let outcome = if batch.fenced.is_some_and(|epoch| epoch != stamp.epoch) {
                Outcome::NotLeader
            } else if let Some(key) = unexpected(&table, batch)? {
                Outcome::Conflict(key)
            } else {
                revision += 1;
                for key in &batch.delete {
                    table.remove(key.as_str())?;
                }
                for (key, value) in &batch.put {
                    table.insert(key.as_str(), (revision, value.as_slice()))?;
                }
                Outcome::Made(revision)
            };
            outcomes.push(outcome);
        }
        let mut meta = transaction.open_table(META)?;
        for (name, value) in [("epoch", stamp.epoch), ("revision", revision), ("layout", LAYOUT)] {
            meta.insert(name, value)?;
        }
    }
    if revision == stamp.revision && !outcomes.is_empty() {
        transaction.abort()?;
    } else {
        transaction.commit()?;
    }
    Ok((revision, outcomes))
}

/// The first expectation of `batch` that does not hold.
fn unexpected(
    table: &impl ReadableTable<&'static str, (u64, &'static [u8])>,
    batch: &Batch,
) -> Result<Option<String>, redb::Error> {
    for (key, revision) in &batch.expect {
        if table.get(key.as_str())?.map_or(0, |value| value.value().0) != *revision {
            return Ok(Some(key.clone()));
        }
    }
    Ok(None)
}
