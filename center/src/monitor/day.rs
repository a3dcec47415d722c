//! Minutes of figures kept in a file of their own, so that the first start already shows pictures of a day. Figures
//! are no truth: what cannot be written is left out and counted, and nothing else waits for it.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::Context;
use model::center::{Of, Side};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::mpsc;

use super::{
    rows::{PartKind, RowKey},
    slot::Slot,
};
use crate::database;

/// Name of the file in the centre's directory.
const FILE: &str = "figures.redb";
/// Rows by name: side, kind, service, group, part, with a zero between; their numbers.
const NAMES: TableDefinition<'_, &[u8], u32> = TableDefinition::new("names");
/// Minutes: number of the row, minute since 1970.
const MINUTES: TableDefinition<'_, (u32, u32), &[u8]> = TableDefinition::new("minutes");
/// The same keys the other way round, so that the oldest go first.
const AGES: TableDefinition<'_, (u32, u32), ()> = TableDefinition::new("ages");
/// The number of the next row.
const NEXT: TableDefinition<'_, (), u32> = TableDefinition::new("next");

/// Rows written for one minute: some 300 bytes each, a day of all of them is half a gigabyte.
pub(super) const ROWS_A_MINUTE: usize = 5_000;
/// Minutes that wait for the disk.
const WAITING: usize = 4;
/// Rows that are removed in one transaction.
const REMOVE: usize = 50_000;

/// All rows of one minute (number since 1970, by the time of day).
#[derive(Debug)]
pub(super) struct Minute {
    pub number: u32,
    pub rows: Vec<(RowKey, Slot)>,
}

/// What is kept.
#[derive(Debug)]
pub(super) struct Day {
    database: Arc<Database>,
    /// Taken when it ends.
    queue: Option<mpsc::Sender<Minute>>,
    writer: Option<std::thread::JoinHandle<()>>,
    /// What became of all minutes.
    pub kept: Arc<Kept>,
}

/// Counts of what is kept and what is not.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Minutes that were not kept because the disk was slow or failed.
    pub lost: AtomicU64,
    /// Rows of minutes that were written, and their bytes: keys and values, without what the tree around them takes.
    pub rows: AtomicU64,
    pub bytes: AtomicU64,
    /// Rows that were left out because a minute had more than are written.
    pub left_out: AtomicU64,
}

impl Day {
    /// Opens or makes the file in `directory` and begins to write what comes; minutes older than `keep_minutes` go.
    /// Blocks on the disk.
    ///
    /// # Errors
    /// It cannot be opened: somebody else has it open, or it is broken.
    pub(super) fn open(directory: &Path, keep_minutes: u32) -> anyhow::Result<Self> {
        let path = directory.join(FILE);
        std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        let database = Arc::new(database::open(&path).with_context(|| path.display().to_string())?);
        let write = database.begin_write()?;
        write.open_table(NAMES)?;
        write.open_table(MINUTES)?;
        write.open_table(AGES)?;
        write.commit()?;
        let (queue, mut minutes) = mpsc::channel::<Minute>(WAITING);
        let kept = Arc::new(Kept::default());
        let (to, counts) = (database.clone(), kept.clone());
        let write = move || {
            let mut well = true;
            while let Some(minute) = minutes.blocking_recv() {
                let written = write_minute(&to, &minute, keep_minutes);
                match &written {
                    Ok(bytes) => {
                        counts.rows.fetch_add(minute.rows.len().min(ROWS_A_MINUTE) as u64, Relaxed);
                        counts.bytes.fetch_add(*bytes, Relaxed);
                    }
                    Err(error) => {
                        counts.lost.fetch_add(1, Relaxed);
                        if well {
                            tracing::warn!(file = %path.display(), %error, "figures are not kept: look at the disk");
                        }
                    }
                }
                well = written.is_ok();
            }
            // What was not forced to the disk yet; without it nothing but some minutes is lost.
            let _ = to.begin_write().map(redb::WriteTransaction::commit);
        };
        let writer = Some(std::thread::Builder::new().name("figures".to_owned()).spawn(write)?);
        Ok(Self { database, queue: Some(queue), writer, kept })
    }

    /// Keeps a minute, later. One that finds the queue full is lost.
    pub(super) fn keep(&self, minute: Minute) {
        if self.queue.as_ref().is_none_or(|queue| queue.try_send(minute).is_err()) {
            self.kept.lost.fetch_add(1, Relaxed);
        }
    }

    /// A minute had so many rows more than are written.
    pub(super) fn left_out(&self, rows: usize) {
        if rows > 0 && self.kept.left_out.fetch_add(rows as u64, Relaxed) == 0 {
            tracing::warn!(
                rows,
                most = ROWS_A_MINUTE,
                "a minute has more rows of figures than are kept: those of instances with the fewest calls are in memory only; \
                 for all of them configure Prometheus or Graphite in `monitor: sources:`"
            );
        }
    }

