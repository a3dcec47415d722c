//! Pools that are too small or too large: the centre has their drivers start or stop instances, or proposes it where
//! the policy gives it no leave.

use std::time::Duration;

use super::{Act, Kind, Look, Since, Standing, pool};

/// Share of its instances that a pool loses at once when it shrinks.
const SHRINK: u32 = 5;

/// A proposal is made anew when more than one instance more or fewer would be needed, and this part of the change.
const DIFFERS: u32 = 4;

/// A size that the centre proposed and that waits for an operator.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proposed {
    pub id: u64,
    pub pool: usize,
    /// Instances that the driver ran then.
    pub from: u32,
    pub to: u32,
}

impl Proposed {
    /// What becomes of so many instances by it.
    fn of(&self, instances: u32) -> u32 {
        instances.saturating_add(self.to).saturating_sub(self.from)
    }

    fn grows(&self) -> bool {
        self.to > self.from
    }
}

/// What a pool needs now.
#[derive(Clone, Debug)]
struct Need {
    /// Instances, all counted, within the policy's bounds.
    wanted: u32,
    /// Why.
    text: String,
    /// It has been needed for long enough.
    held: bool,
    /// Why it cannot be had, whoever wants it.
    never: Option<String>,
}

impl Look<'_> {
    /// Below its redundancy a pool grows, above it for long it shrinks.
    pub(super) fn scaling(&mut self, i: usize, standings: &mut [Standing]) {
        let proposed = self.sizes.iter().find(|size| size.pool == i).copied();
        if standings[i].proposed_size.is_some() && proposed.is_none() {
            // It was answered: whatever is needed then is looked at for as long as this was.
            (standings[i].short, standings[i].ample) = (Since::default(), Since::default());
        }
        standings[i].proposed_size = proposed.map(|size| match standings[i].proposed_size {
            Some(known) if known.0 == size.id => known,
            // One that an earlier leader made: as if nothing had changed since.
            _ => (size.id, standings[i].proposing.unwrap_or_else(|| size.of(self.pool(i).instances))),
        });
        let need = self.need(i, &mut standings[i]);
        let waiting = proposed.filter(|size| !self.withdrawn(i, size, need.as_ref(), standings));
        let Some(Need { wanted, text, held, never }) = need else { return };
        let pool = self.pool(i);
        if let Some(Proposed { id, from, to, .. }) = waiting {
            let waits = format!("{text}: proposal {id} to scale from {from} to {to} instances waits for an operator");
            standings[i].advice.push(waits);
            return;
        }
        let propose = !pool.policy.scale;
        let grows = wanted > pool.instances;
        // Where nothing is, nothing can be watched; a person is not asked at the first glance all the same.
        let held = held || (grows && pool.instances == 0 && !propose);
        let wait = never.or_else(|| proposed.map(|size| format!("proposal {} is withdrawn first", size.id)));
        let wait = wait.or_else(|| (!held).then(|| "it is watched for a while before anything is done".to_owned()));
        let wait = wait.or_else(|| self.may(i, standings).err());
        let declined = || standings[i].declined(self.now, Kind::Size).filter(|_| propose);
        if let Some(wait) = wait.or_else(declined) {
            standings[i].advice.push(format!("{text}; {wait}"));
            return;
        }
        standings[i].proposing = propose.then_some(wanted);
        let verb = if grows { "grow" } else { "shrink" };
        standings[i].advice.push(match propose {
            true => format!("{text}: the centre proposes that the pool {verb}s to {wanted}"),
            false => format!("{text}: the pool {verb}s to {wanted}"),
        });
        self.act(Act::Scale { pool: i, wanted, propose, reason: text });
    }

    /// Another size than the pool has, if it needs one.
    fn need(&self, i: usize, standing: &mut Standing) -> Option<Need> {
        let pool = self.pool(i);
        let policy = &pool.policy;
        let each = pool::takes(pool).map(|all| all / f64::from(pool.instances)).filter(|each| *each > 0.0);
        let Some(each) = each else {
            // What it can take is not known; the fewest that there shall be are wanted all the same.
            let short = pool.instances < policy.min;
            let held = standing.short.holds(self.now, short, self.hold(i));
            let text = format!("there shall be {} instances; there are {}", policy.min, pool.instances);
            return short.then(|| self.more(i, policy.min, text, held));
        };
        let load = self.wanted_load(i, standing);
        let needs = |redundancy: f64| pool::needed(load, each, policy.fatal_percent, redundancy).max(policy.min);
        let wanted = needs(policy.redundancy_percent);
        let short = pool.instances < wanted && (pool::limit_known(pool) || pool.instances < policy.min);
        let held = standing.short.holds(self.now, short, self.hold(i));
        if short {
            standing.ample = Since::default();
            let redundancy = policy.redundancy_percent;
            let text = format!("{wanted} instances keep {redundancy:.0} % to lose; there are {}", pool.instances);
            return Some(self.more(i, wanted, text, held));
        }
        // With the margin, and without passing the warning line again.
        let line = policy.warning_percent - policy.margin_percent;
        let enough = needs((policy.redundancy_percent + policy.margin_percent).min(99.0))
            .max(pool::needed(load, each, line, 0.0));
        let settled = self.blind.is_none() && !self.views[i].unheard && self.given(i).next().is_none();
        let ample = settled && enough < pool.instances && !policy.driver.is_empty();
        let hold = Duration::from_millis(policy.shrink_hold_ms);
        if !standing.ample.holds(self.now, ample, hold) {
            return None;
        }
        let step = (pool.instances / SHRINK).max(1);
        let text = format!("{enough} instances are enough for {load:.0}/s");
        Some(Need { wanted: enough.max(pool.instances - step), text, held: true, never: None })
    }

    /// More instances, as many as the policy allows at once.
    fn more(&self, i: usize, wanted: u32, text: String, held: bool) -> Need {
        let pool = self.pool(i);
        let policy = &pool.policy;
        let most = policy.max.min(pool.instances.saturating_mul(2)).max(policy.min);
        let never = if policy.driver.is_empty() {
            Some("the policy names no driver".to_owned())
        } else {
            (pool.instances >= policy.max).then(|| format!("`max` is {}", policy.max))
        };
        Need { wanted: wanted.min(most), text, held, never }
    }

    /// A proposal that is not needed any more, or would have to be another one, is turned down once that has lasted.
    fn withdrawn(&mut self, i: usize, size: &Proposed, need: Option<&Need>, standings: &mut [Standing]) -> bool {
        let pool = self.pool(i);
        let why = match need {
            _ if pool.policy.scale => Some("the policy lets the centre scale by itself now"),
            Some(Need { never: None, wanted, .. }) => {
                let then = standings[i].proposed_size.map_or(*wanted, |(_, then)| then);
                let differs = wanted.abs_diff(then) > (size.to.abs_diff(size.from) / DIFFERS).max(1);
                let turned = (*wanted > pool.instances) != size.grows();
                (differs || turned).then_some("it does not fit any more")
            }
            // A pool shrinks only where nothing is missing; that figures are missing now says nothing.
            None if !size.grows() && self.blind.is_some() => None,
            Some(_) | None => Some("it is not needed any more"),
        };
        if !standings[i].unfit.holds(self.now, why.is_some(), self.hold(i)) || standings[i].busy {
            return false;
        }
        standings[i].unfit = Since::default();
        let reason = why.unwrap_or_default().to_owned();
        self.acts.push(Act::Undo { id: size.id, pools: Vec::new(), reason });
        true
    }
}
