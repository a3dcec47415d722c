//! What a service can take, and how near to that it is.

use serde::{Deserialize, Serialize};

use super::Histogram;

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

/// Upper ends of bands as a share of what counts as slow, and what a call in the band weighs: one as long as it is
/// not slow, so that the load of a healthy pool is its rate, and more the longer it holds its server up.
const BANDS: [(f64, f64); 7] =
    [(0.125, 1.0), (0.25, 1.0), (0.5, 1.0), (1.0, 1.0), (2.0, 2.0), (4.0, 4.0), (f64::INFINITY, 8.0)];

impl Band {
    /// What was counted within `seconds`, by bands around `slow_ms`, the fastest first.
    pub fn of(times: &Histogram, seconds: f64, slow_ms: f64) -> Vec<Self> {
        let rate = |calls: u64| if seconds > 0.0 { calls as f64 / seconds } else { 0.0 };
        let mut calls = [0_u64; BANDS.len()];
        for (bucket, count) in &times.buckets {
            let upper_ms = Histogram::upper(*bucket) / 1000.0;
            let band = BANDS.iter().position(|(share, _)| upper_ms <= share * slow_ms).unwrap_or(BANDS.len() - 1);
            calls[band] = calls[band].saturating_add(*count);
        }
        let band = |((share, weight), calls): (&(f64, f64), u64)| Self {
            below_ms: share.is_finite().then_some(share * slow_ms),
            rate: rate(calls),
            weight: *weight,
        };
        BANDS.iter().zip(calls).map(band).collect()
    }

    /// The weighted load of all bands together.
    pub fn load(bands: &[Self]) -> f64 {
        bands.iter().map(|band| band.rate * band.weight).sum()
    }
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
    /// What keeps decisions from going to and fro: a switch brings the pool this many points below its warning line,
    /// it is taken back when the pool would stay as far below it, and a pool shrinks only to a size that keeps its
    /// redundancy and this much more.
    pub margin_percent: f64,
    /// A pool must be larger than it needs for this long before it shrinks.
    pub shrink_hold_ms: u64,
    /// Calls a second that one instance is known to take, from a load test. Counts until the centre has seen the
    /// limit itself.
    pub capacity: Option<f64>,
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
            margin_percent: 5.0,
            shrink_hold_ms: 300_000,
            capacity: None,
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
    /// Load in percent of what all instances can take; none where the level is unknown, also because a limit was never
    /// seen and the load is near the highest that was.
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

/// `POST /v1/capacity/what-if`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WhatIfAsked {
    /// Groups that are lost.
    pub lost: Vec<String>,
    /// Only this service; empty: all.
    pub service: String,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_calls_weigh_one_and_slow_ones_more() {
        let mut times = Histogram::default();
        for (millis, calls) in [(1, 500), (30, 300), (150, 200), (300, 10), (700, 10), (5_000, 10)] {
            times.add(millis * 1000, calls);
        }
        let bands = Band::of(&times, 10.0, 200.0);
        let rates: Vec<f64> = bands.iter().map(|b| b.rate).collect();
        assert_eq!(rates, [50.0, 30.0, 0.0, 20.0, 1.0, 1.0, 1.0]);
        assert_eq!(Band::load(&bands), 100.0 + 2.0 + 4.0 + 8.0);
        assert_eq!(bands[3].below_ms, Some(200.0));
        assert_eq!(bands[6].below_ms, None);
        assert_eq!(Band::load(&Band::of(&times, 0.0, 200.0)), 0.0);
    }
}
