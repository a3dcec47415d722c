//! Snapshot files: the last believed list of each service and group, for a start without its registry.
//!
//! `GROUP_SERVICE` in one folder, as clients of Motan look for it: `{"group","path","nodes":[{"extInfo",
//! "address",…}],…}`. What they do not know stands beside it: what else is known of a node, a generation that
//! grows, and last a checksum of everything before it. A file is written anew beside the old one, synced and
//! renamed; the one before stays in the folder `old`.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use model::{Instance, Metadata, ServiceKey, Snapshot};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::sleep};
use twox_hash::XxHash64;

use super::Scope;

/// Changes within this time are written together.
const GATHER: Duration = Duration::from_millis(200);
/// Pause before a write that failed is tried again, unless something changes before.
const AGAIN: Duration = Duration::from_secs(30);
/// Larger files are not read.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// Longest name of a file.
const MAX_NAME: usize = 250;
/// Folder of command texts in that of the lists.
const COMMANDS: &str = "commands";
/// What the checksum begins with; it stands last in the file.
const CHECKSUM: &str = ",\"checksum\":\"xxh64:";

/// The folder of snapshot files.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    files: Mutex<HashMap<String, File>>,
    texts: Mutex<HashMap<String, CommandFile>>,
    wake: Notify,
    written: AtomicU64,
    failed: AtomicU64,
    trouble: Mutex<Option<String>>,
}

/// One file as it shall be.
#[derive(Debug, Default)]
struct File {
    group: String,
    service: String,
    /// By registry and the version that was asked for.
    parts: BTreeMap<(String, String), Arc<Snapshot>>,
    generation: u64,
    dirty: bool,
}

/// One command text as it shall be.
#[derive(Debug)]
struct CommandFile {
    text: Option<String>,
    dirty: bool,
}

#[derive(Deserialize)]
struct WholeText {
    text: Option<String>,
}

/// What a file says.
#[derive(Debug)]
struct Content {
    parts: BTreeMap<(String, String), Vec<Instance>>,
    /// Of nobody in particular: files that Motan's own agents wrote.
    others: Vec<Instance>,
    generation: u64,
    age: Duration,
}

/// A list from a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recalled {
    /// The last believed list.
    pub list: Arc<Snapshot>,
    /// How old the file is.
    pub age: Duration,
}

