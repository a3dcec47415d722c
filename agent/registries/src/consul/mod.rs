//! `consul`: services in a Consul catalog, found by blocking queries and registered at the local agent with a
//! TTL check. Two layouts: Motan's, where one Consul service is a group, and Consul's own.
//!
//! `docs/wire/consul.md` says what is read and written.

mod api;
mod hold;
mod nodes;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use futures_util::future::BoxFuture;
use model::{ServiceKey, Snapshot};
use tokio::sync::watch;

use self::{
    api::{Api, Index},
    hold::Registration,
    nodes::Entry,
};
use super::{
    CommandText, Provided, Registry, Scope, Standing, Wanted,
    followed::Followed,
    keep,
    pause::Pause,
    publish::{self, Heard},
    servers::duration,
    url::group_of,
};
use model::kind::Value;

use crate::{
    BuildCx,
    fetch::{Peer, tls},
};

/// Where a Consul agent listens by its own default.
const ADDRESS: &str = "127.0.0.1:8500";
/// As Motan's clients have it.
const TTL: Duration = Duration::from_secs(30);

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    address: Option<String>,
    ttl: Option<String>,
    token: Option<String>,
    datacenter: Option<String>,
    tls: Option<tls::Written>,
    layout: Option<Layout>,
    tag: Option<String>,
}

/// How services lie in the catalog.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Layout {
    /// Consul's service is `motanrpc_GROUP`, its instances say which path they serve.
    #[default]
    Motan,
    /// Consul's service is the service; a group is a tag.
    Plain,
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Registry>> {
    let options: Options = model::kind::options(options)?;
    let address = options.address.as_deref().unwrap_or(ADDRESS);
    let mut peer = Peer::parse(address, 8500).context("option `address`")?;
    if let Some(tls) = &options.tls {
        let tls = tls.http(&cx.base_dir).context("option `tls`")?;
        peer = peer.over(tls, address).context("option `address`")?;
    }
    let ttl = duration("ttl", options.ttl.as_deref(), TTL)?;
    if ttl < Duration::from_secs(1) {
        bail!("option `ttl`: {ttl:?} is too short for a check, write at least `1s`");
    }
    let layout = options.layout.unwrap_or_default();
    let tag = options.tag.filter(|tag| !tag.is_empty());
    if tag.is_some() && layout == Layout::Motan {
        bail!("option `tag` is for `layout: plain`; instances of Motan are chosen by group and service");
    }
    let api = Api::new(peer, options.token, options.datacenter);
    let (services, lists, texts) = Default::default();
    Ok(Arc::new(Consul(Arc::new(Inner { api, ttl, layout, tag, services, lists, texts }))))
}

struct Consul(Arc<Inner>);

struct Inner {
    api: Api,
    ttl: Duration,
    layout: Layout,
    tag: Option<String>,
    services: Followed<String, Arc<Heard<Vec<Entry>>>>,
    lists: Followed<ServiceKey, Arc<Snapshot>>,
    texts: Followed<Scope, Arc<CommandText>>,
}

impl Registry for Consul {
    /// All services of a group share one query of Motan's layout.
    fn watch(&self, service: &ServiceKey) -> watch::Receiver<Arc<Snapshot>> {
        let (inner, key) = (self.0.clone(), service.clone());
        self.0.lists.join(service.clone(), Arc::default(), |to| async move {
            let name = match inner.layout {
                Layout::Motan => format!("{}{}", nodes::SERVICE_PREFIX, group_of(&key)),
                Layout::Plain => key.service.clone(),
            };
            let asker = inner.clone();
            let mut heard = inner.services.join(name.clone(), Arc::default(), |to| follow(asker, name, to));
            loop {
                let now = heard.borrow_and_update().clone();
                inner.list(&key, &now, &to);
                if heard.changed().await.is_err() {
                    return;
                }
            }
        })
    }

    fn register(&self, provided: &Provided, wanted: watch::Receiver<Wanted>) -> Option<watch::Receiver<Standing>> {
        let registration = Registration::new(self.0.clone(), provided);
        Some(keep::keep(registration, wanted))
    }

