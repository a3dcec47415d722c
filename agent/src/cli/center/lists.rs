//! `sockmesh services`, `service`, `capacity`, `alerts`, `agents`, `history` and `audit`.

use std::process::ExitCode;

use model::center::{
    AgentRow, Alert, AlertState, AuditEntry, CommandRecord, Confidence, InstanceRow, Page, Pool, ServicePage,
    ServiceRow,
};
use registries::fetch::percent as encoded;

use super::{
    super::{
        Output, block_on,
        table::{Align, Cell, Style, Table},
        units,
    },
    Center, show,
    words::{action, ago, level, millis, of, or_none, percent, state},
};

/// Arguments of lists of services and pools.
#[derive(Clone, Debug, clap::Args)]
pub struct ServicesArgs {
    /// Only services whose name contains this
    pub service: Option<String>,
    /// Only this group
    #[arg(long)]
    pub group: Option<String>,
    /// How many at most
    #[arg(long, default_value_t = 1000)]
    pub limit: usize,
    /// How to print them
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
    /// Which centre
    #[command(flatten)]
    pub center: Center,
}

/// Arguments of `service`.
#[derive(Clone, Debug, clap::Args)]
pub struct ServiceArgs {
    /// Its whole name
    pub service: String,
    /// Its group, when it has several
    #[arg(long)]
    pub group: Option<String>,
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
    /// Which centre
    #[command(flatten)]
    pub center: Center,
}

/// Arguments of lists that only grow.
#[derive(Clone, Debug, clap::Args)]
pub struct RecentArgs {
    /// How many at most, the newest first
    #[arg(long, default_value_t = 50)]
    pub limit: usize,
    /// How to print them
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
    /// Which centre
    #[command(flatten)]
    pub center: Center,
}

/// `&`-joined query of what is there.
fn query(parts: &[(&str, Option<&String>)]) -> String {
    let parts = parts.iter().filter_map(|(name, value)| value.map(|value| format!("{name}={}", encoded(value, ""))));
    let all: Vec<String> = parts.collect();
    if all.is_empty() { String::new() } else { format!("?{}", all.join("&")) }
}

/// Says that there is more than was read.
fn cut<T>(table: &mut Table, page: &Page<T>) {
    if page.next.is_some() {
        let of = page.total.map_or_else(String::new, |total| format!(" of {total}"));
        table.note(format!("{}{of}; --limit shows more", page.items.len()), Style::Faint);
    }
}

/// Runs `sockmesh services`.
pub fn services(args: &ServicesArgs) -> anyhow::Result<ExitCode> {
    let client = args.center.client()?;
    let path = format!("/v1/services{}", query(&[("q", args.service.as_ref()), ("group", args.group.as_ref())]));
    block_on(async { show(args.output, &client.list::<ServiceRow>(&path, args.limit).await?, service_table) })
}

fn service_table(page: &Page<ServiceRow>) -> Table {
    let mut table = Table::new(&[
        ("SERVICE", Align::Left),
        ("GROUP", Align::Left),
        ("UP", Align::Right),
        ("RATE", Align::Right),
        ("SUCCESS", Align::Right),
        ("MEAN", Align::Right),
        ("P99", Align::Right),
        ("WATER", Align::Right),
        ("LEVEL", Align::Left),
        ("ALERTS", Align::Right),
        ("COMMANDS", Align::Right),
    ]);
    for row in &page.items {
        let up = format!("{}/{}", row.available, row.instances);
        let style = if row.available == 0 { Style::Bad } else { Style::Plain };
        let alerts = if row.alerts > 0 { Style::Bad } else { Style::Plain };
        table.row(vec![
            Cell::styled(&row.key.service, Style::Bold),
            or_none(&row.key.group).into(),
            Cell::styled(up, style),
            units::rate(row.figures.rate).into(),
            units::share(row.figures.success).into(),
            millis(row.figures.mean_ms).into(),
            millis(row.figures.p99_ms).into(),
            percent(row.water_percent).into(),
            level(&row.level),
            Cell::styled(row.alerts.to_string(), alerts),
            row.commands.to_string().into(),
        ]);
    }
    if page.items.is_empty() {
        table.note("no services", Style::Faint);
    }
    cut(&mut table, page);
    table
}

/// Runs `sockmesh service`.
pub fn service(args: &ServiceArgs) -> anyhow::Result<ExitCode> {
    let client = args.center.client()?;
    let asked = query(&[("service", Some(&args.service)), ("group", args.group.as_ref())]);
    block_on(async {
        let page: ServicePage = client.get(&format!("/v1/service{asked}")).await?;
        show(args.output, &page, instance_table)
    })
}

