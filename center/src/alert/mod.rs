//! Alerts: thresholds, burn rates, forecasts, outliers; told by webhook, once each, unless silenced.

mod api;
mod book;
mod forecast;
mod judge;
mod look;
mod orders;
mod outlier;
mod rules;
mod tell;

#[cfg(test)]
mod quality;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use model::{
    center::{Alert, AlertRule, AlertState, Condition, Of, Silence},
    kind,
};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};

use self::{
    book::{Book, Change, Kept, Now, Pace},
    look::Looker,
    tell::{Answered, Teller},
};
use crate::{
    audit::Audit,
    clock::now_ms,
    decide::Decider,
    monitor::Monitor,
    registry::Registry,
    store::{Batch, Store, StoreError},
};

pub use self::api::routes;

/// `alerts:` of the centre's file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Rules that cannot be changed over the API.
    pub rules: Vec<AlertRule>,
    /// Whether the usual rules hold besides.
    pub usual: bool,
    /// How often rules look.
    #[serde(deserialize_with = "kind::duration")]
    pub every: Duration,
    /// A condition must not hold for this long before its alert is over.
    #[serde(deserialize_with = "kind::duration")]
    pub resolve_after: Duration,
    /// Webhooks are reminded after this time.
    #[serde(deserialize_with = "kind::duration")]
    pub repeat: Duration,
    /// URLs that are told of alerts whose rules name none.
    pub tell: Vec<String>,
    /// URLs that rules written over the API may name; one that ends in `/` stands for all below it.
    pub webhooks: Vec<String>,
    /// Signs messages.
    pub secret_file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            usual: true,
            every: Duration::from_secs(5),
            resolve_after: Duration::from_secs(60),
            repeat: Duration::from_secs(4 * 3600),
            tell: Vec::new(),
            webhooks: Vec::new(),
            secret_file: None,
        }
    }
}

/// Entries read from the store at once.
const SCAN: usize = 1_000;

/// Comparing instances costs a series each, forecasts learn: they look more seldom, every so many rounds.
const OUTLIER_ROUNDS: u64 = 6;
/// See [`OUTLIER_ROUNDS`].
const FORECAST_ROUNDS: u64 = 12;

/// Rules, and what they found.
pub struct Alerts {
    config: Config,
    fixed: Vec<AlertRule>,
    store: Arc<dyn Store>,
    audit: Arc<Audit>,
    looker: Looker,
    /// Held by whoever changes what is kept and `inner` with it.
    turn: tokio::sync::Mutex<()>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    rules: BTreeMap<String, AlertRule>,
    silences: BTreeMap<u64, Silence>,
    book: Book,
}

impl Alerts {
    /// From what it builds on.
    pub fn new(
        config: Config,
        store: Arc<dyn Store>,
        registry: Arc<Registry>,
        monitor: Arc<Monitor>,
        decider: Arc<Decider>,
        audit: Arc<Audit>,
    ) -> Arc<Self> {
        let mut fixed = config.rules.clone();
        if config.usual {
            let usual = rules::usual().into_iter();
            let usual: Vec<_> = usual.filter(|usual| fixed.iter().all(|rule| rule.name != usual.name)).collect();
            fixed.extend(usual);
        }
        let looker = Looker::new(registry, monitor, decider);
        Arc::new(Self {
            config,
            fixed,
            store,
            audit,
            looker,
            turn: tokio::sync::Mutex::default(),
            inner: Mutex::default(),
        })
    }

