//! What stands in a command text: what others wrote there, and above it a layer of each command in force, the newest
//! on top. Whenever one comes, goes or takes a step, the layers are laid anew, so that a command that is relative
//! ("20 % of what idc-a gets") is so to what lies under it, and one that goes leaves the others whole.

use model::{
    center::Action,
    command::{Commands, Entries, GroupShare, Pattern, foreign, is_weighted, over, put_entries},
    share,
};
use serde_json::{Value, json};

use super::asked::About;
use crate::error::Error;

/// What the entries of this centre's commands are marked with, before the number.
pub(super) const OWNER: &str = "sockmesh-";
/// Most services of a pattern that get a rule each, because they differ.
const MANY: usize = 200;

/// One command in force, as far as a text is concerned.
pub(super) struct Layer<'a> {
    pub(super) id: u64,
    pub(super) action: &'a Action,
    /// Percent of the whole change.
    pub(super) percent: u32,
    /// The service is a name and means no other.
    pub(super) exact: bool,
    /// For people.
    pub(super) remark: String,
}

/// What layers are laid by.
pub(super) struct Ground<'a> {
    /// All services there are, by name.
    pub(super) services: &'a [String],
    /// Weight of all instances of a service in a group.
    pub(super) size: &'a dyn Fn(&str, &str) -> u64,
    /// What others wrote for the group elsewhere, where its callers listen, too.
    pub(super) below: Option<&'a str>,
}

/// What holds for one service in one group's text.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Effect {
    pub(super) groups: Vec<GroupShare>,
    pub(super) routes: Vec<String>,
}

/// What `text` of `group` says of `service`; the own group when it says nothing.
pub(super) fn effect(text: &Commands, service: &str, group: &str) -> Effect {
    let own = || vec![GroupShare { group: group.to_owned(), weight: None }];
    let Some(command) = text.traffic(service) else { return Effect { groups: own(), routes: Vec::new() } };
    let groups = if command.groups.is_empty() { own() } else { command.groups.clone() };
    Effect { groups, routes: command.routes.iter().map(ToString::to_string).collect() }
}

