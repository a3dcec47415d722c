//! Where lists of endpoints come from: the registries that sites run, each kind behind one trait, for the agent
//! (lists, registrations, commands) and for the governance centre (commands). Registries publish whole snapshots and
//! never see a call.
//!
//! Kinds that read the agent's own files stand in the agent.

pub mod etcd;
pub mod fetch;
pub mod publish;

pub mod center;
mod consul;
mod dns;
mod followed;
mod keep;
mod link;
mod mesh;
mod nacos;
mod nodes;
mod pause;
mod servers;
#[cfg(test)]
mod testing;
mod url;
mod zookeeper;

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    path::PathBuf,
    sync::Arc,
};

use futures_util::future::BoxFuture;
use model::{Instance, ServiceKey, Snapshot, kind};
use tokio::sync::watch;

/// A row of a table of registries.
pub type Kind = kind::Kind<dyn Registry, BuildCx>;

/// Registries by name.
pub const KINDS: &[Kind] = &[
    Kind { name: "center", build: center::build },
    Kind { name: "consul", build: consul::build },
    Kind { name: "dns", build: dns::build },
    Kind { name: "etcd", build: etcd::build },
    Kind { name: "mesh", build: mesh::build },
    Kind { name: "nacos", build: nacos::build },
    Kind { name: "zookeeper", build: zookeeper::build },
];

/// What a registry may need while it is built.
#[derive(Clone, Debug, Default)]
pub struct BuildCx {
    /// Application name of this agent.
    pub application: Arc<str>,
    /// Port of the admin API, which others may be told; 0 when there is none.
    pub management: u16,
    /// Directory that relative paths in the configuration are relative to.
    pub base_dir: PathBuf,
    /// Name of this agent in the site: `HOST/NAME`.
    pub agent: Arc<str>,
    /// How the governance centre is reached, where the agent's file has a section for it.
    pub center: Option<Arc<Center>>,
    /// Directory for what a kind must not forget over restarts; without one nothing is kept.
    pub state: Option<PathBuf>,
}

/// How the governance centre is reached.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Center {
    /// `HOST:PORT` of each one, with `https://` before it for TLS; any of them that answers is enough.
    pub addresses: Vec<String>,
    /// Proves who this agent is.
    pub token: Option<String>,
    /// PEM file of the certificates that centres are believed by, instead of those of the host.
    pub ca: Option<PathBuf>,
}

impl fmt::Debug for Center {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "...");
        let mut told = f.debug_struct("Center");
        told.field("addresses", &self.addresses).field("token", &token).field("ca", &self.ca).finish()
    }
}

/// A source of endpoint lists. Runs on the control runtime.
pub trait Registry: Send + Sync + 'static {
    /// The instances of `service`, now and at every change. The value in the channel is the last good
    /// list; a source that is gone or broken keeps it and says so in [`Snapshot::stale`]. Starts with
    /// what is known at once (revision 0 and no instances if nothing is).
    ///
    /// When the channel closes, its last value is final: nothing will change any more. Background work
    /// ends when the last receiver is dropped. Must be called within a tokio runtime.
    fn watch(&self, service: &ServiceKey) -> watch::Receiver<Arc<Snapshot>>;

    /// Whether its lists can be wrong: remembered in files, and held back when they are suddenly short.
    fn may_err(&self) -> bool {
        true
    }

    /// Makes known what this agent provides, and keeps it known as `wanted` says, whatever happens to the
    /// registry: failures are tried again until `wanted` is [`Wanted::Gone`] or its sender is dropped.
    /// The answer follows what the registry holds. `None`: this kind takes no registrations.
    fn register(&self, _provided: &Provided, _wanted: watch::Receiver<Wanted>) -> Option<watch::Receiver<Standing>> {
        None
    }

    /// The command text that governs `scope`, now and at every change, by the same rules as
    /// [`Registry::watch`]. `None`: this kind holds no commands.
    fn commands(&self, _scope: &Scope) -> Option<watch::Receiver<Arc<CommandText>>> {
        None
    }

    /// Replaces the command text of `scope`, if it still is `expected`. An error names what is there
    /// instead, or why the registry did not take it; nothing was changed then.
    fn write_commands<'a>(
        &'a self,
        _scope: &'a Scope,
        _expected: Option<&'a str>,
        _text: &'a str,
    ) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async { anyhow::bail!("this kind of registry holds no commands") })
    }
}

