use std::{
    fs::OpenOptions,
    io,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use parking_lot::Mutex;
use redb::{Database, StorageBackend, backends::FileBackend};

use super::*;
use crate::store::tests::{keeps_its_promises, put, texts};

/// A directory that goes with the test.
struct Temp(PathBuf);

impl Temp {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("sockmesh-store-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A disk that can be full, and counts its syncs.
#[derive(Debug, Default)]
struct Disk {
    full: AtomicBool,
    syncs: AtomicUsize,
}

#[derive(Debug)]
struct OnDisk {
    file: FileBackend,
    disk: Arc<Disk>,
}

impl OnDisk {
    fn room(&self) -> io::Result<()> {
        if self.disk.full.load(Relaxed) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for OnDisk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.syncs.fetch_add(1, Relaxed);
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room()?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}

fn on(disk: &Arc<Disk>, dir: &Temp) -> Embedded {
    let (disk, path) = (disk.clone(), dir.0.join(FILE));
    let opener = Box::new(move || {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        Database::builder().create_with_backend(OnDisk { file: FileBackend::new(file)?, disk: disk.clone() })
    });
    Embedded::start(opener, Lock::take(&dir.0).unwrap(), dir.0.clone(), "me").unwrap()
}

#[tokio::test]
async fn embedded_keeps_its_promises() {
    let dir = Temp::new();
    keeps_its_promises(Arc::new(Embedded::open(&dir.0, "me").unwrap())).await;
}

#[tokio::test]
async fn every_start_is_a_new_epoch_and_revisions_go_on() {
    let dir = Temp::new();
    let store = Embedded::open(&dir.0, "me").unwrap();
    let before = store.commit(put(&[("a", "1")])).await.unwrap();
    drop(store);
    let store = Embedded::open(&dir.0, "me").unwrap();
    assert_eq!(store.stamp(), Stamp { epoch: before.epoch + 1, revision: before.revision });
    assert_eq!(texts(&store, "", None, 9).await, ["a=1"]);
    let after = store.commit(put(&[("a", "2")])).await.unwrap();
    assert!(after.follows(before) && after.revision > before.revision);
}

#[tokio::test]
async fn the_second_on_one_directory_is_told_who_is_there() {
    let dir = Temp::new();
    let store = Embedded::open(&dir.0, "me").unwrap();
    let Err(refused) = Embedded::open(&dir.0, "other") else { panic!("both have it") };
    let refused = format!("{refused:#}");
    assert!(refused.contains(&format!("is in use by process {}", std::process::id())), "{refused}");
    assert!(refused.contains("--data"), "{refused}");
    drop(store);
    Embedded::open(&dir.0, "other").unwrap();
}

#[tokio::test]
async fn a_full_disk_is_told_and_writing_goes_on_when_there_is_room() {
    let (dir, disk) = (Temp::new(), Arc::new(Disk::default()));
    let store = on(&disk, &dir);
    store.commit(put(&[("a", "1")])).await.unwrap();
    let epoch = store.stamp().epoch;

    disk.full.store(true, Relaxed);
    let refused = store.commit(put(&[("b", "1"), ("c", "1")])).await.unwrap_err();
    assert!(matches!(&refused, StoreError::Failed(why) if why.contains("is full")), "{refused}");
    let again = store.commit(put(&[("b", "1")])).await.unwrap_err();
    assert_eq!(again, refused);
    assert!(store.trouble().borrow().as_ref().is_some_and(|why| why.contains("is full")));

    disk.full.store(false, Relaxed);
    let mut trouble = store.trouble();
    trouble.wait_for(Option::is_none).await.unwrap();
    assert_eq!(texts(&store, "", None, 9).await, ["a=1"]);
    let stamp = store.commit(put(&[("b", "2")])).await.unwrap();
    assert_eq!(stamp.epoch, epoch);
    drop(store);
    assert_eq!(texts(&on(&disk, &dir), "", None, 9).await, ["a=1", "b=2"]);
}

#[tokio::test]
async fn what_comes_together_is_synced_together() {
    let (dir, disk) = (Temp::new(), Arc::new(Disk::default()));
    let store = Arc::new(on(&disk, &dir));
    let before = disk.syncs.load(Relaxed);
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..1000 {
        let store = store.clone();
        tasks.spawn(async move { store.commit(put(&[(&format!("k/{i:04}"), "v")])).await.unwrap().revision });
    }
    let mut revisions = tasks.join_all().await;
    let syncs = disk.syncs.load(Relaxed) - before;
    assert!(syncs < 500, "{syncs} syncs for 1000 batches");
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 1000);
    assert_eq!(store.scan("k/", None, 2000).await.unwrap().len(), 1000);
}

#[tokio::test]
async fn a_restored_store_stands_above_everything_when_forced() {
    let dir = Temp::new();
    let store = Embedded::open(&dir.0, "me").unwrap();
    store.commit(put(&[("a", "old")])).await.unwrap();
    let backup = store.scan("", None, 9).await.unwrap();
    let stamp = store.stamp();
    store.commit(put(&[("a", "new"), ("b", "new")])).await.unwrap();
    let seen = store.stamp();
    let entries = || backup.clone().into_iter().map(Ok);

    let used = restore(&dir.0, stamp, entries(), true).unwrap_err();
    assert!(format!("{used:#}").contains("is in use by process"), "{used:#}");
    drop(store);
    let there = restore(&dir.0, stamp, entries(), false).unwrap_err();
    assert!(format!("{there:#}").contains("--force"), "{there:#}");
    // One that breaks in the middle changes nothing.
    let broken = entries().chain([Err(anyhow::anyhow!("line 2 is broken"))]);
    let broken = restore(&dir.0, stamp, broken, true).unwrap_err();
    assert!(format!("{broken:#}").contains("line 2"), "{broken:#}");
    assert_eq!(texts(&Embedded::open(&dir.0, "me").unwrap(), "", None, 9).await, ["a=new", "b=new"]);

    let restored = restore(&dir.0, stamp, entries(), true).unwrap();
    assert_eq!(restored.entries, 1);
    let store = Embedded::open(&dir.0, "me").unwrap();
    assert_eq!(texts(&store, "", None, 9).await, ["a=old"]);
    assert!(store.stamp().epoch > seen.epoch + 1000 && store.stamp().revision > seen.revision + 1000);
    // Numbers that every reader of JSON can hold.
    assert!(store.stamp().revision < 1 << 53);
    drop(store);
    // What was there is kept whole.
    let other = Temp::new();
    std::fs::copy(restored.kept.unwrap(), other.0.join(FILE)).unwrap();
    assert_eq!(texts(&Embedded::open(&other.0, "me").unwrap(), "", None, 9).await, ["a=new", "b=new"]);

    // On a new machine without force it stands where it stood: agents that saw more do not follow.
    let fresh = Temp::new();
    let restored = restore(&fresh.0, stamp, entries(), false).unwrap();
    assert_eq!((restored.stamp, restored.kept), (stamp, None));
}

#[test]
fn a_file_that_is_no_store_is_refused_with_the_remedy() {
    let dir = Temp::new();
    for bytes in [&b"hello"[..], &[0; 5000], &[0xff; 100_000]] {
        std::fs::write(dir.0.join(FILE), bytes).unwrap();
        let Err(refused) = Embedded::open(&dir.0, "me") else { panic!("opened") };
        assert!(format!("{refused:#}").contains("restore"), "{refused:#}");
        assert_eq!(std::fs::read(dir.0.join(FILE)).unwrap(), bytes);
    }
}

/// A disk that loses its power: of what was not synced, any part may have reached it in any order.
#[derive(Debug, Default)]
struct Platter {
    durable: Vec<u8>,
    current: Vec<u8>,
    /// Writes since the last sync; a new length as `None`.
    pending: Vec<(u64, Option<Vec<u8>>)>,
    /// Syncs until the power goes.
    left: usize,
    gone: bool,
}

#[derive(Clone, Debug, Default)]
struct Power(Arc<Mutex<Platter>>);

impl Power {
    /// The disk as it is found afterwards.
    fn found(&self, random: &mut fastrand::Rng) -> Self {
        let old = self.0.lock();
        let mut bytes = old.durable.clone();
        for (offset, data) in &old.pending {
            if random.bool() {
                continue;
            }
            match data {
                None => bytes.resize(*offset as usize, 0),
                Some(data) => {
                    // Sectors, not pages.
                    for (i, sector) in data.chunks(512).enumerate() {
                        let at = *offset as usize + i * 512;
                        if random.u8(..4) > 0 && bytes.len() >= at + sector.len() {
                            bytes[at..at + sector.len()].copy_from_slice(sector);
                        }
                    }
                }
            }
        }
        let durable = bytes.clone();
        Self(Arc::new(Mutex::new(Platter { durable, current: bytes, left: usize::MAX, ..Platter::default() })))
    }
}

impl StorageBackend for Power {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.0.lock();
        let end = offset as usize + out.len();
        let bytes = platter.current.get(offset as usize..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.0.lock();
        if platter.gone {
            return Err(io::ErrorKind::Other.into());
        }
        platter.current.resize(len as usize, 0);
        platter.pending.push((len, None));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.0.lock();
        if platter.left == 0 {
            platter.gone = true;
        }
        if platter.gone {
            return Err(io::ErrorKind::Other.into());
        }
        platter.left -= 1;
        platter.durable = platter.current.clone();
        platter.pending.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.0.lock();
        if platter.gone {
            return Err(io::ErrorKind::Other.into());
        }
        let at = offset as usize;
        platter.current[at..at + data.len()].copy_from_slice(data);
        platter.pending.push((offset, Some(data.to_vec())));
        Ok(())
    }
}

#[tokio::test]
async fn a_loss_of_power_takes_nothing_that_was_acknowledged() {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let dir = Temp::new();
        let power = Power::default();
        power.0.lock().left = usize::MAX;
        let open = |power: &Power| {
            let power = power.clone();
            let opener = Box::new(move || Database::builder().create_with_backend(power.clone()));
            Embedded::start(opener, Lock::take(&dir.0).unwrap(), dir.0.clone(), "me")
        };
        let store = open(&power).unwrap();
        // Of each batch both keys or none.
        let batch = |n: u64| put(&[("left", &n.to_string()), ("right", &n.to_string()), (&format!("n/{n:04}"), "x")]);
        store.commit(batch(0)).await.unwrap();
        power.0.lock().left = random.usize(0..40);
        let (mut acknowledged, mut tried) = (0, 0);
        for n in 1..60 {
            tried = n;
            if store.commit(batch(n)).await.is_err() {
                break;
            }
            acknowledged = n;
        }
        drop(store);
        let found = open(&power.found(&mut random)).unwrap();
        let left = texts(&found, "left", None, 1).await[0].replace("left=", "");
        let right = texts(&found, "right", None, 1).await[0].replace("right=", "");
        assert_eq!(left, right, "seed {seed}");
        let left: u64 = left.parse().unwrap();
        assert!(left >= acknowledged && left <= tried, "seed {seed}: {acknowledged} <= {left} <= {tried}");
        assert_eq!(found.scan("n/", None, 100).await.unwrap().len() as u64, left + 1, "seed {seed}");
    }
}
