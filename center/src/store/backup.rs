//! A backup: one JSON line that says what it is, one for each entry, one with the number of entries, the stamp and a
//! SHA-256 of all that. The same for every kind of store, so that it is also the way from one to another.
//! A file that was cut off or changed is refused before anything is touched.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use model::center::Stamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{BATCH_BYTES, Entry, Store, StoreError};
use crate::{clock::now_ms, hex::hex};

/// Version of the format.
const FORMAT: u32 = 1;
/// Longest line: the largest value, written in the longest way.
const LINE_BYTES: u64 = 8 * BATCH_BYTES as u64;

#[derive(Serialize, Deserialize)]
struct Head {
    sockmesh_backup: u32,
    at_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    revision: u64,
    /// Almost all values are texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Foot {
    entries: u64,
    epoch: u64,
    revision: u64,
    sha256: String,
}

impl From<Entry> for Line {
    fn from(entry: Entry) -> Self {
        let Entry { key, revision, value } = entry;
        match String::from_utf8(value) {
            Ok(text) => Self { key, revision, text: Some(text), base64: None },
            Err(bytes) => Self { key, revision, text: None, base64: Some(STANDARD.encode(bytes.as_bytes())) },
        }
    }
}

impl TryFrom<Line> for Entry {
    type Error = anyhow::Error;

    fn try_from(line: Line) -> anyhow::Result<Self> {
        let value = match (line.text, line.base64) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(base64)) => STANDARD.decode(base64).context("the value is no base64")?,
            _ => bail!("there is no value, or there are two"),
        };
        Ok(Self { key: line.key, revision: line.revision, value })
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("structs of texts and numbers are JSON");
    line.push(b'\n');
    line
}

/// The checksum of everything before the last line and of its numbers.
fn sum(mut digest: Sha256, entries: u64, stamp: Stamp) -> String {
    digest.update(format!("{entries} {} {}", stamp.epoch, stamp.revision));
    hex(digest.finalize())
}

/// The backup of a running store, piece by piece; its state is that of one moment. After an error no more comes, and
/// what came is no backup.
pub fn pieces(store: Arc<dyn Store>) -> mpsc::Receiver<Result<Bytes, StoreError>> {
    let (sender, pieces) = mpsc::channel(2);
    tokio::spawn(async move {
        let (sink, mut entries) = mpsc::channel::<Vec<Entry>>(2);
        let encode = async {
            let (mut digest, mut count) = (Sha256::new(), 0);
            let head = json(&Head { sockmesh_backup: FORMAT, at_ms: now_ms() });
            digest.update(&head);
            sender.send(Ok(head.into())).await.ok()?;
            while let Some(piece) = entries.recv().await {
                count += piece.len() as u64;
                let text: Vec<u8> = piece.into_iter().flat_map(|entry| json(&Line::from(entry))).collect();
                digest.update(&text);
                sender.send(Ok(text.into())).await.ok()?;
            }
            // Nobody there any more: the snapshot ends with its receiver.
            drop(entries);
            Some((digest, count))
        };
        let (stamp, encoded) = tokio::join!(store.snapshot(sink), encode);
        let last = match (stamp, encoded) {
            (Ok(stamp), Some((digest, entries))) => {
                let Stamp { epoch, revision } = stamp;
                Ok(json(&Foot { entries, epoch, revision, sha256: sum(digest, entries, stamp) }).into())
            }
            (Err(error), _) => Err(error),
            (_, None) => return,
        };
        // As above.
        let _ = sender.send(last).await;
    });
    pieces
}

/// A backup on its way into a file. Nothing is under the file's name before all of it is there.
pub struct Saving {
    file: File,
    path: PathBuf,
    part: PathBuf,
}

impl Saving {
    /// Begins. Only this user may read the file: it holds hashes of passwords and tokens.
    ///
    /// # Errors
    /// It cannot be written there.
    pub fn begin(path: &Path) -> anyhow::Result<Self> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part);
        let file = file.with_context(|| format!("cannot write {}", part.display()))?;
        Ok(Self { file, path: path.to_owned(), part })
    }

    /// Goes on.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn write(&mut self, piece: &[u8]) -> anyhow::Result<()> {
        self.file.write_all(piece).with_context(|| format!("cannot write {}", self.part.display()))
    }

    /// Checks it and gives it its name.
    ///
    /// # Errors
    /// It is not whole, or the disk does not take it.
    pub fn finish(self) -> anyhow::Result<Backup> {
        self.file.sync_all().with_context(|| format!("cannot sync {}", self.part.display()))?;
        let mut backup = Backup::open(&self.part)?;
        fs::rename(&self.part, &self.path).with_context(|| format!("cannot write {}", self.path.display()))?;
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("cannot sync {}", dir.display()))?;
        backup.path.clone_from(&self.path);
        Ok(backup)
    }
}

/// A backup that was checked.
#[derive(Debug)]
pub struct Backup {
    /// Where the store stood.
    pub stamp: Stamp,
    /// How many entries there are.
    pub entries: u64,
    /// When it was taken.
    pub at_ms: u64,
    path: PathBuf,
}

