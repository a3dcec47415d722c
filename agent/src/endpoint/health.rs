//! When an endpoint leaves the rotation and how it comes back.

use std::{
    sync::{
        Arc, Weak,
        atomic::{
            AtomicBool, AtomicU8, AtomicU32, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{Endpoint, Probed, Slot, dial};
use crate::config;

/// Probes that reach an endpoint without an answer before it may try its luck with a call: a program that
/// does not know heartbeats must not be out for ever.
const SILENT_PROBES: u32 = 5;

/// Whether an endpoint may be picked.
///
/// Leaves on failed connects or a run of failures, comes back when a probe connects. Races between
/// calls only move the moment by a call or two, so everything is relaxed, but for the word that it is out.
pub struct Health {
    rules: config::Eject,
    out: AtomicBool,
    connect_failures: AtomicU32,
    failures: AtomicU32,
    /// Times it left in a row without a good call in between: each lengthens the pause.
    ejections: AtomicU32,
    /// Milliseconds since `born` when it left last, for "least bad".
    left_ms: AtomicU64,
    /// Milliseconds since `born` when it came back last; 0 for never.
    back_ms: AtomicU64,
    /// Why it left last: an index into [`REASONS`].
    reason: AtomicU8,
    born: Instant,
    wake: tokio::sync::Notify,
    /// To be told that it is out.
    slot: Arc<Slot>,
}

/// Why an endpoint left.
const REASONS: [&str; 2] = ["connections failed", "calls failed"];
const CONNECTS: u8 = 0;
const CALLS: u8 = 1;

/// Whether an endpoint is in rotation, as operators see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// It may be picked.
    pub available: bool,
    /// Why it left; `None` while it is in rotation.
    pub reason: Option<&'static str>,
    /// Time since it left or came back; `None` when it never left.
    pub since: Option<Duration>,
}

impl Health {
    /// In rotation, never tried; of the endpoint that has `slot`.
    pub fn new(rules: config::Eject, slot: Arc<Slot>) -> Self {
        Self {
            rules,
            out: AtomicBool::new(false),
            connect_failures: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            left_ms: AtomicU64::new(0),
            back_ms: AtomicU64::new(0),
            reason: AtomicU8::new(0),
            born: Instant::now(),
            wake: tokio::sync::Notify::new(),
            slot,
        }
    }

    /// Whether it is in rotation.
    pub fn is_available(&self) -> bool {
        !self.out.load(SeqCst)
    }

    /// An answer came, good or the user's own error.
    pub fn succeeded(&self) {
        // Loads first: in the usual case no cache line is written.
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
        }
        if self.connect_failures.load(Relaxed) != 0 {
            self.connect_failures.store(0, Relaxed);
        }
        if self.ejections.load(Relaxed) != 0 {
            self.ejections.store(0, Relaxed);
        }
        if self.out.load(Relaxed) {
            self.back_ms.store(self.now_ms(), Relaxed);
            self.out.store(false, Relaxed);
        }
    }

    /// No connection could be made.
    pub fn connect_failed(&self) {
        if self.connect_failures.fetch_add(1, Relaxed) + 1 >= self.rules.connect_failures {
            self.leave(CONNECTS);
        }
    }

    /// A call that reached it failed.
    pub fn failed(&self) {
        if self.failures.fetch_add(1, Relaxed) + 1 >= self.rules.failures {
            self.leave(CALLS);
        }
    }

    /// The larger, the worse: what to try when everything is out. One that left longest ago is least bad.
    pub fn badness(&self) -> u64 {
        if self.is_available() { 0 } else { self.left_ms.load(Relaxed) + 1 }
    }

    /// Whether it is in rotation, why not, and since when, for operators.
    pub fn standing(&self) -> Standing {
        let available = self.is_available();
        let changed = if available { &self.back_ms } else { &self.left_ms }.load(Relaxed);
        Standing {
            available,
            reason: (!available).then(|| REASONS[usize::from(self.reason.load(Relaxed))]),
            since: (!available || changed > 0).then(|| Duration::from_millis(self.now_ms().saturating_sub(changed))),
        }
    }

    /// Whether it is out of rotation because calls failed, not connections.
    pub fn has_failed_calls(&self) -> bool {
        !self.is_available() && self.reason.load(Relaxed) == CALLS
    }

    fn now_ms(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }

    fn leave(&self, reason: u8) {
        if !self.out.swap(true, SeqCst) {
            self.slot.doubt();
            self.left_ms.store(self.now_ms(), Relaxed);
            self.reason.store(reason, Relaxed);
            self.ejections.fetch_add(1, Relaxed);
            self.wake.notify_one();
        }
    }

    fn come_back(&self) {
        self.connect_failures.store(0, Relaxed);
        // One more failure sends it out again: a probe proves a listener, not a working service.
        self.failures.store(self.rules.failures.saturating_sub(1), Relaxed);
        self.back_ms.store(self.now_ms(), Relaxed);
        self.out.store(false, Relaxed);
    }

    fn pause(&self, probes: u32) -> Duration {
        let doublings = (self.ejections.load(Relaxed).saturating_sub(1) + probes).min(16);
        let pause = self.rules.pause.saturating_mul(1 << doublings).min(self.rules.max_pause);
        // Full jitter over the second half, so that many agents do not probe in step.
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// Probes `endpoint` whenever it is out until it is gone. Runs on the control runtime.
pub async fn probe_forever(endpoint: Weak<Endpoint>) {
    loop {
        let Some(strong) = endpoint.upgrade() else { return };
        if strong.health.is_available() {
            // Woken when it leaves; looks up now and then whether the endpoint still exists at all.
            let woken = async { strong.health.wake.notified().await };
            let _ = tokio::time::timeout(Duration::from_secs(30), woken).await;
            continue;
        }
        // On the heap for as long as it lasts: thousands of endpoints that are well wait here meanwhile.
        Box::pin(probe_until_back(strong)).await;
    }
}

async fn probe_until_back(endpoint: Arc<Endpoint>) {
    let weak = Arc::downgrade(&endpoint);
    drop(endpoint);
    let mut silent = 0;
    for probes in 0u32.. {
        let Some(endpoint) = weak.upgrade() else { return };
        let pause = endpoint.health.pause(probes);
        drop(endpoint);
        sleep(pause).await;
        let Some(endpoint) = weak.upgrade() else { return };
        if endpoint.health.is_available() {
            return;
        }
        let probed = match &endpoint.prober {
            Some(connector) => connector.probe(&endpoint).await,
            None => dial(endpoint.addr, &endpoint.dial).await.map(|_| Probed::Answers),
        };
        match probed {
            Ok(Probed::Connects) if silent + 1 < SILENT_PROBES => {
                silent += 1;
                tracing::debug!(endpoint = %endpoint.addr, "endpoint accepts connections but does not answer");
            }
            Ok(probed) => {
                endpoint.health.come_back();
                tracing::info!(endpoint = %endpoint.addr, ?probed, "endpoint is back in rotation");
                return;
            }
            Err(error) => tracing::debug!(endpoint = %endpoint.addr, %error, "endpoint still out"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::DialOptions;

    fn rules() -> config::Eject {
        config::Eject { connect_failures: 2, failures: 3, ..config::Eject::default() }
    }

    #[test]
    fn leaves_on_connects_or_a_run_of_failures() {
        let health = Health::new(rules(), Slot::alone());
        health.connect_failed();
        assert!(health.is_available());
        health.succeeded();
        health.connect_failed();
        assert!(health.is_available(), "a success in between starts the count again");
        assert_eq!(health.standing(), Standing { available: true, reason: None, since: None });
        health.connect_failed();
        assert!(!health.is_available());
        assert_eq!(health.standing().reason, Some("connections failed"));
        assert!(!health.has_failed_calls());
        assert!(health.standing().since.is_some());

        let health = Health::new(rules(), Slot::alone());
        for _ in 0..3 {
            assert!(health.is_available());
            health.failed();
        }
        assert!(!health.is_available());
        assert_eq!(health.standing().reason, Some("calls failed"));
        assert!(health.has_failed_calls());
    }

    #[tokio::test]
    async fn comes_back_when_a_probe_connects() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let quick = config::Eject { pause: Duration::from_millis(1), ..rules() };
        let endpoint = Arc::new(Endpoint::new(
            listener.local_addr().unwrap(),
            Default::default(),
            1,
            quick,
            DialOptions::default(),
        ));
        for _ in 0..3 {
            endpoint.health.failed();
        }
        assert!(!endpoint.health.is_available());
        let probing = tokio::spawn(probe_forever(Arc::downgrade(&endpoint)));
        listener.accept().await.unwrap();
        while !endpoint.health.is_available() {
            tokio::task::yield_now().await;
        }
        endpoint.health.failed();
        assert!(!endpoint.health.is_available(), "on probation: the next failure sends it out again");
        probing.abort();
    }
}