/// The text of `group`: `text` as it stands, with these layers and no others.
///
/// # Errors
/// What others wrote there is no list of commands, or goes first whatever is written.
pub(super) fn lay(text: Option<&str>, group: &str, layers: &[Layer<'_>], ground: &Ground<'_>) -> Result<String, Error> {
    let wrong = |why: String| {
        Error::conflict(
            format!("the command text of group `{group}`: {why}"),
            "correct it where it is written, or take it away",
        )
    };
    let mut text = foreign(text, |owner| owner.starts_with(OWNER)).map_err(wrong)?;
    let below = ground.below.and_then(|below| foreign(Some(below), |owner| owner.starts_with(OWNER)).ok());
    // What is ill elsewhere is told where it is written to.
    let mut all = below.and_then(|below| over(&below, &text).ok());
    for layer in layers {
        let beneath = Commands::parse(all.as_deref().unwrap_or(&text)).map_err(wrong)?;
        let entries = layer.entries(&beneath, group, ground);
        if entries != Entries::default() {
            let owner = format!("{OWNER}{}", layer.id);
            text = put_entries(Some(&text), &owner, &entries).map_err(wrong)?;
            all = all.and_then(|all| put_entries(Some(&all), &owner, &entries).ok());
        }
    }
    Ok(text)
}

impl Layer<'_> {
    fn entries(&self, beneath: &Commands, group: &str, ground: &Ground<'_>) -> Entries {
        let command = |kind: u8, pattern: &str, exact: bool, effect: &Effect| {
            let mut one = json!({
                "version": "1.0",
                "dc": "",
                "commandType": kind,
                "pattern": pattern,
                "mergeGroups": effect.groups.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "routeRules": effect.routes,
                "remark": self.remark,
            });
            if exact {
                one["exact"] = true.into();
            }
            one
        };
        let nothing = Effect { groups: Vec::new(), routes: Vec::new() };
        let extra = |one: Value| Entries { commands: Vec::new(), extra: vec![one] };
        match self.action {
            Action::Switch { .. } | Action::Move { .. } | Action::Route { .. } => {
                let effects = self.effects(beneath, group, ground);
                let commands = effects.iter().map(|(pattern, exact, effect)| command(0, pattern, *exact, effect));
                Entries { commands: commands.collect(), extra: Vec::new() }
            }
            Action::Degrade { service, .. } => {
                Entries { commands: vec![command(1, service, self.exact, &nothing)], extra: Vec::new() }
            }
            Action::Switchers { values, .. } => {
                let values: Vec<_> = values.iter().map(|(name, value)| format!("{name}:{value}")).collect();
                Entries { commands: vec![command(2, &values.join(","), false, &nothing)], extra: Vec::new() }
            }
            Action::Canary { service, version, percent, header, .. } => {
                // A step of a canary that gets anything gets something.
                let percent = (percent * self.percent).div_ceil(100);
                extra(json!({"kind": "canary", "service": service, "version": version, "percent": percent,
                    "header": header, "remark": self.remark}))
            }
            Action::Drain { service, instance, .. } => {
                extra(json!({"kind": "drain", "service": service, "instance": instance, "remark": self.remark}))
            }
            // What a driver runs is in nobody's text.
            Action::Scale { .. } => Entries::default(),
        }
    }

    /// Patterns, whether each is a name, and what shall hold for it; the first goes first.
    fn effects(&self, beneath: &Commands, group: &str, ground: &Ground<'_>) -> Vec<(String, bool, Effect)> {
        let Some(service) = self.action.service() else { return Vec::new() };
        let on = |name: &str| {
            let below = effect(beneath, name, group);
            self.changed(name, &below, ground)
        };
        if self.exact {
            return on(service).map(|effect| (service.to_owned(), true, effect)).into_iter().collect();
        }
        // Of a pattern, what lies beneath may differ by service.
        let met = matching(service, ground.services);
        let own = Effect { groups: vec![GroupShare { group: group.to_owned(), weight: None }], routes: Vec::new() };
        let usual = self.changed(met.first().map_or("", |one| one), &own, ground);
        let mut all = Vec::new();
        for name in met.into_iter().take(MANY) {
            match on(name) {
                same if same == usual => {}
                Some(other) => all.push((name.to_owned(), true, other)),
                // The pattern meets it, and nothing shall change.
                None => all.push((name.to_owned(), true, effect(beneath, name, group))),
            }
        }
        all.extend(usual.map(|effect| (service.to_owned(), false, effect)));
        all
    }

    /// What becomes of `below`; none when it stays as it is.
    fn changed(&self, service: &str, below: &Effect, ground: &Ground<'_>) -> Option<Effect> {
        let step = f64::from(self.percent) / 100.0;
        let routes = below.routes.clone();
        match self.action {
            Action::Switch { to, .. } => {
                let to: Vec<_> = to.iter().map(|g| GroupShare { group: g.group.clone(), weight: g.weight }).collect();
                if self.percent >= 100 {
                    return Some(Effect { groups: to, routes });
                }
                let mut parts = fractions(&below.groups, service, ground);
                parts.iter_mut().for_each(|(_, part)| *part *= 1.0 - step);
                for (group, part) in fractions(&to, service, ground) {
                    add(&mut parts, &group, part * step);
                }
                Some(Effect { groups: weighted(&parts), routes })
            }
            Action::Move { from, to, percent, .. } => {
                let mut parts = fractions(&below.groups, service, ground);
                let had = parts.iter().find(|(group, _)| group == from)?.1;
                let moved = had * f64::from(*percent) / 100.0 * step;
                add(&mut parts, from, -moved);
                add(&mut parts, to, moved);
                Some(Effect { groups: weighted(&parts), routes })
            }
            Action::Route { rules, .. } => Some(Effect { groups: below.groups.clone(), routes: rules.clone() }),
            _ => None,
        }
    }
}

/// The services that a pattern meets.
pub(super) fn matching<'a>(pattern: &str, services: &'a [String]) -> Vec<&'a str> {
    let Ok(pattern) = Pattern::parse(pattern) else { return Vec::new() };
    services.iter().map(String::as_str).filter(|service| pattern.matches(service)).collect()
}

