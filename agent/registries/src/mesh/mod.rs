//! `mesh`: through another agent's management port. That agent is told what to subscribe to and what to export,
//! and is itself the one instance of every service.
//!
//! For programs and agents that reach a registry only through an agent that is there already. `docs/operate.md`
//! says how the other side must be set up.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::Method;
use model::{Instance, ServiceKey, Snapshot};
use serde::{Deserialize, Serialize};
use tokio::{net::lookup_host, sync::watch};

use super::{Provided, Registry, Standing, Wanted, followed::Followed, keep, pause::Pause, publish, url::Url};
use model::kind::Value;

use crate::{BuildCx, fetch::Peer};

const ADDRESS: &str = "127.0.0.1:8002";
/// What is subscribed to when nothing else is said, as all agents speak it.
const PROTOCOL: &str = "motan2";
/// How often the other agent is looked at: it forgets everything when it is started again.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Time for one answer. Exporting a service may take the other agent a while.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    address: Option<String>,
    #[serde(alias = "proxyRegistry")]
    proxy_registry: Option<String>,
    protocol: Option<String>,
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Registry>> {
    let options: Options = model::kind::options(options)?;
    let peer = Peer::parse(options.address.as_deref().unwrap_or(ADDRESS), 8002).context("option `address`")?;
    let behind = options.proxy_registry.filter(|r| !r.is_empty());
    let protocol = options.protocol.unwrap_or_else(|| PROTOCOL.to_owned());
    let agent = Other { peer, behind, protocol, application: cx.application.to_string() };
    Ok(Arc::new(Mesh { agent: Arc::new(agent), lists: Followed::default() }))
}

struct Mesh {
    agent: Arc<Other>,
    lists: Followed<ServiceKey, Arc<Snapshot>>,
}

/// The other agent.
struct Other {
    peer: Peer,
    /// Which of its registries it shall use.
    behind: Option<String>,
    protocol: String,
    application: String,
}

/// A node as the management port reads and writes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Node {
    protocol: String,
    host: String,
    port: u16,
    path: String,
    group: String,
    #[serde(deserialize_with = "or_default")]
    parameters: BTreeMap<String, String>,
}

