//! `/v1/alerts`: what fires and fired, rules, silences.

use axum::extract::State;
use model::center::{Alert, AlertRule, AlertState, Of, Page, Problem, Role, Silence};
use serde::Deserialize;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::shown;
use crate::{
    api::{Cx, Json, Paging, Path, Query},
    auth::Actor,
    error::Error,
};

/// Its part of the API.
pub fn routes() -> OpenApiRouter<Cx> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(one))
        .routes(routes!(rules, put_rule))
        .routes(routes!(delete_rule))
        .routes(routes!(silences, silence))
        .routes(routes!(unsilence))
}

/// Who may see what concerns this group: with no group, who may see any.
fn sees(actor: &Actor, of: &Of) -> bool {
    if of.group.is_empty() { !actor.roles.is_empty() } else { actor.may(Role::Viewer, &of.group).is_ok() }
}

/// Which alerts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
struct Which {
    /// `firing`, `silenced` or `resolved`; none: all.
    state: Option<AlertState>,
    /// Of this service; none: of any.
    service: Option<String>,
    /// Of this group; none: of any.
    group: Option<String>,
}

/// Alerts that stand and the latest that are over, newest first, without their series
#[utoipa::path(get, path = "/v1/alerts", tag = "alerts", params(Which, Paging), responses(
    (status = 200, body = Page<Alert>), (status = 400, body = Problem), (status = 401, body = Problem)))]
async fn list(
    State(center): State<Cx>,
    actor: Actor,
    Query(which): Query<Which>,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<Alert>>, Error> {
    let fits = |wanted: &Option<String>, is: &String| wanted.as_ref().is_none_or(|w| w.is_empty() || w == is);
    let mut alerts = center.alerts.list();
    alerts.retain(|alert| {
        which.state.is_none_or(|state| state == alert.state)
            && fits(&which.service, &alert.of.service)
            && fits(&which.group, &alert.of.group)
            && sees(&actor, &alert.of)
    });
    // Pages go by rising keys; the newest has the lowest.
    let key = |alert: &Alert| format!("{:020}-{}", u64::MAX - alert.since_ms, alert.id);
    alerts.sort_by_key(key);
    Ok(Json(paging.page(alerts, key)))
}

/// An alert with the series that raised it and the bounds it passed
#[utoipa::path(get, path = "/v1/alerts/{id}", tag = "alerts", params(("id" = String, Path)), responses(
    (status = 200, body = Alert), (status = 401, body = Problem), (status = 404, body = Problem)))]
async fn one(State(center): State<Cx>, actor: Actor, Path(id): Path<String>) -> Result<Json<Alert>, Error> {
    let alert = center.alerts.one(&id).filter(|alert| sees(&actor, &alert.of));
    alert.map(Json).ok_or_else(|| Error::not_found(format!("no alert `{id}`"), "look at the list of alerts"))
}

/// Rules by name: those of the file, the usual ones, those written here
#[utoipa::path(get, path = "/v1/alerts/rules", tag = "alerts", params(Paging), responses(
    (status = 200, body = Page<AlertRule>), (status = 401, body = Problem)))]
async fn rules(
    State(center): State<Cx>,
    actor: Actor,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<AlertRule>>, Error> {
    let mut rules = center.alerts.rules();
    rules.retain(|rule| sees(&actor, &rule.of));
    for rule in &mut rules {
        // Paths of webhooks are often secret: whoever may write the rule sees them.
        if actor.may(Role::Admin, &rule.of.group).is_err() {
            *rule = shown(rule.clone());
        }
    }
    Ok(Json(paging.page(rules, |rule| rule.name.clone())))
}

/// Writes a rule, or replaces the one of its name
#[utoipa::path(put, path = "/v1/alerts/rules", tag = "alerts", request_body = AlertRule, responses(
    (status = 200, body = AlertRule), (status = 400, body = Problem), (status = 401, body = Problem),
    (status = 403, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
async fn put_rule(
    State(center): State<Cx>,
    actor: Actor,
    Json(rule): Json<AlertRule>,
) -> Result<Json<AlertRule>, Error> {
    actor.may(Role::Admin, &rule.of.group)?;
    if let Some(old) = center.alerts.rules().into_iter().find(|old| old.name == rule.name) {
        actor.may(Role::Admin, &old.of.group)?;
    }
    Ok(Json(center.alerts.put_rule(&actor, rule).await?))
}

/// Deletes a rule; its alerts end
#[utoipa::path(delete, path = "/v1/alerts/rules/{name}", tag = "alerts", params(("name" = String, Path)), responses(
    (status = 200, body = ()), (status = 401, body = Problem), (status = 403, body = Problem),
    (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
async fn delete_rule(State(center): State<Cx>, actor: Actor, Path(name): Path<String>) -> Result<Json<()>, Error> {
    let old = center.alerts.rules().into_iter().find(|old| old.name == name);
    actor.may(Role::Admin, old.as_ref().map_or("", |old| &old.of.group))?;
    center.alerts.delete_rule(&actor, &name).await?;
    Ok(Json(()))
}

/// Silences that are not over
#[utoipa::path(get, path = "/v1/alerts/silences", tag = "alerts", params(Paging), responses(
    (status = 200, body = Page<Silence>), (status = 401, body = Problem)))]
async fn silences(
    State(center): State<Cx>,
    actor: Actor,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<Silence>>, Error> {
    let mut silences = center.alerts.silences();
    silences.retain(|silence| sees(&actor, &Of { group: silence.group.clone(), ..Of::default() }));
    Ok(Json(paging.page(silences, |silence| format!("{:020}", silence.id))))
}

/// Tells nobody of the alerts that fit; number and author are the centre's to give
#[utoipa::path(post, path = "/v1/alerts/silences", tag = "alerts", request_body = Silence, responses(
    (status = 200, body = Silence), (status = 400, body = Problem), (status = 401, body = Problem),
    (status = 403, body = Problem), (status = 503, body = Problem)))]
async fn silence(State(center): State<Cx>, actor: Actor, Json(silence): Json<Silence>) -> Result<Json<Silence>, Error> {
    actor.may(Role::Operator, &silence.group)?;
    Ok(Json(center.alerts.silence(&actor, silence).await?))
}

/// Ends a silence early
#[utoipa::path(delete, path = "/v1/alerts/silences/{id}", tag = "alerts", params(("id" = u64, Path)), responses(
    (status = 200, body = ()), (status = 400, body = Problem), (status = 401, body = Problem),
    (status = 403, body = Problem), (status = 404, body = Problem), (status = 503, body = Problem)))]
async fn unsilence(State(center): State<Cx>, actor: Actor, Path(id): Path<u64>) -> Result<Json<()>, Error> {
    let old = center.alerts.silences().into_iter().find(|old| old.id == id);
    actor.may(Role::Operator, old.as_ref().map_or("", |old| &old.group))?;
    center.alerts.unsilence(&actor, id).await?;
    Ok(Json(()))
}
