//! `webhook`: somebody else starts and stops instances; the centre tells them the size that it wants.
//!
//! Each request is `POST url` with JSON (`service`, `group`, `size`, `key`, `at_ms`) and the headers `idempotency-key`
//! (the same for every repetition of one decision) and, with a secret, `x-sockmesh-signature: t=SECONDS,v1=HEX`,
//! where HEX is HMAC-SHA256 of `SECONDS.BODY`. The receiver refuses what is signed wrong or too old.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, StatusCode, Uri, header};
use http_body_util::Full;
use model::kind::{self, Value};
use parking_lot::Mutex;
use serde::Deserialize;

use super::{BuildCx, Driver};
use crate::{
    clock::now_ms,
    fetch::{Fetch, signature},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Where it is told.
    url: String,
    /// Where the present size is asked for; without it the last size that was asked for counts.
    size_url: Option<String>,
    /// Signs requests.
    secret: Option<String>,
    /// File that holds it.
    secret_file: Option<PathBuf>,
    /// Time for one answer.
    #[serde(default = "timeout", deserialize_with = "kind::duration")]
    timeout: Duration,
    /// How often one request is tried.
    #[serde(default = "attempts")]
    attempts: u32,
}

const fn timeout() -> Duration {
    Duration::from_secs(5)
}

const fn attempts() -> u32 {
    5
}

/// The pause before the second attempt; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause, also when the receiver asks for more.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Driver>> {
    let options: Options = serde_yaml::from_value(options.clone())?;
    let secret = match (options.secret, &options.secret_file) {
        (Some(_), Some(_)) => bail!("`secret` and `secret_file` are both there; keep one"),
        (Some(secret), None) => Some(secret.into_bytes()),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("secret_file {}", path.display()))?;
            Some(text.trim_end().as_bytes().to_vec())
        }
        (None, None) => None,
    };
    if !(1..=20).contains(&options.attempts) {
        bail!("`attempts: {}` is not within 1 to 20", options.attempts);
    }
    let file = cx.directory().join("webhook.json");
    let asked = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Ok(Arc::new(Webhook {
        url: url("url", &options.url)?,
        size_url: options.size_url.as_deref().map(|text| url("size_url", text)).transpose()?,
        secret,
        timeout: options.timeout,
        attempts: options.attempts,
        fetch: Fetch::default(),
        file,
        asked: Mutex::new(asked.unwrap_or_default()),
        cx: cx.clone(),
    }))
}

fn url(key: &str, text: &str) -> anyhow::Result<Uri> {
    let url: Uri = text.parse().with_context(|| format!("`{key}: {text}` is not a URL"))?;
    if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none() {
        bail!("`{key}: {text}` is not a URL that can be asked; write it like https://scaler.example/pools");
    }
    Ok(url)
}

struct Webhook {
    url: Uri,
    size_url: Option<Uri>,
    secret: Option<Vec<u8>>,
    timeout: Duration,
    attempts: u32,
    fetch: Fetch,
    file: PathBuf,
    asked: Mutex<Asked>,
    cx: BuildCx,
}

/// The last request that was accepted.
#[derive(Clone, Debug, Default, serde::Serialize, Deserialize)]
struct Asked {
    size: Option<u32>,
    key: String,
}

#[derive(Deserialize)]
struct Size {
    size: u32,
}

/// What became of one attempt.
enum Attempt {
    Accepted,
    /// It is of no use to repeat it.
    Refused(String),
    /// It may go well later, at best after this time.
    Later(String, Option<Duration>),
}

