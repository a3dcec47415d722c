//! Motan2 (spec/motan.md): frames multiplexed by request id.

use std::sync::Arc;

use super::Protocol;
use crate::config;

/// Name in the configuration.
pub const NAME: &str = "motan2";

/// Builds the protocol.
pub(super) fn build(_limits: &config::Limits) -> Arc<dyn Protocol> {
    unimplemented!()
}
