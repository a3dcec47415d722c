//! HTTP/1.1, through hyper, with a stricter look at requests than hyper's own. `docs/wire/http1.md` says
//! what is promised.

mod body;
mod client;
mod framer;
mod guard;
mod head;
mod headers;
mod pool;
mod reply;
mod server;
#[cfg(test)]
mod tests;
mod upgrade;
mod whole;

use std::sync::Arc;

use futures_util::future::BoxFuture;

pub(super) use self::client::HttpConnector;
use super::{Accepted, ConnError, Detect, Protocol};
use crate::{config, drain::Drain, endpoint::Connector, kind::BuildCx, route::Route};

/// Name in the configuration.
pub const NAME: &str = "http";

/// Methods by which an undeclared connection is recognized (RFC 9110 and 5789).
const METHODS: [&[u8]; 9] =
    [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"TRACE ", b"CONNECT "];

/// Builds the protocol.
pub(super) fn build(limits: &config::Limits) -> Arc<dyn Protocol> {
    Arc::new(Http1 { limits: limits.clone() })
}

struct Http1 {
    limits: config::Limits,
}

impl Protocol for Http1 {
    fn detect(&self, prefix: &[u8]) -> Detect {
        let mut undecided = false;
        for method in METHODS {
            if prefix.starts_with(method) {
                return Detect::Yes;
            }
            undecided |= method.starts_with(prefix);
        }
        if undecided { Detect::NeedMore } else { Detect::No }
    }

    fn serve(
        self: Arc<Self>,
        conn: Accepted,
        route: Arc<Route>,
        drain: Drain,
    ) -> BoxFuture<'static, Result<(), ConnError>> {
        Box::pin(server::serve(conn, route, drain, self.limits.clone()))
    }

    fn connector(&self, config: &config::Cluster, _: &BuildCx) -> anyhow::Result<Arc<dyn Connector>> {
        Ok(Arc::new(HttpConnector::new(config, self.limits.header_bytes)))
    }
}

/// Most that hyper buffers of one direction of a connection: a head of the largest size and some more.
const fn buffer_bytes(header_bytes: usize) -> usize {
    const WHILE_BODIES_FLOW: usize = 8 * 1024;
    header_bytes.saturating_add(WHILE_BODIES_FLOW)
}
