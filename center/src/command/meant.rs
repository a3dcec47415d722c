//! What an action is about, by what is registered and seen now, and what contends with it.

use std::collections::BTreeSet;

use model::{ServiceKey, center::Action, command::Commands as Text};

use super::{
    Commands,
    asked::{About, Slot},
    kept::Kept,
    layers, scope,
};
use crate::error::Error;

/// What an action is about, as the centre knows it now.
pub(super) struct Meant {
    pub(super) services: Vec<String>,
    pub(super) exact: bool,
    /// Groups whose texts change.
    pub(super) scopes: Vec<String>,
    pub(super) keys: Vec<ServiceKey>,
}

/// Whether an open command is about `service`.
pub(super) fn concerns(kept: &Kept, service: &str) -> bool {
    match kept.record.asked.action.service() {
        None => false,
        Some(name) if kept.exact => name == service,
        Some(pattern) => !layers::matching(pattern, &[service.to_owned()]).is_empty(),
    }
}

impl Commands {
    /// Finds what `action` is about.
    pub(super) fn meant(&self, action: &Action) -> Result<Meant, Error> {
        let keys = self.site.keys();
        let names: BTreeSet<&str> = keys.iter().map(|key| key.service.as_str()).collect();
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let mut exact = false;
        if let Action::Scale { service, .. } = action {
            // Also one of which nothing is registered: its driver shall start the first instance. No text changes.
            return Ok(Meant { services: vec![service.clone()], exact: true, scopes: Vec::new(), keys });
        }
        let services: Vec<String> = match action.service() {
            None => Vec::new(),
            Some(name) if names.iter().any(|known| known == name) => {
                exact = true;
                vec![name.to_owned()]
            }
            Some(pattern) => {
                let may_be = !matches!(action, Action::Canary { .. } | Action::Drain { .. });
                let is_one = pattern.contains(|c: char| "*!&|()^$[]{}+?\\".contains(c));
                let met = if may_be && is_one { layers::matching(pattern, &names) } else { Vec::new() };
                if met.is_empty() {
                    let known = names.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
                    let remedy = if known.is_empty() {
                        "none is known yet".to_owned()
                    } else {
                        format!("there are {known}, ...")
                    };
                    return Err(Error::not_found(format!("no service `{pattern}`"), remedy));
                }
                met.into_iter().map(str::to_owned).collect()
            }
        };
        let has = |group: &str| keys.iter().any(|k| k.group == group && services.contains(&k.service));
        let gives = match action {
            Action::Move { from, .. } => Some(from.as_str()),
            _ => None,
        };
        for group in action.receivers().into_iter().chain(gives) {
            if !has(group) {
                let groups: BTreeSet<&str> =
                    keys.iter().filter(|k| services.contains(&k.service)).map(|k| k.group.as_str()).collect();
                let groups = groups.into_iter().take(20).collect::<Vec<_>>().join(", ");
                let service = action.service().unwrap_or_default();
                return Err(Error::not_found(
                    format!("`{service}` is in no group `{group}`"),
                    format!("it is in {groups}"),
                ));
            }
        }
        let (service, home) = (action.service().unwrap_or_default(), action.home());
        let here =
            |wanted: &dyn Fn(&model::Instance) -> bool| self.site.snapshot(service, home).instances.iter().any(wanted);
        match action {
            Action::Canary { version, .. } if !here(&|i| i.version == *version) => {
                let message = format!("no instance of `{service}` in `{home}` has version `{version}`");
                return Err(Error::not_found(message, "start one, and repeat"));
            }
            Action::Drain { instance, .. } if !here(&|i| i.address == *instance) => {
                let message = format!("no instance `{instance}` of `{service}` in `{home}` takes calls");
                return Err(Error::not_found(message, "look at the service's page for those there are"));
            }
            _ => {}
        }
        let mut scopes = vec![home.to_owned()];
        if let Action::Move { from, .. } = action {
            // Callers of other groups may be sent there, too.
            let groups: BTreeSet<&str> = keys.iter().map(|key| key.group.as_str()).collect();
            for group in groups.into_iter().filter(|group| !group.is_empty() && group != from) {
                let (_, text) = self.site.text(&scope(group));
                let Some(text) = text.and_then(|text| Text::parse(&text).ok()) else { continue };
                let gets =
                    |service: &String| layers::effect(&text, service, group).groups.iter().any(|g| g.group == *from);
                if services.iter().any(gets) {
                    scopes.push(group.to_owned());
                }
            }
        }
        Ok(Meant { services, exact, scopes, keys })
    }

    /// What contends with `action`: in force, for one of the same services, and of the same kind.
    pub(super) fn contending(&self, action: &Action, meant: &Meant, except: u64) -> Vec<(u64, String)> {
        let state = self.state.lock();
        let same = |kept: &&Kept| {
            let other = &kept.record.asked.action;
            if !kept.in_force() || kept.record.id == except || other.slot() != action.slot() {
                return false;
            }
            let one_group = other.home() == action.home();
            match (action, other) {
                (Action::Switchers { values, .. }, Action::Switchers { values: others, .. }) => {
                    one_group && values.iter().any(|(name, _)| others.iter().any(|(other, _)| other == name))
                }
                _ => {
                    (one_group || action.slot() == Slot::Traffic)
                        && meant.services.iter().any(|service| concerns(kept, service))
                }
            }
        };
        let told = |kept: &Kept| {
            (
                kept.record.id,
                format!("command {} of {} ({})", kept.record.id, kept.record.author, kept.record.asked.action.told()),
            )
        };
        state.open.values().filter(same).map(told).collect()
    }
}
