//! YAML with positions: a tree in which every key and value knows its line and column.
//!
//! Built from the parser's events, because neither lines nor duplicate keys survive in a plain value
//! tree. Scalars keep their text (`version: 1.10` stays `1.10`); whoever reads them knows the type.
//! Anchors, aliases and merge keys (`<<`) are resolved here.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde_yaml::{Mapping, Value};

use super::{
    problem::{Problem, Report},
    read::join,
};

/// Deeper nesting is an attack or an accident; the schema needs 7.
const MAX_DEPTH: usize = 64;
/// Aliases may copy this many nodes, so that ten lines cannot become a billion nodes.
const MAX_ALIASED: usize = 100_000;

/// A position: line and column from 1; zeros mean the whole file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub line: usize,
    pub column: usize,
}

impl From<Span> for At {
    fn from(span: Span) -> Self {
        Self { line: span.start.line(), column: span.start.col() + 1 }
    }
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub at: At,
    pub data: Data,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    /// Nothing, `~` or `null`.
    Null,
    /// Text as written; quotes are gone.
    Scalar {
        text: String,
        quoted: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key of a mapping with its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: String,
    pub at: At,
    pub value: Node,
}

impl Node {
    /// Reads one document. `Ok(None)` when there is nothing but comments. Duplicate keys, tags and the
    /// like go to `report` and reading goes on; after a syntax error nothing can be trusted.
    pub fn parse(text: &str, report: &mut Report) -> Result<Option<Self>, Problem> {
        Builder::default().run(text, report)
    }

    /// The same tree without positions.
    pub fn from_value(value: &Value) -> Self {
        let scalar = |text: String, quoted| Data::Scalar { text, quoted };
        let data = match value {
            Value::Null => Data::Null,
            Value::Bool(b) => scalar(b.to_string(), false),
            Value::Number(n) => scalar(n.to_string(), false),
            Value::String(s) => scalar(s.clone(), true),
            Value::Sequence(list) => Data::List(list.iter().map(Self::from_value).collect()),
            Value::Mapping(map) => Data::Map(
                map.iter()
                    .map(|(k, v)| {
                        let key = match k {
                            Value::String(s) => s.clone(),
                            other => Self::from_value(other).show(),
                        };
                        Entry { key, at: At::default(), value: Self::from_value(v) }
                    })
                    .collect(),
            ),
            Value::Tagged(tagged) => return Self::from_value(&tagged.value),
        };
        Self { at: At::default(), data }
    }

    /// The plain value, for kinds that read their own options.
    pub fn to_value(&self) -> Value {
        match &self.data {
            Data::Null => Value::Null,
            Data::Scalar { text, quoted: true } => Value::String(text.clone()),
            Data::Scalar { text, quoted: false } => plain_value(text),
            Data::List(list) => Value::Sequence(list.iter().map(Self::to_value).collect()),
            Data::Map(entries) => {
                let pair = |e: &Entry| (Value::String(e.key.clone()), e.value.to_value());
                Value::Mapping(entries.iter().map(pair).collect::<Mapping>())
            }
        }
    }

    /// The value as an error message shows it: short, on one line.
    pub fn show(&self) -> String {
        let text = match &self.data {
            Data::Null => "nothing".to_owned(),
            Data::Scalar { text, .. } => text.clone(),
            Data::List(list) => {
                format!("[{}]", list.iter().map(Self::show).collect::<Vec<_>>().join(", "))
            }
            Data::Map(entries) => {
                let pair = |e: &Entry| format!("{}: {}", e.key, e.value.show());
                format!("{{{}}}", entries.iter().map(pair).collect::<Vec<_>>().join(", "))
            }
        };
        shorten(&text)
    }

    /// The value of `key`, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match &self.data {
            Data::Map(entries) => entries.iter().find(|e| e.key == key).map(|e| &e.value),
            _ => None,
        }
    }

    /// What it is, for messages.
    pub fn what(&self) -> &'static str {
        match self.data {
            Data::Null => "nothing",
            Data::Scalar { .. } => "a single value",
            Data::List(_) => "a list",
            Data::Map(_) => "a mapping",
        }
    }

    fn count(&self) -> usize {
        1 + match &self.data {
            Data::Null | Data::Scalar { .. } => 0,
            Data::List(list) => list.iter().map(Self::count).sum(),
            Data::Map(entries) => entries.iter().map(|e| e.value.count()).sum(),
        }
    }
}

