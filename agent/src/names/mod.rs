//! Names of services under `.mesh`, answered to enrolled programs on the way to their own resolver.
//!
//! `zone` says which names there are, `answer` reads questions and writes answers, `udp` and `tcp` take the
//! questions that the capture brings and pass on, unread and unchanged, what is not for the agent. Which
//! resolver a question was for is told by the address it arrived at (`ebpf_common::dns`).

mod answer;
mod place;
mod tcp;
mod udp;
mod zone;

#[cfg(test)]
mod tests;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use ebpf_common::dns::{DnsListener, PORT, RESOLVERS6};
use tokio::{
    runtime::Handle,
    task::{AbortHandle, JoinHandle},
};

use self::place::Place;
pub use self::zone::{DOMAIN, Entry, Zone, assign};
use crate::{
    capture::{Capture, enroll::space::Space},
    config::Config,
    drain::Drain,
    metrics::AgentCounters,
    sys,
};

/// How long a resolver may take: a little longer than the five seconds after which most programs ask again.
const PATIENCE: Duration = Duration::from_secs(6);
/// Room for questions that were not read yet, as the kernel counts: some thousands.
const RECEIVE_BYTES: usize = 4 << 20;
/// For how long questions are still taken after the kernel was told to bring no more: some are on their way.
const LINGER: Duration = Duration::from_millis(300);

/// The names in force, for those who answer and those who show them.
#[derive(Debug, Default)]
pub struct Names {
    zone: ArcSwap<Zone>,
    ipv6: std::sync::atomic::AtomicBool,
}

impl Names {
    /// Puts the names of `config` in force, which [`assign`] has seen. What is odd goes to the log.
    pub fn set(&self, config: &Config) {
        let (zone, odd) = Zone::of(config, self.ipv6.load(std::sync::atomic::Ordering::Relaxed));
        for odd in odd {
            tracing::warn!(odd, "a service without a name: give it another group or service name");
        }
        self.zone.store(Arc::new(zone));
    }

    /// The names in force.
    pub fn zone(&self) -> Arc<Zone> {
        self.zone.load_full()
    }
}

/// What all who take questions in one network namespace share.
struct Server {
    names: Arc<Names>,
    capture: Arc<dyn Capture>,
    counters: Arc<AgentCounters>,
    /// Where resolvers are asked.
    place: Place,
}

impl Server {
    /// A socket to ask the resolver at `to` from, which the capture leaves alone.
    async fn socket(&self, to: SocketAddr, kind: socket2::Type) -> io::Result<socket2::Socket> {
        let socket = self.place.socket(to, kind).await?;
        if let Some(mark) = self.capture.mark() {
            socket.set_mark(mark)?;
        }
        Ok(socket)
    }
}

/// Sockets for questions, bound.
struct Sockets {
    udp4: std::net::UdpSocket,
    tcp4: std::net::TcpListener,
    /// Absent where the network namespace has no IPv6.
    six: Option<(Vec<std::net::UdpSocket>, std::net::TcpListener)>,
}

/// Answers questions of enrolled programs, in as many network namespaces as they live in.
pub struct Answering {
    names: Arc<Names>,
    capture: Arc<dyn Capture>,
    counters: Arc<AgentCounters>,
    data: Handle,
    /// The port that is taken in every namespace where it is free; `None` while names are off.
    port: Option<u16>,
}

/// Questions of another network namespace are answered until this is dropped.
pub struct There {
    capture: Arc<dyn Capture>,
    space: Space,
    tasks: Vec<AbortHandle>,
}

