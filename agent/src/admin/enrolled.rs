//! `/enrolled`, and the queries of the commands that change it.

use std::time::{Duration, Instant, SystemTime};

use super::{Handles, view};
use crate::{
    capture::enroll::Source,
    config::{self, Who},
};

/// The page.
pub(super) fn page(handles: &Handles) -> view::Enrolled {
    let roster = handles.enrolled.load();
    let (matched, refused) = handles.capture.matched();
    let rows = roster.entries().iter().map(|entry| {
        let who = &entry.enroll.who;
        let found = matched.iter().find(|m| m.who == *who && !entry.released);
        view::EnrolledRow {
            what: who.to_string(),
            source: match entry.source {
                Source::Config => "config",
                Source::Command => "command",
            }
            .to_owned(),
            released: entry.released,
            since_seconds: SystemTime::now().duration_since(entry.since).unwrap_or_default().as_secs_f64(),
            confirm_within_seconds: entry
                .until
                .map(|until| until.saturating_duration_since(Instant::now()).as_secs_f64()),
            matches: found.map(|m| m.found.clone()).unwrap_or_default(),
            note: found.and_then(|m| m.note.clone()),
        }
    });
    view::Enrolled {
        capture: handles.capture.name().to_owned(),
        enrolled: rows.collect(),
        namespaces: handles.spaces.load().to_vec(),
        refused,
    }
}

/// What a command is about: the parameters `what` and `confirm_within` of its query.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub who: Option<Who>,
    pub confirm_within: Option<Duration>,
}

impl Asked {
    pub(super) fn read(query: Option<&str>) -> Result<Self, String> {
        let mut asked = Self::default();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value).ok_or_else(|| format!("`{value}` is not percent-encoded text"))?;
            match name {
                "what" => asked.who = Some(Who::parse(&value)?),
                "confirm_within" => {
                    let time = config::duration(&value).ok().filter(|time| !time.is_zero());
                    asked.confirm_within =
                        Some(time.ok_or_else(|| format!("confirm_within={value}: write a time like 60s"))?);
                }
                other => return Err(format!("no parameter `{other}`; there are `what` and `confirm_within`")),
            }
        }
        Ok(asked)
    }

    pub(super) fn who(self) -> Result<Who, String> {
        self.who.ok_or_else(|| "add ?what= with a path, unit:NAME, uid:NUMBER or netns:PATH".to_owned())
    }
}

/// Percent-encoded text as it was.
pub(super) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        (rest, _) = match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let hex = std::str::from_utf8(&[*high, *low]).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok())?;
                (tail, bytes.push(hex))
            }
            (b'%', _) => return None,
            (byte, tail) => (tail, bytes.push(*byte)),
        };
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let asked = Asked::read(Some("what=%2fsys%2Ffs/a%2A&confirm_within=1m")).unwrap();
        assert_eq!(asked.confirm_within, Some(Duration::from_secs(60)));
        assert_eq!(asked.who().unwrap().to_string(), "/sys/fs/a*");
        assert_eq!(Asked::read(None).unwrap(), Asked::default());
        for wrong in ["what=%2", "what=%ff", "what=%zz", "who=x", "what=x", "confirm_within=0s", "confirm_within=9"] {
            assert!(Asked::read(Some(wrong)).is_err(), "{wrong}");
        }
        assert!(Asked::default().who().is_err());
    }
}
