//! `sockmesh switch`, `degrade`, `commands` and `undo` through the centre.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use model::center::{Action, CommandRecord, CommandState, GroupWeight, Guard, NewCommand, Page, Preview, ServiceRow};
use registries::fetch::percent as encoded;
use serde_json::json;

use super::{
    super::{
        Output, block_on,
        enroll::time,
        print,
        table::{Align, Cell, Style, Table},
        units,
    },
    Center,
    client::Client,
    lists::command_table,
    show,
    words::{action, or_none},
};

/// How an order is given through a centre.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Order {
    /// Which centre
    #[command(flatten)]
    pub center: Center,
    /// Why, for those who come later
    #[arg(long, value_name = "TEXT", requires = "center")]
    pub reason: Option<String>,
    /// Percentages of the whole change, one after the other, as 5,20,50,100
    #[arg(long, value_name = "PERCENT,...", value_delimiter = ',', requires = "center")]
    pub steps: Vec<u32>,
    /// How long each step is held
    #[arg(long, value_name = "TIME", value_parser = time, requires = "steps")]
    pub step_time: Option<Duration>,
    /// Undo it unless this holds, as `p99<50ms,errors<1%`
    #[arg(long, value_name = "BOUNDS", value_parser = guard, requires = "center")]
    pub guard: Option<Guard>,
}

/// A part of the traffic, moved.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Part {
    /// Move this many percent from one group to another; the rest stays as it is
    #[arg(long, value_name = "PERCENT", requires_all = ["from", "to", "center"], conflicts_with = "groups",
        value_parser = clap::value_parser!(u32).range(1..=100))]
    pub percent: Option<u32>,
    /// Group that gives
    #[arg(long, value_name = "GROUP", requires = "percent")]
    pub from: Option<String>,
    /// Group that takes
    #[arg(long, value_name = "GROUP", requires = "percent")]
    pub to: Option<String>,
}

/// Arguments of `accept`.
#[derive(Clone, Debug, clap::Args)]
pub struct AcceptArgs {
    /// Number of the proposal, as `sockmesh commands --center URL` lists it
    pub id: u64,
    /// How to print what was done
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
    /// Which centre
    #[command(flatten)]
    pub center: Center,
}

/// Arguments of `undo`.
#[derive(Clone, Debug, clap::Args)]
pub struct UndoArgs {
    /// Number of the command, as `sockmesh history` lists it
    pub id: u64,
    /// Why, for those who come later
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    /// How to print what was done
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
    /// Which centre
    #[command(flatten)]
    pub center: Center,
}

/// `p99<50ms,errors<1%`.
fn guard(text: &str) -> Result<Guard, String> {
    let wrong = || format!("`{text}` are no bounds; write them like p99<50ms,errors<1%");
    let mut guard = Guard::default();
    for part in text.split([',', '&']).flat_map(|part| part.split(" and ")) {
        let (name, bound) = part.split_once('<').ok_or_else(wrong)?;
        match name.trim() {
            "p99" => guard.p99_ms = Some(time(&bound.replace(' ', ""))?.as_secs_f64() * 1000.0),
            "errors" => {
                let share = bound.trim().trim_end_matches('%').trim().parse::<f64>().map_err(|_| wrong())?;
                if !(0.0..=100.0).contains(&share) {
                    return Err(wrong());
                }
                guard.error_percent = Some(share);
            }
            _ => return Err(wrong()),
        }
    }
    Ok(guard)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What shall be done, as the flags of `switch` and `degrade` say it.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// The service, or a pattern.
    pub service: &'a str,
    /// The callers' group.
    pub group: Option<&'a str>,
    /// What with it.
    pub what: What<'a>,
    /// Undone after this time.
    pub undo_after: Option<Duration>,
    /// Change nothing.
    pub dry_run: bool,
    /// How to print what was done.
    pub output: Output,
}

