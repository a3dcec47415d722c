//! Graceful stop: everyone who must finish holds a [`Drain`], and stopping waits for the last one.

use std::{
    future::poll_fn,
    pin::pin,
    task::{Poll, Waker, ready},
    time::Duration,
};

use tokio::sync::{mpsc, watch};

/// How far the stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Serving.
    Run,
    /// Finish what is held, take nothing new, tell peers to go elsewhere.
    Graceful,
    /// The deadline has passed: drop everything now.
    Forced,
}

/// The one side that decides to stop.
pub struct Drainer {
    stage: watch::Sender<Stage>,
    // Nothing is ever sent: the channel closes when the last `Drain` is dropped.
    alive: mpsc::Receiver<()>,
}

/// Held by anything that must finish before the process ends; clone it into every task.
/// A drain is complete when all of them are dropped.
#[derive(Clone, Debug)]
pub struct Drain {
    stage: watch::Receiver<Stage>,
    _alive: mpsc::Sender<()>,
}

/// Makes the two sides.
pub fn new() -> (Drainer, Drain) {
    let (stage, rx) = watch::channel(Stage::Run);
    let (tx, alive) = mpsc::channel(1);
    (Drainer { stage, alive }, Drain { stage: rx, _alive: tx })
}

impl Drainer {
    /// Asks everyone to finish, waits until they have or `deadline` is over, then forces the rest.
    /// Returns whether everyone finished in time. The caller must have dropped its own `Drain`.
    pub async fn drain(mut self, deadline: Duration) -> bool {
        self.stage.send_replace(Stage::Graceful);
        let in_time = tokio::time::timeout(deadline, self.alive.recv()).await.is_ok();
        if !in_time {
            self.stage.send_replace(Stage::Forced);
            // Tasks end at their next await; this bounds the wait for one that never yields.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.alive.recv()).await;
        }
        in_time
    }
}

impl Drain {
    /// Whether a stop was asked for.
    pub fn is_draining(&self) -> bool {
        *self.stage.borrow() >= Stage::Graceful
    }

    /// Waits until a stop is asked for. Cancel safe.
    pub async fn graceful(&mut self) {
        self.reached(Stage::Graceful).await;
    }

    /// Waits until the deadline of a stop has passed. Cancel safe.
    pub async fn forced(&mut self) {
        self.reached(Stage::Forced).await;
    }

    async fn reached(&mut self, stage: Stage) {
        let mut seen = self.stage.clone();
        // Unconstrained: whenever it is pending, it has kept the waker.
        let mut reached = pin!(tokio::task::unconstrained(self.stage.wait_for(|s| *s >= stage)));
        let mut woken: Option<Waker> = None;
        let mut gone = false;
        poll_fn(|cx| {
            // Connections ask each time they move. Asking the channel takes its lock, which the usual
            // answer, that nothing has happened, does not need.
            let waits = woken.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
            if gone || waits && matches!(seen.has_changed(), Ok(false)) {
                return Poll::Pending;
            }
            seen.mark_unchanged();
            woken = Some(cx.waker().clone());
            // An error means the drainer is gone, which is a stop without a deadline: never ready.
            gone = ready!(reached.as_mut().poll(cx)).is_err();
            if gone { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_the_last_holder() {
        let (drainer, drain) = new();
        let mut held = drain.clone();
        let task = tokio::spawn(async move {
            held.graceful().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
        });
        drop(drain);
        assert!(drainer.drain(Duration::from_secs(5)).await);
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn forces_after_the_deadline() {
        let (drainer, drain) = new();
        let mut held = drain.clone();
        let task = tokio::spawn(async move { held.forced().await });
        drop(drain);
        assert!(!drainer.drain(Duration::from_secs(5)).await);
        task.await.unwrap();
    }
}
