//! Options that registries with servers have in common.

use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;

/// A value, or a list of them.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// `HOST:PORT` of each server; `port` is taken where none is written. Commas separate as well.
pub(super) fn servers(written: Option<OneOrMore>, port: u16) -> anyhow::Result<Vec<String>> {
    let written = match written {
        None => Vec::new(),
        Some(OneOrMore::One(one)) => vec![one],
        Some(OneOrMore::More(more)) => more,
    };
    let mut servers = Vec::new();
    for text in written.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|text| !text.is_empty()) {
        if text.contains("://") || text.contains('/') {
            bail!("address: `{text}` is no HOST:PORT; write it like `10.0.0.1:{port}`");
        }
        let bare_v6 = text.parse::<std::net::Ipv6Addr>().is_ok();
        let server = match text.rsplit_once(':') {
            _ if bare_v6 => format!("[{text}]:{port}"),
            None => format!("{text}:{port}"),
            Some((_, "")) => bail!("address: `{text}` has no port; write it like `10.0.0.1:{port}`"),
            Some(("", _)) => bail!("address: `{text}` names no host; write it like `10.0.0.1:{port}`"),
            Some((_, after)) if text.ends_with(']') || after.parse::<u16>().is_err() => {
                if text.ends_with(']') {
                    format!("{text}:{port}")
                } else {
                    bail!("address: `{after}` in `{text}` is no port; write a number from 1 to 65535")
                }
            }
            Some(_) => text.to_owned(),
        };
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    if servers.is_empty() {
        bail!("the option `address` is missing; add `address: [HOST:{port}]`");
    }
    Ok(servers)
}

/// The duration in option `name`, `usual` when it is not written. Zero is refused.
pub(super) fn duration(name: &str, written: Option<&str>, usual: Duration) -> anyhow::Result<Duration> {
    let Some(text) = written else { return Ok(usual) };
    let read = model::value::duration(text).map_err(|wrong| anyhow::anyhow!(wrong.of(text)));
    match read.with_context(|| name.to_owned())? {
        Duration::ZERO => bail!("{name}: `{text}` is no time at all; write it like 10s"),
        duration => Ok(duration),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_in_every_form_people_write() {
        let read = |text: &str| servers(Some(OneOrMore::One(text.into())), 9).map_err(|e| e.to_string());
        assert_eq!(read("a:1, b,a:1").unwrap(), ["a:1", "b:9"]);
        assert_eq!(read("[::1]:1,::2,[::3]").unwrap(), ["[::1]:1", "[::2]:9", "[::3]:9"]);
        for (bad, why) in
            [("", "is missing"), ("http://a", "is no HOST:PORT"), ("a:b", "is no port"), (":1", "no host")]
        {
            let told = read(bad).unwrap_err();
            assert!(told.contains(why), "{bad:?}: {told}");
        }
    }

    #[test]
    fn durations_have_units_and_are_not_zero() {
        let read = |text| duration("lease", text, Duration::from_secs(9)).map_err(|e| format!("{e:#}"));
        assert_eq!(read(None), Ok(Duration::from_secs(9)));
        assert_eq!(read(Some("2s")), Ok(Duration::from_secs(2)));
        assert!(read(Some("2")).unwrap_err().contains("has no unit"));
        assert!(read(Some("0s")).unwrap_err().starts_with("lease: `0s`"));
    }
}
