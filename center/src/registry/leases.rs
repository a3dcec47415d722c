//! Agents as the registry knows them: which registrations they last said, how long these hold, how much they may ask.

use std::{collections::HashMap, sync::Arc, time::Duration};

use model::center::{HeartbeatAnswer, Stamp};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Config, record::AgentRecord};
use crate::error::{Code, Error};

/// How long an agent has to come back to a centre that was just started: agents pause up to 10 s between attempts.
const GRACE: Duration = Duration::from_secs(20);
/// An agent that registered nothing is forgotten after this time without a request.
const IDLE: Duration = Duration::from_secs(60);
/// Long polls of one agent at one time: the present one, and those whose connections died unseen.
const POLLS: u32 = 4;

/// All agents.
pub(super) struct Leases {
    book: Mutex<HashMap<String, Lease>>,
    limit: usize,
    rate: f64,
}

struct Lease {
    record: AgentRecord,
    /// Of the store, of `record`.
    revision: u64,
    heard: Instant,
    deadline: Instant,
    /// Since when its registrations are taken as lost.
    lost: Option<Instant>,
    /// A change of its registrations is being written.
    writing: bool,
    polls: u32,
    /// The highest stamp that it said it took.
    taken: Stamp,
    /// Requests it may make at once.
    tokens: f64,
    filled: Instant,
}

/// What is to be done about an agent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// It has been silent for too long: its instances are lost.
    Lose(String),
    /// It has been lost for so long that nothing of it is kept.
    Forget(String),
}

impl Lease {
    fn new(now: Instant, rate: f64) -> Self {
        let record = AgentRecord::default();
        let tokens = burst(rate);
        let (lost, writing, polls, taken) = (None, false, 0, Stamp::default());
        Self { record, revision: 0, heard: now, deadline: now, lost, writing, polls, taken, tokens, filled: now }
    }

    fn ttl(&self) -> Duration {
        Duration::from_millis(self.record.ttl_ms)
    }

    fn hear(&mut self, now: Instant) {
        self.heard = now;
        self.deadline = now + self.ttl();
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.record.generation == 0 && self.polls == 0 && !self.writing && now.duration_since(self.filled) > IDLE
    }
}

/// What may be asked at once after a rest.
fn burst(rate: f64) -> f64 {
    rate * 4.0
}

impl Leases {
    pub fn new(config: &Config) -> Arc<Self> {
        Arc::new(Self { book: Mutex::default(), limit: config.agents, rate: f64::from(config.requests.max(1)) })
    }

    /// Lets a request of `agent` in that costs as much as `cost` small ones.
    pub fn admit(&self, agent: &str, cost: f64) -> Result<(), Error> {
        let now = Instant::now();
        let mut book = self.book.lock();
        if !book.contains_key(agent) && book.len() >= self.limit {
            book.retain(|_, lease| !lease.is_idle(now));
            if book.len() >= self.limit {
                return Err(Error::new(
                    Code::TooMany,
                    format!("agent `{agent}` would be one more than the {} of this centre", self.limit),
                    "raise `registry.agents` of the centre's file",
                ));
            }
        }
        let lease = book.entry(agent.to_owned()).or_insert_with(|| Lease::new(now, self.rate));
        let passed = now.duration_since(lease.filled).as_secs_f64();
        lease.tokens = (lease.tokens + passed * self.rate).min(burst(self.rate));
        lease.filled = now;
        if lease.tokens < cost {
            return Err(Error::new(
                Code::TooMany,
                format!("agent `{agent}` asks more than {} times a second", self.rate),
                "let it ask less often, or raise `registry.requests` of the centre's file",
            ));
        }
        lease.tokens -= cost;
        Ok(())
    }

    /// Begins a change of the registrations of `agent`, one at a time.
    pub fn begin(self: &Arc<Self>, agent: &str, generation: u64) -> Result<Writing, Error> {
        let mut book = self.book.lock();
        let lease = book.entry(agent.to_owned()).or_insert_with(|| Lease::new(Instant::now(), self.rate));
        if lease.writing {
            return Err(Error::conflict(
                format!("other registrations of agent `{agent}` are being written"),
                "repeat in a moment; two agents must not have one name",
            ));
        }
        if lease.record.generation > generation {
            let known = lease.record.generation;
            return Err(Error::conflict(
                format!("registrations of agent `{agent}` of generation {generation} are older than those of {known}"),
                format!("say them under a generation above {known}; two agents must not have one name"),
            ));
        }
        lease.writing = true;
        Ok(Writing { all: self.clone(), agent: agent.to_owned() })
    }

    /// A long poll of `agent`, which took `taken`, begins.
    pub fn poll(self: &Arc<Self>, agent: &str, taken: Stamp) -> Result<Polling, Error> {
        let mut book = self.book.lock();
        let lease = book.entry(agent.to_owned()).or_insert_with(|| Lease::new(Instant::now(), self.rate));
        if lease.polls >= POLLS {
            return Err(Error::new(
                Code::TooMany,
                format!("agent `{agent}` has {POLLS} long polls waiting already"),
                "wait for the answer of one; two agents must not have one name",
            ));
        }
        lease.polls += 1;
        lease.taken = taken;
        Ok(Polling { all: self.clone(), agent: agent.to_owned() })
    }

