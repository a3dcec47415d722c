//! What is counted of the agent itself.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters of the agent itself. They only grow.
#[derive(Debug, Default)]
pub struct AgentCounters {
    /// Connections accepted on any data listener.
    pub accepted: AtomicU64,
    /// Times accepting paused for want of descriptors or memory.
    pub accept_paused: AtomicU64,
    /// Connections on a captured listener that no hook brought.
    pub not_captured: AtomicU64,
    /// Captured connections whose service was gone, carried straight to where they wanted to go.
    pub passed_through: AtomicU64,
    /// Undeclared connections found to be Motan2.
    pub detected_motan2: AtomicU64,
    /// Undeclared connections found to be HTTP.
    pub detected_http: AtomicU64,
    /// Undeclared connections taken for raw TCP.
    pub detected_tcp: AtomicU64,
}

impl AgentCounters {
    /// Counts what detection found.
    pub fn detected(&self, protocol: &str) {
        let counter = match protocol {
            "motan2" => &self.detected_motan2,
            "http" => &self.detected_http,
            _ => &self.detected_tcp,
        };
        counter.fetch_add(1, Relaxed);
    }
}
