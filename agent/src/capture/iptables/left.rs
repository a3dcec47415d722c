//! What an agent put into a network namespace, written down so that the next one can take it back.
//!
//! Rules are known by their names; routes need the file, because one of the same kind may be somebody else's.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
};

use anyhow::Context as _;

use super::backend::run;
use crate::capture::lock;

/// Number of our routes' origin (`ip route ... proto`), so that `ip route show table local proto 109` lists them.
const PROTOCOL: &str = "109";

/// The notes about one network namespace, kept in `/run/sockmesh`, which a reboot empties as it does the kernel.
#[derive(Debug)]
pub struct Left {
    path: PathBuf,
    /// The agent that wrote them.
    pub name: String,
    /// Addresses that it made routes for.
    pub routes: BTreeSet<IpAddr>,
}

/// Number of this network namespace.
pub fn namespace() -> anyhow::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net").context("cannot tell the network namespace: is /proc mounted?")?.ino())
}

impl Left {
    /// The notes of this network namespace, if there are any.
    pub fn read() -> anyhow::Result<Option<Self>> {
        let path = lock::dir().join(format!("rules-{}", namespace()?));
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let mut lines = text.lines();
        let name = lines.next().unwrap_or_default().to_owned();
        Ok(Some(Self { path, name, routes: lines.filter_map(|l| l.parse().ok()).collect() }))
    }

    /// Those of before under the name of this agent, or empty ones.
    pub fn adopt(name: &str) -> anyhow::Result<Self> {
        let path = lock::dir().join(format!("rules-{}", namespace()?));
        let routes = Self::read()?.map(|left| left.routes).unwrap_or_default();
        Ok(Self { path, name: name.to_owned(), routes })
    }

    /// Writes them down. To be called before what they tell of is done.
    pub fn write(&self) -> anyhow::Result<()> {
        let mut text = format!("{}\n", self.name);
        for route in &self.routes {
            let _ = writeln!(text, "{route}");
        }
        let dir = lock::dir();
        fs::create_dir_all(&dir)
            .and_then(|()| fs::write(&self.path, text))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Makes a route for each of `wanted` that cannot be reached, and takes back those of ours that are not
    /// wanted any more.
    pub fn set_routes(&mut self, wanted: &BTreeSet<IpAddr>) -> anyhow::Result<()> {
        let (gone, kept): (BTreeSet<_>, BTreeSet<_>) = self.routes.iter().partition(|ip| !wanted.contains(ip));
        for ip in &gone {
            // Somebody may have taken it away already; what counts is that it is not there.
            if let Err(error) = route("del", *ip) {
                tracing::debug!(%ip, error = format!("{error:#}"), "a route of ours was gone");
            }
        }
        self.routes = kept;
        let missing: Vec<_> = wanted.iter().copied().filter(|ip| unreachable(*ip)).collect();
        if !gone.is_empty() || !missing.is_empty() {
            self.routes.extend(&missing);
            self.write()?;
        }
        for ip in missing {
            route("replace", ip).with_context(|| format!("cannot make a route to the service's address {ip}"))?;
        }
        Ok(())
    }

    /// Takes the routes back and forgets everything.
    pub fn clear(&mut self) -> anyhow::Result<()> {
        self.set_routes(&BTreeSet::new())?;
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a connect to `ip` would fail at once for want of a route, before any rule sees it.
fn unreachable(ip: IpAddr) -> bool {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A UDP connect looks for a route and sends nothing.
    let Err(error) = UdpSocket::bind((any, 0)).and_then(|s| s.connect(SocketAddr::new(ip, 9))) else { return false };
    let no_route = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| no_route.contains(&code))
}

fn route(verb: &str, ip: IpAddr) -> anyhow::Result<()> {
    // Local, because the kernel turns any other IPv6 route over `lo` into a refusal.
    let (family, bits, from) = if ip.is_ipv4() { ("-4", 32, "127.0.0.1") } else { ("-6", 128, "::1") };
    let to = format!("{ip}/{bits}");
    let table = ["table", "local", "proto", PROTOCOL];
    let args = [family, "route", verb, "local", &to, "dev", "lo", "src", from];
    run("ip", &[&args[..], &table[..]].concat(), "").map(drop)
}
