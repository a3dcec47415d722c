//! The agent's own control group, where the program for TCP state changes sees its sockets.
//!
//! A socket belongs to the group that its process was in when it was made, and accepted ones to that of their
//! listener: the agent must be in its group before it listens.

use std::{
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::{
    capture::enroll::{self, Cgroup},
    sys::{self, Hook},
};

/// The control group that this process is in.
#[derive(Debug)]
pub struct OwnGroup {
    cgroup: Cgroup,
    /// The group that was made for it, and the one it was in before.
    made: Option<(PathBuf, PathBuf)>,
}

impl OwnGroup {
    /// The group of this process. In the root group, which is everybody's, it first makes
    /// `<mount>/sockmesh-<name>` and moves there.
    pub fn enter(name: &str) -> anyhow::Result<Self> {
        let mount = enroll::mount().context("no cgroup v2 is mounted")?;
        let text = fs::read_to_string("/proc/self/cgroup").context("cannot read /proc/self/cgroup")?;
        let below = text.lines().find_map(|l| l.strip_prefix("0::/")).context("this process has no cgroup v2")?;
        let current = mount.join(below);
        // Only the root has no such file; seen from a container, the top may be another's child.
        if current.join("cgroup.events").exists() {
            return Ok(Self { cgroup: Cgroup::open(&current)?, made: None });
        }
        let own = mount.join(format!("sockmesh-{name}"));
        let remedy = || {
            format!(
                "cannot create the control group {}: start the agent in one of its own, as systemd does",
                own.display()
            )
        };
        fs::create_dir_all(&own).with_context(remedy)?;
        move_to(&own)?;
        Ok(Self { cgroup: Cgroup::open(&own)?, made: Some((own, current)) })
    }

    /// Attaches `program` to it until `pin` is gone. What was pinned there before, for another group perhaps,
    /// goes first.
    pub fn attach(&self, program: std::os::fd::BorrowedFd<'_>, pin: &Path) -> anyhow::Result<()> {
        let _ = fs::remove_file(pin);
        let link = self.cgroup.link(program, Hook::SockOps).with_context(|| {
            format!("cannot attach to the agent's own control group {}", self.cgroup.path.display())
        })?;
        sys::obj_pin(link.as_fd(), pin).with_context(|| format!("cannot pin {}", pin.display()))
    }

    /// Goes back to where this process was and removes what was made for it.
    pub fn leave(&self) {
        let Some((made, before)) = &self.made else { return };
        if let Err(error) = move_to(before) {
            tracing::warn!(error = format!("{error:#}"), "cannot leave the agent's own control group");
        }
        let _ = fs::remove_dir(made);
    }
}

fn move_to(group: &Path) -> anyhow::Result<()> {
    let procs = group.join("cgroup.procs");
    fs::write(&procs, std::process::id().to_string()).with_context(|| format!("cannot write {}", procs.display()))
}
