//! Rounds: every way once, then every way again, so that what changes with time meets all of them.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail};

use super::{
    Plan,
    cell::{Cell, Cpus},
    peers,
    quiet::Watch,
    rows::{Outcome, Row},
    way::Way,
    world::{Ground, Made, Sample, World, top},
};
use crate::{demo::guard::Guard, sh, sys};

/// Before what is measured: connections are made, and the agent learns how a program uses its sockets.
const LEARN: Duration = Duration::from_millis(200);
/// How often a way is used so before it counts, where programs are learned.
const LESSONS: usize = 8;
/// How much the scheduler prefers the benchmark (both the process and its session).
const NICE: i32 = -10;

/// Measures everything that is planned. Failed measurements are part of the outcome.
pub fn run(plan: &Plan, guard: &Guard, signals: &sys::Signals) -> Result<Outcome> {
    let dir = sh::target("bench").join(std::process::id().to_string());
    guard.watch_dir(&dir)?;
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let top = top()?;
    guard.watch_cgroup(&top)?;
    let ground = Ground { guard, signals, dir: &dir, top: &top };
    let _first = (!plan.quick).then(First::ask);
    let mut outcome = Outcome::new(plan.base, plan.rounds);
    let missing = peers::provide(&plan.ways);
    let ways: Vec<_> = plan.ways.iter().copied().filter(|way| missing.iter().all(|(other, _)| other != way)).collect();
    missing.into_iter().for_each(|(way, why)| outcome.unavailable(way, why));
    let mut watch = Watch::new();
    let all = sys::cpus()?;
    for cpus in &plan.cpus {
        let (used, what) = match cpus {
            Cpus::One => (all.last().into_iter().copied().collect(), "one CPU"),
            Cpus::All => (all.clone(), "all CPUs"),
        };
        sys::pin(&used)?;
        let mut worlds = Vec::new();
        let measured = start((plan, &ways), used.len(), &ground, &mut worlds, &mut outcome)
            .and_then(|()| measure(plan, (used.len(), what), &ground, (&mut worlds, &mut watch), &mut outcome));
        worlds.iter_mut().for_each(World::stop);
        measured?;
    }
    if let Some(warning) = watch.warning() {
        outcome.warnings.push(warning);
    }
    outcome.foreign = watch.foreign();
    Ok(outcome)
}

fn start(
    (plan, ways): (&Plan, &[Way]),
    cpus: usize,
    ground: &Ground<'_>,
    worlds: &mut Vec<World>,
    outcome: &mut Outcome,
) -> Result<()> {
    for way in ways {
        let number = worlds.len();
        let name = format!("bench-{}-{cpus}-{number}", std::process::id());
        match World::start((*way, plan.ports), &name, ground)? {
            Made::World(world) => {
                outcome.idle(*way, world.idle);
                worlds.push(*world);
            }
            Made::Unavailable(why) if *way == Way::Direct => bail!("not even plain loopback works: {why}"),
            Made::Unavailable(why) => outcome.unavailable(*way, why),
        }
    }
    Ok(())
}

fn measure(
    plan: &Plan,
    (cpus, what): (usize, &str),
    ground: &Ground<'_>,
    (worlds, watch): (&mut [World], &mut Watch),
    outcome: &mut Outcome,
) -> Result<()> {
    for cell in &plan.cells {
        let mut worlds: Vec<_> = worlds.iter_mut().filter(|world| world.way.carries(cell.load)).collect();
        eprintln!("{what}: {}, {} callers, {} rounds of {} ways", cell.load, cell.callers, plan.rounds, worlds.len());
        let mut samples: Vec<Vec<Option<Sample>>> = vec![Vec::new(); worlds.len()];
        let mut failed = vec![None; worlds.len()];
        for world in worlds.iter_mut() {
            // A program is redirected once a few of its connections were seen, on both sides of the agent.
            for _ in 0..if world.way.is_redirected() { LESSONS } else { 1 } {
                // Not counted; what goes wrong here will go wrong again below.
                world.measure(*cell, [Duration::ZERO, LEARN], ground).ok();
            }
        }
        for _ in 0..plan.rounds {
            for (at, world) in worlds.iter_mut().enumerate() {
                if ground.signals.wait(Duration::ZERO) {
                    bail!("stopped by a signal");
                }
                watch.begin(ground.top);
                let sample = world.measure(*cell, [plan.warm, plan.measured], ground);
                watch.end(ground.top);
                samples[at].push(sample.map_err(|e| failed[at] = Some(format!("{e:#}"))).ok());
            }
        }
        report(*cell, cpus, &worlds, &samples, failed, outcome);
    }
    Ok(())
}

fn report(
    cell: Cell,
    cpus: usize,
    worlds: &[&mut World],
    samples: &[Vec<Option<Sample>>],
    failed: Vec<Option<String>>,
    outcome: &mut Outcome,
) {
    let base = worlds.iter().position(|world| world.way == outcome.base);
    let none = vec![None; samples.first().map_or(0, Vec::len)];
    // Without the base there are figures, but no ratios.
    let base = base.and_then(|at| samples.get(at)).unwrap_or(&none);
    for ((world, own), failed) in worlds.iter().zip(samples).zip(failed) {
        // A way of which one measurement failed has no figure: what was left out would be the worst.
        match failed {
            Some(why) => outcome.failed(world.way, cell, cpus, &why),
            None => {
                let pairs: Vec<_> = own.iter().zip(base).filter_map(|(own, base)| Some(((*own)?, *base))).collect();
                outcome.rows.push(Row::of(world.way, cell, cpus, &pairs));
            }
        }
    }
}

/// Asks the scheduler for more than others get, and takes it back in the end.
struct First {
    before: Option<String>,
}

impl First {
    fn ask() -> Self {
        let group = Path::new("/proc/self/autogroup");
        // `/autogroup-225 nice 0`; the file is not there where the kernel groups nothing by session.
        let before = fs::read_to_string(group).ok();
        let before = before.and_then(|text| text.trim().rsplit_once("nice ").map(|(_, nice)| nice.to_owned()));
        if let Err(e) = fs::write(group, NICE.to_string()).and_then(|()| sys::nice(NICE)) {
            eprintln!("no preference by the scheduler: {e}");
        }
        Self { before }
    }
}

impl Drop for First {
    fn drop(&mut self) {
        sys::nice(0).ok();
        if let Some(before) = &self.before {
            fs::write("/proc/self/autogroup", before).ok();
        }
    }
}
