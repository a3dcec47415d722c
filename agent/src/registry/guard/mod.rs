//! Never without endpoints: what a registry says is remembered, and a list that is suddenly empty or much
//! shorter is not believed at once.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use model::{Instance, ServiceKey, Snapshot};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use super::{CommandText, Registry, Scope, snapshot::Store};
use crate::config::HoldBack;

type List = watch::Receiver<Arc<Snapshot>>;
type Text = watch::Receiver<Arc<CommandText>>;

/// Guards around all lists of all registries. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Guards(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    store: Option<Arc<Store>>,
    rules: HoldBack,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    last: u64,
    entries: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    registry: String,
    service: ServiceKey,
    held: Option<Holding>,
    confirm: Arc<Notify>,
}

/// A list that is held back, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Name of the registry.
    pub registry: String,
    /// Service and group.
    pub service: ServiceKey,
    /// What of it is held.
    pub holding: Holding,
}

/// What of a list is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Endpoints that the registry lists.
    pub listed: usize,
    /// Endpoints that it lists no more and that are kept.
    pub kept: usize,
    /// Since when.
    pub since: Instant,
    /// When the registry is believed if it still says so; `None`: only when the operator says so.
    pub until: Option<Instant>,
}

impl Guards {
    /// Guards with these rules; lists are kept in `store`, if there is one.
    pub fn new(store: Option<Arc<Store>>, rules: HoldBack) -> Self {
        Self(Arc::new(Inner { store, rules, book: Mutex::default() }))
    }

    /// [`Registry::watch`] with a guard around it. Until the registry answers, the list of its snapshot file is
    /// served, if there is one; reading it blocks on the disk.
    pub fn watch(&self, name: &str, registry: &Arc<dyn Registry>, service: &ServiceKey) -> List {
        let source = registry.watch(service);
        if !registry.may_err() {
            return source;
        }
        let recalled = self.0.store.as_ref().and_then(|store| store.recall(name, service));
        let confirm = Arc::new(Notify::new());
        let number = {
            let mut book = self.0.book.lock();
            book.last += 1;
            let number = book.last;
            let entry =
                Entry { registry: name.to_owned(), service: service.clone(), held: None, confirm: confirm.clone() };
            book.entries.insert(number, entry);
            number
        };
        let (tell, list) = watch::channel(Arc::new(Snapshot::default()));
        let mut guard = Guard {
            place: Place { guards: self.clone(), number },
            name: name.to_owned(),
            service: service.clone(),
            source,
            tell,
            confirm,
            belief: Belief {
                age: recalled.as_ref().map(|r| r.age),
                base: recalled.map(|r| r.list).unwrap_or_default(),
                seen: 0,
                held_since: None,
            },
        };
        guard.take(Trust::AsRuled);
        tokio::spawn(guard.stand());
        list
    }

    /// [`Registry::commands`], remembered: until the registry answers, the text of its snapshot file holds, if
    /// there is one; reading it blocks on the disk.
    pub fn commands(&self, name: &str, registry: &Arc<dyn Registry>, scope: &Scope) -> Option<Text> {
        let source = registry.commands(scope)?;
        let Some(store) = self.0.store.clone() else { return Some(source) };
        let said = source.borrow().clone();
        let (tell, text) = watch::channel(heard(&store, name, scope, &said));
        tokio::spawn(keep_commands(store, (name.to_owned(), scope.clone()), source, tell));
        Some(text)
    }

    /// Lists that are held back now.
    pub fn held(&self) -> Vec<Held> {
        let book = self.0.book.lock();
        let held = book.entries.values().filter_map(|entry| {
            let holding = entry.held?;
            Some(Held { registry: entry.registry.clone(), service: entry.service.clone(), holding })
        });
        let mut seen = HashSet::new();
        // A service whose protocol is detected is watched once for each protocol.
        held.filter(|held| seen.insert((held.registry.clone(), held.service.clone()))).collect()
    }

    /// The operator's word that lists of `service` are right as the registries say them; how many were held.
    pub fn confirm(&self, service: &str) -> usize {
        let book = self.0.book.lock();
        let held = book.entries.values().filter(|e| e.held.is_some() && e.service.service == service);
        held.map(|entry| entry.confirm.notify_one()).count()
    }

    /// The snapshot files, if any are kept.
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.0.store.as_ref()
    }
}

/// Takes the entry out of the book when the guard goes.
struct Place {
    guards: Guards,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.guards.0.book.lock().entries.remove(&self.number);
    }
}

struct Guard {
    place: Place,
    name: String,
    service: ServiceKey,
    source: List,
    tell: watch::Sender<Arc<Snapshot>>,
    confirm: Arc<Notify>,
    belief: Belief,
}

/// Whose word counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    AsRuled,
    /// The operator says that the registry is right.
    Confirmed,
}

impl Guard {
    async fn stand(mut self) {
        loop {
            let until = self.place.guards.0.book.lock().entries.get(&self.place.number).and_then(|e| e.held?.until);
            tokio::select! {
                () = self.tell.closed() => return,
                result = self.source.changed() => {
                    self.take(Trust::AsRuled);
                    if result.is_err() {
                        // What the registry said last is final, but a held list can still be confirmed.
                        break;
                    }
                }
                () = self.confirm.notified() => self.take(Trust::Confirmed),
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => self.take(Trust::AsRuled),
            }
        }
        loop {
            tokio::select! {
                () = self.tell.closed() => return,
                () = self.confirm.notified() => self.take(Trust::Confirmed),
            }
        }
    }

