//! What the hooks decide, free of any kernel context.

use crate::{AGENT_MARK, Address, Listener, Origin, OriginState, Outcome, Service};

/// Slots of the control table. Each is one number of its own, so that the heartbeat, written ten times a
/// second, cannot undo a switch that was thrown meanwhile.
pub mod control {
    /// [`LAYOUT_VERSION`](crate::LAYOUT_VERSION) of whoever made the maps.
    pub const LAYOUT: u32 = 0;
    /// When the agent last showed that it lives, `CLOCK_MONOTONIC` in ns; 0 for never.
    pub const BEAT_NS: u32 = 1;
    /// For how long that holds, ns.
    pub const STALE_AFTER_NS: u32 = 2;
    /// 1 while the agent is stopping.
    pub const DRAINING: u32 = 3;
    /// The agent's process.
    pub const PID: u32 = 4;
    /// Bits of [`members`](crate::members): what hooks look at to tell who calls.
    pub const MEMBERS: u32 = 5;
    /// A value of [`redirect`](crate::redirect).
    pub const REDIRECT: u32 = 6;
    /// 1 while programs are shown the addresses of callers from elsewhere.
    pub const CLIENTS: u32 = 7;
    /// How many slots there are.
    pub const SLOTS: usize = 8;
}

const IPPROTO_TCP: u32 = 6;
const SOCK_STREAM: u32 = 1;

/// Mapped form of an IPv4 address (network byte order).
#[inline(always)]
pub const fn mapped(v4: [u8; 4]) -> Address {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]]
}

/// The IPv4 address inside a mapped one.
#[inline(always)]
pub fn normalise(addr: &Address) -> Option<[u8; 4]> {
    let (w, prefix) = (words(addr), words(&mapped([0; 4])));
    (w[0] == prefix[0] && w[1] == prefix[1] && w[2] == prefix[2]).then(|| w[3].to_ne_bytes())
}

/// An address as the four words that the kernel's contexts consist of. Comparing these and not the bytes
/// keeps the compiler from 128-bit arithmetic, which BPF has not.
#[inline(always)]
pub const fn words(a: &Address) -> [u32; 4] {
    [
        u32::from_ne_bytes([a[0], a[1], a[2], a[3]]),
        u32::from_ne_bytes([a[4], a[5], a[6], a[7]]),
        u32::from_ne_bytes([a[8], a[9], a[10], a[11]]),
        u32::from_ne_bytes([a[12], a[13], a[14], a[15]]),
    ]
}

/// The opposite of [`words`].
#[inline(always)]
pub const fn address(w: [u32; 4]) -> Address {
    let (a, b, c, d) = (w[0].to_ne_bytes(), w[1].to_ne_bytes(), w[2].to_ne_bytes(), w[3].to_ne_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}

/// The loopback address on which the agent listens for destinations like `addr`: `127.0.0.1` in mapped
/// form for IPv4, `::1` otherwise.
#[inline(always)]
pub fn loopback(addr: &Address) -> Address {
    match normalise(addr) {
        Some(_) => mapped([127, 0, 0, 1]),
        None => [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    }
}

/// What the socket alone tells: `Some` when the destination need not be looked up.
#[inline(always)]
pub fn first_look(kind: u32, protocol: u32, mark: u32) -> Option<Outcome> {
    if kind != SOCK_STREAM || protocol != IPPROTO_TCP {
        Some(Outcome::NotTcp)
    } else if mark == AGENT_MARK {
        Some(Outcome::Own)
    } else {
        None
    }
}

/// Whether a connect to `addr`:`port` is the one that an inner control group's hook rewrote just now, as
/// opposed to a program that dials the listener itself on a socket it used before.
#[inline(always)]
pub fn is_redirected(origin: &Origin, addr: &Address, port: u16) -> bool {
    origin.state == OriginState::Rewritten as u32 && is_sent_to(origin, addr, port)
}

/// Whether `addr`:`port`, the peer of a socket with this `origin`, is where it was sent to, so that
/// `getpeername` must answer the origin.
#[inline(always)]
pub fn is_sent_to(origin: &Origin, addr: &Address, port: u16) -> bool {
    let (a, b) = (words(addr), words(&origin.to));
    port == origin.to_port && a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3]
}

/// Whether the agent has shown no life for too long.
#[inline(always)]
pub const fn now_stale(now_ns: u64, beat_ns: u64, stale_after_ns: u64) -> bool {
    // The beat may be read before the clock, or written on another CPU after it: never negative.
    now_ns.saturating_sub(beat_ns) > stale_after_ns
}

/// Everything that decides whether a connect to a service is captured.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    /// The service's flags.
    pub flags: u32,
    /// The agent is stopping.
    pub draining: bool,
    /// The agent shows no life.
    pub stale: bool,
    /// The agent's listeners in the caller's network namespace.
    pub listener: Option<Listener>,
    /// The destination is IPv6 proper.
    pub v6: bool,
    /// Network device that the socket is bound to, 0 for none.
    pub bound_device: u32,
}

