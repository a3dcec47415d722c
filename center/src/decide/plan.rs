//! What should be done about the pools of one service now. No I/O; time is given.
//!
//! A condition must hold for the policy's `hold_ms` before anything is done, a pool is changed at most once within its
//! `period_ms`, and a switch counts as a change of both of its pools. Nobody is sent where a pool would pass its safety
//! line, or where more would come than was ever seen going well.

mod lost;
mod size;

use std::time::Duration;

use model::center::{Action, CommandRecord, CommandState, Pool};
use tokio::time::Instant;

use crate::capacity::pool;

/// Switches are multiples of this, percent, where there is room.
const STEP: f64 = 5.0;

/// The centre never moves more than this of a pool at once, percent.
const MOST: u32 = 90;

/// A proposal is made anew when it would move this much more or less, percent of the pool's load.
const DIFFERS: u32 = 10;

/// What failed is told for this long after it should have been tried again.
const STALE: Duration = Duration::from_secs(10);

/// A pool whose last instance went is looked after for so long.
pub(super) const LATELY: Duration = Duration::from_secs(3600);

/// For how long a condition holds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Since(Option<Instant>);

impl Since {
    /// Whether it holds now, and did at every look for `hold`.
    fn holds(&mut self, now: Instant, is: bool, hold: Duration) -> bool {
        if !is {
            self.0 = None;
            return false;
        }
        now.duration_since(*self.0.get_or_insert(now)) >= hold
    }
}

/// What is remembered of a pool from one look to the next.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    over: Since,
    calm: Since,
    unneeded: Since,
    short: Since,
    ample: Since,
    lost: Since,
    /// The proposed size is not what is needed any more.
    unfit: Since,
    /// The size that is to be proposed, counting all instances.
    proposing: Option<u32>,
    /// The size that is proposed: the number of the proposal, and what was wanted when it was made.
    proposed_size: Option<(u64, u32)>,
    /// A switch that was proposed and turned down, and a size: nothing like it is proposed before, and why.
    pub declined: [Option<(Instant, String)>; 2],
    /// Load that its callers want of it, as it was seen last while it served.
    pub demand: Option<f64>,
    /// When it had an instance that could be called last.
    pub usable: Option<Instant>,
    /// When it was changed last.
    pub changed: Option<Instant>,
    /// How often it was changed, so that each request to a driver has a name of its own.
    pub changes: u64,
    /// Something is being done about it.
    pub busy: bool,
    /// Nothing is tried before.
    pub retry: Option<Instant>,
    /// Why what was tried last failed.
    pub trouble: Option<String>,
    /// In sentences.
    pub advice: Vec<String>,
}

impl Standing {
    /// Of a pool that was changed before, when its callers wanted this much.
    pub fn after(changed: Option<Instant>, changes: u64, demand: Option<f64>) -> Self {
        Self { changed, changes, demand, ..Self::default() }
    }

    /// Why nothing of this kind may be proposed now.
    fn declined(&self, now: Instant, kind: Kind) -> Option<String> {
        let (until, why) = self.declined[kind as usize].as_ref().filter(|(until, _)| now < *until)?;
        let left = until.duration_since(now).as_secs() / 60 + 1;
        Some(format!("{why}; the centre proposes it again in {left} min at the earliest"))
    }

    /// Whether it may be changed now; else why not.
    fn free(&self, now: Instant, pool: &Pool) -> Result<(), String> {
        if self.busy {
            return Err("something is being done".to_owned());
        }
        if self.retry.is_some_and(|retry| now < retry) {
            return Err("it is tried again in a few seconds".to_owned());
        }
        let period = Duration::from_millis(pool.policy.period_ms);
        match self.changed.map(|at| period.saturating_sub(now.duration_since(at))) {
            Some(left) if !left.is_zero() => {
                Err(format!("`{}` was changed lately: at the earliest in {} s", pool.group, left.as_secs() + 1))
            }
            _ => Ok(()),
        }
    }
}

/// A pool, and what else is known of it.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub pool: Pool,
    /// Instances of it are not heard of.
    pub unheard: bool,
    /// It had instances, and none can be called.
    pub lost: bool,
    /// Share of its callers' calls that go well; `None`: none are seen.
    pub answered: Option<f64>,
    /// How long new instances of it are not warm.
    pub warm_up: Duration,
}

/// What may be proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Switch,
    Size,
}

/// What is to be done. Pools are given by their place.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Act {
    /// Moves part of one pool's calls to another.
    Move { from: usize, to: usize, percent: u32, propose: bool, reason: String },
    /// Takes a command back; these pools are changed by it.
    Undo { id: u64, pools: Vec<usize>, reason: String },
    /// Makes a pool this large, counting all of its instances.
    Scale { pool: usize, wanted: u32, propose: bool, reason: String },
}

