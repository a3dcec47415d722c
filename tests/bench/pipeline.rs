//! `cargo xtask bench pipeline`: what one Motan2 call costs inside the agent, sockets included.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a program for people")]

mod picks;
mod rig;

use rig::{Caller, Cost, Rig};

/// Runs of each figure: the median is shown, with the fastest and the slowest.
const RUNS: usize = 7;

fn main() {
    let build = if cfg!(debug_assertions) { "debug: the times mean nothing" } else { "release" };
    println!("build    {build}");
    println!();
    picks::print();
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
        for (name, to) in [("plain", rig.server), ("agent", rig.agent)] {
            let mut caller = Caller::new(to, depth, body);
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
