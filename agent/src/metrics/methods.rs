//! What is counted of the single methods of a service.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::Histogram;

/// Under this name run all methods that a [`MethodTable`] has no room for.
pub const OTHER: &str = "other";

/// Longest method name that gets a row: names come from the wire, rows stay as long as they are called.
const NAME_BYTES: usize = 128;

/// How many rows all tables of an agent may have together. Names come from the wire: without a bound, callers
/// that invent them would fill this agent and the servers that store its figures.
#[derive(Debug)]
pub struct RowBudget {
    limit: AtomicUsize,
    used: AtomicUsize,
    refused: AtomicU64,
}

impl Default for RowBudget {
    /// Without a limit.
    fn default() -> Self {
        Self { limit: AtomicUsize::new(usize::MAX), used: AtomicUsize::new(0), refused: AtomicU64::new(0) }
    }
}

impl RowBudget {
    /// Sets how many rows there may be. Rows beyond a lower limit stay until nobody calls them any more.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Relaxed);
    }

    /// How many rows there may be.
    pub fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    /// How many there are.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Calls counted under [`OTHER`] because of the limit of their table or of this one.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    fn has_room(&self) -> bool {
        self.used() < self.limit()
    }
}

/// Counts by method, for as many methods as the `metrics` filter allows. Finding a method that was
/// called before takes no lock and no allocation.
#[derive(Debug, Default)]
pub struct MethodTable {
    rows: ArcSwap<HashMap<Box<str>, Arc<MethodStats>>>,
    /// Taken to change rows only.
    changing: Mutex<()>,
    budget: Arc<RowBudget>,
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
    /// Calls at the last sweep, and sweeps since they grew.
    swept: AtomicU64,
    idle_sweeps: AtomicU32,
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

    /// Whether the user's own code refused: an answer that is none of HTTP's or Motan's kinds of success.
    pub fn is_refusal(self) -> bool {
        // 1xx, 2xx and 3xx stand first.
        (3..CLASSES.len()).contains(&self.0)
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
    /// An empty table whose rows count against `budget`.
    pub fn within(budget: Arc<RowBudget>) -> Self {
        Self { rows: ArcSwap::default(), changing: Mutex::default(), budget }
    }

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
            method.len() <= NAME_BYTES && methods < limit && self.budget.has_room()
        };
        {
            // A caller that invents a name per call must not make us queue for the lock each time.
            let rows = self.rows.load();
            if !fits(&rows)
                && let Some(row) = rows.get(OTHER)
            {
                self.budget.refused.fetch_add(1, Relaxed);
                return row.clone();
            }
        }
        let _changing = self.changing.lock();
        let rows = self.rows.load();
        let name = if fits(&rows) { method } else { OTHER };
        if let Some(row) = rows.get(name) {
            return row.clone();
        }
        let mut more = HashMap::clone(&rows);
        let row = Arc::new(MethodStats::default());
        more.insert(name.into(), row.clone());
        self.rows.store(Arc::new(more));
        self.budget.used.fetch_add(1, Relaxed);
        row
    }

    /// Forgets rows that nobody has called for `sweeps` sweeps in a row, this one included. A call that ends just
    /// now may be lost with its row.
    pub fn sweep(&self, sweeps: u32) {
        let _changing = self.changing.lock();
        let rows = self.rows.load();
        let idle: Vec<_> = rows.iter().filter(|(_, row)| row.swept() >= sweeps).map(|(name, _)| name).collect();
        if idle.is_empty() {
            return;
        }
        let left = rows.iter().filter(|(name, _)| !idle.contains(name)).map(|(n, r)| (n.clone(), r.clone()));
        self.rows.store(Arc::new(left.collect()));
        self.budget.used.fetch_sub(idle.len(), Relaxed);
    }

    /// All rows, by name.
    pub fn rows(&self) -> Vec<(Box<str>, Arc<MethodStats>)> {
        let mut rows: Vec<_> = self.rows.load().iter().map(|(name, row)| (name.clone(), row.clone())).collect();
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        rows
    }
}

impl Drop for MethodTable {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.rows.load().len(), Relaxed);
    }
}

impl MethodStats {
    /// Calls that ended.
    pub fn total(&self) -> u64 {
        self.ended.iter().map(|n| n.load(Relaxed)).sum()
    }

    /// Notes a sweep; returns how many there were since the last call.
    fn swept(&self) -> u32 {
        let now = self.total();
        if self.swept.swap(now, Relaxed) != now {
            self.idle_sweeps.store(0, Relaxed);
            return 0;
        }
        self.idle_sweeps.fetch_add(1, Relaxed) + 1
    }

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
    fn rows_share_a_budget_and_go_when_nobody_calls_them() {
        let budget = Arc::new(RowBudget::default());
        budget.set_limit(3);
        let (a, b) = (MethodTable::within(budget.clone()), MethodTable::within(budget.clone()));
        let call = |table: &MethodTable, method: &str| table.row(method, 64).ended(Ending::answered(200, false));
        for method in ["x", "y"] {
            call(&a, method);
            call(&b, method);
        }
        let names = |table: &MethodTable| table.rows().into_iter().map(|(n, _)| n.into_string()).collect::<Vec<_>>();
        assert_eq!((names(&a), names(&b)), (vec!["x".into(), "y".into()], vec![OTHER.into(), "x".into()]));
        // Every service may have a row for what it has no room for.
        assert_eq!(budget.used(), 4);
        call(&b, "z");
        assert_eq!(budget.refused(), 1);
        a.sweep(2);
        call(&a, "x");
        a.sweep(2);
        assert_eq!(names(&a), ["x", "y"], "y was idle for one sweep only");
        a.sweep(2);
        assert_eq!(names(&a), ["x"]);
        a.sweep(2);
        assert_eq!((names(&a).len(), budget.used()), (0, 2));
        call(&a, "y");
        assert_eq!(a.rows()[0].1.total(), 1, "it begins at zero");
        drop((a, b));
        assert_eq!(budget.used(), 0);
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
