//! How connections of local programs come to the agent.

pub mod balance;
pub mod clients;
mod convert;
pub mod ebpf;
pub mod enroll;
mod inbound;
pub mod iptables;
pub mod kernel_log;
mod lock;
mod names;
pub mod pins;
pub mod port;
pub mod redirect;
pub mod rights;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::BorrowedFd,
    sync::Arc,
};

use anyhow::Context as _;
use ebpf_common::dns::DnsListener;
use serde::Serialize;
use tokio::net::TcpStream;

use self::enroll::{Matched, space::Space};
use crate::{
    config::{CaptureMode, Config, Enroll, Exempt, OnAgentLoss, VirtualAddress},
    stream::{Meter, OwnSockets, Socket},
};

/// A way to capture connections.
pub trait Capture: Send + Sync + 'static {
    /// Name for operators: `ebpf`, `iptables`, `port`.
    fn name(&self) -> &'static str;

    /// Whether captured connections arrive on the agent's outbound listener.
    fn needs_listener(&self) -> bool {
        true
    }

    /// Brings connections to destinations in `table` to the agent from now on, replacing the table of
    /// before as a whole. Connections that exist are not touched.
    fn apply(&self, table: &CaptureTable) -> anyhow::Result<()>;

    /// Where the agent must listen for connections from elsewhere: IPv4, IPv6.
    fn inbound_at(&self) -> [IpAddr; 2] {
        [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
    }

    /// Brings connections from elsewhere to these listeners, at most one of each family. Called before the
    /// first table that has any.
    fn listen_inbound(&self, _listeners: &[TcpListener]) -> anyhow::Result<()> {
        anyhow::bail!(
            "`services[].inbound` needs `capture: ebpf` or `iptables`, here it is `{}`: take `inbound` out, or use `export`",
            self.name()
        )
    }

    /// The address that a caller from elsewhere dialed, whose connection was accepted on one of these listeners. An
    /// error means that it dialed the listener itself.
    fn inbound_destination(&self, conn: &TcpStream) -> io::Result<SocketAddr> {
        conn.local_addr()
    }

    /// Where a captured connection, accepted on the agent's outbound listener, wanted to go, and who made
    /// it. An error means that it was not captured (someone dialled the listener) or that it is unknown.
    fn origin(&self, conn: &TcpStream) -> io::Result<Origin>;

    /// Shows that the agent is alive; called ten times a second. Without it the kernel half sends
    /// connections directly.
    fn beat(&self) {}

    /// Whether programs can be enrolled and released while the agent runs.
    fn can_enroll(&self) -> bool {
        false
    }

    /// Looks again who is enrolled, as control groups come and go; called twice a second. Blocks shortly.
    fn refresh(&self) {}

    /// Network namespaces besides the agent's own in which enrolled programs live: the agent should listen there.
    /// With `all` every program is looked at, which takes longer. Blocks shortly.
    fn spaces(&self, _all: bool) -> Vec<Space> {
        Vec::new()
    }

    /// Brings connections made in `space` to `listeners` there, IPv4 and IPv6 loopback; with none they are left
    /// alone.
    fn set_space(&self, _space: &Space, _listeners: &[SocketAddr]) -> io::Result<()> {
        Ok(())
    }

    /// What each entry of the last table stands for, and why network namespaces could not be entered.
    fn matched(&self) -> (Vec<Matched>, Vec<String>) {
        (Vec::new(), Vec::new())
    }

    /// No further connection is captured; those that exist go on. First step of a stop.
    fn stop_capturing(&self) {}

    /// Brings the kernel's tables of endpoints up to date, ends idle connections to endpoints that have left;
    /// called ten times a second, and cheap when nothing has changed.
    fn balance(&self, _services: &[balance::Straight]) {}

    /// What connects that were sent straight to an endpoint came to, by endpoint and caller.
    fn uses(&self) -> Vec<balance::Used> {
        Vec::new()
    }

    /// Endpoints to which such connects failed.
    fn failures(&self) -> Vec<balance::Failing> {
        Vec::new()
    }

    /// Such a connect failed before a SYN left, which the kernel half does not notice: service number, endpoint.
    fn failed(&self, _number: u32, _endpoint: SocketAddr) {}

    /// Such connections that exist now.
    fn connections(&self) -> Vec<balance::Connection> {
        Vec::new()
    }

    /// Takes everything back: programs, maps, links, pins. A crash skips this, and the next start adopts
    /// or replaces what it left.
    fn uninstall(&self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Brings questions for names (UDP and TCP port 53), asked in `space` or in the agent's own network namespace,
    /// to `at` there from now on, or to nobody. Captures that cannot do that do nothing: [`names`](Self::names)
    /// tells.
    fn answer_names(&self, _space: Option<&Space>, _at: Option<DnsListener>) -> anyhow::Result<()> {
        Ok(())
    }

    /// Whether questions for names can be brought to the agent.
    fn names(&self) -> bool {
        false
    }

    /// The resolver that a question over UDP was for, by the number that stands for it.
    fn resolver(&self, _number: u32) -> Option<IpAddr> {
        None
    }

    /// Whether programs can be shown the addresses of the callers that the agent calls them for.
    fn can_introduce(&self) -> bool {
        false
    }

    /// Has whoever accepts the connection that `socket` is about to open see `client` as its peer. For services
    /// of [`CaptureTable::clients`].
    fn introduce(&self, _socket: BorrowedFd<'_>, _client: SocketAddr) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Mark that the agent's own sockets must carry to be left alone by this capture.
    fn mark(&self) -> Option<u32> {
        None
    }

    /// Bytes past TCP, where this capture can do that.
    fn redirect(&self) -> Option<Arc<redirect::Redirect>> {
        None
    }

    /// What this capture wants of the agent's own sockets.
    fn own_sockets(&self) -> OwnSockets {
        let meter = self.redirect().filter(|redirect| redirect.is_possible());
        OwnSockets { mark: self.mark(), meter: meter.map(|redirect| redirect as Arc<dyn Meter>) }
    }

    /// Counters of every outcome, by name.
    fn counters(&self) -> BTreeMap<&'static str, u64> {
        BTreeMap::new()
    }
}

/// What is captured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureTable {
    /// Destinations and what happens to them when the agent is gone.
    pub destinations: Vec<(VirtualAddress, OnAgentLoss)>,
    /// Services whose connects are sent straight to an endpoint.
    pub straight: Vec<balance::Straight>,
    /// The agent's listeners for captured connections, IPv4 and IPv6 loopback.
    pub listeners: Vec<SocketAddr>,
    /// Destinations of callers from elsewhere; the address `0.0.0.0` stands for every local one.
    pub inbound: Vec<VirtualAddress>,
    /// Where programs listen that are shown the addresses of the callers that the agent calls them for.
    pub clients: Vec<SocketAddr>,
    /// Whose connections.
    pub enroll: Vec<Enroll>,
    /// What rules leave alone; the mode `iptables` only.
    pub exempt: Exempt,
    /// Whether bytes go past TCP.
    pub redirect: crate::config::Redirect,
}

