//! The running counterpart of a [`Plan`]: built from the first configuration, changed as a whole by
//! every further one.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::BorrowedFd,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use arc_swap::ArcSwap;
use model::command::group_shares;
use tokio::{sync::watch, task::AbortHandle};

use super::{
    follow::{Follower, Shared, Sources},
    plan::{AddressPlan, At, ClusterId, ClusterPlan, Plan, SourcePlan},
    serving::{self, Bound, Served, Serving},
};
use crate::{
    accept::Target,
    admin::Steered,
    call::Text,
    capture::balance::Straight,
    cluster::{Cluster, Parts},
    config::{self, Config, RegistryConfig},
    endpoint::Introduce,
    filter::Direction,
    kind::{self, BuildCx},
    protocol,
    registry::{self, Registry},
    route::{Destination, Route, Routes},
};

/// Registries by name, with what they were built from.
pub(super) type Registries = BTreeMap<String, (RegistryConfig, Arc<dyn Registry>)>;

/// Everything that a reload may change.
pub(super) struct Mesh {
    registries: Registries,
    clusters: HashMap<ClusterId, Running>,
    routes: HashMap<(Address, &'static str), Arc<Route>>,
    listeners: HashMap<At, Listening>,
    /// Services whose connects go straight to an endpoint, endpoints left open.
    pub(super) straight: Vec<(Straight, ClusterId)>,
    /// What captured connections are looked up in.
    pub(super) captured: Arc<ArcSwap<Routes>>,
    /// What connections from elsewhere are looked up in.
    pub(super) inbound: Arc<ArcSwap<Routes>>,
    /// All clusters in the order of the file, for admin.
    pub(super) view: Arc<ArcSwap<Vec<Arc<Cluster>>>>,
    /// Clusters with the registries that command them, for admin.
    pub(super) steered: Arc<ArcSwap<Vec<Arc<Steered>>>>,
    /// What those who follow registries share.
    pub(super) followed: Shared,
    serving: Serving,
    cx: BuildCx,
}

/// Names a route across reloads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Address {
    Captured(config::VirtualAddress),
    Inbound(config::VirtualAddress),
    Listener(At),
}

struct Running {
    cluster: Arc<Cluster>,
    application: Option<Text>,
    source: SourcePlan,
    /// Follows the registries.
    _task: AbortOnDrop,
    first: watch::Receiver<bool>,
}

struct Listening {
    destination: Arc<ArcSwap<Destination>>,
    served: Served,
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// All that could fail, done before anything that runs is touched.
struct Prepared {
    registries: Registries,
    fresh: HashMap<ClusterId, Arc<Cluster>>,
    bound: HashMap<At, Bound>,
}

impl Mesh {
    /// An empty mesh; [`Mesh::apply`] fills it.
    pub(super) fn new(serving: Serving, captured: Arc<ArcSwap<Routes>>, cx: BuildCx, followed: Shared) -> Self {
        Self {
            registries: BTreeMap::new(),
            clusters: HashMap::new(),
            routes: HashMap::new(),
            listeners: HashMap::new(),
            straight: Vec::new(),
            captured,
            inbound: Arc::default(),
            view: Arc::default(),
            steered: Arc::default(),
            followed,
            serving,
            cx,
        }
    }

    /// Makes the mesh what `config` says, or changes nothing and says why. Clusters whose configuration
    /// did not change keep running with their connections; connections of others finish what they began.
    pub(super) fn apply(&mut self, config: &Config) -> anyhow::Result<()> {
        let plan = Plan::of(config);
        let prepared = self.prepare(config, &plan)?;
        self.commit(plan, prepared);
        Ok(())
    }

    fn prepare(&self, config: &Config, plan: &Plan) -> anyhow::Result<Prepared> {
        let mut registries = BTreeMap::new();
        for (name, wanted) in &config.registries {
            let registry = match self.registries.get(name) {
                Some((same, registry)) if same == wanted => registry.clone(),
                _ => kind::build("registry", &registry::kinds(), &wanted.kind, &wanted.options, &self.cx.registry())
                    .with_context(|| format!("registries.{name}"))?,
            };
            registries.insert(name.clone(), (wanted.clone(), registry));
        }
        let mut fresh = HashMap::new();
        for wanted in &plan.clusters {
            let same = |r: &Running| r.cluster.config == wanted.config && r.application == wanted.application;
            if !self.clusters.get(&wanted.id).is_some_and(same) {
                let cluster = self.build(wanted).with_context(|| format!("service {}", wanted.id.key))?;
                fresh.insert(wanted.id.clone(), Arc::new(cluster));
            }
        }
        let mut bound = HashMap::new();
        for at in plan.listeners.keys().filter(|at| !self.listeners.contains_key(at)) {
            let listener = match at {
                At::Tcp(address) => Bound::Tcp(serving::bind(*address)?),
                At::Unix(path) => serving::bind_unix(path)?,
            };
            bound.insert(at.clone(), listener);
        }
        Ok(Prepared { registries, fresh, bound })
    }

