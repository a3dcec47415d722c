//! How long entries are kept: `audit:` of the centre's file. Older ones go from the oldest on, few at a time, so that
//! whoever writes never waits for it.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval};

use super::{Audit, PREFIX, id, key};
use crate::{
    auth::Actor,
    clock::now_ms,
    error::Error,
    store::{Batch, Leadership},
};

/// How often is looked for entries that are too old.
const EVERY: Duration = Duration::from_secs(600);
/// Entries that go at once: one transaction of any store.
const PIECE: usize = 100;
/// Pause after each piece: others write in between.
const PAUSE: Duration = Duration::from_millis(20);
/// Fewest entries that may be asked for, so that a typing error does not empty the record.
const FEWEST: u64 = 1000;
/// Shortest time that may be asked for.
const SHORTEST: Duration = Duration::from_secs(24 * 3600);
/// Longest: a century.
const LONGEST_DAYS: u64 = 36_525;

/// What is kept. Without either, everything is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Entries older than this go: `400d`, at least `1d`.
    #[serde(deserialize_with = "days")]
    pub keep: Option<Duration>,
    /// Only so many of the newest stay; at least 1,000.
    pub rows: Option<u64>,
}

/// `400d`, or a duration as elsewhere.
fn days<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Duration>, D::Error> {
    use serde::de::Error as _;
    let text = String::deserialize(value)?;
    let text = text.trim();
    let read = match text.strip_suffix('d').map(str::parse::<u64>) {
        Some(Ok(days)) if days <= LONGEST_DAYS => Duration::from_secs(days * 24 * 3600),
        Some(_) => return Err(D::Error::custom(format!("`{text}` is no number of days; write it like 400d"))),
        None => model::value::duration(text).map_err(|wrong| D::Error::custom(wrong.of(text)))?,
    };
    Ok(Some(read))
}

impl Config {
    /// Whether it makes sense.
    ///
    /// # Errors
    /// Names the key and the value.
    pub fn check(&self) -> anyhow::Result<()> {
        if let Some(keep) = self.keep.filter(|keep| *keep < SHORTEST) {
            anyhow::bail!("audit: keep: {keep:?} is less than a day; write 1d or more");
        }
        if let Some(rows) = self.rows.filter(|rows| *rows < FEWEST) {
            anyhow::bail!("audit: rows: {rows} are too few; write {FEWEST} or more");
        }
        Ok(())
    }
}

/// Keeps the record as `config` says while this centre leads. Ends with the last handle of `audit`.
pub(super) fn start(audit: &Arc<Audit>, config: Config) {
    if config == Config::default() {
        return;
    }
    let (weak, leadership) = (Arc::downgrade(audit), audit.store.leadership());
    tokio::spawn(async move {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(audit) = weak.upgrade() else { return };
            let now = leadership.borrow().clone();
            if !now.leads {
                continue;
            }
            match audit.forget(&config, &now).await {
                Ok(0) => {}
                Ok(gone) => tracing::info!(gone, "old entries of the audit were removed"),
                Err(error) => tracing::warn!(%error, "old entries of the audit could not be removed; tried again"),
            }
        }
    });
}

impl Audit {
    /// Removes what is too old or too much; how many entries went. That it was done is an entry itself.
    async fn forget(&self, config: &Config, now: &Leadership) -> Result<u64, Error> {
        let newest = self.newest().await?;
        // Numbers are given one after the other, so the distance to the newest is the number of entries behind it.
        let beyond = config.rows.map_or(0, |rows| newest.saturating_sub(rows));
        let before = config.keep.map_or(0, |keep| now_ms().saturating_sub(keep.as_millis() as u64));
        let Some(first) = self.oldest(newest).await? else { return Ok(0) };
        let (mut from, mut gone) = (first, 0);
        while from < newest {
            // The newest stays, whatever its age: numbers go on from it.
            let end = (from + PIECE as u64).min(newest);
            let entries = self.store.scan(PREFIX, Some(&key(end)), PIECE).await?;
            let is_old = |entry: &&crate::store::Entry| {
                let number = id(&entry.key).unwrap_or(u64::MAX);
                number < end && (number <= beyond || at_ms(&entry.value).is_some_and(|at| at < before))
            };
            let old: Vec<String> = entries.iter().filter(is_old).map(|entry| entry.key.clone()).collect();
            if old.is_empty() && !entries.is_empty() {
                break;
            }
            if !old.is_empty() {
                gone += old.len() as u64;
                self.store.commit(Batch { delete: old, fenced: Some(now.epoch), ..Batch::default() }).await?;
                tokio::time::sleep(PAUSE).await;
            }
            from = end;
        }
        if gone > 0 {
            let detail = serde_json::json!({ "entries": gone, "from": first });
            self.record(&Actor::center(), "audit.forget", &format!("up to {}", from.saturating_sub(1)), "ok", detail)
                .await?;
        }
        Ok(gone)
    }

    /// The lowest number there is.
    async fn oldest(&self, newest: u64) -> Result<Option<u64>, Error> {
        if newest == 0 {
            return Ok(None);
        }
        // Keys count down, so a store that only goes forward is asked for halves: is there any up to this number?
        let (mut low, mut high) = (1, newest);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.store.scan(PREFIX, Some(&key(middle + 1)), 1).await?.is_empty() {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(Some(low))
    }
}

/// When an entry was made; `None`: it cannot be read.
fn at_ms(value: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Time {
        at_ms: u64,
    }
    serde_json::from_slice::<Time>(value).ok().map(|time| time.at_ms)
}

#[cfg(test)]
mod tests {
    use model::center::AuditEntry;
    use serde_json::json;

