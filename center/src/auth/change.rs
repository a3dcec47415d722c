//! Logging in and out, and changing accounts. Whether the actor may is checked here, so that HTTP and the command
//! line keep the same rules.

use std::{net::IpAddr, sync::Arc};

use model::center::{NewToken, NewUser, PasswordChange, Role, TokenMade, TokenRow, UserChange, UserRow};
use serde_json::json;

use super::{
    Actor, Auth,
    accounts::{SESSION, Session, TOKEN, Token, USER, User, check_name, check_patterns, check_roles, covers},
    identity::token,
    json, roles_detail, seconds,
    secret::{digest, random, random_hex},
};
use crate::{
    clock::now_ms,
    error::{Code, Error},
    store::Batch,
};

/// Most people.
const USERS: usize = 10_000;
/// Most tokens: one for each agent, and some.
const TOKENS: usize = 50_000;
/// Most tokens of one person's own.
const TOKENS_OWN: usize = 20;
/// Most sessions of one person; a new login ends the oldest.
const SESSIONS_OWN: usize = 20;
/// Most sessions of all; one that would be more is refused.
const SESSIONS: usize = 20_000;
/// Longest and usual life of a token that somebody makes who is no admin.
const OWN_TOKEN_MS: u64 = 30 * 24 * 3600 * 1000;
/// Most patterns of one token or person.
const PATTERNS: usize = 100;

impl Auth {
    /// Checks a password. Says the cookie's value and the session.
    ///
    /// # Errors
    /// It does not fit, nobody is called so, or it was tried too often: the same for all names.
    pub(super) async fn login(
        self: &Arc<Self>,
        name: &str,
        password: &str,
        from: Option<IpAddr>,
    ) -> Result<(String, Session), Error> {
        let actor = Actor {
            name: name.chars().filter(|c| !c.is_control()).take(64).collect(),
            from: from.map(|ip| ip.to_string()).unwrap_or_default(),
            ..Actor::default()
        };
        let address = network(from);
        // Names that are none share a bucket, else inventing them would fill memory.
        let named = if check_name(name).is_ok() { name } else { "" };
        let too_many =
            |wait| Error::new(Code::TooMany, "too many logins failed", format!("wait {} and try again", seconds(wait)));
        self.logins.take(&address).map_err(too_many)?;
        self.names.take(named).map_err(too_many)?;
        let hash = self.accounts.read().users.get(name).map(|user| user.value.password.clone());
        let fits = self.passwords.fits(password, hash.as_deref()).await?;
        if !fits {
            self.audit.record(&actor, "login", "", "refused", serde_json::Value::Null).await?;
            return Err(Error::new(
                Code::Unauthenticated,
                "name and password do not fit",
                "check both; an admin of the centre can set a new password",
            ));
        }
        self.logins.give_back(&address);
        self.names.give_back(named);
        self.audit.record(&actor, "login", "", "ok", serde_json::Value::Null).await?;
        self.start_session(name, None).await
    }

    /// Counts a login that is begun from an address.
    ///
    /// # Errors
    /// Too many were begun and not ended.
    pub(super) fn count_login(&self, from: Option<IpAddr>) -> Result<(), Error> {
        self.logins.take(&network(from)).map_err(|wait| {
            Error::new(Code::TooMany, "too many logins were begun", format!("wait {} and try again", seconds(wait)))
        })
    }

    /// A login that was counted has ended well.
    pub(super) fn forgive_login(&self, from: Option<IpAddr>) {
        self.logins.give_back(&network(from));
    }