    /// Minutes `first..=last` of every row that `of` means, row by row. Reads in a thread of its own.
    ///
    /// # Errors
    /// The disk.
    pub(super) async fn read(&self, of: Of, first: u32, last: u32) -> anyhow::Result<Vec<Vec<Slot>>> {
        let database = self.database.clone();
        tokio::task::spawn_blocking(move || {
            let read = database.begin_read()?;
            let (names, minutes) = (read.open_table(NAMES)?, read.open_table(MINUTES)?);
            let mut rows = Vec::new();
            for row in numbers(&names, &of)? {
                let mut slots = Vec::new();
                for entry in minutes.range((row, first)..=(row, last))? {
                    let (key, value) = entry?;
                    slots.extend(Slot::decode(key.value().1.into(), value.value()));
                }
                rows.push(slots);
            }
            Ok(rows)
        })
        .await?
    }

    /// All rows of the minutes from `first` on, for a start. Blocks on the disk.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn since(&self, first: u32, mut take: impl FnMut(&RowKey, Slot)) -> anyhow::Result<()> {
        let read = self.database.begin_read()?;
        let (names, minutes) = (read.open_table(NAMES)?, read.open_table(MINUTES)?);
        for entry in names.iter()? {
            let (name, row) = entry?;
            let Some(key) = key_of(name.value()) else { continue };
            for entry in minutes.range((row.value(), first)..=(row.value(), u32::MAX))? {
                let (at, value) = entry?;
                if let Some(slot) = Slot::decode(at.value().1.into(), value.value()) {
                    take(&key, slot);
                }
            }
        }
        Ok(())
    }
}

impl Drop for Day {
    /// Waits for what is queued, so that the next start finds it.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            // It only ends early by a panic, of which the log has more.
            let _ = writer.join();
        }
    }
}

/// Writes a minute, and removes what is too old. Answers the bytes of keys and values that were written.
fn write_minute(database: &Database, minute: &Minute, keep_minutes: u32) -> Result<u64, redb::Error> {
    let mut write = database.begin_write()?;
    // A crash may cost some minutes, never the file.
    let durable = minute.number.is_multiple_of(10);
    // Both keys of a row are two numbers of four bytes.
    let (mut bytes, keys) = (0, 16);
    write.set_durability(if durable { Durability::Immediate } else { Durability::None })?;
    {
        let mut names = write.open_table(NAMES)?;
        let mut minutes = write.open_table(MINUTES)?;
        let mut ages = write.open_table(AGES)?;
        let mut next = write.open_table(NEXT)?;
        for (key, slot) in minute.rows.iter().take(ROWS_A_MINUTE) {
            let name = name_of(key);
            let known = names.get(name.as_slice())?.map(|row| row.value());
            let row = match known {
                Some(row) => row,
                None => {
                    let row = next.get(())?.map_or(0, |row| row.value());
                    next.insert((), row.wrapping_add(1))?;
                    names.insert(name.as_slice(), row)?;
                    row
                }
            };
            let value = slot.encode();
            bytes += keys + value.len() as u64;
            minutes.insert((row, minute.number), value.as_slice())?;
            ages.insert((minute.number, row), ())?;
        }
        let oldest = minute.number.saturating_sub(keep_minutes);
        let old: Vec<(u32, u32)> = ages
            .range(..(oldest, 0))?
            .take(REMOVE)
            .map(|entry| entry.map(|(key, _)| key.value()))
            .collect::<Result<_, _>>()?;
        for (number, row) in &old {
            minutes.remove((*row, *number))?;
            ages.remove((*number, *row))?;
        }
        if durable && !old.is_empty() {
            // Names of rows that have no minute any more.
            let mut gone = Vec::new();
            for entry in names.iter()? {
                let (name, row) = entry?;
                if minutes.range((row.value(), 0)..=(row.value(), u32::MAX))?.next().is_none() {
                    gone.push(name.value().to_vec());
                }
            }
            for name in gone {
                names.remove(name.as_slice())?;
            }
        }
    }
    write.commit()?;
    Ok(bytes)
}

fn numbers(names: &impl ReadableTable<&'static [u8], u32>, of: &Of) -> Result<Vec<u32>, redb::Error> {
    let kind = match (of.instance.is_empty(), of.caller.is_empty()) {
        (true, true) => PartKind::Total,
        (false, _) => PartKind::Instance,
        (true, false) => PartKind::Caller,
    };
    let part = if of.instance.is_empty() { &of.caller } else { &of.instance };
    let mut prefix = vec![side_byte(of.side), kind_byte(kind)];
    if !of.service.is_empty() {
        prefix.extend(of.service.bytes());
        prefix.push(0);
        if !of.group.is_empty() {
            prefix.extend(of.group.bytes());
            prefix.push(0);
        }
    }
    let mut rows = Vec::new();
    for entry in names.range(prefix.as_slice()..)? {
        let (name, row) = entry?;
        if !name.value().starts_with(&prefix) {
            break;
        }
        let Some(key) = key_of(name.value()) else { continue };
        if key.part == *part && (of.group.is_empty() || key.group == of.group) {
            rows.push(row.value());
        }
    }
    Ok(rows)
}

