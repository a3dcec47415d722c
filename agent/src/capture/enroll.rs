//! Who is captured: control groups (v2), and the links that attach our programs to them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use ebpf_common::program;

use crate::sys::{self, Hook};

/// Every program with the hook it is for.
pub const PROGRAMS: [(&str, Hook); 5] = [
    // Recording comes first and is removed last, so that no connect is rewritten without being recorded.
    (program::SOCKOPS, Hook::SockOps),
    (program::PEERNAME4, Hook::Peername4),
    (program::PEERNAME6, Hook::Peername6),
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
        let below = path.strip_prefix("/sys/fs/cgroup").unwrap_or(path);
        let below = mount.join(below.strip_prefix("/").unwrap_or(below));
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

    /// Programs attached to it at `hook`, also those of others.
    pub fn attached(&self, hook: Hook) -> io::Result<sys::Attached> {
        sys::attached(self.dir.as_fd(), hook)
    }
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

/// The links of one agent, each pinned at `<dir>/<control group's number>-<hook's number>`.
#[derive(Debug)]
pub struct Links {
    dir: PathBuf,
}

impl Links {
    /// Those pinned in `dir`, which exists.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn path(&self, cgroup: u64, hook: Hook) -> PathBuf {
        self.dir.join(format!("{cgroup}-{}", hook as u32))
    }

    /// Attaches `programs` to exactly `cgroups`: puts them behind links that exist (no moment without a
    /// program), adds links that are missing, removes links of other groups. An error leaves everything
    /// that existed attached and takes back what this call added.
    pub fn set(&self, programs: &[(Hook, OwnedFd)], cgroups: &[Cgroup]) -> anyhow::Result<()> {
        let mut added = Vec::new();
        let result = self.add(programs, cgroups, &mut added);
        if result.is_err() {
            for path in added {
                let _ = fs::remove_file(path);
            }
            return result;
        }
        let wanted: BTreeMap<PathBuf, ()> =
            cgroups.iter().flat_map(|c| PROGRAMS.iter().map(|(_, hook)| (self.path(c.id, *hook), ()))).collect();
        self.remove(|path| !wanted.contains_key(path))
    }

    fn add(&self, programs: &[(Hook, OwnedFd)], cgroups: &[Cgroup], added: &mut Vec<PathBuf>) -> anyhow::Result<()> {
        for cgroup in cgroups {
            for (hook, program) in programs {
                let path = self.path(cgroup.id, *hook);
                if let Ok(link) = sys::obj_get(&path) {
                    if let Ok(info) = sys::link_info(link.as_fd())
                        && info.cgroup == cgroup.id
                        && info.hook == *hook as u32
                        && (Ok(info.program) == sys::program_id(program.as_fd()).map_err(drop)
                            || sys::link_update(link.as_fd(), program.as_fd()).is_ok())
                    {
                        continue;
                    }
                    // A link of a group that is gone, or not ours at all.
                    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
                }
                let link = sys::link_create(program.as_fd(), cgroup.dir.as_fd(), *hook)
                    .map_err(|e| refused(cgroup, *hook, e))?;
                sys::obj_pin(link.as_fd(), &path).with_context(|| format!("cannot pin {}", path.display()))?;
                added.push(path);
            }
        }
        Ok(())
    }

    /// Detaches everything.
    pub fn clear(&self) -> anyhow::Result<()> {
        self.remove(|_| true)
    }

    fn remove(&self, which: impl Fn(&Path) -> bool) -> anyhow::Result<()> {
        let mut paths: Vec<_> = fs::read_dir(&self.dir)
            .with_context(|| format!("cannot read {}", self.dir.display()))?
            .filter_map(|entry| entry.ok().map(|e| e.path()))
            .filter(|path| which(path))
            .collect();
        // Connect hooks go before the hook that records for them.
        let recorder = format!("-{}", Hook::SockOps as u32);
        paths.sort_by_key(|path| path.to_string_lossy().ends_with(&recorder));
        for path in paths {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }
}

/// Says why the kernel refused to attach, and to whom the hook belongs if that is the reason.
fn refused(cgroup: &Cgroup, hook: Hook, error: io::Error) -> anyhow::Error {
    let what = format!("cannot attach {hook:?} to {}", cgroup.path.display());
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            for ancestor in cgroup.path.ancestors() {
                let Ok(dir) = File::open(ancestor) else { break };
                let Ok(there) = sys::attached(dir.as_fd(), hook) else { break };
                if let Some(id) = there.programs.first()
                    && there.flags & sys::Attached::MULTI == 0
                {
                    return anyhow::anyhow!(
                        "{what}: program {} is attached exclusively to {}. Detach it (`bpftool cgroup detach`), \
                         or have its owner attach it with `multi`",
                        describe(*id),
                        ancestor.display()
                    );
                }
            }
            anyhow::anyhow!("{what}: not permitted. Run as root, or with CAP_BPF and CAP_NET_ADMIN")
        }
        Some(libc::E2BIG) => anyhow::anyhow!("{what}: 64 programs are attached there, which is the kernel's limit"),
        _ => anyhow::Error::from(error).context(what),
    }
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
