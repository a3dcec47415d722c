//! The HTTP API: every part brings its own routes, this joins them with what holds for all: the form of errors,
//! pages, limits, and the description at `/openapi.json`.

mod config;
mod describe;
mod extract;
mod guard;
mod page;

use std::sync::Arc;

use axum::{Router, middleware, routing::get};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    alert, app::Center, audit, auth, capacity, command, console, decide, demo, monitor, registry, scale, store,
};

pub use self::{
    config::{Config, Tls},
    extract::{AGENT_BODY_BYTES, BODY_BYTES, Json, Path, Query},
    guard::{CSRF, Caller},
    page::{PAGE_MOST, PAGE_USUAL, Paging},
};

/// What handlers are given.
pub type Cx = Arc<Center>;

#[derive(OpenApi)]
#[openapi(info(title = "Sockmesh governance centre", license(name = "Apache-2.0")))]
struct Description;

/// All routes with their description.
fn described() -> OpenApiRouter<Cx> {
    OpenApiRouter::with_openapi(Description::openapi())
        .merge(registry::routes())
        .merge(monitor::routes())
        .merge(capacity::routes())
        .merge(command::routes())
        .merge(scale::routes())
        .merge(decide::routes())
        .merge(alert::routes())
        .merge(store::routes())
        .merge(audit::routes())
        .merge(auth::routes())
        .merge(demo::routes())
}

/// The description of the API, as `/openapi.json` answers it.
pub fn description() -> utoipa::openapi::OpenApi {
    describe::complete(described().into_openapi())
}

/// The whole service.
pub fn router(center: Cx) -> Router {
    let (routes, description) = described().split_for_parts();
    let description = Arc::new(describe::complete(description));
    routes
        .route("/openapi.json", get(move || async move { Json(description.as_ref().clone()) }))
        .route("/healthz", get(|| async { "ok\n" }))
        .merge(console::routes())
        .fallback(guard::no_path)
        .method_not_allowed_fallback(guard::no_method)
        .layer(middleware::from_fn_with_state(center.clone(), guard::guard))
        .with_state(center)
}

#[cfg(test)]
mod tests;