/// How the files go, for operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Files written.
    pub written: u64,
    /// Writes that failed; they are tried again.
    pub failed: u64,
    /// Why the last one failed; `None` once one succeeds.
    pub trouble: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Node {
    #[serde(rename = "extInfo", default)]
    ext_info: String,
    address: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    registry: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    asked: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    group: String,
    #[serde(default)]
    weight: Option<u32>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    zone: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    version: String,
    #[serde(default, skip_serializing_if = "Metadata::is_empty")]
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Whole {
    nodes: Vec<Node>,
    #[serde(default)]
    generation: u64,
}

impl Store {
    /// Files in `dir`, which need not be there yet. [`Store::keep`] writes them.
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            files: Mutex::default(),
            texts: Mutex::default(),
            wake: Notify::new(),
            written: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            trouble: Mutex::default(),
        }
    }

    /// The list of `service` that `registry` was last believed. Blocks on the disk.
    pub fn recall(&self, registry: &str, service: &ServiceKey) -> Option<Recalled> {
        let name = name_of(service)?;
        let content = read(&self.dir, &name)?;
        let part = (registry.to_owned(), service.version.clone());
        let age = content.age;
        let mut files = self.files.lock();
        let file = files.entry(name).or_default();
        file.generation = file.generation.max(content.generation);
        let instances = content.parts.get(&part).cloned().unwrap_or_else(|| content.others.clone());
        // Parts of others stay in the file until those others say something new.
        for (part, list) in content.parts {
            file.parts.entry(part).or_insert_with(|| Arc::new(listed(list)));
        }
        (!instances.is_empty()).then(|| Recalled { list: Arc::new(listed(instances)), age })
    }

    /// Has the list of `service`, as `registry` is believed, written soon.
    pub fn put(&self, registry: &str, service: &ServiceKey, list: &Arc<Snapshot>) {
        let Some(name) = name_of(service) else { return };
        let mut files = self.files.lock();
        let file = files.entry(name).or_default();
        let part = (registry.to_owned(), service.version.clone());
        if let Some(same) = file.parts.get_mut(&part)
            && same.instances == list.instances
        {
            // One list in memory is enough.
            same.clone_from(list);
            return;
        }
        file.group.clone_from(&service.group);
        file.service.clone_from(&service.service);
        file.parts.insert(part, list.clone());
        file.dirty = true;
        drop(files);
        self.wake.notify_one();
    }

    /// Writes what changes, for ever.
    pub async fn keep(self: Arc<Self>) {
        loop {
            let waits =
                self.files.lock().values().any(|file| file.dirty) || self.texts.lock().values().any(|file| file.dirty);
            tokio::select! {
                () = self.wake.notified() => sleep(GATHER).await,
                () = sleep(AGAIN), if waits => {}
            }
            let store = self.clone();
            // An error: the runtime is shutting down.
            let _ = tokio::task::spawn_blocking(move || store.flush()).await;
        }
    }

    /// Writes what has changed. Blocks on the disk.
    pub fn flush(&self) {
        let changed: Vec<_> = {
            let mut files = self.files.lock();
            let changed = files.iter_mut().filter(|(_, file)| file.dirty);
            changed
                .map(|(name, file)| {
                    file.dirty = false;
                    file.generation += 1;
                    (name.clone(), file.group.clone(), file.service.clone(), file.parts.clone(), file.generation)
                })
                .collect()
        };
        for (name, group, service, parts, generation) in changed {
            let text = text(&group, &service, &parts, generation);
            let written = write(&self.dir, &name, text.as_bytes());
            if !self.note(&name, written)
                && let Some(file) = self.files.lock().get_mut(&name)
            {
                file.dirty = true;
            }
        }
        self.flush_commands();
    }

    /// Has the command text of `scope` written soon; `None` when there is none any more.
    pub fn put_commands(&self, registry: &str, scope: &Scope, text: Option<&str>) {
        let Some(name) = command_name(registry, scope) else { return };
        let mut texts = self.texts.lock();
        let known = texts.get(&name).is_some_and(|known| known.text.as_deref() == text);
        if !known {
            texts.insert(name, CommandFile { text: text.map(str::to_owned), dirty: true });
            drop(texts);
            self.wake.notify_one();
        }
    }

    /// The command text of `scope` that `registry` held last. Blocks on the disk.
    pub fn recall_commands(&self, registry: &str, scope: &Scope) -> Option<String> {
        let name = command_name(registry, scope)?;
        let path = self.dir.join(COMMANDS).join(&name);
        let text = fs::read_to_string(path).ok().filter(|text| is_whole(text))?;
        serde_json::from_str::<WholeText>(&text).ok()?.text
    }

    fn flush_commands(&self) {
        let dirty: Vec<_> = {
            let mut texts = self.texts.lock();
            let dirty = texts
                .iter_mut()
                .filter_map(|(name, file)| std::mem::take(&mut file.dirty).then(|| (name.clone(), file.text.clone())));
            dirty.collect()
        };
        for (name, text) in dirty {
            let whole = with_checksum(format!("{{\"text\":{}", json(&text)));
            let written = write(&self.dir.join(COMMANDS), &name, whole.as_bytes());
            if !self.note(&name, written)
                && let Some(file) = self.texts.lock().get_mut(&name)
            {
                file.dirty = true;
            }
        }
    }

    /// Counts a write and tells the first that fails; whether it went well.
    fn note(&self, name: &str, written: io::Result<()>) -> bool {
        match written {
            Ok(()) => {
                self.written.fetch_add(1, Relaxed);
                if self.trouble.lock().take().is_some() {
                    tracing::info!(folder = %self.dir.display(), "snapshot files are written again");
                }
                true
            }
            Err(error) => {
                self.failed.fetch_add(1, Relaxed);
                let why = format!("{}: {error}", self.dir.join(name).display());
                if self.trouble.lock().replace(why.clone()).is_none() {
                    tracing::warn!(why, again = ?AGAIN, "a snapshot file cannot be written; the one before stays");
                }
                false
            }
        }
    }

    /// How it goes.
    pub fn state(&self) -> Written {
        Written {
            written: self.written.load(Relaxed),
            failed: self.failed.load(Relaxed),
            trouble: self.trouble.lock().clone(),
        }
    }
}

fn listed(instances: Vec<Instance>) -> Snapshot {
    Snapshot { revision: 1, instances, stale: None }
}

/// `GROUP_SERVICE`; `None` when no file can have that name.
fn name_of(service: &ServiceKey) -> Option<String> {
    file_name(&format!("{}_{}", service.group, service.service))
}

fn file_name(name: &str) -> Option<String> {
    let name = name.replace('%', "%25").replace('/', "%2F");
    let name = name.strip_prefix('.').map_or(name.clone(), |rest| format!("%2E{rest}"));
    (name.len() <= MAX_NAME && !name.contains('\0')).then_some(name)
}

