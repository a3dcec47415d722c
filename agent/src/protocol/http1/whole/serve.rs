//! The server half: whole requests of one connection, one after the other, until hyper is needed.

use std::{
    future::poll_fn,
    pin::pin,
    task::{Context, Poll, ready},
};

use tokio::{io::AsyncWriteExt, time::Instant};

use super::{
    super::{
        guard::{Came, Guard},
        reply,
        server::{Session, stop},
    },
    Request, parse, write,
};
use crate::{
    call::{Body, CallError, Response, ResponseHead},
    drain::Drain,
    protocol::ConnError,
};

/// Why this half has no more to do.
pub(in super::super) enum Next {
    /// What the connection yields next is for hyper.
    Hyper,
    /// The connection is over.
    End,
}

/// Serves a connection on which nothing is under way for as long as whole requests come. The answer that hyper
/// shall give to the request that it will see first, if there is one, is in `session`.
pub(in super::super) async fn serve(
    guard: &mut Guard,
    session: &Session,
    drain: &mut Drain,
) -> Result<Next, ConnError> {
    let asked = drain.clone();
    let mut stop = pin!(stop(drain, &session.shared));
    loop {
        let came = tokio::select! {
            biased;
            came = poll_fn(|cx| guard.poll_whole(cx, parse::request)) => came?,
            // What is waited for is another time from now on.
            () = &mut stop, if !session.is_draining() => continue,
        };
        let request = match came {
            Came::Whole(request) => request,
            Came::Other => return Ok(Next::Hyper),
            Came::End => {
                guard.shutdown().await?;
                return Ok(Next::End);
            }
        };
        let raw = request.raw.clone();
        let Some(result) = answer(guard, session, request).await? else {
            // It has given up.
            return Ok(Next::End);
        };
        if asked.is_draining() {
            session.drains();
        }
        let Some(out) = encode(session, &result) else {
            // hyper sees the request again and gives the answer that is there.
            session.keep(result);
            guard.unread(raw);
            return Ok(Next::Hyper);
        };
        drop((raw, result));
        guard.write_all(&out).await?;
        guard.moved(Instant::now());
    }
}

/// Makes the call; `None` when the caller goes away before its end.
async fn answer(
    guard: &mut Guard,
    session: &Session,
    request: Request,
) -> Result<Option<Result<Response, CallError>>, ConnError> {
    // Boxed, because the connection would keep the room for it while it idles.
    let mut call = Box::pin(session.whole(request));
    poll_fn(|cx: &mut Context<'_>| {
        if let Poll::Ready(result) = call.as_mut().poll(cx) {
            return Poll::Ready(Ok(Some(result)));
        }
        ready!(guard.poll_gone(cx))?;
        Poll::Ready(Ok(None))
    })
    .await
}

/// The answer as it goes over the wire; `None` when hyper must write it.
fn encode(session: &Session, result: &Result<Response, CallError>) -> Option<Vec<u8>> {
    if session.is_draining() {
        // It says so, and the connection closes after it.
        return None;
    }
    match result {
        Ok(response) => {
            let ResponseHead::Http(head) = &response.head else { return None };
            let body: &[u8] = match &response.body {
                Body::Empty => b"",
                Body::Full(bytes) => bytes,
                Body::Stream(_) => return None,
            };
            if head.upgrade.is_some() {
                return None;
            }
            write::response(head.status, &head.headers, body)
        }
        Err(error) => {
            let own = reply::to_error(error);
            write::response(own.status, &own.headers, &own.body)
        }
    }
}
