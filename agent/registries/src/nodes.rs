//! The nodes below the folder of a service, as a list of endpoints.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use model::{Instance, Metadata, ServiceKey, Snapshot};
use tokio::sync::watch;

use super::url::Url;

/// Unusable nodes that are named; the others are counted.
const TOLD: usize = 3;
/// Different sets of parameters that are looked for among the nodes that follow.
const SAID: usize = 16;
/// Largest data that is looked into.
pub(super) const LARGEST: usize = 1 << 20;

/// What is known about a node.
#[derive(Debug)]
pub(super) enum Node {
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

impl Node {
    fn read(service: &ServiceKey, name: &str, text: &str, encoded: bool) -> Self {
        let bare = text.trim().is_empty();
        let url = if bare {
            Ok(Url { address: name.to_owned(), path: service.service.clone(), ..Url::default() })
        } else {
            Url::parse(text, encoded)
        };
        match url.map_err(str::to_owned).and_then(|url| url.instance(service)) {
            Ok(Some(mut instance)) => {
                if bare {
                    instance.metadata.clear();
                }
                Self::Fresh(Box::new(instance))
            }
            Ok(None) => Self::Other,
            Err(why) => Self::Bad(why),
        }
    }
}

/// All nodes of one service by name, and the list made of them.
pub(super) struct Nodes {
    /// Kind of the registry, for the log.
    pub kind: &'static str,
    pub service: ServiceKey,
    pub all: BTreeMap<String, Node>,
    /// What the latest nodes said that said something new.
    said: Vec<Metadata>,
    pub list: watch::Sender<Arc<Snapshot>>,
}

impl Nodes {
    /// None yet.
    pub fn new(kind: &'static str, service: ServiceKey, list: watch::Sender<Arc<Snapshot>>) -> Self {
        Self { kind, service, all: BTreeMap::new(), said: Vec::new(), list }
    }

    /// What the text of a node says; `encoded` as in [`Url::parse`]. Without text its name says where, and
    /// everything else is as usual: a person made it by hand.
    pub fn read(&mut self, name: &str, text: &str, encoded: bool) -> Node {
        let mut node = Node::read(&self.service, name, text, encoded);
        if let Node::Fresh(instance) = &mut node {
            // Most say the same, which is kept once.
            match self.said.iter().find(|said| **said == instance.metadata) {
                Some(said) => instance.metadata = said.clone(),
                None => {
                    if self.said.len() >= SAID {
                        self.said.remove(0);
                    }
                    self.said.push(instance.metadata.clone());
                }
            }
        }
        node
    }

    /// Publishes what the nodes say, if it is anything new. Of two nodes for one address the first counts;
    /// the other has to be read again, should it ever count.
    pub fn publish(&mut self) {
        let Self { kind, all, list, service, .. } = self;
        list.send_if_modified(|current| {
            let mut next = Snapshot::default();
            let mut seen = HashSet::with_capacity(all.len());
            let mut bad = Vec::new();
            for (name, node) in all.iter_mut() {
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
                let count = bad.len();
                bad.truncate(TOLD);
                let more = if count > TOLD { ", ..." } else { "" };
                next.stale = Some(format!("{count} of {} nodes left out: {}{more}", all.len(), bad.join(", ")));
            }
            next.revision = current.revision;
            if current.revision > 0 && next == **current {
                return false;
            }
            if let Some(reason) = next.stale.as_ref().filter(|_| next.stale != current.stale) {
                tracing::warn!(registry = *kind, %service, %reason, "list is partly unusable");
            }
            next.revision += 1;
            *current = Arc::new(next);
            true
        });
    }

    /// Says why the list may be old; one that never was heard of stays at revision 0.
    pub fn stale(&self, why: &str) {
        let (kind, service) = (self.kind, &self.service);
        self.list.send_if_modified(|current| {
            if current.stale.as_deref() == Some(why) {
                return false;
            }
            tracing::debug!(registry = kind, %service, why, "list is not current");
            let revision = if current.revision > 0 { current.revision + 1 } else { 0 };
            let instances = current.instances.clone();
            *current = Arc::new(Snapshot { revision, instances, stale: Some(why.to_owned()) });
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> (Nodes, watch::Receiver<Arc<Snapshot>>) {
        let (list, receiver) = watch::channel(Arc::default());
        let service = ServiceKey { service: "s".into(), ..ServiceKey::default() };
        (Nodes::new("test", service, list), receiver)
    }

    fn put(nodes: &mut Nodes, name: &str, text: &str) {
        let node = nodes.read(name, text, false);
        nodes.all.insert(name.to_owned(), node);
    }

    fn listed(list: &watch::Receiver<Arc<Snapshot>>) -> (u64, String, Option<String>) {
        let now = list.borrow().clone();
        let addresses: Vec<_> = now.instances.iter().map(|i| i.address.as_str()).collect();
        (now.revision, addresses.join(" "), now.stale.clone())
    }

    #[test]
    fn lists_follow_their_nodes() {
        let (mut nodes, list) = nodes();
        nodes.stale("away");
        assert_eq!(listed(&list), (0, String::new(), Some("away".into())));
        nodes.publish();
        assert_eq!(listed(&list), (1, String::new(), None), "an empty list is a list");
        put(&mut nodes, "10.0.0.2:1", "");
        put(&mut nodes, "10.0.0.1:1", "motan2://10.0.0.1:1/s?a=b");
        put(&mut nodes, "other", "motan2://10.0.0.3:1/t?");
        nodes.publish();
        assert_eq!(listed(&list), (2, "10.0.0.1:1 10.0.0.2:1".into(), None));
        nodes.publish();
        assert_eq!(listed(&list).0, 2, "nothing new");
        put(&mut nodes, "10.0.0.1:1", "garbage");
        nodes.publish();
        let (_, addresses, stale) = listed(&list);
        assert_eq!(
            (addresses.as_str(), stale.unwrap().as_str()),
            ("10.0.0.2:1", "1 of 3 nodes left out: `10.0.0.1:1` is no URL")
        );
        nodes.all.remove("10.0.0.2:1");
        nodes.publish();
        assert_eq!(listed(&list).1, "10.0.0.2:1", "nothing but bad nodes is no list");
        nodes.all.clear();
        nodes.publish();
        assert_eq!(listed(&list).1, "");
    }

    #[test]
    fn of_two_nodes_for_one_address_one_counts() {
        let (mut nodes, list) = nodes();
        put(&mut nodes, "a", "motan2://10.0.0.1:1/s?");
        put(&mut nodes, "b", "motan2://10.0.0.1:1/s?");
        nodes.publish();
        assert_eq!(listed(&list).1, "10.0.0.1:1");
        assert!(matches!(nodes.all["b"], Node::Unread));
    }
}
