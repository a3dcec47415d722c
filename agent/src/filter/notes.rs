//! [`Notes`]: what filters remember of one call until its end.

use super::{active_limit, circuit_breaker};

/// One place for each filter that must remember something. Places of filters that are not configured stay
/// empty and cost nothing but their bytes.
#[derive(Debug, Default)]
pub struct Notes {
    /// Never looked at: places are given back when the call is over.
    pub(super) active: Option<active_limit::Held>,
    pub(super) breaker: Option<circuit_breaker::Pass>,
}