    /// Reads rules and silences, and looks from now on while this centre leads.
    pub async fn load(self: &Arc<Self>) -> anyhow::Result<()> {
        let mut names = BTreeSet::new();
        for rule in &self.fixed {
            rules::settle(rule.clone())?;
            if !names.insert(&rule.name) {
                bail!("rule `{}` is there twice; give one of them another name", rule.name);
            }
        }
        for url in self.config.tell.iter().chain(self.fixed.iter().flat_map(|rule| &rule.webhooks)) {
            usable(url)?;
        }
        if self.config.every < Duration::from_millis(100) {
            bail!("`every: {:?}` is less than 100ms", self.config.every);
        }
        let secret = match &self.config.secret_file {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("secret_file {}", path.display()))?;
                Some(text.trim_end().as_bytes().to_vec())
            }
            None => None,
        };
        self.restore().await?;
        let (answers, answered) = mpsc::channel(1024);
        let teller = Teller::new(self.store.leadership().borrow().leader.clone(), secret, answers);
        tokio::spawn(run(Arc::downgrade(self), teller, answered, self.config.every));
        Ok(())
    }

    /// Takes in what is kept. Answers the keys of what need not be kept any more.
    async fn restore(&self) -> anyhow::Result<Vec<String>> {
        let _turn = self.turn.lock().await;
        let rules: Vec<AlertRule> = self.read("rule/").await?;
        let silences: Vec<Silence> = self.read("silence/").await?;
        let kept: Vec<Kept> = self.read("alert/").await?;
        let mut inner = self.inner.lock();
        inner.rules = rules.into_iter().map(|rule| (rule.name.clone(), rule)).collect();
        inner.silences = silences.into_iter().map(|silence| (silence.id, silence)).collect();
        inner.book = Book::default();
        let forgotten = inner.book.restore(kept, Instant::now());
        Ok(forgotten.iter().map(|id| format!("alert/{id}")).collect())
    }

    /// The epoch in which this centre may change anything.
    fn fence(&self) -> Result<u64, StoreError> {
        self.store.leadership().borrow().fence()
    }

    async fn read<T: serde::de::DeserializeOwned>(&self, prefix: &str) -> anyhow::Result<Vec<T>> {
        let (mut read, mut after) = (Vec::new(), None::<String>);
        loop {
            let entries = self.store.scan(prefix, after.as_deref(), SCAN).await?;
            for entry in &entries {
                match serde_json::from_slice(&entry.value) {
                    Ok(value) => read.push(value),
                    // Written by a later version: better without it than not at all.
                    Err(error) => tracing::warn!(key = %entry.key, %error, "an entry cannot be read and is left out"),
                }
            }
            match entries.last() {
                Some(last) if entries.len() == SCAN => after = Some(last.key.clone()),
                _ => return Ok(read),
            }
        }
    }

    /// Alerts that fire, of a service; an empty name means all.
    pub fn firing(&self, service: &str) -> Vec<Alert> {
        let inner = self.inner.lock();
        let firing = inner.book.all().take_while(|alert| alert.state != AlertState::Resolved);
        let firing = firing.filter(|alert| alert.state == AlertState::Firing);
        let firing = firing.filter(|alert| service.is_empty() || alert.of.service == service);
        firing.map(without_series).collect()
    }

    /// Goes on with what the centre before left.
    async fn begin(&self, epoch: u64) -> anyhow::Result<()> {
        let delete = self.restore().await?;
        self.commit(Batch { delete, fenced: Some(epoch), ..Batch::default() }).await?;
        Ok(())
    }

    /// One round of looking, as whoever leads in `epoch`; `round` says which rules are due.
    async fn round(&self, round: u64, epoch: u64, teller: &Arc<Teller>) {
        let rules = self.rules();
        let names: BTreeSet<String> = rules.iter().map(|rule| rule.name.clone()).collect();
        self.looker.keep(&names);
        // Alerts of rules that were deleted end too.
        let mut looked_at: BTreeSet<String> = self.inner.lock().book.rules().difference(&names).cloned().collect();
        let mut seen = BTreeSet::new();
        for rule in rules.iter().filter(|rule| due(rule, round)) {
            let stands = |of: &Of| self.inner.lock().book.stands(&rule.name, of);
            let found = self.looker.look(rule, &stands).await;
            looked_at.insert(rule.name.clone());
            for (of, verdict) in found {
                seen.insert((rule.name.clone(), of.clone()));
                self.observe(rule, &of, verdict, epoch, teller).await;
            }
        }
        let missing = self.inner.lock().book.missing(&looked_at, &seen);
        for (name, of) in missing {
            let gone = AlertRule {
                name: name.clone(),
                of: of.clone(),
                condition: Condition::Water { line: "fatal".to_owned() },
                severity: String::new(),
                webhooks: Vec::new(),
            };
            let rule = rules.iter().find(|rule| rule.name == name).unwrap_or(&gone);
            self.observe(rule, &of, judge::Verdict::Fine, epoch, teller).await;
        }
        let named = |url: &str| self.webhooks_of(&rules).any(|known| known == url);
        teller.keep(named);
    }

    fn webhooks_of<'a>(&'a self, rules: &'a [AlertRule]) -> impl Iterator<Item = &'a str> {
        self.config.tell.iter().chain(rules.iter().flat_map(|rule| &rule.webhooks)).map(String::as_str)
    }

    async fn observe(&self, rule: &AlertRule, of: &Of, verdict: judge::Verdict, epoch: u64, teller: &Arc<Teller>) {
        let pace = Pace { resolve_after: self.config.resolve_after, repeat: self.config.repeat };
        let change = {
            let inner = &mut *self.inner.lock();
            let ms = now_ms();
            let quiet = book::silenced(&inner.silences, &rule.name, of, ms);
            inner.book.observe(rule, of, verdict, pace, Now { instant: Instant::now(), ms, quiet })
        };
        let Some(Change { kept, news, forgotten }) = change else { return };
        let state = kept.alert.state;
        tracing::info!(alert = %kept.alert.id, rule = %rule.name, ?state, summary = %kept.alert.summary, "an alert");
        let put = vec![(format!("alert/{}", kept.alert.id), serde_json::to_vec(&kept).unwrap_or_default())];
        let delete = forgotten.iter().map(|id| format!("alert/{id}")).collect();
        // Kept before it is told: a centre that dies in between repeats the message, and its key says so.
        if self.commit(Batch { put, delete, fenced: Some(epoch), ..Batch::default() }).await.is_err() {
            return;
        }
        if let Some(news) = news {
            let urls = if rule.webhooks.is_empty() { &self.config.tell } else { &rule.webhooks };
            for url in urls {
                teller.tell(url, news, &kept.alert);
            }
        }
    }

    async fn answered(&self, answered: Answered, epoch: u64) {
        let Answered { id, url, answer } = answered;
        if !answer.starts_with('2') {
            tracing::warn!(alert = %id, %url, %answer, "a webhook was not told");
        }
        let kept = self.inner.lock().book.answered(&id, &url, &answer);
        if let Some(kept) = kept {
            let put = vec![(format!("alert/{id}"), serde_json::to_vec(&kept).unwrap_or_default())];
            // Whoever leads now tells it anew, and keeps what is answered then.
            let _ = self.commit(Batch { put, fenced: Some(epoch), ..Batch::default() }).await;
        }
    }

    /// Keeps what became of alerts. What cannot be kept is told all the same; an error when another centre leads, which
    /// tells it.
    async fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        if batch.put.is_empty() && batch.delete.is_empty() {
            return Ok(());
        }
        match self.store.commit(batch).await {
            Ok(_) => {}
            Err(StoreError::NotLeader) => return Err(StoreError::NotLeader),
            Err(error) => tracing::warn!(%error, "an alert could not be kept; it is told all the same"),
        }
        Ok(())
    }

    /// Alerts with what is over, newest first, series left out.
    fn list(&self) -> Vec<Alert> {
        let mut alerts: Vec<_> = self.inner.lock().book.all().map(without_series).collect();
        alerts.sort_by(|a, b| b.id.cmp(&a.id));
        alerts
    }

    fn one(&self, id: &str) -> Option<Alert> {
        self.inner.lock().book.all().find(|alert| alert.id == id).cloned()
    }
}