/// Where a captured connection wanted to go, and who made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// The address the program asked for, IPv4 in its plain form.
    pub destination: SocketAddr,
    /// Process that called `connect`, 0 when unknown.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its name at that moment.
    pub process: String,
    /// The agent's end, where bytes may go past TCP.
    #[serde(skip)]
    pub socket: Option<Socket>,
}

impl Origin {
    /// A connection of an unknown program to `destination`.
    pub fn of(destination: SocketAddr) -> Self {
        Self { destination, pid: 0, uid: 0, process: String::new(), socket: None }
    }
}

/// What was chosen and why, for operators.
pub struct Chosen {
    /// The capture in use.
    pub capture: Arc<dyn Capture>,
    /// One sentence: what it is, and in `auto` why not something better.
    pub reason: String,
}

/// Builds the capture that `config` asks for. `auto` takes eBPF where this host can and somebody is
/// enrolled, then iptables, else port, and says why. With `kernel_log`, the programs' own words go to the log (target
/// [`kernel_log::TARGET`]). An error names what is missing and the remedy; an agent of the same name that
/// runs already is an error in `auto` too.
pub fn choose(config: &Config, kernel_log: Option<tracing::Level>) -> anyhow::Result<Chosen> {
    let load = || {
        let ebpf = ebpf::Ebpf::load(&config.name, &config.capture, kernel_log)?;
        if config.has_inbound() {
            ebpf.inbound_usable()?;
        }
        anyhow::Ok(ebpf)
    };
    let captured = |ebpf| Chosen {
        capture: Arc::new(ebpf),
        reason: format!("connect hooks, {} enrolled by the configuration", config.capture.enroll.len()),
    };
    let port = |reason: String| Chosen { capture: Arc::new(port::Port), reason };
    let rules = || -> anyhow::Result<Chosen> {
        remove_hooks_left(config);
        let rules = iptables::Iptables::prepare(config)?;
        let reason = rules.reason(&config.capture.enroll);
        Ok(Chosen { capture: Arc::new(rules), reason })
    };
    match config.capture.mode {
        CaptureMode::Port => {
            // An agent of this name that was killed while it captured must not go on refusing connects.
            remove_hooks_left(config);
            remove_rules_left(config);
            Ok(port("asked for: programs dial the agent's own listeners".to_owned()))
        }
        CaptureMode::Ebpf => {
            let ebpf = load().context("capture: ebpf")?;
            remove_rules_left(config);
            Ok(captured(ebpf))
        }
        CaptureMode::Iptables => rules().context("capture: iptables"),
        CaptureMode::Auto if config.capture.enroll.is_empty() && !config.has_inbound() && !config.has_introduced() => {
            remove_rules_left(config);
            Ok(port("nothing is enrolled".to_owned()))
        }
        CaptureMode::Auto => {
            let no_ebpf = match load() {
                Ok(ebpf) => {
                    remove_rules_left(config);
                    return Ok(captured(ebpf));
                }
                Err(e) if e.downcast_ref::<lock::NameTaken>().is_some() => return Err(e),
                Err(e) => format!("no eBPF here: {e:#}"),
            };
            match rules() {
                Ok(Chosen { capture, reason }) => Ok(Chosen { capture, reason: format!("{reason}; {no_ebpf}") }),
                Err(e) if e.downcast_ref::<lock::NameTaken>().is_some() => Err(e),
                Err(e) => {
                    remove_rules_left(config);
                    Ok(port(format!("{no_ebpf}; no iptables here: {e:#}")))
                }
            }
        }
    }
}

