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

use model::{Instance, ServiceKey};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::sleep};
use twox_hash::XxHash64;

/// Changes within this time are written together.
const GATHER: Duration = Duration::from_millis(200);
/// Pause before a write that failed is tried again, unless something changes before.
const AGAIN: Duration = Duration::from_secs(30);
/// Larger files are not read.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// Longest name of a file.
const MAX_NAME: usize = 250;
/// What the checksum begins with; it stands last in the file.
const CHECKSUM: &str = ",\"checksum\":\"xxh64:";

/// The folder of snapshot files.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    files: Mutex<HashMap<String, File>>,
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
    parts: BTreeMap<(String, String), Arc<Vec<Instance>>>,
    generation: u64,
    dirty: bool,
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
    pub instances: Vec<Instance>,
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
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
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
            file.parts.entry(part).or_insert_with(|| Arc::new(list));
        }
        (!instances.is_empty()).then_some(Recalled { instances, age })
    }

    /// Has the list of `service`, as `registry` is believed, written soon.
    pub fn put(&self, registry: &str, service: &ServiceKey, instances: &[Instance]) {
        let Some(name) = name_of(service) else { return };
        let mut files = self.files.lock();
        let file = files.entry(name).or_default();
        let part = (registry.to_owned(), service.version.clone());
        if file.parts.get(&part).is_some_and(|same| **same == instances) {
            return;
        }
        file.group.clone_from(&service.group);
        file.service.clone_from(&service.service);
        file.parts.insert(part, Arc::new(instances.to_vec()));
        file.dirty = true;
        drop(files);
        self.wake.notify_one();
    }

    /// Writes what changes, for ever.
    pub async fn keep(self: Arc<Self>) {
        loop {
            let waits = self.files.lock().values().any(|file| file.dirty);
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
            match write(&self.dir, &name, text.as_bytes()) {
                Ok(()) => {
                    self.written.fetch_add(1, Relaxed);
                    if self.trouble.lock().take().is_some() {
                        tracing::info!(folder = %self.dir.display(), "snapshot files are written again");
                    }
                }
                Err(error) => {
                    self.failed.fetch_add(1, Relaxed);
                    let why = format!("{}: {error}", self.dir.join(&name).display());
                    if self.trouble.lock().replace(why.clone()).is_none() {
                        tracing::warn!(why, again = ?AGAIN, "a snapshot file cannot be written; the one before stays");
                    }
                    if let Some(file) = self.files.lock().get_mut(&name) {
                        file.dirty = true;
                    }
                }
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

/// `GROUP_SERVICE`; `None` when no file can have that name.
fn name_of(service: &ServiceKey) -> Option<String> {
    let name = format!("{}_{}", service.group, service.service).replace('%', "%25").replace('/', "%2F");
    let name = name.strip_prefix('.').map_or(name.clone(), |rest| format!("%2E{rest}"));
    (name.len() <= MAX_NAME && !name.contains('\0')).then_some(name)
}

fn text(group: &str, service: &str, parts: &BTreeMap<(String, String), Arc<Vec<Instance>>>, generation: u64) -> String {
    let nodes: Vec<_> =
        parts.iter().flat_map(|((registry, asked), list)| list.iter().map(move |i| node(registry, asked, i))).collect();
    let json = |value: &dyn erased::Json| value.json();
    let mut text = format!(
        "{{\"group\":{},\"path\":{},\"nodes\":{},\"generation\":{generation}",
        json(&group),
        json(&service),
        json(&nodes)
    );
    let sum = XxHash64::oneshot(0, text.as_bytes());
    text.push_str(&format!("{CHECKSUM}{sum:016x}\"}}\n"));
    text
}

/// Serialization that cannot fail.
mod erased {
    pub(super) trait Json {
        fn json(&self) -> String;
    }

    impl<T: serde::Serialize> Json for T {
        fn json(&self) -> String {
            serde_json::to_string(self).expect("texts, numbers and maps of texts always serialize")
        }
    }
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
    let is_ours = match text.rfind(CHECKSUM) {
        Some(at) => {
            let told = text[at + CHECKSUM.len()..].get(..16);
            let sum = format!("{:016x}", XxHash64::oneshot(0, &text.as_bytes()[..at]));
            if told != Some(sum.as_str()) {
                return Err("its checksum is wrong".to_owned());
            }
            true
        }
        None => false,
    };
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
mod tests {
    use super::*;

    /// A folder that goes away with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("sockmesh-snapshot-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn key() -> ServiceKey {
        ServiceKey { service: "bars.BarService".into(), group: "bars".into(), version: String::new() }
    }

    fn list(ports: &[u16]) -> Vec<Instance> {
        ports.iter().map(|p| Instance { zone: "z\"1".into(), ..Instance::at(format!("10.0.0.1:{p}")) }).collect()
    }

    fn recalled(dir: &Path) -> Option<Vec<Instance>> {
        Store::new(dir.to_owned()).recall("zk", &key()).map(|r| r.instances)
    }

    #[test]
    fn what_is_put_is_recalled_by_the_next_agent() {
        let folder = Folder::new("put");
        let store = Store::new(folder.0.clone());
        store.put("zk", &key(), &list(&[1, 2]));
        store.put("other", &key(), &list(&[3]));
        store.put("zk", &ServiceKey { version: "2".into(), ..key() }, &list(&[4]));
        store.flush();
        assert_eq!(store.state(), Written { written: 1, failed: 0, trouble: None });
        assert_eq!(recalled(&folder.0), Some(list(&[1, 2])));
        let next = Store::new(folder.0.clone());
        assert_eq!(next.recall("other", &key()).unwrap().instances, list(&[3]));
        assert_eq!(next.recall("nobody", &key()), None);
        // What one says anew leaves the words of the others.
        next.put("zk", &key(), &list(&[5]));
        next.flush();
        let third = Store::new(folder.0.clone());
        assert_eq!(third.recall("other", &key()).unwrap().instances, list(&[3]));
        assert_eq!(third.recall("zk", &key()).unwrap().instances, list(&[5]));
    }

    #[test]
    fn clients_of_motan_read_it_and_theirs_is_read() {
        let folder = Folder::new("motan");
        let store = Store::new(folder.0.clone());
        store.put("zk", &key(), &list(&[1]));
        store.flush();
        let text = fs::read_to_string(folder.0.join("bars_bars.BarService")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((json["group"].as_str(), json["path"].as_str()), (Some("bars"), Some("bars.BarService")));
        assert_eq!(json["nodes"][0]["address"], "10.0.0.1:1");
        assert_eq!(json["nodes"][0]["extInfo"], "");
        assert_eq!(json["generation"], 1);
        let theirs = r#"{"group":"bars","path":"bars.BarService","nodes":[{"extInfo":"","address":"10.0.0.9:1"}]}"#;
        fs::write(folder.0.join("bars_bars.BarService"), theirs).unwrap();
        assert_eq!(recalled(&folder.0), Some(vec![Instance::at("10.0.0.9:1")]));
    }

    #[test]
    fn a_file_cut_at_any_byte_costs_one_generation_at_most() {
        let folder = Folder::new("cut");
        let store = Store::new(folder.0.clone());
        for ports in [&[1][..], &[1, 2]] {
            store.put("zk", &key(), &list(ports));
            store.flush();
        }
        let path = folder.0.join("bars_bars.BarService");
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            // Only the last byte, the end of the line, is not missed.
            let expected = if cut == whole.len() - 1 { list(&[1, 2]) } else { list(&[1]) };
            assert_eq!(recalled(&folder.0), Some(expected), "cut at {cut}");
            let mut flipped = whole.clone();
            flipped[cut] ^= 1;
            fs::write(&path, &flipped).unwrap();
            let found = recalled(&folder.0);
            assert!([list(&[1]), list(&[1, 2])].contains(&found.clone().unwrap()), "flipped at {cut}: {found:?}");
        }
        // Both cut: better nothing than something wrong.
        fs::write(&path, &whole[..40]).unwrap();
        fs::write(folder.0.join("old/bars_bars.BarService"), &whole[..50]).unwrap();
        assert_eq!(recalled(&folder.0), None);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_told_and_tried_again() {
        let folder = Folder::new("ro");
        // A file where the folder should be.
        fs::write(&folder.0, "in the way").unwrap();
        let store = Store::new(folder.0.clone());
        store.put("zk", &key(), &list(&[1]));
        store.flush();
        let state = store.state();
        assert_eq!((state.written, state.failed), (0, 1));
        assert!(state.trouble.unwrap().contains("bars_bars.BarService"));
        fs::remove_file(&folder.0).unwrap();
        store.flush();
        assert_eq!(store.state(), Written { written: 1, failed: 1, trouble: None });
        assert_eq!(recalled(&folder.0), Some(list(&[1])));
    }

    #[test]
    fn names_stay_in_their_folder() {
        let name = |group: &str, service: &str| {
            name_of(&ServiceKey { service: service.into(), group: group.into(), version: String::new() })
        };
        assert_eq!(name("g", "a.B").unwrap(), "g_a.B");
        assert_eq!(name("../../etc", "passwd").unwrap(), "%2E.%2F..%2Fetc_passwd");
        assert_eq!(name("", "x".repeat(300).as_str()), None);
    }
}
