//! What stands, what is told, what is over: one alert for one rule and one thing, as long as the condition holds.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use model::center::{Alert, AlertRule, AlertState, Of, Silence};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::judge::{Finding, Verdict};
use crate::hex::hex;

/// Most alerts that stand at once; more are all one trouble.
const STANDING: usize = 10_000;

/// Alerts that are over and remembered.
const PAST: usize = 1_000;

/// Most windows that are kept with an alert.
const WINDOWS: usize = 720;

/// What those who are told hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// It holds.
    Firing,
    /// It still holds.
    Reminder,
    /// It is over.
    Resolved,
}

impl News {
    /// Its word in messages.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Reminder => "reminder",
            Self::Resolved => "resolved",
        }
    }
}

/// An alert as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// As operators see it.
    pub alert: Alert,
    /// Somebody was told that it fires.
    pub told: bool,
}

/// A change that must be kept, and told if there is news.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The alert now.
    pub kept: Kept,
    /// For the webhooks.
    pub news: Option<News>,
    /// One that need not be kept any more.
    pub forgotten: Option<String>,
}

struct Standing {
    kept: Kept,
    told_at: Option<Instant>,
    fine_since: Option<Instant>,
}

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// A condition must not hold for this long before its alert is over: what comes and goes is told once.
    pub resolve_after: Duration,
    /// They are reminded after this time.
    pub repeat: Duration,
}

/// The moment of a look.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For durations.
    pub instant: Instant,
    /// For people.
    pub ms: u64,
    /// Nobody is to be told: a silence fits.
    pub quiet: bool,
}

/// All alerts.
#[derive(Default)]
pub struct Book {
    standing: BTreeMap<(String, Of), Standing>,
    past: VecDeque<Alert>,
}

/// Whether nobody is told of this rule and thing.
pub fn silenced(silences: &BTreeMap<u64, Silence>, rule: &str, of: &Of, now_ms: u64) -> bool {
    let fits = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
    silences.values().any(|silence| {
        silence.until_ms > now_ms
            && fits(&silence.rule, rule)
            && fits(&silence.service, &of.service)
            && fits(&silence.group, &of.group)
    })
}

impl Book {
    /// Puts back what was kept. Returns ids that are too old to be remembered.
    pub fn restore(&mut self, mut kept: Vec<Kept>, now: Instant) -> Vec<String> {
        kept.sort_by_key(|kept| kept.alert.since_ms);
        let mut forgotten = Vec::new();
        for kept in kept {
            if kept.alert.state == AlertState::Resolved {
                forgotten.extend(self.bury(kept.alert));
            } else {
                let key = (kept.alert.rule.clone(), kept.alert.of.clone());
                let told_at = kept.told.then_some(now);
                self.standing.insert(key, Standing { kept, told_at, fine_since: None });
            }
        }
        forgotten
    }

    fn bury(&mut self, alert: Alert) -> Option<String> {
        self.past.push_back(alert);
        if self.past.len() > PAST { self.past.pop_front().map(|alert| alert.id) } else { None }
    }

    /// Whether an alert of this rule stands for this thing.
    pub fn stands(&self, rule: &str, of: &Of) -> bool {
        self.standing.contains_key(&(rule.to_owned(), of.clone()))
    }

    /// Takes in what one look at one thing found.
    pub fn observe(&mut self, rule: &AlertRule, of: &Of, verdict: Verdict, pace: Pace, now: Now) -> Option<Change> {
        let key = (rule.name.clone(), of.clone());
        match verdict {
            Verdict::Unknown => None,
            Verdict::Holds(finding) => {
                if !self.standing.contains_key(&key) {
                    if self.standing.len() >= STANDING {
                        return None;
                    }
                    let alert = begin(rule, of, now.ms);
                    let kept = Kept { alert, told: false };
                    self.standing.insert(key.clone(), Standing { kept, told_at: None, fine_since: None });
                }
                self.standing.get_mut(&key).and_then(|standing| standing.holds(*finding, rule, pace, now))
            }
            Verdict::Fine => {
                let standing = self.standing.get_mut(&key)?;
                let since = *standing.fine_since.get_or_insert(now.instant);
                if now.instant.duration_since(since) < pace.resolve_after {
                    return None;
                }
                let mut kept = self.standing.remove(&key)?.kept;
                kept.alert.state = AlertState::Resolved;
                kept.alert.until_ms = Some(now.ms);
                let forgotten = self.bury(kept.alert.clone());
                // Who heard that it fires hears that it is over, silence or not.
                let news = kept.told.then_some(News::Resolved);
                Some(Change { kept, news, forgotten })
            }
        }
    }

