//! `cargo xtask`: everything that a developer or a machine does with this repository.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line talks to a person")]

mod bench;
mod build;
mod ci;
mod demo;
mod doctor;
mod frames;
mod kernels;
mod lint;
mod packages;
mod peers;
mod screenshots;
mod sh;
mod soak;
mod sys;
mod test;
mod toolchain;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::test::Extent;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Builds, runs, tests and checks Sockmesh")]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Runs a mesh of real programs on this machine until Ctrl-C
    Run(demo::Options),
    /// Sets up what the tests need, builds, and runs them
    Test {
        /// Only tests whose name contains this
        filter: Option<String>,
        /// Also against programs that no package has: they are built once (minutes each) and kept
        #[arg(long)]
        full: bool,
    },
    /// Runs the heavy tests: hundreds of kills, a million rows, long runs
    Soak {
        /// Only tests whose name contains this
        filter: Option<String>,
    },
    /// Builds or fetches the programs that `test --full` needs, those that are named or all
    Peers {
        /// Their names
        names: Vec<String>,
    },
    /// Builds the eBPF object (making its tool chain below target/ if need be) and the agent
    Build,
    /// Measures the ways through the mesh beside plain loopback, or runs the benchmark that is named
    Bench(bench::Options),
    /// Takes the console's pictures in docs/img again, with its tests
    Screenshots,
    /// Boots other kernels in virtual machines and tries there what the mesh does with them
    Kernels(kernels::Options),
    /// Checks the import table and the other rules of this repository
    Lint {
        /// Writes the import table into docs/architecture.md first
        #[arg(long)]
        write: bool,
    },
    /// The one gate: format, lint, clippy, docs, tests
    Ci,
    /// Says which tools are there and which are missing
    Doctor,
    #[command(hide = true)]
    DemoGuard { session: i32 },
    #[command(hide = true)]
    StandIn {
        #[command(subcommand)]
        which: demo::standin::StandIn,
    },
}

fn main() -> ExitCode {
    let result = match Args::parse().verb {
        Verb::Run(options) => demo::run(&options),
        Verb::Test { filter, full } => test::run(filter.as_deref(), if full { Extent::Full } else { Extent::Usual }),
        Verb::Soak { filter } => soak::run(filter.as_deref()),
        Verb::Peers { names } => peers::run(&names),
        Verb::Build => build::all().map(|ebpf| {
            let how = if ebpf == build::Ebpf::Built { "with" } else { "without" };
            println!("built {} {how} eBPF capture", build::agent().display());
        }),
        Verb::Bench(options) => bench::run(&options),
        Verb::Screenshots => screenshots::run(),
        Verb::Kernels(options) => kernels::run(&options),
        Verb::Lint { write } => if write { lint::write_table() } else { Ok(()) }.and_then(|()| lint::run()),
        Verb::Ci => ci::run(),
        Verb::Doctor => doctor::run(),
        Verb::DemoGuard { session } => demo::guard::run(session),
        Verb::StandIn { which } => demo::standin::run(&which),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}
