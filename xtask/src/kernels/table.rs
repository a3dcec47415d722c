//! Feature by kernel, side by side.

use std::fmt::Write as _;

use super::report::{Found, Report};

/// Parts of `sockmesh check` that tell of this very machine, not of its kernel.
const OF_THE_MACHINE: &[&str] =
    &["kernel", "rights", "eBPF object", "cgroup v2", "bpffs", "network namespace", "IPv6 loopback"];

/// What works where.
pub fn features(reports: &[Report]) -> String {
    let cell = |well: bool| if well { "yes" } else { "no" }.to_owned();
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    let mut set = |name: &str, column: usize, text: String| {
        let row = match rows.iter().position(|(known, _)| known == name) {
            Some(row) => row,
            None => {
                rows.push((name.to_owned(), vec!["-".to_owned(); reports.len()]));
                rows.len() - 1
            }
        };
        rows[row].1[column] = text;
    };
    for (i, report) in reports.iter().enumerate() {
        for (name, found) in report.features() {
            let of_the_machine = OF_THE_MACHINE.contains(&name.as_str())
                || ["ports.", "control group ", "listen", "export", "enrolled", "capture: "]
                    .iter()
                    .any(|p| name.starts_with(p));
            if !of_the_machine {
                set(&name, i, cell(found == Found::Well));
            }
        }
        if let Some(code) = report.code("redirect") {
            set("redirect: auto may redirect", i, cell(code == 0));
        }
        if let Some((capture, _)) = report.capture() {
            set("capture: auto takes", i, capture);
        }
        if let Some((tally, ..)) = report.tests() {
            set("kernel tests passed", i, format!("{} of {}", tally.passed, tally.passed + tally.failed));
        }
    }
    text("feature", reports, &rows)
}

/// What redirected sockets answer where, beside plain TCP's answer.
pub fn semantics(reports: &[Report]) -> String {
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for (i, report) in reports.iter().enumerate() {
        for row in report.semantics() {
            let name = format!("{} (plain: {})", row.check, row.plain);
            let at = match rows.iter().position(|(known, _)| *known == name) {
                Some(at) => at,
                None => {
                    rows.push((name, vec!["-".to_owned(); reports.len()]));
                    rows.len() - 1
                }
            };
            rows[at].1[i] = row.redirected;
        }
    }
    text("redirected", reports, &rows)
}

fn text(corner: &str, reports: &[Report], rows: &[(String, Vec<String>)]) -> String {
    let heads = reports.iter().map(|report| report.release.trim_end_matches("-cloud-amd64").to_owned()).collect();
    let all: Vec<(String, Vec<String>)> =
        std::iter::once((corner.to_owned(), heads)).chain(rows.iter().cloned()).collect();
    let first = all.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let widths: Vec<_> =
        (0..reports.len()).map(|i| all.iter().map(|(_, cells)| cells[i].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for (name, cells) in all {
        let mut line = format!("{name:first$}");
        for (cell, width) in cells.iter().zip(&widths) {
            _ = write!(line, "  {cell:width$}");
        }
        _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &[&str]) -> Report {
        let mut report = Report::default();
        lines.iter().for_each(|line| report.add(line));
        report
    }

    #[test]
    fn kernels_stand_side_by_side() {
        let old = report(&[
            "@@ release 5.10.0-1-cloud-amd64",
            "@@ begin check",
            "✓ kernel: 5.10",
            "✗ maps: no",
            "✓ ports.admin 127.0.0.1:8002: free",
            "@@ end check 1",
        ]);
        let new = report(&[
            "@@ release 6.1.0-1-cloud-amd64",
            "@@ begin check",
            "✓ maps: created",
            "✓ program a (B): the kernel takes it",
            "@@ end check 0",
            "@@ begin tests",
            "test result: ok. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3s",
            "@@ end tests 0",
        ]);
        assert_eq!(
            features(&[old, new]),
            "feature              5.10.0-1  6.1.0-1\n\
             maps                 no        yes\n\
             program a (B)        -         yes\n\
             kernel tests passed  -         4 of 5\n"
        );
    }

    #[test]
    fn answers_of_redirected_sockets_stand_side_by_side() {
        let with = |answer: &str| {
            let row = format!("peek  1, 1  {answer}  -");
            report(&["@@ release 6-cloud-amd64", "@@ begin redirect", "CHECK  PLAIN TCP  REDIRECTED  X", &row])
        };
        assert_eq!(
            semantics(&[with("1, 1"), with("1, 0")]),
            "redirected          6     6\npeek (plain: 1, 1)  1, 1  1, 0\n"
        );
    }
}
