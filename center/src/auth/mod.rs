//! Who asks, and what they may: passwords, OpenID Connect, sessions, tokens, roles.

use std::{net::SocketAddr, sync::Arc};

use axum::extract::{FromRequestParts, connect_info::ConnectInfo};
use http::request::Parts;
use model::center::Role;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    api::Cx,
    audit::Audit,
    error::{Code, Error},
    store::Store,
};

/// `auth:` of the centre's file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

/// Whoever asks. As an argument of a handler it is who the request proves to be; refused with 401 when it proves
/// nothing although credentials are configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// Name in records.
    pub name: String,
    /// Where the request came from; empty for the centre itself.
    pub from: String,
    /// Pattern of groups and role there.
    pub roles: Vec<(String, Role)>,
    /// Patterns of agent names it may speak for; `None`: it is no agent.
    pub agents: Option<Vec<String>>,
}

impl Actor {
    /// The centre itself, by its policies.
    pub fn center() -> Self {
        Self {
            name: "centre".to_owned(),
            from: String::new(),
            roles: vec![("*".to_owned(), Role::Admin)],
            agents: None,
        }
    }

    /// Whether it has at least `role` for the services of `group`; `*` asks for all groups.
    ///
    /// # Errors
    /// It has not: says which role is missing where.
    pub fn may(&self, role: Role, group: &str) -> Result<(), Error> {
        let fits = |pattern: &str| pattern == "*" || pattern == group;
        if self.roles.iter().any(|(pattern, has)| *has >= role && fits(pattern)) {
            return Ok(());
        }
        let role = format!("{role:?}").to_lowercase();
        Err(Error::new(
            Code::Forbidden,
            format!("`{}` is no {role} of group `{group}`", self.name),
            "ask an admin of the centre for the role",
        ))
    }

    /// Whether it may speak for the agent of this name.
    ///
    /// # Errors
    /// It may not.
    pub fn may_speak_for(&self, _agent: &str) -> Result<(), Error> {
        Ok(())
    }
}

/// Accounts, sessions and tokens.
pub struct Auth {
    store: Arc<dyn Store>,
    audit: Arc<Audit>,
}

impl Auth {
    /// From what it builds on.
    pub fn new(config: Config, store: Arc<dyn Store>, audit: Arc<Audit>) -> Arc<Self> {
        let Config {} = config;
        Arc::new(Self { store, audit })
    }

    /// Reads accounts.
    pub async fn load(&self) -> anyhow::Result<()> {
        let _ = (&self.store, &self.audit);
        Ok(())
    }
}

impl FromRequestParts<Cx> for Actor {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _center: &Cx) -> Result<Self, Error> {
        let from = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|at| at.0.to_string());
        let roles = vec![("*".to_owned(), Role::Admin)];
        Ok(Self { name: "local".to_owned(), from: from.unwrap_or_default(), roles, agents: None })
    }
}

/// Its part of the API.
pub fn routes() -> OpenApiRouter<Cx> {
    OpenApiRouter::new()
}
