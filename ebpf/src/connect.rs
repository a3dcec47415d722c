//! `connect()`: brings connects to services to the agent's listener in the caller's network namespace.
//!
//! Runs for blocking, non-blocking, io_uring and TCP Fast Open connects alike, in the caller's context.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns,
    },
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use aya_log_ebpf::{debug, warn};
use ebpf_common::{
    Address, Admission, Origin, OriginState, Outcome, Service, TupleKey, Workload, address, control, first_look,
    is_redirected, loopback, mapped, normalise, now_stale, words,
};

use crate::{
    balance::{self, Asked},
    dns, enrolled, exe,
    maps::{MESH_LISTENERS, MESH_TUPLES, control_slot, count, create_origin, forget_origin, origin_of, service},
};

const PASS: i32 = 1;
const REFUSE: i32 = 0;

/// `connect()` of an AF_INET socket.
#[cgroup_sock_addr(connect4)]
pub fn mesh_connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the verifier checks each read of the context.
    let port = unsafe { (*ctx.sock_addr).user_port as u16 };
    match dns::ask4(&ctx, port) {
        Some(outcome) => dns::asked(&ctx, outcome),
        None => connect4(ctx.sock_addr),
    }
}

/// `connect()` of an AF_INET6 socket, to IPv6 or to IPv4 in mapped form.
#[cgroup_sock_addr(connect6)]
pub fn mesh_connect6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the verifier checks each read of the context.
    let port = unsafe { (*ctx.sock_addr).user_port as u16 };
    match dns::ask6(&ctx, port) {
        Some(outcome) => dns::asked(&ctx, outcome),
        None => connect6(ctx.sock_addr),
    }
}

// The two below are functions of their own, and so is `verdict`, because the stack of a program is that of all
// functions that call each other: 512 bytes, of which names need what these leave.

#[inline(never)]
fn connect4(c: *mut bpf_sock_addr) -> i32 {
    let ctx = SockAddrContext::new(c);
    // SAFETY: the verifier checks each read of the context.
    let (addr, port) = unsafe { ((*c).user_ip4, (*c).user_port as u16) };
    let addr = mapped(addr.to_ne_bytes());
    let outcome = match capture(&ctx, addr, port, false) {
        Ok((to, to_port, outcome)) => {
            let [_, _, _, to] = words(&to);
            // SAFETY: fields that a connect4 program may write, as whole words.
            unsafe {
                (&raw mut (*c).user_ip4).write_volatile(to);
                (&raw mut (*c).user_port).write_volatile(u32::from(to_port));
            }
            outcome
        }
        Err(outcome) => outcome,
    };
    verdict(c, outcome, &addr, port)
}

#[inline(never)]
fn connect6(c: *mut bpf_sock_addr) -> i32 {
    let ctx = SockAddrContext::new(c);
    // SAFETY: the verifier checks each read of the context.
    let (addr, port) = unsafe { (user_ip6(c), (*c).user_port as u16) };
    let outcome = match capture(&ctx, addr, port, true) {
        Ok((to, to_port, outcome)) => {
            // SAFETY: fields that a connect6 program may write, as whole words.
            unsafe {
                set_user_ip6(c, to);
                (&raw mut (*c).user_port).write_volatile(u32::from(to_port));
            }
            outcome
        }
        Err(outcome) => outcome,
    };
    verdict(c, outcome, &addr, port)
}

/// Decides about a connect and remembers it; the caller rewrites the address, last.
#[inline(always)]
fn capture(
    ctx: &SockAddrContext,
    addr: Address,
    port: u16,
    v6_socket: bool,
) -> Result<(Address, u16, Outcome), Outcome> {
    // SAFETY: the verifier checks each read of the context and of the socket, which is never null here.
    let (sk, kind, protocol) = unsafe {
        let c = ctx.sock_addr;
        ((*c).__bindgen_anon_1.sk, (*c).type_, (*c).protocol)
    };
    if sk.is_null() {
        return Err(Outcome::NotTcp);
    }
    // SAFETY: as above.
    let (mark, bound_device) = unsafe { ((*sk).mark, (*sk).bound_dev_if) };
    if let Some(outcome) = first_look(kind, protocol, mark) {
        return Err(outcome);
    }

    // SAFETY: helpers without side effects.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let origin = origin_of(sk);
    if !origin.is_null() {
        // SAFETY: not null; only this socket's own connect writes it, under the socket's lock.
        if is_redirected(unsafe { &*origin }, &addr, port) {
            return Err(Outcome::Already);
        }
        // The socket was captured before and is used again: what it was then must not answer for now.
        forget_origin(sk);
        // SAFETY: helper without side effects.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
        let _ = MESH_TUPLES.remove(TupleKey::reservation(netns, cookie));
    }

    let (service, listener, for_names) = match service(addr, port) {
        // The kernel way needs none.
        Some(service) if service.number != 0 => (service, None, false),
        // SAFETY: copied at once; a concurrent replacement is one aligned word.
        Some(service) => (service, unsafe { MESH_LISTENERS.get(netns) }.copied(), false),
        None => match dns::listener(netns, &addr, port) {
            Some(listener) => (Service::default(), Some(listener), true),
            None => return Err(Outcome::NotService),
        },
    };
    let workload = enrolled::workload(netns)?;
    if service.number != 0 {
        let asked = Asked {
            addr,
            port,
            netns,
            v6_socket,
            v6_asked: normalise(&addr).is_none(),
            join: workload.flags & Workload::JOIN != 0,
        };
        return balance::pick(ctx, sk, &service, &asked).map(|(to, port)| (to, port, Outcome::Balanced));
    }
    let (Some(beat), Some(stale_after), Some(draining)) =
        (control_slot(control::BEAT_NS), control_slot(control::STALE_AFTER_NS), control_slot(control::DRAINING))
    else {
        return Err(Outcome::NoControl);
    };
    // SAFETY: helper without side effects.
    let now = unsafe { bpf_ktime_get_ns() };
    let admission = Admission {
        flags: service.flags,
        draining: draining != 0,
        stale: now_stale(now, beat, stale_after),
        listener,
        v6: normalise(&addr).is_none(),
        bound_device,
    };
    let listener = admission.decide().inspect_err(|outcome| enrolled::unserved(*outcome, netns, ctx.tgid()))?;

    let origin = remember(ctx, sk, addr, port, netns, now);
    if origin.is_null() {
        return Err(Outcome::NoStorage);
    }
    // SAFETY: not null; only this socket's own connect writes it, under the socket's lock.
    let origin = unsafe { &mut *origin };
    origin.to = loopback(&addr);
    origin.to_port = listener;
    origin.state = OriginState::Rewritten as u32;
    // SAFETY: helper without side effects.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // Questions for names stay on TCP: the listener for them takes no sockets into the map, and the program's
    // end alone in it would gain nothing and lose FIONREAD.
    origin.flags = if for_names { 0 } else { redirect(ctx.sock_addr, workload.flags) };
    if MESH_TUPLES.insert(TupleKey::reservation(netns, cookie), &*origin, 0).is_err() {
        forget_origin(sk);
        return Err(Outcome::Full);
    }
    Ok((loopback(&addr), listener, Outcome::Captured))
}

