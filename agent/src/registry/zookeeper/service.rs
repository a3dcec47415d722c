//! The providers of one service: the children of its folder `server`, with their data.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use model::{Instance, ServiceKey, Snapshot};
use tokio::{
    sync::watch,
    task::yield_now,
    time::{Instant, sleep},
};

use super::{
    Zookeeper,
    conn::{Conn, Failure, Watcher},
    java,
    link::{Link, connected},
    paths,
    wire::Code,
};
use crate::registry::{
    pause::Pause,
    url::{Url, group_of},
};

/// Nodes read at the same time.
const AT_ONCE: usize = 128;
/// In folders up to this size each node is watched as well, so that an edit of its data is seen at once.
const WATCHED: usize = 1000;
/// Unusable nodes that are named; the others are counted.
const TOLD: usize = 3;
/// Nodes that are gone through before others have their turn.
const YIELD: usize = 1000;
/// The longest pause between two looks at a large folder that never rests.
const REST: Duration = Duration::from_millis(500);

/// What is known about a node.
#[derive(Debug)]
enum Node {
    /// Has to be read.
    Unread,
    /// Its instance has this place in the list that was published last.
    Listed(usize),
    /// Read just now.
    Fresh(Box<Instance>),
    /// Of no concern: another version, or not a provider.
    Other,
    /// Cannot be used, and why.
    Bad(String),
}

struct Follower {
    service: ServiceKey,
    folder: String,
    nodes: BTreeMap<String, Node>,
    /// Creation of the folder and changes in it, when `nodes` were listed.
    at: Option<(i64, i32)>,
    watcher: Arc<Watcher>,
    list: watch::Sender<Arc<Snapshot>>,
}

/// Keeps `list` current. Returns when it never can be.
pub(super) async fn follow(
    registry: Arc<Zookeeper>,
    service: ServiceKey,
    list: watch::Sender<Arc<Snapshot>>,
    mut link: watch::Receiver<Link>,
) {
    let folder = match paths::folder(&registry.options.root, &service, paths::SERVER) {
        Ok(folder) => folder,
        Err(why) => return stale(&list, &service, &why),
    };
    let mut follower = Follower { service, folder, nodes: BTreeMap::new(), at: None, watcher: Arc::default(), list };
    let (mut pause, mut session) = (Pause::default(), 0);
    loop {
        let down = |why: &str| stale(&follower.list, &follower.service, why);
        let Ok(conn) = connected(&mut link, down).await else { return };
        // What changed while nobody looked is not known.
        follower.at = None;
        loop {
            let began = Instant::now();
            match follower.look(&conn).await {
                Ok(()) => pause.reset(),
                Err(Failure::Lost) => break,
                Err(failure) => {
                    let why = format!("{}: {}: {failure}", conn.server, follower.folder);
                    stale(&follower.list, &follower.service, &why);
                    tokio::select! {
                        () = sleep(pause.next()) => continue,
                        _ = conn.ended() => break,
                    }
                }
            }
            if std::mem::replace(&mut session, conn.session) != conn.session {
                sign(&registry, &conn, &follower.service).await;
            }
            if follower.nodes.len() > WATCHED {
                // Listing so many again and again must leave time for others.
                sleep(began.elapsed().min(REST)).await;
            }
            tokio::select! {
                paths = follower.watcher.fired() => follower.forget(&paths),
                _ = conn.ended() => break,
            }
        }
        // The link tells why as soon as it knows.
    }
}

impl Follower {
    /// Reads what is new, publishes, and leaves watches behind.
    async fn look(&mut self, conn: &Arc<Conn>) -> Result<(), Failure> {
        let (names, stat) = loop {
            match conn.children(&self.folder, Some(&self.watcher)).await {
                Ok(found) => break found,
                Err(Failure::Refused(Code::NO_NODE)) => {
                    if conn.exists(&self.folder, Some(&self.watcher)).await?.is_none() {
                        self.nodes.clear();
                        self.at = None;
                        self.publish();
                        return Ok(());
                    }
                }
                Err(failure) => return Err(failure),
            }
        };
        yield_now().await;
        let names: HashSet<String> = names.into_iter().collect();
        yield_now().await;
        let before = self.nodes.len();
        self.nodes.retain(|name, _| names.contains(name));
        let removed = before - self.nodes.len();
        let added = names.len() - self.nodes.len();
        // When more happened than the difference shows, a node was replaced by one of the same name.
        let expected = self.at.map(|(born, changes)| (born, changes.wrapping_add((added + removed) as i32)));
        if expected != Some((stat.czxid, stat.cversion)) {
            self.nodes.values_mut().for_each(|node| *node = Node::Unread);
        }
        for (i, name) in names.into_iter().enumerate() {
            self.nodes.entry(name).or_insert(Node::Unread);
            if i % YIELD == YIELD - 1 {
                yield_now().await;
            }
        }
        // Before they are all read: if that fails half-way, those that were read need not be read again.
        self.at = Some((stat.czxid, stat.cversion));
        self.read(conn).await?;
        self.publish();
        Ok(())
    }

    async fn read(&mut self, conn: &Arc<Conn>) -> Result<(), Failure> {
        let unread: Vec<_> =
            self.nodes.iter().filter(|(_, node)| matches!(node, Node::Unread)).map(|(name, _)| name.clone()).collect();
        let watcher = (self.nodes.len() <= WATCHED).then(|| self.watcher.clone());
        let reads = unread.into_iter().map(|name| {
            let (conn, watcher, path) = (conn.clone(), watcher.clone(), format!("{}/{name}", self.folder));
            async move { (name, conn.data(&path, watcher.as_ref()).await) }
        });
        let mut reads = stream::iter(reads).buffer_unordered(AT_ONCE);
        while let Some((name, read)) = reads.next().await {
            let node = match read {
                Ok((data, _)) => self.understand(&name, &data),
                // The event that follows takes it from the list.
                Err(Failure::Refused(Code::NO_NODE)) => Node::Other,
                Err(failure @ (Failure::Refused(_) | Failure::TooLarge(_))) => Node::Bad(failure.to_string()),
                Err(failure) => return Err(failure),
            };
            self.nodes.insert(name, node);
        }
        Ok(())
    }

