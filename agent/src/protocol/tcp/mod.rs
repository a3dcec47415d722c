//! Raw TCP: one endpoint per connection, bytes copied both ways.

use std::sync::Arc;

use super::Protocol;
use crate::config;

/// Name in the configuration.
pub const NAME: &str = "tcp";

/// Builds the protocol.
pub(super) fn build(_limits: &config::Limits) -> Arc<dyn Protocol> {
    unimplemented!()
}

/// The "request" of a raw connection: a way to an endpoint.
pub fn connect_request(peer: Option<std::net::SocketAddr>) -> crate::call::Request {
    let mut call = crate::call::Call::new(crate::call::Text::default(), crate::call::Text::from_static("connect"));
    call.peer = peer;
    crate::call::Request { call, head: crate::call::Head::None, body: crate::call::Body::Empty }
}
