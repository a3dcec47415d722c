//! The real governance centre, as operators start it.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitStatus,
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{Cmd, Temp, http, net::free_port, program::Server, target_dir};

/// A running centre with a store of its own. Stopped by force on drop.
pub struct Center {
    server: Server,
}

impl Center {
    /// Starts one with these lines in its file, and waits until it listens.
    #[track_caller]
    pub fn start(config: &str) -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], free_port())), config)
    }

    /// Starts one that listens at `addr`.
    #[track_caller]
    pub fn at(addr: SocketAddr, config: &str) -> Self {
        let dir = Temp::new();
        let file = dir.write("center.yaml", config);
        let cmd = Cmd::new(binary()).arg("-c").arg(file.display()).args(["--listen", &addr.to_string()]);
        let cmd = cmd.arg("--data").arg(dir.file("data").display());
        Self { server: Server::start(addr, dir, cmd) }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// Its own folder; its data are below `data`.
    pub fn dir(&self) -> &Path {
        self.server.dir()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.server.proc.pid()
    }

    /// What it logged.
    pub fn log(&self) -> String {
        self.server.proc.said()
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(&mut self) -> ExitStatus {
        self.server.proc.signal(Signal::TERM);
        self.server.proc.wait()
    }

    /// Ends it without warning.
    pub fn kill9(&mut self) {
        self.server.proc.signal(Signal::KILL);
        self.server.proc.wait();
    }

    /// Starts it again at its address with what it knew.
    pub fn again(&mut self) {
        self.server.again();
    }

    /// Starts it again at its address with nothing of what it knew.
    pub fn again_empty(&mut self) {
        fs::remove_dir_all(self.server.dir().join("data")).unwrap();
        self.server.again();
    }

    /// A page of its API.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let answer = http::get(self.addr(), path).unwrap();
        assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
        serde_json::from_str(&answer.text()).unwrap()
    }

    /// Asks it to do something; status and answer (null where there is none).
    #[track_caller]
    pub fn send(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let (at, body) = (self.addr(), body.to_string());
        let mut conn = http::Conn::open(at).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {at}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        conn.send(head + &body).unwrap();
        let answer = conn.answer().unwrap();
        (answer.status(), serde_json::from_str(&answer.text()).unwrap_or(Value::Null))
    }

    /// Posts, and takes nothing but success.
    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.send("POST", path, body);
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        answer
    }
}

/// The centre's program: the newest that was built.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("SOCKMESH_CENTER_BIN") {
        return path.into();
    }
    let age = |path: &PathBuf| fs::metadata(path).and_then(|m| m.modified()).ok();
    let built = ["release", "debug"].map(|profile| target_dir().join(profile).join("sockmesh-center"));
    let newest = built.into_iter().filter(|p| p.exists()).max_by_key(age);
    newest.unwrap_or_else(|| {
        panic!(
            "no centre in {}: build it with `cargo build -p center` or set SOCKMESH_CENTER_BIN",
            target_dir().display()
        )
    })
}
