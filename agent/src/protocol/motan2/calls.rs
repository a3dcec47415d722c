//! [`Calls`]: the calls of one connection, run side by side within its task.
//!
//! What `FuturesUnordered` does, with two differences that a call shorter than a system call feels: the room of
//! a call that is over is used for the next one, and a round in which every call was polled does not wake the
//! task again. The latter has tokio rouse another thread, for nothing, with each call of a connection that
//! carries one at a time.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use parking_lot::Mutex;

/// Rooms kept for calls to come. A connection rarely has more under way than in its last busy moment.
const SPARE: usize = 16;

/// Futures that are polled when they are woken. Dropping it drops them all.
pub(super) struct Calls<F> {
    slots: Vec<Slot<F>>,
    free: Vec<usize>,
    running: usize,
    ready: Arc<Mutex<Ready>>,
}

struct Slot<F> {
    room: Option<Pin<Box<Option<F>>>>,
    wake: Arc<SlotWake>,
    waker: Waker,
}

#[derive(Default)]
struct Ready {
    slots: VecDeque<usize>,
    /// Waits for one of them.
    task: Option<Waker>,
}

struct SlotWake {
    index: usize,
    queued: AtomicBool,
    ready: Arc<Mutex<Ready>>,
}

impl Wake for SlotWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let task = {
            let mut ready = self.ready.lock();
            ready.slots.push_back(self.index);
            // Taken: the first of many that are ready wakes the task, and it sees the others.
            ready.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl<F: Future> Calls<F> {
    pub(super) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), running: 0, ready: Arc::default() }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.running == 0
    }

    /// Adds a call, which runs from the next [`Calls::poll_next`] on.
    pub(super) fn push(&mut self, call: F) {
        let index = self.free.pop().unwrap_or_else(|| {
            let wake = Arc::new(SlotWake {
                index: self.slots.len(),
                queued: AtomicBool::new(false),
                ready: self.ready.clone(),
            });
            let waker = Waker::from(wake.clone());
            self.slots.push(Slot { room: None, wake, waker });
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        match &mut slot.room {
            Some(room) => room.as_mut().set(Some(call)),
            none => *none = Some(Box::pin(Some(call))),
        }
        self.running += 1;
        // It may be queued already: somebody still had the waker of the call before it.
        if !slot.wake.queued.swap(true, Ordering::AcqRel) {
            self.ready.lock().slots.push_back(index);
        }
    }

    /// What the next call that is over gave; `None` without calls.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<F::Output>> {
        // A call that wakes itself each time it is polled must not keep the task to itself.
        for _ in 0..=2 * self.slots.len() {
            if self.running == 0 {
                return Poll::Ready(None);
            }
            let index = {
                let mut ready = self.ready.lock();
                match ready.slots.pop_front() {
                    Some(index) => index,
                    None => {
                        match &mut ready.task {
                            Some(task) => task.clone_from(cx.waker()),
                            none => *none = Some(cx.waker().clone()),
                        }
                        return Poll::Pending;
                    }
                }
            };
            let slot = &mut self.slots[index];
            // Before the poll: what wakes it from now on queues it again.
            slot.wake.queued.store(false, Ordering::Release);
            let Some(room) = &mut slot.room else { continue };
            let Some(call) = room.as_mut().as_pin_mut() else { continue };
            if let Poll::Ready(output) = call.poll(&mut Context::from_waker(&slot.waker)) {
                if self.free.len() < SPARE {
                    room.as_mut().set(None);
                } else {
                    slot.room = None;
                }
                self.free.push(index);
                self.running -= 1;
                return Poll::Ready(Some(output));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{poll_fn, ready},
        sync::atomic::AtomicUsize,
    };

    use futures_util::{FutureExt as _, future::BoxFuture};
    use tokio::sync::oneshot;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn poll<F: Future>(calls: &mut Calls<F>, woken: &Arc<Woken>) -> Poll<Option<F::Output>> {
        calls.poll_next(&mut Context::from_waker(&Waker::from(woken.clone())))
    }

    #[test]
    fn calls_end_in_any_order_and_wake_the_task_once() {
        let woken = Arc::new(Woken::default());
        let count = || woken.0.load(Ordering::Relaxed);
        let mut calls = Calls::new();
        assert_eq!(poll(&mut calls, &woken), Poll::Ready(None));
        let mut ends = Vec::new();
        for _ in 0..40 {
            let (end, call) = oneshot::channel::<u32>();
            ends.push(end);
            calls.push(call);
        }
        assert_eq!(poll(&mut calls, &woken), Poll::Pending);
        assert_eq!(count(), 0, "polling all of them is no reason to be polled again");
        for (n, end) in ends.into_iter().enumerate().rev() {
            end.send(n as u32).unwrap();
        }
        assert_eq!(count(), 1);
        for n in (0..40).rev() {
            assert_eq!(poll(&mut calls, &woken), Poll::Ready(Some(Ok(n))));
        }
        assert!(calls.is_empty() && poll(&mut calls, &woken) == Poll::Ready(None));
        assert_eq!(calls.slots.iter().filter(|slot| slot.room.is_some()).count(), SPARE);
        // Rooms are used again.
        let (end, call) = oneshot::channel();
        calls.push(call);
        assert_eq!(calls.slots.len(), 40);
        assert_eq!(poll(&mut calls, &woken), Poll::Pending);
        drop(end);
        assert!(matches!(poll(&mut calls, &woken), Poll::Ready(Some(Err(_)))));
    }

    #[test]
    fn an_old_waker_does_no_harm_and_a_greedy_call_lets_others_run() {
        let woken = Arc::new(Woken::default());
        let mut calls: Calls<BoxFuture<'static, u32>> = Calls::new();
        let kept = Arc::new(Mutex::new(None::<Waker>));
        let keeps = kept.clone();
        let mut polls = 0;
        calls.push(
            poll_fn(move |cx| {
                *keeps.lock() = Some(cx.waker().clone());
                polls += 1;
                if polls == 2 { Poll::Ready(1) } else { Poll::Pending }
            })
            .boxed(),
        );
        assert_eq!(poll(&mut calls, &woken), Poll::Pending);
        let waker = kept.lock().take().unwrap();
        waker.wake_by_ref();
        assert_eq!(poll(&mut calls, &woken), Poll::Ready(Some(1)));
        waker.wake();
        assert_eq!(poll(&mut calls, &woken), Poll::Ready(None));
        calls.push(ready(2).boxed());
        assert_eq!(poll(&mut calls, &woken), Poll::Ready(Some(2)));

        let before = woken.0.load(Ordering::Relaxed);
        calls.push(
            poll_fn(|cx| {
                cx.waker().wake_by_ref();
                Poll::Pending
            })
            .boxed(),
        );
        assert_eq!(poll(&mut calls, &woken), Poll::Pending);
        assert_eq!(woken.0.load(Ordering::Relaxed), before + 1);
    }
}
