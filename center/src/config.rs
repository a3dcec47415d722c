//! The centre's file: every part reads its own section.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::Context;
use model::{center::PORT, kind::Value};
use serde::Deserialize;

use crate::{alert, api, auth, command, decide, demo, monitor, registry, scale};

/// The whole file. Every key may be left out.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of this centre among several on one store.
    pub name: String,
    /// Where it listens. Other addresses than loopback need credentials.
    pub listen: SocketAddr,
    /// Directory of its data.
    pub data: PathBuf,
    /// Where it keeps what it knows: `kind` is a name in `store::KINDS`, the rest the kind's own options.
    pub store: StoreChoice,
    /// Registration.
    pub registry: registry::Config,
    /// Figures.
    pub monitor: monitor::Config,
    /// Commands, and where else they are written.
    pub commands: command::Config,
    /// Drivers of scaling.
    pub scale: scale::Config,
    /// Policies of pools.
    pub pools: decide::Config,
    /// Rules of alerts.
    pub alerts: alert::Config,
    /// How it is reached.
    pub api: api::Config,
    /// Accounts.
    pub auth: auth::Config,
    /// The demo's load, where this is the demo's centre.
    pub demo: Option<demo::Config>,
}

/// A kind of store and its options.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct StoreChoice {
    /// A name in `store::KINDS`.
    pub kind: String,
    /// The kind's own.
    #[serde(default)]
    pub options: Value,
}

impl Default for StoreChoice {
    fn default() -> Self {
        Self { kind: "memory".to_owned(), options: Value::Null }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "center".to_owned(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)),
            data: PathBuf::from("sockmesh-center"),
            store: StoreChoice::default(),
            registry: registry::Config::default(),
            monitor: monitor::Config::default(),
            commands: command::Config::default(),
            scale: scale::Config::default(),
            pools: decide::Config::default(),
            alerts: alert::Config::default(),
            api: api::Config::default(),
            auth: auth::Config::default(),
            demo: None,
        }
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// Names the file, the place in it and what is wrong there.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_yaml::from_str(&text).with_context(|| path.display().to_string())
    }
}
