//! `/commands`, `/switch` and `/degrade`: commands in the registries in use, as operators see and give them.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use model::{
    Instance, ServiceKey,
    command::{self, Commands, GroupShare, Kind, Order, Term},
};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{Handles, Steered, enrolled::decoded, view};
use crate::{
    config,
    filter::Direction,
    registry::{CommandText, Registry, Scope, merge},
};

/// How long a registry may take to say what commands or endpoints there are.
const PATIENCE: Duration = Duration::from_secs(3);
/// Tries to write when others write at the same time.
const TRIES: usize = 3;
/// Picks of a preview: shares are within a tenth of a percent or so.
const PICKS: usize = 100_000;

/// What an operator asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    service: String,
    /// The service's own group, when it is called in several.
    group: Option<String>,
    groups: Vec<String>,
    undo_after: Option<Duration>,
    is_end: bool,
    is_dry: bool,
}

impl Asked {
    pub(super) fn read(query: Option<&str>) -> Result<Self, String> {
        let mut asked = Self::default();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value).ok_or_else(|| format!("`{value}` is not percent-encoded text"))?;
            match name {
                "service" => asked.service = value,
                "group" => asked.group = Some(value),
                "groups" => asked.groups = value.split(',').map(str::to_owned).collect(),
                "for" => {
                    let time = config::duration(&value).ok().filter(|time| !time.is_zero());
                    asked.undo_after = Some(time.ok_or_else(|| format!("for={value}: write a time like 10m"))?);
                }
                "end" => asked.is_end = true,
                "dry_run" => asked.is_dry = true,
                other => {
                    let known = "`service`, `group`, `groups`, `for`, `end` and `dry_run`";
                    return Err(format!("no parameter `{other}`; there are {known}"));
                }
            }
        }
        if asked.service.is_empty() {
            return Err("add ?service= with the name of a service".to_owned());
        }
        Ok(asked)
    }

    /// Whether only a preview is asked for.
    pub(super) const fn is_dry(&self) -> bool {
        self.is_dry
    }

    /// Believes the registries; answers what was done.
    pub(super) fn confirm(&self, handles: &Handles) -> String {
        let count = handles.guards.confirm(&self.service);
        tracing::info!(target: "audit", service = self.service, count, "held lists are confirmed");
        match count {
            0 => format!("nothing of {} is held back", self.service),
            _ => format!("{}: the registry is believed", self.service),
        }
    }
}

/// What is undone by this agent when its time has come.
#[derive(Default)]
pub(super) struct Orders(Mutex<HashMap<(Scope, String, u8), Undo>>);

struct Undo {
    task: AbortHandle,
    at: Instant,
}

/// Who gives orders, as terms name him.
fn giver(handles: &Handles) -> String {
    format!("{}/{}", rustix::system::uname().nodename().to_string_lossy(), handles.name)
}

/// A service, the registry that commands it and the text there.
#[derive(Clone)]
struct Place {
    steered: Arc<Steered>,
    registry_name: String,
    registry: Arc<dyn Registry>,
    scope: Scope,
    text: watch::Receiver<Arc<CommandText>>,
}

