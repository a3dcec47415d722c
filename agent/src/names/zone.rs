//! Which names there are: from the configuration to names, addresses and ports. Pure.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use model::ServiceKey;

use crate::config::{Config, VirtualAddress};

/// The top-level domain of services.
pub const DOMAIN: &str = "mesh";
/// Port in SRV answers of a service that has every port.
const ANY_PORT: u16 = 80;
/// Longest label and longest name (RFC 1035, section 2.3.4), the latter less the root's length byte.
const LABEL: usize = 63;
const NAME: usize = 253;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The service, with group and version.
    pub key: ServiceKey,
    /// IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// Port for SRV answers.
    pub port: u16,
}

/// All names, in lower case and without a dot at the end.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    names: HashMap<String, Entry>,
    /// Names that only stand between others and [`DOMAIN`]: they exist, and hold nothing.
    between: HashSet<String>,
    /// Names in the order of the configuration.
    order: Vec<String>,
}

/// What is known of a name below [`DOMAIN`].
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A service.
    Service(&'a Entry),
    /// It exists and has no records.
    Empty,
    /// There is no such name.
    Nothing,
}

/// Gives every referer without an address virtual ones on every port, where names are wanted.
///
/// Addresses are a hash of service, group and version, so that they are the same after a restart, on other
/// hosts and with other services around. Should two meet, the later in the order of keys takes the next.
pub fn assign(config: &mut Config) {
    if !config.capture.has_names() {
        return;
    }
    let mut taken: HashSet<IpAddr> = config.referers.iter().flat_map(|r| r.addresses.iter().map(|a| a.ip)).collect();
    let mut nameless: Vec<_> = config.referers.iter_mut().filter(|r| r.addresses.is_empty()).collect();
    nameless.sort_by(|a, b| a.key.cmp(&b.key));
    for referer in nameless {
        let mut add = |address: fn(u64) -> IpAddr| {
            let ip = (0..).map(|nth| address(hash(&referer.key, nth))).find(|ip| taken.insert(*ip));
            referer.addresses.extend(ip.map(|ip| VirtualAddress { ip, port: None }));
        };
        add(virtual4);
        add(virtual6);
    }
}

/// In 241.0.0.0 to 254.255.255.255: set aside for ever (RFC 1112), and clear of 240.0.0.0/8, which people
/// use in configurations, and of broadcast.
fn virtual4(hash: u64) -> IpAddr {
    let [_, _, _, _, top, b, c, d] = hash.to_be_bytes();
    Ipv4Addr::new(241 + top % 14, b, c, d).into()
}

/// In fd53:6f63:6b6d::/48 (RFC 4193; spells "Sockm").
fn virtual6(hash: u64) -> IpAddr {
    let [a, b, c, d] = [hash >> 48, hash >> 32, hash >> 16, hash].map(|w| w as u16);
    Ipv6Addr::new(0xfd53, 0x6f63, 0x6b6d, 0, a, b, c, d).into()
}

