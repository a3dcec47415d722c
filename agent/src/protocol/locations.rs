//! Which service a path belongs to, and what the path becomes: locations as nginx matches them, and rewrite
//! rules (docs/wire/http-mesh.md, "Locations").

use anyhow::{Context, bail};
use regex::{Regex, RegexBuilder};
use serde::Deserialize;

/// One location as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Location {
    /// What paths are compared with.
    #[serde(rename = "match")]
    pub matches: String,
    /// `exact`, `regexp`, `iregexp` or `start`.
    #[serde(rename = "type", default = "start")]
    pub kind: String,
    /// Name of the service; empty where only paths are rewritten.
    #[serde(default)]
    pub service: String,
    /// `[!]TYPE CONDITION PATTERN REPLACEMENT`, in order; the first that applies is the only one.
    #[serde(default)]
    pub rewrite: Vec<String>,
}

fn start() -> String {
    "start".to_owned()
}

/// Locations, ready to be asked.
#[derive(Debug, Default)]
pub struct Locations {
    exact: Vec<Entry>,
    patterns: Vec<(Regex, Entry)>,
    starts: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    matches: String,
    service: String,
    rules: Vec<Rule>,
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The service of the location.
    pub service: &'a str,
    /// The path after its rewrite rules.
    pub path: String,
}

impl Locations {
    /// Reads all locations; the error of the first bad one names it by `[INDEX].KEY`.
    pub fn new(locations: &[Location]) -> anyhow::Result<Self> {
        let mut all = Self::default();
        for (i, location) in locations.iter().enumerate() {
            let mut rules = Vec::new();
            for (j, rule) in location.rewrite.iter().enumerate() {
                let parsed = Rule::parse(rule);
                rules.push(parsed.map_err(|e| anyhow::anyhow!("[{i}].rewrite[{j}]: `{rule}` {e}"))?);
            }
            let entry = Entry { matches: location.matches.clone(), service: location.service.clone(), rules };
            let pattern = |insensitive| {
                compile(&location.matches, insensitive)
                    .with_context(|| format!("[{i}].match: `{}` is no regular expression", location.matches))
            };
            match location.kind.as_str() {
                "exact" => all.exact.push(entry),
                "start" => all.starts.push(entry),
                "regexp" => all.patterns.push((pattern(false)?, entry)),
                "iregexp" => all.patterns.push((pattern(true)?, entry)),
                other => bail!("[{i}].type: `{other}` is not one of exact, regexp, iregexp, start; write one of them"),
            }
        }
        // The longest first; of equally long ones the first written.
        all.starts.sort_by_key(|entry| std::cmp::Reverse(entry.matches.len()));
        Ok(all)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.patterns.is_empty() && self.starts.is_empty()
    }

    /// The location of `path`: exact ones first, then patterns in the order written, then the longest start.
    pub fn find(&self, path: &str, query: Option<&str>) -> Option<Place<'_>> {
        let exact = self.exact.iter().find(|entry| entry.matches == path);
        let entry = exact
            .or_else(|| self.patterns.iter().find(|(pattern, _)| pattern.is_match(path)).map(|(_, entry)| entry))
            .or_else(|| self.starts.iter().find(|e| !e.matches.is_empty() && path.starts_with(&e.matches)))?;
        let rewritten = entry.rules.iter().find_map(|rule| rule.apply(path, query));
        Some(Place { service: &entry.service, path: rewritten.unwrap_or_else(|| path.to_owned()) })
    }
}

/// A rewrite rule.
#[derive(Debug)]
struct Rule {
    not: bool,
    condition: Condition,
    /// `{name}` in the result is replaced by a parameter of the query.
    variables: bool,
    pattern: Regex,
    replacement: String,
}

#[derive(Debug)]
enum Condition {
    Exact(String),
    Start(String),
    Pattern(Regex),
}

