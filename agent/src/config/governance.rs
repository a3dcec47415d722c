//! What registries are told and asked, beside lists of endpoints: registrations of provided services,
//! groups to mix, lists that are held back.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{
    Node, Registration, Report, keys,
    read::{Map, Others, entries, join, one_or_more, scalar},
    values::{self, Wrong, number},
};

/// Where callers are told to dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertise {
    /// An address of this host that callers reach.
    pub ip: IpAddr,
    /// Instead of the port of `export`.
    pub port: Option<u16>,
}

/// When a list that a registry says is not believed at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldBack {
    /// A list that lost more than this share of its endpoints is held, percent; 100 holds none but empty ones.
    pub shrunk_percent: u32,
    /// A shrunken list is believed when the registry still says it after this time; zero means that only
    /// the operator's word counts.
    pub shrunk_after: Duration,
    /// The same for an empty list.
    pub empty_after: Duration,
}

impl Default for HoldBack {
    fn default() -> Self {
        // An empty list is as a rule a registry that lost its data, and costs every call if it is believed:
        // endpoints that are really gone are out of rotation anyway.
        Self { shrunk_percent: 70, shrunk_after: Duration::from_secs(60), empty_after: Duration::ZERO }
    }
}

pub(super) fn hold_back(node: &Node, path: &str, hold: &mut HoldBack, report: &mut Report) {
    let Some(map) = Map::open(node, path, &[&keys::HOLD_BACK], Others::Unknown, report) else { return };
    map.set("shrunk_percent", number(1..=100), &mut hold.shrunk_percent, report);
    map.set("shrunk_after", values::duration, &mut hold.shrunk_after, report);
    map.set("empty_after", values::duration, &mut hold.empty_after, report);
}

/// An address of this host that others are told.
pub(super) fn own_address(text: &str) -> Result<IpAddr, Wrong> {
    let remedy = "write the address at which others reach this host, such as 10.0.0.5";
    match text.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(ip) if ip.is_unspecified() || ip.is_multicast() => Err(Wrong::new("is no address to connect to", remedy)),
        Ok(ip) => Ok(ip),
        Err(_) => Err(Wrong::new("is not an IP address", remedy)),
    }
}

fn advertise(text: &str) -> Result<Advertise, Wrong> {
    if let Ok(at) = text.parse::<SocketAddr>() {
        if at.port() == 0 {
            return Err(Wrong::new("has port 0, which nobody dials", "leave the port out to mean that of `export`"));
        }
        return Ok(Advertise { ip: own_address(&at.ip().to_string())?, port: Some(at.port()) });
    }
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    Ok(Advertise { ip: own_address(bare)?, port: None })
}

/// How a provided service is registered; `registries` are the names under `registry`, as checked.
pub(super) fn registration(
    map: &Map<'_>,
    registries: Vec<String>,
    protocol: Option<&str>,
    report: &mut Report,
) -> Registration {
    let mut registration = Registration { registries, ..Registration::default() };
    registration.advertise = map.read("advertise", advertise, report);
    map.set("weight", number(0..=10_000), &mut registration.weight, report);
    registration.zone = map.read("zone", values::optional_word, report);
    if let Some(node) = map.get("metadata") {
        registration.metadata = texts(node, &map.key("metadata"), report);
    }
    if !registration.registries.is_empty() && protocol.is_none() && map.get("protocol").is_none() {
        let problem = "callers that find it there cannot know what to speak";
        report.mistake(map.place("registry").problem(problem, "declare `protocol: motan2`, `http` or `tcp`"));
    }
    let unused = ["advertise", "weight", "zone", "metadata"].into_iter().find(|key| map.get(key).is_some());
    if let Some(key) = unused.filter(|_| map.get("registry").is_none()) {
        let remedy = "add `registry: NAME`, or leave the key out";
        report.warn(map.place(key).problem("has no effect: the service is not registered", remedy));
    }
    registration
}

/// Groups with or without a weight, as `idc-a` or `idc-a:3`.
pub(super) fn groups(map: &Map<'_>, name: &str, report: &mut Report) -> Vec<String> {
    let Some(node) = map.get(name) else { return Vec::new() };
    let list = one_or_more(node, &map.key(name), report);
    list.into_iter().filter_map(|(path, node)| scalar(node, &path, values::word, report)).collect()
}

/// A mapping of texts.
pub(super) fn texts(node: &Node, path: &str, report: &mut Report) -> BTreeMap<String, String> {
    let any = |text: &str| Ok::<_, Wrong>(text.to_owned());
    let mut map = BTreeMap::new();
    for entry in entries(node, path, report).unwrap_or_default() {
        if let Some(text) = scalar(&entry.value, &join(path, &entry.key), any, report) {
            map.insert(entry.key.clone(), text);
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_to_advertise() {
        let at = |ip: &str, port| Ok(Advertise { ip: ip.parse().unwrap(), port });
        assert_eq!(advertise("10.0.0.5"), at("10.0.0.5", None));
        assert_eq!(advertise("10.0.0.5:81"), at("10.0.0.5", Some(81)));
        assert_eq!(advertise("[fd00::1]:81"), at("fd00::1", Some(81)));
        assert_eq!(advertise("[fd00::1]"), at("fd00::1", None));
        for wrong in ["", "0.0.0.0", "10.0.0.5:0", "host", "10.0.0.5:x", "[::]:9"] {
            assert!(advertise(wrong).is_err(), "{wrong}");
        }
    }
}
