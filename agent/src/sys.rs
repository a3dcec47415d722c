//! The only place with `unsafe`: system calls that no safe crate wraps.
#![allow(unsafe_code, reason = "each call is wrapped safely here so that nothing else needs it")]

pub mod diag;
mod hour;
mod memory;
pub mod socket;

use std::{
    ffi::CString,
    io,
    marker::PhantomData,
    mem::{MaybeUninit, size_of},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::Pod;

pub mod udp;

pub use self::{
    hour::Hour,
    memory::{give_heap_back, give_memory_back},
};

// ---- sockets ---------------------------------------------------------------------------------------

/// Cookie of the network namespace that `socket` belongs to, the number that eBPF programs see for it.
/// Linux 5.14.
pub fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` has room for the `len` bytes that the kernel writes.
    let r = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Has the allocator keep less of what was used for a moment. By itself glibc learns from the first large piece
/// that is freed (what the kernel tells of its types, 6 MB) to keep twice as much, and it opens a new place for
/// every thread that reads a file. Called once, before there are threads.
pub fn keep_memory_small() {
    #[cfg(target_env = "gnu")]
    {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as i32);
        // SAFETY: settings of the allocator, made before there are threads.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, cpus + 1);
            libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
            libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 20);
        }
    }
}

/// Whether `error` says that this host has run out of descriptors or memory: nothing that the peer of a
/// socket could help, and worth trying again later.
pub fn is_shortage(error: &io::Error) -> bool {
    let shortage = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| shortage.contains(&code))
}

// ---- bpf(2) ----------------------------------------------------------------------------------------

/// Where in a control group's life a program runs: numbers of `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// TCP state changes.
    SockOps = 3,
    /// `connect()` of IPv4 sockets.
    Connect4 = 10,
    /// `connect()` of IPv6 sockets.
    Connect6 = 11,
    /// Datagrams sent to an address by IPv4 sockets.
    Sendmsg4 = 14,
    /// Datagrams sent to an address by IPv6 sockets.
    Sendmsg6 = 15,
    /// Datagrams received by IPv4 sockets.
    Recvmsg4 = 19,
    /// Datagrams received by IPv6 sockets.
    Recvmsg6 = 20,
    /// `setsockopt()`.
    SetSockopt = 22,
    /// New connections of a network namespace, before a listening socket is looked for.
    SkLookup = 36,
    /// `getpeername()` of IPv4 sockets.
    Peername4 = 29,
    /// `getpeername()` of IPv6 sockets.
    Peername6 = 30,
}

/// What the kernel knows about a link of a control group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupLink {
    /// Number of the program behind it.
    pub program: u32,
    /// Number (inode) of the control group; 0 once that is gone.
    pub cgroup: u64,
    /// Number of the hook.
    pub hook: u32,
}

/// Programs at a hook of a control group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Their numbers, in the order in which they run.
    pub programs: Vec<u32>,
    /// Flags they were attached with: 0 exclusive, [`OVERRIDE`](Self::OVERRIDE), or [`MULTI`](Self::MULTI).
    pub flags: u32,
}

impl Attached {
    /// A child group may have another program instead.
    pub const OVERRIDE: u32 = 1;
    /// Others may attach beside it.
    pub const MULTI: u32 = 2;
}

const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const MAP_GET_NEXT_KEY: u32 = 4;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const PROG_ATTACH: u32 = 8;
const PROG_TEST_RUN: u32 = 10;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
const MAP_LOOKUP_AND_DELETE_ELEM: u32 = 21;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_TYPE_CGROUP: u32 = 3;

/// Calls `bpf(2)`; a short `attr` stands for one whose remaining fields are 0.
///
/// # Safety
/// `attr` must be the part of `union bpf_attr` that `command` reads, and its pointers must be valid for
/// what the command does with them.
unsafe fn bpf<T>(command: u32, attr: &mut T) -> io::Result<i64> {
    // SAFETY: promised by the caller.
    let r = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
}

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: called with what the kernel just returned as a new descriptor, owned by nobody else.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[repr(C)]
struct ObjAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Opens what is pinned at `path`.
pub fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: `path` lives until after the call.
    unsafe { bpf(OBJ_GET, &mut attr) }.map(owned)
}