impl Place {
    /// Finds what commands the service that is asked for.
    async fn find(handles: &Handles, asked: &Asked) -> Result<Self, String> {
        let all = handles.steered.load_full();
        let named = all.iter().filter(|s| {
            let info = &s.cluster.info;
            info.direction == Direction::Outbound && info.key.service == asked.service
        });
        let named: Vec<_> = named.collect();
        let groups: std::collections::BTreeSet<_> = named.iter().map(|s| s.cluster.info.key.group.clone()).collect();
        let group = match (&asked.group, groups.len()) {
            (_, 0) => {
                let known: std::collections::BTreeSet<_> = all
                    .iter()
                    .filter(|s| s.cluster.info.direction == Direction::Outbound)
                    .map(|s| s.cluster.info.key.service.as_str())
                    .collect();
                let known = known.into_iter().collect::<Vec<_>>().join(", ");
                return Err(format!("this agent calls no service `{}`; it calls {known}", asked.service));
            }
            (Some(group), _) => group.clone(),
            (None, 1) => groups.first().cloned().unwrap_or_default(),
            (None, _) => {
                let groups = groups.into_iter().collect::<Vec<_>>().join(", ");
                return Err(format!(
                    "`{}` is called in several groups ({groups}); say which with --group",
                    asked.service
                ));
            }
        };
        if group.is_empty() {
            return Err(format!("`{}` is called without a group, and commands are given to groups", asked.service));
        }
        let found = named.into_iter().find(|s| s.cluster.info.key.group == group);
        let steered = found.ok_or_else(|| format!("`{}` is not called in group {group}", asked.service))?.clone();
        let scope = Scope::Group(group);
        let holds =
            steered.registries.iter().find_map(|(name, r)| Some((name.clone(), r.clone(), r.commands(&scope)?)));
        let (registry_name, registry, mut text) = holds.ok_or_else(|| {
            format!("no registry of `{}` holds commands; take one of kind zookeeper, consul or file", asked.service)
        })?;
        let _ = timeout(PATIENCE, text.wait_for(|t| t.revision > 0)).await;
        Ok(Self { steered, registry_name, registry, scope, text })
    }

    fn current(&mut self) -> Result<Arc<CommandText>, String> {
        let current = self.text.borrow_and_update().clone();
        match (&current.stale, current.revision) {
            (Some(why), _) => Err(format!("the registry `{}` is not at hand: {why}", self.registry_name)),
            (None, 0) => Err(format!("the registry `{}` does not say what commands there are", self.registry_name)),
            (None, _) => Ok(current),
        }
    }

    /// Writes what `edit` makes of the text; `None`: there is nothing to write.
    async fn write<T>(
        &mut self,
        edit: impl Fn(Option<&str>) -> Result<Option<(String, T)>, String>,
    ) -> Result<Option<T>, String> {
        let mut last = String::new();
        for _ in 0..TRIES {
            let current = self.current()?;
            let Some((text, result)) = edit(current.text.as_deref())? else { return Ok(None) };
            match self.registry.write_commands(&self.scope, current.text.as_deref(), &text).await {
                Ok(()) => return Ok(Some(result)),
                Err(error) => last = format!("the registry `{}` did not take it: {error:#}", self.registry_name),
            }
            // Somebody else wrote: what they wrote comes soon.
            if timeout(Duration::from_secs(1), self.text.changed()).await.is_err() {
                break;
            }
        }
        Err(last)
    }
}

impl Orders {
    /// Does what is asked; answers what was done.
    pub(super) async fn give(self: &Arc<Self>, handles: &Handles, asked: &Asked, kind: Kind) -> Result<String, String> {
        let mut place = Place::find(handles, asked).await?;
        let key = (place.scope.clone(), asked.service.clone(), kind.number());
        let where_ = format!("registry {}, {}", place.registry_name, shown(&place.scope));
        if asked.is_end {
            let edit = |text: Option<&str>| {
                let without = command::without_order(text, &asked.service, kind, None, &[])?;
                Ok(without.map(|text| (text, ())))
            };
            let ended = place.write(edit).await?;
            if let Some(undo) = self.0.lock().remove(&key) {
                undo.task.abort();
            }
            let audit = format!("ended in {where_}");
            tracing::info!(target: "audit", service = asked.service, change = audit, "commands");
            return Ok(match ended {
                Some(()) => format!("{}: ended ({where_})", asked.service),
                None => format!("{}: there is no command for exactly this name ({where_})", asked.service),
            });
        }
        let order = order(asked, kind)?;
        let millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let until = asked.undo_after.map_or(String::new(), |t| format!(", for {t:?}"));
        let remark = format!("by sockmesh {} at {millis} ms{until}", handles.name);
        // In the text as well, so that a start after a crash knows it.
        let term = asked.undo_after.map(|after| Term {
            by: giver(handles),
            until_ms: u64::try_from(millis + after.as_millis()).unwrap_or(u64::MAX),
        });
        let edit =
            |text: Option<&str>| command::with_order(text, &asked.service, &order, &remark, term.as_ref()).map(Some);
        let former = place.write(edit).await?.unwrap_or_default();
        if let Some(undo) = self.0.lock().remove(&key) {
            undo.task.abort();
        }
        let what = match &order {
            Order::Groups(groups) => groups.join(" "),
            Order::Degrade => "degraded".to_owned(),
        };
        let mut said = format!("{}: {what} ({where_})", asked.service);
        if let Some(after) = asked.undo_after {
            said += &format!("; undone in {after:?} by this agent");
            self.undo_later(place, key, remark, former, after);
        }
        tracing::info!(target: "audit", change = said, "commands");
        Ok(said)
    }

