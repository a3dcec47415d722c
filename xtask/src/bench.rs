//! `cargo xtask bench`: figures with the machine, the kernel and the commit they belong to.

mod cell;
mod goals;
mod page;
mod pair;
mod peers;
mod picture;
mod quiet;
mod rounds;
mod rows;
mod way;
mod world;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use self::{
    cell::{CELLS, Cpus, MOTAN, MOTAN_CELLS, PORTS},
    way::Way,
};
use crate::{build, demo::guard::Guard, sh, sys};

/// What the user asked for.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    named: Option<Named>,
    #[command(flatten)]
    ways: WayOptions,
}

#[derive(Subcommand)]
enum Named {
    /// Calls through the whole Motan2 line inside one process: time and allocations of a call
    Pipeline {
        /// Its own arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// A governance centre with 50,000 instances of 2,000 services and 5,000 agents that follow
    Center {
        /// A small one: whether everything works, not how fast
        #[arg(long)]
        quick: bool,
        /// Only a part of it: `changes` (registrations, heartbeats, lists, commands) or `reports` (figures of all agents)
        #[arg(long, value_name = "PART")]
        only: Option<String>,
    },
    /// Motan2 through two agents, and through one with redirect, beside the agents of Weibo Mesh
    Motan(MotanOptions),
}

/// How each bench measures, and what becomes of it.
#[derive(clap::Args)]
struct CommonOptions {
    /// One short round: whether everything works, not how fast
    #[arg(long)]
    quick: bool,
    /// Rounds; the figures are their medians
    #[arg(long)]
    rounds: Option<usize>,
    /// How long one measurement lasts
    #[arg(long, value_name = "MILLISECONDS")]
    millis: Option<u64>,
    /// Writes the rows there: a JSON list with one object for each, one on a line
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(clap::Args)]
struct MotanOptions {
    #[command(flatten)]
    common: CommonOptions,
    /// Only on one CPU, or on all (what is usual)
    #[arg(long)]
    cpus: Option<Cpus>,
    /// Writes its part of docs/benchmarks.md
    #[arg(long)]
    write: bool,
}

#[derive(clap::Args)]
struct WayOptions {
    #[command(flatten)]
    common: CommonOptions,
    /// Only these: direct, port, ebpf, ebpf+redirect, kernel, kernel+joined, iptables
    #[arg(long, value_name = "PATHS", value_delimiter = ',')]
    only: Vec<String>,
    /// Other proxies beside the mesh: haproxy, nginx, envoy, motan-go. What is missing is installed
    #[arg(long, value_name = "PEERS", value_delimiter = ',')]
    with: Vec<String>,
    /// Only these: echo, churn, bulk, http, motan2
    #[arg(long, value_delimiter = ',')]
    loads: Vec<String>,
    /// Only this number of callers
    #[arg(long)]
    callers: Option<usize>,
    /// Only on one CPU, or only on all
    #[arg(long)]
    cpus: Option<Cpus>,
    /// Writes docs/benchmarks.md and its picture
    #[arg(long)]
    write: bool,
}

/// What is to be measured, and how.
struct Plan {
    /// Whose figures the others are multiples of.
    base: Way,
    ways: Vec<Way>,
    /// Loads that a server serves, with its ports.
    ports: &'static [(&'static str, u16)],
    cells: Vec<cell::Cell>,
    cpus: Vec<Cpus>,
    rounds: usize,
    /// Calls at the start of a measurement that are not counted.
    warm: Duration,
    measured: Duration,
    quick: bool,
}

/// Where figures come from.
struct Origin {
    machine: String,
    kernel: String,
    commit: String,
    day: String,
}

/// Runs what is asked for.
pub fn run(options: &Options) -> Result<()> {
    match &options.named {
        Some(Named::Pipeline { args }) => pipeline(args),
        Some(Named::Center { quick, only }) => center(*quick, only.as_deref()),
        Some(Named::Motan(options)) => measure(&motan_plan(options), options.common.json.as_deref(), options.write),
        None => measure(&plan(&options.ways)?, options.ways.common.json.as_deref(), options.ways.write),
    }
}

fn center(quick: bool, only: Option<&str>) -> Result<()> {
    origin().print();
    let mut cargo = sh::cargo(["bench", "--package", "center", "--bench", "load", "--"]);
    cargo.args(quick.then_some("--quick"));
    cargo.args(only.map(|part| ["--only", part]).into_iter().flatten());
    sh::run(&mut cargo)
}

fn pipeline(args: &[String]) -> Result<()> {
    origin().print();
    println!("compiler {}", sh::read(Command::new("rustc").arg("--version").current_dir(sh::root()))?);
    let mut command = sh::cargo(["bench", "--quiet", "--package", "tests", "--bench", "pipeline", "--"]);
    sh::run(command.args(args))
}

