//! Entries of motan-go's sections: parameters as text, templates, filters.

use std::collections::BTreeMap;

use super::{
    super::{
        node::{At, Data, Node},
        problem::{Report, did_you_mean},
        read::{Place, join},
        values::Wrong,
    },
    table::{Fate, Part},
    tree::{Type, go_value},
};

/// One value with its place.
#[derive(Clone, Debug)]
pub(super) struct Param {
    pub text: String,
    pub place: Place,
}

/// One entry of a section.
#[derive(Clone, Debug, Default)]
pub(super) struct Url {
    /// Its key in the section.
    pub id: String,
    pub at: At,
    /// Full key, for messages.
    pub path: String,
    params: BTreeMap<String, Param>,
}

/// Fields that motan-go reads by type, and ends with a crash when the type is another.
const TYPED: &[(&str, Type)] =
    &[("protocol", Type::Text), ("host", Type::Text), ("path", Type::Text), ("group", Type::Text), ("port", Type::Int)];

impl Url {
    /// Reads the mapping at `path`; keys are checked against `parts`.
    pub fn read(id: &str, path: String, node: &Node, parts: &[&Part], report: &mut Report) -> Option<Self> {
        let Data::Map(entries) = &node.data else {
            if !matches!(node.data, Data::Null) {
                let problem = format!("is {}, not a mapping", node.what());
                report.mistake(Place::of(node, path).problem(problem, "write `key: value` lines below it"));
                return None;
            }
            return Some(Self { id: id.to_owned(), at: node.at, path, params: BTreeMap::new() });
        };
        let mut params = BTreeMap::new();
        for entry in entries {
            let place = Place { at: entry.at, key: join(&path, &entry.key), value: Some(entry.value.show()) };
            let (ty, text) = go_value(&entry.value);
            let typed = TYPED.iter().find(|(name, _)| *name == entry.key);
            match (typed, ty) {
                (_, Type::Nothing) => continue,
                (Some((_, wanted)), ty) if ty != *wanted => {
                    let problem = format!("`{}` is {}, not {}", entry.value.show(), ty.what(), wanted.what());
                    let remedy = match wanted {
                        Type::Text => "put it in quotes",
                        _ => "write it without quotes",
                    };
                    report.mistake(place.problem(problem, remedy));
                    continue;
                }
                (None, Type::Collection) => {
                    let remedy = "it is left out, as motan-go does";
                    report.warn(place.problem(format!("is {}, not a single value", entry.value.what()), remedy));
                    continue;
                }
                _ => {}
            }
            known(&entry.key, parts, &place, report);
            params.insert(entry.key.clone(), Param { text, place });
        }
        Some(Self { id: id.to_owned(), at: node.at, path, params })
    }

    /// An entry from parameters alone.
    pub fn of(id: String, path: String, params: impl IntoIterator<Item = (String, String)>) -> Self {
        let place = |key: &str| Place { at: At::default(), key: join(&path, key), value: None };
        let params = params.into_iter().map(|(key, text)| {
            let place = place(&key);
            (key, Param { text, place })
        });
        Self { id, at: At::default(), params: params.collect(), path }
    }

