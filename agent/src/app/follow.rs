//! Brings a cluster what its registries say: endpoints, and the commands that choose among them.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use model::{
    Instance, ServiceKey, Snapshot,
    command::{self, Canary, Command, Commands, GroupShare, RouteRule, Source},
    share,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::board::{Board, Seat};
use crate::{
    admin::StaleReasons,
    cluster::{Cluster, Steering},
    endpoint,
    registry::{self, CommandText, Guards, ReferFilter, ReferRule, Registry, Scope},
};

/// How long groups that a command names may take to be heard of before what is known of them is used.
const PATIENCE: Duration = Duration::from_secs(3);

type List = watch::Receiver<Arc<Snapshot>>;
type Text = watch::Receiver<Arc<CommandText>>;

/// Where endpoints and commands of a cluster come from.
#[derive(Clone)]
pub(super) struct Sources {
    /// Asked in this order, by name.
    pub(super) registries: Vec<(String, Arc<dyn Registry>)>,
    /// Listed in the configuration itself.
    pub(super) instances: Vec<Instance>,
    /// In force while no command says otherwise.
    pub(super) mix_groups: Vec<GroupShare>,
    /// Application whose agents are commanded together.
    pub(super) application: String,
}

/// What all followers share.
#[derive(Clone)]
pub(super) struct Shared {
    /// Why endpoint lists are old, for admin.
    pub(super) stale: Arc<StaleReasons>,
    /// Keeps lists from going empty.
    pub(super) guards: Guards,
    /// Switchers that commands turn.
    pub(super) board: Board,
    /// This host's address, which rules are matched with.
    pub(super) own: Option<IpAddr>,
    /// Endpoints that operators want left out.
    pub(super) refers: ReferFilter,
}

/// Brings a cluster what its registries say.
pub(super) struct Follower {
    cluster: Arc<Cluster>,
    sources: Sources,
    shared: Shared,
    /// Commands for the application and for the group, a text of each registry that has any.
    texts: [Vec<Text>; 2],
    /// By group. The own one is always there.
    lists: BTreeMap<String, List>,
    /// In force.
    plan: Plan,
    /// Ordered, but its groups were not all heard of; in force at the latest at this time.
    next: Option<(Plan, Instant)>,
    applied: Option<Applied>,
    seat: Seat,
    left_out: watch::Receiver<Arc<Vec<ReferRule>>>,
    heard: watch::Sender<bool>,
    /// Probes end by themselves when their endpoint is gone, and all of them with this.
    probes: JoinSet<()>,
}

/// What is ordered.
#[derive(Clone, Debug, Default, PartialEq)]
struct Plan {
    by: Option<String>,
    groups: Vec<GroupShare>,
    routes: Vec<RouteRule>,
    canary: Option<Canary>,
    drained: Vec<String>,
    degraded: Option<String>,
    troubles: Vec<String>,
}

/// What the cluster was brought to.
struct Applied {
    lists: Vec<Arc<Snapshot>>,
    routes: Vec<RouteRule>,
    drained: Vec<String>,
    left_out: Arc<Vec<ReferRule>>,
    steering: Steering,
}

impl Follower {
    /// A follower that has taken in what is known at once; `heard` turns true when all sources have answered.
    pub(super) fn new(cluster: Arc<Cluster>, sources: Sources, shared: Shared, heard: watch::Sender<bool>) -> Self {
        let key = &cluster.info.key;
        let texts = |scope: Scope| {
            let registries = sources.registries.iter();
            registries.filter_map(|(name, r)| shared.guards.commands(name, r, &scope)).collect()
        };
        let group = if key.group.is_empty() { Vec::new() } else { texts(Scope::Group(key.group.clone())) };
        let texts = [texts(Scope::Agent(sources.application.clone())), group];
        let (seat, left_out) = (shared.board.seat(), shared.refers.follow());
        let mut follower = Self {
            cluster,
            sources,
            shared,
            texts,
            lists: BTreeMap::new(),
            plan: Plan::default(),
            next: None,
            applied: None,
            seat,
            left_out,
            heard,
            probes: JoinSet::new(),
        };
        let own = follower.own_group();
        follower.watch([own]);
        follower.decide();
        follower.take();
        follower
    }

