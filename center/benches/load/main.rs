//! `cargo xtask bench center`: a real centre on a store of its own, and thousands of simulated agents over loopback.
//!
//! Every simulated agent registers its instances in one message, sends a heartbeat each ten seconds on a connection of
//! its own, and has one long poll for the services and the command text that it follows. With `--only changes` that is
//! all; with `--only reports` what all of them report is measured, and nothing else.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a program of figures: a panic is its way to fail, and people read what it prints"
)]

mod agents;
mod child;
mod intake;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use self::{
    agents::{Fleet, Shape},
    child::Center,
};

/// Most that a wait may last before the run counts as failed.
const PATIENCE: Duration = Duration::from_secs(600);

struct Row {
    what: String,
    goal: &'static str,
    figure: String,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let quick = arguments.iter().any(|arg| arg == "--quick");
    let only = arguments.iter().position(|arg| arg == "--only").map(|at| arguments.get(at + 1).map(String::as_str));
    let (changes, reports) = match only {
        None => (true, true),
        Some(Some("changes")) => (true, false),
        Some(Some("reports")) => (false, true),
        Some(other) => panic!("--only {other:?}: write changes or reports"),
    };
    let shape = if quick {
        Shape { agents: 200, services: 80, instances: 2_000, followed: 4, commanded: 40 }
    } else {
        Shape { agents: 5_000, services: 2_000, instances: 50_000, followed: 5, commanded: 1_000 }
    };
    child::raise_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut rows = Vec::new();
    if changes {
        rows.extend(runtime.block_on(run(shape, quick)));
    }
    if reports {
        rows.extend(runtime.block_on(intake::run(shape, quick)));
    }
    println!("\n| what | to reach | measured |\n|---|---|---|");
    for Row { what, goal, figure } in &rows {
        println!("| {what} | {goal} | {figure} |");
    }
    // Long polls that wait still are not waited for.
    runtime.shutdown_background();
}

async fn run(shape: Shape, quick: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |what: String, goal, figure: String| {
        println!("{what}: {figure}");
        rows.push(Row { what, goal, figure });
    };
    let mut center = Center::start();
    let fleet = Arc::new(Fleet::new(center.addr(), shape));
    let watching =
        format!("{} agents wait, {} instances of {} services", shape.agents, shape.instances, shape.services);

    let began = Instant::now();
    fleet.register_all().await;
    let took = began.elapsed();
    row(
        format!("{} agents register {} instances, durably", shape.agents, shape.instances),
        "",
        format!("{:.1} s, {:.0} messages/s", took.as_secs_f64(), shape.agents as f64 / took.as_secs_f64()),
    );
    let began = Instant::now();
    fleet.follow_all();
    all_wait(&fleet, &center, shape.agents).await;
    row("all of them begin to follow".into(), "", seconds(began.elapsed()));

    let beating = fleet.beat();
    pause(12, quick).await;
    let (before, measured) = (center.cpu(), Instant::now());
    pause(30, quick).await;
    let cores = (center.cpu() - before) / measured.elapsed().as_secs_f64();
    row(format!("heartbeats each 10 s, {watching}: cores"), "< 0.5", format!("{cores:.2}"));
    row(format!("memory, {watching}"), "< 1 GB", format!("{} MB", center.memory() >> 20));

    let changes = if quick { 20 } else { 200 };
    let (seen, missed) = fleet.change_services(changes, Duration::from_millis(100)).await;
    row(
        format!("{changes} changes, 10 a second, each until all its watchers have it: 50 %, 99 %, longest"),
        "99 % < 1 s",
        percentiles(&seen, missed),
    );
    let changes = if quick { 3 } else { 20 };
    let (seen, missed) = fleet.change_hot(changes, Duration::from_secs(1)).await;
    row(
        format!(
            "{changes} changes, one a second, of the service that all {} follow: 50 %, 99 %, longest",
            shape.agents
        ),
        "99 % < 1 s",
        percentiles(&seen, missed),
    );
    let commands = if quick { 2 } else { 10 };
    let (seen, missed) = fleet.command(commands, Duration::from_secs(1)).await;
    row(
        format!("{commands} commands, each until all of {} agents have it: 50 %, 99 %, longest", shape.commanded),
        "< 500 ms",
        percentiles(&seen, missed),
    );

    center.kill9();
    let began = Instant::now();
    center.again();
    let first = center.answers(Duration::from_secs(60)).await;
    row(format!("start with {} instances after SIGKILL", shape.instances), "< 3 s", seconds(first - began));
    all_wait(&fleet, &center, shape.agents).await;
    row(format!("all {} agents wait again", shape.agents), "", seconds(began.elapsed()));
    row("memory after that".into(), "< 1 GB", format!("{} MB", center.memory() >> 20));
    beating.abort();
    let refused = fleet.refusals();
    row("answers that were no success, the killed centre's left out".into(), "0", refused.to_string());
    rows
}

/// Until every agent waits.
async fn all_wait(fleet: &Fleet, center: &Center, agents: usize) {
    let end = Instant::now() + PATIENCE;
    loop {
        let waiting = center.watchers().await.unwrap_or_default();
        if fleet.has_all() && waiting >= agents {
            return;
        }
        assert!(Instant::now() < end, "{waiting} of {agents} agents wait; {}", fleet.trouble());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn pause(seconds: u64, quick: bool) {
    tokio::time::sleep(Duration::from_secs(if quick { 2 } else { seconds })).await;
}

fn seconds(took: Duration) -> String {
    format!("{:.2} s", took.as_secs_f64())
}

/// Of the times at which a change had reached everyone.
fn percentiles(seen: &[Duration], missed: usize) -> String {
    let mut sorted = seen.to_vec();
    sorted.sort();
    let at = |share: f64| {
        let index = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
        sorted.get(index).copied().unwrap_or_default().as_millis()
    };
    let missing = if missed > 0 { format!("; {missed} did not reach everyone") } else { String::new() };
    format!("{} ms, {} ms, {} ms{missing}", at(0.5), at(0.99), at(1.0))
}

/// Counts by word, for messages.
fn counted(words: &BTreeMap<String, usize>) -> String {
    words.iter().map(|(word, count)| format!("{count} x {word}")).collect::<Vec<_>>().join(", ")
}
