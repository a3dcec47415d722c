//! Raw TCP: one endpoint per connection, bytes copied both ways.

mod copy;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use self::copy::{Report, Side, both_ways, end_on_close, ready_to_copy, reset_on_close};
use super::{Accepted, ConnError, Detect, Protocol};
use crate::{
    call::{Body, Call, CallError, Head, Request, Response, ResponseHead, Status, Text},
    config,
    drain::Drain,
    endpoint::{Connector, Endpoint, dial_for},
    kind::BuildCx,
    metrics::LiveGuard,
    route::Route,
};

/// Name in the configuration.
pub const NAME: &str = "tcp";

/// Time to reach any endpoint, all tries together, when the configuration does not say: room for
/// several connect timeouts, and shorter than programs usually wait for a connect.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Builds the protocol.
pub(super) fn build(limits: &config::Limits) -> Arc<dyn Protocol> {
    Arc::new(Tcp { idle_timeout: limits.idle_timeout })
}

/// The "request" of a raw connection: a way to an endpoint.
pub fn connect_request(peer: Option<SocketAddr>) -> Request {
    let mut call = Call::new(Text::default(), Text::from_static("connect"));
    call.peer = peer;
    Request { call, head: Head::None, body: Body::Empty }
}

struct Tcp {
    idle_timeout: Duration,
}

impl Tcp {
    /// Finds an endpoint and joins it with the program, or resets the program: its connect has succeeded
    /// already, so a reset is how it learns that the way ends here.
    async fn open(
        self: Arc<Self>,
        conn: Accepted,
        route: Arc<Route>,
    ) -> Result<(BoxFuture<'static, Result<(), CallError>>, LiveGuard), ConnError> {
        let Accepted { io, peer, guard, dialled } = conn;
        let (io, prefix) = io.into_parts();
        let response = match dialled {
            Some(response) => Ok(response),
            None => reach(&route, peer).await,
        };
        let response =
            response.inspect_err(|_| reset_on_close(io.socket())).map_err(|e| ConnError::Unserved(e.to_string()))?;
        let ResponseHead::Raw(raw) = response.head else {
            reset_on_close(io.socket());
            return Err(ConnError::Unserved("a filter answered a raw connection".to_owned()));
        };
        if let Some(cluster) = route.only() {
            guard.live.called(&cluster.info.service, response.endpoint);
        }
        let report = Report { live: guard.live.clone(), watch: raw.watch, idle_timeout: self.idle_timeout };
        let endpoint = Side { io: raw.io, prefix: Bytes::new() };
        Ok((Box::pin(both_ways(Side { io, prefix }, endpoint, report)), guard))
    }
}

impl Protocol for Tcp {
    fn detect(&self, _prefix: &[u8]) -> Detect {
        Detect::Yes
    }

    fn serve(
        self: Arc<Self>,
        conn: Accepted,
        route: Arc<Route>,
        drain: Drain,
    ) -> BoxFuture<'static, Result<(), ConnError>> {
        // Boxed apart: the way there needs far more state than the copying, for far less time.
        let opening = Box::pin(self.open(conn, route));
        Box::pin(async move {
            // Held, not asked: raw connections have no polite way to say goodbye, so they go on until
            // their programs end them or the stop is forced.
            let _drain = drain;
            let (copied, _guard) = opening.await?;
            copied.await.map_err(|e| ConnError::Unserved(e.to_string()))
        })
    }

    fn connector(&self, _: &config::Cluster, _: &BuildCx) -> anyhow::Result<Arc<dyn Connector>> {
        Ok(Arc::new(TcpConnector))
    }
}

async fn reach(route: &Route, peer: SocketAddr) -> Result<Response, CallError> {
    let Some(cluster) = route.only() else {
        let message = "no service behind this address any more";
        return Err(CallError::mesh(crate::call::ErrorKind::NoCluster, message));
    };
    cluster.call(&mut connect_request(Some(peer))).await
}

/// Dials: for raw TCP an open connection is the answer.
struct TcpConnector;

impl Connector for TcpConnector {
    fn call<'a>(&'a self, to: &'a Arc<Endpoint>, req: &'a mut Request) -> BoxFuture<'a, Result<Response, CallError>> {
        Box::pin(async move {
            let io = dial_for(to.addr, &to.dial, req.call.peer).await?;
            let head = ResponseHead::Raw(crate::call::Raw { io, watch: None });
            Ok(Response { status: Status::Ok, head, body: Body::Empty, endpoint: Some(to.addr) })
        })
    }

    fn default_timeout(&self) -> Duration {
        DEFAULT_TIMEOUT
    }
}
