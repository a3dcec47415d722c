//! The kernel's tables for questions for names.

use std::{io, net::IpAddr};

use ebpf_common::{Address, MAX_LISTENERS, dns::DnsListener};

use super::convert::socket_addr;
use crate::sys::BpfMap;

/// Where questions are answered, and which resolvers were asked.
pub(super) struct NameMaps {
    pub(super) listeners: BpfMap<u64, DnsListener>,
    pub(super) resolvers: BpfMap<u32, Address>,
}

impl NameMaps {
    /// Has no question brought to anybody.
    pub(super) fn clear(&self) -> io::Result<()> {
        self.listeners.keys(MAX_LISTENERS)?.iter().try_for_each(|netns| self.listeners.remove(netns))
    }

    /// Has questions from the network namespace `netns` brought to `at`, or to nobody.
    pub(super) fn set(&self, netns: u64, at: Option<DnsListener>) -> io::Result<()> {
        match at {
            Some(at) => self.listeners.insert(&netns, &at),
            None => self.listeners.remove(&netns),
        }
    }

    /// The resolver with this number.
    pub(super) fn resolver(&self, number: u32) -> Option<IpAddr> {
        let address = self.resolvers.get(&number).ok()??;
        Some(socket_addr(address, 0).ip())
    }
}
