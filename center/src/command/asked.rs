//! What is asked for: whether it makes sense by itself, what it is about, whom it concerns.

use std::collections::HashSet;

use model::{
    center::{Action, Guard, NewCommand},
    command::{Canary, Pattern, RouteRule},
    value,
};

use crate::error::Error;

/// Longest name of anything.
const NAME_BYTES: usize = 500;
/// Longest reason.
const REASON_BYTES: usize = 2000;
/// Most groups, rules, switchers and steps.
const MANY: usize = 100;
/// Longest time of anything, milliseconds: a year.
const LONG_MS: u64 = 365 * 24 * 3600 * 1000;
/// Longest window of a guard, milliseconds.
const WINDOW_MS: u64 = 3_600_000;

/// Commands of one slot for one service contend: the later covers the earlier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    Traffic,
    Canary,
    Degrade,
    Switchers,
    /// Of one instance.
    Drain(String),
    Size,
}

/// What can be asked of any action.
pub(super) trait About {
    /// The service or pattern; none for switchers.
    fn service(&self) -> Option<&str>;
    /// The group whose text carries it first of all.
    fn home(&self) -> &str;
    /// All groups that it touches.
    fn groups(&self) -> Vec<&str>;
    /// Groups that get calls by it.
    fn receivers(&self) -> Vec<&str>;
    /// What it contends with.
    fn slot(&self) -> Slot;
    /// In words.
    fn told(&self) -> String;
}

impl About for Action {
    fn service(&self) -> Option<&str> {
        match self {
            Self::Switch { service, .. }
            | Self::Move { service, .. }
            | Self::Route { service, .. }
            | Self::Canary { service, .. }
            | Self::Degrade { service, .. }
            | Self::Drain { service, .. }
            | Self::Scale { service, .. } => Some(service),
            Self::Switchers { .. } => None,
        }
    }

    fn home(&self) -> &str {
        match self {
            Self::Move { from, .. } => from,
            Self::Switch { group, .. }
            | Self::Route { group, .. }
            | Self::Canary { group, .. }
            | Self::Degrade { group, .. }
            | Self::Switchers { group, .. }
            | Self::Drain { group, .. }
            | Self::Scale { group, .. } => group,
        }
    }

    fn groups(&self) -> Vec<&str> {
        let mut groups = vec![self.home()];
        groups.extend(self.receivers());
        groups.dedup();
        groups
    }

    fn receivers(&self) -> Vec<&str> {
        match self {
            Self::Switch { to, .. } => to.iter().map(|g| g.group.as_str()).collect(),
            Self::Move { to, .. } => vec![to],
            _ => Vec::new(),
        }
    }

    fn slot(&self) -> Slot {
        match self {
            Self::Switch { .. } | Self::Move { .. } | Self::Route { .. } => Slot::Traffic,
            Self::Canary { .. } => Slot::Canary,
            Self::Degrade { .. } => Slot::Degrade,
            Self::Switchers { .. } => Slot::Switchers,
            Self::Drain { instance, .. } => Slot::Drain(instance.clone()),
            Self::Scale { .. } => Slot::Size,
        }
    }

    fn told(&self) -> String {
        match self {
            Self::Switch { service, group, to } => {
                let to: Vec<_> = to
                    .iter()
                    .map(|g| g.weight.map_or_else(|| g.group.clone(), |weight| format!("{}:{weight}", g.group)))
                    .collect();
                format!("{service} of {group} to {}", to.join(" "))
            }
            Self::Move { service, from, to, percent } => format!("{percent} % of {service} from {from} to {to}"),
            Self::Route { service, group, rules } => format!("{service} of {group} by {}", rules.join(", ")),
            Self::Canary { service, group, version, percent, header } => {
                let header = header.as_ref().map_or(String::new(), |header| format!(" and those with {header}"));
                format!("{percent} % of {service} of {group}{header} to version {version}")
            }
            Self::Degrade { service, group } => format!("{service} of {group} degraded"),
            Self::Switchers { group, values } => {
                let values: Vec<_> = values.iter().map(|(name, value)| format!("{name}:{value}")).collect();
                format!("switchers of {group}: {}", values.join(" "))
            }
            Self::Drain { service, group, instance } => format!("{instance} of {service} in {group} drained"),
            Self::Scale { service, group, from, to } => {
                format!("{service} in {group} from {from} to {to} instances")
            }
        }
    }
}

