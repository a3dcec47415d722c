//! Server half: one task per caller's connection, which reads calls, runs them side by side and writes
//! their answers as they come.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, Sleep},
};

use super::{
    WRITE_TIMEOUT,
    answer::{Answerer, Done},
    calls::Calls,
    codec::{Decoded, Frame, Head, kind},
    inbox::Inbox,
    motan1,
    outbox::Outbox,
    request::{self, Incoming},
};
use crate::{call::Pairs, config, drain::Drain, metrics::Live, protocol::ConnError, route::Route};

/// Answers in flight when a stop begins must not be lost to a reset, which the kernel sends when a
/// socket is closed with bytes unread: for this long what still comes is read and thrown away.
const LINGER: Duration = Duration::from_millis(500);
/// Bodies held for one connection, in multiples of the largest one: requests being carried and answers
/// not yet written. Beyond it nothing is read until something is done.
const HELD_BODIES: usize = 4;

/// A caller's connection, apart from its bytes.
pub(super) struct Caller {
    pub peer: SocketAddr,
    pub live: Option<Arc<Live>>,
    pub route: Arc<Route>,
    pub limits: config::Limits,
}

/// Serves `io` until its end. Dropping the future cancels all its calls.
pub(super) async fn serve<I>(io: I, caller: Caller, mut drain: Drain) -> Result<(), ConnError>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let mut session = Session::new(io, caller);
    let mut calls = Calls::new();
    let mut stopping = pin!(drain.graceful());
    let mut stopped = false;
    poll_fn(|cx| {
        if !stopped && stopping.as_mut().poll(cx).is_ready() {
            stopped = true;
            session.stop();
        }
        loop {
            // All answers that are ready are written together, and so are those to calls that went nowhere.
            while let Poll::Ready(Some(done)) = calls.poll_next(cx) {
                session.answer(done);
            }
            let read = session.read(cx, |incoming| calls.push(request::carry(incoming)))?;
            session.write(cx)?;
            match read {
                // New futures must be polled once to be woken at all: round again.
                Read::Calls => {}
                // Written answers made room for frames that are here already.
                Read::Full if session.has_room() => {}
                Read::Full | Read::Nothing => break,
            }
        }
        if session.reading == Reading::Over && calls.is_empty() && session.out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        session.time(cx, calls.is_empty())
    })
    .await?;
    session.finish().await;
    Ok(())
}

enum Read {
    /// There were some.
    Calls,
    /// The window is full.
    Full,
    /// Nothing has arrived, or nothing will.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    On,
    /// A stop was asked for: what has arrived is still served, up to the end of a frame.
    Stopping,
    Over,
}

struct Session<I> {
    io: I,
    inbox: Inbox,
    out: Outbox,
    reading: Reading,
    /// The peer has closed its side.
    ended: bool,
    /// Calls begun and not answered, and the bytes of their bodies.
    held: usize,
    held_bytes: usize,
    answerer: Answerer,
    incoming: request::Reader,
    live: Option<Arc<Live>>,
    limits: config::Limits,
    /// When a byte last came or went.
    active: Instant,
    written: u64,
    /// Since when the caller takes nothing of what waits.
    stuck_since: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    armed: Option<Instant>,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Session<I> {
    fn new(io: I, caller: Caller) -> Self {
        let Caller { peer, live, route, limits } = caller;
        let now = Instant::now();
        Self {
            io,
            inbox: Inbox::new(limits.content_bytes),
            out: Outbox::default(),
            reading: Reading::On,
            ended: false,
            held: 0,
            held_bytes: 0,
            answerer: Answerer::new(route.direction),
            incoming: request::Reader::new(route, peer, live.as_deref(), limits.content_bytes),
            live,
            limits,
            active: now,
            written: 0,
            stuck_since: None,
            timer: Box::pin(tokio::time::sleep_until(now)),
            armed: None,
        }
    }

    /// Takes nothing new but what has arrived already.
    fn stop(&mut self) {
        if self.reading == Reading::On {
            self.reading = Reading::Stopping;
        }
    }

    fn answer(&mut self, done: Done) {
        self.held -= 1;
        self.held_bytes -= done.ticket.bytes;
        if let (Some(live), Some(cluster)) = (&self.live, &done.ticket.cluster) {
            live.called(&cluster.info.service, done.endpoint());
        }
        self.answerer.write(done, &mut self.out);
    }

    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Poll::Ready(Err(error)) = self.out.poll_write(&mut self.io, cx) {
            return Err(error);
        }
        let moved = self.written != self.out.written();
        if moved {
            self.written = self.out.written();
            self.active = Instant::now();
        }
        if self.out.is_empty() {
            self.stuck_since = None;
        } else if moved || self.stuck_since.is_none() {
            self.stuck_since = Some(Instant::now());
        }
        Ok(())
    }

