//! The kernel way: a connect goes straight to an endpoint that is picked here, and is counted to its end.
//! The agent need not live for any of it.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_SOCK_OPS_RTO_CB_FLAG, BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock, bpf_sock_addr},
    helpers::generated::{
        bpf_bind, bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_prandom_u32,
        bpf_get_socket_cookie, bpf_ktime_get_ns,
    },
    programs::{SockAddrContext, SockOpsContext},
};
use ebpf_common::{
    Address, Origin, OriginState, Outcome, Service, address,
    balance::{
        ANCESTORS, EndpointKey, FURTHER_TRIES, Reach, RuleKey, SlotKey, TRIAL_NS, Use, UseKey, after_failure,
        payload_down, payload_up, place, tcp,
    },
    mapped,
};

use crate::{
    connect::remember,
    maps::{MESH_BALANCE, MESH_CONNECTION, MESH_ENDPOINTS, MESH_POLICY, MESH_USE, count, origin_of_ops},
    pair,
};

/// What a program asked for.
pub struct Asked {
    pub addr: Address,
    pub port: u16,
    pub netns: u64,
    /// An IPv6 socket.
    pub v6_socket: bool,
    /// An IPv6 address.
    pub v6_asked: bool,
    /// Its connections may be joined.
    pub join: bool,
}

/// Picks an endpoint of `service` and remembers it with `sk`; the caller rewrites the address, last.
#[inline(always)]
pub fn pick(
    ctx: &SockAddrContext,
    sk: *mut bpf_sock,
    service: &Service,
    asked: &Asked,
) -> Result<(Address, u16), Outcome> {
    // SAFETY: helper without side effects.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    if service.flags & (Service::HAS_ALLOW | Service::HAS_DENY) != 0
        && admitted(service.number, service.generation, service.flags, ctx.uid()) == 0
    {
        note(cgroup, service.number, 0, PickEnd::Refused);
        return Err(Outcome::PolicyRefused);
    }
    // SAFETY: helper without side effects.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the verifier checks each read of the socket, which is never null here.
    let (bound, bound_port) = unsafe { (source(sk), (&raw const (*sk).src_port).read_volatile()) };
    let reach = Reach::of(asked.v6_socket, asked.v6_asked, &bound);
    let place = choose(service, reach, now);
    let refuse = service.flags & Service::REFUSE_ON_LOSS != 0;
    let none = || if refuse { Outcome::NoEndpointRefused } else { Outcome::NoEndpoint };
    let key = SlotKey { service: service.number, generation: service.generation, slot: place };
    // SAFETY: written once by the agent before the service names this generation.
    let Some(slot) = (unsafe { MESH_BALANCE.get(&key) }) else {
        return Err(none());
    };
    if reach.is_last(&slot.addr) && bound_port == 0 && may_speak_v4(ctx.sock_addr) == 0 {
        if !refuse {
            return Err(Outcome::V6Only);
        }
        count(Outcome::V6Only);
        return Err(none());
    }
    let origin = remember(ctx, sk, asked.addr, asked.port, asked.netns, now);
    if origin.is_null() {
        return Err(Outcome::NoStorage);
    }
    // SAFETY: not null; only this socket's own connect writes it, under the socket's lock.
    let origin = unsafe { &mut *origin };
    origin.to = slot.addr;
    origin.to_port = slot.port;
    origin.service = service.number;
    origin.endpoint = slot.number;
    origin.flags = if asked.join { Origin::KERNEL | Origin::JOIN } else { Origin::KERNEL };
    origin.state = OriginState::Rewritten as u32;
    note(cgroup, service.number, slot.number, PickEnd::Picked);
    Ok((slot.addr, slot.port))
}

/// The address that a socket is bound to, all zero when it is not.
///
/// # Safety
/// `sk` must come from a program's context and not be null.
#[inline(always)]
unsafe fn source(sk: *const bpf_sock) -> Address {
    // SAFETY: promised by the caller; volatile keeps the compiler from merging the reads.
    unsafe {
        address([
            (&raw const (*sk).src_ip6[0]).read_volatile(),
            (&raw const (*sk).src_ip6[1]).read_volatile(),
            (&raw const (*sk).src_ip6[2]).read_volatile(),
            (&raw const (*sk).src_ip6[3]).read_volatile(),
        ])
    }
}

