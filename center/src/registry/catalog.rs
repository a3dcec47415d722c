//! Everything registered, in memory, and lists ready to be sent.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use model::{
    Instance, ServiceKey, Snapshot,
    center::{CommandScope, TextOf},
};
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::record::{Place, Record, State};

/// Ready lists that are kept at most; more are made again when they are asked for.
const VIEWS: usize = 50_000;

/// All instances and command texts.
#[derive(Default)]
pub(super) struct Catalog {
    inner: RwLock<Inner>,
    views: Mutex<HashMap<ServiceKey, Arc<View>>>,
}

#[derive(Default)]
struct Inner {
    /// Counts changes of lists within this process.
    change: u64,
    instances: usize,
    services: BTreeMap<String, Service>,
    texts: BTreeMap<CommandScope, Arc<Text>>,
    /// What each agent registered.
    agents: HashMap<String, HashSet<Place>>,
    /// Revisions of keys that went, on a store that others write too: what is heard late must not bring them back.
    gone: HashMap<Place, u64>,
}

#[derive(Default)]
struct Service {
    /// [`Inner::change`] that touched it last.
    changed: u64,
    groups: BTreeMap<String, Group>,
}

#[derive(Default)]
struct Group {
    changed: u64,
    instances: BTreeMap<String, Arc<Held>>,
}

/// An instance.
#[derive(Debug)]
pub(super) struct Held {
    pub record: Record,
    /// Revision of the store that wrote it.
    pub revision: u64,
    pub state: State,
    /// As callers are told.
    pub instance: Instance,
}

/// A command text.
#[derive(Debug)]
pub(super) struct Text {
    pub revision: u64,
    pub text: Option<String>,
    /// A [`TextOf`] as JSON.
    pub encoded: Bytes,
}

/// A list as it is sent.
#[derive(Debug)]
pub(super) struct View {
    changed: u64,
    pub snapshot: Arc<Snapshot>,
    /// A [`model::center::Listed`] as JSON.
    pub encoded: Bytes,
}

/// Counts for operators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub services: usize,
    pub instances: usize,
}

/// A service in a group, for pages.
#[derive(Debug)]
pub(super) struct Row {
    pub service: String,
    pub group: String,
    pub instances: Vec<Arc<Held>>,
}

impl Catalog {
    /// Puts an instance, or takes it away, if this is newer than what is known. True when callers are told something
    /// else now.
    pub fn put(&self, place: &Place, revision: u64, record: Option<Record>) -> bool {
        // What is sent is made before the lock.
        let next = record.map(|record| {
            let (state, instance) = (record.state(), record.instance(place));
            Arc::new(Held { record, revision, state, instance })
        });
        self.inner.write().put(place, revision, next)
    }

    /// One instance.
    pub fn get(&self, place: &Place) -> Option<Arc<Held>> {
        let inner = self.inner.read();
        inner.services.get(&place.service)?.groups.get(&place.group)?.instances.get(&place.address).cloned()
    }

    /// What an agent registered.
    pub fn of_agent(&self, agent: &str) -> Vec<Place> {
        self.inner.read().agents.get(agent).map(|places| places.iter().cloned().collect()).unwrap_or_default()
    }

    /// How much an agent registered.
    pub fn count_of_agent(&self, agent: &str) -> usize {
        self.inner.read().agents.get(agent).map_or(0, HashSet::len)
    }

    /// Whether anything that an agent registered is lost.
    pub fn has_lost(&self, agent: &str) -> bool {
        let inner = self.inner.read();
        let lost = |place: &Place| {
            let group = inner.services.get(&place.service).and_then(|s| s.groups.get(&place.group));
            group.and_then(|g| g.instances.get(&place.address)).is_some_and(|held| held.state == State::Lost)
        };
        inner.agents.get(agent).is_some_and(|places| places.iter().any(lost))
    }

    /// Agents that registered anything.
    pub fn agents(&self) -> Vec<String> {
        self.inner.read().agents.keys().cloned().collect()
    }

    /// Every place, for a new look at a store that changed unseen.
    pub fn places(&self) -> Vec<Place> {
        let inner = self.inner.read();
        let all = inner.services.iter().flat_map(|(service, s)| {
            s.groups.iter().flat_map(move |(group, g)| {
                g.instances.keys().map(move |address| Place {
                    service: service.clone(),
                    group: group.clone(),
                    address: address.clone(),
                })
            })
        });
        all.collect()
    }

    pub fn counts(&self) -> Counts {
        let inner = self.inner.read();
        Counts { services: inner.services.len(), instances: inner.instances }
    }

