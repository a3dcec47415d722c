//! The import tables of agent and centre: which module may use which.
//!
//! Calls flow from the application's socket to the endpoint's, and imports point the same way. A new arrow
//! is a decision: it goes into the table here, and the page follows (`cargo xtask lint --write`).

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};

use super::Source;

/// One package with a table.
struct Package {
    /// Folder of its modules.
    root: &'static str,
    /// Imported by everything; imports nothing but itself, unless the table says otherwise.
    ground: &'static [&'static str],
    /// Who may import what, besides the ground. A module that is in no list may not exist.
    table: &'static [(&'static str, &'static [&'static str])],
    /// These join the parts, and may import all.
    all: &'static [&'static str],
}

const AGENT: Package = Package {
    root: "agent/src",
    ground: &[
        "availability",
        "call",
        "kind",
        "drain",
        "sys",
        "config",
        "meta",
        "metrics",
        "serialize",
        "stream",
        "switcher",
        "trace",
    ],
    table: &[
        // Only their tables of kinds, to check names and options with a line: `config/kinds.rs`.
        ("config", &["filter", "ha", "lb", "protocol", "registry"]),
        ("capture", &[]),
        ("accept", &["capture", "protocol", "route", "cluster", "endpoint"]),
        ("protocol", &["accept", "route", "cluster", "endpoint", "filter"]),
        ("route", &["cluster", "filter"]),
        ("cluster", &["filter", "ha", "lb", "endpoint"]),
        ("filter", &["endpoint"]),
        ("ha", &["filter", "lb", "endpoint"]),
        ("lb", &["endpoint"]),
        ("endpoint", &[]),
        ("registry", &[]),
        ("names", &["capture"]),
        ("admin", &["capture", "cluster", "endpoint", "filter", "names", "registry"]),
        ("cli", &["admin", "capture"]),
    ],
    all: &["app", "main", "lib"],
};

const CENTER: Package = Package {
    root: "center/src",
    // Handlers of every part are given `app::Center` under the name `api::Cx`.
    ground: &["api", "audit", "auth", "clock", "database", "error", "fetch", "hex", "store"],
    table: &[
        ("api", ALL_PARTS),
        ("audit", &[]),
        ("auth", &["config"]),
        ("registry", &[]),
        ("monitor", &["registry"]),
        ("capacity", &["registry", "monitor"]),
        ("command", &["registry", "monitor", "capacity", "scale"]),
        ("scale", &["registry"]),
        ("decide", &["registry", "monitor", "capacity", "command", "scale"]),
        ("alert", &["registry", "monitor", "decide"]),
        ("console", &[]),
        ("demo", &[]),
        ("serve", &[]),
        ("accounts", &["config"]),
        ("backups", &["config"]),
    ],
    all: &["app", "config", "main", "lib"],
};

/// What the API joins.
const ALL_PARTS: &[&str] =
    &["app", "config", "registry", "monitor", "capacity", "command", "scale", "decide", "alert", "console", "demo"];

/// The page that shows the table.
pub const PAGE: &str = "docs/architecture.md";
const BEGIN: &str = "<!-- import table: written by `cargo xtask lint --write` -->\n";
const END: &str = "<!-- end of import table -->\n";

pub fn check(sources: &[Source]) -> Vec<String> {
    let mut breaches: Vec<_> = [AGENT, CENTER].iter().flat_map(|package| package.check(sources)).collect();
    let page = sources.iter().find(|source| source.path == Path::new(PAGE));
    if page.and_then(|page| split(&page.text)).is_none_or(|(_, shown, _)| shown != render()) {
        breaches.push(format!("{PAGE}: the import table differs from xtask's: run `cargo xtask lint --write`"));
    }
    breaches
}

/// Puts the table where the marks are; a page without marks gets them at its end.
pub fn write_table(page: &Path) -> Result<()> {
    let text = fs::read_to_string(page).unwrap_or_else(|_| "# Architecture\n".to_owned());
    let (before, after) = match split(&text) {
        Some((before, _, after)) => (before.to_owned(), after),
        None => (format!("{}\n\n", text.trim_end()), ""),
    };
    page.parent().map(fs::create_dir_all).transpose()?;
    fs::write(page, format!("{before}{BEGIN}{}{END}{after}", render()))
        .with_context(|| format!("cannot write {}", page.display()))
}

fn split(page: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (table, after) = rest.split_once(END)?;
    Some((before, table, after))
}

fn render() -> String {
    let mut text = String::new();
    for package in [AGENT, CENTER] {
        text += &format!("| `{}` | may import |\n| --- | --- |\n", package.root);
        for (module, allowed) in package.table {
            text += &format!("| `{module}` | {} |\n", list(allowed));
        }
        text += "| `app` | all |\n\n";
    }
    text.truncate(text.len() - 1);
    text
}

