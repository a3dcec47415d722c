//! The highest stamp that was taken from the centre, over restarts of the agent.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use model::center::Stamp;
use parking_lot::Mutex;

use crate::fetch::percent;

/// Folder of these files in that of the snapshot files.
const FOLDER: &str = "centers";
/// Longest part of a name that addresses make.
const NAME: usize = 200;

/// The highest of all centres that this process follows.
static HIGHEST: Mutex<Stamp> = Mutex::new(Stamp { epoch: 0, revision: 0 });

/// What this process took from any centre, for its reports to them.
pub fn seen() -> Stamp {
    *HIGHEST.lock()
}

fn note(stamp: Stamp) {
    let mut highest = HIGHEST.lock();
    *highest = stamp.max(*highest);
}

/// See the module.
#[derive(Debug)]
pub(super) struct Stamps {
    file: Option<PathBuf>,
    seen: Mutex<Stamp>,
}

impl Stamps {
    /// What the file in `folder` says of the centre at these addresses; nothing is kept without a folder. Blocks on
    /// the disk.
    pub fn read(folder: Option<&Path>, addresses: &[String]) -> Self {
        let mut sorted = addresses.to_vec();
        sorted.sort();
        let mut name = percent(&sorted.join(","), ",");
        name.truncate(NAME);
        let file = folder.map(|folder| folder.join(FOLDER).join(name));
        // One that is missing or broken is as good as none: what the centre says is taken then.
        let read = |file: &PathBuf| serde_json::from_slice(&fs::read(file).ok()?).ok();
        let seen = file.as_ref().and_then(read).unwrap_or_default();
        note(seen);
        Self { file, seen: Mutex::new(seen) }
    }

    /// The highest that was taken.
    pub fn seen(&self) -> Stamp {
        *self.seen.lock()
    }

    /// Takes a stamp that follows, and keeps it. Blocks on the disk; false when it is the one that is kept already.
    pub fn take(&self, stamp: Stamp) -> anyhow::Result<bool> {
        {
            let mut seen = self.seen.lock();
            if *seen == stamp || !stamp.follows(*seen) {
                return Ok(false);
            }
            *seen = stamp;
        }
        note(stamp);
        let Some(file) = &self.file else { return Ok(true) };
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut fresh = file.clone().into_os_string();
        fresh.push(".new");
        let mut to = fs::File::create(&fresh)?;
        to.write_all(&serde_json::to_vec(&stamp)?)?;
        to.sync_all()?;
        fs::rename(&fresh, file)?;
        Ok(true)
    }
}