fn instance_table(page: &ServicePage) -> Table {
    let mut table = Table::new(&[
        ("INSTANCE", Align::Left),
        ("STATE", Align::Left),
        ("WEIGHT", Align::Right),
        ("ZONE", Align::Left),
        ("VERSION", Align::Left),
        ("RATE", Align::Right),
        ("CAPACITY", Align::Right),
        ("SUCCESS", Align::Right),
        ("P99", Align::Right),
        ("HEARD", Align::Right),
        ("AGENT", Align::Left),
    ]);
    for row in &page.instances {
        table.row(vec![
            Cell::styled(&row.address, Style::Bold),
            instance_state(row),
            row.weight.to_string().into(),
            or_none(&row.zone).into(),
            or_none(&row.version).into(),
            units::rate(row.figures.rate).into(),
            row.capacity.map_or_else(|| units::NONE.to_owned(), units::rate).into(),
            units::share(row.figures.success).into(),
            millis(row.figures.p99_ms).into(),
            units::age(row.heard_ms_ago as f64 / 1000.0).into(),
            or_none(&row.agent).into(),
        ]);
    }
    let row = &page.row;
    let key = &row.key;
    let water = percent(row.water_percent);
    table.note(
        format!("{}/{}: {}, water {water} ({})", key.group, key.service, units::rate(row.figures.rate), row.level),
        Style::Faint,
    );
    if page.groups.len() > 1 {
        table.note(format!("groups: {}", page.groups.join(", ")), Style::Faint);
    }
    for row in page.instances.iter().filter(|row| !row.reason.is_empty()) {
        table.note(format!("{} is {}: {}", row.address, row.state, row.reason), Style::Faint);
    }
    for caller in &page.callers {
        let success = units::share(caller.figures.success);
        let rate = units::rate(caller.figures.rate);
        table.note(format!("called by {}: {rate}, {success} go well, by {}", caller.caller, caller.way), Style::Faint);
    }
    for command in &page.commands {
        let text = format!("command {} by {}: {}", command.id, command.author, action(&command.asked.action));
        table.note(text, Style::Bold);
    }
    if let Some(advice) = page.pool.as_ref().and_then(|pool| pool.advice.as_ref()) {
        table.note(format!("! {advice}"), Style::Bad);
    }
    table
}

fn instance_state(row: &InstanceRow) -> Cell {
    let style = match row.state.as_str() {
        "available" => Style::Good,
        "draining" => Style::Bold,
        _ => Style::Bad,
    };
    Cell::styled(&row.state, style)
}

/// Runs `sockmesh capacity`.
pub fn capacity(args: &ServicesArgs) -> anyhow::Result<ExitCode> {
    let client = args.center.client()?;
    let path = format!("/v1/capacity{}", query(&[("service", args.service.as_ref()), ("group", args.group.as_ref())]));
    block_on(async { show(args.output, &client.list::<Pool>(&path, args.limit).await?, pool_table) })
}

fn pool_table(page: &Page<Pool>) -> Table {
    let mut table = Table::new(&[
        ("SERVICE", Align::Left),
        ("GROUP", Align::Left),
        ("UP", Align::Right),
        ("RATE", Align::Right),
        ("EACH TAKES", Align::Right),
        ("SURE", Align::Left),
        ("WATER", Align::Right),
        ("REDUNDANCY", Align::Right),
        ("LEVEL", Align::Left),
    ]);
    for pool in &page.items {
        let (each, sure) = match &pool.capacity {
            None => (units::NONE.to_owned(), units::NONE),
            Some(capacity) => {
                let sure = match capacity.confidence {
                    Confidence::LowerBound => "at least",
                    Confidence::Low => "low",
                    Confidence::Medium => "medium",
                    Confidence::High => "high",
                };
                (units::rate(capacity.per_instance), sure)
            }
        };
        table.row(vec![
            Cell::styled(&pool.service, Style::Bold),
            or_none(&pool.group).into(),
            pool.instances.to_string().into(),
            units::rate(pool.rate).into(),
            each.into(),
            sure.into(),
            percent(pool.water_percent).into(),
            percent(pool.redundancy_percent).into(),
            level(&pool.level),
        ]);
    }
    for pool in &page.items {
        if let Some(advice) = &pool.advice {
            table.note(format!("! {}/{}: {advice}", pool.group, pool.service), Style::Bad);
        }
    }
    if page.items.is_empty() {
        table.note("no pools", Style::Faint);
    }
    cut(&mut table, page);
    table
}

/// Runs `sockmesh alerts`.
pub fn alerts(args: &RecentArgs) -> anyhow::Result<ExitCode> {
    let client = args.center.client()?;
    block_on(async { show(args.output, &client.list::<Alert>("/v1/alerts", args.limit).await?, alert_table) })
}

