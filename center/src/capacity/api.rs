//! `/v1/capacity`: what pools can take, what if groups were lost.

use axum::extract::State;
use model::center::{CapacityPoint, Page, Pool, PoolPolicy, Problem, Role, WhatIf, WhatIfAsked};
use serde::Deserialize;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{Cx, Json, Paging, Query},
    auth::Actor,
    error::Error,
};

/// Most points that are answered.
const POINTS: usize = 5_000;

/// Most groups of a question.
const GROUPS: usize = 1_000;

/// Its part of the API.
pub fn routes() -> OpenApiRouter<Cx> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(one)).routes(routes!(points)).routes(routes!(what_if))
}

/// Which pools.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
struct Which {
    /// Only this service; empty: all.
    service: String,
    /// Only this group; empty: all.
    group: String,
}

/// One pool.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct ThePool {
    /// The service.
    service: String,
    /// Its group; empty where a site has no groups.
    #[serde(default)]
    group: String,
}

/// Pools that this one may see, sorted.
fn visible(center: &Cx, actor: &Actor, service: &str, group: &str) -> Vec<(String, String)> {
    let mut keys = center.capacity.keys();
    keys.retain(|(s, g)| (service.is_empty() || s == service) && (group.is_empty() || g == group));
    keys.retain(|(_, g)| actor.may(Role::Viewer, g).is_ok());
    keys
}

/// Pools with their load, what they can take, and what is advised
#[utoipa::path(get, path = "/v1/capacity", tag = "capacity", params(Which, Paging), responses(
    (status = 200, body = Page<Pool>), (status = 400, body = Problem), (status = 401, body = Problem)))]
async fn list(
    State(center): State<Cx>,
    actor: Actor,
    Query(which): Query<Which>,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<Pool>>, Error> {
    let mut keys = visible(&center, &actor, &which.service, &which.group);
    // By the key of the page, in which a service's groups need not follow each other.
    let name = |(service, group): &(String, String)| format!("{service}/{group}");
    keys.sort_by_key(name);
    keys.dedup_by_key(|key| name(key));
    let page = paging.page(keys, name);
    let items = page.items.iter().filter_map(|(service, group)| center.decider.pool(service, group)).collect();
    Ok(Json(Page { items, next: page.next, total: page.total }))
}

/// One pool
#[utoipa::path(get, path = "/v1/capacity/pool", tag = "capacity", params(ThePool), responses(
    (status = 200, body = Pool), (status = 400, body = Problem), (status = 401, body = Problem),
    (status = 403, body = Problem), (status = 404, body = Problem)))]
async fn one(State(center): State<Cx>, actor: Actor, Query(which): Query<ThePool>) -> Result<Json<Pool>, Error> {
    actor.may(Role::Viewer, &which.group)?;
    center.decider.pool(&which.service, &which.group).map(Json).ok_or_else(|| no_pool(&which))
}

fn no_pool(which: &ThePool) -> Error {
    Error::not_found(
        format!("neither instances nor calls of `{}` in group `{}` are known", which.service, which.group),
        "look at /v1/capacity for the pools there are",
    )
}

/// Operating points of a pool's instances: rate, times and failures of each window, oldest first
#[utoipa::path(get, path = "/v1/capacity/points", tag = "capacity", params(ThePool), responses(
    (status = 200, body = Vec<CapacityPoint>), (status = 400, body = Problem), (status = 401, body = Problem),
    (status = 403, body = Problem)))]
async fn points(
    State(center): State<Cx>,
    actor: Actor,
    Query(which): Query<ThePool>,
) -> Result<Json<Vec<CapacityPoint>>, Error> {
    actor.may(Role::Viewer, &which.group)?;
    Ok(Json(center.capacity.points(&which.service, &which.group, POINTS)))
}

/// What would become of pools if these groups, such as a data centre, were lost
///
/// Reads only: nothing is changed by asking.
#[utoipa::path(post, path = "/v1/capacity/what-if", tag = "capacity", request_body = WhatIfAsked, responses(
    (status = 200, body = WhatIf), (status = 400, body = Problem), (status = 401, body = Problem)))]
async fn what_if(
    State(center): State<Cx>,
    actor: Actor,
    Json(asked): Json<WhatIfAsked>,
) -> Result<Json<WhatIf>, Error> {
    if asked.lost.is_empty() || asked.lost.len() > GROUPS {
        return Err(Error::bad(
            format!("`lost` names {} groups", asked.lost.len()),
            format!("name 1 to {GROUPS} groups that are lost"),
        ));
    }
    let policy = |(service, group): (String, String)| center.decider.policy(&service, &group);
    let pools: Vec<PoolPolicy> = visible(&center, &actor, &asked.service, "").into_iter().map(policy).collect();
    Ok(Json(center.capacity.what_if(&pools, &asked.lost)))
}
