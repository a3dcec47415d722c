//! Sizes of pools that the centre proposes: an operator's word has the driver of the pool start or stop instances, once.
//! And what people turned down, whatever it was about.

use std::{sync::Arc, time::Duration};

use model::center::{Action, CommandRecord, CommandState, Step};
use parking_lot::Mutex;

use super::{Commands, State, Turn, asked::About, kept, kept::Kept};
use crate::{auth::Actor, clock, error::Error, store::Store};

/// What was turned down is not proposed again for so long: what was no then is no now.
const DECLINED: Duration = Duration::from_secs(3600);

/// An error for what nobody gives as a command.
///
/// # Errors
/// It is the size of a pool.
pub(super) fn only_proposed(action: &Action) -> Result<(), Error> {
    let Action::Scale { .. } = action else { return Ok(()) };
    Err(Error::bad("sizes of pools are no commands: the centre proposes them", "ask for one with POST /v1/scale"))
}

/// A proposal that a driver carries out; nobody else may answer it meanwhile.
struct Doing<'a> {
    state: &'a Mutex<State>,
    id: u64,
}

impl Drop for Doing<'_> {
    fn drop(&mut self) {
        self.state.lock().doing.remove(&self.id);
    }
}

impl Commands {
    /// An error while a driver carries it out.
    pub(super) fn not_doing(&self, id: u64) -> Result<(), Error> {
        match self.state.lock().doing.contains(&id) {
            false => Ok(()),
            true => {
                let what = format!("proposal {id} is being carried out");
                Err(Error::conflict(what, "look at its state in a moment"))
            }
        }
    }

    /// Has the driver give a pool its size. It may take its time: others give commands meanwhile.
    pub(super) async fn resize(&self, turn: Turn<'_>, actor: &Actor, mut kept: Kept) -> Result<CommandRecord, Error> {
        let (id, asked) = (kept.record.id, kept.record.asked.clone());
        let Action::Scale { service, group, from, to } = &asked.action else {
            return Err(Error::internal(format!("proposal {id} is about no size"), "please report it"));
        };
        self.not_doing(id)?;
        self.state.lock().doing.insert(id);
        let doing = Doing { state: &self.state, id };
        self.record(actor, "command.confirm", &kept).await?;
        drop(turn);
        let now = self.site.size(service, group).await?;
        // The same again after an answer that was lost is no harm: the request has the same name.
        if now != *from && now != *to {
            return Err(Error::conflict(
                format!("the driver of {service} in {group} runs {now} instances by now, not {from}"),
                "wait for a new proposal, or ask for a size with POST /v1/scale",
            ));
        }
        let reason = format!("proposal {id}: {}", asked.reason);
        // Numbers begin anew with an older backup; a driver remembers names.
        let key = format!("proposal-{id}-{}", kept.record.at_ms);
        self.site.scale(actor, (service, group), *to, &key, &reason).await?;
        let turn = self.turn().await?;
        let at_ms = clock::now_ms();
        kept.record.steps = vec![Step { at_ms, percent: 100, before: self.before(std::slice::from_ref(service)) }];
        kept.record.state = CommandState::Done;
        kept.record.until_ms = None;
        kept.record.ended = Some((at_ms, actor.name.clone(), format!("the driver was asked for {to} instances")));
        kept::write(&self.store, &kept, false, turn.epoch).await?;
        drop(doing);
        tracing::info!(target: "audit", command = id, by = %actor.name, %service, %group, to, "a proposal is carried out");
        self.runs.lock().forget(id);
        Ok(self.remember(kept))
    }
}

/// See [`Commands::declined`].
pub(super) async fn declined(
    store: &Arc<dyn Store>,
    author: &str,
    action: &Action,
) -> Result<Option<(CommandRecord, Duration)>, Error> {
    let now = clock::now_ms();
    let left = |record: &CommandRecord| {
        let (at, by, _) = record.ended.as_ref().filter(|_| record.steps.is_empty())?;
        let rest = at.saturating_add(DECLINED.as_millis() as u64).saturating_sub(now);
        (by != author && rest > 0).then(|| Duration::from_millis(rest).min(DECLINED))
    };
    let one = |action: &Action| (action.service().map(str::to_owned), action.home().to_owned(), action.slot());
    let wanted = one(action);
    let same = |record: &CommandRecord| {
        let asked = record.state == CommandState::Undone && record.author == author;
        asked && one(&record.asked.action) == wanted && left(record).is_some()
    };
    let (found, _) = kept::page(store, None, 1, same).await?;
    Ok(found.into_iter().next().and_then(|record| left(&record).map(|left| (record, left))))
}
