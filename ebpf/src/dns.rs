//! Questions for names: UDP to port 53 is brought to the agent, which answers for services and asks the
//! program's own resolver for all else. Nothing is kept per socket: the address that a question is sent to
//! stands for its resolver, see `ebpf_common::dns`.

use aya_ebpf::{
    bindings::{BPF_NOEXIST, bpf_sock_addr},
    helpers::generated::{bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_ktime_get_ns},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use aya_log_ebpf::trace;
use ebpf_common::{
    AGENT_MARK, Address, Listener, Outcome, control,
    dns::{self, DnsListener, RESOLVERS6, TRIES},
    loopback, mapped, normalise, now_stale, words,
};

use crate::{
    connect::{set_user_ip6, user_ip6},
    enrolled,
    maps::{MESH_DNS, MESH_LISTENERS, MESH_RESOLVERS, control_slot, count},
};

// None of these hooks ever refuses.
const PASS: i32 = 1;

/// The port of questions, network byte order.
pub const PORT: u16 = dns::PORT.to_be();

/// `sendto()` and `sendmsg()` with an address of AF_INET sockets, and of AF_INET6 sockets with IPv4 in
/// mapped form.
#[cgroup_sock_addr(sendmsg4)]
pub fn mesh_sendmsg4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the verifier checks each read of the context.
    let port = unsafe { (*ctx.sock_addr).user_port as u16 };
    ask4(&ctx, port).map_or(PASS, |outcome| asked(&ctx, outcome))
}

/// `sendto()` and `sendmsg()` with an address of AF_INET6 sockets.
#[cgroup_sock_addr(sendmsg6)]
pub fn mesh_sendmsg6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the verifier checks each read of the context.
    let port = unsafe { (*ctx.sock_addr).user_port as u16 };
    ask6(&ctx, port).map_or(PASS, |outcome| asked(&ctx, outcome))
}

/// `recvfrom()` and `recvmsg()` of AF_INET sockets: the source is the resolver that was asked.
#[cgroup_sock_addr(recvmsg4)]
pub fn mesh_recvmsg4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the verifier checks each read of the context.
    let (addr, port) = unsafe { ((*ctx.sock_addr).user_ip4, (*ctx.sock_addr).user_port as u16) };
    if let Some(resolver) = resolver(&ctx, &mapped(addr.to_ne_bytes()), port) {
        // SAFETY: fields that this program may write, as whole words.
        unsafe {
            (&raw mut (*ctx.sock_addr).user_ip4).write_volatile(words(&resolver)[3]);
            (&raw mut (*ctx.sock_addr).user_port).write_volatile(u32::from(PORT));
        }
        count(Outcome::Resolved);
        trace!(&ctx, "answer shown as from {:i}", resolver);
    }
    PASS
}

/// `recvfrom()` and `recvmsg()` of AF_INET6 sockets; IPv4 is shown in mapped form.
#[cgroup_sock_addr(recvmsg6)]
pub fn mesh_recvmsg6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the verifier checks each read of the context.
    let (addr, port) = unsafe { (user_ip6(ctx.sock_addr), (*ctx.sock_addr).user_port as u16) };
    if let Some(resolver) = resolver(&ctx, &addr, port) {
        // SAFETY: fields that this program may write, as whole words.
        unsafe {
            set_user_ip6(ctx.sock_addr, resolver);
            (&raw mut (*ctx.sock_addr).user_port).write_volatile(u32::from(PORT));
        }
        count(Outcome::Resolved);
        trace!(&ctx, "answer shown as from {:i}", resolver);
    }
    PASS
}

/// Sends a question of an AF_INET socket to the agent; `None` when this is no question over UDP.
#[inline(always)]
pub fn ask4(ctx: &SockAddrContext, port: u16) -> Option<Outcome> {
    (port == PORT).then(|| bring4(ctx.sock_addr)).flatten()
}

/// Sends a question of an AF_INET6 socket to the agent; `None` when this is no question over UDP.
#[inline(always)]
pub fn ask6(ctx: &SockAddrContext, port: u16) -> Option<Outcome> {
    (port == PORT).then(|| bring6(ctx.sock_addr)).flatten()
}

/// Counts what became of a question, which passes in any case.
#[inline(always)]
pub fn asked(ctx: &SockAddrContext, outcome: Outcome) -> i32 {
    count(outcome);
    trace!(ctx, "question outcome #{}", outcome as u32);
    PASS
}

// A function with a stack frame of its own: the connect hooks have no room to spare.
#[inline(never)]
fn bring4(c: *mut bpf_sock_addr) -> Option<Outcome> {
    // SAFETY: the verifier checks each read of the context.
    let addr = mapped(unsafe { (*c).user_ip4 }.to_ne_bytes());
    Some(match ask(c, &addr)? {
        Ok((to, to_port)) => {
            // SAFETY: fields that connect4 and sendmsg4 programs may write, as whole words.
            unsafe {
                (&raw mut (*c).user_ip4).write_volatile(words(&to)[3]);
                (&raw mut (*c).user_port).write_volatile(u32::from(to_port));
            }
            Outcome::Asked
        }
        Err(outcome) => outcome,
    })
}

#[inline(never)]
fn bring6(c: *mut bpf_sock_addr) -> Option<Outcome> {
    // SAFETY: called in IPv6 programs only; the verifier checks each read of the context.
    let addr = unsafe { user_ip6(c) };
    Some(match ask(c, &addr)? {
        Ok((to, to_port)) => {
            // SAFETY: fields that connect6 and sendmsg6 programs may write, as whole words.
            unsafe {
                set_user_ip6(c, to);
                (&raw mut (*c).user_port).write_volatile(u32::from(to_port));
            }
            Outcome::Asked
        }
        Err(outcome) => outcome,
    })
}

