//! Consul's HTTP API, as much of it as is needed.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use http::{Method, StatusCode};
use serde::Deserialize;

use crate::fetch::{Answer, Peer, percent};

/// Time for an answer that Consul has at once.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a query may wait at Consul for a change. Longer spares questions, but a Consul that hangs is
/// noticed that much later.
const WAIT: Duration = Duration::from_secs(20);
/// Between two questions for the same thing: a list that never rests costs no more than this.
const GAP: Duration = Duration::from_millis(20);
/// The same when the answer has no index, so that nothing holds the next question up.
const BLIND_GAP: Duration = Duration::from_secs(1);

/// Where a blocking query stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Index(Option<u64>);

impl Index {
    /// What the next question continues from. An index that went back (a Consul restored or begun anew) starts
    /// over, else the next change would be waited for until the old number is reached again.
    fn follow(self, header: Option<u64>) -> Self {
        match header {
            Some(new) if new > 0 && self.0.is_none_or(|old| new >= old) => Self(Some(new)),
            _ => Self(None),
        }
    }
}

/// One Consul agent.
pub(super) struct Api {
    peer: Peer,
    token: Option<String>,
    datacenter: Option<String>,
}

impl Api {
    /// Asks `peer` with this token, about this data center.
    pub fn new(peer: Peer, token: Option<String>, datacenter: Option<String>) -> Self {
        let given = |text: Option<String>| text.filter(|t| !t.is_empty());
        Self { peer, token: given(token), datacenter: given(datacenter) }
    }

    /// Asks once. The path is complete but for the data center.
    pub async fn ask(&self, method: Method, path: &str, body: Vec<u8>) -> anyhow::Result<Answer> {
        self.ask_within(method, path, body, PATIENCE).await
    }

    async fn ask_within(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        patience: Duration,
    ) -> anyhow::Result<Answer> {
        let mut headers = vec![("accept", "application/json")];
        if let Some(token) = &self.token {
            headers.push(("x-consul-token", token));
        }
        let mut path = path.to_owned();
        if let Some(datacenter) = &self.datacenter {
            let mark = if path.contains('?') { '&' } else { '?' };
            let _ = write!(path, "{mark}dc={}", segment(datacenter));
        }
        self.peer.ask(method, &path, &headers, body, patience).await
    }

    /// Answers at once the first time, then when something has changed since `index` or some time has passed.
    /// An error leaves the index as it was.
    pub async fn wait(&self, path: &str, index: &mut Index) -> anyhow::Result<Answer> {
        let (path, patience) = match index.0 {
            None => (path.to_owned(), PATIENCE),
            Some(at) => {
                // Consul adds up to a sixteenth by itself; ours keeps agents apart that were started together.
                let wait = WAIT.mul_f64(0.8 + fastrand::f64() / 5.0);
                (format!("{path}?index={at}&wait={}ms", wait.as_millis()), wait + wait / 16 + PATIENCE)
            }
        };
        let answer = self.ask_within(Method::GET, &path, Vec::new(), patience).await?;
        let header = answer.headers.get("x-consul-index").and_then(|v| v.to_str().ok()?.parse().ok());
        let next = index.follow(header);
        if next.0.is_none() && index.0.is_none() {
            tokio::time::sleep(BLIND_GAP).await;
        } else {
            tokio::time::sleep(GAP).await;
        }
        *index = next;
        Ok(answer)
    }

    /// A key's text and the version that a write must name; version 0 when there is no such key.
    pub async fn read_key(&self, key: &str) -> anyhow::Result<(Option<String>, u64)> {
        key_value(self.ask(Method::GET, &format!("/v1/kv/{}", key_path(key)), Vec::new()).await?)
    }

    /// Writes a key if it still has that version; false when it has another.
    pub async fn write_key(&self, key: &str, text: &str, version: u64) -> anyhow::Result<bool> {
        let path = format!("/v1/kv/{}?cas={version}", key_path(key));
        let said = self.ask(Method::PUT, &path, text.as_bytes().to_vec()).await?.success()?;
        match said.trim_ascii() {
            b"true" => Ok(true),
            b"false" => Ok(false),
            _ => bail!("{path}: neither true nor false was answered"),
        }
    }
}

/// What an answer about one key says: text and version.
pub(super) fn key_value(answer: Answer) -> anyhow::Result<(Option<String>, u64)> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Pair {
        value: Option<String>,
        modify_index: u64,
    }
    if answer.status == StatusCode::NOT_FOUND {
        return Ok((None, 0));
    }
    let body = answer.success()?;
    let [pair] = serde_json::from_slice::<[Pair; 1]>(&body).context("not what Consul answers for a key")?;
    let bytes = base64(pair.value.as_deref().unwrap_or_default()).context("a value that is not base64")?;
    let text = String::from_utf8(bytes).context("a value that is not UTF-8")?;
    Ok((Some(text), pair.modify_index))
}

/// A text as one part of a path or as a value in a query.
pub(super) fn segment(text: &str) -> String {
    percent(text, "")
}

/// A key of the store as a path: its slashes part it.
pub(super) fn key_path(key: &str) -> String {
    percent(key, "/")
}

/// Standard base64, as values are answered in; `None` when it is none.
fn base64(text: &str) -> Option<Vec<u8>> {
    STANDARD_NO_PAD.decode(text.trim_end_matches('=')).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_goes_back_starts_over() {
        let at = |n| Index(Some(n));
        assert_eq!(Index::default().follow(Some(7)), at(7));
        assert_eq!(at(7).follow(Some(7)), at(7));
        assert_eq!(at(7).follow(Some(9)), at(9));
        for odd in [Some(6), Some(0), None] {
            assert_eq!(at(7).follow(odd), Index(None), "{odd:?}");
        }
    }

    #[test]
    fn values_are_base64_and_names_are_escaped() {
        let text = |t: &str| base64(t).map(|b| String::from_utf8(b).unwrap());
        let vectors =
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar"), ("w7zDvw==", "üÿ")];
        for (coded, plain) in vectors {
            assert_eq!(text(coded).as_deref(), Some(plain));
        }
        assert_eq!(base64("Zm9 v"), None);
        assert_eq!(segment("a/b c"), "a%2Fb%20c");
        assert_eq!(key_path("motan/command/a b"), "motan/command/a%20b");
    }
}
