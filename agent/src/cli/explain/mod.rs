//! `sockmesh explain`: why a call went where it went, or nowhere.

#[cfg(test)]
mod tests;

use std::{fmt::Write, net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::bail;
use tokio::time::{Instant, sleep};

use super::{Output, Target, block_on, print, units};
use crate::{
    admin::view,
    metrics::{Candidate, Kept, Step, Story},
};

/// Pause between two looks for a call that was asked for.
const LOOK: Duration = Duration::from_millis(50);

/// Arguments of `explain`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The service, as it is called in the configuration, or an address that programs dial
    pub service: String,
    /// Wait for the next call and tell everything about it
    #[arg(long)]
    pub next: bool,
    /// How long to wait for it
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = wait, requires = "next")]
    pub wait: Duration,
    /// How many recent calls, latest last
    #[arg(short = 'n', long, value_name = "N", default_value = "3")]
    pub last: usize,
    /// Only the call with this request id
    #[arg(long, value_name = "ID")]
    pub id: Option<u64>,
    /// Only calls from this address, and the connection itself
    #[arg(long, value_name = "IP:PORT")]
    pub from: Option<SocketAddr>,
    /// How to print them
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
    /// Which agent
    #[command(flatten)]
    pub target: Target,
}

fn wait(text: &str) -> Result<Duration, String> {
    crate::config::duration(text).map_err(|wrong| format!("{}; {}", wrong.problem, wrong.remedy))
}

/// Runs `sockmesh explain`.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let client = args.target.client()?;
    block_on(async {
        let service = encoded(&args.service);
        let path = format!("/explain?service={service}");
        let (_, mut page) = client.get::<view::Explained>(&path).await?;
        if args.next {
            let known = page.stories.iter().map(|story| story.id).max().unwrap_or(0);
            let lost = |page: &view::Explained| page.lost.iter().map(|row| row.count).sum::<u64>();
            let lost_before = lost(&page);
            client.post(&format!("/explain/next?service={service}")).await?;
            let deadline = Instant::now() + args.wait;
            loop {
                (_, page) = client.get::<view::Explained>(&path).await?;
                page.stories.retain(|story| story.id > known && story.kept == Kept::Asked);
                if !page.stories.is_empty() || lost(&page) > lost_before {
                    break;
                }
                if Instant::now() >= deadline {
                    bail!("no call of {} ended within {:?}; the next one will be recorded", args.service, args.wait);
                }
                sleep(LOOK).await;
            }
        }
        page.stories.retain(|story| {
            args.id.is_none_or(|id| id == story.request_id) && args.from.is_none_or(|from| Some(from) == story.peer)
        });
        page.stories.drain(..page.stories.len().saturating_sub(args.last.max(1)));
        page.lost.retain(|row| {
            args.id.is_none_or(|id| id == row.request_id) && args.from.is_none_or(|from| Some(from) == row.peer)
        });
        if let Some(from) = args.from {
            page.connections.retain(|row| row.peer == from);
        }
        match args.output {
            Output::Json => print(&(serde_json::to_string_pretty(&page)? + "\n"))?,
            Output::Table => print(&text(&page))?,
        }
        // Nobody asked for it either: the name is the operator's mistake.
        let is_mistake = page.unknown.is_some() && page.lost.is_empty();
        Ok(if is_mistake { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    })
}

fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// The page for people.
fn text(page: &view::Explained) -> String {
    let mut out = String::new();
    for story in &page.stories {
        tell(story, page, &mut out);
        out.push('\n');
    }
    if let Some(unknown) = &page.unknown {
        tell_unknown(unknown, &mut out);
    } else if page.stories.is_empty() && page.lost.is_empty() {
        out.push_str("no call is kept; `--next` waits for one\n\n");
    }
    page.lost.iter().for_each(|row| tell_lost(row, &mut out));
    let told: Vec<_> = page.stories.iter().filter_map(|story| story.peer).collect();
    for row in page.connections.iter().filter(|row| !told.contains(&row.peer)) {
        line(&mut out, "connection", &connection(row));
        line(&mut out, "redirect", row.redirect.as_deref().unwrap_or("off: it cannot be on this way"));
    }
    for trouble in &page.troubles {
        line(&mut out, "trouble", trouble);
    }
    out
}

fn tell_unknown(unknown: &view::Unknown, out: &mut String) {
    let view::Unknown { wanted, rule, near, known, more, answer } = unknown;
    let _ = writeln!(out, "{wanted}: nothing here has that name");
    line(out, "rule", &format!("looked for {rule}"));
    if !near.is_empty() {
        line(out, "near", &near.join(", "));
    }
    let and_more = if *more > 0 { format!(" and {more} more") } else { String::new() };
    let known = if known.is_empty() { "no service at all".to_owned() } else { known.join(", ") };
    line(out, "known", &(known + &and_more));
    line(out, "answer", answer);
    out.push('\n');
}

fn tell_lost(row: &view::LostCall, out: &mut String) {
    let times = if row.count == 1 { "once".to_owned() } else { format!("{} times", row.count) };
    let what = match (row.service.as_str(), row.dialed) {
        ("", Some(dialed)) if row.method.is_empty() => format!("connection to {dialed}"),
        ("", _) => format!("{} of no service", row.method),
        (service, _) => format!("{} of {service}", row.method),
    };
    let _ = writeln!(out, "{what}: reached no service, {times}");
    let peer = row.peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string());
    let application =
        if row.application.is_empty() { String::new() } else { format!(", application {}", row.application) };
    let dialed = row.dialed.map_or_else(String::new, |at| format!(", by the address {at}"));
    line(out, "from", &format!("{peer}{application}{dialed}"));
    for (name, value) in [("group", &row.group), ("version", &row.version)] {
        if !value.is_empty() {
            line(out, name, value);
        }
    }
    line(out, "rule", &format!("looked for {}", row.rule));
    line(out, "answered", &row.answered);
    out.push('\n');
}

