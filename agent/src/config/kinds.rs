//! Names of kinds and their options, checked by really building the kind. The one place where the
//! configuration looks at the tables of filters, balancers, HA strategies, protocols and registries.

use super::{
    Named,
    node::{At, Data, Entry, Node},
    problem::{Report, did_you_mean},
    read::{Place, items, join},
    values::Wrong,
};
use crate::{
    filter, ha,
    kind::{BuildCx, Kind, Value},
    lb, protocol, registry,
};

/// A table that names are looked up in.
pub(super) struct Table {
    what: &'static str,
    names: fn() -> Vec<&'static str>,
    build: fn(&str, &Value, &BuildCx) -> anyhow::Result<()>,
}

pub(super) const FILTER: Table = Table {
    what: "filter",
    names: || names(filter::KINDS),
    build: |name, options, cx| crate::kind::build("filter", filter::KINDS, name, options, cx).map(drop),
};

pub(super) const HA: Table = Table {
    what: "HA strategy",
    names: || names(ha::KINDS),
    build: |name, options, cx| crate::kind::build("HA strategy", ha::KINDS, name, options, cx).map(drop),
};

pub(super) const LB: Table = Table {
    what: "load balancer",
    names: || names(lb::KINDS),
    build: |name, options, cx| crate::kind::build("load balancer", lb::KINDS, name, options, cx).map(drop),
};

pub(super) const REGISTRY: Table = Table {
    what: "registry kind",
    names: || registry::kinds().iter().map(|k| k.name).collect(),
    build: |name, options, cx| {
        crate::kind::build("registry", &registry::kinds(), name, options, &cx.registry()).map(drop)
    },
};

pub(super) const UPSTREAM: Table = Table {
    what: "upstream",
    names: || names(protocol::UPSTREAMS),
    build: |name, options, cx| crate::kind::build("upstream", protocol::UPSTREAMS, name, options, cx).map(drop),
};

fn names<T: ?Sized>(kinds: &[Kind<T>]) -> Vec<&'static str> {
    kinds.iter().map(|k| k.name).collect()
}

/// The name of a protocol.
pub(super) fn protocol(text: &str) -> Result<String, Wrong> {
    let known: Vec<_> = protocol::KINDS.iter().map(|k| k.name).collect();
    if known.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(Wrong::new("is no protocol we know", did_you_mean(text, &known)))
}

