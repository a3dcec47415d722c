use std::{
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::SystemTime,
};

use axum::routing::get;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
    task::JoinHandle,
};
use tokio_rustls::TlsConnector;

use super::*;
use crate::api::Tls;

struct Served {
    at: SocketAddr,
    stop: oneshot::Sender<()>,
    done: JoinHandle<anyhow::Result<()>>,
}

async fn served(certificate: Option<Arc<Certificate>>, patience: Patience) -> Served {
    let router = Router::new()
        .route("/", get(|| async { "ok" }))
        .route("/large", get(|| async { vec![0u8; 64 << 20] }))
        .route("/slow", get(std::future::pending::<&'static str>));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let done = tokio::spawn(async move {
        let stopped = async move {
            let _ = stopped.await;
        };
        serve(router, listener, certificate, patience, stopped).await
    });
    Served { at, stop, done }
}

/// Asks for a path and reads to the end of the connection.
async fn ask(mut io: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    io.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    io.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Whether the peer ends the connection; within a generous time, so that a failing test ends.
async fn ends(io: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    timeout(Duration::from_secs(60), io.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test]
async fn who_is_silent_or_slow_or_does_not_read_is_let_go() {
    let short = Duration::from_millis(300);
    let patience = Patience { head: short, write: short, ..Patience::default() };
    let served = served(None, patience).await;
    let connect = async || TcpStream::connect(served.at).await.unwrap();
    let mut silent = connect().await;
    assert!(ends(&mut silent).await);
    let mut slow = connect().await;
    slow.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
    assert!(ends(&mut slow).await);
    let mut idle = connect().await;
    idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(ends(&mut idle).await);
    // Does not read: what it gets when it does is less than all.
    let mut unread = connect().await;
    unread.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let waiting = async {
        // The server's side ends; a write of ours is answered by a reset sooner or later.
        while unread.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), waiting).await.expect("the connection is ended");
    let huge = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let mut large = connect().await;
    let _ = large.write_all(huge.as_bytes()).await;
    assert!(ends(&mut large).await);
    assert!(ask(connect().await, "/").await.unwrap().ends_with("ok"));
}

#[tokio::test]
async fn more_connections_than_there_may_be_wait_for_their_turn() {
    let patience = Patience { connections: 1, ..Patience::default() };
    let served = served(None, patience).await;
    let mut first = TcpStream::connect(served.at).await.unwrap();
    first.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let second = tokio::spawn(ask(TcpStream::connect(served.at).await.unwrap(), "/"));
    let mut byte = [0];
    // The first is being served, so that the second must be waiting.
    let served_first = timeout(Duration::from_millis(200), first.read(&mut byte)).await;
    assert!(served_first.is_err() && !second.is_finished());
    drop(first);
    assert!(second.await.unwrap().unwrap().ends_with("ok"));
}

#[tokio::test]
async fn stopping_ends_idle_connections_at_once_and_endless_requests_soon() {
    let patience = Patience { stop: Duration::from_millis(300), ..Patience::default() };
    let Served { at, stop, done } = served(None, patience).await;
    let mut idle = TcpStream::connect(at).await.unwrap();
    let mut endless = TcpStream::connect(at).await.unwrap();
    endless.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(ask(TcpStream::connect(at).await.unwrap(), "/").await.unwrap().ends_with("ok"));
    stop.send(()).unwrap();
    done.await.unwrap().unwrap();
    assert!(ends(&mut idle).await && ends(&mut endless).await);
    assert!(TcpStream::connect(at).await.is_err());
}

/// A directory of its own, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static N: AtomicU32 = AtomicU32::new(0);
        let name = format!("sockmesh-center-tls-{}-{}", std::process::id(), N.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn files(&self) -> Tls {
        Tls { cert: self.0.join("cert.pem"), key: self.0.join("key.pem") }
    }

    /// Writes a new certificate; answers it.
    fn write(&self) -> CertificateDer {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(self.files().key, made.signing_key.serialize_pem()).unwrap();
        std::fs::write(self.files().cert, made.cert.pem()).unwrap();
        made.cert.der().clone()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

type CertificateDer = rustls::pki_types::CertificateDer<'static>;

async fn https(at: SocketAddr, trusted: &CertificateDer) -> io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let io = TcpStream::connect(at).await?;
    ask(TlsConnector::from(Arc::new(config)).connect(name, io).await?, "/").await
}

#[tokio::test]
async fn tls_is_served_and_a_renewed_certificate_is_taken() {
    let dir = Dir::new();
    let first = dir.write();
    let certificate = Certificate::load(dir.files()).unwrap();
    let patience = Patience { handshake: Duration::from_millis(300), ..Patience::default() };
    let served = served(Some(certificate.clone()), patience).await;
    assert!(https(served.at, &first).await.unwrap().ends_with("ok"));
    assert!(!certificate.reload().unwrap());
    // Who does not speak TLS, or nothing at all.
    assert!(ask(TcpStream::connect(served.at).await.unwrap(), "/").await.map_or(true, |a| !a.contains("200")));
    assert!(ends(&mut TcpStream::connect(served.at).await.unwrap()).await);
    // A half-written one is told and changes nothing.
    let later = SystemTime::now() + Duration::from_secs(5);
    std::fs::write(dir.files().cert, "-----BEGIN CERT").unwrap();
    std::fs::File::options().write(true).open(dir.files().cert).unwrap().set_modified(later).unwrap();
    let told = format!("{:#}", certificate.reload().unwrap_err());
    assert!(told.contains("cert.pem"), "{told}");
    assert!(!certificate.reload().unwrap(), "told once");
    assert!(https(served.at, &first).await.unwrap().ends_with("ok"));
    let second = dir.write();
    assert!(certificate.reload().unwrap());
    assert!(https(served.at, &second).await.unwrap().ends_with("ok"));
    assert!(https(served.at, &first).await.is_err());
}

#[test]
fn files_that_are_missing_or_do_not_fit_are_named() {
    let dir = Dir::new();
    let told = |files: Tls| format!("{:#}", Certificate::load(files).unwrap_err());
    assert!(told(dir.files()).contains("cert.pem"));
    dir.write();
    let other = Dir::new();
    other.write();
    let mixed = Tls { cert: dir.files().cert, key: other.files().key };
    assert!(told(mixed).contains("do not fit"));
    std::fs::write(dir.files().key, "").unwrap();
    assert!(told(dir.files()).contains("key.pem"));
}