impl Admission {
    /// Port to send the connect to (network byte order), or why not. Only
    /// [`StaleRefused`](Outcome::StaleRefused) means refusal; every other reason lets it pass.
    #[inline(always)]
    pub const fn decide(&self) -> Result<u16, Outcome> {
        if self.draining {
            return Err(Outcome::Draining);
        }
        if self.stale {
            return Err(if self.flags & Service::REFUSE_ON_LOSS != 0 {
                Outcome::StaleRefused
            } else {
                Outcome::StaleDirect
            });
        }
        let Some(listener) = self.listener else { return Err(Outcome::NoListener) };
        let (port, none) =
            if self.v6 { (listener.port6, Outcome::NoListener6) } else { (listener.port4, Outcome::NoListener) };
        if port == 0 {
            return Err(none);
        }
        // The loopback device always has index 1.
        if self.bound_device > 1 {
            return Err(Outcome::BoundDevice);
        }
        Ok(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(addr: Address) -> Origin {
        Origin {
            addr,
            comm: [0; 16],
            netns: 1,
            cgroup: 1,
            since_ns: 1,
            pid: 1,
            uid: 0,
            port: 80u16.to_be(),
            to: loopback(&addr),
            to_port: 15001u16.to_be(),
            state: OriginState::Rewritten as u32,
            service: 0,
            endpoint: 0,
            flags: 0,
            reserved: 0,
        }
    }

    const V6: Address = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

    #[test]
    fn mapped_addresses_are_ipv4() {
        assert_eq!(address(words(&V6)), V6);
        assert_eq!(normalise(&mapped([240, 0, 0, 1])), Some([240, 0, 0, 1]));
        assert_eq!(normalise(&V6), None);
        assert_eq!(normalise(&[0; 16]), None);
        assert_eq!(loopback(&V6)[15], 1);
        assert_eq!(loopback(&mapped([240, 0, 0, 1])), mapped([127, 0, 0, 1]));
    }

    #[test]
    fn only_tcp_of_others_is_looked_at() {
        assert_eq!(first_look(1, 6, 0), None);
        assert_eq!(first_look(1, 6, 7), None);
        assert_eq!(first_look(1, 6, AGENT_MARK), Some(Outcome::Own));
        assert_eq!(first_look(2, 17, 0), Some(Outcome::NotTcp));
        assert_eq!(first_look(1, 262, 0), Some(Outcome::NotTcp), "MPTCP before its first subflow, which is TCP");
        assert_eq!(first_look(1, 132, AGENT_MARK), Some(Outcome::NotTcp), "SCTP");
    }

    #[test]
    fn a_second_run_is_told_from_a_dial_of_the_listener() {
        let mut o = origin(mapped([240, 0, 0, 1]));
        let (addr, port) = (mapped([127, 0, 0, 1]), 15001u16.to_be());
        assert!(is_redirected(&o, &addr, port));
        assert!(!is_redirected(&o, &addr, 80u16.to_be()));
        assert!(!is_redirected(&o, &mapped([127, 0, 0, 2]), port));
        o.state = OriginState::Connecting as u32;
        assert!(!is_redirected(&o, &addr, port));
        assert!(is_sent_to(&o, &addr, port));
    }

    #[test]
    fn life_is_judged_without_underflow() {
        assert!(!now_stale(1_000, 2_000, 900));
        assert!(!now_stale(1_900, 1_000, 900));
        assert!(now_stale(1_901, 1_000, 900));
        assert!(now_stale(1_000_000_000, 0, 900));
    }

    #[test]
    fn every_reason_not_to_capture() {
        let listener = Listener { port4: 1, port6: 2 };
        let ok = Admission {
            flags: Service::REFUSE_ON_LOSS,
            draining: false,
            stale: false,
            listener: Some(listener),
            v6: false,
            bound_device: 0,
        };
        assert_eq!(ok.decide(), Ok(1));
        assert_eq!(Admission { v6: true, ..ok }.decide(), Ok(2));
        assert_eq!(Admission { bound_device: 1, ..ok }.decide(), Ok(1), "loopback reaches loopback");
        assert_eq!(Admission { bound_device: 2, ..ok }.decide(), Err(Outcome::BoundDevice));
        assert_eq!(Admission { draining: true, stale: true, ..ok }.decide(), Err(Outcome::Draining));
        assert_eq!(Admission { stale: true, ..ok }.decide(), Err(Outcome::StaleRefused));
        assert_eq!(Admission { stale: true, flags: 0, ..ok }.decide(), Err(Outcome::StaleDirect));
        assert_eq!(Admission { listener: None, ..ok }.decide(), Err(Outcome::NoListener));
        let v4_only = Some(Listener { port4: 1, port6: 0 });
        assert_eq!(Admission { listener: v4_only, v6: true, ..ok }.decide(), Err(Outcome::NoListener6));
        let v6_only = Some(Listener { port4: 0, port6: 1 });
        assert_eq!(Admission { listener: v6_only, ..ok }.decide(), Err(Outcome::NoListener));
    }
}
