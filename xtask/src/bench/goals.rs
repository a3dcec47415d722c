//! What the Motan2 line is to reach beside the agents of Weibo Mesh, and whether it did.

use super::{
    rows::{Outcome, Row},
    way::Way,
};

/// Most resident memory of one of our agents before the first call, and under load; MiB.
const IDLE_MIB: f64 = 10.0;
const LOADED_MIB: f64 = 16.0;

/// One line for each goal: what was asked, what was found.
pub fn lines(outcome: &Outcome) -> Vec<String> {
    let row = |way, callers| {
        outcome.rows.iter().find(|row| row.way == way && row.cell.callers == callers && row.cell.load == "motan32")
    };
    let both = |way, callers| Some((row(way, callers)?, row(Way::MotanGoPair, callers)?));
    let mut lines = Vec::new();
    let mut at_least = |what: &str, goal: f64, found: Option<f64>| lines.push(line(what, ">=", goal, found, f64::ge));
    let x = |row: &Row| row.x_base.map(|x| x.median);
    at_least("pair, calls/s at 64 callers, x motan-go", 3.0, row(Way::Pair, 64).and_then(x));
    at_least("one agent with redirect, calls/s at 64 callers, x motan-go", 5.0, row(Way::Redirect, 64).and_then(x));
    let mut at_most = |what: &str, goal: f64, found: Option<f64>| lines.push(line(what, "<=", goal, found, f64::le));
    let p50 = |row: &Row| row.p50_x_base.map(|x| x.median);
    at_most("pair, p50 at 1 caller, x motan-go", 0.4, row(Way::Pair, 1).and_then(p50));
    let cpu = |(own, base): (&Row, &Row)| Some(own.cpu_s_per_100k? / base.cpu_s_per_100k?);
    at_most("pair, CPU seconds per call at 64 callers, x motan-go", 0.2, both(Way::Pair, 64).and_then(cpu));
    let idle = outcome.idle.iter().find(|(way, _)| *way == Way::Pair).map(|(_, bytes)| *bytes as f64 / 1_048_576.0);
    at_most("one agent of the pair, MiB resident idle", IDLE_MIB, idle);
    at_most(
        "one agent of the pair, MiB resident at 64 callers",
        LOADED_MIB,
        row(Way::Pair, 64).and_then(|r| r.rss_mib),
    );
    lines
}

fn line(what: &str, sign: &str, goal: f64, found: Option<f64>, reached: fn(&f64, &f64) -> bool) -> String {
    let Some(found) = found else { return format!("goal {what} {sign} {goal}: not measured") };
    let verdict = if reached(&found, &goal) { "reached" } else { "NOT REACHED" };
    format!("goal {what} {sign} {goal}: {found:.2}, {verdict}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_without_figures_are_not_called_reached() {
        let lines = lines(&Outcome::new(Way::MotanGoPair, 1));
        assert_eq!(lines.len(), 6);
        assert!(lines.iter().all(|line| line.ends_with("not measured")), "{lines:?}");
        assert!(line("x", "<=", 0.4, Some(0.41), f64::le).ends_with("0.41, NOT REACHED"));
        assert!(line("x", "<=", 0.4, Some(0.4), f64::le).ends_with("0.40, reached"));
    }
}
