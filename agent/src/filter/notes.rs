//! [`Notes`]: what filters remember of one call until its end.

/// One place for each filter that must remember something. Places of filters that are not configured stay
/// empty and cost nothing but their bytes.
#[derive(Debug, Default)]
pub struct Notes {}
