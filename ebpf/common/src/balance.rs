//! The kernel way: what the connect hooks need to bring a connect straight to an endpoint.

use crate::{Address, normalise, words};

/// Key of one slot of a service's table. A pick is one random slot of the first `Service::slots`; behind
/// these stand `Service::endpoints` slots, one for each endpoint, which are walked when that one will not do.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotKey {
    /// Number of the service.
    pub service: u32,
    /// Which table of that service: tables are replaced as a whole.
    pub generation: u32,
    /// Place in the table.
    pub slot: u32,
}

/// An endpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Where it listens, IPv4 in mapped form.
    pub addr: Address,
    /// Its number.
    pub number: u32,
    /// Port in network byte order.
    pub port: u16,
    /// Always 0.
    pub reserved: u16,
}

/// Key of a rule about who may connect. Rules stand under the generation of their service's table, so that
/// both change at one moment.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleKey {
    /// User, or number (inode) of a control group.
    pub value: u64,
    /// Number of the service.
    pub service: u32,
    /// Generation of the service's table.
    pub generation: u32,
    /// One of the constants below.
    pub kind: u32,
    /// Always 0.
    pub reserved: u32,
}

impl RuleKey {
    /// `value` is a user that may.
    pub const ALLOW_UID: u32 = 0;
    /// `value` is a control group that may, with all below it.
    pub const ALLOW_CGROUP: u32 = 1;
    /// `value` is a user that may not.
    pub const DENY_UID: u32 = 2;
    /// `value` is a control group that may not, with all below it.
    pub const DENY_CGROUP: u32 = 3;
}

/// Key of what is known of an endpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    /// Number of the service.
    pub service: u32,
    /// Number of the endpoint.
    pub endpoint: u32,
}

/// What is known of an endpoint that failed. There is no entry for one that did not.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointState {
    /// It is passed over until then, `CLOCK_MONOTONIC` in ns.
    pub failed_until_ns: u64,
    /// When the last failure was counted, the same clock.
    pub failed_ns: u64,
    /// Connects in a row that were never established, of which each began after the one before had failed.
    pub failures: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Key of the counters.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UseKey {
    /// Control group of the caller.
    pub cgroup: u64,
    /// Number of the service.
    pub service: u32,
    /// Number of the endpoint; 0 where policy refused before one was picked.
    pub endpoint: u32,
}

impl UseKey {
    /// In the place of `cgroup`: all control groups that are gone.
    pub const GONE_CALLERS: u64 = 0;
    /// In the place of `endpoint`: all endpoints that are in no list any more.
    pub const GONE_ENDPOINTS: u32 = u32::MAX;
}

/// Counters of one caller of one endpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// Connects sent to the endpoint. What is more than `connects` never left: the socket had no way there.
    pub picked: u64,
    /// Connects begun: a SYN left.
    pub connects: u64,
    /// Connects refused by policy; they are no `connects`.
    pub refused: u64,
    /// Of the connects, those that were never established.
    pub failed: u64,
    /// Of the connects, those that have ended, failed ones included.
    pub closed: u64,
    /// Payload that endpoints acknowledged, of ended connections.
    pub bytes_up: u64,
    /// Payload that endpoints sent, of ended connections.
    pub bytes_down: u64,
    /// Time from connect to end, of ended connections, ns.
    pub duration_ns: u64,
}

/// Slots looked at after the picked one.
pub const FURTHER_TRIES: u32 = 8;
/// Ancestors of a control group that rules are looked up for.
pub const ANCESTORS: i32 = 12;

/// After a pause one connect tries the endpoint, and nobody else for so long: longer than the kernel waits
/// before it repeats a SYN.
pub const TRIAL_NS: u64 = 3_000_000_000;

const FIRST_PAUSE_NS: u64 = 1_000_000_000;
const MAX_DOUBLINGS: u32 = 5;

