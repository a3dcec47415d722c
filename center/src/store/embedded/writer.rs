//! The thread that writes, and what it shares with those who ask.

use std::{
    collections::VecDeque,
    io::ErrorKind,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use model::center::Stamp;
use parking_lot::{Condvar, Mutex, RwLock};
use redb::{Database, ReadTransaction, ReadableDatabase};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::file::{self, META, Opener, Outcome};
use crate::store::{Batch, StoreError};

/// KiB of batches that may wait; who comes later waits for room.
const WAITING_KIB: u32 = 64 << 10;
/// How often a store in trouble is tried.
const AGAIN: Duration = Duration::from_secs(1);
/// What a trial writes: as much as many registrations need, so that a store does not come back for one of them.
const TRIAL_BYTES: usize = 256 << 10;
/// Key of a trial, deleted at once.
const TRIAL: &str = "meta/trial";

type Done = oneshot::Sender<Result<Stamp, StoreError>>;

struct Job {
    batch: Batch,
    done: Done,
    _room: Option<OwnedSemaphorePermit>,
}

/// What thread and askers share.
pub(super) struct Shared {
    /// Why nothing is written.
    pub trouble: watch::Sender<Option<String>>,
    database: RwLock<Option<Database>>,
    stamp: Mutex<Stamp>,
    queue: Mutex<Queue>,
    wake: Condvar,
    room: Arc<Semaphore>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Shared {
    pub fn stamp(&self) -> Stamp {
        *self.stamp.lock()
    }

    pub fn begin_read(&self) -> Result<ReadTransaction, StoreError> {
        let database = self.database.read();
        let database = database.as_ref().ok_or_else(|| StoreError::Failed(self.why()))?;
        database.begin_read().map_err(|error| StoreError::Failed(error.to_string()))
    }

    fn why(&self) -> String {
        self.trouble.borrow().clone().unwrap_or_else(|| "the store is closed".to_owned())
    }

    /// Waits for room in the queue.
    pub async fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes >> 10).unwrap_or(WAITING_KIB).clamp(1, WAITING_KIB);
        // Never closed.
        self.room.clone().acquire_many_owned(kib).await.ok()
    }

    /// Hands a batch to the thread.
    pub fn push(&self, batch: Batch, done: Done, room: Option<OwnedSemaphorePermit>) {
        let mut queue = self.queue.lock();
        if !queue.closed {
            queue.jobs.push_back(Job { batch, done, _room: room });
            self.wake.notify_one();
        }
    }

    /// Lets the thread end after what waits.
    pub fn close(&self) {
        self.queue.lock().closed = true;
        self.wake.notify_one();
    }

    /// All that waits; waits itself for at most `patience` (`None`: for ever). `None`: the end.
    fn take(&self, patience: Option<Duration>) -> Option<VecDeque<Job>> {
        let mut queue = self.queue.lock();
        let until = patience.map(|patience| Instant::now() + patience);
        while queue.jobs.is_empty() && !queue.closed {
            match until {
                None => self.wake.wait(&mut queue),
                Some(until) => {
                    if self.wake.wait_until(&mut queue, until).timed_out() {
                        break;
                    }
                }
            }
        }
        let over = queue.closed && queue.jobs.is_empty();
        (!over).then(|| std::mem::take(&mut queue.jobs))
    }
}

/// Owns the way to the disk.
pub(super) struct Writer {
    pub shared: Arc<Shared>,
    opener: Opener,
    dir: PathBuf,
    /// When a store in trouble is tried next.
    again: Option<Instant>,
}

impl Writer {
    /// Opens the database and begins an epoch. A disk that takes no write now is no reason not to start: what is kept
    /// can be read, and the epoch is written before anything else.
    pub fn begin(opener: Opener, dir: PathBuf) -> anyhow::Result<Self> {
        let database = opener().map_err(|error| match error {
            redb::DatabaseError::Storage(redb::StorageError::Io(error)) if error.kind() != ErrorKind::InvalidData => {
                anyhow::anyhow!("cannot open the store in {}: {error}", dir.display())
            }
            error => anyhow::anyhow!(
                "the store in {} cannot be used: {error}; restore a backup with `sockmesh-center restore FILE --force`",
                dir.display()
            ),
        })?;
        let (layout, mut stamp) = standing(&database)?;
        file::check_layout(layout)?;
        stamp.epoch += 1;
        let shared = Shared {
            trouble: watch::Sender::new(None),
            database: RwLock::new(Some(database)),
            stamp: Mutex::new(stamp),
            queue: Mutex::default(),
            wake: Condvar::new(),
            room: Arc::new(Semaphore::new(WAITING_KIB as usize)),
        };
        let mut writer = Self { shared: Arc::new(shared), opener, dir, again: None };
        if let Err(error) = writer.write(&[]) {
            writer.fail(&error);
        }
        Ok(writer)
    }

