//! The operator's verbs: what they are asked, how they ask the agent, how they show it.

pub mod center;
pub mod check;
pub mod commands;
pub mod config;
pub mod enroll;
pub mod explain;
pub mod import;
pub mod lists;
pub mod orders;
pub mod registrations;
pub mod run;
pub mod stat;

mod client;
mod screen;
mod table;
mod units;

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;

use self::client::Client;
use crate::config::{Config, Ports};

/// Environment variable with the address of the agent's admin API.
pub const ADMIN_VARIABLE: &str = "SOCKMESH_ADMIN";

/// Which agent is asked.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Target {
    /// Address of the agent's admin API [default: $SOCKMESH_ADMIN, or 127.0.0.1:8002]
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<SocketAddr>,
    /// Take the address from this agent's configuration
    #[arg(short, long, value_name = "FILE", conflicts_with = "admin")]
    pub config: Option<PathBuf>,
}

/// How to print what was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For humans.
    #[default]
    Table,
    /// For programs: the answer of the admin API.
    Json,
}

impl Target {
    /// The agent's address: the flag, else the configuration, else the environment, else the default.
    fn address(&self) -> anyhow::Result<SocketAddr> {
        if let Some(admin) = self.admin {
            return Ok(admin);
        }
        if let Some(path) = &self.config {
            return Ok(reachable(Config::load(path)?.ports.admin));
        }
        match std::env::var(ADMIN_VARIABLE) {
            Ok(text) => text.parse().with_context(|| format!("{ADMIN_VARIABLE}={text}: IP:PORT was expected")),
            Err(_) => Ok(Ports::default().admin),
        }
    }

    fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(self.address()?))
    }
}

/// Where an agent that listens on `at` is reached from its own host.
fn reachable(mut at: SocketAddr) -> SocketAddr {
    if at.ip().is_unspecified() {
        at.set_ip(if at.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    at
}

/// Runs a verb to its end.
fn block_on(verb: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(verb)
}

/// Writes to standard output. Whoever reads may stop early (`| head`): that is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_names_the_agent_and_an_unspecified_address_is_reached_on_loopback() {
        let admin = SocketAddr::from(([10, 0, 0, 1], 1));
        let target = Target { admin: Some(admin), config: None };
        assert_eq!(target.address().unwrap(), admin);
        assert_eq!(reachable(admin), admin);
        assert_eq!(reachable("0.0.0.0:9".parse().unwrap()), "127.0.0.1:9".parse().unwrap());
        assert_eq!(reachable("[::]:9".parse().unwrap()), "[::1]:9".parse().unwrap());
    }
}
