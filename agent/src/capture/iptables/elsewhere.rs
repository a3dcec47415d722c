//! Enrolled programs that live where rules of this network namespace do not reach.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::callers::{Caller, Callers};
use crate::capture::enroll;

/// One sentence for each other network namespace in which enrolled programs live: why they are not captured, and
/// what to do. Blocks shortly.
pub fn notes(callers: &Callers) -> Vec<String> {
    let Some(own) = namespace(Path::new("/proc/self/ns/net")) else { return Vec::new() };
    // By namespace: one of its processes, and how many there are.
    let mut found: BTreeMap<PathBuf, (String, usize)> = BTreeMap::new();
    let mut see = |pid: &str| {
        if let Some(space) = namespace(&Path::new("/proc").join(pid).join("ns/net"))
            && space != own
        {
            found.entry(space).or_insert_with(|| (pid.to_owned(), 0)).1 += 1;
        }
    };
    let mount = enroll::mount().unwrap_or_default();
    let mut uids = Vec::new();
    for caller in callers.rules.iter().flatten() {
        match caller {
            Caller::Cgroup { relative, .. } => each_process(&mount.join(relative), &mut see),
            Caller::Uid(uid) => uids.push(*uid),
        }
    }
    if !uids.is_empty() {
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = process.file_name();
            let Some(pid) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else { continue };
            if process.metadata().is_ok_and(|m| uids.contains(&m.uid())) {
                see(pid);
            }
        }
    }
    let note = |(space, (pid, count)): (PathBuf, (String, usize))| {
        let others = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
        format!(
            "process {pid}{others} in another network namespace ({}): rules see their own only; run an agent in that \
             namespace, or use `capture: ebpf`",
            space.display()
        )
    };
    found.into_iter().map(note).collect()
}

/// `net:[4026531840]`; none when the process is gone or cannot be looked at.
fn namespace(link: &Path) -> Option<PathBuf> {
    fs::read_link(link).ok()
}

fn each_process(group: &Path, see: &mut impl FnMut(&str)) {
    for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
        see(pid);
    }
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            each_process(&entry.path(), see);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_lives_here_is_not_told() {
        let own = rustix::process::geteuid().as_raw();
        let callers = Callers { rules: Some(vec![Caller::Uid(own)]), matched: Vec::new() };
        let here = namespace(Path::new("/proc/self/ns/net")).unwrap();
        assert!(notes(&callers).iter().all(|note| !note.contains(&*here.to_string_lossy())));
        assert_eq!(notes(&Callers::default()), Vec::<String>::new(), "everyone of this namespace");
    }
}
