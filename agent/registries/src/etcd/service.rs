//! The providers of one service: the keys below its prefix `server`.

use std::sync::Arc;

use model::{ServiceKey, Snapshot};
use tokio::{sync::watch, task::yield_now, time::sleep};

use super::{
    Etcd,
    conn::{Conn, Failure},
    link::Link,
    paths,
    wire::{Event, KeyValue, end_of},
};
use crate::{
    link::connected,
    nodes::{LARGEST, Node, Nodes},
    pause::Pause,
};

/// Nodes that are gone through before others have their turn.
const YIELD: usize = 1000;

struct Follower {
    /// Of the service's nodes, with the `/` at its end.
    prefix: String,
    nodes: Nodes,
}

/// Keeps `list` current. Returns when it never can be.
pub(super) async fn follow(
    registry: Arc<Etcd>,
    service: ServiceKey,
    list: watch::Sender<Arc<Snapshot>>,
    mut link: watch::Receiver<Link>,
) {
    let prefix = paths::folder(&registry.options.prefix, &service, paths::SERVER);
    let mut follower = Follower { prefix, nodes: Nodes::new("etcd", service, list) };
    let mut pause = Pause::default();
    loop {
        let Some(conn) = connected(&mut link, |why| follower.nodes.stale(why)).await else { return };
        // Each round begins with the whole list: on a new connection, after a compaction, when too late.
        let failure = loop {
            match follower.round(&conn, &mut pause).await {
                Ok(()) if conn.is_over() => break Failure::Lost,
                Ok(()) | Err(Failure::Compacted) => {}
                Err(failure) => break failure,
            }
        };
        if let Failure::Refused(why) = failure {
            follower.nodes.stale(&format!("{}: {}: {why}", conn.server, follower.prefix));
            tokio::select! {
                () = sleep(pause.next()) => {}
                _ = conn.ended() => {}
            }
        }
    }
}

impl Follower {
    /// Reads everything and follows it. Returns when it has to be read again.
    async fn round(&mut self, conn: &Arc<Conn>, pause: &mut Pause) -> Result<(), Failure> {
        let end = end_of(self.prefix.as_bytes());
        let listed = conn.list(self.prefix.as_bytes(), &end).await?;
        pause.reset();
        self.nodes.all.clear();
        for (i, kv) in listed.kvs.iter().enumerate() {
            self.put(kv);
            if i % YIELD == YIELD - 1 {
                yield_now().await;
            }
        }
        drop(listed.kvs);
        self.nodes.publish();
        let mut watching = conn.watch(self.prefix.as_bytes(), &end, listed.revision + 1).await?;
        while let Some(events) = watching.next().await {
            let mut again = false;
            for event in events {
                again |= self.take(event);
            }
            if again {
                return Ok(());
            }
            self.nodes.publish();
        }
        Ok(())
    }

    /// Takes in one change; true when everything has to be read again.
    fn take(&mut self, event: Event) -> bool {
        let Some(kv) = event.kv else { return false };
        if event.kind == 0 {
            self.put(&kv);
            return false;
        }
        if let Some(name) = self.name(&kv) {
            self.nodes.all.remove(&name);
        }
        // Another node for the address of one that went counts now, and its text was not kept.
        self.nodes.all.values().any(|node| matches!(node, Node::Unread))
    }

    fn put(&mut self, kv: &KeyValue) {
        let Some(name) = self.name(kv) else { return };
        let node = if kv.value.len() > LARGEST {
            Node::Bad(format!("has {} bytes, more than {LARGEST}", kv.value.len()))
        } else {
            match std::str::from_utf8(&kv.value) {
                Ok(text) => self.nodes.read(&name, text, false),
                Err(_) => Node::Bad("is not text".to_owned()),
            }
        };
        self.nodes.all.insert(name, node);
    }

    fn name(&self, kv: &KeyValue) -> Option<String> {
        let name = kv.key.strip_prefix(self.prefix.as_bytes())?;
        Some(String::from_utf8_lossy(name).into_owned())
    }
}
