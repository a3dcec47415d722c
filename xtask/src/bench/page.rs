//! `docs/benchmarks.md`: its figures are written by the command that measured them.

use std::{fmt::Write as _, fs};

use anyhow::{Context, Result};

use super::{
    Origin, Plan, picture,
    rows::{self, Outcome},
    way::Way,
};
use crate::sh;

const PAGE: &str = "docs/benchmarks.md";
const PICTURE: &str = "docs/benchmarks.svg";
/// The figures stand between these lines.
const BEGIN: &str = "<!-- figures: written by `cargo xtask bench --write` -->\n";
/// And those of the Motan2 line between these.
const MOTAN: &str = "<!-- figures: written by `cargo xtask bench motan --write` -->\n";
const END: &str = "<!-- end -->";

/// Writes the figures into the page, and the picture beside it where it is about all ways.
pub fn write(origin: &Origin, plan: &Plan, outcome: &Outcome) -> Result<()> {
    let page = sh::root().join(PAGE);
    let text = fs::read_to_string(&page).with_context(|| format!("cannot read {PAGE}"))?;
    let text = replaced(&text, begin(plan.base), &figures(origin, plan, outcome))
        .with_context(|| format!("{PAGE} lacks the lines that enclose the figures"))?;
    fs::write(&page, text).with_context(|| format!("cannot write {PAGE}"))?;
    println!("wrote {PAGE}");
    if plan.base == Way::Direct {
        fs::write(sh::root().join(PICTURE), picture::svg(outcome))
            .with_context(|| format!("cannot write {PICTURE}"))?;
        println!("wrote {PICTURE}");
    }
    Ok(())
}

fn begin(base: Way) -> &'static str {
    if base == Way::Direct { BEGIN } else { MOTAN }
}

fn replaced(text: &str, begin: &str, figures: &str) -> Option<String> {
    let (before, rest) = text.split_once(begin)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{begin}{figures}{END}{after}"))
}

fn figures(origin: &Origin, plan: &Plan, outcome: &Outcome) -> String {
    let Origin { machine, kernel, commit, day } = origin;
    let mut text = format!(
        "\n{day}, {machine}, Linux {kernel}, commit {commit}. {} rounds of {} ms, medians.\n",
        plan.rounds,
        plan.measured.as_millis()
    );
    if plan.base == Way::Direct {
        text.push_str("\n![Rates as multiples of plain loopback](benchmarks.svg)\n");
    }
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
        assert_eq!(replaced(&page, BEGIN, "new\n"), Some(format!("# A\n\n{BEGIN}new\n{END}\n\nB\n")));
        assert_eq!(replaced("# A\n", BEGIN, "new"), None);
    }

    #[test]
    fn the_page_has_a_place_for_the_figures() {
        let page = fs::read_to_string(sh::root().join(PAGE)).unwrap();
        for base in [Way::Direct, Way::MotanGoPair] {
            assert!(replaced(&page, begin(base), "").is_some());
        }
    }
}
