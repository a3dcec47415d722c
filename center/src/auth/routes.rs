//! `/v1/login`, `/v1/me`, `/v1/users`, `/v1/tokens`, `/v1/test`.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Extension,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header::SET_COOKIE};
use model::center::{
    EndpointTested, Login, LoginWays, Me, NewToken, NewUser, Page, PasswordChange, Role, TestEndpoint, TokenMade,
    TokenRow, UserChange, UserRow,
};
use serde_json::json;
use tokio::time::Instant;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Actor, Auth, Identity};
use crate::{
    api::{Caller, Cx, Json, Paging, Path, Query},
    error::Error,
};

/// Time to connect to an instance that is tested.
const CONNECT_TIME: Duration = Duration::from_secs(2);

/// Its part of the API.
pub fn routes() -> OpenApiRouter<Cx> {
    OpenApiRouter::new()
        .routes(routes!(login_ways, login))
        .routes(routes!(logout))
        .routes(routes!(me))
        .routes(routes!(change_password))
        .routes(routes!(users, add_user))
        .routes(routes!(change_user, remove_user))
        .routes(routes!(tokens, add_token))
        .routes(routes!(remove_token))
        .routes(routes!(test))
        .merge(super::oidc_routes::routes())
}

/// How one may log in.
#[utoipa::path(get, path = "/v1/login", tag = "access", responses((status = 200, body = LoginWays)))]
async fn login_ways(State(center): State<Cx>) -> Json<LoginWays> {
    Json(center.auth.ways())
}

/// Logs in with a password; the answer sets the session's cookie.
#[utoipa::path(post, path = "/v1/login", tag = "access", request_body = Login, responses((status = 200, body = Me)))]
async fn login(
    State(center): State<Cx>,
    Extension(Caller(from)): Extension<Caller>,
    Json(asked): Json<Login>,
) -> Result<Response, Error> {
    if center.auth.open() {
        return Err(Error::conflict("nobody needs to log in: no accounts are configured", "POST /v1/users makes one"));
    }
    let (cookie, session) = center.auth.login(&asked.name, &asked.password, from).await?;
    let roles = center.auth.users(&Actor::center())?.into_iter().find(|user| user.name == session.name);
    let me = Me {
        name: session.name,
        roles: roles.map(|user| user.roles).unwrap_or_default(),
        csrf: Some(session.csrf),
        open: false,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    Ok(([(SET_COOKIE, center.auth.cookie(&cookie))], Json(me)).into_response())
}

/// Ends the session.
#[utoipa::path(post, path = "/v1/logout", tag = "access", responses((status = 204)))]
async fn logout(
    State(center): State<Cx>,
    Extension(identity): Extension<Identity>,
    actor: Actor,
) -> Result<Response, Error> {
    if let Some(session) = &identity.session {
        center.auth.logout(&actor, session).await?;
    }
    Ok((StatusCode::NO_CONTENT, [(SET_COOKIE, center.auth.no_cookie())]).into_response())
}

/// Who asks, what they may, and what a change must carry.
#[utoipa::path(get, path = "/v1/me", tag = "access", responses((status = 200, body = Me)))]
async fn me(State(center): State<Cx>, Extension(identity): Extension<Identity>, actor: Actor) -> Json<Me> {
    Json(Me {
        name: actor.name,
        roles: actor.roles,
        csrf: identity.csrf,
        open: center.auth.open(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// Changes one's own password.
#[utoipa::path(post, path = "/v1/me/password", tag = "access", request_body = PasswordChange,
    responses((status = 204)))]
async fn change_password(
    State(center): State<Cx>,
    Extension(identity): Extension<Identity>,
    actor: Actor,
    Json(change): Json<PasswordChange>,
) -> Result<StatusCode, Error> {
    center.auth.change_password(&actor, identity.session.as_deref(), change).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// All people with a password of this centre.
#[utoipa::path(get, path = "/v1/users", tag = "access", params(Paging),
    responses((status = 200, body = Page<UserRow>)))]
async fn users(
    State(center): State<Cx>,
    actor: Actor,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<UserRow>>, Error> {
    Ok(Json(paging.page(center.auth.users(&actor)?, |user| user.name.clone())))
}

/// Adds a person. The first must be an admin of `*`; from then on everyone must log in.
#[utoipa::path(post, path = "/v1/users", tag = "access", request_body = NewUser,
    responses((status = 200, body = UserRow)))]
async fn add_user(State(center): State<Cx>, actor: Actor, Json(new): Json<NewUser>) -> Result<Json<UserRow>, Error> {
    Ok(Json(center.auth.add_user(&actor, new).await?))
}

/// Changes a person's roles or password.
#[utoipa::path(put, path = "/v1/users/{name}", tag = "access", params(("name" = String, Path)),
    request_body = UserChange, responses((status = 200, body = UserRow)))]
