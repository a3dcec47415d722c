//! Both ends of a connection within this host enter the table of sockets when it is established.
//!
//! The active end goes first: its handshake ends before that of the passive end, which joins only an end that
//! is there already. So a connection has both ends in the table or, with nobody to redirect to, at most the
//! agent's own. The kernel takes a socket out when it is closed; what this table knows of it goes by the state
//! callback.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{
        BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_TCP_CLOSE, bpf_sock, bpf_sock_ops,
    },
    helpers::generated::{
        bpf_get_netns_cookie, bpf_sk_storage_delete, bpf_sk_storage_get, bpf_sock_hash_update,
        bpf_sock_ops_cb_flags_set,
    },
    programs::SockOpsContext,
};
use ebpf_common::{
    AGENT_MARK, AcceptorKey, End, Executable, Flow, Offsets, Origin, Outcome, SocketKey, Way, address, control,
    is_local, mapped, normalise, redirect,
};

use crate::{
    join,
    maps::{MESH_ACCEPTORS, MESH_ENDS, MESH_FLOWS, MESH_LISTENERS, MESH_SOCKETS, control_slot, count, origin_of},
};

const AF_INET: u32 = 2;
const E2BIG: i64 = -7;
const EBUSY: i64 = -16;
const ENOMEM: i64 = -12;

/// Where fields lie in this kernel's structures; the agent fills it in. All zero: nothing is redirected, and
/// the verifier leaves out what would need more rights.
#[unsafe(no_mangle)]
pub static MESH_OFFSETS: Offsets = Offsets {
    sockets: 0,
    rmem_alloc: 0,
    copied_seq: 0,
    write_seq: 0,
    executables: 0,
    mm: 0,
    exe_file: 0,
    f_inode: 0,
    i_ino: 0,
    i_generation: 0,
    i_sb: 0,
    s_dev: 0,
};

/// One field of [`MESH_OFFSETS`] as the agent filled it in.
macro_rules! offset {
    ($field:ident) => {
        // SAFETY: a static; volatile because the loader has changed what the compiler saw.
        unsafe { (&raw const $crate::pair::MESH_OFFSETS.$field).read_volatile() }
    };
}
pub(crate) use offset;

/// A connection is established: its end here enters the table if it is to be redirected.
#[inline(always)]
pub fn established(ctx: &SockOpsContext, passive: bool) {
    if offset!(sockets) == 0 || control_slot(control::REDIRECT).unwrap_or(redirect::OFF) == redirect::OFF {
        return;
    }
    // SAFETY: the verifier checks each read of the context.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() || !flow_of(sk).is_null() {
        // The latter: a hook of an inner control group was here already.
        return;
    }
    if !passive && !is_wanted(sk) {
        return;
    }
    let mut own = SocketKey::default();
    write_key(ctx.ops, &mut own);
    let flags = if passive { passive_end(&own) } else { active_end(sk, &own).unwrap_or(NOT_AT_ALL) };
    if flags != NOT_AT_ALL {
        enter(ctx.ops, &own, flags);
    }
}

/// The flags of an end that is not to be redirected.
const NOT_AT_ALL: u32 = u32::MAX;

