//! A small HTTP/1.1 client for what the agent itself asks of others: registries, collectors, other agents.
//! Not for calls of programs, which run through `protocol`.

pub(crate) mod tls;

use std::{
    fmt::{self, Write as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header::HOST};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use self::tls::Tls;

/// Largest answer that is read.
const ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Someone who is asked again and again: `http://HOST:PORT` with an optional path before every request's own, or
/// `https://`, with the certificates that the host trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    authority: String,
    base: String,
    tls: Option<Tls>,
}

/// A connection, encrypted or not.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// All of the body, at most 64 MiB.
    pub body: Bytes,
}

impl Answer {
    /// The body of a 2xx answer; anything else is an error that shows the beginning of what was said.
    pub fn success(self) -> anyhow::Result<Bytes> {
        if self.status.is_success() {
            return Ok(self.body);
        }
        let text = String::from_utf8_lossy(&self.body);
        let said: String = text.trim().chars().take(200).collect();
        bail!("answered {}{}{said}", self.status, if said.is_empty() { "" } else { ": " })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.base)
    }
}

impl Peer {
    /// Reads `http://HOST:PORT[/PATH]`, the same with `https`, or `HOST:PORT`; `port` is taken where none is written.
    /// The first `https` of a process reads the host's trusted certificates.
    pub fn parse(text: &str, port: u16) -> anyhow::Result<Self> {
        Self::with(text, port, None)
    }

    /// As [`Peer::parse`]; with `https` the certificates of this PEM file are believed, where one is given, and not
    /// those that the host trusts.
    ///
    /// # Errors
    /// It is no address; or the file cannot be read, or holds none: names it.
    pub fn with(text: &str, port: u16, ca: Option<&Path>) -> anyhow::Result<Self> {
        let (rest, tls) = match text.split_once("://") {
            Some(("http", rest)) => (rest, None),
            Some(("https", rest)) => (rest, Some(ca.map_or_else(Tls::host, Tls::of)?)),
            Some((scheme, _)) => bail!("`{text}`: `{scheme}` is not supported, write `http://HOST:PORT` or `https://`"),
            None => (text, None),
        };
        let (authority, base) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let authority = if has_port { authority.to_owned() } else { format!("{authority}:{port}") };
        if authority.starts_with(':') {
            bail!("`{text}` names no host, write `http://HOST:PORT`");
        }
        Ok(Self { authority, base: base.trim_end_matches('/').to_owned(), tls })
    }

    /// Talks TLS as `tls` says, whether its address says `https` or no scheme. An error when it says `http`.
    pub(crate) fn over(mut self, tls: Tls, written: &str) -> anyhow::Result<Self> {
        if written.starts_with("http://") {
            bail!("`{written}` and the option `tls` do not fit; write `https://`");
        }
        self.tls = Some(tls);
        Ok(self)
    }

    /// Its host, a name or an address, without port and brackets.
    pub fn host(&self) -> &str {
        let host = self.authority.rsplit_once(':').map_or(self.authority.as_str(), |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// `HOST:PORT`, as the header `Host` has it.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// A connection to it, through TLS where it speaks that.
    ///
    /// # Errors
    /// It cannot be reached, or its certificate is not believed.
    pub async fn connect(&self) -> anyhow::Result<Box<dyn Io>> {
        let io = TcpStream::connect(&self.authority).await.context("cannot connect")?;
        // What is written goes as it is: whoever writes in pieces knows why.
        io.set_nodelay(true)?;
        match &self.tls {
            None => Ok(Box::new(io)),
            Some(tls) => Ok(Box::new(tls.connect(self.host(), io).await?)),
        }
    }

    /// Asks once on a connection of its own, everything within `patience`. Dropping the future closes the
    /// connection. `path` begins with `/` and carries its query.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: impl Into<Bytes>,
        patience: Duration,
    ) -> anyhow::Result<Answer> {
        let asking = self.exchange(&method, path, headers, body.into());
        let answer = tokio::time::timeout(patience, asking).await;
        answer.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {patience:?}"))).with_context(|| {
            let shown = path.split('?').next().unwrap_or(path);
            format!("{method} {self}{shown}")
        })
    }

    /// [`Peer::ask`] with `GET`.
    pub async fn get(&self, path: &str, patience: Duration) -> anyhow::Result<Answer> {
        self.ask(Method::GET, path, &[], Bytes::new(), patience).await
    }

    async fn exchange(
        &self,
        method: &Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: Bytes,
    ) -> anyhow::Result<Answer> {
        let io = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Full::new(body))?;
        request.headers_mut().insert(HOST, HeaderValue::from_str(&self.authority)?);
        let answer = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES).collect().await.map_err(|e| anyhow::anyhow!("{e}"))?;
            Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
        };
        tokio::pin!(answer);
        // Boxed, so that it can be dropped: as long as it is there the exchange would wait for ever.
        let mut connection = Box::pin(connection);
        let end = tokio::select! {
            biased;
            answer = &mut answer => return answer,
            end = &mut connection => end,
        };
        drop(connection);
        // An answer that says `Connection: close` ends the connection and is whole all the same.
        let why = || end.err().map_or_else(|| "closed".to_owned(), |e| e.to_string());
        answer.await.with_context(|| format!("the connection ended: {}", why()))
    }
}

