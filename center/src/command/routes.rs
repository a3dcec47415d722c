//! `/v1/commands`.

use axum::{body::Bytes, extract::State};
use model::center::{CommandRecord, CommandState, NewCommand, Page, Preview, Role, UndoCommand};
use serde::Deserialize;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{asked::About, holds};
use crate::{
    api::{Cx, Json, Paging, Path, Query},
    auth::Actor,
    error::Error,
};

/// Its part of the API.
pub fn routes() -> OpenApiRouter<Cx> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(preview))
        .routes(routes!(one))
        .routes(routes!(undo))
        .routes(routes!(confirm))
        .routes(routes!(next))
}

/// Which commands are wanted.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
struct Wanted {
    /// About this service.
    service: String,
    /// Touching this group.
    group: String,
    /// `open` (in force or proposed), `proposed`, `stepping`, `active`, `undone`, `failed` or `expired`; all when left out.
    state: String,
}

impl Wanted {
    fn takes(&self, actor: &Actor, record: &CommandRecord) -> bool {
        let action = &record.asked.action;
        let state = match (self.state.as_str(), record.state) {
            ("", _) => true,
            ("open", state) => holds(state) || state == CommandState::Proposed,
            (wanted, state) => serde_json::to_value(state).is_ok_and(|state| state == wanted),
        };
        let about = self.service.is_empty()
            || action.service().is_some_and(|one| {
                one == self.service || !super::layers::matching(one, std::slice::from_ref(&self.service)).is_empty()
            });
        let touches = self.group.is_empty() || action.groups().contains(&self.group.as_str());
        state && about && touches && actor.may(Role::Viewer, action.home()).is_ok()
    }
}

/// Commands, newest first: those in force and the history
#[utoipa::path(get, path = "/v1/commands", tag = "commands", params(Wanted, Paging),
    responses((status = 200, description = "A page of them", body = Page<CommandRecord>)))]
async fn list(
    State(center): State<Cx>,
    actor: Actor,
    Query(wanted): Query<Wanted>,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<CommandRecord>>, Error> {
    let before = match paging.after.as_deref() {
        None | Some("") => None,
        Some(text) => {
            let wrong = |_| Error::bad(format!("`after` is {text:?}"), "take `next` of the page before");
            Some(text.parse::<u64>().map_err(wrong)?)
        }
    };
    let (items, next) = center.commands.history(before, paging.limit(), |r| wanted.takes(&actor, r)).await?;
    Ok(Json(Page { items, next: next.map(|id| id.to_string()), total: None }))
}

/// Give a command: it is in force (with its first step) and durable when this is answered
#[utoipa::path(post, path = "/v1/commands", tag = "commands", request_body = NewCommand,
    responses((status = 200, description = "The command", body = CommandRecord),
        (status = 409, description = "Somebody changed the same texts, or another command is in force",
            body = model::center::Problem)))]
async fn create(
    State(center): State<Cx>,
    actor: Actor,
    Json(wanted): Json<NewCommand>,
) -> Result<Json<CommandRecord>, Error> {
    center.commands.give(&actor, wanted, false).await.map(Json)
}

/// What a command would do, with all of its steps taken; nothing is changed
#[utoipa::path(post, path = "/v1/commands/preview", tag = "commands", request_body = NewCommand,
    responses((status = 200, description = "Loads of endpoints, callers touched, texts that would change",
        body = Preview)))]
async fn preview(
    State(center): State<Cx>,
    actor: Actor,
    Json(wanted): Json<NewCommand>,
) -> Result<Json<Preview>, Error> {
    center.commands.preview(&actor, &wanted).await.map(Json)
}

/// One command with its history
#[utoipa::path(get, path = "/v1/commands/{id}", tag = "commands", params(("id" = u64, Path, description = "Number")),
    responses((status = 200, description = "The command", body = CommandRecord)))]
async fn one(State(center): State<Cx>, actor: Actor, Path(id): Path<u64>) -> Result<Json<CommandRecord>, Error> {
    let record = center.commands.one(id).await?;
    actor.may(Role::Viewer, record.asked.action.home())?;
    Ok(Json(record))
}

/// Take a command back, or turn a proposal down; what others ordered stays
#[utoipa::path(post, path = "/v1/commands/{id}/undo", tag = "commands", request_body = Option<UndoCommand>,
    params(("id" = u64, Path, description = "Number")),
    responses((status = 200, description = "The command, undone", body = CommandRecord)))]
async fn undo(
    State(center): State<Cx>,
    actor: Actor,
    Path(id): Path<u64>,
    body: Bytes,
) -> Result<Json<CommandRecord>, Error> {
    let asked: UndoCommand = match body.trim_ascii() {
        b"" | b"null" => UndoCommand::default(),
        some => serde_json::from_slice(some)
            .map_err(|why| Error::bad(format!("the body: {why}"), "send {\"reason\": \"...\"} or nothing"))?,
    };
    center.commands.undo(&actor, id, &asked.reason).await.map(Json)
}

/// Put a proposal into force
#[utoipa::path(post, path = "/v1/commands/{id}/confirm", tag = "commands",
    params(("id" = u64, Path, description = "Number")),
    responses((status = 200, description = "The command, in force", body = CommandRecord)))]
async fn confirm(State(center): State<Cx>, actor: Actor, Path(id): Path<u64>) -> Result<Json<CommandRecord>, Error> {
    center.commands.confirm(&actor, id).await.map(Json)
}

/// Take the next step at once
#[utoipa::path(post, path = "/v1/commands/{id}/next", tag = "commands",
    params(("id" = u64, Path, description = "Number")),
    responses((status = 200, description = "The command with its step", body = CommandRecord)))]
async fn next(State(center): State<Cx>, actor: Actor, Path(id): Path<u64>) -> Result<Json<CommandRecord>, Error> {
    center.commands.next(&actor, id).await.map(Json)
}
