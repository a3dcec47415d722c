//! Keeping what this agent provides in the registry.

use std::sync::Arc;

use tokio::sync::watch;

use super::{
    Zookeeper,
    conn::{Conn, Failure, Watcher},
    link::Link,
    paths,
    wire::Code,
};
use crate::{
    Provided, Standing, Wanted,
    keep::{connection, goal, not_held},
    pause::{Pause, after},
    url::Url,
};

struct Holder {
    /// Its node when it is available, and when it is not.
    server: String,
    unavailable: String,
    data: Vec<u8>,
    /// Session in which nodes of this address were looked at; all that belong to other sessions were former.
    session: i64,
    /// Transactions that created the nodes of ours.
    ours: Vec<i64>,
    watcher: Arc<Watcher>,
}

/// Holds `provided` as `wanted` says, until it is gone.
pub(super) async fn hold(
    registry: Arc<Zookeeper>,
    provided: Provided,
    mut wanted: watch::Receiver<Wanted>,
    standing: watch::Sender<Standing>,
    mut link: watch::Receiver<Link>,
) {
    let address = &provided.instance.address;
    let path = |kind| paths::folder(&registry.options.root, &provided.key, kind).map(|f| format!("{f}/{address}"));
    let (server, unavailable) = match (path(paths::SERVER), path(paths::UNAVAILABLE)) {
        (Ok(server), Ok(unavailable)) => (server, unavailable),
        (Err(why), _) | (_, Err(why)) => {
            standing.send_replace(Standing::Pending(Some(why)));
            return;
        }
    };
    let data = registry.options.written(&Url::of(&provided));
    let mut holder = Holder { server, unavailable, data, session: 0, ours: Vec::new(), watcher: Arc::default() };
    let mut pause = Pause::default();
    loop {
        let told = holder.session != 0;
        let Some(conn) = connection(&mut link, told, &mut wanted, &standing).await else { return };
        loop {
            let goal = goal(&mut wanted);
            let wait = match holder.settle(&conn, goal).await {
                Ok(()) => {
                    pause.reset();
                    let now = match goal {
                        Wanted::Available => Standing::Available,
                        Wanted::Unavailable => Standing::Unavailable,
                        Wanted::Gone => Standing::Gone,
                    };
                    tracing::debug!(node = %holder.server, ?now, "zookeeper: registered");
                    standing.send_replace(now);
                    if goal == Wanted::Gone {
                        return;
                    }
                    None
                }
                Err(Failure::Lost) => break,
                Err(failure) => {
                    not_held(&standing, &format!("{}: {}: {failure}", conn.server, holder.server));
                    Some(pause.next())
                }
            };
            tokio::select! {
                // Dropped: what nobody wants any more is gone.
                _ = wanted.changed() => {}
                _ = holder.watcher.fired() => {}
                () = after(wait) => {}
                _ = conn.ended() => break,
            }
        }
    }
}

impl Holder {
    /// Brings the nodes to where they are wanted.
    async fn settle(&mut self, conn: &Conn, goal: Wanted) -> Result<(), Failure> {
        // In a new session nodes of this address are left over: from a former session of ours, or from what
        // ran here before. Later they are of somebody who took the address over.
        let fresh = std::mem::replace(&mut self.session, conn.session) != conn.session;
        let (server, unavailable) = (self.server.clone(), self.unavailable.clone());
        let settled = match goal {
            // In this order there is always one of the two.
            Wanted::Available => match self.put(conn, &server, fresh).await {
                Ok(()) => self.take_away(conn, &unavailable, fresh).await,
                failed => failed,
            },
            Wanted::Unavailable => match self.put(conn, &unavailable, fresh).await {
                Ok(()) => self.take_away(conn, &server, fresh).await,
                failed => failed,
            },
            Wanted::Gone => match self.take_away(conn, &server, fresh).await {
                Ok(()) => self.take_away(conn, &unavailable, fresh).await,
                failed => failed,
            },
        };
        if settled.is_err() && fresh {
            self.session = 0;
        }
        settled
    }

    async fn put(&mut self, conn: &Conn, path: &str, fresh: bool) -> Result<(), Failure> {
        loop {
            if let Some(stat) = conn.exists(path, Some(&self.watcher)).await? {
                if self.ours.contains(&stat.czxid) {
                    return Ok(());
                }
                if stat.owner != conn.session && !fresh {
                    return Err(Failure::Refused(Code::NODE_EXISTS));
                }
                // Ephemeral nodes cannot change hands.
                conn.delete(path).await?;
            }
            match conn.create(path, &self.data, true).await {
                Ok(()) => {
                    if let Some(stat) = conn.exists(path, Some(&self.watcher)).await?
                        && stat.owner == conn.session
                    {
                        self.ours.push(stat.czxid);
                        return Ok(());
                    }
                }
                // Somebody was faster: look again.
                Err(Failure::Refused(Code::NODE_EXISTS)) => {}
                Err(failure) => return Err(failure),
            }
        }
    }

    async fn take_away(&mut self, conn: &Conn, path: &str, fresh: bool) -> Result<(), Failure> {
        if let Some(stat) = conn.exists(path, None).await?
            && (self.ours.contains(&stat.czxid) || (fresh && stat.owner != 0))
        {
            conn.delete(path).await?;
            self.ours.retain(|created| *created != stat.czxid);
        }
        Ok(())
    }
}