fn shorten(text: &str) -> String {
    const LONGEST: usize = 60;
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().count() <= LONGEST {
        return line;
    }
    line.chars().take(LONGEST - 3).collect::<String>() + "..."
}

/// YAML 1.2's core schema for a scalar without quotes.
pub(super) fn plain_value(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        ".inf" | "+.inf" => return Value::Number(f64::INFINITY.into()),
        "-.inf" => return Value::Number(f64::NEG_INFINITY.into()),
        ".nan" => return Value::Number(f64::NAN.into()),
        _ => {}
    }
    let radix = |prefix, radix| u64::from_str_radix(text.strip_prefix(prefix)?, radix).ok();
    if let Some(n) = radix("0x", 16).or_else(|| radix("0o", 8)) {
        return Value::Number(n.into());
    }
    let numeric = text.contains(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | '+' | '-' | 'e' | 'E'));
    if numeric {
        if let Ok(n) = text.parse::<u64>() {
            return Value::Number(n.into());
        }
        if let Ok(n) = text.parse::<i64>() {
            return Value::Number(n.into());
        }
        if let Ok(n) = text.parse::<f64>() {
            return Value::Number(n.into());
        }
    }
    Value::String(text.to_owned())
}

/// A collection whose end has not come yet.
enum Open {
    List { at: At, anchor: usize, items: Vec<Node> },
    Map(OpenMap),
}

#[derive(Default)]
struct OpenMap {
    at: At,
    anchor: usize,
    entries: Vec<Entry>,
    merges: Vec<Node>,
    /// Lines of the keys so far.
    lines: HashMap<String, usize>,
    /// The key whose value has not come yet.
    key: Option<(String, At, Key)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Key {
    Plain,
    Merge,
    /// Reported already; its value is read and forgotten.
    Ignored,
}

#[derive(Default)]
struct Builder {
    stack: Vec<Open>,
    anchors: HashMap<usize, Node>,
    aliased: usize,
    root: Option<Node>,
    documents: usize,
}

impl Builder {
    fn run(mut self, text: &str, report: &mut Report) -> Result<Option<Node>, Problem> {
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|e| {
                let at = At { line: e.marker().line(), column: e.marker().col() + 1 };
                syntax(at, text, e.info())
            })?;
            let at = At::from(span);
            match event {
                Event::DocumentStart(_) => {
                    self.documents += 1;
                    if self.documents > 1 {
                        return Err(whole(at, "a second document begins", "put everything into one, without `---`"));
                    }
                }
                Event::SequenceStart(anchor, tag) => {
                    self.tag(tag.as_deref(), at, report);
                    self.open(Open::List { at, anchor, items: Vec::new() }, at)?;
                }
                Event::MappingStart(anchor, tag) => {
                    self.tag(tag.as_deref(), at, report);
                    self.open(Open::Map(OpenMap { at, anchor, ..OpenMap::default() }), at)?;
                }
                Event::SequenceEnd => {
                    let Some(Open::List { at, anchor, items }) = self.stack.pop() else {
                        unreachable!("the parser nests events");
                    };
                    self.finish(Node { at, data: Data::List(items) }, anchor, report);
                }
                Event::MappingEnd => {
                    let Some(Open::Map(OpenMap { at, anchor, mut entries, merges, .. })) = self.stack.pop() else {
                        unreachable!("the parser nests events");
                    };
                    for merge in merges {
                        merge_into(&mut entries, &merge, report);
                    }
                    self.finish(Node { at, data: Data::Map(entries) }, anchor, report);
                }
                Event::Scalar(text, style, anchor, tag) => {
                    let string = self.tag(tag.as_deref(), at, report);
                    let plain = style == ScalarStyle::Plain && !string;
                    let data = match &*text {
                        "" | "~" | "null" | "Null" | "NULL" if plain => Data::Null,
                        _ => Data::Scalar { text: text.into_owned(), quoted: !plain },
                    };
                    self.finish(Node { at, data }, anchor, report);
                }
                Event::Alias(anchor) => {
                    let Some(node) = self.anchors.get(&anchor).cloned() else {
                        return Err(whole(at, "an alias stands inside its own anchor", "write the value out"));
                    };
                    self.aliased += node.count();
                    if self.aliased > MAX_ALIASED {
                        return Err(whole(at, "aliases make the file too large", "write the values out"));
                    }
                    self.finish(node, 0, report);
                }
                Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            }
        }
        Ok(self.root.filter(|n| !matches!(n.data, Data::Null)))
    }

    fn open(&mut self, open: Open, at: At) -> Result<(), Problem> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(too_deep(at));
        }
        self.stack.push(open);
        Ok(())
    }

    /// Whether a tag makes a string of whatever stands there.
    fn tag(&self, tag: Option<&saphyr_parser::Tag>, at: At, report: &mut Report) -> bool {
        let Some(tag) = tag else { return false };
        if !tag.is_yaml_core_schema() {
            report.mistake(whole(at, &format!("the tag `{tag}` is unknown"), "leave it out"));
        }
        tag.is_yaml_core_schema() && tag.suffix == "str"
    }

    /// The full key of the collection that is open now.
    fn path(&self) -> String {
        let mut path = String::new();
        for open in &self.stack[..self.stack.len().saturating_sub(1)] {
            path = match open {
                Open::List { items, .. } => format!("{path}[{}]", items.len()),
                Open::Map(map) => map.key.as_ref().map_or(path.clone(), |(name, ..)| join(&path, name)),
            };
        }
        path
    }

    /// Puts a complete node where it belongs.
    fn finish(&mut self, node: Node, anchor: usize, report: &mut Report) {
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Map(map)) => match map.key.take() {
                None => self.key(&node, report),
                Some((_, _, Key::Merge)) => map.merges.push(node),
                Some((_, _, Key::Ignored)) => {}
                Some((name, at, Key::Plain)) => map.entries.push(Entry { key: name, at, value: node }),
            },
        }
    }

    /// Takes `node` as the next key of the mapping that is open.
    fn key(&mut self, node: &Node, report: &mut Report) {
        let path = || self.path();
        let (text, key) = match &node.data {
            Data::Scalar { text, quoted: false } if text == "<<" => (text.clone(), Key::Merge),
            Data::Scalar { text, .. } => {
                let first = match self.stack.last() {
                    Some(Open::Map(map)) => map.lines.get(text),
                    _ => None,
                };
                if let Some(first) = first {
                    let problem = format!("the key stands here a second time, first in line {first}");
                    let problem = whole(node.at, &problem, "keep one of them");
                    report.mistake(Problem { key: join(&path(), text), ..problem });
                }
                (text.clone(), if first.is_some() { Key::Ignored } else { Key::Plain })
            }
            _ => {
                let problem = format!("{} cannot be a key", node.what());
                let problem = whole(node.at, &problem, "write a name before the colon");
                report.mistake(Problem { key: path(), ..problem });
                (node.show(), Key::Ignored)
            }
        };
        if let Some(Open::Map(map)) = self.stack.last_mut() {
            map.lines.entry(text.clone()).or_insert(node.at.line);
            map.key = Some((text, node.at, key));
        }
    }
}

