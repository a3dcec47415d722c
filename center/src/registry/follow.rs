//! Reading what is kept, following what other centres write, and losing agents that are silent.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Weak},
    time::Duration,
};

use anyhow::Context as _;
use parking_lot::Mutex;
use registries::fetch::percent;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    Registry,
    leases::Due,
    record::{self, AgentRecord, Place, Record},
};
use crate::store::{Batch, Changes, Entry, StoreError};

/// Entries read at a time.
const PAGE: usize = 2_000;
/// How often silence is looked for.
const SWEEP: Duration = Duration::from_millis(500);
/// A look that comes later than this was late because the process stood still.
const LATE: Duration = Duration::from_secs(2);
/// How often a centre on a shared store says that it lives.
const ALIVE: Duration = Duration::from_secs(5);
/// Revisions for which keys that went are remembered.
const LATE_REVISIONS: u64 = 100_000;

/// Other centres on the same store, and when they said last that they live.
type Centers = Arc<Mutex<HashMap<String, Instant>>>;

/// Reads everything and starts what goes on.
pub(super) async fn load(registry: &Arc<Registry>) -> anyhow::Result<()> {
    // Before the first look: what changes meanwhile is heard afterwards.
    let changes = registry.store.changes();
    let centers = Centers::default();
    let started = Instant::now();
    read_all(registry, &centers).await?;
    let counts = registry.catalog.counts();
    let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(services = counts.services, instances = counts.instances, took_ms, "registrations are read");
    let is_shared = changes.is_some();
    if let Some(changes) = changes {
        tokio::spawn(follow(Arc::downgrade(registry), changes, centers.clone()));
        tokio::spawn(live(Arc::downgrade(registry)));
    }
    tokio::spawn(sweep(Arc::downgrade(registry), is_shared, centers));
    Ok(())
}

async fn read_all(registry: &Registry, centers: &Centers) -> anyhow::Result<()> {
    let at = registry.store.stamp().revision;
    let mut found = HashSet::new();
    let instances = scan(registry, record::INSTANCES, |entry| {
        found.extend(Place::of_key(&entry.key));
        take(registry, &entry)
    });
    instances.await?;
    // On a second look: what went meanwhile.
    for place in registry.catalog.places() {
        if !found.contains(&place) {
            registry.hold(&place, at, None);
        }
    }
    scan(registry, record::TEXTS, |entry| take(registry, &entry)).await?;
    scan(registry, record::AGENTS, |entry| take(registry, &entry)).await?;
    let now = Instant::now();
    scan(registry, record::CENTERS, |entry| {
        centers.lock().extend(center_of(&entry.key).map(|name| (name, now)));
        Ok(())
    })
    .await?;
    for agent in registry.catalog.agents() {
        let lost = |place: &Place| {
            let held = registry.catalog.get(place);
            held.is_none_or(|held| held.record.registered.as_ref().is_none_or(|r| r.lost))
        };
        let all_lost = registry.catalog.of_agent(&agent).iter().all(lost);
        registry.leases.orphan(&agent, all_lost);
    }
    Ok(())
}

async fn scan(
    registry: &Registry,
    prefix: &str,
    mut each: impl FnMut(Entry) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut after: Option<String> = None;
    loop {
        let page = registry.store.scan(prefix, after.as_deref(), PAGE).await.with_context(|| format!("`{prefix}`"))?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.key.clone());
        let is_last = page.len() < PAGE;
        for entry in page {
            each(entry)?;
        }
        if is_last {
            return Ok(());
        }
    }
}

/// One entry of the store, if it is one of the registry's.
fn take(registry: &Registry, entry: &Entry) -> anyhow::Result<()> {
    let key = &entry.key;
    if key.starts_with(record::INSTANCES) {
        let place = Place::of_key(key).with_context(|| format!("`{key}` names no instance"))?;
        let record: Record = serde_json::from_slice(&entry.value).with_context(|| key.clone())?;
        registry.hold(&place, entry.revision, Some(record));
    } else if let Some(scope) = record::text_scope(key) {
        registry.hold_text(&scope, entry);
    } else if let Some(name) = agent_of(key) {
        let record: AgentRecord = serde_json::from_slice(&entry.value).with_context(|| key.clone())?;
        registry.leases.stored(&name, entry.revision, Some(record));
    }
    Ok(())
}