/// What every call is answered with.
#[derive(Deserialize)]
struct Answer<B> {
    code: i64,
    #[serde(default)]
    message: String,
    body: Option<B>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Info {
    mesh_port: u16,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Lists {
    #[serde(deserialize_with = "or_default")]
    register_nodes: Vec<Node>,
    #[serde(deserialize_with = "or_default")]
    subscribe_nodes: Vec<Node>,
}

/// Go writes `null` for what is empty.
fn or_default<'de, T: Default + Deserialize<'de>, D: serde::Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

impl Node {
    /// Whether the other agent's node is this one, for all that it adds of its own.
    fn is(&self, other: &Self) -> bool {
        // A list of groups becomes one node for each, and the other agent may be told to add a suffix.
        let mut groups = self.group.split(',').map(str::trim);
        self.path == other.path && self.protocol == other.protocol && groups.any(|group| other.group.starts_with(group))
    }
}

impl Other {
    async fn call<B: for<'de> Deserialize<'de>>(&self, path: &str, body: Option<&Node>) -> anyhow::Result<Option<B>> {
        let (method, body) = match body {
            Some(node) => (Method::POST, Bytes::from(serde_json::to_vec(node)?)),
            None => (Method::GET, Bytes::new()),
        };
        let headers = [("content-type", "application/json;charset=utf-8")];
        let answer = self.peer.ask(method, path, &headers, body, PATIENCE).await?;
        // Errors come with status 200 and a code in the body, or with both.
        let Ok(said) = serde_json::from_slice::<Answer<B>>(&answer.body) else {
            answer.success()?;
            bail!("{}{path}: the answer is not that of an agent's management port", self.peer);
        };
        if said.message == "registry not found" {
            let written = self.behind.as_deref().unwrap_or("none");
            bail!(
                "{}{path}: the other agent has no registry `{written}`; write one of its own as `proxy_registry`, such as \
                 `zookeeper://10.0.0.1:2181`",
                self.peer
            );
        }
        ensure!(said.code == 200, "{}{path}: answered {}: {}", self.peer, said.code, said.message);
        Ok(said.body)
    }

    /// Where it takes calls, by its own word.
    async fn forward(&self) -> anyhow::Result<SocketAddr> {
        let info = self.call::<Info>("/registry/info", None).await?.unwrap_or_default();
        ensure!(info.mesh_port > 0, "{}/registry/info: names no port to call", self.peer);
        let host = self.peer.host().to_owned();
        let mut found =
            lookup_host((host.as_str(), info.mesh_port)).await.with_context(|| format!("cannot find {host}"))?;
        found.next().with_context(|| format!("{host} has no address"))
    }

    fn subscription(&self, key: &ServiceKey) -> Node {
        let mut parameters = BTreeMap::new();
        let behind = self.behind.clone().unwrap_or_default();
        for (name, value) in [("proxyRegistry", &behind), ("version", &key.version), ("application", &self.application)]
        {
            if !value.is_empty() {
                parameters.insert(name.to_owned(), value.clone());
            }
        }
        Node {
            protocol: self.protocol.clone(),
            path: key.service.clone(),
            group: key.group.clone(),
            parameters,
            ..Node::default()
        }
    }

    /// Has the other agent subscribe, if it does not already, and returns where it takes the calls.
    async fn subscribe(&self, node: &Node) -> anyhow::Result<SocketAddr> {
        let at = self.forward().await?;
        let lists = self.call::<Lists>("/registry/list", None).await?.unwrap_or_default();
        if !lists.subscribe_nodes.iter().any(|known| node.is(known)) {
            self.call::<serde_json::Value>("/registry/subscribe", Some(node)).await?;
        }
        Ok(at)
    }

    async fn follow(&self, key: &ServiceKey, to: &watch::Sender<Arc<Snapshot>>) {
        let node = self.subscription(key);
        let mut pause = Pause::default();
        loop {
            let next = match self.subscribe(&node).await {
                Ok(at) => {
                    pause.reset();
                    let instance = Instance { group: key.group.clone(), ..Instance::at(at.to_string()) };
                    if publish::good(to, |list| list.instances = vec![instance]) {
                        tracing::info!(service = %key, agent = %self.peer, "the other agent answers again");
                    }
                    LOOK_EVERY.mul_f64(0.9 + fastrand::f64() / 10.0)
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if publish::stale(to, &error) {
                        tracing::warn!(service = %key, agent = %self.peer, error, "the other agent does not subscribe");
                    }
                    pause.next()
                }
            };
            tokio::time::sleep(next).await;
        }
    }
}

impl Registry for Mesh {
    fn watch(&self, service: &ServiceKey) -> watch::Receiver<Arc<Snapshot>> {
        let (agent, key) = (self.agent.clone(), service.clone());
        self.lists.join(service.clone(), Arc::default(), |to| async move { agent.follow(&key, &to).await })
    }

    fn register(&self, provided: &Provided, wanted: watch::Receiver<Wanted>) -> Option<watch::Receiver<Standing>> {
        let mut parameters = Url::of(provided).parameters;
        parameters.remove("group");
        parameters.extend(self.agent.behind.clone().map(|behind| ("proxyRegistry".to_owned(), behind)));
        let at = provided.instance.address.parse::<SocketAddr>().ok();
        let node = Node {
            protocol: provided.protocol.clone(),
            host: at.map(|at| at.ip().to_string()).unwrap_or_default(),
            port: at.map(|at| at.port()).unwrap_or_default(),
            path: provided.key.service.clone(),
            group: provided.key.group.clone(),
            parameters,
        };
        Some(keep::keep(Registration { agent: self.agent.clone(), node }, wanted))
    }
}

struct Registration {
    agent: Arc<Other>,
    node: Node,
}

impl keep::Hold for Registration {
    /// The other agent has no word for what is known and not open: that is not registered there.
    async fn put(&self, available: bool) -> anyhow::Result<()> {
        if !available {
            return self.take().await;
        }
        self.agent.call::<serde_json::Value>("/registry/register", Some(&self.node)).await?;
        // A registration that fails inside is answered well all the same.
        self.renew(true).await
    }

    async fn renew(&self, available: bool) -> anyhow::Result<()> {
        let lists = self.agent.call::<Lists>("/registry/list", None).await?.unwrap_or_default();
        let known = lists.register_nodes.iter().any(|known| self.node.is(known));
        ensure!(known || !available, "{}: the other agent does not have the service in its list", self.agent.peer);
        Ok(())
    }

    async fn take(&self) -> anyhow::Result<()> {
        self.agent.call::<serde_json::Value>("/registry/unregister", Some(&self.node)).await.map(drop)
    }

    fn every(&self) -> Duration {
        LOOK_EVERY
    }

    fn name(&self) -> String {
        format!("mesh {} {}", self.agent.peer, self.node.path)
    }
}
