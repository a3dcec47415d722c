//! The connection of a registry, kept whatever happens to members; and its lease.

use std::{sync::Arc, time::Duration};

use futures_util::stream;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    Etcd, Options,
    conn::{ANSWER, Conn, Failure},
    wire::{LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse},
};
use crate::{
    link::{Ends, connected, unreachable},
    pause::Pause,
};

/// A connection that held this long, or half of the lease, was a good one.
const GOOD: Duration = Duration::from_secs(5);

/// How it stands with the connection.
pub(super) type Link = crate::link::Link<Conn>;

impl Ends for Conn {
    fn is_over(&self) -> bool {
        self.is_over()
    }
}

/// Keeps a connection to one of the members until dropped.
pub(super) async fn keep(options: Arc<Options>, link: watch::Sender<Link>) {
    let mut pause = Pause::default();
    loop {
        let mut servers = options.servers.clone();
        fastrand::shuffle(&mut servers);
        let mut reasons = Vec::new();
        for server in &servers {
            match Conn::open(server, &options.access, options.lease).await {
                Ok(conn) => {
                    let began = Instant::now();
                    tracing::info!(%server, "etcd: connected");
                    let conn = Arc::new(conn);
                    link.send_replace(Link::up(conn.clone()));
                    let why = conn.ended().await;
                    tracing::warn!(%server, %why, "etcd: connection ended");
                    link.send_replace(Link::down(format!("{server}: {why}")));
                    if began.elapsed() >= GOOD.min(options.lease / 2) {
                        pause.reset();
                    }
                    reasons.clear();
                    break;
                }
                Err(why) => reasons.push(format!("{server}: {why}")),
            }
        }
        unreachable(&link, "etcd", &reasons);
        sleep(pause.next()).await;
    }
}

/// The lease under which this agent registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lease {
    /// Its number; 0 while there is none.
    pub id: i64,
    /// Why there is none.
    pub why: String,
}

/// Keeps a lease alive until dropped. A lease that ended is followed by another one.
pub(super) async fn lease(registry: Arc<Etcd>, lease: watch::Sender<Lease>, mut link: watch::Receiver<Link>) {
    let mut pause = Pause::default();
    let mut id = 0;
    loop {
        let tell = |why: &str| {
            lease.send_if_modified(|lease| {
                let new = lease.why != why;
                why.clone_into(&mut lease.why);
                new
            });
        };
        let Some(conn) = connected(&mut link, tell).await else { return };
        let held = hold(&conn, &mut id, registry.options.lease, &lease, &mut pause).await;
        if let Err(failure @ (Failure::Refused(_) | Failure::Compacted)) = held {
            tell(&format!("{}: {failure}", conn.server));
            sleep(pause.next()).await;
        }
    }
}

/// Returns when the connection or the lease has ended; `id` is 0 in the second case.
async fn hold(
    conn: &Arc<Conn>,
    id: &mut i64,
    length: Duration,
    lease: &watch::Sender<Lease>,
    pause: &mut Pause,
) -> Result<(), Failure> {
    if *id == 0 {
        // Whole seconds, as etcd counts.
        let ttl = (length.as_millis().div_ceil(1000)).clamp(1, 9_000_000_000) as i64;
        let grant: LeaseGrantResponse = conn.ask("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest { ttl }).await?;
        tracing::info!(server = %conn.server, lease = %format_args!("{:x}", grant.id), ttl = grant.ttl, "etcd: lease");
        *id = grant.id;
    }
    let beat = length / 3;
    let requests = stream::unfold((*id, Duration::ZERO, beat), async |(id, wait, beat)| {
        sleep(wait).await;
        Some((LeaseKeepAliveRequest { id }, (id, beat, beat)))
    });
    let mut answers = conn.stream::<_, LeaseKeepAliveResponse>("/etcdserverpb.Lease/LeaseKeepAlive", requests).await?;
    loop {
        let answer = tokio::select! {
            answer = timeout(beat + ANSWER, answers.message()) => answer,
            _ = conn.ended() => return Err(Failure::Lost),
        };
        match answer {
            Ok(Ok(Some(answer))) if answer.ttl > 0 => {
                pause.reset();
                // Only what is known to live is told.
                lease.send_if_modified(|lease| {
                    let next = Lease { id: *id, why: String::new() };
                    let new = *lease != next;
                    *lease = next;
                    new
                });
            }
            Ok(Ok(Some(_))) => {
                tracing::warn!(server = %conn.server, lease = %format_args!("{id:x}"), "etcd: the lease is over");
                *id = 0;
                lease.send_replace(Lease::default());
                return Ok(());
            }
            Ok(Ok(None)) => return Err(Failure::Refused("the member ended the lease's stream".to_owned())),
            Ok(Err(status)) => return Err(status.into()),
            Err(_) => return Err(Failure::Refused("the member does not renew the lease".to_owned())),
        }
    }
}