impl Webhook {
    fn request(
        &self,
        method: &str,
        url: &Uri,
        key: Option<&str>,
        body: Vec<u8>,
    ) -> anyhow::Result<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(method).uri(url).header(header::USER_AGENT, "sockmesh-center");
        if let Some(key) = key {
            request = request.header(header::CONTENT_TYPE, "application/json").header("idempotency-key", key);
        }
        if let Some(secret) = &self.secret {
            request = request.header("x-sockmesh-signature", signature(secret, now_ms() / 1000, &body));
        }
        Ok(request.body(Full::new(Bytes::from(body)))?)
    }

    async fn attempt(&self, key: &str, body: &[u8]) -> anyhow::Result<Attempt> {
        let request = self.request("POST", &self.url, Some(key), body.to_vec())?;
        let answer = match self.fetch.send(request, self.timeout).await {
            Ok(answer) => answer,
            Err(error) => return Ok(Attempt::Later(format!("{error:#}"), None)),
        };
        let status = answer.status();
        if status.is_success() {
            return Ok(Attempt::Accepted);
        }
        let text: String = String::from_utf8_lossy(answer.body()).chars().take(200).collect();
        let said = format!("{} answered {status}: {}", self.url, text.trim());
        let again = status.is_server_error()
            || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS | StatusCode::TOO_EARLY);
        if !again {
            return Ok(Attempt::Refused(said));
        }
        let after = answer.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.trim().parse().ok());
        Ok(Attempt::Later(said, after.map(Duration::from_secs)))
    }
}

impl Driver for Webhook {
    fn size(&self) -> BoxFuture<'_, anyhow::Result<u32>> {
        Box::pin(async move {
            if let Some(url) = &self.size_url {
                let answer = self.fetch.send(self.request("GET", url, None, Vec::new())?, self.timeout).await?;
                if !answer.status().is_success() {
                    bail!("{url} answered {}", answer.status());
                }
                let size: Size = serde_json::from_slice(answer.body())
                    .with_context(|| format!("{url} did not answer JSON like {{\"size\": 3}}"))?;
                return Ok(size.size);
            }
            if let Some(size) = self.asked.lock().size {
                return Ok(size);
            }
            // Nothing was asked yet: what is there.
            let Some(registry) = &self.cx.registry else { bail!("nothing is known; give `size_url`") };
            let keys = registry.keys();
            let of_pool = keys.iter().filter(|k| k.service == self.cx.service && k.group == self.cx.group);
            let count: usize = of_pool.map(|key| registry.rows(key).len()).sum();
            Ok(u32::try_from(count).unwrap_or(u32::MAX))
        })
    }

    fn scale<'a>(&'a self, size: u32, key: &'a str) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move {
            if self.asked.lock().key == key {
                return Ok(());
            }
            let (service, group) = (&self.cx.service, &self.cx.group);
            let body = serde_json::json!({
                "service": service, "group": group, "size": size, "key": key, "at_ms": now_ms(),
            });
            let body = serde_json::to_vec(&body)?;
            let mut pause = FIRST_PAUSE;
            for left in (0..self.attempts).rev() {
                match self.attempt(key, &body).await? {
                    Attempt::Accepted => {
                        let asked = Asked { size: Some(size), key: key.to_owned() };
                        keep(&self.file, &asked);
                        *self.asked.lock() = asked;
                        return Ok(());
                    }
                    Attempt::Refused(why) => bail!(why),
                    Attempt::Later(why, _) if left == 0 => bail!("{why}, {} attempts", self.attempts),
                    Attempt::Later(why, after) => {
                        tracing::warn!(%service, %group, %why, "a webhook is tried again");
                        let longest = after.unwrap_or(pause).min(LONGEST_PAUSE);
                        // Not all centres and pools at the same moment.
                        tokio::time::sleep(longest.mul_f64(fastrand::f64().mul_add(0.5, 0.75))).await;
                        pause *= 2;
                    }
                }
            }
            unreachable!("the last attempt returns")
        })
    }
}

