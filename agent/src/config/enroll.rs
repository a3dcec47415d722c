//! `capture.enroll[]`: whose connections are captured.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::{
    Redirect, keys,
    load::REDIRECT,
    node::Node,
    problem::Report,
    read::{Map, Others, items},
    values::{self, Wrong, number},
};

/// One entry of `capture.enroll`, or of an operator's command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enroll {
    /// Whose connections.
    pub who: Who,
    /// Whether their bytes go past TCP; `None`: as the host says.
    pub redirect: Option<Redirect>,
    /// Whether their connections to programs of this host may be joined.
    pub join: bool,
}

/// Whose connections are captured.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// Every process in this control group (v2) and its children; with `*`, `?` or `**` in it, every group
    /// that matches, now and later.
    Cgroup(PathBuf),
    /// Every process of this systemd unit: the control group of that name.
    Unit(String),
    /// Every process of this user (number in the initial user namespace).
    Uid(u32),
    /// Every process in the network namespace that this file stands for.
    Netns(PathBuf),
}

impl Enroll {
    /// `who`, with everything else as the host says.
    pub fn of(who: Who) -> Self {
        Self { who, redirect: None, join: false }
    }

    /// The control group at `path`, or all that match it.
    pub fn cgroup(path: impl Into<PathBuf>) -> Self {
        Self::of(Who::Cgroup(path.into()))
    }
}

impl Who {
    /// Reads it as operators write it: a path, `cgroup:PATH`, `unit:NAME`, `uid:N` or `netns:PATH`. An error
    /// says what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let told = |wrong: Wrong| format!("`{text}` {}; {}", wrong.problem, wrong.remedy);
        let who = match text.split_once(':') {
            _ if text.starts_with('/') => values::absolute_path(text).map(Self::Cgroup),
            Some(("cgroup", path)) => values::absolute_path(path).map(Self::Cgroup),
            Some(("unit", name)) => unit(name).map(Self::Unit),
            Some(("uid", uid)) => uid_number(uid).map(Self::Uid),
            Some(("netns", path)) => values::absolute_path(path).map(Self::Netns),
            _ => Err(Wrong::new(
                "names nobody",
                "write the path of a control group, unit:NAME, uid:NUMBER or netns:PATH",
            )),
        };
        who.map_err(told)
    }

    /// Whether it stands for whatever matches it, rather than for one thing that somebody named.
    pub fn is_pattern(&self) -> bool {
        match self {
            Self::Cgroup(path) => is_pattern(path),
            Self::Unit(name) => is_pattern(Path::new(name)),
            Self::Uid(_) | Self::Netns(_) => false,
        }
    }

    /// Whether it is a mistake when what it names does not exist at the moment it is enrolled: units and patterns
    /// stand for what comes and goes.
    pub fn must_exist(&self) -> bool {
        !matches!(self, Self::Unit(_)) && !self.is_pattern()
    }

    /// Whether processes are told by something else than their control group, so that the kernel must ask
    /// for each connect.
    pub fn is_asked_for(&self) -> bool {
        matches!(self, Self::Uid(_) | Self::Netns(_))
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(path) => path.display().fmt(f),
            Self::Unit(name) => write!(f, "unit:{name}"),
            Self::Uid(uid) => write!(f, "uid:{uid}"),
            Self::Netns(path) => write!(f, "netns:{}", path.display()),
        }
    }
}

fn is_pattern(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().iter().any(|b| matches!(b, b'*' | b'?'))
}

/// A unit's name; `.service` is understood.
fn unit(text: &str) -> Result<String, Wrong> {
    if text.is_empty() || text.contains('/') || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(Wrong::new("is no name of a unit", "write it like nginx.service or shop-*.service"));
    }
    Ok(if text.contains('.') { text.to_owned() } else { format!("{text}.service") })
}

fn uid_number(text: &str) -> Result<u32, Wrong> {
    // The highest number stands for "no user" in the kernel.
    number(0..=u32::MAX - 1)(text)
}

/// Reads the list at `node`.
pub(super) fn read(node: &Node, path: &str, list: &mut Vec<Enroll>, report: &mut Report) {
    for (path, node) in items(node, path, report) {
        let mistakes = report.mistakes.len();
        let Some(map) = Map::open(node, path, &[&keys::ENROLL], Others::Unknown, report) else { continue };
        let named = [
            ("cgroup", map.read("cgroup", values::absolute_path, report).map(Who::Cgroup)),
            ("unit", map.read("unit", unit, report).map(Who::Unit)),
            ("uid", map.read("uid", uid_number, report).map(Who::Uid)),
            ("netns", map.read("netns", values::absolute_path, report).map(Who::Netns)),
        ];
        let redirect = map.read("redirect", values::choice(REDIRECT), report);
        let join = map.read("join", values::boolean, report).unwrap_or(false);
        let mut named = named.into_iter().filter_map(|(key, who)| who.map(|who| (key, who)));
        match (named.next(), named.next()) {
            (Some((key, who)), None) => {
                if list.iter().any(|e| e.who == who) {
                    report.mistake(map.place(key).problem("is enrolled twice", "keep one of them"));
                } else {
                    list.push(Enroll { who, redirect, join });
                }
            }
            (Some((first, _)), Some((second, _))) => {
                let problem = format!("stands beside `{first}` in one entry");
                report.mistake(map.place(second).problem(problem, "begin an item of its own for it"));
            }
            (None, _) if report.mistakes.len() == mistakes => {
                let remedy = "add `cgroup: PATH`, `unit: NAME`, `uid: NUMBER` or `netns: PATH`";
                report.mistake(map.place("cgroup").problem("is missing, and so are `unit`, `uid` and `netns`", remedy));
            }
            (None, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_write_what_they_are_shown() {
        for text in
            ["/sys/fs/cgroup/shop", "/sys/fs/cgroup/shop-*/**", "unit:nginx.service", "uid:1000", "netns:/run/netns/x"]
        {
            assert_eq!(Who::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Who::parse("unit:nginx").unwrap(), Who::Unit("nginx.service".into()));
        assert_eq!(Who::parse("cgroup:/a").unwrap(), Who::Cgroup("/a".into()));
        for wrong in ["", "shop", "uid:root", "uid:4294967295", "unit:", "unit:a/b", "netns:x", "user:1"] {
            let told = Who::parse(wrong).unwrap_err();
            assert!(told.contains("; "), "{told}");
        }
    }

    #[test]
    fn patterns_are_told_from_names() {
        let pattern = |text| Who::parse(text).unwrap().is_pattern();
        assert!(pattern("/a/*") && pattern("/a/b?") && pattern("unit:shop-*.service") && pattern("/a/**/b"));
        assert!(!pattern("/a/b") && !pattern("unit:shop") && !pattern("uid:1"));
    }
}
