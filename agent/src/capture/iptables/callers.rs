//! Enrolled programs as rules tell them from others.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use super::left;
use crate::{
    capture::enroll::{self, Cgroup, Matched},
    config::{Enroll, Who},
};

/// One kind of enrolled programs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Caller {
    /// In this control group (v2) or below it when they made their socket.
    Cgroup {
        /// Its number: the kernel's rule holds the group itself, so one made anew under its path is another.
        id: u64,
        /// Path below the mount of cgroup v2, as `iptables` takes it.
        relative: PathBuf,
        /// How deep it lies.
        level: usize,
        /// Path below `/sys/fs/cgroup`, as `nft` takes it.
        sysfs: PathBuf,
    },
    /// Of this user.
    Uid(u32),
}

/// Who is enrolled at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Callers {
    /// Each kind once; `None` when that is everyone in this network namespace.
    pub rules: Option<Vec<Caller>>,
    /// What each entry stands for, in order.
    pub matched: Vec<Matched>,
}

impl Caller {
    /// The match of `iptables`.
    pub fn iptables(&self) -> String {
        match self {
            Self::Cgroup { relative, .. } => format!("-m cgroup --path {}", quoted(relative)),
            Self::Uid(uid) => format!("-m owner --uid-owner {uid}"),
        }
    }

    /// The match of `nft`.
    pub fn nft(&self) -> String {
        match self {
            Self::Cgroup { level, sysfs, .. } => format!("socket cgroupv2 level {level} {}", quoted(sysfs)),
            Self::Uid(uid) => format!("meta skuid {uid}"),
        }
    }

    fn cgroup(id: u64, path: &Path, mount: &Path) -> Option<Self> {
        let relative = path.strip_prefix(mount).ok()?.to_owned();
        let level = relative.components().count();
        // Everything else stands on files that exist: what `nft` does not find it refuses.
        let sysfs = path.strip_prefix("/sys/fs/cgroup").unwrap_or(&relative).to_owned();
        (level > 0).then_some(Self::Cgroup { id, relative, level, sysfs })
    }
}

fn quoted(path: &Path) -> String {
    // `Callers::of` lets no character through that would need more.
    format!("\"{}\"", path.display())
}

impl Callers {
    /// Whom `entries` mean now. An entry for which `must` holds has to exist. An error names what does not, or
    /// what no rule can tell from others.
    pub fn of(entries: &[Enroll], must: impl Fn(&Who) -> bool) -> anyhow::Result<Self> {
        let mut rules = Some(Vec::new());
        let mut matched = Vec::new();
        for entry in entries {
            if let Who::Netns(path) = &entry.who {
                own_namespace(path)?;
                matched.push(Matched { who: entry.who.clone(), found: vec![path.display().to_string()], note: None });
                rules = None;
                continue;
            }
            let resolved = enroll::resolve(std::slice::from_ref(entry), &must)?;
            for (group, _) in &resolved.groups {
                match cgroup(group)? {
                    Some(caller) => add(&mut rules, caller),
                    // The root is everyone.
                    None => rules = None,
                }
            }
            for (uid, _) in &resolved.uids {
                add(&mut rules, Caller::Uid(*uid));
            }
            matched.extend(resolved.matched);
        }
        Ok(Self { rules, matched })
    }
}

fn add(rules: &mut Option<Vec<Caller>>, caller: Caller) {
    if let Some(rules) = rules
        && !rules.contains(&caller)
    {
        rules.push(caller);
    }
}

fn cgroup(group: &Cgroup) -> anyhow::Result<Option<Caller>> {
    let mount = enroll::mount().context("no cgroup v2 is mounted")?;
    if group.path.to_string_lossy().contains(|c: char| matches!(c, '"' | '\\' | '\u{fffd}') || c.is_control()) {
        // Neither program has a way to write it, and what cannot be written must not widen the capture.
        bail!("`{}` cannot be named in a rule: rename the control group, or use `ebpf`", group.path.display());
    }
    Ok(Caller::cgroup(group.id, &group.path, &mount))
}

/// Rules see their own network namespace and no other.
fn own_namespace(path: &Path) -> anyhow::Result<()> {
    let asked = fs::metadata(path).with_context(|| format!("netns {}: cannot open it", path.display()))?.ino();
    if asked != left::namespace()? {
        bail!(
            "`netns: {}` cannot be enrolled by rules, which see their own network namespace only: run an agent in \
             that namespace, or use `capture: ebpf`",
            path.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_named_as_each_program_wants_it() {
        let (group, mount) = (Path::new("/sys/fs/cgroup/unified/demo/a"), Path::new("/sys/fs/cgroup/unified"));
        let caller = Caller::cgroup(1, group, mount).unwrap();
        assert_eq!(caller.iptables(), "-m cgroup --path \"demo/a\"");
        assert_eq!(caller.nft(), "socket cgroupv2 level 2 \"unified/demo/a\"");
        assert_eq!(Caller::cgroup(1, mount, mount), None, "the root is everyone");
        assert_eq!(Caller::Uid(7).iptables(), "-m owner --uid-owner 7");
        assert_eq!(Caller::Uid(7).nft(), "meta skuid 7");
    }

    #[test]
    fn a_group_that_is_not_there_is_named_where_it_must_be_there() {
        let entries = [Enroll::cgroup("/nowhere/at/all"), Enroll::of(Who::Uid(7))];
        let error = Callers::of(&entries, Who::must_exist).unwrap_err().to_string();
        assert!(error.contains("cgroup v2") || error.contains("/nowhere/at/all"), "{error}");
        let callers = Callers::of(&entries, |_| false).unwrap();
        assert_eq!(callers.rules, Some(vec![Caller::Uid(7)]));
        assert!(callers.matched[0].note.is_some() && callers.matched[1].note.is_none(), "{:?}", callers.matched);
    }

    #[test]
    fn of_network_namespaces_only_the_own_one_can_be_enrolled() {
        let own = Enroll::of(Who::Netns("/proc/thread-self/ns/net".into()));
        assert_eq!(Callers::of(&[Enroll::of(Who::Uid(7)), own], Who::must_exist).unwrap().rules, None);
        // Any other file stands for the namespaces that are not this one.
        let other = Enroll::of(Who::Netns("/proc/thread-self/ns/mnt".into()));
        let error = Callers::of(&[other], |_| false).unwrap_err().to_string();
        assert!(error.contains("/ns/mnt") && error.contains("ebpf"), "{error}");
    }
}
