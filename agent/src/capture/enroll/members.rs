//! Keeps the kernel's tables and links in step with who is enrolled.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    os::fd::OwnedFd,
    path::PathBuf,
    time::Instant,
};

use anyhow::{Context as _, bail};
use aya::Pod;
use ebpf_common::{MAX_MEMBERS, MAX_STRANGERS, MAX_WORKLOADS, Workload, control, members};

use super::{
    Cgroup, Links, Matched,
    resolve::{Resolved, resolve},
    space::{Space, Spaces},
};
use crate::{
    config::{Enroll, Who},
    sys::{BpfMap, Hook},
};

/// Who is enrolled, in the kernel and here. Changed by one thread at a time.
pub struct Members {
    /// Enrolled control groups; written where the kernel must ask.
    pub workloads: BpfMap<u64, Workload>,
    /// Enrolled users.
    pub uids: BpfMap<u32, Workload>,
    /// Enrolled network namespaces.
    pub netns: BpfMap<u64, Workload>,
    /// Namespaces that the kernel half found without a listener, with a process in each.
    pub strangers: BpfMap<u64, u32>,
    /// Where the programs are attached.
    pub links: Links,
    /// `capture.root`.
    pub root: Option<PathBuf>,
    wanted: Vec<Enroll>,
    now: Resolved,
    spaces: Spaces,
    /// What went wrong last, so that it is told once.
    told: Option<String>,
}

impl Members {
    /// Nobody yet, with the tables and links of an agent.
    pub fn new(
        workloads: BpfMap<u64, Workload>,
        uids: BpfMap<u32, Workload>,
        netns: BpfMap<u64, Workload>,
        strangers: BpfMap<u64, u32>,
        links: Links,
        root: Option<PathBuf>,
    ) -> Self {
        Self {
            workloads,
            uids,
            netns,
            strangers,
            links,
            root,
            wanted: Vec::new(),
            now: Resolved::default(),
            spaces: Spaces::default(),
            told: None,
        }
    }

    /// What `entries` stand for now. An entry that is new must exist, unless it is a pattern or a unit.
    pub fn resolve(&self, entries: &[Enroll]) -> anyhow::Result<Resolved> {
        let known = |who: &Who| self.wanted.iter().any(|e| e.who == *who);
        resolve(entries, |who| who.must_exist() && !known(who))?.with_root(self.root.as_deref())
    }

    /// Makes `resolved`, which came of `entries`, what the kernel does. An error leaves everybody enrolled who
    /// was, and may leave more in the tables than in force.
    pub fn set(
        &mut self,
        control: &BpfMap<u32, u64>,
        programs: &[(Hook, OwnedFd)],
        entries: &[Enroll],
        resolved: Resolved,
    ) -> anyhow::Result<()> {
        if resolved.groups.len() > MAX_WORKLOADS || resolved.uids.len().max(resolved.spaces.len()) > MAX_MEMBERS {
            bail!("{} control groups are enrolled, the kernel's table holds {MAX_WORKLOADS}", resolved.groups.len());
        }
        let groups: HashMap<_, _> = resolved.groups.iter().map(|(g, f)| (g.id, *f)).collect();
        let uids: HashMap<_, _> = resolved.uids.iter().copied().collect();
        let netns: HashMap<_, _> = resolved.spaces.iter().map(|(s, f)| (s.cookie, *f)).collect();
        let ask = resolved.root.is_some();
        let mut look = 0;
        for (bit, wanted) in [
            (members::ASK, ask),
            (members::GROUPS, !groups.is_empty() && (ask || groups.values().any(|f| *f != 0))),
            (members::UIDS, !uids.is_empty()),
            (members::NETNS, !netns.is_empty()),
        ] {
            look |= if wanted { bit } else { 0 };
        }
        // Everybody is in the tables before the programs ask, and they ask before they meet strangers.
        fill(&self.workloads, &groups).context("cannot enroll control groups in the kernel")?;
        fill(&self.uids, &uids).context("cannot enroll users in the kernel")?;
        fill(&self.netns, &netns).context("cannot enroll network namespaces in the kernel")?;
        let set_look = |bits: u64| control.insert(&control::MEMBERS, &bits).context("cannot write the control map");
        if ask {
            set_look(look)?;
        }
        let mut at: Vec<&Cgroup> = resolved.groups.iter().map(|(group, _)| group).collect();
        at.extend(resolved.root.as_ref().filter(|root| !groups.contains_key(&root.id)));
        self.links.set(programs, &at)?;
        if !ask {
            set_look(look)?;
        }
        prune(&self.workloads, &groups, MAX_WORKLOADS)?;
        prune(&self.uids, &uids, MAX_MEMBERS)?;
        prune(&self.netns, &netns, MAX_MEMBERS)?;
        self.tell(&resolved);
        self.wanted = entries.to_vec();
        self.now = resolved;
        Ok(())
    }

