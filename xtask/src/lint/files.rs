//! Rules about files: their length, their place in a `KINDS` table, and what must not be in them.

use std::{collections::BTreeSet, env, fs, path::Path};

use super::Source;

/// A file holds one idea; one of this many lines holds several.
const MOST_LINES: usize = 800;

/// Endings of a changelog fragment, before `.md`.
const CHANGES: &[&str] = &["added", "changed", "fixed", "removed", "security", "perf"];

/// Files beside a `KINDS` table that are no kind of their own.
const HELPERS: &[&str] = &[
    "agent/src/filter/answer.rs",
    "agent/src/filter/figures.rs",
    "agent/src/filter/notes.rs",
    "agent/src/filter/options.rs",
    "agent/src/filter/record.rs",
    "agent/src/ha/attempt.rs",
    "agent/src/ha/attempts.rs",
    "agent/src/ha/budget.rs",
    "agent/src/lb/canary.rs",
    "agent/src/lb/groups.rs",
    "agent/src/lb/roster.rs",
    "agent/src/lb/subset.rs",
    "agent/src/protocol/forward",
    "agent/src/protocol/locations.rs",
    "agent/src/protocol/upstream",
    "agent/src/registry/guard",
    "agent/src/registry/merge.rs",
    "agent/src/registry/snapshot",
    "center/src/scale/api.rs",
    "center/src/scale/warm.rs",
    "center/src/store/api.rs",
    "center/src/store/backup.rs",
];

pub fn check(sources: &[Source]) -> Vec<String> {
    let mut breaches = Vec::new();
    let hosts = hosts();
    for source in sources {
        let shown = source.path.display();
        let lines = source.text.lines().count();
        if source.path.extension().is_some_and(|ext| ext == "rs") && lines > MOST_LINES {
            breaches.push(format!("{shown}: {lines} lines, more than {MOST_LINES}: split it by idea"));
        }
        for (number, line) in source.text.lines().enumerate() {
            for what in foreign(line, &hosts) {
                breaches
                    .push(format!("{shown}:{}: {what} belongs to one machine, not into the repository", number + 1));
            }
        }
        if let Ok(fragment) = source.path.strip_prefix("docs/changes")
            && !is_fragment(fragment)
        {
            breaches.push(format!("{shown}: name it <slug>.<{}>.md", CHANGES.join("|")));
        }
    }
    breaches.extend(kinds(sources));
    breaches
}

fn is_fragment(path: &Path) -> bool {
    let name = path.to_string_lossy();
    let stem = name.strip_suffix(".md").and_then(|name| name.rsplit_once('.'));
    stem.is_some_and(|(slug, kind)| !slug.is_empty() && !slug.contains(['.', '/']) && CHANGES.contains(&kind))
}

/// In a folder whose `mod.rs` has a `KINDS` table, each file is a kind and named in it.
fn kinds(sources: &[Source]) -> Vec<String> {
    let mut breaches = Vec::new();
    for table in sources.iter().filter(|source| source.path.ends_with("mod.rs")) {
        let Some((_, rest)) = table.text.split_once("pub const KINDS") else { continue };
        let rows = rest.split_once("];").map_or(rest, |(rows, _)| rows);
        let dir = table.path.parent().unwrap_or(Path::new(""));
        let children: BTreeSet<_> =
            sources.iter().filter_map(|source| source.path.strip_prefix(dir).ok()?.iter().next()).collect();
        for child in children {
            let file = dir.join(child);
            let module = child.to_string_lossy();
            let module = module.trim_end_matches(".rs");
            let exempt =
                ["mod", "tests", "testing"].contains(&module) || HELPERS.iter().any(|helper| Path::new(helper) == file);
            if !exempt && !rows.contains(&format!("{module}::")) {
                breaches.push(format!("{}: not in the KINDS of {}", file.display(), table.path.display()));
            }
        }
    }
    breaches
}

