//! Figures that operators look at.

use serde::{Deserialize, Serialize};

use super::{Histogram, Side};

/// Whose figures. Empty fields mean all of them together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema, utoipa::IntoParams))]
#[serde(default)]
pub struct Of {
    /// Which side of the calls.
    pub side: Side,
    /// The service.
    pub service: String,
    /// Its group.
    pub group: String,
    /// `IP:PORT` of one instance.
    pub instance: String,
    /// Application that calls.
    pub caller: String,
}

/// What was counted within a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Figures {
    /// Calls a second.
    pub rate: f64,
    /// Share of calls that went well; none without calls.
    pub success: Option<f64>,
    /// Mean time.
    pub mean_ms: Option<f64>,
    /// Half of the calls were faster.
    pub p50_ms: Option<f64>,
    /// 99 % of the calls were faster.
    pub p99_ms: Option<f64>,
    /// 99.9 % of the calls were faster.
    pub p999_ms: Option<f64>,
    /// Share of calls slower than the threshold.
    pub slow: Option<f64>,
}

impl Figures {
    /// From counts over `seconds`.
    pub fn of(seconds: f64, calls: u64, failed: u64, slow: u64, times: &Histogram) -> Self {
        let share = |part: u64| (calls > 0).then(|| part as f64 / calls as f64);
        Self {
            rate: if seconds > 0.0 { calls as f64 / seconds } else { 0.0 },
            success: share(calls.saturating_sub(failed)),
            mean_ms: times.mean_ms(),
            p50_ms: times.quantile_ms(0.5),
            p99_ms: times.quantile_ms(0.99),
            p999_ms: times.quantile_ms(0.999),
            slow: share(slow),
        }
    }
}

/// Figures over time, column by column as plots take them; every column is as long as `at_ms`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Series {
    /// Whose.
    pub of: Of,
    /// Where they come from: `agents`, `graphite`, `prometheus`; with the reason when another source failed.
    pub source: String,
    /// Length of each window.
    pub step_ms: u64,
    /// Ends of the windows.
    pub at_ms: Vec<u64>,
    /// Calls a second; none where nothing is known.
    pub rate: Vec<Option<f64>>,
    /// Share of calls that went well.
    pub success: Vec<Option<f64>>,
    /// Mean time.
    pub mean_ms: Vec<Option<f64>>,
    /// See [`Figures`].
    pub p50_ms: Vec<Option<f64>>,
    /// See [`Figures`].
    pub p99_ms: Vec<Option<f64>>,
    /// See [`Figures`].
    pub p999_ms: Vec<Option<f64>>,
    /// Share of slow calls.
    pub slow: Vec<Option<f64>>,
}