fn tell(story: &Story, page: &view::Explained, out: &mut String) {
    let what = [story.method.as_str(), story.path.as_str()].join(" ");
    let time = micros(story.total_micros);
    let of = if what.trim().is_empty() { "connection" } else { what.trim() };
    let attempts = match story.attempts {
        1 => "1 attempt".to_owned(),
        n => format!("{n} attempts"),
    };
    let _ = writeln!(out, "{of} of {}: {}; {attempts}, {time}", story.service, story.outcome);
    if let Some(peer) = story.peer {
        let row = page.connections.iter().find(|row| row.peer == peer);
        let from = row.map_or_else(|| format!("{peer}, whose connection has ended"), connection);
        line(out, "from", &from);
        if let Some(row) = row {
            line(out, "redirect", row.redirect.as_deref().unwrap_or("off: it cannot be on this way"));
        }
    }
    let dialed = story.dialed.map_or_else(String::new, |at| format!(", by its address {at}"));
    line(out, "rule", &format!("{} service {}, protocol {}{dialed}", story.direction, story.service, story.protocol));
    let groups = if story.groups.is_empty() { String::new() } else { format!(": {}", story.groups.join(" ")) };
    line(out, "command", &story.command.as_ref().map_or("none".to_owned(), |by| format!("{by}{groups}")));
    let timeout = micros(story.timeout_micros);
    line(out, "settings", &format!("ha {}, lb {}, {timeout} in all", story.ha, story.lb));
    for step in &story.steps {
        tell_step(step, out);
    }
    if story.kept != Kept::Asked {
        line(out, "note", "steps of this call were not recorded in full; `--next` records the next one");
    }
}

fn tell_step(step: &Step, out: &mut String) {
    match step {
        Step::Filter { name, at, micros: time, said, .. } => {
            let said = said.as_ref().map_or("let it pass".to_owned(), |said| format!("ended it: {said}"));
            line(out, "filter", &format!("{name} ({at}) {said}, {}", micros(*time)));
        }
        Step::Pick { picked, candidates, more } => {
            line(out, "pick", &picked.map_or("nobody".to_owned(), |at| at.to_string()));
            let width = candidates.iter().map(|c| c.endpoint.to_string().len()).max().unwrap_or(0);
            for candidate in candidates {
                let Candidate { endpoint, group, zone, weight, in_flight, reason } = candidate;
                let mut what = format!("  {:width$}  weight {weight}, {in_flight} in flight", endpoint.to_string());
                for (name, value) in [("group", group), ("zone", zone)] {
                    if !value.is_empty() {
                        let _ = write!(what, ", {name} {value}");
                    }
                }
                line(out, "", &format!("{what}: {reason}"));
            }
            if *more > 0 {
                line(out, "", &format!("  and {more} more"));
            }
        }
        Step::Try { number, endpoint, micros: time, end } => {
            line(out, &format!("try {number}"), &format!("{endpoint} {end}, after {}", micros(*time)));
        }
        Step::Note { text } => line(out, "note", text),
    }
}

/// Who is at the other end.
fn connection(row: &view::LiveRow) -> String {
    let how = if row.captured { "captured on its way to" } else { "dialed" };
    let process = match (row.process.as_str(), row.pid) {
        ("", _) | (_, 0) => String::new(),
        (name, pid) => format!(" ({name}, pid {pid})"),
    };
    format!("{}{process}, {how} {}", row.peer, row.destination)
}

fn micros(n: u64) -> String {
    units::latency(Some(n as f64 / 1e6))
}

fn line(out: &mut String, name: &str, text: &str) {
    let _ = writeln!(out, "  {name:<9} {text}");
}