fn alert_table(page: &Page<Alert>) -> Table {
    let mut table = Table::new(&[
        ("STATE", Align::Left),
        ("SINCE", Align::Right),
        ("SEVERITY", Align::Left),
        ("RULE", Align::Left),
        ("ABOUT", Align::Left),
        ("WHAT", Align::Left),
    ]);
    for alert in &page.items {
        let (word, style) = match alert.state {
            AlertState::Firing => ("firing", Style::Bad),
            AlertState::Silenced => ("silenced", Style::Faint),
            AlertState::Resolved => ("resolved", Style::Good),
        };
        table.row(vec![
            Cell::styled(word, style),
            ago(alert.since_ms).into(),
            or_none(&alert.severity).into(),
            Cell::styled(&alert.rule, Style::Bold),
            of(&alert.of).into(),
            alert.summary.clone().into(),
        ]);
    }
    if page.items.is_empty() {
        table.note("no alerts", Style::Faint);
    }
    cut(&mut table, page);
    table
}

/// Runs `sockmesh agents`.
pub fn agents(args: &RecentArgs) -> anyhow::Result<ExitCode> {
    let client = args.center.client()?;
    block_on(async { show(args.output, &client.list::<AgentRow>("/v1/agents", args.limit).await?, agent_table) })
}

fn agent_table(page: &Page<AgentRow>) -> Table {
    let mut table = Table::new(&[
        ("AGENT", Align::Left),
        ("HEARD", Align::Right),
        ("VERSION", Align::Left),
        ("APPLICATION", Align::Left),
        ("ZONE", Align::Left),
        ("CAPTURE", Align::Left),
        ("REDIRECT", Align::Left),
        ("CONFIG", Align::Right),
        ("REVISION", Align::Right),
        ("PROVIDES", Align::Right),
    ]);
    let pair = |applied: u64, wanted: u64| {
        let style = if applied < wanted { Style::Bad } else { Style::Plain };
        Cell::styled(if applied == wanted { applied.to_string() } else { format!("{applied}/{wanted}") }, style)
    };
    for row in &page.items {
        let heard = if row.lost { Style::Bad } else { Style::Plain };
        let status = &row.status;
        table.row(vec![
            Cell::styled(&row.agent, Style::Bold),
            Cell::styled(units::age(row.heard_ms_ago as f64 / 1000.0), heard),
            or_none(&status.version).into(),
            or_none(&status.application).into(),
            or_none(&status.zone).into(),
            or_none(&status.capture).into(),
            or_none(&status.redirect).into(),
            pair(status.config_applied, status.config_wanted),
            pair(row.applied_revision, row.wanted_revision),
            row.registrations.to_string().into(),
        ]);
    }
    for row in &page.items {
        let status = &row.status;
        let said = [
            ("capture", &status.capture_reason),
            ("redirect", &status.redirect_reason),
            ("configuration", status.config_error.as_ref().unwrap_or(&String::new())),
        ]
        .map(|(what, why)| (what, why.clone()));
        for (what, why) in said.into_iter().filter(|(_, why)| !why.is_empty()) {
            table.note(format!("{}: {what}: {why}", row.agent), Style::Faint);
        }
        for held in &status.held {
            table.note(format!("! {}: {held}", row.agent), Style::Bad);
        }
    }
    if page.items.is_empty() {
        table.note("no agents", Style::Faint);
    }
    cut(&mut table, page);
    table
}

/// Runs `sockmesh history`.
pub fn history(args: &RecentArgs) -> anyhow::Result<ExitCode> {
    let client = args.center.client()?;
    block_on(async {
        show(args.output, &client.list::<CommandRecord>("/v1/commands", args.limit).await?, command_table)
    })
}

/// Commands, one a line.
pub(super) fn command_table(page: &Page<CommandRecord>) -> Table {
    let mut table = Table::new(&[
        ("ID", Align::Right),
        ("GIVEN", Align::Right),
        ("BY", Align::Left),
        ("STATE", Align::Left),
        ("WHAT", Align::Left),
        ("WHY", Align::Left),
    ]);
    for record in &page.items {
        table.row(vec![
            record.id.to_string().into(),
            ago(record.at_ms).into(),
            Cell::styled(&record.author, Style::Bold),
            state(record),
            action(&record.asked.action).into(),
            or_none(&record.asked.reason).into(),
        ]);
    }
    for record in &page.items {
        if let Some((at, who, why)) = &record.ended {
            table.note(format!("{} ended {} by {who}: {why}", record.id, ago(*at)), Style::Faint);
        }
    }
    if page.items.is_empty() {
        table.note("no commands", Style::Faint);
    }
    cut(&mut table, page);
    table
}