/// One service that this agent provides, as registries are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provided {
    /// Service, group and version.
    pub key: ServiceKey,
    /// A name in `protocol::KINDS`, as callers must speak it.
    pub protocol: String,
    /// Where callers dial, with weight, zone and metadata.
    pub instance: Instance,
    /// Application that provides it.
    pub application: String,
    /// Further parameters of the registration, by their names on the wire of Motan (`serialization`, ...).
    pub parameters: BTreeMap<String, String>,
}

impl Provided {
    /// Everything that is told of it beside its name and address, for kinds that hold pairs of texts.
    fn metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = (*self.instance.metadata).clone();
        metadata.extend(self.parameters.clone());
        for (name, value) in [
            ("protocol", &self.protocol),
            ("application", &self.application),
            ("zone", &self.instance.zone),
            ("version", &self.key.version),
        ] {
            if !value.is_empty() {
                metadata.insert(name.to_owned(), value.clone());
            }
        }
        metadata
    }
}

/// What a registry shall hold of a [`Provided`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Callers may come.
    Available,
    /// Known, but callers must not come: before the operator says so, and while he takes it out.
    Unavailable,
    /// Not known at all.
    Gone,
}

/// What a registry holds of a [`Provided`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing was told yet, or the registry was not reached; why, for operators.
    Pending(Option<String>),
    /// It is held as [`Wanted::Available`].
    Available,
    /// It is held as [`Wanted::Unavailable`].
    Unavailable,
    /// It was taken back, and nothing more will follow.
    Gone,
}

/// Whom a command text governs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All services of a group; patterns in the commands choose among them.
    Group(String),
    /// All services of one application's agents. Goes before the group's.
    Agent(String),
}

/// The commands of a [`Scope`] as they are written in the registry. `model` knows what they mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandText {
    /// Grows with every change; 0 until the registry was heard of.
    pub revision: u64,
    /// The text; `None` when there is none (any more).
    pub text: Option<String>,
    /// Why this may be older than what the registry holds; `None` when it is current.
    pub stale: Option<String>,
}

/// Whether callers that speak `protocol` may call `instance`. Registries of Motan say what it speaks; of those that
/// say nothing, or a word that is not known here, the operator knows best.
pub fn speaks(instance: &Instance, protocol: &str) -> bool {
    const KNOWN: [&str; 5] = ["motan2", "motan", "grpc", "http", "tcp"];
    let theirs = instance.metadata.get("protocol").map_or("", String::as_str);
    theirs == protocol || protocol == "tcp" || !KNOWN.contains(&theirs)
}

/// The instances that `service` asks for: those of its group and version, and those that name none.
/// Keeps the order and only the first of each address and group.
pub fn select(service: &ServiceKey, instances: &[Instance]) -> Vec<Instance> {
    let fits = |asked: &str, has: &str| asked.is_empty() || has.is_empty() || asked == has;
    let mut seen = HashSet::new();
    let chosen = instances.iter().filter(|i| fits(&service.group, &i.group) && fits(&service.version, &i.version));
    chosen.filter(|i| seen.insert((i.address.as_str(), i.group.as_str()))).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_and_version_choose_and_duplicates_go() {
        let at = |address: &str, group: &str, version: &str| Instance {
            group: group.into(),
            version: version.into(),
            ..Instance::at(address)
        };
        let all =
            [at("a:1", "x", "1"), at("b:1", "y", "1"), at("c:1", "", "2"), at("a:1", "x", "2"), at("a:1", "y", "")];
        let chosen = |group: &str, version: &str| {
            let key = ServiceKey { service: "s".into(), group: group.into(), version: version.into() };
            let list = select(&key, &all);
            list.iter().map(|i| format!("{}/{}", i.group, &i.address[..1])).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(chosen("", ""), "x/a y/b /c y/a");
        assert_eq!(chosen("x", ""), "x/a /c");
        assert_eq!(chosen("y", "1"), "y/b y/a");
        assert_eq!(chosen("z", "1"), "");
    }

    #[test]
    fn every_file_of_this_folder_is_a_kind() {
        let ground =
            ["lib", "fetch", "followed", "keep", "link", "nodes", "pause", "publish", "servers", "testing", "url"];
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            let known = ground.contains(&name) || KINDS.iter().any(|k| k.name == name);
            assert!(known, "{} is not in KINDS", path.display());
        }
    }
}
