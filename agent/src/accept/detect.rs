//! Which protocol an undeclared connection speaks, without making anyone wait for the answer.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{io::Interest, net::TcpStream, time::Instant};

use super::Acceptor;
use crate::{
    call::{CallError, Response, ResponseHead},
    protocol::{ConnError, Detect, tcp},
    route::{Destination, Route},
    stream::Stream,
};

/// More than any protocol needs to be told from the others.
const PREFIX_BYTES: usize = 256;

const NEVER: Duration = Duration::from_secs(24 * 3600);

/// The route of its protocol, what was read to find out, and the connection to an endpoint if it stays raw.
type Detected = (Arc<Route>, Bytes, Option<Response>);

impl Acceptor {
    /// Dials an endpoint at once, so that a server that speaks first (MySQL, SMTP) is heard without
    /// waiting, and looks at whoever speaks first. The program's first bytes decide between protocols;
    /// the server's decide for raw TCP.
    pub(super) async fn detect(&self, io: &TcpStream, destination: &Destination) -> Result<Detected, ConnError> {
        let mut prefix = BytesMut::new();
        let raw = destination.speaking(tcp::NAME).and_then(|r| r.only());
        let dial = async {
            match &raw {
                Some(cluster) => cluster.call(&mut tcp::connect_request(io.peer_addr().ok())).await,
                // Several declared protocols share this address and none of them is raw: nobody is dialled.
                None => std::future::pending().await,
            }
        };
        tokio::pin!(dial);
        let mut dialled: Option<Result<Response, CallError>> = None;
        // Set by the first byte of an undecided prefix, or by a failed dial.
        let mut until: Option<Instant> = None;
        // Zero means never; a day without a byte is as good as that.
        let idle = if self.limits.idle_timeout.is_zero() { NEVER } else { self.limits.idle_timeout };
        let found = loop {
            let deadline = until.unwrap_or_else(|| Instant::now() + idle);
            let server = match &dialled {
                Some(Ok(Response { head: ResponseHead::Raw(raw), .. })) => Some(&raw.io),
                _ => None,
            };
            tokio::select! {
                biased;
                ready = io.ready(Interest::READABLE) => {
                    ready?;
                    let before = prefix.len();
                    prefix.reserve(PREFIX_BYTES);
                    match io.try_read_buf(&mut prefix) {
                        Ok(0) => break tcp::NAME,
                        Ok(_) => {}
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                        Err(error) => return Err(error.into()),
                    }
                    match self.judge(&prefix) {
                        Some(name) => break name,
                        None if prefix.len() >= PREFIX_BYTES => break tcp::NAME,
                        None if before == 0 => until = Some(Instant::now() + self.limits.detect_timeout),
                        None => {}
                    }
                }
                result = &mut dial, if dialled.is_none() => {
                    if result.is_err() && until.is_none() {
                        // A program that speaks first may still get its protocol's own error.
                        until = Some(Instant::now() + self.limits.detect_timeout);
                    }
                    dialled = Some(result);
                }
                () = server_speaks(server.map(Stream::socket)) => break tcp::NAME,
                () = tokio::time::sleep_until(deadline) => break tcp::NAME,
            }
        };
        self.counters.detected(found);
        let Some(route) = destination.speaking(found).cloned() else {
            tcp::reset_on_close(io);
            return Err(ConnError::Unserved(format!("nothing behind this address speaks {found}")));
        };
        let prefix = prefix.freeze();
        if found != tcp::NAME {
            if let Some(Ok(response)) = dialled {
                hand_over(&route, response);
            }
            return Ok((route, prefix, None));
        }
        let response = match dialled {
            Some(result) => result,
            None => dial.await,
        };
        match response {
            Ok(response) => Ok((route, prefix, Some(response))),
            Err(error) => {
                tcp::reset_on_close(io);
                Err(ConnError::Unserved(error.to_string()))
            }
        }
    }

    /// The protocol that `prefix` belongs to; `None` while more bytes could tell.
    fn judge(&self, prefix: &[u8]) -> Option<&'static str> {
        let mut undecided = false;
        for (name, protocol) in &self.protocols {
            match protocol.detect(prefix) {
                // TCP takes everything, so it counts only when nobody else might.
                Detect::Yes if *name != tcp::NAME || !undecided => return Some(name),
                Detect::NeedMore => undecided = true,
                Detect::Yes | Detect::No => {}
            }
        }
        None
    }
}

async fn server_speaks(server: Option<&TcpStream>) {
    match server {
        // An error or the end is for the copying of bytes to find and pass on.
        Some(io) => drop(io.ready(Interest::READABLE).await),
        None => std::future::pending().await,
    }
}

/// Gives a connection that was dialled for raw TCP to the cluster that can use it, and takes the raw
/// call off the books.
fn hand_over(route: &Route, response: Response) {
    let (ResponseHead::Raw(raw), Some(endpoint)) = (response.head, response.endpoint) else { return };
    if let Some(watch) = raw.watch {
        watch.abandon();
    }
    if let Some(cluster) = route.only() {
        cluster.adopt(endpoint, raw.io);
    }
}
