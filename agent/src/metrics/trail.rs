//! [`Trail`]: what happened to one call on its way, for `sockmesh explain`.

use std::{net::SocketAddr, time::Duration};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Steps kept of one call; a call with a hundred retries explains itself with fewer.
const MAX_STEPS: usize = 256;

/// One thing that happened to a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// A filter was asked.
    Filter {
        /// Its place in the configuration.
        #[serde(skip)]
        index: usize,
        /// Its name.
        name: String,
        /// At which point: `request`, `attempt`, `response`.
        at: String,
        /// How long it took, waiting included.
        micros: u64,
        /// What it said, unless it let the call go on.
        said: Option<String>,
    },
    /// The balancer was asked.
    Pick {
        /// What it chose.
        picked: Option<SocketAddr>,
        /// What there was to choose from, the one picked first.
        candidates: Vec<Candidate>,
        /// Candidates that are not listed.
        more: usize,
    },
    /// An attempt ended.
    Try {
        /// 1 for the first.
        number: u32,
        /// Where it went.
        endpoint: SocketAddr,
        /// How long it took.
        micros: u64,
        /// How it ended.
        end: String,
    },
    /// Something was decided.
    Note {
        /// What.
        text: String,
    },
}

/// An endpoint that a balancer could choose or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Where it listens.
    pub endpoint: SocketAddr,
    /// Its group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Its zone.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// Its weight.
    pub weight: u32,
    /// Calls in flight.
    pub in_flight: u32,
    /// `picked`, or why not.
    pub reason: String,
}

/// The steps of one call. Costs nothing until something is noted: a call that goes well, and that nobody
/// wants explained, notes nothing.
#[derive(Debug, Default)]
pub struct Trail {
    full: bool,
    steps: Mutex<Vec<Step>>,
}

impl Trail {
    /// A trail that takes every step if `full`, else only what went wrong.
    pub const fn new(full: bool) -> Self {
        Self { full, steps: parking_lot::const_mutex(Vec::new()) }
    }

    /// Whether steps that only explain are wanted.
    pub const fn is_full(&self) -> bool {
        self.full
    }

    /// Notes a step.
    pub fn push(&self, step: Step) {
        let mut steps = self.steps.lock();
        if steps.len() < MAX_STEPS {
            steps.push(step);
        }
    }

    /// Notes a decision.
    pub fn note(&self, text: impl Into<String>) {
        self.push(Step::Note { text: text.into() });
    }

    /// Whether anything was noted.
    pub fn is_empty(&self) -> bool {
        self.steps.lock().is_empty()
    }

    /// The steps so far, taken out.
    pub fn take(&self) -> Vec<Step> {
        std::mem::take(&mut self.steps.lock())
    }
}

/// Whole microseconds.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
