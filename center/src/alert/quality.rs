//! How good the learned conditions are: precision and recall on recordings of others, whose anomalies people labeled,
//! and on planted ones. Also the figures of `docs/alerts.md`: see [`tables`].

use std::path::Path;

use super::{
    forecast::Tracker,
    outlier::{self, WINDOWS},
};

/// What was found of what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// Anomalies that there are.
    pub there: usize,
    /// Of these, those that at least one alert fell into.
    pub found: usize,
    /// Alerts.
    pub alerts: usize,
    /// Of these, those that fell into no anomaly.
    pub wrong: usize,
}

impl Score {
    fn add(&mut self, other: Self) {
        self.there += other.there;
        self.found += other.found;
        self.alerts += other.alerts;
        self.wrong += other.wrong;
    }

    /// Share of alerts that were right, percent.
    pub fn precision(&self) -> f64 {
        if self.alerts == 0 { 100.0 } else { 100.0 - self.wrong as f64 / self.alerts as f64 * 100.0 }
    }

    /// Share of anomalies that were found, percent.
    pub fn recall(&self) -> f64 {
        if self.there == 0 { 100.0 } else { self.found as f64 / self.there as f64 * 100.0 }
    }
}

/// A series with what is odd in it: first and last window of each.
struct Series {
    figure: String,
    step_ms: u64,
    values: Vec<Option<f64>>,
    anomalies: Vec<(usize, usize)>,
}

/// Anomalies may be told of a little after they ended: that many windows in a row must be odd.
const LATE: usize = 3;

/// Follows a series as the centre does, window by window, and never looks ahead.
fn follow(series: &Series, level: f64) -> Score {
    let step = series.step_ms;
    let at: Vec<u64> = (0..series.values.len()).map(|window| 1_700_000_000_000 + window as u64 * step).collect();
    let day = usize::try_from(86_400_000 / step).unwrap();
    let seasons = [day, day * 7];
    let (mut tracker, mut alerts) = (Tracker::default(), Vec::new());
    let mut stands = false;
    // Two days are needed to know a day; before them nothing is judged, as in service.
    let first = day * 2 + 12;
    for window in first..at.len() {
        if tracker.stale(at[window], step) {
            let from = window.saturating_sub(day * 15);
            tracker.learn(&series.figure, &at[from..window], &series.values[from..window], &seasons, level);
        }
        tracker.judge(at[window], step, series.values[window]);
        let out = tracker.out().unwrap_or(stands);
        if out && !stands {
            alerts.push(window);
        }
        stands = out;
    }
    let anomalies: Vec<_> = series.anomalies.iter().filter(|(_, last)| *last >= first).collect();
    let within = |alert: usize| anomalies.iter().any(|(from, last)| alert >= *from && alert <= last + LATE);
    let hit = |(from, last): &&&(usize, usize)| alerts.iter().any(|alert| alert >= from && *alert <= last + LATE);
    Score {
        there: anomalies.len(),
        found: anomalies.iter().filter(hit).count(),
        alerts: alerts.len(),
        wrong: alerts.iter().filter(|alert| !within(**alert)).count(),
    }
}

fn recorded(name: &str) -> Series {
    let path = Path::new(DATA).join(format!("{name}.txt"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (head, values) = text.split_once("values\n").unwrap();
    let mut series = Series { figure: String::new(), step_ms: 0, values: Vec::new(), anomalies: Vec::new() };
    for line in head.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["step", seconds] => series.step_ms = seconds.parse::<u64>().unwrap() * 1000,
            ["figure", figure] => figure.clone_into(&mut series.figure),
            ["anomaly", from, last] => series.anomalies.push((from.parse().unwrap(), last.parse().unwrap())),
            _ => panic!("{}: {line}", path.display()),
        }
    }
    series.values = values.lines().map(|line| line.parse().ok()).collect();
    series
}

/// Recordings that are kept in the repository.
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/recorded");
const RECORDED: &[&str] = &[
    "elb_request_count_8c0756",
    "ec2_request_latency_system_failure",
    "nyc_taxi",
    "rds_cpu_utilization_cc0c53",
    "rds_cpu_utilization_e47b3b",
];

