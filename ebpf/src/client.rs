//! Who is behind a connection that the agent opened to a program: the caller whose address the agent has left
//! with its own socket, see `ebpf_common::client`.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_CURRENT_NETNS, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_release, bpf_sk_storage_get},
    programs::SockAddrContext,
};
use ebpf_common::{AGENT_MARK, Address, Client, address, control, is_within, mapped, normalise, words};

use crate::maps::{MESH_CLIENTS, control_slot};

const AF_INET: u32 = 2;
/// Bytes of a tuple of each family.
const TUPLE4: u32 = 12;
const TUPLE6: u32 = 36;

/// The caller behind the connection between `sk` and `addr`:`port` (network byte order), if the agent opened it
/// for one.
#[inline(always)]
pub fn of(ctx: &SockAddrContext, sk: *mut bpf_sock, addr: &Address, port: u16) -> Option<Client> {
    if control_slot(control::CLIENTS).unwrap_or(0) == 0 {
        return None;
    }
    // Everything is read before the first branch, and kept apart by volatile, for the verifier's sake.
    // SAFETY: the verifier checks each read of the socket, which is not null.
    let (mark, family, local4, local6, local_port) = unsafe {
        (
            (&raw const (*sk).mark).read_volatile(),
            (&raw const (*sk).family).read_volatile(),
            (&raw const (*sk).src_ip4).read_volatile(),
            [
                (&raw const (*sk).src_ip6[0]).read_volatile(),
                (&raw const (*sk).src_ip6[1]).read_volatile(),
                (&raw const (*sk).src_ip6[2]).read_volatile(),
                (&raw const (*sk).src_ip6[3]).read_volatile(),
            ],
            (&raw const (*sk).src_port).read_volatile(),
        )
    };
    let local = if family == AF_INET { mapped(local4.to_ne_bytes()) } else { address(local6) };
    if mark == AGENT_MARK || !is_within(&local, addr) {
        // The latter spares connections from other hosts the look for the other end.
        return None;
    }
    let known = kept(sk);
    if !known.is_null() {
        // SAFETY: not null, and never changed.
        return Some(unsafe { *known });
    }
    let client = other_end(ctx, &local, (local_port as u16).to_be(), addr, port)?;
    keep(sk, client);
    Some(client)
}

/// What is kept with the socket that is bound to `addr`:`port` and connected to `local`:`local_port`.
#[inline(always)]
fn other_end(ctx: &SockAddrContext, local: &Address, local_port: u16, addr: &Address, port: u16) -> Option<Client> {
    let (from, to) = (words(local), words(addr));
    let ([a, b], [c, d]) = (local_port.to_ne_bytes(), port.to_ne_bytes());
    let ports = u32::from_ne_bytes([a, b, c, d]);
    // `struct bpf_sock_tuple` as of a packet from here, in words: all of them are written for either family.
    let (mut tuple, size) = if normalise(addr).is_some() {
        ([from[3], to[3], ports, 0, 0, 0, 0, 0, 0], TUPLE4)
    } else {
        ([from[0], from[1], from[2], from[3], to[0], to[1], to[2], to[3], ports], TUPLE6)
    };
    // SAFETY: a tuple with as many bytes as said; the reference is given back below.
    let other = unsafe {
        bpf_sk_lookup_tcp(ctx.as_ptr(), tuple.as_mut_ptr().cast(), size, BPF_F_CURRENT_NETNS as i64 as u64, 0)
    };
    if other.is_null() {
        return None;
    }
    let kept = kept(other);
    // SAFETY: not null; written before the connection was opened and never changed.
    let client = if kept.is_null() { None } else { Some(unsafe { *kept }) };
    // SAFETY: the reference from above, not used any more.
    unsafe { bpf_sk_release(other.cast()) };
    client
}

#[inline(always)]
fn clients() -> *mut c_void {
    ptr::from_ref(&MESH_CLIENTS).cast_mut().cast()
}

#[inline(always)]
fn kept(sk: *mut bpf_sock) -> *const Client {
    // SAFETY: the verifier checks that `sk` is a socket.
    unsafe { bpf_sk_storage_get(clients(), sk.cast(), ptr::null_mut(), 0) }.cast()
}

/// Keeps it with the program's own socket: the agent's may be closed before the program asks again. With no
/// memory for it, it is looked for again.
#[inline(always)]
fn keep(sk: *mut bpf_sock, mut client: Client) {
    let flags = BPF_SK_STORAGE_GET_F_CREATE.into();
    // SAFETY: the verifier checks that `sk` is a socket; the value has the size of the map's values.
    unsafe { bpf_sk_storage_get(clients(), sk.cast(), (&raw mut client).cast(), flags) };
}
