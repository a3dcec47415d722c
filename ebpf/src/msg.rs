//! Each message of a socket in the table: straight to the other end, or by TCP.
//!
//! The program always lets the message pass, whatever the helper says: a verdict to drop would fail the
//! sender's `send()`. What is decided and why is in `ebpf-common`.

use core::ptr;

use aya_ebpf::{
    bindings::BPF_F_INGRESS,
    helpers::generated::{bpf_ktime_get_ns, bpf_msg_redirect_hash},
    macros::{classifier, sk_msg},
    programs::{SkMsgContext, TcContext},
};
use ebpf_common::{End, Flow, Look, Outcome, SocketKey, Way, control, may_send, redirect, unread_messages};

use crate::{
    exe::read,
    maps::{MESH_ENDS, MESH_SOCKETS, control_slot, count},
    pair::{flow_of, offset},
};

const PASS: u32 = 1;

/// `send()` of a socket in the table, also `sendfile` and the like.
#[sk_msg]
pub fn mesh_msg(ctx: SkMsgContext) -> u32 {
    if offset!(sockets) != 0 {
        message(&ctx);
    }
    PASS
}

#[inline(always)]
fn message(ctx: &SkMsgContext) {
    // SAFETY: the verifier checks each read of the context.
    let sk = unsafe { (*ctx.msg).__bindgen_anon_3.sk };
    if sk.is_null() {
        return;
    }
    let flow = flow_of(sk);
    if flow.is_null() {
        return;
    }
    // SAFETY: not null; the socket is locked by its sender.
    let flow = unsafe { &mut *flow };
    let mut peer = flow.peer;
    // SAFETY: not null; the verifier checks the read.
    let state = unsafe { (*sk).state };
    let mut way = Way::NoPeer;
    // Redirecting asks nothing of the sender's state: after its own end TCP has to refuse what it sends.
    if may_send(state)
        && let Some(reader) = MESH_ENDS.get_ptr_mut(peer)
    {
        way = decide(flow, reader);
        if way == Way::Redirect {
            // SAFETY: the map's key is such a key.
            let verdict = unsafe {
                bpf_msg_redirect_hash(
                    ctx.msg,
                    ptr::from_ref(&MESH_SOCKETS).cast_mut().cast(),
                    (&raw mut peer).cast(),
                    BPF_F_INGRESS.into(),
                )
            };
            if verdict == i64::from(PASS) {
                let size = u64::from(ctx.size());
                flow.redirected += size;
                // SAFETY: an element lives as long as the program runs; only this sender writes these words.
                unsafe {
                    (*reader).bytes += size;
                    (*reader).received += size;
                    (*reader).messages += 1;
                    if flow.flags & End::JOIN != 0 {
                        // TCP does not see it: who looks whether the connection is idle asks here.
                        (*reader).last_ns = bpf_ktime_get_ns();
                    }
                }
            } else {
                // Closed, or about to be: TCP knows what its sender must be told.
                way = Way::NoPeer;
            }
        }
    }
    count(match way {
        Way::Redirect => Outcome::Redirected,
        Way::Off => Outcome::RedirectOff,
        Way::Unread => Outcome::RedirectUnread,
        Way::Full => Outcome::RedirectFull,
        Way::Asked => Outcome::RedirectAsked,
        Way::NoPeer | Way::Idle => Outcome::RedirectNoPeer,
    });
    if flow.way != way as u32 {
        flow.way = way as u32;
        if let Some(own) = MESH_ENDS.get_ptr_mut(peer.flipped()) {
            // SAFETY: an aligned word that others only read.
            unsafe { (&raw mut (*own).way).write_volatile(way as u32) };
        }
    }
}

/// How a message goes from the sender `flow` to `reader`, an element of the table of ends.
#[inline(always)]
fn decide(flow: &Flow, reader: *mut End) -> Way {
    // SAFETY: an element lives as long as the program runs.
    let (sk, other) =
        unsafe { ((&raw const (*reader).sk).read_volatile(), (&raw const (*reader).flags).read_volatile()) };
    let Some(fill) = read::<u32>(sk, offset!(rmem_alloc)) else { return Way::NoPeer };
    // SAFETY: as above; only this sender writes these words.
    let messages = unsafe {
        if fill == 0 {
            (*reader).bytes = 0;
            (*reader).messages = 0;
            0
        } else {
            unread_messages(fill, (*reader).bytes, (*reader).messages)
        }
    };
    let look = Look {
        switch: control_slot(control::REDIRECT).unwrap_or(redirect::OFF),
        own: flow.flags,
        other,
        before: flow.way,
        caught_up: flow.way == Way::Redirect as u32 || caught_up(flow.sk, sk),
        fill,
        messages,
    };
    look.decide()
}

/// Whether the reader has read every byte that the sender ever gave to TCP.
#[inline(always)]
fn caught_up(sender: u64, reader: u64) -> bool {
    let written = read::<u32>(sender, offset!(write_seq));
    let copied = read::<u32>(reader, offset!(copied_seq));
    written.is_some() && written == copied
}

/// Told a [`SocketKey`], answers how many bytes that end has not read, each message counting as 1 KiB at least,
/// and all ones when it is not in the table. Attached nowhere; the agent runs it by number.
#[classifier]
pub fn mesh_fill(ctx: TcContext) -> i32 {
    const UNKNOWN: i32 = -1;
    if offset!(sockets) == 0 {
        return UNKNOWN;
    }
    let Ok(key) = ctx.load::<SocketKey>(0) else { return UNKNOWN };
    // SAFETY: copied at once.
    let Some(End { sk, bytes, messages, .. }) = (unsafe { MESH_ENDS.get(key) }).copied() else { return UNKNOWN };
    let Some(fill) = read::<u32>(sk, offset!(rmem_alloc)) else { return UNKNOWN };
    let kernel = unread_messages(fill, bytes, messages).saturating_mul(1024);
    fill.max(kernel).min(i32::MAX as u32) as i32
}
