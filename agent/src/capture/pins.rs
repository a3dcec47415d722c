//! What outlives the agent: a folder in bpffs with its maps and links.
//!
//! ```text
//! <bpffs>/sockmesh/<agent's name>/maps/MESH_...
//!                                /links/<control group>-<hook>
//!                                /own
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use aya::maps::{MapInfo, MapType};
use ebpf_common::{
    AcceptorKey, Address, Client, End, Executable, ExecutableKey, Flow, LAYOUT_VERSION, Listener, MAX_ACCEPTORS,
    MAX_EXECUTABLES, MAX_INBOUND, MAX_LISTENERS, MAX_MEMBERS, MAX_RULES, MAX_SERVICES, MAX_SLOTS, MAX_STRANGERS,
    MAX_TUPLES, MAX_USES, MAX_WORKLOADS, Origin, Outcome, Service, ServiceKey, SocketKey, TupleKey, Workload,
    balance::{EndpointKey, EndpointState, RuleKey, Slot, SlotKey, Use, UseKey},
    control,
    dns::{DnsListener, MAX_RESOLVERS},
    inbound, map,
};

use super::enroll::Links;
use crate::sys::{self, BpfMap};

/// What the mount table shows as the source of a bpffs that an agent mounted: the mount outlives a crash, and
/// the last agent to go must know whether to take it away.
const SOURCE: &str = "sockmesh";
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// The folder of one agent.
#[derive(Debug)]
pub struct Pins {
    bpffs: PathBuf,
    parent: PathBuf,
    root: PathBuf,
}

/// What was found at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// Maps and links of an agent that ended without taking them away; they fit and are used on.
    Adopted,
    /// Such maps and links of another version or size; they were removed.
    Replaced,
}

/// A map's type, size of keys and values, room.
type Shape = (MapType, usize, usize, usize);

fn shapes(max_connections: u32) -> Vec<(&'static str, Shape)> {
    let sockets = max_connections as usize * 2;
    vec![
        (map::SERVICES, (MapType::Hash, size_of::<ServiceKey>(), size_of::<Service>(), MAX_SERVICES)),
        (map::LISTENERS, (MapType::Hash, 8, size_of::<Listener>(), MAX_LISTENERS)),
        (map::CONTROL, (MapType::Array, 4, 8, control::SLOTS)),
        (map::ORIGINS, (MapType::SkStorage, 4, size_of::<Origin>(), 0)),
        (map::TUPLES, (MapType::Hash, size_of::<TupleKey>(), size_of::<Origin>(), max_connections as usize)),
        (map::WORKLOADS, (MapType::Hash, 8, size_of::<Workload>(), MAX_WORKLOADS)),
        (map::UIDS, (MapType::Hash, 4, size_of::<Workload>(), MAX_MEMBERS)),
        (map::NETNS, (MapType::Hash, 8, size_of::<Workload>(), MAX_MEMBERS)),
        (map::STRANGERS, (MapType::Hash, 8, 4, MAX_STRANGERS)),
        (map::INBOUND, (MapType::Hash, size_of::<ServiceKey>(), 4, MAX_INBOUND)),
        (map::IN_SOCKETS, (MapType::SockMap, 4, 4, inbound::LISTENERS)),
        (map::CLIENTS, (MapType::SkStorage, 4, size_of::<Client>(), 0)),
        (map::DNS, (MapType::Hash, 8, size_of::<DnsListener>(), MAX_LISTENERS)),
        (map::RESOLVERS, (MapType::Hash, 4, size_of::<Address>(), MAX_RESOLVERS)),
        (map::SOCKETS, (MapType::SockHash, size_of::<SocketKey>(), 4, sockets)),
        (map::ENDS, (MapType::Hash, size_of::<SocketKey>(), size_of::<End>(), sockets)),
        (map::FLOWS, (MapType::SkStorage, 4, size_of::<Flow>(), 0)),
        (map::EXECUTABLES, (MapType::Hash, size_of::<ExecutableKey>(), size_of::<Executable>(), MAX_EXECUTABLES)),
        (map::ACCEPTORS, (MapType::Hash, size_of::<AcceptorKey>(), 4, MAX_ACCEPTORS)),
        (map::JOINS, (MapType::Hash, size_of::<AcceptorKey>(), 4, MAX_ACCEPTORS)),
        (map::COUNTERS, (MapType::PerCpuArray, 4, 8, Outcome::COUNT)),
        (map::BALANCE, (MapType::Hash, size_of::<SlotKey>(), size_of::<Slot>(), MAX_SLOTS)),
        (map::POLICY, (MapType::Hash, size_of::<RuleKey>(), 4, MAX_RULES)),
        (map::ENDPOINTS, (MapType::Hash, size_of::<EndpointKey>(), size_of::<EndpointState>(), MAX_SERVICES)),
        (map::USE, (MapType::Hash, size_of::<UseKey>(), size_of::<Use>(), MAX_USES)),
        (map::CONNECTIONS, (MapType::Hash, 8, size_of::<Origin>(), MAX_TUPLES)),
    ]
}

