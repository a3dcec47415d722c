//! All agents that were heard of, and how they are.

use std::{collections::HashMap, time::Duration};

use model::center::{AgentStatus, Report};
use tokio::time::Instant;

use super::rows::Room;
use crate::error::{Code, Error};

/// Agents that may be known.
const AGENTS: usize = 20_000;
/// An agent that was not heard of for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(24 * 3600);
/// What an agent may bring that is new is counted over this time: rows that nobody tells of are forgotten after it.
const BROUGHT: Duration = Duration::from_secs(3 * 3600);
/// Reports that may come at once after a pause, and how often they may come in the long run.
const BURST: f64 = 10.0;
const PER_SECOND: f64 = 2.0;

/// One agent.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub status: AgentStatus,
    pub heard: Instant,
    /// Length of its reports.
    pub period: Duration,
    sequence: u64,
    tokens: f64,
    /// What it may still bring, since when, and whether it was said that it may not.
    room: (Room, Instant, bool),
}

impl Seen {
    /// It has not been heard of for three reports.
    pub(super) fn lost(&self) -> bool {
        self.heard.elapsed() > (3 * self.period).max(Duration::from_secs(6))
    }
}

/// All of them by name.
#[derive(Debug, Default)]
pub(super) struct Agents(pub(super) HashMap<Box<str>, Seen>);

/// Whether figures of a report count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    Yes,
    /// It has been counted before.
    Twice,
}

impl Agents {
    /// Notes a report; `flood` makes one that comes too soon an error.
    pub(super) fn heard(&mut self, report: &Report, limit: Limit) -> Result<Count, Error> {
        let now = Instant::now();
        let period = Duration::from_secs_f64(report.window_seconds);
        if let Some(seen) = self.0.get_mut(report.agent.as_str()) {
            let since = now.saturating_duration_since(seen.heard);
            seen.tokens = (seen.tokens + since.as_secs_f64() * PER_SECOND).min(BURST);
            if limit == Limit::Rate && seen.tokens < 1.0 {
                return Err(Error::new(
                    Code::TooMany,
                    format!("agent `{}` reports too often", report.agent),
                    "one report in two seconds is usual; do two agents have this name?",
                ));
            }
            // A restarted agent begins with 1 again.
            let restarted = report.status.uptime_seconds < seen.status.uptime_seconds;
            let again = report.sequence > 0 && report.sequence <= seen.sequence && !restarted;
            seen.tokens -= 1.0;
            seen.heard = now;
            if again {
                return Ok(Count::Twice);
            }
            seen.status.clone_from(&report.status);
            seen.period = period;
            seen.sequence = report.sequence;
            return Ok(Count::Yes);
        }
        if self.0.len() >= AGENTS {
            self.sweep();
        }
        if self.0.len() >= AGENTS {
            let lost = self.0.iter().filter(|(_, seen)| seen.lost()).max_by_key(|(_, seen)| seen.heard.elapsed());
            let Some(lost) = lost.map(|(name, _)| name.clone()) else {
                let what = format!("{AGENTS} agents report to this centre, `{}` is one too many", report.agent);
                return Err(Error::new(Code::TooMany, what, "run several centres on a shared store"));
            };
            self.0.remove(&lost);
        }
        let seen = Seen {
            status: report.status.clone(),
            heard: now,
            period,
            sequence: report.sequence,
            tokens: BURST - 1.0,
            room: (Room::WHOLE, now, false),
        };
        self.0.insert(report.agent.as_str().into(), seen);
        Ok(Count::Yes)
    }

    /// What an agent may still bring that is new.
    pub(super) fn room(&mut self, agent: &str) -> Room {
        let Some(seen) = self.0.get_mut(agent) else { return Room::WHOLE };
        if seen.room.1.elapsed() > BROUGHT {
            seen.room = (Room::WHOLE, Instant::now(), false);
        }
        seen.room.0
    }

    /// It has brought some; `refused`: more than it may.
    pub(super) fn brought(&mut self, agent: &str, left: Room, refused: bool) {
        let Some(seen) = self.0.get_mut(agent) else { return };
        seen.room.0 = left;
        if refused && !std::mem::replace(&mut seen.room.2, true) {
            tracing::warn!(
                agent,
                "reports of services or instances that are new find no room: one agent brings {} services and {} instances \
                 and callers at most in {BROUGHT:?}, and the centre has a limit for all",
                Room::WHOLE.services,
                Room::WHOLE.parts
            );
        }
    }

    /// Forgets those that are long gone.
    pub(super) fn sweep(&mut self) {
        self.0.retain(|_, seen| seen.heard.elapsed() < FORGOTTEN);
    }
}

/// Whether an agent may report as often as it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// Within this process.
    None,
    /// From the network.
    Rate,
}
