//! Simulated agents.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use model::{
    Instance, ServiceKey,
    center::{CommandScope, Heartbeat, NewText, Registration, Registrations, Stamp, Sync, Watched, WatchedText},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpStream,
    sync::{Notify, Semaphore},
    task::JoinHandle,
    time::{sleep, timeout},
};

pub mod reports;

/// Service that every agent follows.
const HOT: &str = "com.example.hot";
/// Group of it, and of the command text.
const GROUP: &str = "idc-a";
/// A change that has not reached everyone by then is missed.
const LATEST: Duration = Duration::from_secs(20);
/// Agents that register at one time: a site does not start all of its hosts at once.
const AT_ONCE: usize = 256;

/// How large it all is.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub agents: usize,
    pub services: usize,
    pub instances: usize,
    /// Services that each agent follows, beside the one that all follow.
    pub followed: usize,
    /// Agents that obey the command text.
    pub commanded: usize,
}

/// All agents.
pub struct Fleet {
    center: SocketAddr,
    shape: Shape,
    /// What is changed now, by what is waited for.
    waited: Mutex<HashMap<String, Arc<Change>>>,
    generations: Vec<AtomicU64>,
    has: Vec<AtomicBool>,
    refused: AtomicUsize,
    trouble: Mutex<BTreeMap<String, usize>>,
    answers: Mutex<reports::Answers>,
}

/// A change on its way.
struct Change {
    began: Instant,
    missing: AtomicUsize,
    all: Notify,
}

/// As much of an answer as is looked at.
#[derive(Deserialize)]
struct Told {
    stamp: Stamp,
    services: Vec<ToldList>,
    commands: Vec<ToldText>,
}

#[derive(Deserialize)]
struct ToldList {
    key: ServiceKey,
    snapshot: ToldRevision,
}

#[derive(Deserialize)]
struct ToldText {
    revision: u64,
}

#[derive(Deserialize)]
struct ToldRevision {
    revision: u64,
}

impl Fleet {
    pub fn new(center: SocketAddr, shape: Shape) -> Self {
        let generations = (0..shape.agents).map(|_| AtomicU64::new(0)).collect();
        let has = (0..shape.agents).map(|_| AtomicBool::new(false)).collect();
        let (waited, trouble, answers) = Default::default();
        Self { center, shape, waited, generations, has, refused: AtomicUsize::new(0), trouble, answers }
    }

    fn service(&self, number: usize) -> String {
        format!("com.example.service{}", number % self.shape.services)
    }

    /// What an agent provides; `weight` is the first instance's.
    fn registrations_of(&self, agent: usize, weight: u32) -> Vec<Registration> {
        let each = self.shape.instances / self.shape.agents;
        let registration = |at: usize| {
            let service = if at == 0 && agent < 25 { HOT.to_owned() } else { self.service(agent * each + at) };
            let instance = Instance {
                weight: if at == 0 { weight } else { 10 },
                zone: format!("zone{}", agent % 3),
                ..Instance::at(address(agent, at))
            };
            Registration {
                key: ServiceKey { service, group: GROUP.into(), version: "1.0".into() },
                protocol: "motan2".into(),
                instance,
                application: format!("app{}", agent % 100),
                parameters: [("serialization".to_owned(), "simple".to_owned())].into(),
                available: true,
            }
        };
        (0..each).map(registration).collect()
    }

    fn registrations(&self, agent: usize, weight: u32) -> Registrations {
        Registrations {
            agent: name(agent),
            ttl_ms: 30_000,
            generation: self.generations[agent].fetch_add(1, Relaxed) + 1,
            registrations: self.registrations_of(agent, weight),
        }
    }

    async fn register(&self, agent: usize, weight: u32) {
        let message = self.registrations(agent, weight);
        self.success(Method::PUT, "/v1/agent/registrations", &message).await;
    }

