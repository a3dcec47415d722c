//! Whether a condition holds, from figures alone: bounds and budgets. No clock, no network.

use model::center::{Of, Series};

use super::rules::column;

/// What looking found.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The condition holds.
    Holds(Box<Finding>),
    /// It does not.
    Fine,
    /// There are no figures to say so: whatever stood goes on standing.
    Unknown,
}

/// Why it holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Finding {
    /// In a sentence, with the value and the bound.
    pub summary: String,
    /// What was looked at.
    pub series: Option<Series>,
    /// Lower and upper bounds, as long as the series.
    pub band: Vec<(f64, f64)>,
}

impl Verdict {
    /// It holds, for this reason.
    pub fn holds(summary: String, series: Series, band: Vec<(f64, f64)>) -> Self {
        Self::Holds(Box::new(Finding { summary, series: Some(series), band }))
    }
}

/// Fewer calls than this within the short window prove nothing about a budget.
const CALLS: f64 = 20.0;

/// For a single failed call nobody is woken.
const FAILED: f64 = 2.0;

/// `echo in idc-a at 10.0.0.1:80`.
pub fn name(of: &Of) -> String {
    let mut name = if of.service.is_empty() { "all services".to_owned() } else { of.service.clone() };
    for (word, part) in [("in", &of.group), ("at", &of.instance), ("called by", &of.caller)] {
        if !part.is_empty() {
            name.push_str(&format!(" {word} {part}"));
        }
    }
    name
}

/// For people: without digits that say nothing.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 1.0 => 1,
        v if v >= 0.01 => 3,
        _ => 5,
    };
    format!("{value:.digits$}")
}

/// A bound is passed in every known window of the last `for_ms`, of which at least half are known.
pub fn threshold(series: Series, figure: &str, above: Option<f64>, below: Option<f64>, for_ms: u64) -> Verdict {
    let Some(values) = column(&series, figure) else { return Verdict::Unknown };
    let Some(end) = series.at_ms.last().copied() else { return Verdict::Unknown };
    let within = series.at_ms.iter().zip(values).filter(|(at, _)| **at + for_ms > end);
    let (mut windows, mut known, mut out) = (0, 0, 0);
    let passed = |value: f64| above.is_some_and(|bound| value > bound) || below.is_some_and(|bound| value < bound);
    let mut last = None;
    for (_, value) in within {
        windows += 1;
        if let Some(value) = value {
            known += 1;
            out += usize::from(passed(*value));
            last = Some(*value);
        }
    }
    let Some(last) = last.filter(|_| known * 2 >= windows) else { return Verdict::Unknown };
    // Not longer looked at than it is known: a service that began a moment ago has not been slow for a minute.
    let began = series.at_ms.iter().zip(values).find(|(_, value)| value.is_some()).map_or(end, |(at, _)| *at);
    if out < known || began + for_ms > end + series.step_ms.max(1) {
        return Verdict::Fine;
    }
    let (word, bound) = match (above, below) {
        (Some(above), _) if last > above => ("above", above),
        (_, Some(below)) => ("below", below),
        (above, _) => ("above", above.unwrap_or_default()),
    };
    let summary = format!(
        "{figure} of {} is {}, {word} {} for {} s",
        name(&series.of),
        number(last),
        number(bound),
        for_ms / 1000
    );
    // Open sides end where the picture does.
    let highest = values.iter().flatten().copied().fold(0.0, f64::max);
    let band = (below.unwrap_or(0.0), above.unwrap_or_else(|| highest.max(below.unwrap_or(0.0))));
    let band = vec![band; series.at_ms.len()];
    Verdict::holds(summary, series, band)
}

