//! `cargo xtask bench pipeline`: what one Motan2 call costs inside the agent, sockets included.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a program for people")]

mod picks;
mod rig;

use std::{hint::black_box, time::Instant};

use agent::metrics::{Recent, Trail};
use rig::{Caller, Cost, Rig};

/// Runs of each figure: the median is shown, with the fastest and the slowest.
const RUNS: usize = 7;

fn main() {
    let build = if cfg!(debug_assertions) { "debug: the times mean nothing" } else { "release" };
    println!("build    {build}");
    println!();
    picks::print();
    println!();
    explained();
    println!();
    println!("calls at once  body bytes |        us/call (fastest..slowest)  allocations/call  bytes allocated/call");
    let rig = Rig::start();
    for (depth, body, calls) in [
        (1, 16, 20_000),
        (1, 1024, 20_000),
        (64, 16, 100_000),
        (64, 1024, 100_000),
        (1, 64 * 1024, 5_000),
        (1, 1 << 20, 500),
    ] {
        for (name, to) in [("plain", rig.server), ("agent", rig.agent), ("asked", rig.agent)] {
            // `asked`: each call is explained step by step, as after `sockmesh explain --next`. One at a time only.
            if name == "asked" && depth > 1 {
                continue;
            }
            let mut caller = Caller::new(to, depth, body);
            caller.explained = (name == "asked").then(|| rig.cluster.clone());
            // Buffers, pools and histograms are made on the first calls.
            caller.run(calls / 4);
            let mut costs: Vec<Cost> = (0..RUNS).map(|_| caller.run(calls)).collect();
            costs.sort_by_key(|cost| cost.time);
            let us = |cost: &Cost| cost.time.as_secs_f64() * 1e6;
            let middle = costs[RUNS / 2];
            println!(
                "{depth:13}  {body:10} | {name}  {:10.2} ({:.2}..{:.2})  {:16.2}  {:20.0}",
                us(&middle),
                us(&costs[0]),
                us(&costs[RUNS - 1]),
                middle.allocations,
                middle.bytes
            );
        }
    }
}

/// Prints what it costs each call that it could be explained.
fn explained() {
    const CALLS: u64 = 20_000_000;
    let recent = Recent::default();
    let run = |what: &dyn Fn(u64)| {
        let once = || {
            let begun = Instant::now();
            (1..=CALLS).for_each(what);
            begun.elapsed().as_nanos() as f64 / CALLS as f64
        };
        (0..RUNS).map(|_| once()).fold(f64::INFINITY, f64::min)
    };
    let without = run(&|nth| {
        black_box((Trail::new(false), nth));
    });
    let with = run(&|nth| {
        let trail = black_box(recent.begin());
        black_box(recent.wants(&trail, !trail.is_empty(), nth));
    });
    println!(
        "explain, asked by nobody: {with:.1} ns a call, of which {without:.1} for a trail that nobody could ask for"
    );
}
