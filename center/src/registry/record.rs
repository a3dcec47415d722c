//! What is kept of an instance, and under which keys.

use std::collections::BTreeMap;

use model::{
    Instance, ServiceKey,
    center::{CommandScope, Registration},
};
use registries::fetch::percent;
use serde::{Deserialize, Serialize};

/// Prefixes of keys in the store.
pub(super) const INSTANCES: &str = "instance/";
/// See [`INSTANCES`].
pub(super) const AGENTS: &str = "agent/";
/// See [`INSTANCES`].
pub(super) const TEXTS: &str = "text/";
/// Centres on a shared store say here that they live.
pub(super) const CENTERS: &str = "center/";

/// Largest weight that an operator may give, so that sums never overflow.
pub(super) const MAX_WEIGHT: u32 = 100_000;

/// An address of a service in a group: names an instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Place {
    pub service: String,
    pub group: String,
    pub address: String,
}

impl Place {
    pub fn new(key: &ServiceKey, address: &str) -> Self {
        Self { service: key.service.clone(), group: key.group.clone(), address: address.to_owned() }
    }

    pub fn key(&self) -> String {
        let part = |text: &str| percent(text, ":[]");
        format!("{INSTANCES}{}/{}/{}", part(&self.service), part(&self.group), part(&self.address))
    }

    /// Reads what [`Place::key`] wrote.
    pub fn of_key(key: &str) -> Option<Self> {
        let mut parts = key.strip_prefix(INSTANCES)?.split('/').map(unescaped);
        let mut next = || parts.next().flatten();
        Some(Self { service: next()?, group: next()?, address: next()? })
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.group.is_empty() {
            write!(f, "{}/", self.group)?;
        }
        write!(f, "{}@{}", self.service, self.address)
    }
}

/// Reads what [`percent`] wrote; `None` when it is nothing of the kind.
pub(super) fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (code, tail) = tail.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok()?);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

/// An instance as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Record {
    /// What an agent said; none when only the operators' word is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registered: Option<Registered>,
    /// What operators said; it outlives registrations.
    #[serde(skip_serializing_if = "Mark::is_none")]
    pub mark: Mark,
}

/// What an agent said of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registered {
    pub agent: String,
    pub since_ms: u64,
    /// Its agent was not heard of for longer than it promised.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
    pub said: Registration,
}

/// What operators said of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Mark {
    /// It is out, for this reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<String>,
    /// It gets no new calls, for this reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    pub by: String,
    pub at_ms: u64,
}

impl Mark {
    pub fn is_none(&self) -> bool {
        self.out.is_none() && self.drain.is_none() && self.weight.is_none()
    }

    /// For operators: who, why.
    pub fn reason(&self) -> String {
        match self.out.as_ref().or(self.drain.as_ref()) {
            Some(why) => format!("{}: {why}", self.by),
            None => self.weight.map_or_else(String::new, |weight| format!("{}: weight {weight}", self.by)),
        }
    }
}

/// Where an instance stands; the words are those of [`model::center::InstanceRow::state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    Available,
    Draining,
    Unavailable,
    Out,
    Lost,
}

impl State {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Draining => "draining",
            Self::Unavailable => "unavailable",
            Self::Out => "out",
            Self::Lost => "lost",
        }
    }

    /// Whether callers are told of it.
    pub const fn is_listed(self) -> bool {
        matches!(self, Self::Available | Self::Draining)
    }
}

impl Record {
    pub fn state(&self) -> State {
        match &self.registered {
            Some(registered) if registered.lost => State::Lost,
            _ if self.mark.out.is_some() => State::Out,
            None => State::Lost,
            Some(registered) if !registered.said.available => State::Unavailable,
            Some(_) if self.mark.drain.is_some() => State::Draining,
            Some(_) => State::Available,
        }
    }

    pub fn weight(&self) -> u32 {
        let own = self.registered.as_ref().map_or(model::DEFAULT_WEIGHT, |r| r.said.instance.weight);
        match self.state() {
            State::Draining => 0,
            _ => self.mark.weight.unwrap_or(own),
        }
    }

