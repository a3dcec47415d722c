//! Opening a connection to an endpoint.

use std::{io, net::SocketAddr, time::Duration};

use tokio::net::{TcpSocket, TcpStream};

use crate::{
    call::{CallError, ErrorKind, Retry, Side},
    sys,
};

/// How connections to an endpoint are opened.
#[derive(Clone, Debug)]
pub struct DialOptions {
    /// Time to establish the connection.
    pub connect_timeout: Duration,
    /// Mark on the socket by which the kernel half recognises the agent's own connections; `None`
    /// without the right to set one.
    pub mark: Option<u32>,
}

impl Default for DialOptions {
    fn default() -> Self {
        Self { connect_timeout: Duration::from_millis(250), mark: None }
    }
}

/// Opens a connection. Every error is [`Retry::NotSent`]: nothing of the call has left.
pub async fn dial(addr: SocketAddr, options: &DialOptions) -> Result<TcpStream, CallError> {
    let failed = |kind, what: &str, error: &dyn std::fmt::Display| {
        CallError::upstream(kind, Retry::NotSent, format!("{what} {addr}: {error}"))
    };
    let connect = async {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(mark) = options.mark {
            socket2::SockRef::from(&socket).set_mark(mark)?;
        }
        socket.set_nodelay(true)?;
        socket.connect(addr).await
    };
    match tokio::time::timeout(options.connect_timeout, connect).await {
        Ok(Ok(stream)) if is_self_connected(&stream) => {
            // A dial to a free port of the ephemeral range can meet itself (simultaneous open).
            Err(failed(ErrorKind::Connect, "cannot connect to", &"nobody listens there (the connection met itself)"))
        }
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => {
            Err(failed(ErrorKind::ConnectTimeout, "cannot connect to", &error))
        }
        Ok(Err(error)) if is_own_shortage(&error) => Err(CallError {
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

fn is_self_connected(stream: &TcpStream) -> bool {
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(local), Ok(peer)) if local == peer)
}
