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
