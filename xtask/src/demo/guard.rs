//! The guard: a process of its own that clears the demo away when xtask is gone, however it went.
//!
//! It holds the reading end of a pipe and hears of everything that is made *before* it is made or at once
//! after; the end of the pipe is the end of xtask, killed or not.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, BufRead, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{cgroup, process};
use crate::sys;

/// More than the demo's agent takes to drain.
const PATIENCE: Duration = Duration::from_secs(8);

/// Xtask's end of the pipe.
#[derive(Debug)]
pub struct Guard {
    pipe: ChildStdin,
    child: Child,
}

impl Guard {
    /// Starts it.
    pub fn start() -> Result<Self> {
        let mut command = process::own("demo-guard");
        command.arg(session("self").unwrap_or(0).to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        sys::detach(&mut command);
        let mut child = command.spawn().context("cannot start the demo's guard")?;
        let pipe = child.stdin.take().context("the guard's input is piped")?;
        Ok(Self { pipe, child })
    }

    fn tell(&self, line: &str) -> Result<()> {
        (&self.pipe).write_all(format!("{line}\n").as_bytes()).context("the demo's guard is gone")
    }

    /// Processes of this group are to be stopped.
    pub fn watch_group(&self, leader: u32) -> Result<()> {
        self.tell(&format!("group {leader}"))
    }

    /// This control group is to be emptied and removed.
    pub fn watch_cgroup(&self, dir: &Path) -> Result<()> {
        self.tell(&format!("cgroup {}", dir.display()))
    }

    /// This folder is to be removed.
    pub fn watch_dir(&self, dir: &Path) -> Result<()> {
        self.tell(&format!("dir {}", dir.display()))
    }

    /// Lets it do its work and waits for it.
    pub fn finish(self) -> Result<()> {
        let Self { pipe, mut child } = self;
        drop(pipe);
        let limit = PATIENCE * 3;
        let status = sys::wait_child(&mut child, limit)?;
        anyhow::ensure!(status.is_some_and(|status| status.success()), "the demo was not cleared away completely");
        Ok(())
    }
}

/// What the guard process does: listens until the pipe ends, then clears away. `session` is that of the
/// demo's processes.
pub fn run(session: i32) -> Result<()> {
    let (mut groups, mut cgroups, mut dirs) = (BTreeSet::new(), Vec::new(), Vec::new());
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        match line.split_once(' ') {
            Some(("group", leader)) => _ = leader.parse::<i32>().map(|leader| groups.insert(leader)),
            Some(("cgroup", dir)) => cgroups.push(PathBuf::from(dir)),
            Some(("dir", dir)) => dirs.push(PathBuf::from(dir)),
            _ => {}
        }
    }
    let left = || {
        let mut left = members(&groups, session);
        left.extend(cgroups.iter().flat_map(|dir| cgroup::pids(dir)));
        left
    };
    // Politely first: the agent takes its programs out of the kernel on SIGTERM.
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        left().iter().for_each(|pid| _ = sys::kill(*pid, signal));
        until(PATIENCE, || left().is_empty());
    }
    let cleared = until(PATIENCE, || {
        cgroups.iter().for_each(|dir| _ = cgroup::remove(dir));
        dirs.iter().for_each(|dir| _ = fs::remove_dir_all(dir));
        cgroups.iter().chain(&dirs).all(|dir| !dir.exists())
    });
    anyhow::ensure!(cleared, "something is left");
    Ok(())
}

fn until(limit: Duration, done: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        sys::pause(Duration::from_millis(50));
    }
    true
}

/// Living processes of the given process groups. The session is compared as well: the number of a group
/// that is gone may be in use again elsewhere.
fn members(groups: &BTreeSet<i32>, session: i32) -> BTreeSet<i32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        fs::read_to_string(format!("/proc/{pid}/stat"))
            .ok()
            .and_then(|stat| parse(&stat))
            .is_some_and(|(state, group, of_session)| groups.contains(&group) && of_session == session && state != 'Z')
    })
    .collect()
}

fn session(pid: &str) -> Option<i32> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?).map(|(_, _, session)| session)
}

/// State, process group and session from `/proc/PID/stat` (proc(5)); the name before may hold anything.
fn parse(stat: &str) -> Option<(char, i32, i32)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let group = fields.nth(1)?.parse().ok()?;
    Some((state, group, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_have_any_name() {
        assert_eq!(parse("12 (a) b) S 1 7 9 0 -1"), Some(('S', 7, 9)));
        assert_eq!(parse("12 (a"), None);
        assert!(session("self").is_some());
    }
}
