//! Medians of rounds, as a table for people and as JSON for programs.

use std::fmt::Write as _;

use super::{cell::Cell, goals, way::Way, world::Sample};

/// A median with the least and the most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

/// One way under one load on some CPUs: medians over the rounds.
#[derive(Clone, Debug)]
pub struct Row {
    pub way: Way,
    pub cell: Cell,
    pub cpus: usize,
    /// Calls in a second; megabytes of the bulk load.
    pub rate: f64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    /// CPU seconds of the agent for 100,000 calls; for 100,000 MB of the bulk load.
    pub cpu_s_per_100k: Option<f64>,
    pub rss_mib: Option<f64>,
    /// The rate as a multiple of what the base of all ratios has in the same round.
    pub x_base: Option<Spread>,
    /// The same of the median latency.
    pub p50_x_base: Option<Spread>,
}

/// Everything that was found.
#[derive(Debug)]
pub struct Outcome {
    /// Whose figures the others are multiples of.
    pub base: Way,
    pub rounds: usize,
    pub rows: Vec<Row>,
    /// Ways that this agent or this host does not have, and why.
    pub missing: Vec<(Way, String)>,
    pub failures: Vec<String>,
    pub warnings: Vec<String>,
    /// Resident memory of agents before the first call, bytes.
    pub idle: Vec<(Way, u64)>,
    /// Share of the CPUs' time that others used, 0 to 1.
    pub foreign: f64,
}

impl Outcome {
    /// Nothing found yet.
    pub fn new(base: Way, rounds: usize) -> Self {
        let (rows, missing, failures, warnings, idle) = Default::default();
        Self { base, rounds, rows, missing, failures, warnings, idle, foreign: 0.0 }
    }

    /// A way could not be had.
    pub fn unavailable(&mut self, way: Way, why: String) {
        if !self.missing.iter().any(|(missing, _)| *missing == way) {
            self.missing.push((way, why));
        }
    }

    /// An agent has started.
    pub fn idle(&mut self, way: Way, memory: Option<u64>) {
        if !self.idle.iter().any(|(other, _)| *other == way) {
            self.idle.extend(memory.map(|memory| (way, memory)));
        }
    }

    /// A measurement failed.
    pub fn failed(&mut self, way: Way, cell: Cell, cpus: usize, why: &str) {
        let Cell { load, callers } = cell;
        self.failures.push(format!("{} under {load} at {callers} callers on {cpus} CPUs: {why}", way.name()));
    }
}

impl Row {
    /// From the samples of all rounds, each with plain loopback's of the same round.
    pub fn of(way: Way, cell: Cell, cpus: usize, rounds: &[(Sample, Option<Sample>)]) -> Self {
        let own = |value: fn(&Sample) -> Option<f64>| {
            spread(rounds.iter().filter_map(|(own, _)| value(own))).map(|spread| spread.median)
        };
        let ratio = |value: fn(&Sample) -> Option<f64>| {
            spread(rounds.iter().filter_map(|(own, direct)| Some(value(own)? / value(direct.as_ref()?)?)))
        };
        Self {
            way,
            cell,
            cpus,
            rate: own(|sample| Some(sample.rate)).unwrap_or(0.0),
            p50_us: own(|sample| sample.p50_us),
            p99_us: own(|sample| sample.p99_us),
            cpu_s_per_100k: own(|sample| Some(sample.agent_cpu? / sample.total * 100_000.0)),
            rss_mib: own(|sample| Some(sample.agent_memory? as f64 / f64::from(1 << 20))),
            x_base: ratio(|sample| Some(sample.rate)),
            p50_x_base: ratio(|sample| sample.p50_us),
        }
    }
}

fn spread(values: impl Iterator<Item = f64>) -> Option<Spread> {
    let mut values: Vec<_> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let (least, most) = (*values.first()?, *values.last()?);
    let half = values.len() / 2;
    let median = if values.len() % 2 == 1 { values[half] } else { f64::midpoint(values[half - 1], values[half]) };
    Some(Spread { median, least, most })
}

/// Heads of the columns.
fn heads(base: Way) -> [String; 9] {
    let x = format!("x {}", base.name());
    ["path", "rate", &x, "(least to most)", "p50 us", "p99 us", "p50 x", "CPU s/100k", "RSS MiB"].map(str::to_owned)
}

/// The cells of the table, one list for each load on some CPUs: its title, then its lines.
pub fn tables(outcome: &Outcome) -> Vec<(String, Vec<[String; 9]>)> {
    let mut all: Vec<(String, Vec<_>)> = Vec::new();
    for row in &outcome.rows {
        let cpus = if row.cpus == 1 { "one CPU".to_owned() } else { format!("{} CPUs", row.cpus) };
        let callers =
            if row.cell.callers == 1 { "1 caller".to_owned() } else { format!("{} callers", row.cell.callers) };
        let title = format!("{} ({}), {callers}, {cpus}", row.cell.load, row.cell.unit());
        if all.last().is_none_or(|(last, _)| *last != title) {
            all.push((title.clone(), vec![heads(outcome.base)]));
        }
        let number = |value: Option<f64>, digits| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.digits$}"));
        let ends = row.x_base.map_or_else(|| "-".to_owned(), |x| format!("{:.2} to {:.2}", x.least, x.most));
        let line = [
            row.way.name().to_owned(),
            number(Some(row.rate), 0),
            number(row.x_base.map(|x| x.median), 2),
            ends,
            number(row.p50_us, 1),
            number(row.p99_us, 1),
            number(row.p50_x_base.map(|x| x.median), 2),
            number(row.cpu_s_per_100k, 2),
            number(row.rss_mib, 1),
        ];
        if let Some((_, lines)) = all.last_mut() {
            lines.push(line);
        }
    }
    all
}

