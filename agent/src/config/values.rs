//! Single values: durations, sizes, ranges, numbers, addresses, words. Each reader takes the text and
//! says what it expected and what to write instead.

use std::{
    fmt::Display,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

pub(crate) use model::value::{Wrong, duration, endpoint_address, listen_address};

use super::{VirtualAddress, problem::did_you_mean};

/// A duration that is not zero.
pub(crate) fn positive_duration(text: &str) -> Result<Duration, Wrong> {
    match duration(text)? {
        Duration::ZERO => Err(Wrong::new("is no time at all", "write a duration above zero, like 200ms or 1s")),
        d => Ok(d),
    }
}

/// `500ms..2s`, both ends included.
pub(crate) fn duration_range(text: &str) -> Result<(Duration, Duration), Wrong> {
    let Some((low, high)) = text.split_once("..") else {
        return Err(Wrong::new("is not a range of durations", "write the shortest and the longest like 500ms..2s"));
    };
    let end = |part: &str| {
        let part = part.trim();
        positive_duration(part).map_err(|w| Wrong::new(format!("is no range: `{part}` {}", w.problem), w.remedy))
    };
    let (low, high) = (end(low)?, end(high)?);
    if low > high {
        return Err(Wrong::new("begins above its end", "write the shorter duration first"));
    }
    Ok((low, high))
}

/// Bytes as a plain number, or with KiB, MiB, GiB; within `range` bytes.
pub(crate) fn size(range: RangeInclusive<usize>) -> impl Fn(&str) -> Result<usize, Wrong> {
    move |text| {
        let wrong = || Wrong::new("is not a size", "write it in bytes or like 64KiB, 10MiB or 1GiB");
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let number: usize = number.parse().map_err(|_| wrong())?;
        let unit: usize = match unit.trim() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            other => {
                let meant = match other.chars().next().map(|c| c.to_ascii_lowercase()) {
                    Some('k') => "KiB",
                    Some('m') => "MiB",
                    Some('g') => "GiB",
                    _ => return Err(wrong()),
                };
                return Err(Wrong::new(format!("has no unit we know (`{other}`)"), format!("write {number}{meant}")));
            }
        };
        let bytes = number.checked_mul(unit).ok_or_else(wrong)?;
        in_range(bytes, &range, "bytes")
    }
}

fn in_range<T: PartialOrd + Display>(n: T, range: &RangeInclusive<T>, unit: &str) -> Result<T, Wrong> {
    if range.contains(&n) {
        return Ok(n);
    }
    let side = if n < *range.start() { "too small" } else { "too large" };
    let space = if unit.is_empty() { "" } else { " " };
    Err(Wrong::new(format!("is {side}"), format!("write {} to {}{space}{unit}", range.start(), range.end())))
}

/// A whole number within `range`.
pub(crate) fn number<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, Wrong>
where
    T: FromStr + PartialOrd + Display,
{
    move |text| {
        if let Ok(n) = text.parse::<T>() {
            return in_range(n, &range, "");
        }
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        let problem = match text.strip_prefix('-') {
            _ if digits.is_empty() || digits.contains(|c: char| !c.is_ascii_digit()) => "is not a whole number",
            Some(_) => "is too small",
            None => "is too large",
        };
        Err(Wrong::new(problem, format!("write a number from {} to {}", range.start(), range.end())))
    }
}

/// `true` or `false`.
pub(crate) fn boolean(text: &str) -> Result<bool, Wrong> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Wrong::new("is neither true nor false", "write true or false")),
    }
}

/// One of several words.
pub(crate) fn choice<T: Copy>(words: &'static [(&'static str, T)]) -> impl Fn(&str) -> Result<T, Wrong> {
    move |text| match words.iter().find(|(word, _)| *word == text) {
        Some((_, value)) => Ok(*value),
        None => {
            let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            let problem = format!("is not one of {}", known.join(", "));
            Err(Wrong::new(problem, did_you_mean_or(text, &known, "write one of them")))
        }
    }
}

fn did_you_mean_or(text: &str, known: &[&str], otherwise: &str) -> String {
    let remedy = did_you_mean(text, known);
    if remedy.starts_with("did") { remedy } else { otherwise.to_owned() }
}

/// Names of services, groups, versions, methods: printable, without blanks.
pub(crate) fn word(text: &str) -> Result<String, Wrong> {
    match text {
        "" => Err(Wrong::new("is empty", "write a name")),
        _ if text.contains(|c: char| c.is_whitespace() || c.is_control()) => {
            Err(Wrong::new("contains a blank", "write a name without blanks"))
        }
        _ => Ok(text.to_owned()),
    }
}

/// Like [`word`], but may be empty: a group or a version that need not be there.
pub(crate) fn optional_word(text: &str) -> Result<String, Wrong> {
    if text.is_empty() { Ok(String::new()) } else { word(text) }
}

