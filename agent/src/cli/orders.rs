//! `sockmesh switch`, `degrade`, `commands` and `confirm`: by an agent, or through a centre that is named.

use std::{process::ExitCode, time::Duration};

use super::{
    Output, Target, block_on,
    center::{
        Center,
        orders::{Asked, Order, Part, What, commands as commands_of, order},
    },
    enroll::{encoded, time},
    print, screen,
    table::{Align, Cell, Style, Table},
    units,
};
use crate::admin::view;

/// How long an order holds.
#[derive(Clone, Debug, clap::Args)]
pub struct Term {
    /// Undo it after this time. The centre does so, or this agent; one that is not running then does so when it is
    /// started again
    #[arg(long = "for", value_name = "TIME", value_parser = time, conflicts_with = "end")]
    pub undo_after: Option<Duration>,
    /// End it: take the command of exactly this service out of the registry
    #[arg(long)]
    pub end: bool,
    /// The service's own group, when it is called in several
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
}

/// Arguments of `switch`.
#[derive(Clone, Debug, clap::Args)]
pub struct SwitchArgs {
    /// The service, by its whole name. Clients of motan-go take it for the beginning of names too
    pub service: String,
    /// Groups with their shares, 1 to 100 each, or without any to mix their endpoints; groups that are not named
    /// get nothing
    #[arg(value_name = "GROUP[=SHARE]", value_parser = share, required_unless_present_any = ["end", "percent"],
        conflicts_with = "end")]
    pub groups: Vec<String>,
    /// A part of it, through a centre
    #[command(flatten)]
    pub part: Part,
    /// Change nothing; show what each endpoint would get of the calls that run through this agent now
    #[arg(long, conflicts_with = "end")]
    pub dry_run: bool,
    /// How long it holds
    #[command(flatten)]
    pub term: Term,
    /// How to print a dry run
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
    /// Through a centre
    #[command(flatten)]
    pub order: Order,
    /// Which agent
    #[command(flatten)]
    pub target: Target,
}

/// Arguments of `degrade`.
#[derive(Clone, Debug, clap::Args)]
pub struct DegradeArgs {
    /// The service, by its whole name. Agents of motan-go take it for the beginning of names too
    pub service: String,
    /// How long it holds
    #[command(flatten)]
    pub term: Term,
    /// How to print what a centre did
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
    /// Through a centre
    #[command(flatten)]
    pub order: Order,
    /// Which agent
    #[command(flatten)]
    pub target: Target,
}

/// Arguments of `commands`.
#[derive(Clone, Debug, clap::Args)]
pub struct CommandsArgs {
    /// How to print them
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
    /// Those of a centre that are in force or proposed
    #[command(flatten)]
    pub center: Center,
    /// Which agent
    #[command(flatten)]
    pub target: Target,
}

/// Arguments of `confirm`.
#[derive(Clone, Debug, clap::Args)]
pub struct ConfirmArgs {
    /// The service
    pub service: String,
    /// Which agent
    #[command(flatten)]
    pub target: Target,
}

/// `idc-a=80` as commands have it.
fn share(text: &str) -> Result<String, String> {
    let Some((group, share)) = text.split_once(['=', ':']) else { return Ok(text.to_owned()) };
    match share.parse::<u32>() {
        Ok(share) if (1..=100).contains(&share) => Ok(format!("{group}:{share}")),
        Ok(0) => Err(format!("leave {group} out, so that it gets nothing")),
        _ => Err("shares are whole numbers from 1 to 100".to_owned()),
    }
}

fn query(service: &str, term: &Term) -> String {
    let mut query = format!("service={}", encoded(service));
    if let Some(group) = &term.group {
        query += &format!("&group={}", encoded(group));
    }
    if let Some(after) = term.undo_after {
        query += &format!("&for={}ms", after.as_millis());
    }
    if term.end {
        query += "&end";
    }
    query
}