    /// Its registrations live on; says what is known of it, and the record when another centre has heard it so far.
    pub fn heartbeat(&self, agent: &str, generation: u64, center: &str) -> (HeartbeatAnswer, Option<AgentRecord>) {
        let mut book = self.book.lock();
        let Some(lease) = book.get_mut(agent) else { return (HeartbeatAnswer::default(), None) };
        let held = lease.record.generation;
        let known = held == generation && held > 0 && lease.lost.is_none();
        if known {
            lease.hear(Instant::now());
        }
        let moved = known && lease.record.center != center;
        let record = moved.then(|| AgentRecord { center: center.to_owned(), ..lease.record.clone() });
        (HeartbeatAnswer { known, generation: held }, record)
    }

    /// What is kept of `agent`.
    pub fn record(&self, agent: &str) -> AgentRecord {
        self.book.lock().get(agent).map(|lease| lease.record.clone()).unwrap_or_default()
    }

    /// The highest stamp that it said it took.
    pub fn taken(&self, agent: &str) -> Stamp {
        self.book.lock().get(agent).map(|lease| lease.taken).unwrap_or_default()
    }

    /// Time since it was heard, where it was.
    pub fn silence(&self, agent: &str) -> Option<Duration> {
        self.book.lock().get(agent).map(|lease| lease.heard.elapsed())
    }

    /// Its registrations are written and hold from now on.
    pub fn registered(&self, agent: &str, revision: u64, record: AgentRecord) {
        let now = Instant::now();
        let mut book = self.book.lock();
        let lease = book.entry(agent.to_owned()).or_insert_with(|| Lease::new(now, self.rate));
        lease.revision = lease.revision.max(revision);
        lease.record = record;
        lease.lost = None;
        lease.hear(now);
    }

    /// What the store says of an agent, at the start or because another centre wrote it. `None`: nothing any more.
    pub fn stored(&self, agent: &str, revision: u64, record: Option<AgentRecord>) {
        let now = Instant::now();
        let mut book = self.book.lock();
        let Some(record) = record else {
            if book.get(agent).is_some_and(|lease| lease.revision < revision) {
                book.remove(agent);
            }
            return;
        };
        let lease = book.entry(agent.to_owned()).or_insert_with(|| Lease::new(now, self.rate));
        if lease.revision >= revision {
            return;
        }
        if lease.record.generation < record.generation {
            lease.lost = None;
        }
        lease.revision = revision;
        lease.record = record;
        lease.heard = now;
        lease.deadline = now + lease.ttl().max(GRACE);
    }

    /// Instances of this agent are there, but it is not: its record was never written, or they are lost already.
    pub fn orphan(&self, agent: &str, lost: bool) {
        let now = Instant::now();
        let mut book = self.book.lock();
        let lease = book
            .entry(agent.to_owned())
            .or_insert_with(|| Lease { deadline: now + GRACE, ..Lease::new(now, self.rate) });
        if lost {
            lease.lost = Some(now);
        }
    }

    /// Nobody is lost for the time in which this process did not run.
    pub fn extend(&self, by: Duration) {
        for lease in self.book.lock().values_mut() {
            lease.deadline += by;
        }
    }

    /// Whose time is over. `since` is given an agent and when it was heard here, and answers from when on this centre
    /// counts for it; `None`: another centre does.
    pub fn due(
        &self,
        forget: Duration,
        registered: impl Fn(&str) -> bool,
        since: impl Fn(&AgentRecord, Instant) -> Option<Instant>,
    ) -> Vec<Due> {
        let now = Instant::now();
        let mut due = Vec::new();
        let mut book = self.book.lock();
        book.retain(|_, lease| !lease.is_idle(now) || lease.lost.is_some() || lease.deadline > now);
        for (agent, lease) in book.iter_mut() {
            if lease.writing || now < lease.deadline {
                continue;
            }
            match lease.lost {
                Some(at) if now.duration_since(at) >= forget => due.push(Due::Forget(agent.clone())),
                // Again, in case that the store did not take it.
                Some(_) => due.push(Due::Lose(agent.clone())),
                None => {
                    let Some(since) = since(&lease.record, lease.heard) else { continue };
                    if now < since + lease.ttl() {
                        continue;
                    }
                    if lease.record.generation == 0 && !registered(agent) {
                        continue;
                    }
                    lease.lost = Some(now);
                    due.push(Due::Lose(agent.clone()));
                }
            }
        }
        due
    }

    /// Nothing is known of it any more.
    pub fn forget(&self, agent: &str) {
        let mut book = self.book.lock();
        if let Some(lease) = book.get_mut(agent) {
            lease.record = AgentRecord::default();
            lease.lost = None;
        }
    }
}

