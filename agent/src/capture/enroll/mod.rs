//! Who is captured: control groups (v2), the links that attach our programs to them, and what the kernel is
//! told of programs that their control group does not tell.

mod glob;
mod links;
mod members;
mod resolve;
mod roster;
pub mod space;

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use ebpf_common::program;

pub(super) use self::glob::children as subgroups;
pub use self::{
    links::Links,
    members::Members,
    resolve::{Matched, resolve},
    roster::{Entry, Roster, Source},
};
use crate::sys::{self, Hook};

/// Every program with the hook it is for.
pub const PROGRAMS: [(&str, Hook); 10] = [
    // Recording comes first and is removed last, so that no connect is rewritten without being recorded.
    (program::SOCKOPS, Hook::SockOps),
    (program::PEERNAME4, Hook::Peername4),
    (program::PEERNAME6, Hook::Peername6),
    // What shows answers as from the resolver that was asked, before what brings the questions here.
    (program::RECVMSG4, Hook::Recvmsg4),
    (program::RECVMSG6, Hook::Recvmsg6),
    (program::SENDMSG4, Hook::Sendmsg4),
    (program::SENDMSG6, Hook::Sendmsg6),
    (program::SETSOCKOPT, Hook::SetSockopt),
    (program::CONNECT4, Hook::Connect4),
    (program::CONNECT6, Hook::Connect6),
];

const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// An enrolled control group.
#[derive(Debug)]
pub struct Cgroup {
    /// Where it is.
    pub path: PathBuf,
    /// Its number (inode), the one that programs see.
    pub id: u64,
    dir: File,
}

impl Cgroup {
    /// Opens the control group that the configuration calls `path`: a path in the file system, or one
    /// below the mount of cgroup v2 (on hybrid hosts `/sys/fs/cgroup/unified`).
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let Some(mount) = mount() else {
            bail!("no cgroup v2 is mounted: mount it, e.g. `mount -t cgroup2 none /sys/fs/cgroup/unified`");
        };
        let below = mount.join(below_mount(path, &mount));
        for candidate in [path, &below] {
            let Ok(dir) = File::open(candidate) else { continue };
            if rustix::fs::fstatfs(&dir).is_ok_and(|fs| fs.f_type as u64 == CGROUP2_SUPER_MAGIC) {
                let id = dir.metadata().with_context(|| format!("cannot read {}", candidate.display()))?.ino();
                return Ok(Self { path: candidate.to_owned(), id, dir });
            }
        }
        bail!(
            "`{}` is no control group (v2): create it with `mkdir {}`, or take it out of `enroll`",
            path.display(),
            if path.starts_with(&mount) { path.display() } else { below.display() }
        )
    }

    /// Its open folder.
    fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Attaches `program` to it until the link and its pins are gone.
    pub fn link(&self, program: BorrowedFd<'_>, hook: Hook) -> anyhow::Result<OwnedFd> {
        sys::link_create(program, self.fd(), hook).map_err(|e| links::refused(self, hook, e))
    }

    /// Programs attached to it at `hook`, also those of others.
    pub fn attached(&self, hook: Hook) -> io::Result<sys::Attached> {
        sys::attached(self.dir.as_fd(), hook)
    }
}

/// Number of the control group (v2) that the configuration calls `path`, if there is one; `mount` is where they
/// are mounted.
pub fn number(path: &Path, mount: &Path) -> Option<u64> {
    let below = mount.join(below_mount(path, mount));
    [path, &below].into_iter().find_map(|candidate| {
        let is_group = rustix::fs::statfs(candidate).is_ok_and(|fs| fs.f_type as u64 == CGROUP2_SUPER_MAGIC);
        fs::metadata(candidate).ok().filter(|_| is_group).map(|meta| meta.ino())
    })
}

/// The part of `path` below the mount of cgroup v2 at `mount`, however the configuration writes it.
fn below_mount<'a>(path: &'a Path, mount: &Path) -> &'a Path {
    let below = path.strip_prefix(mount).or_else(|_| path.strip_prefix("/sys/fs/cgroup"));
    below.or_else(|_| path.strip_prefix("/")).unwrap_or(path)
}

/// Where cgroup v2 is mounted.
pub fn mount() -> Option<PathBuf> {
    mount_in(&fs::read_to_string("/proc/self/mountinfo").ok()?, "cgroup2")
}

/// The first mount of a `kind` of file system in the text of `/proc/PID/mountinfo`.
pub fn mount_in(mountinfo: &str, kind: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ');
        (after.split(' ').next()? == kind).then(|| fields.nth(4).map(PathBuf::from))?
    })
}

/// A program for operators: number and name.
pub fn describe(id: u32) -> String {
    let name = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|p| p.id() == id)
        .and_then(|p| p.name_as_str().map(str::to_owned));
    match name {
        Some(name) => format!("{id} ({name})"),
        None => id.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_v2_mount_of_a_hybrid_host() {
        let text = "25 23 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                    26 25 0:22 / /sys/fs/cgroup/cpu rw,relatime shared:1 - cgroup cgroup rw,cpu\n\
                    36 25 0:32 / /sys/fs/cgroup/unified rw,relatime shared:2 master:3 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_in(text, "cgroup2"), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount_in(text, "bpf"), None);
        assert_eq!(mount_in("", "cgroup2"), None);
        assert_eq!(mount_in("garbage\n - \n", "cgroup2"), None);
    }

    #[test]
    fn what_is_no_control_group_is_named_with_the_remedy() {
        let error = Cgroup::open(Path::new("/nowhere/at/all")).unwrap_err().to_string();
        assert!(error.contains("cgroup v2") || error.contains("`/nowhere/at/all`"), "{error}");
    }
}
