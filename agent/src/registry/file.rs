//! `file`: instances in a YAML or JSON file that is watched.
//!
//! ```yaml
//! services:
//!   web: [127.0.0.1:8081, {address: 127.0.0.1:8082, group: idc-b, weight: 20}]
//! ```

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use model::{Instance, ServiceKey, Snapshot};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};

use super::{Registry, entry::Entry, tidy};
use crate::kind::{BuildCx, Value};

/// Notifications can be lost (full queue, network file systems): look again this often.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// An editor's save is several events; the file is read once they have come to rest.
const SETTLE: Duration = Duration::from_millis(20);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    path: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    services: BTreeMap<String, Vec<Entry>>,
}

/// A registry in a file.
struct File {
    path: PathBuf,
    /// What the file said last when it was in order. One reader serves all watches; it ends with the
    /// last of them.
    shared: Mutex<Option<watch::Receiver<Arc<State>>>>,
}

/// The file as it was read last.
#[derive(Clone, Debug, Default)]
struct State {
    /// 0 until the file was read in order once.
    revision: u64,
    services: BTreeMap<String, Vec<Instance>>,
    problem: Option<String>,
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Registry>> {
    let Options { path } = serde_yaml::from_value(options.clone()).context("registry `file` needs {path: FILE}")?;
    Ok(Arc::new(File { path: cx.base_dir.join(path), shared: Mutex::new(None) }))
}

impl Registry for File {
    fn watch(&self, service: &ServiceKey) -> watch::Receiver<Arc<Snapshot>> {
        let mut state = self.state();
        let first = snapshot(&state.borrow_and_update(), service);
        let (tx, rx) = watch::channel(Arc::new(first));
        let service = service.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    changed = state.changed() => if changed.is_err() { return },
                    () = tx.closed() => return,
                }
                let mut next = snapshot(&state.borrow_and_update(), &service);
                tx.send_if_modified(|last| {
                    // A change of another service's lines is none of ours.
                    if next.instances == last.instances && next.stale == last.stale && last.revision > 0 {
                        return false;
                    }
                    next.revision = next.revision.max(last.revision);
                    *last = Arc::new(next);
                    true
                });
            }
        });
        rx
    }
}

impl File {
    fn state(&self) -> watch::Receiver<Arc<State>> {
        let mut shared = self.shared.lock();
        // An error means that the reader ended: nobody watched for a while.
        if let Some(state) = shared.as_ref().filter(|state| state.has_changed().is_ok()) {
            return state.clone();
        }
        let (tx, rx) = watch::channel(Arc::new(read_again(&self.path, &State::default())));
        // The reader must not count this copy as someone who watches.
        *shared = Some(rx.clone());
        tokio::spawn(follow(self.path.clone(), tx));
        rx
    }
}

fn snapshot(state: &State, service: &ServiceKey) -> Snapshot {
    let none = Vec::new();
    let all = state.services.get(&service.service).unwrap_or(&none);
    let (instances, left_out) = tidy(all, service);
    let stale = match (&state.problem, left_out) {
        (Some(a), Some(b)) => Some(format!("{a}; {b}")),
        (a, b) => a.clone().or(b),
    };
    Snapshot { revision: state.revision, instances, stale }
}

/// Reads the file at every change until only the registry itself still holds the state.
async fn follow(path: PathBuf, tx: watch::Sender<Arc<State>>) {
    // One slot: an event while one is pending adds nothing.
    let (events, mut event) = mpsc::channel(1);
    let watcher = watch_folder(&path, events);
    if let Err(error) = &watcher {
        tracing::warn!(path = %path.display(), %error, "no change notifications, looking every {LOOK_AGAIN:?}");
    }
    // The first look is at once: the file may have changed before the folder was watched.
    for looks in 0u64.. {
        tokio::select! {
            () = std::future::ready(()), if looks == 0 => {}
            Some(()) = event.recv() => {
                // Wait for the rest of the burst.
                while let Ok(Some(())) = tokio::time::timeout(SETTLE, event.recv()).await {}
            }
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
        if tx.receiver_count() <= 1 {
            return;
        }
        let last = tx.borrow().clone();
        let next = read_again(&path, &last);
        if next.revision != last.revision || next.problem != last.problem {
            match &next.problem {
                Some(problem) => {
                    tracing::error!(path = %path.display(), problem, "registry file not taken, the last good list stays")
                }
                None => tracing::info!(path = %path.display(), revision = next.revision, "registry file read"),
            }
            tx.send_replace(Arc::new(next));
        }
    }
}

/// Watches the folder, not the file: editors and configuration tools replace files by renaming.
fn watch_folder(path: &Path, events: mpsc::Sender<()>) -> anyhow::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading the file is an event too, and not one of ours.
        if !matches!(&event, Ok(event) if event.kind.is_access()) {
            let _ = events.try_send(());
        }
    })?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// What the file says now, or what it said last together with why it is not taken now.
