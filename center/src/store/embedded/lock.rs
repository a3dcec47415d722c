//! One centre on one directory: a locked file that names who holds it.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, Write},
    path::Path,
};

use anyhow::{Context, bail};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

/// Name of the file. It stays when its holder ends: only the lock counts, which ends with the process.
const FILE: &str = "center.lock";

/// The right to use a directory, until dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes it without waiting.
    pub fn take(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(FILE);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.with_context(|| format!("cannot open {}", path.display()))?;
        let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
        if let Err(error) = locked {
            if error != Errno::WOULDBLOCK {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
            let mut holder = String::new();
            // Said by another process, which may be writing it just now.
            let _ = file.take(32).read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another process".to_owned(),
                pid => format!("process {pid}"),
            };
            bail!(
                "{} is in use by {holder}; stop that one, or give this centre a directory of its own with --data",
                dir.display()
            );
        }
        // For the message above only: on a full disk the lock holds without it.
        let named =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(error) = named {
            tracing::warn!(path = %path.display(), %error, "cannot write who holds the lock");
        }
        Ok(Self { _file: file })
    }
}
