//! The kernel way: what the connect hooks need to bring a connect straight to an endpoint.

use crate::{Address, normalise};

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
    /// Connects in a row that were never established.
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

/// Counters of one caller of one endpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
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

const FIRST_PAUSE_NS: u64 = 1_000_000_000;
const MAX_DOUBLINGS: u32 = 5;

/// Whether a socket can dial an endpoint at `addr`. `v6_socket`: an IPv6 socket, which reaches IPv4 in
/// mapped form; `v6_only`: it must not, because the program asked for an IPv6 address and may have forbidden
/// its socket to speak IPv4.
#[inline(always)]
pub fn suits(addr: &Address, v6_socket: bool, v6_only: bool) -> bool {
    match normalise(addr) {
        Some(_) => !v6_only,
        None => v6_socket,
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

/// What is known of an endpoint after one more connect to it was never established.
#[inline(always)]
pub const fn after_failure(before: EndpointState, now_ns: u64) -> EndpointState {
    let failures = before.failures.saturating_add(1);
    EndpointState { failed_until_ns: now_ns + pause_ns(failures), failures, reserved: 0 }
}

// No hidden padding: the fields' sizes add up to the type's.
const _: () = {
    assert!(size_of::<SlotKey>() == 4 * 3);
    assert!(size_of::<Slot>() == 16 + 4 + 2 + 2);
    assert!(size_of::<RuleKey>() == 8 + 4 * 4);
    assert!(size_of::<EndpointKey>() == 4 * 2);
    assert!(size_of::<EndpointState>() == 8 + 4 * 2);
    assert!(size_of::<UseKey>() == 8 + 4 * 2);
    assert!(size_of::<Use>() == 8 * 7);
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
        let (v4, v6) = (mapped([10, 0, 0, 1]), [0xfd; 16]);
        assert!(suits(&v4, false, false));
        assert!(!suits(&v6, false, false), "an IPv4 socket cannot dial IPv6");
        assert!(suits(&v4, true, false), "in mapped form");
        assert!(!suits(&v4, true, true));
        assert!(suits(&v6, true, true));
    }

    #[test]
    fn the_pause_grows_up_to_half_a_minute() {
        let seconds: Vec<u64> = (0..8).map(|n| pause_ns(n) / 1_000_000_000).collect();
        assert_eq!(seconds, [1, 1, 2, 4, 8, 16, 32, 32]);
        assert_eq!(pause_ns(u32::MAX), pause_ns(8));
        let once = after_failure(EndpointState::default(), 5);
        assert_eq!((once.failures, once.failed_until_ns), (1, 5 + pause_ns(1)));
        assert_eq!(after_failure(once, 5).failed_until_ns, 5 + pause_ns(2));
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