/// Which endpoints a socket can dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reach {
    /// IPv4: an IPv4 socket, or an IPv6 one that is bound to an IPv4 address.
    V4 = 0,
    /// Both, IPv4 in mapped form: an IPv6 socket that was told an IPv4 address.
    Both = 1,
    /// IPv6 first: an IPv6 socket that was told an IPv6 address, and may have been forbidden IPv4.
    V6First = 2,
    /// IPv6: such a socket that is bound to an IPv6 address.
    V6 = 3,
}

impl Reach {
    /// `bound`: the socket's own address, IPv4 in mapped form.
    #[inline(always)]
    pub fn of(v6_socket: bool, v6_asked: bool, bound: &Address) -> Self {
        let any = words(bound) == [0; 4];
        let bound4 = normalise(bound).is_some();
        if !v6_socket || bound4 {
            Self::V4
        } else if !any {
            Self::V6
        } else if v6_asked {
            Self::V6First
        } else {
            Self::Both
        }
    }

    /// Whether an endpoint at `addr` can be dialled at all.
    #[inline(always)]
    pub fn allows(self, addr: &Address) -> bool {
        if normalise(addr).is_some() { self as u32 != Self::V6 as u32 } else { self as u32 != Self::V4 as u32 }
    }

    /// Whether it is of the kind that comes last.
    #[inline(always)]
    pub fn is_last(self, addr: &Address) -> bool {
        self as u32 == Self::V6First as u32 && normalise(addr).is_some()
    }
}

/// How long an endpoint is passed over after `failures` connects in a row that were never established.
#[inline(always)]
pub const fn pause_ns(failures: u32) -> u64 {
    let doublings = failures.saturating_sub(1);
    FIRST_PAUSE_NS << (if doublings > MAX_DOUBLINGS { MAX_DOUBLINGS } else { doublings })
}

/// The place looked at in try `n`: 0 is the weighted pick, further ones walk the endpoints from a random one.
#[inline(always)]
pub const fn place(slots: u32, endpoints: u32, random: u32, n: u32) -> u32 {
    // The loader refuses neither 0, and the kernel's division by 0 is 0.
    if n == 0 || endpoints == 0 {
        if slots == 0 { 0 } else { random % slots }
    } else {
        // Other bits than those of the pick, which says nothing new about the order of endpoints.
        slots + ((random >> 16).wrapping_add(n)) % endpoints
    }
}

/// Payload acknowledged by the other end of a connection that was established and whose state before its
/// end was `before`: TCP counts SYN and FIN as bytes.
#[inline(always)]
pub const fn payload_up(acked: u64, before: u32) -> u64 {
    let fin = match before {
        tcp::FIN_WAIT2 | tcp::TIME_WAIT | tcp::CLOSING | tcp::LAST_ACK => 1,
        _ => 0,
    };
    acked.saturating_sub(1 + fin)
}

/// Payload received on a connection whose state before its end was `before`.
#[inline(always)]
pub const fn payload_down(received: u64, before: u32) -> u64 {
    let fin = match before {
        tcp::CLOSE_WAIT | tcp::LAST_ACK | tcp::CLOSING | tcp::TIME_WAIT | tcp::FIN_WAIT2 => 1,
        _ => 0,
    };
    received.saturating_sub(fin)
}

/// States of TCP as `enum bpf_tcp_state` numbers them.
pub mod tcp {
    /// Data may flow.
    pub const ESTABLISHED: u32 = 1;
    /// The SYN is on its way.
    pub const SYN_SENT: u32 = 2;
    /// We closed, and that was acknowledged.
    pub const FIN_WAIT2: u32 = 5;
    /// Both closed, we first.
    pub const TIME_WAIT: u32 = 6;
    /// Over.
    pub const CLOSE: u32 = 7;
    /// The other end closed.
    pub const CLOSE_WAIT: u32 = 8;
    /// Both closed, the other end first.
    pub const LAST_ACK: u32 = 9;
    /// Both closed at once.
    pub const CLOSING: u32 = 11;
}