async fn change_user(
    State(center): State<Cx>,
    actor: Actor,
    Path(name): Path<String>,
    Json(to): Json<UserChange>,
) -> Result<Json<UserRow>, Error> {
    Ok(Json(center.auth.change_user(&actor, &name, to).await?))
}

/// Removes a person, with sessions and own tokens.
#[utoipa::path(delete, path = "/v1/users/{name}", tag = "access", params(("name" = String, Path)),
    responses((status = 204)))]
async fn remove_user(State(center): State<Cx>, actor: Actor, Path(name): Path<String>) -> Result<StatusCode, Error> {
    center.auth.remove_user(&actor, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tokens without their secrets: all for admins of all groups, else one's own.
#[utoipa::path(get, path = "/v1/tokens", tag = "access", params(Paging),
    responses((status = 200, body = Page<TokenRow>)))]
async fn tokens(State(center): State<Cx>, actor: Actor, Query(paging): Query<Paging>) -> Json<Page<TokenRow>> {
    Json(paging.page(center.auth.tokens(&actor), |token| token.id.clone()))
}

/// Makes a token. Its secret is told this once.
#[utoipa::path(post, path = "/v1/tokens", tag = "access", request_body = NewToken,
    responses((status = 200, body = TokenMade)))]
async fn add_token(
    State(center): State<Cx>,
    actor: Actor,
    Json(new): Json<NewToken>,
) -> Result<Json<TokenMade>, Error> {
    Ok(Json(center.auth.add_token(&actor, new).await?))
}

/// Removes a token: whoever uses it is refused from now on.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "access", params(("id" = String, Path)),
    responses((status = 204)))]
async fn remove_token(State(center): State<Cx>, actor: Actor, Path(id): Path<String>) -> Result<StatusCode, Error> {
    center.auth.remove_token(&actor, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tries to connect to a registered instance from the centre; nothing else is ever tried.
#[utoipa::path(post, path = "/v1/test", tag = "access", request_body = TestEndpoint,
    responses((status = 200, body = EndpointTested)))]
async fn test(
    State(center): State<Cx>,
    actor: Actor,
    Json(asked): Json<TestEndpoint>,
) -> Result<Json<EndpointTested>, Error> {
    actor.may(Role::Operator, &asked.group)?;
    let keys = center.registry.keys();
    let mut of = keys.iter().filter(|key| key.service == asked.service && key.group == asked.group);
    let known = of.any(|key| center.registry.rows(key).iter().any(|row| row.address == asked.instance));
    let address = asked.instance.parse::<SocketAddr>().ok().filter(|_| known).ok_or_else(|| {
        let short = |text: &str| text.chars().take(100).collect::<String>();
        let (instance, service) = (short(&asked.instance), short(&asked.service));
        Error::not_found(
            format!("`{instance}` is no instance of `{service}` in this group"),
            "only registered instances are tried; the service's page lists them",
        )
    })?;
    center.audit.record(&actor, "endpoint.test", &asked.instance, "ok", json!(asked)).await?;
    let start = Instant::now();
    let connected = tokio::time::timeout(CONNECT_TIME, tokio::net::TcpStream::connect(address)).await;
    let error = match connected {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {CONNECT_TIME:?}")),
    };
    let connect_ms = start.elapsed().as_secs_f64() * 1000.0;
    Ok(Json(EndpointTested { reachable: error.is_none(), connect_ms, error }))
}

impl Auth {
    fn ways(&self) -> LoginWays {
        let password = !self.accounts.read().users.is_empty();
        let oidc = self.oidc.get().map(|oidc| oidc.config.name.clone());
        LoginWays { open: self.open(), password, oidc }
    }

    /// The session's cookie: not for scripts, not for requests that other sites cause.
    pub(super) fn cookie(&self, value: &str) -> HeaderValue {
        self.set_cookie(self.cookie_name(), value, "Strict", self.config.session.as_secs())
    }

    /// Ends the session's cookie.
    fn no_cookie(&self) -> HeaderValue {
        self.set_cookie(self.cookie_name(), "", "Strict", 0)
    }

    pub(super) fn set_cookie(&self, name: &str, value: &str, same_site: &str, seconds: u64) -> HeaderValue {
        let secure = if self.secure { "; Secure" } else { "" };
        let text = format!("{name}={value}; Path=/; HttpOnly; SameSite={same_site}; Max-Age={seconds}{secure}");
        HeaderValue::from_str(&text).expect("names and values are made here, of letters and digits")
    }
}