    /// Asks until it is answered well; what goes wrong is counted.
    async fn success(&self, method: Method, path: &str, body: &impl Serialize) -> Bytes {
        loop {
            match ask(self.center, method.clone(), path, body).await {
                Ok((200..=299, body)) => return body,
                Ok((status, body)) => {
                    self.refused.fetch_add(1, Relaxed);
                    let text: String = String::from_utf8_lossy(&body).chars().take(120).collect();
                    self.note(format!("{status} {text}"));
                }
                Err(error) => self.note(format!("{error:#}")),
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    fn note(&self, what: String) {
        let mut trouble = self.trouble.lock();
        if trouble.len() < 20 || trouble.contains_key(&what) {
            *trouble.entry(what).or_default() += 1;
        }
    }

    /// What went wrong, for messages.
    pub fn trouble(&self) -> String {
        crate::counted(&self.trouble.lock())
    }

    /// Answers that were no success.
    pub fn refusals(&self) -> usize {
        self.refused.load(Relaxed)
    }

    /// Every agent registers everything it provides.
    pub async fn register_all(self: &Arc<Self>) {
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        let mut tasks = tokio::task::JoinSet::new();
        for agent in 0..self.shape.agents {
            let (fleet, permits) = (self.clone(), permits.clone());
            tasks.spawn(async move {
                let _permit = permits.acquire().await;
                fleet.register(agent, 10).await;
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    }

    /// Every agent sends a heartbeat each ten seconds.
    pub fn beat(self: &Arc<Self>) -> JoinHandle<()> {
        let fleet = self.clone();
        tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            for agent in 0..fleet.shape.agents {
                let fleet = fleet.clone();
                tasks.spawn(async move {
                    sleep(Duration::from_secs(10).mul_f64(agent as f64 / fleet.shape.agents as f64)).await;
                    loop {
                        let next = tokio::time::Instant::now() + Duration::from_secs(10);
                        let generation = fleet.generations[agent].load(Relaxed);
                        let beat = Heartbeat { agent: name(agent), generation };
                        let _ = fleet.success(Method::POST, "/v1/agent/heartbeat", &beat).await;
                        tokio::time::sleep_until(next).await;
                    }
                });
            }
            while tasks.join_next().await.is_some() {}
        })
    }

    /// Every agent begins to follow.
    pub fn follow_all(self: &Arc<Self>) {
        for agent in 0..self.shape.agents {
            tokio::spawn(self.clone().follow(agent));
        }
    }

    /// Whether every agent has had an answer.
    pub fn has_all(&self) -> bool {
        self.has.iter().all(|has| has.load(Relaxed))
    }

    fn followed(&self, agent: usize) -> Vec<String> {
        let own = (0..self.shape.followed).map(|at| self.service(agent * 7 + at * 131 + 1));
        std::iter::once(HOT.to_owned()).chain(own).collect()
    }

    async fn follow(self: Arc<Self>, agent: usize) {
        let key = |service: String| ServiceKey { service, group: GROUP.into(), version: String::new() };
        let watched = |service: String| Watched { key: key(service), revision: 0 };
        let obeys = agent < self.shape.commanded;
        let text = WatchedText { scope: CommandScope::Group(GROUP.into()), revision: 0 };
        let mut asked = Sync {
            agent: name(agent),
            services: self.followed(agent).into_iter().map(watched).collect(),
            commands: obeys.then_some(text).into_iter().collect(),
            wait_ms: 60_000,
            ..Sync::default()
        };
        loop {
            let pause = match self.poll(&mut asked, agent).await {
                Ok(never) => match never {},
                Err(error) => {
                    self.note(format!("{error:#}"));
                    Duration::from_millis(50 + fastrand::u64(..450))
                }
            };
            sleep(pause).await;
        }
    }

    /// Follows on one connection until it ends.
    async fn poll(&self, asked: &mut Sync, agent: usize) -> anyhow::Result<std::convert::Infallible> {
        let mut sender = connect(self.center).await?;
        loop {
            let (status, body) = exchange(&mut sender, self.center, Method::POST, "/v1/agent/sync", asked).await?;
            if status != 200 {
                self.refused.fetch_add(1, Relaxed);
                anyhow::bail!("{status} {}", String::from_utf8_lossy(&body));
            }
            let told: Told = serde_json::from_slice(&body)?;
            anyhow::ensure!(told.stamp.follows(asked.seen), "the centre went back");
            asked.seen = told.stamp;
            for list in told.services {
                let watched = asked.services.iter_mut().find(|watched| watched.key == list.key).unwrap();
                watched.revision = list.snapshot.revision;
                self.saw(&list.key.service);
            }
            for text in told.commands {
                asked.commands[0].revision = text.revision;
                self.saw("");
            }
            self.has[agent].store(true, Relaxed);
        }
    }

    fn saw(&self, what: &str) {
        let Some(change) = self.waited.lock().get(what).cloned() else { return };
        if change.missing.fetch_sub(1, Relaxed) == 1 {
            change.all.notify_one();
        }
    }

    /// Makes a change with `make`, and waits until `watchers` have seen it; `None` when it takes too long.
    async fn timed(&self, what: String, watchers: usize, make: impl Future<Output = ()>) -> Option<Duration> {
        let change =
            Arc::new(Change { began: Instant::now(), missing: AtomicUsize::new(watchers), all: Notify::new() });
        self.waited.lock().insert(what.clone(), change.clone());
        make.await;
        let seen = timeout(LATEST, change.all.notified()).await;
        let took = change.began.elapsed();
        self.waited.lock().remove(&what);
        seen.ok().map(|()| took)
    }

    /// Changes the weight of one instance of many services, one each `every`.
    pub async fn change_services(self: &Arc<Self>, changes: usize, every: Duration) -> (Vec<Duration>, usize) {
        let mut followers = HashMap::<String, usize>::new();
        for agent in 0..self.shape.agents {
            for service in self.followed(agent) {
                *followers.entry(service).or_default() += 1;
            }
        }
        let each = self.shape.instances / self.shape.agents;
        let mut tasks = tokio::task::JoinSet::new();
        for change in 0..changes {
            // Not those that provide the one that all follow; a service each.
            let agent = 25 + change * 11 % (self.shape.agents - 25);
            let service = self.service(agent * each);
            let Some(watchers) = followers.remove(&service) else { continue };
            let fleet = self.clone();
            tasks.spawn(async move {
                let make = fleet.register(agent, 100 + change as u32);
                fleet.timed(service, watchers, make).await
            });
            sleep(every).await;
        }
        all(tasks).await
    }

    /// Changes the weight of an instance of the service that all follow.
    pub async fn change_hot(self: &Arc<Self>, changes: usize, every: Duration) -> (Vec<Duration>, usize) {
        let mut tasks = tokio::task::JoinSet::new();
        for change in 0..changes {
            let fleet = self.clone();
            tasks.spawn(async move {
                let make = fleet.register(change % 25, 1000 + change as u32);
                fleet.timed(HOT.to_owned(), fleet.shape.agents, make).await
            });
            // One after the other, so that each is counted by itself.
            if let Some(done) = tasks.join_next().await {
                tasks.spawn(async move { done.unwrap() });
            }
            sleep(every).await;
        }
        all(tasks).await
    }

    /// Changes the command text of a group.
    pub async fn command(self: &Arc<Self>, changes: usize, every: Duration) -> (Vec<Duration>, usize) {
        let (mut seen, mut missed, mut before) = (Vec::new(), 0, None);
        for change in 0..changes {
            let text = format!(
                r#"{{"clientCommandList":[{{"index":1,"version":"1.0","dc":"","commandType":0,"pattern":"com.example.none{change}","mergeGroups":["{GROUP}:80","idc-b:20"],"routeRules":[],"remark":"load"}}]}}"#
            );
            let scope = CommandScope::Group(GROUP.into());
            let new = NewText { scope, expected: before.replace(text.clone()), text: Some(text) };
            let make = async {
                self.success(Method::PUT, "/v1/text", &new).await;
            };
            match self.timed(String::new(), self.shape.commanded, make).await {
                Some(took) => seen.push(took),
                None => missed += 1,
            }
            sleep(every).await;
        }
        (seen, missed)
    }
}

async fn all(mut tasks: tokio::task::JoinSet<Option<Duration>>) -> (Vec<Duration>, usize) {
    let (mut seen, mut missed) = (Vec::new(), 0);
    while let Some(done) = tasks.join_next().await {
        match done.unwrap() {
            Some(took) => seen.push(took),
            None => missed += 1,
        }
    }
    (seen, missed)
}

/// Where an agent's instance is.
fn address(agent: usize, at: usize) -> String {
    format!("10.{}.{}.{}:{}", agent >> 16, (agent >> 8) & 255, agent & 255, 8000 + at)
}

fn name(agent: usize) -> String {
    format!("host{agent}/app")
}

async fn connect(to: SocketAddr) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let io = timeout(Duration::from_secs(10), TcpStream::connect(to)).await.context("connecting")??;
    let (sender, connection) = handshake(TokioIo::new(io)).await?;
    tokio::spawn(async move {
        // Its end is seen by who asks next.
        let _ = connection.await;
    });
    Ok(sender)
}

async fn exchange(
    sender: &mut SendRequest<Full<Bytes>>,
    to: SocketAddr,
    method: Method,
    path: &str,
    body: &impl Serialize,
) -> anyhow::Result<(u16, Bytes)> {
    let body = if method == Method::GET { Bytes::new() } else { serde_json::to_vec(body)?.into() };
    send(sender, to, method, path, body).await
}

async fn send(
    sender: &mut SendRequest<Full<Bytes>>,
    to: SocketAddr,
    method: Method,
    path: &str,
    body: Bytes,
) -> anyhow::Result<(u16, Bytes)> {
    let request = Request::builder().method(method).uri(path).header("host", to.to_string());
    let request = request.header("content-type", "application/json").body(Full::new(body))?;
    let asking = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok::<_, anyhow::Error>((head.status.as_u16(), body.collect().await?.to_bytes()))
    };
    timeout(Duration::from_secs(80), asking).await.context("no answer")?
}

/// Asks once on a connection of its own, as agents do for all but their long poll.
pub async fn ask(to: SocketAddr, method: Method, path: &str, body: &impl Serialize) -> anyhow::Result<(u16, Bytes)> {
    let mut sender = connect(to).await?;
    exchange(&mut sender, to, method, path, body).await
}