    /// Takes calls that have arrived, reading for them if there is room for one.
    fn read(&mut self, cx: &mut Context<'_>, mut take: impl FnMut(Incoming)) -> Result<Read, ConnError> {
        loop {
            let mut any = false;
            while let Some(incoming) = self.next_call()? {
                take(incoming);
                any = true;
            }
            if any {
                return Ok(Read::Calls);
            }
            if !self.has_room() {
                return Ok(Read::Full);
            }
            if self.reading == Reading::Over {
                return Ok(Read::Nothing);
            }
            match self.inbox.poll_fill(&mut self.io, cx) {
                Poll::Ready(Ok(0)) => {
                    self.ended = true;
                    self.reading = Reading::Over;
                }
                Poll::Ready(Ok(_)) => self.active = Instant::now(),
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Pending => {
                    if self.reading == Reading::Stopping && self.inbox.is_empty() {
                        self.reading = Reading::Over;
                    }
                    return Ok(Read::Nothing);
                }
            }
        }
    }

    /// A call among the frames that have arrived; heartbeats and calls to nowhere are answered here.
    fn next_call(&mut self) -> Result<Option<Incoming>, ConnError> {
        while self.has_room() {
            let frame = match self.inbox.next().map_err(|e| ConnError::Protocol(e.to_string()))? {
                Some(Decoded::Frame(frame)) => frame,
                Some(Decoded::Motan1(message)) => match motan1::answer(&message) {
                    Some(answer) => {
                        self.out.push_raw(answer);
                        continue;
                    }
                    None => {
                        let what = "a Motan1 message that is no request";
                        return Err(ConnError::Protocol(what.to_owned()));
                    }
                },
                Some(Decoded::NeedMore(_)) | None => return Ok(None),
            };
            if let Some(incoming) = self.frame(frame)? {
                return Ok(Some(incoming));
            }
        }
        Ok(None)
    }

    fn frame(&mut self, frame: Frame) -> Result<Option<Incoming>, ConnError> {
        let head = frame.head;
        if head.is(kind::RESPONSE) {
            return Err(ConnError::Protocol(format!("an answer ({:016x}) where calls are expected", head.id)));
        }
        if head.is(kind::HEARTBEAT) {
            let beat = kind::HEARTBEAT | kind::PROXY | kind::RESPONSE;
            self.out.push(Head { kind: beat, status: 0, ..head }, &Pairs::default(), &[], bytes::Bytes::new());
            return Ok(None);
        }
        match self.incoming.read(frame) {
            Ok(incoming) => {
                self.held += 1;
                self.held_bytes += incoming.ticket.bytes;
                Ok(Some(incoming))
            }
            Err(done) => {
                self.answerer.write(*done, &mut self.out);
                Ok(None)
            }
        }
    }

    fn has_room(&self) -> bool {
        self.held + self.out.len() < self.limits.calls_per_connection.max(1)
            && self.held_bytes + self.out.body_bytes() < HELD_BODIES * self.limits.content_bytes.max(1)
    }

    /// Ends a connection whose peer takes nothing, or that nobody uses.
    fn time(&mut self, cx: &mut Context<'_>, idle: bool) -> Poll<Result<(), ConnError>> {
        loop {
            let at = if let Some(since) = self.stuck_since {
                since + WRITE_TIMEOUT
            } else if idle && !self.limits.idle_timeout.is_zero() {
                self.active + self.limits.idle_timeout
            } else {
                return Poll::Pending;
            };
            if self.armed.is_none_or(|armed| at < armed) {
                self.timer.as_mut().reset(at);
                self.armed = Some(at);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.armed = None;
            if Instant::now() < at {
                continue;
            }
            if self.stuck_since.is_none() {
                return Poll::Ready(Ok(()));
            }
            let stuck = format!("the caller took no byte of its answers for {WRITE_TIMEOUT:?}");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, stuck).into()));
        }
    }

    /// Closes after everything was said.
    async fn finish(&mut self) {
        let saying_goodbye = async {
            self.io.shutdown().await?;
            let mut waste = [0; 1024];
            while !self.ended && self.io.read(&mut waste).await? > 0 {}
            io::Result::Ok(())
        };
        let _ = tokio::time::timeout(LINGER, saying_goodbye).await;
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
