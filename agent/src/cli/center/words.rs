//! What the centre's records say, in words.

use std::time::{SystemTime, UNIX_EPOCH};

use model::center::{Action, CommandRecord, CommandState, GroupWeight, Of};

use super::super::{
    table::{Cell, Style},
    units,
};

/// How long ago a time of day was.
pub(super) fn ago(at_ms: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    format!("{} ago", units::age((now - at_ms as f64 / 1000.0).max(0.0)))
}

/// A percentage.
pub(super) fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| units::NONE.to_owned(), |value| format!("{value:.0}%"))
}

/// Milliseconds.
pub(super) fn millis(value: Option<f64>) -> String {
    units::latency(value.map(|ms| ms / 1000.0))
}

/// Text, or a sign that there is none.
pub(super) fn or_none(text: &str) -> String {
    if text.is_empty() { units::NONE.to_owned() } else { text.to_owned() }
}

/// How full a pool is.
pub(super) fn level(level: &str) -> Cell {
    let style = match level {
        "fatal" | "warning" => Style::Bad,
        "idle" | "normal" => Style::Good,
        _ => Style::Faint,
    };
    Cell::styled(level, style)
}

/// What a command does.
pub(super) fn action(action: &Action) -> String {
    let to = |to: &[GroupWeight]| {
        let one = |to: &GroupWeight| match to.weight {
            Some(weight) => format!("{}={weight}", to.group),
            None => to.group.clone(),
        };
        to.iter().map(one).collect::<Vec<_>>().join(" ")
    };
    match action {
        Action::Switch { service, group, to: groups } => format!("switch {service} of {group} to {}", to(groups)),
        Action::Move { service, from, to, percent } => format!("move {percent} % of {service} from {from} to {to}"),
        Action::Route { service, group, rules } => format!("route {service} of {group}: {}", rules.join("; ")),
        Action::Canary { service, group, version, percent, header } => {
            let header = header.as_ref().map_or_else(String::new, |header| format!(", {header}"));
            format!("canary {service} of {group}: {percent} %{header} to {version}")
        }
        Action::Degrade { service, group } => format!("degrade {service} of {group}"),
        Action::Switchers { group, values } => {
            let value = |(name, on): &(String, bool)| format!("{name}={}", if *on { "on" } else { "off" });
            format!("switchers of {group}: {}", values.iter().map(value).collect::<Vec<_>>().join(" "))
        }
        Action::Drain { service, group, instance } => format!("drain {instance} of {group}/{service}"),
        Action::Scale { service, group, from, to } => format!("scale {group}/{service} from {from} to {to} instances"),
    }
}

/// Where a command stands, with its last step.
pub(super) fn state(record: &CommandRecord) -> Cell {
    match record.state {
        CommandState::Proposed => Cell::styled("proposed", Style::Bold),
        CommandState::Stepping => {
            let percent = record.steps.last().map_or(0, |step| step.percent);
            Cell::styled(format!("at {percent} %"), Style::Good)
        }
        CommandState::Active => Cell::styled("in force", Style::Good),
        CommandState::Undone => Cell::styled("undone", Style::Faint),
        CommandState::Failed => Cell::styled("failed", Style::Bad),
        CommandState::Expired => Cell::styled("expired", Style::Faint),
        CommandState::Done => Cell::styled("done", Style::Good),
    }
}

/// What an alert is about.
pub(super) fn of(of: &Of) -> String {
    let mut text = format!("{}/{}", of.group, of.service);
    for part in [&of.instance, &of.caller] {
        if !part.is_empty() {
            text += &format!(" {part}");
        }
    }
    text.trim_matches('/').to_owned()
}