    fn commands(&self, scope: &Scope) -> Option<watch::Receiver<Arc<CommandText>>> {
        let (inner, key) = (self.0.clone(), command_key(scope));
        Some(self.0.texts.join(scope.clone(), Arc::default(), |to| async move { inner.follow_key(&key, &to).await }))
    }

    fn write_commands<'a>(
        &'a self,
        scope: &'a Scope,
        expected: Option<&'a str>,
        text: &'a str,
    ) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move {
            let key = command_key(scope);
            let (found, version) = self.0.api.read_key(&key).await?;
            let same = found.as_deref().unwrap_or_default() == expected.unwrap_or_default();
            if !same {
                bail!("Consul's key {key} holds something else by now: {}", found.unwrap_or_default());
            }
            if !self.0.api.write_key(&key, text, version).await? {
                bail!("Consul's key {key} was changed by someone else at this moment: look again and repeat");
            }
            Ok(())
        })
    }
}

/// Where the commands of a scope lie: the group's as Motan's clients have them, the agents' beside them.
fn command_key(scope: &Scope) -> String {
    match scope {
        Scope::Group(group) => format!("motan/command/{group}"),
        Scope::Agent(application) => format!("motan/agent/{application}/command"),
    }
}

/// Keeps what is known of one service of Consul's.
async fn follow(inner: Arc<Inner>, name: String, to: watch::Sender<Arc<Heard<Vec<Entry>>>>) {
    let path = format!("/v1/health/service/{}", api::segment(&name));
    let mut index = Index::default();
    let mut pause = Pause::default();
    loop {
        let answer = inner.api.wait(&path, &mut index).await.and_then(|answer| nodes::read(&answer.success()?));
        match answer {
            Ok((entries, odd)) => {
                pause.reset();
                if odd > 0 {
                    tracing::warn!(service = name, odd, "instances in Consul that cannot be read are left out");
                }
                if publish::good(&to, |heard| heard.value = Arc::new(entries)) {
                    tracing::info!(service = name, "Consul answers again");
                }
            }
            Err(error) => {
                index = Index::default();
                let error = format!("{error:#}");
                if publish::stale(&to, &error) {
                    tracing::warn!(service = name, error, "Consul gives no list, keeping the last one");
                }
                tokio::time::sleep(pause.next()).await;
            }
        }
    }
}

impl Inner {
    /// What a service's callers are told of the list it is in.
    fn list(&self, key: &ServiceKey, heard: &Heard<Vec<Entry>>, to: &watch::Sender<Arc<Snapshot>>) {
        if heard.revision > 0 {
            let mut instances = Vec::new();
            let mut wrong = None;
            for entry in heard.value.iter() {
                let found = match self.layout {
                    Layout::Motan => entry.motan(key),
                    Layout::Plain => entry.plain(key, self.tag.as_deref()),
                };
                match found {
                    Ok(instance) => instances.extend(instance),
                    Err(why) => wrong = Some(format!("{}: {why}", entry.id)),
                }
            }
            match wrong {
                // Nothing but bad addresses is a mistake, not the wish to have no instance.
                Some(why) if instances.is_empty() => {
                    publish::stale(to, &format!("no instance in Consul can be called: {why}"));
                    return;
                }
                Some(why) => tracing::debug!(service = %key, why, "an instance is left out"),
                None => {}
            }
            publish::good(to, |list| list.instances = super::select(key, &instances));
        }
        if let Some(reason) = &heard.stale {
            publish::stale(to, reason);
        }
    }

    /// Keeps the text of a key.
    async fn follow_key(&self, key: &str, to: &watch::Sender<Arc<CommandText>>) {
        let path = format!("/v1/kv/{}", api::key_path(key));
        let mut index = Index::default();
        let mut pause = Pause::default();
        loop {
            let text = self.api.wait(&path, &mut index).await.and_then(api::key_value);
            match text {
                Ok((text, _)) => {
                    pause.reset();
                    publish::good(to, |now| now.text = text.filter(|t| !t.trim().is_empty()));
                }
                Err(error) => {
                    index = Index::default();
                    let error = format!("{error:#}");
                    if publish::stale(to, &error) {
                        tracing::warn!(key, error, "Consul does not tell the commands, keeping the last ones");
                    }
                    tokio::time::sleep(pause.next()).await;
                }
            }
        }
    }
}
