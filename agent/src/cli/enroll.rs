//! `sockmesh enroll` and `sockmesh release`.

use std::{fmt::Write as _, process::ExitCode, time::Duration};

use anyhow::bail;

use super::{
    Output, Target, block_on, print, screen,
    table::{Align, Cell, Style, Table},
    units,
};
use crate::{
    admin::view,
    config::{self, Who},
};

/// Arguments of `enroll`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Path of a control group (with `*`, `?` and `**`: all that match), unit:NAME, uid:NUMBER or netns:PATH;
    /// without it, who is enrolled is listed
    #[arg(value_name = "WHAT", value_parser = Who::parse)]
    pub what: Option<Who>,
    /// Undo it after this time unless `sockmesh enroll --confirm` is said before
    #[arg(long, value_name = "TIME", value_parser = time, requires = "what")]
    pub confirm_within: Option<Duration>,
    /// Confirm WHAT, or all that wait for it
    #[arg(long, conflicts_with = "confirm_within")]
    pub confirm: bool,
    /// How to print the list
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
    /// Which agent
    #[command(flatten)]
    pub target: Target,
}

/// Arguments of `release`.
#[derive(Clone, Debug, clap::Args)]
pub struct ReleaseArgs {
    /// Whom, as `sockmesh enroll` lists it
    #[arg(value_name = "WHAT", value_parser = Who::parse)]
    pub what: Who,
    /// Which agent
    #[command(flatten)]
    pub target: Target,
}

/// A time that is not none.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    match config::duration(text) {
        Ok(time) if !time.is_zero() => Ok(time),
        Ok(_) => Err("no time at all; write one like 60s".to_owned()),
        Err(wrong) => Err(format!("{}; {}", wrong.problem, wrong.remedy)),
    }
}

/// Runs `sockmesh enroll`: enrolls, confirms or lists.
pub fn enroll(args: &Args) -> anyhow::Result<ExitCode> {
    let client = args.target.client()?;
    block_on(async {
        let what = args.what.as_ref().map(|what| format!("what={}", encoded(&what.to_string())));
        let text = match (what, args.confirm) {
            (what, true) => client.post(&format!("/confirm?{}", what.unwrap_or_default())).await? + "\n",
            (Some(what), false) => {
                let within =
                    args.confirm_within.map_or(String::new(), |t| format!("&confirm_within={}ms", t.as_millis()));
                client.post(&format!("/enroll?{what}{within}")).await? + "\n"
            }
            (None, false) => {
                let (_, page) = client.get::<view::Enrolled>("/enrolled").await?;
                match args.output {
                    Output::Json => serde_json::to_string_pretty(&page)? + "\n",
                    Output::Table => table(&page).lines(screen::color(), None).join("\n") + "\n",
                }
            }
        };
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Runs `sockmesh release`.
pub fn release(args: &ReleaseArgs) -> anyhow::Result<ExitCode> {
    let client = args.target.client()?;
    block_on(async {
        let done = client.post(&format!("/release?what={}", encoded(&args.what.to_string()))).await?;
        if done.is_empty() {
            bail!("the agent says nothing");
        }
        print(&format!("{done}\n"))?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Percent-encoded, all but what is safe anywhere in a query.
pub(super) fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b':' => out.push(byte.into()),
            other => {
                let _ = write!(out, "%{other:02X}");
            }
        }
        out
    })
}

fn table(page: &view::Enrolled) -> Table {
    let mut table = Table::new(&[
        ("WHAT", Align::Left),
        ("FROM", Align::Left),
        ("SINCE", Align::Right),
        ("STATE", Align::Left),
        ("MATCHES", Align::Left),
    ]);
    for row in &page.enrolled {
        let state = match (row.released, row.confirm_within_seconds) {
            (true, _) => Cell::styled("released", Style::Faint),
            (false, Some(left)) => Cell::styled(format!("confirm within {}", units::age(left)), Style::Bad),
            (false, None) => Cell::styled("enrolled", Style::Good),
        };
        table.row(vec![
            Cell::styled(&row.what, Style::Bold),
            row.source.clone().into(),
            units::age(row.since_seconds).into(),
            state,
            if row.matches.is_empty() { units::NONE.to_owned() } else { row.matches.join(" ") }.into(),
        ]);
    }
    if page.enrolled.is_empty() {
        table.note("nobody is enrolled", Style::Faint);
    }
    for row in &page.enrolled {
        if let Some(note) = &row.note {
            table.note(format!("! {}: {note}", row.what), Style::Bad);
        }
    }
    for space in &page.namespaces {
        let at: Vec<_> = space.listeners.iter().map(ToString::to_string).collect();
        table.note(format!("listening in network namespace {}: {}", space.found_as, at.join(" ")), Style::Faint);
        if let Some(trouble) = &space.trouble {
            table.note(format!("! network namespace {}: {trouble}", space.found_as), Style::Bad);
        }
    }
    for refused in &page.refused {
        table.note(format!("! {refused}"), Style::Bad);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_encoded() {
        assert_eq!(encoded("/a/*b?c&d é"), "/a/%2Ab%3Fc%26d%20%C3%A9");
    }

    #[test]
    fn the_list() {
        let page = view::Enrolled {
            capture: "ebpf".into(),
            enrolled: vec![view::EnrolledRow {
                what: "uid:7".into(),
                source: "command".into(),
                released: false,
                since_seconds: 61.0,
                confirm_within_seconds: Some(9.0),
                matches: Vec::new(),
                note: Some("odd".into()),
            }],
            namespaces: Vec::new(),
            refused: Vec::new(),
        };
        let lines = table(&page).lines(screen::color(), None).join("\n");
        assert!(lines.contains("uid:7") && lines.contains("1m01s") && lines.contains("confirm within 9s"), "{lines}");
        assert!(lines.contains("! uid:7: odd"), "{lines}");
    }
}