    /// Logs what is new in the notes of entries.
    fn tell(&self, resolved: &Resolved) {
        for matched in &resolved.matched {
            let before = self.now.matched.iter().find(|m| m.who == matched.who);
            if before == Some(matched) {
                continue;
            }
            let (who, groups) = (&matched.who, matched.found.join(" "));
            match &matched.note {
                Some(note) if before.and_then(|b| b.note.as_ref()) != Some(note) => {
                    tracing::warn!(%who, groups, note, "enrolled");
                }
                _ => tracing::info!(%who, groups, "enrolled"),
            }
        }
    }

    /// Looks again at what the entries stand for, and follows. Nothing here is worth ending for: what goes wrong
    /// is told once and tried again.
    pub fn refresh(&mut self, control: &BpfMap<u32, u64>, programs: &[(Hook, OwnedFd)]) {
        let entries = self.wanted.clone();
        let result = self.resolve(&entries).and_then(|resolved| {
            let spaces = |r: &Resolved| r.spaces.iter().map(|(s, _)| s.cookie).collect::<Vec<_>>();
            if resolved.attached() == self.now.attached() && spaces(&resolved) == spaces(&self.now) {
                self.tell(&resolved);
                self.now.matched = resolved.matched;
                return Ok(());
            }
            self.set(control, programs, &entries, resolved)
        });
        let told = result.err().map(|e| format!("{e:#}"));
        if told != self.told
            && let Some(error) = &told
        {
            tracing::warn!(error, "cannot follow who is enrolled; it is tried again");
        }
        self.told = told;
    }

    /// Network namespaces besides the agent's own in which enrolled programs live. With `all` every program is
    /// looked at; without, only what the kernel half told meanwhile.
    pub fn spaces(&mut self, all: bool) -> Vec<Space> {
        let now = Instant::now();
        for cookie in self.strangers.keys(MAX_STRANGERS).unwrap_or_default() {
            if let Ok(Some(pid)) = self.strangers.take(&cookie) {
                self.spaces.see_stranger(pid, now);
            }
        }
        if all {
            for (group, _) in &self.now.groups {
                self.spaces.see_group(&group.path, now);
            }
            self.spaces.see_users(&self.now.uids, now);
            for (space, _) in &self.now.spaces {
                self.spaces.hold(space, now);
            }
            self.spaces.forget(now);
        }
        self.spaces.all()
    }

    /// The network namespaces besides the agent's own in which enrolled programs were seen lately.
    pub fn known_spaces(&self) -> Vec<Space> {
        self.spaces.all()
    }

    /// Numbers of the control groups to which the programs are attached.
    pub fn attached(&self) -> BTreeSet<u64> {
        self.now.attached()
    }

    /// What each entry stands for.
    pub fn matched(&self) -> Vec<Matched> {
        self.now.matched.clone()
    }

    /// Why network namespaces could not be entered.
    pub fn refused(&self) -> Vec<String> {
        self.spaces.refused()
    }
}

fn fill<K: Pod + Eq + Hash>(map: &BpfMap<K, Workload>, wanted: &HashMap<K, u32>) -> anyhow::Result<()> {
    wanted.iter().try_for_each(|(key, flags)| map.insert(key, &Workload { flags: *flags })).map_err(Into::into)
}

fn prune<K: Pod + Eq + Hash>(map: &BpfMap<K, Workload>, wanted: &HashMap<K, u32>, room: usize) -> anyhow::Result<()> {
    for key in map.keys(room)?.iter().filter(|key| !wanted.contains_key(key)) {
        map.remove(key)?;
    }
    Ok(())
}
