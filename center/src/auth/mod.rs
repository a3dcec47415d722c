//! Who asks, and what they may: passwords, OpenID Connect, sessions, tokens, roles.

mod actor;
mod identity;

mod accounts;
mod change;
mod limit;
mod oidc;
mod secret;

mod oidc_routes;
mod routes;

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context, bail};
use model::center::Role;
use parking_lot::RwLock;
use serde::{Deserialize, Deserializer};
use tokio::sync::broadcast::error::RecvError;

pub(crate) use self::secret::{random, same};
use self::{
    accounts::{Accounts, SESSION, TOKEN, USER},
    limit::Limit,
    oidc::Oidc,
    secret::Passwords,
};
pub use self::{
    actor::{Actor, fits},
    identity::{Identity, Proof},
    oidc::{Config as OidcConfig, RoleOf},
    routes::routes,
};
use crate::{
    api,
    audit::Audit,
    error::{Code, Error},
    store::{Batch, Entry, Store},
};

/// How long a session lasts unless configured: a working day.
const SESSION_USUAL: Duration = Duration::from_secs(12 * 3600);
/// Calls that one person or token may make at once, and then one each [`CALL_EVERY`].
const CALL_BURST: u32 = 1000;
const CALL_EVERY: Duration = Duration::from_millis(10);
/// Logins that may fail from one address at once, and then one each [`LOGIN_EVERY`].
const LOGIN_BURST: u32 = 10;
const LOGIN_EVERY: Duration = Duration::from_secs(6);
/// Logins of one name that may fail at once, from wherever, and then one each [`NAME_EVERY`]: some eight thousand
/// guesses a day at most, which no password of ten bytes falls to.
const NAME_BURST: u32 = 30;
const NAME_EVERY: Duration = Duration::from_secs(10);
/// Begins the names of people whom an identity provider vouches for; no person with a password is called so.
const OIDC_PREFIX: &str = "oidc/";
/// Entries read from the store at a time.
const SCAN: usize = 1000;

/// `auth:` of the centre's file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long a login lasts [default: 12h].
    #[serde(deserialize_with = "duration")]
    pub session: Duration,
    /// An identity provider; without one, people have passwords here.
    pub oidc: Option<OidcConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self { session: SESSION_USUAL, oidc: None }
    }
}

/// `12h` as everywhere in Sockmesh's files.
fn duration<'de, D: Deserializer<'de>>(reader: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(reader)?;
    model::value::duration(&text).map_err(|wrong| serde::de::Error::custom(wrong.of(&text)))
}

/// Accounts, sessions and tokens.
pub struct Auth {
    config: Config,
    /// Browsers come by HTTPS only.
    secure: bool,
    store: Arc<dyn Store>,
    audit: Arc<Audit>,
    accounts: RwLock<Accounts>,
    /// Held by who changes accounts: what a change is checked against holds until it is made.
    writing: Arc<tokio::sync::Mutex<()>>,
    passwords: Passwords,
    calls: Limit,
    logins: Limit,
    names: Limit,
    /// Set once, by [`Auth::load`].
    oidc: OnceLock<Oidc>,
}

impl Auth {
    /// From what it builds on.
    pub fn new(api: &api::Config, config: Config, store: Arc<dyn Store>, audit: Arc<Audit>) -> Arc<Self> {
        Arc::new(Self {
            config,
            secure: api.secure(),
            store,
            audit,
            accounts: RwLock::default(),
            writing: Arc::default(),
            passwords: Passwords::default(),
            calls: Limit::new(CALL_BURST, CALL_EVERY),
            logins: Limit::new(LOGIN_BURST, LOGIN_EVERY),
            names: Limit::new(NAME_BURST, NAME_EVERY),
            oidc: OnceLock::new(),
        })
    }