    pub fn has_service(&self, service: &str) -> bool {
        self.inner.read().services.contains_key(service)
    }

    /// Every service in every group, sorted.
    pub fn keys(&self) -> Vec<ServiceKey> {
        let inner = self.inner.read();
        let key = |service: &String, group: &String| ServiceKey {
            service: service.clone(),
            group: group.clone(),
            version: String::new(),
        };
        inner.services.iter().flat_map(|(s, of)| of.groups.keys().map(move |g| key(s, g))).collect()
    }

    /// Groups of a service.
    pub fn groups(&self, service: &str) -> Vec<String> {
        let inner = self.inner.read();
        inner.services.get(service).map(|s| s.groups.keys().cloned().collect()).unwrap_or_default()
    }

    /// Services in groups after `after` that `wanted` takes, at most `limit`; and how many it takes in all.
    pub fn page(
        &self,
        after: Option<(&str, &str)>,
        limit: usize,
        wanted: impl Fn(&str, &str) -> bool,
    ) -> (Vec<Row>, usize) {
        let inner = self.inner.read();
        let (mut rows, mut total) = (Vec::new(), 0);
        for (service, of) in &inner.services {
            for (group, held) in of.groups.iter().filter(|(group, _)| wanted(service, group)) {
                total += 1;
                if rows.len() < limit && after.is_none_or(|after| (service.as_str(), group.as_str()) > after) {
                    let instances = held.instances.values().cloned().collect();
                    rows.push(Row { service: service.clone(), group: group.clone(), instances });
                }
            }
        }
        (rows, total)
    }

    /// All instances of `key` with their groups; an empty group means all groups.
    pub fn instances(&self, key: &ServiceKey) -> Vec<(String, Arc<Held>)> {
        let inner = self.inner.read();
        let Some(service) = inner.services.get(&key.service) else { return Vec::new() };
        let groups = service.groups.iter().filter(|(group, _)| key.group.is_empty() || **group == key.group);
        let of = |group: &String, g: &Group| {
            g.instances.values().map(|held| (group.clone(), held.clone())).collect::<Vec<_>>()
        };
        groups.flat_map(|(group, g)| of(group, g)).collect()
    }

    /// The list that callers of `key` are sent.
    pub fn view(&self, key: &ServiceKey) -> Arc<View> {
        let (changed, all) = {
            let inner = self.inner.read();
            let service = inner.services.get(&key.service);
            let changed = service.map_or(0, |s| match key.group.as_str() {
                "" => s.changed,
                group => s.groups.get(group).map_or(0, |g| g.changed),
            });
            if let Some(view) = self.views.lock().get(key).filter(|view| view.changed == changed) {
                return view.clone();
            }
            let mut all = Vec::new();
            for (group, g) in service.iter().flat_map(|s| &s.groups) {
                if key.group.is_empty() || *group == key.group {
                    all.extend(g.instances.values().filter(|held| held.state.is_listed()).cloned());
                }
            }
            (changed, all)
        };
        let view = Arc::new(View::new(key, changed, &all));
        if changed > 0 {
            let mut views = self.views.lock();
            if views.len() >= VIEWS && !views.contains_key(key) {
                views.clear();
            }
            views.insert(key.clone(), view.clone());
        }
        view
    }

    /// The text of a scope; none when there never was one.
    pub fn text(&self, scope: &CommandScope) -> Option<Arc<Text>> {
        self.inner.read().texts.get(scope).cloned()
    }

    /// How many texts there are or were.
    pub fn texts(&self) -> usize {
        self.inner.read().texts.len()
    }

    /// Texts that there are.
    pub fn all_texts(&self) -> Vec<TextOf> {
        let inner = self.inner.read();
        let present = inner.texts.iter().filter(|(_, text)| text.text.is_some());
        let of = |(scope, text): (&CommandScope, &Arc<Text>)| TextOf {
            scope: scope.clone(),
            revision: text.revision,
            text: text.text.clone(),
        };
        present.map(of).collect()
    }

    /// Puts a text if it is newer than what is known; true when it is.
    pub fn put_text(&self, scope: &CommandScope, revision: u64, text: Option<String>) -> bool {
        let of = TextOf { scope: scope.clone(), revision, text };
        let encoded = json(&of);
        let mut inner = self.inner.write();
        if inner.texts.get(scope).is_some_and(|known| known.revision >= revision) {
            return false;
        }
        inner.texts.insert(of.scope, Arc::new(Text { revision, text: of.text, encoded }));
        true
    }