    /// Things that stand and were not among those that a rule's look found: they, or the rule, are no more.
    pub fn missing(&self, looked_at: &BTreeSet<String>, seen: &BTreeSet<(String, Of)>) -> Vec<(String, Of)> {
        let gone = |key: &&(String, Of)| looked_at.contains(&key.0) && !seen.contains(*key);
        self.standing.keys().filter(gone).cloned().collect()
    }

    /// Rules that have alerts standing.
    pub fn rules(&self) -> BTreeSet<String> {
        self.standing.keys().map(|(rule, _)| rule.clone()).collect()
    }

    /// Notes what a webhook answered. The alert as it is to be kept, if it is known.
    pub fn answered(&mut self, id: &str, url: &str, answer: &str) -> Option<Kept> {
        let note = |alert: &mut Alert| {
            alert.told.retain(|(known, _)| known != url);
            alert.told.push((url.to_owned(), answer.to_owned()));
        };
        if let Some(standing) = self.standing.values_mut().find(|standing| standing.kept.alert.id == id) {
            note(&mut standing.kept.alert);
            return Some(standing.kept.clone());
        }
        let alert = self.past.iter_mut().rev().find(|alert| alert.id == id)?;
        note(alert);
        Some(Kept { alert: alert.clone(), told: true })
    }

    /// Alerts that stand, and those that are over, newest of both first.
    pub fn all(&self) -> impl Iterator<Item = &Alert> {
        let standing = self.standing.values().map(|standing| &standing.kept.alert);
        standing.chain(self.past.iter().rev())
    }
}

impl Standing {
    fn holds(&mut self, finding: Finding, rule: &AlertRule, pace: Pace, now: Now) -> Option<Change> {
        let alert = &mut self.kept.alert;
        let first = alert.summary.is_empty();
        let state = if now.quiet { AlertState::Silenced } else { AlertState::Firing };
        let changed = first || alert.state != state || self.fine_since.take().is_some();
        alert.state = state;
        alert.severity.clone_from(&rule.severity);
        alert.summary = finding.summary;
        alert.series = finding.series.map(|series| tail(series, WINDOWS));
        let from = finding.band.len().saturating_sub(alert.series.as_ref().map_or(0, |s| s.at_ms.len()));
        alert.band = finding.band[from..].to_vec();
        let news = match self.told_at {
            _ if now.quiet => None,
            None => Some(News::Firing),
            Some(at) => (now.instant.duration_since(at) >= pace.repeat).then_some(News::Reminder),
        };
        if news.is_some() {
            self.told_at = Some(now.instant);
            self.kept.told = true;
        }
        (changed || news.is_some()).then(|| Change { kept: self.kept.clone(), news, forgotten: None })
    }
}

fn begin(rule: &AlertRule, of: &Of, now_ms: u64) -> Alert {
    let mut hash = Sha256::new();
    for part in [&rule.name, &of.service, &of.group, &of.instance, &of.caller] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let hash = hex(&hash.finalize()[..6]);
    Alert {
        id: format!("{now_ms:013}-{hash}"),
        rule: rule.name.clone(),
        severity: rule.severity.clone(),
        of: of.clone(),
        summary: String::new(),
        state: AlertState::Firing,
        since_ms: now_ms,
        until_ms: None,
        series: None,
        band: Vec::new(),
        told: Vec::new(),
    }
}

/// The newest windows of a series.
fn tail(mut series: model::center::Series, most: usize) -> model::center::Series {
    let from = series.at_ms.len().saturating_sub(most);
    series.at_ms.drain(..from.min(series.at_ms.len()));
    let columns = [
        &mut series.rate,
        &mut series.success,
        &mut series.mean_ms,
        &mut series.p50_ms,
        &mut series.p99_ms,
        &mut series.p999_ms,
        &mut series.slow,
    ];
    for column in columns {
        column.drain(..from.min(column.len()));
    }
    series
}

#[cfg(test)]
mod tests {
    use model::center::Condition;

    use super::*;

    const PACE: Pace = Pace { resolve_after: Duration::from_secs(60), repeat: Duration::from_secs(3600) };

    struct Look {
        book: Book,
        rule: AlertRule,
        of: Of,
        start: Instant,
    }

    impl Look {
        fn new() -> Self {
            let rule = AlertRule {
                name: "r".to_owned(),
                of: Of::default(),
                condition: Condition::Water { line: "fatal".to_owned() },
                severity: "page".to_owned(),
                webhooks: Vec::new(),
            };
            let of = Of { service: "echo".to_owned(), group: "a".to_owned(), ..Of::default() };
            Self { book: Book::default(), rule, of, start: Instant::now() }
        }

        fn now(&self, seconds: u64, quiet: bool) -> Now {
            Now { instant: self.start + Duration::from_secs(seconds), ms: 1_000_000 + seconds * 1000, quiet }
        }

