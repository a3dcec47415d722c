//! What management calls told the agent: kept in files, so that a start with `--recover` knows it.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use arc_swap::ArcSwap;

use super::registering::own_ip;
use crate::{
    admin::{DynamicChange, Shown},
    availability::Availability,
    config::{
        Config, Loaded,
        motan::{Dynamic, NodeUrl, Surroundings, registry_names, with_dynamic},
    },
};

/// Services registered and subscribed, in motan-go's form.
const NODES: &str = "registry.snap";
/// `200` while callers may come, else `503`.
const STATUS: &str = "status";

/// What was told, and what it is added to.
pub(super) struct Told {
    dir: Option<PathBuf>,
    around: Surroundings,
    loaded: Loaded,
    dynamic: Dynamic,
    /// For management calls.
    pub(super) shown: Arc<ArcSwap<Shown>>,
}

impl Told {
    /// Nothing was told yet, or what the files of a former run say. Returns the whole configuration.
    pub(super) fn start(loaded: Loaded, around: &Surroundings, recover: bool) -> anyhow::Result<(Self, Config)> {
        let dir = loaded.config.runtime_dir.clone();
        let mut told = Self { dir, around: around.clone(), loaded, dynamic: Dynamic::default(), shown: Arc::default() };
        if let Some(dir) = &told.dir {
            fs::create_dir_all(dir).with_context(|| format!("runtime_dir: cannot make {}", dir.display()))?;
        }
        if let Some(dynamic) = told.dir.as_deref().filter(|_| recover).and_then(nodes) {
            // One node that has become impossible must not keep the others away.
            for node in dynamic.register_nodes {
                told.recover(|d| d.register_nodes.push(node));
            }
            for node in dynamic.subscribe_nodes {
                told.recover(|d| d.subscribe_nodes.push(node));
            }
        }
        let config = told.config(&told.dynamic).map_err(|e| anyhow::anyhow!(e))?;
        told.show(&config);
        Ok((told, config))
    }

    fn recover(&mut self, add: impl FnOnce(&mut Dynamic)) {
        let mut wider = self.dynamic.clone();
        add(&mut wider);
        match self.config(&wider) {
            Ok(_) => self.dynamic = wider,
            Err(error) => tracing::error!(error, "a node of the former run is not recovered"),
        }
    }

    /// Whether callers might come when the former run ended.
    pub(super) fn was_available(&self) -> bool {
        let status = self.dir.as_deref().map(|dir| fs::read_to_string(dir.join(STATUS)));
        matches!(status, Some(Ok(text)) if text.trim() == "200")
    }

    fn config(&self, dynamic: &Dynamic) -> Result<Config, String> {
        self.config_of(&self.loaded, dynamic)
    }

    fn config_of(&self, loaded: &Loaded, dynamic: &Dynamic) -> Result<Config, String> {
        let config = with_dynamic(&loaded.base, dynamic, &self.around).map_err(|errors| {
            let told: Vec<_> = errors.mistakes.iter().chain(&errors.warnings).map(ToString::to_string).collect();
            told.join("\n")
        })?;
        // Flags of the command line change what the file says.
        Ok(match dynamic.is_empty() {
            true => loaded.config.clone(),
            false => Config { ports: loaded.config.ports.clone(), advertise: loaded.config.advertise, ..config },
        })
    }

    /// What `change` makes of it all; `None` when nothing changes.
    pub(super) fn changed(&self, change: DynamicChange) -> Result<Option<(Dynamic, Config)>, String> {
        let mut dynamic = self.dynamic.clone();
        let shown = self.shown.load();
        match change {
            DynamicChange::Register(nodes) => {
                for node in nodes {
                    let same = |n: &NodeUrl| n.path == node.path && n.group == node.group && n.port == node.port;
                    let known = |n: &NodeUrl| n.identity_with_registry() == node.identity_with_registry();
                    if shown.services.iter().any(same) {
                        tracing::warn!(service = node.path, "is configured: not registered a second time");
                    } else if !dynamic.register_nodes.iter().any(known) {
                        dynamic.register_nodes.push(node);
                    }
                }
            }
            DynamicChange::Unregister(nodes) => {
                let gone = |n: &NodeUrl| nodes.iter().any(|g| g.identity_with_registry() == n.identity_with_registry());
                dynamic.register_nodes.retain(|n| !gone(n));
            }
            DynamicChange::Subscribe(nodes) => {
                for node in nodes {
                    let same = |n: &NodeUrl| n.path == node.path && n.group == node.group;
                    if shown.refers.iter().any(same) {
                        tracing::warn!(service = node.path, "is configured: not subscribed a second time");
                    } else if !dynamic.subscribe_nodes.iter().any(|n| n.identity() == node.identity()) {
                        dynamic.subscribe_nodes.push(node);
                    }
                }
            }
        }
        if dynamic == self.dynamic {
            return Ok(None);
        }
        let config = self.config(&dynamic)?;
        Ok(Some((dynamic, config)))
    }

    /// `loaded`, a file that was read again, with what was told.
    pub(super) fn reloaded(&self, loaded: &Loaded) -> Result<Config, String> {
        self.config_of(loaded, &self.dynamic)
    }