fn text(group: &str, service: &str, parts: &BTreeMap<(String, String), Arc<Snapshot>>, generation: u64) -> String {
    let nodes: Vec<_> = parts
        .iter()
        .flat_map(|((registry, asked), list)| list.instances.iter().map(move |i| node(registry, asked, i)))
        .collect();
    with_checksum(format!(
        "{{\"group\":{},\"path\":{},\"nodes\":{},\"generation\":{generation}",
        json(&group),
        json(&service),
        json(&nodes)
    ))
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("texts, numbers and maps of texts always serialize")
}

/// An object that is open still, with the checksum of what it has so far.
fn with_checksum(mut open: String) -> String {
    let sum = XxHash64::oneshot(0, open.as_bytes());
    open.push_str(&format!("{CHECKSUM}{sum:016x}\"}}\n"));
    open
}

/// Whether the checksum of `text` is right; false when it has none.
fn is_whole(text: &str) -> bool {
    let Some(at) = text.rfind(CHECKSUM) else { return false };
    let sum = format!("{:016x}", XxHash64::oneshot(0, &text.as_bytes()[..at]));
    text[at + CHECKSUM.len()..].get(..16) == Some(sum.as_str())
}

fn command_name(registry: &str, scope: &Scope) -> Option<String> {
    let (what, name) = match scope {
        Scope::Group(name) => ("group", name),
        Scope::Agent(name) => ("agent", name),
    };
    file_name(&format!("{registry}_{what}_{name}"))
}

fn node(registry: &str, asked: &str, instance: &Instance) -> Node {
    Node {
        ext_info: String::new(),
        address: instance.address.clone(),
        registry: registry.to_owned(),
        asked: asked.to_owned(),
        group: instance.group.clone(),
        weight: Some(instance.weight),
        zone: instance.zone.clone(),
        version: instance.version.clone(),
        metadata: instance.metadata.clone(),
    }
}

/// The file, or the one before when it is broken.
fn read(dir: &Path, name: &str) -> Option<Content> {
    let places = [dir.join(name), dir.join("old").join(name)];
    places.iter().find_map(|path| match read_one(path) {
        Ok(content) => content,
        Err(why) => {
            tracing::warn!(file = %path.display(), why, "a snapshot file is broken and left aside");
            None
        }
    })
}

fn read_one(path: &Path) -> Result<Option<Content>, String> {
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    if meta.len() > MAX_FILE_BYTES {
        return Err(format!("{} bytes are too many", meta.len()));
    }
    let text = fs::read_to_string(path).map_err(|e| e.to_string())?;
    let (whole, is_ours) = parse(&text)?;
    let age = meta.modified().ok().and_then(|t| SystemTime::now().duration_since(t).ok()).unwrap_or_default();
    let mut content = Content { parts: BTreeMap::new(), others: Vec::new(), generation: whole.generation, age };
    for node in whole.nodes {
        let instance = Instance {
            group: node.group,
            weight: node.weight.unwrap_or(model::DEFAULT_WEIGHT),
            zone: node.zone,
            version: node.version,
            metadata: node.metadata,
            ..Instance::at(node.address)
        };
        match is_ours {
            true => content.parts.entry((node.registry, node.asked)).or_default().push(instance),
            false => content.others.push(instance),
        }
    }
    Ok(Some(content))
}

/// What the text says, and whether this agent wrote it.
fn parse(text: &str) -> Result<(Whole, bool), String> {
    let is_ours = text.contains(CHECKSUM);
    if is_ours && !is_whole(text) {
        return Err("its checksum is wrong".to_owned());
    }
    let whole = serde_json::from_str(text).map_err(|e| format!("it cannot be read: {e}"))?;
    Ok((whole, is_ours))
}

/// Replaces a file as a whole, keeping the one before.
fn write(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let old = dir.join("old");
    fs::create_dir_all(&old)?;
    // One writer at a time, so that one name will do; what a crash left is overwritten.
    let (path, fresh, kept) = (dir.join(name), dir.join(".new"), old.join(".new"));
    let written = (|| {
        let mut file = fs::File::create(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()
    })();
    if let Err(error) = written {
        // Half a file only takes room, of which there is none.
        let _ = fs::remove_file(&fresh);
        return Err(error);
    }
    if path.exists() {
        let _ = fs::remove_file(&kept);
        // File systems without hard links take a copy.
        fs::hard_link(&path, &kept).or_else(|_| fs::copy(&path, &kept).map(drop))?;
        fs::rename(&kept, old.join(name))?;
    }
    fs::rename(&fresh, &path)?;
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests;