    /// Forgets which keys went before `revision`.
    pub fn forget_gone(&self, revision: u64) {
        self.inner.write().gone.retain(|_, at| *at >= revision);
    }
}

impl Inner {
    fn put(&mut self, place: &Place, revision: u64, next: Option<Arc<Held>>) -> bool {
        if self.gone.get(place).is_some_and(|gone| *gone >= revision) {
            return false;
        }
        let known = self
            .services
            .get(&place.service)
            .and_then(|s| s.groups.get(&place.group))
            .and_then(|g| g.instances.get(&place.address));
        if known.is_some_and(|known| known.revision >= revision) {
            return false;
        }
        let differs = listed(known) != listed(next.as_ref());
        if known.is_none() && next.is_none() {
            self.gone.insert(place.clone(), revision);
            return false;
        }
        let agent = |held: Option<&Arc<Held>>| held.and_then(|h| h.record.registered.as_ref().map(|r| r.agent.clone()));
        let (before, after) = (agent(known), agent(next.as_ref()));
        let (had, has) = (known.is_some(), next.is_some());
        self.change += 1;
        let change = self.change;
        self.owned(place, before, after);
        let service = self.services.entry(place.service.clone()).or_default();
        let group = service.groups.entry(place.group.clone()).or_default();
        match next {
            Some(held) => {
                self.gone.remove(place);
                group.instances.insert(place.address.clone(), held);
            }
            None => {
                self.gone.insert(place.clone(), revision);
                group.instances.remove(&place.address);
            }
        }
        // Not 0, which is what is not there.
        if differs || group.changed == 0 {
            group.changed = change;
            service.changed = change;
        }
        if group.instances.is_empty() {
            service.groups.remove(&place.group);
        }
        if service.groups.is_empty() {
            self.services.remove(&place.service);
        }
        self.instances = (self.instances + usize::from(has)).saturating_sub(usize::from(had));
        differs
    }

    /// Notes that a place is another agent's now.
    fn owned(&mut self, place: &Place, before: Option<String>, after: Option<String>) {
        if before == after {
            return;
        }
        if let Some(before) = before
            && let Some(places) = self.agents.get_mut(&before)
        {
            places.remove(place);
            if places.is_empty() {
                self.agents.remove(&before);
            }
        }
        if let Some(after) = after {
            self.agents.entry(after).or_default().insert(place.clone());
        }
    }
}

/// What callers are told of an instance, if anything.
fn listed(held: Option<&Arc<Held>>) -> Option<&Instance> {
    held.filter(|held| held.state.is_listed()).map(|held| &held.instance)
}

impl View {
    fn new(key: &ServiceKey, changed: u64, all: &[Arc<Held>]) -> Self {
        // One of each address and group is there, so that this only chooses by version.
        let fits = |i: &&Instance| key.version.is_empty() || i.version.is_empty() || key.version == i.version;
        let instances: Vec<Instance> = all.iter().map(|held| &held.instance).filter(fits).cloned().collect();
        let list = json(&instances);
        let revision = content_revision(&list);
        let mut encoded = Vec::with_capacity(list.len() + 160);
        encoded.extend_from_slice(b"{\"key\":");
        encoded.extend_from_slice(&json(key));
        encoded.extend_from_slice(format!(",\"snapshot\":{{\"revision\":{revision},\"instances\":").as_bytes());
        encoded.extend_from_slice(&list);
        encoded.extend_from_slice(b"}}");
        let snapshot = Arc::new(Snapshot { revision, instances, stale: None });
        Self { changed, snapshot, encoded: encoded.into() }
    }
}

/// Names a list by what is in it, so that no restart, no second centre and no deletion can make two lists look the
/// same. 53 bits, which every reader of JSON keeps exactly; never 0.
fn content_revision(list: &[u8]) -> u64 {
    let sum = Sha256::digest(list);
    let mut first = [0; 8];
    first.copy_from_slice(&sum[..8]);
    (u64::from_be_bytes(first) >> 11).max(1)
}

/// JSON of what always has one.
pub(super) fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("texts, numbers and maps of texts always serialize").into()
}

#[cfg(test)]
mod tests {
    use model::center::{Listed, Registration};

    use super::*;
    use crate::registry::record::{Mark, Registered};

    fn place(group: &str, port: u16) -> Place {
        Place { service: "s".into(), group: group.into(), address: format!("127.0.0.1:{port}") }
    }