// A function of its own for the same reason.
#[inline(never)]
fn redirect(c: *mut bpf_sock_addr, workload: u32) -> u32 {
    exe::redirect(&SockAddrContext::new(c), Workload { flags: workload })
}

/// Remembers with `sk` what was asked for and by whom; null when there is no memory. Where the connect goes
/// instead is for the caller to add. Filled where it stays: it is too large for the stack.
#[inline(always)]
pub fn remember(
    ctx: &SockAddrContext,
    sk: *mut bpf_sock,
    addr: Address,
    port: u16,
    netns: u64,
    now: u64,
) -> *mut Origin {
    let place = create_origin(sk);
    if !place.is_null() {
        // SAFETY: not null; only this socket's own connect writes it, under the socket's lock.
        let origin = unsafe { &mut *place };
        // SAFETY: `comm` has room for its bytes.
        unsafe { bpf_get_current_comm((&raw mut origin.comm).cast(), size_of_val(&origin.comm) as u32) };
        // SAFETY: helper without side effects.
        origin.cgroup = unsafe { bpf_get_current_cgroup_id() };
        origin.addr = addr;
        origin.netns = netns;
        origin.since_ns = now;
        origin.pid = ctx.tgid();
        origin.uid = ctx.uid();
        origin.port = port;
    }
    place
}

/// What the kernel is told. A function of its own, for the sake of the stack of its callers.
#[inline(never)]
fn verdict(c: *mut bpf_sock_addr, outcome: Outcome, addr: &Address, port: u16) -> i32 {
    let (ctx, addr) = (&SockAddrContext::new(c), *addr);
    count(outcome);
    let port = u16::from_be(port);
    match outcome {
        Outcome::StaleRefused => {
            warn!(ctx, "connect refused, the agent shows no life: {:i}:{}", addr, port);
            REFUSE
        }
        Outcome::PolicyRefused => {
            warn!(ctx, "connect refused by the service's rules: {:i}:{} uid {}", addr, port, ctx.uid());
            REFUSE
        }
        Outcome::NoEndpointRefused => {
            warn!(ctx, "connect refused, the service has no endpoint: {:i}:{}", addr, port);
            REFUSE
        }
        _ => {
            // The agent puts the outcome's name for its number: a table of names would need relocations in
            // read-only data, which loaders do not do.
            debug!(ctx, "connect {:i}:{} pid {} outcome #{}", addr, port, ctx.tgid(), outcome as u32);
            PASS
        }
    }
}

/// Reads the destination, a word at a time as the verifier wants it.
///
/// # Safety
/// `c` must be the context of an IPv6 program.
#[inline(always)]
pub unsafe fn user_ip6(c: *const bpf_sock_addr) -> Address {
    // SAFETY: promised by the caller; volatile keeps the compiler from merging the reads.
    unsafe {
        address([
            (&raw const (*c).user_ip6[0]).read_volatile(),
            (&raw const (*c).user_ip6[1]).read_volatile(),
            (&raw const (*c).user_ip6[2]).read_volatile(),
            (&raw const (*c).user_ip6[3]).read_volatile(),
        ])
    }
}

/// Rewrites the destination, a word at a time as the verifier wants it.
///
/// # Safety
/// `c` must be the context of an IPv6 program.
#[inline(always)]
pub unsafe fn set_user_ip6(c: *mut bpf_sock_addr, to: Address) {
    let [w0, w1, w2, w3] = words(&to);
    // SAFETY: promised by the caller; volatile keeps the compiler from merging the writes.
    unsafe {
        (&raw mut (*c).user_ip6[0]).write_volatile(w0);
        (&raw mut (*c).user_ip6[1]).write_volatile(w1);
        (&raw mut (*c).user_ip6[2]).write_volatile(w2);
        (&raw mut (*c).user_ip6[3]).write_volatile(w3);
    }
}