    /// Writes until the store is closed.
    pub fn run(mut self) {
        loop {
            let patience = self.again.map(|at| at.saturating_duration_since(Instant::now()));
            let Some(jobs) = self.shared.take(patience) else { break };
            if self.again.is_some_and(|at| at <= Instant::now()) {
                self.try_again();
            }
            if self.again.is_some() {
                refuse(jobs, &self.shared.why());
            } else if !jobs.is_empty() {
                self.serve(jobs);
            }
        }
        self.shared.database.write().take();
    }

    fn serve(&mut self, jobs: VecDeque<Job>) {
        let (batches, dones): (Vec<_>, Vec<_>) = jobs.into_iter().map(|job| (job.batch, (job.done, job._room))).unzip();
        match self.write(&batches) {
            Ok(outcomes) => {
                let epoch = self.shared.stamp().epoch;
                for (outcome, (done, _)) in outcomes.into_iter().zip(dones) {
                    let answer = match outcome {
                        Outcome::Made(revision) => Ok(Stamp { epoch, revision }),
                        Outcome::Conflict(key) => Err(StoreError::Conflict { key }),
                        Outcome::NotLeader => Err(StoreError::NotLeader),
                    };
                    // Whoever asked may be gone; what was asked is done all the same.
                    let _ = done.send(answer);
                }
            }
            Err(error) => {
                self.fail(&error);
                let why = self.shared.why();
                for (done, _) in dones {
                    let _ = done.send(Err(StoreError::Failed(why.clone())));
                }
            }
        }
    }

    /// One transaction with one sync.
    fn write(&self, batches: &[Batch]) -> Result<Vec<Outcome>, redb::Error> {
        let database = self.shared.database.read();
        let database = database.as_ref().ok_or(redb::Error::DatabaseClosed)?;
        let (revision, outcomes) = file::apply(database, self.shared.stamp(), batches.iter())?;
        self.shared.stamp.lock().revision = revision;
        Ok(outcomes)
    }

    /// Turns read-only.
    fn fail(&mut self, error: &redb::Error) {
        let dir = self.dir.display();
        let why = match error {
            redb::Error::Io(io) if io.kind() == ErrorKind::StorageFull => {
                format!("the disk of {dir} is full; free some of it, then writing goes on by itself")
            }
            redb::Error::Io(io) if io.kind() == ErrorKind::QuotaExceeded => {
                format!("the quota for {dir} is used up; raise it, then writing goes on by itself")
            }
            error => format!("{dir} cannot be written: {error}"),
        };
        self.again = Some(Instant::now() + AGAIN);
        let new = self.shared.trouble.send_if_modified(|trouble| {
            let new = trouble.is_none();
            *trouble = Some(why.clone());
            new
        });
        if new {
            tracing::error!(%why, "the store is read-only");
        }
        self.open_again();
    }

    /// redb gives up a database after an error of the disk; what was committed is there when it is opened again.
    fn open_again(&self) {
        // Closed before it is opened: it locks its file.
        self.shared.database.write().take();
        match (self.opener)() {
            Ok(database) => match standing(&database) {
                // A commit may have reached the disk although its sync failed. Nobody was told that it holds, and
                // nothing may be given a revision twice.
                Ok((_, stamp)) => {
                    let mut known = self.shared.stamp.lock();
                    known.revision = known.revision.max(stamp.revision);
                    drop(known);
                    *self.shared.database.write() = Some(database);
                }
                Err(error) => tracing::debug!(%error, "the store cannot be read"),
            },
            Err(error) => tracing::debug!(%error, "the store cannot be opened"),
        }
    }

    /// Whether the trouble is over.
    fn try_again(&mut self) {
        if self.shared.database.read().is_none() {
            self.open_again();
        }
        let put = Batch { put: vec![(TRIAL.to_owned(), vec![0; TRIAL_BYTES])], ..Batch::default() };
        let delete = Batch { delete: vec![TRIAL.to_owned()], ..Batch::default() };
        match self.write(&[put]).and_then(|_| self.write(&[delete])) {
            Ok(_) => {
                self.again = None;
                self.shared.trouble.send_replace(None);
                tracing::info!("the store is written again");
            }
            Err(error) => self.fail(&error),
        }
    }
}

fn refuse(jobs: VecDeque<Job>, why: &str) {
    for job in jobs {
        let _ = job.done.send(Err(StoreError::Failed(why.to_owned())));
    }
}

/// Layout and stamp of a database; a new one has neither.
fn standing(database: &Database) -> anyhow::Result<(u64, Stamp)> {
    let transaction = database.begin_read()?;
    match transaction.open_table(META) {
        Ok(meta) => {
            let layout = redb::ReadableTable::get(&meta, "layout")?.map_or(0, |value| value.value());
            Ok((layout, file::stamp_of(&meta)?))
        }
        Err(redb::TableError::TableDoesNotExist(_)) => Ok((0, Stamp::default())),
        Err(error) => Err(error.into()),
    }
}