/// What is done with a service.
#[derive(Clone, Debug)]
pub enum What<'a> {
    /// All of it goes to these groups, `GROUP` or `GROUP:SHARE`.
    Switch(&'a [String]),
    /// A part moves.
    Move(&'a Part),
    /// Calls are answered at once with an error.
    Degrade,
    /// What was ordered for it ends.
    End,
}

/// Gives an order through the centre.
pub fn order(order: &Order, asked: &Asked<'_>) -> anyhow::Result<ExitCode> {
    let client = order.center.client()?;
    block_on(async {
        if matches!(asked.what, What::End) {
            return end(&client, order, asked).await;
        }
        let command = command(&client, order, asked).await?;
        if asked.dry_run {
            let preview: Preview = client.post("/v1/commands/preview", &command).await?;
            return show(asked.output, &preview, |preview| preview_table(&command, preview));
        }
        let record: CommandRecord = client.post("/v1/commands", &command).await?;
        done(asked.output, &record)
    })
}

async fn command(client: &Client, order: &Order, asked: &Asked<'_>) -> anyhow::Result<NewCommand> {
    let service = asked.service.to_owned();
    let reason = match (&order.reason, asked.dry_run) {
        (Some(reason), _) => reason.clone(),
        (None, true) => "preview".to_owned(),
        (None, false) => bail!("the centre keeps why; say it with --reason TEXT"),
    };
    let action = match &asked.what {
        What::Switch(groups) => {
            let to = groups.iter().map(|text| {
                let (group, weight) = match text.rsplit_once(':') {
                    Some((group, weight)) => (group, weight.parse().ok()),
                    None => (text.as_str(), None),
                };
                GroupWeight { group: group.to_owned(), weight }
            });
            Action::Switch { group: group(client, asked).await?, to: to.collect(), service }
        }
        What::Move(Part { percent: Some(percent), from: Some(from), to: Some(to) }) => {
            Action::Move { service, from: from.clone(), to: to.clone(), percent: *percent }
        }
        What::Degrade => Action::Degrade { group: group(client, asked).await?, service },
        What::Move(_) | What::End => bail!("--percent, --from and --to belong together"),
    };
    Ok(NewCommand {
        action,
        reason,
        for_ms: asked.undo_after.map(millis),
        steps: order.steps.clone(),
        step_ms: order.step_time.map(millis),
        guard: order.guard.clone(),
        expected: None,
    })
}

/// The callers' group: as it was said, or the only one that the service has.
async fn group(client: &Client, asked: &Asked<'_>) -> anyhow::Result<String> {
    if let Some(group) = asked.group {
        return Ok(group.to_owned());
    }
    let path = format!("/v1/services?q={}", encoded(asked.service, ""));
    let page: Page<ServiceRow> = client.list(&path, 1000).await?;
    let mut groups: Vec<_> = page.items.into_iter().filter(|row| row.key.service == asked.service).collect();
    groups.dedup_by(|a, b| a.key.group == b.key.group);
    match &groups[..] {
        [one] => Ok(one.key.group.clone()),
        [] => bail!("the centre knows no service `{}`; say whose calls are meant with --group GROUP", asked.service),
        more => {
            let names: Vec<_> = more.iter().map(|row| row.key.group.as_str()).collect();
            bail!("`{}` is in {}; say whose calls are meant with --group GROUP", asked.service, names.join(", "))
        }
    }
}

async fn end(client: &Client, order: &Order, asked: &Asked<'_>) -> anyhow::Result<ExitCode> {
    let path = format!("/v1/commands?state=open&service={}", encoded(asked.service, ""));
    let page: Page<CommandRecord> = client.list(&path, 1000).await?;
    let of = |record: &CommandRecord| match &record.asked.action {
        Action::Switch { service, group, .. } | Action::Degrade { service, group } => {
            Some((service.clone(), group.clone()))
        }
        Action::Move { service, from, .. } => Some((service.clone(), from.clone())),
        _ => None,
    };
    let mut ended = Vec::new();
    for record in page.items {
        let Some((service, group)) = of(&record) else { continue };
        let holds = matches!(record.state, CommandState::Stepping | CommandState::Active);
        if holds && service == asked.service && asked.group.is_none_or(|asked| asked == group) {
            ended.push(take_back(client, record.id, order.reason.as_deref().unwrap_or_default()).await?);
        }
    }
    if ended.is_empty() {
        bail!("no command for `{}` is in force; `sockmesh commands --center URL` lists those that are", asked.service);
    }
    let page = Page { items: ended, next: None, total: None };
    show(asked.output, &page, command_table)
}

async fn take_back(client: &Client, id: u64, reason: &str) -> anyhow::Result<CommandRecord> {
    client.post(&format!("/v1/commands/{id}/undo"), &json!({ "reason": reason })).await
}

/// Runs `sockmesh accept`.
pub fn accept(args: &AcceptArgs) -> anyhow::Result<ExitCode> {
    let client = args.center.client()?;
    block_on(async { done(args.output, &client.post(&format!("/v1/commands/{}/confirm", args.id), &json!({})).await?) })
}

/// Runs `sockmesh undo`.
pub fn undo(args: &UndoArgs) -> anyhow::Result<ExitCode> {
    let client = args.center.client()?;
    block_on(async { done(args.output, &take_back(&client, args.id, &args.reason).await?) })
}

/// Runs `sockmesh commands --center URL`: those in force or proposed.
pub fn commands(center: &Center, output: Output) -> anyhow::Result<ExitCode> {
    let client = center.client()?;
    block_on(async {
        let page: Page<CommandRecord> = client.list("/v1/commands?state=open", 1000).await.context("commands")?;
        show(output, &page, command_table)
    })
}

fn done(output: Output, record: &CommandRecord) -> anyhow::Result<ExitCode> {
    if output == Output::Json {
        print(&(serde_json::to_string_pretty(record)? + "\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let state = match record.state {
        CommandState::Proposed => "is proposed",
        CommandState::Stepping => "has taken its first step",
        CommandState::Active => "is in force",
        CommandState::Undone => "is undone",
        CommandState::Failed => "failed",
        CommandState::Expired => "has expired",
        CommandState::Done => "is carried out",
    };
    print(&format!("command {} ({}) {state}\n", record.id, action(&record.asked.action)))?;
    let failed = record.state == CommandState::Failed;
    if let (true, Some((_, _, why))) = (failed, &record.ended) {
        bail!("{why}");
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn preview_table(command: &NewCommand, preview: &Preview) -> Table {
    let mut table = Table::new(&[
        ("GROUP", Align::Left),
        ("INSTANCE", Align::Left),
        ("NOW", Align::Right),
        ("THEN", Align::Right),
        ("TAKES", Align::Right),
    ]);
    for row in &preview.endpoints {
        let style = if row.over { Style::Bad } else { Style::Bold };
        table.row(vec![
            or_none(&row.group).into(),
            row.instance.clone().into(),
            units::rate(row.rate_now).into(),
            Cell::styled(units::rate(row.rate_then), style),
            row.capacity.map_or_else(|| units::NONE.to_owned(), units::rate).into(),
        ]);
    }
    for (caller, rate) in &preview.callers {
        table.note(format!("touches {caller}: {}", units::rate(*rate)), Style::Faint);
    }
    for warning in &preview.warnings {
        table.note(format!("! {warning}"), Style::Bad);
    }
    table.note(format!("{}; nothing was changed", action(&command.action)), Style::Faint);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_as_operators_write_them() {
        let both = Guard { p99_ms: Some(50.0), error_percent: Some(1.0), ..Guard::default() };
        for text in ["p99<50ms,errors<1%", "p99 < 50 ms and errors < 1 %", "errors<1,p99<0.05s"] {
            assert_eq!(guard(text).as_ref(), Ok(&both), "{text}");
        }
        for text in ["", "p99", "p99<x", "p99<50", "errors<101%", "rate<1"] {
            assert!(guard(text).is_err(), "{text}");
        }
    }
}
