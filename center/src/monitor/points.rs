//! Operating points of instances: how it went at which load.

use model::center::{Band, CapacityPoint};

use super::{
    ring::{Rings, STEPS},
    slot::Slot,
};

/// Windows in which this instance was looked at for the whole time, oldest first: minutes where shorter ones are not
/// kept any more, then ten seconds.
pub(super) fn of(instance: &str, row: &Rings, now_ms: u64, slow_ms: f64, offset_ms: i64) -> Vec<CapacityPoint> {
    let short = row.windows(1, 0, u64::MAX, now_ms);
    let oldest_ms = short.first().map_or(u64::MAX, |(index, _)| index * STEPS[1]);
    let long = row.windows(2, 0, u64::MAX, now_ms).into_iter().filter(|(i, _)| (i + 1) * STEPS[2] <= oldest_ms);
    let all = long.map(|(i, s)| (i, 2, s)).chain(short.into_iter().map(|(i, s)| (i, 1, s)));
    let whole = all.filter(|(index, level, stretch)| {
        let whole = STEPS[*level] as f64 / 1000.0;
        (index + 1) * STEPS[*level] <= now_ms && stretch.seconds > 0.9 * whole && stretch.counts.calls > 0
    });
    whole
        .map(|(index, level, stretch)| {
            let at_ms = ((index + 1) * STEPS[level]).saturating_add_signed(offset_ms);
            point(instance, at_ms, stretch.rate, &stretch.counts, slow_ms)
        })
        .collect()
}

fn point(instance: &str, at_ms: u64, rate: f64, counts: &Slot, slow_ms: f64) -> CapacityPoint {
    let times = counts.times();
    let errors = counts.failed as f64 / counts.calls.max(1) as f64;
    let timed = times.total();
    // As if all of these calls ended within one second, then at the rate that they had.
    let weighted = Band::load(&Band::of(&times, 1.0, slow_ms));
    let load = if timed > 0 { rate * weighted / timed as f64 } else { rate };
    CapacityPoint {
        at_ms,
        instance: instance.to_owned(),
        rate: rate * (1.0 - errors),
        load,
        p99_ms: times.quantile_ms(0.99).unwrap_or(0.0),
        errors,
    }
}
