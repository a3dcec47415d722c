//! What a command would do: the agents' own choice and dealing ([`model::share`]), with the rates of now.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    Instance,
    center::{CommandScope, Of, PreviewEndpoint, Side},
    command::{Commands, RouteRule},
    share::{self, Member, Orders},
};

use super::{
    layers::{self, Effect},
    site::Site,
};

/// Rounds in which the rates of callers are sought.
const ROUNDS: usize = 300;

/// Texts of groups before and after.
pub(super) type Texts = BTreeMap<String, (Commands, Commands)>;

/// What the endpoints of one service get and would get.
pub(super) fn endpoints(
    site: &dyn Site,
    service: &str,
    groups: &BTreeSet<String>,
    texts: &Texts,
    warnings: &mut BTreeSet<String>,
) -> Vec<PreviewEndpoint> {
    let mut groups = groups.clone();
    groups.extend(texts.keys().cloned());
    let mut all: Vec<(String, Instance)> = Vec::new();
    for group in &groups {
        all.extend(site.snapshot(service, group).instances.iter().map(|i| (group.clone(), i.clone())));
    }
    let of = |instance: &str, side: Side| Of {
        side,
        service: service.to_owned(),
        instance: instance.to_owned(),
        ..Of::default()
    };
    let measured = |side: Side| all.iter().map(|(_, i)| site.lately(&of(&i.address, side)).rate).collect::<Vec<f64>>();
    let mut now = measured(Side::Outbound);
    if now.iter().sum::<f64>() <= 0.0 {
        now = measured(Side::Inbound);
    }
    let callers: Vec<Caller> = groups.iter().map(|group| Caller::of(site, service, group, &all, texts)).collect();
    for caller in &callers {
        warnings.extend(caller.troubles.iter().map(|why| format!("{service}: callers of {}: {why}", caller.group)));
    }
    let rates = rates(&callers, &now);
    if rates.iter().sum::<f64>() <= 0.0 {
        warnings.insert(format!("no calls of {service} are seen lately, so there are no rates to predict with"));
    }
    let mut rows = Vec::new();
    for (nth, (group, instance)) in all.iter().enumerate() {
        let is_touched = callers.iter().any(|c| (c.then[nth] - c.now[nth]).abs() > 1e-12);
        let dealt: f64 = callers.iter().zip(&rates).map(|(caller, rate)| rate * caller.then[nth]).sum();
        let rate_then = if is_touched { dealt } else { now[nth] };
        let weight = f64::from(instance.weight) / f64::from(model::DEFAULT_WEIGHT);
        let capacity = site.capacity(service, group).map(|usual| usual * weight);
        rows.push(PreviewEndpoint {
            service: service.to_owned(),
            group: group.clone(),
            instance: instance.address.clone(),
            rate_now: now[nth],
            rate_then,
            capacity,
            over: capacity.is_some_and(|capacity| rate_then > capacity),
        });
    }
    rows
}

/// Callers of one group: the share of their calls that each endpoint gets.
struct Caller {
    group: String,
    now: Vec<f64>,
    then: Vec<f64>,
    /// Their calls a second, as far as figures say.
    rate: f64,
    troubles: Vec<String>,
}

impl Caller {
    fn of(site: &dyn Site, service: &str, group: &str, all: &[(String, Instance)], texts: &Texts) -> Self {
        let mut troubles = Vec::new();
        let (now, then) = match texts.get(group) {
            Some((before, after)) => {
                (dealt(before, service, group, all, &mut Vec::new()), dealt(after, service, group, all, &mut troubles))
            }
            None => {
                let text = site.text(&CommandScope::Group(group.to_owned())).1.unwrap_or_default();
                let commands = Commands::parse(&text).unwrap_or_default();
                let now = dealt(&commands, service, group, all, &mut Vec::new());
                (now.clone(), now)
            }
        };
        let of = Of { service: service.to_owned(), group: group.to_owned(), ..Of::default() };
        Self { group: group.to_owned(), now, then, rate: site.lately(&of).rate, troubles }
    }
}

/// The share of calls that each endpoint gets of callers of `group` under `text`.
fn dealt(
    text: &Commands,
    service: &str,
    group: &str,
    all: &[(String, Instance)],
    troubles: &mut Vec<String>,
) -> Vec<f64> {
    let mut loads = vec![0.0; all.len()];
    if text.degrade(service).is_some() {
        return loads;
    }
    let Effect { groups, routes } = layers::effect(text, service, group);
    let (usual, some): (Vec<RouteRule>, Vec<RouteRule>) =
        routes.iter().filter_map(|rule| RouteRule::parse(rule).ok()).partition(|rule| rule.concerns(""));
    troubles.extend(some.iter().map(|rule| format!("the rule `{rule}` is about some callers only, and not shown")));
    let drained: Vec<String> = text.drained(service).map(str::to_owned).collect();
    let canary = text.canary(service);
    let orders = Orders { groups: &groups, routes: &usual, drained: &drained, canary };
    let members = |wanted: &[&str]| {
        wanted.iter().flat_map(|w| (0..all.len()).filter(move |&i| all[i].0 == **w)).collect::<Vec<usize>>()
    };
    let address = |i: &usize| all[*i].1.address.as_str();
    let chosen = share::choose(&orders, group, "", members, address, |i| all[*i].1.version.as_str());
    troubles.extend(chosen.troubles);
    for share in &chosen.groups {
        if !all.iter().any(|(g, i)| *g == share.group && i.weight > 0) {
            let what = "has no endpoint: it is left out, and its share goes to the others";
            troubles.push(format!("group {} {what}", share.group));
        }
    }
    let member = |&i: &usize| Member { group: &all[i].0, version: &all[i].1.version, weight: all[i].1.weight };
    let members: Vec<_> = chosen.kept.iter().map(member).collect();
    for (&i, load) in chosen.kept.iter().zip(share::loads(&chosen.groups, canary, &members)) {
        loads[i] = load;
    }
    loads
}

/// Calls a second of the callers of each group, so that what they are dealt comes as near as can be to what the
/// endpoints get (expectation and maximization, which stays at or above 0 by itself). What figures say of the callers
/// is where it begins, and decides where the endpoints leave it open.
fn rates(callers: &[Caller], measured: &[f64]) -> Vec<f64> {
    let total: f64 = measured.iter().sum();
    let said: Vec<f64> = callers.iter().map(|caller| caller.rate).collect();
    if total <= 0.0 {
        return said;
    }
    let little = total / callers.len().max(1) as f64 * 1e-3;
    let mut rates: Vec<f64> = said.iter().map(|rate| rate + little).collect();
    for _ in 0..ROUNDS {
        let dealt: Vec<f64> = (0..measured.len())
            .map(|i| callers.iter().zip(&rates).map(|(caller, rate)| rate * caller.now[i]).sum())
            .collect();
        for (caller, rate) in callers.iter().zip(&mut rates) {
            let reached: f64 = caller.now.iter().sum();
            if reached <= 0.0 {
                continue;
            }
            let pull = (0..measured.len()).filter(|&i| dealt[i] > 0.0);
            *rate *= pull.map(|i| caller.now[i] * measured[i] / dealt[i]).sum::<f64>() / reached;
        }
    }
    rates
}
