//! `setsockopt()`: who asks for something that only TCP keeps stays on TCP from now on, this socket at once.
//!
//! Refuses and changes nothing. With `redirect: on`, of the host or of the entry that enrolls the program, nothing is
//! done either: the operator wants it so.

use aya_ebpf::{
    bindings::{BPF_NOEXIST, bpf_sock},
    helpers::bpf_get_current_pid_tgid,
    macros::cgroup_sockopt,
    programs::SockoptContext,
};
use ebpf_common::{AGENT_MARK, Asked, End, Executable, Origin, Outcome, control, redirect};

use crate::{
    exe,
    maps::{MESH_ENDS, MESH_EXECUTABLE, control_slot, count, origin_of},
    pair::{flow_of, offset},
};

const GO_ON: i32 = 1;
const IPPROTO_TCP: u32 = 6;
/// The kernel shows a program no more of a value than a page, and then wants to be told to take the value
/// from where the caller has it, else it fails the call. Pages are not smaller anywhere.
const SHOWN: i32 = 4096;

/// An option is set on a socket of an enrolled program. Runs before the kernel looks at it.
#[cgroup_sockopt(setsockopt)]
pub fn mesh_setsockopt(ctx: SockoptContext) -> i32 {
    look(&ctx);
    // SAFETY: the verifier checks each access to the context.
    unsafe {
        let length = &raw mut (*ctx.sockopt).optlen;
        if length.read_volatile() > SHOWN {
            length.write_volatile(0);
        }
    }
    GO_ON
}

#[inline(always)]
fn look(ctx: &SockoptContext) {
    // SAFETY: the verifier checks each read of the context.
    let (level, option) = unsafe { ((*ctx.sockopt).level, (*ctx.sockopt).optname) };
    let Some(asked) = Asked::by(level, option, value(ctx)) else { return };
    // SAFETY: as above; never null here.
    let sk = unsafe { (*ctx.sockopt).__bindgen_anon_1.sk };
    if sk.is_null() {
        return;
    }
    // SAFETY: not null; the verifier checks each read.
    let (protocol, mark) = unsafe { ((*sk).protocol, (*sk).mark) };
    if protocol != IPPROTO_TCP || mark == AGENT_MARK {
        return;
    }
    count(Outcome::OptionAsked);
    judge(asked);
    let origin = origin_of(sk);
    let by_program = match origin.is_null() {
        // A server's end: no entry is about it.
        true => control_slot(control::REDIRECT) == Some(redirect::AUTO),
        // SAFETY: not null; the socket is locked by this call.
        false => unsafe { (*origin).flags & Origin::BY_PROGRAM != 0 },
    };
    if by_program {
        keep_on_tcp(sk);
    }
}

/// The value where it is a number, as all are that are asked about.
#[inline(always)]
fn value(ctx: &SockoptContext) -> i32 {
    // SAFETY: both come from the context, and nothing is read outside of them.
    unsafe {
        // The kernel shows 16 bytes at least, whatever the caller gave.
        if (&raw const (*ctx.sockopt).optlen).read_volatile() < size_of::<i32>() as i32 {
            return 1;
        }
        let start = (*ctx.sockopt).__bindgen_anon_2.optval.cast::<i32>();
        let end = (*ctx.sockopt).__bindgen_anon_3.optval_end.cast::<i32>();
        if start.wrapping_add(1) > end { 1 } else { start.read_unaligned() }
    }
}

/// The program file is left on TCP from its next connect on.
#[inline(always)]
fn judge(asked: Asked) {
    let Some(key) = exe::current() else { return };
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if let Some(known) = MESH_EXECUTABLE.get_ptr_mut(&key) {
        // SAFETY: elements live as long as the program runs; single words, the reason before what it is for.
        unsafe {
            (&raw mut (*known).pid).write_volatile(pid);
            if (&raw const (*known).verdict).read_volatile() != Executable::OFF {
                (&raw mut (*known).reason).write_volatile(asked as u32);
                (&raw mut (*known).verdict).write_volatile(Executable::OFF);
            }
        }
        return;
    }
    let new = Executable { verdict: Executable::OFF, reason: asked as u32, pid, connects: 0 };
    let _ = MESH_EXECUTABLE.insert(&key, &new, BPF_NOEXIST.into());
}

/// This socket neither sends nor receives otherwise from its next message on; bytes that are under way arrive
/// in order.
#[inline(always)]
fn keep_on_tcp(sk: *mut bpf_sock) {
    if offset!(sockets) == 0 {
        return;
    }
    // Not established yet: it will not enter the table of sockets.
    let origin = origin_of(sk);
    if !origin.is_null() {
        // SAFETY: not null; the socket is locked by this call.
        unsafe { (*origin).flags = ((*origin).flags & !Origin::REDIRECT) | Origin::REFUSED_PROGRAM };
    }
    let flow = flow_of(sk);
    if flow.is_null() {
        return;
    }
    // SAFETY: not null; the socket is locked by this call.
    let own = unsafe {
        (*flow).flags |= End::OFF;
        (*flow).peer.flipped()
    };
    if let Some(end) = MESH_ENDS.get_ptr_mut(&own) {
        // SAFETY: an aligned word that others only read.
        unsafe {
            let flags = &raw mut (*end).flags;
            flags.write_volatile(flags.read_volatile() | End::OFF);
        }
    }
}
