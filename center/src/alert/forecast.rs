//! The band in which a figure is expected, learned from its own past: seasons of a day and a week by MSTL, the level
//! between by exponential smoothing (ETS), the width by how far one step ahead was off so far.

use std::collections::{BTreeMap, VecDeque};

use augurs::{Fit, Predict, ets::AutoETS, mstl::MSTLModel};

/// Windows that one fit is good for.
pub const AHEAD: usize = 12;

/// Fewer known windows teach nothing.
pub const LEAST: usize = 60;

/// Windows in a row that must be out of the band.
pub const OUT: usize = 3;

/// Windows in a row that must be within it before it is over.
pub const IN: usize = 6;

/// Where a figure is expected, window by window after the last that was learned from.
#[derive(Clone, Debug, PartialEq)]
pub struct Bounds {
    /// Lower and upper, [`AHEAD`] of them.
    pub band: Vec<(f64, f64)>,
    /// The middle.
    pub point: Vec<f64>,
}

/// Learns from `values`, evenly spaced, the newest last; `seasons` are lengths in windows, of which those count that
/// were seen at least twice. `None` when too little is known. Takes some ten milliseconds for two weeks of five minutes.
pub fn fit(figure: &str, values: &[Option<f64>], seasons: &[usize], level: f64) -> Option<Bounds> {
    let first = values.iter().position(|value| value.is_some_and(f64::is_finite))?;
    let values = &values[first..];
    let known: Vec<f64> = values.iter().flatten().copied().filter(|value| value.is_finite()).collect();
    if known.len() < LEAST || known.len() * 2 < values.len() {
        return None;
    }
    let scale = Scale::new(figure, &known);
    let seasons: Vec<usize> = seasons.iter().copied().filter(|season| values.len() >= season * 2 + AHEAD).collect();
    let filled = fill(values, seasons.last().copied());
    let mut learned: Vec<f64> = filled.iter().map(|value| scale.to(*value)).collect();
    // What was odd in the past must not be expected again: taken apart twice, the second time without it.
    if !seasons.is_empty() {
        let parts = Parts::of(&learned, &seasons)?;
        let width = spread(&parts.odd, 0.5) * 1.4826;
        for (value, odd) in learned.iter_mut().zip(&parts.odd) {
            if odd.abs() > 6.0 * width {
                *value -= odd;
            }
        }
    }
    let parts = Parts::of(&learned, &seasons)?;
    let level_of = &parts.level[parts.level.len().saturating_sub(RECENT)..];
    // A slope that is not damped; a level alone (`ANN`) is not found by this crate.
    let ets = AutoETS::new(1, "AAN").ok()?.damped(false).ok()?.fit(level_of).ok()?;
    let fitted = ets.predict_in_sample(None).ok()?;
    let forecast = ets.predict(AHEAD, level).ok()?;
    let intervals = forecast.intervals?;
    let off: Vec<f64> = level_of.iter().zip(&fitted.point).map(|(value, fitted)| value - fitted).collect();
    // Never narrower than most steps were off, whatever the model believes of its errors.
    let seen = spread(&off, level);
    let first_half = ((intervals.upper[0] - intervals.lower[0]) / 2.0).max(1e-12);
    let mut bounds = Bounds { band: Vec::with_capacity(AHEAD), point: Vec::with_capacity(AHEAD) };
    for (at, ((point, lower), upper)) in forecast.point.iter().zip(&intervals.lower).zip(&intervals.upper).enumerate() {
        let half = (upper - lower) / 2.0;
        let half = half.max(seen * half / first_half).max(scale.floor());
        let point = point + parts.season(at);
        if !point.is_finite() || !half.is_finite() {
            return None;
        }
        bounds.point.push(scale.from(point));
        bounds.band.push((scale.from(point - half), scale.from(point + half)));
    }
    Some(bounds)
}

/// Windows whose level says how it moves; what was before has taught the seasons.
const RECENT: usize = 576;

/// A figure taken apart.
struct Parts {
    /// What comes again, by season: its newest cycle.
    seasons: Vec<Vec<f64>>,
    /// Without its seasons.
    level: Vec<f64>,
    /// Without its seasons and its slow trend.
    odd: Vec<f64>,
}

impl Parts {
    fn of(values: &[f64], seasons: &[usize]) -> Option<Self> {
        if seasons.is_empty() {
            return Some(Self { seasons: Vec::new(), level: values.to_vec(), odd: Vec::new() });
        }
        let model = MSTLModel::naive(seasons.to_vec()).fit(values).ok()?;
        let parts = model.fit();
        let odd: Vec<f64> = parts.remainder().iter().map(|value| f64::from(*value)).collect();
        let level = parts.trend().iter().zip(&odd).map(|(trend, odd)| f64::from(*trend) + odd).collect();
        let cycle = |(season, length): (&Vec<f32>, &usize)| {
            season[season.len().saturating_sub(*length)..].iter().map(|value| f64::from(*value)).collect()
        };
        Some(Self { seasons: parts.seasonal().iter().zip(seasons).map(cycle).collect(), level, odd })
    }