/// Host names and absolute paths in a line that only the machine it was written on has.
fn foreign(line: &str, hosts: &BTreeSet<String>) -> Vec<String> {
    // Written in two parts, or this file would break its own rule.
    let paths = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];
    let paths = paths.into_iter().filter(|path| {
        line.match_indices(path)
            .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_-.}>".contains(c)))
    });
    let hosts = hosts.iter().filter(|host| line.contains(host.as_str())).map(String::as_str);
    paths.chain(hosts).map(str::to_owned).collect()
}

/// Hosts that this machine takes packages from, read from where its package tools are told, and the usual
/// ones: tools find those by themselves, nothing here may depend on one.
fn hosts() -> BTreeSet<String> {
    let usual = [
        concat!("deb.", "debian.org"),
        concat!("index.", "crates.io"),
        concat!("static.", "crates.io"),
        concat!("proxy.", "golang.org"),
        concat!("registry.", "npmjs.org"),
        concat!("repo.maven.", "apache.org"),
    ];
    let mut hosts: BTreeSet<_> = usual.into_iter().map(str::to_owned).collect();
    let mut texts = vec![fs::read_to_string("/etc/apt/sources.list").unwrap_or_default()];
    for entry in fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten() {
        texts.push(fs::read_to_string(entry.path()).unwrap_or_default());
    }
    let cargo = env::var_os("CARGO_HOME").or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cargo").into()));
    if let Some(home) = cargo {
        texts.push(fs::read_to_string(Path::new(&home).join("config.toml")).unwrap_or_default());
    }
    texts.extend(["GOPROXY", "PIP_INDEX_URL"].iter().filter_map(|name| env::var(name).ok()));
    for text in texts {
        hosts.extend(hosts_in(&text));
    }
    hosts
}

fn hosts_in(text: &str) -> impl Iterator<Item = String> {
    text.match_indices("://").filter_map(|(at, mark)| {
        let rest = &text[at + mark.len()..];
        let rest = rest.split(['/', ' ', '\n', '"', '\'', '?', ',', '|']).next()?;
        let host = rest.rsplit('@').next()?.split(':').next()?;
        // Names without a dot are too common as words; the source control host is cited in docs.
        let cited = ["github.com", "127.0.0.1"].contains(&host);
        (host.contains('.') && !cited).then(|| host.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.to_owned() }
    }

    #[test]
    fn what_belongs_to_one_machine_is_found() {
        let hosts: BTreeSet<_> = hosts_in("URIs: http://u:p@mirror.test:80/debian https://github.com/x").collect();
        assert_eq!(hosts.iter().map(String::as_str).collect::<Vec<_>>(), ["mirror.test"]);
        assert_eq!(foreign("curl http://mirror.test/x", &hosts), ["mirror.test"]);
        assert_eq!(foreign(concat!("cd /wo", "rk/x; ls \"/ro", "ot/.x\""), &hosts).len(), 2);
        assert_eq!(foreign(concat!("target/wo", "rk/x, ${dir}/ro", "ot/x"), &hosts).len(), 0);
    }

    #[test]
    fn fragments_end_in_a_known_word() {
        assert!(is_fragment(Path::new("demo.added.md")));
        for bad in ["demo.md", "demo.new.md", ".added.md", "demo.added.txt", "a/demo.added.md"] {
            assert!(!is_fragment(Path::new(bad)), "{bad}");
        }
    }

    #[test]
    fn a_kind_that_is_not_listed_is_found() {
        let table =
            "pub mod a;\npub const KINDS: &[Kind] = &[Kind { build: a::build }, Kind { build: deep::build }];\n";
        let files = ["lb/a.rs", "lb/deep/mod.rs", "lb/tests.rs", "lb/b.rs", "other/b.rs"];
        let mut sources: Vec<_> = files.iter().map(|path| source(path, "")).collect();
        sources.push(source("lb/mod.rs", table));
        assert_eq!(kinds(&sources), ["lb/b.rs: not in the KINDS of lb/mod.rs"]);
    }

    #[test]
    fn long_files_are_found() {
        assert_eq!(check(&[source("a.rs", &"\n".repeat(800))]), [""; 0]);
        assert_eq!(check(&[source("a.rs", &"\n".repeat(801))]).len(), 1);
    }
}