fn measure(plan: &Plan, json: Option<&Path>, write: bool) -> Result<()> {
    if !sys::is_root() {
        bail!("the benchmark makes network namespaces and control groups: run it as root");
    }
    build::all()?;
    sh::run(&mut sh::cargo(["build", "--release", "--quiet", "--package", "tests", "--bin", "load"]))
        .context("building the load failed: see the compiler's messages above")?;
    let origin = origin();
    origin.print();
    println!("run      {}", world::run_name());
    // From here on a stop signal means: in order.
    let signals = sys::Signals::catch()?;
    let guard = Guard::start()?;
    let home = sys::this_network()?;
    let all = sys::cpus()?;
    let outcome = rounds::run(plan, &guard, &signals);
    // Where the rest of this process belongs, whatever became of the measurement.
    sys::enter_network(&home)?;
    sys::pin(&all)?;
    guard.finish()?;
    let outcome = outcome?;

    print!("\n{}", rows::table(&outcome));
    if let Some(file) = json {
        fs::write(file, rows::json(&outcome)).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if write {
        page::write(&origin, plan, &outcome)?;
    }
    if !outcome.failures.is_empty() {
        bail!("{} measurements failed, see above", outcome.failures.len());
    }
    Ok(())
}

fn plan(options: &WayOptions) -> Result<Plan> {
    let mut ways = match options.only.as_slice() {
        [] => Way::ALL.to_vec(),
        // Nothing is a ratio without the plain figure.
        names => std::iter::once("direct")
            .chain(names.iter().map(String::as_str).filter(|name| *name != "direct"))
            .map(Way::named)
            .collect::<Result<_>>()?,
    };
    for name in &options.with {
        ways.push(Way::peer(name)?);
    }
    let known = |name: &String| CELLS.iter().any(|cell| cell.load == name);
    if let Some(name) = options.loads.iter().find(|name| !known(name)) {
        bail!("unknown load {name:?}: expected echo, churn, bulk, http or motan2");
    }
    let asked = |cell: &&cell::Cell| {
        (options.loads.is_empty() || options.loads.iter().any(|name| name == cell.load))
            && options.callers.is_none_or(|callers| callers == cell.callers)
    };
    let cells: Vec<_> = CELLS.iter().filter(asked).copied().collect();
    if cells.is_empty() {
        bail!("no load has {} callers: echo has 1, 16 and 64", options.callers.unwrap_or(0));
    }
    let (rounds, warm, measured) = if options.common.quick { (1, 50, 100) } else { (5, 150, 500) };
    Ok(Plan {
        base: Way::Direct,
        ways,
        ports: PORTS,
        cells,
        cpus: options.cpus.map_or(vec![Cpus::One, Cpus::All], |cpus| vec![cpus]),
        rounds: options.common.rounds.unwrap_or(rounds).max(1),
        warm: Duration::from_millis(warm),
        measured: Duration::from_millis(options.common.millis.unwrap_or(measured).max(10)),
        quick: options.common.quick,
    })
}

fn motan_plan(options: &MotanOptions) -> Plan {
    // Longer than the other rounds: the collector of garbage of a Go program runs a few times in it.
    let (rounds, warm, measured) = if options.common.quick { (1, 50, 100) } else { (5, 500, 2000) };
    Plan {
        base: Way::MotanGoPair,
        ways: Way::MOTAN.to_vec(),
        ports: MOTAN,
        cells: MOTAN_CELLS.to_vec(),
        cpus: vec![options.cpus.unwrap_or(Cpus::All)],
        rounds: options.common.rounds.unwrap_or(rounds).max(1),
        warm: Duration::from_millis(warm),
        measured: Duration::from_millis(options.common.millis.unwrap_or(measured).max(10)),
        quick: options.common.quick,
    }
}

impl Origin {
    fn print(&self) {
        println!("machine  {}", self.machine);
        println!("kernel   {}", self.kernel);
        println!("commit   {}", self.commit);
    }
}

fn origin() -> Origin {
    let day = sh::read(Command::new("date").args(["-u", "+%Y-%m-%d"])).unwrap_or_else(|_| "unknown".to_owned());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    Origin { machine: machine(), kernel, commit: commit(), day }
}

fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!("{cores} x {}, load {}", model.unwrap_or("unknown"), load.split(' ').next().unwrap_or("unknown"))
}

fn commit() -> String {
    let git = |args: &[&str]| sh::read(Command::new("git").args(args).current_dir(sh::root()));
    let changed = git(&["status", "--porcelain"]).is_ok_and(|text| !text.is_empty());
    let commit = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_else(|_| "unknown".to_owned());
    if changed { format!("{commit} with local changes") } else { commit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(line: &str) -> Options {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        <Line as clap::Parser>::try_parse_from(words).unwrap().options
    }

    #[test]
    fn the_plain_figure_is_always_measured_and_first() {
        let plan = plan(&parse("--quick --only ebpf,direct --loads echo --callers 16").ways).unwrap();
        assert_eq!(plan.ways, [Way::Direct, Way::Ebpf]);
        assert_eq!(plan.cells.len(), 1);
        assert_eq!(plan.rounds, 1);
        assert_eq!(super::plan(&parse("").ways).unwrap().ways, Way::ALL);
    }

    #[test]
    fn what_does_not_exist_is_named() {
        for (line, word) in [
            ("--only fast", "fast"),
            ("--loads tea", "tea"),
            ("--with squid", "squid"),
            ("--loads bulk --callers 7", "7"),
        ] {
            let error = plan(&parse(line).ways).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(word), "{line}: {error}");
        }
        assert!(matches!(parse("pipeline -- 1000").named, Some(Named::Pipeline { .. })));
    }
}
