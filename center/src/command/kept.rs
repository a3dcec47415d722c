//! Commands as they are kept: the newest first, those in force or proposed under a second key, so that a start reads
//! only these.

use std::sync::Arc;

use model::center::{CommandRecord, CommandState};
use serde::{Deserialize, Serialize};

use crate::{
    error::Error,
    store::{Batch, Entry, Store},
};

const ALL: &str = "command/by/";
const OPEN: &str = "command/open/";
/// Entries read at once.
const PAGE: usize = 500;
/// Most entries that one page of the history is looked for in.
const LOOKED: usize = 20_000;

/// A command and what is needed to go on with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) record: CommandRecord,
    /// Groups whose texts it has a layer in.
    pub(super) scopes: Vec<String>,
    /// The service is a name and means no other.
    pub(super) exact: bool,
}

impl Kept {
    /// Percent of the whole change that is in force.
    pub(super) fn percent(&self) -> u32 {
        self.record.steps.last().map_or(0, |step| step.percent)
    }

    /// Whether texts have a layer of it.
    pub(super) fn in_force(&self) -> bool {
        matches!(self.record.state, CommandState::Stepping | CommandState::Active)
    }

    /// Whether it may still change.
    pub(super) fn is_open(&self) -> bool {
        self.in_force() || self.record.state == CommandState::Proposed
    }

    fn of(entry: &Entry) -> Result<Self, Error> {
        serde_json::from_slice(&entry.value).map_err(|why| {
            let message = format!("what is kept under `{}` is no command: {why}", entry.key);
            Error::new(crate::error::Code::Internal, message, "restore the store from a backup")
        })
    }
}

fn key(id: u64) -> String {
    format!("{ALL}{:020}", u64::MAX - id)
}

/// What another centre wrote under `entry`; `None`: something else.
pub(super) fn read(entry: &Entry) -> Option<Kept> {
    entry.key.starts_with(ALL).then(|| Kept::of(entry).ok()).flatten()
}

/// Writes a command, while this centre leads in `epoch`; a new one must not be there yet.
pub(super) async fn write(store: &Arc<dyn Store>, kept: &Kept, is_new: bool, epoch: u64) -> Result<(), Error> {
    let id = kept.record.id;
    let value = serde_json::to_vec(kept).map_err(|why| Error::bad(format!("command {id}: {why}"), "report this"))?;
    let mut batch = Batch { put: vec![(key(id), value)], fenced: Some(epoch), ..Batch::default() };
    if is_new {
        batch.expect.push((key(id), 0));
    }
    let open = format!("{OPEN}{id:020}");
    if kept.is_open() {
        batch.put.push((open, b"{}".to_vec()));
    } else if !is_new {
        batch.delete.push(open);
    }
    store.commit(batch).await?;
    Ok(())
}

/// One command.
pub(super) async fn one(store: &Arc<dyn Store>, id: u64) -> Result<Option<Kept>, Error> {
    let key = key(id);
    let found = store.scan(&key, None, 1).await?;
    found.first().filter(|entry| entry.key == key).map(Kept::of).transpose()
}

/// All that are open, and the highest number there is.
pub(super) async fn open(store: &Arc<dyn Store>) -> Result<(Vec<Kept>, u64), Error> {
    let mut all = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let entries = store.scan(OPEN, after.as_deref(), PAGE).await?;
        for entry in &entries {
            let id = entry.key[OPEN.len()..].parse().unwrap_or(0);
            if let Some(kept) = one(store, id).await?.filter(Kept::is_open) {
                all.push(kept);
            }
        }
        match entries.last() {
            Some(last) if entries.len() == PAGE => after = Some(last.key.clone()),
            _ => break,
        }
    }
    let newest = store.scan(ALL, None, 1).await?;
    let highest = newest.first().map(Kept::of).transpose()?.map_or(0, |kept| kept.record.id);
    Ok((all, highest))
}

/// Commands before number `before`, newest first, those that `wanted` says yes of; and whether there may be more.
pub(super) async fn page(
    store: &Arc<dyn Store>,
    before: Option<u64>,
    limit: usize,
    wanted: impl Fn(&CommandRecord) -> bool,
) -> Result<(Vec<CommandRecord>, Option<u64>), Error> {
    let (mut found, mut after, mut looked) = (Vec::new(), before.map(key), 0);
    loop {
        let entries = store.scan(ALL, after.as_deref(), PAGE).await?;
        for entry in &entries {
            let record = Kept::of(entry)?.record;
            let id = record.id;
            if wanted(&record) {
                found.push(record);
            }
            looked += 1;
            if found.len() >= limit || looked >= LOOKED {
                return Ok((found, Some(id)));
            }
        }
        match entries.last() {
            Some(last) if entries.len() == PAGE => after = Some(last.key.clone()),
            _ => return Ok((found, None)),
        }
    }
}
