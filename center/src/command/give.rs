//! What is done with a command: put into force, stepped, ended; all of it by laying the layers of texts anew.

use std::collections::{BTreeMap, BTreeSet};

use model::center::{Action, Change, CommandRecord, CommandState, NewCommand, Of, Role, Step};
use serde_json::Value;

use super::{
    Commands, Turn,
    asked::{self, About},
    kept::{self, Kept},
    layers::{self, Ground, Layer},
    meant::Meant,
    resize, scope, unknown,
};
use crate::{auth::Actor, clock, error::Error};

/// Tries to write a text when others write at the same time.
const TRIES: usize = 3;

/// The text of a group as it is and as it shall be.
pub(super) struct Rewrite {
    pub(super) group: String,
    pub(super) revision: u64,
    pub(super) before: Option<String>,
    pub(super) after: String,
}

impl Rewrite {
    /// Nothing would change.
    pub(super) fn is_none(&self) -> bool {
        same(self.before.as_deref(), &self.after)
    }

    pub(super) fn change(&self) -> Change {
        Change { scope: format!("group {}", self.group), before: self.before.clone(), after: Some(self.after.clone()) }
    }
}

impl Commands {
    /// Texts of these groups as they would be with these layers.
    pub(super) fn texts(&self, scopes: &[String], commands: &BTreeMap<u64, Kept>) -> Result<Vec<Rewrite>, Error> {
        let services = self.services();
        let size = |service: &str, group: &str| {
            let snapshot = self.site.snapshot(service, group);
            snapshot.instances.iter().map(|instance| u64::from(instance.weight)).sum()
        };
        let mut texts = Vec::with_capacity(scopes.len());
        for group in scopes {
            let (revision, before) = self.site.text(&scope(group));
            let below = self.publisher.load().beneath(group);
            let ground = Ground { services: &services, size: &size, below: below.as_deref() };
            let concerned = commands.values().filter(|kept| kept.in_force() && kept.scopes.contains(group));
            let layers: Vec<_> = concerned.map(layer).collect();
            let after = layers::lay(before.as_deref(), group, &layers, &ground)?;
            texts.push(Rewrite { group: group.clone(), revision, before, after });
        }
        Ok(texts)
    }

    /// Brings the texts of these groups to what `commands` say; texts changed after revision `expected` are a conflict.
    /// Answers what changed. After an error some may be changed; they are put right by calling it again.
    async fn bring(
        &self,
        turn: &Turn<'_>,
        scopes: &[String],
        commands: &BTreeMap<u64, Kept>,
        expected: Option<u64>,
    ) -> Result<Vec<Change>, Error> {
        let mut last = None;
        let mut changes: BTreeMap<String, Change> = BTreeMap::new();
        for _ in 0..TRIES {
            let texts = self.texts(scopes, commands)?;
            if let Some(expected) = expected {
                for text in texts.iter().filter(|text| !changes.contains_key(&text.group)) {
                    seen(&text.group, text.revision, expected)?;
                }
            }
            last = None;
            for text in texts.into_iter().filter(|text| !text.is_none()) {
                let scope = scope(&text.group);
                let written = self.site.set_text(&scope, text.revision, Some(text.after.clone()), turn.epoch);
                if let Err(error) = written.await {
                    last = Some(error);
                    break;
                }
                match changes.get_mut(&text.group) {
                    Some(known) => known.after = Some(text.after),
                    None => drop(changes.insert(text.group.clone(), text.change())),
                }
            }
            match &last {
                None => {
                    let publisher = self.publisher.load();
                    scopes.iter().for_each(|group| publisher.set(group, self.site.text(&scope(group)).1.as_deref()));
                    return Ok(changes.into_values().collect());
                }
                // Somebody else was faster: their text is the ground now.
                Some(error) if error.code == crate::error::Code::Conflict => {}
                Some(_) => break,
            }
        }
        Err(last.unwrap_or_else(|| Error::conflict("the command texts change all the time", "repeat it")))
    }

    /// A command from nothing to its first step, or kept as a proposal.
    pub(super) async fn take(&self, actor: &Actor, wanted: NewCommand, propose: bool) -> Result<CommandRecord, Error> {
        asked::check(&wanted)?;
        for group in wanted.action.groups() {
            actor.may(Role::Operator, group)?;
        }
        if !propose {
            resize::only_proposed(&wanted.action)?;
        }
        let turn = self.turn().await?;
        let meant = self.meant(&wanted.action)?;
        let id = self.state.lock().highest + 1;
        let record = CommandRecord {
            id,
            author: actor.name.clone(),
            at_ms: clock::now_ms(),
            asked: wanted,
            state: CommandState::Proposed,
            steps: Vec::new(),
            until_ms: None,
            ended: None,
            changes: Vec::new(),
            written: Vec::new(),
        };
        let kept = Kept { record, scopes: meant.scopes.clone(), exact: meant.exact };
        if propose {
            return self.propose(&turn, actor, kept).await;
        }
        self.enforce(&turn, actor, "command.create", kept, meant, true).await
    }

