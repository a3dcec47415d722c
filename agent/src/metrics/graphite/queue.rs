//! Lines that wait for a target: bounded, the oldest go first when there is no room.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Some whole lines.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub text: String,
    pub lines: usize,
}

/// Batches in order. The batches of the latest interval are always kept whole: how long an interval is, is
/// bounded where series are made.
pub(super) struct Queue {
    limit_lines: usize,
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    batches: VecDeque<Arc<Batch>>,
    lines: usize,
    /// Taken by the carrier and not yet done with.
    out: bool,
}

impl Queue {
    pub(super) fn new(limit_lines: usize) -> Self {
        Self { limit_lines, inner: Mutex::default(), changed: Notify::new() }
    }

    /// Adds an interval. Returns how many lines were dropped for it.
    pub(super) fn push(&self, interval: Vec<Batch>) -> usize {
        let mut inner = self.inner.lock();
        let fresh: usize = interval.iter().map(|b| b.lines).sum();
        let mut dropped = 0;
        while inner.lines + fresh > self.limit_lines
            && let Some(oldest) = inner.batches.pop_front()
        {
            inner.lines -= oldest.lines;
            dropped += oldest.lines;
        }
        inner.lines += fresh;
        inner.batches.extend(interval.into_iter().filter(|b| b.lines > 0).map(Arc::new));
        drop(inner);
        self.changed.notify_waiters();
        dropped
    }

    /// Waits for a batch and takes it; `done` or `back` must follow. Cancel safe.
    pub(super) async fn next(&self) -> Arc<Batch> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that no push falls between.
            changed.as_mut().enable();
            {
                let mut inner = self.inner.lock();
                if let Some(batch) = inner.batches.pop_front() {
                    inner.lines -= batch.lines;
                    inner.out = true;
                    return batch;
                }
            }
            changed.await;
        }
    }

    /// The batch taken last is with the network.
    pub(super) fn done(&self) {
        self.inner.lock().out = false;
        self.changed.notify_waiters();
    }

    /// The batch taken last is to be sent again. Returns how many lines were dropped because there is no room
    /// any more.
    pub(super) fn back(&self, batch: Arc<Batch>) -> usize {
        let mut inner = self.inner.lock();
        inner.out = false;
        if inner.lines + batch.lines > self.limit_lines && inner.lines > 0 {
            return batch.lines;
        }
        inner.lines += batch.lines;
        inner.batches.push_front(batch);
        0
    }

    /// Lines that wait.
    pub(super) fn lines(&self) -> usize {
        self.inner.lock().lines
    }

    /// Resolves when nothing waits. Cancel safe.
    pub(super) async fn empty(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let inner = self.inner.lock();
                if inner.batches.is_empty() && !inner.out {
                    return;
                }
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(text: &str) -> Batch {
        Batch { text: text.to_owned(), lines: text.matches('\n').count() }
    }

    #[tokio::test]
    async fn the_oldest_go_first_and_the_latest_interval_stays_whole() {
        let queue = Queue::new(4);
        assert_eq!(queue.push(vec![batch("a\na\n"), batch("b\n")]), 0);
        assert_eq!(queue.push(vec![batch("c\nc\n")]), 2);
        assert_eq!(queue.lines(), 3);
        let long = "d\n".repeat(9);
        assert_eq!(queue.push(vec![batch(&long)]), 3, "an interval longer than the queue drops all before it");
        let taken = queue.next().await;
        assert_eq!((taken.lines, queue.lines()), (9, 0));
        assert_eq!(queue.back(taken), 0, "there is room as nothing else waits");
        let taken = queue.next().await;
        queue.push(vec![batch("e\n")]);
        assert_eq!(queue.back(taken), 9, "the newer interval took the room");
        assert_eq!(queue.next().await.text, "e\n");
        queue.done();
        queue.empty().await;
    }
}