/// Kinds of planted anomalies.
const PLANTED: &[(&str, &str, f64)] = &[
    ("rate falls by half", "rate", 0.5),
    ("rate falls by a quarter", "rate", 0.75),
    ("rate doubles", "rate", 2.0),
    ("mean time grows by half", "mean_ms", 1.5),
    ("mean time triples", "mean_ms", 3.0),
];

/// Two weeks of a service by five minutes, days and weekends in it, with an anomaly of an hour or two each day or so.
fn planted(figure: &str, factor: f64, seed: u64) -> Series {
    let mut random = fastrand::Rng::with_seed(seed);
    let (base, noise) = (50.0 * 10f64.powf(random.f64() * 2.0), 0.02 + 0.06 * random.f64());
    let phase = random.f64();
    let length = 14 * 288;
    let mut anomalies = Vec::new();
    let mut next = 3 * 288;
    while next + 300 < length {
        let from = next + random.usize(..200);
        anomalies.push((from, from + 12 + random.usize(..12)));
        next = from + 300;
    }
    let mut drift = 0.0;
    let mut value = |at: usize| {
        let day = (at as f64 / 288.0 + phase) * std::f64::consts::TAU;
        let weekend = if (at / 288) % 7 >= 5 { 0.7 } else { 1.0 };
        // Sum of uniforms: bell-shaped, with tails.
        let bell = (0..6).map(|_| random.f64() - 0.5).sum::<f64>() * 1.4;
        drift = drift * 0.97 + bell * noise * 0.2;
        let usual = match figure {
            "rate" => base * weekend * (1.0 + 0.6 * day.sin() + 0.15 * (day * 2.0).cos()),
            // Slower where there is more to do.
            _ => 8.0 * (1.0 + 0.25 * day.sin()),
        };
        let odd = if anomalies.iter().any(|(from, last)| (*from..=*last).contains(&at)) { factor } else { 1.0 };
        // Nothing is counted now and then.
        (random.f64() > 0.002).then_some(usual * odd * (1.0 + drift + bell * noise).max(0.0))
    };
    let values = (0..length).map(&mut value).collect();
    Series { figure: figure.to_owned(), step_ms: 300_000, values, anomalies }
}

/// Groups of instances, each with or without one that is `factor` times as slow, or fails this share of its calls.
fn groups(figure: &str, factor: f64, count: usize, sensitivity: f64) -> Score {
    let mut score = Score::default();
    for seed in 0..count as u64 {
        let mut random = fastrand::Rng::with_seed(seed);
        let instances = 4 + random.usize(..17);
        let odd = (seed % 2 == 0).then(|| random.usize(..instances));
        let noise = 0.02 + 0.15 * random.f64();
        let mut rows = Vec::new();
        for who in 0..instances {
            // Hosts differ a little for good, and more from one window to the next.
            let own = 1.0 + 0.2 * (random.f64() - 0.5);
            let mut value = |at: usize| {
                let bell = (0..6).map(|_| random.f64() - 0.5).sum::<f64>() * 1.4;
                let odd = odd == Some(who) && at >= 6;
                let spike = if random.f64() < 0.02 { 2.5 } else { 1.0 };
                let value = match figure {
                    "success" => {
                        let background = 0.002 * (1.0 + bell).max(0.0) * spike;
                        1.0 - if odd { factor * (1.0 + bell * noise) } else { background }
                    }
                    _ => 10.0 * own * spike * (1.0 + bell * noise).max(0.01) * if odd { factor } else { 1.0 },
                };
                (random.f64() > 0.03).then_some(value)
            };
            rows.push((0..WINDOWS).map(&mut value).collect::<Vec<_>>());
        }
        let found = outlier::find(figure, &rows, sensitivity);
        score.there += usize::from(odd.is_some());
        score.found += usize::from(found.iter().any(|outlier| Some(outlier.index) == odd));
        score.alerts += found.len();
        score.wrong += found.iter().filter(|outlier| Some(outlier.index) != odd).count();
    }
    score
}

