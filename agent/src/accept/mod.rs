//! Listeners: permits, original destination, protocol detection.

mod detect;
mod downstream;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};

pub use self::downstream::Downstream;
use crate::{
    call::Response,
    capture::{Capture, Origin},
    config,
    drain::Drain,
    metrics::{AgentCounters, LOST, Live, LiveGuard, LiveTable},
    protocol::{self, ConnError, Protocol, forward, tcp},
    route::{Destination, Direction, Routes},
    stream::{self, OwnSockets},
    sys,
};

/// A connection from a program, ready to be served.
pub struct Accepted {
    /// Reads and writes it.
    pub io: Downstream,
    /// The program's end.
    pub peer: SocketAddr,
    /// Its row in the table of live connections; gone when this is dropped.
    pub guard: LiveGuard,
    /// A connection to an endpoint that detection opened already, for protocols that copy bytes.
    pub dialled: Option<Response>,
}

impl Accepted {
    /// Its row in the table of live connections.
    pub fn live(&self) -> &Arc<Live> {
        &self.guard.live
    }
}

/// Where the connections of a listener go.
pub enum Target {
    /// The listener takes what the capture brings; each connection knows where it wanted to go.
    Captured(Arc<ArcSwap<Routes>>),
    /// The listener takes connections of callers from elsewhere; the capture tells what they dialed.
    Inbound(Arc<ArcSwap<Routes>>),
    /// All to one destination: programs dial this listener by intention.
    Fixed(Arc<ArcSwap<Destination>>),
}

/// What connections arrive at.
pub enum Listener {
    /// An address, with a socket that was made [`ready_to_copy`](tcp::ready_to_copy) before it listened.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener),
}

/// Stands for the ends of connections over unix sockets, which have no address.
const UNIX: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

impl Listener {
    /// The next connection. Cancel safe.
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match self {
            Self::Tcp(listener) => listener.accept().await,
            Self::Unix(listener) => Ok((stream::unix(listener.accept().await?.0)?, UNIX)),
        }
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

/// What all listeners of an agent share.
pub struct Acceptor {
    /// Built once from `protocol::KINDS`, in that order.
    pub protocols: Vec<(&'static str, Arc<dyn Protocol>)>,
    /// Tells where captured connections wanted to go.
    pub capture: Arc<dyn Capture>,
    /// Connections that exist now.
    pub live: Arc<LiveTable>,
    /// One for each connection that may exist.
    pub permits: Arc<Semaphore>,
    /// Protection from peers.
    pub limits: config::Limits,
    /// What is counted of the agent itself.
    pub counters: Arc<AgentCounters>,
    /// What the capture wants of the agent's own sockets.
    pub own: OwnSockets,
    /// Makes the destination of a captured connection whose service is gone: straight to where it wanted to go.
    pub passthrough: Box<dyn Fn(SocketAddr) -> Destination + Send + Sync>,
}

/// Pause after the process ran out of descriptors; a connection that ends sooner ends the pause too.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

impl Acceptor {
    /// Accepts until `stop` says true or a drain begins, then takes what waits in the backlog and
    /// returns when its last connection has ended. Dropping the future cuts all its connections.
    pub async fn listen(
        self: Arc<Self>,
        listener: Listener,
        target: Target,
        mut stop: watch::Receiver<bool>,
        drain: Drain,
    ) {
        let target = Arc::new(target);
        let mut connections = JoinSet::new();
        let mut asked = drain.clone();
        let mut short = false;
        loop {
            tokio::select! {
                biased;
                () = asked.graceful() => break,
                () = told(&mut stop) => break,
                Some(_) = connections.join_next() => {}
                (accepted, permit) = self.accept(&listener) => match accepted {
                    Ok((io, peer)) => {
                        short = false;
                        connections.spawn(self.clone().connection(io, peer, target.clone(), permit, drain.clone()));
                    }
                    Err(error) if sys::is_shortage(&error) => {
                        self.counters.accept_paused.fetch_add(1, Relaxed);
                        // Once for each shortage, however often it is tried meanwhile.
                        if !std::mem::replace(&mut short, true) {
                            let listener = listener.local_addr();
                            tracing::warn!(?listener, %error, "accepting pauses: out of descriptors or memory");
                        }
                        tokio::select! {
                            () = tokio::time::sleep(SHORTAGE_PAUSE) => {}
                            Some(_) = connections.join_next() => {}
                        }
                    }
                    // The peer gave up before it was accepted; nothing to pause for.
                    Err(error) => tracing::debug!(%error, "a connection ended before it was accepted"),
                },
            }
        }
        // Connections in the backlog were promised: the kernel has completed their handshakes, and
        // closing the listener would reset them.
        while let Some(Ok((io, peer))) = futures_util::FutureExt::now_or_never(listener.accept()) {
            let Ok(permit) = self.permits.clone().acquire_owned().await else { break };
            connections.spawn(self.clone().connection(io, peer, target.clone(), permit, drain.clone()));
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    async fn accept(&self, listener: &Listener) -> (io::Result<(TcpStream, SocketAddr)>, OwnedSemaphorePermit) {
        // The permit first: a connection that cannot be served waits in the kernel's backlog, where it
        // costs no descriptor.
        let permit = match self.permits.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                self.counters.accept_paused.fetch_add(1, Relaxed);
                self.permits.clone().acquire_owned().await.expect("the semaphore is never closed")
            }
        };
        (listener.accept().await, permit)
    }

