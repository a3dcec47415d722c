//! What latency to expect of an endpoint.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::clock::now_ms;

/// An endpoint that is not called is expected to be twice as fast after this long. Without that, one
/// that was slow once would never be picked again, and so never be seen to have recovered.
const HALF_LIFE: Duration = Duration::from_secs(2);
/// Weight of a new sample: 1/8.
const SAMPLE_SHIFT: u32 = 3;

/// Exponentially weighted latency that fades while nothing is observed.
///
/// Written from many threads without a lock: two samples at once may count as one, which moves a mean
/// by an eighth at most.
#[derive(Debug, Default)]
pub struct Ewma {
    ns: AtomicU64,
    /// When it was observed last, in milliseconds of the agent's clock.
    at_ms: AtomicU64,
}

impl Ewma {
    /// Counts one sample.
    pub fn observe(&self, latency: Duration) {
        let sample = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX >> SAMPLE_SHIFT);
        let now_ms = now_ms();
        let new = match self.expected_at(now_ms) {
            0 => sample,
            old => old - (old >> SAMPLE_SHIFT) + (sample >> SAMPLE_SHIFT),
        };
        self.ns.store(new.max(1), Relaxed);
        self.at_ms.store(now_ms, Relaxed);
    }

    /// What to expect now, in nanoseconds; 0 of an endpoint nobody has measured.
    pub fn expected_ns(&self) -> u64 {
        self.expected_at(now_ms())
    }

    /// What to expect at a moment of [`Ewma::now`], for those who ask of several.
    pub fn expected_at(&self, now_ms: u64) -> u64 {
        let ns = self.ns.load(Relaxed);
        let idle = now_ms.saturating_sub(self.at_ms.load(Relaxed));
        let half = HALF_LIFE.as_millis() as u64;
        // Whole halvings by shifting, the rest of one linearly: no floating point on the pick path.
        let halved = ns.checked_shr((idle / half).min(63) as u32).unwrap_or(0);
        halved - halved / 2 * (idle % half) / half
    }

    /// The present moment.
    pub fn now() -> u64 {
        now_ms()
    }

    /// As one that was never observed.
    pub(super) fn forget(&self) {
        self.ns.store(0, Relaxed);
        self.at_ms.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn follows_samples_and_fades_without_them() {
        let ewma = Ewma::default();
        assert_eq!(ewma.expected_ns(), 0);
        ewma.observe(Duration::from_millis(80));
        assert_eq!(ewma.expected_ns(), 80_000_000);
        ewma.observe(Duration::ZERO);
        assert_eq!(ewma.expected_ns(), 70_000_000);
        tokio::time::advance(HALF_LIFE / 2).await;
        assert_eq!(ewma.expected_ns(), 52_500_000);
        tokio::time::advance(HALF_LIFE / 2).await;
        assert_eq!(ewma.expected_ns(), 35_000_000);
        tokio::time::advance(HALF_LIFE * 100).await;
        assert_eq!(ewma.expected_ns(), 0);
    }
}
