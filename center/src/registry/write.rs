//! What agents and operators say, written and then made to hold.
//!
//! Every change is a batch that expects of each key the revision that is known here, so that nothing needs a lock over
//! a write: who comes second finds a conflict, reads anew and looks again. The work runs in a task of its own: a
//! caller that goes away must not leave memory behind the store.

use std::collections::HashSet;

use model::{
    center::{CommandScope, Registration, Registrations, RegistrationsAnswer, Role},
    value,
};

use super::{
    Registry,
    catalog::json,
    check,
    record::{self, AgentRecord, Mark, Place, Record, Registered},
    watchers::Topic,
};
use crate::{
    auth::Actor,
    clock,
    error::{Code, Error},
    store::{Batch, StoreError},
};

/// Changes in one batch: a shared store takes no more than 128 operations at once.
const BATCH: usize = 60;
/// How often a change is tried anew that others got ahead of.
const ATTEMPTS: usize = 8;
/// Longest command text, as agents read them.
const TEXT_BYTES: usize = 1 << 20;
/// Command texts at most.
const TEXTS: usize = 20_000;

/// One change of an instance.
pub(super) struct Step {
    place: Place,
    /// Revision that is replaced; 0: it is new.
    expected: u64,
    /// None: it goes.
    record: Option<Record>,
}

/// What is said of an instance by somebody else than its agent, as it is put on record.
pub(super) struct Word<'a> {
    /// Who says it.
    pub actor: &'a Actor,
    /// Its kind, as `instance.out`.
    pub what: &'static str,
    pub detail: serde_json::Value,
    /// See [`Batch::fenced`]: for what only the centre that leads says.
    pub fenced: Option<u64>,
}

impl Registry {
    /// Takes what an agent says of everything it provides. Durable when it is answered.
    ///
    /// # Errors
    /// It may not speak for that name, says an older generation, asks too often, or the store does not take it.
    pub async fn register(&self, actor: &Actor, mut wanted: Registrations) -> Result<RegistrationsAnswer, Error> {
        check::name("agent", &wanted.agent)?;
        actor.may_speak_for(&wanted.agent)?;
        check::ttl(&wanted.agent, wanted.ttl_ms)?;
        let (count, most) = (wanted.registrations.len(), self.config.per_agent);
        if count > most {
            return Err(Error::bad(
                format!("agent `{}` registers {count} services", wanted.agent),
                format!("register at most {most} (`registry.per_agent` of the centre's file)"),
            ));
        }
        if wanted.generation == 0 {
            return Err(Error::bad(
                format!("agent `{}` says generation 0", wanted.agent),
                "begin with 1, better with the time of day",
            ));
        }
        self.leases.admit(&wanted.agent, 10.0)?;
        let writing = self.leases.begin(&wanted.agent, wanted.generation)?;
        let refused = checked(actor, &mut wanted.registrations);
        let me = self.arc();
        let work = async move {
            let _writing = writing;
            me.write_registrations(wanted, refused).await
        };
        tokio::spawn(work).await.map_err(|_| Error::internal("registering failed", "look at the centre's log"))?
    }