    /// Undoes in their time what this agent ordered before it was started anew.
    pub(super) fn resume(self: &Arc<Self>, handles: &Handles) {
        let by = giver(handles);
        let mut looked: Vec<(String, Scope)> = Vec::new();
        for steered in handles.steered.load().iter() {
            let scope = Scope::Group(steered.cluster.info.key.group.clone());
            for (name, registry) in &steered.registries {
                let Some(text) = registry.commands(&scope) else { continue };
                let (registry_name, registry, by) = (name.clone(), registry.clone(), by.clone());
                if scope == Scope::Group(String::new()) || looked.contains(&(name.clone(), scope.clone())) {
                    continue;
                }
                looked.push((name.clone(), scope.clone()));
                let place = Place { steered: steered.clone(), registry_name, registry, scope: scope.clone(), text };
                tokio::spawn(self.clone().resume_at(place, by));
            }
        }
    }

    async fn resume_at(self: Arc<Self>, mut place: Place, by: String) {
        // A registry that is away is waited for: there is nothing to undo elsewhere.
        let text = match place.text.wait_for(|text| text.revision > 0 && text.stale.is_none()).await {
            Ok(text) => text.text.clone(),
            Err(_) => return,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for order in command::timed(text.as_deref()).into_iter().filter(|order| order.term.by == by) {
            let key = (place.scope.clone(), order.service.clone(), order.kind.number());
            if self.0.lock().contains_key(&key) {
                // Given since the start.
                continue;
            }
            let after = Duration::from_millis(order.term.until_ms).saturating_sub(now);
            tracing::info!(service = order.service, ?after, "a command of a former run is undone in its time");
            self.undo_later(place.clone(), key, order.remark, order.former, after);
        }
    }

    fn undo_later(
        self: &Arc<Self>,
        mut place: Place,
        key: (Scope, String, u8),
        remark: String,
        former: Vec<Value>,
        after: Duration,
    ) {
        let at = Instant::now() + after;
        let (orders, mine) = (self.clone(), key.clone());
        let kind = if key.2 == Kind::Degrade.number() { Kind::Degrade } else { Kind::Traffic };
        let task = tokio::spawn(async move {
            sleep_until(at).await;
            let service = &mine.1;
            let edit = |text: Option<&str>| {
                let without = command::without_order(text, service, kind, Some(&remark), &former)?;
                Ok(without.map(|text| (text, ())))
            };
            let mut pause = Duration::from_secs(1);
            loop {
                match place.write(edit).await {
                    Ok(Some(())) => tracing::info!(target: "audit", service, "the time of a command is over: undone"),
                    Ok(None) => tracing::info!(service, "the time of a command is over, and it is gone already"),
                    Err(error) => {
                        tracing::warn!(service, error, again = ?pause, "a command cannot be undone yet");
                        sleep(pause).await;
                        pause = (pause * 2).min(Duration::from_secs(10));
                        continue;
                    }
                }
                orders.0.lock().remove(&mine);
                return;
            }
        });
        self.0.lock().insert(key, Undo { task: task.abort_handle(), at });
    }

    /// The page.
    pub(super) async fn page(&self, handles: &Handles) -> view::Commands {
        let all = handles.steered.load_full();
        let mut texts: Vec<view::CommandText> = Vec::new();
        for steered in all.iter() {
            let group = &steered.cluster.info.key.group;
            let scopes = [Scope::Agent(steered.application.clone()), Scope::Group(group.clone())];
            for scope in scopes.into_iter().filter(|s| *s != Scope::Group(String::new())) {
                for (name, registry) in &steered.registries {
                    let whose = shown(&scope);
                    if texts.iter().any(|t| t.registry == *name && t.scope == whose) {
                        continue;
                    }
                    let Some(mut text) = registry.commands(&scope) else { continue };
                    let _ = timeout(PATIENCE, text.wait_for(|t| t.revision > 0 || t.stale.is_some())).await;
                    let text = text.borrow().clone();
                    texts.push(view_of(name, &whose, &text));
                }
            }
        }
        let services = all.iter().filter(|s| s.cluster.info.direction == Direction::Outbound).map(|steered| {
            let (info, steering) = (&steered.cluster.info, steered.cluster.steering());
            view::SteeredService {
                service: info.key.service.clone(),
                group: info.key.group.clone(),
                protocol: info.protocol.to_owned(),
                by: steering.by.clone(),
                groups: steering.groups.iter().map(ToString::to_string).collect(),
                degraded: steering.degraded.clone(),
                troubles: steering.troubles.clone(),
            }
        });
        let services = services.collect();
        let pending = self.0.lock();
        let undo = pending.iter().map(|((scope, service, kind), undo)| view::Undo {
            scope: shown(scope),
            service: service.clone(),
            kind: *kind,
            in_seconds: undo.at.saturating_duration_since(Instant::now()).as_secs_f64(),
        });
        view::Commands { texts, services, undo: undo.collect() }
    }

    /// What the endpoints would get; `rate` is of calls now, by endpoint and of all.
    pub(super) async fn preview(
        handles: &Handles,
        asked: &Asked,
        rate: impl Fn(&Steered) -> (f64, HashMap<(String, String), f64>),
    ) -> Result<view::Preview, String> {
        let place = Place::find(handles, asked).await?;
        let Order::Groups(names) = order(asked, Kind::Traffic)? else { return Err("no groups are named".to_owned()) };
        let groups = command::group_shares(names.iter().map(String::as_str));
        let (instances, notes) = endpoints(handles, &place.steered, &groups).await;
        let (total, now) = rate(&place.steered);
        let loads = place.steered.cluster.preview(&instances, &groups, PICKS);
        let mut rows: Vec<_> = loads
            .into_iter()
            .map(|load| {
                let now = now.get(&(load.addr.to_string(), load.group.to_string())).copied().unwrap_or(0.0);
                view::PreviewRow {
                    group: load.group.to_string(),
                    address: load.addr.to_string(),
                    rate_now: now,
                    rate_then: total * load.share,
                    share: load.share,
                }
            })
            .collect();
        // Those that get nothing any more.
        for ((address, group), rate) in now {
            if !rows.iter().any(|row| row.address == address && row.group == group) {
                rows.push(view::PreviewRow { group, address, rate_now: rate, rate_then: 0.0, share: 0.0 });
            }
        }
        rows.sort_by(|a, b| (&a.group, &a.address).cmp(&(&b.group, &b.address)));
        Ok(view::Preview { service: asked.service.clone(), rate: total, rows, notes })
    }
}

fn order(asked: &Asked, kind: Kind) -> Result<Order, String> {
    if kind == Kind::Degrade {
        return Ok(Order::Degrade);
    }
    for group in &asked.groups {
        let share = GroupShare::parse(group).ok_or_else(|| format!("`{group}` names no group"))?;
        if group.contains(':') && share.to_string() != *group {
            return Err(format!("`{group}`: weights are whole numbers from 1 to 100"));
        }
    }
    if asked.groups.is_empty() {
        return Err("name groups: `idc-a=80 idc-b=20`, or without weights to mix them".to_owned());
    }
    Ok(Order::Groups(asked.groups.clone()))
}

/// The endpoints of these groups as the registries of the service list them, and what is odd about that.
async fn endpoints(handles: &Handles, steered: &Steered, groups: &[GroupShare]) -> (Vec<Instance>, Vec<String>) {
    let (mut all, mut notes) = (Vec::new(), Vec::new());
    for share in groups {
        let key = ServiceKey { group: share.group.clone(), ..steered.cluster.info.key.clone() };
        let lists = steered.registries.iter().map(|(name, r)| handles.guards.watch(name, r, &key));
        let mut list = merge(lists.collect());
        let _ = timeout(PATIENCE, list.wait_for(|s| s.revision > 0)).await;
        let list = list.borrow().clone();
        if list.instances.is_empty() {
            notes.push(format!(
                "group {} has no endpoint: it is left out, and its share goes to the others",
                share.group
            ));
        }
        let group = |i: &Instance| if i.group.is_empty() { share.group.clone() } else { i.group.clone() };
        all.extend(list.instances.iter().map(|i| Instance { group: group(i), ..i.clone() }));
    }
    if all.is_empty() {
        notes.push("none of the groups has an endpoint: the own group would go on serving".to_owned());
    }
    (all, notes)
}

fn shown(scope: &Scope) -> String {
    match scope {
        Scope::Group(name) => format!("group {name}"),
        Scope::Agent(name) => format!("application {name}"),
    }
}

fn view_of(registry: &str, scope: &str, text: &CommandText) -> view::CommandText {
    let mut view = view::CommandText {
        registry: registry.to_owned(),
        scope: scope.to_owned(),
        text: text.text.clone(),
        stale: text.stale.clone(),
        commands: Vec::new(),
        troubles: Vec::new(),
    };
    match Commands::parse(text.text.as_deref().unwrap_or_default()) {
        Ok(commands) => {
            view.troubles.clone_from(&commands.left_out);
            view.commands = commands.all().iter().map(one).collect();
        }
        Err(why) => view.troubles.push(format!("{why}: none of them counts")),
    }
    view
}

fn one(command: &command::Command) -> view::Command {
    view::Command {
        index: command.index,
        kind: command.kind.number(),
        pattern: command.pattern.as_ref().map(|p| p.text().to_owned()).unwrap_or_default(),
        groups: command.groups.iter().map(ToString::to_string).collect(),
        routes: command.routes.iter().map(ToString::to_string).collect(),
        switchers: command.switchers.iter().map(|(name, value)| format!("{name}:{value}")).collect(),
        remark: command.remark.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let asked = Asked::read(Some("service=s.Echo&groups=a:80,b:20&for=10m")).unwrap();
        assert_eq!((asked.groups.len(), asked.undo_after), (2, Some(Duration::from_secs(600))));
        assert_eq!(order(&asked, Kind::Traffic), Ok(Order::Groups(vec!["a:80".into(), "b:20".into()])));
        for wrong in ["", "groups=a", "service=s&for=0s", "service=s&x=y", "service=%2"] {
            assert!(Asked::read(Some(wrong)).is_err(), "{wrong}");
        }
        for wrong in ["a:0", "a:101", "a:x", ":3", "a:1.5"] {
            let asked = Asked { service: "s".into(), groups: vec![wrong.into()], ..Asked::default() };
            assert!(order(&asked, Kind::Traffic).is_err(), "{wrong}");
        }
        assert!(order(&Asked::default(), Kind::Traffic).is_err());
        assert_eq!(order(&Asked::default(), Kind::Degrade), Ok(Order::Degrade));
    }
}
