//! Who asks, and what they may.

use axum::extract::FromRequestParts;
use http::request::Parts;
use model::center::Role;

use super::Identity;
use crate::{
    api::Cx,
    error::{Code, Error},
};

/// Whoever asks. As an argument of a handler it is who the request proves to be; refused with 401 when it proves
/// nothing although credentials are configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actor {
    /// Name in records.
    pub name: String,
    /// Where the request came from; empty for the centre itself.
    pub from: String,
    /// Pattern of groups and role there.
    pub roles: Vec<(String, Role)>,
    /// Patterns of agent names it may speak for; `None`: it is no agent.
    pub agents: Option<Vec<String>>,
    /// Patterns of services that these agents may register; empty: any.
    pub services: Vec<String>,
}

impl Actor {
    /// The centre itself, by its policies.
    pub fn center() -> Self {
        Self { name: "centre".to_owned(), roles: vec![("*".to_owned(), Role::Admin)], ..Self::default() }
    }

    /// Someone who may do everything, for everyone: whoever asks while no credentials are configured.
    pub fn anyone(from: String) -> Self {
        Self {
            name: "local".to_owned(),
            from,
            roles: vec![("*".to_owned(), Role::Admin)],
            agents: Some(vec!["*".to_owned()]),
            services: Vec::new(),
        }
    }

    /// Whether it has at least `role` for the services of `group`; `*`, or no name, asks for all groups.
    ///
    /// # Errors
    /// It has not: says which role is missing where.
    pub fn may(&self, role: Role, group: &str) -> Result<(), Error> {
        let group = if group.is_empty() { "*" } else { group };
        if self.roles.iter().any(|(pattern, has)| *has >= role && fits(pattern, group)) {
            return Ok(());
        }
        let role = role_name(role);
        let of = if group == "*" { "all groups".to_owned() } else { format!("group `{}`", quoted(group)) };
        Err(Error::new(
            Code::Forbidden,
            format!("`{}` is no {role} of {of}", self.name),
            "ask an admin of the centre for the role",
        ))
    }

    /// Whether it may speak for the agent of this name.
    ///
    /// # Errors
    /// It may not.
    pub fn may_speak_for(&self, agent: &str) -> Result<(), Error> {
        if self.agents.iter().flatten().any(|pattern| fits(pattern, agent)) {
            return Ok(());
        }
        Err(Error::new(
            Code::Forbidden,
            format!("`{}` does not speak for agent `{}`", self.name, quoted(agent)),
            "give the agent a token for its own name; `agents` in GET /v1/tokens says whom a token is for",
        ))
    }

    /// Whether the agents it speaks for may register a service.
    ///
    /// # Errors
    /// They may not.
    pub fn may_register(&self, service: &str) -> Result<(), Error> {
        if self.services.is_empty() || self.services.iter().any(|pattern| fits(pattern, service)) {
            return Ok(());
        }
        Err(Error::new(
            Code::Forbidden,
            format!("`{}` may not register service `{}`", self.name, quoted(service)),
            "ask an admin of the centre for a token whose `services` name it",
        ))
    }
}

/// What a stranger sent, short enough for a sentence.
fn quoted(text: &str) -> String {
    text.chars().take(100).collect()
}

/// A role's name as the API writes it.
pub(super) fn role_name(role: Role) -> String {
    format!("{role:?}").to_lowercase()
}

/// Whether a pattern, in which `*` stands for any characters, is the whole of `text`. `?` is a character as any other,
/// unlike in names of control groups: where `text` is a pattern itself, all that it stands for must be met.
pub fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

impl FromRequestParts<Cx> for Actor {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, center: &Cx) -> Result<Self, Error> {
        let identity = match parts.extensions.get::<Identity>() {
            Some(identity) => identity.clone(),
            None => center.auth.identify(&parts.headers, None),
        };
        match &identity.actor {
            Some(actor) => Ok(actor.clone()),
            None => Err(identity.unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_for_the_whole_text() {
        for (pattern, text, is) in [
            ("*", "", true),
            ("*", "anything", true),
            ("idc-a", "idc-a", true),
            ("idc-a", "idc-ab", false),
            ("idc-*", "idc-b", true),
            ("idc-*", "*", false),
            ("idc-a", "*", false),
            ("*", "*", true),
            ("*/web", "host/web", true),
            ("*/web", "host/web2", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "ac", false),
            ("ab*ba", "aba", false),
            ("a*a", "a", false),
            ("**", "x", true),
            ("", "", true),
            ("", "x", false),
            ("ä*ö", "äxö", true),
        ] {
            assert_eq!(fits(pattern, text), is, "{pattern} {text}");
        }
        // Hostile patterns and names cost no more than their length.
        assert!(!fits(&"a*".repeat(5000), &"a".repeat(4000)));
    }

    #[test]
    fn roles_agents_and_services_hold_where_they_are_given() {
        let actor = Actor {
            name: "ann".into(),
            roles: vec![("idc-*".into(), Role::Operator), ("*".into(), Role::Viewer)],
            agents: Some(vec!["web-1/*".into()]),
            services: vec!["com.shop.*".into()],
            ..Actor::default()
        };
        assert!(actor.may(Role::Operator, "idc-a").is_ok() && actor.may(Role::Viewer, "other").is_ok());
        assert!(actor.may(Role::Viewer, "*").is_ok() && actor.may(Role::Viewer, "").is_ok());
        for (role, group) in
            [(Role::Operator, "other"), (Role::Operator, "*"), (Role::Operator, ""), (Role::Admin, "idc-a")]
        {
            let error = actor.may(role, group).unwrap_err();
            assert_eq!(error.code, Code::Forbidden);
            assert!(error.message.contains("`ann` is no") && !error.remedy.is_empty(), "{error}");
        }
        assert!(actor.may_speak_for("web-1/shop").is_ok() && actor.may_speak_for("web-11/shop").is_err());
        assert!(actor.may_register("com.shop.Order").is_ok() && actor.may_register("com.bank.Order").is_err());
        let nobody = Actor::default();
        assert!(nobody.may_speak_for("x").is_err() && nobody.may(Role::Viewer, "x").is_err());
        assert!(Actor::center().may(Role::Admin, "*").is_ok() && Actor::center().may_speak_for("x").is_err());
        assert!(Actor::anyone(String::new()).may_speak_for("x").is_ok());
    }
}
