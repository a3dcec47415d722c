//! Many agents at the real centre: all of them at once, and one that is a nuisance.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code: a panic is its way to fail")]

use std::{
    env, fs,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

/// How long an event may take on a crowded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running centre; killed, and its data removed, with the test.
struct Center {
    at: SocketAddr,
    dir: PathBuf,
    child: Child,
}

impl Center {
    fn start(name: &str) -> Self {
        let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let dir = env::temp_dir().join(format!("sockmesh-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let child = spawn(at, &dir);
        Self { at, dir, child }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn again(&mut self) {
        self.child = spawn(self.at, &self.dir);
    }

    async fn get(&self, path: &str) -> Option<Value> {
        ask(self.at, "GET", path, &Value::Null).await.filter(|(status, _)| *status == 200).map(|(_, body)| body)
    }

    /// Waits until this many long polls wait.
    async fn waits(&self, wanted: u64) {
        let end = Instant::now() + PATIENCE;
        loop {
            let page = self.get("/v1/registry").await;
            let now = page.as_ref().and_then(|page| page["watchers"].as_u64());
            if now == Some(wanted) {
                return;
            }
            assert!(Instant::now() < end, "{now:?} long polls wait and not {wanted}");
            // Not a synchronisation: only how often we look.
            sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Center {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait(), fs::remove_dir_all(&self.dir));
    }
}

fn spawn(at: SocketAddr, dir: &std::path::Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sockmesh-center"));
    command.args(["--listen", &at.to_string()]).arg("--data").arg(dir.join("data"));
    command.env("SOCKMESH_LOG", "error").stdin(Stdio::null()).spawn().unwrap()
}

/// Asks on a connection of its own; `None` when there is no whole answer.
async fn ask(at: SocketAddr, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
    let asking = async {
        let mut io = TcpStream::connect(at).await.ok()?;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        io.write_all((head + &body).as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        io.read_to_end(&mut answer).await.ok()?;
        let text = String::from_utf8(answer).ok()?;
        let status = text.split(' ').nth(1)?.parse().ok()?;
        let body = text.split_once("\r\n\r\n")?.1;
        Some((status, serde_json::from_str(body).unwrap_or(Value::Null)))
    };
    timeout(PATIENCE + Duration::from_secs(30), asking).await.ok()?
}

fn registrations(agent: usize, generation: u64) -> Value {
    let key = json!({"service": format!("s{}", agent % 20), "group": "g"});
    let instance = json!({"address": format!("10.0.{}.{}:80", agent / 250, agent % 250 + 1)});
    let said = json!({"key": key, "protocol": "motan2", "instance": instance, "available": true});
    json!({"agent": format!("h{agent}/a"), "ttl_ms": 60_000, "generation": generation, "registrations": [said]})
}

/// Follows one service for ever, on a new connection for every question; says when it has a list.
async fn follow(at: SocketAddr, agent: usize, told: tokio::sync::mpsc::Sender<(usize, usize)>) {
    let key = json!({"service": format!("s{}", agent % 20), "group": "g"});
    let mut revision = 0;
    loop {
        let watched = json!([{"key": key, "revision": revision}]);
        let asked = json!({"agent": format!("h{agent}/a"), "seen": {"epoch": 0, "revision": 0},
            "services": watched, "wait_ms": 50_000});
        match ask(at, "POST", "/v1/agent/sync", &asked).await {
            Some((200, answer)) => {
                for list in answer["services"].as_array().unwrap() {
                    revision = list["snapshot"]["revision"].as_u64().unwrap();
                    let count = list["snapshot"]["instances"].as_array().unwrap().len();
                    if told.send((agent, count)).await.is_err() {
                        return;
                    }
                }
            }
            // The centre is away.
            None => sleep(Duration::from_millis(20)).await,
            Some(other) => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_agents_come_back_at_once() {
    const AGENTS: usize = 1000;
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let mut center = Center::start("thousand");
    let at = center.at;
    let permits = Arc::new(Semaphore::new(100));
    let mut tasks = tokio::task::JoinSet::new();
    for agent in 0..AGENTS {
        let permits = permits.clone();
        tasks.spawn(async move {
            let _permit = permits.acquire().await;
            loop {
                match ask(at, "PUT", "/v1/agent/registrations", &registrations(agent, 1)).await {
                    Some((200, answer)) => return assert_eq!(answer["refused"], Value::Null),
                    // It begins to listen.
                    None => sleep(Duration::from_millis(50)).await,
                    Some(other) => panic!("{other:?}"),
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let (told, mut heard) = tokio::sync::mpsc::channel(AGENTS * 4);
    let mut following = tokio::task::JoinSet::new();
    for agent in 0..AGENTS {
        following.spawn(follow(at, agent, told.clone()));
    }
    for _ in 0..AGENTS {
        assert_eq!(timeout(PATIENCE, heard.recv()).await.unwrap().unwrap().1, AGENTS / 20);
    }
    center.waits(AGENTS as u64).await;
    center.kill();
    center.again();
    // All are back, and nobody is told what it has already.
    center.waits(AGENTS as u64).await;
    assert!(heard.try_recv().is_err());
    let page = center.get("/v1/registry").await.unwrap();
    assert_eq!((&page["instances"], &page["states"]["available"]), (&json!(AGENTS), &json!(AGENTS)));
    // A change reaches all it concerns, once each.
    let mut gone = registrations(0, 2);
    gone["registrations"] = json!([]);
    assert_eq!(ask(at, "PUT", "/v1/agent/registrations", &gone).await.unwrap().0, 200);
    for _ in 0..AGENTS / 20 {
        let (agent, count) = timeout(PATIENCE, heard.recv()).await.unwrap().unwrap();
        assert_eq!((agent % 20, count), (0, AGENTS / 20 - 1));
    }
    center.waits(AGENTS as u64).await;
    assert!(heard.try_recv().is_err());
    while let Some(done) = {
        following.abort_all();
        following.join_next().await
    } {
        assert!(done.is_err_and(|error| error.is_cancelled()), "a follower panicked");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_floods_is_held_back_and_the_others_are_served() {
    let center = Center::start("flood");
    let at = center.at;
    center.waits(0).await;
    let mut tasks = tokio::task::JoinSet::new();
    for generation in 1..=200 {
        tasks.spawn(async move {
            ask(at, "PUT", "/v1/agent/registrations", &registrations(0, generation)).await.unwrap().0
        });
    }
    let (status, _) = ask(at, "PUT", "/v1/agent/registrations", &registrations(1, 1)).await.unwrap();
    assert_eq!(status, 200);
    let mut answers = std::collections::BTreeMap::<u16, usize>::new();
    while let Some(done) = tasks.join_next().await {
        *answers.entry(done.unwrap()).or_default() += 1;
    }
    assert!(answers.keys().all(|status| [200, 409, 429].contains(status)), "{answers:?}");
    assert!(answers[&429] > 100, "{answers:?}");
    // What it said last holds whole.
    let page = center.get("/v1/service?service=s0&group=g").await.unwrap();
    assert_eq!(page["instances"].as_array().unwrap().len(), 1);
}
