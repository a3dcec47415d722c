//! The hour that people on this host would say it is.

use std::time::{SystemTime, UNIX_EPOCH};

/// An hour of a day, in the time zone of the host: the year, the month and the day (both from 1), and the hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hour {
    /// E.g. 2026.
    pub year: i32,
    /// 1 to 12.
    pub month: i32,
    /// 1 to 31.
    pub day: i32,
    /// 0 to 23.
    pub hour: i32,
}

impl Hour {
    /// The hour that `time` lies in; of a time that no calendar has, the first of 1970.
    pub fn of(time: SystemTime) -> Self {
        let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let seconds = libc::time_t::try_from(seconds).unwrap_or_default();
        // SAFETY: all zeroes are a valid `tm`, and the call writes one; it reads the time zone, which nobody here sets.
        let tm = unsafe {
            let mut tm = std::mem::zeroed::<libc::tm>();
            libc::localtime_r(&seconds, &mut tm);
            tm
        };
        Self { year: tm.tm_year + 1900, month: tm.tm_mon + 1, day: tm.tm_mday, hour: tm.tm_hour }
    }
}

impl std::fmt::Display for Hour {
    /// `20261121-07`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { year, month, day, hour } = self;
        write!(f, "{year:04}{month:02}{day:02}-{hour:02}")
    }
}
