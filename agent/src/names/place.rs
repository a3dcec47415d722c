//! Sockets in the network namespace whose programs are served: their resolvers may be on its own loopback.

use std::{io, net::SocketAddr};

use socket2::{Domain, Socket, Type};
use tokio::sync::{mpsc, oneshot};

use crate::capture::enroll::space::Space;

/// Sockets that are waited for at once; who comes then waits to be heard.
const ORDERS: usize = 64;

/// A network namespace in which resolvers are asked.
pub(super) enum Place {
    /// The agent's own.
    Here,
    /// Another one, by a thread that lives there for as long as this does.
    There(mpsc::Sender<Order>),
}

/// A socket that is wanted.
pub(super) struct Order {
    domain: Domain,
    kind: Type,
    made: oneshot::Sender<io::Result<Socket>>,
}

impl Place {
    /// Another namespace. Needs CAP_SYS_ADMIN; without, every [`socket`](Self::socket) is an error.
    pub(super) fn there(space: &Space) -> io::Result<Self> {
        let (orders, mut wanted) = mpsc::channel::<Order>(ORDERS);
        space.stay(move || {
            while let Some(Order { domain, kind, made }) = wanted.blocking_recv() {
                // Who wanted it may have given up.
                let _ = made.send(Socket::new(domain, kind, None));
            }
        })?;
        Ok(Self::There(orders))
    }

    /// A socket for asking the resolver at `to`, that does not block.
    pub(super) async fn socket(&self, to: SocketAddr, kind: Type) -> io::Result<Socket> {
        let domain = Domain::for_address(to);
        let socket = match self {
            Self::Here => Socket::new(domain, kind, None)?,
            Self::There(orders) => {
                let (made, socket) = oneshot::channel();
                let gone = |_| io::Error::other("the network namespace cannot be entered");
                orders.send(Order { domain, kind, made }).await.map_err(|_| gone(()))?;
                socket.await.map_err(|_| gone(()))??
            }
        };
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}
