//! Looking: what a rule is about, and the figures for it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use model::center::{AlertRule, Condition, Of, Series};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    forecast::{self, Tracker},
    judge::{self, Verdict, name, number},
    outlier,
    rules::column,
};
use crate::{clock::now_ms, decide::Decider, monitor::Monitor, registry::Registry};

/// Things that are looked at at once.
const AT_ONCE: usize = 8;

/// Most things that one rule looks at.
const THINGS: usize = 20_000;

/// Most instances that are compared with each other.
const INSTANCES: usize = 1_000;

/// Most forecasts that are followed.
const FORECASTS: usize = 5_000;

/// Figures that only servers of the site have are asked for this often within the short window of a budget: they change
/// by the minute, and each look is several questions. And so often where agents report that all goes well.
const LOOKS: u64 = 10;
const LOOKS_BESIDE: u64 = 2;

/// What was counted less than this ago may not be here yet: agents report every two seconds.
const SETTLED_MS: u64 = 4_000;

const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 24 * 60 * MINUTE_MS;

/// Windows of a forecast, where figures reach back for days: five minutes, two weeks and a day.
const COARSE: (u64, u64) = (5 * MINUTE_MS, 15 * DAY_MS);
/// And where they do not: minutes of a day, whose season is an hour.
const FINE: (u64, u64) = (MINUTE_MS, DAY_MS);

/// Looks.
pub struct Looker {
    registry: Arc<Registry>,
    monitor: Arc<Monitor>,
    decider: Arc<Decider>,
    forecasts: Mutex<HashMap<(String, Of), Followed>>,
    /// Budgets that servers of the site know of and that are not spent too fast: when they are looked at again.
    rests: Mutex<HashMap<(String, Of), Instant>>,
}

/// A forecast that is followed.
#[derive(Clone, Debug)]
struct Followed {
    step_ms: u64,
    tracker: Tracker,
}

/// What a look at one thing found.
pub type Found = (Of, Verdict);

impl Looker {
    /// From what it asks.
    pub fn new(registry: Arc<Registry>, monitor: Arc<Monitor>, decider: Arc<Decider>) -> Self {
        Self { registry, monitor, decider, forecasts: Mutex::default(), rests: Mutex::default() }
    }

    /// Looks at everything that a rule is about. `stands` says for what an alert stands already.
    pub async fn look(&self, rule: &AlertRule, stands: &(dyn Fn(&Of) -> bool + Sync)) -> Vec<Found> {
        let things = stream::iter(self.things(rule)).map(|of| self.thing(rule, of, stands));
        things.buffer_unordered(AT_ONCE).flat_map(stream::iter).collect().await
    }

    /// Forgets forecasts of rules that are no more.
    pub fn keep(&self, rules: &BTreeSet<String>) {
        self.forecasts.lock().retain(|(rule, _), _| rules.contains(rule));
        let now = Instant::now();
        self.rests.lock().retain(|_, until| now < *until);
    }

    fn things(&self, rule: &AlertRule) -> Vec<Of> {
        let per_group = matches!(rule.condition, Condition::Outlier { .. } | Condition::Water { .. });
        let of = &rule.of;
        let whole = !of.service.is_empty() && (!of.group.is_empty() || !per_group);
        if whole {
            return vec![of.clone()];
        }
        let wanted = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
        let keys = self.registry.keys().into_iter().map(|key| (key.service, key.group));
        // Services may be registered elsewhere, and their agents report all the same; how many instances they have is
        // not known for sure then.
        let elsewhere = if per_group { Vec::new() } else { self.monitor.services() };
        let keys = keys.chain(elsewhere);
        let keys = keys.filter(|(service, group)| wanted(&of.service, service) && wanted(&of.group, group));
        let things: BTreeSet<Of> = keys.map(|(service, group)| Of { service, group, ..of.clone() }).collect();
        things.into_iter().take(THINGS).collect()
    }

    async fn thing(&self, rule: &AlertRule, of: Of, stands: &(dyn Fn(&Of) -> bool + Sync)) -> Vec<Found> {
        let verdict = match &rule.condition {
            Condition::Threshold { figure, above, below, for_ms } => {
                // Cheap first: who is within the bounds now was not beyond them all the time.
                if *for_ms >= 10_000 && !stands(&of) && self.within(&of, figure, *above, *below) {
                    Verdict::Fine
                } else {
                    let series = self.series(&of, *for_ms + *for_ms / 2, (for_ms / 10).max(1000)).await;
                    series.map_or(Verdict::Unknown, |s| judge::threshold(s, figure, *above, *below, *for_ms))
                }
            }
            Condition::BurnRate { objective_percent, long_ms, short_ms, factor } => {
                if self.rests(&rule.name, &of, *short_ms, stands) {
                    Verdict::Fine
                } else {
                    let series = self.series(&of, *long_ms, (short_ms / 5).max(1000)).await;
                    let (objective, factor) = (*objective_percent, *factor);
                    series.map_or(Verdict::Unknown, |s| judge::burn_rate(s, objective, *long_ms, *short_ms, factor))
                }
            }
            Condition::Water { line } => self.water(&of, line),
            Condition::Forecast { figure, level_percent } => {
                self.forecast(&rule.name, &of, figure, *level_percent / 100.0).await
            }
            Condition::Outlier { figure, sensitivity } => return self.outliers(&of, figure, *sensitivity).await,
        };
        vec![(of, verdict)]
    }

