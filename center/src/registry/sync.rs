//! Long polls: what differs from what an agent has, at once or when it changes.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use model::center::{Stamp, Sync};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Registry, catalog::json, check, watchers::Topic};
use crate::{auth::Actor, error::Error};

/// Longest wait.
const LONGEST: Duration = Duration::from_secs(60);
/// Changes within this time are told together.
const GATHER: Duration = Duration::from_millis(20);

/// An answer in pieces that many answers share.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    pub stamp: Stamp,
    pub services: Vec<Bytes>,
    pub texts: Vec<Bytes>,
}

impl Pieces {
    fn is_empty(&self) -> bool {
        self.services.is_empty() && self.texts.is_empty()
    }

    /// A [`model::center::SyncAnswer`] as JSON.
    pub fn encode(&self) -> Bytes {
        let all = self.services.iter().chain(&self.texts);
        let mut out = BytesMut::with_capacity(128 + all.map(|piece| piece.len() + 1).sum::<usize>());
        let list = |out: &mut BytesMut, pieces: &[Bytes]| {
            for (at, piece) in pieces.iter().enumerate() {
                if at > 0 {
                    out.extend_from_slice(b",");
                }
                out.extend_from_slice(piece);
            }
        };
        out.extend_from_slice(b"{\"stamp\":");
        out.extend_from_slice(&json(&self.stamp));
        out.extend_from_slice(b",\"services\":[");
        list(&mut out, &self.services);
        out.extend_from_slice(b"],\"commands\":[");
        list(&mut out, &self.texts);
        out.extend_from_slice(b"]}");
        out.freeze()
    }
}

impl Registry {
    /// What differs from what the agent has: at once, else when something changes or its time is over.
    ///
    /// # Errors
    /// It may not speak for that name, asks too often, or follows what has no name.
    pub(super) async fn sync(&self, actor: &Actor, asked: Sync) -> Result<Pieces, Error> {
        check::sync(&asked, &self.config)?;
        actor.may_speak_for(&asked.agent)?;
        self.leases.admit(&asked.agent, 1.0)?;
        self.note_ahead(&asked);
        let _polling = self.leases.poll(&asked.agent, asked.seen)?;
        let lists = asked.services.iter().map(|watched| Topic::list(&watched.key));
        let texts = asked.commands.iter().map(|watched| Topic::Text(watched.scope.clone()));
        // Before the first look, so that no change falls between.
        let watcher = self.watchers.join(lists.chain(texts).collect());
        let wait = Duration::from_millis(asked.wait_ms).min(LONGEST);
        let end = Instant::now() + wait;
        loop {
            let found = self.differs(&asked);
            if !found.is_empty() || wait.is_zero() || self.watchers.is_closed() {
                return Ok(found);
            }
            tokio::select! {
                () = watcher.changed() => sleep(GATHER).await,
                () = sleep_until(end) => return Ok(self.differs(&asked)),
            }
        }
    }

    fn differs(&self, asked: &Sync) -> Pieces {
        let mut found = Pieces::default();
        for watched in &asked.services {
            let view = self.catalog.view(&watched.key);
            if view.snapshot.revision != watched.revision {
                found.services.push(view.encoded.clone());
            }
        }
        for watched in &asked.commands {
            match self.catalog.text(&watched.scope) {
                Some(text) if text.revision != watched.revision => found.texts.push(text.encoded.clone()),
                None if watched.revision != 0 => {
                    let none = model::center::TextOf { scope: watched.scope.clone(), revision: 0, text: None };
                    found.texts.push(json(&none));
                }
                _ => {}
            }
        }
        // Last: never below what was just read.
        found.stamp = self.store.stamp();
        found
    }

    /// An agent that took more than this centre has: told once for each agent, in the log and to operators.
    fn note_ahead(&self, asked: &Sync) {
        let own = self.store.stamp();
        if own.follows(asked.seen) {
            return;
        }
        let mut ahead = self.ahead.lock();
        let worse = ahead.as_ref().is_none_or(|(_, known)| !known.follows(asked.seen));
        if worse {
            tracing::warn!(
                agent = asked.agent,
                epoch = asked.seen.epoch,
                revision = asked.seen.revision,
                own_epoch = own.epoch,
                own_revision = own.revision,
                "an agent took more than this centre has, and refuses its lists: it lost data or was restored; \
                 `sockmesh-center restore FILE --force` makes agents follow"
            );
            *ahead = Some((asked.agent.clone(), asked.seen));
        }
    }

    /// The agent that was furthest ahead, as long as it is.
    pub(super) fn ahead(&self) -> Option<(String, Stamp)> {
        let mut ahead = self.ahead.lock();
        if ahead.as_ref().is_some_and(|(_, seen)| self.store.stamp().follows(*seen)) {
            *ahead = None;
        }
        ahead.clone()
    }

    /// Those who wait now.
    pub(super) fn watching(&self) -> usize {
        Arc::as_ref(&self.watchers).count()
    }
}