/// Keeps what was asked last; losing it costs one question more.
fn keep(file: &std::path::Path, asked: &Asked) {
    let written = file.parent().map_or(Ok(()), std::fs::create_dir_all);
    let written = written.and_then(|()| std::fs::write(file, serde_json::to_vec(asked).unwrap_or_default()));
    if let Err(error) = written {
        tracing::warn!(file = %file.display(), %error, "cannot keep what a webhook was asked for");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::{Router, extract::State, http::HeaderMap, routing::post};

    use super::*;

    #[derive(Default)]
    struct Receiver {
        asked: AtomicUsize,
        seen: Mutex<Vec<(String, String, Bytes)>>,
        statuses: Vec<u16>,
    }

    async fn take(State(at): State<Arc<Receiver>>, headers: HeaderMap, body: Bytes) -> StatusCode {
        let header = |name: &str| headers.get(name).map_or_else(String::new, |v| v.to_str().unwrap().to_owned());
        at.seen.lock().push((header("idempotency-key"), header("x-sockmesh-signature"), body));
        let index = at.asked.fetch_add(1, Ordering::Relaxed);
        StatusCode::from_u16(at.statuses.get(index).copied().unwrap_or(200)).unwrap()
    }

    async fn receiver(statuses: &[u16]) -> (Arc<Receiver>, String) {
        let receiver = Arc::new(Receiver { statuses: statuses.to_vec(), ..Receiver::default() });
        let size = || async { axum::Json(serde_json::json!({"size": 7})) };
        let router = Router::new().route("/", post(take).get(size)).with_state(receiver.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (receiver, url)
    }

    fn driver(yaml: &str) -> anyhow::Result<Arc<dyn Driver>> {
        let data = std::env::temp_dir().join(format!("sockmesh-webhook-{}-{}", std::process::id(), fastrand::u64(..)));
        let cx = BuildCx { service: "echo".to_owned(), group: "a".to_owned(), data, ..BuildCx::default() };
        build(&serde_yaml::from_str(yaml).unwrap(), &cx)
    }

    #[tokio::test]
    async fn a_request_is_signed_repeated_with_one_key_and_counts_once() {
        let (receiver, url) = receiver(&[503, 429, 200]).await;
        let driver = driver(&format!("{{url: '{url}', secret: pepper}}")).unwrap();
        driver.scale(3, "decision-1").await.unwrap();
        driver.scale(3, "decision-1").await.unwrap();
        assert_eq!(driver.size().await.unwrap(), 3);
        let seen = receiver.seen.lock();
        assert_eq!(seen.len(), 3, "two that failed, one that went well, none for the repetition");
        for (key, signed, body) in seen.iter() {
            assert_eq!(key, "decision-1");
            let seconds = signed.strip_prefix("t=").unwrap().split_once(',').unwrap().0.parse().unwrap();
            assert_eq!(*signed, signature(b"pepper", seconds, body));
            let body: serde_json::Value = serde_json::from_slice(body).unwrap();
            assert_eq!((&body["size"], &body["group"]), (&3.into(), &"a".into()));
        }
    }

    #[tokio::test]
    async fn a_refusal_is_told_at_once_and_a_dead_receiver_after_all_attempts() {
        let (receiver, url) = receiver(&[403]).await;
        let said = driver(&format!("{{url: '{url}'}}")).unwrap().scale(3, "k").await.unwrap_err().to_string();
        assert!(said.contains("answered 403"), "{said}");
        assert_eq!(receiver.asked.load(Ordering::Relaxed), 1);
        let dead = driver("{url: 'http://127.0.0.1:1/', attempts: 2}").unwrap().scale(3, "k").await.unwrap_err();
        assert!(dead.to_string().contains("2 attempts"), "{dead}");
    }

    #[tokio::test]
    async fn the_size_is_asked_for_where_that_is_possible() {
        let (_receiver, url) = receiver(&[]).await;
        assert_eq!(driver(&format!("{{url: '{url}', size_url: '{url}'}}")).unwrap().size().await.unwrap(), 7);
        assert!(driver(&format!("{{url: '{url}'}}")).unwrap().size().await.is_err());
    }

    #[test]
    fn options_that_cannot_work_are_told() {
        for (yaml, part) in [
            ("{url: 'ftp://x/'}", "write it like https://"),
            ("{url: '/x'}", "write it like https://"),
            ("{url: 'http://x/', attempts: 0}", "not within 1 to 20"),
            ("{url: 'http://x/', secret: a, secret_file: b}", "keep one"),
            ("{url: 'http://x/', secret_file: /nowhere/at/all}", "/nowhere/at/all"),
            ("{url: 'http://x/', colour: red}", "colour"),
        ] {
            let said = format!("{:#}", driver(yaml).err().expect(yaml));
            assert!(said.contains(part), "{said}");
        }
    }
}
