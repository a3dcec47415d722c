//! Opening a connection to an endpoint.

use std::{
    fmt, io,
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::net::{TcpSocket, TcpStream, UnixStream};

use crate::{
    call::{CallError, ErrorKind, Retry, Side},
    stream::{self, OwnSockets, Stream},
    sys,
};

/// Has whoever accepts the connection that a socket is about to open see a caller's address as its peer.
pub type Introduce = Arc<dyn Fn(BorrowedFd<'_>, SocketAddr) -> io::Result<()> + Send + Sync>;

/// How connections to an endpoint are opened.
#[derive(Clone)]
pub struct DialOptions {
    /// Time to establish the connection.
    pub connect_timeout: Duration,
    /// What the capture wants of the socket.
    pub own: OwnSockets,
    /// Shows the endpoint the callers; `None` where it sees the agent.
    pub introduce: Option<Introduce>,
    /// The endpoint listens on this unix socket; its address only stands for it.
    pub unix: Option<Arc<Path>>,
}

impl DialOptions {
    /// The caller that the endpoint is to see, and for which alone a connection to it is good; `None` when
    /// connections are for everybody.
    pub fn client(&self, caller: Option<SocketAddr>) -> Option<SocketAddr> {
        self.introduce.as_ref().and(caller)
    }
}

impl Default for DialOptions {
    fn default() -> Self {
        Self { connect_timeout: Duration::from_millis(250), own: OwnSockets::default(), introduce: None, unix: None }
    }
}

impl fmt::Debug for DialOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let introduce = self.introduce.is_some();
        f.debug_struct("DialOptions")
            .field("connect_timeout", &self.connect_timeout)
            .field("own", &self.own)
            .field("introduce", &introduce)
            .field("unix", &self.unix)
            .finish()
    }
}

/// Opens a connection. Every error is [`Retry::NotSent`]: nothing of the call has left.
pub async fn dial(addr: SocketAddr, options: &DialOptions) -> Result<Stream, CallError> {
    dial_for(addr, options, None).await
}

/// Opens a connection for a `caller`, whom the endpoint sees if the options say so. Errors as of [`dial`].
pub async fn dial_for(
    addr: SocketAddr,
    options: &DialOptions,
    caller: Option<SocketAddr>,
) -> Result<Stream, CallError> {
    let failed = |kind, what: &str, error: &dyn fmt::Display| {
        CallError::upstream(kind, Retry::NotSent, format!("{what} {addr}: {error}"))
    };
    if let Some(path) = &options.unix {
        return match tokio::time::timeout(options.connect_timeout, UnixStream::connect(path)).await {
            Ok(Ok(io)) => {
                Ok(stream::unix(io).map_err(|e| failed(ErrorKind::Connect, "cannot use the socket of", &e))?.into())
            }
            Ok(Err(error)) => {
                let message = format!("cannot connect to unix:{}: {error}", path.display());
                Err(CallError::upstream(ErrorKind::Connect, Retry::NotSent, message))
            }
            Err(_) => {
                let message = format!("cannot connect to unix:{}: no answer in time", path.display());
                Err(CallError::upstream(ErrorKind::ConnectTimeout, Retry::NotSent, message))
            }
        };
    }
    let connect = async {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(mark) = options.own.mark {
            socket2::SockRef::from(&socket).set_mark(mark)?;
        }
        socket.set_nodelay(true)?;
        if let (Some(introduce), Some(caller)) = (&options.introduce, caller)
            && let Err(error) = introduce(socket.as_fd(), caller)
        {
            // A call from an address that is not shown is better than none.
            tracing::debug!(%addr, %caller, %error, "the program sees the agent as its peer");
        }
        socket.connect(addr).await
    };
    match tokio::time::timeout(options.connect_timeout, connect).await {
        Ok(Ok(stream)) if is_self_connected(&stream, addr.port()) => {
            // A dial to a free port of the ephemeral range can meet itself (simultaneous open).
            Err(failed(ErrorKind::Connect, "cannot connect to", &"nobody listens there (the connection met itself)"))
        }
        Ok(Ok(stream)) => Ok(options.own.dialled(stream)),
        Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => {
            Err(failed(ErrorKind::ConnectTimeout, "cannot connect to", &error))
        }
        Ok(Err(error)) if is_own_shortage(&error) => Err(CallError {
            verbatim: false,
            kind: ErrorKind::Overload,
            side: Side::Mesh,
            // Without a descriptor no other endpoint can be reached either; without a free port, another can.
            retry: if error.kind() == io::ErrorKind::AddrNotAvailable { Retry::NotSent } else { Retry::Never },
            message: format!("cannot open a connection to {addr}: {error}").into(),
            endpoint: None,
        }),
        Ok(Err(error)) => Err(failed(ErrorKind::Connect, "cannot connect to", &error)),
        Err(_) => Err(failed(
            ErrorKind::ConnectTimeout,
            "cannot connect to",
            &format_args!("no answer within {:?}", options.connect_timeout),
        )),
    }
}

/// Errors that say something about this host, nothing about the endpoint.
fn is_own_shortage(error: &io::Error) -> bool {
    sys::is_shortage(error) || error.kind() == io::ErrorKind::AddrNotAvailable
}

fn is_self_connected(stream: &TcpStream, port: u16) -> bool {
    stream.local_addr().is_ok_and(|local| local.port() == port && stream.peer_addr().is_ok_and(|peer| peer == local))
}