    async fn write_registrations(
        &self,
        wanted: Registrations,
        early: Vec<(String, String)>,
    ) -> Result<RegistrationsAnswer, Error> {
        for _ in 0..ATTEMPTS {
            let (steps, mut refused) = self.plan(&wanted);
            let record = AgentRecord {
                generation: wanted.generation,
                ttl_ms: wanted.ttl_ms,
                center: self.config.center.clone(),
            };
            let agent = (self.leases.record(&wanted.agent) != record).then_some((wanted.agent.as_str(), &record));
            match self.write_steps(steps, agent, None).await {
                Ok(revision) => {
                    self.leases.registered(&wanted.agent, revision, record);
                    refused.splice(0..0, early);
                    return Ok(RegistrationsAnswer { stamp: self.store.stamp(), refused });
                }
                Err(StoreError::Conflict { key }) => self.reread(&key).await?,
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::conflict(
            format!("registrations of agent `{}` are changed by others all the time", wanted.agent),
            "repeat in a moment",
        ))
    }

    /// What must change so that this agent's registrations are those wanted, and what cannot be.
    fn plan(&self, wanted: &Registrations) -> (Vec<Step>, Vec<(String, String)>) {
        let (mut steps, mut refused, mut said) = (Vec::new(), Vec::new(), HashSet::new());
        let mut counts = self.catalog.counts();
        let mut fresh = HashSet::new();
        for registration in &wanted.registrations {
            let place = Place::new(&registration.key, &registration.instance.address);
            let name = format!("{}@{}", registration.key, registration.instance.address);
            let mut refuse = |why: String| refused.push((name.clone(), why));
            if said.contains(&place) {
                refuse("it is said twice; say each address of a service and group once".to_owned());
                continue;
            }
            let held = self.catalog.get(&place);
            let known = held.as_ref().and_then(|held| held.record.registered.as_ref());
            let own = known.filter(|known| known.agent == wanted.agent);
            if let Some(other) = known.filter(|known| known.agent != wanted.agent && !known.lost) {
                refuse(format!(
                    "agent `{}` has registered it and lives; end that agent, or wait until it is lost",
                    other.agent
                ));
                continue;
            }
            if held.is_none() {
                let service = &place.service;
                let new = !self.catalog.has_service(service) && !fresh.contains(service);
                if counts.instances >= self.config.instances || (new && counts.services >= self.config.services) {
                    refuse(format!(
                        "this centre holds {} instances of {} services; raise `registry.instances` or \
                         `registry.services` of its file",
                        counts.instances, counts.services
                    ));
                    continue;
                }
                counts.instances += 1;
                if new {
                    counts.services += 1;
                    fresh.insert(service.clone());
                }
            }
            let registered = Registered {
                agent: wanted.agent.clone(),
                since_ms: own.filter(|own| !own.lost).map_or_else(clock::now_ms, |own| own.since_ms),
                lost: false,
                said: registration.clone(),
            };
            let mark = held.as_ref().map(|held| held.record.mark.clone()).unwrap_or_default();
            let record = Record { registered: Some(registered), mark };
            said.insert(place.clone());
            if held.as_ref().is_none_or(|held| held.record != record) {
                let expected = held.map_or(0, |held| held.revision);
                steps.push(Step { place, expected, record: Some(record) });
            }
        }
        let past = self.catalog.of_agent(&wanted.agent);
        steps.extend(past.into_iter().filter(|place| !said.contains(place)).filter_map(|place| self.taken(place)));
        (steps, refused)
    }

    /// Takes a registration back; the operators' word stays.
    fn taken(&self, place: Place) -> Option<Step> {
        let held = self.catalog.get(&place)?;
        let mark = held.record.mark.clone();
        let record = (!mark.is_none()).then_some(Record { registered: None, mark });
        Some(Step { place, expected: held.revision, record })
    }

    /// Writes changes, and an agent's record last; answers the revision of the last batch, which holds here too by
    /// then. On an error those before it hold.
    async fn write_steps(
        &self,
        steps: Vec<Step>,
        agent: Option<(&str, &AgentRecord)>,
        fenced: Option<u64>,
    ) -> Result<u64, StoreError> {
        let mut revision = 0;
        let mut rest = steps.into_iter().peekable();
        while rest.peek().is_some() || (revision == 0 && agent.is_some()) {
            let chunk: Vec<_> = rest.by_ref().take(BATCH).collect();
            let mut batch = Batch { fenced, ..Batch::default() };
            for step in &chunk {
                let key = step.place.key();
                batch.expect.push((key.clone(), step.expected));
                match &step.record {
                    Some(record) => batch.put.push((key, json(record).into())),
                    None => batch.delete.push(key),
                }
            }
            if rest.peek().is_none()
                && let Some((name, record)) = agent
            {
                batch.put.push((record::agent_key(name), json(record).into()));
            }
            let first = batch.expect.first().map(|(key, _)| key.clone());
            let stamp = match self.store.commit(batch).await {
                Ok(stamp) => stamp,
                Err(error) => {
                    if let (StoreError::Failed(_), Some(key)) = (&error, first) {
                        // Whether it holds is not known; what is read tells.
                        let _ = self.reread(&key).await;
                    }
                    return Err(error);
                }
            };
            revision = stamp.revision;
            for step in chunk {
                self.hold(&step.place, revision, step.record);
            }
        }
        Ok(revision)
    }

    /// What the store says of an instance holds from now on.
    pub(super) fn hold(&self, place: &Place, revision: u64, record: Option<Record>) {
        if self.catalog.put(place, revision, record) {
            self.watchers.list_changed(&place.service, &place.group);
        }
        self.tell(revision);
    }

    fn tell(&self, revision: u64) {
        self.changed.send_if_modified(|known| {
            let newer = revision > *known;
            *known = revision.max(*known);
            newer
        });
    }

    /// Reads one key of instances or texts anew.
    async fn reread(&self, key: &str) -> Result<(), StoreError> {
        let at = self.store.stamp().revision;
        let found = self.store.scan(key, None, 1).await?.into_iter().find(|entry| entry.key == key);
        if let Some(scope) = record::text_scope(key) {
            if let Some(entry) = found {
                self.hold_text(&scope, &entry);
            }
            return Ok(());
        }
        let Some(place) = Place::of_key(key) else { return Ok(()) };
        match found {
            Some(entry) => {
                // What cannot be read was told when it was loaded.
                if let Ok(record) = serde_json::from_slice(&entry.value) {
                    self.hold(&place, entry.revision, Some(record));
                }
            }
            None => self.hold(&place, at, None),
        }
        Ok(())
    }

    /// What the store says of a text holds from now on.
    pub(super) fn hold_text(&self, scope: &CommandScope, entry: &crate::store::Entry) {
        let Ok(record) = serde_json::from_slice::<record::TextRecord>(&entry.value) else { return };
        if self.catalog.put_text(scope, entry.revision, record.text) {
            self.watchers.changed([Topic::Text(scope.clone())]);
        }
    }

    /// A heartbeat reached this centre first: it hears the agent from now on.
    pub(super) async fn take_over(&self, agent: String, record: AgentRecord) -> Result<(), Error> {
        let me = self.arc();
        let work = async move {
            let put = vec![(record::agent_key(&agent), json(&record).into())];
            let stamp = me.store.commit(Batch { put, ..Batch::default() }).await?;
            me.leases.registered(&agent, stamp.revision, record);
            Ok::<_, StoreError>(())
        };
        let done = tokio::spawn(work).await;
        done.map_err(|_| Error::internal("taking an agent over failed", "look at the centre's log"))?
            .map_err(Error::from)
    }

    /// Instances of agents that are silent are lost.
    pub(super) async fn lose(&self, agents: &[String]) -> Result<(), StoreError> {
        let of = |agent: &String, place: Place| {
            let held = self.catalog.get(&place)?;
            let mut record = held.record.clone();
            let registered = record.registered.as_mut().filter(|known| known.agent == *agent && !known.lost)?;
            registered.lost = true;
            Some(Step { place, expected: held.revision, record: Some(record) })
        };
        let mut steps = Vec::new();
        for agent in agents {
            let before = steps.len();
            steps.extend(self.catalog.of_agent(agent).into_iter().filter_map(|place| of(agent, place)));
            let instances = steps.len() - before;
            if instances > 0 {
                tracing::warn!(agent, instances, "no heartbeat: its instances are taken out of the lists");
            }
        }
        self.write_or_reread(steps).await
    }

    /// [`Registry::write_steps`]; after a conflict the next look begins with what is there.
    async fn write_or_reread(&self, steps: Vec<Step>) -> Result<(), StoreError> {
        match self.write_steps(steps, None, None).await {
            Err(StoreError::Conflict { key }) => self.reread(&key).await,
            done => done.map(drop),
        }
    }

    /// What a lost agent registered is kept no more.
    pub(super) async fn forget(&self, agent: &str) -> Result<(), StoreError> {
        let steps: Vec<_> = self.catalog.of_agent(agent).into_iter().filter_map(|place| self.taken(place)).collect();
        tracing::info!(agent, instances = steps.len(), "lost for long: forgotten");
        self.write_or_reread(steps).await?;
        if self.catalog.count_of_agent(agent) > 0 {
            return Ok(());
        }
        self.store.commit(Batch { delete: vec![record::agent_key(agent)], ..Batch::default() }).await?;
        self.leases.forget(agent);
        Ok(())
    }

    /// Changes what is said of an instance, beside what it says itself.
    pub(super) async fn mark(
        &self,
        word: Word<'_>,
        place: Place,
        change: impl Fn(&mut Mark) + Send + 'static,
    ) -> Result<(), Error> {
        let Word { actor, what, detail, fenced } = word;
        let target = place.to_string();
        let missing =
            || Error::not_found(format!("no instance `{target}`"), "look at the service's page for those there are");
        actor.may(Role::Operator, &place.group)?;
        self.catalog.get(&place).ok_or_else(missing)?;
        // Before it is done: what cannot be recorded is not done.
        self.audit.record(actor, what, &target, "ok", detail.clone()).await?;
        let (me, by, at) = (self.arc(), actor.name.clone(), place.clone());
        let work = async move {
            for _ in 0..ATTEMPTS {
                let held = me.catalog.get(&at).ok_or(Code::NotFound)?;
                let mut record = held.record.clone();
                change(&mut record.mark);
                (record.mark.by, record.mark.at_ms) = (by.clone(), clock::now_ms());
                if record.mark.is_none() {
                    record.mark = Mark::default();
                }
                let record = (record.registered.is_some() || !record.mark.is_none()).then_some(record);
                let step = Step { place: at.clone(), expected: held.revision, record };
                match me.write_steps(vec![step], None, fenced).await {
                    Ok(_) => return Ok(Ok(())),
                    Err(StoreError::Conflict { key }) => {
                        if let Err(error) = me.reread(&key).await {
                            return Ok(Err(error.into()));
                        }
                    }
                    Err(error) => return Ok(Err(Error::from(error))),
                }
            }
            Err(Code::Conflict)
        };
        let done = match tokio::spawn(work).await {
            Ok(Ok(done)) => done,
            Ok(Err(Code::NotFound)) => Err(missing()),
            Ok(Err(_)) => Err(Error::conflict(format!("`{target}` changes all the time"), "repeat in a moment")),
            Err(_) => Err(Error::internal("changing an instance failed", "look at the centre's log")),
        };
        if let Err(error) = &done {
            self.audit.record(actor, what, &target, &error.to_string(), detail).await?;
        }
        done
    }

    /// Replaces the command text of a scope if it still stands at `expected`, durably, and tells agents that watch it.
    /// Answers the new revision. `fenced` is that of [`Batch`]: the epoch, where only the centre
    /// that leads may write it.
    ///
    /// # Errors
    /// [`Code::Conflict`] when it does not stand there.
    pub async fn set_text(
        &self,
        scope: &CommandScope,
        expected: u64,
        text: Option<String>,
        fenced: Option<u64>,
    ) -> Result<u64, Error> {
        let (CommandScope::Group(name) | CommandScope::Agent(name)) = scope;
        check::optional("scope", name)?;
        if let Some(long) = text.as_ref().map(String::len).filter(|bytes| *bytes > TEXT_BYTES) {
            return Err(Error::bad(
                format!("a command text of {long} bytes"),
                format!("write at most {TEXT_BYTES}; take commands back that are over"),
            ));
        }
        let known = self.catalog.text(scope).map_or(0, |text| text.revision);
        let conflict = |stands: u64| {
            Error::conflict(
                format!("the commands of {scope:?} stand at revision {stands} and not at {expected}"),
                "somebody else changed them: look again and repeat",
            )
        };
        if known != expected {
            return Err(conflict(known));
        }
        if known == 0 && self.catalog.texts() >= TEXTS {
            return Err(Error::new(
                Code::TooMany,
                format!("{TEXTS} groups and agents have commands already"),
                "take away those of groups that are no more",
            ));
        }
        let (me, scope) = (self.arc(), scope.clone());
        let key = record::text_key(&scope);
        let work = async move {
            let value = json(&record::TextRecord { text }).to_vec();
            let expect = vec![(key.clone(), expected)];
            let batch = Batch { expect, put: vec![(key.clone(), value.clone())], fenced, ..Batch::default() };
            let done = me.store.commit(batch).await;
            match &done {
                Ok(stamp) => {
                    me.hold_text(&scope, &crate::store::Entry { key, value, revision: stamp.revision });
                }
                Err(_) => me.reread(&key).await?,
            }
            done
        };
        let done = tokio::spawn(work).await;
        match done.map_err(|_| Error::internal("writing a command text failed", "look at the centre's log"))? {
            Ok(stamp) => Ok(stamp.revision),
            Err(StoreError::Conflict { .. }) => Err(conflict(0)),
            Err(error) => Err(error.into()),
        }
    }
}

/// Leaves those that can be what they say, addresses in their usual form; and why the others cannot.
fn checked(actor: &Actor, registrations: &mut Vec<Registration>) -> Vec<(String, String)> {
    let mut refused = Vec::new();
    registrations.retain_mut(|said| {
        match check::registration(said).and_then(|()| actor.may_register(&said.key.service)) {
            Ok(()) => {
                if let Ok(address) = value::endpoint_address(&said.instance.address) {
                    said.instance.address = address.to_string();
                }
                true
            }
            Err(error) => {
                let shown = format!("{}@{}", said.key, said.instance.address);
                let shown = shown.chars().filter(|c| !c.is_control()).take(400).collect();
                refused.push((shown, error.to_string()));
                false
            }
        }
    });
    refused
}