    /// Follows for ever.
    pub(super) async fn keep_up(mut self) {
        loop {
            let latest = self.next.as_ref().map(|(_, at)| *at);
            tokio::select! {
                () = any_changed(self.lists.values_mut()) => {}
                () = any_changed(self.texts.iter_mut().flatten()) => self.decide(),
                // Its sender lives as long as this.
                _ = self.left_out.changed() => {}
                () = sleep_until(latest.unwrap_or_else(Instant::now)), if latest.is_some() => {}
            }
            self.take();
            while self.probes.try_join_next().is_some() {}
        }
    }

    fn own_group(&self) -> String {
        self.cluster.info.key.group.clone()
    }

    /// Watches these groups, and no others any more.
    fn watch(&mut self, groups: impl IntoIterator<Item = String>) {
        let mut lists = BTreeMap::new();
        for group in groups {
            let list = self.lists.remove(&group).unwrap_or_else(|| self.list(&group));
            lists.insert(group, list);
        }
        self.lists = lists;
    }

    fn list(&self, group: &str) -> List {
        let own = &self.cluster.info.key;
        let key = ServiceKey { group: group.to_owned(), ..own.clone() };
        let registries = self.sources.registries.iter();
        let mut lists: Vec<_> = registries.map(|(name, r)| self.shared.guards.watch(name, r, &key)).collect();
        // Those that name no group are of the own one.
        let listed = self.sources.instances.iter().filter(|i| group == own.group || i.group == group);
        let listed: Vec<_> = listed.cloned().collect();
        if !listed.is_empty() || lists.is_empty() {
            lists.push(registry::inline(listed).watch(&key));
        }
        registry::merge(lists)
    }

    /// Reads the commands again.
    fn decide(&mut self) {
        let mut troubles = Vec::new();
        let names = [self.sources.application.clone(), self.own_group()];
        let [agent, group] = [Source::Agent, Source::Group].map(|source| {
            let at = source as usize;
            let texts = self.texts[at].iter_mut().map(|t| t.borrow_and_update().clone()).collect::<Vec<_>>();
            read(source, &names[at], &texts, &mut troubles)
        });
        let decision = command::decide(&agent, &group, &self.cluster.info.key.service);
        self.seat.want(decision.switchers);
        let told = |(source, command): (Source, &Command)| told(source, &names[source as usize], command);
        let mut plan =
            Plan { by: decision.traffic.map(told), degraded: decision.degrade.map(told), troubles, ..Plan::default() };
        match decision.traffic {
            Some((_, command)) => {
                plan.groups.clone_from(&command.groups);
                plan.routes.clone_from(&command.routes);
            }
            None if !self.sources.mix_groups.is_empty() => {
                plan.by = Some("mix_groups".to_owned());
                plan.groups.clone_from(&self.sources.mix_groups);
            }
            None => {}
        }
        if let Some((source, canary)) = decision.canary {
            also(&mut plan.by, format!("{}: {}", whose(source, &names[source as usize]), canary.told()));
            plan.canary = Some(canary.clone());
        }
        if !decision.drained.is_empty() {
            also(&mut plan.by, format!("drained: {}", decision.drained.join(", ")));
            plan.drained = decision.drained;
        }
        if self.next.as_ref().is_some_and(|(next, _)| *next == plan) {
            return;
        }
        let mut groups: Vec<_> = plan.groups.iter().map(|g| g.group.clone()).collect();
        // The lists in force stay until the new ones are heard of.
        groups.extend(self.plan.groups.iter().map(|g| g.group.clone()));
        groups.push(self.own_group());
        self.watch(groups);
        self.next = Some((plan, Instant::now() + PATIENCE));
    }

