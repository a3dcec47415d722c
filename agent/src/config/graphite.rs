//! `graphite` and `series`: where figures are sent, and how many there may be.

use std::time::Duration;

use super::{
    keys,
    node::Node,
    problem::Report,
    read::{Map, Others, Place, items},
    values::{self, Wrong, number},
};

/// A server that is sent figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graphite {
    /// Its `HOST:PORT`, asked for again with every connection.
    pub address: String,
    /// How figures are written and carried.
    pub form: GraphiteForm,
    /// [`GraphiteForm::Plain`]: what every name begins with; `{host}`, `{application}` and `{name}` stand for
    /// this agent's.
    pub prefix: String,
    /// How often.
    pub interval: Duration,
    /// [`GraphiteForm::Plain`]: lines that wait while the server does not take them.
    pub queue: usize,
}

/// How figures are written and carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GraphiteForm {
    /// Carbon's line protocol over TCP.
    #[default]
    Plain,
    /// What motan-go sends over UDP.
    Motan,
}

impl GraphiteForm {
    /// The word in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Motan => "motan",
        }
    }

    /// How often figures go out when nothing else is said; motan-go's dashboards expect its 5 s.
    pub const fn interval(self) -> Duration {
        match self {
            Self::Plain => Duration::from_secs(10),
            Self::Motan => Duration::from_secs(5),
        }
    }
}

impl Graphite {
    /// A server at `address` with everything else at its default.
    pub fn at(address: impl Into<String>, form: GraphiteForm) -> Self {
        Self {
            address: address.into(),
            form,
            prefix: "sockmesh.{host}.{application}".to_owned(),
            interval: form.interval(),
            queue: 10_000,
        }
    }
}

/// How many series there may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// Methods of all services together that are counted by themselves.
    pub methods: usize,
    /// Endpoints of all services together with series in `/metrics`.
    pub endpoints: usize,
    /// A method that nobody called for this long is forgotten; zero means never.
    pub idle: Duration,
}

impl Default for Series {
    fn default() -> Self {
        // A method takes about 2 KiB here and 40 lines in a scrape, an endpoint 4 lines.
        Self { methods: 2000, endpoints: 1000, idle: Duration::from_secs(3600) }
    }
}

const FORMS: &[(&str, GraphiteForm)] = &[("plain", GraphiteForm::Plain), ("motan", GraphiteForm::Motan)];

/// Reads the list `graphite`.
pub(super) fn graphite(node: &Node, path: &str, into: &mut Vec<Graphite>, report: &mut Report) {
    for (path, node) in items(node, path, report) {
        let Some(map) = Map::open(node, &path, &[&keys::GRAPHITE], Others::Unknown, report) else { continue };
        let form = map.read("form", values::choice(FORMS), report).unwrap_or_default();
        let mut target = Graphite::at(map.read("address", host_port, report).unwrap_or_default(), form);
        map.set("prefix", prefix, &mut target.prefix, report);
        map.set("interval", interval, &mut target.interval, report);
        map.set("queue", number(100..=1_000_000), &mut target.queue, report);
        if form == GraphiteForm::Motan {
            for key in ["prefix", "queue"] {
                if map.get(key).is_some() {
                    report.mistake(map.place(key).problem(
                        "has no effect: motan-go's form has names of its own, and UDP keeps nothing",
                        format!("take `{key}` away, or choose `form: plain`"),
                    ));
                }
            }
        }
        let same = |t: &Graphite| t.address == target.address && t.form == target.form;
        if !target.address.is_empty() && into.iter().any(same) {
            let place: Place = map.place("address");
            report.mistake(place.problem(format!("`{}` is there twice", target.address), "take one away"));
        }
        into.push(target);
    }
}

/// Reads the mapping `series`.
pub(super) fn series(node: &Node, path: &str, series: &mut Series, report: &mut Report) {
    let Some(map) = Map::open(node, path, &[&keys::SERIES], Others::Unknown, report) else { return };
    map.set("methods", number(1..=1_000_000), &mut series.methods, report);
    map.set("endpoints", number(0..=1_000_000), &mut series.endpoints, report);
    map.set("idle", values::duration, &mut series.idle, report);
}

/// `HOST:PORT`, where the host may be a name.
pub(crate) fn host_port(text: &str) -> Result<String, Wrong> {
    const EXAMPLE: &str = "write it like carbon.example:2003 or 127.0.0.1:2003";
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Err(Wrong::new("has no port", EXAMPLE));
    }
    let Some((host, port)) = text.rsplit_once(':') else { return Err(Wrong::new("has no port", EXAMPLE)) };
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let named = |h: &str| !h.is_empty() && h.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    let good_host = match bracketed {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => named(host),
    };
    match port.parse::<u16>() {
        Ok(1..) if good_host => Ok(text.to_owned()),
        Ok(1..) => Err(Wrong::new("names no host", EXAMPLE)),
        _ => Err(Wrong::new(format!("has no usable port (`{port}`)"), "write a port from 1 to 65535")),
    }
}

fn interval(text: &str) -> Result<Duration, Wrong> {
    match values::positive_duration(text)? {
        d if d < Duration::from_millis(100) => Err(Wrong::new("is too short", "write 100ms to 1h")),
        d if d > Duration::from_secs(3600) => Err(Wrong::new("is too long", "write 100ms to 1h")),
        d => Ok(d),
    }
}

/// Letters, digits and what Carbon allows in paths; `{host}`, `{application}`, `{name}`.
fn prefix(text: &str) -> Result<String, Wrong> {
    let bare = text.replace("{host}", "h").replace("{application}", "a").replace("{name}", "n");
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if bare.split('.').all(|part| !part.is_empty() && part.chars().all(fits)) {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(
        "is no prefix of names",
        "write parts of letters, digits, - and _ with dots between, or {host}, {application}, {name}",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_prefixes() {
        for good in ["carbon:2003", "carbon.example.com:2003", "10.0.0.1:1", "[::1]:2003"] {
            assert_eq!(host_port(good).as_deref(), Ok(good));
        }
        for bad in ["carbon", "10.0.0.1", "::1", "::1:2003", "carbon:0", "carbon:x", ":2003", "a b:1", "[x]:1", ""] {
            assert!(host_port(bad).is_err(), "{bad}");
        }
        for good in ["sockmesh", "a.{host}.b", "{application}-{name}", "x_1.y"] {
            assert_eq!(prefix(good).as_deref(), Ok(good));
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a b", "{x}", "a\nb"] {
            assert!(prefix(bad).is_err(), "{bad:?}");
        }
    }
}
