//! The web console: files of this binary, as they stand in `center/console/`. Nothing is built: modules and style are
//! read by the browser as they were written, libraries as they were published.

mod files;

use std::sync::LazyLock;

use axum::{
    Router,
    extract::Path,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use sha2::{Digest, Sha256};

use self::files::FILES;
use crate::{api::Cx, error::Error, hex::hex};

/// What a page of the console may do: read files and ask the API of this very centre, nothing else. No script or style
/// stands in the page itself.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'",
);

/// Names the contents of each file, in the order of [`FILES`].
static TAGS: LazyLock<Vec<HeaderValue>> = LazyLock::new(|| {
    let tag = |bytes: &[u8]| {
        let sum = Sha256::digest(bytes);
        let name = hex(&sum[..12]);
        HeaderValue::from_str(&format!("\"{name}\"")).expect("hexadecimal digits may stand in a header")
    };
    FILES.iter().map(|(_, bytes)| tag(bytes)).collect()
});

/// `/` and the files it needs. Anyone may read them: they hold nothing of the site.
pub fn routes() -> Router<Cx> {
    Router::new().route("/", get(|headers: HeaderMap| async move { file("index.html", &headers) })).route(
        "/console/{*path}",
        get(|Path(path): Path<String>, headers: HeaderMap| async move { file(&path, &headers) }),
    )
}

fn file(path: &str, asked: &HeaderMap) -> Response {
    let Ok(at) = FILES.binary_search_by_key(&path, |(name, _)| *name) else {
        let path: String = path.chars().take(200).collect();
        return Error::not_found(format!("the console has no file `{path}`"), "the console is at /").into_response();
    };
    let (name, bytes) = FILES[at];
    let tag = TAGS[at].clone();
    // A browser asks again every time and is told that nothing changed: a new centre is a new console at once.
    let known = asked.get_all(header::IF_NONE_MATCH).iter().any(|has| *has == tag);
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind(name))),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::ETAG, tag),
        (header::CONTENT_SECURITY_POLICY, POLICY),
    ];
    if known { (StatusCode::NOT_MODIFIED, headers).into_response() } else { (headers, bytes).into_response() }
}

fn kind(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    }
}

#[cfg(test)]
mod tests;