    /// Takes what the mesh has applied, and keeps it.
    pub(super) fn take(&mut self, loaded: Option<Loaded>, dynamic: Option<Dynamic>, config: &Config) {
        if let Some(loaded) = loaded {
            self.loaded = loaded;
        }
        if let Some(dynamic) = dynamic {
            self.dynamic = dynamic;
            let text = serde_json::to_vec(&self.dynamic).expect("texts and numbers");
            self.save(NODES, &text);
        }
        self.show(config);
    }

    fn show(&self, config: &Config) {
        let dynamic = self.dynamic.clone();
        let host = config.advertise.or_else(own_ip).map(|ip| ip.to_string()).unwrap_or_default();
        let static_config = &self.loaded.config;
        self.shown.store(Arc::new(Shown {
            text: self.loaded.motan.as_ref().map(|imported| imported.merged.clone()),
            registries: registry_names(&self.loaded),
            filters: self.loaded.motan.as_ref().map(|imported| imported.filters.clone()).unwrap_or_default(),
            around: self.around.clone(),
            forward: config.ports.forward.map(|at| at.port()),
            reverse: config.ports.reverse.map(|at| at.port()),
            services: services(static_config, &host),
            refers: refers(static_config),
            host,
            dynamic,
        }));
    }

    /// Writes the agent's status whenever it changes. Ends with the runtime.
    pub(super) fn follow(&self, availability: &Availability) {
        let Some(dir) = self.dir.clone() else { return };
        let mut available = availability.watch();
        tokio::spawn(async move {
            while available.changed().await.is_ok() {
                let status = if *available.borrow_and_update() { "200" } else { "503" };
                if let Err(error) = write(&dir.join(STATUS), status.as_bytes()) {
                    tracing::error!(%error, status, dir = %dir.display(), "the status is not kept");
                }
            }
        });
    }

    fn save(&self, name: &str, text: &[u8]) {
        let Some(dir) = &self.dir else { return };
        if let Err(error) = write(&dir.join(name), text) {
            tracing::error!(%error, name, dir = %dir.display(), "what was told is not kept");
        }
    }
}

/// The configured services as motan-go's nodes.
fn services(config: &Config, host: &str) -> Vec<NodeUrl> {
    let node = |service: &crate::config::Service| {
        let mut parameters = service.registration.metadata.clone();
        if !service.key.version.is_empty() {
            parameters.insert("version".to_owned(), service.key.version.clone());
        }
        NodeUrl {
            protocol: service.protocol.clone().unwrap_or_default(),
            host: host.to_owned(),
            port: service.export.map_or(0, |at| at.port()),
            path: service.key.service.clone(),
            group: service.key.group.clone(),
            parameters,
        }
    };
    config.services.iter().map(node).collect()
}

/// The configured referers as motan-go's nodes.
fn refers(config: &Config) -> Vec<NodeUrl> {
    let node = |referer: &crate::config::Referer| {
        let mut parameters = std::collections::BTreeMap::new();
        let application = referer.application.as_ref().unwrap_or(&config.application);
        parameters.insert("application".to_owned(), application.to_string());
        parameters.insert("registry".to_owned(), referer.registries.join(","));
        if !referer.key.version.is_empty() {
            parameters.insert("version".to_owned(), referer.key.version.clone());
        }
        NodeUrl {
            protocol: referer.protocol.clone().unwrap_or_default(),
            path: referer.key.service.clone(),
            group: referer.key.group.clone(),
            parameters,
            ..NodeUrl::default()
        }
    };
    config.referers.iter().map(node).collect()
}

fn nodes(dir: &Path) -> Option<Dynamic> {
    let file = dir.join(NODES);
    let text = match fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::error!(%error, file = %file.display(), "nothing is recovered");
            return None;
        }
    };
    match serde_json::from_slice(&text) {
        Ok(dynamic) => Some(dynamic),
        Err(error) => {
            tracing::error!(%error, file = %file.display(), "nothing is recovered");
            None
        }
    }
}

/// Replaces a file as a whole.
pub(super) fn write(file: &Path, text: &[u8]) -> io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let fresh = file.with_file_name(name);
    let mut out = fs::File::create(&fresh)?;
    out.write_all(text)?;
    out.sync_data()?;
    fs::rename(&fresh, file)
}

/// The file with the number of the process, removed with this.
pub(super) struct PidFile(Option<PathBuf>);

impl PidFile {
    /// Writes the file, if one is asked for.
    pub(super) fn write(path: Option<&Path>) -> Self {
        let Some(path) = path else { return Self(None) };
        match fs::write(path, std::process::id().to_string()) {
            Ok(()) => Self(Some(path.to_owned())),
            Err(error) => {
                tracing::error!(%error, file = %path.display(), "pidfile: cannot be written");
                Self(None)
            }
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let Some(path) = &self.0 else { return };
        // Another agent's by now?
        if fs::read_to_string(path).is_ok_and(|text| text.trim() == std::process::id().to_string()) {
            let _ = fs::remove_file(path);
        }
    }
}
