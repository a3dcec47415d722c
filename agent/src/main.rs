//! `sockmesh`: flags and verbs, logging, exit code.

use std::{io::IsTerminal, process::ExitCode};

use agent::{
    admin::LogControl,
    app,
    cli::{center, check, commands, config, enroll, explain, import, lists, orders, registrations, run, stat},
};
use clap::{Parser, Subcommand};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// A service mesh for Linux hosts at socket level: the agent and the operator's verbs.
#[derive(Parser)]
#[command(name = "sockmesh", version, about, max_term_width = 100)]
struct Cli {
    /// What to log, on standard error: a level, or a filter as `info,agent::registry=debug`
    /// [default: $SOCKMESH_LOG, or info]
    #[arg(long, global = true, value_name = "FILTER", value_parser = log_filter)]
    log: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the agent until it is told to stop
    Run(run::Args),
    /// Tell what this host can do, and what the configuration asks for in vain
    Check(check::Args),
    /// Validate a configuration without starting anything
    Config(config::Args),
    /// Print a motan-go configuration in the native form, and what of it is not supported
    Import(import::Args),
    /// Show rate, success and latency of services and their endpoints
    Stat(stat::Args),
    /// List endpoints and whether they are in rotation
    Endpoints(lists::Args),
    /// List connections of programs that exist now
    Sockets(lists::Args),
    /// Enroll programs while the agent runs, confirm that, or list who is enrolled
    Enroll(enroll::Args),
    /// Enroll programs no more, while the agent runs
    Release(enroll::ReleaseArgs),
    /// Tell why calls of a service went where they went, or nowhere
    Explain(explain::Args),
    /// List names under .mesh with their addresses
    Names(lists::Args),
    /// Send calls of a service to other groups, by a command in the registry that every client obeys
    Switch(orders::SwitchArgs),
    /// Have calls of a service answered at once with an error, by a command in the registry
    Degrade(orders::DegradeArgs),
    /// List commands in registries and what they make of services
    Commands(orders::CommandsArgs),
    /// Believe the registry that a service lost so many endpoints
    Confirm(orders::ConfirmArgs),
    /// List services of the site, as the centre sees them
    Services(center::lists::ServicesArgs),
    /// Show one service with its instances, callers and commands, as the centre sees it
    Service(center::lists::ServiceArgs),
    /// Show what pools take and how full they are, as the centre estimates it
    Capacity(center::lists::ServicesArgs),
    /// List alerts of the centre
    Alerts(center::lists::RecentArgs),
    /// List agents of the site, as they told the centre
    Agents(center::lists::RecentArgs),
    /// List commands given through the centre, past ones too
    History(center::lists::RecentArgs),
    /// Put a proposal of the centre into force: a switch of traffic, or another size of a pool
    Accept(center::orders::AcceptArgs),
    /// Take a command back that was given through the centre, or turn a proposal down
    Undo(center::orders::UndoArgs),
    /// List who did what in the centre
    Audit(center::lists::RecentArgs),
    /// List provided services in registries; say whether callers may come
    Registrations(registrations::Args),
    /// Apply the changed configuration file as a whole or not at all
    Reload(commands::Args),
    /// Stop the agent gracefully
    Drain(commands::Args),
    /// Print the versions of this program and of the running agent
    Version(commands::VersionArgs),
}

fn main() -> ExitCode {
    agent::metrics::count_panics();
    let cli = Cli::parse_from(run::arguments(std::env::args_os().collect()));
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sockmesh: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let (kernel_log, asked) = match &cli.verb {
        Verb::Run(run) => (run.kernel_log, run.log_filter()),
        _ => (None, None),
    };
    let log = start_logging(cli.log, asked, kernel_log)?;
    match &cli.verb {
        Verb::Run(run) => {
            let options = app::Options { kernel_log, recover: run.recovers(), around: run.surroundings(), log };
            app::run(&run.config()?, &options)
        }
        Verb::Check(args) => check::run(args),
        Verb::Config(args) => config::run(args),
        Verb::Import(args) => import::run(args),
        Verb::Stat(args) => stat::run(args),
        Verb::Endpoints(args) => lists::endpoints(args),
        Verb::Sockets(args) => lists::sockets(args),
        Verb::Enroll(args) => enroll::enroll(args),
        Verb::Release(args) => enroll::release(args),
        Verb::Explain(args) => explain::run(args),
        Verb::Names(args) => lists::names(args),
        Verb::Switch(args) => orders::switch(args),
        Verb::Degrade(args) => orders::degrade(args),
        Verb::Commands(args) => orders::commands(args),
        Verb::Confirm(args) => orders::confirm(args),
        Verb::Services(args) => center::lists::services(args),
        Verb::Service(args) => center::lists::service(args),
        Verb::Capacity(args) => center::lists::capacity(args),
        Verb::Alerts(args) => center::lists::alerts(args),
        Verb::Agents(args) => center::lists::agents(args),
        Verb::History(args) => center::lists::history(args),
        Verb::Accept(args) => center::orders::accept(args),
        Verb::Undo(args) => center::orders::undo(args),
        Verb::Audit(args) => center::lists::audit(args),
        Verb::Registrations(args) => registrations::run(args),
        Verb::Reload(args) => commands::reload(args),
        Verb::Drain(args) => commands::drain(args),
        Verb::Version(args) => commands::version(args),
    }
}

fn log_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|e| e.to_string())
}

/// `flag` and the environment go before everything, `asked` (motan-go's flag) gives way to a file as there.
fn start_logging(
    flag: Option<String>,
    asked: Option<String>,
    kernel_log: Option<tracing::Level>,
) -> anyhow::Result<LogControl> {
    const VARIABLE: &str = "SOCKMESH_LOG";
    let fixed = flag.or_else(|| std::env::var(VARIABLE).ok());
    let text = fixed.clone().or(asked).unwrap_or_else(|| "info".to_owned());
    let kernel = move |filter: EnvFilter| match kernel_log {
        // Asked for by name: not to be hidden by the general level.
        Some(level) => {
            let kernel = format!("{}={level}", agent::capture::kernel_log::TARGET);
            kernel.parse().map(|directive| filter.add_directive(directive))
        }
        None => Ok(filter),
    };
    let filter = EnvFilter::try_new(&text).map_err(|e| anyhow::anyhow!("{VARIABLE}={text}: {e}"))?;
    let (filter, reload) = tracing_subscriber::reload::Layer::new(kernel(filter)?);
    tracing_subscriber::registry()
        .with(filter)
        .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()))
        .init();
    Ok(LogControl::new(&text, fixed.is_some(), move |text| {
        let filter = EnvFilter::try_new(text).map_err(|e| e.to_string())?;
        let filter = kernel(filter).map_err(|e| e.to_string())?;
        reload.reload(filter).map_err(|e| e.to_string())
    }))
}