/// Kinds of planted outliers.
const OUTLIERS: &[(&str, &str, f64)] = &[
    ("one is 1.5 times as slow", "mean_ms", 1.5),
    ("one is twice as slow", "mean_ms", 2.0),
    ("one is 4 times as slow", "mean_ms", 4.0),
    ("one fails 5 % of its calls", "success", 0.05),
    ("one fails 20 % of its calls", "success", 0.2),
];

fn row(name: &str, level: &str, score: Score) -> String {
    let Score { there, found, alerts, wrong } = score;
    let right = alerts - wrong;
    format!(
        "| {name} | {level} | {found} of {there} | {right} of {alerts} | {:.0} % | {:.0} % |\n",
        score.recall(),
        score.precision()
    )
}

const HEAD: &str = "| what | at | anomalies found | alerts right | recall | precision |\n|---|---|---|---|---|---|\n";

/// The tables of the page: `level` 99.9 and 99, `sensitivity` 0.5 and 0.8.
pub fn tables() -> String {
    let mut text = format!("**Forecast, recorded**\n\n{HEAD}");
    for level in [99.9, 99.0] {
        let mut sum = Score::default();
        for name in RECORDED {
            let score = follow(&recorded(name), level / 100.0);
            sum.add(score);
            text += &row(name, &format!("{level} %"), score);
        }
        text += &row("all recordings", &format!("{level} %"), sum);
    }
    text += &format!("\n**Forecast, planted**\n\n{HEAD}");
    for level in [99.9, 99.0] {
        let mut sum = Score::default();
        for (name, figure, factor) in PLANTED {
            let mut score = Score::default();
            for seed in 0..5 {
                score.add(follow(&planted(figure, *factor, seed), level / 100.0));
            }
            sum.add(score);
            text += &row(name, &format!("{level} %"), score);
        }
        text += &row("all planted", &format!("{level} %"), sum);
    }
    text += &format!("\n**Outliers, planted**\n\n{HEAD}");
    for sensitivity in [0.5, 0.8] {
        for (name, figure, factor) in OUTLIERS {
            text += &row(name, &sensitivity.to_string(), groups(figure, *factor, 400, sensitivity));
        }
    }
    text
}

/// The page that states the figures, and between which lines.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/alerts.md");
const FROM: &str = "<!-- figures -->\n";
const TO: &str = "<!-- end of figures -->";

/// `ALERT_FIGURES=1 cargo test --release -p center --lib alert::quality` measures all and writes the page: minutes.
#[test]
fn the_page_states_what_is_measured() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let (before, rest) = page.split_once(FROM).unwrap();
    let (stated, after) = rest.split_once(TO).unwrap();
    if std::env::var_os("ALERT_FIGURES").is_some() {
        std::fs::write(PAGE, format!("{before}{FROM}\n{}\n{TO}{after}", tables())).unwrap();
        return;
    }
    // The outliers cost little: they are measured each time.
    for sensitivity in [0.5, 0.8] {
        for (name, figure, factor) in OUTLIERS {
            let row = row(name, &sensitivity.to_string(), groups(figure, *factor, 400, sensitivity));
            assert!(stated.contains(&row), "measure again, the page does not say: {row}");
        }
    }
}

#[test]
fn forecasts_find_what_was_planted_and_little_else() {
    let mut sum = Score::default();
    for seed in 0..2 {
        let mut series = planted("mean_ms", 3.0, seed);
        series.values.truncate(6 * 288);
        series.anomalies.retain(|(_, last)| *last < 6 * 288);
        sum.add(follow(&series, 0.99));
    }
    assert!(sum.there >= 4 && sum.recall() >= 75.0 && sum.precision() >= 75.0, "{sum:?}");
}

#[test]
fn a_recorded_failure_is_found() {
    let mut series = recorded("rds_cpu_utilization_e47b3b");
    series.values.truncate(2700);
    let score = follow(&series, 0.999);
    assert!(score.found >= 1 && score.wrong <= 2, "{score:?}");
}