/// A name that becomes a folder: letters, digits, `-` and `_`, at most 32.
pub(crate) fn folder_name(text: &str) -> Result<String, Wrong> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if (1..=32).contains(&text.len()) && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    Err(Wrong::new("cannot name a folder", "write 1 to 32 letters, digits, - or _"))
}

/// A path that is not empty.
pub(crate) fn path(text: &str) -> Result<PathBuf, Wrong> {
    if text.is_empty() { Err(Wrong::new("is empty", "write a path")) } else { Ok(PathBuf::from(text)) }
}

/// A path from the root.
pub(crate) fn absolute_path(text: &str) -> Result<PathBuf, Wrong> {
    match path(text)? {
        path if path.is_absolute() => Ok(path),
        _ => Err(Wrong::new("is not an absolute path", "begin it with /")),
    }
}

/// `8002-8010`, both ends included.
pub(crate) fn port_range(text: &str) -> Result<(u16, u16), Wrong> {
    let wrong = || Wrong::new("is not a range of ports", "write the first and the last like 8002-8010");
    let (low, high) = text.split_once('-').ok_or_else(wrong)?;
    let end = |part: &str| part.trim().parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
    let (low, high) = (end(low)?, end(high)?);
    if low > high {
        return Err(Wrong::new("begins above its end", "write the smaller port first"));
    }
    Ok((low, high))
}

/// Where someone listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ListenAt {
    /// At an address.
    Tcp(SocketAddr),
    /// At a unix socket.
    Unix(PathBuf),
}

/// `IP:PORT` to listen on, or `unix:/PATH`.
pub(crate) fn listen_at(text: &str) -> Result<ListenAt, Wrong> {
    match text.strip_prefix("unix:") {
        Some(path) => socket_path(path).map(ListenAt::Unix),
        None => listen_address(text).map(ListenAt::Tcp),
    }
}

/// `IP:PORT` to connect to, or `unix:/PATH`.
pub(crate) fn connect_to(text: &str) -> Result<ListenAt, Wrong> {
    match text.strip_prefix("unix:") {
        Some(path) => socket_path(path).map(ListenAt::Unix),
        None => endpoint_address(text).map(ListenAt::Tcp),
    }
}

fn socket_path(text: &str) -> Result<PathBuf, Wrong> {
    // What fits into a `sockaddr_un`, its closing zero included.
    const LONGEST: usize = 107;
    let path = absolute_path(text.strip_prefix("//").unwrap_or(text))?;
    if path.as_os_str().len() > LONGEST {
        return Err(Wrong::new("is too long for a socket", format!("write a path of at most {LONGEST} bytes")));
    }
    Ok(path)
}

/// `IP`, `IP:PORT` or `[IPv6]:PORT` that programs connect to.
pub(crate) fn virtual_address(text: &str) -> Result<VirtualAddress, Wrong> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    let (ip, port) = match bare.parse::<IpAddr>() {
        Ok(ip) => (ip, None),
        Err(_) => {
            let address = listen_address(text)?;
            (address.ip(), Some(address.port()))
        }
    };
    let ip = ip.to_canonical();
    let remedy = "take an address that exists nowhere, such as 240.0.0.1 or fd00::1, or the service's real one";
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    match port {
        _ if ip.is_multicast() => Err(Wrong::new("is a multicast address", remedy)),
        _ if ip.is_unspecified() => Err(Wrong::new("is the unspecified address", remedy)),
        _ if broadcast => Err(Wrong::new("is the broadcast address", remedy)),
        Some(0) => Err(Wrong::new("has port 0, which nobody connects to", "leave the port out to mean every port")),
        _ => Ok(VirtualAddress { ip, port }),
    }
}

