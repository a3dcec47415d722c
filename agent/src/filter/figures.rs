//! What filters count, as exporters see it: all filters in two families.

/// A figure of one filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figure {
    /// Whether it only grows (an event counted) or goes up and down (a state).
    pub grows: bool,
    /// What happened, or what stands so.
    pub name: &'static str,
    /// The method, endpoint or target it is about; empty for all of the service.
    pub of: String,
    /// The value.
    pub value: u64,
}

/// Collects the figures of one filter.
pub struct Shows<'a>(&'a mut dyn FnMut(Figure));

impl<'a> Shows<'a> {
    /// Hands every figure to `take`.
    pub fn new(take: &'a mut dyn FnMut(Figure)) -> Self {
        Self(take)
    }

    /// Something that happened `value` times since the cluster was built.
    pub fn event(&mut self, name: &'static str, of: &str, value: u64) {
        (self.0)(Figure { grows: true, name, of: of.to_owned(), value });
    }

    /// How something stands now.
    pub fn state(&mut self, name: &'static str, of: &str, value: u64) {
        (self.0)(Figure { grows: false, name, of: of.to_owned(), value });
    }
}