/// Both windows spend the budget of `objective_percent` at least `factor` times as fast as would just spend it.
pub fn burn_rate(series: Series, objective_percent: f64, long_ms: u64, short_ms: u64, factor: f64) -> Verdict {
    let Some(end) = series.at_ms.last().copied() else { return Verdict::Unknown };
    let budget = 1.0 - objective_percent / 100.0;
    let seconds = series.step_ms as f64 / 1000.0;
    let spent = |window: u64| {
        let (mut calls, mut failed) = (0.0, 0.0);
        for ((at, rate), success) in series.at_ms.iter().zip(&series.rate).zip(&series.success) {
            if let (true, Some(rate), Some(success)) = (*at + window > end, rate, success) {
                calls += rate * seconds;
                failed += rate * seconds * (1.0 - success);
            }
        }
        (calls, failed)
    };
    let (short, long) = (spent(short_ms), spent(long_ms));
    if long.0 == 0.0 {
        return Verdict::Unknown;
    }
    // No calls, no errors: nobody is hurt now.
    let pace = |(calls, failed): (f64, f64)| if calls > 0.0 { failed / calls / budget } else { 0.0 };
    if short.0 < CALLS || short.1 < FAILED - 1e-6 || pace(short) < factor || pace(long) < factor {
        return Verdict::Fine;
    }
    let summary = format!(
        "{} of {} calls of {} failed within {} s: the budget of {objective_percent} % is spent {} times as fast as it \
         lasts ({} times over {} s)",
        number(short.1),
        number(short.0),
        name(&series.of),
        short_ms / 1000,
        number(pace(short)),
        number(pace(long)),
        long_ms / 1000
    );
    let band = vec![(1.0 - budget * factor, 1.0); series.at_ms.len()];
    Verdict::holds(summary, series, band)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A series by seconds that ends at 1,000 s.
    fn series(rate: &[Option<f64>], success: &[Option<f64>]) -> Series {
        let count = rate.len() as u64;
        let of = Of { service: "echo".to_owned(), group: "a".to_owned(), ..Of::default() };
        let at_ms = (0..count).map(|n| 1_000_000 - (count - 1 - n) * 1000).collect();
        Series { of, step_ms: 1000, at_ms, rate: rate.to_vec(), success: success.to_vec(), ..Series::default() }
    }

    fn rates(rates: &[f64]) -> Series {
        let rates: Vec<_> = rates.iter().map(|rate| (!rate.is_nan()).then_some(*rate)).collect();
        series(&rates, &vec![None; rates.len()])
    }

    #[test]
    fn a_bound_must_be_passed_all_the_time() {
        let no = f64::NAN;
        let above = |values: &[f64]| threshold(rates(values), "rate", Some(10.0), None, 3000);
        let holds = |verdict: Verdict| matches!(verdict, Verdict::Holds(_));
        assert!(holds(above(&[1.0, 11.0, 12.0, 13.0])));
        assert!(holds(above(&[11.0, no, 13.0])), "one window of three is missing");
        assert_eq!(above(&[11.0, 9.0, 13.0]), Verdict::Fine);
        assert_eq!(above(&[11.0, 10.0, 13.0]), Verdict::Fine, "at the bound is not above it");
        assert_eq!(above(&[12.0, 13.0]), Verdict::Fine, "known for two seconds only");
        assert_eq!(above(&[11.0, 12.0, no, no, no]), Verdict::Unknown);
        assert_eq!(above(&[]), Verdict::Unknown);
        assert!(holds(threshold(rates(&[0.0; 5]), "rate", None, Some(1.0), 5000)));
        let Verdict::Holds(finding) = above(&[11.0, 12.0, 13.0]) else { panic!() };
        assert_eq!(finding.summary, "rate of echo in a is 13.0, above 10.0 for 3 s");
        assert_eq!(finding.band.len(), 3);
    }

    #[test]
    fn a_budget_is_spent_too_fast_in_both_windows() {
        // 100 calls a second, 60 s long and 10 s short, 99 %: a factor of 5 is 5 % of errors.
        let burn = |errors: &dyn Fn(usize) -> f64| {
            let success: Vec<_> = (0..60).map(|n| Some(1.0 - errors(n))).collect();
            burn_rate(series(&[Some(100.0); 60], &success), 99.0, 60_000, 10_000, 5.0)
        };
        let holds = |verdict: Verdict| matches!(verdict, Verdict::Holds(_));
        assert!(holds(burn(&|_| 0.06)));
        assert!(!holds(burn(&|_| 0.04)));
        assert!(!holds(burn(&|n| if n < 40 { 0.2 } else { 0.0 })), "over already");
        assert!(!holds(burn(&|n| if n == 59 { 1.0 } else { 0.0 })), "one bad second of a minute");
        let few: Vec<_> = (0..60).map(|n| Some(if n == 59 { 1.9 } else { 0.0 })).collect();
        assert_eq!(burn_rate(series(&few, &[Some(0.0); 60]), 99.0, 60_000, 10_000, 5.0), Verdict::Fine);
        assert_eq!(burn_rate(series(&[None; 60], &[None; 60]), 99.0, 60_000, 10_000, 5.0), Verdict::Unknown);
    }
}
