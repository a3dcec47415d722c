//! [`Recent`]: a few calls of a service, kept so that they can be explained.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Step, Trail};

/// Stories kept of one service.
const KEPT: usize = 32;
/// Of calls that go well one in this many is kept, without its steps.
const SAMPLE: u64 = 1024;
/// Calls that do not go well are all kept, up to this many a second.
const BAD_PER_SECOND: u64 = 20;

/// Why a story was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// Somebody asked for the next call, so every step is there.
    Asked,
    /// It failed, or more than one attempt was made.
    Odd,
    /// It is one of many that went well.
    Sample,
}

/// One call from its beginning to its end, for operators.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Story {
    /// Grows with every story of the agent.
    pub id: u64,
    /// When the call was over, in seconds since 1970.
    pub at: f64,
    /// Why it was kept.
    pub kept: Kept,
    /// `outbound` or `inbound`.
    pub direction: String,
    /// Service, with group and version, as `group/service:version`.
    pub service: String,
    /// Protocol towards endpoints.
    pub protocol: String,
    /// Method: of the RPC, or of HTTP.
    pub method: String,
    /// Path of an HTTP request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Application of the caller.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub application: String,
    /// Id that the call has in logs; 0 where the protocol has none.
    pub request_id: u64,
    /// Socket address of the caller.
    pub peer: Option<SocketAddr>,
    /// The address that the caller dialed, where it is known.
    pub dialed: Option<SocketAddr>,
    /// Where the orders in force come from; none when nothing is ordered.
    pub command: Option<String>,
    /// Groups in use by order, with shares.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// The balancer in use.
    pub lb: String,
    /// The strategy in use.
    pub ha: String,
    /// Time that the call had.
    pub timeout_micros: u64,
    /// What happened, in order.
    pub steps: Vec<Step>,
    /// How it ended.
    pub outcome: String,
    /// Attempts made.
    pub attempts: u32,
    /// Endpoint of the last attempt.
    pub endpoint: Option<SocketAddr>,
    /// Until the end, body included.
    pub total_micros: u64,
}

/// Recent calls of one service. Costs a call that goes well, and that nobody asked for, one load and one
/// division.
#[derive(Debug, Default)]
pub struct Recent {
    asked: AtomicBool,
    stories: Mutex<VecDeque<Arc<Story>>>,
    /// Second of the last odd story since `born`, and how many there were in it.
    odd: AtomicU64,
}

impl Recent {
    /// Has the next call tell all its steps.
    pub fn ask(&self) {
        self.asked.store(true, Relaxed);
    }

    /// The trail of a call that begins now.
    pub fn begin(&self) -> Trail {
        // A load in the usual case; only one call takes what was asked.
        Trail::new(self.asked.load(Relaxed) && self.asked.swap(false, Relaxed))
    }

    /// Whether the story of a call is to be kept that is the `nth` to end well or badly. `odd`: it failed, or
    /// took more than one attempt.
    pub fn wants(&self, trail: &Trail, odd: bool, nth: u64) -> Option<Kept> {
        if trail.is_full() {
            Some(Kept::Asked)
        } else if odd {
            self.has_room_for_odd().then_some(Kept::Odd)
        } else {
            nth.is_multiple_of(SAMPLE).then_some(Kept::Sample)
        }
    }

    /// Keeps a story, and lets the oldest go.
    pub fn keep(&self, mut story: Story) {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        story.id = NEXT.fetch_add(1, Relaxed);
        let mut stories = self.stories.lock();
        if stories.len() >= KEPT {
            // One that was asked for goes last: the storm that it shall explain must not wash it away.
            let oldest = stories.iter().position(|s| s.kept != Kept::Asked).unwrap_or(0);
            stories.remove(oldest);
        }
        stories.push_back(Arc::new(story));
    }

    /// The stories, oldest first.
    pub fn stories(&self) -> Vec<Arc<Story>> {
        self.stories.lock().iter().cloned().collect()
    }

    fn has_room_for_odd(&self) -> bool {
        static BORN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        let second = Instant::now().saturating_duration_since(*BORN).as_secs();
        let seen = self.odd.load(Relaxed);
        let count = if seen >> 8 == second { seen & 0xff } else { 0 };
        // Two at once may count as one, which keeps a story more.
        self.odd.store(second << 8 | (count + 1).min(0xff), Relaxed);
        count < BAD_PER_SECOND
    }
}