    /// A new proposal. An earlier one of the same author for the same pool is no advice any more.
    async fn propose(&self, turn: &Turn<'_>, actor: &Actor, mut kept: Kept) -> Result<CommandRecord, Error> {
        let waits = self.config.proposals;
        kept.record.until_ms = (!waits.is_zero()).then(|| kept.record.at_ms.saturating_add(waits.as_millis() as u64));
        let (id, asked) = (kept.record.id, &kept.record.asked.action);
        let same = |old: &&Kept| {
            let other = &old.record.asked.action;
            let pool = (asked.service(), asked.home(), asked.slot()) == (other.service(), other.home(), other.slot());
            old.record.state == CommandState::Proposed && old.record.author == actor.name && pool
        };
        let replaced: Vec<Kept> = {
            let state = self.state.lock();
            let waits = |old: &&Kept| same(old) && !state.doing.contains(&old.record.id);
            state.open.values().filter(waits).cloned().collect()
        };
        self.record(actor, "command.propose", &kept).await?;
        kept::write(&self.store, &kept, true, turn.epoch).await?;
        self.runs.lock().begin(&kept, waits);
        let record = self.remember(kept);
        for mut old in replaced {
            old.record.ended = Some((clock::now_ms(), actor.name.clone(), format!("proposal {id} takes its place")));
            old.record.state = CommandState::Undone;
            self.record(actor, "command.undo", &old).await?;
            kept::write(&self.store, &old, false, turn.epoch).await?;
            self.runs.lock().forget(old.record.id);
            self.remember(old);
        }
        Ok(record)
    }

    /// The end of a proposal that nobody wanted.
    pub(super) async fn close(&self, id: u64) -> Result<CommandRecord, Error> {
        let turn = self.turn().await?;
        let mut kept = self.known(id).await?;
        self.not_doing(id)?;
        // Somebody may have been faster.
        if kept.record.state != CommandState::Proposed {
            return Err(Error::conflict(format!("command {id} is no proposal"), "look at its state"));
        }
        let actor = Actor::center();
        let why = format!("nobody put it into force within {}", told(self.config.proposals));
        kept.record.ended = Some((clock::now_ms(), actor.name.clone(), why));
        kept.record.state = CommandState::Expired;
        self.record(&actor, "command.expire", &kept).await?;
        kept::write(&self.store, &kept, false, turn.epoch).await?;
        tracing::info!(target: "audit", command = id, "a proposal has expired");
        self.runs.lock().forget(id);
        Ok(self.remember(kept))
    }

    /// A proposal becomes a command.
    pub(super) async fn accept(&self, actor: &Actor, id: u64) -> Result<CommandRecord, Error> {
        let turn = self.turn().await?;
        let kept = self.known(id).await?;
        for group in kept.record.asked.action.groups() {
            actor.may(Role::Operator, group)?;
        }
        if kept.record.state != CommandState::Proposed {
            return Err(Error::conflict(format!("command {id} is no proposal"), "look at its state"));
        }
        if let Action::Scale { .. } = kept.record.asked.action {
            return self.resize(turn, actor, kept).await;
        }
        let meant = self.meant(&kept.record.asked.action)?;
        let kept = Kept { scopes: meant.scopes.clone(), exact: meant.exact, ..kept };
        // Its time as a command is another one than that of the proposal.
        self.runs.lock().forget(id);
        self.enforce(&turn, actor, "command.confirm", kept, meant, false).await
    }