    fn record(place: &Place, version: &str) -> Record {
        let key = ServiceKey { service: "s".into(), group: place.group.clone(), version: version.into() };
        let said = Registration {
            key,
            protocol: "motan2".into(),
            instance: Instance::at(place.address.clone()),
            application: String::new(),
            parameters: BTreeMap::new(),
            available: true,
        };
        let registered = Registered { agent: "a".into(), since_ms: 0, lost: false, said };
        Record { registered: Some(registered), mark: Mark::default() }
    }

    fn key(group: &str, version: &str) -> ServiceKey {
        ServiceKey { service: "s".into(), group: group.into(), version: version.into() }
    }

    fn listed(catalog: &Catalog, group: &str, version: &str) -> String {
        let view = catalog.view(&key(group, version));
        let sent: Listed = serde_json::from_slice(&view.encoded).unwrap();
        assert_eq!((&sent.key, &sent.snapshot), (&key(group, version), view.snapshot.as_ref()));
        let ports = sent.snapshot.instances.iter().map(|i| i.address.rsplit_once(':').unwrap().1.to_owned());
        ports.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn lists_are_made_once_and_named_by_their_contents() {
        let catalog = Catalog::default();
        let empty = catalog.view(&key("a", "")).snapshot.revision;
        assert!(empty > 0, "an empty list is a list");
        let (one, two, other) = (place("a", 1), place("a", 2), place("b", 1));
        assert!(catalog.put(&one, 1, Some(record(&one, "1"))));
        assert!(catalog.put(&two, 2, Some(record(&two, "2"))));
        assert!(catalog.put(&other, 3, Some(record(&other, ""))));
        assert_eq!((listed(&catalog, "a", ""), listed(&catalog, "", "")), ("1 2".into(), "1 2 1".into()));
        assert_eq!((listed(&catalog, "a", "2"), listed(&catalog, "", "2")), ("2".into(), "2 1".into()));
        let first = catalog.view(&key("a", ""));
        assert!(Arc::ptr_eq(&first, &catalog.view(&key("a", ""))), "made once");
        assert!(catalog.put(&other, 4, None));
        assert!(Arc::ptr_eq(&first, &catalog.view(&key("a", ""))), "another group's change is none of its own");
        assert!(catalog.put(&two, 5, None));
        assert_ne!(catalog.view(&key("a", "")).snapshot.revision, first.snapshot.revision);
        assert!(catalog.put(&two, 6, Some(record(&two, "2"))));
        assert_eq!(catalog.view(&key("a", "")).snapshot.revision, first.snapshot.revision, "as it was");
        assert!(catalog.put(&two, 7, None) && catalog.put(&one, 8, None));
        assert_eq!(catalog.view(&key("a", "")).snapshot.revision, empty);
        assert_eq!((catalog.counts(), catalog.keys().len()), (Counts::default(), 0));
    }

    #[test]
    fn what_is_heard_late_changes_nothing() {
        let catalog = Catalog::default();
        let one = place("a", 1);
        assert!(catalog.put(&one, 5, Some(record(&one, ""))));
        assert!(!catalog.put(&one, 4, None) && !catalog.put(&one, 5, Some(record(&one, "9"))));
        assert!(catalog.put(&one, 6, None));
        assert!(!catalog.put(&one, 5, Some(record(&one, ""))), "it went since");
        assert!(catalog.put(&one, 7, Some(record(&one, ""))));
        let (scope, of) = (CommandScope::Group("a".into()), |text: &str| Some(text.to_owned()));
        assert!(catalog.put_text(&scope, 9, of("x")) && !catalog.put_text(&scope, 8, of("y")));
        assert_eq!(catalog.text(&scope).unwrap().text, of("x"));
        assert_eq!(catalog.counts(), Counts { services: 1, instances: 1 });
    }

    #[test]
    fn what_callers_do_not_see_wakes_nobody() {
        let catalog = Catalog::default();
        let one = place("a", 1);
        let mut out = record(&one, "");
        out.mark.out = Some("broken".into());
        assert!(!catalog.put(&one, 1, Some(out.clone())), "it never was in a list");
        assert_eq!((listed(&catalog, "a", ""), catalog.instances(&key("", "")).len()), (String::new(), 1));
        out.mark.out = None;
        assert!(catalog.put(&one, 2, Some(out.clone())));
        if let Some(registered) = &mut out.registered {
            registered.since_ms = 7;
        }
        assert!(!catalog.put(&one, 3, Some(out)));
        assert_eq!(catalog.page(None, 10, |_, _| true).1, 1);
        assert_eq!(catalog.page(Some(("s", "a")), 10, |_, _| true).0.len(), 0);
    }
}
