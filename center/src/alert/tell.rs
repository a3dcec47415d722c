//! Telling: one queue for each webhook, so that a dead one holds nobody else up.
//!
//! `POST` with JSON: `event` (`firing`, `reminder`, `resolved`), `centre`, and the alert with its series; the headers
//! `idempotency-key` (the same in every repetition of one message) and, with a secret, `x-sockmesh-signature` as
//! [`signature`] makes it. Any 2xx is good.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Full;
use model::center::Alert;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::book::News;
use crate::{
    clock::now_ms,
    fetch::{Fetch, signature},
};

/// Messages that wait for one webhook; more are lost, which is told in the log.
const WAITING: usize = 1_000;

/// Most webhooks.
const WEBHOOKS: usize = 100;

/// How often a message is tried: over about two minutes.
const ATTEMPTS: u32 = 8;

/// The pause before the second attempt; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Time for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a webhook answered, or did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Alert.
    pub id: String,
    /// Webhook, without what may be secret in it.
    pub url: String,
    /// `200 OK`, or why it was not told.
    pub answer: String,
}

struct Message {
    id: String,
    key: String,
    body: Bytes,
}

/// Tells webhooks.
pub struct Teller {
    center: String,
    secret: Option<Vec<u8>>,
    fetch: Fetch,
    queues: Mutex<HashMap<String, mpsc::Sender<Message>>>,
    answers: mpsc::Sender<Answered>,
}

/// Scheme and host: paths and queries of webhooks are often secret.
pub fn shown(url: &str) -> String {
    let uri = url.parse::<http::Uri>().ok();
    let origin = uri.as_ref().and_then(|uri| Some(format!("{}://{}", uri.scheme_str()?, uri.host()?)));
    origin.map_or_else(|| "?".to_owned(), |origin| format!("{origin}/…"))
}

impl Teller {
    /// Answers go to `answers`; when nobody takes them they are lost.
    pub fn new(center: String, secret: Option<Vec<u8>>, answers: mpsc::Sender<Answered>) -> Arc<Self> {
        Arc::new(Self { center, secret, fetch: Fetch::default(), queues: Mutex::default(), answers })
    }

    /// Tells one webhook, later and in order. Never waits.
    pub fn tell(self: &Arc<Self>, url: &str, news: News, alert: &Alert) {
        let body = serde_json::json!({"event": news.word(), "centre": self.center, "alert": alert});
        // One key for each message: a reminder is not the first word again.
        let key = format!("{}-{}-{}", alert.id, news.word(), alert.until_ms.unwrap_or_else(now_ms));
        let message = Message { id: alert.id.clone(), key, body: Bytes::from(body.to_string()) };
        let mut queues = self.queues.lock();
        if !queues.contains_key(url) && queues.len() >= WEBHOOKS {
            tracing::error!(url = %shown(url), "too many webhooks; this one is not told");
            return;
        }
        let queue = queues.entry(url.to_owned()).or_insert_with(|| {
            let (queue, messages) = mpsc::channel(WAITING);
            tokio::spawn(self.clone().serve(url.to_owned(), messages));
            queue
        });
        if queue.try_send(message).is_err() {
            tracing::error!(url = %shown(url), alert = %alert.id, "a webhook is so far behind that it is not told");
        }
    }

    /// Forgets webhooks that no rule names any more; what waits for them is still told.
    pub fn keep(&self, wanted: impl Fn(&str) -> bool) {
        self.queues.lock().retain(|url, _| wanted(url));
    }

    async fn serve(self: Arc<Self>, url: String, mut messages: mpsc::Receiver<Message>) {
        while let Some(message) = messages.recv().await {
            let answer = self.deliver(&url, &message).await;
            let answered = Answered { id: message.id, url: shown(&url), answer };
            if self.answers.send(answered).await.is_err() {
                return;
            }
        }
    }

    async fn deliver(&self, url: &str, message: &Message) -> String {
        let mut pause = FIRST_PAUSE;
        let mut said = String::new();
        for attempt in 1..=ATTEMPTS {
            let mut request = Request::post(url)
                .header(header::USER_AGENT, "sockmesh-center")
                .header(header::CONTENT_TYPE, "application/json")
                .header("idempotency-key", &message.key);
            if let Some(secret) = &self.secret {
                request = request.header("x-sockmesh-signature", signature(secret, now_ms() / 1000, &message.body));
            }
            let request = match request.body(Full::new(message.body.clone())) {
                Ok(request) => request,
                Err(error) => return format!("cannot be asked: {error}"),
            };
            match self.fetch.send(request, PATIENCE).await {
                Ok(answer) if answer.status().is_success() => return answer.status().to_string(),
                Ok(answer) => {
                    said = answer.status().to_string();
                    let again = answer.status().is_server_error()
                        || matches!(answer.status(), StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
                    if !again {
                        return format!("refused: {said}");
                    }
                }
                // Its outermost context is the URL, which may be secret.
                Err(error) => said = error.root_cause().to_string(),
            }
            if attempt < ATTEMPTS {
                tokio::time::sleep(pause.mul_f64(fastrand::f64().mul_add(0.5, 0.75))).await;
                pause *= 2;
            }
        }
        format!("not told, {ATTEMPTS} attempts: {said}")
    }
}
