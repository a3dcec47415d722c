//! From what is enrolled to the control groups, users and network namespaces of this moment.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use ebpf_common::Workload;

use super::{
    Cgroup, below_mount,
    glob::{children, folders, holds_login, is_login, name_matches},
    mount,
    space::Space,
};
use crate::config::{Enroll, Redirect, Who};

/// What one entry stands for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matched {
    /// The entry.
    pub who: Who,
    /// Control groups or namespaces, by path.
    pub found: Vec<String>,
    /// What an operator should know: why nothing is found, what was left out.
    pub note: Option<String>,
}

/// Everything that is enrolled now.
#[derive(Debug, Default)]
pub struct Resolved {
    /// Control groups whose programs are enrolled, each once.
    pub(in crate::capture) groups: Vec<(Cgroup, u32)>,
    /// Users.
    pub(in crate::capture) uids: Vec<(u32, u32)>,
    /// Network namespaces.
    pub(super) spaces: Vec<(Space, u32)>,
    /// Where the programs are attached for users and namespaces, if there are any.
    pub(super) root: Option<Cgroup>,
    /// What each entry stands for, in order.
    pub matched: Vec<Matched>,
}

impl Resolved {
    /// Numbers of all groups to which programs are attached.
    pub(super) fn attached(&self) -> BTreeSet<u64> {
        self.groups.iter().map(|(group, _)| group.id).chain(self.root.as_ref().map(|root| root.id)).collect()
    }

    /// Opens the group for the programs that users and namespaces need, if there are any entries of those: `root`,
    /// or the mount of cgroup v2.
    pub fn with_root(mut self, root: Option<&Path>) -> anyhow::Result<Self> {
        if self.matched.iter().any(|m| m.who.is_asked_for()) {
            let at = root.map(Path::to_owned).or_else(mount).context("no cgroup v2 is mounted")?;
            self.root = Some(Cgroup::open(&at).context("capture.root")?);
        }
        Ok(self)
    }

    /// Number of control groups that are enrolled by themselves.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }
}

/// Resolves `entries` as this host is now. What does not exist is an error where `must` says so, and a note
/// elsewhere: groups of services come and go.
pub fn resolve(entries: &[Enroll], must: impl Fn(&Who) -> bool) -> anyhow::Result<Resolved> {
    let mut resolved = Resolved::default();
    for entry in entries {
        let matched = add(&entry.who, flags(entry), &mut resolved);
        let matched = match matched {
            Ok(matched) => matched,
            Err(error) if must(&entry.who) => return Err(error),
            Err(error) => Matched { who: entry.who.clone(), found: Vec::new(), note: Some(format!("{error:#}")) },
        };
        resolved.matched.push(matched);
    }
    Ok(resolved)
}

/// What the kernel is told of everybody whom this entry enrolls.
fn flags(entry: &Enroll) -> u32 {
    let redirect = match entry.redirect {
        None => 0,
        Some(Redirect::Auto) => Workload::REDIRECT_AUTO,
        Some(Redirect::On) => Workload::REDIRECT_ON,
        Some(Redirect::Off) => Workload::REDIRECT_OFF,
    };
    redirect | if entry.join { Workload::JOIN } else { 0 }
}

fn add(who: &Who, flags: u32, resolved: &mut Resolved) -> anyhow::Result<Matched> {
    let mut matched = Matched { who: who.clone(), found: Vec::new(), note: None };
    let paths = match who {
        Who::Cgroup(path) if !who.is_pattern() => vec![path.clone()],
        Who::Cgroup(pattern) => {
            let mount = mount().context("no cgroup v2 is mounted")?;
            without_logins(folders(&mount, below_mount(pattern, &mount)), &mount, &mut matched)
        }
        Who::Unit(name) => unit(name, who.is_pattern(), &mut matched)?,
        Who::Uid(uid) => {
            resolved.uids.push((*uid, flags));
            return Ok(matched);
        }
        Who::Netns(path) => {
            let space = Space::open(path).with_context(|| format!("netns {}", path.display()))?;
            matched.found.push(path.display().to_string());
            resolved.spaces.push((space, flags));
            return Ok(matched);
        }
    };
    for path in paths {
        let group = match Cgroup::open(&path) {
            // One of a pattern that ended meanwhile.
            Err(_) if who.is_pattern() => continue,
            group => group?,
        };
        matched.found.push(group.path.display().to_string());
        match resolved.groups.iter_mut().find(|(known, _)| known.id == group.id) {
            Some((_, known)) => *known |= flags,
            None => resolved.groups.push((group, flags)),
        }
    }
    if matched.found.is_empty() && matched.note.is_none() {
        matched.note = Some("no control group of that name now".to_owned());
    }
    Ok(matched)
}

/// Leaves out login sessions, which a pattern never means, and says so.
fn without_logins(paths: Vec<PathBuf>, mount: &Path, matched: &mut Matched) -> Vec<PathBuf> {
    let login = |path: &PathBuf| is_login(path.strip_prefix(mount).unwrap_or(path)) || holds_login(path);
    let (left, kept): (Vec<_>, Vec<_>) = paths.into_iter().partition(login);
    if let Some(first) = left.first() {
        let more = if left.len() > 1 { format!(" and {} more", left.len() - 1) } else { String::new() };
        matched.note = Some(format!(
            "left out {}{more}: a pattern never enrolls login sessions; write the path itself to mean it",
            first.display()
        ));
    }
    kept
}

/// Control groups of the unit `name`: in `system.slice`, else anywhere.
fn unit(name: &str, pattern: bool, matched: &mut Matched) -> anyhow::Result<Vec<PathBuf>> {
    let Some(mount) = mount() else { bail!("no cgroup v2 is mounted") };
    let usual = mount.join("system.slice").join(name);
    if !pattern && usual.is_dir() {
        return Ok(vec![usual]);
    }
    let mut found = Vec::new();
    named(&mount, name.as_bytes(), &mut found);
    Ok(if pattern { without_logins(found, &mount, matched) } else { found })
}

fn named(at: &Path, name: &[u8], found: &mut Vec<PathBuf>) {
    for child in children(at) {
        if name_matches(name, child.file_name().unwrap_or_default().as_encoded_bytes()) {
            // What is below it belongs to it.
            found.push(child);
        } else {
            named(&child, name, found);
        }
    }
}
