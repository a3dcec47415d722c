//! What operators ask of the store.

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE};
use model::center::{Role, StoreStatus};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::backup;
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

/// Everything that is kept, as one file that `sockmesh-center restore` reads: also hashes of passwords and tokens.
#[utoipa::path(get, path = "/v1/backup", tag = "store",
    responses((status = 200, body = String, content_type = "application/jsonl")))]
async fn save(State(center): State<Cx>, actor: Actor) -> Result<Response, Error> {
    actor.may(Role::Admin, "*")?;
    center.audit.record(&actor, "store.backup", "", "ok", serde_json::Value::Null).await?;
    let pieces = backup::pieces(center.store.clone());
    let pieces = stream::unfold(pieces, async |mut pieces| Some((pieces.recv().await?, pieces)));
    let headers = [
        (CONTENT_TYPE, "application/jsonl"),
        (CONTENT_DISPOSITION, "attachment; filename=\"sockmesh-center.backup\""),
        (CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// Its part of the API.
pub fn routes() -> OpenApiRouter<Cx> {
    OpenApiRouter::new().routes(routes!(status)).routes(routes!(save))
}
