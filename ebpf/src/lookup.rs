//! `sk_lookup`: brings connections from other hosts or namespaces, for services that local programs provide,
//! to the agent's listener. No address is rewritten: the accepted socket's own address is the one that the
//! caller asked for.
//!
//! Runs once for each new connection, before the kernel looks for a listening socket. Linux 5.9.

use aya_ebpf::{helpers::generated::bpf_ktime_get_ns, macros::sk_lookup, programs::SkLookupContext};
use aya_log_ebpf::debug;
use ebpf_common::{Address, Outcome, ServiceKey, address, control, inbound, mapped, now_stale};

use crate::maps::{MESH_IN_SOCKETS, MESH_INBOUND, control_slot, count};

// The kernel's own lookup goes on unless a socket was assigned.
const PASS: u32 = 1;
const AF_INET: u32 = 2;

/// A connection that no established socket claims.
#[sk_lookup]
pub fn mesh_inbound(ctx: SkLookupContext) -> u32 {
    if let Some(outcome) = bring(&ctx) {
        count(outcome);
    }
    PASS
}

/// `None` when the connection is of no interest.
#[inline(always)]
fn bring(ctx: &SkLookupContext) -> Option<Outcome> {
    // Everything is read before the first branch, or the compiler would join the reads of two branches into
    // one through a computed address, which the verifier refuses.
    // SAFETY: the verifier checks each read of the context; volatile keeps them apart.
    let (protocol, ingress, family, port, (ip4, from4), (ip6, from6)) = unsafe {
        (
            (&raw const (*ctx.lookup).protocol).read_volatile(),
            (&raw const (*ctx.lookup).ingress_ifindex).read_volatile(),
            (&raw const (*ctx.lookup).family).read_volatile(),
            (&raw const (*ctx.lookup).local_port).read_volatile(),
            (
                (&raw const (*ctx.lookup).local_ip4).read_volatile(),
                (&raw const (*ctx.lookup).remote_ip4).read_volatile(),
            ),
            (ip6(&raw const (*ctx.lookup).local_ip6), ip6(&raw const (*ctx.lookup).remote_ip6)),
        )
    };
    let (addr, from, listener) = if family == AF_INET {
        (mapped(ip4.to_ne_bytes()), mapped(from4.to_ne_bytes()), inbound::LISTENER_V4)
    } else {
        (ip6, from6, inbound::LISTENER_V6)
    };
    if !inbound::comes_from_elsewhere(protocol, ingress, &from, &addr) {
        return None;
    }
    let port = (port as u16).to_be();
    // SAFETY: only whether there is an entry counts.
    let wanted = unsafe {
        MESH_INBOUND.get(ServiceKey::new(addr, port)).is_some()
            || MESH_INBOUND.get(inbound::any_address(port)).is_some()
    };
    if !wanted {
        return None;
    }
    let (beat, stale_after) = (control_slot(control::BEAT_NS)?, control_slot(control::STALE_AFTER_NS)?);
    // SAFETY: helper without side effects.
    let now = unsafe { bpf_ktime_get_ns() };
    if control_slot(control::DRAINING)? != 0 || now_stale(now, beat, stale_after) {
        return Some(Outcome::InboundDirect);
    }
    if MESH_IN_SOCKETS.redirect_sk_lookup(ctx, listener, 0).is_err() {
        return Some(Outcome::InboundNoListener);
    }
    debug!(ctx, "inbound {:i}:{}", addr, u16::from_be(port));
    Some(Outcome::Inbound)
}

/// Reads an address of the context, a word at a time as the verifier wants it; the words are 0 for IPv4.
///
/// # Safety
/// `field` must be one of a lookup's context.
#[inline(always)]
unsafe fn ip6(field: *const [u32; 4]) -> Address {
    let field: *const u32 = field.cast();
    // SAFETY: promised by the caller; volatile keeps the compiler from merging the reads.
    unsafe {
        address([
            field.read_volatile(),
            field.add(1).read_volatile(),
            field.add(2).read_volatile(),
            field.add(3).read_volatile(),
        ])
    }
}
