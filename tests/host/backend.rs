//! Servers of the test's own, with exactly the manners that a test asks for.

use std::{
    io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::{
    http::{self, Conn, Message},
    wait::PATIENCE,
};

/// A listening server with a thread for each connection; closed with all its connections on drop.
pub struct Backend {
    addr: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    accepted: AtomicUsize,
    requests: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
}

impl Backend {
    /// Gives each connection to `serve`, on a thread of its own.
    pub fn tcp(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::tcp_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), serve)
    }

    /// Like [`Backend::tcp`], at a given address.
    pub fn tcp_at(addr: SocketAddr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::start(addr, move |stream, _| serve(stream))
    }

    fn start(addr: SocketAddr, serve: impl Fn(TcpStream, &Shared) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(addr).unwrap_or_else(|e| panic!("cannot listen on {addr}: {e}"));
        Self::on(listener, serve)
    }

    fn on(listener: TcpListener, serve: impl Fn(TcpStream, &Shared) + Send + Sync + 'static) -> Self {
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let (serve, mine) = (Arc::new(serve), shared.clone());
        let acceptor = thread::spawn(move || {
            for stream in listener.incoming() {
                if mine.stop.load(SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                mine.accepted.fetch_add(1, SeqCst);
                mine.open.lock().unwrap().push(stream.try_clone().unwrap());
                let (serve, mine) = (serve.clone(), mine.clone());
                thread::spawn(move || {
                    let port = stream.peer_addr().ok();
                    serve(stream, &mine);
                    // Our copy would keep the connection open.
                    mine.open.lock().unwrap().retain(|s| s.peer_addr().ok().is_some_and(|p| Some(p) != port));
                });
            }
        });
        Self { addr, shared, acceptor: Some(acceptor) }
    }

    /// Answers every request with what `answer` makes of it, keeping connections.
    pub fn http(answer: impl Fn(&Message) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::http_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), answer)
    }

    /// Like [`Backend::http`], at a given address.
    pub fn http_at(addr: SocketAddr, answer: impl Fn(&Message) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::start(addr, Self::answering(answer))
    }

    fn answering(answer: impl Fn(&Message) -> Vec<u8> + Send + Sync) -> impl Fn(TcpStream, &Shared) + Send + Sync {
        move |stream, shared| {
            let mut conn = Conn::of(stream);
            while let Ok(Some(request)) = conn.request() {
                shared.requests.fetch_add(1, SeqCst);
                if conn.send(answer(&request)).is_err() || request.closes() {
                    break;
                }
            }
        }
    }

    /// Answers every HTTP request with `name`.
    pub fn named(name: &str) -> Self {
        let name = name.to_owned();
        Self::http(move |_| http::ok(&name))
    }

    /// Like [`Backend::named`], at a given address.
    pub fn named_at(addr: SocketAddr, name: &str) -> Self {
        let name = name.to_owned();
        Self::http_at(addr, move |_| http::ok(&name))
    }

    /// Sends back every byte and closes its half when the peer does.
    pub fn echo() -> Self {
        Self::tcp(|stream| {
            let _ = io::copy(&mut &stream, &mut &stream);
            let _ = stream.shutdown(Shutdown::Write);
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Connections taken so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(SeqCst)
    }

    /// HTTP requests read so far.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(SeqCst)
    }

    /// Cuts all connections and listens no more, as a killed process does.
    pub fn stop(&mut self) {
        let Some(acceptor) = self.acceptor.take() else { return };
        self.shared.stop.store(true, SeqCst);
        let _ = TcpStream::connect_timeout(&self.addr, PATIENCE);
        let _ = acceptor.join();
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An address that refuses connections for as long as this lives: bound, not listening.
pub struct Refusing {
    addr: SocketAddr,
    _held: OwnedFd,
}

impl Refusing {
    /// Takes an address.
    pub fn new() -> Self {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let addr = rustix::net::getsockname(&socket).unwrap().try_into().unwrap();
        Self { addr, _held: socket }
    }

    /// The address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Default for Refusing {
    fn default() -> Self {
        Self::new()
    }
}

/// An address where connects get no answer at all: a listener whose queue is full and that nobody empties.
/// Linux drops the SYN then, as a vanished host does.
pub struct BlackHole {
    listener: TcpListener,
    addr: SocketAddr,
    _fill: Vec<TcpStream>,
}

impl BlackHole {
    /// Makes one.
    pub fn new() -> Self {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let listener = TcpListener::from(socket);
        let addr = listener.local_addr().unwrap();
        let mut fill = Vec::new();
        // A backlog of 0 holds one connection; the next connects hang.
        while let Ok(stream) = TcpStream::connect_timeout(&addr, Duration::from_millis(300)) {
            fill.push(stream);
            assert!(fill.len() < 16, "the queue of {addr} does not fill");
        }
        Self { listener, addr, _fill: fill }
    }

    /// The address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The host is back: somebody takes what waits in the queue.
    pub fn revive(self, name: &str) -> Backend {
        rustix::net::listen(&self.listener, 128).unwrap();
        let name = name.to_owned();
        Backend::on(self.listener, Backend::answering(move |_| http::ok(&name)))
    }
}

impl Default for BlackHole {
    fn default() -> Self {
        Self::new()
    }
}

/// Closes with RST instead of FIN, throwing away what is unsent.
pub fn reset(stream: TcpStream) {
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// Like [`reset`], for a stream that has further descriptors (a [`Backend`] keeps one): connecting a
/// socket to nowhere resets it whoever holds it.
pub fn reset_all(stream: &TcpStream) {
    rustix::net::connect_unspec(stream).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cgroup, Cmd, Need, Net, Temp, lacks, program};

    #[test]
    fn a_black_hole_gives_no_answer_until_it_is_revived() {
        let hole = BlackHole::new();
        let error = TcpStream::connect_timeout(&hole.addr(), Duration::from_millis(200)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let back = hole.revive("back");
        assert_eq!(http::get(back.addr(), "/").unwrap().text(), "back");
    }

    #[test]
    fn what_refuses_refuses_and_what_resets_resets() {
        let refused = TcpStream::connect(Refusing::new().addr()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let server = Backend::tcp(|stream| reset_all(&stream));
        let end = Conn::open(server.addr()).unwrap().rest().unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_stopped_backend_cuts_and_refuses() {
        let mut server = Backend::named("x");
        let mut conn = Conn::open(server.addr()).unwrap();
        assert_eq!(conn.get("/").unwrap().text(), "x");
        server.stop();
        conn.get("/").unwrap_err();
        assert!(Conn::open(server.addr()).is_err());
        let again = Backend::named_at(server.addr(), "again");
        assert_eq!(http::get(again.addr(), "/").unwrap().text(), "again");
    }

    #[test]
    fn groups_and_namespaces_leave_nothing() {
        if lacks(&[Need::Root, Need::Program("nginx"), Need::Program("ip")]) {
            return;
        }
        let (group, net, dir) = (Cgroup::new("g"), Net::new(), Temp::new());
        let place = program::Place { cgroup: Some(&group), net: Some(&net) };
        let server = program::nginx("far", &place);
        assert_eq!(http::get(server.addr(), "/").unwrap().text(), "far");
        assert_eq!(group.pids(), [server.proc.pid() as i32]);
        net.black_hole();
        let error = TcpStream::connect_timeout(&server.addr(), Duration::from_millis(200)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        net.heal();
        assert_eq!(http::get(server.addr(), "/").unwrap().text(), "far");
        let left = Cmd::line("sleep 1000").cgroup(&group).spawn(&dir.file("log"));
        let (path, name) = (group.path().to_owned(), net.name().to_owned());
        drop((server, group, net));
        assert!(!path.exists());
        assert!(!Cmd::line("ip netns list").run().ok().contains(&name));
        drop(left);
    }
}