impl Drop for There {
    fn drop(&mut self) {
        // First the kernel brings no more.
        if let Err(error) = self.capture.answer_names(Some(&self.space), None) {
            tracing::warn!(error = format!("{error:#}"), "cannot take a listener from the kernel's table");
        }
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Answering {
    /// Answers from now on, on `data`, until the drain. Nothing else of the agent depends on it: when it cannot
    /// (the port is taken), it says so, and programs ask their resolvers directly.
    pub fn start(
        config: &Config,
        capture: &Arc<dyn Capture>,
        counters: &Arc<AgentCounters>,
        data: &Handle,
        drain: &Drain,
    ) -> Self {
        let mut this = Self {
            names: Arc::default(),
            capture: capture.clone(),
            counters: counters.clone(),
            data: data.clone(),
            port: None,
        };
        if config.capture.has_names() && capture.names() {
            match this.try_start(config.ports.dns, drain) {
                Ok(()) => {
                    this.port = Some(config.ports.dns);
                    this.names.set(config);
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(
                        error,
                        "names under .mesh are off; free the port, name another, or say `capture.dns: false`"
                    );
                }
            }
        }
        this
    }

    /// The names that are answered.
    pub fn names(&self) -> &Arc<Names> {
        &self.names
    }

    fn try_start(&self, port: u16, drain: &Drain) -> anyhow::Result<()> {
        let sockets = bind(port).with_context(|| format!("ports.dns: cannot listen on port {port} of loopback"))?;
        let ipv6 = sockets.six.is_some();
        let (at, _) = self.serve(sockets, Place::Here, drain)?;
        self.names.ipv6.store(ipv6, std::sync::atomic::Ordering::Relaxed);
        self.capture.answer_names(None, Some(at))
    }

    /// Answers in `space` too; `None` while names are off. Blocks for a moment. Needs CAP_SYS_ADMIN.
    pub fn open_in(&self, space: &Space, drain: &Drain) -> anyhow::Result<Option<There>> {
        let Some(port) = self.port else { return Ok(None) };
        let sockets = space.enter(|| bind(port).or_else(|_| bind(0))).context("cannot listen for questions there")?;
        let (at, tasks) = self.serve(sockets, Place::there(space)?, drain)?;
        // From here on its end undoes all.
        let there = There { capture: self.capture.clone(), space: space.clone(), tasks };
        self.capture.answer_names(Some(space), Some(at))?;
        Ok(Some(there))
    }

    fn serve(&self, sockets: Sockets, place: Place, drain: &Drain) -> anyhow::Result<(DnsListener, Vec<AbortHandle>)> {
        let mut at = DnsListener {
            udp4: sockets.udp4.local_addr()?.port().to_be(),
            tcp4: sockets.tcp4.local_addr()?.port().to_be(),
            ..DnsListener::default()
        };
        let server = Arc::new(Server {
            names: self.names.clone(),
            capture: self.capture.clone(),
            counters: self.counters.clone(),
            place,
        });
        let _runtime = self.data.enter();
        let udp4 = tokio::net::UdpSocket::from_std(sockets.udp4)?;
        let tcp4 = tokio::net::TcpListener::from_std(sockets.tcp4)?;
        let mut tasks = vec![
            self.data.spawn(udp::serve4(server.clone(), udp4, drain.clone())),
            self.data.spawn(tcp::serve(server.clone(), tcp4, drain.clone())),
        ];
        if let Some((udp, tcp)) = sockets.six {
            at.tcp6 = tcp.local_addr()?.port().to_be();
            let tcp = tokio::net::TcpListener::from_std(tcp)?;
            tasks.push(self.data.spawn(tcp::serve(server.clone(), tcp, drain.clone())));
            for (place, socket) in udp.into_iter().enumerate() {
                at.udp6[place] = socket.local_addr()?.port().to_be();
                let socket = tokio::net::UdpSocket::from_std(socket)?;
                tasks.push(self.data.spawn(udp::serve6(server.clone(), socket, place, drain.clone())));
            }
        }
        Ok((at, tasks.iter().map(JoinHandle::abort_handle).collect()))
    }
}

/// Binds sockets in the calling thread's network namespace.
fn bind(port: u16) -> io::Result<Sockets> {
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let tcp4 = listen(v4)?;
    // Every resolver has a loopback address of its own, so all are bound, and the device keeps others out:
    // nothing but loopback reaches the socket.
    let udp4 = datagrams(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
    socket2::SockRef::from(&udp4).bind_device(Some(b"lo"))?;
    sys::udp::tell_destination(&udp4)?;
    let six = || {
        let tcp = listen(SocketAddr::from((Ipv6Addr::LOCALHOST, port)))?;
        let any = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
        let udp = (0..RESOLVERS6).map(|_| datagrams(any)).collect::<io::Result<Vec<_>>>()?;
        Ok::<_, io::Error>((udp, tcp))
    };
    let six = match six() {
        Ok(six) => Some(six),
        // No IPv6 here, or switched off.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => None,
        Err(error) => return Err(error),
    };
    Ok(Sockets { udp4, tcp4, six })
}

fn listen(at: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(at), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    socket.listen(128)?;
    Ok(socket.into())
}

fn datagrams(at: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(at), socket2::Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    // A burst of questions must not meet a full buffer; without the right to exceed the host's limit, that holds.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BYTES);
    socket.bind(&at.into())?;
    Ok(socket.into())
}

/// Where the resolver at `ip` is asked.
fn resolver(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, PORT)
}
