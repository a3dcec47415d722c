//! A caller's agent and a server's agent, one behind the other: ours, and the agents of Weibo Mesh.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use super::{
    cell::MOTAN,
    peers,
    way::{ADMIN, DIALED, Way},
};
use crate::{build, demo::process};

/// Added to a server's port where the server's agent takes calls.
const EXPORTED: u16 = 12_000;
/// The management port of the server's agent; the caller's has the usual one.
const FAR_ADMIN: &str = "127.0.0.1:8003";
/// The service that all of it is about.
const SERVICE: &str = "bench.Echo";

/// One agent to start, and how to see that it serves.
pub struct Launch {
    pub command: Command,
    pub ready: Ready,
}

/// When an agent serves.
pub enum Ready {
    /// Its admin API says so.
    Says(SocketAddr),
    /// All of these accept.
    Accepts(Vec<SocketAddr>),
}

impl Ready {
    /// Whether it serves now.
    pub fn now(&self) -> bool {
        match self {
            Self::Says(admin) => process::answers(*admin, "/ready"),
            Self::Accepts(all) => all.iter().all(|addr| process::accepts(*addr)),
        }
    }
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The agents of a pair, the server's first. Their files are written into `dir`.
pub fn launches(way: Way, name: &str, dir: &Path) -> Result<[Launch; 2]> {
    let (_, server) = MOTAN[0];
    let (listen, export) = (at(server + DIALED), at(server + EXPORTED));
    match way {
        Way::Pair => {
            let one = |side: &str, admin: &str, services: String| -> Result<Launch> {
                let folder = folder(dir, side)?;
                let file = folder.join("mesh.yaml");
                let text = format!(
                    "name: {name}-{side}\napplication: bench\ndrain: 1s\nports: {{admin: \"{admin}\", outbound: 0, \
                     inbound: 0, dns: 0}}\ncapture: port\naccess_log: {{path: access.log}}\n{services}"
                );
                fs::write(&file, text)?;
                let mut command = Command::new(build::agent());
                command.args(["run", "-c"]).arg(&file).env_remove("RUST_BACKTRACE");
                Ok(Launch { command, ready: Ready::Says(admin.parse()?) })
            };
            let common = format!("service: {SERVICE}, group: bench, protocol: motan2, filters: [access_log, metrics]");
            let far = format!("services:\n  - {{{common}, export: \"{export}\", local: \"{}\"}}\n", at(server));
            let near = format!("referers:\n  - {{{common}, listen: \"{listen}\", endpoints: [\"{export}\"]}}\n");
            Ok([one("far", FAR_ADMIN, far)?, one("near", ADMIN, near)?])
        }
        Way::MotanGoPair => {
            let program = peers::motan_go_binary()?;
            let one = |side: &str, ports: [u16; 4], rest: String, ready: SocketAddr| -> Result<Launch> {
                let folder = folder(dir, side)?;
                let file = folder.join("motan.yaml");
                let [port, mport, eport, hport] = ports;
                let text = format!(
                    "motan-agent:\n  port: {port}\n  mport: {mport}\n  eport: {eport}\n  hport: {hport}\n  log_dir: {}\n  \
                     application: bench\n{rest}",
                    folder.display()
                );
                fs::write(&file, text)?;
                let mut command = Command::new(&program);
                command.arg("-c").arg(&file).current_dir(&folder);
                Ok(Launch { command, ready: Ready::Accepts(vec![ready]) })
            };
            let common = format!(
                "    path: {SERVICE}\n    group: bench\n    protocol: motan2\n    registry: direct\n    serialization: \
                 simple\n    requestTimeout: 5000\n    filter: \"accessLog,metrics\"\n"
            );
            let registry = |to: SocketAddr| {
                format!(
                    "motan-registry:\n  direct: {{protocol: direct, host: 127.0.0.1, port: {}, address: \"{to}\"}}\n",
                    to.port()
                )
            };
            let far = format!(
                "{}motan-service:\n  bench:\n{common}    export: \"motan2:{}\"\n    proxy: \"motan2:{server}\"\n    \
                 provider: motan2\n",
                registry(export),
                export.port()
            );
            let near = format!(
                "{}motan-refer:\n  bench:\n{common}    haStrategy: failover\n    loadbalance: random\n",
                registry(export)
            );
            Ok([
                one("far", [9991, 8003, 9992, 9993], far, export)?,
                one("near", [listen.port(), 8002, 9982, 9983], near, listen)?,
            ])
        }
        _ => bail!("{} is no pair", way.name()),
    }
}

fn folder(dir: &Path, side: &str) -> Result<PathBuf> {
    let folder = dir.join(side);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_agent_leads_to_the_servers() {
        let dir = std::env::temp_dir().join(format!("sockmesh-pair-{}", std::process::id()));
        let [far, near] = launches(Way::Pair, "bench-1", &dir).unwrap();
        let text = |side: &str| fs::read_to_string(dir.join(side).join("mesh.yaml")).unwrap();
        assert!(text("far").contains("export: \"127.0.0.1:19006\", local: \"127.0.0.1:7006\""));
        assert!(text("near").contains("listen: \"127.0.0.1:17006\", endpoints: [\"127.0.0.1:19006\"]"));
        assert!(matches!((far.ready, near.ready), (Ready::Says(f), Ready::Says(n)) if f != n));
        fs::remove_dir_all(&dir).unwrap();
    }
}