/// Shares of groups, in sum 1. Groups that are mixed share by the weight of their instances.
fn fractions(groups: &[GroupShare], service: &str, ground: &Ground<'_>) -> Vec<(String, f64)> {
    let by_weight = is_weighted(groups);
    let part = |g: &GroupShare| match by_weight {
        true => f64::from(g.weight.unwrap_or(1)),
        false => (ground.size)(service, &g.group) as f64,
    };
    let mut parts: Vec<_> = groups.iter().map(|g| (g.group.clone(), part(g))).collect();
    let sum: f64 = parts.iter().map(|(_, part)| part).sum();
    let count = parts.len().max(1) as f64;
    parts.iter_mut().for_each(|(_, part)| *part = if sum > 0.0 { *part / sum } else { 1.0 / count });
    parts
}

fn add(parts: &mut Vec<(String, f64)>, group: &str, more: f64) {
    match parts.iter_mut().find(|(known, _)| known == group) {
        Some((_, part)) => *part += more,
        None => parts.push((group.to_owned(), more)),
    }
}

fn weighted(parts: &[(String, f64)]) -> Vec<GroupShare> {
    let weights = share::whole(&parts.iter().map(|(_, part)| *part).collect::<Vec<_>>());
    let all = parts.iter().zip(weights).filter(|(_, weight)| *weight > 0);
    let mut groups: Vec<_> =
        all.map(|((group, _), weight)| GroupShare { group: group.clone(), weight: Some(weight) }).collect();
    if let [only] = groups.as_mut_slice() {
        only.weight = None;
    }
    groups
}

#[cfg(test)]
mod tests {
    use model::center::GroupWeight;

    use super::*;

