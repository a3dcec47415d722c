//! Verbs that ask the governance centre: what it sees and decided, and orders through it.

pub mod lists;
pub mod orders;

mod client;
mod words;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use registries::fetch::Peer;
use serde::Serialize;

use self::client::Client;
use super::{Output, print, screen, table::Table};

/// Environment variable with the URL of the centre.
pub const CENTER_VARIABLE: &str = "SOCKMESH_CENTER";
/// Environment variable with a token of the centre.
pub const TOKEN_VARIABLE: &str = "SOCKMESH_TOKEN";

/// Environment variable with the file of certificates that the centre is believed by.
pub const CA_VARIABLE: &str = "SOCKMESH_CENTER_CA";

/// Which centre is asked.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Center {
    /// The governance centre, https://HOST:PORT [default: $SOCKMESH_CENTER, or http://127.0.0.1:7480]. A token that
    /// says who asks stands in $SOCKMESH_TOKEN
    #[arg(long, value_name = "URL")]
    pub center: Option<String>,
    /// Certificates to trust the centre by (PEM) [default: $SOCKMESH_CENTER_CA, or those of this host]
    #[arg(long, visible_alias = "center-ca", value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

impl Center {
    fn client(&self) -> anyhow::Result<Client> {
        let (url, from) = match &self.center {
            Some(url) => (url.clone(), "--center"),
            None => match std::env::var(CENTER_VARIABLE) {
                Ok(url) => (url, CENTER_VARIABLE),
                Err(_) => (format!("127.0.0.1:{}", model::center::PORT), "default"),
            },
        };
        // An empty variable is none: shells set such.
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let ca = self.ca.clone().or_else(|| set(CA_VARIABLE));
        let peer = Peer::with(&url, model::center::PORT, ca.as_deref()).with_context(|| format!("{from} {url}"))?;
        let token = std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty());
        Ok(Client::new(peer, token))
    }
}

/// Prints what was answered.
fn show<T: Serialize>(output: Output, value: &T, table: impl FnOnce(&T) -> Table) -> anyhow::Result<ExitCode> {
    let text = match output {
        Output::Json => serde_json::to_string_pretty(value)?,
        Output::Table => table(value).lines(screen::color(), None).join("\n"),
    };
    print(&(text + "\n"))?;
    Ok(ExitCode::SUCCESS)
}
