//! etcd as a store: ranges, transactions, changes, leases. What the governance centre keeps its data with.

use std::{path::Path, sync::Arc, time::Duration};

use futures_util::stream;
use tokio::{sync::watch, task::JoinHandle, time::timeout};

pub use super::access::Written as Access;
use super::{
    Options,
    access::Access as Reached,
    conn::{Conn, Failure, Watching},
    link::{self, Link},
    wire::{
        Compare, DeleteRequest, KeyValue, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest,
        LeaseKeepAliveResponse, LeaseRevokeRequest, LeaseRevokeResponse, Op, PutRequest, RangeRequest, RangeResponse,
        RequestOp, Target, TxnRequest, TxnResponse, Union, end_of,
    },
};
use crate::{
    link::connected,
    servers::{OneOrMore, servers},
};

/// How long a request waits for a connection.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// No member can be reached; nothing was asked.
    Unreachable(String),
    /// The connection was lost, or an answer did not come: a change may have been made all the same.
    Lost(String),
    /// A member said no; nothing was changed.
    Refused(String),
    /// That part of the history is gone.
    Compacted,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable(why) | Self::Lost(why) | Self::Refused(why) => f.write_str(why),
            Self::Compacted => f.write_str("that part of the history was compacted"),
        }
    }
}

/// A key as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Key.
    pub key: Vec<u8>,
    /// Value; empty where it was not asked for.
    pub value: Vec<u8>,
    /// Revision of its last change.
    pub revision: i64,
}

impl From<KeyValue> for Pair {
    fn from(kv: KeyValue) -> Self {
        Self { key: kv.key.to_vec(), value: kv.value.to_vec(), revision: kv.mod_revision }
    }
}

/// Keys at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// In their order.
    pub pairs: Vec<Pair>,
    /// Revision of the whole store when it was asked.
    pub revision: i64,
    /// There are more than were asked for.
    pub more: bool,
}

/// Which keys are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub from: Vec<u8>,
    /// The first that is not; empty: only `from`.
    pub end: Vec<u8>,
    /// At most so many; 0: all.
    pub limit: i64,
    /// As they were then; 0: now.
    pub revision: i64,
    /// Without values.
    pub keys_only: bool,
    /// Only those that changed then or later.
    pub changed_since: i64,
}

impl Range {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: &[u8]) -> Self {
        Self { from: prefix.to_vec(), end: end_of(prefix), ..Self::default() }
    }
}

/// A part of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Writes a key.
    Put {
        /// Key.
        key: Vec<u8>,
        /// Value.
        value: Vec<u8>,
        /// Lease whose end deletes it; 0 for none.
        lease: i64,
    },
    /// Deletes a key, if it is there.
    Delete {
        /// Key.
        key: Vec<u8>,
    },
}

/// A change that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The key with its new value; of one that went only key and revision.
    pub pair: Pair,
    /// It went.
    pub deleted: bool,
}

/// Changes of a range, in their order. Ends with the connection.
pub struct Changes(Watching);

impl Changes {
    /// The next ones; those of one revision come together. `None`: something was missed, everything has to be read
    /// again.
    pub async fn next(&mut self) -> Option<Vec<Changed>> {
        let events = self.0.next().await?;
        let changed = |event: super::wire::Event| Changed {
            deleted: event.kind == 1,
            pair: event.kv.map_or_else(|| Pair { key: Vec::new(), value: Vec::new(), revision: 0 }, Pair::from),
        };
        Some(events.into_iter().map(changed).collect())
    }
}

/// A connection to one of the members, kept whatever happens to them. Its work ends on drop.
pub struct Client {
    link: watch::Receiver<Link>,
    keeper: JoinHandle<()>,
    members: String,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Client {
    /// Of the members at `address` (`HOST:PORT`, commas separate), reached as `access` says, whose files are relative
    /// to the working directory. One that is silent for two thirds of `silence` is given up. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// An address is none, or a file cannot be read.
    pub fn new(address: &[String], access: Access, silence: Duration) -> anyhow::Result<Self> {
        let servers = servers(Some(OneOrMore::More(address.to_vec())), super::PORT)?;
        let access = Reached::read(access, Path::new(""))?;
        let members = servers.join(", ");
        let (sender, link) = watch::channel(Link::default());
        let options = Arc::new(Options { servers, access, prefix: String::new(), lease: silence });
        Ok(Self { link, keeper: tokio::spawn(link::keep(options, sender)), members })
    }

    /// The members, for messages.
    pub fn members(&self) -> &str {
        &self.members
    }

    async fn conn(&self) -> Result<Arc<Conn>, Error> {
        let (mut link, mut why) = (self.link.clone(), String::new());
        let found = timeout(PATIENCE, connected(&mut link, |now| now.clone_into(&mut why))).await;
        match found {
            Ok(Some(conn)) => Ok(conn),
            _ if why.is_empty() => Err(Error::Unreachable(format!("{} do not answer", self.members))),
            _ => Err(Error::Unreachable(why)),
        }
    }

    /// Reads.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn range(&self, range: Range) -> Result<Found, Error> {
        let request = RangeRequest {
            key: range.from,
            range_end: range.end,
            limit: range.limit,
            revision: range.revision,
            keys_only: range.keys_only,
            min_mod_revision: range.changed_since,
        };
        let mut tries = 0;
        let answer: RangeResponse = loop {
            match self.conn().await?.ask("/etcdserverpb.KV/Range", request.clone()).await {
                // Reading twice does no harm.
                Err(Failure::Lost) if tries < 2 => tries += 1,
                answer => break answer.map_err(|failure| self.error(failure))?,
            }
        };
        let revision = answer.header.map_or(0, |header| header.revision);
        Ok(Found { pairs: answer.kvs.into_iter().map(Pair::from).collect(), revision, more: answer.more })
    }