    /// Starts a session for who has proven to be `name`.
    pub(super) async fn start_session(
        self: &Arc<Self>,
        name: &str,
        roles: Option<Vec<(String, Role)>>,
    ) -> Result<(String, Session), Error> {
        let turn = self.writing.clone().lock_owned().await;
        let cookie = random(32);
        let now = now_ms();
        let life = u64::try_from(self.config.session.as_millis()).unwrap_or(u64::MAX);
        let session = Session { name: name.to_owned(), csrf: random(32), until_ms: now.saturating_add(life), roles };
        let mut delete: Vec<String> = Vec::new();
        {
            let accounts = self.accounts.read();
            let over = accounts.sessions.iter().filter(|(_, kept)| kept.value.until_ms <= now);
            delete.extend(over.map(|(key, _)| format!("{SESSION}{key}")).take(1000));
            if accounts.sessions.len() >= SESSIONS + delete.len() {
                return Err(Error::new(Code::TooMany, "too many people are logged in", "log out where you can"));
            }
            let own = accounts.sessions.iter().filter(|(_, kept)| kept.value.name == name);
            let mut own: Vec<_> = own.map(|(key, kept)| (kept.value.until_ms, key)).collect();
            own.sort();
            let more = (own.len() + 1).saturating_sub(SESSIONS_OWN);
            delete.extend(own.into_iter().take(more).map(|(_, key)| format!("{SESSION}{key}")));
        }
        delete.sort();
        delete.dedup();
        let key = format!("{SESSION}{}", digest(&cookie));
        let batch =
            Batch { expect: vec![(key.clone(), 0)], put: vec![(key, json(&session))], delete, ..Batch::default() };
        self.write(turn, batch).await?;
        Ok((cookie, session))
    }

    /// Ends a session.
    pub(super) async fn logout(self: &Arc<Self>, actor: &Actor, session: &str) -> Result<(), Error> {
        self.audit.record(actor, "logout", "", "ok", serde_json::Value::Null).await?;
        let turn = self.writing.clone().lock_owned().await;
        self.write(turn, Batch { delete: vec![format!("{SESSION}{session}")], ..Batch::default() }).await
    }

    /// All people, by name.
    ///
    /// # Errors
    /// The actor is no admin of all groups.
    pub fn users(&self, actor: &Actor) -> Result<Vec<UserRow>, Error> {
        actor.may(Role::Admin, "*")?;
        let accounts = self.accounts.read();
        Ok(accounts.users.values().map(|user| row(&user.value)).collect())
    }

    /// Adds a person.
    ///
    /// # Errors
    /// The actor is no admin of all groups, the name is taken, something in it is wrong; the first is no admin.
    pub async fn add_user(self: &Arc<Self>, actor: &Actor, new: NewUser) -> Result<UserRow, Error> {
        actor.may(Role::Admin, "*")?;
        let NewUser { name, password, roles } = new;
        check_name(&name)?;
        check_roles(&roles)?;
        let password = self.passwords.hash(&password).await?;
        let turn = self.writing.clone().lock_owned().await;
        {
            let accounts = self.accounts.read();
            if accounts.users.contains_key(&name) {
                return Err(Error::conflict(format!("there is a person `{name}`"), "change it, or take another name"));
            }
            if accounts.users.len() >= USERS {
                return Err(Error::new(Code::TooMany, format!("there are {USERS} people"), "remove some"));
            }
            self.keep_admin(accounts.keeps_an_admin(&name, Some(&roles)))?;
        }
        self.audit.record(actor, "user.add", &name, "ok", roles_detail(&roles)).await?;
        let user = User { name, password, roles };
        let key = format!("{USER}{}", user.name);
        let batch = Batch { expect: vec![(key.clone(), 0)], put: vec![(key, json(&user))], ..Batch::default() };
        self.write(turn, batch).await?;
        Ok(row(&user))
    }

    /// Changes a person's roles or password.
    ///
    /// # Errors
    /// The actor is no admin of all groups, there is no such person, something in it is wrong; no admin would be left.
    pub async fn change_user(self: &Arc<Self>, actor: &Actor, name: &str, to: UserChange) -> Result<UserRow, Error> {
        actor.may(Role::Admin, "*")?;
        let UserChange { password, roles } = to;
        if let Some(roles) = &roles {
            check_roles(roles)?;
        }
        let password = match password {
            Some(password) => Some(self.passwords.hash(&password).await?),
            None => None,
        };
        let turn = self.writing.clone().lock_owned().await;
        let (mut user, revision) = self.user(name)?;
        let mut delete = Vec::new();
        let detail = json!({ "roles": roles, "password": password.is_some() });
        {
            let accounts = self.accounts.read();
            if let Some(roles) = roles {
                self.keep_admin(accounts.keeps_an_admin(name, Some(&roles)))?;
                user.roles = roles;
            }
            if let Some(password) = password {
                user.password = password;
                delete = accounts.sessions_of(name);
            }
        }
        self.audit.record(actor, "user.change", name, "ok", detail).await?;
        let key = format!("{USER}{name}");
        let batch =
            Batch { expect: vec![(key.clone(), revision)], put: vec![(key, json(&user))], delete, ..Batch::default() };
        self.write(turn, batch).await?;
        Ok(row(&user))
    }

