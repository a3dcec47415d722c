//! `metrics`: counts and latencies by method, of calls or of attempts, for `/metrics` and Graphite.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::{CallCx, Filter, Outcome, Record, Trying, code_of, options::Level};
use crate::{
    call::{Body, CallError, Response},
    kind::{self, BuildCx, Value},
    metrics::Ending,
};

/// Methods of one service with series of their own, when the options do not say. An interface has some
/// dozens; each method costs about 40 series.
const METHODS: usize = 64;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    methods: usize,
    level: Level,
}

impl Default for Options {
    fn default() -> Self {
        Self { methods: METHODS, level: Level::Call }
    }
}

struct Metrics {
    methods: usize,
    level: Level,
}

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn Filter>> {
    let Options { methods, level } = kind::options(options)?;
    Ok(Arc::new(Metrics { methods, level }))
}

impl Filter for Metrics {
    fn on_attempt_end(&self, cx: &CallCx, attempt: &Trying<'_>, end: Result<&Response, &CallError>) {
        if self.level == Level::Call {
            return;
        }
        let row = cx.cluster.stats.attempts.row(&attempt.call.method, self.methods);
        row.ended(match end {
            Ok(response) => Ending::answered(code_of(response), response.status.is_failure()),
            Err(error) => Ending::error(error.kind.name()),
        });
        row.request_bytes.fetch_add(attempt.call.request_bytes, Relaxed);
        if let Ok(Body::Full(bytes)) = end.map(|response| &response.body) {
            row.response_bytes.fetch_add(bytes.len() as u64, Relaxed);
        }
        row.attempts.fetch_add(1, Relaxed);
        row.retries.fetch_add(u64::from(attempt.number > 1), Relaxed);
        row.latency.record(attempt.started.elapsed());
    }

    fn on_end(&self, record: &Record) {
        if self.level == Level::Attempt {
            return;
        }
        // Counts live with the cluster, where exporters find them; the filter itself has no state.
        let row = record.cluster.stats.methods.row(&record.call.method, self.methods);
        row.ended(match &record.outcome {
            Outcome::Answered(status) => Ending::answered(record.code, status.is_failure()),
            Outcome::Failed(error) => Ending::error(error.kind.name()),
        });
        row.request_bytes.fetch_add(record.request_bytes, Relaxed);
        row.response_bytes.fetch_add(record.response_bytes, Relaxed);
        row.attempts.fetch_add(record.attempts.into(), Relaxed);
        if record.attempts > 1 {
            row.retries.fetch_add(u64::from(record.attempts) - 1, Relaxed);
        }
        row.latency.record(record.latency());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::{CallError, ErrorKind, Status},
        filter::sample,
    };

    #[test]
    fn counts_by_method_with_retries_and_bytes() {
        let filter = build(&Value::Null, &BuildCx::default()).unwrap();
        let mut record = sample();
        record.attempts = 3;
        filter.on_end(&record);
        record.outcome = Outcome::Answered(Status::Failed(503));
        record.code = 503;
        record.attempts = 1;
        filter.on_end(&record);
        record.outcome = Outcome::Failed(CallError::mesh(ErrorKind::Timeout, ""));
        record.attempts = 0;
        filter.on_end(&record);
        let rows = record.cluster.stats.methods.rows();
        assert_eq!(rows.len(), 1);
        let (name, row) = &rows[0];
        assert_eq!(&**name, "echo");
        for ending in [Ending::answered(200, false), Ending::answered(503, true), Ending::error("timeout")] {
            assert_eq!(row.count(ending), 1, "{ending:?}");
        }
        assert_eq!((row.attempts.load(Relaxed), row.retries.load(Relaxed)), (4, 2));
        assert_eq!((row.request_bytes.load(Relaxed), row.response_bytes.load(Relaxed)), (30, 6000));
        assert_eq!(row.latency.summary().count, 3);
    }

    #[test]
    fn attempts_are_counted_beside_or_instead_of_calls() {
        use crate::filter::testing::{Bench, failed, motan};
        for (level, calls, attempts) in [("call", 1, 0), ("attempt", 0, 2), ("both", 1, 2)] {
            let b = Bench::new(build, &format!("{{level: {level}}}"));
            let to = b.endpoint(1);
            let begun = b.begin(motan("echo"));
            begun.attempt(1, &to, Err(failed(ErrorKind::Reset))).unwrap();
            begun.attempt(2, &to, Ok(())).unwrap();
            let stats = begun.cx.cluster.stats.clone();
            begun.end(Ok(b.good())).unwrap();
            let count = |rows: Vec<(Box<str>, Arc<crate::metrics::MethodStats>)>| {
                rows.iter().map(|(_, row)| row.latency.summary().count).sum::<u64>()
            };
            assert_eq!((count(stats.methods.rows()), count(stats.attempts.rows())), (calls, attempts), "{level}");
            if attempts > 0 {
                let (name, row) = stats.attempts.rows().remove(0);
                assert_eq!((&*name, row.count(Ending::error("reset")), row.retries.load(Relaxed)), ("echo", 1, 1));
            }
        }
    }

    #[test]
    fn options_are_checked() {
        let one: Value = serde_yaml::from_str("{methods: 1}").unwrap();
        let filter = build(&one, &BuildCx::default()).unwrap();
        let mut record = sample();
        filter.on_end(&record);
        record.call.method = "another".into();
        filter.on_end(&record);
        let names: Vec<_> = record.cluster.stats.methods.rows().into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, [Box::from("echo"), Box::from(crate::metrics::OTHER)]);
        let wrong: Value = serde_yaml::from_str("{method: 1}").unwrap();
        assert!(build(&wrong, &BuildCx::default()).is_err());
    }
}
