//! `zookeeper`: Motan's layout in ZooKeeper, as Motan Java and motan-go write and read it
//! (`docs/wire/zookeeper.md`).
//!
//! One session serves everything of a registry. Each service, command text and registration is a task of
//! its own, which begins anew on every connection: a server that was away is asked for everything again,
//! so that nothing depends on which events were lost.

mod access;
mod commands;
mod conn;
mod java;
mod link;
mod paths;
mod register;
mod service;
mod sign;
mod wire;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use futures_util::future::BoxFuture;
use model::{ServiceKey, Snapshot};
use serde::Deserialize;
use tokio::sync::watch;

use self::{
    access::{Access, Acl, Login},
    link::Link,
};
use super::{
    CommandText, Provided, Registry, Scope, Standing, Wanted,
    followed::Followed,
    servers::{OneOrMore, duration, servers},
    url::Url,
};
use model::kind::Value;

use crate::{BuildCx, fetch::tls};

/// Port of a server that names none.
const PORT: u16 = 2181;

/// How node data is written. Either is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    /// As Java serializes a string: Motan Java reads nothing else.
    #[default]
    Java,
    /// The text itself.
    Plain,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    address: Option<OneOrMore>,
    session_timeout: Option<String>,
    #[serde(default)]
    encoding: Encoding,
    chroot: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(default)]
    acl: Acl,
    tls: Option<tls::Written>,
}

/// The options, checked.
#[derive(Debug)]
struct Options {
    servers: Vec<String>,
    session_timeout: Duration,
    encoding: Encoding,
    /// Empty, or a path that begins with `/` and does not end with it.
    root: String,
    access: Access,
}

impl Options {
    fn written(&self, url: &Url) -> Vec<u8> {
        match self.encoding {
            Encoding::Java => java::write(&url.encoded(), Encoding::Java),
            Encoding::Plain => url.plain().into_bytes(),
        }
    }
}

/// A registry in ZooKeeper.
struct Zookeeper {
    options: Arc<Options>,
    application: Arc<str>,
    /// Port of the agent's management.
    management: u16,
    link: Followed<(), Link>,
    services: Followed<ServiceKey, Arc<Snapshot>>,
    commands: Followed<Scope, Arc<CommandText>>,
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Registry>> {
    let written: Written = model::kind::options(options)?;
    let servers = servers(written.address, PORT)?;
    let session_timeout = duration("session_timeout", written.session_timeout.as_deref(), Duration::from_secs(30))?;
    let root = written.chroot.unwrap_or_default();
    let root = root.trim_end_matches('/');
    if !root.is_empty() && (!root.starts_with('/') || root.contains("//")) {
        bail!("chroot: `{root}` is no path; write it like `/mesh`");
    }
    let access = access(written.username, written.password, written.acl, written.tls.as_ref(), cx)?;
    let (encoding, root) = (written.encoding, root.to_owned());
    Ok(Arc::new(Shared(Arc::new(Zookeeper {
        options: Arc::new(Options { servers, session_timeout, encoding, root, access }),
        application: cx.application.clone(),
        management: cx.management,
        link: Followed::default(),
        services: Followed::default(),
        commands: Followed::default(),
    }))))
}

fn access(
    name: Option<String>,
    password: Option<String>,
    acl: Acl,
    tls: Option<&tls::Written>,
    cx: &BuildCx,
) -> anyhow::Result<Access> {
    let login = match (name.filter(|name| !name.is_empty()), password) {
        (Some(name), _) if name.contains(':') => bail!("username: `{name}` has a colon, which ends it for ZooKeeper"),
        (Some(name), password) => Some(Login::new(&name, &password.unwrap_or_default())),
        (None, Some(_)) => bail!("`password` without an account; write `username` as well"),
        (None, None) => None,
    };
    if acl != Acl::Open && login.is_none() {
        bail!("`acl` keeps others out, and nobody is let in: write `username` and `password`");
    }
    let tls = tls.map(|tls| tls.build(&cx.base_dir, None)).transpose().context("option `tls`")?;
    Ok(Access { tls, login, acl })
}

impl Zookeeper {
    /// The session, which begins with its first user and ends with its last.
    fn link(&self) -> watch::Receiver<Link> {
        self.link.join((), Link::default(), |link| link::keep(self.options.clone(), link))
    }
}

/// Lets tasks hold the registry.
struct Shared(Arc<Zookeeper>);

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
        tokio::spawn(register::hold(registry, provided, wanted, standing, link));
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
