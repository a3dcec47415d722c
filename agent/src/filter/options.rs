//! Values in options of filters, written as everywhere in the configuration.

use std::time::Duration;

use serde::Deserialize;

use crate::config;

/// A text, or a number where a text is meant: taken as it stands, so that the remedy can name its unit.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Text(String),
    Number(serde_yaml::Number),
}

impl From<Scalar> for String {
    fn from(scalar: Scalar) -> Self {
        match scalar {
            Scalar::Text(text) => text,
            Scalar::Number(number) => number.to_string(),
        }
    }
}

impl TryFrom<Scalar> for Time {
    type Error = String;

    fn try_from(scalar: Scalar) -> Result<Self, String> {
        Self::try_from(String::from(scalar))
    }
}

impl TryFrom<Scalar> for Times {
    type Error = String;

    fn try_from(scalar: Scalar) -> Result<Self, String> {
        Self::try_from(String::from(scalar))
    }
}

/// A duration such as `200ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Scalar")]
pub(super) struct Time(pub Duration);

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match config::duration(text.trim()) {
            Ok(time) => Ok(Self(time)),
            Err(wrong) => Err(format!("`{text}` {}; {}", wrong.problem, wrong.remedy)),
        }
    }
}

/// A duration, or a range such as `10ms..50ms` of which each call gets another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Scalar")]
pub(super) struct Times {
    low: Duration,
    high: Duration,
}

impl TryFrom<String> for Times {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (low, high) = text.split_once("..").unwrap_or((&text, &text));
        let (Time(low), Time(high)) = (Time::try_from(low.to_owned())?, Time::try_from(high.to_owned())?);
        if low > high {
            return Err(format!("`{text}` ends before it begins; write the shorter duration first"));
        }
        Ok(Self { low, high })
    }
}

impl Times {
    /// One of them; every duration in the range is as likely.
    pub(super) fn pick(self) -> Duration {
        match u64::try_from((self.high - self.low).as_nanos()) {
            Ok(0) | Err(_) => self.low,
            Ok(span) => self.low + Duration::from_nanos(fastrand::u64(0..=span)),
        }
    }

    pub(super) fn is_zero(self) -> bool {
        self.high.is_zero()
    }
}

/// 0 to 100, fractions allowed.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
pub(super) struct Percent(pub f64);

impl TryFrom<f64> for Percent {
    type Error = String;

    fn try_from(percent: f64) -> Result<Self, String> {
        if (0.0..=100.0).contains(&percent) {
            Ok(Self(percent))
        } else {
            Err(format!("`{percent}` is no share; write a number from 0 to 100"))
        }
    }
}

impl Percent {
    /// Whether it hits this time.
    pub(super) fn hits(self) -> bool {
        // Settled without dice: never and always must mean it.
        self.0 > 0.0 && (self.0 >= 100.0 || fastrand::f64() * 100.0 < self.0)
    }
}

/// Whether a filter that looks at calls and at attempts speaks of the ones or of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    #[default]
    Call,
    Attempt,
    Both,
}

/// Bytes written as pairs of hexadecimal digits.
pub(super) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<_> = text.chars().map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    let whole = digits.len().is_multiple_of(2);
    whole.then(|| digits.chunks(2).map(|two| (two[0] * 16 + two[1]) as u8).collect())
}

/// As Go writes a duration, which texts of Motan's own agent contain: `1s`, `1.5s`, `200ms`, `1m30s`.
pub(super) fn go_duration(time: Duration) -> String {
    let decimal = |value: f64, unit: &str| format!("{value}{unit}");
    let nanos = time.as_nanos();
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => decimal(nanos as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => decimal(nanos as f64 / 1e6, "ms"),
        _ => {
            let whole = time.as_secs();
            let seconds = decimal((whole % 60) as f64 + f64::from(time.subsec_nanos()) / 1e9, "s");
            match (whole / 3600, whole / 60 % 60) {
                (0, 0) => seconds,
                (0, minutes) => format!("{minutes}m{seconds}"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_ranges_and_shares_are_read_and_mistakes_told() {
        let ms = Duration::from_millis;
        let times = Times::try_from("10ms..50ms".to_owned()).unwrap();
        assert!((0..1000).all(|_| (ms(10)..=ms(50)).contains(&times.pick())));
        assert_eq!(Times::try_from("1s".to_owned()).unwrap().pick(), ms(1000));
        assert!(Times::try_from("2s..1s".to_owned()).unwrap_err().contains("shorter duration first"));
        assert!(Time::try_from("10".to_owned()).unwrap_err().contains("write 10ms or 10s"));
        assert!(Percent::try_from(100.5).is_err() && Percent::try_from(-1.0).is_err());
        assert!(Percent(100.0).hits() && !Percent(0.0).hits());
        let hits = (0..10_000).filter(|_| Percent(25.0).hits()).count();
        assert!((2200..2800).contains(&hits), "{hits}");
    }

    #[test]
    fn go_writes_durations_its_own_way() {
        for (ms, text) in
            [(0, "0s"), (200, "200ms"), (1000, "1s"), (1500, "1.5s"), (90_000, "1m30s"), (3_600_000, "1h0m0s")]
        {
            assert_eq!(go_duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(go_duration(Duration::from_micros(1500)), "1.5ms");
    }
}
