//! What holds for every request before its handler sees it: who asks, from which page, under which name, how long it
//! may take; and what every answer carries.
//!
//! Handlers check roles themselves. This net below them lets nobody through who has none at all: a handler that
//! forgets to ask is still no hole.

use std::{
    net::{IpAddr, SocketAddr},
    panic::AssertUnwindSafe,
    time::Duration,
};

use axum::{
    extract::{ConnectInfo, DefaultBodyLimit, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{self, HOST, ORIGIN},
};
use model::center::Role;

use super::{AGENT_BODY_BYTES, BODY_BYTES, Cx, config::authority};
use crate::{
    auth::{Identity, Proof},
    error::{Code, Error},
};

/// Header that a browser's session says its secret in.
pub const CSRF: &str = "x-sockmesh-csrf";
/// An answer must begin within this. Long polls last up to a minute.
const REQUEST_TIME: Duration = Duration::from_secs(90);
/// Calls that anyone may make, for who has not logged in yet.
const PUBLIC: &[&str] = &["/v1/login", "/v1/oidc/start", "/v1/oidc/callback"];
/// Calls about oneself, for whoever has logged in.
const OWN: &[&str] = &["/v1/me", "/v1/me/password", "/v1/logout", "/v1/tokens"];
/// Calls that only read although they have a body.
const READING: &[&str] = &["/v1/commands/preview", "/v1/capacity/what-if"];

/// The layer.
pub async fn guard(State(center): State<Cx>, mut request: Request, next: Next) -> Response {
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|at| at.0.ip().to_canonical());
    let from = from.map(|ip| behind(ip, request.headers(), &center.config.api.proxies));
    let identity = center.auth.identify(request.headers(), from);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let refused = may_enter(&center, &identity, &request).err();
    let actor = identity.actor.clone();
    let answer = match refused {
        Some(error) => error.into_response(),
        None => {
            let body = if path.starts_with("/v1/agent/") { AGENT_BODY_BYTES } else { BODY_BYTES };
            DefaultBodyLimit::max(body).apply(&mut request);
            request.extensions_mut().insert(identity);
            request.extensions_mut().insert(Caller(from));
            // No lock of ours is poisoned by a panic, and the next request finds everything as it was.
            let handled = AssertUnwindSafe(next.run(request)).catch_unwind();
            let answer = match tokio::time::timeout(REQUEST_TIME, handled).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(_)) => Err(Error::new(
                    Code::Internal,
                    format!("{method} {path} failed by a fault of the centre"),
                    "its log says where; please report it",
                )),
                Err(_) => {
                    let message = format!("{method} {path} was not done within {REQUEST_TIME:?}");
                    Err(Error::new(Code::Unavailable, message, "repeat it; look at the centre's log"))
                }
            };
            answer.unwrap_or_else(IntoResponse::into_response)
        }
    };
    // Who tried what is not theirs is on record, whichever handler refused it.
    if let (http::StatusCode::FORBIDDEN, false, Some(actor)) = (answer.status(), method.is_safe(), actor) {
        let target = format!("{method} {}", path.chars().take(200).collect::<String>());
        if let Err(error) = center.audit.record(&actor, "refused", &target, "forbidden", serde_json::Value::Null).await
        {
            tracing::warn!(actor = %actor.name, %target, %error, "a refusal could not be recorded");
        }
    }
    finish(answer, &path, center.config.api.tls.is_some())
}

/// Address that a request came from; none where that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller(pub Option<IpAddr>);

/// The address behind proxies that are trusted: each adds the one it was asked by at the end of the list.
fn behind(from: IpAddr, headers: &HeaderMap, proxies: &[IpAddr]) -> IpAddr {
    let mut last = from;
    let all: Vec<&str> =
        headers.get_all("x-forwarded-for").iter().flat_map(|value| value.to_str().unwrap_or("?").split(',')).collect();
    for said in all.into_iter().rev() {
        if !proxies.contains(&last) {
            break;
        }
        match said.trim().parse::<IpAddr>() {
            Ok(ip) => last = ip.to_canonical(),
            Err(_) => break,
        }
    }
    last
}

