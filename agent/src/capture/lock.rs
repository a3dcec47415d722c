//! One agent per name on a host: a lock file that ends with the process.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};

/// Another agent has the name.
#[derive(Debug, thiserror::Error)]
#[error("{what} (process {pid}): {remedy}")]
pub struct NameTaken {
    what: String,
    pid: String,
    remedy: &'static str,
}

impl NameTaken {
    /// The same about something else that only one agent may have.
    pub fn instead(self, what: &str) -> Self {
        Self { what: what.to_owned(), remedy: "stop it, or use another way of capture", ..self }
    }
}

/// Where agents keep what must not outlive a reboot.
pub fn dir() -> PathBuf {
    let dir = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !rustix::process::geteuid().is_root() => PathBuf::from(dir),
        _ => PathBuf::from("/run"),
    };
    dir.join("sockmesh")
}

/// Held for as long as the agent uses its name.
#[derive(Debug)]
pub struct NameLock {
    path: PathBuf,
    _file: File,
}

impl NameLock {
    /// Takes `name`, or says which process has it. Does not wait.
    pub fn take(name: &str) -> anyhow::Result<Self> {
        Self::take_in(&dir(), name)
    }

    fn take_in(dir: &Path, name: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let path = dir.join(format!("{name}.lock"));
        loop {
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(&path)
                .with_context(|| format!("cannot open {}", path.display()))?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                return Err(NameTaken {
                    what: format!("an agent named `{name}` is running"),
                    pid: pid.trim().to_owned(),
                    remedy: "stop it, or give this one another `name`",
                }
                .into());
            }
            // The holder before may have removed the file between our open and our lock: then another
            // agent could lock a new file of the same name.
            if fs::metadata(&path).is_ok_and(|at| file.metadata().is_ok_and(|mine| at.ino() == mine.ino())) {
                file.rewind()?;
                file.set_len(0)?;
                write!(file, "{}", std::process::id()).with_context(|| format!("cannot write {}", path.display()))?;
                return Ok(Self { path, _file: file });
            }
        }
    }
}

impl Drop for NameLock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let dir = std::env::temp_dir().join(format!("sockmesh-lock-{}", std::process::id()));
        let first = NameLock::take_in(&dir, "a").unwrap();
        let error = NameLock::take_in(&dir, "a").unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        assert!(error.contains("`a`"), "{error}");
        NameLock::take_in(&dir, "b").unwrap();
        drop(first);
        NameLock::take_in(&dir, "a").unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "a lock leaves no file");
        fs::remove_dir(&dir).unwrap();
    }
}
