//! `getpeername()`: a program sees the address it asked for, not the agent's listener; and, inside `accept()` too,
//! the caller's address where the agent called it on behalf of one.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use aya_log_ebpf::trace;
use ebpf_common::{Address, Outcome, is_sent_to, mapped, normalise, words};

use crate::{
    client,
    connect::{set_user_ip6, user_ip6},
    dns,
    maps::{count, origin_of},
};

// These hooks may return nothing else.
const PASS: i32 = 1;

/// `getpeername()` of an AF_INET socket.
#[cgroup_sock_addr(getpeername4)]
pub fn mesh_peername4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the verifier checks each read of the context.
    let (addr, port) = unsafe { ((*ctx.sock_addr).user_ip4, (*ctx.sock_addr).user_port as u16) };
    if let Some((addr, port, outcome)) = peer(&ctx, mapped(addr.to_ne_bytes()), port)
        && normalise(&addr).is_some()
    {
        // SAFETY: fields that this program may write, as whole words.
        unsafe {
            (&raw mut (*ctx.sock_addr).user_ip4).write_volatile(words(&addr)[3]);
            (&raw mut (*ctx.sock_addr).user_port).write_volatile(u32::from(port));
        }
        answered(&ctx, addr, port, outcome);
    }
    PASS
}

/// `getpeername()` of an AF_INET6 socket; IPv4 is answered in mapped form.
#[cgroup_sock_addr(getpeername6)]
pub fn mesh_peername6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the verifier checks each read of the context.
    let (addr, port) = unsafe { (user_ip6(ctx.sock_addr), (*ctx.sock_addr).user_port as u16) };
    if let Some((addr, port, outcome)) = peer(&ctx, addr, port) {
        // SAFETY: fields that this program may write, as whole words.
        unsafe {
            set_user_ip6(ctx.sock_addr, addr);
            (&raw mut (*ctx.sock_addr).user_port).write_volatile(u32::from(port));
        }
        answered(&ctx, addr, port, outcome);
    }
    PASS
}

/// Whom the program is to see instead of `addr`:`port`, and how that is counted.
#[inline(always)]
fn peer(ctx: &SockAddrContext, addr: Address, port: u16) -> Option<(Address, u16, Outcome)> {
    // SAFETY: the verifier checks each read of the context.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if sk.is_null() {
        return None;
    }
    let origin = origin_of(sk);
    if origin.is_null() {
        if let Some(client) = client::of(ctx, sk, &addr, port) {
            return Some((client.addr, client.port, Outcome::ClientShown));
        }
        // Connected UDP sockets have no origin: their peer's address itself tells the resolver.
        return dns::resolver(ctx, &addr, port).map(|resolver| (resolver, dns::PORT, Outcome::Peername));
    }
    // SAFETY: not null; only a connect of this socket writes it.
    let origin = unsafe { &*origin };
    is_sent_to(origin, &addr, port).then_some((origin.addr, origin.port, Outcome::Peername))
}

#[inline(always)]
fn answered(ctx: &SockAddrContext, addr: Address, port: u16, outcome: Outcome) {
    count(outcome);
    trace!(ctx, "getpeername answered {:i}:{}", addr, u16::from_be(port));
}