/// Everything that is known without the handler.
fn may_enter(center: &Cx, identity: &Identity, request: &Request) -> Result<(), Error> {
    let (method, path, headers) = (request.method(), request.uri().path(), request.headers());
    // A token is a secret that no foreign page has, so its holder may call the centre by any name.
    if identity.proof != Proof::Token {
        called_by_name(center, request)?;
    }
    if !method.is_safe() {
        same_page(headers)?;
        if let Some(csrf) = &identity.csrf {
            let said = headers.get(CSRF).map_or(&[][..], HeaderValue::as_bytes);
            if !crate::auth::same(said, csrf.as_bytes()) {
                return Err(Error::new(
                    Code::Forbidden,
                    format!("the header `{CSRF}` does not fit the session"),
                    "read it from GET /v1/me and send it with every call that changes something",
                ));
            }
        }
    }
    if !path.starts_with("/v1/") || PUBLIC.contains(&path) {
        return Ok(());
    }
    let Some(actor) = &identity.actor else { return Err(identity.unknown()) };
    if path.starts_with("/v1/agent/") {
        if actor.agents.is_none() {
            return Err(Error::new(
                Code::Forbidden,
                format!("`{}` speaks for no agent", actor.name),
                "use an agent's token; an admin makes one with POST /v1/tokens",
            ));
        }
        return Ok(());
    }
    // Who is known by nothing is on this host; agents are counted by what they register and report.
    if identity.proof != Proof::Nothing {
        center.auth.count(actor)?;
    }
    if OWN.contains(&path) || path.starts_with("/v1/tokens/") {
        return Ok(());
    }
    let needed = if method.is_safe() || READING.contains(&path) { Role::Viewer } else { Role::Operator };
    if actor.roles.iter().any(|(_, role)| *role >= needed) {
        return Ok(());
    }
    Err(Error::new(
        Code::Forbidden,
        format!("`{}` is no {} anywhere", actor.name, format!("{needed:?}").to_lowercase()),
        "ask an admin of the centre for the role",
    ))
}

fn called_by_name(center: &Cx, request: &Request) -> Result<(), Error> {
    let said = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let host = request.uri().authority().map(|authority| authority.as_str()).or(said).unwrap_or_default();
    if center.config.api.is_called(host) {
        return Ok(());
    }
    let host: String = host.chars().take(100).collect();
    Err(Error::new(
        Code::Forbidden,
        format!("this centre is not called `{host}`"),
        "ask for its address, or add the name to `api: hosts` of the centre's file",
    ))
}

/// Browsers say which page asks. None but the centre's own may change anything.
fn same_page(headers: &HeaderMap) -> Result<(), Error> {
    let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let site = text(&HeaderName::from_static("sec-fetch-site"));
    let site = site.is_none_or(|site| site == "same-origin" || site == "none");
    let origin = text(&ORIGIN);
    let origin = origin.is_none_or(|origin| {
        authority(origin).is_some_and(|page| text(&HOST).is_some_and(|host| host.eq_ignore_ascii_case(page)))
    });
    if site && origin {
        return Ok(());
    }
    Err(Error::new(
        Code::Forbidden,
        "a page of another origin asked for a change",
        "only the centre's own console may; behind a proxy, let it pass the `Host` header on",
    ))
}

fn finish(mut answer: Response, path: &str, tls: bool) -> Response {
    let status = answer.status();
    let headers = answer.headers_mut();
    let mut unless_said = |name: HeaderName, value: &'static str| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    unless_said(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    unless_said(header::X_FRAME_OPTIONS, "DENY");
    unless_said(header::REFERRER_POLICY, "no-referrer");
    unless_said(header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'; base-uri 'none'");
    unless_said(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    unless_said(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    unless_said(HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()");
    if path.starts_with("/v1/") {
        unless_said(header::CACHE_CONTROL, "no-store");
    }
    if tls {
        unless_said(header::STRICT_TRANSPORT_SECURITY, "max-age=31536000");
    }
    if status == http::StatusCode::UNAUTHORIZED {
        unless_said(header::WWW_AUTHENTICATE, "Bearer");
    }
    answer
}

/// There is no such path.
pub async fn no_path(method: Method, uri: http::Uri) -> Error {
    let path: String = uri.path().chars().take(200).collect();
    Error::not_found(format!("there is no `{method} {path}`"), "the calls there are stand in /openapi.json")
}

/// There is such a path, for other methods.
pub async fn no_method(method: Method, uri: http::Uri) -> Error {
    let path: String = uri.path().chars().take(200).collect();
    Error::new(Code::NoMethod, format!("`{path}` does not take {method}"), "the header `allow` says what it takes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trusted_proxies_say_whom_they_were_asked_by() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let proxies = [ip("10.0.0.1"), ip("10.0.0.2")];
        for (from, said, is) in [
            ("1.2.3.4", "9.9.9.9", "1.2.3.4"),
            ("10.0.0.1", "", "10.0.0.1"),
            ("10.0.0.1", "9.9.9.9", "9.9.9.9"),
            ("10.0.0.1", "6.6.6.6, 9.9.9.9", "9.9.9.9"),
            ("10.0.0.1", "6.6.6.6, 9.9.9.9, 10.0.0.2", "9.9.9.9"),
            ("10.0.0.1", "nonsense", "10.0.0.1"),
            ("10.0.0.1", "9.9.9.9, nonsense", "10.0.0.1"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for", HeaderValue::from_str(said).unwrap());
            assert_eq!(behind(ip(from), &headers, &proxies), ip(is), "{from} {said}");
        }
    }
}
