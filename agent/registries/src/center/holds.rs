//! Everything that the agent provides, told in one message and kept by one heartbeat.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use http::Method;
use model::center::{Heartbeat, HeartbeatAnswer, Registration, Registrations, RegistrationsAnswer};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use super::link::{Link, PATIENCE};
use crate::{Provided, Standing, Wanted, pause::Pause};

/// What changes within this time is told together.
const GATHER: Duration = Duration::from_millis(20);

/// All registrations of this agent at one centre.
pub(super) struct Holds {
    agent: String,
    ttl: Duration,
    link: Arc<Link>,
    table: Mutex<Table>,
    nudge: Notify,
}

#[derive(Default)]
struct Table {
    last: u64,
    held: BTreeMap<u64, Held>,
    /// Of what was told last; 0: nothing was.
    generation: u64,
    /// What the centre took last; `None` when it took nothing, or holds something else by now.
    taken: Option<Vec<Registration>>,
    /// The centre took this generation or one before it.
    was_taken: bool,
    /// Something is to be told.
    is_dirty: bool,
    is_keeping: bool,
}

struct Held {
    provided: Provided,
    want: Wanted,
    told: watch::Sender<Standing>,
}

/// What is told at one time.
struct Message {
    registrations: Registrations,
    /// Registrations by number and what was wanted of them.
    wanted: Vec<(u64, Wanted)>,
}

/// How telling went.
enum Told {
    Taken(RegistrationsAnswer),
    /// The centre has a higher generation.
    Old,
}

impl Holds {
    /// Nothing yet.
    pub fn new(agent: String, ttl: Duration, link: Arc<Link>) -> Self {
        Self { agent, ttl, link, table: Mutex::default(), nudge: Notify::new() }
    }

    /// Keeps a registration as `wanted` says; see [`crate::Registry::register`]. What nobody wants any more is taken
    /// back. Must be called within a tokio runtime.
    pub fn hold(
        self: &Arc<Self>,
        provided: Provided,
        mut wanted: watch::Receiver<Wanted>,
    ) -> watch::Receiver<Standing> {
        let (told, standing) = watch::channel(Standing::Pending(None));
        let want = *wanted.borrow_and_update();
        let number = {
            let mut table = self.table.lock();
            table.last += 1;
            let number = table.last;
            table.held.insert(number, Held { provided, want, told });
            table.is_dirty = true;
            if !std::mem::replace(&mut table.is_keeping, true) {
                tokio::spawn(self.clone().keep());
            }
            number
        };
        self.nudge.notify_one();
        let all = self.clone();
        tokio::spawn(async move {
            let mut now = want;
            while now != Wanted::Gone {
                now = match wanted.changed().await {
                    Ok(()) => *wanted.borrow_and_update(),
                    Err(_) => Wanted::Gone,
                };
                all.want(number, now);
            }
        });
        standing
    }

    fn want(&self, number: u64, want: Wanted) {
        let mut table = self.table.lock();
        let Some(held) = table.held.get_mut(&number) else { return };
        if held.want != want {
            held.want = want;
            table.is_dirty = true;
            drop(table);
            self.nudge.notify_one();
        }
    }