/// Where questions over TCP are answered, `None` when names are off or this is no resolver's address.
#[inline(always)]
pub fn listener(netns: u64, addr: &Address, port: u16) -> Option<Listener> {
    if port != PORT || !dns::is_resolver(addr) {
        return None;
    }
    // SAFETY: copied at once; each port in it is one aligned word.
    let at = unsafe { MESH_DNS.get(netns) }?;
    Some(Listener { port4: at.tcp4, port6: at.tcp6 })
}

/// The resolver that `addr`:`port`, a place where the agent answers questions over UDP, stands for.
#[inline(always)]
pub fn resolver(ctx: &SockAddrContext, addr: &Address, port: u16) -> Option<Address> {
    let number = match normalise(addr) {
        Some(v4) => {
            let number = dns::number_of(v4)?;
            (here(ctx.sock_addr)?.udp4 == port).then_some(number)?
        }
        None => {
            let (a, b) = (words(addr), words(&loopback(addr)));
            if a[0] != b[0] || a[1] != b[1] || a[2] != b[2] || a[3] != b[3] {
                return None;
            }
            let at = here(ctx.sock_addr)?;
            let mut found = None;
            let mut place = 0;
            while place < RESOLVERS6 {
                if at.udp6[place] == port {
                    found = Some(dns::number6(place));
                }
                place += 1;
            }
            found?
        }
    };
    // SAFETY: copied at once; entries are never changed nor removed.
    unsafe { MESH_RESOLVERS.get(number) }.copied()
}

#[inline(always)]
fn here(c: *mut bpf_sock_addr) -> Option<&'static DnsListener> {
    // SAFETY: helper without side effects; elements live until after a grace period, and each port is one
    // aligned word.
    unsafe { MESH_DNS.get(bpf_get_netns_cookie(c.cast())) }
}

/// Where to send a question instead, network byte order, or why not; `None` when it is none, or names are off.
#[inline(always)]
fn ask(c: *mut bpf_sock_addr, addr: &Address) -> Option<Result<(Address, u16), Outcome>> {
    // SAFETY: the verifier checks each read of the context and of the socket.
    let (sk, kind, protocol) = unsafe { ((*c).__bindgen_anon_1.sk, (*c).type_, (*c).protocol) };
    if sk.is_null() || !dns::is_udp(kind, protocol) || !dns::is_resolver(addr) {
        return None;
    }
    // SAFETY: helper without side effects.
    let netns = unsafe { bpf_get_netns_cookie(c.cast()) };
    let at = here(c);
    // Without either the agent is not in this namespace at all, and may want to be.
    // SAFETY: only whether there is an entry counts.
    let elsewhere = at.is_none() && unsafe { MESH_LISTENERS.get(netns) }.is_none();
    if at.is_none() && !elsewhere || enrolled::workload(netns).is_err() {
        return None;
    }
    if elsewhere {
        // SAFETY: helper without side effects; the process is the upper half.
        enrolled::unserved(Outcome::NoListener, netns, (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32);
    }
    let at = at?;
    // SAFETY: as above.
    let (mark, bound_device) = unsafe { ((*sk).mark, (*sk).bound_dev_if) };
    Some(decide(addr, at, mark, bound_device))
}

#[inline(always)]
fn decide(addr: &Address, at: &DnsListener, mark: u32, bound_device: u32) -> Result<(Address, u16), Outcome> {
    if mark == AGENT_MARK {
        return Err(Outcome::Own);
    }
    let (Some(beat), Some(stale_after), Some(draining)) =
        (control_slot(control::BEAT_NS), control_slot(control::STALE_AFTER_NS), control_slot(control::DRAINING))
    else {
        return Err(Outcome::NoControl);
    };
    if draining != 0 {
        return Err(Outcome::Draining);
    }
    // SAFETY: helper without side effects.
    if now_stale(unsafe { bpf_ktime_get_ns() }, beat, stale_after) {
        return Err(Outcome::StaleDirect);
    }
    // The loopback device always has index 1.
    if bound_device > 1 {
        return Err(Outcome::BoundDevice);
    }
    let v4 = normalise(addr).is_some();
    if v4 && at.udp4 == 0 {
        return Err(Outcome::NoListener);
    }
    let Some(number) = number(addr) else { return Err(Outcome::ResolversFull) };
    if v4 {
        return Ok((mapped(dns::stand_in(number)), at.udp4));
    }
    match at.udp6[dns::place6(number)] {
        0 => Err(Outcome::NoListener6),
        port => Ok((loopback(addr), port)),
    }
}

/// The number of a resolver, which gets one if it has none yet; `None` when there is no place for it.
#[inline(always)]
fn number(addr: &Address) -> Option<u32> {
    let mut nth = 0;
    while nth < TRIES {
        let number = dns::number(addr, nth);
        // SAFETY: entries are never changed nor removed.
        if unsafe { MESH_RESOLVERS.get(number) }.is_none() {
            // Another CPU may take the place in this moment: who is there now decides.
            let _ = MESH_RESOLVERS.insert(number, addr, BPF_NOEXIST.into());
        }
        // SAFETY: as above.
        let there = unsafe { MESH_RESOLVERS.get(number) }?;
        let (a, b) = (words(there), words(addr));
        if a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] {
            return Some(number);
        }
        nth += 1;
    }
    None
}
