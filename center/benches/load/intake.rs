//! All agents report what they see, each two seconds: what that costs the centre, and what is kept of it.

use std::{sync::Arc, time::Instant};

use crate::{
    Row,
    agents::{Fleet, Shape, reports::EVERY},
    all_wait,
    child::Center,
    pause, percentiles,
};

/// Minutes of figures that are waited for, of which the first is not counted: it is a part of one.
const MINUTES: u64 = 5;

/// A centre of its own, with everything that else goes on: registrations, heartbeats, long polls.
pub async fn run(shape: Shape, quick: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |what: String, goal, figure: String| {
        println!("{what}: {figure}");
        rows.push(Row { what, goal, figure });
    };
    let center = Center::start();
    let fleet = Arc::new(Fleet::new(center.addr(), shape));
    fleet.register_all().await;
    fleet.follow_all();
    all_wait(&fleet, &center, shape.agents).await;
    let beating = fleet.beat();
    pause(12, quick).await;
    let (before, measured) = (center.cpu(), Instant::now());
    pause(30, quick).await;
    let idle = (center.cpu() - before) / measured.elapsed().as_secs_f64();
    let memory = center.memory();

    let (samples, bytes) = fleet.report_size();
    let told = format!(
        "{} agents report each {} s, {samples} samples, {} KB each",
        shape.agents,
        EVERY.as_secs(),
        bytes >> 10
    );
    let reporting = fleet.report();
    // Rows are made and rings are filled before anything is counted.
    pause(60, quick).await;
    fleet.answers();
    let (before, measured) = (center.cpu(), Instant::now());
    pause(60, quick).await;
    let (cores, took) = ((center.cpu() - before) / measured.elapsed().as_secs_f64(), measured.elapsed());
    let answers = fleet.answers();
    let rate = answers.times.len() as f64 / took.as_secs_f64();
    let wanted = shape.agents as f64 / EVERY.as_secs_f64();
    let rate = format!("{rate:.0} of {wanted:.0} a second, {:.0} MB/s", rate * bytes as f64 / 1e6);
    row(format!("{told}: reports taken"), "", rate);
    row(
        "the centre then, with heartbeats and long polls: cores".into(),
        "",
        format!("{cores:.2} ({idle:.2} without reports)"),
    );
    row("answers to reports: 50 %, 99 %, longest".into(), "", percentiles(&answers.times, 0));
    row("reports that were not taken".into(), "0", answers.refused.to_string());

    let minutes = if quick { 2 } else { MINUTES };
    let (kept, lost) = minutes_kept(&center, minutes).await;
    row(
        format!(
            "memory after {:.0} minutes of it",
            measured.elapsed().as_secs_f64() / 60.0 + if quick { 0.0 } else { 1.0 }
        ),
        "",
        format!("{} MB ({} MB without reports)", center.memory() >> 20, memory >> 20),
    );
    let windows = center.metric("sockmesh_center_windows").await;
    row(
        "rows of figures in memory, and their windows".into(),
        "",
        format!("{}, {windows}", center.metric("sockmesh_center_rows").await),
    );
    let Kept { rows: a_minute, bytes: each, left_out } = kept;
    row(
        "rows of figures kept each minute, those that are in memory only, minutes lost".into(),
        "",
        format!("{a_minute}, {left_out}, {lost}"),
    );
    let hour = a_minute * each * 60;
    row(
        "the file of figures: an hour, a day (keys and values)".into(),
        "",
        format!("{each} bytes a row: {} MB, {:.2} GB", hour / 1_000_000, (hour * 24) as f64 / 1e9),
    );
    row(format!("its length after {minutes} minutes"), "", format!("{} MB", center.figures() >> 20));

    for (what, answer) in fleet.hostile().await {
        row(what.to_owned(), "", answer);
    }
    let refused = center.metric("sockmesh_center_samples_refused_total").await;
    row("samples for which there was no room, as `/metrics` tells".into(), "", refused.to_string());
    pause(20, quick).await;
    row("memory after that".into(), "", format!("{} MB", center.memory() >> 20));
    let answers = fleet.answers();
    row("answers to the others meanwhile: 50 %, 99 %, longest".into(), "", percentiles(&answers.times, 0));
    reporting.abort();
    beating.abort();
    rows
}

/// What is kept of a minute, in the mean.
struct Kept {
    rows: u64,
    bytes: u64,
    left_out: u64,
}

/// Waits until so many minutes were written, and answers what was in those after the first.
async fn minutes_kept(center: &Center, minutes: u64) -> (Kept, u64) {
    let counts = async || {
        let rows = center.metric("sockmesh_center_figures_rows_total").await;
        let bytes = center.metric("sockmesh_center_figures_bytes_total").await;
        let left_out = center.metric("sockmesh_center_figures_rows_left_out_total").await;
        (rows, bytes, left_out)
    };
    let end = Instant::now() + crate::PATIENCE;
    let (mut last, mut first, mut seen) = (counts().await, None, 0);
    while seen < minutes {
        assert!(Instant::now() < end, "only {seen} minutes of figures were written");
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        let now = counts().await;
        if now.0 > last.0 {
            seen += 1;
            first.get_or_insert(now);
            last = now;
        }
    }
    let first = first.unwrap_or_default();
    let (rows, bytes, left_out) = (last.0 - first.0, last.1 - first.1, last.2 - first.2);
    let each = (minutes - 1).max(1);
    let kept = Kept { rows: rows / each, bytes: bytes / rows.max(1), left_out: left_out / each };
    (kept, center.metric("sockmesh_center_minutes_lost_total").await)
}
