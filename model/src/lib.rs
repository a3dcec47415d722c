//! What agents, registries and the governance centre mean by service, instance and snapshot.
//!
//! Plain data and pure functions: no I/O, no clock, no randomness.

pub mod center;
pub mod command;
pub mod kind;
pub mod share;
pub mod value;

mod metadata;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::metadata::Metadata;

/// Names one service: what callers ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServiceKey {
    /// Interface path or service name, e.g. `com.example.EchoService`.
    pub service: String,
    /// Group, usually a data centre or pool; empty when the site does not use groups.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Version; empty matches any.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.group.is_empty() {
            write!(f, "{}/", self.group)?;
        }
        f.write_str(&self.service)?;
        if !self.version.is_empty() {
            write!(f, ":{}", self.version)?;
        }
        Ok(())
    }
}

/// Weight of an instance that names none. Weights are relative to each other.
pub const DEFAULT_WEIGHT: u32 = 10;

const fn default_weight() -> u32 {
    DEFAULT_WEIGHT
}

/// One running copy of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// `IP:PORT` (`[IPv6]:PORT`).
    pub address: String,
    /// Group this instance belongs to; empty means the group that was asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Share of calls relative to its siblings; 0 takes it out without forgetting it.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// Failure domain, used by zone-aware balancing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// Version of the service it runs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Whatever else the registry knows about it.
    #[serde(default, skip_serializing_if = "Metadata::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::BTreeMap<String, String>))]
    pub metadata: Metadata,
}

impl Instance {
    /// An instance at `address` with defaults for everything else.
    pub fn at(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            group: String::new(),
            weight: DEFAULT_WEIGHT,
            zone: String::new(),
            version: String::new(),
            metadata: Metadata::default(),
        }
    }
}

/// All instances of one service at one moment. Registries publish whole snapshots, so that a slow
/// reader only skips versions and a reconnect needs no difference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Snapshot {
    /// Grows with every change that the registry published.
    pub revision: u64,
    /// In the registry's order, duplicates removed by address and group.
    pub instances: Vec<Instance>,
    /// Why this list is older than what the registry holds (a broken file, a held-back empty list),
    /// for operators; `None` when it is current.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<String>,
}
