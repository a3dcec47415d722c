//! Programs see the callers on whose behalf the agent calls them, by the getpeername hooks of the control groups
//! in which they listen.
//!
//! Which group that is the kernel says of each listening socket. It is the group that the socket was made in,
//! whoever holds it now, and also the one whose hooks run for what the socket accepts.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    os::{
        fd::{AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use ebpf_common::{Client, control, map};
use parking_lot::Mutex;

use super::{
    convert::octets,
    ebpf::open,
    enroll::{self, Cgroup, Links, subgroups},
    pins::Pins,
};
use crate::sys::{
    BpfMap, Hook,
    diag::{Diag, Listening},
};

/// Where the programs behind a service's `local` address are.
#[derive(Debug)]
pub enum Listens {
    /// In these control groups.
    In(Vec<Cgroup>),
    /// Their callers cannot be shown to them, for this reason.
    Unreachable(String),
}

/// Finds the control groups of the sockets that listen on `local` in this network namespace; quickly if they are
/// among `known`, else by looking at every group. Blocks shortly.
pub fn who_listens(local: SocketAddr, known: &[PathBuf]) -> Listens {
    let ids = match Diag::open().and_then(|diag| diag.listeners(local.port())) {
        Ok(found) => match groups(local, &found) {
            Ok(ids) => ids,
            Err(reason) => return Listens::Unreachable(reason),
        },
        Err(error) => return Listens::Unreachable(format!("the kernel does not list who listens: {error}")),
    };
    let Some(mount) = enroll::mount() else {
        return Listens::Unreachable("no cgroup v2 is mounted".to_owned());
    };
    if ids.iter().any(|id| Some(*id) == number(&mount)) {
        return Listens::Unreachable(format!(
            "who listens on {local} is in the root control group, to which everybody belongs: start it in one of its own"
        ));
    }
    let mut found = Vec::new();
    for path in paths(&mount, &ids, known) {
        match Cgroup::open(&path) {
            Ok(group) => found.push(group),
            Err(error) => return Listens::Unreachable(format!("{error:#}")),
        }
    }
    if found.len() < ids.len() {
        return Listens::Unreachable(format!(
            "the control group of who listens on {local} is not below {}",
            mount.display()
        ));
    }
    Listens::In(found)
}

/// Numbers of the control groups of those among `found`, which listen on its port, that `local` leads to.
fn groups(local: SocketAddr, found: &[Listening]) -> Result<BTreeSet<u64>, String> {
    // As the kernel chooses: the address itself before all addresses; those of IPv6 take IPv4 too.
    let exact = |l: &&Listening| l.local.ip() == local.ip();
    let any = |l: &&Listening| l.local.ip().is_unspecified() && (local.is_ipv4() || l.local.is_ipv6());
    let mut leads: Vec<_> = found.iter().filter(exact).collect();
    if leads.is_empty() {
        leads = found.iter().filter(any).collect();
    }
    if leads.is_empty() {
        return Err(format!("nobody listens on {local} yet"));
    }
    let ids: Option<_> = leads.iter().map(|l| l.cgroup).collect();
    ids.ok_or_else(|| "this kernel does not tell the control group of a socket (Linux 5.8 does)".to_owned())
}

/// Control groups with these numbers below `top`, where `known` ones are looked at first.
fn paths(top: &Path, ids: &BTreeSet<u64>, known: &[PathBuf]) -> Vec<PathBuf> {
    let is_one = |path: &Path| number(path).is_some_and(|id| ids.contains(&id));
    let mut found: Vec<_> = known.iter().filter(|path| is_one(path)).cloned().collect();
    if found.len() == ids.len() {
        return found;
    }
    found.clear();
    let mut look = vec![top.to_owned()];
    while let Some(path) = look.pop()
        && found.len() < ids.len()
    {
        if is_one(&path) {
            found.push(path.clone());
        }
        look.extend(subgroups(&path));
    }
    found
}

fn number(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|m| m.ino())
}

/// The table of callers, and the hooks that read it.
pub(super) struct Clients {
    table: BpfMap<u32, Client>,
    programs: Vec<(Hook, OwnedFd)>,
    state: Mutex<State>,
}

struct State {
    links: Links,
    wanted: Vec<Wanted>,
    /// Groups with links.
    linked: BTreeSet<u64>,
}

/// A program that is to see its callers.
struct Wanted {
    /// Where it listens.
    local: SocketAddr,
    /// Its control groups, also while it is being started again.
    groups: Vec<PathBuf>,
    /// What the log says of it: nothing yet, all is well, or what hinders.
    told: Option<Result<(), String>>,
}

impl Clients {
    /// With the getpeername programs among `programs`.
    pub(super) fn new(pins: &Pins, programs: &[(Hook, OwnedFd)]) -> anyhow::Result<Self> {
        let readers = programs.iter().filter(|(hook, _)| matches!(hook, Hook::Peername4 | Hook::Peername6));
        let programs = readers.map(|(hook, fd)| Ok((*hook, fd.try_clone()?))).collect::<io::Result<_>>()?;
        let state = State { links: pins.client_links(), wanted: Vec::new(), linked: BTreeSet::new() };
        Ok(Self { table: open(pins, map::CLIENTS)?, programs, state: Mutex::new(state) })
    }

