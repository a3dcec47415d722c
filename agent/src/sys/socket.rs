//! What sockets are asked that no safe crate asks them, and signals that interrupt a thread on purpose.

use std::{
    collections::HashSet,
    io,
    mem::{MaybeUninit, size_of},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd as _},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use parking_lot::{Mutex, MutexGuard};

/// Sets an option whose value is a C `int`.
pub fn set_option(socket: impl AsFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value is an `int` that lives until after the call.
    let r = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Bytes of memory that a socket is charged for what it has not been asked for yet (`SO_MEMINFO`, Linux 4.12).
pub fn receive_memory(socket: impl AsFd) -> io::Result<u32> {
    // SK_MEMINFO_RMEM_ALLOC is the first of nine.
    let mut words = [0u32; 9];
    let mut len = size_of::<[u32; 9]>() as libc::socklen_t;
    // SAFETY: `words` has room for the `len` bytes that the kernel writes.
    let r = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            words.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(words[0]) }
}

/// Addresses of the interfaces of this network namespace.
pub fn own_addresses() -> io::Result<HashSet<IpAddr>> {
    let mut list: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: the list is written to `list`, and given back below.
    if unsafe { libc::getifaddrs(&raw mut list) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = HashSet::new();
    let mut next = list;
    // SAFETY: entries are valid until they are given back, and an address is as large as its family says.
    unsafe {
        while let Some(entry) = next.as_ref() {
            match entry.ifa_addr.as_ref().map(|addr| i32::from(addr.sa_family)) {
                Some(libc::AF_INET) => {
                    let addr = entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                    found.insert(Ipv4Addr::from(addr.sin_addr.s_addr.to_ne_bytes()).into());
                }
                Some(libc::AF_INET6) => {
                    let addr = entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned();
                    found.insert(Ipv6Addr::from(addr.sin6_addr.s6_addr).into());
                }
                _ => {}
            }
            next = entry.ifa_next;
        }
        libc::freeifaddrs(list);
    }
    Ok(found)
}

/// Moves up to `len` bytes from `socket` into `pipe` without waiting; returns how many.
pub fn splice(socket: impl AsFd, pipe: impl AsFd, len: usize) -> io::Result<usize> {
    // SAFETY: no offsets, which pipes and sockets have not.
    let r = unsafe {
        libc::splice(
            socket.as_fd().as_raw_fd(),
            ptr::null_mut(),
            pipe.as_fd().as_raw_fd(),
            ptr::null_mut(),
            len,
            libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE,
        )
    };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r as usize) }
}

static HEARD: AtomicU32 = AtomicU32::new(0);
/// The action of a signal belongs to the whole process: one at a time.
static USE: Mutex<()> = parking_lot::const_mutex(());

extern "C" fn hear(_: i32) {
    HEARD.fetch_add(1, Ordering::SeqCst);
}

/// A signal whose handler only counts. What the signal did before is put back when this is dropped.
pub struct Interrupts {
    before: libc::sigaction,
    _alone: MutexGuard<'static, ()>,
}

impl Interrupts {
    /// One that nobody else uses: real-time, near the end of the range.
    fn signal() -> i32 {
        libc::SIGRTMAX() - 3
    }

    /// Installs the handler; system calls that the signal interrupts are restarted if `restart`.
    pub fn install(restart: bool) -> io::Result<Self> {
        let alone = USE.lock();
        HEARD.store(0, Ordering::SeqCst);
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: all zeros is a valid action, `hear` does nothing that a handler may not, and the kernel
        // fills `before`.
        let r = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = hear as *const () as usize;
            action.sa_flags = if restart { libc::SA_RESTART } else { 0 };
            libc::sigaction(Self::signal(), &raw const action, before.as_mut_ptr())
        };
        if r < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: written by the kernel.
        Ok(Self { before: unsafe { before.assume_init() }, _alone: alone })
    }

    /// Sends the signal to thread `tid` of this process.
    pub fn send(&self, tid: i32) -> io::Result<()> {
        // SAFETY: numbers only.
        let r = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, Self::signal()) };
        if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// How often the handler has run.
    pub fn heard(&self) -> u32 {
        HEARD.load(Ordering::SeqCst)
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        // SAFETY: `before` is what the kernel gave for this signal.
        unsafe { libc::sigaction(Self::signal(), &raw const self.before, ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_loopback() {
        assert!(own_addresses().unwrap().contains(&IpAddr::from([127, 0, 0, 1])));
    }
}
