//! Who a request comes from, by its token or its cookie.

use std::net::IpAddr;

use http::{
    HeaderMap, HeaderValue,
    header::{AUTHORIZATION, COOKIE},
};
use model::center::Role;

use super::{
    Actor, Auth,
    accounts::{Session, Token, covers},
    secret::{digest, same},
};
use crate::{
    clock::now_ms,
    error::{Code, Error},
};

/// Begins every token, so that people and scanners of source code know one when they see it.
const TOKEN_PREFIX: &str = "smc_";

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
    /// Digest of the session's cookie.
    pub(super) session: Option<String>,
    /// It came with a token that is none.
    wrong_token: bool,
}

impl Identity {
    /// Why there is no actor.
    pub fn unknown(&self) -> Error {
        let (message, remedy) = if self.wrong_token {
            ("the token is not known here, or it has ended", "ask an admin of the centre for a new one")
        } else {
            ("nobody is logged in", "log in, or send a token as `authorization: Bearer TOKEN`")
        };
        Error::new(Code::Unauthenticated, message, remedy)
    }
}

impl Auth {
    /// Who a request comes from. `from` is the address of who sent it, where that is known.
    pub fn identify(&self, headers: &HeaderMap, from: Option<IpAddr>) -> Identity {
        let from = from.map(|ip| ip.to_string()).unwrap_or_default();
        let open = self.open();
        // While nobody needs to prove anything, an old cookie or an agent's token is no reason to refuse.
        if open {
            return Identity { actor: Some(Actor::anyone(from)), ..Identity::default() };
        }
        if let Some(said) = headers.get(AUTHORIZATION) {
            let actor = self.by_token(said, from);
            let wrong_token = actor.is_none();
            return Identity { actor, proof: Proof::Token, wrong_token, ..Identity::default() }.or_nothing();
        }
        let name = self.cookie_name();
        for cookie in cookies(headers).filter_map(|(key, value)| (key == name).then_some(value)) {
            let key = digest(cookie);
            let session = self.accounts.read().sessions.get(&key).map(|kept| kept.value.clone());
            if let Some((actor, csrf)) = session.and_then(|session| self.by_session(session, &from)) {
                return Identity {
                    actor: Some(actor),
                    proof: Proof::Session,
                    csrf: Some(csrf),
                    session: Some(key),
                    wrong_token: false,
                };
            }
        }
        Identity::default()
    }

    fn by_session(&self, session: Session, from: &str) -> Option<(Actor, String)> {
        if session.until_ms <= now_ms() {
            return None;
        }
        let roles = match session.roles {
            Some(roles) => roles,
            None => self.accounts.read().users.get(&session.name)?.value.roles.clone(),
        };
        let actor = Actor { name: session.name, from: from.to_owned(), roles, ..Actor::default() };
        Some((actor, session.csrf))
    }

    fn by_token(&self, said: &HeaderValue, from: String) -> Option<Actor> {
        let said = said.to_str().ok()?;
        let (scheme, token) = said.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (id, secret) = token.trim().strip_prefix(TOKEN_PREFIX)?.split_once('_')?;
        let accounts = self.accounts.read();
        let Token { row, digest: known } = &accounts.tokens.get(id)?.value;
        if !same(digest(secret).as_bytes(), known.as_bytes()) || row.until_ms.is_some_and(|end| end <= now_ms()) {
            return None;
        }
        let mut roles = row.roles.clone();
        let name = if row.owner.is_empty() {
            format!("token {id}")
        } else {
            if !row.owner.starts_with(super::OIDC_PREFIX) {
                // As much as its owner may now, whatever that was when it was made.
                let owner = &accounts.users.get(&row.owner)?.value.roles;
                roles.retain(|(pattern, role): &(String, Role)| covers(owner, pattern, *role));
            }
            format!("{} (token {id})", row.owner)
        };
        let agents = (!row.agents.is_empty()).then(|| row.agents.clone());
        Some(Actor { name, from, roles, agents, services: row.services.clone() })
    }

    /// Name of the session's cookie. The prefix has browsers keep it to HTTPS and to this very host.
    pub(super) fn cookie_name(&self) -> &'static str {
        if self.secure { "__Host-sockmesh" } else { "sockmesh" }
    }
}

impl Identity {
    /// A token that is none proves nothing.
    fn or_nothing(self) -> Self {
        match self.actor {
            Some(_) => self,
            None => Self { proof: Proof::Nothing, ..self },
        }
    }
}

/// The whole token of an id and its secret.
pub(super) fn token(id: &str, secret: &str) -> String {
    format!("{TOKEN_PREFIX}{id}_{secret}")
}

/// Names and values of all cookies.
pub(super) fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let all = headers.get_all(COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='))
}
