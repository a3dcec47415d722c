//! Motan2: frames multiplexed by request id (docs/wire/motan2.md).

mod answer;
mod calls;
mod client;
mod codec;
mod gzip;
mod inbox;
mod link;
mod motan1;
mod outbox;
mod pool;
mod request;
mod server;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use super::{Accepted, ConnError, Detect, Protocol};
use crate::{config, drain::Drain, endpoint::Connector, kind::BuildCx, route::Route};

/// Name in the configuration.
pub const NAME: &str = "motan2";

/// Time for a call when nobody says: what Motan's own agent takes.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
/// A peer that takes no byte for this long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Metadata keys that the agent itself reads or writes.
mod key {
    pub(super) const SERVICE: &str = "M_p";
    pub(super) const METHOD: &str = "M_m";
    pub(super) const GROUP: &str = "M_g";
    pub(super) const VERSION: &str = "M_v";
    pub(super) const PROTOCOL: &str = "M_pp";
    pub(super) const SOURCE: &str = "M_s";
    pub(super) const APPLICATION: &str = "application";
    pub(super) const REQUEST_ID: &str = "M_rid";
    pub(super) const TIMEOUT: &str = "M_tmo";
    pub(super) const FRAMEWORK: &str = "M_fws";
    pub(super) const EXCEPTION: &str = "M_e";
    pub(super) const PROCESS_TIME: &str = "M_pt";
    pub(super) const HOST: &str = "host";
    pub(super) const FORWARDED: &str = "x-forwarded-for";
    pub(super) const FORWARDED_HTTP: &str = "X-Forwarded-For";
}

/// Where exceptions stand in the metadata of an answer.
pub(super) const EXCEPTION: &str = key::EXCEPTION;

/// An exception as [`EXCEPTION`] carries it.
pub(super) fn exception_json(code: i64, errtype: i64, text: &str) -> String {
    crate::call::exception::Exception { code, text: text.to_owned().into(), errtype }.to_json()
}

/// Builds the protocol.
pub(super) fn build(limits: &config::Limits) -> Arc<dyn Protocol> {
    Arc::new(Motan2 { limits: limits.clone() })
}

struct Motan2 {
    limits: config::Limits,
}

impl Protocol for Motan2 {
    fn detect(&self, prefix: &[u8]) -> Detect {
        let seen = prefix.len().min(codec::MAGIC.len());
        if prefix[..seen] != codec::MAGIC[..seen] {
            Detect::No
        } else if seen == codec::MAGIC.len() {
            Detect::Yes
        } else {
            Detect::NeedMore
        }
    }

    fn serve(
        self: Arc<Self>,
        conn: Accepted,
        route: Arc<Route>,
        drain: Drain,
    ) -> BoxFuture<'static, Result<(), ConnError>> {
        Box::pin(async move {
            // Answers are small and written whole: waiting to fill packets would only delay them.
            let _ = conn.io.socket().set_nodelay(true);
            let Accepted { io, peer, guard, .. } = conn;
            let caller = server::Caller { peer, live: Some(guard.live.clone()), route, limits: self.limits.clone() };
            server::serve(io, caller, drain).await
        })
    }

    fn connector(&self, config: &config::Cluster, cx: &BuildCx) -> anyhow::Result<Arc<dyn Connector>> {
        Ok(Arc::new(client::Motan2Connector::new(config, &self.limits, cx.application.clone())))
    }
}

/// `n` in decimal, without an allocation.
struct Decimal {
    digits: [u8; 20],
    len: usize,
}

impl Decimal {
    /// No number: the empty text, which is not written.
    const fn none() -> Self {
        Self { digits: [0; 20], len: 0 }
    }

    fn of(n: i64) -> Self {
        use std::io::Write;
        let mut digits = [0; 20];
        let mut rest = &mut digits[..];
        write!(rest, "{n}").expect("the longest i64 has 20 characters");
        let len = 20 - rest.len();
        Self { digits, len }
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.digits[..self.len]).expect("digits are ASCII")
    }
}
