//! What comes after `101 Switching Protocols`: bytes both ways, as for raw TCP.

use bytes::{Bytes, BytesMut};
use hyper_util::rt::TokioIo;

use super::{guard::Guard, pool::ToServer};
use crate::{
    call::{CallError, ErrorKind, Retry, Upgrade},
    protocol::{
        ConnError,
        tcp::{Report, Side, both_ways, reset_on_close},
    },
};

/// Joins a caller's connection, of which hyper had read `read` too much, with its endpoint's, and copies
/// until both halves have ended or one connection broke. The call's watch is told.
pub(super) async fn run(caller: Guard, read: Bytes, endpoint: Upgrade, report: Report) -> Result<(), ConnError> {
    let Upgrade { on, mut watch } = endpoint;
    let complete = !caller.is_blocked();
    let (io, early) = caller.into_parts();
    let endpoint = match on.await {
        Ok(endpoint) if complete => endpoint,
        other => {
            let why = other.err().map_or("the caller does not read its answers".to_owned(), |error| error.to_string());
            let message = format!("the connection broke while it changed protocols: {why}");
            if let Some(watch) = &mut watch {
                watch.end(Some(&CallError::upstream(ErrorKind::Reset, Retry::Never, message.clone())));
            }
            reset_on_close(io.socket());
            return Err(ConnError::Unserved(message));
        }
    };
    let Ok(endpoint) = endpoint.downcast::<TokioIo<ToServer>>() else {
        reset_on_close(io.socket());
        return Err(ConnError::Unserved("an upgrade gave back another connection".to_owned()));
    };
    let caller = Side { io, prefix: join(read, early) };
    let endpoint = Side { io: endpoint.io.into_inner().into_inner(), prefix: endpoint.read_buf };
    reset_on_close(caller.io.socket());
    let copied = both_ways(caller, endpoint, Report { watch, ..report });
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