    fn layer(id: u64, action: &Action, percent: u32, exact: bool) -> Layer<'_> {
        Layer { id, action, percent, exact, remark: format!("no. {id}") }
    }

    fn laid(text: Option<&str>, group: &str, layers: &[Layer<'_>]) -> String {
        let services = ["s.Echo", "s.Other"].map(str::to_owned);
        let size = |_: &str, group: &str| if group == "a" { 30 } else { 10 };
        lay(text, group, layers, &Ground { services: &services, size: &size, below: None }).unwrap()
    }

    fn shares(text: &str, service: &str) -> String {
        let commands = Commands::parse(text).unwrap();
        let groups = effect(&commands, service, "own").groups;
        groups.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    fn moved(service: &str, from: &str, to: &str, percent: u32) -> Action {
        Action::Move { service: service.into(), from: from.into(), to: to.into(), percent }
    }

    fn switched(service: &str, to: &[(&str, Option<u32>)]) -> Action {
        let to = to.iter().map(|(group, weight)| GroupWeight { group: (*group).into(), weight: *weight }).collect();
        Action::Switch { service: service.into(), group: "a".into(), to }
    }

    #[test]
    fn a_move_is_relative_to_what_lies_under_it() {
        let first = moved("s.Echo", "a", "b", 20);
        let text = laid(None, "a", &[layer(1, &first, 100, true)]);
        assert_eq!(shares(&text, "s.Echo"), "a:80 b:20");
        assert_eq!(shares(&text, "s.Other"), "own", "exactly this service");
        assert_eq!(shares(&laid(None, "a", &[layer(1, &first, 5, true)]), "s.Echo"), "a:99 b:1");
        let second = moved("s.Echo", "a", "c", 50);
        let both = laid(Some(&text), "a", &[layer(1, &first, 100, true), layer(2, &second, 100, true)]);
        assert_eq!(shares(&both, "s.Echo"), "a:40 b:20 c:40");
        // The first goes, and the second is relative to what is left.
        assert_eq!(shares(&laid(Some(&both), "a", &[layer(2, &second, 100, true)]), "s.Echo"), "a:50 c:50");
        assert_eq!(laid(Some(&both), "a", &[]), r#"{"clientCommandList":[]}"#);
        assert_eq!(laid(None, "z", &[layer(1, &first, 100, true)]), r#"{"clientCommandList":[]}"#, "nothing from a");
        let all = moved("s.Echo", "a", "b", 100);
        assert_eq!(shares(&laid(None, "a", &[layer(1, &all, 100, true)]), "s.Echo"), "b");
    }

    #[test]
    fn what_others_wrote_lies_at_the_bottom_and_stays() {
        let theirs = r#"{"clientCommandList":[{"index":3,"pattern":"*","mergeGroups":["a:1","c:1"],
            "routeRules":["10.0.* to 10.1.*"]}]}"#;
        let action = moved("s.*", "a", "b", 20);
        let text = laid(Some(theirs), "a", &[layer(1, &action, 100, false)]);
        assert_eq!((shares(&text, "s.Echo").as_str(), shares(&text, "t").as_str()), ("a:40 c:50 b:10", "a:1 c:1"));
        assert!(effect(&Commands::parse(&text).unwrap(), "s.Echo", "a").routes == ["10.0.* to 10.1.*"]);
        assert_eq!(shares(&text, "s.New"), "a:80 b:20", "one that nobody knew: from its own group");
        let gone = laid(Some(&text), "a", &[]);
        assert_eq!(serde_json::from_str::<Value>(&gone).unwrap(), serde_json::from_str::<Value>(theirs).unwrap());
        // What stands in a registry of the site counts as well, and is not copied.
        let ground = Ground { services: &["s.Echo".to_owned()], size: &|_, _| 1, below: Some(theirs) };
        let text = lay(None, "a", &[layer(1, &action, 100, false)], &ground).unwrap();
        assert_eq!((shares(&text, "s.Echo").as_str(), shares(&text, "t").as_str()), ("a:40 c:50 b:10", "own"));
        let first = r#"{"clientCommandList":[{"pattern":"*","mergeGroups":["c"]}]}"#;
        let ground = Ground { services: &[], size: &|_, _| 1, below: None };
        let error = lay(Some(first), "a", &[layer(1, &action, 100, false)], &ground).unwrap_err();
        assert!(error.message.contains("group `a`") && error.message.contains("has no index"), "{error}");
    }

    #[test]
    fn steps_of_a_switch_go_from_what_is_to_what_shall_be() {
        let to = switched("s.Echo", &[("b", Some(50)), ("c", Some(50))]);
        assert_eq!(shares(&laid(None, "a", &[layer(1, &to, 20, true)]), "s.Echo"), "a:80 b:10 c:10");
        assert_eq!(shares(&laid(None, "a", &[layer(1, &to, 100, true)]), "s.Echo"), "b:50 c:50");
        // Mixed groups share by their instances, and are written as they were asked for at the end.
        let mixed = switched("s.Echo", &[("a", None), ("b", None)]);
        assert_eq!(shares(&laid(None, "a", &[layer(1, &mixed, 40, true)]), "s.Echo"), "a:90 b:10");
        assert_eq!(shares(&laid(None, "a", &[layer(1, &mixed, 100, true)]), "s.Echo"), "a b");
    }

    #[test]
    fn the_other_kinds() {
        let at = |text: &str| Commands::parse(text).unwrap();
        let route = Action::Route { service: "s.Echo".into(), group: "a".into(), rules: vec!["* to !10.0.0.1".into()] };
        let by = moved("s.Echo", "a", "b", 20);
        let text = laid(None, "a", &[layer(1, &by, 100, true), layer(2, &route, 100, true)]);
        assert_eq!(shares(&text, "s.Echo"), "a:80 b:20");
        assert_eq!(at(&text).traffic("s.Echo").unwrap().routes.len(), 1);
        let degrade = Action::Degrade { service: "s.*".into(), group: "a".into() };
        assert!(at(&laid(None, "a", &[layer(1, &degrade, 100, false)])).degrade("s.Echo").is_some());
        let switchers = Action::Switchers { group: "a".into(), values: vec![("x".into(), true), ("y".into(), false)] };
        let text = laid(None, "a", &[layer(1, &switchers, 100, false)]);
        assert_eq!(at(&text).switchers(), [("x".to_owned(), true), ("y".to_owned(), false)]);
        let canary = Action::Canary {
            service: "s.Echo".into(),
            group: "a".into(),
            version: "2".into(),
            percent: 10,
            header: Some("x-canary=yes".into()),
        };
        let text = laid(None, "a", &[layer(1, &canary, 5, true)]);
        assert_eq!(at(&text).canary("s.Echo").unwrap().percent, 1);
        let drain = Action::Drain { service: "s.Echo".into(), group: "a".into(), instance: "1.1.1.1:1".into() };
        let text = laid(Some(&text), "a", &[layer(1, &canary, 100, true), layer(2, &drain, 100, true)]);
        let all = at(&text);
        assert_eq!((all.canary("s.Echo").unwrap().percent, all.drained("s.Echo").count()), (10, 1));
        assert!(all.left_out.is_empty(), "{:?}", all.left_out);
    }
}
