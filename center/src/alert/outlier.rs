//! An instance that differs from its siblings.

use augurs::outlier::{DbscanDetector, OutlierDetector};

/// Fewer instances have no majority to differ from.
pub const SIBLINGS: usize = 4;

/// Windows that are looked at, and how long one is.
pub const WINDOWS: usize = 18;
/// See [`WINDOWS`].
pub const WINDOW_MS: u64 = 10_000;

/// Windows of these, the newest, in which it must differ, and how many of them may be excepted.
const LATELY: usize = 6;
/// See [`LATELY`].
const EXCEPT: usize = 1;

/// An instance that differs.
#[derive(Clone, Debug, PartialEq)]
pub struct Outlier {
    /// Which of the series.
    pub index: usize,
    /// Its newest value.
    pub value: f64,
    /// The middle of its siblings' newest values.
    pub usual: f64,
    /// What is usual, window by window.
    pub band: Vec<(f64, f64)>,
}

/// Finds the series that differ from the majority in the newest windows. All must be equally long; windows that are
/// not known say nothing. A larger `sensitivity` (0 to 1) finds smaller differences.
///
/// Windows are smoothed first (middle of three), and times are compared by their ratio: what counts is twice as slow,
/// not 5 ms more. A difference below `least` (a ratio for times and rates, a share for shares) counts never.
pub fn find(figure: &str, values: &[Vec<Option<f64>>], sensitivity: f64) -> Vec<Outlier> {
    let share = matches!(figure, "success" | "slow");
    // The least difference at a sensitivity of 0.5: 1.5 times as slow, 4 of 100 calls.
    let least = if share { 0.08 * (1.0 - sensitivity) } else { 1.0 - 0.66 * (1.0 - sensitivity) };
    let least = if share { least } else { 1.0 / least.clamp(0.2, 0.99) };
    let length = values.first().map_or(0, Vec::len);
    let transformed: Vec<Vec<f64>> = values.iter().map(|row| smooth(row, share)).collect();
    let known = |row: &&Vec<f64>| row.iter().rev().take(LATELY).filter(|v| !v.is_nan()).count() * 2 > LATELY;
    if length < LATELY || transformed.iter().filter(known).count() < SIBLINGS {
        return Vec::new();
    }
    // How far values lie apart that belong together: as far as the least difference, or as the siblings themselves do.
    let epsilon = if share { least } else { least.ln() };
    let rows: Vec<&[f64]> = transformed.iter().map(Vec::as_slice).collect();
    let detector = DbscanDetector::with_epsilon(epsilon.max(spread(&transformed) * (1.5 - sensitivity)));
    let Ok(found) = detector.preprocess(&rows).and_then(|data| detector.detect(&data)) else { return Vec::new() };
    let Some(band) = found.cluster_band else { return Vec::new() };
    let back = |value: f64| if share { value } else { value.exp() };
    let band: Vec<_> = band.min.iter().zip(&band.max).map(|(min, max)| (back(*min), back(*max))).collect();
    let mut outliers = Vec::new();
    for (index, result) in found.series_results.iter().enumerate() {
        let lately = length - LATELY..length;
        // No band: no majority that anyone could differ from.
        let differs = |at: &usize| result.scores.get(*at).is_some_and(|s| *s > 0.0) && band[*at].0.is_finite();
        if lately.filter(differs).count() + EXCEPT < LATELY {
            continue;
        }
        let newest = |row: &Vec<f64>| row.iter().rev().find(|v| !v.is_nan()).copied();
        let Some(value) = newest(&transformed[index]) else { continue };
        let mut siblings: Vec<f64> = transformed.iter().filter_map(newest).collect();
        siblings.sort_by(f64::total_cmp);
        let usual = siblings[siblings.len() / 2];
        // Who fails less or answers faster than all others is nobody's trouble.
        let better = match figure {
            "success" => value > usual,
            "rate" => false,
            _ => value < usual,
        };
        let apart = (value - usual).abs();
        if !better && apart >= epsilon {
            outliers.push(Outlier { index, value: back(value), usual: back(usual), band: band.clone() });
        }
    }
    // More than a third is no outlier but another kind of majority.
    if outliers.len() * 3 > values.len() { Vec::new() } else { outliers }
}