/// `PORT`, `IP:PORT` or `[IPv6]:PORT` of a program that callers from elsewhere dial; a port alone stands for
/// every local address.
pub(crate) fn inbound_address(text: &str) -> Result<VirtualAddress, Wrong> {
    let remedy = "write a port such as 8080, or an address of this host such as 10.0.0.5:8080";
    let address = match text.parse::<u16>() {
        Ok(port) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
        Err(_) => listen_address(text)?,
    };
    let ip = if address.ip().is_unspecified() { Ipv4Addr::UNSPECIFIED.into() } else { address.ip().to_canonical() };
    if address.port() == 0 {
        return Err(Wrong::new("has port 0, which nobody dials", remedy));
    }
    if ip.is_loopback() {
        return Err(Wrong::new("is a loopback address, which nobody dials from elsewhere", remedy));
    }
    Ok(VirtualAddress { ip, port: Some(address.port()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<T: std::fmt::Debug>(result: Result<T, Wrong>) -> String {
        let wrong = result.unwrap_err();
        format!("{}; {}", wrong.problem, wrong.remedy)
    }

    #[test]
    fn durations() {
        for (text, ms) in [
            ("200ms", 200.0),
            ("1s", 1e3),
            ("1m30s", 90e3),
            ("1h", 36e5),
            ("1.5s", 1.5e3),
            ("250us", 0.25),
            ("1h0m1s1ms", 3_601_001.0),
            ("0s", 0.0),
        ] {
            assert_eq!(duration(text).unwrap().as_secs_f64() * 1e3, ms, "{text}");
        }
        assert_eq!(message(duration("10")), "has no unit; write 10ms or 10s");
        assert_eq!(message(duration("0")), "has no unit; write 0ms or 0s");
        for text in ["", "s", "1x", "1 s", "-1s", "30s1m", "1s1s", "1..2s", "1s2", "99999999999999999999s", "١s"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(message(duration("9000h")), "is longer than a year; write at most 8760h");
        assert!(message(positive_duration("0ms")).contains("no time at all"));
    }

    #[test]
    fn ranges_of_durations() {
        let ms = Duration::from_millis;
        assert_eq!(duration_range("500ms..2s"), Ok((ms(500), ms(2000))));
        assert_eq!(duration_range("1s .. 1s"), Ok((ms(1000), ms(1000))));
        assert_eq!(message(duration_range("2s..1s")), "begins above its end; write the shorter duration first");
        assert_eq!(message(duration_range("5..1s")), "is no range: `5` has no unit; write 5ms or 5s");
        assert!(message(duration_range("1s")).contains("like 500ms..2s"));
        assert!(duration_range("0s..1s").is_err() && duration_range("..1s").is_err());
    }

    #[test]
    fn sizes() {
        let size = size(1..=1 << 40);
        assert_eq!(size("64KiB"), Ok(65536));
        assert_eq!(size("10MiB"), Ok(10 << 20));
        assert_eq!(size("1 GiB"), Ok(1 << 30));
        assert_eq!(size("7"), Ok(7));
        assert_eq!(message(size("64kb")), "has no unit we know (`kb`); write 64KiB");
        assert_eq!(message(size("0")), "is too small; write 1 to 1099511627776 bytes");
        assert!(
            size("99999999999GiB").is_err() && size("MiB").is_err() && size("-1").is_err() && size("1.5MiB").is_err()
        );
    }

    #[test]
    fn numbers_and_words() {
        assert_eq!(number(1..=9u16)("9"), Ok(9));
        assert_eq!(message(number(1..=9u16)("0")), "is too small; write 1 to 9");
        assert_eq!(message(number(1..=9u16)("70000")), "is too large; write a number from 1 to 9");
        assert_eq!(message(number(1..=9u16)("-3")), "is too small; write a number from 1 to 9");
        assert_eq!(message(number(1..=9u16)("1e3")), "is not a whole number; write a number from 1 to 9");
        assert_eq!(message(boolean("yes")), "is neither true nor false; write true or false");
        let choose = choice(&[("direct", 1), ("refuse", 2)]);
        assert_eq!(choose("refuse"), Ok(2));
        assert_eq!(message(choose("refused")), "is not one of direct, refuse; did you mean `refuse`?");
        assert!(folder_name("a/b").is_err() && folder_name("").is_err() && folder_name("..").is_err());
        assert!(word("a b").is_err() && word("").is_err() && optional_word("").is_ok());
        assert!(absolute_path("a/b").is_err() && absolute_path("/a").is_ok());
    }

    #[test]
    fn addresses() {
        assert!(listen_address("127.0.0.1:0").is_ok() && listen_address("[::]:80").is_ok());
        assert_eq!(message(listen_address("127.0.0.1")), "has no port; write it like 127.0.0.1:8080 or \"[::1]:8080\"");
        assert!(message(listen_address("127.0.0.1:70000")).contains("no usable port (`70000`)"));
        assert!(message(listen_address("localhost:80")).contains("names a host"));
        assert!(message(endpoint_address("127.0.0.1:0")).contains("port 0"));
        assert!(message(endpoint_address("0.0.0.0:80")).contains("no address to connect to"));
        // The kernel knows an IPv4-mapped address only as the IPv4 one.
        assert_eq!(endpoint_address("[::ffff:1.2.3.4]:80").unwrap(), "1.2.3.4:80".parse().unwrap());

        let at = |text: &str| virtual_address(text).unwrap();
        assert_eq!(at("240.0.0.1:80"), VirtualAddress { ip: "240.0.0.1".parse().unwrap(), port: Some(80) });
        assert_eq!(at("240.0.0.1").port, None);
        assert_eq!(at("fd00::1"), at("[fd00::1]"));
        assert_eq!(at("[fd00::1]:80").port, Some(80));
        assert_eq!(at("::ffff:240.0.0.1"), at("240.0.0.1"));
        for (text, expected) in [
            ("224.0.0.1:80", "multicast"),
            ("ff02::1", "multicast"),
            ("0.0.0.0:80", "unspecified"),
            ("255.255.255.255", "broadcast"),
            ("240.0.0.1:0", "port 0"),
            ("web:80", "names a host"),
        ] {
            assert!(message(virtual_address(text)).contains(expected), "{text}");
        }
    }
}
