//! Numbers as humans read them: three digits and a unit.

/// Nothing to show.
pub(super) const NONE: &str = "-";

/// Three digits of `value`: `1.23`, `12.3`, `123`.
fn digits(value: f64) -> String {
    // Compared with what would be printed: 9.996 is 10.0, not 10.00.
    if value < 9.995 {
        format!("{value:.2}")
    } else if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

/// Largest unit of which there is one; `units` from the smallest, each with its size.
fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    let (size, unit) = units.iter().rev().find(|(size, _)| value >= 0.9995 * size).unwrap_or(&units[0]);
    format!("{}{unit}", digits(value / size))
}

/// Events per second.
pub(super) fn rate(per_second: f64) -> String {
    if per_second == 0.0 {
        return "0/s".to_owned();
    }
    scaled(per_second, &[(1.0, "/s"), (1e3, "k/s"), (1e6, "M/s")])
}

/// A share of 0 to 1. Never shows 100 % unless it is.
pub(super) fn share(share: Option<f64>) -> String {
    match share {
        None => NONE.to_owned(),
        Some(1.0) => "100%".to_owned(),
        // Rounded down: one failure in a million must not vanish.
        Some(share) => format!("{:.2}%", (share * 1e4).floor() / 100.0),
    }
}

/// A short time in seconds.
pub(super) fn latency(seconds: Option<f64>) -> String {
    match seconds {
        None => NONE.to_owned(),
        Some(seconds) if seconds >= 99.95 => age(seconds),
        Some(seconds) => scaled(seconds, &[(1e-6, "us"), (1e-3, "ms"), (1.0, "s")]),
    }
}

/// A long time in seconds, by its two largest units.
pub(super) fn age(seconds: f64) -> String {
    let s = seconds as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3600 % 24),
    }
}

/// An amount of data.
pub(super) fn bytes(bytes: u64) -> String {
    if bytes < 1000 {
        return format!("{bytes}B");
    }
    let kib = 1024.0;
    let units = [(kib, "KiB"), (kib * kib, "MiB"), (kib * kib * kib, "GiB"), (kib * kib * kib * kib, "TiB")];
    scaled(bytes as f64, &units)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_do_not_lie() {
        for (per_second, text) in [
            (0.0, "0/s"),
            (0.1, "0.10/s"),
            (9.996, "10.0/s"),
            (999.4, "999/s"),
            (999.9, "1.00k/s"),
            (123_456.0, "123k/s"),
        ] {
            assert_eq!(rate(per_second), text);
        }
        for (of, text) in [(None, "-"), (Some(1.0), "100%"), (Some(0.999_999), "99.99%"), (Some(0.0), "0.00%")] {
            assert_eq!(share(of), text);
        }
        for (seconds, text) in [
            (None, "-"),
            (Some(8.192e-6), "8.19us"),
            (Some(0.000_999_9), "1.00ms"),
            (Some(0.0123), "12.3ms"),
            (Some(0.123), "123ms"),
            (Some(1.5), "1.50s"),
            (Some(137.4), "2m17s"),
        ] {
            assert_eq!(latency(seconds), text);
        }
        for (seconds, text) in [(0.9, "0s"), (59.9, "59s"), (61.0, "1m01s"), (7260.0, "2h01m"), (90_000.0, "1d01h")] {
            assert_eq!(age(seconds), text);
        }
        for (n, text) in [(0, "0B"), (999, "999B"), (1000, "0.98KiB"), (1024, "1.00KiB"), (1_048_576, "1.00MiB")] {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(bytes(u64::MAX), "16777216TiB");
    }
}
