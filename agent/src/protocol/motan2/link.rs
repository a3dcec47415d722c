//! [`Link`]: one connection to an endpoint, carrying any number of calls.
//!
//! Callers put their frame and a slot for the answer into [`State`] under one short lock; the link's
//! task writes what is there in batches, reads answers and fills slots. Nothing is allocated per call.

use std::{
    collections::HashMap,
    future::Future,
    hash::{BuildHasherDefault, Hasher},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    task::AbortHandle,
    time::{Instant, Sleep},
};

use super::{
    WRITE_TIMEOUT,
    codec::{Decoded, Frame, kind},
    inbox::Inbox,
    outbox::Outbox,
};
use crate::{
    call::{CallError, ErrorKind, Retry},
    endpoint::Stats,
};

/// Frames that may wait for the link's task; callers beyond wait in turn, until their deadline.
const QUEUE: usize = 1024;
/// With this many frames waiting for it a system call is worth its price.
const GATHERED: usize = 16;

/// A connection; its task ends when this is dropped.
pub(super) struct Link {
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    endpoint: SocketAddr,
    stats: Arc<Stats>,
    state: Mutex<State>,
    /// A hint that needs no lock; what counts is `State::closed`.
    open: AtomicBool,
    /// Told when a full queue has room again.
    room: Notify,
}

#[derive(Default)]
struct State {
    closed: bool,
    calls: HashMap<u64, Slot, BuildHasherDefault<IdHasher>>,
    outbox: Outbox,
    /// Counts how often the task took the outbox: a slot of this round is still in it.
    round: u64,
    /// A call of this round was cancelled.
    cancelled: bool,
    /// Callers wait for room.
    crowded: bool,
    /// No call's deadline is before this.
    next_deadline: Option<Instant>,
    task: Option<Waker>,
}

struct Slot {
    deadline: Instant,
    round: u64,
    waker: Option<Waker>,
    answer: Option<Result<Frame, CallError>>,
}

/// Why a call did not get into the queue.
#[derive(Debug)]
pub(super) enum NotQueued {
    /// Try again after [`Link::room`].
    Full,
    /// The connection is gone.
    Closed,
}

impl Link {
    /// Takes over a connection. Must be called on the runtime that is to carry it.
    pub(super) fn spawn<I>(io: I, endpoint: SocketAddr, limit: usize, stats: Arc<Stats>) -> Self
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = Arc::new(Shared {
            endpoint,
            stats,
            state: Mutex::default(),
            open: AtomicBool::new(true),
            room: Notify::new(),
        });
        let carrier = Carrier {
            shared: shared.clone(),
            io,
            inbox: Inbox::new(limit),
            out: Outbox::default(),
            written: 0,
            stuck_since: None,
            frames: Vec::new(),
            wakers: Vec::new(),
            next_deadline: None,
            timer: Box::pin(tokio::time::sleep_until(Instant::now())),
            armed: None,
            gathering: false,
        };
        // Owned by this value: dropping the link ends the task.
        let task = tokio::spawn(carrier).abort_handle();
        Self { shared, task }
    }

    pub(super) fn is_open(&self) -> bool {
        self.shared.open.load(Relaxed)
    }

    /// Queues the frame that `write` appends, which must have request id `id`.
    pub(super) fn start(
        &self,
        id: u64,
        deadline: Instant,
        write: impl FnOnce(&mut Outbox),
    ) -> Result<Answer<'_>, NotQueued> {
        let mut guard = self.shared.state.lock();
        let state = &mut *guard;
        if state.closed {
            return Err(NotQueued::Closed);
        }
        if state.outbox.len() >= QUEUE {
            state.crowded = true;
            return Err(NotQueued::Full);
        }
        let idle = state.outbox.is_empty();
        write(&mut state.outbox);
        state.calls.insert(id, Slot { deadline, round: state.round, waker: None, answer: None });
        let sooner = state.next_deadline.is_none_or(|next| deadline < next);
        if sooner {
            state.next_deadline = Some(deadline);
        }
        // With frames waiting already, whoever queued the first has woken the task.
        let wake = if idle || sooner { state.task.take() } else { None };
        drop(guard);
        if let Some(task) = wake {
            task.wake();
        }
        Ok(Answer { shared: &self.shared, id, over: false })
    }

    /// Waits until a full queue has room, or the connection is gone. Cancel safe.
    pub(super) async fn room(&self) {
        let room = self.shared.room.notified();
        tokio::pin!(room);
        room.as_mut().enable();
        let full = {
            let state = self.shared.state.lock();
            !state.closed && state.outbox.len() >= QUEUE
        };
        if full {
            room.await;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The answer to a call; dropping it cancels the call.
pub(super) struct Answer<'a> {
    shared: &'a Shared,
    id: u64,
    over: bool,
}

impl Future for Answer<'_> {
    type Output = Result<Frame, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.shared.state.lock();
        let slot = state.calls.get_mut(&self.id).expect("only this future takes its slot away");
        let Some(answer) = slot.answer.take() else {
            match &mut slot.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        };
        state.calls.remove(&self.id);
        drop(state);
        self.over = true;
        Poll::Ready(answer)
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut state = self.shared.state.lock();
        let slot = state.calls.remove(&self.id);
        if slot.is_some_and(|slot| slot.round == state.round) {
            state.cancelled = true;
        }
    }
}