impl Table {
    /// Names in the table.
    #[cfg(test)]
    pub fn names(&self) -> Vec<&'static str> {
        (self.names)()
    }

    /// Checks that `name` is in the table.
    pub fn name(&self, text: &str) -> Result<String, Wrong> {
        let known = (self.names)();
        if known.contains(&text) {
            return Ok(text.to_owned());
        }
        Err(Wrong::new(format!("is no {} we know", self.what), did_you_mean(text, &known)))
    }

    /// Builds the kind once and throws it away; what it says about `options` becomes a mistake with a line.
    pub fn check(&self, name: &str, options: &Node, path: &str, cx: &BuildCx, report: &mut Report) {
        let Err(error) = (self.build)(name, &options.to_value(), cx) else { return };
        let text = format!("{error:#}");
        // serde names the key in backticks but not its place; the tree has it.
        let unknown = between(&text, "unknown field `", "`");
        if let Some(entry) = unknown.and_then(|field| find(options, field)) {
            let known: Vec<_> = text.split('`').skip(3).step_by(2).collect();
            let remedy = match known.is_empty() {
                true => format!("`{name}` has no options: leave it out"),
                false => did_you_mean(&entry.key, &known),
            };
            let place = Place { at: entry.at, key: join(path, &entry.key), value: Some(entry.value.show()) };
            report.mistake(place.problem(format!("unknown option of {} `{name}`", self.what), remedy));
            return;
        }
        // Kinds begin each line with the option it is about ("list[1].key: ...") and end it with a remedy.
        for line in text.lines() {
            let option =
                line.split_once(": ").and_then(|(option, rest)| Some((option, locate(options, option)?, rest)));
            let (place, line) = match option {
                Some((option, at, rest)) => (Place { at, key: format!("{path}.{option}"), value: None }, rest),
                None => (Place::of(options, path), line),
            };
            let see = format!("see {} `{name}` in docs/config.md", self.what);
            let (problem, remedy) = line.split_once("; ").map_or((line, see), |(p, r)| (p, r.to_owned()));
            report.mistake(place.problem(problem, remedy));
        }
    }

    /// Whether `node` is a name of the table with options that fit; else what is wrong with it.
    pub fn accepts(&self, node: &Node, cx: &BuildCx) -> Result<(), String> {
        let mut report = Report::default();
        self.named(node, "", cx, &mut report);
        report.mistakes.into_iter().next().map_or(Ok(()), |p| Err(p.problem))
    }

    /// Reads `name` or `{name: options}`.
    pub fn named(&self, node: &Node, path: &str, cx: &BuildCx, report: &mut Report) -> Option<Named> {
        let place = Place::of(node, path);
        let (name, options, path) = match &node.data {
            Data::Scalar { text, .. } => (text, &Node { at: node.at, data: Data::Null }, path.to_owned()),
            Data::Map(entries) if entries.len() == 1 => {
                (&entries[0].key, &entries[0].value, join(path, &entries[0].key))
            }
            Data::Map(entries) if entries.len() > 1 => {
                let problem = format!("has {} keys where one name is expected", entries.len());
                report.mistake(
                    place.problem(problem, "indent the options deeper than the name, or begin each name with `- `"),
                );
                return None;
            }
            _ => {
                let problem = format!("is {}, not the name of a {}", node.what(), self.what);
                report.mistake(place.problem(problem, format!("write one of {}", (self.names)().join(", "))));
                return None;
            }
        };
        if let Err(wrong) = self.name(name) {
            report.mistake(place.problem(format!("`{name}` {}", wrong.problem), wrong.remedy));
            return None;
        }
        self.check(name, options, &path, cx, report);
        Some(Named { name: name.clone(), options: options.to_value() })
    }

    /// Reads a list of names with options; the same with the same options stands there once.
    pub fn list(&self, node: &Node, path: &str, cx: &BuildCx, report: &mut Report) -> Vec<Named> {
        let mut list: Vec<Named> = Vec::new();
        for (path, node) in items(node, path, report) {
            let Some(named) = self.named(node, &path, cx, report) else { continue };
            // The same filter may stand around calls and around attempts.
            if list.contains(&named) {
                let problem = format!("{} `{}` stands in the list twice", self.what, named.name);
                report.mistake(Place::of(node, path).problem(problem, "keep one of them"));
            }
            list.push(named);
        }
        list
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = &text[text.find(before)? + before.len()..];
    Some(&rest[..rest.find(after)?])
}

/// Where `path`, such as `list[1].key`, stands below `node`: the key, or the item itself.
fn locate(mut node: &Node, path: &str) -> Option<At> {
    let mut at = node.at;
    for step in path.split(['.', '[']) {
        let index = step.strip_suffix(']').and_then(|i| i.parse::<usize>().ok());
        match (&node.data, index) {
            (Data::List(list), Some(i)) => {
                node = list.get(i)?;
                at = node.at;
            }
            (Data::Map(entries), None) => {
                let entry = entries.iter().find(|e| e.key == step)?;
                node = &entry.value;
                at = entry.at;
            }
            _ => return None,
        }
    }
    Some(at)
}

/// The entry called `key`, at any depth.
fn find<'a>(node: &'a Node, key: &str) -> Option<&'a Entry> {
    match &node.data {
        Data::Map(entries) => {
            entries.iter().find(|e| e.key == key).or_else(|| entries.iter().find_map(|e| find(&e.value, key)))
        }
        Data::List(list) => list.iter().find_map(|n| find(n, key)),
        _ => None,
    }
}