    /// Makes all `steps` if every key of `expected` was last changed at that revision (0: does not exist). Answers the
    /// revision, or `None` when one was not and nothing was changed.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn transact(&self, expected: Vec<(Vec<u8>, i64)>, steps: Vec<Step>) -> Result<Option<i64>, Error> {
        let compare = |(key, revision)| Compare {
            result: 0,
            target: Target::Mod as i32,
            key,
            union: Some(Union::ModRevision(revision)),
        };
        let step = |step| {
            let op = match step {
                Step::Put { key, value, lease } => Op::Put(PutRequest { key, value, lease }),
                Step::Delete { key } => Op::Delete(DeleteRequest { key }),
            };
            RequestOp { request: Some(op) }
        };
        let request = TxnRequest {
            compare: expected.into_iter().map(compare).collect(),
            success: steps.into_iter().map(step).collect(),
        };
        let answer = self.conn().await?.ask("/etcdserverpb.KV/Txn", request).await;
        let answer: TxnResponse = answer.map_err(|failure| self.error(failure))?;
        Ok(answer.succeeded.then(|| answer.header.map_or(0, |header| header.revision)))
    }

    /// Changes of a range from `revision` on.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn changes(&self, range: &Range, revision: i64) -> Result<Changes, Error> {
        let watching = self.conn().await?.watch(&range.from, &range.end, revision).await;
        watching.map(Changes).map_err(|failure| self.error(failure))
    }

    /// A lease; its number.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn grant(&self, length: Duration) -> Result<i64, Error> {
        let ttl = i64::try_from(length.as_millis().div_ceil(1000)).unwrap_or(i64::MAX).max(1);
        let answer = self.conn().await?.ask("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest { ttl }).await;
        let answer: LeaseGrantResponse = answer.map_err(|failure| self.error(failure))?;
        Ok(answer.id)
    }

    /// Renews a lease; whether it still was one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn renew(&self, lease: i64) -> Result<bool, Error> {
        let conn = self.conn().await?;
        let requests = stream::iter([LeaseKeepAliveRequest { id: lease }]);
        let renewing = async {
            let path = "/etcdserverpb.Lease/LeaseKeepAlive";
            let mut answers = conn.stream::<_, LeaseKeepAliveResponse>(path, requests).await?;
            answers.message().await.map_err(Failure::from)
        };
        match timeout(PATIENCE, renewing).await {
            Ok(Ok(answer)) => Ok(answer.is_some_and(|answer| answer.ttl > 0)),
            Ok(Err(failure)) => Err(self.error(failure)),
            Err(_) => Err(Error::Lost(format!("{} do not renew the lease", self.members))),
        }
    }

    /// Ends a lease with its keys.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn revoke(&self, lease: i64) -> Result<(), Error> {
        let answer = self.conn().await?.ask("/etcdserverpb.Lease/LeaseRevoke", LeaseRevokeRequest { id: lease }).await;
        answer.map(|LeaseRevokeResponse {}| ()).map_err(|failure| self.error(failure))
    }

    fn error(&self, failure: Failure) -> Error {
        match failure {
            Failure::Lost => Error::Lost(format!("the connection to {} was lost", self.members)),
            Failure::Compacted => Error::Compacted,
            // An answer that did not come in time, and a member that is just going.
            Failure::Refused(why)
                if why.starts_with("no answer within") || why.contains("timed out") || why.contains("transport") =>
            {
                Error::Lost(why)
            }
            Failure::Refused(why) => Error::Refused(why),
        }
    }
}