fn remove_hooks_left(config: &Config) {
    if let Err(error) = ebpf::remove_left(&config.name, &config.capture) {
        tracing::warn!(error = format!("{error:#}"), "cannot remove what an agent before left in the kernel");
    }
}

fn remove_rules_left(config: &Config) {
    match iptables::remove_left(&config.name) {
        Ok(true) => tracing::info!("removed the redirecting rules that an agent before left"),
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "cannot remove the redirecting rules that an agent before left"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_without_anyone_enrolled_is_port() {
        let chosen = choose(&Config::default(), None).unwrap();
        assert_eq!(chosen.capture.name(), "port");
        assert_eq!(chosen.reason, "nothing is enrolled");
    }

    #[test]
    fn auto_falls_back_and_says_why() {
        let mut config = Config { name: format!("fallback-{}", std::process::id()), ..Config::default() };
        config.capture.enroll = vec![Enroll::cgroup("/nowhere/at/all")];
        let chosen = choose(&config, None).unwrap();
        assert_eq!(chosen.capture.name(), "port");
        assert!(chosen.reason.starts_with("no eBPF here: "), "{}", chosen.reason);
        assert!(chosen.reason.contains("; no iptables here: "), "{}", chosen.reason);
        config.capture.mode = CaptureMode::Ebpf;
        let error = format!("{:#}", choose(&config, None).map(|c| c.reason).unwrap_err());
        assert!(error.starts_with("capture: ebpf: "), "{error}");
        config.capture.mode = CaptureMode::Iptables;
        let error = format!("{:#}", choose(&config, None).map(|c| c.reason).unwrap_err());
        assert!(error.starts_with("capture: iptables: "), "{error}");
    }
}