    /// A value that is there and not empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.params.get(key).map(|p| p.text.as_str()).filter(|t| !t.is_empty())
    }

    pub fn set(&mut self, key: &str, text: impl Into<String>) {
        let place = self.place(key);
        self.params.insert(key.to_owned(), Param { text: text.into(), place });
    }

    /// Where a value stands, or the entry that could have it.
    pub fn place(&self, key: &str) -> Place {
        match self.params.get(key) {
            Some(param) => param.place.clone(),
            None => Place { at: self.at, key: self.path.clone(), value: None },
        }
    }

    pub fn at(&self, key: &str) -> At {
        self.place(key).at
    }

    /// All values by key.
    pub fn params(&self) -> impl Iterator<Item = (&str, &Param)> {
        self.params.iter().map(|(key, param)| (key.as_str(), param))
    }

    /// A whole number. Another text is told and counts as absent, as in motan-go.
    pub fn number(&self, key: &str, report: &mut Report) -> Option<i64> {
        self.parsed(key, report, |text| text.parse().ok(), "is not a whole number")
    }

    /// A whole number above 0.
    pub fn positive(&self, key: &str, report: &mut Report) -> Option<u64> {
        self.parsed(key, report, |text| text.parse().ok().filter(|n| *n > 0), "is not a whole number above 0")
    }

    /// A number with or without a point.
    pub fn fraction(&self, key: &str, report: &mut Report) -> Option<f64> {
        let number = |text: &str| text.parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0);
        self.parsed(key, report, number, "is not a number above 0")
    }

    /// A boolean in any of Go's spellings.
    pub fn boolean(&self, key: &str, report: &mut Report) -> Option<bool> {
        self.parsed(key, report, super::go_bool, "is neither true nor false")
    }

    fn parsed<T>(&self, key: &str, report: &mut Report, parse: impl Fn(&str) -> Option<T>, wrong: &str) -> Option<T> {
        let text = self.get(key)?;
        let value = parse(text);
        if value.is_none() {
            let remedy = "the default holds, as in motan-go";
            report.warn(self.place(key).problem(format!("`{text}` {wrong}"), remedy));
        }
        value
    }

    /// A value that must be right where it is given.
    pub fn strict<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T, Wrong>, report: &mut Report) -> Option<T> {
        let text = self.get(key)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(Wrong { problem, remedy }) => {
                report.mistake(self.place(key).problem(format!("`{text}` {problem}"), remedy));
                None
            }
        }
    }

    /// What stands as `METHOD(DESC).KEY`: method, number. Several descriptions of one method: the first counts.
    pub fn of_methods(&self, key: &str, report: &mut Report) -> Vec<(String, Param, u64)> {
        let mut found: Vec<(String, Param, u64)> = Vec::new();
        for (name, param) in &self.params {
            let Some((method, _)) =
                name.strip_suffix(key).and_then(|n| n.strip_suffix(").")).and_then(|n| n.split_once('('))
            else {
                continue;
            };
            let Ok(number) = param.text.parse() else {
                let problem = format!("`{}` is not a whole number", param.text);
                report.warn(param.place.problem(problem, "the service's value holds"));
                continue;
            };
            match found.iter().find(|(known, _, _)| known == method) {
                Some((_, _, first)) if *first != number => {
                    let problem = format!("`{method}` has another value for other parameter types");
                    report.warn(param.place.problem(problem, "methods are told apart by name only: the first counts"));
                }
                Some(_) => {}
                None => found.push((method.to_owned(), param.clone(), number)),
            }
        }
        found
    }

    /// The template called by `key`, overridden by this entry.
    pub fn over_template(self, key: &str, templates: &BTreeMap<String, Self>, report: &mut Report) -> Self {
        let Some(name) = self.get(key) else { return self };
        let Some(template) = templates.get(name) else {
            let problem = format!("there is no template `{name}`");
            report.warn(self.place(key).problem(problem, "the entry stands alone, as in motan-go"));
            return self;
        };
        let mut params = template.params.clone();
        // Motan-go takes 0 and nothing for absent in these.
        let absent = |k: &str, p: &Param| match k {
            "port" => p.text == "0",
            "protocol" | "host" | "path" | "group" => p.text.is_empty(),
            _ => false,
        };
        params.extend(self.params.into_iter().filter(|(k, p)| !absent(k, p)));
        Self { params, ..self }
    }

    /// Items of a comma list.
    pub fn list(&self, key: &str) -> Vec<String> {
        self.get(key).map(commas).unwrap_or_default()
    }
}

/// The items of a comma list, each once, without blanks and empty ones.
pub(super) fn commas(text: &str) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        if !items.iter().any(|known| known == item) {
            items.push(item.to_owned());
        }
    }
    items
}

/// Tells of a key that nobody knows, or that has no effect.
pub(super) fn known(key: &str, parts: &[&Part], place: &Place, report: &mut Report) {
    if parts.is_empty() {
        return;
    }
    // Keys for single methods are those of the service.
    let by_method = key.rsplit_once(").").filter(|(method, _)| method.contains('('));
    let name = match (by_method, key.split_once('.')) {
        (Some((_, name)), _) => name,
        (None, Some(("rateLimit", _))) => "rateLimit",
        _ => key,
    };
    match parts.iter().find_map(|part| part.row(name)) {
        Some(row) if row.fate == Fate::Refused => report.warn(place.problem("is not supported", row.says)),
        Some(_) if by_method.is_some() && !matches!(name, "requestTimeout" | "retries" | "capacity") => {
            report.warn(place.problem("is not supported by method", "the service's value holds for all methods"));
        }
        Some(_) => {}
        None => {
            let names: Vec<_> = parts.iter().flat_map(|p| p.rows).map(|row| row.name).collect();
            let guess = did_you_mean(name, &names);
            let misspelt = guess.starts_with("did");
            // Parameters of one's own are registered with a service.
            if misspelt || !parts.iter().any(|part| part.title == super::table::SERVICE.title) {
                let remedy = if misspelt { guess } else { "it is left out".to_owned() };
                report.warn(place.problem("is a key that motan-go does not read", remedy));
            }
        }
    }
}