/// FNV-1a, finished so that every bit depends on every other. Part of what makes addresses stable: it must
/// never change.
fn hash(key: &ServiceKey, nth: u32) -> u64 {
    let bytes = [&key.service, &key.group, &key.version].into_iter().flat_map(|s| s.bytes().chain([0]));
    let fnv = bytes
        .chain(nth.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (fnv ^ (fnv >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

/// Text as a part of a name: lower case; letters, digits, `-` and `.` stay, anything else is `-`; empty labels
/// and `-` at a label's end vanish. `None` when nothing is left or a label is too long.
fn part(text: &str) -> Option<String> {
    let mapped: String =
        text.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let labels: Vec<_> = mapped.split('.').map(|label| label.trim_matches('-')).filter(|l| !l.is_empty()).collect();
    (!labels.is_empty() && labels.iter().all(|label| label.len() <= LABEL)).then(|| labels.join("."))
}

impl Zone {
    /// The names of the services that `config` calls, and what is odd about them. IPv6 addresses are left out
    /// where the agent has no IPv6 listener: a program would wait for them in vain.
    pub fn of(config: &Config, ipv6: bool) -> (Self, Vec<String>) {
        let mut zone = Self::default();
        let mut odd = Vec::new();
        for referer in &config.referers {
            let key = &referer.key;
            let first = |v4: bool| referer.addresses.iter().find(|a| a.ip.is_ipv4() == v4);
            let entry = Entry {
                v4: first(true).and_then(|a| match a.ip {
                    IpAddr::V4(ip) => Some(ip),
                    IpAddr::V6(_) => None,
                }),
                v6: first(false).filter(|_| ipv6).and_then(|a| match a.ip {
                    IpAddr::V6(ip) => Some(ip),
                    IpAddr::V4(_) => None,
                }),
                port: referer.addresses.iter().find_map(|a| a.port).unwrap_or(ANY_PORT),
                key: key.clone(),
            };
            if referer.addresses.is_empty() {
                continue;
            }
            let Some(short) = part(&key.service) else {
                odd.push(format!("`{}` gets no name: nothing of it fits into one", key.service));
                continue;
            };
            zone.add(format!("{short}.{DOMAIN}"), &entry, &mut odd);
            if let Some(group) = part(&key.group) {
                zone.add(format!("{short}.{group}.{DOMAIN}"), &entry, &mut odd);
            }
        }
        (zone, odd)
    }

    fn add(&mut self, name: String, entry: &Entry, odd: &mut Vec<String>) {
        if name.len() > NAME {
            odd.push(format!("`{}` gets no name: `{name}` is longer than {NAME} bytes", entry.key));
            return;
        }
        if let Some(first) = self.names.get(&name) {
            // Another group of the same service is no accident: its own name leads to it.
            let same = first.key.service == entry.key.service && first.key.group != entry.key.group;
            if !same {
                odd.push(format!("the name {name} of `{}` is that of `{}` already", entry.key, first.key));
            }
            return;
        }
        let mut rest = name.as_str();
        while let Some((_, parent)) = rest.split_once('.') {
            if parent.contains('.') {
                self.between.insert(parent.to_owned());
            }
            rest = parent;
        }
        self.names.insert(name.clone(), entry.clone());
        self.order.push(name);
    }

    /// What `name` is: lower case, no dot at its end, [`DOMAIN`] last.
    pub fn find(&self, name: &str) -> Found<'_> {
        if let Some(entry) = self.names.get(name) {
            return Found::Service(entry);
        }
        if name == DOMAIN || self.between.contains(name) { Found::Empty } else { Found::Nothing }
    }

    /// All names in the order of the configuration.
    pub fn rows(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.order.iter().filter_map(|name| Some((name.as_str(), self.names.get(name)?)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(referers: &str) -> Config {
        let head = "capture: {mode: ebpf, enroll: [{cgroup: /sys/fs/cgroup/x}]}\nreferers:\n";
        let mut config = Config::parse(&format!("{head}{referers}"), Path::new("/")).unwrap();
        assign(&mut config);
        config
    }

    fn names(zone: &Zone) -> Vec<&str> {
        zone.rows().map(|(name, _)| name).collect()
    }

    #[test]
    fn every_service_has_a_name_and_an_address() {
        let config = config(
            "  - {service: web, address: \"240.0.0.1:8080\", endpoints: [\"127.0.0.1:1\"]}
  - {service: com.weibo.Hello_World, group: idc/A, endpoints: [\"127.0.0.1:1\"]}
  - {service: com.weibo.Hello_World, group: idc-b, endpoints: [\"127.0.0.1:1\"]}
",
        );
        let (zone, odd) = Zone::of(&config, true);
        assert_eq!(odd, [""; 0]);
        assert_eq!(
            names(&zone),
            [
                "web.mesh",
                "com.weibo.hello-world.mesh",
                "com.weibo.hello-world.idc-a.mesh",
                "com.weibo.hello-world.idc-b.mesh"
            ]
        );
        let Found::Service(web) = zone.find("web.mesh") else { panic!() };
        assert_eq!((web.v4, web.v6, web.port), (Some(Ipv4Addr::new(240, 0, 0, 1)), None, 8080));
        let Found::Service(a) = zone.find("com.weibo.hello-world.mesh") else { panic!() };
        assert_eq!(
            Found::Service(a),
            zone.find("com.weibo.hello-world.idc-a.mesh"),
            "the first one has the short name"
        );
        assert!(a.v6.is_some() && a.port == ANY_PORT);
        assert_eq!(zone.find("hello-world.mesh"), Found::Empty);
        assert_eq!(zone.find("mesh"), Found::Empty);
        assert_eq!(zone.find("other.mesh"), Found::Nothing);
        assert!(Zone::of(&config, false).0.rows().all(|(_, e)| e.v6.is_none()));
    }

    #[test]
    fn addresses_never_change() {
        let key = |service: &str| ServiceKey { service: service.into(), ..ServiceKey::default() };
        // Written down once: programs and caches remember them across versions of the agent.
        assert_eq!(virtual4(hash(&key("web"), 0)).to_string(), "246.218.226.2");
        assert_eq!(virtual6(hash(&key("web"), 0)).to_string(), "fd53:6f63:6b6d:0:50a6:31b1:bbda:e202");
        let one = config("  - {service: web, endpoints: [\"127.0.0.1:1\"]}\n");
        let two = config(
            "  - {service: another, endpoints: [\"127.0.0.1:1\"]}\n  - {service: web, endpoints: [\"127.0.0.1:1\"]}\n",
        );
        assert_eq!(one.referers[0].addresses, two.referers[1].addresses, "whoever is beside it");
    }

    #[test]
    fn addresses_that_meet_are_told_apart() {
        let at = virtual4(hash(&ServiceKey { service: "web".into(), ..ServiceKey::default() }, 0));
        let config = config(&format!(
            "  - {{service: first, address: \"{at}\", endpoints: [\"127.0.0.1:1\"]}}\n  - {{service: web, endpoints: [\"127.0.0.1:1\"]}}\n"
        ));
        let ips: HashSet<_> = config.referers.iter().flat_map(|r| r.addresses.iter().map(|a| a.ip)).collect();
        assert_eq!(ips.len(), 3);
    }

    #[test]
    fn a_name_that_is_taken_stays_with_the_first() {
        let config = config(
            "  - {service: a_b, endpoints: [\"127.0.0.1:1\"]}
  - {service: a/b, endpoints: [\"127.0.0.1:1\"]}
  - {service: ___, endpoints: [\"127.0.0.1:1\"]}
",
        );
        let (zone, odd) = Zone::of(&config, true);
        assert_eq!(names(&zone), ["a-b.mesh"]);
        assert_eq!(odd.len(), 2, "{odd:?}");
        assert!(odd[0].contains("a-b.mesh") && odd[0].contains("`a_b`"), "{odd:?}");
    }

    #[test]
    fn nothing_is_assigned_where_names_are_off() {
        let text = "capture: {mode: ebpf, dns: false, enroll: [{cgroup: /sys/fs/cgroup/x}]}
referers: [{service: web, listen: \"127.0.0.1:1\", endpoints: [\"127.0.0.1:2\"]}]";
        let mut config = Config::parse(text, Path::new("/")).unwrap();
        assign(&mut config);
        assert!(config.referers[0].addresses.is_empty());
    }
}