/// Runs `sockmesh switch`.
pub fn switch(args: &SwitchArgs) -> anyhow::Result<ExitCode> {
    if args.order.center.center.is_some() {
        let what = match (args.term.end, args.part.percent) {
            (true, _) => What::End,
            (false, Some(_)) => What::Move(&args.part),
            (false, None) => What::Switch(&args.groups),
        };
        return order(&args.order, &through(&args.service, &args.term, what, args.dry_run, args.output));
    }
    let client = args.target.client()?;
    let mut path = format!("/switch?{}", query(&args.service, &args.term));
    if !args.groups.is_empty() {
        path += &format!("&groups={}", encoded(&args.groups.join(",")));
    }
    block_on(async {
        let text = if args.dry_run {
            let (_, page): (_, view::Preview) = client.post_for(&(path + "&dry_run")).await?;
            match args.output {
                Output::Json => serde_json::to_string_pretty(&page)? + "\n",
                Output::Table => preview(&page).lines(screen::color(), None).join("\n") + "\n",
            }
        } else {
            client.post(&path).await? + "\n"
        };
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Runs `sockmesh degrade`.
pub fn degrade(args: &DegradeArgs) -> anyhow::Result<ExitCode> {
    if args.order.center.center.is_some() {
        let what = if args.term.end { What::End } else { What::Degrade };
        return order(&args.order, &through(&args.service, &args.term, what, false, args.output));
    }
    told(&args.target, &format!("/degrade?{}", query(&args.service, &args.term)))
}

/// An order for a centre.
fn through<'a>(service: &'a str, term: &'a Term, what: What<'a>, dry_run: bool, output: Output) -> Asked<'a> {
    let Term { undo_after, group, .. } = term;
    Asked { service, group: group.as_deref(), what, undo_after: *undo_after, dry_run, output }
}

/// Runs `sockmesh confirm`.
pub fn confirm(args: &ConfirmArgs) -> anyhow::Result<ExitCode> {
    told(&args.target, &format!("/endpoints/confirm?service={}", encoded(&args.service)))
}

fn told(target: &Target, path: &str) -> anyhow::Result<ExitCode> {
    let client = target.client()?;
    block_on(async {
        print(&(client.post(path).await? + "\n"))?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Runs `sockmesh commands`.
pub fn commands(args: &CommandsArgs) -> anyhow::Result<ExitCode> {
    if args.center.center.is_some() {
        return commands_of(&args.center, args.output);
    }
    let client = args.target.client()?;
    block_on(async {
        let (_, page) = client.get::<view::Commands>("/commands").await?;
        let text = match args.output {
            Output::Json => serde_json::to_string_pretty(&page)? + "\n",
            Output::Table => list(&page).lines(screen::color(), None).join("\n") + "\n",
        };
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    })
}

fn preview(page: &view::Preview) -> Table {
    let mut table = Table::new(&[
        ("GROUP", Align::Left),
        ("ADDRESS", Align::Left),
        ("NOW", Align::Right),
        ("THEN", Align::Right),
        ("SHARE", Align::Right),
    ]);
    for row in &page.rows {
        table.row(vec![
            or_none(&row.group).into(),
            row.address.clone().into(),
            units::rate(row.rate_now).into(),
            Cell::styled(units::rate(row.rate_then), Style::Bold),
            format!("{:.1}%", row.share * 100.0).into(),
        ]);
    }
    table.note(
        format!("{}: {} through this agent; nothing was changed", page.service, units::rate(page.rate)),
        Style::Faint,
    );
    for note in &page.notes {
        table.note(format!("! {note}"), Style::Bad);
    }
    table
}

fn or_none(text: &str) -> String {
    if text.is_empty() { units::NONE.to_owned() } else { text.to_owned() }
}

fn list(page: &view::Commands) -> Table {
    let mut table = Table::new(&[
        ("SCOPE", Align::Left),
        ("REGISTRY", Align::Left),
        ("INDEX", Align::Right),
        ("WHAT", Align::Left),
        ("PATTERN", Align::Left),
        ("GROUPS", Align::Left),
        ("RULES", Align::Left),
        ("REMARK", Align::Left),
    ]);
    for text in &page.texts {
        for command in &text.commands {
            let what = match command.kind {
                1 => Cell::styled("degrade", Style::Bad),
                2 => "switchers".into(),
                _ => "groups".into(),
            };
            let groups = if command.kind == 2 { &command.switchers } else { &command.groups };
            table.row(vec![
                Cell::styled(&text.scope, Style::Bold),
                text.registry.clone().into(),
                command.index.map_or(units::NONE.to_owned(), |i| i.to_string()).into(),
                what,
                or_none(&command.pattern).into(),
                or_none(&groups.join(" ")).into(),
                or_none(&command.routes.join("; ")).into(),
                or_none(&command.remark).into(),
            ]);
        }
    }
    if page.texts.iter().all(|text| text.commands.is_empty()) {
        table.note("no commands", Style::Faint);
    }
    let mut said: Vec<String> = Vec::new();
    for service in &page.services {
        let name = format!("{}/{}", service.group, service.service);
        said.extend(service.by.iter().map(|by| format!("{name} goes by {by}")));
        said.extend(service.degraded.iter().map(|by| format!("! {name} is degraded by {by}")));
        said.extend(service.troubles.iter().map(|why| format!("! {name}: {why}")));
    }
    for text in &page.texts {
        said.extend(text.stale.iter().map(|why| format!("! {} in {} is old: {why}", text.scope, text.registry)));
        said.extend(text.troubles.iter().map(|why| format!("! {} in {}: {why}", text.scope, text.registry)));
    }
    for undo in &page.undo {
        let what = if undo.kind == 1 { "degrade" } else { "switch" };
        said.push(format!("the {what} of {} is undone in {}", undo.service, units::age(undo.in_seconds)));
    }
    // A service whose protocol is detected is there once for each protocol.
    said.dedup();
    for line in said {
        let style = if line.starts_with('!') { Style::Bad } else { Style::Faint };
        table.note(line, style);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_as_operators_write_them() {
        assert_eq!(share("idc-a=80").as_deref(), Ok("idc-a:80"));
        assert_eq!(share("idc-a:80").as_deref(), Ok("idc-a:80"));
        assert_eq!(share("idc-a").as_deref(), Ok("idc-a"));
        assert!(share("idc-a=0").unwrap_err().contains("leave idc-a out"));
        assert!(share("idc-a=101").is_err() && share("idc-a=x").is_err());
        let term = Term { undo_after: Some(Duration::from_secs(600)), end: false, group: Some("g".into()) };
        assert_eq!(query("a.B", &term), "service=a.B&group=g&for=600000ms");
    }

    #[test]
    fn what_is_shown() {
        let page = view::Commands {
            texts: vec![view::CommandText {
                registry: "zk".into(),
                scope: "group bars".into(),
                text: None,
                stale: Some("no answer".into()),
                commands: vec![view::Command {
                    index: Some(1),
                    kind: 0,
                    pattern: "bars.*".into(),
                    groups: vec!["bars:1".into(), "bars-b:3".into()],
                    routes: Vec::new(),
                    switchers: Vec::new(),
                    remark: String::new(),
                }],
                troubles: Vec::new(),
            }],
            services: Vec::new(),
            undo: vec![view::Undo { scope: "group bars".into(), service: "s".into(), kind: 0, in_seconds: 61.0 }],
        };
        let lines = list(&page).lines(screen::color(), None).join("\n");
        for part in ["bars:1 bars-b:3", "! group bars in zk is old: no answer", "the switch of s is undone in 1m01s"] {
            assert!(lines.contains(part), "{part:?} is missing in\n{lines}");
        }
        let page = view::Preview {
            service: "s".into(),
            rate: 100.0,
            rows: vec![view::PreviewRow {
                group: "a".into(),
                address: "10.0.0.1:1".into(),
                rate_now: 100.0,
                rate_then: 80.0,
                share: 0.8,
            }],
            notes: Vec::new(),
        };
        let lines = preview(&page).lines(screen::color(), None).join("\n");
        assert!(lines.contains("80.0%") && lines.contains("nothing was changed"), "{lines}");
    }
}
