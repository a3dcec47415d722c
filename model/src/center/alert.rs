//! Alerts: what is looked at, what was found.

use serde::{Deserialize, Serialize};

use super::{Of, Series};

/// When a rule fires.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Condition {
    /// A figure is above or below a bound for a time.
    Threshold {
        /// A column of [`Series`]: `rate`, `success`, `mean_ms`, `p99_ms`, `p999_ms`, `slow`.
        figure: String,
        /// Above this.
        #[serde(default)]
        above: Option<f64>,
        /// Below this.
        #[serde(default)]
        below: Option<f64>,
        /// For this long.
        for_ms: u64,
    },
    /// The budget of errors of an objective is spent too fast, over a long and a short window.
    BurnRate {
        /// Objective: share of calls that must go well, percent, such as 99.9.
        objective_percent: f64,
        /// Long window.
        long_ms: u64,
        /// Short window.
        short_ms: u64,
        /// Times the rate that would just spend the budget.
        factor: f64,
    },
    /// Out of the band that was forecast from earlier days and hours.
    Forecast {
        /// A column of [`Series`].
        figure: String,
        /// Width of the band: share of values that are expected within, percent.
        level_percent: f64,
    },
    /// One instance differs from its siblings.
    Outlier {
        /// A column of [`Series`].
        figure: String,
        /// 0 to 1: how small a difference counts.
        sensitivity: f64,
    },
    /// A pool is above a line: `warning` or `fatal`.
    Water {
        /// Which line.
        line: String,
    },
}

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AlertRule {
    /// Unique name.
    pub name: String,
    /// Whose figures; an empty service means each service by itself.
    #[serde(default)]
    pub of: Of,
    /// When it fires.
    pub condition: Condition,
    /// `page` or `ticket`.
    #[serde(default)]
    pub severity: String,
    /// URLs that are told.
    #[serde(default)]
    pub webhooks: Vec<String>,
}

/// Where an alert stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum AlertState {
    /// The condition holds.
    Firing,
    /// It holds, and nobody is told.
    Silenced,
    /// It is over.
    Resolved,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Alert {
    /// Same for the same rule and the same thing, as long as it fires.
    pub id: String,
    /// Rule that found it.
    pub rule: String,
    /// `page` or `ticket`.
    pub severity: String,
    /// What it is about.
    pub of: Of,
    /// In a sentence, with the value and the bound.
    pub summary: String,
    /// Where it stands.
    pub state: AlertState,
    /// Since when.
    pub since_ms: u64,
    /// When it was over.
    pub until_ms: Option<u64>,
    /// The series that raised it; left out in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub series: Option<Series>,
    /// Bounds of the forecast or of the siblings, as long as the series.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub band: Vec<(f64, f64)>,
    /// Webhooks told, and what they answered.
    #[serde(default)]
    pub told: Vec<(String, String)>,
}

/// Nobody is told of alerts that fit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Silence {
    /// Given by the centre.
    pub id: u64,
    /// Rule; empty: any.
    pub rule: String,
    /// Service; empty: any.
    pub service: String,
    /// Group; empty: any.
    pub group: String,
    /// Until when.
    pub until_ms: u64,
    /// Who, and why.
    pub author: String,
    /// Why.
    pub reason: String,
}