/// Puts an end into the table. A function of its own for the sake of its stack.
#[inline(never)]
fn enter(ops: *mut bpf_sock_ops, own: &SocketKey, flags: u32) {
    let ctx = &SockOpsContext::new(ops);
    // SAFETY: the verifier checks each read of the context.
    let sk = unsafe { (*ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return;
    }
    let (own, peer) = (*own, own.flipped());
    let mut flow = Flow { peer, sk: sk as u64, redirected: 0, way: Way::Idle as u32, flags };
    // SAFETY: the verifier checks that `sk` is a socket; the value has the size of the map's values.
    let stored =
        unsafe { bpf_sk_storage_get(flows(), sk.cast(), (&raw mut flow).cast(), BPF_SK_STORAGE_GET_F_CREATE.into()) };
    if stored.is_null() {
        return count(Outcome::PairFailed);
    }
    let mut slot = own;
    // SAFETY: the map's key is such a key.
    let error = unsafe {
        bpf_sock_hash_update(
            ctx.ops,
            ptr::from_ref(&MESH_SOCKETS).cast_mut().cast(),
            (&raw mut slot).cast(),
            BPF_NOEXIST.into(),
        )
    };
    if error != 0 {
        // SAFETY: the verifier checks that `sk` is a socket.
        unsafe { bpf_sk_storage_delete(flows(), sk.cast()) };
        return count(match error {
            E2BIG | ENOMEM => Outcome::PairFull,
            EBUSY => Outcome::PairBusy,
            _ => Outcome::PairFailed,
        });
    }
    // Last: from here on the other end redirects to it.
    let end = End { sk: sk as u64, flags, way: Way::Idle as u32, bytes: 0, messages: 0, received: 0, last_ns: 0 };
    if MESH_ENDS.insert(own, end, 0).is_err() {
        return count(Outcome::PairFull);
    }
    // SAFETY: the flags of before and one more.
    unsafe { bpf_sock_ops_cb_flags_set(ctx.ops, (ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32) };
    count(Outcome::Paired);
}

/// A connection changes state: forgets what is known of an end that is closed.
#[inline(always)]
pub fn state(ctx: &SockOpsContext) {
    if ctx.arg(1) != BPF_TCP_CLOSE {
        return;
    }
    // SAFETY: the verifier checks each read of the context.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return;
    }
    let flow = flow_of(sk);
    if flow.is_null() {
        return;
    }
    // SAFETY: not null, and gone only with the deletion below.
    let (own, this) = unsafe {
        join::closed(&*flow);
        ((*flow).peer.flipped(), (*flow).sk)
    };
    // SAFETY: copied at once.
    if unsafe { MESH_ENDS.get(own) }.is_some_and(|end| end.sk == this) {
        let _ = MESH_ENDS.remove(own);
    }
    // SAFETY: the verifier checks that `sk` is a socket.
    unsafe { bpf_sk_storage_delete(flows(), sk.cast()) };
}

/// Bytes that the end which the callback is about has sent and received past TCP, where it is joined.
#[inline(always)]
pub fn redirected(ctx: &SockOpsContext) -> (u64, u64) {
    // SAFETY: the verifier checks each read of the context.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return (0, 0);
    }
    let flow = flow_of(sk);
    if flow.is_null() {
        return (0, 0);
    }
    // SAFETY: not null; the socket is locked.
    let (sent, own) = unsafe { ((*flow).redirected, (*flow).peer.flipped()) };
    // SAFETY: copied at once.
    (sent, unsafe { MESH_ENDS.get(own) }.map_or(0, |end| end.received))
}

/// Whether a connection that this end opened may be redirected at all: most are not, and are to cost nothing.
#[inline(always)]
fn is_wanted(sk: *mut bpf_sock) -> bool {
    let origin = origin_of(sk);
    // SAFETY: not null; only a connect of this socket writes it.
    origin.is_null() || unsafe { (*origin).flags } & (Origin::REDIRECT | Origin::JOIN) != 0
}

/// Flags of the end that opened the connection, none if it is not to be redirected.
#[inline(always)]
fn active_end(sk: *mut bpf_sock, own: &SocketKey) -> Option<u32> {
    let origin = origin_of(sk);
    if !origin.is_null() {
        // SAFETY: not null; only a connect of this socket writes it.
        let flags = unsafe { (*origin).flags };
        if flags & Origin::KERNEL != 0 {
            return join::opened(flags, own);
        }
        return (flags & Origin::REDIRECT != 0).then_some(0);
    }
    // SAFETY: not null; the verifier checks the read.
    let mark = unsafe { (*sk).mark };
    (mark == AGENT_MARK && is_local(&own.local, &own.remote)).then_some(End::AGENT)
}

