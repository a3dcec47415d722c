//! A scripted HTTP server for the tests of registries.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use model::{Snapshot, kind::Value};
use parking_lot::Mutex;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::PrivateKeyDer,
    server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{BuildCx, Registry};

type Build = fn(&Value, &BuildCx) -> anyhow::Result<Arc<dyn Registry>>;

/// What a kind makes of these options.
pub(super) fn built(build: Build, yaml: &str) -> anyhow::Result<Arc<dyn Registry>> {
    build(&serde_yaml::from_str(yaml).unwrap(), &BuildCx::default())
}

/// What a kind says of options that it cannot take.
pub(super) fn refusal(build: Build, yaml: &str) -> String {
    format!("{:#}", built(build, yaml).err().unwrap())
}

/// A request as it came: method, path with query, body.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    pub line: String,
    pub body: String,
    pub headers: http::HeaderMap,
}

/// What is answered: status, headers, body.
pub(super) type Answer = (u16, Vec<(&'static str, String)>, String);

type Rule = dyn Fn(&Asked) -> Option<Answer> + Send + Sync;

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Certificates for `localhost` in a folder of their own: `ca.pem` of the server, `own.pem` and `own.key` of a client
/// that it knows, `other.pem` and `other.key` of one that it does not. Removed on drop.
pub(super) struct Certificates {
    pub dir: std::path::PathBuf,
    server: rcgen::CertifiedKey<rcgen::KeyPair>,
    client: rcgen::CertifiedKey<rcgen::KeyPair>,
}

impl Certificates {
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("sockmesh-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let make = || rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let (server, client, other) = (make(), make(), make());
        std::fs::write(dir.join("ca.pem"), server.cert.pem()).unwrap();
        for (name, made) in [("own", &client), ("other", &other)] {
            std::fs::write(dir.join(format!("{name}.pem")), made.cert.pem()).unwrap();
            std::fs::write(dir.join(format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
        }
        Self { dir, server, client }
    }

    /// A server that wants to see the client's certificate, or does not.
    pub fn server(&self, asks: bool) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier: Arc<dyn ClientCertVerifier> = if asks {
            let mut roots = RootCertStore::empty();
            roots.add(self.client.cert.der().clone()).unwrap();
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap()
        } else {
            Arc::new(NoClientAuth)
        };
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let key = PrivateKeyDer::try_from(self.server.signing_key.serialize_der()).unwrap();
        let chain = vec![self.server.cert.der().clone()];
        let config = config.with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Answers by a rule; what the rule has no answer for waits for ever.
pub(super) struct StandIn {
    pub at: SocketAddr,
    asked: Arc<Mutex<VecDeque<Asked>>>,
    count: watch::Receiver<usize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl StandIn {
    pub async fn start(rule: impl Fn(&Asked) -> Option<Answer> + Send + Sync + 'static) -> Self {
        Self::over(None, rule).await
    }

    /// The same over TLS, or without it.
    pub async fn over(
        tls: Option<TlsAcceptor>,
        rule: impl Fn(&Asked) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let rule: Arc<Rule> = Arc::new(rule);
        let asked = Arc::new(Mutex::new(VecDeque::new()));
        let (counted, count) = watch::channel(0);
        let counted = Arc::new(counted);
        let all = asked.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((io, _)) = listener.accept().await else { return };
                let (rule, all, counted, tls) = (rule.clone(), all.clone(), counted.clone(), tls.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (rule, all, counted) = (rule.clone(), all.clone(), counted.clone());
                    async move {
                        let line = format!("{} {}", request.method(), request.uri());
                        let headers = request.headers().clone();
                        let body = request.into_body().collect().await?.to_bytes();
                        let asked = Asked { line, body: String::from_utf8_lossy(&body).into_owned(), headers };
                        let answer = rule(&asked);
                        all.lock().push_back(asked);
                        counted.send_modify(|n| *n += 1);
                        let Some((status, headers, body)) = answer else { return std::future::pending().await };
                        let mut answer = Response::builder().status(status);
                        for (name, value) in headers {
                            answer = answer.header(name, value);
                        }
                        Ok::<_, hyper::Error>(answer.body(Full::new(bytes::Bytes::from(body))).unwrap())
                    }
                });
                connections.spawn(async move {
                    let io: Box<dyn Io> = match tls {
                        None => Box::new(io),
                        Some(tls) => match tls.accept(io).await {
                            Ok(io) => Box::new(io),
                            Err(_) => return,
                        },
                    };
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
                });
            }
        });
        Self { at, asked, count, task }
    }

    /// Waits for the first request not yet taken whose line contains `part`, and forgets those before it.
    pub async fn asked(&self, part: &str) -> Asked {
        let mut count = self.count.clone();
        let mut seen = Vec::new();
        let found = async {
            loop {
                count.borrow_and_update();
                while let Some(asked) = { self.asked.lock().pop_front() } {
                    if asked.line.contains(part) {
                        return asked;
                    }
                    seen.push(asked.line);
                }
                count.changed().await.unwrap();
            }
        };
        let found = timeout(Duration::from_secs(30), found).await;
        found.unwrap_or_else(|_| panic!("nobody asked for {part:?}, but for {seen:?}"))
    }
}

/// Waits until a list has these addresses and whether it is stale; returns it.
pub(super) async fn list(rx: &mut watch::Receiver<Arc<Snapshot>>, addresses: &str, stale: bool) -> Arc<Snapshot> {
    let of = |s: &Snapshot| s.instances.iter().map(|i| i.address.as_str()).collect::<Vec<_>>().join(" ");
    let fits = |s: &Arc<Snapshot>| of(s) == addresses && s.stale.is_some() == stale && (stale || s.revision > 0);
    let found = timeout(Duration::from_secs(30), rx.wait_for(fits)).await.map(|r| r.unwrap().clone());
    found.unwrap_or_else(|_| panic!("waited for {addresses:?} (stale {stale}), have {:?}", rx.borrow()))
}