    /// Whether a budget need not be looked at now. Agents that tell of failures do so at once; what only servers of the
    /// site know (of callers without an agent, or of agents that do not report here) is asked for now and then.
    fn rests(&self, rule: &str, of: &Of, short_ms: u64, stands: &(dyn Fn(&Of) -> bool + Sync)) -> bool {
        let lately = self.monitor.lately(of).success;
        if stands(of) || lately.is_some_and(|success| success < 1.0) {
            return false;
        }
        if !self.monitor.has_sources() {
            return true;
        }
        let (now, key) = (Instant::now(), (rule.to_owned(), of.clone()));
        let mut rests = self.rests.lock();
        if rests.get(&key).is_some_and(|until| now < *until) {
            return true;
        }
        let looks = if lately.is_some() { LOOKS_BESIDE } else { LOOKS };
        rests.insert(key, now + Duration::from_millis(short_ms / looks));
        false
    }

    /// The last `span_ms`, as far as all agents have told of it.
    async fn series(&self, of: &Of, span_ms: u64, step_ms: u64) -> Option<Series> {
        let to = now_ms().saturating_sub(SETTLED_MS);
        match self.monitor.series(of, to.saturating_sub(span_ms), to, step_ms).await {
            Ok(series) => Some(series),
            Err(error) => {
                tracing::debug!(of = %name(of), %error, "no figures to look at");
                None
            }
        }
    }

    fn within(&self, of: &Of, figure: &str, above: Option<f64>, below: Option<f64>) -> bool {
        let lately = self.monitor.lately(of);
        let value = match figure {
            // None at all: the site's own servers may know of some.
            "rate" => lately.success.map(|_| lately.rate),
            "success" => lately.success,
            "mean_ms" => lately.mean_ms,
            "p50_ms" => lately.p50_ms,
            "p99_ms" => lately.p99_ms,
            "p999_ms" => lately.p999_ms,
            "slow" => lately.slow,
            _ => None,
        };
        let inside = |value: f64| above.is_none_or(|bound| value <= bound) && below.is_none_or(|bound| value >= bound);
        value.is_some_and(inside)
    }

    fn water(&self, of: &Of, line: &str) -> Verdict {
        let Some(pool) = self.decider.pool(&of.service, &of.group) else { return Verdict::Fine };
        if pool.instances == 0 && pool.level == "fatal" {
            let summary =
                format!("no instance of {} can be called, and callers want {}/s", name(of), number(pool.load));
            return Verdict::Holds(Box::new(judge::Finding { summary, ..judge::Finding::default() }));
        }
        let Some(water) = pool.water_percent else { return Verdict::Unknown };
        let bound = if line == "fatal" { pool.policy.fatal_percent } else { pool.policy.warning_percent };
        if water <= bound {
            return Verdict::Fine;
        }
        let summary = format!(
            "{} is at {} % of what its {} instances can take, above the {line} line of {} %",
            name(of),
            number(water),
            pool.instances,
            number(bound)
        );
        Verdict::Holds(Box::new(judge::Finding { summary, ..judge::Finding::default() }))
    }

    async fn outliers(&self, of: &Of, figure: &str, sensitivity: f64) -> Vec<Found> {
        let keys = self.registry.keys().into_iter();
        let keys = keys.filter(|key| key.service == of.service && key.group == of.group);
        let addresses: BTreeSet<String> = keys
            .flat_map(|key| self.registry.rows(&key))
            .filter(|row| row.state == "available")
            .map(|row| row.address)
            .take(INSTANCES)
            .collect();
        if addresses.len() < outlier::SIBLINGS {
            return Vec::new();
        }
        let span = outlier::WINDOWS as u64 * outlier::WINDOW_MS;
        let asked = stream::iter(addresses).map(|address| {
            let of = Of { instance: address, ..of.clone() };
            async move { (self.series(&of, span, outlier::WINDOW_MS).await, of) }
        });
        let mut serieses: Vec<(Series, Of)> =
            asked.buffered(AT_ONCE).filter_map(async |(series, of)| Some((series?, of))).collect().await;
        // All ask for the same windows; one that was asked as the next window began has one more at its end.
        let length = serieses.iter().map(|(series, _)| series.at_ms.len()).min().unwrap_or(0);
        let value = |(series, _): &(Series, Of)| {
            let values = column(series, figure).unwrap_or_default();
            values[values.len().saturating_sub(length)..].to_vec()
        };
        let mut values: Vec<Vec<Option<f64>>> = serieses.iter().map(value).collect();
        for row in &mut values {
            // A column that is shorter than its times would be a fault of the source.
            row.resize(length, None);
        }
        let found = outlier::find(figure, &values, sensitivity);
        let mut verdicts: Vec<Verdict> = values
            .iter()
            .map(|row| if row.iter().flatten().next().is_some() { Verdict::Fine } else { Verdict::Unknown })
            .collect();
        for outlier in found {
            let (series, of) = &mut serieses[outlier.index];
            let summary = format!(
                "{figure} of {} is {}, and {} is usual among its {} siblings",
                name(of),
                number(outlier.value),
                number(outlier.usual),
                values.len() - 1
            );
            verdicts[outlier.index] = Verdict::holds(summary, std::mem::take(series), outlier.band);
        }
        serieses.into_iter().map(|(_, of)| of).zip(verdicts).collect()
    }