    /// Brings the cluster up to date.
    fn take(&mut self) {
        let is_heard = |list: &List| list.borrow().revision > 0;
        if let Some((next, latest)) = &self.next {
            let known = next.groups.iter().all(|g| self.lists.get(&g.group).is_some_and(is_heard));
            // Degrading waits for nobody.
            let at_once = next.groups.is_empty() || next.degraded != self.plan.degraded;
            if known || at_once || Instant::now() >= *latest {
                let (next, _) = self.next.take().expect("just seen");
                let own = self.own_group();
                let groups: Vec<_> = next.groups.iter().map(|g| g.group.clone()).chain([own]).collect();
                self.log(&next);
                self.plan = next;
                self.watch(groups);
            }
        }
        self.update();
        let said = |text: &Text| {
            let text = text.borrow();
            text.revision > 0 || text.stale.is_some()
        };
        let own = self.lists.get(&self.own_group());
        // A list of a snapshot file means that the registry is away, and its commands with it.
        let waits_for_nothing = own.is_some_and(|list| list.borrow().stale.is_some())
            || self.texts.iter().flatten().all(|text| said(text) || text.has_changed().is_err());
        if !*self.heard.borrow() && self.next.is_none() && own.is_some_and(is_heard) && waits_for_nothing {
            self.heard.send_replace(true);
        }
    }

    fn update(&mut self) {
        let snapshots: BTreeMap<_, _> =
            self.lists.iter_mut().map(|(group, list)| (group.clone(), list.borrow_and_update().clone())).collect();
        let own = self.own_group();
        let host = self.shared.own.map(|ip| ip.to_string()).unwrap_or_default();
        let upstream = self.cluster.config.upstream.as_ref();
        let spoken = upstream.map_or(self.cluster.info.protocol, |upstream| &upstream.name);
        let members = |groups: &[&str]| {
            let mut all = merged(groups, &snapshots, &own);
            all.retain(|(instance, _)| registry::speaks(instance, spoken));
            all
        };
        let Plan { groups, routes, canary, drained, .. } = &self.plan;
        let orders = share::Orders { groups, routes, drained, canary: canary.as_ref() };
        let chosen = share::choose(&orders, &own, &host, members, |one| &one.0.address, |one| &one.0.version);
        let (groups, canary) = (chosen.groups, canary.clone());
        let used: Vec<&str> = match groups.as_slice() {
            [] => vec![own.as_str()],
            groups => groups.iter().map(|g| g.group.as_str()).collect(),
        };
        let lists: Vec<_> = used.iter().filter_map(|group| snapshots.get(*group).cloned()).collect();
        let mut troubles = self.plan.troubles.clone();
        troubles.extend(chosen.troubles);
        let mut chosen = chosen.kept;
        let left_out = self.left_out.borrow_and_update().clone();
        let mut by = self.plan.by.clone();
        if registry::sift(&left_out, &self.cluster.info.key, &mut chosen, |(instance, _)| &instance.address) {
            also(&mut by, "endpoints left out by /refers/filter".to_owned());
        }
        let stale = snapshots.values().filter_map(|s| s.stale.clone());
        let mut reasons: Vec<_> = stale.chain(troubles.iter().cloned()).collect();
        reasons.dedup();
        let reason = (!reasons.is_empty()).then(|| reasons.join("; "));
        self.shared.stale.set(&self.cluster.info.key, reason.as_deref());
        let steering = Steering { by, groups, canary, degraded: self.plan.degraded.clone(), troubles };
        let same = |was: &Arc<Snapshot>, is: &Arc<Snapshot>| Arc::ptr_eq(was, is) || was.instances == is.instances;
        if let Some(applied) = &mut self.applied
            && applied.steering == steering
            && applied.routes == self.plan.routes
            && applied.drained == self.plan.drained
            && applied.left_out == left_out
            && applied.lists.len() == lists.len()
            && applied.lists.iter().zip(&lists).all(|(was, is)| same(was, is))
        {
            // One list in memory is enough.
            applied.lists = lists;
            return;
        }
        self.cluster.steer(steering.clone());
        // Nothing that anybody said yet is no empty list.
        if snapshots.values().any(|s| s.revision > 0) || !chosen.is_empty() {
            let instances = chosen.into_iter().map(|(i, group)| Instance { group: group.to_owned(), ..i.clone() });
            let revision = self.cluster.endpoints().revision + 1;
            let snapshot = Snapshot { revision, instances: instances.collect(), stale: None };
            for endpoint in self.cluster.apply(&snapshot) {
                self.probes.spawn(endpoint::probe_forever(endpoint));
            }
            let Plan { routes, drained, .. } = &self.plan;
            self.applied =
                Some(Applied { lists, routes: routes.clone(), drained: drained.clone(), left_out, steering });
        }
    }

