//! Keeping what this agent provides in the registry.

use std::sync::Arc;

use tokio::{sync::watch, time::sleep};

use super::{
    Etcd,
    conn::{Conn, Failure},
    link::{Lease, Link},
    paths,
    wire::{Compare, DeleteRequest, Event, Op, PutRequest, RequestOp, Target, TxnRequest, TxnResponse, Union},
};
use crate::{
    Provided, Standing, Wanted,
    keep::{connection, goal, not_held},
    pause::Pause,
    url::Url,
};

struct Holder {
    /// Its key when it is available, and when it is not.
    server: String,
    unavailable: String,
    text: String,
    /// Lease under which it was written last; 0: never.
    lease: i64,
}

/// Why a round of holding ended.
enum End {
    /// It is taken back.
    Gone,
    /// Another connection, lease or goal.
    Again,
}

/// Holds `provided` as `wanted` says, until it is gone.
pub(super) async fn hold(
    registry: Arc<Etcd>,
    provided: Provided,
    mut wanted: watch::Receiver<Wanted>,
    standing: watch::Sender<Standing>,
    mut link: watch::Receiver<Link>,
    mut lease: watch::Receiver<Lease>,
) {
    let key = |kind| {
        let folder = paths::folder(&registry.options.prefix, &provided.key, kind);
        format!("{folder}{}", provided.instance.address)
    };
    let mut holder = Holder {
        server: key(paths::SERVER),
        unavailable: key(paths::UNAVAILABLE),
        text: Url::of(&provided).plain(),
        lease: 0,
    };
    let mut pause = Pause::default();
    loop {
        let told = holder.lease != 0;
        let Some(conn) = connection(&mut link, told, &mut wanted, &standing).await else { return };
        let now = lease.borrow_and_update().clone();
        if now.id == 0 {
            if !now.why.is_empty() {
                not_held(&standing, &now.why);
            }
            tokio::select! {
                changed = lease.changed() => if changed.is_err() { return },
                _ = wanted.changed() => {}
                _ = conn.ended() => {}
            }
            if now.id == 0 && goal(&mut wanted) == Wanted::Gone {
                // Its lease is over, and what was written under it.
                standing.send_replace(Standing::Gone);
                return;
            }
            continue;
        }
        let goal = goal(&mut wanted);
        match holder.round(&conn, now.id, goal, &standing, &mut wanted, &mut lease).await {
            Ok(End::Gone) => return,
            Ok(End::Again) => pause.reset(),
            Err(Failure::Lost | Failure::Compacted) => {}
            Err(failure) => {
                not_held(&standing, &format!("{}: {}: {failure}", conn.server, holder.server));
                tokio::select! {
                    () = sleep(pause.next()) => {}
                    _ = wanted.changed() => {}
                    _ = conn.ended() => {}
                }
            }
        }
    }
}

impl Holder {
    /// Writes it, and looks after it until something changes.
    async fn round(
        &mut self,
        conn: &Arc<Conn>,
        lease: i64,
        goal: Wanted,
        standing: &watch::Sender<Standing>,
        wanted: &mut watch::Receiver<Wanted>,
        leases: &mut watch::Receiver<Lease>,
    ) -> Result<End, Failure> {
        let (put, delete) = match goal {
            Wanted::Available => (&self.server, &self.unavailable),
            Wanted::Unavailable => (&self.unavailable, &self.server),
            Wanted::Gone => {
                for key in [&self.server, &self.unavailable] {
                    // What somebody else has put there is his.
                    txn(conn, vec![under(key, self.lease)], vec![deleted(key)]).await?;
                }
                standing.send_replace(Standing::Gone);
                return Ok(End::Gone);
            }
        };
        // Written in one step, whatever a former run of this agent has left there.
        let value = PutRequest { key: put.clone().into_bytes(), value: self.text.clone().into_bytes(), lease };
        let written = RequestOp { request: Some(Op::Put(value)) };
        let revision = txn(conn, Vec::new(), vec![written, deleted(delete)]).await?;
        self.lease = lease;
        standing.send_replace(if goal == Wanted::Available { Standing::Available } else { Standing::Unavailable });
        let mut watching = conn.watch(put.as_bytes(), &[], revision + 1).await?;
        let mut taken = false;
        loop {
            tokio::select! {
                events = watching.next() => match events {
                    Some(events) => match events.iter().filter_map(|event| fate(event, lease)).next_back() {
                        // Deleted: by a hand, or with the lease of whoever had taken it over.
                        Some(Fate::Deleted) => return Ok(End::Again),
                        Some(Fate::Taken(by)) => {
                            taken = true;
                            not_held(standing, &format!("{put}: written by another one, under lease {by:x}"));
                        }
                        None => {}
                    },
                    // Compacted or lost: what is there has to be looked at again, unless it is another's.
                    None if taken => {
                        conn.ended().await;
                        return Err(Failure::Lost);
                    }
                    None => return Ok(End::Again),
                },
                _ = wanted.changed() => return Ok(End::Again),
                changed = leases.changed() => {
                    if changed.is_err() || leases.borrow().id != lease {
                        return Ok(End::Again);
                    }
                }
                _ = conn.ended() => return Err(Failure::Lost),
            }
        }
    }
}

enum Fate {
    Deleted,
    Taken(i64),
}

fn fate(event: &Event, lease: i64) -> Option<Fate> {
    let kv = event.kv.as_ref()?;
    match event.kind {
        0 if kv.lease == lease => None,
        0 => Some(Fate::Taken(kv.lease)),
        _ => Some(Fate::Deleted),
    }
}

fn deleted(key: &str) -> RequestOp {
    RequestOp { request: Some(Op::Delete(DeleteRequest { key: key.as_bytes().to_vec() })) }
}

/// The condition that a key was written under `lease`.
fn under(key: &str, lease: i64) -> Compare {
    let union = Some(Union::Lease(lease));
    Compare { result: 0, target: Target::Lease as i32, key: key.as_bytes().to_vec(), union }
}

/// Runs a transaction; returns the revision it made, or the cluster's if its condition did not hold.
async fn txn(conn: &Conn, compare: Vec<Compare>, success: Vec<RequestOp>) -> Result<i64, Failure> {
    let answer: TxnResponse = conn.ask("/etcdserverpb.KV/Txn", TxnRequest { compare, success }).await?;
    Ok(answer.header.map_or(0, |header| header.revision))
}
