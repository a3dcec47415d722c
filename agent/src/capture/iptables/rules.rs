//! What the rules say, in the languages of both programs. Pure.
//!
//! Two chains for each direction, after the pattern known from sidecar meshes: the first one decides whether a
//! connection is concerned, the second one redirects.

use std::{collections::BTreeSet, fmt::Write as _, net::IpAddr};

use super::callers::Caller;
use crate::config::{Exempt, VirtualAddress};

/// Decides about connections of local programs.
pub const OUTPUT: &str = "SOCKMESH_OUTPUT";
/// Redirects those of enrolled programs.
pub const REDIRECT: &str = "SOCKMESH_REDIRECT";
/// Decides about connections from elsewhere.
pub const INBOUND: &str = "SOCKMESH_INBOUND";
/// Redirects them.
pub const IN_REDIRECT: &str = "SOCKMESH_IN_REDIRECT";
/// Holds what is tried out; nothing leads there.
pub const PROBE: &str = "SOCKMESH_PROBE";
/// The table of `nft`, of the family `inet`.
pub const TABLE: &str = "sockmesh";

/// All chains that are ours, callers before callees.
pub const CHAINS: [&str; 5] = [OUTPUT, INBOUND, REDIRECT, IN_REDIRECT, PROBE];
/// Where the chains hang.
pub const JUMPS: [(&str, &str); 2] = [("OUTPUT", OUTPUT), ("PREROUTING", INBOUND)];

/// Before the -100 of `dstnat`: others that redirect everything come after us, as with a rule put first.
const PRIORITY: i32 = -110;

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// That of an address.
    pub const fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    const fn nft(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

/// What is redirected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Destinations of local programs.
    pub services: BTreeSet<VirtualAddress>,
    /// Whose connections to them; `None` means everyone's in the network namespace.
    pub callers: Option<Vec<Caller>>,
    /// The agent's listeners for them: IPv4, IPv6. Without one that family is left alone.
    pub outbound: [Option<u16>; 2],
    /// Local destinations of callers from elsewhere: port, and address unless every one is meant.
    pub inbound: BTreeSet<(u16, Option<IpAddr>)>,
    /// The agent's listeners for those, on every address: IPv4, IPv6.
    pub inbound_to: [Option<u16>; 2],
    /// The agent's sockets carry it.
    pub mark: u32,
    /// User and group of the agent when it is not root.
    pub own: Option<(u32, u32)>,
    /// Left alone as well.
    pub exempt: Exempt,
}

impl Rules {
    /// Nothing would be redirected.
    pub fn is_empty(&self) -> bool {
        !self.has(Family::V4) && !self.has(Family::V6)
    }

    /// Whether anything of this family would be redirected.
    pub fn has(&self, family: Family) -> bool {
        self.has_outbound(family) || self.has_inbound(family)
    }

    fn has_outbound(&self, family: Family) -> bool {
        self.outbound[family as usize].is_some()
            && self.services.iter().any(|s| Family::of(s.ip) == family)
            && self.callers.as_ref().is_none_or(|callers| !callers.is_empty())
    }

    fn has_inbound(&self, family: Family) -> bool {
        self.inbound_to[family as usize].is_some()
            && self.inbound.iter().any(|(_, ip)| ip.is_none_or(|ip| Family::of(ip) == family))
    }

    fn uids(&self) -> BTreeSet<u32> {
        self.own.iter().map(|own| own.0).chain(self.exempt.uids.iter().copied()).collect()
    }

    fn gids(&self) -> BTreeSet<u32> {
        self.own.iter().map(|own| own.1).chain(self.exempt.gids.iter().copied()).collect()
    }

    /// Whether a rule asks for user or group.
    pub fn asks_owner(&self) -> bool {
        !self.uids().is_empty()
            || !self.gids().is_empty()
            || self.callers.iter().flatten().any(|c| matches!(c, Caller::Uid(_)))
    }