    use super::*;
    use crate::store::{Memory, Store};

    const DAY_MS: u64 = 24 * 3600 * 1000;

    /// A record with an entry for each age, in days and a half, the oldest first.
    async fn record(days_ago: &[u64]) -> (Arc<dyn Store>, Arc<Audit>) {
        let store: Arc<dyn Store> = Arc::new(Memory::new("me"));
        let entry = |(n, ago): (usize, &u64)| {
            let id = n as u64 + 1;
            let at_ms = now_ms() - ago * DAY_MS - DAY_MS / 2;
            let text = String::new;
            let entry = AuditEntry {
                id,
                at_ms,
                actor: text(),
                from: text(),
                what: text(),
                target: text(),
                outcome: text(),
                detail: json!(null),
            };
            (key(id), serde_json::to_vec(&entry).unwrap())
        };
        let put = days_ago.iter().enumerate().map(entry).collect();
        store.commit(Batch { put, ..Batch::default() }).await.unwrap();
        (store.clone(), Audit::new(store))
    }

    async fn left(audit: &Audit) -> (usize, u64, u64) {
        let all = audit.page(None, 1_000_000).await.unwrap();
        (all.len(), all.last().map_or(0, |entry| entry.id), all[0].id)
    }

    fn leads(store: &Arc<dyn Store>) -> Leadership {
        store.leadership().borrow().clone()
    }

    fn keep(days: u64) -> Config {
        Config { keep: Some(Duration::from_secs(days * 24 * 3600)), ..Config::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_old_goes_and_the_rest_stays() {
        let ages: Vec<u64> = (0..1000).rev().collect();
        let (store, audit) = record(&ages).await;
        assert_eq!(audit.forget(&keep(400), &leads(&store)).await.unwrap(), 600);
        // That it was done is on record.
        assert_eq!(left(&audit).await, (401, 601, 1001));
        let told = audit.page(None, 1).await.unwrap().remove(0);
        assert_eq!((told.actor.as_str(), told.what.as_str()), ("centre", "audit.forget"));
        assert_eq!(told.detail["entries"], 600);
        assert_eq!(audit.forget(&keep(400), &leads(&store)).await.unwrap(), 0, "nothing is left to do");
        assert_eq!(left(&audit).await, (401, 601, 1001));
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_stay_and_never_none() {
        let (store, audit) = record(&[0; 2500]).await;
        let rows = Config { rows: Some(1000), ..Config::default() };
        assert_eq!(audit.forget(&rows, &leads(&store)).await.unwrap(), 1500);
        assert_eq!(left(&audit).await, (1001, 1501, 2501));
        // All are old: the newest stays, and numbers go on.
        let (store, audit) = record(&[900; 250]).await;
        assert_eq!(audit.forget(&keep(1), &leads(&store)).await.unwrap(), 249);
        assert_eq!(left(&audit).await, (2, 250, 251));
        let (store, audit) = record(&[]).await;
        assert_eq!(audit.forget(&keep(1), &leads(&store)).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_writes_meanwhile_does_not_wait_and_nothing_of_it_is_lost() {
        let (store, audit) = record(&vec![500; 5000]).await;
        start(&audit, keep(400));
        let begun = tokio::time::Instant::now();
        for n in 0..50 {
            audit.record(&Actor::center(), "x", &n.to_string(), "ok", json!(null)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(begun.elapsed() < Duration::from_millis(200), "writes come in between: {:?}", begun.elapsed());
        assert!(left(&audit).await.0 > 1000, "and it is not done at once");
        tokio::time::sleep(Duration::from_secs(60)).await;
        let all = audit.page(None, 10_000).await.unwrap();
        assert_eq!(all.iter().filter(|entry| entry.what == "x").count(), 50);
        assert_eq!(all.len(), 51, "and one that says what was done");
        // A centre that does not lead removes nothing.
        let other = Leadership { epoch: leads(&store).epoch + 1, ..leads(&store) };
        let (_, audit) = record(&[900; 10]).await;
        assert!(audit.forget(&keep(1), &other).await.is_err());
        assert_eq!(left(&audit).await.0, 10);
    }

    #[test]
    fn times_are_days_and_not_too_short() {
        let read = |text: &str| {
            let config: Config = serde_yaml::from_str(text).map_err(|e| e.to_string())?;
            config.check().map_err(|e| e.to_string())?;
            Ok::<_, String>(config)
        };
        assert_eq!(read("{keep: 400d}"), Ok(keep(400)));
        assert_eq!(read("{keep: 48h, rows: 1000000}"), Ok(Config { rows: Some(1_000_000), ..keep(2) }));
        for (text, part) in [
            ("{keep: 4 weeks}", "is not a duration"),
            ("{keep: xd}", "write it like 400d"),
            ("{keep: 1h}", "less than a day"),
            ("{rows: 5}", "rows: 5 are too few"),
        ] {
            let told = read(text).unwrap_err();
            assert!(told.contains(part), "{text}: {told}");
        }
    }
}
