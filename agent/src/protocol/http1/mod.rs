//! HTTP/1.1, through hyper.

mod guard;

use std::sync::Arc;

use super::Protocol;
use crate::config;

/// Name in the configuration.
pub const NAME: &str = "http";

/// Builds the protocol.
pub(super) fn build(_limits: &config::Limits) -> Arc<dyn Protocol> {
    unimplemented!()
}
