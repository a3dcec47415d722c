//! What operators see of the registry: services, one service, the registry as a whole.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::State;
use model::{
    ServiceKey,
    center::{
        CallerRow, Figures, InstanceRow, Of, Page, Problem, RegistryGroup, RegistryPage, Role, ServicePage, ServiceRow,
        Side,
    },
};
use serde::Deserialize;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    catalog::{Held, Row},
    leases::Leases,
};
use crate::{
    api::{Cx, Json, Paging, Query},
    auth::Actor,
    error::Error,
};

pub(super) fn routes() -> OpenApiRouter<Cx> {
    OpenApiRouter::new().routes(routes!(services)).routes(routes!(service)).routes(routes!(registry))
}

/// An instance as operators see it, without what is measured.
pub(super) fn row(group: &str, held: &Held, leases: &Leases) -> InstanceRow {
    let registered = held.record.registered.as_ref();
    let agent = registered.map(|r| r.agent.clone()).unwrap_or_default();
    let silence = leases.silence(&agent).unwrap_or_default();
    InstanceRow {
        address: held.instance.address.clone(),
        group: group.to_owned(),
        weight: held.instance.weight,
        zone: held.instance.zone.clone(),
        version: held.instance.version.clone(),
        agent,
        state: held.state.word().to_owned(),
        reason: held.record.mark.reason(),
        since_ms: registered.map_or(0, |r| r.since_ms),
        heard_ms_ago: u64::try_from(silence.as_millis()).unwrap_or(u64::MAX),
        figures: Figures::default(),
        capacity: None,
        metadata: (*held.instance.metadata).clone(),
    }
}

/// What callers feel, else what providers see.
fn lately(center: &Cx, of: Of) -> Figures {
    let felt = center.monitor.lately(&of);
    if felt.success.is_some() { felt } else { center.monitor.lately(&Of { side: Side::Inbound, ..of }) }
}

fn service_row(center: &Cx, row: &Row) -> ServiceRow {
    let of = Of { service: row.service.clone(), group: row.group.clone(), ..Of::default() };
    let protocols: BTreeSet<_> =
        row.instances.iter().filter_map(|held| held.instance.metadata.get("protocol")).collect();
    let pool = center.decider.pool(&row.service, &row.group);
    let fits = |group: &str| group.is_empty() || group == row.group;
    let alerts = center.alerts.firing(&row.service);
    ServiceRow {
        key: ServiceKey { service: row.service.clone(), group: row.group.clone(), version: String::new() },
        protocols: protocols.into_iter().cloned().collect(),
        instances: count(row.instances.len()),
        available: count(row.instances.iter().filter(|held| held.state.is_listed()).count()),
        figures: lately(center, of),
        water_percent: pool.as_ref().and_then(|pool| pool.water_percent),
        level: pool.map_or_else(|| "unknown".to_owned(), |pool| pool.level),
        alerts: count(alerts.iter().filter(|alert| fits(&alert.of.group)).count()),
        commands: count(center.commands.active(&row.service).len()),
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Which services.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// Only this group.
    group: Option<String>,
    /// Only services whose name contains this.
    q: Option<String>,
}

/// Services in their groups, in the order of their names.
#[utoipa::path(get, path = "/v1/services", tag = "registry", params(Wanted, Paging),
    responses((status = 200, body = Page<ServiceRow>), (status = "4XX", body = Problem)))]
async fn services(
    State(center): State<Cx>,
    actor: Actor,
    Query(wanted): Query<Wanted>,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<ServiceRow>>, Error> {
    let group = wanted.group.as_deref().filter(|group| !group.is_empty());
    let after = match paging.after.as_deref().filter(|after| !after.is_empty()) {
        None => None,
        Some(text) => Some(text.split_once('\n').ok_or_else(|| {
            Error::bad(format!("`after={text}` is no place in the list"), "use `next` of the page before")
        })?),
    };
    let q = wanted.q.as_deref().unwrap_or_default().to_lowercase();
    if let Some(group) = group {
        actor.may(Role::Viewer, group)?;
    }
    let fits = |service: &str, of: &str| {
        group.is_none_or(|group| group == of)
            && (q.is_empty() || service.to_lowercase().contains(&q))
            && actor.may(Role::Viewer, of).is_ok()
    };
    let (rows, total) = center.registry.catalog.page(after, paging.limit(), fits);
    let next = (rows.len() == paging.limit()).then(|| rows.last().map(|row| format!("{}\n{}", row.service, row.group)));
    let items = rows.iter().map(|row| service_row(&center, row)).collect();
    Ok(Json(Page { items, next: next.flatten(), total: Some(total as u64) }))
}

/// Which service.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct One {
    /// The service.
    service: String,
    /// Its group; without one, the first that it has.
    group: Option<String>,
}