fn agent_of(key: &str) -> Option<String> {
    record::unescaped(key.strip_prefix(record::AGENTS)?)
}

fn center_of(key: &str) -> Option<String> {
    record::unescaped(key.strip_prefix(record::CENTERS)?)
}

/// Takes in what other centres write.
async fn follow(registry: Weak<Registry>, mut changes: broadcast::Receiver<Arc<Changes>>, centers: Centers) {
    loop {
        let heard = changes.recv().await;
        let Some(registry) = registry.upgrade() else { return };
        match heard {
            Ok(changes) => {
                for entry in &changes.put {
                    centers.lock().extend(center_of(&entry.key).map(|name| (name, Instant::now())));
                    if let Err(error) = take(&registry, entry) {
                        tracing::warn!(error = format!("{error:#}"), "what another centre wrote cannot be read");
                    }
                }
                for key in &changes.delete {
                    let revision = changes.stamp.revision;
                    if let Some(place) = Place::of_key(key) {
                        registry.hold(&place, revision, None);
                    } else if let Some(name) = agent_of(key) {
                        registry.leases.stored(&name, revision, None);
                    }
                }
            }
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "changes of other centres were missed: everything is read again");
                if let Err(error) = read_all(&registry, &centers).await {
                    tracing::error!(error = format!("{error:#}"), "registrations cannot be read again");
                }
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// Tells other centres that this one lives.
async fn live(registry: Weak<Registry>) {
    let mut tick = interval(ALIVE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(registry) = registry.upgrade() else { return };
        let key = format!("{}{}", record::CENTERS, percent(&registry.config.center, ":"));
        let put = vec![(key, b"{}".to_vec())];
        if let Err(error) = registry.store.commit(Batch { put, ..Batch::default() }).await {
            tracing::debug!(%error, "cannot say that this centre lives");
        }
    }
}

/// Loses agents that are silent, and forgets those that are lost for long.
async fn sweep(registry: Weak<Registry>, is_shared: bool, centers: Centers) {
    let mut tick = interval(SWEEP);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    loop {
        tick.tick().await;
        let Some(registry) = registry.upgrade() else { return };
        let late = last.elapsed().saturating_sub(SWEEP);
        if late > LATE {
            tracing::warn!(?late, "this centre stood still: agents have that much longer to be heard");
            registry.leases.extend(late);
        }
        let leads = registry.store.leadership().borrow().leads;
        let since = |agent: &AgentRecord, heard: Instant| {
            if !is_shared || agent.center == registry.config.center {
                return Some(heard);
            }
            // The leader counts for centres that are gone, from the moment when they were heard last.
            let center = centers.lock().get(&agent.center).copied();
            (leads && center.is_none_or(|at| at.elapsed() > 3 * ALIVE)).then(|| center.unwrap_or(heard))
        };
        let registered = |agent: &str| registry.catalog.count_of_agent(agent) > 0;
        let (mut lost, mut over) = (Vec::new(), Vec::new());
        for due in registry.leases.due(registry.config.forget, registered, since) {
            match due {
                Due::Lose(agent) => lost.push(agent),
                Due::Forget(agent) => over.push(agent),
            }
        }
        if let Err(error) = clear(&registry, &lost, &over).await {
            tracing::warn!(%error, "agents are silent, and that cannot be written: lists stay as they are");
        }
        registry.catalog.forget_gone(registry.store.stamp().revision.saturating_sub(LATE_REVISIONS));
        // Writing may have taken its time, which is no standing still.
        last = Instant::now();
    }
}

async fn clear(registry: &Registry, lost: &[String], over: &[String]) -> Result<(), StoreError> {
    registry.lose(lost).await?;
    for agent in over {
        registry.forget(agent).await?;
    }
    Ok(())
}