    /// As callers are told, in the words that other registries of Motan use.
    pub fn instance(&self, place: &Place) -> Instance {
        let mut instance = Instance::at(place.address.clone());
        instance.group.clone_from(&place.group);
        instance.weight = self.weight();
        let Some(Registered { said, .. }) = &self.registered else { return instance };
        instance.zone.clone_from(&said.instance.zone);
        let version = if said.instance.version.is_empty() { &said.key.version } else { &said.instance.version };
        instance.version.clone_from(version);
        let mut metadata: BTreeMap<_, _> = (*said.instance.metadata).clone();
        metadata.extend(said.parameters.clone());
        for (name, value) in [("protocol", &said.protocol), ("application", &said.application)] {
            if !value.is_empty() {
                metadata.insert(name.to_owned(), value.clone());
            }
        }
        instance.metadata = metadata.into();
        instance
    }
}

/// What is kept of an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct AgentRecord {
    pub generation: u64,
    pub ttl_ms: u64,
    /// Centre that hears it.
    pub center: String,
}

pub(super) fn agent_key(name: &str) -> String {
    format!("{AGENTS}{}", percent(name, ":"))
}

/// A command text as it is kept. One that was taken away stays as none, so that its revision is not used again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct TextRecord {
    pub text: Option<String>,
}

pub(super) fn text_key(scope: &CommandScope) -> String {
    let (what, name) = match scope {
        CommandScope::Group(name) => ("group", name),
        CommandScope::Agent(name) => ("agent", name),
    };
    format!("{TEXTS}{what}/{}", percent(name, ":"))
}

pub(super) fn text_scope(key: &str) -> Option<CommandScope> {
    let (what, name) = key.strip_prefix(TEXTS)?.split_once('/')?;
    let name = unescaped(name)?;
    match what {
        "group" => Some(CommandScope::Group(name)),
        "agent" => Some(CommandScope::Agent(name)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_were_written() {
        for (service, group, address) in [
            ("com.example.Echo", "idc-a", "10.0.0.1:80"),
            ("/2/get/中", "", "[::1]:80"),
            ("a/b%2F", "x y", "1.1.1.1:1"),
        ] {
            let place = Place { service: service.into(), group: group.into(), address: address.into() };
            assert_eq!(Place::of_key(&place.key()), Some(place));
        }
        for scope in [CommandScope::Group("a/b".into()), CommandScope::Agent(String::new())] {
            assert_eq!(text_scope(&text_key(&scope)), Some(scope));
        }
        for odd in ["", "instance/", "instance/a/b", "instance/%/b/c", "instance/%zz/b/c", "instance/%ff/b/c", "text/x"]
        {
            assert_eq!((Place::of_key(odd), text_scope(odd)), (None, None), "{odd}");
        }
    }

    #[test]
    fn the_operators_word_goes_before_the_agents() {
        let said = |available| Registration {
            key: ServiceKey { service: "s".into(), group: "g".into(), version: "1".into() },
            protocol: "motan2".into(),
            instance: Instance { weight: 20, ..Instance::at("127.0.0.1:1") },
            application: "shop".into(),
            parameters: [("serialization".to_owned(), "simple".to_owned())].into(),
            available,
        };
        let registered = |available, lost| {
            let said = said(available);
            Some(Registered { agent: "a".into(), since_ms: 1, lost, said })
        };
        let mark = |out: bool, drain: bool, weight| {
            let why = |yes: bool| yes.then(|| "why".to_owned());
            Mark { out: why(out), drain: why(drain), weight, by: "bo".into(), at_ms: 1 }
        };
        let stands = |registered, mark| {
            let record = Record { registered, mark };
            (record.state(), record.weight())
        };
        assert_eq!(stands(registered(true, false), Mark::default()), (State::Available, 20));
        assert_eq!(stands(registered(true, false), mark(false, false, Some(3))), (State::Available, 3));
        assert_eq!(stands(registered(true, false), mark(false, true, Some(3))), (State::Draining, 0));
        assert_eq!(stands(registered(false, false), mark(false, true, None)), (State::Unavailable, 20));
        assert_eq!(stands(registered(true, false), mark(true, true, None)).0, State::Out);
        assert_eq!(stands(registered(true, true), mark(true, false, None)).0, State::Lost);
        assert_eq!(stands(None, mark(true, false, None)).0, State::Out);
        assert_eq!(stands(None, mark(false, false, Some(1))), (State::Lost, 1));
        let place = Place::new(&said(true).key, "127.0.0.1:1");
        let instance = Record { registered: registered(true, false), mark: Mark::default() }.instance(&place);
        assert_eq!((instance.group.as_str(), instance.version.as_str()), ("g", "1"));
        let metadata: Vec<_> = instance.metadata.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(metadata.join(" "), "application=shop protocol=motan2 serialization=simple");
        assert_eq!(mark(true, false, None).reason(), "bo: why");
    }
}
