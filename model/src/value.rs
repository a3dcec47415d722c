//! Values as people write them in files, flags and queries. Each reader takes the text and says what it expected
//! and what to write instead.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// Why a text is not the value it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Completes "`text` …", e.g. "is not a duration".
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl Wrong {
    /// From the two halves of the sentence.
    pub fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: remedy.into() }
    }

    /// The whole sentence about `text`.
    pub fn of(&self, text: &str) -> String {
        format!("`{text}` {}; {}", self.problem, self.remedy)
    }
}

/// The longest duration anyone may ask for. Longer ones overflow timers and are typing errors.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// `200ms`, `1s`, `1m30s`, `1.5h`. Zero is allowed.
pub fn duration(text: &str) -> Result<Duration, Wrong> {
    const UNITS: [(&str, f64); 6] = [("h", 3600.0), ("m", 60.0), ("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)];
    let wrong = || Wrong::new("is not a duration", "write it like 200ms, 1s, 1m30s or 1h");
    if !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return Err(Wrong::new("has no unit", format!("write {text}ms or {text}s")));
    }
    let (mut rest, mut total, mut next) = (text, Duration::ZERO, 0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        // Larger units first, each once: `30s1m` is more likely a slip than a wish.
        let Some(found) = UNITS.iter().skip(next).position(|(name, _)| *name == unit) else { return Err(wrong()) };
        next += found + 1;
        // Whole numbers stay exact.
        let seconds = UNITS[next - 1].1;
        let part = match number.parse::<u64>() {
            Ok(n) if seconds >= 1.0 => Duration::from_secs(n.saturating_mul(seconds as u64)),
            Ok(n) if unit == "ms" => Duration::from_millis(n),
            Ok(n) if unit == "us" => Duration::from_micros(n),
            Ok(n) => Duration::from_nanos(n),
            Err(_) => {
                let n: f64 = number.parse().map_err(|_| wrong())?;
                Duration::try_from_secs_f64(n * seconds).map_err(|_| wrong())?
            }
        };
        total = total.saturating_add(part);
        rest = tail;
    }
    match total {
        _ if text.is_empty() => Err(wrong()),
        _ if total > LONGEST => Err(Wrong::new("is longer than a year", "write at most 8760h")),
        _ => Ok(total),
    }
}

/// `IP:PORT` to listen on; port 0 asks the kernel for a free one.
pub fn listen_address(text: &str) -> Result<SocketAddr, Wrong> {
    const EXAMPLE: &str = "write it like 127.0.0.1:8080 or \"[::1]:8080\"";
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if text.parse::<IpAddr>().is_ok() {
        return Err(Wrong::new("has no port", EXAMPLE));
    }
    Err(match text.rsplit_once(':') {
        Some((ip, port)) if ip.parse::<IpAddr>().is_ok() && port.parse::<u16>().is_err() => {
            Wrong::new(format!("has no usable port (`{port}`)"), "write a port from 1 to 65535")
        }
        Some((host, _)) if host.contains(|c: char| c.is_ascii_alphabetic()) && !host.contains(':') => {
            Wrong::new("names a host", "write its IP address: names are not resolved here")
        }
        _ => Wrong::new("is not an address with port", EXAMPLE),
    })
}

/// `IP:PORT` to connect to.
pub fn endpoint_address(text: &str) -> Result<SocketAddr, Wrong> {
    let address = listen_address(text)?;
    if address.port() == 0 {
        return Err(Wrong::new("has port 0, which nobody listens on", "write a port from 1 to 65535"));
    }
    if address.ip().is_unspecified() {
        return Err(Wrong::new("is no address to connect to", "write the address of one host, such as 127.0.0.1"));
    }
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}