/// Whether an IPv6 socket that is not bound may dial IPv4 (`IPV6_V6ONLY` is off): 1 or 0. Hooks cannot read
/// that option; but to bind such a socket to any IPv4 address is refused, and changes nothing for one that
/// will dial IPv4 next.
#[inline(never)]
fn may_speak_v4(ctx: *mut bpf_sock_addr) -> u32 {
    const AF_INET6: u16 = 10;
    // `struct sockaddr_in6`: family, port, flow, address, scope.
    let [a0, a1, a2, a3] = ebpf_common::words(&mapped([0; 4]));
    let mut any: [u32; 7] = [AF_INET6.into(), 0, a0, a1, a2, a3, 0];
    // SAFETY: `any` has the length that is told; the socket is locked by its connect.
    let refused = unsafe { bpf_bind(ctx, (&raw mut any).cast(), size_of_val(&any) as i32) };
    (refused == 0).into()
}

/// No place at all.
const NOWHERE: u32 = u32::MAX;

/// Place of the picked endpoint, or of the next that suits the socket and has not failed lately, or of
/// those that have the one whose pause ends first. A function of its own for the sake of its stack.
#[inline(never)]
fn choose(service: &Service, reach: Reach, now: u64) -> u32 {
    if service.slots == 0 {
        return NOWHERE;
    }
    // SAFETY: helper without side effects.
    let random = unsafe { bpf_get_prandom_u32() };
    let (mut least_bad, mut least_until) = (NOWHERE, u64::MAX);
    let mut other_family = NOWHERE;
    for n in 0..=FURTHER_TRIES {
        let place = place(service.slots, service.endpoints, random, n);
        let key = SlotKey { service: service.number, generation: service.generation, slot: place };
        // SAFETY: written once by the agent before the service names this generation.
        let Some(slot) = (unsafe { MESH_BALANCE.get(&key) }) else { continue };
        if !reach.allows(&slot.addr) {
            continue;
        }
        let state = EndpointKey { service: service.number, endpoint: slot.number };
        let known = MESH_ENDPOINTS.get_ptr_mut(&state);
        // SAFETY: an entry lives as long as this program runs; one aligned word is read.
        let until = known.map_or(0, |s| unsafe { (&raw const (*s).failed_until_ns).read_volatile() });
        if reach.is_last(&slot.addr) {
            if until <= now || other_family == NOWHERE {
                other_family = place;
            }
        } else if until <= now {
            if let Some(known) = known {
                // This connect finds out whether it answers again, others wait for that elsewhere.
                // SAFETY: as above; of two CPUs that meet here both may try.
                unsafe { (&raw mut (*known).failed_until_ns).write_volatile(now + TRIAL_NS) };
            }
            return place;
        } else if until < least_until {
            (least_bad, least_until) = (place, until);
        }
    }
    if least_bad == NOWHERE { other_family } else { least_bad }
}

/// Whether the service's rules let the calling process through: 1 or 0.
#[inline(never)]
fn admitted(service: u32, generation: u32, flags: u32, uid: u32) -> u32 {
    let mut key = RuleKey { value: uid.into(), service, generation, kind: RuleKey::ALLOW_UID, reserved: 0 };
    let mut allowed = flags & Service::HAS_ALLOW == 0 || MESH_POLICY.get_ptr(&key).is_some();
    key.kind = RuleKey::DENY_UID;
    if MESH_POLICY.get_ptr(&key).is_some() {
        return 0;
    }
    for level in 0..ANCESTORS {
        // SAFETY: helper without side effects; 0 below the caller's own group.
        key.value = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if key.value == 0 {
            break;
        }
        key.kind = RuleKey::ALLOW_CGROUP;
        allowed |= MESH_POLICY.get_ptr(&key).is_some();
        key.kind = RuleKey::DENY_CGROUP;
        if MESH_POLICY.get_ptr(&key).is_some() {
            return 0;
        }
    }
    allowed.into()
}

/// The SYN is leaving.
#[inline(always)]
pub fn connecting(ctx: &SockOpsContext, origin: &Origin) {
    let flags = BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTO_CB_FLAG;
    let _ = ctx.set_cb_flags((ctx.cb_flags() | flags) as i32);
    if let Some(counters) = counters(origin.cgroup, origin.service, origin.endpoint) {
        // SAFETY: the entry lives as long as this program runs.
        bump(unsafe { &raw mut (*counters).connects }, 1);
    }
    // SAFETY: helper without side effects.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.ops.cast()) };
    if MESH_CONNECTION.insert(cookie, origin, 0).is_err() {
        count(Outcome::Unlisted);
    }
}

