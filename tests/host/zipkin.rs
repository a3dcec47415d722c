//! A Zipkin that keeps its spans in memory.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;

use crate::{
    Cmd, Proc, Temp, free_port, http,
    need::{peer, which},
    wait::within,
};

/// How long it may take to be there: it starts for a quarter of a minute on a machine that does nothing else.
const START: Duration = Duration::from_secs(180);

/// A running Zipkin, killed on drop.
pub struct Zipkin {
    addr: SocketAddr,
    _proc: Proc,
    _dir: Temp,
}

impl Zipkin {
    /// Starts one and waits until it is well. Needs the peer `zipkin`.
    #[track_caller]
    pub fn start() -> Self {
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let dir = Temp::new();
        let port = |key: &str, value: &str| format!("--armeria.ports[0].{key}={value}");
        let java = which("java").expect("the peer needs it");
        let cmd = Cmd::new(java).args(["-Xmx256m", "-jar"]).arg(peer("zipkin").join("zipkin.jar").display()).args([
            port("ip", "127.0.0.1"),
            port("port", &addr.port().to_string()),
            port("protocols[0]", "http"),
        ]);
        let mut proc = cmd.spawn(&dir.file("log"));
        let well = within(START, || {
            let end = proc.ended();
            assert!(end.is_none(), "Zipkin ended: {end:?}\n{}", proc.said());
            http::get(addr, "/health").ok().filter(|answer| answer.status() == 200)
        });
        assert!(well.is_some(), "Zipkin is not well after {START:?}\n{}", proc.said());
        Self { addr, _proc: proc, _dir: dir }
    }

    /// Where its API is.
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The spans of a trace; `None` while it knows none.
    pub fn trace(&self, id: &str) -> Option<Vec<Value>> {
        let answer = http::get(self.addr, &format!("/api/v2/trace/{id}")).ok().filter(|a| a.status() == 200)?;
        serde_json::from_slice(&answer.body).ok()
    }
}
