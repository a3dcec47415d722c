//! Pools without any instance that can be called: their calls go where there is room, and come back when instances are
//! there again and warm.

use super::{Act, Instant, Kind, Look, Moved, Since, Standing};

/// Share of callers' calls that must go well for the pool to be there for them, whatever is registered.
const SERVED: f64 = 0.5;

/// A pool that has this much of its calls left after a switch has given all of them, as far as figures tell.
const NOTHING: f64 = 0.05;

/// Least share that is moved after a first one, percent.
const FURTHER: u32 = 5;

impl Look<'_> {
    /// Whether nearly all calls of a pool are gone by this switch, so that its own figures say nothing any more.
    pub(super) fn is_emptied(moved: &Moved) -> bool {
        moved.stays() < NOTHING
    }

    /// Calls that the callers of this pool make and that no switch of the centre has taken, as a share.
    fn stays(&self, i: usize) -> f64 {
        self.given(i).map(Moved::stays).product()
    }

    /// Remembers what callers want of it as long as it can be seen.
    pub(super) fn remember(&self, i: usize, standing: &mut Standing) {
        let view = &self.views[i];
        let served = view.answered.is_none_or(|share| share >= SERVED);
        if view.lost || view.unheard || !served || view.pool.instances == 0 || self.stays(i) < NOTHING {
            return;
        }
        standing.demand = Some(self.own_load(i));
    }

    /// No instance of the pool can be called: what its callers want goes elsewhere, as far as there is room.
    pub(super) fn leaving(&mut self, i: usize, standings: &mut [Standing]) {
        let held = standings[i].lost.holds(self.now, true, self.hold(i));
        standings[i].calm = Since::default();
        let (view, pool) = (&self.views[i], self.pool(i));
        let stays = self.stays(i);
        let now = if stays < NOTHING { 0.0 } else { pool.load / stays };
        let demand = standings[i].demand.unwrap_or(now);
        let rest = demand * stays;
        let what = "no instance can be called";
        let moved = self.given(i).next().map(|moved| (moved.id, (1.0 - stays) * 100.0));
        let wait = if view.answered.is_some_and(|share| share >= SERVED) {
            Some(format!("{what}, as far as is registered, and callers still reach it: nothing is switched"))
        } else if let Some((id, percent)) = moved.filter(|_| rest < NOTHING * demand.max(1.0)) {
            let back = "they are taken back when instances are there again, and warm";
            Some(format!("{what}; {percent:.0} % of its calls are moved away (command {id}): {back}"))
        } else if rest <= 0.0 {
            Some(format!("{what}; nobody calls it"))
        } else if let Some(proposed) = self.moves.iter().find(|m| m.from == i && m.proposed) {
            Some(format!("{what}: proposal {} to move {} % waits for an operator", proposed.id, proposed.percent))
        } else if let Some(barred) = &self.barred {
            Some(format!("{what}; {barred}"))
        } else if let Some(blind) = self.blind.filter(|_| view.answered.is_none()) {
            // Callers that are heard say that their calls fail: that is to be trusted.
            Some(format!("{what}; {blind}: nothing is decided"))
        } else if !held {
            Some(format!("{what}; it is watched for a while before anything is done"))
        } else {
            let declined = || standings[i].declined(self.now, Kind::Switch).filter(|_| !pool.policy.switch);
            self.may(i, standings).err().or_else(declined).map(|wait| format!("{what}; {wait}"))
        };
        if let Some(wait) = wait {
            standings[i].advice.push(wait);
            return;
        }
        let room = self.roomiest(i, standings);
        let fits = room.map_or(0.0, |(_, room)| (room / rest * 100.0 + 1e-9).floor().clamp(0.0, 100.0));
        // Further switches are worth their while, or are not made.
        let least = if moved.is_some() { FURTHER } else { 1 };
        let Some((to, percent)) = room.map(|(to, _)| (to, fits as u32)).filter(|(_, percent)| *percent >= least) else {
            let none = "no other group has room below its safety line at the moment";
            standings[i].advice.push(format!("{what}, callers want {rest:.0}/s; {none}"));
            return;
        };
        let propose = !pool.policy.switch;
        let (there, safety) = (&self.pool(to).group, self.pool(to).policy.safety_percent);
        let short = if percent < 100 { "; there is no room for the rest" } else { "" };
        let verb = if propose { "proposes to move" } else { "moves" };
        standings[i].advice.push(format!("{what}: the centre {verb} {percent} % to {there}{short}"));
        let reason = format!(
            "{what} in {}, callers want {rest:.0}/s; {there} stays below its safety line of {safety:.0} %{short}; taken \
             back when instances are there again, and warm",
            pool.group
        );
        self.act(Act::Move { from: i, to, percent, propose, reason });
    }

    /// Water level of a pool whose calls were all moved away, with what `moved` took from it.
    pub(super) fn filled_again(&self, moved: &Moved, standing: &Standing) -> Option<f64> {
        let takes = crate::capacity::pool::takes(self.pool(moved.from)).filter(|takes| *takes > 0.0)?;
        let others: f64 = self.given(moved.from).filter(|m| m.id != moved.id).map(Moved::stays).product();
        // Where it is not known what callers want, it is not more than what takes it now.
        let receiver = || moved.to.map(|to| self.pool(to).load);
        let demand = standing.demand.or_else(receiver)?;
        Some(demand * others / takes * 100.0)
    }
}

impl Standing {
    /// Whether instances of the pool were registered here lately.
    pub fn was_there(&self, now: Instant) -> bool {
        self.usable.is_some_and(|at| now.duration_since(at) < super::LATELY)
    }
}