    /// Changes one's own password; ends one's other sessions.
    ///
    /// # Errors
    /// The old one does not fit, the new one is too short; tried too often.
    pub(super) async fn change_password(
        self: &Arc<Self>,
        actor: &Actor,
        session: Option<&str>,
        change: PasswordChange,
    ) -> Result<(), Error> {
        let no_password = || Error::bad(format!("`{}` has no password here", actor.name), "change it where you log in");
        let (user, _) = self.user(&actor.name).map_err(|_| no_password())?;
        self.names.take(&actor.name).map_err(|wait| {
            Error::new(Code::TooMany, "too many passwords did not fit", format!("wait {}", seconds(wait)))
        })?;
        if !self.passwords.fits(&change.old, Some(&user.password)).await? {
            self.audit.record(actor, "password", &actor.name, "refused", serde_json::Value::Null).await?;
            return Err(Error::new(Code::Forbidden, "the old password does not fit", "check it"));
        }
        self.names.give_back(&actor.name);
        let password = self.passwords.hash(&change.new).await?;
        let turn = self.writing.clone().lock_owned().await;
        let (mut user, revision) = self.user(&actor.name).map_err(|_| no_password())?;
        user.password = password;
        self.audit.record(actor, "password", &actor.name, "ok", serde_json::Value::Null).await?;
        let mut delete = self.accounts.read().sessions_of(&actor.name);
        delete.retain(|key| key.strip_prefix(SESSION) != session);
        let key = format!("{USER}{}", actor.name);
        self.write(
            turn,
            Batch { expect: vec![(key.clone(), revision)], put: vec![(key, json(&user))], delete, ..Batch::default() },
        )
        .await
    }

    /// Removes a person, with sessions and own tokens.
    ///
    /// # Errors
    /// The actor is no admin of all groups, there is no such person; no admin would be left.
    pub async fn remove_user(self: &Arc<Self>, actor: &Actor, name: &str) -> Result<(), Error> {
        actor.may(Role::Admin, "*")?;
        let turn = self.writing.clone().lock_owned().await;
        let (_, revision) = self.user(name)?;
        let mut delete = vec![format!("{USER}{name}")];
        {
            let accounts = self.accounts.read();
            self.keep_admin(accounts.keeps_an_admin(name, None))?;
            delete.extend(accounts.sessions_of(name));
            let own = accounts.tokens.iter().filter(|(_, token)| token.value.row.owner == name);
            delete.extend(own.map(|(id, _)| format!("{TOKEN}{id}")));
        }
        self.audit.record(actor, "user.remove", name, "ok", serde_json::Value::Null).await?;
        let expect = vec![(format!("{USER}{name}"), revision)];
        self.write(turn, Batch { expect, delete, ..Batch::default() }).await
    }

    /// Tokens, by id: all for admins of all groups, else one's own.
    pub fn tokens(&self, actor: &Actor) -> Vec<TokenRow> {
        let all = actor.may(Role::Admin, "*").is_ok();
        let accounts = self.accounts.read();
        let rows = accounts.tokens.values().map(|token| &token.value.row);
        rows.filter(|row| all || row.owner == actor.name).cloned().collect()
    }

