//! Budgets of services whose figures only a Graphite or a Prometheus of the site has.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::*;
use crate::monitor;

/// How a stand-in for a server of figures is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    /// Ten calls a second for as long as is asked, of which this share fails.
    Failing(f64),
    /// It knows nothing.
    Empty,
    /// It never answers.
    Slow,
    /// It answers what is no figures.
    Wrong,
}

struct Standin {
    mood: Arc<Mutex<Mood>>,
    asked: Arc<AtomicUsize>,
    address: String,
}

/// The fields of a form as far as they are looked at.
fn field(form: &str, name: &str) -> u64 {
    let value = form.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    value.and_then(|value| value.parse().ok()).unwrap_or_default()
}

/// Points each two seconds, as Carbon keeps them.
fn graphite(form: &str, failing: f64) -> String {
    let points = |value: f64| {
        let times = (field(form, "from")..field(form, "until")).filter(|second| second.is_multiple_of(2));
        times.map(|second| format!("[{value},{second}]")).collect::<Vec<_>>().join(",")
    };
    let target = |name: &str, value: f64| format!(r#"{{"target":"{name}","datapoints":[{}]}}"#, points(value));
    let all = [
        target("rate", 10.0),
        target("failed", 20.0 * failing),
        target("sockmesh.h1.web.outbound.echo.a._all.mean", 1.0),
        target("sockmesh.h1.web.outbound.echo.a._all.count", 20.0),
    ];
    format!("[{}]", all.join(","))
}

fn prometheus(form: &str, failing: f64) -> String {
    let (start, end, step) = (field(form, "start"), field(form, "end"), field(form, "step").max(1));
    let value = match (form.contains("duration_seconds"), form.contains("outcome")) {
        (true, _) => return r#"{"status":"success","data":{"result":[]}}"#.to_owned(),
        (false, true) => 1.0 - failing,
        (false, false) => 10.0,
    };
    let points = (0..).map(|n| start + n * step).take_while(|at| *at <= end);
    let points: Vec<_> = points.map(|at| format!(r#"[{at},"{value}"]"#)).collect();
    format!(r#"{{"status":"success","data":{{"result":[{{"values":[{}]}}]}}}}"#, points.join(","))
}

async fn standin(mood: Mood) -> Standin {
    let (mood, asked) = (Arc::new(Mutex::new(mood)), Arc::new(AtomicUsize::new(0)));
    let (now, count) = (mood.clone(), asked.clone());
    let router = Router::new().fallback(move |uri: http::Uri, body: Bytes| async move {
        count.fetch_add(1, Relaxed);
        let form = String::from_utf8_lossy(&body).into_owned();
        let mood = *now.lock();
        match mood {
            Mood::Failing(share) if uri.path() == "/render" => graphite(&form, share),
            Mood::Failing(share) => prometheus(&form, share),
            Mood::Empty if uri.path() == "/render" => "[]".to_owned(),
            Mood::Empty => r#"{"status":"success","data":{"result":[]}}"#.to_owned(),
            Mood::Slow => std::future::pending().await,
            Mood::Wrong => "<html>log in</html>".to_owned(),
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Standin { mood, asked, address }
}

/// A centre that asks the stand-in for figures, with these rules.
async fn site(kind: &str, standin: &Standin, rules: Vec<AlertRule>) -> Arc<Center> {
    let data = std::env::temp_dir().join(format!("sockmesh-burns-{}-{}", std::process::id(), fastrand::u64(..)));
    let options = format!("{{address: '{}', timeout: 300ms}}", standin.address);
    let choice = monitor::SourceChoice { kind: kind.to_owned(), options: serde_yaml::from_str(&options).unwrap() };
    let config = CenterConfig {
        data,
        store: StoreChoice { kind: "memory".to_owned(), options: kind::Value::Null },
        monitor: monitor::Config { sources: vec![choice], ..monitor::Config::default() },
        alerts: quick(&[], rules),
        ..CenterConfig::default()
    };
    Center::build(config).await.unwrap()
}

/// 99 % over a minute and ten seconds; ten failed calls of a hundred are ten times too fast.
fn budget() -> AlertRule {
    let condition = Condition::BurnRate { objective_percent: 99.0, long_ms: 60_000, short_ms: 10_000, factor: 5.0 };
    AlertRule { condition, ..busy("budget") }
}

async fn look(center: &Center, stands: bool) -> judge::Verdict {
    let looker = Looker::new(center.registry.clone(), center.monitor.clone(), center.decider.clone());
    let mut found = looker.look(&budget(), &|_| stands).await;
    assert_eq!(found.len(), 1);
    found.remove(0).1
}

async fn a_planted_burn_is_found(kind: &str) {
    let standin = standin(Mood::Failing(0.1)).await;
    let center = site(kind, &standin, vec![budget()]).await;
    let mut firing = Vec::new();
    for _ in 0..3000 {
        firing = center.alerts.firing("echo");
        if !firing.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(firing.len(), 1, "{kind}: no alert");
    let alert = center.alerts.one(&firing[0].id).unwrap();
    assert!(
        alert.summary.contains("of echo in a failed within 10 s: the budget of 99 % is spent 10.0 times"),
        "{alert:?}"
    );
    let series = alert.series.unwrap();
    assert_eq!((series.source.as_str(), series.of.service.as_str()), (kind, "echo"));
    // It is over when the server says so.
    *standin.mood.lock() = Mood::Failing(0.0);
    for _ in 0..3000 {
        if center.alerts.firing("echo").is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{kind}: the alert never ends");
}

#[tokio::test]
async fn a_planted_burn_that_only_graphite_knows_of_is_an_alert_and_ends() {
    a_planted_burn_is_found("graphite").await;
}

#[tokio::test]
async fn a_planted_burn_that_only_prometheus_knows_of_is_an_alert_and_ends() {
    a_planted_burn_is_found("prometheus").await;
}

#[tokio::test]
async fn a_server_that_is_well_empty_slow_or_wrong_raises_nothing_and_ends_nothing() {
    for kind in ["graphite", "prometheus"] {
        for (mood, verdict) in [
            (Mood::Failing(0.0), judge::Verdict::Fine),
            (Mood::Failing(0.01), judge::Verdict::Fine),
            (Mood::Empty, judge::Verdict::Unknown),
            (Mood::Slow, judge::Verdict::Unknown),
            (Mood::Wrong, judge::Verdict::Unknown),
        ] {
            let standin = standin(mood).await;
            let center = site(kind, &standin, Vec::new()).await;
            assert_eq!(look(&center, false).await, verdict, "{kind} {mood:?}");
            assert!(standin.asked.load(Relaxed) > 0, "{kind} was asked");
            // An alert that stands is not over because nothing is known.
            assert_eq!(look(&center, true).await, verdict, "{kind} {mood:?}");
        }
    }
}

#[tokio::test]
async fn agents_that_see_nothing_wrong_do_not_hide_what_graphite_knows() {
    let standin = standin(Mood::Failing(0.1)).await;
    let center = site("graphite", &standin, Vec::new()).await;
    report(&center, 1, 100);
    assert_eq!(center.monitor.lately(&budget().of).success, Some(1.0));
    assert!(matches!(look(&center, false).await, judge::Verdict::Holds(_)));
}

#[tokio::test]
async fn what_only_a_server_knows_is_not_asked_for_at_every_look() {
    let standin = standin(Mood::Failing(0.0)).await;
    let center = site("graphite", &standin, Vec::new()).await;
    let looker = Looker::new(center.registry.clone(), center.monitor.clone(), center.decider.clone());
    let rule = AlertRule {
        condition: Condition::BurnRate { objective_percent: 99.0, long_ms: 3_600_000, short_ms: 600_000, factor: 5.0 },
        ..budget()
    };
    looker.look(&rule, &|_| false).await;
    let asked = standin.asked.load(Relaxed);
    assert!(asked > 0);
    for _ in 0..5 {
        looker.look(&rule, &|_| false).await;
    }
    assert_eq!(standin.asked.load(Relaxed), asked, "within a minute");
    looker.look(&rule, &|_| true).await;
    assert!(standin.asked.load(Relaxed) > asked, "one that stands is looked at each time");
}

#[tokio::test]
async fn a_rule_for_all_services_means_those_that_agents_report_of_too() {
    let standin = standin(Mood::Empty).await;
    let center = site("graphite", &standin, Vec::new()).await;
    report(&center, 1, 100);
    let looker = Looker::new(center.registry.clone(), center.monitor.clone(), center.decider.clone());
    let all = AlertRule { of: Of::default(), ..budget() };
    let found: Vec<Of> = looker.look(&all, &|_| false).await.into_iter().map(|(of, _)| of).collect();
    assert_eq!(found, [budget().of]);
    // How many instances it has is not known for sure.
    let water = AlertRule { condition: Condition::Water { line: "fatal".to_owned() }, ..all };
    assert!(looker.look(&water, &|_| false).await.is_empty());
}
