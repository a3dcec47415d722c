//! `sockmesh-center`: flags, logging, exit code.

use std::{
    io::{IsTerminal, Write},
    net::SocketAddr,
    path::PathBuf,
    pin::pin,
    process::ExitCode,
};

use anyhow::Context;
use center::{
    accounts::{self, TokenVerb, UserVerb},
    app::Center,
    backups::{self, BackupArgs, RestoreArgs},
    config::{Config, StoreChoice},
};
use clap::{Parser, Subcommand};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::EnvFilter;

/// Sockmesh's governance centre: registry, commands, live picture, capacity and scaling
#[derive(Debug, Parser)]
#[command(name = "sockmesh-center", version)]
struct Flags {
    /// The centre's file; every key has a default
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen [default: 127.0.0.1:7480]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Directory of its data
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,
    /// What it keeps its data in: `embedded`, `memory`, or
    /// `etcd://USER@HOST:PORT,HOST:PORT/PREFIX?ca_file=FILE&cert_file=FILE&key_file=FILE&password_file=FILE` [default: embedded]
    #[arg(long, global = true, value_name = "STORE")]
    store: Option<String>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// What to do instead of serving.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Add, change, remove and list people
    #[command(subcommand)]
    User(UserVerb),
    /// Make, remove and list tokens for agents and programs
    #[command(subcommand)]
    Token(TokenVerb),
    /// Write everything that is kept into a file, of a running centre or of its store
    Backup(BackupArgs),
    /// Make the store from a backup; no centre may run on it
    Restore(RestoreArgs),
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("SOCKMESH_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr).init();
    let flags = Flags::parse();
    match run(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be reading.
            let _ = writeln!(std::io::stderr(), "sockmesh-center: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: Flags) -> anyhow::Result<()> {
    let mut config = flags.config.as_deref().map_or_else(|| Ok(Config::default()), Config::load)?;
    if let Some(listen) = flags.listen {
        config.listen = listen;
    }
    if let Some(data) = flags.data {
        config.data = data;
    }
    if let Some(store) = flags.store {
        config.store = StoreChoice::from_flag(&store)?;
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    if let Some(verb) = flags.verb {
        let text = match verb {
            Verb::User(verb) => runtime.block_on(accounts::user(&config, &verb)),
            Verb::Token(verb) => runtime.block_on(accounts::token(&config, &verb)),
            Verb::Backup(args) => runtime.block_on(backups::backup(&config, &args)),
            Verb::Restore(args) => runtime.block_on(backups::restore(&config, &args)),
        }?;
        // Whoever reads may stop early.
        let _ = std::io::stdout().lock().write_all(text.as_bytes());
        return Ok(());
    }
    raise_file_limit();
    runtime.block_on(async {
        let listen = config.listen;
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen}; is a centre running there? Choose with --listen"))?;
        // Before anything is opened: an end asked for while it starts is a clean one, too.
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut stop = pin!(async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        });
        let center = tokio::select! {
            biased;
            built = Center::build(config) => built?,
            () = &mut stop => return Ok(()),
        };
        center.serve(listener, stop).await
    })
}

/// Each agent keeps some connections open, and the usual limit is 1,024 files.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
