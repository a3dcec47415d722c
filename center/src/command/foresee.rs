//! What a command would do, put together for who wants to give it.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    center::{Action, CommandRecord, CommandState, NewCommand, Preview, Role, Step},
    command::Commands as Text,
};

use super::{
    Commands,
    asked::{self, About, Slot},
    give::Rewrite,
    guard::{self, Verdict},
    kept::Kept,
    meant::Meant,
    preview,
};
use crate::{auth::Actor, error::Error};

/// Most services whose endpoints are predicted.
const PREVIEW_SERVICES: usize = 200;
/// Most endpoints of a preview.
const PREVIEW_ENDPOINTS: usize = 5000;

impl Commands {
    /// See [`Commands::preview`].
    pub(super) fn foresee(&self, actor: &Actor, wanted: &NewCommand) -> Result<Preview, Error> {
        asked::check(wanted)?;
        actor.may(Role::Viewer, wanted.action.home())?;
        super::resize::only_proposed(&wanted.action)?;
        let meant = self.meant(&wanted.action)?;
        let mut with = self.state.lock().open.clone();
        let id = with.last_key_value().map_or(1, |(id, _)| id + 1);
        let record = CommandRecord {
            id,
            author: actor.name.clone(),
            at_ms: 0,
            asked: wanted.clone(),
            state: CommandState::Active,
            steps: vec![Step { at_ms: 0, percent: 100, before: None }],
            until_ms: None,
            ended: None,
            changes: Vec::new(),
            written: Vec::new(),
        };
        let kept = Kept { record, scopes: meant.scopes.clone(), exact: meant.exact };
        with.insert(id, kept.clone());
        let texts = self.texts(&meant.scopes, &with)?;
        let revision = texts.iter().map(|text| text.revision).max().unwrap_or(0);
        let mut warnings: BTreeSet<String> = BTreeSet::new();
        for (_, other) in self.contending(&wanted.action, &meant, 0) {
            warnings.insert(format!("{other} is in force: this one would lie above it"));
        }
        if texts.iter().all(Rewrite::is_none) {
            warnings.insert("nothing would change".to_owned());
        }
        self.warn_of_others(wanted, &meant, &mut warnings);
        let parsed = |text: Option<&str>| Text::parse(text.unwrap_or_default()).unwrap_or_default();
        let both = |text: &Rewrite| (parsed(text.before.as_deref()), parsed(Some(&text.after)));
        let both: preview::Texts = texts.iter().map(|text| (text.group.clone(), both(text))).collect();
        let mut endpoints = Vec::new();
        for service in meant.services.iter().take(PREVIEW_SERVICES) {
            let groups = meant.keys.iter().filter(|key| key.service == *service).map(|key| key.group.clone()).collect();
            endpoints.extend(preview::endpoints(&*self.site, service, &groups, &both, &mut warnings));
        }
        if meant.services.len() > PREVIEW_SERVICES || endpoints.len() > PREVIEW_ENDPOINTS {
            endpoints.truncate(PREVIEW_ENDPOINTS);
            warnings.insert(format!(
                "only some endpoints are shown: {} services are met, and the first {PREVIEW_SERVICES} of them and \
                 {PREVIEW_ENDPOINTS} endpoints are predicted",
                meant.services.len()
            ));
        }
        let over = endpoints.iter().filter(|endpoint| endpoint.over).count();
        if over > 0 {
            warnings.insert(format!("{over} endpoints would get more than they can take"));
        }
        let mut callers: BTreeMap<String, f64> = BTreeMap::new();
        for (service, group) in meant.services.iter().flat_map(|s| meant.scopes.iter().map(move |g| (s, g))) {
            for (caller, rate) in self.site.callers(service, group) {
                *callers.entry(caller).or_default() += rate;
            }
        }
        if let Some(guard) = &wanted.guard {
            for (whom, seen) in self.targets(&kept) {
                match seen.judge(guard, &whom) {
                    Verdict::Broken(why) => warnings.insert(format!("the guard would undo it at once: {why}")),
                    Verdict::TooFew if meant.services.contains(&whom) => warnings.insert(format!(
                        "{whom} has too few calls within {} s for the guard to judge: steps would wait",
                        guard.window_ms.unwrap_or(guard::WINDOW_MS) / 1000
                    )),
                    _ => false,
                };
            }
        }
        let changes = texts.iter().filter(|text| !text.is_none()).map(Rewrite::change);
        Ok(Preview {
            revision,
            services: meant.services,
            endpoints,
            callers: callers.into_iter().collect(),
            changes: changes.collect(),
            warnings: warnings.into_iter().collect(),
        })
    }

    fn warn_of_others(&self, wanted: &NewCommand, meant: &Meant, warnings: &mut BTreeSet<String>) {
        let action = &wanted.action;
        if !meant.keys.iter().any(|key| key.group == action.home()) {
            warnings.insert(format!("group {} is not known here: only its callers would obey", action.home()));
        }
        if let (true, Some(name)) = (meant.exact, action.service()) {
            let others: Vec<_> = self.services().into_iter().filter(|s| s.starts_with(name) && s != name).collect();
            if !others.is_empty() && matches!(action.slot(), Slot::Traffic | Slot::Degrade) {
                let others = others.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
                warnings.insert(format!("clients of motan-go take `{name}` for the beginning of {others}, too"));
            }
        }
        if let Action::Canary { header: Some(header), .. } = action {
            warnings.insert(format!("how many calls carry {header} is not known: they are not in the figures"));
        }
        if matches!(action.slot(), Slot::Canary | Slot::Drain(_)) {
            warnings.insert("clients of Motan without an agent of this mesh do not know this command".to_owned());
        }
    }
}
