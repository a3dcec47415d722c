//! Network namespaces other than the agent's own in which enrolled programs live.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    net::{Ipv4Addr, UdpSocket},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::glob::children;
use crate::{capture::rights, sys};

/// How long a namespace is kept open after the last enrolled program there has ended: one after another may
/// be started in it.
const LINGER: Duration = Duration::from_secs(5);

/// Stands for the namespaces of all processes that cannot be looked at: no file has this number.
const UNSEEN: u64 = 0;

/// How long a namespace that could not be entered is left alone.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// A network namespace; as long as it is held the kernel keeps it.
#[derive(Clone, Debug)]
pub struct Space {
    /// The number that programs in the kernel see.
    pub cookie: u64,
    /// Number of its file, by which the processes' links tell it.
    inode: u64,
    /// How it was found, for operators.
    pub label: String,
    file: Arc<File>,
}

impl Space {
    /// The namespace that the file at `path` stands for. Needs CAP_SYS_ADMIN unless it is the agent's own.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let inode = file.metadata()?.ino();
        let cookie = in_space(&file, || {
            // Any socket will do, bound or not.
            sys::netns_cookie(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?)
        })
        .with_context(|| match rights::SYS_ADMIN.is_held() {
            true => format!("cannot enter {}", path.display()),
            false => format!("cannot enter {}: {}", path.display(), rights::SYS_ADMIN.missing()),
        })?;
        Ok(Self { cookie, inode, label: path.display().to_string(), file: Arc::new(file) })
    }

    /// Runs `work` in this namespace, on a thread that ends with it. Needs CAP_SYS_ADMIN. Blocks.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        in_space(&self.file, work)
    }

    /// Runs `work` in this namespace on a thread of its own and does not wait for it. Needs CAP_SYS_ADMIN: without,
    /// `work` is dropped.
    pub fn stay(&self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let file = self.file.clone();
        let living = std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
            if move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).is_ok() {
                work();
            }
        });
        living.map(drop)
    }
}

fn in_space<T: Send>(file: &File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        // The namespace belongs to the thread, so that nothing has to be undone.
        let entered = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        })?;
        entered.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the network namespace panicked")))
    })
}

/// Number of the network namespace that the link `/proc/PID/ns/net` names.
fn inode_of(link: &Path) -> Option<u64> {
    let target = fs::read_link(link).ok()?;
    target.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// The namespaces in which enrolled programs were seen lately.
#[derive(Debug, Default)]
pub(super) struct Spaces {
    known: HashMap<u64, (Space, Instant)>,
    /// Namespaces that could not be entered, so that each is told once.
    refused: HashMap<u64, (String, Instant)>,
}

impl Spaces {
    /// Notes the namespace of process `pid`, if it is not the agent's own.
    pub(super) fn see(&mut self, pid: &str, now: Instant) {
        let link = Path::new("/proc").join(pid).join("ns/net");
        let Some(inode) = inode_of(&link) else { return };
        if Some(inode) == inode_of(Path::new("/proc/self/ns/net")) || self.refused.contains_key(&inode) {
            return;
        }
        if let Some((_, seen)) = self.known.get_mut(&inode) {
            *seen = now;
            return;
        }
        match Space::open(&link) {
            Ok(space) => drop(self.known.insert(space.inode, (space, now))),
            // It ended meanwhile.
            Err(_) if !link.exists() => {}
            Err(error) => {
                tracing::warn!(
                    pid,
                    error = format!("{error:#}"),
                    "enrolled programs in this network namespace connect directly"
                );
                self.refused.insert(inode, (format!("process {pid}: {error:#}"), now));
            }
        }
    }

    /// Notes the namespace of process `pid`, which is known to live in another one than the agent's.
    pub(super) fn see_stranger(&mut self, pid: u32, now: Instant) {
        let link = Path::new("/proc").join(pid.to_string()).join("ns/net");
        match fs::read_link(&link) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                // Which namespace it is stays unknown, so there is one note for all of them.
                let note = format!("process {pid}: cannot see its network namespace: {}", rights::SYS_PTRACE.missing());
                if self.refused.insert(UNSEEN, (note.clone(), now)).is_none() {
                    tracing::warn!(pid, error = note, "enrolled programs in other network namespaces connect directly");
                }
            }
            _ => self.see(&pid.to_string(), now),
        }
    }

    /// Notes a namespace that is enrolled itself.
    pub(super) fn hold(&mut self, space: &Space, now: Instant) {
        if Some(space.inode) != inode_of(Path::new("/proc/self/ns/net")) {
            self.known.insert(space.inode, (space.clone(), now));
        }
    }

    /// Notes the namespaces of all processes in `group` and below it.
    pub(super) fn see_group(&mut self, group: &Path, now: Instant) {
        let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        for pid in pids.lines() {
            self.see(pid, now);
        }
        for child in children(group) {
            self.see_group(&child, now);
        }
    }

    /// Notes the namespaces of all processes of `uids`.
    pub(super) fn see_users(&mut self, uids: &[(u32, u32)], now: Instant) {
        if uids.is_empty() {
            return;
        }
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = process.file_name();
            let Some(pid) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else { continue };
            if process.metadata().is_ok_and(|m| uids.iter().any(|(uid, _)| *uid == m.uid())) {
                self.see(pid, now);
            }
        }
    }

    /// Forgets namespaces without enrolled programs, and lets the refused be tried again.
    pub(super) fn forget(&mut self, now: Instant) {
        self.known.retain(|_, (_, seen)| now.duration_since(*seen) < LINGER);
        self.refused.retain(|_, (_, when)| now.duration_since(*when) < TRY_AGAIN);
    }

    /// Those that are known.
    pub(super) fn all(&self) -> Vec<Space> {
        self.known.values().map(|(space, _)| space.clone()).collect()
    }

    /// Why namespaces could not be entered.
    pub(super) fn refused(&self) -> Vec<String> {
        self.refused.values().map(|(why, _)| why.clone()).collect()
    }
}