/// Whether `asked` makes sense by itself.
///
/// # Errors
/// Names the field and the value.
pub(super) fn check(asked: &NewCommand) -> Result<(), Error> {
    let NewCommand { action, reason, for_ms, steps, step_ms, guard, expected: _ } = asked;
    if reason.trim().is_empty() {
        return Err(Error::bad("`reason` is empty", "say why, for those who come later"));
    }
    if reason.len() > REASON_BYTES {
        return Err(Error::bad(format!("`reason` has {} bytes", reason.len()), "write at most 2,000"));
    }
    action_is_good(action)?;
    for (name, time) in [("for_ms", for_ms), ("step_ms", step_ms)] {
        if let Some(ms) = time.filter(|ms| !(1..=LONG_MS).contains(ms)) {
            return Err(Error::bad(format!("`{name}` is {ms}"), "write milliseconds from 1 to a year"));
        }
    }
    if !steps.is_empty() {
        if !matches!(action, Action::Switch { .. } | Action::Move { .. } | Action::Canary { .. }) {
            return Err(Error::bad("`steps` are there", "leave them out: only switch, move and canary have steps"));
        }
        let rising = steps.windows(2).all(|pair| pair[0] < pair[1]);
        if !rising || steps[0] == 0 || steps.last() != Some(&100) || steps.len() > MANY {
            return Err(Error::bad(format!("`steps` are {steps:?}"), "write percentages that rise to 100: 5, 20, 100"));
        }
    }
    if matches!(action, Action::Scale { .. }) && (for_ms.is_some() || guard.is_some()) {
        return Err(Error::bad("`for_ms` or `guard` is there", "leave it out: a pool is given its size once"));
    }
    guard.as_ref().map_or(Ok(()), guard_is_good)
}

fn guard_is_good(guard: &Guard) -> Result<(), Error> {
    if guard.p99_ms.is_none() && guard.error_percent.is_none() {
        return Err(Error::bad("`guard` has no bound", "write `p99_ms` or `error_percent`, or leave it out"));
    }
    if let Some(ms) = guard.p99_ms.filter(|ms| !(ms.is_finite() && *ms > 0.0)) {
        return Err(Error::bad(format!("`guard.p99_ms` is {ms}"), "write milliseconds above 0"));
    }
    if let Some(percent) = guard.error_percent.filter(|percent| !(0.0..100.0).contains(percent)) {
        return Err(Error::bad(format!("`guard.error_percent` is {percent}"), "write 0 to 100, such as 1"));
    }
    if let Some(ms) = guard.window_ms.filter(|ms| !(1000..=WINDOW_MS).contains(ms)) {
        return Err(Error::bad(format!("`guard.window_ms` is {ms}"), "write milliseconds from 1,000 to an hour"));
    }
    Ok(())
}

fn action_is_good(action: &Action) -> Result<(), Error> {
    if let Some(service) = action.service() {
        name("service", service, "")?;
        Pattern::parse(service).map_err(|why| Error::bad(format!("`service`: {why}"), "write a name or `prefix.*`"))?;
    }
    for group in action.groups() {
        name("group", group, ":,")?;
    }
    let percentage = |percent: u32, least: u32| {
        if (least..=100).contains(&percent) {
            return Ok(());
        }
        Err(Error::bad(format!("`percent` is {percent}"), format!("write {least} to 100")))
    };
    let count = |what: &str, n: usize| {
        if (1..=MANY).contains(&n) {
            return Ok(());
        }
        Err(Error::bad(format!("`{what}` has {n} entries"), format!("write 1 to {MANY}")))
    };
    match action {
        Action::Switch { to, .. } => {
            count("to", to.len())?;
            let mut seen = HashSet::new();
            for one in to {
                if !seen.insert(&one.group) {
                    return Err(Error::bad(format!("`to` names group `{}` twice", one.group), "name it once"));
                }
                if let Some(weight) = one.weight.filter(|weight| !(1..=100).contains(weight)) {
                    let remedy = format!("write 1 to 100, or leave {} out to give it nothing", one.group);
                    return Err(Error::bad(format!("the weight of `{}` is {weight}", one.group), remedy));
                }
            }
            Ok(())
        }
        Action::Move { from, to, percent, .. } => {
            percentage(*percent, 1)?;
            if from == to {
                return Err(Error::bad(format!("`from` and `to` are both `{from}`"), "name two groups"));
            }
            Ok(())
        }
        Action::Route { rules, .. } => {
            count("rules", rules.len())?;
            for rule in rules {
                RouteRule::parse(rule).map_err(|why| Error::bad(format!("`rules`: {why}"), "correct the rule"))?;
            }
            Ok(())
        }
        Action::Canary { version, percent, header, .. } => {
            name("version", version, "")?;
            percentage(*percent, u32::from(header.is_none()))?;
            if let Some(header) = header {
                name("header", header, "")?;
                let wrong = |why| Error::bad(format!("`header`: {why}"), "write `name=value`");
                let (name, _) = Canary::header(header).map_err(wrong)?;
                if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
                    return Err(wrong(format!("`{name}` is no name of a header")));
                }
            }
            Ok(())
        }
        Action::Switchers { values, .. } => {
            count("values", values.len())?;
            let mut seen = HashSet::new();
            for (switcher, _) in values {
                name("values", switcher, ":,")?;
                if !seen.insert(switcher) {
                    return Err(Error::bad(format!("`values` names `{switcher}` twice"), "name it once"));
                }
            }
            Ok(())
        }
        Action::Degrade { .. } => Ok(()),
        Action::Scale { from, to, .. } if from == to => {
            Err(Error::bad(format!("`from` and `to` are both {to}"), "name another size"))
        }
        Action::Scale { .. } => Ok(()),
        Action::Drain { instance, .. } => value::endpoint_address(instance)
            .map(drop)
            .map_err(|wrong| Error::bad(format!("`instance`: {}", wrong.of(instance)), "name one instance")),
    }
}

