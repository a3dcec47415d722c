//! Inbound: connections from other hosts or namespaces, for services that local programs provide, come to
//! the agent by an `sk_lookup` program. The accepted socket's own address is the one that the caller dialed.
//! Nothing is attached while no service asks for it.

use std::{
    collections::HashSet,
    fs::{self, File},
    net::TcpListener,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::PathBuf,
};

use anyhow::{Context as _, bail};
use ebpf_common::{MAX_INBOUND, ServiceKey, inbound, map, program};

use super::{
    convert::service_key,
    ebpf::{load_program, open, refusal},
    pins::Pins,
};
use crate::{
    config::VirtualAddress,
    sys::{self, BpfMap, Hook},
};

/// The program and its tables.
pub struct Inbound {
    table: BpfMap<ServiceKey, u32>,
    sockets: BpfMap<u32, u32>,
    /// None with the reason where the kernel refuses it: Linux before 5.17.
    program: Result<OwnedFd, String>,
    link: PathBuf,
}

impl Inbound {
    /// Loads the program; attaches nothing. A kernel that refuses it costs `inbound`, not the capture.
    pub fn load(ebpf: &mut aya::Ebpf, pins: &Pins) -> anyhow::Result<Self> {
        let program = load_program(ebpf, program::INBOUND).map_err(|e| format!("{:#}", refusal(program::INBOUND, &e)));
        Ok(Self {
            table: open(pins, map::INBOUND)?,
            sockets: open(pins, map::IN_SOCKETS)?,
            program,
            link: pins.file("inbound"),
        })
    }

    /// An error where nothing can be brought here, with the reason.
    pub fn usable(&self) -> anyhow::Result<()> {
        self.program().map(|_| ())
    }

    fn program(&self) -> anyhow::Result<&OwnedFd> {
        self.program.as_ref().map_err(|reason| anyhow::anyhow!("`services[].inbound` cannot be had: {reason}"))
    }

    /// Brings connections to `listeners`, at most one of each family, from now on.
    pub fn listen(&self, listeners: &[TcpListener]) -> anyhow::Result<()> {
        self.usable()?;
        for listener in listeners {
            let v6 = listener.local_addr().context("a listener without address")?.is_ipv6();
            let place = if v6 { inbound::LISTENER_V6 } else { inbound::LISTENER_V4 };
            // The kernel takes the socket behind the descriptor.
            self.sockets
                .insert(&place, &(listener.as_raw_fd() as u32))
                .context("cannot put the inbound listener into the kernel's table")?;
        }
        Ok(())
    }

    /// Captures exactly `wanted` from now on, where the address `0.0.0.0` stands for every local one.
    pub fn set(&self, wanted: &[VirtualAddress]) -> anyhow::Result<()> {
        let wanted: HashSet<ServiceKey> = wanted.iter().map(key).collect();
        if wanted.len() > MAX_INBOUND {
            bail!("{} inbound addresses, the kernel's table holds {MAX_INBOUND}", wanted.len());
        }
        for gone in self.table.keys(MAX_INBOUND)?.into_iter().filter(|key| !wanted.contains(key)) {
            self.table.remove(&gone).context("cannot remove an inbound address from the kernel's table")?;
        }
        for key in &wanted {
            self.table.insert(key, &1).context("cannot add an inbound address to the kernel's table")?;
        }
        if wanted.is_empty() { self.detach() } else { self.attach() }
    }

    fn attach(&self) -> anyhow::Result<()> {
        let program = self.program()?.as_fd();
        let netns = File::open("/proc/self/ns/net").context("cannot open this network namespace")?;
        if let Ok(link) = sys::obj_get(&self.link) {
            // One of an agent before this one serves on, with the program of now; else it is of another namespace.
            if sys::link_update(link.as_fd(), program).is_ok() {
                return Ok(());
            }
            self.detach()?;
        }
        let link = sys::link_create(program, netns.as_fd(), Hook::SkLookup)
            .context("cannot attach the inbound program to this network namespace")?;
        sys::obj_pin(link.as_fd(), &self.link).with_context(|| format!("cannot pin {}", self.link.display()))
    }

    fn detach(&self) -> anyhow::Result<()> {
        match fs::remove_file(&self.link) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("cannot remove {}", self.link.display()))
            }
            _ => Ok(()),
        }
    }
}

fn key(address: &VirtualAddress) -> ServiceKey {
    match address.ip.is_unspecified() {
        true => inbound::any_address(address.port.unwrap_or(0).to_be()),
        false => service_key(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unspecified_address_stands_for_all() {
        let all = |ip: &str| key(&VirtualAddress { ip: ip.parse().unwrap(), port: Some(80) });
        assert_eq!(all("0.0.0.0"), all("::"));
        assert_eq!(all("0.0.0.0").addr, [0; 16]);
        assert_eq!(all("10.0.0.5").addr, ebpf_common::mapped([10, 0, 0, 5]));
    }
}