/// Looks until the centre is gone.
async fn run(
    alerts: std::sync::Weak<Alerts>,
    teller: Arc<Teller>,
    mut answered: mpsc::Receiver<Answered>,
    every: Duration,
) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut round, mut led) = (0, None);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let Some(alerts) = alerts.upgrade() else { return };
                let Ok(epoch) = alerts.fence() else {
                    led = None;
                    continue;
                };
                if led != Some(epoch) {
                    if let Err(error) = alerts.begin(epoch).await {
                        tracing::warn!(error = format!("{error:#}"), "alerts cannot be read; nothing is looked at before");
                        continue;
                    }
                    led = Some(epoch);
                }
                alerts.round(round, epoch, &teller).await;
                round += 1;
            }
            Some(answer) = answered.recv() => {
                let Some(alerts) = alerts.upgrade() else { return };
                // Noted here in any case; kept by whoever asked, as long as it leads.
                alerts.answered(answer, led.unwrap_or_default()).await;
            }
        }
    }
}

const fn due(rule: &AlertRule, round: u64) -> bool {
    match rule.condition {
        Condition::Outlier { .. } => round.is_multiple_of(OUTLIER_ROUNDS),
        Condition::Forecast { .. } => round.is_multiple_of(FORECAST_ROUNDS),
        _ => true,
    }
}

fn without_series(alert: &Alert) -> Alert {
    // Not cloned to be thrown away: they are the largest part.
    Alert {
        id: alert.id.clone(),
        rule: alert.rule.clone(),
        severity: alert.severity.clone(),
        of: alert.of.clone(),
        summary: alert.summary.clone(),
        state: alert.state,
        since_ms: alert.since_ms,
        until_ms: alert.until_ms,
        series: None,
        band: Vec::new(),
        told: alert.told.clone(),
    }
}

/// A rule for those who may not see the secrets in its webhooks.
fn shown(mut rule: AlertRule) -> AlertRule {
    for url in &mut rule.webhooks {
        *url = tell::shown(url);
    }
    rule
}

fn usable(url: &str) -> anyhow::Result<()> {
    let uri: http::Uri = url.parse().with_context(|| format!("webhook `{}` is not a URL", tell::shown(url)))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
        bail!("webhook `{}` is not a URL that can be told; write it like https://pager.example/hook", tell::shown(url));
    }
    Ok(())
}
