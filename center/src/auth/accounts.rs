//! What is kept of people, tokens and sessions, as it stands in memory.

use std::collections::{BTreeMap, HashMap};

use anyhow::Context;
use model::center::{Role, TokenRow};
use serde::{Deserialize, Serialize};

use super::actor::fits;
use crate::{error::Error, store::Entry};

/// Begins the keys of people.
pub(super) const USER: &str = "user/";
/// Begins the keys of tokens.
pub(super) const TOKEN: &str = "token/";
/// Begins the keys of sessions.
pub(super) const SESSION: &str = "session/";

/// A person with a password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct User {
    pub(super) name: String,
    /// PHC string.
    pub(super) password: String,
    pub(super) roles: Vec<(String, Role)>,
}

/// A token with the digest of its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Token {
    pub(super) row: TokenRow,
    pub(super) digest: String,
}

/// A browser that logged in. Its key is the digest of its cookie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Session {
    pub(super) name: String,
    pub(super) csrf: String,
    pub(super) until_ms: u64,
    /// Roles that an identity provider said; none: those of the person of this name, as they are now.
    pub(super) roles: Option<Vec<(String, Role)>>,
}

/// A value and the revision at which it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept<T> {
    pub(super) value: T,
    pub(super) revision: u64,
}

/// All of them, by the part of the key behind the prefix.
#[derive(Clone, Debug, Default)]
pub(super) struct Accounts {
    pub(super) users: BTreeMap<String, Kept<User>>,
    pub(super) tokens: BTreeMap<String, Kept<Token>>,
    pub(super) sessions: HashMap<String, Kept<Session>>,
    /// Keys that went lately, and when, so that an older change that arrives late brings none of them back.
    gone: HashMap<String, u64>,
}

/// Keys that went and are remembered for that.
const GONE_KEPT: usize = 10_000;

impl Accounts {
    /// Takes in an entry of the store, unless it is older than what is known. Other owners' keys are passed over.
    ///
    /// # Errors
    /// Names the key that cannot be read.
    pub(super) fn put(&mut self, entry: &Entry) -> anyhow::Result<()> {
        fn insert<T: for<'a> Deserialize<'a>>(
            into: &mut (impl Extend<(String, Kept<T>)> + ?Sized),
            known: Option<u64>,
            name: &str,
            entry: &Entry,
        ) -> anyhow::Result<()> {
            if known.is_none_or(|known| known < entry.revision) {
                let value = serde_json::from_slice(&entry.value).with_context(|| format!("`{}`", entry.key))?;
                into.extend([(name.to_owned(), Kept { value, revision: entry.revision })]);
            }
            Ok(())
        }
        if self.gone.get(&entry.key).is_some_and(|gone| *gone > entry.revision) {
            return Ok(());
        }
        if let Some(name) = entry.key.strip_prefix(USER) {
            let known = self.users.get(name).map(|kept| kept.revision);
            insert(&mut self.users, known, name, entry)
        } else if let Some(id) = entry.key.strip_prefix(TOKEN) {
            let known = self.tokens.get(id).map(|kept| kept.revision);
            insert(&mut self.tokens, known, id, entry)
        } else if let Some(digest) = entry.key.strip_prefix(SESSION) {
            let known = self.sessions.get(digest).map(|kept| kept.revision);
            insert(&mut self.sessions, known, digest, entry)
        } else {
            Ok(())
        }
    }

    /// Forgets what stands under a key, which went with this revision.
    pub(super) fn remove(&mut self, key: &str, revision: u64) {
        if [USER, TOKEN, SESSION].iter().all(|prefix| !key.starts_with(prefix)) {
            return;
        }
        if self.gone.len() >= GONE_KEPT {
            self.gone.clear();
        }
        self.gone.insert(key.to_owned(), revision);
        if let Some(name) = key.strip_prefix(USER) {
            self.users.remove(name);
        } else if let Some(id) = key.strip_prefix(TOKEN) {
            self.tokens.remove(id);
        } else if let Some(digest) = key.strip_prefix(SESSION) {
            self.sessions.remove(digest);
        }
    }

    /// Whether someone could still log in and change accounts if the person `name` had these roles (none: were gone).
    pub(super) fn keeps_an_admin(&self, name: &str, roles: Option<&[(String, Role)]>) -> bool {
        let others = self.users.values().filter(|user| user.value.name != name).map(|user| &user.value.roles[..]);
        others.chain(roles).any(|roles| covers(roles, "*", Role::Admin))
    }

    /// Keys of the sessions of a person.
    pub(super) fn sessions_of(&self, name: &str) -> Vec<String> {
        let of = self.sessions.iter().filter(|(_, session)| session.value.name == name);
        of.map(|(digest, _)| format!("{SESSION}{digest}")).collect()
    }
}