/// Runs `sockmesh audit`.
pub fn audit(args: &RecentArgs) -> anyhow::Result<ExitCode> {
    let client = args.center.client()?;
    block_on(async { show(args.output, &client.list::<AuditEntry>("/v1/audit", args.limit).await?, audit_table) })
}

fn audit_table(page: &Page<AuditEntry>) -> Table {
    let mut table = Table::new(&[
        ("ID", Align::Right),
        ("WHEN", Align::Right),
        ("WHO", Align::Left),
        ("FROM", Align::Left),
        ("WHAT", Align::Left),
        ("ON", Align::Left),
        ("OUTCOME", Align::Left),
    ]);
    for entry in &page.items {
        let style = if entry.outcome == "ok" { Style::Good } else { Style::Bad };
        table.row(vec![
            entry.id.to_string().into(),
            ago(entry.at_ms).into(),
            Cell::styled(&entry.actor, Style::Bold),
            or_none(&entry.from).into(),
            entry.what.clone().into(),
            or_none(&entry.target).into(),
            Cell::styled(&entry.outcome, style),
        ]);
    }
    if page.items.is_empty() {
        table.note("nothing was done", Style::Faint);
    }
    cut(&mut table, page);
    table
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::super::table::Color, *};

    /// A page as the centre answers it, as the table that is shown.
    fn shown<T: serde::de::DeserializeOwned>(items: Value, table: fn(&Page<T>) -> Table) -> String {
        let page: Page<T> = serde_json::from_value(json!({ "items": items, "next": "x", "total": 7 })).unwrap();
        table(&page).lines(Color::Never, None).join("\n")
    }

    fn has(text: &str, parts: &[&str]) {
        for part in parts {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }

    fn figures() -> Value {
        json!({ "rate": 1500.0, "success": 0.999, "mean_ms": 2.0, "p50_ms": 1.0, "p99_ms": 12.3, "p999_ms": 20.0,
            "slow": 0.0 })
    }

    #[test]
    fn services_and_agents_are_shown_with_what_is_wrong() {
        let row = json!({ "key": { "service": "com.shop.Order", "group": "idc-a" }, "protocols": ["motan2"],
            "instances": 3, "available": 2, "figures": figures(), "water_percent": 71.4, "level": "warning",
            "alerts": 1, "commands": 0 });
        let text = shown(json!([row]), service_table);
        has(&text, &["com.shop.Order", "idc-a", "2/3", "1.50k/s", "99.90%", "12.3ms", "71%", "warning", "1 of 7"]);
        let agent = json!({ "agent": "host-1/web", "status": { "version": "0.1.0", "capture": "port",
            "capture_reason": "no cgroup", "config_wanted": 3, "config_applied": 2, "config_error": "line 3" },
            "heard_ms_ago": 2000, "lost": false, "registrations": 4, "wanted_revision": 9, "applied_revision": 9 });
        has(&shown(json!([agent]), agent_table), &["host-1/web", "2/3", "capture: no cgroup", "configuration: line 3"]);
        has(&shown(json!([]), agent_table), &["no agents"]);
    }

    #[test]
    fn commands_alerts_and_the_audit_are_shown_in_words() {
        let command = json!({ "id": 12, "author": "ann", "at_ms": 1, "state": "stepping",
            "asked": { "action": { "kind": "move", "service": "com.shop.*", "from": "idc-a", "to": "idc-b",
                "percent": 20 }, "reason": "load", "steps": [5, 100] },
            "steps": [{ "at_ms": 1, "percent": 5, "before": null }], "until_ms": null,
            "ended": [5, "bob", "enough"], "changes": [], "written": [] });
        let text = shown(json!([command]), command_table);
        has(&text, &["12", "ann", "at 5 %", "move 20 % of com.shop.* from idc-a to idc-b", "load", "by bob: enough"]);
        let alert = json!({ "id": "x", "rule": "p99", "severity": "page", "of": { "side": "outbound",
            "service": "com.shop.Order", "group": "idc-a" }, "summary": "p99 is 80 ms, above 50", "state": "firing",
            "since_ms": 1, "until_ms": null });
        has(&shown(json!([alert]), alert_table), &["firing", "page", "idc-a/com.shop.Order", "80 ms"]);
        let entry = json!({ "id": 3, "at_ms": 1, "actor": "ann", "from": "10.0.0.1", "what": "instance.out",
            "target": "10.0.0.2:80", "outcome": "forbidden", "detail": null });
        has(&shown(json!([entry]), audit_table), &["ann", "10.0.0.1", "instance.out", "10.0.0.2:80", "forbidden"]);
    }
}
