//! Rules: what is allowed in one, and those that hold without anybody writing one.

use model::center::{AlertRule, Condition, Of, Series};

use crate::error::Error;

/// Longest name of a rule.
const NAME: usize = 100;
/// Longest window of a rule.
const LONGEST_MS: u64 = 31 * 24 * 3_600_000;
/// Most webhooks of one rule.
const WEBHOOKS: usize = 10;
/// Severities.
const SEVERITIES: &[&str] = &["page", "ticket"];

/// A column of a series by its name.
pub fn column<'a>(series: &'a Series, figure: &str) -> Option<&'a [Option<f64>]> {
    Some(match figure {
        "rate" => &series.rate,
        "success" => &series.success,
        "mean_ms" => &series.mean_ms,
        "p50_ms" => &series.p50_ms,
        "p99_ms" => &series.p99_ms,
        "p999_ms" => &series.p999_ms,
        "slow" => &series.slow,
        _ => return None,
    })
}

/// Rules that hold unless the file says `usual: false`.
pub fn usual() -> Vec<AlertRule> {
    let rule = |name: &str, severity: &str, condition| AlertRule {
        name: name.to_owned(),
        of: Of::default(),
        condition,
        severity: severity.to_owned(),
        webhooks: Vec::new(),
    };
    let burn = |long_ms, short_ms, factor| Condition::BurnRate { objective_percent: 99.9, long_ms, short_ms, factor };
    let outlier = |figure: &str| Condition::Outlier { figure: figure.to_owned(), sensitivity: 0.5 };
    vec![
        // The two windows of the usual practice: 2 % of a month's budget in an hour, 5 % in six.
        rule("errors-fast", "page", burn(3_600_000, 300_000, 14.4)),
        rule("errors-slow", "ticket", burn(6 * 3_600_000, 1_800_000, 6.0)),
        rule("pool-fatal", "page", Condition::Water { line: "fatal".to_owned() }),
        rule("slow-instance", "ticket", outlier("mean_ms")),
        rule("failing-instance", "ticket", outlier("success")),
    ]
}

