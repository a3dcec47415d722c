//! TCP state changes: calls whoever has something to do at each.
//!
//! A captured connection is recorded under its source address just before the SYN leaves, so that the agent
//! finds it the moment it accepts.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RTO_CB,
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use aya_log_ebpf::{error, trace};
use ebpf_common::{Origin, OriginState, Outcome, TupleKey, address, mapped, normalise};

use crate::{
    balance,
    maps::{MESH_TUPLES, count, origin_of_ops},
    pair,
};

// Anything else would be an error to the kernel.
const OK: u32 = 1;

/// TCP state changes.
#[sock_ops]
pub fn mesh_sockops(ctx: SockOpsContext) -> u32 {
    // One line for each idea that wants to know; the idea itself lives in its own file.
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(ctx.ops),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(ctx.ops, false),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => established(ctx.ops, true),
        BPF_SOCK_OPS_STATE_CB => {
            balance_state(ctx.ops);
            pair_state(ctx.ops);
        }
        BPF_SOCK_OPS_RTO_CB => unanswered(ctx.ops),
        _ => {}
    }
    OK
}

// Each with a stack frame of its own, beside the others: together they would not fit.
#[inline(never)]
fn established(ops: *mut bpf_sock_ops, passive: bool) {
    pair::established(&SockOpsContext::new(ops), passive);
}

#[inline(never)]
fn balance_state(ops: *mut bpf_sock_ops) {
    balance::state(&SockOpsContext::new(ops));
}

#[inline(never)]
fn pair_state(ops: *mut bpf_sock_ops) {
    pair::state(&SockOpsContext::new(ops));
}

#[inline(never)]
fn unanswered(ops: *mut bpf_sock_ops) {
    balance::unanswered(&SockOpsContext::new(ops));
}

#[inline(never)]
fn connecting(ops: *mut bpf_sock_ops) {
    let ctx = &SockOpsContext::new(ops);
    // SAFETY: null or this program's alone.
    let Some(origin) = (unsafe { origin_of_ops(ctx).as_mut() }) else { return };
    // Not captured this time, or an inner control group's program was here first.
    if origin.state != OriginState::Rewritten as u32 {
        return;
    }
    origin.state = OriginState::Connecting as u32;
    if origin.flags & Origin::KERNEL != 0 {
        return balance::connecting(ctx, origin);
    }

    // An IPv6 socket that speaks IPv4 arrives at the IPv4 listener, hence from an IPv4 address.
    let addr = if normalise(&origin.addr).is_some() {
        mapped(ctx.local_ip4().to_ne_bytes())
    } else {
        // SAFETY: the verifier checks each read of the context; volatile keeps them apart.
        unsafe {
            address([
                (&raw const (*ctx.ops).local_ip6[0]).read_volatile(),
                (&raw const (*ctx.ops).local_ip6[1]).read_volatile(),
                (&raw const (*ctx.ops).local_ip6[2]).read_volatile(),
                (&raw const (*ctx.ops).local_ip6[3]).read_volatile(),
            ])
        }
    };
    let port = (ctx.local_port() as u16).to_be();
    // SAFETY: helper without side effects.
    let cookie = unsafe { aya_ebpf::helpers::generated::bpf_get_socket_cookie(ctx.ops.cast()) };
    // The reservation goes first: its place is the one that the entry needs.
    let _ = MESH_TUPLES.remove(TupleKey::reservation(origin.netns, cookie));
    if MESH_TUPLES.insert(TupleKey::new(origin.netns, addr, port), &*origin, 0).is_ok() {
        count(Outcome::Recorded);
        trace!(ctx, "recorded {:i}:{}", addr, u16::from_be(port));
    } else {
        count(Outcome::RecordLost);
        error!(ctx, "not recorded, the table is full: {:i}:{}", addr, u16::from_be(port));
    }
}
