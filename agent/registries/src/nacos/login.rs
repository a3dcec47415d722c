//! The token that a server with accounts wants with everything.

use std::time::Duration;

use ::http::Method;
use anyhow::{Context as _, bail};
use serde::Deserialize;
use tokio::{sync::Mutex, time::Instant};

use crate::fetch::Peer;

const PATIENCE: Duration = Duration::from_secs(5);
/// Life of a token whose answer names none.
const USUAL_LIFE: u64 = 300;

/// An account, if there is one, and the token that it has at present.
pub(super) struct Login {
    account: Option<(Vec<Peer>, String, String)>,
    token: Mutex<Option<(String, Instant)>>,
}

impl Login {
    /// Servers that know no accounts.
    pub fn none() -> Self {
        Self { account: None, token: Mutex::default() }
    }

    pub fn new(peers: Vec<Peer>, name: String, password: String) -> Self {
        Self { account: Some((peers, name, password)), token: Mutex::default() }
    }

    /// The token, asked for when there is none or it grows old; `None` without an account.
    pub async fn token(&self) -> anyhow::Result<Option<String>> {
        let Some((peers, name, password)) = &self.account else { return Ok(None) };
        let mut held = self.token.lock().await;
        if let Some((token, until)) = &*held
            && Instant::now() < *until
        {
            return Ok(Some(token.clone()));
        }
        let mut error = anyhow::anyhow!("there is no server");
        for peer in peers {
            match ask(peer, name, password).await {
                Ok((token, life)) => {
                    *held = Some((token.clone(), Instant::now() + life * 4 / 5));
                    return Ok(Some(token));
                }
                Err(why) => error = why,
            }
        }
        Err(error)
    }

    /// The server does not take the token any more.
    pub async fn refused(&self) {
        *self.token.lock().await = None;
    }
}

async fn ask(peer: &Peer, name: &str, password: &str) -> anyhow::Result<(String, Duration)> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Token {
        access_token: String,
        token_ttl: Option<u64>,
    }
    let form = form_urlencoded::Serializer::new(String::new())
        .append_pair("username", name)
        .append_pair("password", password)
        .finish();
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    let answer = peer.ask(Method::POST, "/nacos/v1/auth/login", &headers, form, PATIENCE).await?;
    // Not the body: servers repeat what they were sent.
    if !answer.status.is_success() {
        bail!("{peer}: the account `{name}` is refused ({})", answer.status);
    }
    let token: Token =
        serde_json::from_slice(&answer.body).with_context(|| format!("{peer}: a login without token"))?;
    let life = token.token_ttl.filter(|life| *life > 0).unwrap_or(USUAL_LIFE);
    Ok((token.access_token, Duration::from_secs(life)))
}
