//! Logging in, accounts, tokens.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Role, TokenRow};

/// `GET /v1/login`: how one may log in. Needs no credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct LoginWays {
    /// Nobody needs to: no credentials are configured.
    pub open: bool,
    /// With a name and a password, by `POST /v1/login`.
    pub password: bool,
    /// At an identity provider of this name, by going to `/v1/oidc/start`.
    pub oidc: Option<String>,
}

/// `POST /v1/login`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Login {
    /// Who.
    pub name: String,
    /// Secret.
    pub password: String,
}

/// `POST /v1/users`: a person who logs in with a password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewUser {
    /// 1 to 64 letters, digits and any of `._@-`.
    pub name: String,
    /// 10 to 256 bytes.
    pub password: String,
    /// Pattern of service groups and role there.
    pub roles: Vec<(String, Role)>,
}

/// `PUT /v1/users/{name}`: what is there is changed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UserChange {
    /// A new password; ends the person's sessions.
    pub password: Option<String>,
    /// All roles, in place of those there are.
    pub roles: Option<Vec<(String, Role)>>,
}

/// `POST /v1/me/password`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PasswordChange {
    /// The one that holds.
    pub old: String,
    /// 10 to 256 bytes.
    pub new: String,
}

/// `POST /v1/tokens`. Admins of all groups make any; others make tokens of their own, which can do no more than they.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewToken {
    /// What it is for.
    pub remark: String,
    /// Patterns of agent names that it may speak for (`*` stands for any characters); empty: it is no agent's token.
    pub agents: Vec<String>,
    /// Patterns of services that these agents may register; empty: any.
    pub services: Vec<String>,
    /// Pattern of service groups and role there; empty: it reads nothing but what agents are told.
    pub roles: Vec<(String, Role)>,
    /// When it ends; none: never, for admins, else in 30 days.
    pub until_ms: Option<u64>,
    /// It is its maker's own: it ends with the account and can never do more than that.
    pub mine: bool,
}

/// Answer to [`NewToken`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenMade {
    /// As it stands in the list.
    pub row: TokenRow,
    /// The secret, told this once.
    pub token: String,
}

/// `POST /v1/test`: can the centre connect to this instance? Only those that are registered are tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TestEndpoint {
    /// The service.
    pub service: String,
    /// Its group.
    pub group: String,
    /// `IP:PORT`.
    pub instance: String,
}

/// Answer to [`TestEndpoint`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EndpointTested {
    /// It takes connections.
    pub reachable: bool,
    /// Time to connect.
    pub connect_ms: f64,
    /// Why not.
    pub error: Option<String>,
}

/// Secrets stay out of logs.
macro_rules! without_secrets {
    ($($type:ident { $($shown:ident),* })*) => {$(
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($type))$(.field(stringify!($shown), &self.$shown))*.finish_non_exhaustive()
            }
        }
    )*};
}

without_secrets! {
    Login { name }
    NewUser { name, roles }
    UserChange { roles }
    PasswordChange {}
    TokenMade { row }
}
