//! One long poll for all lists and command texts that the agent follows.

use std::{collections::HashMap, hash::Hash, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use http::Method;
use model::{
    ServiceKey, Snapshot,
    center::{CommandScope, Stamp, Sync, SyncAnswer, Watched, WatchedText},
};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use super::{
    link::{Link, PATIENCE, Said},
    stamps::Stamps,
};
use crate::{CommandText, pause::Pause, publish};

/// How long a poll may wait at the centre. Longer spares questions, but a centre that hangs is noticed that much later.
const WAIT: Duration = Duration::from_secs(20);
/// What is followed anew within this time is asked for together.
const GATHER: Duration = Duration::from_millis(10);

/// Everything that is followed.
pub(super) struct Follows {
    agent: String,
    link: Arc<Link>,
    stamps: Arc<Stamps>,
    table: Mutex<Table>,
    /// What is followed has changed.
    nudge: Notify,
}

#[derive(Default)]
struct Table {
    last: u64,
    lists: HashMap<ServiceKey, Channel<Snapshot>>,
    texts: HashMap<CommandScope, Channel<CommandText>>,
    is_polling: bool,
}

struct Channel<T> {
    number: u64,
    to: watch::Sender<Arc<T>>,
    /// As the centre counts.
    revision: u64,
}

/// Followed until it is dropped.
pub(super) struct Place {
    follows: Arc<Follows>,
    what: What,
    number: u64,
}

enum What {
    List(ServiceKey),
    Text(CommandScope),
}

impl Drop for Place {
    fn drop(&mut self) {
        fn remove<K: Eq + Hash, T>(from: &mut HashMap<K, Channel<T>>, key: &K, number: u64) {
            // Someone else may follow it by now.
            if from.get(key).is_some_and(|channel| channel.number == number) {
                from.remove(key);
            }
        }
        let mut table = self.follows.table.lock();
        match &self.what {
            What::List(key) => remove(&mut table.lists, key, self.number),
            What::Text(scope) => remove(&mut table.texts, scope, self.number),
        }
        drop(table);
        self.follows.nudge.notify_one();
    }
}

impl Follows {
    /// Nothing yet.
    pub fn new(agent: String, link: Arc<Link>, stamps: Stamps) -> Self {
        Self { agent, link, stamps: Arc::new(stamps), table: Mutex::default(), nudge: Notify::new() }
    }

    /// Follows a list. Must be called within a tokio runtime.
    pub fn list(self: &Arc<Self>, key: ServiceKey, to: watch::Sender<Arc<Snapshot>>) -> Place {
        let mut table = self.table.lock();
        table.last += 1;
        let number = table.last;
        table.lists.insert(key.clone(), Channel { number, to, revision: 0 });
        self.begin(&mut table);
        Place { follows: self.clone(), what: What::List(key), number }
    }

    /// Follows a command text. Must be called within a tokio runtime.
    pub fn text(self: &Arc<Self>, scope: CommandScope, to: watch::Sender<Arc<CommandText>>) -> Place {
        let mut table = self.table.lock();
        table.last += 1;
        let number = table.last;
        table.texts.insert(scope.clone(), Channel { number, to, revision: 0 });
        self.begin(&mut table);
        Place { follows: self.clone(), what: What::Text(scope), number }
    }

    fn begin(self: &Arc<Self>, table: &mut Table) {
        self.nudge.notify_one();
        if !std::mem::replace(&mut table.is_polling, true) {
            tokio::spawn(self.clone().poll());
        }
    }

    async fn poll(self: Arc<Self>) {
        let mut pause = Pause::default();
        // Not to wait when something is amiss: what is well again shall be known at once.
        let mut is_well = false;
        loop {
            // What was nudged for is in what is asked for now.
            tokio::select! {
                biased;
                () = self.nudge.notified() => sleep(GATHER).await,
                () = std::future::ready(()) => {}
            }
            let wait = if is_well { WAIT } else { Duration::ZERO };
            let Some(asked) = self.asked(wait) else { return };
            let answer = tokio::select! {
                answer = self.ask(&asked) => answer,
                () = self.nudge.notified() => {
                    sleep(GATHER).await;
                    continue;
                }
            };
            match answer {
                Ok(answer) => {
                    pause.reset();
                    is_well = true;
                    self.take(answer).await;
                }
                Err(error) => {
                    is_well = false;
                    self.amiss(&format!("{error:#}"));
                    tokio::select! {
                        () = sleep(pause.next()) => {}
                        () = self.nudge.notified() => sleep(GATHER).await,
                    }
                }
            }
        }
    }

    /// What to ask for; `None` when nothing is followed any more: the poll ends then.
    fn asked(&self, wait: Duration) -> Option<Sync> {
        let mut table = self.table.lock();
        if table.lists.is_empty() && table.texts.is_empty() {
            table.is_polling = false;
            return None;
        }
        // Of a text that there never was nothing is said, and that is an answer, too.
        let is_unheard = table.texts.values().any(|channel| channel.to.borrow().revision == 0);
        let wait = if is_unheard { Duration::ZERO } else { wait };
        let services = table.lists.iter().map(|(key, at)| Watched { key: key.clone(), revision: at.revision });
        let texts = table.texts.iter().map(|(scope, at)| WatchedText { scope: scope.clone(), revision: at.revision });
        Some(Sync {
            agent: self.agent.clone(),
            seen: self.stamps.seen(),
            services: services.collect(),
            commands: texts.collect(),
            wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        })
    }

    async fn ask(&self, asked: &Sync) -> anyhow::Result<SyncAnswer> {
        let patience = Duration::from_millis(asked.wait_ms) + PATIENCE;
        let fits = |said: &Said| {
            #[derive(serde::Deserialize)]
            struct Head {
                stamp: Stamp,
            }
            // What is no success is told below.
            match serde_json::from_slice::<Head>(said.body()) {
                Ok(head) if said.is_success() => self.follows(head.stamp),
                _ => Ok(()),
            }
        };
        let said = self.link.ask_until(Method::POST, "/v1/agent/sync", asked, patience, fits).await?;
        let by = said.by.clone();
        serde_json::from_slice(&said.success()?).with_context(|| format!("{by}: no answer to a sync"))
    }

    fn follows(&self, stamp: Stamp) -> anyhow::Result<()> {
        let seen = self.stamps.seen();
        if stamp.follows(seen) {
            return Ok(());
        }
        bail!(
            "it is at epoch {} and revision {}, older than epoch {} and revision {} that were taken before: it lost \
             data or was restored, and is not followed; `sockmesh-center restore FILE --force` there makes agents \
             follow",
            stamp.epoch,
            stamp.revision,
            seen.epoch,
            seen.revision
        )
    }

    async fn take(&self, answer: SyncAnswer) {
        {
            let mut table = self.table.lock();
            let mut again = false;
            for listed in answer.services {
                let Some(channel) = table.lists.get_mut(&listed.key) else { continue };
                channel.revision = listed.snapshot.revision;
                let instances = crate::select(&listed.key, &listed.snapshot.instances);
                again |= publish::good(&channel.to, |list| list.instances = instances);
            }
            for said in answer.commands {
                let Some(channel) = table.texts.get_mut(&said.scope) else { continue };
                channel.revision = said.revision;
                let text = said.text.filter(|text| !text.trim().is_empty());
                again |= publish::good(&channel.to, |now| now.text = text);
            }
            // Those that are not named are as they were; of a text that there never was nothing is said.
            for channel in table.lists.values().filter(|channel| channel.revision > 0) {
                again |= heard(&channel.to);
            }
            for channel in table.texts.values() {
                again |= heard(&channel.to);
            }
            if again {
                tracing::info!("the centre answers again");
            }
        }
        let (stamps, stamp) = (self.stamps.clone(), answer.stamp);
        if stamps.seen() != stamp {
            let kept = tokio::task::spawn_blocking(move || stamps.take(stamp)).await;
            if let Ok(Err(error)) = kept {
                tracing::warn!(%error, "what was taken from the centre last cannot be written down");
            }
        }
    }

    /// No centre gave an answer that can be taken: everything stays as it was.
    fn amiss(&self, why: &str) {
        let table = self.table.lock();
        let mut first = false;
        for channel in table.lists.values() {
            first |= publish::stale(&channel.to, why);
        }
        for channel in table.texts.values() {
            first |= publish::stale(&channel.to, why);
        }
        if first {
            tracing::warn!(error = why, "the centre gives nothing, keeping what is known");
        }
    }
}

/// Nothing about it is new.
fn heard<T: publish::Told>(to: &watch::Sender<Arc<T>>) -> bool {
    let is_news = {
        let mut now = (**to.borrow()).clone();
        now.stale().is_some() || *now.revision() == 0
    };
    is_news && publish::good(to, |_| ())
}