impl Act {
    /// Pools that are changed.
    pub fn pools(&self) -> Vec<usize> {
        match self {
            Self::Move { propose: true, .. } | Self::Scale { propose: true, .. } => Vec::new(),
            Self::Move { from, to, .. } => vec![*from, *to],
            Self::Undo { pools, .. } => pools.clone(),
            Self::Scale { pool, .. } => vec![*pool],
        }
    }

    /// What it proposes, if it does not do it at once.
    pub fn proposes(&self) -> Option<Kind> {
        match self {
            Self::Move { propose: true, .. } => Some(Kind::Switch),
            Self::Scale { propose: true, .. } => Some(Kind::Size),
            _ => None,
        }
    }

    /// The pool that it is about.
    pub fn about(&self) -> Option<usize> {
        match self {
            Self::Move { from, .. } => Some(*from),
            Self::Undo { pools, .. } => pools.first().copied(),
            Self::Scale { pool, .. } => Some(*pool),
        }
    }
}

/// A switch of the centre's own.
#[derive(Clone, Copy, Debug)]
struct Moved {
    id: u64,
    from: usize,
    to: Option<usize>,
    percent: u32,
    proposed: bool,
}

impl Moved {
    /// Share of the giver's calls that stay.
    fn stays(&self) -> f64 {
        1.0 - f64::from(self.percent.min(100)) / 100.0
    }
}

/// What is known at a look.
struct Look<'a> {
    now: Instant,
    views: &'a [View],
    moves: Vec<Moved>,
    sizes: Vec<size::Proposed>,
    /// Why nothing may be switched.
    barred: Option<String>,
    /// Why figures are not trusted.
    blind: Option<&'a str>,
    /// Pools that are changed by what was decided at this look.
    touched: Vec<bool>,
    acts: Vec<Act>,
}

/// What is to be done about the pools of `service`; `standings` are theirs, one each. `commands` are those in force or
/// proposed for it, newest first, `center` the author of the centre's own.
pub(super) fn plan(
    service: &str,
    views: &[View],
    standings: &mut [Standing],
    commands: &[CommandRecord],
    center: &str,
    blind: Option<&str>,
    now: Instant,
) -> Vec<Act> {
    let place = |group: &str| views.iter().position(|view| view.pool.group == group);
    let (mut moves, mut sizes) = (Vec::new(), Vec::new());
    let mut barred = None;
    for command in commands {
        let proposed = command.state == CommandState::Proposed;
        match &command.asked.action {
            Action::Move { service: of, from, to, percent } if command.author == center && of == service => {
                let Some(from) = place(from) else { continue };
                moves.push(Moved { id: command.id, from, to: place(to), percent: *percent, proposed });
            }
            Action::Scale { service: of, group, from, to } if proposed && command.author == center && of == service => {
                sizes.extend(place(group).map(|pool| size::Proposed { id: command.id, pool, from: *from, to: *to }));
            }
            Action::Switch { .. } | Action::Move { .. } | Action::Route { .. } | Action::Degrade { .. }
                if !proposed =>
            {
                barred = Some(format!("command {} of {} is in force: nothing is switched", command.id, command.author));
            }
            _ => {}
        }
    }
    let touched = vec![false; views.len()];
    let mut look = Look { now, views, moves, sizes, barred, blind, touched, acts: Vec::new() };
    // The fullest first: the room there is goes to it.
    let mut order: Vec<usize> = (0..views.len()).collect();
    let water = |i: usize| views[i].pool.water_percent.unwrap_or(0.0);
    order.sort_by(|a, b| water(*b).total_cmp(&water(*a)));
    for i in order {
        standings[i].advice.clear();
        if standings[i].retry.is_some_and(|retry| now > retry + STALE) {
            // It was not wanted any more.
            (standings[i].retry, standings[i].trouble) = (None, None);
        }
        if let Some(trouble) = &standings[i].trouble {
            let trouble = trouble.clone();
            standings[i].advice.push(trouble);
        }
        if look.views[i].lost {
            look.leaving(i, standings);
            look.scaling(i, standings);
            continue;
        }
        standings[i].lost = Since::default();
        look.remember(i, &mut standings[i]);
        look.switching(i, standings);
        look.taking_back(i, standings);
        look.scaling(i, standings);
    }
    look.acts
}

