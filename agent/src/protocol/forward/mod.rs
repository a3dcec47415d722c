//! The HTTP forward proxy: requests of known domains become Motan2 calls, others go on as plain HTTP, CONNECT
//! is a tunnel (docs/wire/http-mesh.md, "Proxy").

mod calls;
mod plain;
mod server;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;

use super::{
    Accepted, ConnError, Detect, Protocol,
    locations::{Locations, Place},
};
use crate::{config, drain::Drain, endpoint::Connector, kind::BuildCx, route::Route, stream::OwnSockets};

/// Name of its routes. Nobody can name it in a configuration.
pub const NAME: &str = "http_proxy";

/// The proxy's protocol, whose settings follow the configuration.
pub struct Front {
    limits: config::Limits,
    own: OwnSockets,
    now: ArcSwap<Forward>,
}

impl Front {
    /// One that knows no domains yet.
    pub fn new(limits: &config::Limits, own: OwnSockets) -> Arc<Self> {
        let now = ArcSwap::from_pointee(Forward::new(&config::HttpProxy::default(), &own));
        Arc::new(Self { limits: limits.clone(), own, now })
    }

    /// Requests that come from now on are served as `proxy` says; those under way end as they began.
    pub fn apply(&self, proxy: &config::HttpProxy) {
        // Its idle connections are worth keeping.
        if self.now.load().proxy != *proxy {
            self.now.store(Arc::new(Forward::new(proxy, &self.own)));
        }
    }
}

/// Settings, with what was made of them.
struct Forward {
    proxy: config::HttpProxy,
    domains: Vec<Domain>,
    plain: plain::Plain,
}

struct Domain {
    /// In lower case.
    name: String,
    group: crate::call::Text,
    locations: Locations,
}

impl Forward {
    fn new(proxy: &config::HttpProxy, own: &OwnSockets) -> Self {
        let domains = proxy.domains.iter().map(|domain| Domain {
            name: domain.domain.to_ascii_lowercase(),
            group: domain.group.as_str().into(),
            // Checked with the configuration.
            locations: Locations::new(&domain.locations).unwrap_or_default(),
        });
        Self { domains: domains.collect(), plain: plain::Plain::new(proxy, own.clone()), proxy: proxy.clone() }
    }

    fn domain(&self, host: &str) -> Option<&Domain> {
        self.domains.iter().find(|domain| domain.name.eq_ignore_ascii_case(host))
    }
}

impl Domain {
    fn place(&self, path: &str) -> Option<Place<'_>> {
        self.locations.find(path, None).filter(|place| !place.service.is_empty())
    }
}

impl Protocol for Front {
    fn detect(&self, _: &[u8]) -> Detect {
        Detect::No
    }

    fn serve(
        self: Arc<Self>,
        conn: Accepted,
        route: Arc<Route>,
        drain: Drain,
    ) -> BoxFuture<'static, Result<(), ConnError>> {
        Box::pin(server::serve(self, conn, route, drain))
    }

    fn connector(&self, _: &config::Cluster, _: &BuildCx) -> anyhow::Result<Arc<dyn Connector>> {
        anyhow::bail!("the forward proxy has no endpoints of its own")
    }
}
