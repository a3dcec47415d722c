//! An r-nacos of one: the server that speaks both APIs of Nacos and can be built here.

use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    Cmd, Temp, free_port,
    http::{self, Conn},
    need::peer,
    program::Server,
    until, until_some,
    wait::within,
};

/// A running r-nacos, stopped on drop.
pub struct Nacos {
    /// The process.
    pub server: Server,
    account: Option<(&'static str, &'static str)>,
    /// What it gave for the account.
    token: String,
}

impl Nacos {
    /// Starts one and waits until it answers. Needs the peer `rnacos`.
    #[track_caller]
    pub fn start() -> Self {
        Self::with(None)
    }

    /// The same, which only lets in who logs in by this name and password. They are safe in a form.
    #[track_caller]
    pub fn guarded(name: &'static str, password: &'static str) -> Self {
        Self::with(Some((name, password)))
    }

    #[track_caller]
    fn with(account: Option<(&'static str, &'static str)>) -> Self {
        // gRPC is always 1000 above HTTP.
        let port = std::iter::repeat_with(free_port)
            .find(|port| *port < 64_000 && TcpListener::bind(("127.0.0.1", port + 1000)).is_ok())
            .expect("there are more ports");
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let dir = Temp::new();
        let (name, password) = account.unwrap_or_default();
        let cmd = Cmd::new("env")
            .args(["RNACOS_SDK_HOST=127.0.0.1", "RNACOS_HTTP_CONSOLE_PORT=0", "RNACOS_ENABLE_METRICS=false"])
            .arg(format!("RNACOS_HTTP_PORT={port}"))
            .arg(format!("RNACOS_GRPC_PORT={}", port + 1000))
            .arg(format!("RNACOS_DATA_DIR={}", dir.file("data").display()))
            .arg(format!("RNACOS_ENABLE_OPEN_API_AUTH={}", account.is_some()))
            .arg(format!("RNACOS_INIT_ADMIN_USERNAME={name}"))
            .arg(format!("RNACOS_INIT_ADMIN_PASSWORD={password}"))
            .arg(peer("rnacos").join("bin/rnacos").display());
        let mut nacos = Self { server: Server::start(addr, dir, cmd), account, token: String::new() };
        nacos.wait();
        nacos
    }

    /// Waits until it answers, keeps what is written, and listens for gRPC.
    ///
    /// One that begins with nothing sometimes (0.8.8: two of five) says `true` to every write of a configuration and
    /// never shows it; that one is replaced.
    #[track_caller]
    pub fn wait(&mut self) {
        for _ in 0..10 {
            self.wait_written();
            if within(Duration::from_secs(2), || self.config("ready", "test")).is_some() {
                return;
            }
            self.kill();
            self.forget();
        }
        panic!("ten servers in a row kept nothing");
    }

    #[track_caller]
    fn wait_written(&mut self) {
        if let Some((name, password)) = self.account {
            let form = format!("username={name}&password={password}");
            self.token = until_some("r-nacos lets in", || {
                let said = serde_json::from_str::<Value>(&self.try_post("/nacos/v1/auth/login", &form)?).ok()?;
                said["accessToken"].as_str().map(str::to_owned)
            });
        }
        let grpc = SocketAddr::new(self.addr().ip(), self.addr().port() + 1000);
        until("r-nacos answers", || {
            let written = self.try_post("/nacos/v1/cs/configs", "dataId=ready&group=test&content=yes");
            written.is_some_and(|said| said == "true") && std::net::TcpStream::connect(grpc).is_ok()
        });
    }

    /// Ends it on the spot.
    pub fn kill(&mut self) {
        self.server.proc.signal(Signal::KILL);
        self.server.proc.wait();
    }

    /// Starts it again without anything: a killed one does not always come up with what it had written down.
    #[track_caller]
    pub fn again(&mut self) {
        self.forget();
        self.wait();
    }

    fn forget(&mut self) {
        let _ = std::fs::remove_dir_all(self.server.dir().join("data"));
        self.server.again();
    }

    /// A configuration as it holds it; none when there is none.
    pub fn config(&self, id: &str, group: &str) -> Option<String> {
        let answer = self.send("GET", &format!("/nacos/v1/cs/configs?dataId={id}&group={group}"), "")?;
        (answer.status() == 200).then(|| answer.text())
    }

    /// Where its HTTP API is.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    fn try_post(&self, path: &str, form: &str) -> Option<String> {
        self.send("POST", path, form).filter(|answer| answer.status() == 200).map(|answer| answer.text())
    }

    fn send(&self, method: &str, path: &str, form: &str) -> Option<http::Message> {
        let mut conn = Conn::open(self.addr()).ok()?;
        let length = form.len();
        let path = match (self.token.as_str(), path.contains('?')) {
            ("", _) => path.to_owned(),
            (token, asked) => format!("{path}{}accessToken={token}", if asked { '&' } else { '?' }),
        };
        conn.send(format!(
            "{method} {path} HTTP/1.1\r\nHost: nacos\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             Content-Length: {length}\r\n\r\n{form}"
        ))
        .ok()?;
        conn.answer().ok()
    }

    /// Asks; panics when that is refused.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, form: &str) -> String {
        let answer = self.send(method, path, form).expect("it answers");
        assert_eq!(answer.status(), 200, "{method} {path}: {}", answer.text());
        answer.text()
    }

    /// Registers an instance that needs no beats.
    #[track_caller]
    pub fn put(&self, group: &str, service: &str, at: &str, more: &str) {
        let (ip, port) = at.rsplit_once(':').expect("IP:PORT");
        let about = format!("serviceName={service}&groupName={group}&ip={ip}&port={port}");
        self.ask("POST", "/nacos/v1/ns/instance", &format!("{about}&ephemeral=false&{more}"));
    }

    /// Takes an instance out.
    #[track_caller]
    pub fn delete(&self, group: &str, service: &str, at: &str, ephemeral: bool) {
        let (ip, port) = at.rsplit_once(':').expect("IP:PORT");
        let about = format!("serviceName={service}&groupName={group}&ip={ip}&port={port}&ephemeral={ephemeral}");
        self.ask("DELETE", &format!("/nacos/v1/ns/instance?{about}"), "");
    }

    /// The instances of a service as its own API lists them.
    #[track_caller]
    pub fn hosts(&self, group: &str, service: &str) -> Vec<Value> {
        let page = self.ask("GET", &format!("/nacos/v1/ns/instance/list?serviceName={service}&groupName={group}"), "");
        let page: Value = serde_json::from_str(&page).unwrap();
        page["hosts"].as_array().cloned().unwrap_or_default()
    }
}
