//! [`Notes`]: what filters remember of one call until its end.

use super::{access_log, active_limit, circuit_breaker, spans};

/// One place for each filter that must remember something. Places of filters that are not configured stay
/// empty and cost nothing but their bytes.
#[derive(Debug, Default)]
pub struct Notes {
    /// Never looked at: places are given back when the call is over.
    pub(super) active: Option<active_limit::Held>,
    pub(super) logged: Option<Box<access_log::Noted>>,
    pub(super) traced: Option<Box<spans::Traced>>,
    pub(super) breaker: Option<circuit_breaker::Pass>,
}
