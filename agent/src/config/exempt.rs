//! What the mode `iptables` leaves alone, whoever asks.

use std::{fmt, net::IpAddr};

use super::{
    keys,
    node::Node,
    problem::Report,
    read::{Map, Others, items, scalar},
    values::{Wrong, number},
};

/// Connections that the rules of the mode `iptables` leave alone, besides the agent's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exempt {
    /// Destination ports.
    pub ports: Vec<u16>,
    /// Destination networks.
    pub networks: Vec<Network>,
    /// Users that connect.
    pub uids: Vec<u32>,
    /// Groups that connect, by the program's effective group.
    pub gids: Vec<u32>,
}

impl Exempt {
    /// Whether nothing is exempt.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A network: an address whose bits after the first `prefix` ones are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    /// Its first address, IPv4 in its plain form.
    pub ip: IpAddr,
    /// How many bits its addresses share.
    pub prefix: u8,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

impl Network {
    /// Whether `ip` is in it; IPv4 in either form.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => (32, u128::from(u32::from(v4))),
            IpAddr::V6(v6) => (128, u128::from(v6)),
        };
        let ((length, own), (other_length, other)) = (bits(self.ip), bits(ip.to_canonical()));
        // A shift by all bits would overflow.
        let differ = (own ^ other).checked_shr(length - u32::from(self.prefix)).unwrap_or(0);
        length == other_length && (self.prefix == 0 || differ == 0)
    }
}

/// `10.0.0.0/8`, `fd00::/8`, or one address.
pub(crate) fn network(text: &str) -> Result<Network, Wrong> {
    const EXAMPLE: &str = "write it like 10.0.0.0/8 or fd00::/8";
    let (ip, prefix) = text.split_once('/').map_or((text, None), |(ip, prefix)| (ip, Some(prefix)));
    let Ok(ip) = ip.parse::<IpAddr>() else { return Err(Wrong::new("is not a network", EXAMPLE)) };
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix.map(str::parse::<u8>) {
        None => bits,
        Some(Ok(prefix)) if prefix <= bits => prefix,
        Some(_) => return Err(Wrong::new(format!("has no usable length, 0 to {bits}"), EXAMPLE)),
    };
    // A shift by all bits would overflow.
    let host = |ones: u128| if prefix == bits { 0 } else { ones >> prefix };
    let (value, mask) = match ip {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)), host(u128::from(u32::MAX))),
        IpAddr::V6(v6) => (u128::from(v6), host(u128::MAX)),
    };
    if value & mask != 0 {
        let first = match ip {
            IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) & !(mask as u32)).into()),
            IpAddr::V6(_) => IpAddr::V6((value & !mask).into()),
        };
        return Err(Wrong::new(
            "is an address inside a network",
            format!("write {first}/{prefix}, or the address alone"),
        ));
    }
    Ok(Network { ip, prefix })
}

/// Reads the mapping `capture.exempt`.
pub(super) fn exempt(node: &Node, path: &str, report: &mut Report) -> Exempt {
    let mut exempt = Exempt::default();
    let Some(map) = Map::open(node, path, &[&keys::EXEMPT], Others::Unknown, report) else { return exempt };
    list(&map, "ports", number(1..=65535), &mut exempt.ports, report);
    list(&map, "networks", network, &mut exempt.networks, report);
    list(&map, "uids", number(0..=u32::MAX - 1), &mut exempt.uids, report);
    list(&map, "gids", number(0..=u32::MAX - 1), &mut exempt.gids, report);
    exempt
}

fn list<T: PartialEq>(
    map: &Map<'_>,
    name: &str,
    parse: impl Fn(&str) -> Result<T, Wrong>,
    into: &mut Vec<T>,
    report: &mut Report,
) {
    let Some(node) = map.get(name) else { return };
    for (path, node) in items(node, &map.key(name), report) {
        if let Some(value) = scalar(node, &path, &parse, report)
            && !into.contains(&value)
        {
            into.push(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        let shown = |text| network(text).map(|n| n.to_string()).unwrap();
        assert_eq!(shown("10.0.0.0/8"), "10.0.0.0/8");
        assert_eq!(shown("0.0.0.0/0"), "0.0.0.0/0");
        assert_eq!(shown("10.1.2.3"), "10.1.2.3/32");
        assert_eq!(shown("::/0"), "::/0");
        assert_eq!(shown("fd00::/8"), "fd00::/8");
        assert_eq!(shown("fd00::1"), "fd00::1/128");
        let wrong = |text| format!("{:?}", network(text).unwrap_err());
        assert!(wrong("10.1.2.3/8").contains("write 10.0.0.0/8"), "{}", wrong("10.1.2.3/8"));
        assert!(wrong("fd00::1/8").contains("write fd00::/8"), "{}", wrong("fd00::1/8"));
        assert!(wrong("10.0.0.0/33").contains("0 to 32"));
        assert!(wrong("10.0.0.0/x").contains("0 to 32"));
        assert!(wrong("net").contains("is not a network"));
    }
}