    async fn connection(
        self: Arc<Self>,
        io: TcpStream,
        peer: SocketAddr,
        target: Arc<Target>,
        _permit: OwnedSemaphorePermit,
        mut drain: Drain,
    ) {
        self.counters.accepted.fetch_add(1, Relaxed);
        let served = self.serve(io, peer, &target, drain.clone());
        let ended = tokio::select! {
            ended = served => ended,
            () = drain.forced() => return,
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "connection ended");
        }
    }

    async fn serve(&self, io: TcpStream, peer: SocketAddr, target: &Target, drain: Drain) -> Result<(), ConnError> {
        // Addresses of a unix socket are of another kind than is asked for here.
        let unix = peer == UNIX && io.local_addr().is_err();
        let (destination, origin) = match target {
            Target::Fixed(fixed) => {
                let destination = if unix { UNIX } else { io.local_addr()? };
                (Destination::clone(&fixed.load()), Origin::of(destination))
            }
            Target::Inbound(routes) => {
                let dialed = self.capture.inbound_destination(&io).map_err(|e| self.not_captured(&e))?;
                let destination = SocketAddr::new(dialed.ip().to_canonical(), dialed.port());
                let found = routes.load().find_local(destination);
                (self.or_through(found, peer, destination, Direction::Inbound), Origin::of(destination))
            }
            Target::Captured(routes) => {
                let origin = self.capture.origin(&io).map_err(|e| self.not_captured(&e))?;
                let found = routes.load().find(origin.destination);
                (self.or_through(found, peer, origin.destination, Direction::Outbound), origin)
            }
        };
        let captured = !matches!(target, Target::Fixed(_));
        let guard = self.live.add(peer, origin.destination, (origin.pid, origin.process), captured, origin.socket);
        let (route, prefix, dialled) = match &destination {
            Destination::Declared(route) => (route.clone(), Bytes::new(), None),
            // Boxed: most connections need no detection, and those that do need its room for a moment only.
            Destination::Undeclared(_) => Box::pin(self.detect(&io, &destination)).await?,
        };
        guard.live.set_protocol(route.protocol);
        if route.protocol != tcp::NAME {
            tcp::end_on_close(&io);
        }
        let io = if unix { io.into() } else { self.own.accepted(io) };
        let io = Downstream::new(io, prefix, guard.live.clone());
        let conn = Accepted { io, peer, guard, dialled };
        self.protocol(route.protocol).serve(conn, route, drain).await
    }

    /// The route that was found, or straight to where the connection wanted to go.
    fn or_through(
        &self,
        found: Option<Destination>,
        peer: SocketAddr,
        destination: SocketAddr,
        direction: Direction,
    ) -> Destination {
        found.unwrap_or_else(|| {
            self.counters.passed_through.fetch_add(1, Relaxed);
            LOST.connection(peer, destination, direction);
            (self.passthrough)(destination)
        })
    }

    /// Someone dialled the listener itself, or the kernel forgot: there is no place to send it, and it is reset.
    fn not_captured(&self, error: &io::Error) -> ConnError {
        self.counters.not_captured.fetch_add(1, Relaxed);
        ConnError::Unserved(format!("not captured: {error}"))
    }

    fn protocol(&self, name: &str) -> Arc<dyn Protocol> {
        let found = self.protocols.iter().find(|(n, _)| *n == name);
        found.expect("routes name only protocols of KINDS").1.clone()
    }
}

/// Waits until `stop` says true. A sender that is gone never will.
async fn told(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending().await
    }
}

/// All protocols, built with the host's limits; the forward proxy's is not one that others can name.
pub fn protocols(
    limits: &config::Limits,
    proxy: Option<Arc<forward::Front>>,
) -> Vec<(&'static str, Arc<dyn Protocol>)> {
    let kinds = protocol::KINDS.iter().map(|kind| (kind.name, (kind.build)(limits)));
    let proxy = proxy.map(|proxy| (forward::NAME, proxy as Arc<dyn Protocol>));
    kinds.chain(proxy).collect()
}
