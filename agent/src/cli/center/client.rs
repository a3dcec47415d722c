//! Asks the centre: one connection per request.

use std::time::Duration;

use anyhow::{Context, bail};
use http::{Method, StatusCode};
use model::center::{Page, Problem};
use registries::fetch::Peer;
use serde::{Serialize, de::DeserializeOwned};

use super::{CENTER_VARIABLE, TOKEN_VARIABLE};

/// Time for an answer: a command is durable and told to agents before it comes.
const PATIENCE: Duration = Duration::from_secs(20);
/// Most items that the centre puts on a page.
const PAGE: usize = 1000;

/// A governance centre, and who asks.
pub(super) struct Client {
    peer: Peer,
    token: Option<String>,
}

impl Client {
    pub(super) const fn new(peer: Peer, token: Option<String>) -> Self {
        Self { peer, token }
    }

    /// Reads.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.ask(Method::GET, path, None::<&()>).await
    }

    /// Reads a list page by page, at most `most` items. `path` may have a query.
    pub(super) async fn list<T: DeserializeOwned>(&self, path: &str, most: usize) -> anyhow::Result<Page<T>> {
        let mut all = Page { items: Vec::new(), next: None, total: None };
        loop {
            let left = most.saturating_sub(all.items.len());
            let mut asked = format!("{path}{}limit={}", if path.contains('?') { '&' } else { '?' }, left.min(PAGE));
            if let Some(after) = &all.next {
                asked += &format!("&after={}", registries::fetch::percent(after, ""));
            }
            let page: Page<T> = self.get(&asked).await?;
            // A page without items would have this go on for ever.
            let more = !page.items.is_empty() && page.next.is_some();
            all.items.extend(page.items);
            (all.next, all.total) = (page.next, page.total);
            if !more || all.items.len() >= most {
                return Ok(all);
            }
        }
    }

    /// Gives an order, or asks what one would do.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        self.ask(Method::POST, path, Some(body)).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<T> {
        let bearer = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let mut headers = vec![("accept", "application/json")];
        headers.extend(bearer.as_deref().map(|bearer| ("authorization", bearer)));
        let body = match body {
            Some(body) => {
                headers.push(("content-type", "application/json"));
                serde_json::to_vec(body)?
            }
            None => Vec::new(),
        };
        let asked = self.peer.ask(method, path, &headers, body, PATIENCE).await;
        let answer = asked.with_context(|| {
            format!("cannot ask the centre at {}; name it with --center URL or {CENTER_VARIABLE}", self.peer)
        })?;
        if answer.status.is_success() {
            return serde_json::from_slice(&answer.body).with_context(|| {
                format!("{} answers, but not as a centre of this version does; check the address", self.peer)
            });
        }
        let Ok(Problem { message, remedy, .. }) = serde_json::from_slice(&answer.body) else {
            bail!("{} answers {}, but not as a centre of Sockmesh does; check the address", self.peer, answer.status)
        };
        match (answer.status, &self.token) {
            (StatusCode::UNAUTHORIZED, None) => {
                bail!("the centre wants to know who asks; make a token in its console and set {TOKEN_VARIABLE}")
            }
            _ if remedy.is_empty() => bail!("{message}"),
            _ => bail!("{message}; {remedy}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// A centre that gives these answers one after the other; what was asked comes back.
    async fn centre(answers: Vec<(u16, &'static str)>) -> (Client, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = Peer::parse(&listener.local_addr().unwrap().to_string(), 1).unwrap();
        let asked = tokio::spawn(async move {
            let mut asked = Vec::new();
            for (status, body) in answers {
                let (mut io, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 4096];
                let n = io.read(&mut head).await.unwrap();
                asked.push(String::from_utf8_lossy(&head[..n]).into_owned());
                let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                io.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        });
        (Client::new(peer, Some("smc_a_b".to_owned())), asked)
    }

    #[tokio::test]
    async fn lists_are_read_page_by_page_with_the_token() {
        let pages =
            vec![(200, r#"{"items":[1,2],"next":"b c","total":3}"#), (200, r#"{"items":[3],"next":null,"total":3}"#)];
        let (client, asked) = centre(pages).await;
        let page: Page<u32> = client.list("/v1/x?q=1", 500).await.unwrap();
        assert_eq!((page.items, page.next), (vec![1, 2, 3], None));
        let asked = asked.await.unwrap();
        assert!(asked[0].starts_with("GET /v1/x?q=1&limit=500 "), "{}", asked[0]);
        assert!(asked[0].contains("authorization: Bearer smc_a_b"), "{}", asked[0]);
        assert!(asked[1].starts_with("GET /v1/x?q=1&limit=498&after=b%20c "), "{}", asked[1]);
        let (client, _asked) = centre(vec![(200, r#"{"items":[1,2],"next":"b","total":9}"#)]).await;
        assert_eq!(client.list::<u32>("/v1/x", 2).await.unwrap().next.as_deref(), Some("b"));
    }

    #[tokio::test]
    async fn refusals_say_what_to_do() {
        let (client, _asked) = centre(vec![
            (403, r#"{"code":"forbidden","message":"`a` is no operator","remedy":"ask an admin"}"#),
            (404, "nothing"),
            (200, "[]"),
        ])
        .await;
        let mut said = Vec::new();
        for _ in 0..3 {
            said.push(format!("{:#}", client.get::<Page<u32>>("/v1/x").await.unwrap_err()));
        }
        assert_eq!(said[0], "`a` is no operator; ask an admin");
        assert!(said[1].contains("not as a centre of Sockmesh"), "{}", said[1]);
        assert!(said[2].contains("of this version"), "{}", said[2]);
        let (mut client, _asked) =
            centre(vec![(401, r#"{"code":"unauthenticated","message":"nobody","remedy":"log in"}"#)]).await;
        client.token = None;
        let said = format!("{:#}", client.get::<Page<u32>>("/v1/x").await.unwrap_err());
        assert!(said.contains(TOKEN_VARIABLE), "{said}");
    }
}