const fn side_byte(side: Side) -> u8 {
    match side {
        Side::Outbound => b'o',
        Side::Inbound => b'i',
    }
}

const fn kind_byte(kind: PartKind) -> u8 {
    match kind {
        PartKind::Total => b't',
        PartKind::Instance => b'i',
        PartKind::Caller => b'c',
    }
}

/// Names have no control characters.
fn name_of(key: &RowKey) -> Vec<u8> {
    let mut name = vec![side_byte(key.side), kind_byte(key.kind)];
    for part in [&key.service, &key.group, &key.part] {
        name.extend(part.bytes());
        name.push(0);
    }
    name
}

fn key_of(name: &[u8]) -> Option<RowKey> {
    let (head, rest) = name.split_at_checked(2)?;
    let side = [Side::Outbound, Side::Inbound].into_iter().find(|side| side_byte(*side) == head[0])?;
    let kinds = [PartKind::Total, PartKind::Instance, PartKind::Caller];
    let kind = kinds.into_iter().find(|kind| kind_byte(*kind) == head[1])?;
    let mut parts = std::str::from_utf8(rest).ok()?.split('\0');
    let mut part = || Some(parts.next()?.to_owned());
    Some(RowKey { side, kind, service: part()?, group: part()?, part: part()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::slot::parts;

    fn key(kind: PartKind, service: &str, group: &str, part: &str) -> RowKey {
        let (service, group, part) = (service.to_owned(), group.to_owned(), part.to_owned());
        RowKey { side: Side::Outbound, service, group, kind, part }
    }

    fn slot(calls: u64) -> Slot {
        let mut slot = Slot::default();
        let mut sample = model::center::Sample { calls, ..Default::default() };
        sample.times.add(1000, calls);
        for part in parts(0, 1000, 1000) {
            slot.add(&[&sample], part);
        }
        slot
    }

    fn of(service: &str, group: &str, instance: &str) -> Of {
        let (service, group, instance) = (service.to_owned(), group.to_owned(), instance.to_owned());
        Of { service, group, instance, ..Of::default() }
    }

    #[tokio::test]
    async fn minutes_are_there_after_a_new_start_and_old_ones_go() {
        let dir = std::env::temp_dir().join(format!("sockmesh-figures-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        {
            let day = Day::open(&dir, 60).unwrap();
            for number in 1000..1100 {
                let rows = vec![
                    (key(PartKind::Total, "echo", "a", ""), slot(u64::from(number))),
                    (key(PartKind::Total, "echo", "b", ""), slot(1)),
                    (key(PartKind::Total, "echo2", "a", ""), slot(7)),
                    (key(PartKind::Instance, "echo", "a", "10.0.0.1:1"), slot(5)),
                ];
                write_minute(&day.database, &Minute { number, rows }, 60).unwrap();
            }
        }
        let day = Day::open(&dir, 60).unwrap();
        let calls =
            |rows: &[Vec<Slot>]| rows.iter().map(|row| row.iter().map(|s| s.calls).sum::<u64>()).collect::<Vec<_>>();
        let rows = day.read(of("echo", "a", ""), 0, u32::MAX).await.unwrap();
        assert_eq!(rows.iter().map(Vec::len).collect::<Vec<_>>(), [61]);
        assert_eq!(rows[0].first().map(|slot| (slot.index, slot.calls)), Some((1039, 1039)));
        assert_eq!(calls(&day.read(of("echo", "", ""), 1099, 1099).await.unwrap()), [1099, 1]);
        assert_eq!(calls(&day.read(of("", "", ""), 1099, 1099).await.unwrap()), [1099, 1, 7]);
        assert_eq!(calls(&day.read(of("", "a", ""), 1099, 1099).await.unwrap()), [1099, 7]);
        assert_eq!(calls(&day.read(of("echo", "a", "10.0.0.1:1"), 1098, 1099).await.unwrap()), [10]);
        assert!(day.read(of("echo", "a", "10.0.0.9:1"), 0, 2000).await.unwrap().is_empty());
        let mut since = 0;
        day.since(1095, |_, slot| since += slot.calls.min(1)).unwrap();
        assert_eq!(since, 20);
        // A second centre on the same file is told.
        assert!(Day::open(&dir, 60).is_err());
        // A row of which nothing is left gives its name up.
        for number in [1190, 1200] {
            let rows = vec![(key(PartKind::Total, "new", "a", ""), slot(1))];
            write_minute(&day.database, &Minute { number, rows }, 60).unwrap();
        }
        assert!(day.read(of("echo", "", ""), 0, 2000).await.unwrap().is_empty());
        assert_eq!(calls(&day.read(of("new", "", ""), 0, 2000).await.unwrap()), [2]);
        drop(day);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[tokio::test]
    async fn a_broken_file_is_an_error_and_no_panic() {
        let dir = std::env::temp_dir().join(format!("sockmesh-figures-broken-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(FILE), vec![7; 5000]).unwrap();
        assert!(Day::open(&dir, 60).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
