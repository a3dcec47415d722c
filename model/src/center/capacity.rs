//! What a service can take, and how near to that it is.

use serde::{Deserialize, Serialize};

/// How much an estimate is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Confidence {
    /// Nothing near the limit was ever seen: the figure is the highest load that was served well, and the truth may
    /// be any higher.
    LowerBound,
    /// Extrapolated a little beyond what was seen.
    Low,
    /// The bend was seen, in few windows.
    Medium,
    /// The limit was reached and seen on both sides.
    High,
}

/// Calls a second that ended within a band of time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Band {
    /// Upper end; none: the last band has none.
    pub below_ms: Option<f64>,
    /// Calls a second.
    pub rate: f64,
    /// What one of its calls counts in the weighted load.
    pub weight: f64,
}

/// One observed window of one instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CapacityPoint {
    /// End of the window.
    pub at_ms: u64,
    /// `IP:PORT`.
    pub instance: String,
    /// Calls a second that ended well.
    pub rate: f64,
    /// Weighted load: slow calls count more.
    pub load: f64,
    /// 99 % were faster.
    pub p99_ms: f64,
    /// Share that failed.
    pub errors: f64,
}

/// What one instance of a pool can take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Capacity {
    /// Calls a second of one instance of usual weight.
    pub per_instance: f64,
    /// How sure.
    pub confidence: Confidence,
    /// The highest rate of one instance that was seen going well.
    pub highest_seen: f64,
    /// In a sentence, what it rests on.
    pub basis: String,
}

/// Policy of a pool: lines in percent of capacity, bounds of its size, what the centre may do by itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolPolicy {
    /// The service.
    pub service: String,
    /// Its group.
    pub group: String,
    /// Above this it is proposed or done to move calls away; water level in percent.
    pub warning_percent: f64,
    /// No other pool is ever filled above this.
    pub safety_percent: f64,
    /// Above this calls are expected to fail.
    pub fatal_percent: f64,
    /// Scale out when the pool could not lose this share of its instances and stay below the fatal line, percent.
    pub redundancy_percent: f64,
    /// Fewest instances.
    pub min: u32,
    /// Most instances.
    pub max: u32,
    /// May the centre switch by itself? If not, it proposes.
    pub switch: bool,
    /// May the centre scale by itself? If not, it proposes.
    pub scale: bool,
    /// Driver of scaling (`process`, `kubernetes`, `webhook`); empty: none.
    pub driver: String,
    /// The driver's own options.
    pub options: serde_json::Value,
    /// A condition must hold this long before anything is done.
    pub hold_ms: u64,
    /// At most one change within this time.
    pub period_ms: u64,
    /// Calls slower than this are not going well; for capacity and the slow share.
    pub slow_ms: f64,
}

impl Default for PoolPolicy {
    fn default() -> Self {
        Self {
            service: String::new(),
            group: String::new(),
            warning_percent: 70.0,
            safety_percent: 60.0,
            fatal_percent: 100.0,
            redundancy_percent: 30.0,
            min: 1,
            max: 100,
            switch: false,
            scale: false,
            driver: String::new(),
            options: serde_json::Value::Null,
            hold_ms: 30_000,
            period_ms: 120_000,
            slow_ms: 200.0,
        }
    }
}

/// A service pool: the instances of one service in one group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pool {
    /// The service.
    pub service: String,
    /// Its group.
    pub group: String,
    /// Instances that callers may use.
    pub instances: u32,
    /// Calls a second.
    pub rate: f64,
    /// By bands of time.
    pub bands: Vec<Band>,
    /// Weighted load of all instances.
    pub load: f64,
    /// What one instance can take; none when nothing is known.
    pub capacity: Option<Capacity>,
    /// Load in percent of what all instances can take.
    pub water_percent: Option<f64>,
    /// Share of the instances that may be lost before the fatal line, percent; below 0: already over.
    pub redundancy_percent: Option<f64>,
    /// `idle`, `normal`, `warning`, `fatal` or `unknown`.
    pub level: String,
    /// Lines and bounds.
    pub policy: PoolPolicy,
    /// What the centre proposes, does or waits for, in a sentence.
    pub advice: Option<String>,
}

/// Answer to "what if these groups were lost?": pools with what they would get.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WhatIf {
    /// Groups that are lost.
    pub lost: Vec<String>,
    /// What remains, with the load of the lost ones spread by capacity.
    pub pools: Vec<Pool>,
    /// Services that no group is left for, and those that would be above their fatal line.
    pub fails: Vec<String>,
    /// Instances that would have to be added to stay below the safety line, by `group/service`.
    pub needed: Vec<(String, u32)>,
}