    fn log(&self, next: &Plan) {
        let service = &self.cluster.info.key;
        if next.by != self.plan.by || next.groups != self.plan.groups {
            let by = next.by.as_deref().unwrap_or("nothing");
            tracing::info!(%service, by, "groups are chosen by another command");
        }
        match (&self.plan.degraded, &next.degraded) {
            (None, Some(by)) => tracing::warn!(%service, by, "degraded: calls are answered at once with an error"),
            (Some(_), None) => tracing::info!(%service, "degraded no more"),
            _ => {}
        }
        for trouble in next.troubles.iter().filter(|t| !self.plan.troubles.contains(t)) {
            tracing::warn!(%service, trouble, "a command is not obeyed");
        }
    }
}

/// Waits until one of them changes; for ever when none can any more.
async fn any_changed<T: 'static>(channels: impl Iterator<Item = &mut watch::Receiver<T>>) {
    let mut waiting: FuturesUnordered<_> = channels.map(|channel| channel.changed()).collect();
    while let Some(result) = waiting.next().await {
        if result.is_ok() {
            return;
        }
    }
    std::future::pending().await
}

/// The commands of a scope: those of the first registry that has a text.
fn read(source: Source, name: &str, texts: &[Arc<CommandText>], troubles: &mut Vec<String>) -> Commands {
    let Some(text) = texts.iter().find_map(|t| t.text.as_deref()) else { return Commands::default() };
    let whose = whose(source, name);
    match Commands::parse(text) {
        Ok(commands) => {
            troubles.extend(commands.left_out.iter().map(|why| format!("commands of {whose}: {why}")));
            commands
        }
        Err(why) => {
            troubles.push(format!("commands of {whose}: {why}: none of them counts"));
            Commands::default()
        }
    }
}

fn whose(source: Source, name: &str) -> String {
    match source {
        Source::Agent => format!("application {name}"),
        Source::Group => format!("group {name}"),
    }
}

fn told(source: Source, name: &str, command: &Command) -> String {
    let index = command.index.map_or(String::new(), |index| format!(", index {index}"));
    let pattern = command.pattern.as_ref().map_or("", |p| p.text());
    let groups: Vec<_> = command.groups.iter().map(ToString::to_string).collect();
    let rules: Vec<_> = command.routes.iter().map(|rule| format!("; {rule}")).collect();
    let groups = if groups.is_empty() { String::new() } else { format!(": {}", groups.join(" ")) };
    format!("{}{index} (`{pattern}`){groups}{}", whose(source, name), rules.concat())
}

fn also(by: &mut Option<String>, more: String) {
    match by {
        Some(by) => *by += &format!("; {more}"),
        None => *by = Some(more),
    }
}

/// All endpoints of these groups, each with its group. Those that name none are taken once.
fn merged<'a>(
    groups: &[&str],
    snapshots: &'a BTreeMap<String, Arc<Snapshot>>,
    own: &str,
) -> Vec<(&'a Instance, &'a str)> {
    let mut nameless = HashSet::new();
    let all = groups.iter().filter_map(|group| snapshots.get_key_value(*group));
    let all = all.flat_map(|(group, snapshot)| snapshot.instances.iter().map(move |i| (i, group.as_str())));
    let taken = all.filter_map(|(instance, group)| {
        if !instance.group.is_empty() {
            return Some((instance, instance.group.as_str()));
        }
        let of = if group == own { "" } else { group };
        nameless.insert(instance.address.as_str()).then_some((instance, of))
    });
    taken.collect()
}

#[cfg(test)]
mod tests;
