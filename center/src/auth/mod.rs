//! Who asks, and what they may: passwords, OpenID Connect, sessions, tokens, roles.

mod actor;

use std::{net::SocketAddr, sync::Arc};

use anyhow::bail;
use http::HeaderMap;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;

pub use self::actor::{Actor, fits};
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

/// What a request proves itself by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Proof {
    /// By nothing.
    #[default]
    Nothing,
    /// By a browser's session.
    Session,
    /// By a token.
    Token,
}

/// Who a request comes from, as far as it proves that.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Who; none: it must log in.
    pub actor: Option<Actor>,
    /// Proven by what.
    pub proof: Proof,
    /// What a change of this session must carry.
    pub csrf: Option<String>,
}

impl Identity {
    /// Why there is no actor.
    pub fn unknown(&self) -> Error {
        Error::new(
            Code::Unauthenticated,
            "nobody is logged in",
            "log in, or send a token as `authorization: Bearer TOKEN`",
        )
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

    /// Whether anyone may do anything, because no credentials are configured.
    pub fn open(&self) -> bool {
        true
    }

    /// Whether a centre with these accounts may listen there.
    ///
    /// # Errors
    /// Others than this host could do anything.
    pub fn may_listen(&self, at: SocketAddr) -> anyhow::Result<()> {
        if self.open() && !at.ip().is_loopback() {
            bail!(
                "anyone who reaches {at} could do anything, because there are no accounts; make the first with \
                 `sockmesh-center user add NAME --role admin`, or listen on 127.0.0.1"
            );
        }
        Ok(())
    }

    /// Who a request comes from.
    pub fn identify(&self, _headers: &HeaderMap, from: Option<SocketAddr>) -> Identity {
        let from = from.map(|at| at.ip().to_string()).unwrap_or_default();
        Identity { actor: Some(Actor::anyone(from)), proof: Proof::Nothing, csrf: None }
    }

    /// Counts a call of `actor`.
    ///
    /// # Errors
    /// It calls too often.
    pub fn count(&self, _actor: &Actor) -> Result<(), Error> {
        Ok(())
    }
}

/// Compares secrets in a time that does not tell how much of them fits.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    use subtle::ConstantTimeEq;
    a.ct_eq(b).into()
}

/// Its part of the API.
pub fn routes() -> OpenApiRouter<Cx> {
    OpenApiRouter::new()
}