/// Settles what a rule leaves open; refuses what cannot be looked at.
///
/// # Errors
/// Names the field, its value and what to write instead.
pub fn settle(mut rule: AlertRule) -> Result<AlertRule, Error> {
    let wrong = |what: String, remedy: &str| Err(Error::bad(format!("rule `{}`: {what}", rule.name), remedy));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if rule.name.is_empty() || rule.name.len() > NAME || !rule.name.chars().all(plain) {
        return wrong("its name is no name".to_owned(), "use letters, digits, `-`, `_` and `.`, at most 100");
    }
    if matches!(rule.name.as_str(), "." | "..") {
        return wrong("its name is no name".to_owned(), "use at least one letter or digit");
    }
    if rule.severity.is_empty() {
        "ticket".clone_into(&mut rule.severity);
    } else if !SEVERITIES.contains(&rule.severity.as_str()) {
        return wrong(format!("`severity: {}`", rule.severity), "write page or ticket");
    }
    if rule.webhooks.len() > WEBHOOKS {
        return wrong(format!("{} webhooks", rule.webhooks.len()), "name at most 10");
    }
    let figure = |name: &str| column(&Series::default(), name).is_some();
    const FIGURES: &str = "write rate, success, mean_ms, p50_ms, p99_ms, p999_ms or slow";
    match &rule.condition {
        Condition::Threshold { figure: name, above, below, for_ms } => {
            if !figure(name) {
                return wrong(format!("`figure: {name}`"), FIGURES);
            }
            if above.is_none() && below.is_none() {
                return wrong("no bound".to_owned(), "write `above`, `below` or both");
            }
            if [above, below].into_iter().flatten().any(|bound| !bound.is_finite()) {
                return wrong("a bound that is no number".to_owned(), "write a number");
            }
            if !(1_000..=LONGEST_MS).contains(for_ms) {
                return wrong(format!("`for_ms: {for_ms}`"), "write 1000 (a second) to 31 days");
            }
        }
        Condition::BurnRate { objective_percent, long_ms, short_ms, factor } => {
            if !(*objective_percent > 0.0 && *objective_percent < 100.0) {
                return wrong(format!("`objective_percent: {objective_percent}`"), "write less than 100, such as 99.9");
            }
            if !(5_000..=LONGEST_MS).contains(short_ms) || !(short_ms..=&LONGEST_MS).contains(&long_ms) {
                return wrong(
                    format!("`short_ms: {short_ms}` and `long_ms: {long_ms}`"),
                    "write at least 5000, the short one not above the long one, at most 31 days",
                );
            }
            if !(factor.is_finite() && *factor > 0.0) {
                return wrong(format!("`factor: {factor}`"), "write a number above 0, such as 14.4");
            }
        }
        Condition::Forecast { figure: name, level_percent } => {
            if !figure(name) {
                return wrong(format!("`figure: {name}`"), FIGURES);
            }
            if !(*level_percent >= 50.0 && *level_percent < 100.0) {
                return wrong(format!("`level_percent: {level_percent}`"), "write 50 to 99.99, such as 99");
            }
        }
        Condition::Outlier { figure: name, sensitivity } => {
            if !figure(name) {
                return wrong(format!("`figure: {name}`"), FIGURES);
            }
            if !(*sensitivity > 0.0 && *sensitivity < 1.0) {
                return wrong(format!("`sensitivity: {sensitivity}`"), "write between 0 and 1, such as 0.5");
            }
        }
        Condition::Water { line } => {
            if !matches!(line.as_str(), "warning" | "fatal") {
                return wrong(format!("`line: {line}`"), "write warning or fatal");
            }
        }
    }
    Ok(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_rules_are_rules() {
        for rule in usual() {
            assert_eq!(settle(rule.clone()), Ok(rule));
        }
    }

    #[test]
    fn what_cannot_be_looked_at_is_refused() {
        let threshold = |more: &str| format!(r#"{{"kind":"threshold","figure":"rate","for_ms":1000{more}}}"#);
        for (name, condition, part) in [
            ("", threshold(r#","above":1"#), "no name"),
            ("a/b", threshold(r#","above":1"#), "no name"),
            ("..", threshold(r#","above":1"#), "no name"),
            ("a", threshold(""), "`above`, `below` or both"),
            ("a", r#"{"kind":"threshold","figure":"color","for_ms":1000,"above":1}"#.to_owned(), "`figure: color`"),
            ("a", r#"{"kind":"threshold","figure":"rate","for_ms":0,"above":1}"#.to_owned(), "31 days"),
            (
                "a",
                r#"{"kind":"burn_rate","objective_percent":100,"long_ms":9000,"short_ms":6000,"factor":2}"#.into(),
                "99.9",
            ),
            (
                "a",
                r#"{"kind":"burn_rate","objective_percent":99,"long_ms":9000,"short_ms":9001,"factor":2}"#.into(),
                "short",
            ),
            (
                "a",
                r#"{"kind":"burn_rate","objective_percent":99,"long_ms":9000,"short_ms":9000,"factor":0}"#.into(),
                "14.4",
            ),
            ("a", r#"{"kind":"forecast","figure":"rate","level_percent":100}"#.into(), "such as 99"),
            ("a", r#"{"kind":"outlier","figure":"rate","sensitivity":1}"#.into(), "such as 0.5"),
            ("a", r#"{"kind":"water","line":"safety"}"#.into(), "warning or fatal"),
        ] {
            let rule = format!(r#"{{"name":"{name}","condition":{condition}}}"#);
            let said = settle(serde_json::from_str(&rule).unwrap()).unwrap_err().to_string();
            assert!(said.contains(part), "{rule}: {said}");
        }
        let plain = format!(r#"{{"name":"a","condition":{}}}"#, threshold(r#","above":1"#));
        assert_eq!(settle(serde_json::from_str(&plain).unwrap()).unwrap().severity, "ticket");
    }
}