    /// First step, with everything that can speak against it.
    async fn enforce(
        &self,
        turn: &Turn<'_>,
        actor: &Actor,
        what: &str,
        mut kept: Kept,
        meant: Meant,
        is_new: bool,
    ) -> Result<CommandRecord, Error> {
        let id = kept.record.id;
        let asked = kept.record.asked.clone();
        for group in &meant.scopes {
            actor.may(Role::Operator, group)?;
        }
        let contending = self.contending(&asked.action, &meant, id);
        if let (None, Some((_, other))) = (asked.expected, contending.first()) {
            return Err(Error::conflict(
                format!("{other} is in force"),
                "undo it first; or look at a preview, and repeat with `expected` set to its `revision`",
            ));
        }
        let first = asked.steps.first().copied().unwrap_or(100);
        let now = clock::now_ms();
        kept.record.steps = vec![Step { at_ms: now, percent: first, before: self.before(&meant.services) }];
        kept.record.state = if first < 100 { CommandState::Stepping } else { CommandState::Active };
        kept.record.until_ms = asked.for_ms.map(|ms| now.saturating_add(ms));
        let mut with = self.state.lock().open.clone();
        with.insert(id, kept.clone());
        let texts = self.texts(&meant.scopes, &with)?;
        if let Some(expected) = asked.expected {
            texts.iter().try_for_each(|text| seen(&text.group, text.revision, expected))?;
        }
        if texts.iter().all(Rewrite::is_none) {
            return Err(Error::conflict(
                format!("{}: nothing would change", asked.action.told()),
                "look at a preview for what is in force",
            ));
        }
        kept.record.changes = texts.iter().map(Rewrite::change).collect();
        self.record(actor, what, &kept).await?;
        // Known before it works: whatever happens now, the next start sees it and goes on or takes it back.
        kept::write(&self.store, &kept, is_new, turn.epoch).await?;
        {
            let mut state = self.state.lock();
            state.highest = state.highest.max(id);
        }
        with.insert(id, kept.clone());
        if let Err(error) = self.bring(turn, &meant.scopes, &with, asked.expected).await {
            with.remove(&id);
            if let Err(worse) = self.bring(turn, &meant.scopes, &with, None).await {
                tracing::warn!(command = id, %worse, "a command that failed could not be taken back at once");
            }
            kept.record.state = CommandState::Failed;
            kept.record.ended = Some((clock::now_ms(), "centre".to_owned(), error.to_string()));
            kept::write(&self.store, &kept, false, turn.epoch).await?;
            self.state.lock().open.remove(&id);
            return Err(error);
        }
        tracing::info!(target: "audit", command = id, author = %kept.record.author, what = %asked.action.told(),
            percent = first, "a command is in force");
        self.runs.lock().begin(&kept, self.config.proposals);
        Ok(self.remember(kept))
    }

    /// The next step.
    pub(super) async fn step(&self, actor: &Actor, id: u64) -> Result<CommandRecord, Error> {
        let turn = self.turn().await?;
        let mut kept = self.known(id).await?;
        for group in kept.record.asked.action.groups() {
            actor.may(Role::Operator, group)?;
        }
        let now = kept.percent();
        let next = kept.record.asked.steps.iter().copied().find(|percent| *percent > now);
        let (CommandState::Stepping, Some(percent)) = (kept.record.state, next) else {
            return Err(Error::conflict(format!("command {id} has no further step"), "look at its state"));
        };
        let services = self.meant(&kept.record.asked.action).map(|meant| meant.services).unwrap_or_default();
        kept.record.steps.push(Step { at_ms: clock::now_ms(), percent, before: self.before(&services) });
        if percent >= 100 {
            kept.record.state = CommandState::Active;
        }
        self.record(actor, "command.step", &kept).await?;
        let mut with = self.state.lock().open.clone();
        with.insert(id, kept.clone());
        for change in self.bring(&turn, &kept.scopes, &with, None).await? {
            match kept.record.changes.iter_mut().find(|known| known.scope == change.scope) {
                Some(known) => known.after = change.after,
                None => kept.record.changes.push(change),
            }
        }
        kept::write(&self.store, &kept, false, turn.epoch).await?;
        tracing::info!(target: "audit", command = id, by = %actor.name, percent, "a step of a command");
        self.runs.lock().begin(&kept, self.config.proposals);
        Ok(self.remember(kept))
    }

    /// The end of a command.
    pub(super) async fn end(&self, actor: &Actor, id: u64, why: &str) -> Result<CommandRecord, Error> {
        let turn = self.turn().await?;
        let mut kept = self.known(id).await?;
        for group in kept.record.asked.action.groups() {
            actor.may(Role::Operator, group)?;
        }
        if !kept.is_open() {
            let ended = kept.record.ended.as_ref().map_or(String::new(), |(_, by, why)| format!(" (by {by}: {why})"));
            return Err(Error::conflict(format!("command {id} has ended{ended}"), "look at the history"));
        }
        self.not_doing(id)?;
        kept.record.ended = Some((clock::now_ms(), actor.name.clone(), why.to_owned()));
        let was_in_force = kept.in_force();
        kept.record.state = CommandState::Undone;
        self.record(actor, "command.undo", &kept).await?;
        if was_in_force {
            let mut without = self.state.lock().open.clone();
            without.remove(&id);
            self.bring(&turn, &kept.scopes, &without, None).await?;
        }
        kept::write(&self.store, &kept, false, turn.epoch).await?;
        tracing::info!(target: "audit", command = id, by = %actor.name, why, "a command is undone");
        self.runs.lock().forget(id);
        Ok(self.remember(kept))
    }

