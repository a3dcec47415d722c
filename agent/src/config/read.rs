//! Walking the tree: mappings checked against the table of keys, values read by type, mistakes collected.

use super::{
    keys::{Absent, SECTIONS, Section},
    node::{At, Data, Entry, Node},
    problem::{Problem, Report, did_you_mean, suggest},
    values::Wrong,
};

/// A key and its position, to complain about.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    pub at: At,
    pub key: String,
    /// What stands there, for messages.
    pub value: Option<String>,
}

impl Place {
    pub fn of(node: &Node, key: impl Into<String>) -> Self {
        Self { at: node.at, key: key.into(), value: Some(node.show()) }
    }

    pub fn problem(&self, problem: impl Into<String>, remedy: impl Into<String>) -> Problem {
        Problem {
            file: None,
            line: self.at.line,
            column: self.at.column,
            key: self.key.clone(),
            value: self.value.clone(),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }
}

/// `path` and `name` as one key.
pub(super) fn join(path: &str, name: &str) -> String {
    let plain = !name.is_empty() && !name.contains(|c: char| matches!(c, '.' | '[' | ']' | '"') || c.is_whitespace());
    match (path.is_empty(), plain) {
        (true, true) => name.to_owned(),
        (false, true) => format!("{path}.{name}"),
        (_, false) => format!("{path}[{name:?}]"),
    }
}

/// A mapping whose keys were checked.
pub(super) struct Map<'a> {
    pub node: &'a Node,
    pub path: String,
    entries: &'a [Entry],
}

/// Whether keys beyond the table are a mistake.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Others {
    Unknown,
    /// They are options of a kind, which checks them itself.
    Options,
}

impl<'a> Map<'a> {
    /// Takes `node` for a mapping with the keys of `sections`. Nothing at all is an empty mapping.
    pub fn open(
        node: &'a Node,
        path: impl Into<String>,
        sections: &[&Section],
        others: Others,
        report: &mut Report,
    ) -> Option<Self> {
        let path = path.into();
        let keys = || sections.iter().flat_map(|s| s.keys);
        let entries = entries(node, &path, report)?;
        let map = Self { node, path, entries };
        let known: Vec<_> = keys().map(|k| k.name).collect();
        // Keys that were probably meant by misspelt ones: that they are missing need not be told as well.
        let mut meant = Vec::new();
        for entry in map.entries.iter().filter(|e| others == Others::Unknown && !known.contains(&e.key.as_str())) {
            meant.extend(suggest(&entry.key, known.iter().copied()));
            let place = Place { value: Some(entry.value.show()), ..map.place_of_key(entry) };
            report.mistake(place.problem("unknown key", elsewhere(&entry.key, &known)));
        }
        for key in keys().filter(|k| matches!(k.default, Absent::Required)) {
            if map.get(key.name).is_none() && !meant.contains(&key.name) {
                let place = Place { at: node.at, key: join(&map.path, key.name), value: None };
                report.mistake(place.problem("is missing", format!("add `{}: ...` ({})", key.name, key.ty)));
            }
        }
        Some(map)
    }

    /// The value of `name`, unless it is absent; it may be nothing (`null`).
    pub fn get(&self, name: &str) -> Option<&'a Node> {
        self.entries.iter().find(|e| e.key == name).map(|e| &e.value)
    }

    /// The full key of `name`.
    pub fn key(&self, name: &str) -> String {
        join(&self.path, name)
    }

    /// Where `name` stands, or the mapping if it does not.
    pub fn place(&self, name: &str) -> Place {
        match self.get(name) {
            Some(node) => Place::of(node, self.key(name)),
            None => Place { at: self.node.at, key: self.key(name), value: None },
        }
    }

    fn place_of_key(&self, entry: &Entry) -> Place {
        Place { at: entry.at, key: self.key(&entry.key), value: None }
    }

    /// Reads a single value; `None` when it is absent or wrong.
    pub fn read<T>(&self, name: &str, parse: impl Fn(&str) -> Result<T, Wrong>, report: &mut Report) -> Option<T> {
        scalar(self.get(name)?, &self.key(name), parse, report)
    }

    /// Reads a single value into `target`, which keeps its default when it is absent or wrong.
    pub fn set<T>(&self, name: &str, parse: impl Fn(&str) -> Result<T, Wrong>, target: &mut T, report: &mut Report) {
        if let Some(value) = self.read(name, parse, report) {
            *target = value;
        }
    }
}

/// The entries of a mapping with free keys. Nothing at all is an empty mapping.
pub(super) fn entries<'a>(node: &'a Node, path: &str, report: &mut Report) -> Option<&'a [Entry]> {
    match &node.data {
        Data::Map(entries) => Some(entries),
        Data::Null => Some(&[]),
        _ => {
            let problem = format!("is {}, not a mapping", node.what());
            report.mistake(Place::of(node, path).problem(problem, "write `key: value` lines below it"));
            None
        }
    }
}

/// The items of a list with their keys. Nothing at all is an empty list.
pub(super) fn items<'a>(node: &'a Node, path: &str, report: &mut Report) -> Vec<(String, &'a Node)> {
    match &node.data {
        Data::List(list) => list.iter().enumerate().map(|(i, n)| (format!("{path}[{i}]"), n)).collect(),
        Data::Null => Vec::new(),
        _ => {
            let problem = format!("is {}, not a list", node.what());
            report.mistake(Place::of(node, path).problem(problem, "begin each item with `- `"));
            Vec::new()
        }
    }
}

/// Like [`items`], but a single value stands for a list of one.
pub(super) fn one_or_more<'a>(node: &'a Node, path: &str, report: &mut Report) -> Vec<(String, &'a Node)> {
    match &node.data {
        Data::Scalar { .. } => vec![(path.to_owned(), node)],
        _ => items(node, path, report),
    }
}

/// Reads a single value.
pub(super) fn scalar<T>(
    node: &Node,
    path: &str,
    parse: impl Fn(&str) -> Result<T, Wrong>,
    report: &mut Report,
) -> Option<T> {
    let place = Place::of(node, path);
    match &node.data {
        Data::Scalar { text, .. } => match parse(text) {
            Ok(value) => return Some(value),
            Err(wrong) => report.mistake(place.problem(format!("`{}` {}", node.show(), wrong.problem), wrong.remedy)),
        },
        Data::Null => {
            let place = Place { value: None, ..place };
            report.mistake(place.problem("has no value", "write one, or leave the key out for its default"));
        }
        _ => {
            let problem = format!("is {}, not a single value", node.what());
            // What would be right here is best said by the reader of the type itself.
            let remedy = parse("").err().map(|w| w.remedy).unwrap_or_else(|| "write one value".to_owned());
            report.mistake(place.problem(problem, remedy));
        }
    }
    None
}

/// A remedy for an unknown key: a near one here, or the place where it is known.
fn elsewhere(name: &str, known: &[&str]) -> String {
    if let Some(near) = suggest(name, known.iter().copied()) {
        return format!("did you mean `{near}`?");
    }
    let mut places: Vec<_> =
        SECTIONS.iter().filter(|s| s.keys.iter().any(|k| k.name == name)).map(|s| s.path).collect();
    places.retain(|p| *p != "cluster");
    match places.first() {
        Some(&"") => format!("`{name}` belongs to the top of the file"),
        Some(place) => format!("`{name}` belongs to `{place}`"),
        None => did_you_mean(name, known),
    }
}