/// The lines of a file, none longer than a line may be.
fn lines(path: &Path) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Vec<u8>>>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (mut file, mut number) = (BufReader::new(file), 0_u64);
    Ok(std::iter::from_fn(move || {
        let mut line = Vec::new();
        number += 1;
        match (&mut file).take(LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) if line.ends_with(b"\n") => Some(Ok(line)),
            Ok(_) => Some(Err(anyhow::anyhow!("line {number} is cut off or too long"))),
            Err(error) => Some(Err(error.into())),
        }
    }))
}

impl Backup {
    /// Reads all of it once.
    ///
    /// # Errors
    /// It is no backup, of a later version, not whole, or not what was written; nothing of it may be used.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        Self::check(path).with_context(|| format!("{} is not used as a backup", path.display()))
    }

    fn check(path: &Path) -> anyhow::Result<Self> {
        let mut lines = lines(path)?;
        let first = lines.next().context("it is empty")??;
        let head: Head = serde_json::from_slice(&first).context("its first line is not that of a backup")?;
        let format = head.sockmesh_backup;
        ensure!(format <= FORMAT, "it has format {format}, this version knows {FORMAT}: use a newer sockmesh-center");
        let (mut digest, mut count) = (Sha256::new(), 0);
        digest.update(&first);
        let mut line = lines.next().context("it ends after its first line")??;
        for next in lines {
            let read: Line = serde_json::from_slice(&line).with_context(|| format!("entry {}", count + 1))?;
            Entry::try_from(read).with_context(|| format!("entry {}", count + 1))?;
            digest.update(&line);
            count += 1;
            line = next?;
        }
        let foot: Foot = serde_json::from_slice(&line).context("it is cut off: its last line is missing")?;
        ensure!(foot.entries == count, "it has {count} entries and should have {}", foot.entries);
        let stamp = Stamp { epoch: foot.epoch, revision: foot.revision };
        ensure!(foot.sha256 == sum(digest, count, stamp), "it was changed: its checksum is another one");
        Ok(Self { stamp, entries: count, at_ms: head.at_ms, path: path.to_owned() })
    }

    /// Its entries, read again.
    ///
    /// # Errors
    /// It cannot be read any more.
    pub fn entries(&self) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Entry>>> {
        let count = usize::try_from(self.entries).unwrap_or(usize::MAX);
        let entries = lines(&self.path)?.skip(1).take(count);
        Ok(entries.map(|line| Entry::try_from(serde_json::from_slice::<Line>(&line?)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Batch, Memory};

    async fn backup(store: Arc<dyn Store>) -> Vec<u8> {
        let (mut all, mut pieces) = (Vec::new(), pieces(store));
        while let Some(piece) = pieces.recv().await {
            all.extend_from_slice(&piece.unwrap());
        }
        all
    }

    #[tokio::test]
    async fn a_backup_is_whole_or_refused() {
        let store = Arc::new(Memory::new("me"));
        let put = vec![
            ("a".into(), b"{\"quoted\": \"text\\n\"}".to_vec()),
            ("b".into(), vec![0, 255, 10, 13]),
            ("c/\u{e9}\n".into(), Vec::new()),
        ];
        let stamp = store.commit(Batch { put, ..Batch::default() }).await.unwrap();
        let bytes = backup(store.clone()).await;
        let dir = std::env::temp_dir().join(format!("sockmesh-backup-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("backup.json");

        let mut saving = Saving::begin(&path).unwrap();
        saving.write(&bytes).unwrap();
        let read = saving.finish().unwrap();
        assert_eq!((read.stamp, read.entries), (stamp, 3));
        let entries: Vec<_> = read.entries().unwrap().map(Result::unwrap).collect();
        assert_eq!(entries, store.scan("", None, 9).await.unwrap());
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);

        // Every beginning of it, and every other byte: refused, and what has the name stays.
        for end in 0..bytes.len() {
            let mut saving = Saving::begin(&path).unwrap();
            saving.write(&bytes[..end]).unwrap();
            assert!(saving.finish().is_err(), "{end} of {} bytes", bytes.len());
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let broken = dir.join("broken.json");
            fs::write(&broken, changed).unwrap();
            assert!(Backup::open(&broken).is_err(), "byte {at}");
        }
        assert_eq!(Backup::open(&path).unwrap().entries, 3);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[tokio::test]
    async fn nobody_listening_ends_it() {
        let store = Arc::new(Memory::new("me"));
        let put = (0..5000).map(|i| (format!("k/{i}"), vec![b'x'; 100])).collect();
        store.commit(Batch { put, ..Batch::default() }).await.unwrap();
        let mut pieces = pieces(store.clone());
        assert!(pieces.recv().await.is_some());
        drop(pieces);
        // The task lets go of the store.
        let ended = async {
            while Arc::strong_count(&store) > 1 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), ended).await.unwrap();
    }
}