fn list(names: &[&str]) -> String {
    if names.is_empty() {
        return "–".to_owned();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

impl Package {
    fn check(&self, sources: &[Source]) -> Vec<String> {
        let mut breaches = Vec::new();
        for source in sources {
            let Ok(path) = source.path.strip_prefix(self.root) else { continue };
            if path.extension().is_none_or(|ext| ext != "rs") || is_test(path) {
                continue;
            }
            let module = path.iter().next().unwrap_or_default().to_string_lossy();
            let module = module.trim_end_matches(".rs");
            if self.all.contains(&module) {
                continue;
            }
            let Some(allowed) = self.allowed(module) else {
                breaches.push(format!("{}: module {module} is not in the import table", source.path.display()));
                continue;
            };
            for (line, used) in uses(&source.text) {
                let fine = used == module || self.ground.contains(&used.as_str()) || allowed.contains(&used.as_str());
                if !fine {
                    breaches.push(format!(
                        "{}:{line}: {module} may not import {used} (it may: {})",
                        source.path.display(),
                        list(allowed)
                    ));
                }
            }
        }
        breaches
    }

    fn allowed(&self, module: &str) -> Option<&'static [&'static str]> {
        let row = self.table.iter().find(|(name, _)| *name == module).map(|(_, allowed)| *allowed);
        row.or_else(|| self.ground.contains(&module).then_some(&[][..]))
    }
}

/// Tests may reach across: they stand outside the line that calls travel.
fn is_test(path: &Path) -> bool {
    path.iter().any(|part| ["tests", "tests.rs", "testing", "testing.rs"].iter().any(|name| part == *name))
}

/// Modules of the crate that a file names as `crate::…`, with the first line of each; its tests, which
/// stand last, are left out.
fn uses(text: &str) -> BTreeMap<usize, String> {
    let code = text.find("#[cfg(test)]\nmod ").map_or(text, |tests| &text[..tests]);
    let code = blank_comments(code);
    let mut seen = BTreeMap::new();
    let mut from = 0;
    while let Some(at) = code[from..].find("crate::") {
        let start = from + at;
        from = start + "crate::".len();
        // `$crate::` in a macro is the same crate; `other_crate::` is not.
        if code[..start].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let line = code[..start].matches('\n').count() + 1;
        for module in heads(&code[from..]) {
            if !seen.values().any(|known| *known == module.0) {
                let line = line + code[from..from + module.1].matches('\n').count();
                // Two on one line: any free key will do, the message needs a line near it.
                let mut key = line;
                while seen.contains_key(&key) {
                    key += 1;
                }
                seen.insert(key, module.0);
            }
        }
    }
    seen
}

/// First names of a path or of a use tree, with their offsets: `a::b` gives `a`; `{a::{b, c}, d}` gives
/// `a` and `d`. A name that starts with a capital is an item at the root, of no module.
fn heads(text: &str) -> Vec<(String, usize)> {
    let mut names = Vec::new();
    let mut take = |at: usize| {
        let word: String = text[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if word.starts_with(|c: char| c.is_lowercase()) {
            names.push((word, at));
        }
    };
    if !text.starts_with('{') {
        take(0);
        return names;
    }
    let mut depth = 0;
    let mut expecting = false;
    for (at, c) in text.char_indices() {
        match c {
            '{' => {
                depth += 1;
                expecting = depth == 1;
            }
            '}' => depth -= 1,
            ',' => expecting = depth == 1,
            c if expecting && !c.is_whitespace() => {
                take(at);
                expecting = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

/// The text with comments made blank, so that examples in them are not taken for code. Good enough for
/// formatted sources: a `//` inside a string hides at most the rest of that line.
fn blank_comments(text: &str) -> String {
    let cut = |line: &str| match line.find("//") {
        Some(at) => line[..at].to_owned() + "\n",
        None => line.to_owned(),
    };
    text.split_inclusive('\n').map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        uses(text).into_values().collect()
    }

    #[test]
    fn use_trees_and_paths_are_read() {
        assert_eq!(names("use crate::lb;\n"), ["lb"]);
        assert_eq!(names("pub use crate::accept::Accepted;\n"), ["accept"]);
        assert_eq!(names("use crate::{call::Text, kind::{BuildCx, Value}, lb};\n"), ["call", "kind", "lb"]);
        let nested = "use std::io;\nuse crate::{\n    call::{self, Meta},\n    ha,\n};\nfn f() -> crate::route::X {}\n";
        assert_eq!(names(nested), ["call", "ha", "route"]);
        assert_eq!(names("fn f() { $crate::app::x(); other_crate::y::z(); crate::Root }"), ["app"]);
        assert_eq!(
            names("// use crate::app;\n/// [`crate::app`]\n#[cfg(test)]\nmod tests { use crate::app; }"),
            [""; 0]
        );
    }

    fn agent(path: &str, text: &str) -> Vec<String> {
        let page = format!("x\n{BEGIN}{}{END}", render());
        let page = Source { path: PAGE.into(), text: page };
        check(&[Source { path: Path::new("agent/src").join(path), text: text.to_owned() }, page])
    }

    #[test]
    fn arrows_against_the_line_are_breaches() {
        assert_eq!(agent("lb/mod.rs", "use crate::{endpoint, call};"), [""; 0]);
        assert_eq!(agent("app.rs", "use crate::cli;"), [""; 0]);
        assert_eq!(agent("cluster/tests.rs", "use crate::app;"), [""; 0]);
        assert!(
            agent("lb/mod.rs", "\nuse crate::cluster;")[0].contains("agent/src/lb/mod.rs:2: lb may not import cluster")
        );
        assert!(agent("call/body.rs", "use crate::lb;")[0].contains("call may not import lb"));
        assert!(agent("other.rs", "")[0].contains("not in the import table"));
    }

    #[test]
    fn the_page_shows_the_table() {
        assert!(check(&[])[0].contains("lint --write"));
        let dir = std::env::temp_dir().join(format!("xtask-table-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let page = dir.join("page.md");
        fs::write(&page, "# Title\ntext\n").unwrap();
        write_table(&page).unwrap();
        let once = fs::read_to_string(&page).unwrap();
        assert!(once.starts_with("# Title\ntext\n\n"));
        assert!(check(&[Source { path: PAGE.into(), text: once.clone() }]).is_empty());
        write_table(&page).unwrap();
        assert_eq!(fs::read_to_string(&page).unwrap(), once);
        fs::remove_dir_all(&dir).unwrap();
    }
}
