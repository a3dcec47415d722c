//! A Prometheus that scrapes every second.

use std::net::SocketAddr;

use crate::{Cmd, Temp, free_port, need::which, program::Server};

/// A running Prometheus, stopped on drop.
pub struct Prometheus(pub Server);

impl Prometheus {
    /// Starts one that scrapes `/metrics` of these. Needs the program `prometheus`.
    #[track_caller]
    pub fn start(targets: &[SocketAddr]) -> Self {
        let (dir, addr) = (Temp::new(), SocketAddr::from(([127, 0, 0, 1], free_port())));
        let targets: Vec<_> = targets.iter().map(|target| format!("'{target}'")).collect();
        let config = dir.write(
            "prometheus.yml",
            format!(
                "global: {{scrape_interval: 1s}}\nscrape_configs:\n\
                 - {{job_name: sockmesh, static_configs: [{{targets: [{}]}}]}}\n",
                targets.join(", ")
            ),
        );
        let cmd = Cmd::new(which("prometheus").expect("asked for before"))
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.file("data").display()))
            .arg(format!("--web.listen-address={addr}"));
        Self(Server::start(addr, dir, cmd))
    }

    /// Where its API is.
    pub fn addr(&self) -> SocketAddr {
        self.0.addr()
    }
}