/// A change of registrations that is being written; over when it is dropped.
pub(super) struct Writing {
    all: Arc<Leases>,
    agent: String,
}

impl Drop for Writing {
    fn drop(&mut self) {
        if let Some(lease) = self.all.book.lock().get_mut(&self.agent) {
            lease.writing = false;
        }
    }
}

/// A long poll; over when it is dropped.
pub(super) struct Polling {
    all: Arc<Leases>,
    agent: String,
}

impl Drop for Polling {
    fn drop(&mut self) {
        if let Some(lease) = self.all.book.lock().get_mut(&self.agent) {
            lease.polls = lease.polls.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leases(agents: usize, requests: u32) -> Arc<Leases> {
        Leases::new(&Config { agents, requests, ..Config::default() })
    }

    fn record(generation: u64) -> AgentRecord {
        AgentRecord { generation, ttl_ms: 30_000, center: "c".into() }
    }

    fn due(leases: &Leases) -> Vec<Due> {
        let mut due = leases.due(Duration::from_secs(3600), |_| true, |_, heard| Some(heard));
        due.sort();
        due
    }

    #[tokio::test(start_paused = true)]
    async fn heartbeats_keep_and_silence_loses() {
        let leases = leases(10, 10);
        leases.registered("a", 1, record(5));
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(29)).await;
            assert_eq!(due(&leases), []);
            assert_eq!(leases.heartbeat("a", 5, "c"), (HeartbeatAnswer { known: true, generation: 5 }, None));
        }
        assert!(!leases.heartbeat("a", 4, "c").0.known, "another generation");
        assert_eq!(leases.heartbeat("b", 4, "c").0, HeartbeatAnswer::default());
        let moved = leases.heartbeat("a", 5, "d").1.unwrap();
        assert_eq!(moved.center, "d", "another centre hears it now");
        tokio::time::advance(Duration::from_secs(29)).await;
        leases.extend(Duration::from_secs(60));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(due(&leases), [], "the centre itself stood still");
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(due(&leases), [Due::Lose("a".into())]);
        let unknown = HeartbeatAnswer { known: false, generation: 5 };
        assert_eq!(leases.heartbeat("a", 5, "c").0, unknown, "it registers again");
        assert_eq!(due(&leases), [Due::Lose("a".into())], "until the store takes it");
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(due(&leases), [Due::Forget("a".into())]);
        leases.forget("a");
        assert_eq!(leases.record("a"), AgentRecord::default());
    }

    #[tokio::test(start_paused = true)]
    async fn agents_are_limited_in_number_and_in_what_they_ask() {
        let leases = leases(2, 10);
        for _ in 0..4 {
            leases.admit("flood", 10.0).unwrap();
        }
        let told = leases.admit("flood", 1.0).unwrap_err().to_string();
        assert!(told.contains("`flood` asks more than 10 times a second"), "{told}");
        leases.admit("calm", 1.0).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        leases.admit("flood", 10.0).unwrap();
        assert_eq!(leases.admit("third", 1.0).unwrap_err().code, Code::TooMany);
        leases.registered("calm", 1, record(1));
        tokio::time::advance(IDLE + Duration::from_secs(1)).await;
        leases.admit("third", 1.0).expect("a name that did nothing goes");
        assert_eq!(leases.admit("fourth", 1.0).unwrap_err().code, Code::TooMany);
    }

    #[tokio::test(start_paused = true)]
    async fn one_change_at_a_time_and_none_that_is_old() {
        let leases = leases(10, 10);
        let writing = leases.begin("a", 3).ok().unwrap();
        assert!(leases.begin("a", 4).is_err());
        leases.registered("a", 1, record(3));
        drop(writing);
        let told = leases.begin("a", 2).err().unwrap().to_string();
        assert!(told.contains("generation above 3"), "{told}");
        drop(leases.begin("a", 3).ok().unwrap());
        let polls: Vec<_> = (0..POLLS).map(|_| leases.poll("a", Stamp::default()).ok().unwrap()).collect();
        assert!(leases.poll("a", Stamp::default()).is_err());
        drop(polls);
        leases.poll("a", Stamp::default()).ok().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_start_everyone_has_time_to_come_back() {
        let leases = leases(10, 10);
        leases.stored("a", 1, Some(AgentRecord { ttl_ms: 1000, ..record(5) }));
        leases.orphan("lost", true);
        leases.orphan("half", false);
        tokio::time::advance(GRACE - Duration::from_secs(1)).await;
        assert_eq!(due(&leases), []);
        tokio::time::advance(Duration::from_secs(2)).await;
        let lose = |name: &str| Due::Lose(name.into());
        assert_eq!(due(&leases), [lose("a"), lose("half"), lose("lost")]);
        leases.stored("a", 2, Some(record(6)));
        assert!(leases.heartbeat("a", 6, "c").0.known, "it registered at another centre");
        leases.stored("a", 1, None);
        assert_eq!(leases.record("a").generation, 6);
        leases.stored("a", 3, None);
        assert_eq!(leases.record("a").generation, 0);
    }
}