fn name(what: &str, text: &str, without: &str) -> Result<(), Error> {
    let wrong = |problem: String, remedy: &str| Err(Error::bad(format!("`{what}` {problem}"), remedy));
    if text.is_empty() {
        return wrong("is empty".to_owned(), "name one");
    }
    if text.len() > NAME_BYTES {
        return wrong(format!("has {} bytes", text.len()), "write at most 500");
    }
    if text.trim() != text || text.chars().any(|c| c.is_control() || without.contains(c)) {
        return wrong(
            format!("is {text:?}"),
            "leave out blanks at the ends, control characters, and `:` and `,` in groups and switchers",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checked(command: serde_json::Value) -> String {
        let asked: NewCommand = serde_json::from_value(command).unwrap();
        check(&asked).map_or_else(|error| error.to_string(), |()| "good".to_owned())
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_field_and_value() {
        let switch = json!({"kind": "switch", "service": "s", "group": "a", "to": [{"group": "b", "weight": 3}]});
        let drain = json!({"kind": "drain", "service": "s", "group": "a", "instance": "10.0.0.1:80"});
        let good = |action: &serde_json::Value| json!({"action": action, "reason": "because"});
        assert_eq!(checked(good(&switch)), "good");
        assert_eq!(checked(good(&drain)), "good");
        let with = |path: &str, value: serde_json::Value| {
            let mut command = good(&switch);
            command[path] = value;
            checked(command)
        };
        assert_eq!(with("steps", json!([5, 20, 100])), "good");
        assert_eq!(with("guard", json!({"p99_ms": 50, "error_percent": 1})), "good");
        for (key, value, part) in [
            ("reason", json!(" "), "`reason` is empty"),
            ("reason", json!("x".repeat(3000)), "3000 bytes"),
            ("for_ms", json!(0), "`for_ms` is 0"),
            ("steps", json!([5, 5, 100]), "`steps` are [5, 5, 100]"),
            ("steps", json!([5, 50]), "rise to 100"),
            ("guard", json!({}), "no bound"),
            ("guard", json!({"p99_ms": 0.0}), "`guard.p99_ms` is 0"),
            ("guard", json!({"error_percent": 100}), "`guard.error_percent` is 100"),
            ("guard", json!({"p99_ms": 1, "window_ms": 5}), "`guard.window_ms` is 5"),
        ] {
            let said = with(key, value);
            assert!(said.contains(part), "{said}");
        }
        for (action, part) in [
            (json!({"kind": "switch", "service": "", "group": "a", "to": []}), "`service` is empty"),
            (json!({"kind": "switch", "service": "(", "group": "a", "to": []}), "neither an expression"),
            (json!({"kind": "switch", "service": "s", "group": "a", "to": []}), "0 entries"),
            (json!({"kind": "switch", "service": "s", "group": "a:1", "to": [{"group": "b"}]}), "a:1"),
            (
                json!({"kind": "switch", "service": "s", "group": "a", "to": [{"group": "b", "weight": 101}]}),
                "the weight of `b` is 101",
            ),
            (json!({"kind": "switch", "service": "s", "group": "a", "to": [{"group": "b"}, {"group": "b"}]}), "twice"),
            (json!({"kind": "move", "service": "s", "from": "a", "to": "a", "percent": 5}), "both `a`"),
            (json!({"kind": "move", "service": "s", "from": "a", "to": "b", "percent": 0}), "`percent` is 0"),
            (json!({"kind": "route", "service": "s", "group": "a", "rules": ["nonsense"]}), "is no rule"),
            (json!({"kind": "canary", "service": "s", "group": "a", "version": "2", "percent": 0}), "write 1 to 100"),
            (
                json!({"kind": "canary", "service": "s", "group": "a", "version": "2", "percent": 0, "header": "x"}),
                "name=value",
            ),
            (json!({"kind": "switchers", "group": "a", "values": [["x:y", true]]}), "x:y"),
            (json!({"kind": "drain", "service": "s", "group": "a", "instance": "here"}), "`here`"),
        ] {
            let said = checked(good(&action));
            assert!(said.contains(part), "{action}: {said}");
        }
        let mut stepped = good(&drain);
        stepped["steps"] = json!([5, 100]);
        assert!(checked(stepped).contains("only switch, move and canary"));
    }
}