/// One service in one group: instances, callers, commands, capacity.
#[utoipa::path(get, path = "/v1/service", tag = "registry", params(One),
    responses((status = 200, body = ServicePage), (status = "4XX", body = Problem)))]
async fn service(State(center): State<Cx>, actor: Actor, Query(one): Query<One>) -> Result<Json<ServicePage>, Error> {
    let groups = center.registry.catalog.groups(&one.service);
    let may_see = |group: &String| actor.may(Role::Viewer, group).is_ok();
    let group = match one.group {
        Some(group) => {
            actor.may(Role::Viewer, &group)?;
            group
        }
        None => groups.iter().find(|group| may_see(group)).cloned().unwrap_or_default(),
    };
    let key = ServiceKey { service: one.service.clone(), group: group.clone(), version: String::new() };
    if !groups.contains(&group) {
        return Err(Error::not_found(
            format!("no service `{key}`"),
            "look at the list of services for those there are",
        ));
    }
    let instances = center.registry.catalog.instances(&key).into_iter().map(|(_, held)| held).collect();
    let row = service_row(&center, &Row { service: one.service.clone(), group: group.clone(), instances });
    let estimate = center.capacity.estimate(&one.service, &group);
    let mut instances = center.registry.rows(&key);
    for instance in &mut instances {
        let of = Of {
            side: Side::Inbound,
            service: one.service.clone(),
            group: group.clone(),
            instance: instance.address.clone(),
            ..Of::default()
        };
        let seen = center.monitor.lately(&of);
        let felt = || center.monitor.lately(&Of { side: Side::Outbound, ..of.clone() });
        instance.figures = if seen.success.is_some() { seen } else { felt() };
        instance.capacity = estimate.as_ref().map(|estimate| estimate.per_instance);
    }
    let callers = center.monitor.callers(&one.service, &group);
    let callers = callers.into_iter().map(|(caller, figures, way)| CallerRow { caller, figures, way }).collect();
    let commands = center.commands.active(&one.service);
    let pool = center.decider.pool(&one.service, &group);
    let groups = groups.into_iter().filter(may_see).collect();
    Ok(Json(ServicePage { row, groups, instances, callers, commands, pool }))
}

/// How the registry is: where it stands, what it holds, who waits.
#[utoipa::path(get, path = "/v1/registry", tag = "registry",
    responses((status = 200, body = RegistryPage), (status = "4XX", body = Problem)))]
async fn registry(State(center): State<Cx>, actor: Actor) -> Result<Json<RegistryPage>, Error> {
    let registry = &center.registry;
    let may_see = |group: &str| actor.may(Role::Viewer, group).is_ok();
    let (rows, _) = registry.catalog.page(None, usize::MAX, |_, group| may_see(group));
    let mut page =
        RegistryPage { stamp: center.store.stamp(), center: center.config.name.clone(), ..Default::default() };
    let leadership = center.store.leadership().borrow().clone();
    (page.leads, page.leader) = (leadership.leads, leadership.leader);
    let mut groups = BTreeMap::<String, RegistryGroup>::new();
    let mut services = BTreeSet::new();
    for row in &rows {
        services.insert(row.service.as_str());
        let group = groups.entry(row.group.clone()).or_default();
        group.group.clone_from(&row.group);
        group.services += 1;
        group.instances += count(row.instances.len());
        page.instances += count(row.instances.len());
        for held in &row.instances {
            *page.states.entry(held.state.word().to_owned()).or_default() += 1;
        }
    }
    page.services = count(services.len());
    page.groups = groups.into_values().collect();
    page.agents = count(registry.catalog.agents().len());
    page.watchers = count(registry.watching());
    let scope = |of: &model::center::TextOf| match &of.scope {
        model::center::CommandScope::Group(group) => may_see(group),
        model::center::CommandScope::Agent(_) => may_see("*"),
    };
    page.texts = registry.catalog.all_texts().into_iter().filter(scope).collect();
    page.ahead = registry.ahead();
    Ok(Json(page))
}