    /// What the seasons add in the window so many after the last.
    fn season(&self, ahead: usize) -> f64 {
        self.seasons.iter().map(|cycle| cycle.get(ahead % cycle.len().max(1)).copied().unwrap_or(0.0)).sum()
    }
}

/// How large this share of them is at most, signs left out.
fn spread(off: &[f64], share: f64) -> f64 {
    let mut off: Vec<f64> = off.iter().map(|off| off.abs()).filter(|off| off.is_finite()).collect();
    off.sort_by(f64::total_cmp);
    let at = (off.len() as f64 * share) as usize;
    off.get(at.min(off.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

/// Windows without a value get that of a season before, else the last one known.
fn fill(values: &[Option<f64>], season: Option<usize>) -> Vec<f64> {
    let mut filled: Vec<f64> = Vec::with_capacity(values.len());
    for (at, value) in values.iter().enumerate() {
        let before = season.and_then(|season| at.checked_sub(season)).map(|at| filled[at]);
        let value = value.filter(|value| value.is_finite()).or(before).or(filled.last().copied());
        filled.push(value.unwrap_or(0.0));
    }
    filled
}

/// The scale on which errors are alike at noon and at night: the logarithm for what cannot be below zero and has no
/// top, the figure itself for shares.
#[derive(Clone, Copy, Debug)]
enum Scale {
    Log { offset: f64 },
    Plain,
}

impl Scale {
    fn new(figure: &str, known: &[f64]) -> Self {
        if matches!(figure, "success" | "slow") {
            return Self::Plain;
        }
        let mut sorted = known.to_vec();
        sorted.sort_by(f64::total_cmp);
        // A tenth of what is usual: noise near zero is noise.
        Self::Log { offset: (sorted[sorted.len() / 2].abs() * 0.1).max(1e-3) }
    }

    fn to(self, value: f64) -> f64 {
        match self {
            Self::Log { offset } => (value.max(0.0) + offset).ln(),
            Self::Plain => value,
        }
    }

    fn from(self, value: f64) -> f64 {
        match self {
            Self::Log { offset } => (value.exp() - offset).max(0.0),
            Self::Plain => value,
        }
    }

    /// Nobody is told of less: a tenth, or half of a hundredth of the calls.
    const fn floor(self) -> f64 {
        match self {
            Self::Log { .. } => 0.1,
            Self::Plain => 0.005,
        }
    }
}

/// Windows that were judged and are remembered, for the picture of an alert.
const REMEMBERED: usize = 72;

/// One figure, followed: learns now and then, judges each window once.
#[derive(Clone, Debug, Default)]
pub struct Tracker {
    /// End of the newest window that was learned from, and what it taught.
    bounds: Option<(u64, Bounds)>,
    /// Windows that were out of their band and what is learned from instead: the edge of the band. So what lasts
    /// becomes usual, slowly.
    clipped: BTreeMap<u64, f64>,
    judged: VecDeque<Judged>,
    out: bool,
}

/// A window that was judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// End of the window.
    pub at_ms: u64,
    /// What was seen.
    pub value: Option<f64>,
    /// What was expected.
    pub band: (f64, f64),
}

impl Tracker {
    /// Whether it should learn again before it judges a window that ends at `at_ms`.
    pub fn stale(&self, at_ms: u64, step_ms: u64) -> bool {
        let good = step_ms * (AHEAD as u64 / 2);
        self.bounds.as_ref().is_none_or(|(learned, _)| at_ms <= *learned || at_ms > learned + good)
    }

    /// Learns from windows that end at `at_ms`, evenly spaced.
    pub fn learn(&mut self, figure: &str, at_ms: &[u64], values: &[Option<f64>], seasons: &[usize], level: f64) {
        let Some((first, last)) = at_ms.first().zip(at_ms.last()) else { return };
        self.clipped = self.clipped.split_off(first);
        let clipped = |(at, value): (&u64, &Option<f64>)| self.clipped.get(at).copied().or(*value);
        let values: Vec<_> = at_ms.iter().zip(values).map(clipped).collect();
        self.bounds = fit(figure, &values, seasons, level).map(|bounds| (*last, bounds));
    }

    /// Judges the window that ends at `at_ms`; one that was judged, and one that nothing is known about, is left.
    pub fn judge(&mut self, at_ms: u64, step_ms: u64, value: Option<f64>) {
        let Some((learned, bounds)) = &self.bounds else { return };
        if self.judged.back().is_some_and(|judged| judged.at_ms >= at_ms) || at_ms <= *learned {
            return;
        }
        let ahead = (at_ms - learned).div_ceil(step_ms.max(1)).max(1) - 1;
        let Some(band) = usize::try_from(ahead).ok().and_then(|ahead| bounds.band.get(ahead)).copied() else { return };
        if let Some(value) = value.filter(|value| *value < band.0 || *value > band.1) {
            self.clipped.insert(at_ms, value.clamp(band.0, band.1));
        }
        if self.judged.len() >= REMEMBERED {
            self.judged.pop_front();
        }
        self.judged.push_back(Judged { at_ms, value, band });
        self.settle();
    }

    /// The windows judged lately, oldest first.
    pub fn judged(&self) -> &VecDeque<Judged> {
        &self.judged
    }

    /// Whether it is out of its band: since [`OUT`] windows in a row were, all on one side, and until [`IN`] in a row
    /// were not. `None` when the newest window is not known.
    pub fn out(&self) -> Option<bool> {
        self.judged.back()?.value?;
        Some(self.out)
    }

    fn settle(&mut self) {
        let side = |judged: &Judged| match judged.value {
            Some(value) if value > judged.band.1 => 1,
            Some(value) if value < judged.band.0 => -1,
            _ => 0,
        };
        if self.out {
            self.out = self.judged.iter().rev().take(IN).any(|judged| side(judged) != 0);
        } else {
            let sum: i32 = self.judged.iter().rev().take(OUT).map(side).sum();
            self.out = usize::try_from(sum.unsigned_abs()).is_ok_and(|sum| sum == OUT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daily(days: usize, noise: f64) -> Vec<Option<f64>> {
        let random = fastrand::Rng::with_seed(7);
        let mut random = random;
        let value = |at: usize| 100.0 + 60.0 * (at as f64 / 288.0 * std::f64::consts::TAU).sin();
        (0..days * 288).map(|at| Some(value(at) * (1.0 + noise * (random.f64() - 0.5)))).collect()
    }

    #[test]
    fn a_season_is_learned_and_gaps_do_not_matter() {
        let mut values = daily(5, 0.1);
        for value in values.iter_mut().skip(300).step_by(7) {
            *value = None;
        }
        let truth = daily(6, 0.0);
        let bounds = fit("rate", &values, &[288, 2016], 0.99).unwrap();
        assert_eq!(bounds.band.len(), AHEAD);
        for (at, (lower, upper)) in bounds.band.iter().enumerate() {
            let true_value = truth[values.len() + at].unwrap();
            assert!(*lower < true_value && true_value < *upper, "{at}: {lower} {true_value} {upper}");
            assert!(upper / lower < 2.0, "{at}: {lower} {upper}");
        }
    }

    #[test]
    fn too_little_teaches_nothing_and_oddities_do_not_break_it() {
        assert_eq!(fit("rate", &[], &[288], 0.99), None);
        assert_eq!(fit("rate", &[Some(1.0); 10], &[288], 0.99), None);
        assert_eq!(fit("rate", &[None; 1000], &[288], 0.99), None);
        assert_eq!(fit("rate", &[Some(f64::NAN); 1000], &[288], 0.99), None);
        for constant in [0.0, 1.0, 1e9] {
            for seasons in [&[288][..], &[]] {
                if let Some(bounds) = fit("rate", &[Some(constant); 1000], seasons, 0.99) {
                    let (lower, upper) = bounds.band[0];
                    assert!(lower <= constant && constant <= upper, "{constant}: {lower} {upper}");
                }
            }
        }
    }

    #[test]
    fn out_means_on_one_side_all_the_time() {
        let check = |values: &[Option<f64>]| {
            let bounds = Bounds { band: vec![(1.0, 2.0); AHEAD], point: vec![1.5; AHEAD] };
            let mut tracker = Tracker { bounds: Some((1000, bounds)), ..Tracker::default() };
            for (at, value) in values.iter().enumerate() {
                tracker.judge(2000 + at as u64 * 1000, 1000, *value);
                tracker.judge(2000 + at as u64 * 1000, 1000, Some(-9.0));
            }
            assert_eq!(tracker.judged().len(), values.len());
            tracker.out()
        };
        assert_eq!(check(&[Some(1.5), Some(3.0), Some(3.0), Some(3.0)]), Some(true));
        assert_eq!(check(&[Some(0.0), Some(0.0), Some(0.0)]), Some(true));
        assert_eq!(check(&[Some(3.0), Some(0.0), Some(3.0)]), Some(false));
        assert_eq!(check(&[Some(3.0), None, Some(3.0)]), Some(false));
        assert_eq!(check(&[Some(3.0), Some(3.0)]), Some(false));
        let short = [3.0, 3.0, 3.0, 1.5, 1.5, 1.5, 1.5, 1.5].map(Some);
        assert_eq!(check(&short), Some(true), "not over yet");
        assert_eq!(check(&[&short[..], &[Some(1.5)]].concat()), Some(false));
        assert_eq!(check(&[Some(3.0), Some(3.0), None]), None);
        assert_eq!(check(&[]), None);
    }
}
