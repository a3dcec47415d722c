//! Whether a connection is to be redirected: by the host's switch and the workload's, else by the verdict on the
//! program file.
//!
//! A program file is known by device, inode and the inode's generation, read from the calling process with
//! offsets of the running kernel.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_NOEXIST,
    helpers::{bpf_probe_read_kernel, generated::bpf_get_current_task},
    programs::SockAddrContext,
};
use ebpf_common::{Executable, ExecutableKey, Origin, Outcome, Workload, control, redirect};

use crate::{
    maps::{MESH_EXECUTABLE, control_slot, count},
    pair::offset,
};

/// Flags of the origin: [`Origin::REDIRECT`], or why not, or 0 where redirect is off on this host.
#[inline(always)]
pub fn redirect(ctx: &SockAddrContext, workload: Workload) -> u32 {
    if offset!(sockets) == 0 {
        return 0;
    }
    let host = control_slot(control::REDIRECT).unwrap_or(redirect::OFF);
    if host == redirect::OFF {
        return 0;
    }
    if workload.flags & Workload::REDIRECT_OFF != 0 {
        return Origin::REFUSED_WORKLOAD;
    }
    let by_file = workload.flags & Workload::REDIRECT_AUTO != 0
        || (host == redirect::AUTO && workload.flags & Workload::REDIRECT_ON == 0);
    if !by_file {
        return Origin::REDIRECT;
    }
    match verdict(ctx) {
        Executable::ON => Origin::REDIRECT | Origin::BY_PROGRAM,
        Executable::OFF => Origin::REFUSED_PROGRAM,
        _ => {
            count(Outcome::UnknownProgram);
            Origin::UNKNOWN_PROGRAM
        }
    }
}

/// The verdict on the calling process's program file. One that nobody knows is entered for the agent to look at.
#[inline(always)]
fn verdict(ctx: &SockAddrContext) -> u32 {
    let Some(key) = current() else { return Executable::UNKNOWN };
    if let Some(known) = MESH_EXECUTABLE.get_ptr_mut(key) {
        // SAFETY: elements live as long as the program runs; the agent reads these words as they come.
        unsafe {
            (&raw mut (*known).pid).write_volatile(ctx.tgid());
            let connects = (&raw const (*known).connects).read_volatile();
            (&raw mut (*known).connects).write_volatile(connects.saturating_add(1));
            return (&raw const (*known).verdict).read_volatile();
        }
    }
    let new = Executable { verdict: Executable::UNKNOWN, reason: 0, pid: ctx.tgid(), connects: 1 };
    let _ = MESH_EXECUTABLE.insert(key, new, BPF_NOEXIST.into());
    Executable::UNKNOWN
}

/// The calling process's program file; none for a kernel thread or a kernel whose structures are unknown.
#[inline(always)]
pub fn current() -> Option<ExecutableKey> {
    if offset!(executables) == 0 {
        return None;
    }
    // SAFETY: helper without side effects.
    let task = unsafe { bpf_get_current_task() };
    let mm: u64 = read(task, offset!(mm))?;
    let file: u64 = read(mm, offset!(exe_file))?;
    let inode: u64 = read(file, offset!(f_inode))?;
    let block: u64 = read(inode, offset!(i_sb))?;
    Some(ExecutableKey {
        inode: read(inode, offset!(i_ino))?,
        device: read(block, offset!(s_dev))?,
        generation: read(inode, offset!(i_generation))?,
    })
}

/// Reads a field of a structure of the kernel; none for a null pointer.
#[inline(always)]
pub fn read<T>(base: u64, offset: u32) -> Option<T> {
    if base == 0 {
        return None;
    }
    // SAFETY: the helper reads what can be read and fails otherwise; any bytes are such a `T`, an integer.
    unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const T) }.ok()
}