/// YAML's merge key: what is there already wins, then the earlier of several.
fn merge_into(entries: &mut Vec<Entry>, from: &Node, report: &mut Report) {
    match &from.data {
        Data::Map(more) => {
            for entry in more {
                if !entries.iter().any(|e| e.key == entry.key) {
                    entries.push(entry.clone());
                }
            }
        }
        Data::List(list) if list.iter().all(|n| matches!(n.data, Data::Map(_))) => {
            for node in list {
                merge_into(entries, node, report);
            }
        }
        _ => {
            let problem = format!("`<<` takes a mapping or a list of mappings, not {}", from.what());
            report.mistake(whole(from.at, &problem, "give it an alias such as `<<: *defaults`"));
        }
    }
}

fn too_deep(at: At) -> Problem {
    whole(at, &format!("nested deeper than {MAX_DEPTH} levels"), "close the brackets before")
}

fn whole(at: At, problem: &str, remedy: &str) -> Problem {
    Problem {
        file: None,
        line: at.line,
        column: at.column,
        key: String::new(),
        value: None,
        problem: problem.to_owned(),
        remedy: remedy.to_owned(),
    }
}

/// A syntax error with a remedy for those that people really make.
fn syntax(at: At, text: &str, info: &str) -> Problem {
    let bracketed = |l: &str| l.contains("]:") && l.contains("::") && !l.contains('"') && !l.contains('\'');
    let indented_by_tab = |l: &str| l.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t');
    // Parsers notice a mistake at the next token, which may be lines below it, or name the line before.
    let near = || text.lines().enumerate().take(at.line + 1).skip(at.line.saturating_sub(3));
    if info.contains("recursion limit") {
        return too_deep(at);
    }
    if let Some((n, _)) = near().find(|(_, l)| indented_by_tab(l)) {
        return whole(At { line: n + 1, column: 1 }, "a tab in the indentation", "indent with spaces");
    }
    if let Some((n, _)) = near().find(|(_, l)| bracketed(l)) {
        let at = At { line: n + 1, column: 1 };
        return whole(at, "brackets begin a list in YAML", "quote the IPv6 address: \"[fd00::1]:80\"");
    }
    whole(
        at,
        &format!("this is not YAML: {info}"),
        "check quotes, brackets and indentation of this line and the ones above",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (Option<Node>, Vec<String>) {
        let mut report = Report::default();
        let node = match Node::parse(text, &mut report) {
            Ok(node) => node,
            Err(problem) => {
                report.mistake(problem);
                None
            }
        };
        (node, report.mistakes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn keys_and_values_know_their_line_and_column() {
        let (node, mistakes) = parse("a: 1\nb:\n  - x\n  - {c: [y, z]}\n");
        assert_eq!(mistakes, [""; 0]);
        let node = node.unwrap();
        let b = node.get("b").unwrap();
        let Data::List(items) = &b.data else { panic!() };
        assert_eq!(items[0].at, At { line: 3, column: 5 });
        let Data::Map(entries) = &items[1].data else { panic!() };
        assert_eq!((entries[0].at, entries[0].value.at), (At { line: 4, column: 6 }, At { line: 4, column: 9 }));
    }

    #[test]
    fn text_stays_as_written_and_values_follow_the_core_schema() {
        let (node, _) = parse("{a: 1.10, b: '1', c: 0x10, d: yes, e: ~, f: -3, g: 1e3, h: 1.2.3, i: !!str 5, j: TRUE}");
        let node = node.unwrap();
        let value = node.to_value();
        let expected: Value = serde_yaml::from_str(
            "{a: 1.1, b: '1', c: 16, d: 'yes', e: null, f: -3, g: 1000.0, h: '1.2.3', i: '5', j: true}",
        )
        .unwrap();
        assert_eq!(value, expected);
        assert_eq!(node.get("a").unwrap().show(), "1.10");
        assert_eq!(Node::from_value(&value).to_value(), expected);
    }

    #[test]
    fn aliases_and_merge_keys_are_resolved() {
        let text =
            "base: &b {x: 1, y: 2}\nother: &o {y: 3, z: 4}\none: {<<: *b, y: 9}\ntwo: {<<: [*b, *o]}\nthree: *b\n";
        let (node, mistakes) = parse(text);
        assert_eq!(mistakes, [""; 0]);
        let value = node.unwrap().to_value();
        let expected = "{one: {y: 9, x: 1}, two: {x: 1, y: 2, z: 4}, three: {x: 1, y: 2}}";
        let expected: Value = serde_yaml::from_str(expected).unwrap();
        for key in ["one", "two", "three"] {
            assert_eq!(value[key], expected[key], "{key}");
        }
    }

    #[test]
    fn what_is_not_yaml_is_told_with_its_line() {
        for (text, expected) in [
            ("a: 1\n\tb: 2\n", "2:1: a tab in the indentation"),
            ("a: 1\na: 2\n", "2:1: a: the key stands here a second time, first in line 1"),
            ("a: [1, 2\nb: 3\n", "this is not YAML"),
            ("a: [fd00::1]:80\n", "1:1: brackets begin a list in YAML"),
            ("a: 1\n---\nb: 2\n", "a second document begins"),
            ("? {a: b}\n: c\n", "a mapping cannot be a key"),
            ("a: !secret b\n", "the tag `!secret` is unknown"),
            ("a: &a [*a]\n", "inside its own anchor"),
            ("a: {<<: 3}\n", "`<<` takes a mapping or a list of mappings, not a single value"),
        ] {
            let (_, mistakes) = parse(text);
            assert_eq!(mistakes.len(), 1, "{text:?}: {mistakes:?}");
            assert!(mistakes[0].contains(expected), "{text:?}: {mistakes:?}");
        }
        assert!(parse("").0.is_none() && parse("# only words\n").0.is_none() && parse("--- ~\n").0.is_none());
    }

    #[test]
    fn hostile_files_end_early() {
        let deep = "[".repeat(100_000);
        assert!(parse(&deep).1[0].contains("nested deeper"), "{:?}", parse(&deep).1);
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..30 {
            let list = vec![format!("*a{}", i - 1); 9].join(", ");
            bomb += &format!("a{i}: &a{i} [{list}]\n");
        }
        assert!(parse(&bomb).1[0].contains("aliases make the file too large"));
    }
}