impl Rule {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let parts: Vec<_> = text.split_whitespace().collect();
        let [kind, condition, pattern, replacement] = parts[..] else {
            bail!("has {} parts; write `[!]TYPE CONDITION PATTERN REPLACEMENT`", parts.len());
        };
        let (not, kind) = kind.strip_prefix('!').map_or((false, kind), |kind| (true, kind));
        let regex = |text: &str, insensitive| {
            compile(text, insensitive).with_context(|| format!("has `{text}`, which is no regular expression"))
        };
        let condition = match kind {
            "exact" => Condition::Exact(condition.to_owned()),
            "start" => Condition::Start(condition.to_owned()),
            "regexp" | "regexpVar" => Condition::Pattern(regex(condition, false)?),
            "iregexp" => Condition::Pattern(regex(condition, true)?),
            _ => bail!("begins with `{kind}`; write one of exact, start, regexp, iregexp, regexpVar"),
        };
        Ok(Self {
            not,
            condition,
            variables: kind == "regexpVar",
            pattern: regex(pattern, false)?,
            replacement: replacement.to_owned(),
        })
    }

    fn apply(&self, path: &str, query: Option<&str>) -> Option<String> {
        let holds = match &self.condition {
            Condition::Exact(text) => text == path,
            Condition::Start(text) => path.starts_with(text),
            Condition::Pattern(pattern) => pattern.is_match(path),
        };
        if holds == self.not {
            return None;
        }
        let found = self.pattern.captures(path)?;
        let mut rewritten = String::new();
        found.expand(&self.replacement, &mut rewritten);
        match query.filter(|query| self.variables && !query.is_empty()) {
            Some(query) => Some(variables(&rewritten, query)),
            None => Some(rewritten),
        }
    }
}

/// Replaces each `{name}` by the parameter `name` of the query, by nothing where it has none.
fn variables(path: &str, query: &str) -> String {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let mut out = String::new();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('{') {
        out += before;
        match after.split_once('}') {
            Some((name, after)) if !name.is_empty() && name.chars().all(is_name) => {
                let value = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name);
                out += &value.map(|(_, value)| value).unwrap_or_default();
                rest = after;
            }
            _ => {
                out.push('{');
                rest = after;
            }
        }
    }
    out + rest
}

/// Bounded, so that no configuration can claim memory without end.
fn compile(text: &str, insensitive: bool) -> Result<Regex, regex::Error> {
    RegexBuilder::new(text).case_insensitive(insensitive).size_limit(1 << 20).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(kind: &str, matches: &str, service: &str, rewrite: &[&str]) -> Location {
        Location {
            matches: matches.to_owned(),
            kind: kind.to_owned(),
            service: service.to_owned(),
            rewrite: rewrite.iter().map(|r| (*r).to_owned()).collect(),
        }
    }

    #[test]
    fn exact_before_patterns_before_the_longest_start() {
        let all = Locations::new(&[
            at("start", "/", "root", &[]),
            at("start", "/a/", "a", &[]),
            at("regexp", "^/a/[0-9]+$", "number", &[]),
            at("iregexp", "^/A/B", "insensitive", &[]),
            at("exact", "/a/1", "one", &[]),
        ])
        .unwrap();
        let service = |path| all.find(path, None).map(|p| p.service.to_owned());
        for (path, expected) in
            [("/a/1", "one"), ("/a/2", "number"), ("/a/b", "insensitive"), ("/a/x", "a"), ("/b", "root")]
        {
            assert_eq!(service(path).as_deref(), Some(expected), "{path}");
        }
        assert_eq!(service("b"), None);
        assert!(Locations::default().is_empty() && !all.is_empty());
    }

    #[test]
    fn the_first_rule_that_applies_rewrites() {
        let rules = [
            "!regexp ^/2/.* ^/(1.*) /2/$1",
            "exact /2/x ^(.*)$ /exact",
            "start /2/s ^/2/(.)(.*)$ /$2/$1",
            "iregexp ^/2/UP ^/2/(?P<rest>.*)$ /${rest}",
            "regexpVar ^/2/v ^/2/v(.*)$ /{name}/{none}/{}$1",
        ];
        let all = Locations::new(&[at("start", "/", "s", &rules)]).unwrap();
        let path = |path, query| all.find(path, query).unwrap().path;
        assert_eq!(path("/1/a", None), "/2/1/a");
        assert_eq!(path("/3/a", None), "/3/a", "a condition that holds with a pattern that does not");
        assert_eq!(path("/2/x", None), "/exact");
        assert_eq!(path("/2/search", None), "/earch/s");
        assert_eq!(path("/2/up/x", None), "/up/x");
        assert_eq!(path("/2/v1", Some("a=1&name=n%20m")), "/n m//{}1");
        assert_eq!(path("/2/v1", None), "/{name}/{none}/{}1");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let told = |location: Location| format!("{:#}", Locations::new(&[location]).unwrap_err());
        assert!(told(at("regexp", "(", "s", &[])).starts_with("[0].match: `(` is no regular expression"));
        assert!(told(at("prefix", "/", "s", &[])).starts_with("[0].type: `prefix` is not one of"));
        assert!(told(at("start", "/", "s", &["exact / /"])).contains("[0].rewrite[0]: `exact / /` has 3 parts"));
        assert!(told(at("start", "/", "s", &["what / / /"])).contains("begins with `what`"));
        assert!(told(at("start", "/", "s", &["exact / ( /"])).contains("has `(`"));
    }
}
