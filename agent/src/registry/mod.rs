//! Where lists of endpoints come from. Registries publish whole snapshots and never see a call.

mod direct;
mod file;

use std::sync::Arc;

use model::{ServiceKey, Snapshot};
use tokio::sync::watch;

use crate::kind::Kind;

/// Registries by name.
pub const KINDS: &[Kind<dyn Registry>] =
    &[Kind { name: "direct", build: direct::build }, Kind { name: "file", build: file::build }];

/// A source of endpoint lists. Runs on the control runtime.
pub trait Registry: Send + Sync + 'static {
    /// The instances of `service`, now and at every change. The value in the channel is the last good
    /// list; a source that is gone or broken keeps it and says so in [`Snapshot::stale`]. Starts with
    /// what is known at once (revision 0 and no instances if nothing is).
    fn watch(&self, service: &ServiceKey) -> watch::Receiver<Arc<Snapshot>>;
}
