//! `api:` of the centre's file.

use std::{net::IpAddr, path::PathBuf};

use serde::Deserialize;

/// How the centre is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Names that the centre is called by, besides IP addresses and `localhost`; others are refused unless a token
    /// proves who asks (DNS rebinding).
    pub hosts: Vec<String>,
    /// How browsers reach it, such as `https://mesh.example.com`, when something stands in front of it. Its name is
    /// one of `hosts` by itself; identity providers send people back there.
    pub url: Option<String>,
    /// Addresses of proxies in front of it, whose `X-Forwarded-For` is believed.
    pub proxies: Vec<IpAddr>,
    /// Certificate, for HTTPS.
    pub tls: Option<Tls>,
}

/// Files of a certificate, read again when they change.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Certificate and those that signed it, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

impl Config {
    /// Whether browsers reach it by HTTPS, so that cookies may be kept to that.
    pub fn secure(&self) -> bool {
        self.tls.is_some() || self.url.as_ref().is_some_and(|url| url.starts_with("https://"))
    }

    /// Whether `host` (of a `Host` header, with or without port) is this centre and not a name that somebody has
    /// pointed at it: a page of such a name could else ask whatever it likes here.
    pub fn is_called(&self, host: &str) -> bool {
        let Some(name) = name(host) else { return false };
        let same = |other: &str| other.eq_ignore_ascii_case(name);
        // Browsers resolve names below `localhost` to loopback themselves.
        let local = name.len() >= 9 && name.is_char_boundary(name.len() - 9);
        let local = local && name[name.len() - 9..].eq_ignore_ascii_case("localhost");
        let local = local && (name.len() == 9 || name[..name.len() - 9].ends_with('.'));
        name.parse::<IpAddr>().is_ok()
            || local
            || self.hosts.iter().any(|host| same(host))
            || self.url.as_deref().and_then(authority).and_then(self::name).is_some_and(same)
    }
}

/// Host and port of a URL.
pub(super) fn authority(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    rest.split(['/', '?', '#']).next().filter(|authority| !authority.is_empty())
}

/// The name or address without port and brackets.
fn name(host: &str) -> Option<&str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => host.split_at(host.rfind(':').unwrap_or(host.len())),
    };
    let port = port.is_empty() || port.strip_prefix(':')?.parse::<u16>().is_ok();
    let name = name.strip_suffix('.').unwrap_or(name);
    (port && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_its_own_names_are_this_centre() {
        let config = Config {
            hosts: vec!["center.mesh.svc".into()],
            url: Some("https://mesh.example.com:8443/x".into()),
            ..Config::default()
        };
        assert!(config.secure() && !Config::default().secure());
        for host in [
            "127.0.0.1:7480",
            "127.0.0.1",
            "[::1]:7480",
            "[::1]",
            "10.1.2.3:1",
            "localhost:7480",
            "LOCALHOST",
            "a.localhost",
            "Center.Mesh.SVC:7480",
            "center.mesh.svc.",
            "mesh.example.com",
        ] {
            assert!(config.is_called(host), "{host}");
        }
        for host in [
            "",
            ":7480",
            "evil.example",
            "evil.example:7480",
            "127.0.0.1.evil.example",
            "evillocalhost",
            "localhost.evil.example",
            "example.com",
            "x.center.mesh.svc",
            "127.0.0.1:7480:1",
            "127.0.0.1:x",
            "[::1",
            "ääääälocalhosä",
        ] {
            assert!(!config.is_called(host), "{host}");
        }
        assert!(!Config::default().is_called("mesh.example.com"));
    }
}
