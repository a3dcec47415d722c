//! Connections from elsewhere for services that local programs provide.

use crate::{Address, ServiceKey, words};

/// Place of the agent's IPv4 listener in the table of listening sockets.
pub const LISTENER_V4: u32 = 0;
/// Place of its IPv6 listener.
pub const LISTENER_V6: u32 = 1;
/// Places in that table.
pub const LISTENERS: usize = 2;

/// The loopback device has this number in every network namespace.
const LOOPBACK_INDEX: u32 = 1;
const IPPROTO_TCP: u32 = 6;

/// Whether a new connection is worth looking up. What comes from this host is left alone: the agent's own
/// connection to the program comes that way. The index alone does not tell: for a local destination other than
/// `127.0.0.0/8` the kernel reports the device that has the address, but takes the same address as source.
#[inline(always)]
pub fn comes_from_elsewhere(protocol: u32, ingress_index: u32, remote: &Address, local: &Address) -> bool {
    let (r, l) = (words(remote), words(local));
    let same = r[0] == l[0] && r[1] == l[1] && r[2] == l[2] && r[3] == l[3];
    protocol == IPPROTO_TCP && ingress_index != LOOPBACK_INDEX && !same
}

/// Key of every local address at `port` (network byte order).
#[inline(always)]
pub const fn any_address(port: u16) -> ServiceKey {
    const ANY: Address = [0; 16];
    ServiceKey::new(ANY, port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapped;

    #[test]
    fn loopback_and_other_protocols_are_left_alone() {
        let (here, there) = (mapped([10, 0, 0, 1]), mapped([10, 0, 0, 2]));
        assert!(comes_from_elsewhere(6, 2, &there, &here));
        assert!(!comes_from_elsewhere(6, 1, &there, &here));
        assert!(!comes_from_elsewhere(6, 2, &here, &here), "dialed from this host");
        assert!(!comes_from_elsewhere(17, 2, &there, &here));
    }
}