    /// One transaction of `iptables-restore --noflush` (`ip6tables-restore` for IPv6) that makes our chains say
    /// this, whatever they said before, and hangs each up exactly once. `saved` is what `iptables-save -t nat`
    /// says now.
    pub fn restore(&self, family: Family, saved: &str) -> String {
        let mut text = String::from("*nat\n");
        // Declaring a chain makes or empties it.
        for chain in [OUTPUT, REDIRECT, INBOUND, IN_REDIRECT] {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        self.restore_outbound(family, &mut text);
        self.restore_inbound(family, &mut text);
        for (from, to) in JUMPS {
            let wanted = if to == OUTPUT { self.has_outbound(family) } else { self.has_inbound(family) };
            hang(&mut text, from, to, saved, wanted);
        }
        text.push_str("COMMIT\n");
        text
    }

    fn restore_outbound(&self, family: Family, text: &mut String) {
        let Some(port) = self.outbound[family as usize].filter(|_| self.has_outbound(family)) else { return };
        let mut output = |rule: String| writeln!(text, "-A {OUTPUT} {rule}").expect("a String takes everything");
        output(format!("-m mark --mark {:#x} -j RETURN", self.mark));
        for uid in self.uids() {
            output(format!("-m owner --uid-owner {uid} -j RETURN"));
        }
        for gid in self.gids() {
            output(format!("-m owner --gid-owner {gid} -j RETURN"));
        }
        for port in &self.exempt.ports {
            output(format!("-p tcp -m tcp --dport {port} -j RETURN"));
        }
        for network in self.exempt.networks.iter().filter(|n| Family::of(n.ip) == family) {
            output(format!("-d {network} -j RETURN"));
        }
        for service in self.services.iter().filter(|s| Family::of(s.ip) == family) {
            let port = service.port.map_or(String::new(), |port| format!(" -m tcp --dport {port}"));
            output(format!("-d {} -p tcp{port} -j {REDIRECT}", service.ip));
        }
        let redirect = format!("-p tcp -j REDIRECT --to-ports {port}\n");
        match &self.callers {
            None => text.push_str(&format!("-A {REDIRECT} {redirect}")),
            Some(callers) => {
                for caller in callers {
                    let _ = write!(text, "-A {REDIRECT} {} {redirect}", caller.iptables());
                }
            }
        }
    }

    fn restore_inbound(&self, family: Family, text: &mut String) {
        let Some(to) = self.inbound_to[family as usize].filter(|_| self.has_inbound(family)) else { return };
        let _ = writeln!(text, "-A {INBOUND} -i lo -j RETURN");
        for (port, ip) in self.inbound.iter().filter(|(_, ip)| ip.is_none_or(|ip| Family::of(ip) == family)) {
            let _ = match ip {
                Some(ip) => writeln!(text, "-A {INBOUND} -d {ip} -p tcp -m tcp --dport {port} -j {IN_REDIRECT}"),
                // What is only forwarded here is not ours.
                None => writeln!(
                    text,
                    "-A {INBOUND} -p tcp -m tcp --dport {port} -m addrtype --dst-type LOCAL -j {IN_REDIRECT}"
                ),
            };
        }
        let _ = writeln!(text, "-A {IN_REDIRECT} -p tcp -j REDIRECT --to-ports {to}");
    }

    /// One transaction of `nft -f` that makes our table say this, whatever it said before.
    pub fn nft(&self) -> String {
        let mut text = nft_removal();
        let _ = writeln!(text, "table inet {TABLE} {{");
        let _ = writeln!(text, " chain {REDIRECT} {{");
        for family in [Family::V4, Family::V6] {
            let Some(port) = self.outbound[family as usize].filter(|_| self.has_outbound(family)) else { continue };
            let redirect = format!("meta nfproto {} meta l4proto tcp redirect to :{port}\n", nfproto(family));
            match &self.callers {
                None => text.push_str(&format!("  {redirect}")),
                Some(callers) => {
                    for caller in callers {
                        let _ = write!(text, "  {} {redirect}", caller.nft());
                    }
                }
            }
        }
        let _ = writeln!(text, " }}\n chain {IN_REDIRECT} {{");
        for family in [Family::V4, Family::V6] {
            if let Some(port) = self.inbound_to[family as usize].filter(|_| self.has_inbound(family)) {
                let _ = writeln!(text, "  meta nfproto {} meta l4proto tcp redirect to :{port}", nfproto(family));
            }
        }
        let _ = writeln!(text, " }}\n chain {OUTPUT} {{");
        let _ = writeln!(text, "  type nat hook output priority {PRIORITY}; policy accept;");
        let _ = writeln!(text, "  meta l4proto != tcp return\n  meta mark {:#x} return", self.mark);
        set(&mut text, "meta skuid", self.uids(), "return");
        set(&mut text, "meta skgid", self.gids(), "return");
        set(&mut text, "tcp dport", &self.exempt.ports, "return");
        for family in [Family::V4, Family::V6] {
            let networks = self.exempt.networks.iter().filter(|n| Family::of(n.ip) == family);
            // One rule each: networks may lie within each other, which a set would refuse.
            for network in networks {
                let _ = writeln!(text, "  {} daddr {network} return", family.nft());
            }
        }
        for family in [Family::V4, Family::V6].into_iter().filter(|f| self.has_outbound(*f)) {
            let services = || self.services.iter().filter(|s| Family::of(s.ip) == family);
            let (ip, jump) = (family.nft(), format!("jump {REDIRECT}"));
            set(&mut text, &format!("{ip} daddr"), services().filter(|s| s.port.is_none()).map(|s| s.ip), &jump);
            let with_port = services().filter_map(|s| Some(format!("{} . {}", s.ip, s.port?)));
            set(&mut text, &format!("{ip} daddr . tcp dport"), with_port, &jump);
        }
        text.push_str(" }\n");
        if !self.inbound.is_empty() {
            let _ = writeln!(text, " chain {INBOUND} {{");
            let _ = writeln!(text, "  type nat hook prerouting priority {PRIORITY}; policy accept;");
            let _ = writeln!(text, "  iif lo return\n  meta l4proto != tcp return");
            let anywhere = self.inbound.iter().filter(|(_, ip)| ip.is_none()).map(|(port, _)| port);
            set(&mut text, "fib daddr type local tcp dport", anywhere, &format!("jump {IN_REDIRECT}"));
            for family in [Family::V4, Family::V6].into_iter().filter(|f| self.has_inbound(*f)) {
                let at = self.inbound.iter().filter_map(|(port, ip)| Some((port, (*ip)?)));
                let at = at.filter(|(_, ip)| Family::of(*ip) == family).map(|(port, ip)| format!("{ip} . {port}"));
                set(&mut text, &format!("{} daddr . tcp dport", family.nft()), at, &format!("jump {IN_REDIRECT}"));
            }
            text.push_str(" }\n");
        }
        text.push_str("}\n");
        text
    }
}

const fn nfproto(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

fn set<T: ToString>(text: &mut String, of: &str, items: impl IntoIterator<Item = T>, verdict: &str) {
    let items: Vec<_> = items.into_iter().map(|i| i.to_string()).collect();
    if !items.is_empty() {
        let _ = writeln!(text, "  {of} {{ {} }} {verdict}", items.join(", "));
    }
}

/// The rule that leads from a chain of the kernel's to one of ours, as `iptables-save` shows it.
fn jump(from: &str, to: &str) -> String {
    format!("{from} -p tcp -j {to}")
}

fn hang(text: &mut String, from: &str, to: &str, saved: &str, wanted: bool) {
    let (jump, line) = (jump(from, to), format!("-A {}", jump(from, to)));
    let there = saved.lines().filter(|l| l.trim_end() == line).count();
    // One that is there stays: no moment without it for readers that are not atomic.
    for _ in usize::from(wanted)..there {
        let _ = writeln!(text, "-D {jump}");
    }
    if wanted && there == 0 {
        // First, so that a rule of others that redirects everything does not take services away.
        let _ = writeln!(text, "-I {from} 1 -p tcp -j {to}");
    }
}

/// The transaction that takes our chains away, given what `iptables-save -t nat` says; `None` when there are none.
pub fn restore_removal(saved: &str) -> Option<String> {
    let chains: Vec<_> = CHAINS.into_iter().filter(|c| saved.lines().any(|l| declares(l, c))).collect();
    if chains.is_empty() {
        return None;
    }
    let mut text = String::from("*nat\n");
    for chain in &chains {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    for (from, to) in JUMPS {
        hang(&mut text, from, to, saved, false);
    }
    for chain in &chains {
        let _ = writeln!(text, "-X {chain}");
    }
    text.push_str("COMMIT\n");
    Some(text)
}

fn declares(line: &str, chain: &str) -> bool {
    line.strip_prefix(':').and_then(|l| l.split(' ').next()) == Some(chain)
}

/// The transaction of `nft` that takes our table away, whether or not there is one.
pub fn nft_removal() -> String {
    format!("table inet {TABLE}\ndelete table inet {TABLE}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Network;

    /// Everything at once.
    fn rules() -> Rules {
        let at = |ip: &str, port| VirtualAddress { ip: ip.parse().unwrap(), port };
        Rules {
            services: [at("240.0.0.1", Some(80)), at("240.0.0.2", None), at("fd00::1", Some(80))].into(),
            callers: Some(vec![Caller::Cgroup {
                id: 1,
                relative: "demo/callers".into(),
                level: 2,
                sysfs: "u/demo".into(),
            }]),
            outbound: [Some(15001), Some(15001)],
            inbound: [(8080, None), (80, Some("10.0.0.5".parse().unwrap()))].into(),
            inbound_to: [Some(15006), Some(15006)],
            mark: 0x6d65_7368,
            own: Some((990, 991)),
            exempt: Exempt {
                ports: vec![22],
                networks: vec![
                    Network { ip: "10.0.0.0".parse().unwrap(), prefix: 8 },
                    Network { ip: "fd01::".parse().unwrap(), prefix: 16 },
                ],
                uids: vec![33],
                gids: Vec::new(),
            },
        }
    }

    #[test]
    fn iptables_says_all_of_it_in_one_transaction() {
        assert_eq!(
            rules().restore(Family::V4, ""),
            r#"*nat
:SOCKMESH_OUTPUT - [0:0]
:SOCKMESH_REDIRECT - [0:0]
:SOCKMESH_INBOUND - [0:0]
:SOCKMESH_IN_REDIRECT - [0:0]
-A SOCKMESH_OUTPUT -m mark --mark 0x6d657368 -j RETURN
-A SOCKMESH_OUTPUT -m owner --uid-owner 33 -j RETURN
-A SOCKMESH_OUTPUT -m owner --uid-owner 990 -j RETURN
-A SOCKMESH_OUTPUT -m owner --gid-owner 991 -j RETURN
-A SOCKMESH_OUTPUT -p tcp -m tcp --dport 22 -j RETURN
-A SOCKMESH_OUTPUT -d 10.0.0.0/8 -j RETURN
-A SOCKMESH_OUTPUT -d 240.0.0.1 -p tcp -m tcp --dport 80 -j SOCKMESH_REDIRECT
-A SOCKMESH_OUTPUT -d 240.0.0.2 -p tcp -j SOCKMESH_REDIRECT
-A SOCKMESH_REDIRECT -m cgroup --path "demo/callers" -p tcp -j REDIRECT --to-ports 15001
-A SOCKMESH_INBOUND -i lo -j RETURN
-A SOCKMESH_INBOUND -d 10.0.0.5 -p tcp -m tcp --dport 80 -j SOCKMESH_IN_REDIRECT
-A SOCKMESH_INBOUND -p tcp -m tcp --dport 8080 -m addrtype --dst-type LOCAL -j SOCKMESH_IN_REDIRECT
-A SOCKMESH_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-I OUTPUT 1 -p tcp -j SOCKMESH_OUTPUT
-I PREROUTING 1 -p tcp -j SOCKMESH_INBOUND
COMMIT
"#
        );
    }

    #[test]
    fn jumps_that_are_there_stay_and_superfluous_ones_go() {
        let once = "-A OUTPUT -p tcp -j SOCKMESH_OUTPUT\n-A PREROUTING -p tcp -j SOCKMESH_INBOUND\n";
        let text = rules().restore(Family::V6, once);
        assert!(!text.contains("-I ") && !text.contains("-D OUTPUT"), "{text}");
        assert!(text.contains("-A SOCKMESH_OUTPUT -d fd00::1 -p tcp -m tcp --dport 80"), "{text}");
        assert!(!text.contains("240.0.0") && !text.contains("10.0.0"), "{text}");
        let thrice = "-A OUTPUT -p tcp -j SOCKMESH_OUTPUT\n".repeat(3);
        let text = rules().restore(Family::V4, &thrice);
        assert_eq!(text.matches("-D OUTPUT -p tcp -j SOCKMESH_OUTPUT").count(), 2);
        let none = Rules { callers: Some(Vec::new()), inbound: BTreeSet::new(), ..rules() };
        assert!(none.is_empty());
        let text = none.restore(Family::V4, &thrice);
        assert_eq!(text.matches("-D OUTPUT -p tcp -j SOCKMESH_OUTPUT").count(), 3);
        assert!(!text.contains("-A "), "{text}");
    }

    #[test]
    fn nft_says_all_of_it_in_one_transaction() {
        assert_eq!(
            rules().nft(),
            r#"table inet sockmesh
delete table inet sockmesh
table inet sockmesh {
 chain SOCKMESH_REDIRECT {
  socket cgroupv2 level 2 "u/demo" meta nfproto ipv4 meta l4proto tcp redirect to :15001
  socket cgroupv2 level 2 "u/demo" meta nfproto ipv6 meta l4proto tcp redirect to :15001
 }
 chain SOCKMESH_IN_REDIRECT {
  meta nfproto ipv4 meta l4proto tcp redirect to :15006
  meta nfproto ipv6 meta l4proto tcp redirect to :15006
 }
 chain SOCKMESH_OUTPUT {
  type nat hook output priority -110; policy accept;
  meta l4proto != tcp return
  meta mark 0x6d657368 return
  meta skuid { 33, 990 } return
  meta skgid { 991 } return
  tcp dport { 22 } return
  ip daddr 10.0.0.0/8 return
  ip6 daddr fd01::/16 return
  ip daddr { 240.0.0.2 } jump SOCKMESH_REDIRECT
  ip daddr . tcp dport { 240.0.0.1 . 80 } jump SOCKMESH_REDIRECT
  ip6 daddr . tcp dport { fd00::1 . 80 } jump SOCKMESH_REDIRECT
 }
 chain SOCKMESH_INBOUND {
  type nat hook prerouting priority -110; policy accept;
  iif lo return
  meta l4proto != tcp return
  fib daddr type local tcp dport { 8080 } jump SOCKMESH_IN_REDIRECT
  ip daddr . tcp dport { 10.0.0.5 . 80 } jump SOCKMESH_IN_REDIRECT
 }
}
"#
        );
    }

    #[test]
    fn removal_takes_only_what_is_ours() {
        assert_eq!(restore_removal("*nat\n:OUTPUT ACCEPT [0:0]\n:MY_SOCKMESH_OUTPUT - [0:0]\nCOMMIT\n"), None);
        let saved = "*nat\n:SOCKMESH_OUTPUT - [0:0]\n:SOCKMESH_REDIRECT - [0:0]\n:THEIRS - [0:0]\n\
                     -A OUTPUT -p tcp -j SOCKMESH_OUTPUT\n-A OUTPUT -p tcp -j THEIRS\nCOMMIT\n";
        assert_eq!(
            restore_removal(saved).unwrap(),
            "*nat\n:SOCKMESH_OUTPUT - [0:0]\n:SOCKMESH_REDIRECT - [0:0]\n-D OUTPUT -p tcp -j SOCKMESH_OUTPUT\n\
             -X SOCKMESH_OUTPUT\n-X SOCKMESH_REDIRECT\nCOMMIT\n"
        );
    }
}
