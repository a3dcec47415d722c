//! Listeners of the data runtime: bound, served, told to stop.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    os::unix::{
        fs::FileTypeExt as _,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use parking_lot::Mutex;
use socket2::Socket;
use tokio::{runtime::Handle, sync::watch};

use crate::{
    accept::{Acceptor, Listener, Target},
    config,
    drain::Drain,
    protocol::tcp,
};

/// Runs listeners on the data runtime.
#[derive(Clone)]
pub(super) struct Serving {
    data: Handle,
    acceptor: Arc<Acceptor>,
    /// Taken when the agent stops: what is served holds its own.
    drain: Arc<Mutex<Option<Drain>>>,
}

/// A listener that is served until it is stopped. Dropped, it is served for as long as the agent lives.
pub(super) struct Served(watch::Sender<bool>);

impl Served {
    /// No further connection is accepted; those that exist go on.
    pub(super) fn stop(self) {
        self.0.send_replace(true);
    }
}

impl Serving {
    pub(super) fn new(data: Handle, acceptor: Arc<Acceptor>, drain: Drain) -> Self {
        Self { data, acceptor, drain: Arc::new(Mutex::new(Some(drain))) }
    }

    /// What accepts.
    pub(super) fn acceptor(&self) -> &Acceptor {
        &self.acceptor
    }

    /// For others who must finish; `None` once the agent has begun to stop.
    pub(super) fn drain(&self) -> Option<Drain> {
        self.drain.lock().clone()
    }

    /// Whether the agent has not begun to stop.
    pub(super) fn is_open(&self) -> bool {
        self.drain.lock().is_some()
    }

    /// Serves `listener`; closes it when the agent stops already.
    pub(super) fn start(&self, listener: impl Into<Bound>, target: Target) -> Served {
        let listener = listener.into();
        let (stop, stopped) = watch::channel(false);
        let Some(drain) = self.drain.lock().clone() else { return Served(stop) };
        let acceptor = self.acceptor.clone();
        self.data.spawn(async move {
            match listener.watched() {
                Ok(listener) => acceptor.listen(listener, target, stopped, drain).await,
                Err(error) => tracing::error!(%error, "a listener cannot be served"),
            }
        });
        Served(stop)
    }

    /// Serves `listeners` for as long as the agent lives and returns their addresses.
    pub(super) fn keep(&self, listeners: Vec<TcpListener>, target: impl Fn() -> Target) -> Vec<SocketAddr> {
        let at = listeners.iter().filter_map(|l| l.local_addr().ok()).collect();
        for listener in listeners {
            self.start(listener, target());
        }
        at
    }

    /// Lets the drain complete: nothing but what is served must finish.
    pub(super) fn release_drain(&self) {
        self.drain.lock().take();
    }
}

/// A listener that is not served yet.
pub(super) enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Bound {
    /// The same for the runtime, which must be running.
    fn watched(self) -> std::io::Result<Listener> {
        Ok(match self {
            Self::Tcp(listener) => Listener::Tcp(tokio::net::TcpListener::from_std(listener)?),
            Self::Unix(listener) => Listener::Unix(tokio::net::UnixListener::from_std(listener)?),
        })
    }
}

impl From<TcpListener> for Bound {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

/// Binds a unix socket at `path`. What lies there is removed first if it is a socket, because one that a killed
/// agent left would be in the way for ever.
pub(super) fn bind_unix(path: &Path) -> anyhow::Result<Bound> {
    let bind = || -> anyhow::Result<UnixListener> {
        match std::fs::symlink_metadata(path) {
            Ok(there) if there.file_type().is_socket() => std::fs::remove_file(path)?,
            Ok(_) => bail!("a file that is no socket is there"),
            Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    let remedy = || format!("cannot listen on unix:{}: check the folder, or name another one", path.display());
    bind().map(Bound::Unix).with_context(remedy)
}

/// Binds `port` on both addresses, IPv4 and IPv6, or on the only one that the host has.
pub(super) fn bind_both(ips: [IpAddr; 2], port: u16) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for ip in ips {
        match bind(SocketAddr::new(ip, port)) {
            Ok(listener) => listeners.push(listener),
            Err(error) if ip.is_ipv6() && !Path::new("/proc/net/if_inet6").exists() => {
                tracing::info!(%error, "no IPv6 on this host: IPv6 connections are left alone");
            }
            Err(error) => return Err(error),
        }
    }
    if listeners.is_empty() {
        bail!("no address to listen on");
    }
    Ok(listeners)
}

/// The listener of the admin API, bound.
pub(super) enum Admin {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Admin {
    /// Its TCP port; 0 without one.
    pub(super) fn port(&self) -> u16 {
        match self {
            Self::Tcp(listener) => listener.local_addr().map_or(0, |at| at.port()),
            Self::Unix(..) => 0,
        }
    }

    /// Hands it to the runtime.
    pub(super) fn open(self) -> std::io::Result<crate::admin::Listener> {
        Ok(match self {
            Self::Tcp(listener) => crate::admin::Listener::Tcp(tokio::net::TcpListener::from_std(listener)?),
            Self::Unix(listener, _) => crate::admin::Listener::Unix(tokio::net::UnixListener::from_std(listener)?),
        })
    }
}

impl std::fmt::Display for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(at) => at.fmt(f),
                Err(error) => error.fmt(f),
            },
            Self::Unix(_, path) => path.display().fmt(f),
        }
    }
}

/// Binds the admin API where `ports` say. A port that is taken is an error.
pub(super) fn bind_admin(ports: &config::Ports) -> anyhow::Result<Admin> {
    if let Some(path) = &ports.admin_socket {
        // One that a former run left goes; somebody who still listens there would lose his callers.
        if UnixStream::connect(path).is_ok() {
            bail!("ports.admin_socket: somebody listens on {} already", path.display());
        }
        return match bind_unix(path).context("ports.admin_socket")? {
            Bound::Unix(listener) => Ok(Admin::Unix(listener, path.clone())),
            Bound::Tcp(_) => unreachable!("a path was asked for"),
        };
    }
    let Some((from, to)) = ports.admin_range else {
        return open(ports.admin, |_| Ok(())).map(Admin::Tcp).context("ports.admin");
    };
    let mut last = None;
    for port in from..=to {
        match open(SocketAddr::new(ports.admin.ip(), port), |_| Ok(())) {
            Ok(listener) => return Ok(Admin::Tcp(listener)),
            Err(error) => last = Some(error),
        }
    }
    let last = last.context("ports.admin_range: no port")?;
    Err(last.context(format!("ports.admin_range: none of {from}-{to} is free")))
}

/// Binds a data listener.
pub(super) fn bind(at: SocketAddr) -> anyhow::Result<TcpListener> {
    open(at, tcp::ready_to_copy)
}

/// Listens at `at`, `prepare` having been first at the socket.
fn open(at: SocketAddr, prepare: impl Fn(&Socket) -> std::io::Result<()>) -> anyhow::Result<TcpListener> {
    let bind = || -> std::io::Result<TcpListener> {
        let domain = socket2::Domain::for_address(at);
        let socket = Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if at.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&at.into())?;
        prepare(&socket)?;
        // The kernel caps it at net.core.somaxconn; a burst must not meet a short queue here.
        socket.listen(4096)?;
        Ok(socket.into())
    };
    bind().with_context(|| format!("cannot listen on {at}: free the port or name another one in the configuration"))
}
