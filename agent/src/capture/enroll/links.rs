//! The links of one agent: which of its programs are attached where.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::{Cgroup, PROGRAMS, describe};
use crate::sys::{self, Hook};

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
    pub fn set(&self, programs: &[(Hook, OwnedFd)], cgroups: &[&Cgroup]) -> anyhow::Result<()> {
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

    fn add(&self, programs: &[(Hook, OwnedFd)], cgroups: &[&Cgroup], added: &mut Vec<PathBuf>) -> anyhow::Result<()> {
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
                let link = cgroup.link(program.as_fd(), *hook)?;
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
pub(super) fn refused(cgroup: &Cgroup, hook: Hook, error: io::Error) -> anyhow::Error {
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
