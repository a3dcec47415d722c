//! Keys and values of the maps.

/// IPv6 address, or an IPv4 address in its mapped form (`::ffff:a.b.c.d`), network byte order.
pub type Address = [u8; 16];

/// Key of the services table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceKey {
    /// Destination.
    pub addr: Address,
    /// Port in network byte order; 0 stands for every port.
    pub port: u16,
    /// Always 0.
    pub reserved: u16,
}

impl ServiceKey {
    /// Key of `addr` and `port` (network byte order).
    #[inline(always)]
    pub const fn new(addr: Address, port: u16) -> Self {
        Self { addr, port, reserved: 0 }
    }
}

/// A destination that is a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Bits below.
    pub flags: u32,
    /// Its number in the tables of the kernel way, 0 where connects go to the agent.
    pub number: u32,
    /// Which table of that number.
    pub generation: u32,
    /// Places to pick from; 0 without endpoints.
    pub slots: u32,
    /// Places behind these, one for each endpoint.
    pub endpoints: u32,
}

impl Service {
    /// Only who is listed may connect.
    pub const HAS_ALLOW: u32 = 2;
    /// Who is listed may not connect.
    pub const HAS_DENY: u32 = 4;
    /// Refuse connects while the agent shows no life, instead of letting them go directly.
    pub const REFUSE_ON_LOSS: u32 = 1;
}

/// Ports of the agent's listeners on loopback in one network namespace, network byte order, 0 for none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listener {
    /// On 127.0.0.1.
    pub port4: u16,
    /// On ::1.
    pub port6: u16,
}

/// Where a captured connection wanted to go, and who made it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Destination that the program asked for.
    pub addr: Address,
    /// Where the connect was sent instead: the agent's listener, or an endpoint.
    pub to: Address,
    /// Name of the calling thread, padded with 0.
    pub comm: [u8; 16],
    /// Network namespace of the socket.
    pub netns: u64,
    /// Control group of the process.
    pub cgroup: u64,
    /// Time of the connect, `CLOCK_MONOTONIC` in ns.
    pub since_ns: u64,
    /// Process in the initial PID namespace.
    pub pid: u32,
    /// Its user in the initial user namespace.
    pub uid: u32,
    /// Port that the program asked for, network byte order.
    pub port: u16,
    /// Port that the connect was sent to, network byte order.
    pub to_port: u16,
    /// A number of [`OriginState`].
    pub state: u32,
    /// Number of the service in the agent's tables, 0 where it has none.
    pub service: u32,
    /// Number of the endpoint that was picked in the kernel, 0 for the agent's listener.
    pub endpoint: u32,
    /// Bits that the hooks leave for each other.
    pub flags: u32,
    /// Always 0.
    pub reserved: u32,
}

impl Origin {
    /// Both ends of this connection are to be redirected to each other.
    pub const REDIRECT: u32 = 1;
    /// Not redirected, because nobody knows the program file yet.
    pub const UNKNOWN_PROGRAM: u32 = 2;
    /// Not redirected, because of the verdict on the program file.
    pub const REFUSED_PROGRAM: u32 = 4;
    /// Not redirected, because its workload is enrolled so.
    pub const REFUSED_WORKLOAD: u32 = 8;
    /// With [`Origin::REDIRECT`]: because of the verdict on the program file, which options that it sets may change.
    pub const BY_PROGRAM: u32 = 16;
    /// The kernel way: `to` is an endpoint.
    pub const KERNEL: u32 = 1 << 8;
    /// The two sockets may be joined if the endpoint is on this host.
    pub const JOIN: u32 = 1 << 9;
}

/// How far a captured connect has come; lets a hook that runs a second time for one connect (nested
/// control groups) tell that from a program that dials the listener itself.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginState {
    /// The address was rewritten; the SYN has not left.
    Rewritten = 1,
    /// The SYN is leaving.
    Connecting = 2,
    /// The kernel way: the connection has ended and was counted.
    Ended = 3,
}

/// Key of the table in which the agent looks up whom it accepted.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TupleKey {
    /// Network namespace.
    pub netns: u64,
    /// The program's own address, or a socket cookie in the first eight bytes for a reservation.
    pub addr: Address,
    /// The program's own port, network byte order; 0 for a reservation.
    pub port: u16,
    /// Always 0.
    pub reserved: [u16; 3],
}

impl TupleKey {
    /// Key of the connection from `addr`:`port` (network byte order).
    #[inline(always)]
    pub const fn new(netns: u64, addr: Address, port: u16) -> Self {
        Self { netns, addr, port, reserved: [0; 3] }
    }

    /// Key under which the connect hook takes its place before it rewrites anything, when the kernel has
    /// not chosen a source port yet. No connection has port 0, so that it meets no key of the other form.
    #[inline(always)]
    pub const fn reservation(netns: u64, cookie: u64) -> Self {
        let c = cookie.to_ne_bytes();
        let addr = [c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], 0, 0, 0, 0, 0, 0, 0, 0];
        Self::new(netns, addr, 0)
    }
}

// No hidden padding: the fields' sizes add up to the type's.
const _: () = {
    assert!(size_of::<ServiceKey>() == 16 + 2 + 2);
    assert!(size_of::<Service>() == 4 * 5);
    assert!(size_of::<Listener>() == 2 + 2);
    assert!(size_of::<Origin>() == 16 * 3 + 8 * 3 + 4 * 2 + 2 * 2 + 4 * 5);
    assert!(size_of::<TupleKey>() == 8 + 16 + 2 + 6);
};

#[cfg(feature = "user")]
mod pod {
    #![allow(unsafe_code, reason = "aya wants an unsafe marker on every type that maps hold")]
    // SAFETY: `repr(C)`, integers only, no padding (asserted above).
    unsafe impl aya::Pod for super::ServiceKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Service {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Listener {}
    // SAFETY: as above; `state` is a plain number.
    unsafe impl aya::Pod for super::Origin {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::TupleKey {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_meets_no_connection() {
        let reservation = TupleKey::reservation(7, u64::MAX);
        assert_eq!(reservation.port, 0);
        assert_ne!(reservation, TupleKey::reservation(7, 1));
        assert_ne!(reservation, TupleKey::reservation(8, u64::MAX));
        assert_eq!(u64::from_ne_bytes(reservation.addr[..8].try_into().unwrap()), u64::MAX);
    }
}
