//! What commands do by themselves: steps when their time has come, an end when it is over or when the guard says so.
//! Only where this centre leads.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Weak},
    time::Duration,
};

use model::center::{Action, CommandState, Of, Side};
use tokio::{
    sync::broadcast::error::RecvError,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    Commands,
    asked::About,
    guard::{Seen, Verdict, WINDOW_MS},
    kept::{self, Kept},
    layers,
};
use crate::{auth::Actor, clock};

/// How often commands are looked at.
const TICK: Duration = Duration::from_millis(500);
/// How often texts are compared with what commands say.
const PUT_RIGHT: Duration = Duration::from_secs(10);
/// How long a step is held, milliseconds, when the command does not say.
const STEP_MS: u64 = 30_000;
/// What figures of "lately" reach back to.
const LATELY: Duration = Duration::from_millis(WINDOW_MS);
/// Most services of a pattern whose calls are judged.
const MANY: usize = 50;

/// Timers of commands in force. By the monotonic clock, so that no change of the time of day moves them.
#[derive(Debug, Default)]
pub(super) struct Runs(BTreeMap<u64, Run>);

#[derive(Clone, Debug)]
struct Run {
    /// The last step.
    since: Instant,
    /// When its time is over.
    until: Option<Instant>,
    /// Windows that were seen since the last step, for guards that judge a longer time than figures cover.
    windows: VecDeque<BTreeMap<String, Seen>>,
    next_window: Instant,
}

impl Runs {
    /// A command has taken a step, or is proposed; proposals wait for `waits`.
    pub(super) fn begin(&mut self, kept: &Kept, waits: Duration) {
        let now = Instant::now();
        let (until_ms, longest) = match kept.record.state {
            CommandState::Proposed if waits.is_zero() => (None, 0),
            CommandState::Proposed => {
                let waits = waits.as_millis() as u64;
                (kept.record.until_ms.or(Some(kept.record.at_ms.saturating_add(waits))), waits)
            }
            _ => (kept.record.until_ms, kept.record.asked.for_ms.unwrap_or(u64::MAX)),
        };
        let left = until_ms.map(|until| {
            // No longer than was asked for, whatever the time of day does.
            now + Duration::from_millis(until.saturating_sub(clock::now_ms()).min(longest))
        });
        let until = self.0.get(&kept.record.id).and_then(|run| run.until).or(left);
        let run = Run { since: now, until, windows: VecDeque::new(), next_window: now + LATELY };
        self.0.insert(kept.record.id, run);
    }

    /// It has ended.
    pub(super) fn forget(&mut self, id: u64) {
        self.0.remove(&id);
    }
}

/// What is to be done with a command.
enum Todo {
    Step,
    End(String),
    Expire,
}

/// Starts the work; it ends when nobody holds `commands` any more.
pub(super) fn start(commands: &Arc<Commands>) {
    tokio::spawn(keep_up(Arc::downgrade(commands)));
    if let Some(changes) = commands.store.changes() {
        tokio::spawn(follow(Arc::downgrade(commands), changes));
    }
}

async fn keep_up(commands: Weak<Commands>) {
    let Some(mut leadership) = commands.upgrade().map(|c| c.store.leadership()) else { return };
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut led, mut put_right) = (false, Instant::now());
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            changed = leadership.changed() => if changed.is_err() { return },
        }
        let Some(commands) = commands.upgrade() else { return };
        let leads = leadership.borrow_and_update().leads;
        if leads && !led {
            // What the one before left.
            if let Err(error) = commands.read().await {
                tracing::warn!(%error, "commands cannot be read, tried again");
                continue;
            }
            put_right = Instant::now();
        }
        led = leads;
        if !leads {
            commands.runs.lock().0.clear();
            commands.publisher.load().pause();
            continue;
        }
        if Instant::now() >= put_right {
            put_right = Instant::now() + PUT_RIGHT;
            if let Err(error) = commands.put_right().await {
                tracing::warn!(%error, "command texts cannot be compared with what commands say");
            }
        }
        commands.look().await;
    }
}

/// Takes in what another centre on the same store does.
async fn follow(commands: Weak<Commands>, mut changes: tokio::sync::broadcast::Receiver<Arc<crate::store::Changes>>) {
    loop {
        let change = changes.recv().await;
        let Some(commands) = commands.upgrade() else { return };
        match change {
            Ok(change) => {
                for kept in change.put.iter().filter_map(kept::read) {
                    commands.saw(kept, change.stamp.revision);
                }
            }
            Err(RecvError::Lagged(_)) => {
                if let Err(error) = commands.read().await {
                    tracing::warn!(%error, "commands cannot be read");
                }
            }
            Err(RecvError::Closed) => return,
        }
    }
}

impl Commands {
    fn saw(&self, kept: Kept, revision: u64) {
        let mut state = self.state.lock();
        state.revision = state.revision.max(revision);
        state.highest = state.highest.max(kept.record.id);
        if kept.is_open() {
            state.open.insert(kept.record.id, kept);
        } else {
            state.open.remove(&kept.record.id);
        }
    }