    /// Makes a token.
    ///
    /// # Errors
    /// The actor may not give what it should be able to do; something in it is wrong; there are too many.
    pub async fn add_token(self: &Arc<Self>, actor: &Actor, new: NewToken) -> Result<TokenMade, Error> {
        let NewToken { remark, agents, services, roles, until_ms, mine } = new;
        check_roles(&roles)?;
        check_patterns("agents", agents.iter().map(String::as_str), PATTERNS)?;
        check_patterns("services", services.iter().map(String::as_str), PATTERNS)?;
        if remark.chars().count() > 200 || remark.chars().any(char::is_control) {
            return Err(Error::bad("the remark is too long or has control characters", "write at most 200 characters"));
        }
        if agents.is_empty() && roles.is_empty() {
            return Err(Error::bad("a token for nothing", "give it `agents` that it speaks for, or `roles`"));
        }
        let now = now_ms();
        if until_ms.is_some_and(|until| until <= now) {
            return Err(Error::bad("the token would have ended already", "give a time that is to come"));
        }
        let admin = actor.may(Role::Admin, "*").is_ok();
        let own = mine || !admin;
        let mut until_ms = until_ms;
        if own {
            // A token cannot make others: whoever steals one would have it for ever.
            if actor.agents.is_some() || actor.name.contains("token ") {
                return Err(Error::new(Code::Forbidden, "a token makes no tokens", "log in and make it then"));
            }
            if !agents.is_empty() {
                return Err(Error::new(
                    Code::Forbidden,
                    format!("`{}` may not make tokens for agents", actor.name),
                    "ask an admin of the centre",
                ));
            }
            if let Some((pattern, role)) = roles.iter().find(|(pattern, role)| !covers(&actor.roles, pattern, *role)) {
                actor.may(*role, pattern)?;
            }
            let longest = now.saturating_add(OWN_TOKEN_MS);
            until_ms = Some(until_ms.map_or(longest, |until| until.min(longest)));
        }
        let turn = self.writing.clone().lock_owned().await;
        {
            let accounts = self.accounts.read();
            let of = accounts.tokens.values().filter(|token| token.value.row.owner == actor.name).count();
            if accounts.tokens.len() >= TOKENS || (own && of >= TOKENS_OWN) {
                let most = if own { TOKENS_OWN } else { TOKENS };
                return Err(Error::new(Code::TooMany, format!("there are {most} tokens"), "remove those not needed"));
            }
            // Else the first token would lock everyone out.
            self.keep_admin(accounts.keeps_an_admin("", None))?;
        }
        let owner = if own { actor.name.clone() } else { String::new() };
        let (id, secret) = (random_hex(6), random(32));
        let row = TokenRow { id, remark, agents, services, roles, at_ms: now, until_ms, owner };
        self.audit.record(actor, "token.add", &row.id, "ok", json!(row)).await?;
        let kept = Token { row, digest: digest(&secret) };
        let key = format!("{TOKEN}{}", kept.row.id);
        let batch = Batch { expect: vec![(key.clone(), 0)], put: vec![(key, json(&kept))], ..Batch::default() };
        self.write(turn, batch).await?;
        let token = token(&kept.row.id, &secret);
        Ok(TokenMade { row: kept.row, token })
    }

    /// Removes a token: one's own, or any for admins of all groups.
    ///
    /// # Errors
    /// There is none, or it is not the actor's.
    pub async fn remove_token(self: &Arc<Self>, actor: &Actor, id: &str) -> Result<(), Error> {
        let turn = self.writing.clone().lock_owned().await;
        let of = self.accounts.read().tokens.get(id).map(|token| (token.value.row.owner.clone(), token.revision));
        let (owner, revision) = of.ok_or_else(|| {
            let id: String = id.chars().take(100).collect();
            Error::not_found(format!("no token `{id}`"), "GET /v1/tokens lists those there are")
        })?;
        if owner != actor.name {
            actor.may(Role::Admin, "*")?;
        }
        self.audit.record(actor, "token.remove", id, "ok", serde_json::Value::Null).await?;
        let key = format!("{TOKEN}{id}");
        self.write(turn, Batch { expect: vec![(key.clone(), revision)], delete: vec![key], ..Batch::default() }).await
    }

    fn user(&self, name: &str) -> Result<(User, u64), Error> {
        let kept = self.accounts.read().users.get(name).cloned();
        let kept = kept.ok_or_else(|| {
            let name: String = name.chars().take(100).collect();
            Error::not_found(format!("no person `{name}`"), "GET /v1/users lists those there are")
        })?;
        Ok((kept.value, kept.revision))
    }

    fn keep_admin(&self, kept: bool) -> Result<(), Error> {
        if kept || self.has_other_admins() {
            return Ok(());
        }
        Err(Error::conflict("nobody could change accounts then", "make a person an admin of all groups (`*`) first"))
    }
}

/// Whose attempts are counted together: an address, or the network of one IPv6 host.
fn network(from: Option<IpAddr>) -> String {
    match from {
        None => String::new(),
        Some(IpAddr::V4(ip)) => ip.to_string(),
        Some(IpAddr::V6(ip)) => match ip.to_ipv4_mapped() {
            Some(ip) => ip.to_string(),
            None => ip.segments()[..4].iter().map(|part| format!("{part:x}:")).collect(),
        },
    }
}

fn row(user: &User) -> UserRow {
    UserRow { name: user.name.clone(), roles: user.roles.clone() }
}
