//! `/v1/oidc/start` and `/v1/oidc/callback`: where browsers go to log in at an identity provider, and come back.

use axum::{
    Extension,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{HOST, LOCATION, SET_COOKIE},
};
use serde::Deserialize;
use serde_json::json;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Actor, Auth, identity::cookies, oidc::Oidc};
use crate::{
    api::{Caller, Cx, Query},
    error::{Code, Error},
};

pub(super) fn routes() -> OpenApiRouter<Cx> {
    OpenApiRouter::new().routes(routes!(start)).routes(routes!(callback))
}

/// Where to go on.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct Start {
    /// Path of this centre to come back to [default: /].
    #[serde(default)]
    next: String,
}

/// What the identity provider sends back.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct Back {
    /// For an identity token.
    code: Option<String>,
    /// As this centre said it.
    #[serde(default)]
    state: String,
    /// Why not.
    error: Option<String>,
}

/// Sends a browser to the identity provider.
#[utoipa::path(get, path = "/v1/oidc/start", tag = "access", params(Start),
    responses((status = 303, description = "To the provider")))]
async fn start(
    State(center): State<Cx>,
    Extension(Caller(from)): Extension<Caller>,
    headers: HeaderMap,
    Query(asked): Query<Start>,
) -> Result<Response, Error> {
    let oidc = center.auth.oidc()?;
    center.auth.count_login(from)?;
    let base = match &center.config.api.url {
        Some(url) => url.clone(),
        None => {
            // One of the centre's names, or it would not have come here.
            let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
            format!("{}://{host}", if center.config.api.tls.is_some() { "https" } else { "http" })
        }
    };
    let (url, state) = oidc.begin(&base, &asked.next).await?;
    let cookie = center.auth.set_cookie(center.auth.login_cookie_name(), &state, "Lax", 600);
    Ok((StatusCode::SEE_OTHER, [(LOCATION, location(&url)?), (SET_COOKIE, cookie)]).into_response())
}

/// Takes a browser back from the identity provider; sets the session's cookie.
#[utoipa::path(get, path = "/v1/oidc/callback", tag = "access", params(Back),
    responses((status = 303, description = "To where the login was begun")))]
async fn callback(
    State(center): State<Cx>,
    Extension(Caller(from)): Extension<Caller>,
    headers: HeaderMap,
    Query(back): Query<Back>,
) -> Result<Response, Error> {
    let auth = &center.auth;
    let oidc = auth.oidc()?;
    let name = auth.login_cookie_name();
    let cookie = cookies(&headers).find_map(|(key, value)| (key == name).then_some(value)).unwrap_or_default();
    let code = back.code.ok_or_else(|| {
        let why: String = back.error.unwrap_or_default().chars().filter(|c| !c.is_control()).take(100).collect();
        Error::new(Code::Forbidden, format!("the identity provider refused the login: `{why}`"), "log in again")
    })?;
    let person = oidc.end(&code, &back.state, cookie).await?;
    let from_text = from.map(|ip| ip.to_string()).unwrap_or_default();
    let actor = Actor { name: person.name.clone(), from: from_text, ..Actor::default() };
    if person.roles.is_empty() {
        auth.audit.record(&actor, "login", "", "refused", json!({ "oidc": oidc.config.issuer })).await?;
        return Err(Error::new(
            Code::Forbidden,
            format!("`{}` has no role here", person.name),
            "ask an admin of the centre; `auth: oidc: roles` of its file says what roles follow from",
        ));
    }
    auth.audit.record(&actor, "login", "", "ok", json!({ "oidc": oidc.config.issuer, "roles": person.roles })).await?;
    let (session, _) = auth.start_session(&person.name, Some(person.roles)).await?;
    auth.forgive_login(from);
    let mut answer = (StatusCode::SEE_OTHER, [(LOCATION, location(&person.next)?)]).into_response();
    answer.headers_mut().append(SET_COOKIE, auth.cookie(&session));
    answer.headers_mut().append(SET_COOKIE, auth.set_cookie(name, "", "Lax", 0));
    Ok(answer)
}

fn location(url: &str) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(url).map_err(|error| Error::new(Code::Internal, format!("`{url}`: {error}"), ""))
}

impl Auth {
    fn oidc(&self) -> Result<&Oidc, Error> {
        self.oidc.get().ok_or_else(|| {
            Error::not_found("no identity provider is configured", "set `auth: oidc` of the centre's file")
        })
    }

    /// Name of the cookie that a login under way is known by.
    fn login_cookie_name(&self) -> &'static str {
        if self.secure { "__Host-sockmesh-login" } else { "sockmesh-login" }
    }
}