    /// Whoever accepts the connection that `socket` is about to open sees `client` as its peer.
    pub(super) fn introduce(&self, socket: BorrowedFd<'_>, client: SocketAddr) -> io::Result<()> {
        let client = Client { addr: octets(client.ip()), port: client.port().to_be(), reserved: 0 };
        // The kernel takes the socket behind the descriptor.
        self.table.insert(&(socket.as_raw_fd() as u32), &client)
    }

    /// Shows their callers to the programs that listen on `wanted`, and to no others. `attached` are control
    /// groups that have all hooks already.
    pub(super) fn set(
        &self,
        control: &BpfMap<u32, u64>,
        wanted: &[SocketAddr],
        attached: &BTreeSet<u64>,
    ) -> anyhow::Result<()> {
        let mut state = self.state.lock();
        state.wanted.retain(|known| wanted.contains(&known.local));
        for local in wanted {
            if state.wanted.iter().all(|known| known.local != *local) {
                state.wanted.push(Wanted { local: *local, groups: Vec::new(), told: None });
            }
        }
        control.insert(&control::CLIENTS, &u64::from(!wanted.is_empty())).context("cannot write the control map")?;
        self.look(&mut state, attached, true);
        Ok(())
    }

    /// Looks again where they listen. Nothing here is worth ending for: what goes wrong is told once and tried
    /// again.
    pub(super) fn follow(&self, attached: &BTreeSet<u64>) {
        let mut state = self.state.lock();
        if !state.wanted.is_empty() {
            self.look(&mut state, attached, false);
        }
    }

    fn look(&self, state: &mut State, attached: &BTreeSet<u64>, always: bool) {
        let mut link = Vec::new();
        let mut found = Vec::new();
        for wanted in &mut state.wanted {
            found.push(match who_listens(wanted.local, &wanted.groups) {
                Listens::In(groups) => {
                    wanted.groups = groups.iter().map(|group| group.path.clone()).collect();
                    link.extend(groups);
                    Ok(())
                }
                Listens::Unreachable(reason) => {
                    link.extend(wanted.groups.iter().filter_map(|path| Cgroup::open(path).ok()));
                    if everybody_has_hooks(attached) { Ok(()) } else { Err(reason) }
                }
            });
        }
        link.retain(|group| !has_hooks(&group.path, attached));
        link.sort_by_key(|group| group.id);
        link.dedup_by_key(|group| group.id);
        let ids: BTreeSet<_> = link.iter().map(|group| group.id).collect();
        let mut linked = Ok(());
        if always || ids != state.linked {
            linked = state.links.set(&self.programs, &link.iter().collect::<Vec<_>>()).map_err(|e| format!("{e:#}"));
            if linked.is_ok() {
                state.linked = ids;
            }
        }
        for (wanted, found) in state.wanted.iter_mut().zip(found) {
            wanted.tell(found.and_then(|()| linked.clone()));
        }
    }
}

impl Wanted {
    fn tell(&mut self, now: Result<(), String>) {
        if self.told.as_ref() == Some(&now) {
            return;
        }
        let local = self.local;
        match &now {
            Ok(()) => tracing::info!(%local, "client_address: the program sees its callers"),
            Err(reason) => tracing::warn!(%local, reason, "client_address: the program sees the agent as its peer"),
        }
        self.told = Some(now);
    }
}

/// Whether hooks are attached to the control group at `path` or around it.
fn has_hooks(path: &Path, attached: &BTreeSet<u64>) -> bool {
    !attached.is_empty() && path.ancestors().filter_map(number).any(|id| attached.contains(&id))
}

fn everybody_has_hooks(attached: &BTreeSet<u64>) -> bool {
    enroll::mount().is_some_and(|mount| has_hooks(&mount, attached))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(at: &str, cgroup: u64) -> Listening {
        Listening { local: at.parse().unwrap(), cgroup: Some(cgroup) }
    }

    #[test]
    fn the_address_itself_comes_before_all_addresses() {
        let found = [listening("0.0.0.0:80", 1), listening("127.0.0.1:80", 2), listening("[::]:80", 3)];
        let of = |local: &str| groups(local.parse().unwrap(), &found).map(|ids| ids.into_iter().collect::<Vec<_>>());
        assert_eq!(of("127.0.0.1:80"), Ok(vec![2]));
        assert_eq!(of("10.0.0.1:80"), Ok(vec![1, 3]));
        assert_eq!(of("[::1]:80"), Ok(vec![3]));
        assert_eq!(groups("[::1]:80".parse().unwrap(), &found[..2]), Err("nobody listens on [::1]:80 yet".to_owned()));
    }

    #[test]
    fn an_old_kernel_is_named() {
        let old = [Listening { local: "127.0.0.1:80".parse().unwrap(), cgroup: None }];
        assert!(groups("127.0.0.1:80".parse().unwrap(), &old).unwrap_err().contains("Linux 5.8"));
    }

    #[test]
    fn nobody_listens_on_a_free_port() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let Listens::Unreachable(reason) = who_listens(free, &[]) else { panic!("somebody listens on {free}") };
        assert!(reason.contains("yet"), "{reason}");
    }
}
