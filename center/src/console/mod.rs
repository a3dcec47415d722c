//! The web console: files of this binary.

use axum::Router;

use crate::api::Cx;

/// `/` and the files it needs.
pub fn routes() -> Router<Cx> {
    Router::new()
}
