//! Asking a centre, whichever answers.

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, StatusCode};
use model::center::Problem;
use serde::Serialize;

use crate::fetch::{Answer, Peer};

/// Time for an answer that a centre has at once.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Centres on one store.
pub(super) struct Link {
    peers: Vec<Peer>,
    authorization: Option<String>,
    /// The one that answered last.
    present: AtomicUsize,
}

/// What a centre said.
pub(super) struct Said {
    /// Which one.
    pub by: String,
    status: StatusCode,
    body: Bytes,
}

impl Said {
    /// The body of a success; the problem that it tells otherwise.
    pub fn success(self) -> anyhow::Result<Bytes> {
        if self.status.is_success() {
            return Ok(self.body);
        }
        Err(problem(self.status, &self.body)).context(self.by)
    }

    /// Whether it is one.
    pub fn is_success(&self) -> bool {
        self.status.is_success()
    }

    /// All of what was said.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// It contradicts what the centre holds.
    pub fn is_conflict(&self) -> bool {
        self.status == StatusCode::CONFLICT
    }
}

fn problem(status: StatusCode, body: &[u8]) -> anyhow::Error {
    match serde_json::from_slice::<Problem>(body) {
        Ok(Problem { message, remedy, .. }) if remedy.is_empty() => anyhow::anyhow!("{message}"),
        Ok(Problem { message, remedy, .. }) => anyhow::anyhow!("{message}; {remedy}"),
        Err(_) => {
            let text = String::from_utf8_lossy(body);
            let said: String = text.trim().chars().take(200).collect();
            anyhow::anyhow!("answered {status}{}{said}", if said.is_empty() { "" } else { ": " })
        }
    }
}

impl Link {
    /// To `HOST:PORT` of each centre, with `https://` before those that speak TLS, which are believed by the
    /// certificates of the file `ca` or by those of the host. Agents begin with different ones.
    pub fn new(addresses: &[String], token: Option<String>, ca: Option<&Path>) -> anyhow::Result<Self> {
        let peer = |at: &String| Peer::with(at, model::center::PORT, ca);
        let peers = addresses.iter().map(peer).collect::<anyhow::Result<Vec<_>>>();
        let peers = peers.context("option `address`")?;
        let present = AtomicUsize::new(fastrand::usize(..peers.len().max(1)));
        Ok(Self { peers, authorization: token.map(|token| format!("Bearer {token}")), present })
    }

    /// Asks one centre after another, beginning with the one that answered last, until one answers. A centre that
    /// cannot do it now (5xx, too many) is as good as gone.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        patience: Duration,
    ) -> anyhow::Result<Said> {
        self.ask_until(method, path, body, patience, |_| Ok(())).await
    }

    /// [`Link::ask`], which goes on to the next centre as well when `fits` has something against an answer.
    pub async fn ask_until(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        patience: Duration,
        fits: impl Fn(&Said) -> anyhow::Result<()>,
    ) -> anyhow::Result<Said> {
        let body = Bytes::from(serde_json::to_vec(body)?);
        let mut headers = vec![("content-type", "application/json"), ("accept", "application/json")];
        headers.extend(self.authorization.as_deref().map(|authorization| ("authorization", authorization)));
        let first = self.present.load(Relaxed);
        let mut errors = Vec::new();
        for at in (0..self.peers.len()).map(|n| (first + n) % self.peers.len()) {
            let peer = &self.peers[at];
            let answer = peer.ask(method.clone(), path, &headers, body.clone(), patience).await;
            let said = answer.and_then(|answer| {
                let Answer { status, body, .. } = answer;
                let said = Said { by: peer.to_string(), status, body };
                let busy = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
                let fine = if busy { Err(problem(status, &said.body)) } else { fits(&said) };
                fine.map(|()| said).with_context(|| peer.to_string())
            });
            match said {
                Ok(said) => {
                    self.present.store(at, Relaxed);
                    return Ok(said);
                }
                Err(error) => errors.push(format!("{error:#}")),
            }
        }
        anyhow::bail!("{}", errors.join("; "))
    }
}
