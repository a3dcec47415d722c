//! [`Notes`]: what filters remember of one call until its end.

use smallvec::SmallVec;

use super::{access_log, active_limit, circuit_breaker, convert, spans};

/// One place for each filter that must remember something. Places of filters that are not configured stay
/// empty and cost nothing but their bytes.
#[derive(Debug, Default)]
pub struct Notes {
    /// Never looked at: places are given back when the call is over.
    pub(super) active: SmallVec<[active_limit::Held; 1]>,
    pub(super) converted: Option<Box<convert::Noted>>,
    pub(super) logged: Option<Box<access_log::Noted>>,
    pub(super) traced: Option<Box<spans::Traced>>,
    pub(super) arguments: Option<Box<access_log::Came>>,
    pub(super) breaker: SmallVec<[circuit_breaker::Pass; 1]>,
}
