//! `docs/benchmarks.md`: its figures are written by the command that measured them.

use std::{fmt::Write as _, fs};

use anyhow::{Context, Result};

use super::{
    Origin, Plan, picture,
    rows::{self, Outcome},
};
use crate::sh;

const PAGE: &str = "docs/benchmarks.md";
const PICTURE: &str = "docs/benchmarks.svg";
/// The figures stand between these lines.
const BEGIN: &str = "<!-- figures: written by `cargo xtask bench --write` -->\n";
const END: &str = "<!-- end -->";

/// Writes the figures into the page, and the picture beside it.
pub fn write(origin: &Origin, plan: &Plan, outcome: &Outcome) -> Result<()> {
    let page = sh::root().join(PAGE);
    let text = fs::read_to_string(&page).with_context(|| format!("cannot read {PAGE}"))?;
    let text = replaced(&text, &figures(origin, plan, outcome))
        .with_context(|| format!("{PAGE} lacks the lines that enclose the figures"))?;
    fs::write(&page, text).with_context(|| format!("cannot write {PAGE}"))?;
    fs::write(sh::root().join(PICTURE), picture::svg(outcome)).with_context(|| format!("cannot write {PICTURE}"))?;
    println!("wrote {PAGE} and {PICTURE}");
    Ok(())
}

fn replaced(text: &str, figures: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{figures}{END}{after}"))
}

fn figures(origin: &Origin, plan: &Plan, outcome: &Outcome) -> String {
    let Origin { machine, kernel, commit, day } = origin;
    let mut text = format!(
        "\n{day}, {machine}, Linux {kernel}, commit {commit}. {} rounds of {} ms, medians.\n\n\
         ![Rates as multiples of plain loopback](benchmarks.svg)\n",
        plan.rounds,
        plan.measured.as_millis()
    );
    for (title, lines) in rows::tables(outcome) {
        _ = writeln!(text, "\n### {title}\n");
        for (at, line) in lines.iter().enumerate() {
            _ = writeln!(text, "| {} |", line.join(" | "));
            if at == 0 {
                _ = writeln!(text, "|{}", " --- |".repeat(line.len()));
            }
        }
    }
    text.push('\n');
    for note in rows::notes(outcome) {
        _ = writeln!(text, "- {note}");
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_figures_of_the_page_change() {
        let page = format!("# A\n\n{BEGIN}old\n{END}\n\nB\n");
        assert_eq!(replaced(&page, "new\n"), Some(format!("# A\n\n{BEGIN}new\n{END}\n\nB\n")));
        assert_eq!(replaced("# A\n", "new"), None);
    }

    #[test]
    fn the_page_has_a_place_for_the_figures() {
        let page = fs::read_to_string(sh::root().join(PAGE)).unwrap();
        assert!(replaced(&page, "").is_some());
    }
}
