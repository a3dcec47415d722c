//! `/v1/scale`: pools that have drivers, and another size by hand.

use std::collections::BTreeMap;

use axum::extract::State;
use futures_util::{StreamExt, stream};
use model::center::{NewScale, PoolPolicy, Problem, Role, ScaleRow};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{Cx, Json},
    auth::Actor,
    clock::now_ms,
    error::Error,
};

/// Pools that are asked for their size at once.
const AT_ONCE: usize = 32;

/// Changes that a row shows.
const EVENTS: usize = 20;

/// Longest reason that is kept.
const REASON: usize = 500;

/// Its part of the API.
pub fn routes() -> OpenApiRouter<Cx> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(set))
}

/// Pools that have a driver, with their instances and latest changes
#[utoipa::path(get, path = "/v1/scale", tag = "scaling", responses(
    (status = 200, body = Vec<ScaleRow>), (status = 401, body = Problem)))]
async fn list(State(center): State<Cx>, actor: Actor) -> Result<Json<Vec<ScaleRow>>, Error> {
    let mut pools: BTreeMap<(String, String), PoolPolicy> = BTreeMap::new();
    let known = center.registry.keys().into_iter().map(|key| (key.service, key.group));
    for (service, group) in known.chain(center.scalers.in_use()) {
        let policy = center.decider.policy(&service, &group);
        if !policy.driver.is_empty() && actor.may(Role::Viewer, &group).is_ok() {
            pools.insert((group, service), policy);
        }
    }
    let rows = stream::iter(pools.into_values()).map(|policy| row(&center, policy));
    Ok(Json(rows.buffered(AT_ONCE).collect().await))
}

async fn row(center: &Cx, policy: PoolPolicy) -> ScaleRow {
    let (size, error) = match center.scalers.size(&policy).await {
        Ok(size) => (Some(size), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let instances = center.scalers.instances(&policy.service, &policy.group);
    let events = center.scalers.events(&policy.service, &policy.group, EVENTS);
    let PoolPolicy { service, group, driver, min, max, .. } = policy;
    ScaleRow { service, group, driver, size, error, min, max, instances, events }
}

/// Gives a pool another size, by its policy's driver and within its bounds
#[utoipa::path(post, path = "/v1/scale", tag = "scaling", request_body = NewScale, responses(
    (status = 200, body = ScaleRow), (status = 400, body = Problem), (status = 401, body = Problem),
    (status = 403, body = Problem), (status = 404, body = Problem), (status = 503, body = Problem)))]
async fn set(State(center): State<Cx>, actor: Actor, Json(wanted): Json<NewScale>) -> Result<Json<ScaleRow>, Error> {
    actor.may(Role::Operator, &wanted.group)?;
    if !center.store.leadership().borrow().leads {
        return Err(crate::store::StoreError::NotLeader.into());
    }
    if wanted.reason.trim().is_empty() || wanted.reason.len() > REASON {
        return Err(Error::bad(
            format!("a change of `{}` needs a reason of at most {REASON} bytes", wanted.service),
            "say in `reason` why",
        ));
    }
    let policy = center.decider.policy(&wanted.service, &wanted.group);
    let key = format!("{}-{}-{}", actor.name, now_ms(), fastrand::u32(..));
    center.scalers.set_by(&actor, &policy, wanted.size, &key, &wanted.reason).await?;
    Ok(Json(row(&center, policy).await))
}
