//! Keeping what this agent provides in the registry.

use std::sync::Arc;

use tokio::{sync::watch, time::sleep};

use super::{
    Zookeeper,
    conn::{Conn, Failure, Watcher},
    link::{Link, connected},
    paths,
    wire::Code,
};
use crate::{
    Provided, Standing, Wanted,
    keep::{goal, pending},
    pause::Pause,
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
        if holder.session == 0 && goal(&mut wanted) == Wanted::Gone {
            // Nothing of it was ever told.
            standing.send_replace(Standing::Gone);
            return;
        }
        let down = |why: &str| not_held(&standing, why);
        let conn = tokio::select! {
            conn = connected(&mut link, down) => match conn {
                Ok(conn) => conn,
                Err(_) => return,
            },
            // Only what was never told needs no connection to be gone.
            _ = wanted.changed(), if holder.session == 0 => continue,
        };
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
            let again = async {
                match wait {
                    Some(wait) => sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Dropped: what nobody wants any more is gone.
                _ = wanted.changed() => {}
                _ = holder.watcher.fired() => {}
                () = again => {}
                _ = conn.ended() => break,
            }
        }
    }
}

fn not_held(standing: &watch::Sender<Standing>, why: &str) {
    if pending(standing, why) {
        tracing::warn!(%why, "zookeeper: a registration is not held");
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