/// Whether who has `roles` has at least `role` for all that `pattern` stands for.
pub(super) fn covers(roles: &[(String, Role)], pattern: &str, role: Role) -> bool {
    // A star in `pattern` can only be met by a star, so that all it stands for is met as well.
    roles.iter().any(|(own, has)| *has >= role && fits(own, pattern))
}

/// Whether this can be a person's name.
///
/// # Errors
/// It cannot.
pub(super) fn check_name(name: &str) -> Result<(), Error> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._@-".contains(c);
    let taken = ["local", "centre"].contains(&name);
    if !taken && (1..=64).contains(&name.len()) && name.chars().all(fine) {
        return Ok(());
    }
    let name: String = name.chars().take(100).collect();
    Err(Error::bad(
        format!("`{name}` cannot be a person's name"),
        "take 1 to 64 letters, digits and any of `._@-`; `local` and `centre` mean something else",
    ))
}

/// Whether these can be roles.
///
/// # Errors
/// They cannot: says which.
pub(super) fn check_roles(roles: &[(String, Role)]) -> Result<(), Error> {
    check_patterns("roles", roles.iter().map(|(pattern, _)| pattern.as_str()), 100)
}

/// Whether these can be patterns: bounded in number and length, without blanks and control characters.
///
/// # Errors
/// They cannot: says which.
pub(super) fn check_patterns<'a>(
    what: &str,
    patterns: impl IntoIterator<Item = &'a str>,
    most: usize,
) -> Result<(), Error> {
    for (n, pattern) in patterns.into_iter().enumerate() {
        if n >= most {
            return Err(Error::bad(format!("more than {most} {what}"), "use patterns: `*` stands for any characters"));
        }
        let fine = |c: char| !c.is_whitespace() && !c.is_control();
        if !(1..=200).contains(&pattern.len()) || !pattern.chars().all(fine) {
            let pattern: String = pattern.chars().filter(|c| !c.is_control()).take(100).collect();
            return Err(Error::bad(
                format!("`{pattern}` in {what} is no pattern"),
                "write a name of 1 to 200 bytes in which `*` stands for any characters",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_covered_by_wider_ones() {
        let roles = [("idc-*".to_owned(), Role::Operator), ("*".to_owned(), Role::Viewer)];
        for (pattern, role, is) in [
            ("idc-a", Role::Operator, true),
            ("idc-a*", Role::Viewer, true),
            ("idc-*", Role::Operator, true),
            ("idc-a", Role::Admin, false),
            ("*", Role::Viewer, true),
            ("*", Role::Operator, false),
            ("i*", Role::Operator, false),
        ] {
            assert_eq!(covers(&roles, pattern, role), is, "{pattern} {role:?}");
        }
    }

    #[test]
    fn names_and_patterns_that_could_be_mistaken_are_refused() {
        for name in ["ann", "a.b@c-d_e", "9"] {
            check_name(name).unwrap();
        }
        for name in ["", "a b", "a/b", "ann\n", "ä", "local", "centre", &"x".repeat(65)] {
            check_name(name).unwrap_err();
        }
        check_patterns("agents", ["*", "host-*/web"], 2).unwrap();
        check_patterns("agents", ["a", "b", "c"], 2).unwrap_err();
        for pattern in ["", "a b", "a\0", &"x".repeat(201)] {
            check_patterns("agents", [pattern], 2).unwrap_err();
        }
    }

    #[test]
    fn the_newest_of_an_entry_holds() {
        let mut accounts = Accounts::default();
        let user = |role| User { name: "ann".into(), password: String::new(), roles: vec![("*".into(), role)] };
        let entry = |role, revision| Entry {
            key: "user/ann".into(),
            value: serde_json::to_vec(&user(role)).unwrap(),
            revision,
        };
        accounts.put(&entry(Role::Admin, 7)).unwrap();
        accounts.put(&entry(Role::Viewer, 6)).unwrap();
        assert_eq!(accounts.users["ann"], Kept { value: user(Role::Admin), revision: 7 });
        assert!(accounts.keeps_an_admin("bob", None) && !accounts.keeps_an_admin("ann", None));
        assert!(!accounts.keeps_an_admin("ann", Some(&[("idc-a".into(), Role::Admin)])));
        let broken = Entry { key: "user/bob".into(), value: b"{".to_vec(), revision: 8 };
        assert!(format!("{:#}", accounts.put(&broken).unwrap_err()).contains("user/bob"));
        accounts.put(&Entry { key: "command/1".into(), value: b"{".to_vec(), revision: 9 }).unwrap();
        accounts.remove("user/ann", 9);
        accounts.put(&entry(Role::Admin, 8)).unwrap();
        assert!(accounts.users.is_empty());
        accounts.put(&entry(Role::Admin, 10)).unwrap();
        assert!(!accounts.users.is_empty());
    }
}
