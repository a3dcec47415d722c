//! `center`: the governance centre that this agent reports to and, with a registry of kind `center`, registers at.

use std::{path::Path, time::Duration};

use registries::{Center as Access, fetch::Peer};

use super::{
    keys,
    node::Node,
    problem::Report,
    read::{Map, Others, one_or_more, scalar},
    values::{self, Wrong},
};

/// Largest file of a token.
const TOKEN_BYTES: usize = 4096;

/// Where the centre is, and what it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Center {
    /// How to reach it.
    pub access: Access,
    /// How often it is told what this agent counts; zero: never.
    pub report: Duration,
}

impl Default for Center {
    fn default() -> Self {
        // What a console shows shall be no older than two seconds.
        Self { access: Access::default(), report: Duration::from_secs(2) }
    }
}

/// Reads the mapping `center`.
pub(super) fn center(node: &Node, path: &str, base_dir: &Path, report: &mut Report) -> Option<Center> {
    let map = Map::open(node, path, &[&keys::CENTER], Others::Unknown, report)?;
    let mut center = Center::default();
    match map.get("address") {
        Some(node) => {
            for (path, node) in one_or_more(node, &map.key("address"), report) {
                center.access.addresses.extend(scalar(node, &path, address, report));
            }
        }
        None => report.mistake(map.place("address").problem("is missing", "write it like 127.0.0.1:7480")),
    }
    center.access.token = map.read("token", token, report);
    if let Some(file) = map.read("token_file", values::path, report) {
        let place = map.place("token_file");
        if center.access.token.is_some() {
            report.mistake(place.problem("stands beside `token`", "take one of both away"));
        } else {
            let file = base_dir.join(file);
            match read_token(&file) {
                Ok(token) => center.access.token = Some(token),
                Err(why) => {
                    report.mistake(place.problem(format!("{}: {why}", file.display()), "write the token there"))
                }
            }
        }
    }
    if let Some(file) = map.read("ca_file", values::path, report) {
        let file = base_dir.join(file);
        // Read here, so that a mistake is told with its place.
        if let Err(error) = Peer::with("https://localhost", model::center::PORT, Some(&file)) {
            report.mistake(map.place("ca_file").problem(format!("{error:#}"), "write certificates there, as PEM"));
        }
        center.access.ca = Some(file);
    }
    map.set("report", interval, &mut center.report, report);
    Some(center)
}

fn read_token(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    token(text.trim()).map_err(|wrong| format!("what it holds {}", wrong.problem))
}

/// `HOST:PORT`, where the port may be left out; `http://` may stand before it, and `https://` for TLS.
fn address(text: &str) -> Result<String, Wrong> {
    const EXAMPLE: &str = "write it like center.example:7480 or http://10.0.0.5:7480";
    let (scheme, host) = match text.split_once("://") {
        Some(("https", rest)) => ("https://", rest),
        Some(("http", rest)) => ("", rest),
        _ => ("", text),
    };
    let host = host.trim_end_matches('/');
    if host.contains('/') {
        return Err(Wrong::new("has a path", EXAMPLE));
    }
    let has_port = host.rsplit_once(':').is_some_and(|(before, _)| !before.contains(':') || before.ends_with(']'));
    let whole = if has_port { host.to_owned() } else { format!("{host}:{}", model::center::PORT) };
    let whole = super::graphite::host_port(&whole).map_err(|wrong| Wrong::new(wrong.problem, EXAMPLE))?;
    Ok(format!("{scheme}{whole}"))
}

/// What a header can carry.
fn token(text: &str) -> Result<String, Wrong> {
    if text.is_empty() || text.len() > TOKEN_BYTES || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Wrong::new("is no token", "write it as the centre told it, without spaces"));
    }
    Ok(text.to_owned())
}

/// Zero, or half a second to half a minute.
fn interval(text: &str) -> Result<Duration, Wrong> {
    match values::duration(text)? {
        Duration::ZERO => Ok(Duration::ZERO),
        d if d < Duration::from_millis(500) => Err(Wrong::new("is too short", "write 500ms to 30s, or 0s for never")),
        d if d > Duration::from_secs(30) => Err(Wrong::new("is too long", "write 500ms to 30s, or 0s for never")),
        d => Ok(d),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn addresses_tokens_and_intervals() {
        let read = |text: &str| Config::parse(text, Path::new("/x")).map(|config| config.center);
        let center = read("center: {address: [127.0.0.1, 'http://b:99/', 'https://c', '[::1]:7'], token: abc}")
            .unwrap()
            .unwrap();
        assert_eq!(center.access.addresses, ["127.0.0.1:7480", "b:99", "https://c:7480", "[::1]:7"]);
        assert_eq!((center.access.token.as_deref(), center.report), (Some("abc"), Duration::from_secs(2)));
        assert!(!format!("{center:?}").contains("abc"), "logs show configurations");
        assert_eq!(read("center: {address: a, report: 0s}").unwrap().unwrap().report, Duration::ZERO);
        assert_eq!(read("name: a").unwrap(), None);
        for wrong in [
            "center: {}",
            "center: {address: 'https://http://a'}",
            "center: {address: 'a/b'}",
            "center: {address: 'a:0'}",
            "center: {address: a, token: 'a b'}",
            "center: {address: a, token: b, token_file: c}",
            "center: {address: a, token_file: /does/not/exist}",
            "center: {address: a, ca_file: /does/not/exist}",
            "center: {address: a, report: 1ms}",
            "center: {address: a, report: 1h}",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_token_may_stand_in_a_file() {
        let dir = std::env::temp_dir().join(format!("sockmesh-token-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("token"), "secret\n").unwrap();
        let config = Config::parse("center: {address: a, token_file: token}", &dir).unwrap();
        assert_eq!(config.center.unwrap().access.token.as_deref(), Some("secret"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
