//! What comes after `101 Switching Protocols`: bytes both ways, as for raw TCP.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::{guard::Guard, pool::ToServer};
use crate::{
    call::{CallError, ErrorKind, Retry, Upgrade},
    metrics::Live,
    protocol::{
        ConnError,
        tcp::{Report, Side, both_ways},
    },
};

/// Both ends of a connection that has left HTTP.
pub(super) struct Tunnel {
    pub(super) caller: OnUpgrade,
    pub(super) endpoint: Upgrade,
}

/// Takes both ends out of HTTP and copies until both halves have ended or one connection broke.
pub(super) async fn run(tunnel: Tunnel, live: Arc<Live>, idle_timeout: Duration) -> Result<(), ConnError> {
    let Tunnel { caller, endpoint: Upgrade { on, mut watch } } = tunnel;
    let (caller, endpoint) = match (caller.await, on.await) {
        (Ok(caller), Ok(endpoint)) => (caller, endpoint),
        (Err(error), _) | (_, Err(error)) => {
            if let Some(watch) = &mut watch {
                let message = format!("the connection broke while it changed protocols: {error}");
                watch.end(Some(&CallError::upstream(ErrorKind::Reset, Retry::Never, message)));
            }
            return Err(ConnError::Unserved(error.to_string()));
        }
    };
    let (Ok(caller), Ok(endpoint)) = (caller.downcast::<TokioIo<Guard>>(), endpoint.downcast::<TokioIo<ToServer>>())
    else {
        return Err(ConnError::Unserved("an upgrade gave back another connection".to_owned()));
    };
    let (io, early) = caller.io.into_inner().into_parts();
    let caller = Side { io, prefix: join(caller.read_buf, early) };
    let endpoint = Side { io: endpoint.io.into_inner().into_inner(), prefix: endpoint.read_buf };
    let copied = both_ways(caller, endpoint, Report { live, watch, idle_timeout });
    copied.await.map_err(|error| ConnError::Unserved(error.to_string()))
}

fn join(first: Bytes, second: Bytes) -> Bytes {
    if first.is_empty() {
        return second;
    }
    if second.is_empty() {
        return first;
    }
    let mut all = BytesMut::from(&first[..]);
    all.extend_from_slice(&second);
    all.freeze()
}