/// The middle of each three windows, on the scale on which they are compared; NaN where nothing is known.
fn smooth(row: &[Option<f64>], share: bool) -> Vec<f64> {
    let scale = |value: f64| if share { value } else { (value.max(0.0) + 1e-3).ln() };
    let middle = |at: usize| {
        let near = row[at.saturating_sub(1)..(at + 2).min(row.len())].iter().flatten();
        let mut near: Vec<f64> = near.filter(|value| value.is_finite()).map(|value| scale(*value)).collect();
        near.sort_by(f64::total_cmp);
        near.get(near.len() / 2).copied().unwrap_or(f64::NAN)
    };
    (0..row.len()).map(middle).collect()
}

/// How far apart most siblings are at one moment: the middle over all windows of the distance between quartiles.
fn spread(rows: &[Vec<f64>]) -> f64 {
    let length = rows.first().map_or(0, Vec::len);
    let mut spreads: Vec<f64> = Vec::with_capacity(length);
    for at in 0..length {
        let mut values: Vec<f64> = rows.iter().map(|row| row[at]).filter(|value| !value.is_nan()).collect();
        if values.len() >= SIBLINGS {
            values.sort_by(f64::total_cmp);
            spreads.push(values[values.len() * 3 / 4] - values[values.len() / 4]);
        }
    }
    spreads.sort_by(f64::total_cmp);
    spreads.get(spreads.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(count: usize, value: impl Fn(usize, usize) -> f64) -> Vec<Vec<Option<f64>>> {
        (0..count).map(|who| (0..WINDOWS).map(|at| Some(value(who, at))).collect()).collect()
    }

    #[test]
    fn the_slow_one_is_found_and_nobody_else() {
        let slow = |who: usize, at: usize| if who == 3 && at > 9 { 50.0 } else { 10.0 + (who + at) as f64 / 10.0 };
        let found = find("mean_ms", &group(8, slow), 0.5);
        assert_eq!((found.len(), found[0].index), (1, 3));
        assert!(found[0].value > 49.0 && found[0].usual < 13.0 && found[0].band.len() == WINDOWS);
        let even = |who: usize, at: usize| 10.0 + (who + at) as f64 / 10.0;
        assert_eq!(find("mean_ms", &group(8, even), 0.5), []);
    }

    #[test]
    fn what_is_better_short_or_shared_by_many_is_no_trouble() {
        let fast = |who: usize, _| if who == 3 { 1.0 } else { 10.0 };
        assert_eq!(find("mean_ms", &group(8, fast), 0.5), []);
        let short = |who: usize, at: usize| if who == 3 && (14..17).contains(&at) { 50.0 } else { 10.0 };
        assert_eq!(find("mean_ms", &group(8, short), 0.5), []);
        let half = |who: usize, _| if who < 4 { 50.0 } else { 10.0 };
        assert_eq!(find("mean_ms", &group(8, half), 0.5), []);
        let slow = |who: usize, _| if who == 0 { 50.0 } else { 10.0 };
        assert_eq!(find("mean_ms", &group(3, slow), 0.5), [], "too few to have a majority");
    }

    #[test]
    fn anything_can_be_missing() {
        let slow = |who: usize, _| if who == 3 { 50.0 } else { 10.0 };
        let mut rows = group(8, slow);
        rows[1].fill(None);
        for (at, value) in rows[3].iter_mut().enumerate() {
            *value = value.filter(|_| at % 3 != 0);
        }
        rows[2][4] = Some(f64::NAN);
        rows[4][5] = Some(f64::INFINITY);
        assert_eq!(find("mean_ms", &rows, 0.5).iter().map(|o| o.index).collect::<Vec<_>>(), [3]);
        for row in &mut rows {
            row.fill(None);
        }
        assert_eq!(find("mean_ms", &rows, 0.5), []);
        assert_eq!(find("mean_ms", &[], 0.5), []);
        assert_eq!(find("mean_ms", &vec![Vec::new(); 8], 0.5), []);
    }
}
