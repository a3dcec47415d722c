//! [`ReferFilter`]: endpoints that calls leave out by address, whatever registries say.

use std::{net::IpAddr, sync::Arc};

use model::ServiceKey;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Rules that are kept at most.
const RULES: usize = 1000;

/// One rule, as motan-go's management call has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReferRule {
    /// Group that it is for; empty for all.
    pub group: String,
    /// Service that it is for; empty for all.
    pub service: String,
    /// `include`: endpoints that no such rule fits are left out. `exclude`: those that it fits are.
    pub mode: String,
    /// Networks like `10.2.0.0/16`, and what addresses begin with, like `10.1.`; commas between them.
    pub rule: String,
}

impl ReferRule {
    /// What is wrong with it.
    fn fault(&self) -> Option<String> {
        let odd = self.parts().find(|part| part.contains('/') && network(part).is_none());
        match (self.mode.as_str(), odd) {
            (_, _) if self.parts().next().is_none() => Some("exist empty rule in filter config".to_owned()),
            ("include" | "exclude", None) => None,
            ("include" | "exclude", Some(part)) => Some(format!("`{part}` in rule({}) is no network", self.rule)),
            (mode, _) => Some(format!("invalid mode({mode}) for rule({})", self.rule)),
        }
    }

    fn parts(&self) -> impl Iterator<Item = &str> {
        self.rule.split(',').map(str::trim).filter(|part| !part.is_empty())
    }

    fn is_for(&self, service: &ServiceKey) -> bool {
        (self.group.is_empty() || self.group == service.group)
            && (self.service.is_empty() || self.service == service.service)
    }

    fn fits(&self, host: &str) -> bool {
        let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        self.parts().any(|part| match network(part) {
            Some((net, prefix)) => ip.is_some_and(|ip| is_in(ip, net, prefix)),
            None => host.starts_with(part),
        })
    }
}

fn network(text: &str) -> Option<(IpAddr, u32)> {
    let (ip, prefix) = text.split_once('/')?;
    let (ip, prefix): (IpAddr, u32) = (ip.parse().ok()?, prefix.parse().ok()?);
    (prefix <= if ip.is_ipv4() { 32 } else { 128 }).then_some((ip, prefix))
}

fn is_in(ip: IpAddr, net: IpAddr, prefix: u32) -> bool {
    let (ip, net, bits) = match (ip, net) {
        (IpAddr::V4(ip), IpAddr::V4(net)) => (u128::from(ip.to_bits()), u128::from(net.to_bits()), 32),
        (IpAddr::V6(ip), IpAddr::V6(net)) => (ip.to_bits(), net.to_bits(), 128),
        _ => return false,
    };
    // All bits shifted out: a network of everybody.
    (ip ^ net).checked_shr(bits - prefix).unwrap_or(0) == 0
}

/// Rules that operators set while the agent runs. They are forgotten when it ends.
#[derive(Clone)]
pub struct ReferFilter(watch::Sender<Arc<Vec<ReferRule>>>);

impl Default for ReferFilter {
    fn default() -> Self {
        Self(watch::Sender::new(Arc::default()))
    }
}

impl ReferFilter {
    /// Replaces all rules, or none of them when one is wrong: says which and why.
    pub fn set(&self, rules: Vec<ReferRule>) -> Result<(), String> {
        if rules.len() > RULES {
            return Err(format!("{} rules are too many; there may be {RULES}", rules.len()));
        }
        match rules.iter().find_map(ReferRule::fault) {
            Some(fault) => Err(fault),
            None => {
                self.0.send_replace(Arc::new(rules));
                Ok(())
            }
        }
    }

    /// Those in force.
    pub fn rules(&self) -> Arc<Vec<ReferRule>> {
        self.0.borrow().clone()
    }

    /// Changes from now on.
    pub fn follow(&self) -> watch::Receiver<Arc<Vec<ReferRule>>> {
        self.0.subscribe()
    }
}

/// Leaves out of `all` what `rules` say for `service`; `address` is `HOST:PORT` of one. Nothing is left out when
/// nothing would be left. True when something was.
pub fn sift<T>(rules: &[ReferRule], service: &ServiceKey, all: &mut Vec<T>, address: impl Fn(&T) -> &str) -> bool {
    let (include, exclude): (Vec<_>, Vec<_>) =
        rules.iter().filter(|rule| rule.is_for(service)).partition(|rule| rule.mode == "include");
    let stays = |one: &T| {
        let address = address(one);
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        !exclude.iter().any(|rule| rule.fits(host))
            && (include.is_empty() || include.iter().any(|rule| rule.fits(host)))
    };
    let left = all.iter().filter(|one| stays(one)).count();
    let sifts = (1..all.len()).contains(&left);
    if sifts {
        all.retain(stays);
    }
    sifts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(service: &str, mode: &str, rule: &str) -> ReferRule {
        ReferRule { group: String::new(), service: service.into(), mode: mode.into(), rule: rule.into() }
    }

    fn left(rules: &[ReferRule], all: &[&str]) -> String {
        let service = ServiceKey { service: "s".into(), group: "g".into(), version: String::new() };
        let mut all = all.to_vec();
        sift(rules, &service, &mut all, |address| address);
        all.join(" ")
    }

    #[test]
    fn addresses_are_left_out_by_prefix_and_network_but_never_all() {
        let all = ["10.1.0.1:80", "10.2.0.1:80", "10.20.0.1:80", "[fd00::1]:80"];
        let whole = all.join(" ");
        for (rules, expected) in [
            (vec![], whole.as_str()),
            (vec![rule("", "exclude", "10.1.")], "10.2.0.1:80 10.20.0.1:80 [fd00::1]:80"),
            (vec![rule("s", "exclude", "10.2")], "10.1.0.1:80 [fd00::1]:80"),
            (vec![rule("s", "include", "10.2.9.9/16, fd00::/8")], "10.2.0.1:80 [fd00::1]:80"),
            (vec![rule("", "include", "10."), rule("", "exclude", "10.2.0.0/15")], "10.1.0.1:80 10.20.0.1:80"),
            (vec![rule("other", "exclude", "10.1.")], &whole),
            (vec![rule("", "exclude", "0.0.0.0/0,::/0")], &whole),
            (vec![rule("", "include", "192.168.")], &whole),
        ] {
            assert_eq!(left(&rules, &all), expected, "{rules:?}");
        }
    }

    #[test]
    fn a_wrong_rule_changes_nothing() {
        let filter = ReferFilter::default();
        filter.set(vec![rule("", "include", "10.")]).unwrap();
        for (wrong, why) in [
            (rule("", "include", " , "), "exist empty rule"),
            (rule("", "maybe", "10."), "invalid mode(maybe) for rule(10.)"),
            (rule("", "exclude", "10.0.0.0/33"), "`10.0.0.0/33`"),
        ] {
            let told = filter.set(vec![rule("", "exclude", "1."), wrong]).unwrap_err();
            assert!(told.contains(why), "{told}");
        }
        assert!(filter.set(vec![rule("", "include", "1."); RULES + 1]).unwrap_err().contains("too many"));
        assert_eq!(*filter.rules(), [rule("", "include", "10.")]);
    }
}
