//! Trees out of several files: where each line came from, how trees are merged, what values mean in Go.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::super::{
    load::read_file,
    node::{At, Data, Entry, Node, plain_value},
    problem::{Problem, Report},
};
use crate::kind::Value;

/// Files that were read, each with the number of lines of those before it. Lines in the merged tree are counted
/// through all of them, so that a position alone tells the file.
#[derive(Debug, Default)]
pub(in crate::config) struct Sources {
    files: Vec<(PathBuf, usize)>,
    lines: usize,
}

impl Sources {
    /// Reads one file. `None` when it does not exist, is empty, or could not be read, which is told.
    pub fn read(&mut self, path: &Path, report: &mut Report) -> Option<Node> {
        if !path.exists() {
            return None;
        }
        let base = self.lines;
        self.files.push((path.to_owned(), base));
        let mut found = Report::default();
        let node = match read_file(path) {
            Ok(text) => {
                self.lines += text.lines().count() + 1;
                Node::parse(&text, &mut found).unwrap_or_else(|problem| {
                    found.mistake(problem);
                    None
                })
            }
            Err(problem) => {
                self.lines += 1;
                found.mistake(problem);
                None
            }
        };
        for problem in found.mistakes.iter_mut().chain(&mut found.warnings) {
            problem.file = Some(Box::new(path.to_owned()));
        }
        report.mistakes.append(&mut found.mistakes);
        report.warnings.append(&mut found.warnings);
        let mut node = node?;
        shift(&mut node, base);
        Some(node)
    }

    /// Names the file of each problem and counts its line from the file's beginning.
    pub fn locate(&self, problems: &mut [Problem]) {
        for problem in problems.iter_mut().filter(|p| p.file.is_none() && p.line > 0) {
            let Some((file, base)) = self.files.iter().rfind(|(_, base)| *base < problem.line) else { continue };
            problem.line -= base;
            problem.file = Some(Box::new(file.clone()));
        }
    }

    /// All files, in the order of reading.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }
}

fn shift(node: &mut Node, lines: usize) {
    node.at.line += lines;
    match &mut node.data {
        Data::Null | Data::Scalar { .. } => {}
        Data::List(list) => list.iter_mut().for_each(|n| shift(n, lines)),
        Data::Map(entries) => {
            for entry in entries {
                entry.at.line += lines;
                shift(&mut entry.value, lines);
            }
        }
    }
}

/// Puts `later` over `into` as motan-go does: what is later wins, maps merge, lists append, nothing is no value.
pub(super) fn merge(into: &mut Node, later: Node) {
    let Data::Map(new) = later.data else { return };
    if !matches!(into.data, Data::Map(_)) {
        into.data = Data::Map(Vec::new());
    }
    let Data::Map(old) = &mut into.data else { return };
    for entry in new {
        if matches!(entry.value.data, Data::Null) {
            continue;
        }
        let Some(known) = old.iter_mut().find(|e| e.key == entry.key) else {
            old.push(entry);
            continue;
        };
        match (&mut known.value.data, entry.value.data) {
            (Data::Map(_), Data::Map(map)) => {
                merge(&mut known.value, Node { at: entry.value.at, data: Data::Map(map) });
            }
            (Data::List(list), Data::List(more)) => list.extend(more),
            (_, data) => known.value = Node { at: entry.value.at, data },
        }
    }
}

/// Replaces each text that is exactly `${NAME}` by what `params` has under that name, in maps of any depth.
pub(super) fn fill(node: &mut Node, params: &BTreeMap<String, Data>) {
    let Data::Map(entries) = &mut node.data else { return };
    for entry in entries {
        match &entry.value.data {
            Data::Map(_) => fill(&mut entry.value, params),
            Data::Scalar { text, .. } => {
                if let Some(data) = placeholder(text).and_then(|name| params.get(name)) {
                    entry.value.data = data.clone();
                }
            }
            _ => {}
        }
    }
}

/// The name in a text that is exactly `${NAME}`.
pub(super) fn placeholder(text: &str) -> Option<&str> {
    let name = text.strip_prefix("${")?.strip_suffix('}')?;
    (!name.is_empty() && !name.contains('}')).then_some(name)
}

/// What a value is for the YAML library of motan-go (YAML 1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Nothing,
    Text,
    Int,
    Float,
    Bool,
    Collection,
}

impl Type {
    /// With an article, for messages.
    pub const fn what(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Text => "a text",
            Self::Int => "a whole number",
            Self::Float => "a number with a point",
            Self::Bool => "a boolean",
            Self::Collection => "a list or a mapping",
        }
    }
}

/// A single value's type and the text that motan-go makes of it.
pub(super) fn go_value(node: &Node) -> (Type, String) {
    let (text, quoted) = match &node.data {
        Data::Null => return (Type::Nothing, String::new()),
        Data::List(_) | Data::Map(_) => return (Type::Collection, String::new()),
        Data::Scalar { text, quoted } => (text, *quoted),
    };
    if quoted {
        return (Type::Text, text.clone());
    }
    match text.as_str() {
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return (Type::Bool, "true".to_owned()),
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return (Type::Bool, "false".to_owned()),
        _ => {}
    }
    match plain_value(text) {
        Value::Bool(b) => (Type::Bool, b.to_string()),
        Value::Number(n) if n.is_f64() => (Type::Float, n.as_f64().unwrap_or_default().to_string()),
        Value::Number(n) => (Type::Int, n.to_string()),
        _ => (Type::Text, text.clone()),
    }
}

/// A mapping that is being written.
#[derive(Debug)]
pub(super) struct Out {
    pub at: At,
    entries: Vec<Entry>,
}

impl Out {
    pub const fn new(at: At) -> Self {
        Self { at, entries: Vec::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn put(&mut self, key: &str, value: Node) -> &mut Self {
        self.entries.push(Entry { key: key.to_owned(), at: value.at, value });
        self
    }

    /// A word that stays a text whatever it looks like.
    pub fn word(&mut self, key: &str, at: At, text: impl Into<String>) -> &mut Self {
        self.put(key, word(at, text))
    }

    /// A number, a duration, a boolean.
    pub fn plain(&mut self, key: &str, at: At, text: impl ToString) -> &mut Self {
        self.put(key, plain(at, text))
    }

    pub fn list(&mut self, key: &str, at: At, list: Vec<Node>) -> &mut Self {
        self.put(key, Node { at, data: Data::List(list) })
    }

    pub fn into_node(self) -> Node {
        Node { at: self.at, data: Data::Map(self.entries) }
    }
}

pub(super) fn word(at: At, text: impl Into<String>) -> Node {
    Node { at, data: Data::Scalar { text: text.into(), quoted: true } }
}

pub(super) fn plain(at: At, text: impl ToString) -> Node {
    Node { at, data: Data::Scalar { text: text.to_string(), quoted: false } }
}

/// `name`, or `{name: options}`.
pub(super) fn kind(at: At, name: &str, options: Out) -> Node {
    if options.is_empty() {
        return word(at, name);
    }
    let mut named = Out::new(at);
    named.put(name, options.into_node());
    named.into_node()
}

/// A time as the configuration writes it.
pub(super) fn millis(ms: u64) -> String {
    match ms {
        0 => "0s".to_owned(),
        ms if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}