/// What is known of an endpoint after a connect that began at `since_ns` was not established. Connects that
/// were on their way when it failed before tell nothing new.
#[inline(always)]
pub const fn after_failure(before: EndpointState, since_ns: u64, now_ns: u64) -> EndpointState {
    if since_ns < before.failed_ns {
        return before;
    }
    let failures = before.failures.saturating_add(1);
    EndpointState { failed_until_ns: now_ns + pause_ns(failures), failed_ns: now_ns, failures, reserved: 0 }
}

// No hidden padding: the fields' sizes add up to the type's.
const _: () = {
    assert!(size_of::<SlotKey>() == 4 * 3);
    assert!(size_of::<Slot>() == 16 + 4 + 2 + 2);
    assert!(size_of::<RuleKey>() == 8 + 4 * 4);
    assert!(size_of::<EndpointKey>() == 4 * 2);
    assert!(size_of::<EndpointState>() == 8 * 2 + 4 * 2);
    assert!(size_of::<UseKey>() == 8 + 4 * 2);
    assert!(size_of::<Use>() == 8 * 8);
};

#[cfg(feature = "user")]
mod pod {
    #![allow(unsafe_code, reason = "aya wants an unsafe marker on every type that maps hold")]
    // SAFETY: `repr(C)`, integers only, no padding (asserted above).
    unsafe impl aya::Pod for super::SlotKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Slot {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::RuleKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::EndpointKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::EndpointState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::UseKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Use {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapped;

    #[test]
    fn endpoints_must_suit_the_socket() {
        let (v4, v6, any) = (mapped([10, 0, 0, 1]), [0xfd; 16], [0; 16]);
        let of = |reach: Reach| [reach.allows(&v4), reach.is_last(&v4), reach.allows(&v6), reach.is_last(&v6)];
        assert_eq!(of(Reach::of(false, false, &any)), [true, false, false, false], "an IPv4 socket");
        assert_eq!(of(Reach::of(false, false, &v4)), [true, false, false, false]);
        assert_eq!(of(Reach::of(true, false, &any)), [true, false, true, false], "IPv4 in mapped form");
        assert_eq!(of(Reach::of(true, true, &any)), [true, true, true, false], "it may be IPv6-only");
        assert_eq!(of(Reach::of(true, true, &v6)), [false, false, true, false], "bound to an IPv6 address");
        assert_eq!(of(Reach::of(true, false, &v4)), [true, false, false, false], "bound to an IPv4 address");
    }

    #[test]
    fn the_pause_grows_up_to_half_a_minute() {
        let seconds: Vec<u64> = (0..8).map(|n| pause_ns(n) / 1_000_000_000).collect();
        assert_eq!(seconds, [1, 1, 2, 4, 8, 16, 32, 32]);
        assert_eq!(pause_ns(u32::MAX), pause_ns(8));
        let once = after_failure(EndpointState::default(), 2, 5);
        assert_eq!((once.failures, once.failed_until_ns), (1, 5 + pause_ns(1)));
        assert_eq!(after_failure(once, 5, 7).failed_until_ns, 7 + pause_ns(2));
        assert_eq!(after_failure(once, 4, 7), once, "it was on its way when the first one failed");
    }

    #[test]
    fn the_walk_meets_every_endpoint_once() {
        for random in [0, 1, 77, 0xdead_beef, u32::MAX] {
            assert!(place(256, 8, random, 0) < 256);
            let mut met: Vec<u32> = (1..=8).map(|n| place(256, 8, random, n)).collect();
            met.sort_unstable();
            assert_eq!(met, (256..264).collect::<Vec<_>>());
        }
        assert_eq!(place(0, 0, 7, 0), 0);
    }

    #[test]
    fn syn_and_fin_are_no_payload() {
        assert_eq!(payload_up(1 + 10, tcp::CLOSE_WAIT), 10);
        assert_eq!(payload_up(1 + 10 + 1, tcp::LAST_ACK), 10);
        assert_eq!(payload_up(0, tcp::ESTABLISHED), 0);
        assert_eq!(payload_down(10, tcp::ESTABLISHED), 10);
        assert_eq!(payload_down(10 + 1, tcp::LAST_ACK), 10);
    }
}
