//! Protocols: a server half that turns a connection into calls, a client half that sends them.

pub mod forward;
pub mod http1;
pub mod locations;
pub mod motan2;
pub mod tcp;
#[cfg(test)]
mod testing;
mod upstream;

use std::sync::Arc;

use futures_util::future::BoxFuture;

pub use self::upstream::{UPSTREAMS, Upstream};
pub use crate::accept::Accepted;
use crate::{
    config,
    drain::Drain,
    endpoint::Connector,
    kind::{self, BuildCx},
    route::Route,
};

/// Protocols by name. Detection asks them in this order; the last one takes everything.
///
/// A protocol has no options of its own in the YAML: what it needs is in the host's limits and in
/// each cluster, so its builder takes those instead of a YAML value.
pub const KINDS: &[ProtocolKind] = &[
    ProtocolKind { name: motan2::NAME, build: motan2::build },
    ProtocolKind { name: http1::NAME, build: http1::build },
    ProtocolKind { name: tcp::NAME, build: tcp::build },
];

/// A row of [`KINDS`].
pub struct ProtocolKind {
    /// The word in the configuration.
    pub name: &'static str,
    /// Builds it.
    pub build: fn(&config::Limits) -> Arc<dyn Protocol>,
}

/// What the first bytes of a connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detect {
    /// This protocol.
    Yes,
    /// Not this protocol.
    No,
    /// So far it could be; more bytes will tell.
    NeedMore,
}

/// One wire protocol.
pub trait Protocol: Send + Sync + 'static {
    /// Whether a connection beginning with `prefix` (at least one byte) is of this protocol.
    fn detect(&self, prefix: &[u8]) -> Detect;

    /// Serves a connection until either side ends it, sending its calls along `route`. On
    /// [`Drain::graceful`] it finishes what it holds, tells the peer and closes; on
    /// [`Drain::forced`] the future is dropped by the caller.
    fn serve(
        self: Arc<Self>,
        conn: Accepted,
        route: Arc<Route>,
        drain: Drain,
    ) -> BoxFuture<'static, Result<(), ConnError>>;

    /// The client half for one cluster.
    fn connector(&self, config: &config::Cluster, cx: &BuildCx) -> anyhow::Result<Arc<dyn Connector>>;
}

/// The client half for one cluster of `protocol`: its own, or that of the upstream that the cluster names.
pub fn connector(
    protocol: &dyn Protocol,
    config: &config::Cluster,
    limits: &config::Limits,
    cx: &BuildCx,
) -> anyhow::Result<Arc<dyn Connector>> {
    let Some(named) = &config.upstream else { return protocol.connector(config, cx) };
    let upstream = kind::build("upstream", UPSTREAMS, &named.name, &named.options, cx)?;
    Ok(upstream.connector(config, limits, cx))
}

/// Why a connection ended other than by its peer's orderly close. For the debug log and counters only:
/// callers see what the protocol says.
#[derive(Debug, thiserror::Error)]
pub enum ConnError {
    /// Reading or writing failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The peer sent something that is not this protocol, or over a limit.
    #[error("{0}")]
    Protocol(String),
    /// Nothing went wrong but nothing could be done either (no endpoint, no cluster).
    #[error("{0}")]
    Unserved(String),
}