    async fn keep(self: Arc<Self>) {
        let mut pause = Pause::default();
        let mut is_failing = false;
        loop {
            if self.table.lock().is_dirty {
                sleep(GATHER).await;
            }
            let done = if self.table.lock().is_dirty { self.tell().await } else { self.beat().await };
            match done {
                Ok(()) => {
                    pause.reset();
                    if std::mem::take(&mut is_failing) {
                        tracing::info!(agent = self.agent, "the centre takes registrations again");
                    }
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    self.pending(&error);
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(agent = self.agent, error, "the centre does not take registrations, trying on");
                    }
                    tokio::select! {
                        () = sleep(pause.next()) => {}
                        () = self.nudge.notified() => {}
                    }
                    continue;
                }
            }
            {
                let mut table = self.table.lock();
                if table.held.is_empty() {
                    table.is_keeping = false;
                    return;
                }
                if table.is_dirty {
                    continue;
                }
            }
            // Two may be lost before the third comes too late; and not all agents at one moment.
            let next = (self.ttl / 3).mul_f64(0.9 + fastrand::f64() / 10.0);
            tokio::select! {
                () = sleep(next) => {}
                () = self.nudge.notified() => {}
            }
        }
    }

    /// What is to be told now, under a generation of its own unless everything is taken back: that must not take back
    /// what a younger life of this agent has told since.
    fn message(&self) -> Message {
        let mut table = self.table.lock();
        table.is_dirty = false;
        let wanted: Vec<_> = table.held.iter().map(|(number, held)| (*number, held.want)).collect();
        let registrations: Vec<_> = table.held.values().filter_map(registration).collect();
        if table.generation == 0 {
            table.generation = now_ms();
        } else if !registrations.is_empty() && table.taken.as_ref() != Some(&registrations) {
            table.generation += 1;
        }
        let registrations = Registrations {
            agent: self.agent.clone(),
            ttl_ms: u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX),
            generation: table.generation,
            registrations,
        };
        Message { registrations, wanted }
    }

    async fn tell(&self) -> anyhow::Result<()> {
        let message = self.message();
        let told = self.put(&message.registrations).await;
        let answer = match told {
            Ok(Told::Taken(answer)) => answer,
            Ok(Told::Old) if message.registrations.registrations.is_empty() => RegistrationsAnswer::default(),
            Ok(Told::Old) => {
                self.table.lock().is_dirty = true;
                return self.go_above().await;
            }
            Err(error) => {
                self.table.lock().is_dirty = true;
                return Err(error);
            }
        };
        // Each is looked at again with every heartbeat as long as it is not taken.
        let refused: HashMap<_, _> = answer.refused.into_iter().collect();
        let mut table = self.table.lock();
        table.was_taken = true;
        table.taken = Some(message.registrations.registrations);
        for (number, want) in message.wanted {
            let Some(held) = table.held.get(&number) else { continue };
            let name = name(&held.provided);
            let standing = match want {
                Wanted::Gone => Standing::Gone,
                _ if refused.contains_key(&name) => {
                    let why = refused[&name].clone();
                    if *held.told.borrow() != Standing::Pending(Some(why.clone())) {
                        tracing::warn!(registration = name, error = why, "the centre does not take it, trying on");
                    }
                    Standing::Pending(Some(why))
                }
                Wanted::Available => Standing::Available,
                Wanted::Unavailable => Standing::Unavailable,
            };
            held.told.send_replace(standing);
            if want == Wanted::Gone {
                table.held.remove(&number);
            }
        }
        Ok(())
    }

    async fn put(&self, message: &Registrations) -> anyhow::Result<Told> {
        let said = self.link.ask(Method::PUT, "/v1/agent/registrations", message, PATIENCE).await?;
        if said.is_conflict() {
            return Ok(Told::Old);
        }
        let by = said.by.clone();
        let answer = serde_json::from_slice(&said.success()?);
        Ok(Told::Taken(answer.with_context(|| format!("{by}: no answer to registrations"))?))
    }

    /// Tells of the next life of this agent: the clock went back, or another agent has its name.
    async fn go_above(&self) -> anyhow::Result<()> {
        let answer = self.ask_heartbeat().await?;
        let mut table = self.table.lock();
        if answer.generation > table.generation {
            if table.was_taken {
                tracing::warn!(agent = self.agent, "another agent registers under this agent's name");
            }
            table.generation = answer.generation;
            table.taken = None;
        }
        // Told again after a pause: two agents of one name shall not drive each other.
        anyhow::bail!("the centre holds generation {} of agent `{}`", answer.generation, self.agent)
    }

    async fn ask_heartbeat(&self) -> anyhow::Result<HeartbeatAnswer> {
        let generation = self.table.lock().generation;
        let beat = Heartbeat { agent: self.agent.clone(), generation };
        let said = self.link.ask(Method::POST, "/v1/agent/heartbeat", &beat, PATIENCE).await?;
        let by = said.by.clone();
        serde_json::from_slice(&said.success()?).with_context(|| format!("{by}: no answer to a heartbeat"))
    }

    async fn beat(&self) -> anyhow::Result<()> {
        let answer = self.ask_heartbeat().await?;
        let mut table = self.table.lock();
        let is_refused = |held: &Held| matches!(*held.told.borrow(), Standing::Pending(_));
        if !answer.known || table.held.values().any(is_refused) {
            table.is_dirty = true;
        }
        if !answer.known {
            tracing::info!(agent = self.agent, "the centre does not know this agent's registrations: told again");
        }
        Ok(())
    }

    fn pending(&self, why: &str) {
        for held in self.table.lock().held.values() {
            crate::keep::pending(&held.told, why);
        }
    }
}

fn registration(held: &Held) -> Option<Registration> {
    let Provided { key, protocol, instance, application, parameters } = &held.provided;
    let available = match held.want {
        Wanted::Available => true,
        Wanted::Unavailable => false,
        Wanted::Gone => return None,
    };
    Some(Registration {
        key: key.clone(),
        protocol: protocol.clone(),
        instance: instance.clone(),
        application: application.clone(),
        parameters: parameters.clone(),
        available,
    })
}

/// As the centre names what it refuses.
fn name(provided: &Provided) -> String {
    format!("{}@{}", provided.key, provided.instance.address)
}

/// Generations grow over restarts without being kept.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX).max(1)
}