impl Look<'_> {
    fn pool(&self, i: usize) -> &Pool {
        &self.views[i].pool
    }

    fn hold(&self, i: usize) -> Duration {
        Duration::from_millis(self.pool(i).policy.hold_ms)
    }

    fn act(&mut self, act: Act) {
        for i in act.pools() {
            self.touched[i] = true;
        }
        self.acts.push(act);
    }

    /// The centre's switches in force that take from this pool, newest first.
    fn given(&self, i: usize) -> impl Iterator<Item = &Moved> {
        self.moves.iter().filter(move |m| m.from == i && !m.proposed)
    }

    /// Load of this pool if all that the centre moved away came back.
    fn own_load(&self, i: usize) -> f64 {
        let stays: f64 = self.given(i).map(Moved::stays).product();
        self.pool(i).load / stays.max(0.01)
    }

    /// The same; what was wanted before where all was moved away.
    fn wanted_load(&self, i: usize, standing: &Standing) -> f64 {
        match self.given(i).any(Self::is_emptied) {
            true => standing.demand.unwrap_or_else(|| self.own_load(i)),
            false => self.own_load(i),
        }
    }

    fn is_over(&self, i: usize) -> bool {
        let pool = self.pool(i);
        pool::limit_known(pool) && pool.water_percent.is_some_and(|water| water > pool.policy.warning_percent)
    }

    /// Water level of this pool with what `moved` took from it.
    fn with_back(&self, moved: &Moved) -> Option<f64> {
        let stays = moved.stays();
        self.pool(moved.from).water_percent.filter(|_| stays > 0.0).map(|water| water / stays)
    }

    fn may(&self, i: usize, standings: &[Standing]) -> Result<(), String> {
        if self.touched[i] {
            return Err("it is part of another change".to_owned());
        }
        standings[i].free(self.now, self.pool(i))
    }

    /// Where part of this pool's calls should go, and how many percent of them.
    fn room(&self, i: usize, standings: &[Standing]) -> Option<(usize, u32)> {
        let pool = self.pool(i);
        let water = pool.water_percent?;
        let line = pool.policy.warning_percent - pool.policy.margin_percent;
        let wanted = ((1.0 - line / water) * 100.0 / STEP - 1e-9).ceil() * STEP;
        let (k, room) = self.roomiest(i, standings)?;
        let fits = (room / pool.load * 100.0 + 1e-9).floor();
        let percent = wanted.min(fits).min(f64::from(MOST));
        (percent >= 1.0).then_some((k, percent as u32))
    }

    /// The other pool with the most room below its safety line, and how much that is.
    fn roomiest(&self, i: usize, standings: &[Standing]) -> Option<(usize, f64)> {
        let mut best: Option<(usize, f64)> = None;
        for (k, view) in self.views.iter().enumerate() {
            let gives = self.given(k).next().is_some();
            if k == i || gives || view.unheard || view.lost || self.is_over(k) || self.may(k, standings).is_err() {
                continue;
            }
            let Some(takes) = pool::takes(&view.pool) else { continue };
            let room = takes * view.pool.policy.safety_percent / 100.0 - view.pool.load;
            if best.is_none_or(|(_, most)| room > most) {
                best = Some((k, room));
            }
        }
        best
    }

    /// What the centre sent to this pool goes back where that is fitting.
    fn relief(&self, i: usize, standings: &[Standing]) -> Option<Act> {
        let fatal = self.pool(i).water_percent.is_some_and(|water| water >= self.pool(i).policy.fatal_percent);
        let fits = |moved: &&Moved| {
            let giver = &self.pool(moved.from).policy;
            let line = if fatal { giver.fatal_percent } else { giver.warning_percent };
            self.with_back(moved).is_some_and(|water| water <= line) && self.may(moved.from, standings).is_ok()
        };
        let moved = self.moves.iter().filter(|m| m.to == Some(i) && !m.proposed).find(fits)?;
        let reason = format!("{} is above its warning line itself", self.pool(i).group);
        Some(Act::Undo { id: moved.id, pools: vec![i, moved.from], reason })
    }

    /// Above the warning line: part of the calls goes elsewhere.
    fn switching(&mut self, i: usize, standings: &mut [Standing]) {
        let over = self.is_over(i);
        let held = standings[i].over.holds(self.now, over, self.hold(i));
        self.withdraw(i, over, standings);
        if !over {
            return;
        }
        let pool = self.pool(i);
        let policy = &pool.policy;
        let water = pool.water_percent.unwrap_or(0.0);
        let at = format!("{water:.0} % of what it can take, its warning line is {:.0} %", policy.warning_percent);
        let proposed = self.moves.iter().find(|m| m.from == i && m.proposed);
        if let Some(proposed) = proposed {
            let to = proposed.to.map_or("another group", |to| &self.pool(to).group);
            let waits =
                format!("{at}: proposal {} to move {} % to {to} waits for an operator", proposed.id, proposed.percent);
            standings[i].advice.push(waits);
            return;
        }
        let wait = self.barred.clone().or_else(|| self.blind.map(|why| format!("{why}: nothing is decided")));
        let wait = wait.or_else(|| (!held).then(|| "it is watched for a while before anything is done".to_owned()));
        let wait = wait.or_else(|| self.may(i, standings).err());
        let declined = || standings[i].declined(self.now, Kind::Switch).filter(|_| !policy.switch);
        if let Some(wait) = wait.or_else(declined) {
            standings[i].advice.push(format!("{at}; {wait}"));
            return;
        }
        if let Some(act) = self.relief(i, standings).filter(|_| policy.switch) {
            standings[i].advice.push(format!("{at}: what was sent here goes back"));
            return self.act(act);
        }
        let Some((to, percent)) = self.room(i, standings) else {
            standings[i].advice.push(format!("{at}; no other group has room below its safety line at the moment"));
            return;
        };
        let target = policy.warning_percent - policy.margin_percent;
        let (there, safety) = (&self.pool(to).group, self.pool(to).policy.safety_percent);
        let reason = format!(
            "{} is at {at}; {there} stays below its safety line of {safety:.0} %; taken back when {} would stay at or \
             below {target:.0} % with it",
            pool.group, pool.group
        );
        let propose = !policy.switch;
        let verb = if propose { "proposes to move" } else { "moves" };
        standings[i].advice.push(format!("{at}: the centre {verb} {percent} % to {there}"));
        self.act(Act::Move { from: i, to, percent, propose, reason });
    }

    /// A proposal that is not needed any more, or would have to be another one, is turned down.
    fn withdraw(&mut self, i: usize, over: bool, standings: &mut [Standing]) {
        let Some(proposed) = self.moves.iter().find(|m| m.from == i && m.proposed).copied() else {
            standings[i].unneeded = Since::default();
            return;
        };
        let pool = self.pool(i);
        let line = pool.policy.warning_percent - pool.policy.margin_percent;
        let gone = pool.water_percent.is_none_or(|water| water <= line);
        let other = over
            && !self
                .room(i, standings)
                .is_some_and(|(to, percent)| proposed.to == Some(to) && percent.abs_diff(proposed.percent) < DIFFERS);
        // What may be done without asking is not asked for.
        let leave = pool.policy.switch;
        if standings[i].unneeded.holds(self.now, gone || other || leave, self.hold(i)) && !standings[i].busy {
            let reason = match (gone, leave) {
                (true, _) => "it is not needed any more",
                (false, true) => "the policy lets the centre switch by itself now",
                (false, false) => "it does not fit any more",
            };
            // So that the next one is looked at for as long as this one was.
            (standings[i].over, standings[i].unneeded) = (Since::default(), Since::default());
            self.acts.push(Act::Undo { id: proposed.id, pools: Vec::new(), reason: reason.to_owned() });
        }
    }

    /// What was moved away comes back when it is over, the newest switch first.
    fn taking_back(&mut self, i: usize, standings: &mut [Standing]) {
        let Some(moved) = self.given(i).next().copied() else {
            standings[i].calm = Since::default();
            return;
        };
        let pool = self.pool(i);
        let line = pool.policy.warning_percent - pool.policy.margin_percent;
        let emptied = Self::is_emptied(&moved);
        let then = if emptied { self.filled_again(&moved, &standings[i]) } else { self.with_back(&moved) };
        // What is not heard of may be missing in the load, which says nothing of a pool that was emptied.
        let heard = self.blind.is_none() && (emptied || !self.views[i].unheard) && self.barred.is_none();
        let calm = heard && then.is_some_and(|then| then <= line);
        // Instances that have just come are given time.
        let hold = if emptied { self.hold(i).max(self.views[i].warm_up) } else { self.hold(i) };
        let held = standings[i].calm.holds(self.now, calm, hold);
        let what = format!("command {} moved {} % away", moved.id, moved.percent);
        let Some(then) = then.filter(|_| calm) else {
            let told = then.map_or_else(String::new, |then| format!(" (now {then:.0} %)"));
            let until = format!("{what}; it is taken back when {} % would be enough with it{told}", line.round());
            standings[i].advice.push(until);
            return;
        };
        let others = moved.to.map_or(Ok(()), |to| self.may(to, standings));
        if let Some(wait) = self.may(i, standings).and(others).err() {
            standings[i].advice.push(format!("{what}; it can be taken back: {wait}"));
        } else if held {
            let reason = format!("it is over: {} would stay at {then:.0} % with it", pool.group);
            standings[i].advice.push(format!("{what}; it is taken back"));
            let pools = std::iter::once(i).chain(moved.to).collect();
            self.act(Act::Undo { id: moved.id, pools, reason });
        } else {
            standings[i].advice.push(format!("{what}; it is taken back if that lasts"));
        }
    }
}
