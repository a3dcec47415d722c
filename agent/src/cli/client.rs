//! Asks the agent: one connection per request.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::{
    Method, Request, StatusCode,
    header::{ACCEPT, HOST},
};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::TcpStream, time::timeout};

use super::ADMIN_VARIABLE;
use crate::admin::view;

/// Time to reach an agent, which is on this host as a rule.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for an answer; longer than the agent gives itself for a reload.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// Largest answer: some hundred thousand connections.
const ANSWER_BYTES: usize = 256 << 20;

/// An agent's admin API.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    /// Its address.
    pub(super) at: SocketAddr,
}

impl Client {
    pub(super) const fn new(at: SocketAddr) -> Self {
        Self { at }
    }

    /// The text of a page, and what it says.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<(String, T)> {
        self.ask(Method::GET, path).await
    }

    /// Gives a command and returns what was done.
    pub(super) async fn post(&self, path: &str) -> anyhow::Result<String> {
        let (_, done): (_, view::Done) = self.ask(Method::POST, path).await?;
        Ok(done.done)
    }

    /// Gives a command and returns what it says, as text and as what it is.
    pub(super) async fn post_for<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<(String, T)> {
        self.ask(Method::POST, path).await
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> anyhow::Result<(String, T)> {
        let at = self.at;
        let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(at)).await;
        let io = match connected {
            Ok(Ok(io)) => io,
            Ok(Err(error)) => return Err(self.unreachable(&error.to_string())),
            Err(_) => return Err(self.unreachable("no answer")),
        };
        let asked = timeout(ANSWER_TIMEOUT, self.exchange(io, method, path)).await;
        let (status, body) = asked
            .map_err(|_| anyhow!("the agent at {at} took the connection but gives no answer; look at its log"))?
            .with_context(|| format!("the agent at {at} broke off"))?;
        if !status.is_success() {
            match serde_json::from_slice::<view::Error>(&body) {
                Ok(answer) => bail!("{}", answer.error),
                Err(_) => bail!("{at} answers {status}, but not as an agent of Sockmesh does; check the address"),
            }
        }
        let text = String::from_utf8(body.into()).with_context(|| format!("{at}{path}"))?;
        let value = serde_json::from_str(&text)
            .with_context(|| format!("{at} answers, but not as an agent of this version does; check the address"))?;
        Ok((text, value))
    }

    async fn exchange(&self, io: TcpStream, method: Method, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
        // Ends with the request: the agent takes one per connection. Errors come out at the sender.
        let connection = tokio::spawn(connection);
        // Tells it from motan-go's callers, who ask some of the same paths.
        let request = Request::builder().method(method).uri(path).header(HOST, self.at.to_string());
        let request = request.header(ACCEPT, "application/json").body(Empty::<Bytes>::new())?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await.map_err(|e| anyhow!(e))?;
        connection.abort();
        Ok((status, body.to_bytes()))
    }

    fn unreachable(&self, why: &str) -> anyhow::Error {
        anyhow!(
            "cannot reach an agent at {}: {why}; start one with `sockmesh run -c FILE`, or name its address \
             with --admin ADDR or {ADMIN_VARIABLE}",
            self.at
        )
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Answers one connection with `answer` and returns what was asked.
    async fn serve(answer: &'static str) -> (Client, tokio::task::JoinHandle<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let asked = tokio::spawn(async move {
            let (mut io, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 1024];
            let n = io.read(&mut head).await.unwrap();
            io.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(head[..n].to_vec()).unwrap()
        });
        (Client::new(at), asked)
    }

    #[tokio::test]
    async fn asks_and_reads() {
        let (client, asked) =
            serve("HTTP/1.1 200 OK\r\nContent-Length: 17\r\nConnection: close\r\n\r\n{\"version\":\"1.2\"}").await;
        let (text, version): (_, view::Version) = client.get("/version").await.unwrap();
        assert_eq!((text.as_str(), version.version.as_str()), ("{\"version\":\"1.2\"}", "1.2"));
        let asked = asked.await.unwrap().to_lowercase();
        assert!(asked.starts_with("get /version http/1.1\r\n"), "{asked}");
        assert!(asked.contains(&format!("host: {}\r\n", client.at)), "{asked}");
    }

    #[tokio::test]
    async fn says_what_is_wrong_and_where() {
        for (answer, expected) in [
            ("HTTP/1.1 422 X\r\nContent-Length: 21\r\n\r\n{\"error\":\"line 3: x\"}", "line 3: x"),
            ("HTTP/1.1 404 X\r\nContent-Length: 4\r\n\r\noops", "not as an agent"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "not as an agent of this version"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{\"done\"", "broke off"),
            ("SSH-2.0-OpenSSH\r\n", "broke off"),
        ] {
            let (client, _asked) = serve(answer).await;
            let error = format!("{:#}", client.post("/reload").await.unwrap_err());
            assert!(error.contains(expected), "{answer:?}: {error}");
        }
        let nobody = {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            Client::new(listener.local_addr().unwrap())
        };
        let error = format!("{:#}", nobody.post("/reload").await.unwrap_err());
        assert!(error.contains(&nobody.at.to_string()) && error.contains("sockmesh run"), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
}
