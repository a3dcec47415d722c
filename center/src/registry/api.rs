//! The registry's part of the API.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::header::CONTENT_TYPE;
use model::center::{
    CommandScope, Heartbeat, HeartbeatAnswer, InstanceOrder, NewText, Problem, Registrations, RegistrationsAnswer,
    Role, Sync, SyncAnswer, TextOf,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{check, pages};
use crate::{
    api::{Cx, Json},
    auth::Actor,
    error::Error,
};

/// Its part of the API.
pub fn routes() -> OpenApiRouter<Cx> {
    OpenApiRouter::new()
        .routes(routes!(put_registrations))
        .routes(routes!(post_heartbeat))
        .routes(routes!(post_sync))
        .routes(routes!(instance_out))
        .routes(routes!(instance_in))
        .routes(routes!(instance_drain))
        .routes(routes!(instance_weight))
        .routes(routes!(put_text))
        .merge(pages::routes())
}

/// Registers everything that an agent provides, and takes back what it does not name any more.
#[utoipa::path(put, path = "/v1/agent/registrations", tag = "agents", request_body = Registrations,
    responses((status = 200, body = RegistrationsAnswer), (status = "4XX", body = Problem)))]
async fn put_registrations(
    State(center): State<Cx>,
    actor: Actor,
    Json(wanted): Json<Registrations>,
) -> Result<Json<RegistrationsAnswer>, Error> {
    center.registry.register(&actor, wanted).await.map(Json)
}

/// Keeps everything that an agent registered.
#[utoipa::path(post, path = "/v1/agent/heartbeat", tag = "agents", request_body = Heartbeat,
    responses((status = 200, body = HeartbeatAnswer), (status = "4XX", body = Problem)))]
async fn post_heartbeat(
    State(center): State<Cx>,
    actor: Actor,
    Json(beat): Json<Heartbeat>,
) -> Result<Json<HeartbeatAnswer>, Error> {
    center.registry.heartbeat(&actor, &beat).await.map(Json)
}

/// Waits for changes of everything that an agent follows.
#[utoipa::path(post, path = "/v1/agent/sync", tag = "agents", request_body = Sync,
    responses((status = 200, body = SyncAnswer), (status = "4XX", body = Problem)))]
async fn post_sync(State(center): State<Cx>, actor: Actor, Json(asked): Json<Sync>) -> Result<Response, Error> {
    let pieces = center.registry.sync(&actor, asked).await?;
    Ok(([(CONTENT_TYPE, "application/json")], pieces.encode()).into_response())
}

fn with_reason(order: &InstanceOrder) -> Result<(), Error> {
    if order.reason.trim().is_empty() {
        return Err(Error::bad("the reason is missing", "say in `reason` why, for those who come later"));
    }
    if order.reason.len() > 1000 {
        return Err(Error::bad("the reason has more than 1,000 bytes", "say it shorter"));
    }
    Ok(())
}

/// Takes an instance out: callers are not told of it any more, until it is brought back.
#[utoipa::path(post, path = "/v1/instance/out", tag = "registry", request_body = InstanceOrder,
    responses((status = 204), (status = "4XX", body = Problem)))]
async fn instance_out(
    State(center): State<Cx>,
    actor: Actor,
    Json(order): Json<InstanceOrder>,
) -> Result<http::StatusCode, Error> {
    with_reason(&order)?;
    center.registry.take_out(&actor, &order.key, &order.address, Some(&order.reason)).await?;
    Ok(http::StatusCode::NO_CONTENT)
}

/// Brings an instance back that was taken out or drained.
#[utoipa::path(post, path = "/v1/instance/in", tag = "registry", request_body = InstanceOrder,
    responses((status = 204), (status = "4XX", body = Problem)))]
async fn instance_in(
    State(center): State<Cx>,
    actor: Actor,
    Json(order): Json<InstanceOrder>,
) -> Result<http::StatusCode, Error> {
    center.registry.take_out(&actor, &order.key, &order.address, None).await?;
    Ok(http::StatusCode::NO_CONTENT)
}

/// Drains an instance: its weight is 0, so that it gets no new calls, until it is brought back.
#[utoipa::path(post, path = "/v1/instance/drain", tag = "registry", request_body = InstanceOrder,
    responses((status = 204), (status = "4XX", body = Problem)))]
async fn instance_drain(
    State(center): State<Cx>,
    actor: Actor,
    Json(order): Json<InstanceOrder>,
) -> Result<http::StatusCode, Error> {
    with_reason(&order)?;
    center.registry.drain(&actor, &order.key, &order.address, &order.reason).await?;
    Ok(http::StatusCode::NO_CONTENT)
}

/// Gives an instance another weight than it registered with, or its own again.
#[utoipa::path(post, path = "/v1/instance/weight", tag = "registry", request_body = InstanceOrder,
    responses((status = 204), (status = "4XX", body = Problem)))]
async fn instance_weight(
    State(center): State<Cx>,
    actor: Actor,
    Json(order): Json<InstanceOrder>,
) -> Result<http::StatusCode, Error> {
    center.registry.set_weight(&actor, &order.key, &order.address, order.weight).await?;
    Ok(http::StatusCode::NO_CONTENT)
}

/// Replaces a command text as a whole, if it still is the one that is expected.
#[utoipa::path(put, path = "/v1/text", tag = "registry", request_body = NewText,
    responses((status = 200, body = TextOf), (status = "4XX", body = Problem)))]
async fn put_text(State(center): State<Cx>, actor: Actor, Json(new): Json<NewText>) -> Result<Json<TextOf>, Error> {
    let (group, target) = match &new.scope {
        CommandScope::Group(group) => (group.as_str(), format!("group {group}")),
        CommandScope::Agent(name) => ("*", format!("agents {name}")),
    };
    let detail = serde_json::json!({"text": new.text});
    actor.may(Role::Operator, group)?;
    let done = async {
        check::optional("scope", &target)?;
        let text = new.text.filter(|text| !text.trim().is_empty());
        if let Some(text) = &text {
            let read = model::command::Commands::parse(text);
            read.map_err(|why| Error::bad(format!("the command text: {why}"), "write it as docs/commands.md says"))?;
        }
        let (revision, present) = center.registry.text(&new.scope);
        if present.as_deref().unwrap_or_default() != new.expected.as_deref().unwrap_or_default() {
            let present = present.unwrap_or_default();
            return Err(Error::conflict(
                format!("the commands of {target} are not what was expected, but: {present}"),
                "look again and repeat",
            ));
        }
        let revision = center.registry.set_text(&new.scope, revision, text.clone(), None).await?;
        Ok(TextOf { scope: new.scope.clone(), revision, text })
    };
    let done = done.await;
    let outcome = done.as_ref().map_or_else(ToString::to_string, |_| "ok".to_owned());
    center.audit.record(&actor, "text.write", &target, &outcome, detail).await?;
    done.map(Json)
}