    fn understand(&self, name: &str, data: &[u8]) -> Node {
        if data.is_empty() {
            // What a person made by hand: its name says where, everything else is as usual.
            let bare = Url { address: name.to_owned(), path: self.service.service.clone(), ..Url::default() };
            return match bare.instance(&self.service) {
                Ok(Some(mut instance)) => {
                    instance.metadata.clear();
                    Node::Fresh(Box::new(instance))
                }
                Ok(None) => Node::Other,
                Err(why) => Node::Bad(why),
            };
        }
        let text = java::read(data);
        let url = text.and_then(|text| Url::parse(&text.text, text.java));
        match url.map_err(str::to_owned).and_then(|url| url.instance(&self.service)) {
            Ok(Some(instance)) => Node::Fresh(Box::new(instance)),
            Ok(None) => Node::Other,
            Err(why) => Node::Bad(why),
        }
    }

    /// Publishes what the nodes say, if it is anything new.
    fn publish(&mut self) {
        let Self { nodes, list, service, .. } = self;
        list.send_if_modified(|current| {
            let mut next = Snapshot::default();
            let mut seen = HashSet::with_capacity(nodes.len());
            let mut bad = Vec::new();
            for (name, node) in nodes.iter_mut() {
                let instance = match std::mem::replace(node, Node::Other) {
                    Node::Listed(at) => current.instances[at].clone(),
                    Node::Fresh(instance) => *instance,
                    Node::Bad(why) => {
                        bad.push(format!("`{name}` {why}"));
                        *node = Node::Bad(why);
                        continue;
                    }
                    other => {
                        *node = other;
                        continue;
                    }
                };
                // Two nodes for one address: should the first go, the second has to be read again.
                *node = if seen.insert(instance.address.clone()) {
                    next.instances.push(instance);
                    Node::Listed(next.instances.len() - 1)
                } else {
                    Node::Unread
                };
            }
            if next.instances.is_empty() && !bad.is_empty() {
                // Nothing but bad nodes is a mistake, not the wish to have no provider.
                next.instances.clone_from(&current.instances);
            }
            if !bad.is_empty() {
                let (count, all) = (bad.len(), nodes.len());
                bad.truncate(TOLD);
                let more = if count > TOLD { ", ..." } else { "" };
                next.stale = Some(format!("{count} of {all} nodes left out: {}{more}", bad.join(", ")));
            }
            next.revision = current.revision;
            if current.revision > 0 && next == **current {
                return false;
            }
            if let Some(reason) = next.stale.as_ref().filter(|_| next.stale != current.stale) {
                tracing::warn!(%service, %reason, "zookeeper: list is partly unusable");
            }
            next.revision += 1;
            *current = Arc::new(next);
            true
        });
    }

    /// Nodes whose data changed are read again.
    fn forget(&mut self, paths: &HashSet<String>) {
        for path in paths {
            let name = path.strip_prefix(&self.folder).and_then(|rest| rest.strip_prefix('/'));
            if let Some(node) = name.and_then(|name| self.nodes.get_mut(name)) {
                *node = Node::Unread;
            }
        }
    }
}

/// Says why a list may be old; a list that never was heard of stays at revision 0.
fn stale(list: &watch::Sender<Arc<Snapshot>>, service: &ServiceKey, why: &str) {
    list.send_if_modified(|current| {
        if current.stale.as_deref() == Some(why) {
            return false;
        }
        tracing::debug!(%service, %why, "zookeeper: list is not current");
        let revision = if current.revision > 0 { current.revision + 1 } else { 0 };
        let instances = current.instances.clone();
        *current = Arc::new(Snapshot { revision, instances, stale: Some(why.to_owned()) });
        true
    });
}

/// Leaves this agent's name among the callers of the service. For people who look: nothing depends on it.
async fn sign(registry: &Zookeeper, conn: &Conn, service: &ServiceKey) {
    let Ok(folder) = paths::folder(&registry.options.root, service, paths::CLIENT) else { return };
    let address = match conn.local.to_canonical() {
        std::net::IpAddr::V4(ip) => format!("{ip}:0"),
        std::net::IpAddr::V6(ip) => format!("[{ip}]:0"),
    };
    let mut parameters = BTreeMap::from([
        ("nodeType".to_owned(), "referer".to_owned()),
        ("group".to_owned(), group_of(service).to_owned()),
    ]);
    for (key, value) in [("version", service.version.as_str()), ("application", &registry.application)] {
        if !value.is_empty() {
            parameters.insert(key.to_owned(), value.to_owned());
        }
    }
    let url =
        Url { protocol: "motan2".to_owned(), address: address.clone(), path: service.service.clone(), parameters };
    let (path, data) = (format!("{folder}/{address}"), registry.options.written(&url));
    let mut result = conn.create(&path, &data, true).await;
    if result == Err(Failure::Refused(Code::NODE_EXISTS)) {
        // Of a former session, or of another client on this host: the latest counts.
        result = conn.delete(&path).await;
        if result.is_ok() {
            result = conn.create(&path, &data, true).await;
        }
    }
    if let Err(failure) = result {
        tracing::debug!(%path, %failure, "zookeeper: cannot sign as a caller");
    }
}