/// Pins `fd` at `path`, which must lie in a bpffs and not exist.
pub fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { path: path.as_ptr() as u64, fd: fd.as_raw_fd() as u32, flags: 0 };
    // SAFETY: `path` lives until after the call.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

/// Attaches `program` to `cgroup` (for [`Hook::SkLookup`]: to a network namespace) at `hook` until the link and its pins are gone. Linux 5.7.
pub fn link_create(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, hook: Hook) -> io::Result<OwnedFd> {
    let mut attr = [program.as_raw_fd() as u32, cgroup.as_raw_fd() as u32, hook as u32, 0];
    // SAFETY: four 32-bit fields, no pointers.
    unsafe { bpf(LINK_CREATE, &mut attr) }.map(owned)
}

/// Attaches the message program `program` to `map`, a table of sockets, for as long as the map lives.
pub fn map_attach(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<()> {
    const SK_MSG_VERDICT: u32 = 7;
    let mut attr = [map.as_raw_fd() as u32, program.as_raw_fd() as u32, SK_MSG_VERDICT, 0];
    // SAFETY: four 32-bit fields, no pointers.
    unsafe { bpf(PROG_ATTACH, &mut attr) }.map(drop)
}

#[repr(C)]
struct TestRunAttr {
    program: u32,
    result: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// Runs `program`, a classifier, once with `input` in place of a packet; what it returns.
pub fn test_run<T: Pod>(program: BorrowedFd<'_>, input: &T) -> io::Result<u32> {
    let mut attr = TestRunAttr {
        program: program.as_raw_fd() as u32,
        result: 0,
        size_in: size_of::<T>() as u32,
        size_out: 0,
        data_in: std::ptr::from_ref(input) as u64,
        data_out: 0,
        repeat: 1,
        duration: 0,
    };
    // SAFETY: the kernel reads `size_in` bytes of `input` and writes nothing but the fields of `attr`.
    unsafe { bpf(PROG_TEST_RUN, &mut attr) }?;
    Ok(attr.result)
}

/// Puts `program` in the place of the one behind `link`, with no moment without either.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [link.as_raw_fd() as u32, program.as_raw_fd() as u32, 0, 0];
    // SAFETY: four 32-bit fields, no pointers.
    unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// Reads the first `N` 32-bit words of what the kernel knows about `fd`.
fn info<const N: usize>(fd: BorrowedFd<'_>) -> io::Result<[u32; N]> {
    let mut words = [0u32; N];
    let mut attr = InfoAttr { fd: fd.as_raw_fd() as u32, len: size_of::<[u32; N]>() as u32, info: 0 };
    attr.info = words.as_mut_ptr() as u64;
    // SAFETY: the kernel writes at most `len` bytes to `words`.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(words)
}

/// What the kernel knows about `link`; an error when it is a link of another kind.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<CgroupLink> {
    let [kind, _, program, _, low, high, hook, _] = info::<8>(link)?;
    if kind != LINK_TYPE_CGROUP {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a link of a control group"));
    }
    let (low, high) = if cfg!(target_endian = "little") { (low, high) } else { (high, low) };
    Ok(CgroupLink { program, cgroup: u64::from(high) << 32 | u64::from(low), hook })
}

/// Number of the program `fd`.
pub fn program_id(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let [_, id] = info::<2>(fd)?;
    Ok(id)
}

#[repr(C)]
struct QueryAttr {
    target: u32,
    hook: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    pad: u32,
}

/// Programs attached to `cgroup` itself at `hook`. Needs CAP_NET_ADMIN.
pub fn attached(cgroup: BorrowedFd<'_>, hook: Hook) -> io::Result<Attached> {
    // The kernel allows 64 at one place.
    let mut ids = [0u32; 64];
    let mut attr = QueryAttr {
        target: cgroup.as_raw_fd() as u32,
        hook: hook as u32,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        pad: 0,
    };
    // SAFETY: the kernel writes at most `count` numbers to `ids`.
    unsafe { bpf(PROG_QUERY, &mut attr) }?;
    Ok(Attached { programs: ids[..attr.count as usize].to_vec(), flags: attr.attach_flags })
}

#[repr(C)]
struct ElemAttr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A map whose keys are `K` and whose values are `V`, not per CPU. All calls may be made from any thread.
#[derive(Debug)]
pub struct BpfMap<K, V> {
    fd: OwnedFd,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Pod, V: Pod> BpfMap<K, V> {
    /// Takes `fd` after checking that its keys and values have the sizes of `K` and `V`.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // `struct bpf_map_info`: type, id, key size, value size.
        let [kind, _, key, value] = info::<4>(fd.as_fd())?;
        const PER_CPU: [u32; 4] = [5, 6, 10, 21];
        if (key as usize, value as usize) != (size_of::<K>(), size_of::<V>()) || PER_CPU.contains(&kind) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the map has another shape"));
        }
        Ok(Self { fd, types: PhantomData })
    }

    fn attr(&self, key: *const K, value: u64) -> ElemAttr {
        ElemAttr { map: self.fd.as_raw_fd() as u32, pad: 0, key: key as u64, value, flags: 0 }
    }

    fn read(&self, command: u32, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::zeroed();
        let mut attr = self.attr(key, value.as_mut_ptr() as u64);
        // SAFETY: key and value have the map's sizes (checked in `new`).
        match unsafe { bpf(command, &mut attr) } {
            // SAFETY: written by the kernel, and any bytes are a `Pod`.
            Ok(_) => Ok(Some(unsafe { value.assume_init() })),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The value of `key`.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        self.read(MAP_LOOKUP_ELEM, key)
    }

    /// The value of `key`, which is removed. Hash maps, Linux 5.14.
    pub fn take(&self, key: &K) -> io::Result<Option<V>> {
        self.read(MAP_LOOKUP_AND_DELETE_ELEM, key)
    }

    /// Sets the value of `key`.
    pub fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        let mut attr = self.attr(key, std::ptr::from_ref(value) as u64);
        // SAFETY: key and value have the map's sizes (checked in `new`).
        unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// Removes `key`; not an error when there is none.
    pub fn remove(&self, key: &K) -> io::Result<()> {
        let mut attr = self.attr(key, 0);
        // SAFETY: the key has the map's size (checked in `new`).
        match unsafe { bpf(MAP_DELETE_ELEM, &mut attr) } {
            Err(e) if e.raw_os_error() != Some(libc::ENOENT) => Err(e),
            _ => Ok(()),
        }
    }

    /// The key after `key`, the first one for `None` or when `key` is gone, `None` after the last.
    pub fn next_key(&self, key: Option<&K>) -> io::Result<Option<K>> {
        let mut next = MaybeUninit::<K>::zeroed();
        let mut attr = self.attr(key.map_or(std::ptr::null(), std::ptr::from_ref), next.as_mut_ptr() as u64);
        // SAFETY: both keys have the map's size (checked in `new`); a null key asks for the first.
        match unsafe { bpf(MAP_GET_NEXT_KEY, &mut attr) } {
            // SAFETY: written by the kernel, and any bytes are a `Pod`.
            Ok(_) => Ok(Some(unsafe { next.assume_init() })),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All keys. Entries that come or go meanwhile may be seen or not; at most `limit`, so that it ends.
    pub fn keys(&self, limit: usize) -> io::Result<Vec<K>> {
        let mut keys = Vec::new();
        while keys.len() < limit {
            match self.next_key(keys.last())? {
                Some(key) => keys.push(key),
                None => break,
            }
        }
        Ok(keys)
    }
}
