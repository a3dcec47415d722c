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
    /// Has questions from the network namespace `netns` brought to `at`, and from no other.
    pub(super) fn set(&self, netns: u64, at: Option<DnsListener>) -> io::Result<()> {
        for key in self.listeners.keys(MAX_LISTENERS)? {
            if key != netns || at.is_none() {
                self.listeners.remove(&key)?;
            }
        }
        at.map_or(Ok(()), |at| self.listeners.insert(&netns, &at))
    }

    /// The resolver with this number.
    pub(super) fn resolver(&self, number: u32) -> Option<IpAddr> {
        let address = self.resolvers.get(&number).ok()??;
        Some(socket_addr(address, 0).ip())
    }
}
