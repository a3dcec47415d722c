//! What operators say: rules, and silences that keep an alert from being told.

use model::center::{AlertRule, Silence};

use super::{Alerts, rules, shown, tell, usable};
use crate::{auth::Actor, clock::now_ms, error::Error, store::Batch};

/// Most rules, and most silences.
const MOST: usize = 1_000;

impl Alerts {
    /// All rules, by name: those of the file, the usual ones, those written over the API.
    pub fn rules(&self) -> Vec<AlertRule> {
        let inner = self.inner.lock();
        let written = inner.rules.values().filter(|rule| !self.is_fixed(&rule.name));
        let mut rules: Vec<_> = self.fixed.iter().chain(written).cloned().collect();
        rules.sort_by(|a, b| a.name.cmp(&b.name));
        rules
    }

    fn is_fixed(&self, name: &str) -> bool {
        self.fixed.iter().any(|rule| rule.name == name)
    }

    /// Writes a rule, or replaces the one of its name.
    ///
    /// # Errors
    /// It cannot be looked at, it names a webhook that the file does not allow, it stands in the file, or the store
    /// did not take it.
    pub async fn put_rule(&self, actor: &Actor, rule: AlertRule) -> Result<AlertRule, Error> {
        let rule = rules::settle(rule)?;
        if self.is_fixed(&rule.name) {
            return Err(Error::conflict(
                format!("rule `{}` is the file's own, or one of the usual ones", rule.name),
                "change it in `alerts:` of the centre's file, or choose another name",
            ));
        }
        if let Some(url) = rule.webhooks.iter().find(|url| !self.allowed(url)) {
            return Err(Error::bad(
                format!("rule `{}`: the webhook {} is not allowed", rule.name, tell::shown(url)),
                "add it to `alerts: webhooks:` of the centre's file",
            ));
        }
        let (_turn, epoch) = (self.turn.lock().await, self.fence()?);
        let full = {
            let inner = self.inner.lock();
            inner.rules.len() >= MOST && !inner.rules.contains_key(&rule.name)
        };
        if full {
            return Err(Error::bad(format!("there are {MOST} rules"), "delete some first"));
        }
        let detail = serde_json::to_value(shown(rule.clone())).unwrap_or_default();
        self.audit.record(actor, "alert.rule.put", &rule.name, "ok", detail).await?;
        let value = serde_json::to_vec(&rule).unwrap_or_default();
        let put = vec![(format!("rule/{}", rule.name), value)];
        self.store.commit(Batch { put, fenced: Some(epoch), ..Batch::default() }).await?;
        self.inner.lock().rules.insert(rule.name.clone(), rule.clone());
        Ok(rule)
    }

    fn allowed(&self, url: &str) -> bool {
        let fits = |allowed: &String| url == allowed || (allowed.ends_with('/') && url.starts_with(allowed.as_str()));
        usable(url).is_ok() && (self.config.webhooks.iter().any(fits) || self.config.tell.iter().any(|t| t == url))
    }

    /// Deletes a rule; its alerts end.
    ///
    /// # Errors
    /// There is none, or it stands in the file.
    pub async fn delete_rule(&self, actor: &Actor, name: &str) -> Result<(), Error> {
        if self.is_fixed(name) {
            return Err(Error::conflict(
                format!("rule `{name}` is the file's own, or one of the usual ones"),
                "change `alerts:` of the centre's file (`usual: false` ends the usual ones)",
            ));
        }
        let (_turn, epoch) = (self.turn.lock().await, self.fence()?);
        if !self.inner.lock().rules.contains_key(name) {
            return Err(Error::not_found(format!("no rule `{name}`"), "look at the list of rules"));
        }
        self.audit.record(actor, "alert.rule.delete", name, "ok", serde_json::Value::Null).await?;
        let delete = vec![format!("rule/{name}")];
        self.store.commit(Batch { delete, fenced: Some(epoch), ..Batch::default() }).await?;
        self.inner.lock().rules.remove(name);
        Ok(())
    }

    /// Silences that are not over, by number.
    pub fn silences(&self) -> Vec<Silence> {
        let now = now_ms();
        self.inner.lock().silences.values().filter(|silence| silence.until_ms > now).cloned().collect()
    }

    /// Tells nobody of what fits, until its end.
    ///
    /// # Errors
    /// It is over already or too long, there are too many, or the store did not take it.
    pub async fn silence(&self, actor: &Actor, mut silence: Silence) -> Result<Silence, Error> {
        const LONGEST_MS: u64 = 90 * 24 * 3_600_000;
        let now = now_ms();
        if silence.until_ms <= now || silence.until_ms > now + LONGEST_MS {
            return Err(Error::bad(
                format!("`until_ms: {}` is past, or more than 90 days away (it is {now})", silence.until_ms),
                "write milliseconds since 1970",
            ));
        }
        let long = |text: &String| text.len() > 500;
        if silence.reason.trim().is_empty() || [&silence.reason, &silence.rule].into_iter().any(long) {
            return Err(Error::bad("a silence needs a reason of at most 500 bytes", "say in `reason` why"));
        }
        let (_turn, epoch) = (self.turn.lock().await, self.fence()?);
        let over = {
            let mut inner = self.inner.lock();
            let over: Vec<u64> = inner.silences.values().filter(|s| s.until_ms <= now).map(|s| s.id).collect();
            if inner.silences.len() - over.len() >= MOST {
                return Err(Error::bad(format!("there are {MOST} silences"), "delete some first"));
            }
            for id in &over {
                inner.silences.remove(id);
            }
            // Unique among those there ever were: the clock, or one more than the newest.
            silence.id = inner.silences.last_key_value().map_or(0, |(id, _)| id + 1).max(now);
            over
        };
        silence.author.clone_from(&actor.name);
        let target = format!("{}/{}", silence.group, silence.service);
        let detail = serde_json::to_value(&silence).unwrap_or_default();
        self.audit.record(actor, "alert.silence.put", &target, "ok", detail).await?;
        let put = vec![(format!("silence/{:020}", silence.id), serde_json::to_vec(&silence).unwrap_or_default())];
        let delete = over.iter().map(|id| format!("silence/{id:020}")).collect();
        self.store.commit(Batch { put, delete, fenced: Some(epoch), ..Batch::default() }).await?;
        self.inner.lock().silences.insert(silence.id, silence.clone());
        Ok(silence)
    }

    /// Ends a silence early.
    ///
    /// # Errors
    /// There is none of this number, or the store did not take it.
    pub async fn unsilence(&self, actor: &Actor, id: u64) -> Result<(), Error> {
        let (_turn, epoch) = (self.turn.lock().await, self.fence()?);
        if !self.inner.lock().silences.contains_key(&id) {
            return Err(Error::not_found(format!("no silence {id}"), "look at the list of silences"));
        }
        self.audit.record(actor, "alert.silence.delete", &id.to_string(), "ok", serde_json::Value::Null).await?;
        let delete = vec![format!("silence/{id:020}")];
        self.store.commit(Batch { delete, fenced: Some(epoch), ..Batch::default() }).await?;
        self.inner.lock().silences.remove(&id);
        Ok(())
    }
}
