//! A Consul of one, in memory.

use std::net::SocketAddr;

use serde_json::Value;

use crate::{
    Cmd, Temp, free_port,
    http::{self, Conn},
    need::peer,
    program::Server,
    until,
};

/// A running Consul, stopped on drop. What it held is gone when it ends.
pub struct Consul(pub Server);

impl Consul {
    /// Starts one and waits until it leads itself. Needs the peer `consul`.
    #[track_caller]
    pub fn start() -> Self {
        Self::with("")
    }

    /// Starts one with further options of its configuration, as JSON such as `"acl": {…}`.
    #[track_caller]
    pub fn with(more: &str) -> Self {
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let dir = Temp::new();
        let port = |name: &str| format!("-{name}-port={}", free_port());
        let mut cmd = Cmd::new(peer("consul").join("consul"))
            .args(["agent", "-dev", "-log-level=warn", "-bind=127.0.0.1", "-client=127.0.0.1"])
            .args(["-grpc-port=-1", "-grpc-tls-port=-1", "-dns-port=-1"])
            .arg(format!("-http-port={}", addr.port()))
            .args([port("serf-lan"), port("serf-wan"), port("server")]);
        if !more.is_empty() {
            cmd = cmd.arg(format!("-config-file={}", dir.write("more.json", format!("{{{more}}}")).display()));
        }
        let consul = Self(Server::start(addr, dir, cmd));
        consul.wait();
        consul
    }

    /// Waits until it leads itself.
    #[track_caller]
    pub fn wait(&self) {
        until("Consul has a leader", || {
            http::get(self.addr(), "/v1/status/leader").is_ok_and(|a| a.status() == 200 && a.body.len() > 4)
        });
    }

    /// Where its HTTP API is.
    pub fn addr(&self) -> SocketAddr {
        self.0.addr()
    }

    /// What it answers, as JSON; null when it has nothing.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let answer = http::get(self.addr(), path).unwrap();
        if answer.status() == 404 {
            return Value::Null;
        }
        assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// Writes; panics when that is refused.
    #[track_caller]
    pub fn put(&self, path: &str, body: &str) -> String {
        let mut conn = Conn::open(self.addr()).unwrap();
        let length = body.len();
        conn.send(format!("PUT {path} HTTP/1.1\r\nHost: consul\r\nContent-Length: {length}\r\n\r\n{body}")).unwrap();
        let answer = conn.answer().unwrap();
        assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
        answer.text()
    }
}
