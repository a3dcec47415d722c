//! What a machine said, read: parts, features, the semantics of redirecting, tests.

use std::collections::BTreeMap;

use crate::test::Tally;

/// One command that the machine ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// What it printed.
    pub lines: Vec<String>,
    /// Its exit code; none when the machine ended before.
    pub code: Option<i32>,
}

/// Everything that a machine said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What the kernel calls itself.
    pub release: String,
    /// Each command by name.
    pub parts: BTreeMap<String, Part>,
    /// Whether the machine came to its end.
    pub done: bool,
    open: Option<String>,
}

/// How `sockmesh check` found something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// As it should be.
    Well,
    /// Not so, and the agent copes.
    Odd,
    /// Not so, and asked for.
    Missing,
}

/// One row of the semantics table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What is tried.
    pub check: String,
    /// What plain TCP answers.
    pub plain: String,
    /// What redirected sockets answer.
    pub redirected: String,
}

impl Report {
    /// Takes one line.
    pub fn add(&mut self, line: &str) {
        let words: Vec<_> = line.strip_prefix("@@ ").unwrap_or_default().split(' ').collect();
        match words[..] {
            ["release", release] => self.release = release.to_owned(),
            ["begin", name] => {
                self.parts.insert(name.to_owned(), Part::default());
                self.open = Some(name.to_owned());
            }
            ["end", name, code] => {
                if let Some(part) = self.parts.get_mut(name) {
                    part.code = code.parse().ok();
                    while part.lines.last().is_some_and(String::is_empty) {
                        part.lines.pop();
                    }
                }
                self.open = None;
            }
            ["done"] => self.done = true,
            _ => {
                if let Some(part) = self.open.as_ref().and_then(|name| self.parts.get_mut(name)) {
                    part.lines.push(line.to_owned());
                }
            }
        }
    }

    /// Lines of a part.
    pub fn lines(&self, part: &str) -> &[String] {
        self.parts.get(part).map_or(&[], |part| &part.lines)
    }

    /// Exit code of a part; none when it did not run to its end.
    pub fn code(&self, part: &str) -> Option<i32> {
        self.parts.get(part)?.code
    }

    /// What `sockmesh check` found, by name.
    pub fn features(&self) -> Vec<(String, Found)> {
        self.lines("check").iter().filter_map(|line| feature(line)).collect()
    }

    /// The semantics table.
    pub fn semantics(&self) -> Vec<Row> {
        let mut rows = self.lines("redirect").iter().map(|line| columns(line));
        if !rows.by_ref().any(|columns| columns.first().is_some_and(|first| first == "CHECK")) {
            return Vec::new();
        }
        rows.map_while(|columns| {
            let [check, plain, redirected, _] = <[String; 4]>::try_from(columns).ok()?;
            Some(Row { check, plain, redirected })
        })
        .collect()
    }

    /// How the agent captures when it may choose, and why.
    pub fn capture(&self) -> Option<(String, String)> {
        let line = self.lines("agent").iter().find(|line| line.contains("capture chosen"))?;
        let value = |key: &str| {
            let rest = line.split_once(&format!(" {key}=\""))?.1;
            // The reason may quote something; it is last.
            let end = if key == "reason" { rest.rfind('"') } else { rest.find('"') };
            Some(rest[..end?].replace("\\\"", "\""))
        };
        Some((value("capture")?, value("reason").unwrap_or_default()))
    }

    /// The kernel tests, if they ran: sums, names of those that failed, and those that skipped themselves with
    /// the reason.
    pub fn tests(&self) -> Option<(Tally, Vec<String>, Vec<String>)> {
        self.parts.get("tests")?;
        let mut tally = Tally::default();
        let (mut failed, mut skipped) = (Vec::new(), Vec::new());
        for line in self.lines("tests") {
            tally.add(line);
            let name = line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... FAILED"));
            failed.extend(name.map(str::to_owned));
            skipped.extend(line.strip_prefix("SKIPPED: ").map(str::to_owned));
        }
        Some((tally, failed, skipped))
    }
}

/// A line such as `✓ maps: created`.
fn feature(line: &str) -> Option<(String, Found)> {
    let (tick, rest) = line.split_once(' ')?;
    let found = match tick {
        "✓" => Found::Well,
        "!" => Found::Odd,
        "✗" => Found::Missing,
        _ => return None,
    };
    let (name, _) = rest.split_once(": ")?;
    Some((name.to_owned(), found))
}

/// Cells that stand two or more spaces apart.
fn columns(line: &str) -> Vec<String> {
    line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
noise of the firmware
@@ release 6.12.1+deb13-cloud-amd64
@@ begin check
✓ kernel: 6.12.1+deb13-cloud-amd64
✗ program mesh_connect4 (Connect4): the kernel refuses it -> look there
! IPv6 loopback: absent: why
0 of them are odd

@@ end check 1
@@ begin redirect
noise
CHECK              PLAIN TCP   REDIRECTED  CONSEQUENCE
FIONREAD of 1000   1000        0           agent never falls back
MSG_OOB            out of band inline      documented
sendfile of 64     intact      intact      -
redirect: auto may redirect on this host (80 ms)
@@ end redirect 0
@@ begin agent
2026-11-21T16:00:00Z  INFO agent::app: capture chosen capture=\"port\" reason=\"no eBPF here: `a` \\\"b\\\" c\"
@@ end agent 0
@@ begin tests
test balance::one ... ok
test semantics::two ... FAILED
SKIPPED: two: no python3 here
test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3s
@@ end tests 101
@@ begin kernel
";

    #[test]
    fn what_a_machine_says_is_read() {
        let mut report = Report::default();
        SAID.lines().for_each(|line| report.add(line));
        assert_eq!(report.release, "6.12.1+deb13-cloud-amd64");
        assert_eq!((report.code("check"), report.code("kernel"), report.done), (Some(1), None, false));
        let features = [
            ("kernel", Found::Well),
            ("program mesh_connect4 (Connect4)", Found::Missing),
            ("IPv6 loopback", Found::Odd),
        ];
        assert_eq!(report.features(), features.map(|(name, found)| (name.to_owned(), found)));
        assert_eq!(report.lines("check").len(), 4, "no empty line at the end");
        let semantics = report.semantics();
        assert_eq!(semantics[0].redirected, "0");
        assert_eq!(report.capture(), Some(("port".to_owned(), "no eBPF here: `a` \"b\" c".to_owned())));
        let (tally, failed, skipped) = report.tests().unwrap();
        assert_eq!(tally, Tally { passed: 4, failed: 1, ignored: 0 });
        assert_eq!(failed, ["semantics::two"]);
        assert_eq!(skipped, ["two: no python3 here"]);
        report.add("@@ done");
        assert!(report.done);
    }

    #[test]
    fn a_table_ends_where_its_columns_end() {
        let mut report = Report::default();
        SAID.lines().filter(|line| !line.starts_with("MSG_OOB")).for_each(|line| report.add(line));
        let checks: Vec<_> = report.semantics().into_iter().map(|row| (row.check, row.plain, row.redirected)).collect();
        let row = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(checks, [row("FIONREAD of 1000", "1000", "0"), row("sendfile of 64", "intact", "intact")]);
    }
}
