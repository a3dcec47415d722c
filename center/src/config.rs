//! The centre's file: every part reads its own section.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::Context;
use model::{center::PORT, kind::Value};
use serde::Deserialize;

use crate::{alert, api, audit, auth, command, decide, demo, monitor, registry, scale};

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
    /// How long is kept what was done.
    pub audit: audit::Config,
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
        Self { kind: "embedded".to_owned(), options: Value::Null }
    }
}

impl StoreChoice {
    /// Reads the short form of the flag: `embedded`, `memory`, or
    /// `etcd://USER@HOST:PORT,HOST:PORT/PREFIX?ca_file=FILE&cert_file=FILE&key_file=FILE&password_file=FILE` (all but
    /// one host may be left out). What stands behind `?` are options of the kind, those that end with `_file` of `tls`. A command line is no place for a password.
    ///
    /// # Errors
    /// Says what is missing in it.
    pub fn from_flag(text: &str) -> anyhow::Result<Self> {
        let Some((kind, rest)) = text.split_once("://") else {
            return Ok(Self { kind: text.to_owned(), options: Value::Null });
        };
        let (rest, more) = rest.split_once('?').unwrap_or((rest, ""));
        let (members, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, members) = members.split_once('@').map_or((None, members), |(user, all)| (Some(user), all));
        if user.is_some_and(|user| user.contains(':')) || more.split('&').any(|one| one.starts_with("password=")) {
            anyhow::bail!(
                "--store holds a password, which everyone on this host can read; leave it out, and add \
                 `?password_file=FILE` or set SOCKMESH_ETCD_PASSWORD"
            );
        }
        if members.is_empty() {
            anyhow::bail!("--store `{text}` names no host; write it like `{kind}://10.0.0.1:2379,10.0.0.2:2379`");
        }
        let mut options = serde_yaml::Mapping::new();
        options.insert("address".into(), members.split(',').map(str::trim).collect::<Vec<_>>().into());
        if !prefix.is_empty() {
            options.insert("prefix".into(), format!("/{prefix}").into());
        }
        if let Some(user) = user {
            options.insert("username".into(), user.into());
        }
        for option in more.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, "true"));
            if ["ca_file", "cert_file", "key_file"].contains(&name) {
                let tls = options.entry("tls".into()).or_insert_with(|| Value::Mapping(serde_yaml::Mapping::new()));
                if let Value::Mapping(tls) = tls {
                    tls.insert(name.into(), value.into());
                }
                continue;
            }
            // Switches are no text in a file.
            let value = if value == "true" { Value::Bool(true) } else { value.into() };
            options.insert(name.into(), value);
        }
        Ok(Self { kind: kind.to_owned(), options: Value::Mapping(options) })
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
            audit: audit::Config::default(),
            api: api::Config::default(),
            auth: auth::Config::default(),
            demo: None,
        }
    }
}

impl Config {
    /// Everything as usual, but nothing outlives the process: for tests.
    pub fn in_memory() -> Self {
        let store = StoreChoice { kind: "memory".to_owned(), options: Value::Null };
        Self { store, ..Self::default() }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// Names the file, the place in it and what is wrong there.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_yaml::from_str(&text).with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_chosen_in_one_word() {
        let read = |text| StoreChoice::from_flag(text).map_err(|e| e.to_string());
        assert_eq!(read("memory"), Ok(StoreChoice { kind: "memory".into(), options: Value::Null }));
        let options = serde_yaml::from_str("{address: ['a:1', b], prefix: /x/y}").unwrap();
        assert_eq!(read("etcd://a:1,b/x/y"), Ok(StoreChoice { kind: "etcd".into(), options }));
        assert!(read("etcd:///x").unwrap_err().contains("names no host"));
        for (short, long) in [
            (
                "etcd://root@a?ca_file=/c&password_file=/p",
                "{address: [a], username: root, tls: {ca_file: /c}, password_file: /p}",
            ),
            ("etcd://a?tls", "{address: [a], tls: true}"),
        ] {
            let options = serde_yaml::from_str(long).unwrap();
            assert_eq!(read(short), Ok(StoreChoice { kind: "etcd".into(), options }));
        }
        for secret in ["etcd://root:secret@a", "etcd://root@a?password=secret"] {
            let told = read(secret).unwrap_err();
            assert!(told.contains("SOCKMESH_ETCD_PASSWORD") && !told.contains("secret@"), "{told}");
        }
    }

    #[test]
    fn the_sample_is_read_and_mistakes_are_named() {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/center/center.yaml");
        assert_eq!(Config::load(&sample).unwrap().listen, Config::default().listen);
        let wrong = std::env::temp_dir().join(format!("sockmesh-center-{}.yaml", std::process::id()));
        std::fs::write(&wrong, "listn: 127.0.0.1:1\n").unwrap();
        let told = format!("{:#}", Config::load(&wrong).unwrap_err());
        std::fs::remove_file(&wrong).unwrap();
        assert!(told.contains("listn") && told.contains(&*wrong.to_string_lossy()), "{told}");
    }
}
