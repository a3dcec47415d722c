//! Takes connections and serves them: HTTP/1.1, over TLS where there is a certificate. Who is slow, silent or too many
//! costs a bounded amount of memory and time.

mod patient;
mod tls;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use axum::{Router, body::Body, extract::ConnectInfo};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use self::patient::Patient;
pub use self::tls::Certificate;

/// How long whoever connects may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For the handshake of TLS.
    pub handshake: Duration,
    /// For the head of a request, the time until it begins included: so long a connection may be idle.
    pub head: Duration,
    /// For the peer to take anything of an answer.
    pub write: Duration,
    /// For requests that were begun when the centre stops.
    pub stop: Duration,
    /// Connections at a time; more wait unaccepted.
    pub connections: usize,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(30),
            write: Duration::from_secs(30),
            stop: Duration::from_secs(5),
            // Three for each of the agents there may be, and people.
            connections: 65_536,
        }
    }
}

/// Memory of one connection for a head and what of a body was not asked for yet.
const BUFFER_BYTES: usize = 64 << 10;
/// Pause after an error of `accept` that is not one connection's own, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves on `listener` until `stop` resolves; requests that were begun are answered if they are quick.
///
/// # Errors
/// Listening failed.
pub async fn serve(
    router: Router,
    listener: TcpListener,
    certificate: Option<Arc<Certificate>>,
    patience: Patience,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    listener.local_addr().context("serving failed")?;
    let permits = Arc::new(Semaphore::new(patience.connections));
    let acceptor = certificate.as_ref().map(|certificate| TlsAcceptor::from(certificate.server()));
    let following = certificate.map(|certificate| tokio::spawn(certificate.follow()));
    // Dropped by whoever serves a connection, so that the end of the last one is seen.
    let (stopping, stopped) = watch::channel(());
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = async {
            let permit = permits.clone().acquire_owned().await.expect("it is never closed");
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut stop => break,
        };
        let (io, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if own(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (router, acceptor, stopped) = (router.clone(), acceptor.clone(), stopped.clone());
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = connection(router, io, from, acceptor, patience, stopped).await {
                tracing::debug!(peer = %from, error = %format!("{error:#}"), "a connection ended");
            }
        });
    }
    drop(listener);
    drop(stopped);
    stopping.send_replace(());
    if timeout(patience.stop, stopping.closed()).await.is_err() {
        tracing::info!("some requests were not done in time and are left");
    }
    if let Some(following) = following {
        following.abort();
    }
    Ok(())
}

/// Whether an error of `accept` is about the one connection only.
fn own(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection(
    router: Router,
    io: TcpStream,
    from: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    patience: Patience,
    stopped: watch::Receiver<()>,
) -> anyhow::Result<()> {
    // Answers are small and awaited.
    io.set_nodelay(true)?;
    match acceptor {
        None => http(router, io, from, patience, stopped).await,
        Some(acceptor) => {
            let io = timeout(patience.handshake, acceptor.accept(io)).await.context("no TLS in time")?;
            http(router, io.context("TLS")?, from, patience, stopped).await
        }
    }
}

async fn http(
    router: Router,
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    from: SocketAddr,
    patience: Patience,
    mut stopped: watch::Receiver<()>,
) -> anyhow::Result<()> {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(from));
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.head)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(Patient::new(io, patience.write)), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        done = &mut connection => return Ok(done?),
        _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
    }
    // What is not done then is dropped with the runtime, or goes on as long as the process does.
    timeout(patience.stop, connection).await.context("stopped")?.map_err(Into::into)
}

#[cfg(test)]
mod tests;
