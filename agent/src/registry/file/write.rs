//! Changing the file: registrations and commands, one writer at a time, as a whole or not at all.

use std::{
    fs,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use serde_yaml::{Mapping, Value};
use tokio::{sync::watch, time::sleep};

use super::{Provided, Scope, Standing, Wanted};

/// How often a registration is looked after: somebody may have written the file anew.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Pause before a registration that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Keeps a registration in the file until it is wanted no more.
pub(super) async fn keep(
    path: PathBuf,
    provided: Provided,
    mut wanted: watch::Receiver<Wanted>,
    tell: watch::Sender<Standing>,
) {
    loop {
        // Whoever wanted it is gone: nothing is left to speak for it.
        let gone = wanted.has_changed().is_err();
        let now = if gone { Wanted::Gone } else { *wanted.borrow_and_update() };
        let (at, what) = (path.clone(), provided.clone());
        let Ok(done) = tokio::task::spawn_blocking(move || register(&at, &what, now)).await else { return };
        let (standing, pause) = match (done, now) {
            (Ok(()), Wanted::Gone) => {
                tell.send_replace(Standing::Gone);
                return;
            }
            (Ok(()), Wanted::Available) => (Standing::Available, LOOK_EVERY),
            (Ok(()), Wanted::Unavailable) => (Standing::Unavailable, LOOK_EVERY),
            (Err(error), _) => (Standing::Pending(Some(format!("{error:#}"))), AGAIN),
        };
        tell.send_if_modified(|before| std::mem::replace(before, standing.clone()) != standing);
        if gone {
            // It could not be taken back, and nobody asks any more.
            return;
        }
        tokio::select! {
            _ = wanted.changed() => {}
            () = sleep(pause) => {}
        }
    }
}

/// Makes the file say of `provided` what is wanted. Blocks on the disk and on other writers.
fn register(path: &Path, provided: &Provided, wanted: Wanted) -> anyhow::Result<()> {
    let instance = &provided.instance;
    let entry = serde_yaml::to_value(instance)?;
    let same = |value: &Value| {
        let group = value.get("group").and_then(Value::as_str).unwrap_or_default();
        let address = value.as_str().or_else(|| value.get("address")?.as_str());
        address == Some(instance.address.as_str()) && group == instance.group
    };
    change(path, |file| {
        for (key, here) in [("services", Wanted::Available), ("unavailable", Wanted::Unavailable)] {
            if here != wanted && !file.contains_key(key) {
                continue;
            }
            let lists = mapping(file, key)?;
            let name = Value::from(provided.key.service.as_str());
            let mut list = match lists.get(&name) {
                None | Some(Value::Null) => Vec::new(),
                Some(Value::Sequence(list)) => list.clone(),
                Some(_) => bail!("`{key}.{}` is no list", provided.key.service),
            };
            if here == wanted && list.contains(&entry) && list.iter().filter(|v| same(v)).count() == 1 {
                continue;
            }
            list.retain(|value| !same(value));
            if here == wanted {
                list.push(entry.clone());
            } else if !lists.contains_key(&name) {
                continue;
            }
            lists.insert(name, Value::Sequence(list));
        }
        Ok(())
    })
}

/// Replaces the command text of `scope` if it still is `expected`. Blocks on the disk and on other writers.
pub(super) fn command(path: &Path, scope: &Scope, expected: Option<&str>, text: &str) -> anyhow::Result<()> {
    let (key, name) = match scope {
        Scope::Group(name) => ("groups", name),
        Scope::Agent(name) => ("agents", name),
    };
    change(path, |file| {
        let texts = mapping(mapping(file, "commands")?, key)?;
        let name = Value::from(name.as_str());
        let now = match texts.get(&name) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text.clone()),
            Some(other) => Some(serde_json::to_string(other)?),
        };
        if now.as_deref() != expected {
            bail!("the commands were changed meanwhile; they are {}", now.as_deref().unwrap_or("none"));
        }
        texts.insert(name, Value::from(text));
        Ok(())
    })
}

/// The mapping below `key`, made if there is none.
fn mapping<'a>(of: &'a mut Mapping, key: &str) -> anyhow::Result<&'a mut Mapping> {
    let name = Value::from(key);
    if of.get(&name).is_none_or(Value::is_null) {
        of.insert(name.clone(), Value::Mapping(Mapping::new()));
    }
    of.get_mut(&name).and_then(Value::as_mapping_mut).with_context(|| format!("`{key}` is no mapping"))
}

/// Reads, changes and writes the file under its lock. What did not change is not written.
fn change(path: &Path, change: impl FnOnce(&mut Mapping) -> anyhow::Result<()>) -> anyhow::Result<()> {
    // Behind a link the real file is replaced, not the link.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let whole = |what: &str| format!("cannot {what} {}", path.display());
    let name = path.file_name().with_context(|| whole("name"))?.to_string_lossy().into_owned();
    let lock_path = path.with_file_name(format!("{name}.lock"));
    let lock = fs::OpenOptions::new().create(true).truncate(false).write(true).open(lock_path);
    let lock = lock.with_context(|| whole("lock"))?;
    flock(&lock, FlockOperation::LockExclusive).with_context(|| whole("lock"))?;
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| whole("read")),
    };
    let value = if text.trim().is_empty() {
        Value::Null
    } else {
        serde_yaml::from_str(&text).with_context(|| whole("read"))?
    };
    let mut file = match value {
        Value::Null => Mapping::new(),
        Value::Mapping(file) => file,
        _ => bail!("{} is no mapping", path.display()),
    };
    let before = file.clone();
    mapping(&mut file, "services")?;
    change(&mut file)?;
    if file == before {
        return Ok(());
    }
    let json = text.trim_start().starts_with('{');
    let text = if json { serde_json::to_string_pretty(&file)? + "\n" } else { serde_yaml::to_string(&file)? };
    let fresh = path.with_file_name(format!(".{name}.new"));
    let write = || {
        let mut out = fs::File::create(&fresh)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        if let Ok(meta) = fs::metadata(path) {
            out.set_permissions(meta.permissions())?;
        }
        fs::rename(&fresh, path)
    };
    write().with_context(|| whole("write"))
}