    /// One look at all that is in force or proposed.
    async fn look(self: &Arc<Self>) {
        let open: Vec<Kept> = self.state.lock().open.values().cloned().collect();
        for kept in open {
            let id = kept.record.id;
            let done = match self.todo(&kept) {
                None => continue,
                Some(Todo::Step) => self.next(&Actor::center(), id).await,
                Some(Todo::Expire) => self.expire(id).await,
                Some(Todo::End(why)) => self.undo(&Actor::center(), id, &why).await,
            };
            if let Err(error) = done {
                tracing::warn!(command = id, %error, "a command cannot go on yet");
            }
        }
    }

    fn todo(&self, kept: &Kept) -> Option<Todo> {
        let (id, asked, now) = (kept.record.id, &kept.record.asked, Instant::now());
        let run = {
            let mut runs = self.runs.lock();
            if !runs.0.contains_key(&id) {
                runs.begin(kept, self.config.proposals);
            }
            runs.0.get(&id)?.clone()
        };
        let is_over = run.until.is_some_and(|until| now >= until);
        if kept.record.state == CommandState::Proposed {
            return is_over.then_some(Todo::Expire);
        }
        if is_over {
            return Some(Todo::End("its time is over".to_owned()));
        }
        let mut passed = true;
        let mut held = Duration::from_millis(asked.step_ms.unwrap_or(STEP_MS));
        if let Some(guard) = &asked.guard {
            let window = Duration::from_millis(guard.window_ms.unwrap_or(WINDOW_MS));
            held = held.max(window);
            if now < run.since + window.min(LATELY) {
                return None;
            }
            let (all, is_full) = self.window(id, kept, &run, window, now);
            passed = is_full;
            let mut broken = Vec::new();
            for (whom, seen) in all {
                match seen.judge(guard, &whom) {
                    Verdict::Broken(why) => broken.push(why),
                    // What only a part of the calls takes may be seen too rarely; all of them must be seen.
                    Verdict::TooFew => passed &= !concerns_all(kept, &whom),
                    Verdict::Holds => {}
                }
            }
            if !broken.is_empty() {
                // Of a pattern that meets many services some are enough.
                broken.truncate(5);
                return Some(Todo::End(format!("its guard: {}", broken.join("; "))));
            }
        }
        let is_due = kept.record.state == CommandState::Stepping && now >= run.since + held;
        (is_due && passed).then_some(Todo::Step)
    }

    /// What was seen within the window up to now, and whether it is as long as it shall be.
    fn window(
        &self,
        id: u64,
        kept: &Kept,
        run: &Run,
        window: Duration,
        now: Instant,
    ) -> (BTreeMap<String, Seen>, bool) {
        let lately = self.targets(kept);
        let wanted = (window.as_millis().div_ceil(LATELY.as_millis()) as usize).max(1);
        if wanted == 1 {
            return (lately, now >= run.since + window);
        }
        let mut runs = self.runs.lock();
        let Some(run) = runs.0.get_mut(&id) else { return (lately, false) };
        if now >= run.next_window {
            run.next_window += LATELY;
            run.windows.push_back(lately);
            while run.windows.len() > wanted {
                run.windows.pop_front();
            }
        }
        let mut all: BTreeMap<String, Seen> = BTreeMap::new();
        for (whom, seen) in run.windows.iter().flatten() {
            all.entry(whom.clone()).or_default().merge(seen);
        }
        (all, run.windows.len() >= wanted)
    }

    /// Whose calls a guard judges: all of each service, those of groups that get calls by the command, and those of
    /// a version that is tried.
    pub(super) fn targets(&self, kept: &Kept) -> BTreeMap<String, Seen> {
        let action = &kept.record.asked.action;
        let Some(asked) = action.service() else { return BTreeMap::new() };
        let services = match kept.exact {
            true => vec![asked.to_owned()],
            false => layers::matching(asked, &self.services()).into_iter().take(MANY).map(str::to_owned).collect(),
        };
        let mut targets = BTreeMap::new();
        for service in services {
            let of = |side: Side, instance: &str| Of {
                side,
                service: service.clone(),
                instance: instance.to_owned(),
                ..Of::default()
            };
            let add = |seen: &mut Seen, instance: &str| {
                // What callers feel; what providers saw where no caller has an agent.
                let side = match self.site.lately(&of(Side::Outbound, instance)).rate > 0.0 {
                    true => Side::Outbound,
                    false => Side::Inbound,
                };
                let of = of(side, instance);
                seen.add(&self.site.times(&of), &self.site.lately(&of));
            };
            let mut all = Seen::default();
            add(&mut all, "");
            targets.insert(service.clone(), all);
            for group in action.receivers() {
                let mut part = Seen::default();
                for instance in &self.site.snapshot(&service, group).instances {
                    add(&mut part, &instance.address);
                }
                targets.insert(format!("{service} in {group}"), part);
            }
            if let Action::Canary { version, group, .. } = action {
                let mut part = Seen::default();
                for instance in self.site.snapshot(&service, group).instances.iter().filter(|i| i.version == *version) {
                    add(&mut part, &instance.address);
                }
                targets.insert(format!("{service} of version {version}"), part);
            }
        }
        targets
    }
}

/// Whether `whom` names all calls of a service, not some of them.
fn concerns_all(kept: &Kept, whom: &str) -> bool {
    !whom.contains(" in ") && !whom.contains(" of version ") && super::meant::concerns(kept, whom)
}