        /// Looks at this second; `None`: nothing to be kept.
        fn at(&mut self, seconds: u64, holds: bool, quiet: bool) -> Option<(AlertState, Option<News>)> {
            let finding = Finding { summary: "too much".to_owned(), ..Finding::default() };
            let verdict = if holds { Verdict::Holds(Box::new(finding)) } else { Verdict::Fine };
            let (now, of) = (self.now(seconds, quiet), self.of.clone());
            let change = self.book.observe(&self.rule, &of, verdict, PACE, now);
            change.map(|change| (change.kept.alert.state, change.news))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_alert_is_told_once_reminded_of_and_ended_when_it_stays_away() {
        use AlertState::{Firing, Resolved};
        let mut look = Look::new();
        assert_eq!(look.at(0, false, false), None);
        assert_eq!(look.at(5, true, false), Some((Firing, Some(News::Firing))));
        assert_eq!(look.at(10, true, false), None);
        // It comes and goes: nobody hears of that.
        assert_eq!(look.at(15, false, false), None);
        assert_eq!(look.at(70, false, false), None);
        assert_eq!(look.at(72, true, false), Some((Firing, None)));
        assert_eq!(look.at(80, false, false), None);
        assert_eq!(look.at(139, false, false), None);
        assert_eq!(look.at(140, false, false), Some((Resolved, Some(News::Resolved))));
        assert_eq!(look.at(145, false, false), None);
        assert_eq!(look.at(200, true, false), Some((Firing, Some(News::Firing))));
        assert_eq!(look.at(3799, true, false), None);
        assert_eq!(look.at(3800, true, false), Some((Firing, Some(News::Reminder))));
        let ids: BTreeSet<_> = look.book.all().map(|alert| alert.id.clone()).collect();
        assert_eq!(ids.len(), 2, "the second is another one");
        let (of, now) = (look.of.clone(), look.now(9999, false));
        let unknown = look.book.observe(&look.rule, &of, Verdict::Unknown, PACE, now);
        assert!(unknown.is_none() && look.book.stands("r", &look.of), "without figures nothing ends");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_holds_the_first_word_back_and_never_the_last() {
        use AlertState::{Firing, Resolved, Silenced};
        let mut look = Look::new();
        assert_eq!(look.at(0, true, true), Some((Silenced, None)));
        assert_eq!(look.at(5, true, true), None);
        assert_eq!(look.at(10, true, false), Some((Firing, Some(News::Firing))));
        assert_eq!(look.at(15, true, true), Some((Silenced, None)));
        look.at(20, false, true);
        assert_eq!(look.at(90, false, true), Some((Resolved, Some(News::Resolved))));
        assert_eq!(look.at(100, true, true), Some((Silenced, None)));
        look.at(105, false, true);
        assert_eq!(look.at(170, false, true), Some((Resolved, None)), "who heard nothing hears nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_restart_tells_nobody_twice_and_only_so_many_are_remembered() {
        let mut look = Look::new();
        look.at(0, true, false);
        let alert = look.book.all().next().unwrap().clone();
        let mut kept = vec![Kept { alert: alert.clone(), told: true }];
        for n in 0..PAST as u64 + 3 {
            let id = format!("old-{n}");
            let alert = Alert { id, state: AlertState::Resolved, since_ms: n, ..alert.clone() };
            kept.push(Kept { alert, told: true });
        }
        look.book = Book::default();
        assert_eq!(look.book.restore(kept, look.start), ["old-0", "old-1", "old-2"]);
        assert_eq!(look.at(5, true, false), None, "told before the restart");
        assert_eq!(look.book.all().count(), PAST + 1);
        let answered = look.book.answered(&alert.id, "https://x", "200 OK").unwrap();
        assert_eq!(answered.alert.told, [("https://x".to_owned(), "200 OK".to_owned())]);
        assert_eq!(look.book.answered("nobody", "https://x", "200 OK"), None);
    }

    #[test]
    fn a_silence_fits_by_what_it_names_and_until_its_end() {
        let of = Of { service: "echo".to_owned(), group: "a".to_owned(), ..Of::default() };
        let quiet = |rule: &str, service: &str, group: &str, until_ms| {
            let (rule, service, group) = (rule.to_owned(), service.to_owned(), group.to_owned());
            let silence = Silence { rule, service, group, until_ms, ..Silence::default() };
            silenced(&BTreeMap::from([(1, silence)]), "r", &of, 1000)
        };
        assert!(quiet("", "", "", 1001) && quiet("r", "echo", "a", 1001) && quiet("", "echo", "", 1001));
        assert!(!quiet("", "", "", 1000) && !quiet("x", "", "", 1001) && !quiet("r", "echo", "b", 1001));
    }
}