impl Pins {
    /// The folder of the agent called `name` below `bpffs`, which is mounted if it is not. What an agent
    /// of that name left there is kept when it fits and removed otherwise.
    pub fn open(bpffs: &Path, name: &str, max_connections: u32) -> anyhow::Result<(Self, Found)> {
        if name.is_empty() || name.contains(['/', '.']) {
            bail!("`name: {name}` cannot name a folder in bpffs: leave out `/` and `.`");
        }
        let _alone = alone(bpffs);
        mount(bpffs)?;
        let parent = bpffs.join("sockmesh");
        let root = parent.join(name);
        let pins = Self { bpffs: bpffs.to_owned(), parent, root };
        let mut found = Found::Nothing;
        if pins.root.exists() {
            found = if pins.fits(max_connections) { Found::Adopted } else { Found::Replaced };
            if found == Found::Replaced {
                pins.remove_root()?;
            }
        }
        for dir in [pins.root.join("maps"), pins.root.join("links"), pins.root.join("clients")] {
            fs::create_dir_all(&dir)
                .with_context(|| format!("cannot create {}: bpffs must be writable, run as root", dir.display()))?;
        }
        Ok((pins, found))
    }

    /// The folder that an agent called `name` left below `bpffs`, if there is one.
    pub fn existing(bpffs: &Path, name: &str) -> Option<Self> {
        let parent = bpffs.join("sockmesh");
        let root = parent.join(name);
        (!name.is_empty() && is_bpffs(bpffs) && root.is_dir()).then(|| Self { bpffs: bpffs.to_owned(), parent, root })
    }

    /// Where the map called `name` is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    /// Where something else, called `name`, is pinned.
    pub fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Where the link to the agent's own control group is pinned.
    pub fn own_link(&self) -> PathBuf {
        self.root.join("own")
    }

    /// The links.
    pub fn links(&self) -> Links {
        Links::new(self.root.join("links"))
    }

    /// The links that only show programs their callers.
    pub fn client_links(&self) -> Links {
        Links::new(self.root.join("clients"))
    }

    /// Names of the maps that are pinned.
    pub fn map_names() -> impl Iterator<Item = &'static str> {
        shapes(0).into_iter().map(|(name, _)| name)
    }

    fn fits(&self, max_connections: u32) -> bool {
        let same_shape = shapes(max_connections).into_iter().all(|(name, (kind, key, value, room))| {
            MapInfo::from_pin(self.map(name)).is_ok_and(|info| {
                info.map_type().is_ok_and(|k| k == kind)
                    && (info.key_size() as usize, info.value_size() as usize) == (key, value)
                    && info.max_entries() as usize == room
            })
        });
        same_shape
            && sys::obj_get(&self.map(map::CONTROL))
                .and_then(BpfMap::<u32, u64>::new)
                .and_then(|control| control.get(&control::LAYOUT))
                .is_ok_and(|version| version == Some(LAYOUT_VERSION))
    }

    /// Takes everything away that this agent or one of its name before it has put there.
    pub fn remove(&self) -> anyhow::Result<()> {
        let _alone = alone(&self.bpffs);
        self.remove_root()?;
        // Other agents' folders may stand beside it.
        let _ = fs::remove_dir(&self.parent);
        if mounted_by_an_agent(&self.bpffs) && is_unused(&self.bpffs) {
            // Somebody else may be looking around in it: then it stays.
            let _ = rustix::mount::unmount(&self.bpffs, rustix::mount::UnmountFlags::empty());
        }
        Ok(())
    }

    fn remove_root(&self) -> anyhow::Result<()> {
        if self.root.join("links").exists() {
            self.links().clear()?;
        }
        match fs::remove_dir_all(&self.root) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("cannot remove {}", self.root.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Whether nobody has pinned anything there; the kernel's own two views (`CONFIG_BPF_PRELOAD`) do not count.
fn is_unused(bpffs: &Path) -> bool {
    let kernels = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|e| e.file_name() == "maps.debug" || e.file_name() == "progs.debug")
    };
    fs::read_dir(bpffs).is_ok_and(|mut entries| entries.all(kernels))
}

/// Keeps agents from unmounting the bpffs that another is about to use. Not essential, so errors do not count.
fn alone(bpffs: &Path) -> Option<fs::File> {
    let dir = fs::File::open(bpffs.parent()?).ok()?;
    rustix::fs::flock(&dir, rustix::fs::FlockOperation::LockExclusive).ok()?;
    Some(dir)
}

/// Whether a bpffs is mounted at `path`.
pub fn is_bpffs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type as u64 & 0xffff_ffff == BPF_FS_MAGIC)
}

/// Mounts a bpffs at `path` unless there is one.
fn mount(path: &Path) -> anyhow::Result<()> {
    if is_bpffs(path) {
        return Ok(());
    }
    let remedy = || {
        format!(
            "no bpffs at {0}, and mounting one takes CAP_SYS_ADMIN: run as root, or `mount -t bpf bpf {0}`",
            path.display()
        )
    };
    rustix::mount::mount(SOURCE, path, "bpf", rustix::mount::MountFlags::empty(), None).with_context(remedy)
}

/// Whether an agent mounted the bpffs at `path`, this one or one before it.
fn mounted_by_an_agent(path: &Path) -> bool {
    fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| {
        // ... root, mount point, options, optional fields - type, source, options
        mounts.lines().filter_map(|line| line.split_once(" - ")).any(|(before, after)| {
            before.split(' ').nth(4).map(Path::new) == Some(path) && after.starts_with(&format!("bpf {SOURCE} "))
        })
    })
}