fn read_again(path: &Path, last: &State) -> State {
    match read(path) {
        Ok(services) if services == last.services && last.revision > 0 => State { problem: None, ..last.clone() },
        Ok(services) => State { revision: last.revision + 1, services, problem: None },
        Err(error) => State { problem: Some(format!("{error:#}")), ..last.clone() },
    }
}

fn read(path: &Path) -> anyhow::Result<BTreeMap<String, Vec<Instance>>> {
    let name = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    if text.trim().is_empty() {
        bail!("{name} is empty: write `services: {{}}` if no service is meant to have instances");
    }
    // JSON is YAML.
    let contents: Contents = serde_yaml::from_str(&text).with_context(|| format!("cannot understand {name}"))?;
    let instances = |entries: Vec<Entry>| entries.into_iter().map(Instance::from).collect();
    Ok(contents.services.into_iter().map(|(service, entries)| (service, instances(entries))).collect())
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let name = format!("sockmesh-file-{}-{:x}", std::process::id(), fastrand::u64(..));
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path)
        }
        fn file(&self) -> PathBuf {
            self.0.join("nodes.yaml")
        }
        /// As editors do: a new file takes the place of the old one.
        fn replace(&self, text: &str) {
            let new = self.0.join("nodes.yaml.new");
            fs::write(&new, text).unwrap();
            fs::rename(new, self.file()).unwrap();
        }
        fn registry(&self) -> Arc<dyn Registry> {
            let options = serde_yaml::from_str("path: nodes.yaml").unwrap();
            build(&options, &BuildCx { base_dir: self.0.clone(), ..BuildCx::default() }).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn web() -> ServiceKey {
        ServiceKey { service: "web".into(), ..Default::default() }
    }

    /// Waits until the list is this one; 10 s is far beyond any notification.
    async fn becomes(list: &mut watch::Receiver<Arc<Snapshot>>, what: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let found = tokio::time::timeout(Duration::from_secs(10), list.wait_for(|s| what(s))).await;
        found.expect("the change is seen").unwrap().clone()
    }

    fn is(addresses: &[&str]) -> impl Fn(&Snapshot) -> bool {
        move |s| s.instances.iter().map(|i| i.address.as_str()).eq(addresses.iter().copied())
    }

    #[tokio::test]
    async fn follows_the_file_through_every_way_to_write_it() {
        let folder = Folder::new();
        let registry = folder.registry();
        let mut list = registry.watch(&web());
        assert_eq!(list.borrow().revision, 0);
        assert!(list.borrow().stale.as_ref().unwrap().contains("cannot read"), "missing at first");

        fs::write(folder.file(), "services: {web: [127.0.0.1:1]}").unwrap();
        let first = becomes(&mut list, |s| is(&["127.0.0.1:1"])(s) && s.stale.is_none()).await;

        folder.replace(r#"{"services": {"web": ["127.0.0.1:1", {"address": "127.0.0.1:2", "weight": 30}]}}"#);
        let second = becomes(&mut list, is(&["127.0.0.1:1", "127.0.0.1:2"])).await;
        assert!(second.revision > first.revision);
        assert_eq!(second.instances[1].weight, 30);

        for broken in ["services: {web: [127.0.0.1:3", "servces: {}", "", "services: {web: [{adress: 127.0.0.1:3}]}"] {
            folder.replace(broken);
            let kept = becomes(&mut list, |s| s.stale.is_some()).await;
            assert_eq!(kept.instances, second.instances, "the last good list stays with {broken:?}");
            folder.replace("services: {web: [127.0.0.1:1, {address: 127.0.0.1:2, weight: 30}]}");
            becomes(&mut list, |s| s.stale.is_none()).await;
        }

        fs::remove_file(folder.file()).unwrap();
        becomes(&mut list, |s| s.stale.as_deref().is_some_and(|p| p.contains("cannot read")) && s.instances.len() == 2)
            .await;

        let real = folder.0.join("real.yaml");
        fs::write(&real, "services: {web: [127.0.0.1:4], other: [127.0.0.1:5]}").unwrap();
        std::os::unix::fs::symlink(&real, folder.file()).unwrap();
        becomes(&mut list, is(&["127.0.0.1:4"])).await;
        assert!(is(&["127.0.0.1:5"])(
            &registry.watch(&ServiceKey { service: "other".into(), ..Default::default() }).borrow()
        ));

        let mut open = fs::OpenOptions::new().write(true).truncate(true).open(&real).unwrap();
        open.write_all(b"services: {other: []}").unwrap();
        drop(open);
        let gone = becomes(&mut list, |s| s.instances.is_empty()).await;
        assert!(gone.revision > 0 && gone.stale.is_none(), "taken out of a good file is really gone");
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_named_and_the_rest_kept() {
        let folder = Folder::new();
        fs::write(folder.file(), "services: {web: [127.0.0.1:1, nowhere, 127.0.0.1:0]}").unwrap();
        let list = folder.registry().watch(&web());
        assert!(is(&["127.0.0.1:1"])(&list.borrow()));
        assert!(list.borrow().stale.as_ref().unwrap().contains("nowhere"));
    }
}