/// The link's task.
struct Carrier<I> {
    shared: Arc<Shared>,
    io: I,
    inbox: Inbox,
    out: Outbox,
    /// `out.written()` when it was looked at last.
    written: u64,
    /// Since when the endpoint takes nothing of what waits.
    stuck_since: Option<Instant>,
    /// Decoded but not yet handed out; kept for its room.
    frames: Vec<Frame>,
    /// To be woken after the lock; kept for its room.
    wakers: Vec<Waker>,
    /// No call's deadline is before this, as far as this task knows.
    next_deadline: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    armed: Option<Instant>,
    /// What is queued waits for more of it, until the next turn.
    gathering: bool,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Future for Carrier<I> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        match this.turn(cx) {
            Ok(()) => Poll::Pending,
            Err(error) => {
                tracing::debug!(endpoint = %this.shared.endpoint, %error, "connection to endpoint is over");
                this.close(error);
                Poll::Ready(())
            }
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Carrier<I> {
    /// Does all that can be done now. An error ends the connection.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<(), CallError> {
        // Whoever else is ready to run gets to queue its frame before one system call writes them all.
        let gather = !self.gathering && self.out.is_empty() && self.is_busy();
        self.gathering = gather;
        if gather {
            // Comes back once the runtime has run what is ready and looked at the sockets.
            let _ = pin!(tokio::task::yield_now()).poll(cx);
        } else {
            loop {
                let all_taken = self.take(cx);
                let written = self.out.poll_write(&mut self.io, cx).map_err(|e| self.reset(&e))?;
                if written.is_pending() || all_taken {
                    break;
                }
            }
        }
        while let Poll::Ready(read) = self.inbox.poll_fill(&mut self.io, cx) {
            if read.map_err(|e| self.reset(&e))? == 0 {
                return Err(self.reset(&"closed by the endpoint"));
            }
            let decoded = self.decode();
            self.deliver();
            decoded?;
        }
        self.time(cx)
    }

    /// Whether a frame is queued and others of its kind are under way. A call that is alone must not wait.
    fn is_busy(&self) -> bool {
        let state = self.shared.state.lock();
        !state.outbox.is_empty() && state.outbox.len() < GATHERED && state.calls.len() > state.outbox.len()
    }

    /// Takes over what callers queued. Returns whether nothing is left in the queue.
    fn take(&mut self, cx: &Context<'_>) -> bool {
        let mut guard = self.shared.state.lock();
        let state = &mut *guard;
        if state.task.as_ref().is_none_or(|task| !task.will_wake(cx.waker())) {
            state.task = Some(cx.waker().clone());
        }
        self.next_deadline = state.next_deadline;
        if state.outbox.is_empty() {
            return true;
        }
        // The two outboxes change places, so what is being written must be out first.
        if !self.out.is_empty() {
            return false;
        }
        std::mem::swap(&mut self.out, &mut state.outbox);
        self.written = self.out.written();
        state.round += 1;
        if std::mem::take(&mut state.cancelled) {
            self.out.retain(|id| state.calls.contains_key(&id));
        }
        if std::mem::take(&mut state.crowded) {
            self.shared.room.notify_waiters();
        }
        true
    }

    fn decode(&mut self) -> Result<(), CallError> {
        let rubbish = |what: &dyn std::fmt::Display, endpoint| {
            let message = format!("{endpoint} does not speak Motan2: {what}");
            CallError::upstream(ErrorKind::Protocol, Retry::IfIdempotent, message)
        };
        loop {
            match self.inbox.next() {
                Ok(Some(Decoded::Frame(frame))) => self.frames.push(frame),
                Ok(Some(_)) => return Err(rubbish(&"it answered in Motan1", self.shared.endpoint)),
                Ok(None) => return Ok(()),
                Err(error) => return Err(rubbish(&error, self.shared.endpoint)),
            }
        }
    }

    /// Puts answers into their slots.
    fn deliver(&mut self) {
        if self.frames.is_empty() {
            return;
        }
        let mut state = self.shared.state.lock();
        for frame in self.frames.drain(..) {
            match state.calls.get_mut(&frame.head.id) {
                Some(slot) if slot.answer.is_none() => {
                    slot.answer = Some(Ok(frame));
                    self.wakers.extend(slot.waker.take());
                }
                _ if frame.head.is(kind::HEARTBEAT) => {}
                _ => {
                    self.shared.stats.late.fetch_add(1, Relaxed);
                }
            }
        }
        drop(state);
        self.wakers.drain(..).for_each(Waker::wake);
    }

    /// Ends calls whose time is over, and the connection when the endpoint takes nothing any more.
    ///
    /// One timer serves all calls: it is set to the first deadline and looks again when it fires, so a
    /// call that is answered in time costs no timer at all.
    fn time(&mut self, cx: &mut Context<'_>) -> Result<(), CallError> {
        let now = Instant::now();
        if self.out.is_empty() {
            self.stuck_since = None;
        } else if self.stuck_since.is_none() || self.written != self.out.written() {
            self.written = self.out.written();
            self.stuck_since = Some(now);
        }
        loop {
            let write_by = self.stuck_since.map(|since| since + WRITE_TIMEOUT);
            let Some(at) = self.next_deadline.into_iter().chain(write_by).min() else { return Ok(()) };
            if self.armed.is_none_or(|armed| at < armed) {
                self.timer.as_mut().reset(at);
                self.armed = Some(at);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            self.armed = None;
            let now = Instant::now();
            if write_by.is_some_and(|by| by <= now) {
                return Err(self.reset(&format_args!("the endpoint took no byte for {WRITE_TIMEOUT:?}")));
            }
            self.expire(now);
        }
    }

    fn expire(&mut self, now: Instant) {
        let mut state = self.shared.state.lock();
        let mut next: Option<Instant> = None;
        for slot in state.calls.values_mut().filter(|slot| slot.answer.is_none()) {
            if slot.deadline <= now {
                let message = "the endpoint did not answer before the deadline";
                slot.answer = Some(Err(CallError::upstream(ErrorKind::Timeout, Retry::IfIdempotent, message)));
                self.wakers.extend(slot.waker.take());
            } else {
                next = Some(next.map_or(slot.deadline, |next| next.min(slot.deadline)));
            }
        }
        state.next_deadline = next;
        self.next_deadline = next;
        drop(state);
        self.wakers.drain(..).for_each(Waker::wake);
    }
}

impl<I> Carrier<I> {
    fn reset(&self, what: &dyn std::fmt::Display) -> CallError {
        let message = format!("connection to {}: {what}", self.shared.endpoint);
        CallError::upstream(ErrorKind::Reset, Retry::IfIdempotent, message)
    }

    /// Ends every call: those of which no byte was written may be sent elsewhere.
    fn close(&mut self, error: CallError) {
        let mut guard = self.shared.state.lock();
        let state = &mut *guard;
        if state.closed {
            return;
        }
        let not_sent = CallError { retry: Retry::NotSent, ..error.clone() };
        for id in self.out.untouched() {
            if let Some(slot) = state.calls.get_mut(&id) {
                slot.round = state.round;
            }
        }
        for slot in state.calls.values_mut().filter(|slot| slot.answer.is_none()) {
            slot.answer = Some(Err(if slot.round == state.round { not_sent.clone() } else { error.clone() }));
            self.wakers.extend(slot.waker.take());
        }
        state.outbox = Outbox::default();
        state.closed = true;
        self.shared.open.store(false, Relaxed);
        drop(guard);
        self.wakers.drain(..).for_each(Waker::wake);
        self.shared.room.notify_waiters();
    }
}

impl<I> Drop for Carrier<I> {
    /// Aborted, or a panic: nobody may wait for an answer that cannot come.
    fn drop(&mut self) {
        let gone = self.reset(&"the agent gave it up");
        self.close(gone);
    }
}

/// Request ids are made by this agent, one apart: one multiplication spreads them well enough.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, id: u64) {
        self.0 = (self.0 ^ id).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
