//! What we count, with names and units. Exporters only read.

mod access_writer;
mod counters;
pub mod digits;
pub mod graphite;
mod histogram;
mod live;
mod lost;
mod methods;
pub mod prometheus;
mod recent;
mod time;
mod trail;
pub mod window;

pub use self::{
    access_writer::AccessLogWriter,
    counters::{AgentCounters, CounterRow, PANICS, UNKNOWN_SERVICES, count_panics},
    histogram::{Histogram, Summary},
    live::{Live, LiveGuard, LiveRow, LiveTable},
    lost::{LOST, LostCall, LostCalls},
    methods::{Ending, MethodStats, MethodTable, OTHER, RowBudget},
    recent::{Kept, Recent, Story},
    time::rfc3339,
    trail::{Candidate, Step, Trail, micros},
};

use std::sync::{Arc, OnceLock, atomic::AtomicU64};

/// Applications that are told apart for one service; further ones run under [`OTHER`].
pub const CALLERS: usize = 200;

/// What the agent counts of a service, whatever its filters.
#[derive(Debug, Default)]
pub struct ServiceStats {
    /// Calls (or raw connections) begun.
    pub started: AtomicU64,
    /// Ended well, the user's own errors included.
    pub succeeded: AtomicU64,
    /// Ended badly.
    pub failed: AtomicU64,
    /// Payload bytes from callers.
    pub request_bytes: AtomicU64,
    /// Payload bytes to callers.
    pub response_bytes: AtomicU64,
    /// Time of a call, body included; for raw connections the time to reach an endpoint.
    pub latency: Histogram,
    /// The same by method, where the `metrics` filter is on.
    pub methods: MethodTable,
    /// Attempts by method, where the `metrics` filter counts those.
    pub attempts: MethodTable,
    /// The same by application of the caller (empty where it names none), once somebody wants to know.
    pub callers: OnceLock<MethodTable>,
    /// A few of its calls, to be explained.
    pub recent: Recent,
}

impl ServiceStats {
    /// Counters at zero, whose methods count against `budget`.
    pub fn within(budget: &Arc<RowBudget>) -> Self {
        let table = || MethodTable::within(budget.clone());
        Self { methods: table(), attempts: table(), ..Self::default() }
    }
}
