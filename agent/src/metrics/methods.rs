//! What is counted of the single methods of a service.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::Histogram;

/// Under this name run all methods that a [`MethodTable`] has no room for.
pub const OTHER: &str = "other";

/// Longest method name that gets a row: names come from the wire, rows stay for life.
const NAME_BYTES: usize = 128;

/// Counts by method, for as many methods as the `metrics` filter allows. Finding a method that was
/// called before takes no lock and no allocation.
#[derive(Debug, Default)]
pub struct MethodTable {
    rows: ArcSwap<HashMap<Box<str>, Arc<MethodStats>>>,
    /// Taken to add a row only.
    adding: Mutex<()>,
}

/// What is counted of one method.
#[derive(Debug, Default)]
pub struct MethodStats {
    /// Calls by how they ended, one counter for each of [`Ending::all`].
    ended: [AtomicU64; Ending::COUNT],
    /// Time of a call, body included; for raw connections the time to reach an endpoint.
    pub latency: Histogram,
    /// Payload bytes from callers.
    pub request_bytes: AtomicU64,
    /// Payload bytes to callers.
    pub response_bytes: AtomicU64,
    /// Attempts made for these calls.
    pub attempts: AtomicU64,
    /// Of the attempts, those after the first.
    pub retries: AtomicU64,
}

/// How a call ended, as coarsely as metric labels want it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending(usize);

/// Classes of protocol codes.
const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other"];
/// Names of [`crate::call::ErrorKind`]; a test holds them together.
const ERRORS: [&str; 16] = [
    "no_cluster",
    "no_endpoint",
    "connect",
    "connect_timeout",
    "timeout",
    "reset",
    "protocol",
    "too_large",
    "overload",
    "rejected",
    "rate_limited",
    "circuit_open",
    "unauthorized",
    "degraded",
    "draining",
    "cancelled",
];

impl Ending {
    const COUNT: usize = 2 * CLASSES.len() + ERRORS.len();

    /// Somebody answered with the protocol's `code`, which is the endpoint's failure or not.
    pub fn answered(code: u32, failure: bool) -> Self {
        let class = match code / 100 {
            hundreds @ 1..=5 => hundreds as usize - 1,
            _ => CLASSES.len() - 1,
        };
        Self(if failure { CLASSES.len() + class } else { class })
    }

    /// Nobody answered, or the answer broke off: [`crate::call::ErrorKind::name`].
    pub fn error(name: &str) -> Self {
        let index = ERRORS.iter().position(|e| *e == name);
        Self(2 * CLASSES.len() + index.unwrap_or(ERRORS.len() - 1))
    }

    /// Every way to end.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }

    /// Label `code`: the class of the protocol's code, or the name of the error.
    pub fn code(self) -> &'static str {
        let classes = CLASSES.len();
        if self.0 < 2 * classes { CLASSES[self.0 % classes] } else { ERRORS[self.0 - 2 * classes] }
    }

    /// Label `outcome`: `success`, `failure`, or `cancelled` by the caller.
    pub fn outcome(self) -> &'static str {
        match self.0 {
            i if i < CLASSES.len() => "success",
            i if i == Self::COUNT - 1 => "cancelled",
            _ => "failure",
        }
    }
}

impl MethodTable {
    /// The row of `method`, made on first sight while there are fewer than `limit`; else the one of
    /// [`OTHER`].
    pub fn row(&self, method: &str, limit: usize) -> Arc<MethodStats> {
        if let Some(row) = self.rows.load().get(method) {
            return row.clone();
        }
        self.add(method, limit)
    }

    #[cold]
    fn add(&self, method: &str, limit: usize) -> Arc<MethodStats> {
        let fits = |rows: &HashMap<_, _>| {
            // The row `other` is not one of a method.
            let methods = rows.len() - usize::from(rows.contains_key(OTHER));
            method.len() <= NAME_BYTES && methods < limit
        };
        {
            // A caller that invents a name per call must not make us queue for the lock each time.
            let rows = self.rows.load();
            if !fits(&rows)
                && let Some(row) = rows.get(OTHER)
            {
                return row.clone();
            }
        }
        let _adding = self.adding.lock();
        let rows = self.rows.load();
        let name = if fits(&rows) { method } else { OTHER };
        if let Some(row) = rows.get(name) {
            return row.clone();
        }
        let mut more = HashMap::clone(&rows);
        let row = Arc::new(MethodStats::default());
        more.insert(name.into(), row.clone());
        self.rows.store(Arc::new(more));
        row
    }

    /// All rows, by name.
    pub fn rows(&self) -> Vec<(Box<str>, Arc<MethodStats>)> {
        let mut rows: Vec<_> = self.rows.load().iter().map(|(name, row)| (name.clone(), row.clone())).collect();
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        rows
    }
}

impl MethodStats {
    /// Counts a call that ended.
    pub fn ended(&self, ending: Ending) {
        self.ended[ending.0].fetch_add(1, Relaxed);
    }

    /// Calls that ended so.
    pub fn count(&self, ending: Ending) -> u64 {
        self.ended[ending.0].load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::ErrorKind;

    #[test]
    fn methods_beyond_the_limit_share_a_row() {
        let table = MethodTable::default();
        for i in 0..1000 {
            table.row(&format!("m{}", i % 100), 64).ended(Ending::answered(200, false));
        }
        table.row(&"x".repeat(500), 1000).ended(Ending::error("timeout"));
        let rows = table.rows();
        assert_eq!(rows.len(), 65);
        let of = |name: &str| rows.iter().find(|(n, _)| &**n == name).unwrap().1.clone();
        assert_eq!(of("m0").count(Ending::answered(204, false)), 10);
        assert_eq!(of(OTHER).count(Ending::answered(200, false)), 360);
        assert_eq!(of(OTHER).count(Ending::error("timeout")), 1);
    }

    #[test]
    fn every_ending_has_labels_of_its_own_and_every_error_its_place() {
        let labels: std::collections::HashSet<_> = Ending::all().map(|e| (e.code(), e.outcome())).collect();
        assert_eq!(labels.len(), Ending::COUNT);
        for kind in [
            ErrorKind::NoCluster,
            ErrorKind::NoEndpoint,
            ErrorKind::Connect,
            ErrorKind::ConnectTimeout,
            ErrorKind::Timeout,
            ErrorKind::Reset,
            ErrorKind::Protocol,
            ErrorKind::TooLarge,
            ErrorKind::Overload,
            ErrorKind::Rejected,
            ErrorKind::RateLimited,
            ErrorKind::CircuitOpen,
            ErrorKind::Unauthorized,
            ErrorKind::Degraded,
            ErrorKind::Draining,
            ErrorKind::Cancelled,
        ] {
            assert_eq!(Ending::error(kind.name()).code(), kind.name());
        }
        assert_eq!(Ending::error("cancelled").outcome(), "cancelled");
        assert_eq!((Ending::answered(503, true).code(), Ending::answered(503, true).outcome()), ("5xx", "failure"));
        assert_eq!(Ending::answered(10001, false).code(), "other");
    }
}
