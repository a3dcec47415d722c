//! Control groups of the test's own.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{temp::serial, wait};

/// Where the version 2 hierarchy is mounted, if it is.
pub fn mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|l| l.contains(" - cgroup2 "))?;
    line.split_whitespace().nth(4).map(PathBuf::from)
}

/// A child control group (version 2). On drop what still runs in it is killed and it is removed.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes one; `name` helps whoever looks at the tree.
    pub fn new(name: &str) -> Self {
        let top = mount().expect("cgroup v2 is mounted (ask `lacks` first)");
        let dir = top.join(format!("sockmesh-test-{}", std::process::id())).join(format!("{}-{name}", serial()));
        // Another test may just be removing the folder above.
        wait::until("control group is made", || fs::create_dir_all(&dir).is_ok());
        Self(dir)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Processes in it.
    pub fn pids(&self) -> Vec<i32> {
        let procs = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        procs.lines().filter_map(|l| l.parse().ok()).collect()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        wait::within(Duration::from_secs(5), || {
            for pid in self.pids() {
                let _ = kill_process(Pid::from_raw(pid).expect("a process in a group has an id"), Signal::KILL);
            }
            (fs::remove_dir(&self.0).is_ok() || !self.0.exists()).then_some(())
        });
        // Succeeds for the last one only.
        let _ = fs::remove_dir(self.0.parent().expect("made with one"));
    }
}
