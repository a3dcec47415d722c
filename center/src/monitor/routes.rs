//! The monitor's part of the API.

use std::convert::Infallible;

use axum::{
    extract::State,
    response::{
        IntoResponse, Sse,
        sse::{self, KeepAlive},
    },
};
use futures_util::{Stream, stream};
use http::{StatusCode, header};
use model::center::{AgentRow, Event, Graph, Of, Page, Problem, Report, Role, Series, Side};
use serde::Deserialize;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::agents::Limit;
use crate::{
    api::{Cx, Json, Paging, Query},
    auth::Actor,
    clock,
    error::Error,
};

/// Span of a series that does not say from when.
const SPAN_MS: u64 = 10 * 60_000;
/// The longest span.
const LONGEST_MS: u64 = 400 * 24 * 3_600_000;

/// Its part of the API.
pub fn routes() -> OpenApiRouter<Cx> {
    OpenApiRouter::new()
        .routes(routes!(report))
        .routes(routes!(series))
        .routes(routes!(graph))
        .routes(routes!(agents))
        .routes(routes!(live))
        .routes(routes!(metrics))
}

/// Takes in what an agent saw since its last report
#[utoipa::path(post, path = "/v1/agent/report", tag = "agent", request_body = Report, responses(
    (status = 204, description = "Counted, or counted before"),
    (status = 400, description = "Not as it must be; nothing of it was counted", body = Problem),
    (status = 429, description = "Too often, or too many agents", body = Problem)))]
async fn report(State(center): State<Cx>, actor: Actor, Json(report): Json<Report>) -> Result<StatusCode, Error> {
    actor.may_speak_for(&report.agent)?;
    center.monitor.take(&report, Limit::Rate)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whose figures, from when to when.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Asked {
    /// `outbound` (what callers feel) or `inbound`; the other one is answered, and said to be, when only that is known.
    side: Side,
    /// The service; empty: all.
    service: String,
    /// Its group; empty: all.
    group: String,
    /// `IP:PORT` of one instance.
    instance: String,
    /// Application that calls.
    caller: String,
    /// Begin; ten minutes before the end unless said.
    from_ms: Option<u64>,
    /// End; now unless said.
    to_ms: Option<u64>,
    /// Length of windows; 0: as fits the span.
    step_ms: u64,
}

/// Figures over time
#[utoipa::path(get, path = "/v1/series", tag = "figures", params(Asked), responses(
    (status = 200, body = Series),
    (status = 400, body = Problem)))]
async fn series(State(center): State<Cx>, actor: Actor, Query(asked): Query<Asked>) -> Result<Json<Series>, Error> {
    actor.may(Role::Viewer, &asked.group)?;
    let to_ms = asked.to_ms.unwrap_or_else(clock::now_ms);
    let from_ms = asked.from_ms.unwrap_or(to_ms.saturating_sub(SPAN_MS));
    if from_ms >= to_ms {
        return Err(Error::bad(format!("from_ms {from_ms} is not before to_ms {to_ms}"), "exchange them"));
    }
    if to_ms - from_ms > LONGEST_MS {
        let what = format!("{} days are too long", (to_ms - from_ms) / (24 * 3_600_000));
        return Err(Error::bad(what, "ask for at most 400 days"));
    }
    if asked.step_ms > LONGEST_MS {
        return Err(Error::bad(
            format!("step_ms {} is longer than any span", asked.step_ms),
            "leave it out, or ask for less",
        ));
    }
    let Asked { side, service, group, instance, caller, step_ms, .. } = asked;
    let of = Of { side, service, group, instance, caller };
    Ok(Json(center.monitor.series(&of, from_ms, to_ms, step_ms).await?))
}

/// Who calls whom, of the last minute; of groups that may be seen
#[utoipa::path(get, path = "/v1/graph", tag = "figures", responses((status = 200, body = Graph)))]
async fn graph(State(center): State<Cx>, actor: Actor) -> Result<Json<Graph>, Error> {
    let all = actor.may(Role::Viewer, "*").is_ok();
    Ok(Json(center.monitor.graph_of(|group| all || actor.may(Role::Viewer, group).is_ok())))
}

/// All agents: how they are, what they took
#[utoipa::path(get, path = "/v1/agents", tag = "agents", params(Paging), responses(
    (status = 200, body = Page<AgentRow>),
    (status = 403, body = Problem)))]
async fn agents(State(center): State<Cx>, actor: Actor, paging: Query<Paging>) -> Result<Json<Page<AgentRow>>, Error> {
    actor.may(Role::Viewer, "*")?;
    Ok(Json(paging.0.page(center.monitor.agents(), |row| row.agent.clone())))
}

/// What changes, every second: server-sent events, each of them `data:` and the JSON of an event; the first has the
/// figures of all services
#[utoipa::path(get, path = "/v1/live", tag = "figures", responses(
    (status = 200, description = "Events until either side ends it", content_type = "text/event-stream", body = Event)))]
async fn live(State(center): State<Cx>, actor: Actor) -> Sse<impl Stream<Item = Result<sse::Event, Infallible>>> {
    let ticks = center.monitor.live.join(&center.monitor);
    let closed = center.monitor.closed.subscribe();
    let events =
        stream::unfold((center, actor, ticks, closed, 0), async |(center, actor, mut ticks, mut closed, told)| {
            let tick = if told == 0 {
                ticks.borrow_and_update().clone()
            } else {
                tokio::select! {
                    changed = ticks.changed() => changed.ok()?,
                    _ = closed.wait_for(|closed| *closed) => return None,
                }
                ticks.borrow_and_update().clone()
            };
            // Whoever was too slow for one is told all again.
            let figures = if tick.number == told + 1 { &tick.changed } else { &tick.all };
            let all = actor.may(Role::Viewer, "*").is_ok();
            let may = |group: &str| all || actor.may(Role::Viewer, group).is_ok();
            let figures = figures.iter().filter(|((group, _), _)| may(group));
            let event = Event {
                at_ms: tick.at_ms,
                figures: figures.map(|((group, service), f)| (format!("{group}/{service}"), f.clone())).collect(),
                registry: *center.registry.changes().borrow(),
                commands: center.commands.revision(),
                alerts: u32::try_from(center.alerts.firing("").len()).unwrap_or(u32::MAX),
            };
            let event = sse::Event::default().json_data(&event).unwrap_or_default();
            let told = tick.number;
            Some((Ok(event), (center, actor, ticks, closed, told)))
        });
    Sse::new(events).keep_alive(KeepAlive::default())
}

/// What the centre counts of itself, in the text format of Prometheus
#[utoipa::path(get, path = "/metrics", tag = "figures", responses(
    (status = 200, content_type = "text/plain", body = String),
    (status = 403, body = Problem)))]
async fn metrics(State(center): State<Cx>, actor: Actor) -> Result<impl IntoResponse, Error> {
    actor.may(Role::Viewer, "*")?;
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((kind, center.monitor.exported()))
}
