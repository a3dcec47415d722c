//! Noticing that the file changed.
//!
//! inotify on the folder, not on the file: editors and deployment tools replace files by rename, and
//! Kubernetes swaps a symbolic link beside it. Network file systems and exhausted inotify limits say
//! nothing at all, so the file is looked at every few seconds besides.

use std::{
    collections::BTreeSet,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{Shared, content};
use crate::sys;

/// How often the file is looked at without being told.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// A writer that is silent for this long has finished, one would think. If not, what is half written is told and
/// not taken, and the next event brings the rest.
const QUIET: Duration = Duration::from_millis(10);
/// Reading a file of this many bytes takes room worth giving back.
const LARGE: u64 = 256 << 10;
/// A folder that is never quiet must not hide a change for longer than this.
const NOISY: Duration = Duration::from_secs(1);

/// Keeps the lists current until nobody watches any of them.
pub(super) async fn follow(shared: Arc<Shared>) {
    // One place: that something happened is all there is to say.
    let (changed, mut changes) = mpsc::channel(1);
    let mut folders = Folders::new(&shared.path, changed);
    folders.watch();
    // Between the first read and the folder being watched the file may have changed.
    let mut last = refresh(&shared).await;
    loop {
        tokio::select! {
            Some(()) = changes.recv() => {
                settle(&mut changes).await;
                folders.watch();
                last = refresh(&shared).await;
            }
            () = sleep(LOOK_EVERY) => {
                folders.watch();
                if fingerprint(&shared.path) != last {
                    last = refresh(&shared).await;
                }
            }
            () = unwatched(&shared) => return,
        }
    }
}

/// Waits until nobody writes any more.
async fn settle(changes: &mut mpsc::Receiver<()>) {
    let latest = Instant::now() + NOISY;
    while let Ok(Ok(Some(()))) = timeout_at(latest, timeout(QUIET, changes.recv())).await {}
}

/// Returns when the last receiver is gone; the task counts as ended from then on.
async fn unwatched(shared: &Shared) {
    loop {
        let (list, text) = {
            let mut state = shared.state.lock();
            state.watched.retain(|_, sender| sender.receiver_count() > 0);
            state.texts.retain(|_, sender| sender.receiver_count() > 0);
            let found = (state.watched.values().next().cloned(), state.texts.values().next().cloned());
            if found.0.is_none() && found.1.is_none() {
                state.task = None;
                return;
            }
            found
        };
        match (list, text) {
            (Some(list), _) => list.closed().await,
            (None, Some(text)) => text.closed().await,
            (None, None) => {}
        }
    }
}

/// Reads the file and publishes it; returns what it looked like before the read.
async fn refresh(shared: &Arc<Shared>) -> Fingerprint {
    let reader = shared.clone();
    let read = tokio::task::spawn_blocking(move || (fingerprint(&reader.path), content::read(&reader.path)));
    match read.await {
        Ok((seen, content)) => {
            shared.state.lock().take(content, &shared.path);
            if seen.is_some_and(|(_, _, bytes, _)| bytes > LARGE) {
                sys::give_heap_back();
            }
            seen
        }
        // The runtime is shutting down, or reading panicked: the next look tries again.
        Err(_) => None,
    }
}

/// What changes when a file is written or replaced: device, inode, size, both times. Follows links.
type Fingerprint = Option<(u64, u64, u64, [i64; 4])>;

fn fingerprint(path: &Path) -> Fingerprint {
    let m = std::fs::metadata(path).ok()?;
    Some((m.dev(), m.ino(), m.size(), [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()]))
}

/// The folders in which a change of the file shows.
struct Folders {
    path: PathBuf,
    /// Behind a link any name in the folder can be the one that counts.
    linked: Arc<AtomicBool>,
    watcher: Option<RecommendedWatcher>,
    failed: BTreeSet<PathBuf>,
}

impl Folders {
    fn new(path: &Path, changed: mpsc::Sender<()>) -> Self {
        let linked = Arc::new(AtomicBool::new(false));
        let name = path.file_name().map(ToOwned::to_owned);
        let any_name = linked.clone();
        let handler = move |event: notify::Result<Event>| {
            let concerns = match &event {
                // Reading the file is an event as well: ours would go on for ever.
                Ok(e) if matches!(e.kind, EventKind::Access(a) if a != AccessKind::Close(AccessMode::Write)) => false,
                Ok(e) => {
                    any_name.load(Relaxed)
                        || e.need_rescan()
                        || e.paths.is_empty()
                        || e.paths.iter().any(|p| p.file_name() == name.as_deref())
                }
                Err(_) => true,
            };
            if concerns {
                // Full means that a change waits to be looked at already.
                let _ = changed.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(handler).inspect_err(|error| {
            tracing::warn!(file = %path.display(), %error, every = ?LOOK_EVERY, "cannot be told of changes, looking instead");
        });
        Self { path: path.to_owned(), linked, watcher: watcher.ok(), failed: BTreeSet::new() }
    }

    /// Watches the folder of the file and, behind links, that of the real one. Doing it again is
    /// harmless, and needed when a folder was replaced.
    fn watch(&mut self) {
        let linked = std::fs::symlink_metadata(&self.path).is_ok_and(|m| m.is_symlink());
        self.linked.store(linked, Relaxed);
        let Some(watcher) = &mut self.watcher else { return };
        let folder =
            |path: &Path| path.parent().map(|p| if p.as_os_str().is_empty() { ".".into() } else { p.to_owned() });
        let real = if linked { std::fs::canonicalize(&self.path).ok() } else { None };
        let folders = [folder(&self.path), real.as_deref().and_then(folder)];
        for folder in folders.into_iter().flatten() {
            match watcher.watch(&folder, RecursiveMode::NonRecursive) {
                Ok(()) => drop(self.failed.remove(&folder)),
                // Once per folder: it may be missing for hours.
                Err(error) => {
                    if self.failed.insert(folder.clone()) {
                        tracing::warn!(folder = %folder.display(), %error, every = ?LOOK_EVERY, "cannot be told of changes, looking instead");
                    }
                }
            }
        }
    }
}
