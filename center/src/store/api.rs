//! What operators ask of the store.

use axum::extract::State;
use model::center::{Role, StoreStatus};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{Cx, Json},
    auth::Actor,
    error::Error,
};

/// How the store is: where it stands, who leads, and why nothing is written when nothing is.
#[utoipa::path(get, path = "/v1/store", tag = "store", responses((status = 200, body = StoreStatus)))]
async fn status(State(center): State<Cx>, actor: Actor) -> Result<Json<StoreStatus>, Error> {
    actor.may(Role::Viewer, "*")?;
    let (stamp, leadership) = (center.store.stamp(), center.store.leadership().borrow().clone());
    Ok(Json(StoreStatus {
        kind: center.config.store.kind.clone(),
        epoch: stamp.epoch,
        revision: stamp.revision,
        leads: leadership.leads,
        leader: leadership.leader,
        trouble: center.store.trouble().borrow().clone(),
    }))
}

/// Its part of the API.
pub fn routes() -> OpenApiRouter<Cx> {
    OpenApiRouter::new().routes(routes!(status))
}