    fn take(&mut self, trust: Trust) {
        let said = self.source.borrow_and_update().clone();
        let rules = &self.place.guards.0.rules;
        let before = self.belief.held_since.is_some();
        let (next, holding, believed) = self.belief.hear(&said, rules, trust, Instant::now());
        if believed && let Some(store) = &self.place.guards.0.store {
            store.put(&self.name, &self.service, &self.belief.base);
        }
        if holding.is_some() != before {
            let (service, registry) = (&self.service, &self.name);
            match holding {
                Some(Holding { listed, kept, .. }) => {
                    tracing::warn!(%service, registry, listed, kept, "a list of endpoints is held back: it lost too many");
                }
                None => tracing::info!(%service, registry, "a list of endpoints is held back no more"),
            }
        }
        if let Some(entry) = self.place.guards.0.book.lock().entries.get_mut(&self.place.number) {
            entry.held = holding;
        }
        self.tell.send_if_modified(|current| {
            let first = current.revision == 0 && next.revision > 0;
            let changed = first || next.instances != current.instances || next.stale != current.stale;
            // Also when nothing changed: one list in memory is enough.
            *current = next;
            changed
        });
    }
}

/// What is believed of a list. Lists are shared with whoever said them: they can be long.
struct Belief {
    base: Arc<Snapshot>,
    /// `base` is from a file of this age, and the registry was not heard of since.
    age: Option<Duration>,
    /// Revision heard last.
    seen: u64,
    held_since: Option<Instant>,
}

impl Belief {
    /// What to serve after the registry said `said`, what of it is held back, and whether `base` is new.
    fn hear(
        &mut self,
        said: &Arc<Snapshot>,
        rules: &HoldBack,
        trust: Trust,
        now: Instant,
    ) -> (Arc<Snapshot>, Option<Holding>, bool) {
        if said.revision == 0 {
            let Some(age) = self.age else { return (said.clone(), None, false) };
            let why = said.stale.clone().unwrap_or_else(|| "the registry has not answered yet".to_owned());
            return (self.kept(format!("{why}; endpoints of a snapshot file, {} s old", age.as_secs())), None, false);
        }
        if said.revision < self.seen {
            let why = format!("the registry went back from revision {} to {}: not followed", self.seen, said.revision);
            return (self.kept(why), None, false);
        }
        self.seen = said.revision;
        let (listed, before) = (said.instances.len(), self.base.instances.len());
        let after = match listed {
            0 if before > 0 => Some(rules.empty_after),
            _ if listed * 100 < before * (100 - rules.shrunk_percent as usize) => Some(rules.shrunk_after),
            _ => None,
        };
        if let Some(after) = after.filter(|_| trust == Trust::AsRuled) {
            let since = *self.held_since.get_or_insert(now);
            // Not while the registry is away: it must be heard to say it a second time.
            let again = if said.stale.is_some() { now.max(since) + after } else { since + after };
            let until = (!after.is_zero()).then_some(again);
            if until.is_none_or(|until| now < until) {
                return self.hold(said, since, until, now);
            }
        }
        let believed = self.base.instances != said.instances || self.age.is_some();
        self.base = said.clone();
        self.age = None;
        self.held_since = None;
        (said.clone(), None, believed)
    }

    fn kept(&self, why: String) -> Arc<Snapshot> {
        Arc::new(Snapshot { revision: self.seen.max(1), instances: self.base.instances.clone(), stale: Some(why) })
    }

    fn hold(
        &self,
        said: &Snapshot,
        since: Instant,
        until: Option<Instant>,
        now: Instant,
    ) -> (Arc<Snapshot>, Option<Holding>, bool) {
        let id = |i: &Instance| (i.address.clone(), i.group.clone());
        let named: HashSet<_> = said.instances.iter().map(id).collect();
        let mut next = said.clone();
        next.instances.extend(self.base.instances.iter().filter(|i| !named.contains(&id(i))).cloned());
        let (listed, kept) = (said.instances.len(), next.instances.len() - said.instances.len());
        let when = match until {
            // Of the moment at which it is said; the list is not told anew each second.
            Some(until) if now == since => format!("believed in {} s, or", until.duration_since(now).as_secs()),
            Some(_) => "believed when the registry says it again, or".to_owned(),
            None => "until".to_owned(),
        };
        let held = format!(
            "held back: the registry lists {listed} of {} endpoints, {kept} are kept; {when} `sockmesh confirm SERVICE`",
            self.base.instances.len()
        );
        next.stale = Some(said.stale.as_ref().map_or(held.clone(), |why| format!("{why}; {held}")));
        (Arc::new(next), Some(Holding { listed, kept, since, until }), false)
    }
}

/// Commands of a registry that may be away: until it answers, those of a snapshot file hold, if there is one.
async fn keep_commands(
    store: Arc<Store>,
    (name, scope): (String, Scope),
    mut source: Text,
    tell: watch::Sender<Arc<CommandText>>,
) {
    loop {
        tokio::select! {
            () = tell.closed() => return,
            result = source.changed() => if result.is_err() { break },
        }
        let said = source.borrow_and_update().clone();
        tell.send_replace(heard(&store, &name, &scope, &said));
    }
    tell.closed().await;
}

fn heard(store: &Store, name: &str, scope: &Scope, said: &Arc<CommandText>) -> Arc<CommandText> {
    if said.revision > 0 {
        if said.stale.is_none() {
            store.put_commands(name, scope, said.text.as_deref());
        }
        return said.clone();
    }
    let Some(text) = store.recall_commands(name, scope) else { return said.clone() };
    let why = said.stale.clone().unwrap_or_else(|| "the registry has not answered yet".to_owned());
    Arc::new(CommandText { revision: 1, text: Some(text), stale: Some(format!("{why}; commands of a snapshot file")) })
}

#[cfg(test)]
mod tests;
