//! The load of `cargo xtask run`: a number in a file that its callers read, turned up and down from the console. There
//! only when the centre's file says where.

use std::path::PathBuf;

use axum::extract::State;
use model::center::Role;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{Cx, Json},
    auth::Actor,
    error::{Code, Error},
};

/// `demo:` of the centre's file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// File with the load, which callers read again and again.
    pub load: PathBuf,
    /// Highest load.
    pub max: f64,
}

/// How much the demo's callers call: 1 is the usual.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Times the usual.
    pub load: f64,
    /// Highest that is taken; ignored in requests.
    #[serde(default)]
    pub max: f64,
}

fn config(center: &Cx) -> Result<&Config, Error> {
    let none = || Error::not_found("this centre runs no demo", "start one with `cargo xtask run`");
    center.config.demo.as_ref().ok_or_else(none)
}

/// The load of the demo's callers.
#[utoipa::path(get, path = "/v1/demo", responses((status = 200, body = Load)))]
async fn read(State(center): State<Cx>, _: Actor) -> Result<Json<Load>, Error> {
    let config = config(&center)?;
    let text = tokio::fs::read_to_string(&config.load).await.unwrap_or_default();
    Ok(Json(Load { load: text.trim().parse().unwrap_or(1.0), max: config.max }))
}

/// Turns the load of the demo's callers.
#[utoipa::path(put, path = "/v1/demo", request_body = Load, responses((status = 200, body = Load)))]
async fn write(State(center): State<Cx>, actor: Actor, Json(wanted): Json<Load>) -> Result<Json<Load>, Error> {
    let config = config(&center)?;
    actor.may(Role::Operator, "*")?;
    if !(0.1..=config.max).contains(&wanted.load) {
        return Err(Error::bad(
            format!("a load of {} is too little or too much", wanted.load),
            format!("choose one from 0.1 to {}", config.max),
        ));
    }
    center.audit.record(&actor, "demo.load", "demo", "ok", serde_json::json!({ "load": wanted.load })).await?;
    // In one piece: callers read while it is written.
    let next = config.load.with_extension("next");
    let written = async {
        tokio::fs::write(&next, format!("{}\n", wanted.load)).await?;
        tokio::fs::rename(&next, &config.load).await
    };
    let failed = |e: std::io::Error| Error::new(Code::Internal, format!("{}: {e}", config.load.display()), "");
    written.await.map_err(failed)?;
    Ok(Json(Load { load: wanted.load, max: config.max }))
}

/// Its part of the API.
pub fn routes() -> OpenApiRouter<Cx> {
    OpenApiRouter::new().routes(routes!(read, write))
}