    /// Reads accounts, and follows what other centres change in them as long as it is there.
    ///
    /// # Errors
    /// The store does not answer, an account cannot be read, or an option is wrong.
    pub async fn load(self: &Arc<Self>) -> anyhow::Result<()> {
        if let Some(config) = self.config.oidc.clone() {
            // Loading again keeps it.
            let _ = self.oidc.set(Oidc::new(config)?);
        }
        // Before reading, so that nothing is missed between.
        let changes = self.store.changes();
        self.read().await?;
        if let Some(mut changes) = changes {
            let auth = Arc::downgrade(self);
            tokio::spawn(async move {
                loop {
                    let change = changes.recv().await;
                    let Some(auth) = auth.upgrade() else { return };
                    match change {
                        Ok(change) => {
                            let mut accounts = auth.accounts.write();
                            for entry in &change.put {
                                if let Err(error) = accounts.put(entry) {
                                    tracing::error!(error = %format!("{error:#}"), "an account cannot be read");
                                }
                            }
                            for key in &change.delete {
                                accounts.remove(key, change.stamp.revision);
                            }
                        }
                        Err(RecvError::Lagged(_)) => {
                            if let Err(error) = auth.read().await {
                                tracing::error!(error = %format!("{error:#}"), "accounts cannot be read again");
                            }
                        }
                        Err(RecvError::Closed) => return,
                    }
                }
            });
        }
        Ok(())
    }

    async fn read(&self) -> anyhow::Result<()> {
        let mut accounts = Accounts::default();
        for prefix in [USER, TOKEN, SESSION] {
            let mut after: Option<String> = None;
            loop {
                let entries = self.store.scan(prefix, after.as_deref(), SCAN).await.context("reading accounts")?;
                for entry in &entries {
                    accounts.put(entry)?;
                }
                match entries.last() {
                    Some(last) if entries.len() == SCAN => after = Some(last.key.clone()),
                    _ => break,
                }
            }
        }
        *self.accounts.write() = accounts;
        Ok(())
    }

    /// Whether anyone may do anything, because no credentials are configured.
    pub fn open(&self) -> bool {
        let accounts = self.accounts.read();
        self.config.oidc.is_none() && accounts.users.is_empty() && accounts.tokens.is_empty()
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

    /// Counts a call of `actor`.
    ///
    /// # Errors
    /// It calls too often.
    pub fn count(&self, actor: &Actor) -> Result<(), Error> {
        self.calls.take(&actor.name).map_err(|wait| {
            Error::new(
                Code::TooMany,
                format!("`{}` asks more than {} times a second", actor.name, 1000 / CALL_EVERY.as_millis()),
                format!("wait {}", seconds(wait)),
            )
        })
    }

    /// Whether someone who is no person could still administrate if all people were gone.
    fn has_other_admins(&self) -> bool {
        self.oidc.get().is_some_and(Oidc::has_admins)
    }

    /// Makes changes, durably, and then in memory. They are made even if nobody waits any more.
    async fn write(self: &Arc<Self>, turn: tokio::sync::OwnedMutexGuard<()>, batch: Batch) -> Result<(), Error> {
        let auth = self.clone();
        let done = tokio::spawn(async move {
            let stamp = auth.store.commit(batch.clone()).await?;
            let mut accounts = auth.accounts.write();
            for key in batch.delete {
                accounts.remove(&key, stamp.revision);
            }
            for (key, value) in batch.put {
                let entry = Entry { key, value, revision: stamp.revision };
                accounts.put(&entry).map_err(|error| Error::new(Code::Internal, format!("{error:#}"), ""))?;
            }
            drop(accounts);
            drop(turn);
            Ok(())
        });
        done.await.unwrap_or_else(|error| {
            Err(Error::new(Code::Internal, format!("the change ended: {error}"), "look at the centre's log"))
        })
    }
}

/// A pause for people, rounded up.
fn seconds(wait: Duration) -> String {
    format!("{} s", wait.as_secs_f64().ceil().max(1.0))
}

/// JSON of what is kept.
fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("accounts are plain structs with text as keys")
}

/// For the record: roles, never secrets.
fn roles_detail(roles: &[(String, Role)]) -> serde_json::Value {
    serde_json::json!({ "roles": roles })
}

#[cfg(test)]
mod tests;
