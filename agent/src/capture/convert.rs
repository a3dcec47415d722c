//! Between the kernel's tables and the types of the rest of the agent.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ebpf_common::{Address, ServiceKey};

use crate::config::VirtualAddress;

/// `ip` as the tables have it: IPv4 in its mapped form.
pub(super) fn octets(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The opposite of [`octets`], with a port in network byte order.
pub(super) fn socket_addr(addr: Address, port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::from(addr).to_canonical(), u16::from_be(port))
}

/// Key of a destination in the table of services; no port stands for every port.
pub(super) fn service_key(address: &VirtualAddress) -> ServiceKey {
    ServiceKey::new(octets(address.ip), address.port.unwrap_or(0).to_be())
}

/// A thread's name, which the kernel pads with 0.
pub(super) fn name(comm: &[u8]) -> String {
    let name = comm.split(|b| *b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_mapped() {
        assert_eq!(octets("240.0.0.1".parse().unwrap()), ebpf_common::mapped([240, 0, 0, 1]));
        assert_eq!(octets("::1".parse().unwrap())[15], 1);
    }
}
