//! `metrics`: counts and latencies by method, for `/metrics`.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::{Filter, Outcome, Record};
use crate::{
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
}

impl Default for Options {
    fn default() -> Self {
        Self { methods: METHODS }
    }
}

struct Metrics {
    methods: usize,
}

pub(super) fn build(options: &Value, _: &BuildCx) -> anyhow::Result<Arc<dyn Filter>> {
    let Options { methods } = kind::options(options)?;
    Ok(Arc::new(Metrics { methods }))
}

impl Filter for Metrics {
    fn on_end(&self, record: &Record) {
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