/// Notes below the tables: what is missing, what failed, what to beware of.
pub fn notes(outcome: &Outcome) -> Vec<String> {
    let mut notes: Vec<_> =
        outcome.missing.iter().map(|(way, why)| format!("{}: not available: {why}", way.name())).collect();
    if outcome.base == Way::MotanGoPair {
        notes.extend(goals::lines(outcome));
        notes.push("RSS is that of the larger agent of a pair, CPU time that of both".to_owned());
    }
    let idle = |(way, bytes): &(Way, u64)| format!("{} {:.1}", way.name(), *bytes as f64 / f64::from(1 << 20));
    if !outcome.idle.is_empty() {
        let list: Vec<_> = outcome.idle.iter().map(idle).collect();
        notes.push(format!("resident memory before the first call, MiB: {}", list.join(", ")));
    }
    notes.push(format!("used by others while it was measured: {:.1} % of the CPU time", outcome.foreign * 100.0));
    notes.extend(outcome.failures.iter().map(|failure| format!("FAILED: {failure}")));
    notes.extend(outcome.warnings.iter().map(|warning| format!("WARNING: {warning}")));
    notes
}

/// For a terminal.
pub fn table(outcome: &Outcome) -> String {
    let mut text =
        format!("Medians, rounds: {}; ratios to {} in the same round.\n", outcome.rounds, outcome.base.name());
    for (title, lines) in tables(outcome) {
        _ = writeln!(text, "\n{title}");
        for line in lines {
            let [path, numbers @ ..] = line;
            _ = write!(text, "  {path:<14}");
            for (number, width) in numbers.iter().zip([10, 15, 16, 9, 9, 7, 11, 8]) {
                _ = write!(text, " {number:>width$}");
            }
            text.push('\n');
        }
    }
    text.push('\n');
    for note in notes(outcome) {
        _ = writeln!(text, "{note}");
    }
    text
}

/// A list with one object for each row, each on a line of its own. What a row does not have is `null`.
pub fn json(outcome: &Outcome) -> String {
    let base = outcome.base.name().replace([' ', '-'], "_");
    let number = |value: Option<f64>| value.map_or_else(|| "null".to_owned(), |value| format!("{value:.4}"));
    let object = |row: &Row| {
        let x = |spread: Option<Spread>, part: fn(&Spread) -> f64| number(spread.as_ref().map(part));
        format!(
            "{{\"path\": \"{}\", \"load\": \"{}\", \"callers\": {}, \"cpus\": {}, \"rate\": {}, \"p50_us\": {}, \
             \"p99_us\": {}, \"cpu_s_per_100k\": {}, \"rss_mib\": {}, \"x_{base}\": {}, \"x_{base}_least\": {}, \
             \"x_{base}_most\": {}, \"p50_x_{base}\": {}}}",
            row.way.name(),
            row.cell.load,
            row.cell.callers,
            row.cpus,
            number(Some(row.rate)),
            number(row.p50_us),
            number(row.p99_us),
            number(row.cpu_s_per_100k),
            number(row.rss_mib),
            x(row.x_base, |x| x.median),
            x(row.x_base, |x| x.least),
            x(row.x_base, |x| x.most),
            x(row.p50_x_base, |x| x.median),
        )
    };
    format!("[\n{}\n]\n", outcome.rows.iter().map(object).collect::<Vec<_>>().join(",\n"))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An outcome with one way beside plain loopback.
    pub fn outcome() -> Outcome {
        let cell = Cell { load: "echo", callers: 16 };
        let sample = |rate, agent_cpu| Sample {
            rate,
            p50_us: Some(1e6 / rate),
            p99_us: Some(2e6 / rate),
            total: rate,
            agent_cpu,
            agent_memory: agent_cpu.map(|_| 10 << 20),
        };
        let direct = [100.0, 200.0, 400.0].map(|rate| sample(rate, None));
        let ebpf = [50.0, 80.0, 240.0].map(|rate| sample(rate, Some(0.5)));
        let mut outcome = Outcome::new(Way::Direct, 3);
        for (way, own) in [(Way::Direct, direct), (Way::Ebpf, ebpf)] {
            let pairs: Vec<_> = own.into_iter().zip(direct.map(Some)).collect();
            outcome.rows.push(Row::of(way, cell, 1, &pairs));
        }
        outcome.unavailable(Way::Iptables, "no iptables".to_owned());
        outcome
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let row = &outcome().rows[1];
        assert_eq!(row.rate, 80.0);
        // 0.5, 0.4, 0.6: the median of the ratios, not the ratio of the medians (0.4).
        assert_eq!(row.x_base, Some(Spread { median: 0.5, least: 0.4, most: 0.6 }));
        assert_eq!(row.rss_mib, Some(10.0));
        assert_eq!(row.cpu_s_per_100k, Some(625.0));
    }

    #[test]
    fn what_is_not_there_is_said_and_not_made_up() {
        let outcome = outcome();
        let text = table(&outcome);
        assert!(text.contains("iptables: not available: no iptables"), "{text}");
        assert!(!json(&outcome).contains("iptables"));
        let first = json(&outcome).lines().nth(1).unwrap().to_owned();
        assert!(
            first.starts_with("{\"path\": \"direct\", \"load\": \"echo\", \"callers\": 16, \"cpus\": 1,"),
            "{first}"
        );
        assert!(first.contains("\"cpu_s_per_100k\": null") && first.contains("\"x_direct\": 1.0000"), "{first}");
    }
}