/// `text` for a path or a query: everything but `keep` and unreserved characters (RFC 3986) as `%XX`.
pub fn percent(text: &str, keep: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || keep.as_bytes().contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn what_no_path_may_hold_is_escaped() {
        assert_eq!(percent("/a b/c", "/"), "/a%20b/c");
        assert_eq!(percent("a/b~中", ""), "a%2Fb~%E4%B8%AD");
    }

    #[test]
    fn addresses_are_read_with_and_without_their_parts() {
        let shown = |text: &str| Peer::parse(text, 8500).map(|p| p.to_string()).map_err(|e| e.to_string());
        assert_eq!(shown("127.0.0.1").unwrap(), "http://127.0.0.1:8500");
        assert_eq!(shown("http://c:1/v1/").unwrap(), "http://c:1/v1");
        assert_eq!(shown("http://[::1]:1").unwrap(), "http://[::1]:1");
        assert_eq!(Peer::parse("http://[::1]:1", 1).unwrap().host(), "::1");
        assert!(shown("ftp://c").unwrap_err().contains("`ftp` is not supported"));
        assert!(shown("http://").unwrap_err().contains("names no host"));
    }

    #[tokio::test]
    async fn an_answer_that_ends_the_connection_is_whole() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            for answer in
                ["HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi", "HTTP/1.1 200 OK\r\n\r\nhi", ""]
            {
                let (mut io, _) = listener.accept().await.unwrap();
                let _ = io.read(&mut [0; 1024]).await.unwrap();
                io.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let peer = Peer::parse(&at.to_string(), 1).unwrap();
        for _ in 0..2 {
            let answer = peer.get("/", Duration::from_secs(5)).await.unwrap();
            assert_eq!(answer.body, "hi");
        }
        let nothing = peer.get("/", Duration::from_secs(5)).await.unwrap_err();
        assert!(format!("{nothing:#}").contains("the connection ended"), "{nothing:#}");
    }

    #[tokio::test]
    async fn an_answer_comes_back_whole_and_an_error_says_who_was_asked() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut io, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            let n = io.read(&mut buffer).await.unwrap();
            assert!(buffer[..n].starts_with(b"PUT /v1/kv?x=1 HTTP/1.1\r\n"));
            io.write_all(b"HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\nbusy").await.unwrap();
        });
        let peer = Peer::parse(&at.to_string(), 1).unwrap();
        let answer =
            peer.ask(Method::PUT, "/v1/kv?x=1", &[("x-a", "b")], "body", Duration::from_secs(5)).await.unwrap();
        assert_eq!(answer.success().unwrap_err().to_string(), "answered 500 Internal Server Error: busy");
        let gone = peer.get("/v1?secret=1", Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(gone.to_string(), format!("GET http://{at}/v1"));
    }

    #[tokio::test]
    async fn https_is_spoken_with_who_is_trusted_and_nobody_else() {
        use std::sync::Arc;

        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.unwrap().with_no_client_auth();
        let config = config.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (io, _) = listener.accept().await.unwrap();
                let Ok(mut io) = acceptor.accept(io).await else { continue };
                let _ = io.read(&mut [0; 1024]).await.unwrap();
                io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
            }
        });
        let file = std::env::temp_dir().join(format!("sockmesh-trusted-{}.pem", std::process::id()));
        std::fs::write(&file, made.cert.pem()).unwrap();
        let trusting = Tls::of(&file).unwrap();
        let peer =
            |host: &str| Peer { authority: format!("{host}:{port}"), base: String::new(), tls: Some(trusting.clone()) };
        assert_eq!(peer("localhost").get("/", Duration::from_secs(5)).await.unwrap().body, "hi");
        assert!(peer("localhost").to_string().starts_with("https://localhost"));
        // A name that the certificate is not for, and a host that trusts others.
        peer("127.0.0.1").get("/", Duration::from_secs(5)).await.unwrap_err();
        let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(&file, other.cert.pem()).unwrap();
        let stranger = Peer::with(&format!("https://localhost:{port}"), 1, Some(&file)).unwrap();
        stranger.get("/", Duration::from_secs(5)).await.unwrap_err();
        std::fs::write(&file, "nothing").unwrap();
        let told = Peer::with("https://localhost", 1, Some(&file)).unwrap_err();
        assert!(format!("{told:#}").contains("sockmesh-trusted"), "{told:#}");
        Peer::with("http://localhost", 1, Some(&file)).unwrap();
        std::fs::remove_file(&file).unwrap();
    }
}