/// TCP went from one state to another.
#[inline(always)]
pub fn state(ctx: &SockOpsContext) {
    let (before, after) = (ctx.arg(0), ctx.arg(1));
    if after != tcp::CLOSE && after != tcp::ESTABLISHED {
        return;
    }
    // SAFETY: null or this program's alone.
    let Some(origin) = (unsafe { origin_of_ops(ctx).as_mut() }) else { return };
    if origin.flags & Origin::KERNEL == 0 || origin.state != OriginState::Connecting as u32 {
        return;
    }
    let endpoint = EndpointKey { service: origin.service, endpoint: origin.endpoint };
    if after == tcp::ESTABLISHED {
        let _ = ctx.set_cb_flags((ctx.cb_flags() & !BPF_SOCK_OPS_RTO_CB_FLAG) as i32);
        if MESH_ENDPOINTS.get_ptr(&endpoint).is_some() {
            let _ = MESH_ENDPOINTS.remove(&endpoint);
        }
        return;
    }
    // Told once, even where nested control groups run this program twice.
    origin.state = OriginState::Ended as u32;
    // SAFETY: helpers without side effects.
    let (now, cookie) = unsafe { (bpf_ktime_get_ns(), bpf_get_socket_cookie(ctx.ops.cast())) };
    let _ = MESH_CONNECTION.remove(cookie);
    let established = before != tcp::SYN_SENT;
    // SAFETY: the verifier checks each read of the context.
    let (acked, received) = unsafe { ((*ctx.ops).bytes_acked, (*ctx.ops).bytes_received) };
    let (sent, got) = pair::redirected(ctx);
    if let Some(counters) = counters(origin.cgroup, origin.service, origin.endpoint) {
        // SAFETY: the entry lives as long as this program runs.
        unsafe {
            bump(&raw mut (*counters).closed, 1);
            bump(&raw mut (*counters).duration_ns, now.saturating_sub(origin.since_ns));
            if established {
                bump(&raw mut (*counters).bytes_up, payload_up(acked, before) + sent);
                bump(&raw mut (*counters).bytes_down, payload_down(received, before) + got);
            } else {
                bump(&raw mut (*counters).failed, 1);
            }
        }
    }
    if !established {
        failed(&endpoint, origin.since_ns, now);
    }
}

/// A SYN or a segment was not answered in time and is repeated.
#[inline(always)]
pub fn unanswered(ctx: &SockOpsContext) {
    // SAFETY: the verifier checks each read of the context.
    if unsafe { (*ctx.ops).state } != tcp::SYN_SENT {
        return;
    }
    // SAFETY: null or this program's alone.
    let Some(origin) = (unsafe { origin_of_ops(ctx).as_mut() }) else { return };
    if origin.flags & Origin::KERNEL == 0 || origin.state != OriginState::Connecting as u32 {
        return;
    }
    // The program may be patient; others need not be.
    let endpoint = EndpointKey { service: origin.service, endpoint: origin.endpoint };
    // SAFETY: helper without side effects.
    failed(&endpoint, origin.since_ns, unsafe { bpf_ktime_get_ns() });
}

/// A connect that began at `since` was not established.
#[inline(always)]
fn failed(endpoint: &EndpointKey, since: u64, now: u64) {
    // SAFETY: copied at once; two failures at one moment may count as one, which only shortens the pause.
    let known = unsafe { MESH_ENDPOINTS.get(endpoint) }.copied().unwrap_or_default();
    let _ = MESH_ENDPOINTS.insert(endpoint, &after_failure(known, since, now), 0);
}

/// What became of a connect in its hook.
#[derive(Clone, Copy)]
#[repr(u32)]
enum PickEnd {
    Picked = 0,
    Refused = 1,
}

/// Counts the end of a pick. A function of its own for the sake of its stack.
#[inline(never)]
fn note(cgroup: u64, service: u32, endpoint: u32, end: PickEnd) {
    if let Some(counters) = counters(cgroup, service, endpoint) {
        // SAFETY: the entry lives as long as this program runs.
        let counter = match end {
            PickEnd::Picked => unsafe { &raw mut (*counters).picked },
            PickEnd::Refused => unsafe { &raw mut (*counters).refused },
        };
        bump(counter, 1);
    }
}

/// The counters of a caller of an endpoint, made on first use; none when the table is full.
#[inline(always)]
fn counters(cgroup: u64, service: u32, endpoint: u32) -> Option<*mut Use> {
    const NEW: Use =
        Use { picked: 0, connects: 0, refused: 0, failed: 0, closed: 0, bytes_up: 0, bytes_down: 0, duration_ns: 0 };
    // Not over what another CPU has put there meanwhile.
    const NOEXIST: u64 = 1;
    let key = UseKey { cgroup, service, endpoint };
    if let Some(known) = MESH_USE.get_ptr_mut(&key) {
        return Some(known);
    }
    let _ = MESH_USE.insert(&key, &NEW, NOEXIST);
    let found = MESH_USE.get_ptr_mut(&key);
    if found.is_none() {
        count(Outcome::Uncounted);
    }
    found
}

#[inline(always)]
fn bump(counter: *mut u64, by: u64) {
    // SAFETY: an aligned field of a map's value; everyone adds atomically.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, by) };
}