    async fn forecast(&self, rule: &str, of: &Of, figure: &str, level: f64) -> Verdict {
        let key = (rule.to_owned(), of.clone());
        let followed = self.forecasts.lock().get(&key).cloned();
        let mut followed = match followed {
            Some(followed) => followed,
            None if self.forecasts.lock().len() >= FORECASTS => return Verdict::Unknown,
            None => Followed { step_ms: COARSE.0, tracker: Tracker::default() },
        };
        let newest = now_ms().saturating_sub(SETTLED_MS) / followed.step_ms * followed.step_ms;
        if followed.tracker.stale(newest, followed.step_ms) {
            let Some(learned) = self.learn(followed, of, figure, level).await else { return Verdict::Unknown };
            followed = learned;
        }
        let step = followed.step_ms;
        let span = step * (forecast::AHEAD as u64 * 6);
        let Some(series) = self.series(of, span, step).await else { return Verdict::Unknown };
        let complete = now_ms().saturating_sub(SETTLED_MS);
        let values = column(&series, figure).unwrap_or_default();
        for (at, value) in series.at_ms.iter().zip(values).filter(|(at, _)| **at <= complete) {
            followed.tracker.judge(*at, step, *value);
        }
        let tracker = followed.tracker.clone();
        self.forecasts.lock().insert(key, followed);
        match tracker.out() {
            None => Verdict::Unknown,
            Some(false) => Verdict::Fine,
            Some(true) => self.unexpected(series, figure, level, &tracker),
        }
    }

    fn unexpected(&self, series: Series, figure: &str, level: f64, tracker: &Tracker) -> Verdict {
        let Some(last) = tracker.judged().back() else { return Verdict::Unknown };
        let summary = format!(
            "{figure} of {} is {}, and {} to {} was expected ({} % of the time)",
            name(&series.of),
            number(last.value.unwrap_or_default()),
            number(last.band.0),
            number(last.band.1),
            level * 100.0
        );
        let known: HashMap<u64, (f64, f64)> = tracker.judged().iter().map(|j| (j.at_ms, j.band)).collect();
        // Windows before the first that was judged get its band: pictures have no holes.
        let mut near = tracker.judged().front().map_or(last.band, |judged| judged.band);
        let mut band = Vec::with_capacity(series.at_ms.len());
        for at in &series.at_ms {
            near = known.get(at).copied().unwrap_or(near);
            band.push(near);
        }
        Verdict::holds(summary, series, band)
    }

    /// Learns again: from weeks where there are, else from the day that there is.
    async fn learn(&self, mut followed: Followed, of: &Of, figure: &str, level: f64) -> Option<Followed> {
        let long = self.series(of, COARSE.1, COARSE.0).await?;
        let known = |series: &Series| {
            let values = column(series, figure).unwrap_or_default();
            let first = values.iter().position(Option::is_some);
            first.map_or(0, |first| series.at_ms.last().unwrap_or(&0) - series.at_ms[first])
        };
        let reaches = known(&long) >= 2 * DAY_MS + COARSE.0 * forecast::AHEAD as u64 && long.step_ms == COARSE.0;
        let (series, step) = if reaches { (long, COARSE.0) } else { (self.series(of, FINE.1, FINE.0).await?, FINE.0) };
        if series.step_ms != step {
            return None;
        }
        let seasons: &[u64] = if reaches { &[DAY_MS, 7 * DAY_MS] } else { &[60 * MINUTE_MS] };
        let seasons: Vec<usize> = seasons.iter().filter_map(|season| usize::try_from(season / step).ok()).collect();
        if followed.step_ms != step {
            followed = Followed { step_ms: step, tracker: Tracker::default() };
        }
        let figure = figure.to_owned();
        // Some ten milliseconds of one core.
        let learning = tokio::task::spawn_blocking(move || {
            let complete = now_ms().saturating_sub(SETTLED_MS);
            let count = series.at_ms.partition_point(|at| *at <= complete);
            let values = column(&series, &figure).unwrap_or_default();
            let count = count.min(values.len());
            followed.tracker.learn(&figure, &series.at_ms[..count], &values[..count], &seasons, level);
            followed
        });
        learning.await.ok()
    }
}
