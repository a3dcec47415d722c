//! Control groups of the demo.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Where the version 2 hierarchy is mounted, if it is: `/sys/fs/cgroup` on most hosts,
/// `/sys/fs/cgroup/unified` where both versions are in use.
pub fn mount() -> Option<PathBuf> {
    mount_in(&fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// The same from the text of `/proc/self/mountinfo` (proc(5): the fifth field is the mount point, the word
/// after the lone `-` the type).
fn mount_in(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        (filesystem.split(' ').next() == Some("cgroup2")).then(|| PathBuf::from(unescape(point)))
    })
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, character)| text.replace(code, character))
}

/// Makes a group and opens the file that takes processes into it.
pub fn make(dir: &Path) -> Result<File> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make the control group {}", dir.display()))?;
    let procs = dir.join("cgroup.procs");
    File::options().write(true).open(&procs).with_context(|| format!("cannot open {}", procs.display()))
}

/// Processes in a group and in the groups below it.
pub fn pids(dir: &Path) -> Vec<i32> {
    let own = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<_> = own.lines().filter_map(|line| line.parse().ok()).collect();
    pids.extend(children(dir).iter().flat_map(|child| self::pids(child)));
    pids
}

/// Removes a group and those below it; false while a process is in one.
pub fn remove(dir: &Path) -> bool {
    children(dir).iter().for_each(|child| _ = remove(child));
    fs::remove_dir(dir).is_ok() || !dir.exists()
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_on_hybrid_and_on_pure_hosts() {
        let hybrid = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:3 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_in(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let pure = "29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(mount_in(pure), Some(PathBuf::from("/sys/fs/cgroup")));
        let odd = "29 22 0:26 / /mnt/a\\040b rw - cgroup2 none rw\n";
        assert_eq!(mount_in(odd), Some(PathBuf::from("/mnt/a b")));
        assert_eq!(mount_in("31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"), None);
    }
}