/// Flags of the end that accepted the connection. A function of its own for the sake of its stack.
#[inline(never)]
fn passive_end(own: &SocketKey) -> u32 {
    accepted(own, &own.flipped()).unwrap_or(NOT_AT_ALL)
}

/// The same, none if it is not to be redirected.
#[inline(always)]
fn accepted(own: &SocketKey, peer: &SocketKey) -> Option<u32> {
    // SAFETY: copied at once.
    let Some(other) = unsafe { MESH_ENDS.get(*peer) }.map(|end| end.flags) else {
        join::accepted(own);
        return None;
    };
    if other & End::JOIN != 0 {
        return Some(End::JOIN);
    }
    if other & End::AGENT != 0 {
        let acceptor = AcceptorKey::new(own.netns, own.local, own.local_port);
        // SAFETY: one word, copied at once.
        let verdict = match unsafe { MESH_ACCEPTORS.get(acceptor) } {
            Some(verdict) => *verdict,
            None => {
                // For the agent to look at; without room it stays on TCP.
                let _ = MESH_ACCEPTORS.insert(acceptor, Executable::UNKNOWN, BPF_NOEXIST.into());
                Executable::UNKNOWN
            }
        };
        let always = control_slot(control::REDIRECT) == Some(redirect::ON) && verdict != Executable::OFF;
        return (always || verdict == Executable::ON).then_some(0);
    }
    // SAFETY: copied at once.
    let listener = unsafe { MESH_LISTENERS.get(own.netns) }.copied()?;
    let port = if normalise(&own.local).is_some() { listener.port4 } else { listener.port6 };
    (port != 0 && port == own.local_port).then_some(End::AGENT)
}

/// Writes the key of the end that the callback is about. A function of its own for the sake of its stack.
#[inline(never)]
fn write_key(ops: *mut bpf_sock_ops, to: &mut SocketKey) {
    *to = key(&SockOpsContext::new(ops));
}

#[inline(always)]
fn key(ctx: &SockOpsContext) -> SocketKey {
    // SAFETY: the verifier checks each read of the context; volatile keeps them apart.
    let (local, remote, netns) = unsafe {
        let ops = ctx.ops;
        let remote6 = address([
            (&raw const (*ops).remote_ip6[0]).read_volatile(),
            (&raw const (*ops).remote_ip6[1]).read_volatile(),
            (&raw const (*ops).remote_ip6[2]).read_volatile(),
            (&raw const (*ops).remote_ip6[3]).read_volatile(),
        ]);
        let netns = bpf_get_netns_cookie(ops.cast());
        if ctx.family() == AF_INET || normalise(&remote6).is_some() {
            (mapped(ctx.local_ip4().to_ne_bytes()), mapped(ctx.remote_ip4().to_ne_bytes()), netns)
        } else {
            let local6 = address([
                (&raw const (*ops).local_ip6[0]).read_volatile(),
                (&raw const (*ops).local_ip6[1]).read_volatile(),
                (&raw const (*ops).local_ip6[2]).read_volatile(),
                (&raw const (*ops).local_ip6[3]).read_volatile(),
            ]);
            (local6, remote6, netns)
        }
    };
    SocketKey {
        netns,
        local,
        remote,
        local_port: (ctx.local_port() as u16).to_be(),
        // The kernel gives it in the upper half of a word in network byte order.
        remote_port: (u32::from_be(ctx.remote_port()) as u16).to_be(),
        reserved: 0,
    }
}

#[inline(always)]
fn flows() -> *mut c_void {
    ptr::from_ref(&MESH_FLOWS).cast_mut().cast()
}

/// What `sk` knows as a sender, null when it is not in the table. `sk` must come from a program's context and
/// not be null.
#[inline(always)]
pub fn flow_of(sk: *mut bpf_sock) -> *mut Flow {
    // SAFETY: the verifier checks that `sk` is a socket.
    unsafe { bpf_sk_storage_get(flows(), sk.cast(), ptr::null_mut(), 0) }.cast()
}
