//! The providers of one service: the children of its folder `server`, with their data.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use model::{ServiceKey, Snapshot};
use tokio::{
    sync::watch,
    task::yield_now,
    time::{Instant, sleep},
};

use super::{
    Zookeeper,
    conn::{Conn, Failure, Watcher},
    java,
    link::Link,
    paths, sign,
    wire::Code,
};
use crate::{
    link::connected,
    nodes::{Node, Nodes},
    pause::Pause,
};

/// Nodes read at the same time.
const AT_ONCE: usize = 128;
/// In folders up to this size each node is watched as well, so that an edit of its data is seen at once.
const WATCHED: usize = 1000;
/// Nodes that are gone through before others have their turn.
const YIELD: usize = 1000;
/// The longest pause between two looks at a large folder that never rests.
const REST: Duration = Duration::from_millis(500);

struct Follower {
    folder: String,
    nodes: Nodes,
    /// Creation of the folder and changes in it, when `nodes` were listed.
    at: Option<(i64, i32)>,
    watcher: Arc<Watcher>,
}

/// Keeps `list` current. Returns when it never can be.
pub(super) async fn follow(
    registry: Arc<Zookeeper>,
    service: ServiceKey,
    list: watch::Sender<Arc<Snapshot>>,
    mut link: watch::Receiver<Link>,
) {
    let folder = paths::folder(&registry.options.root, &service, paths::SERVER);
    let nodes = Nodes::new("zookeeper", service, list);
    let folder = match folder {
        Ok(folder) => folder,
        Err(why) => return nodes.stale(&why),
    };
    let mut follower = Follower { folder, nodes, at: None, watcher: Arc::default() };
    let (mut pause, mut session) = (Pause::default(), 0);
    loop {
        let down = |why: &str| follower.nodes.stale(why);
        let Some(conn) = connected(&mut link, down).await else { return };
        // What changed while nobody looked is not known.
        follower.at = None;
        loop {
            let began = Instant::now();
            match follower.look(&conn).await {
                Ok(()) => pause.reset(),
                Err(Failure::Lost) => break,
                Err(failure) => {
                    let why = format!("{}: {}: {failure}", conn.server, follower.folder);
                    follower.nodes.stale(&why);
                    tokio::select! {
                        () = sleep(pause.next()) => continue,
                        _ = conn.ended() => break,
                    }
                }
            }
            if std::mem::replace(&mut session, conn.session) != conn.session {
                sign::caller(&registry, &conn, &follower.nodes.service).await;
            }
            if follower.nodes.all.len() > WATCHED {
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
                        self.nodes.all.clear();
                        self.at = None;
                        self.nodes.publish();
                        return Ok(());
                    }
                }
                Err(failure) => return Err(failure),
            }
        };
        yield_now().await;
        let names: HashSet<String> = names.into_iter().collect();
        yield_now().await;
        let before = self.nodes.all.len();
        self.nodes.all.retain(|name, _| names.contains(name));
        let removed = before - self.nodes.all.len();
        let added = names.len() - self.nodes.all.len();
        // When more happened than the difference shows, a node was replaced by one of the same name.
        let expected = self.at.map(|(born, changes)| (born, changes.wrapping_add((added + removed) as i32)));
        if expected != Some((stat.czxid, stat.cversion)) {
            self.nodes.all.values_mut().for_each(|node| *node = Node::Unread);
        }
        for (i, name) in names.into_iter().enumerate() {
            self.nodes.all.entry(name).or_insert(Node::Unread);
            if i % YIELD == YIELD - 1 {
                yield_now().await;
            }
        }
        // Before they are all read: if that fails half-way, those that were read need not be read again.
        self.at = Some((stat.czxid, stat.cversion));
        self.read(conn).await?;
        self.nodes.publish();
        Ok(())
    }

    async fn read(&mut self, conn: &Arc<Conn>) -> Result<(), Failure> {
        let unread: Vec<_> = self
            .nodes
            .all
            .iter()
            .filter(|(_, node)| matches!(node, Node::Unread))
            .map(|(name, _)| name.clone())
            .collect();
        let watcher = (self.nodes.all.len() <= WATCHED).then(|| self.watcher.clone());
        let reads = unread.into_iter().map(|name| {
            let (conn, watcher, path) = (conn.clone(), watcher.clone(), format!("{}/{name}", self.folder));
            async move { (name, conn.data(&path, watcher.as_ref()).await) }
        });
        let mut reads = stream::iter(reads).buffer_unordered(AT_ONCE);
        while let Some((name, read)) = reads.next().await {
            let node = match read {
                Ok((data, _)) => match java::read(&data) {
                    Ok(text) => self.nodes.read(&name, &text.text, text.java),
                    Err(why) => Node::Bad(why.to_owned()),
                },
                // The event that follows takes it from the list.
                Err(Failure::Refused(Code::NO_NODE)) => Node::Other,
                Err(failure @ (Failure::Refused(_) | Failure::TooLarge(_))) => Node::Bad(failure.to_string()),
                Err(failure) => return Err(failure),
            };
            self.nodes.all.insert(name, node);
        }
        Ok(())
    }

    /// Nodes whose data changed are read again.
    fn forget(&mut self, paths: &HashSet<String>) {
        for path in paths {
            let name = path.strip_prefix(&self.folder).and_then(|rest| rest.strip_prefix('/'));
            if let Some(node) = name.and_then(|name| self.nodes.all.get_mut(name)) {
                *node = Node::Unread;
            }
        }
    }
}
