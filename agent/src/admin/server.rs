//! The API's listener: bounded in connections and time, and answering when the host is out of descriptors.

use std::{convert::Infallible, fs::File, sync::Arc, time::Duration};

use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    task::JoinSet,
    time::MissedTickBehavior,
};

use super::{Handles, routes::Api};
use crate::{metrics::window, sys};

/// Connections at once; more wait in the kernel.
const CONNECTIONS: usize = 64;
/// Time for a request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for everything about a connection: each carries one request.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(60);
/// Size of a request head.
const HEAD_BYTES: usize = 16 * 1024;
/// Descriptors kept for this API.
const RESERVED: usize = 8;
/// Pause when even those are in use.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(20);

/// Answers requests on `listener` until the future is dropped; run it on the control runtime. It goes
/// on answering while the agent drains (with `/ready` saying no), so it holds no `Drain`.
pub async fn serve(listener: Listener, handles: Arc<Handles>) -> anyhow::Result<()> {
    let at = match &listener {
        Listener::Tcp(listener) => Some(listener.local_addr()?),
        Listener::Unix(_) => None,
    };
    let api = Arc::new(Api::new(handles, at));
    api.resume();
    let mut reserve = Reserve::new();
    let mut connections = JoinSet::new();
    let mut step = tokio::time::interval(window::STEP);
    step.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = step.tick() => {
                api.sample();
                reserve.refill();
            }
            Some(_) = connections.join_next() => reserve.refill(),
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok(Io::Tcp(io)) => {
                    connections.spawn(connection(io, api.clone()));
                }
                Ok(Io::Unix(io)) => {
                    connections.spawn(connection(io, api.clone()));
                }
                Err(error) if sys::is_shortage(&error) => {
                    if !reserve.give_up_one() {
                        tokio::time::sleep(SHORTAGE_PAUSE).await;
                    }
                }
                // The peer gave up before it was accepted.
                Err(_) => {}
            },
        }
    }
}

/// Where the API is asked.
pub enum Listener {
    /// An address with port.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener),
}

enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    async fn accept(&self) -> std::io::Result<Io> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(io, _)| Io::Tcp(io)),
            Self::Unix(listener) => listener.accept().await.map(|(io, _)| Io::Unix(io)),
        }
    }
}

async fn connection(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, api: Arc<Api>) {
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let api = api.clone();
        async move { Ok::<_, Infallible>(api.answer(request).await) }
    });
    // One request each: a descriptor is never held by a client that may come back.
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(io), service);
    match tokio::time::timeout(TOTAL_TIMEOUT, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "admin connection ended"),
        Err(_) => tracing::debug!("admin connection took too long"),
    }
}

/// Descriptors that are open for nothing but to be closed when the API needs one.
struct Reserve(Vec<File>);

impl Reserve {
    fn new() -> Self {
        let mut reserve = Self(Vec::with_capacity(RESERVED));
        reserve.refill();
        reserve
    }

    fn refill(&mut self) {
        while self.0.len() < RESERVED {
            match File::open("/dev/null") {
                Ok(file) => self.0.push(file),
                Err(_) => return,
            }
        }
    }

    fn give_up_one(&mut self) -> bool {
        self.0.pop().is_some()
    }
}
