//! How often something may be tried: a bucket for each who tries, that fills again with time.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Buckets that are kept; full ones are forgotten first.
const KEPT: usize = 50_000;

/// Buckets of one kind. An attempt takes one drop, and waits for nothing.
#[derive(Debug)]
pub(super) struct Limit {
    burst: f64,
    per_second: f64,
    buckets: Mutex<HashMap<String, (f64, Instant)>>,
}

impl Limit {
    /// `burst` attempts at once, then one each `every`.
    pub(super) fn new(burst: u32, every: Duration) -> Self {
        Self { burst: f64::from(burst), per_second: 1.0 / every.as_secs_f64(), buckets: Mutex::default() }
    }

    /// Takes a drop of `key`'s bucket; without one, says when there will be.
    pub(super) fn take(&self, key: &str) -> Result<(), Duration> {
        let now = Instant::now();
        let level = |(level, at): (f64, Instant)| {
            let filled = level + now.saturating_duration_since(at).as_secs_f64() * self.per_second;
            filled.min(self.burst)
        };
        let mut buckets = self.buckets.lock();
        if buckets.len() >= KEPT && !buckets.contains_key(key) {
            buckets.retain(|_, bucket| level(*bucket) < self.burst);
            if buckets.len() >= KEPT {
                // Someone tries from everywhere: those who are known go on, new ones wait.
                return Err(Duration::from_secs_f64(1.0 / self.per_second));
            }
        }
        let level = buckets.get(key).map_or(self.burst, |bucket| level(*bucket));
        if level < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - level) / self.per_second));
        }
        buckets.insert(key.to_owned(), (level - 1.0, now));
        Ok(())
    }

    /// Gives a drop back: the attempt was rightful.
    pub(super) fn give_back(&self, key: &str) {
        if let Some((level, _)) = self.buckets.lock().get_mut(key) {
            *level = (*level + 1.0).min(self.burst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_one_at_a_time_and_others_are_not_touched() {
        let limit = Limit::new(3, Duration::from_secs(10));
        for _ in 0..3 {
            limit.take("a").unwrap();
        }
        assert_eq!(limit.take("a"), Err(Duration::from_secs(10)));
        limit.take("b").unwrap();
        tokio::time::advance(Duration::from_secs(10)).await;
        limit.take("a").unwrap();
        limit.take("a").unwrap_err();
        limit.give_back("a");
        limit.take("a").unwrap();
        tokio::time::advance(Duration::from_secs(3600)).await;
        for _ in 0..3 {
            limit.take("a").unwrap();
        }
        limit.take("a").unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_without_number_take_no_memory_without_bound() {
        let limit = Limit::new(2, Duration::from_secs(1));
        limit.take("known").unwrap();
        for n in 1..KEPT {
            limit.take(&n.to_string()).unwrap();
        }
        limit.take("new").unwrap_err();
        limit.take("known").unwrap();
        assert_eq!(limit.buckets.lock().len(), KEPT);
        tokio::time::advance(Duration::from_secs(2)).await;
        limit.take("new").unwrap();
        assert_eq!(limit.buckets.lock().len(), 1);
    }
}
