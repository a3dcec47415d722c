//! How instances are written down: `IP:PORT`, or a mapping with more to say.

use model::Instance;
use serde::Deserialize;

/// An instance in either form.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "an instance is IP:PORT or a mapping {address, group, weight, zone, version, metadata}")]
pub(super) enum Entry {
    Address(String),
    Full(Instance),
}

impl From<Entry> for Instance {
    fn from(entry: Entry) -> Self {
        match entry {
            Entry::Address(address) => Self::at(address),
            Entry::Full(instance) => instance,
        }
    }
}
