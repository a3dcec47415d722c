//! A connection to one centre that is kept from report to report.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use model::center::{PORT, Problem, Report};
use registries::{Center, fetch::Peer};

/// Everything of one report: connecting, sending, the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is read of an answer.
const ANSWER_BYTES: usize = 64 * 1024;

/// One centre.
pub(super) struct Post {
    peer: Peer,
    /// As it was configured, for logs.
    address: String,
    token: Option<String>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

/// What became of a report.
pub(super) enum Told {
    /// It was counted.
    Taken,
    /// It will never be counted, and why.
    Refused(String),
    /// It may be counted when it is tried again.
    Failed(String),
}

impl Post {
    /// An error is about certificates: there are none to believe the centre by.
    pub(super) fn new(address: &str, access: &Center) -> anyhow::Result<Self> {
        let peer = Peer::with(address, PORT, access.ca.as_deref())?;
        Ok(Self { peer, address: address.to_owned(), token: access.token.clone(), connection: None })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Sends a report. Dropping the future closes the connection.
    pub(super) async fn send(&mut self, report: &Report) -> Told {
        let body = match serde_json::to_vec(report) {
            Ok(body) => Bytes::from(body),
            Err(error) => return Told::Refused(error.to_string()),
        };
        let asked = tokio::time::timeout(PATIENCE, self.exchange(body)).await;
        let answer = asked.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {PATIENCE:?}")));
        let (status, body) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.connection = None;
                return Told::Failed(format!("{error:#}"));
            }
        };
        if status.is_success() {
            return Told::Taken;
        }
        let why = serde_json::from_slice::<Problem>(&body).map(|p| format!("{}; {}", p.message, p.remedy));
        let why = format!("{status}: {}", why.unwrap_or_else(|_| "it is no governance centre".to_owned()));
        // The same report will not do better; another one may.
        if status == StatusCode::BAD_REQUEST || status == StatusCode::PAYLOAD_TOO_LARGE {
            Told::Refused(why)
        } else {
            Told::Failed(why)
        }
    }

    async fn exchange(&mut self, body: Bytes) -> anyhow::Result<(StatusCode, Bytes)> {
        let mut request = Request::post("/v1/agent/report")
            .header(header::HOST, self.peer.authority())
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body))?;
        // Taken out: a future that is dropped in between leaves no half-used connection behind.
        let mut sender = match self.connection.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        sender.ready().await?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES).collect().await.map_err(|e| anyhow::anyhow!("{e}"))?;
        self.connection = Some(sender);
        Ok((head.status, body.to_bytes()))
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let io = self.peer.connect().await?;
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await?;
        tokio::spawn(async move {
            // Whoever sends on it is told of its end.
            let _ = connection.await;
        });
        Ok(sender)
    }
}