    fn build(&self, wanted: &ClusterPlan) -> anyhow::Result<Cluster> {
        let ClusterPlan { id, config, application, .. } = wanted;
        let protocol = self.serving.acceptor().protocols.iter().find(|(name, _)| *name == id.protocol);
        let (protocol, kind) = protocol.expect("plans name only protocols of KINDS");
        let application = application.clone().unwrap_or_else(|| self.cx.application.clone());
        let cx = BuildCx { application, service: id.key.service.as_str().into(), ..self.cx.clone() };
        Cluster::build(Parts {
            key: id.key.clone(),
            direction: id.direction(),
            protocol,
            config,
            connector: protocol::connector(&**kind, config, &self.serving.acceptor().limits, &cx)?,
            own: self.serving.acceptor().own.clone(),
            introduce: self.introduce(&id.key, config),
            cx: &cx,
        })
    }

    /// Shows programs their callers, where the configuration asks for it and the capture can.
    fn introduce(&self, key: &model::ServiceKey, config: &config::Cluster) -> Option<Introduce> {
        let capture = self.serving.acceptor().capture.clone();
        if !config.client_address {
            return None;
        }
        if !capture.can_introduce() {
            let capture = capture.name();
            tracing::warn!(service = %key, capture,
                "client_address: the program sees the agent as its peer: this needs `capture: ebpf`");
            return None;
        }
        Some(Arc::new(move |socket: BorrowedFd<'_>, caller| capture.introduce(socket, caller)))
    }

    fn commit(&mut self, plan: Plan, mut prepared: Prepared) {
        let changed_registry = |name: &String| {
            let (old, new) = (self.registries.get(name), prepared.registries.get(name));
            !matches!((old, new), (Some((_, old)), Some((_, new))) if Arc::ptr_eq(old, new))
        };
        let mut clusters = HashMap::new();
        let mut view = Vec::new();
        for wanted in &plan.clusters {
            let old = self.clusters.remove(&wanted.id);
            let running = match (old, prepared.fresh.remove(&wanted.id)) {
                (Some(old), None)
                    if old.source == wanted.source && !wanted.source.registries.iter().any(changed_registry) =>
                {
                    old
                }
                (old, fresh) => {
                    let cluster = fresh.or(old.map(|old| old.cluster)).expect("prepared because there was none");
                    self.follow(cluster, wanted, &prepared.registries)
                }
            };
            view.push(running.cluster.clone());
            clusters.insert(wanted.id.clone(), running);
        }
        self.clusters = clusters;
        self.straight = plan.straight;
        self.registries = prepared.registries;
        let commanded = plan.clusters.iter().filter(|wanted| !wanted.source.registries.is_empty());
        let steered = commanded.map(|wanted| {
            let names = wanted.source.registries.iter();
            let registries = names.filter_map(|name| Some((name.clone(), self.registries.get(name)?.1.clone())));
            Arc::new(Steered {
                cluster: self.clusters[&wanted.id].cluster.clone(),
                registries: registries.collect(),
                application: self.cx.application.to_string(),
            })
        });
        self.steered.store(Arc::new(steered.collect()));
        self.view.store(Arc::new(view));

        let mut old_routes = std::mem::take(&mut self.routes);
        let mut table = Routes::default();
        for (address, plan) in &plan.captured {
            table.insert(*address, self.destination(&Address::Captured(*address), plan, &mut old_routes));
        }
        self.captured.store(Arc::new(table));
        let mut table = Routes::default();
        for (address, plan) in &plan.inbound {
            table.insert(*address, self.destination(&Address::Inbound(*address), plan, &mut old_routes));
        }
        self.inbound.store(Arc::new(table));
        let mut old_listeners = std::mem::take(&mut self.listeners);
        for (at, plan) in &plan.listeners {
            let destination = self.destination(&Address::Listener(at.clone()), plan, &mut old_routes);
            let listening = match old_listeners.remove(at) {
                Some(listening) => {
                    listening.destination.store(Arc::new(destination));
                    listening
                }
                None => self.listen(prepared.bound.remove(at).expect("bound in prepare"), destination),
            };
            self.listeners.insert(at.clone(), listening);
        }
        for gone in old_listeners.into_values() {
            gone.served.stop();
        }
    }

    /// The destination of an address, with the routes of before where the protocol is the same, so that
    /// connections that exist see the clusters of now.
    fn destination(
        &mut self,
        address: &Address,
        plan: &AddressPlan,
        old: &mut HashMap<(Address, &'static str), Arc<Route>>,
    ) -> Destination {
        let direction = if plan.inbound { Direction::Inbound } else { Direction::Outbound };
        if plan.proxy {
            let clusters = plan.clusters.iter().map(|id| self.clusters[id].cluster.clone()).collect();
            return Destination::Declared(self.route(address, protocol::forward::NAME, direction, clusters, old));
        }
        let mut routes = Vec::new();
        for kind in protocol::KINDS {
            let of_kind = plan.clusters.iter().filter(|id| id.protocol == kind.name);
            let clusters: Vec<_> = of_kind.map(|id| self.clusters[id].cluster.clone()).collect();
            if clusters.is_empty() && plan.bare != Some(kind.name) {
                continue;
            }
            routes.push(self.route(address, kind.name, direction, clusters, old));
        }
        if plan.detect || routes.len() > 1 {
            Destination::Undeclared(routes.into())
        } else {
            Destination::Declared(routes.pop().expect("an address leads to at least one cluster"))
        }
    }

    fn route(
        &mut self,
        address: &Address,
        protocol: &'static str,
        direction: Direction,
        clusters: Vec<Arc<Cluster>>,
        old: &mut HashMap<(Address, &'static str), Arc<Route>>,
    ) -> Arc<Route> {
        let key = (address.clone(), protocol);
        let route = match old.remove(&key) {
            Some(route) => {
                route.replace(clusters);
                route
            }
            None => Arc::new(Route::new(direction, protocol, clusters)),
        };
        self.routes.insert(key, route.clone());
        route
    }

    fn listen(&self, listener: Bound, destination: Destination) -> Listening {
        let destination = Arc::new(ArcSwap::from_pointee(destination));
        let served = self.serving.start(listener, Target::Fixed(destination.clone()));
        Listening { destination, served }
    }

    /// Starts following the registries of a cluster.
    fn follow(&self, cluster: Arc<Cluster>, wanted: &ClusterPlan, registries: &Registries) -> Running {
        let source = wanted.source.clone();
        let known = source.registries.iter().filter_map(|name| Some((name, registries.get(name)?)));
        let sources = Sources {
            registries: known.map(|(name, (_, registry))| (name.clone(), registry.clone())).collect(),
            instances: source.instances.clone(),
            mix_groups: group_shares(source.mix_groups.iter().map(String::as_str)),
            application: self.cx.application.to_string(),
        };
        let (heard, first) = watch::channel(false);
        // It takes what is known already: who was told that a reload is done must not meet the old list.
        let follower = Follower::new(cluster.clone(), sources, self.followed.clone(), heard);
        let task = tokio::spawn(follower.keep_up());
        let application = wanted.application.clone();
        Running { cluster, application, source, _task: AbortOnDrop(task.abort_handle()), first }
    }

    /// The registries in use.
    pub(super) const fn registries(&self) -> &Registries {
        &self.registries
    }

    /// The cluster called `id`.
    pub(super) fn cluster(&self, id: &ClusterId) -> Option<&Arc<Cluster>> {
        self.clusters.get(id).map(|running| &running.cluster)
    }

    /// Waits until every cluster has heard from its registries once, or `patience` is over.
    pub(super) async fn first_snapshots(&self, patience: Duration) -> bool {
        let all = async {
            for running in self.clusters.values() {
                // The sender lives in the task that follows the registry; an error means it ended.
                let _ = running.first.clone().wait_for(|heard| *heard).await;
            }
        };
        tokio::time::timeout(patience, all).await.is_ok()
    }
}
