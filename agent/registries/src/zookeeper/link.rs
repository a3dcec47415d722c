//! The one session of a registry, kept whatever happens to servers.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    Options,
    conn::{Closed, Conn},
    wire::Identity,
};
use crate::{
    link::{Ends, unreachable},
    pause::Pause,
};

/// A connection that held this long, or half of the session's patience, was a good one.
const GOOD: Duration = Duration::from_secs(5);
/// How long servers that know less than they once told are waited for, at least.
const EMPTIED: Duration = Duration::from_secs(5);
/// The longest pause between looks at them.
const LOOK: Duration = Duration::from_secs(1);

/// How it stands with the connection.
pub(super) type Link = crate::link::Link<Conn>;

impl Ends for Conn {
    fn is_over(&self) -> bool {
        self.is_over()
    }
}

/// Keeps a connection to one of the servers until dropped.
pub(super) async fn keep(options: Arc<Options>, link: watch::Sender<Link>) {
    let mut identity = Identity::default();
    let mut pause = Pause::default();
    // Since when every server that answers at all hangs up on what this agent has seen.
    let mut unknown: Option<Instant> = None;
    loop {
        let mut servers = options.servers.clone();
        fastrand::shuffle(&mut servers);
        let (mut hung_up, mut waiting) = (false, false);
        let mut reasons = Vec::new();
        let mut at = 0;
        while let Some(server) = servers.get(at) {
            match Conn::open(server, &identity, options.session_timeout, &options.access).await {
                Ok(conn) => {
                    let began = Instant::now();
                    let known = identity.session == conn.session;
                    let session = format_args!("{:#x}", conn.session).to_string();
                    tracing::info!(%server, %session, known, "zookeeper: connected");
                    let conn = Arc::new(conn);
                    link.send_replace(Link::up(conn.clone()));
                    let why = conn.ended().await;
                    tracing::warn!(%server, %why, "zookeeper: connection ended");
                    identity = conn.identity();
                    link.send_replace(Link::down(format!("{server}: {why}")));
                    // What others said before it does not count any more.
                    (unknown, hung_up) = (None, false);
                    reasons.clear();
                    if began.elapsed() >= GOOD.min(options.session_timeout / 2) {
                        pause.reset();
                    }
                    break;
                }
                // Another session on the same server, at once.
                Err(Closed::Expired) => {
                    tracing::warn!(%server, "zookeeper: the session expired");
                    identity = Identity { seen: identity.seen, ..Identity::default() };
                    continue;
                }
                Err(Closed::Unanswered) => {
                    hung_up = true;
                    reasons.push(format!("{server}: closed the connection without an answer"));
                }
                Err(Closed::Waiting) => {
                    waiting = true;
                    reasons.push(format!("{server}: serves nobody at present: it has no quorum"));
                }
                Err(Closed::Other(why)) => reasons.push(format!("{server}: {why}")),
            }
            at += 1;
        }
        unreachable(&link, "zookeeper", &reasons);
        // As long as members look for their quorum, what is behind need not be what counts.
        if !hung_up || waiting {
            unknown = None;
        } else if identity.seen > 0 {
            // A member that lags behind catches up within this time; one that was emptied never will.
            let since = *unknown.get_or_insert_with(Instant::now);
            if since.elapsed() >= (options.session_timeout / 3).max(EMPTIED) {
                tracing::warn!("zookeeper: the servers know less than they once told: taken as new ones");
                (identity, unknown) = (Identity::default(), None);
                pause.reset();
            }
            sleep(pause.next().min(LOOK)).await;
            continue;
        }
        // A session that may still be kept is not slept through.
        let longest = if identity.session == 0 { Duration::MAX } else { options.session_timeout / 6 };
        sleep(pause.next().min(longest)).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::super::build;
    use crate::{BuildCx, Scope};

    #[tokio::test]
    async fn a_good_connection_that_ended_is_told_and_not_who_refused_before_it() {
        let good = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = good.local_addr().unwrap();
        // Nobody listens there. So many that one of them is asked before the good one.
        let dead: Vec<String> = (1..30).map(|host| format!("'127.0.1.{host}:1'")).collect();
        let yaml = format!("{{address: ['{at}', {}]}}", dead.join(", "));
        let registry = build(&serde_yaml::from_str(&yaml).unwrap(), &BuildCx::default()).unwrap();
        let mut text = registry.commands(&Scope::Group("g".to_owned())).unwrap();
        let (mut io, _) = good.accept().await.unwrap();
        io.read_exact(&mut [0; 49]).await.unwrap();
        let welcome = [&[0, 0, 0, 37, 0, 0, 0, 0, 0, 0, 0x75, 0x30][..], &[7; 8], &[0, 0, 0, 16], &[1; 16], &[0]];
        io.write_all(&welcome.concat()).await.unwrap();
        io.read_exact(&mut [0; 4]).await.unwrap();
        drop(io);
        let told = text.wait_for(|text| text.stale.is_some()).await.unwrap();
        let why = told.stale.as_deref().unwrap_or_default();
        assert!(why.starts_with(&at.to_string()), "{why}");
    }
}
