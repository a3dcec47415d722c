//! `/v1/pools`: policies of pools.

use axum::extract::State;
use model::center::{Page, PoolPolicy, Problem, Role};
use serde::Deserialize;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{Cx, Json, Paging, Query},
    auth::Actor,
    error::Error,
};

/// Its part of the API.
pub fn routes() -> OpenApiRouter<Cx> {
    OpenApiRouter::new().routes(routes!(list, set, forget))
}

/// Whose policy.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
struct Whose {
    /// The service; empty: the one for all.
    service: String,
    /// Its group; empty: the one for all.
    group: String,
}

/// Policies that were written, those of the centre's file included
#[utoipa::path(get, path = "/v1/pools", tag = "capacity", params(Paging), responses(
    (status = 200, body = Page<PoolPolicy>), (status = 400, body = Problem), (status = 401, body = Problem)))]
async fn list(
    State(center): State<Cx>,
    actor: Actor,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<PoolPolicy>>, Error> {
    let policies = center.decider.policies();
    let name = |one: &PoolPolicy| format!("{}/{}", one.service, one.group);
    let visible = |one: &&PoolPolicy| one.group.is_empty() || actor.may(Role::Viewer, &one.group).is_ok();
    let mut all: Vec<PoolPolicy> = policies.iter().filter(visible).cloned().collect();
    all.sort_by_key(name);
    Ok(Json(paging.page(all, name)))
}

/// Writes the policy of a pool
///
/// Without a service or a group it is that of all which have none of their own. Fields that are left out are as usual.
#[utoipa::path(put, path = "/v1/pools", tag = "capacity", request_body = PoolPolicy, responses(
    (status = 200, body = PoolPolicy), (status = 400, body = Problem), (status = 401, body = Problem),
    (status = 403, body = Problem), (status = 503, body = Problem)))]
async fn set(
    State(center): State<Cx>,
    actor: Actor,
    Json(policy): Json<PoolPolicy>,
) -> Result<Json<PoolPolicy>, Error> {
    actor.may(Role::Admin, &policy.group)?;
    center.decider.set_policy(&actor, policy.clone()).await?;
    Ok(Json(policy))
}

/// Forgets a policy that was written here; a wider one, that of the file or the usual one holds again
#[utoipa::path(delete, path = "/v1/pools", tag = "capacity", params(Whose), responses(
    (status = 204), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem),
    (status = 404, body = Problem), (status = 503, body = Problem)))]
async fn forget(State(center): State<Cx>, actor: Actor, Query(whose): Query<Whose>) -> Result<http::StatusCode, Error> {
    actor.may(Role::Admin, &whose.group)?;
    center.decider.forget_policy(&actor, &whose.service, &whose.group).await?;
    Ok(http::StatusCode::NO_CONTENT)
}
