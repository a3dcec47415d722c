//! `etcd`: Motan's layout in etcd's v3 API (`docs/wire/etcd.md`).
//!
//! One connection with one stream of events serves everything of a registry, and one lease all of its
//! registrations. Lists are read at one revision and followed from the next; whatever breaks that chain (another
//! connection, a compaction, events that come faster than they are taken) begins it anew.

pub mod client;

mod access;
mod commands;
mod conn;
mod link;
mod paths;
mod register;
mod service;
mod wire;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::bail;
use futures_util::future::BoxFuture;
use model::{ServiceKey, Snapshot};
use serde::Deserialize;
use tokio::sync::watch;

use self::{
    access::Access,
    link::{Lease, Link},
};
use super::{
    CommandText, Provided, Registry, Scope, Standing, Wanted,
    followed::Followed,
    servers::{OneOrMore, duration, servers},
};
use model::kind::Value;

use crate::BuildCx;

/// Port of a member that names none.
const PORT: u16 = 2379;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    address: Option<OneOrMore>,
    prefix: Option<String>,
    lease: Option<String>,
    tls: Option<Value>,
    username: Option<String>,
    password: Option<String>,
    password_file: Option<PathBuf>,
}

/// The options, checked.
#[derive(Debug)]
struct Options {
    servers: Vec<String>,
    access: Access,
    /// What all keys begin with; does not end with `/`.
    prefix: String,
    lease: Duration,
}

/// A registry in etcd.
struct Etcd {
    options: Arc<Options>,
    link: Followed<(), Link>,
    lease: Followed<(), Lease>,
    services: Followed<ServiceKey, Arc<Snapshot>>,
    commands: Followed<Scope, Arc<CommandText>>,
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Registry>> {
    let written: Written = model::kind::options(options)?;
    let servers = servers(written.address, PORT)?;
    let lease = duration("lease", written.lease.as_deref(), Duration::from_secs(10))?;
    let prefix = written.prefix.unwrap_or_else(|| "/motan".to_owned()).trim_end_matches('/').to_owned();
    if prefix.is_empty() {
        bail!("prefix: nothing is left of it; write it like `/motan`");
    }
    let Written { tls, username, password, password_file, .. } = written;
    let access = access::Written { tls, username, password, password_file };
    let access = Access::read(access, &cx.base_dir)?;
    Ok(Arc::new(Shared(Arc::new(Etcd {
        options: Arc::new(Options { servers, access, prefix, lease }),
        link: Followed::default(),
        lease: Followed::default(),
        services: Followed::default(),
        commands: Followed::default(),
    }))))
}

impl Etcd {
    /// The connection, which begins with its first user and ends with its last.
    fn link(&self) -> watch::Receiver<Link> {
        self.link.join((), Link::default(), |link| link::keep(self.options.clone(), link))
    }
}

/// Lets tasks hold the registry.
struct Shared(Arc<Etcd>);

impl Registry for Shared {
    fn watch(&self, service: &ServiceKey) -> watch::Receiver<Arc<Snapshot>> {
        let registry = &self.0;
        registry.services.join(service.clone(), Arc::default(), |list| {
            service::follow(registry.clone(), service.clone(), list, registry.link())
        })
    }

    fn register(&self, provided: &Provided, wanted: watch::Receiver<Wanted>) -> Option<watch::Receiver<Standing>> {
        let (standing, receiver) = watch::channel(Standing::Pending(None));
        let (registry, provided) = (self.0.clone(), provided.clone());
        let link = registry.link();
        let lease =
            registry.lease.join((), Lease::default(), |lease| link::lease(registry.clone(), lease, registry.link()));
        tokio::spawn(register::hold(registry, provided, wanted, standing, link, lease));
        Some(receiver)
    }

    fn commands(&self, scope: &Scope) -> Option<watch::Receiver<Arc<CommandText>>> {
        let registry = &self.0;
        Some(registry.commands.join(scope.clone(), Arc::default(), |text| {
            commands::follow(registry.clone(), scope.clone(), text, registry.link())
        }))
    }

    fn write_commands<'a>(
        &'a self,
        scope: &'a Scope,
        expected: Option<&'a str>,
        text: &'a str,
    ) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(commands::write(&self.0, scope, expected, text, self.0.link()))
    }
}
