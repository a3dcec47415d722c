//! A centre of its own for a test, and a client that sends whatever it is told.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use model::center::{NewToken, Problem, TokenMade};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// An answer must come within this, on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running centre; ended, and its data removed, with this.
pub struct Served {
    child: Child,
    pub at: SocketAddr,
    dir: PathBuf,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// What was answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a 200.
    pub fn ok<T: DeserializeOwned>(&self) -> T {
        assert_eq!(self.status, 200, "{self}");
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self}"))
    }

    /// The problem of a refusal, which must have the form of all of them.
    pub fn problem(&self) -> Problem {
        assert!(self.status >= 400, "{self}");
        let problem: Problem = serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self}"));
        let statuses: &[u16] = match problem.code.as_str() {
            "bad_request" => &[400],
            "unauthenticated" => &[401],
            "forbidden" => &[403],
            "not_found" => &[404],
            "no_method" => &[405],
            "conflict" => &[409],
            "too_large" => &[413],
            "too_many" => &[429],
            "read_only" | "unavailable" => &[503],
            other => panic!("{other} is no known code: {self}"),
        };
        assert!(statuses.contains(&self.status) && !problem.message.is_empty(), "{self}");
        problem
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body: String = String::from_utf8_lossy(&self.body).chars().take(500).collect();
        write!(f, "{}\n{body}", self.head)
    }
}

/// A directory that does not exist yet.
fn dir() -> PathBuf {
    static N: AtomicU32 = AtomicU32::new(0);
    let name = format!("sockmesh-access-{}-{}", std::process::id(), N.fetch_add(1, Ordering::Relaxed));
    std::env::temp_dir().join(name)
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sockmesh-center"));
    command.stdin(Stdio::null()).env_remove("SOCKMESH_LOG");
    command
}

/// Runs a verb of the program on a directory's data.
pub fn verb(dir: &Path, args: &[&str]) -> Result<String, String> {
    let output = program().args(args).arg("--data").arg(dir).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

impl Served {
    /// A centre without accounts.
    pub fn open() -> Self {
        Self::start(dir(), "")
    }

    /// A centre with an admin `root` of everything; answers that one's password.
    pub fn closed(config: &str) -> (Self, String) {
        let dir = dir();
        let password = verb(&dir, &["user", "add", "root", "--role", "admin"]).unwrap();
        (Self::start(dir, config), password)
    }

    fn start(dir: PathBuf, config: &str) -> Self {
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("center.yaml");
        std::fs::write(&file, if config.is_empty() { "{}" } else { config }).unwrap();
        let mut command = program();
        command.arg("--config").arg(file).arg("--data").arg(&dir).args(["--listen", "127.0.0.1:0"]);
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let at = lines.by_ref().find_map(|line| line.split_once("serving address=").map(|(_, at)| at.to_owned()));
        // Read on, or the centre would wait for a reader of its log.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, at: at.expect("it says where it listens").trim().parse().unwrap(), dir }
    }

    /// Whether it runs.
    pub fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The most memory it ever had, in MiB.
    pub fn peak_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    }

    /// Sends bytes on a connection of their own and reads to its end, or until an answer without end has begun.
    pub async fn send(&self, bytes: &[u8]) -> Option<Answer> {
        let mut io = TcpStream::connect(self.at).await.unwrap();
        // It may answer and close before it has read all.
        let _ = io.write_all(bytes).await;
        let mut all = Vec::new();
        let reading = async {
            let mut buffer = [0; 16 << 10];
            while let Ok(n @ 1..) = io.read(&mut buffer).await {
                all.extend_from_slice(&buffer[..n]);
                // In the head: the description of the API has the words, too.
                if all.windows(31).any(|part| part == b"content-type: text/event-stream") {
                    break;
                }
            }
        };
        timeout(PATIENCE, reading).await.unwrap_or_else(|_| {
            panic!("no end of the answer to {}", String::from_utf8_lossy(&bytes[..bytes.len().min(300)]))
        });
        let head = all.windows(4).position(|part| part == b"\r\n\r\n")?;
        let text = String::from_utf8_lossy(&all[..head]).into_owned();
        let status = text.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, head: text, body: all[head + 4..].to_vec() })
    }

    /// Asks with these headers; a body is JSON.
    pub async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> Answer {
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head += &format!("Host: {}\r\n", self.at);
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if let Some(body) = body {
            head += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        }
        let mut bytes = (head + "\r\n").into_bytes();
        bytes.extend_from_slice(body.unwrap_or_default());
        self.send(&bytes).await.unwrap_or_else(|| panic!("no answer to {method} {path}"))
    }

    /// Asks with a token.
    pub async fn by(&self, token: &str, method: &str, path: &str, body: Option<&impl Serialize>) -> Answer {
        let body = body.map(|body| serde_json::to_vec(body).unwrap());
        let bearer = format!("Bearer {token}");
        self.ask(method, path, &[("Authorization", &bearer)], body.as_deref()).await
    }

    /// Logs in; answers cookie and secret against forged requests.
    pub async fn login(&self, name: &str, password: &str) -> (String, String) {
        let body = serde_json::json!({ "name": name, "password": password }).to_string();
        let answer = self.ask("POST", "/v1/login", &[], Some(body.as_bytes())).await;
        let me: Value = answer.ok();
        let cookie = answer.header("set-cookie").unwrap().split(';').next().unwrap();
        (cookie.to_owned(), me["csrf"].as_str().unwrap().to_owned())
    }

    /// Has the admin `root` make a token.
    pub async fn token(&self, root: &(String, String), new: &NewToken) -> String {
        let body = serde_json::to_vec(new).unwrap();
        let headers = [("Cookie", root.0.as_str()), ("x-sockmesh-csrf", &root.1)];
        self.ask("POST", "/v1/tokens", &headers, Some(&body)).await.ok::<TokenMade>().token
    }

    /// What it says of its API.
    pub async fn description(&self) -> Value {
        self.ask("GET", "/openapi.json", &[], None).await.ok()
    }
}