    /// Texts are what the commands say, whatever others did to them and however this centre ended last time.
    pub(super) async fn put_right(&self) -> Result<(), Error> {
        let turn = self.turn().await?;
        let open = self.state.lock().open.clone();
        let mut scopes: BTreeSet<String> = self.site.keys().into_iter().map(|key| key.group).collect();
        scopes.extend(open.values().flat_map(|kept| kept.scopes.iter().cloned()));
        scopes.remove("");
        let publisher = self.publisher.load_full();
        for group in scopes {
            let has_layer = open.values().any(|kept| kept.in_force() && kept.scopes.contains(&group));
            if !has_layer && self.site.text(&scope(&group)).1.is_none() {
                publisher.set(&group, None);
                continue;
            }
            // One that is ill must not keep the others from being put right.
            match self.bring(&turn, std::slice::from_ref(&group), &open, None).await {
                Ok(changes) if changes.is_empty() => {}
                Ok(_) => tracing::info!(group, "its command text was put right"),
                Err(error) => tracing::warn!(group, %error, "its command text is not what the commands say"),
            }
        }
        Ok(())
    }

    /// Puts on record what became of a command in registries of the site.
    pub(super) async fn tell(&self, record: CommandRecord) -> CommandRecord {
        let publisher = self.publisher.load_full();
        if publisher.is_empty() {
            return record;
        }
        let Ok(kept) = self.known(record.id).await else { return record };
        let written = publisher.outcomes(&kept.scopes).await;
        let Ok(turn) = self.turn().await else { return record };
        let Ok(mut kept) = self.known(record.id).await else { return record };
        kept.record.written = written;
        if let Err(error) = kept::write(&self.store, &kept, false, turn.epoch).await {
            tracing::warn!(command = record.id, %error, "where it was written is not on record");
        }
        self.remember(kept)
    }

    pub(super) fn remember(&self, kept: Kept) -> CommandRecord {
        let (mut state, revision) = (self.state.lock(), self.store.stamp().revision);
        state.revision = state.revision.max(revision);
        state.highest = state.highest.max(kept.record.id);
        let record = kept.record.clone();
        if kept.is_open() {
            state.open.insert(record.id, kept);
        } else {
            state.open.remove(&record.id);
        }
        record
    }

    pub(super) async fn known(&self, id: u64) -> Result<Kept, Error> {
        if let Some(kept) = self.state.lock().open.get(&id) {
            return Ok(kept.clone());
        }
        kept::one(&self.store, id).await?.ok_or_else(|| unknown(id))
    }

    pub(super) async fn record(&self, actor: &Actor, what: &str, kept: &Kept) -> Result<(), Error> {
        let record = &kept.record;
        let detail = serde_json::json!({
            "id": record.id, "asked": record.asked, "state": record.state, "percent": kept.percent(),
            "ended": record.ended,
        });
        self.audit.record(actor, what, &record.asked.action.told(), "ok", detail).await
    }

    pub(super) fn before(&self, services: &[String]) -> Option<model::center::Figures> {
        let [service] = services else { return None };
        Some(self.site.lately(&Of { service: service.clone(), ..Of::default() }))
    }
}

/// A time in words.
fn told(time: std::time::Duration) -> String {
    match time.as_secs() {
        0 => format!("{time:?}"),
        s if s % 3600 == 0 => format!("{} h", s / 3600),
        s if s % 60 == 0 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}

fn layer(kept: &Kept) -> Layer<'_> {
    let record = &kept.record;
    let reason: String = record.asked.reason.chars().take(200).collect();
    Layer {
        id: record.id,
        action: &record.asked.action,
        percent: kept.percent(),
        exact: kept.exact,
        remark: format!("command {} by {}: {reason}", record.id, record.author),
    }
}

fn seen(group: &str, revision: u64, expected: u64) -> Result<(), Error> {
    if revision <= expected {
        return Ok(());
    }
    Err(Error::conflict(
        format!("the commands of group `{group}` were changed since (revision {revision}, you saw {expected})"),
        "look at a new preview, and repeat",
    ))
}

/// Whether two texts say the same.
pub(super) fn same(before: Option<&str>, after: &str) -> bool {
    let value = |text: &str| serde_json::from_str::<Value>(text).ok();
    match before.filter(|text| !text.trim().is_empty()) {
        None => value(after) == value(r#"{"clientCommandList":[]}"#),
        Some(before) => before == after || value(before).is_some_and(|before| Some(before) == value(after)),
    }
}
