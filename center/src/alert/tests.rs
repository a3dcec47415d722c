use std::collections::VecDeque;

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use model::center::{Histogram, Report, Sample, Side};

use super::*;
use crate::{app::Center, auth::Actor, config::Config as CenterConfig, config::StoreChoice};

mod burns;

type Heard = Arc<Mutex<VecDeque<(HeaderMap, Bytes)>>>;

async fn hear(State(heard): State<Heard>, headers: HeaderMap, body: Bytes) -> http::StatusCode {
    let mut heard = heard.lock();
    heard.push_back((headers, body));
    // The first time it is told to come again.
    if heard.len() == 1 { http::StatusCode::SERVICE_UNAVAILABLE } else { http::StatusCode::OK }
}

async fn receiver() -> (Heard, String) {
    let heard = Heard::default();
    let router = Router::new().route("/hook/token", post(hear)).with_state(heard.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook/token", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (heard, url)
}

async fn center(alerts: Config) -> Arc<Center> {
    let data = std::env::temp_dir().join(format!("sockmesh-alerts-{}-{}", std::process::id(), fastrand::u64(..)));
    let store = StoreChoice { kind: "memory".to_owned(), options: kind::Value::Null };
    Center::build(CenterConfig { data, store, alerts, ..CenterConfig::default() }).await.unwrap()
}

fn quick(tell: &[String], rules: Vec<AlertRule>) -> Config {
    Config {
        rules,
        usual: false,
        every: Duration::from_millis(100),
        resolve_after: Duration::from_millis(300),
        tell: tell.to_vec(),
        ..Config::default()
    }
}

fn busy(name: &str) -> AlertRule {
    AlertRule {
        name: name.to_owned(),
        of: Of { service: "echo".to_owned(), group: "a".to_owned(), ..Of::default() },
        condition: Condition::Threshold { figure: "rate".to_owned(), above: Some(50.0), below: None, for_ms: 2000 },
        severity: "page".to_owned(),
        webhooks: Vec::new(),
    }
}

fn report(center: &Center, sequence: u64, calls: u64) {
    let mut times = Histogram::default();
    times.add(1000, calls);
    let (service, group) = ("echo".to_owned(), "a".to_owned());
    let sample = Sample { side: Side::Outbound, service, group, calls, times, ..Sample::default() };
    let agent = "host/a".to_owned();
    let report = Report { agent, window_seconds: 0.1, sequence, samples: vec![sample], ..Report::default() };
    center.monitor.report(report);
}

#[tokio::test]
async fn what_is_found_is_told_once_signed_and_so_is_its_end() {
    let (heard, url) = receiver().await;
    let secret = std::env::temp_dir().join(format!("sockmesh-secret-{}-{}", std::process::id(), fastrand::u64(..)));
    std::fs::write(&secret, "pepper\n").unwrap();
    let config = Config { secret_file: Some(secret.clone()), ..quick(&[url], vec![busy("busy")]) };
    let center = center(config).await;
    std::fs::remove_file(secret).unwrap();
    let mut calls = 20;
    let mut reports = interval(Duration::from_millis(100));
    for sequence in 1..600 {
        reports.tick().await;
        report(&center, sequence, calls);
        let heard = heard.lock();
        if heard.len() == 2 {
            calls = 1;
        }
        if heard.len() == 3 {
            break;
        }
    }
    let heard = heard.lock();
    let bodies: Vec<serde_json::Value> = heard.iter().map(|(_, body)| serde_json::from_slice(body).unwrap()).collect();
    let events: Vec<_> = bodies.iter().map(|body| body["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["firing", "firing", "resolved"]);
    let key = |at: usize| heard[at].0["idempotency-key"].to_str().unwrap();
    assert_eq!(key(0), key(1), "a repetition says that it is one");
    assert_ne!(key(0), key(2));
    for (headers, body) in heard.iter() {
        let signed = headers["x-sockmesh-signature"].to_str().unwrap();
        let seconds = signed.strip_prefix("t=").unwrap().split_once(',').unwrap().0.parse().unwrap();
        assert_eq!(signed, crate::fetch::signature(b"pepper", seconds, body));
    }
    let alert = &bodies[0]["alert"];
    assert_eq!((&alert["rule"], &alert["of"]["service"]), (&"busy".into(), &"echo".into()));
    assert!(alert["series"]["rate"].as_array().is_some_and(|rates| !rates.is_empty()), "{alert}");
    assert_eq!(alert["band"].as_array().unwrap().len(), alert["series"]["at_ms"].as_array().unwrap().len());
}

#[tokio::test]
async fn rules_and_silences_outlive_a_restart_and_the_file_has_the_last_word() {
    let center = center(quick(&["https://pager.example/a".to_owned()], vec![busy("fixed")])).await;
    let (alerts, me) = (&center.alerts, Actor::center());
    let mine = AlertRule { webhooks: vec!["https://pager.example/a".to_owned()], ..busy("mine") };
    alerts.put_rule(&me, mine.clone()).await.unwrap();
    let elsewhere = AlertRule { webhooks: vec!["http://169.254.169.254/latest".to_owned()], ..busy("evil") };
    for (rule, part) in [
        (busy("fixed"), "the file's own"),
        (elsewhere, "http://169.254.169.254/… is not allowed; add it to `alerts: webhooks:`"),
        (AlertRule { severity: "loud".to_owned(), ..busy("x") }, "page or ticket"),
    ] {
        let said = alerts.put_rule(&me, rule).await.unwrap_err().to_string();
        assert!(said.contains(part), "{said}");
    }
    assert!(alerts.delete_rule(&me, "fixed").await.is_err() && alerts.delete_rule(&me, "nobody").await.is_err());
    let until_ms = now_ms() + 60_000;
    let wanted = Silence { until_ms, rule: "mine".to_owned(), reason: "works".to_owned(), ..Silence::default() };
    let first = alerts.silence(&me, wanted.clone()).await.unwrap();
    let second = alerts.silence(&me, wanted.clone()).await.unwrap();
    assert!(second.id > first.id && second.author == "centre");
    for wrong in [
        Silence { until_ms: 1, ..wanted.clone() },
        Silence { until_ms: u64::MAX, ..wanted.clone() },
        Silence { reason: " ".to_owned(), ..wanted.clone() },
    ] {
        assert!(alerts.silence(&me, wrong).await.is_err());
    }
    alerts.unsilence(&me, first.id).await.unwrap();
    assert!(alerts.unsilence(&me, first.id).await.is_err());

    let config = quick(&["https://pager.example/a".to_owned()], vec![busy("fixed")]);
    let (store, audit) = (center.store.clone(), center.audit.clone());
    let (registry, monitor, decider) = (center.registry.clone(), center.monitor.clone(), center.decider.clone());
    let again = Alerts::new(config, store, registry, monitor, decider, audit);
    again.load().await.unwrap();
    assert_eq!(again.rules().iter().map(|rule| rule.name.as_str()).collect::<Vec<_>>(), ["fixed", "mine"]);
    assert_eq!(again.silences(), [second]);
    alerts.delete_rule(&me, "mine").await.unwrap();
}

#[tokio::test]
async fn a_file_that_cannot_work_is_told_at_the_start() {
    for (yaml, part) in [
        ("{tell: ['pager.example']}", "write it like https://"),
        ("{secret_file: /nowhere/at/all}", "/nowhere/at/all"),
        ("{every: 1ms}", "less than 100ms"),
        ("{rules: [{name: a, condition: {kind: water, line: x}}]}", "warning or fatal"),
        (
            "{rules: [{name: a, condition: {kind: water, line: fatal}}, {name: a, condition: {kind: water, line: fatal}}]}",
            "twice",
        ),
    ] {
        let store = StoreChoice { kind: "memory".to_owned(), options: kind::Value::Null };
        let alerts = serde_yaml::from_str(yaml).unwrap();
        let built = Center::build(CenterConfig { store, alerts, ..CenterConfig::default() }).await;
        let said = format!("{:#}", built.err().expect(yaml));
        assert!(said.contains(part), "{said}");
    }
}

#[tokio::test]
async fn who_leads_no_more_changes_and_tells_nothing_and_who_leads_again_reads_what_others_kept() {
    let (heard, url) = receiver().await;
    let center = center(quick(&[], Vec::new())).await;
    let store = Arc::new(crate::store::Memory::new("one"));
    // It looks once, at its start, and not again on its own.
    let config = Config { every: Duration::from_secs(3600), ..quick(&[url], vec![busy("busy")]) };
    let (registry, monitor, decider) = (center.registry.clone(), center.monitor.clone(), center.decider.clone());
    let alerts = Alerts::new(config, store.clone(), registry, monitor, decider, center.audit.clone());
    alerts.load().await.unwrap();
    let me = Actor::center();
    alerts.put_rule(&me, busy("mine")).await.unwrap();
    let wanted = Silence { until_ms: now_ms() + 60_000, reason: "works".to_owned(), ..Silence::default() };
    let silence = alerts.silence(&me, wanted.clone()).await.unwrap();
    let (epoch, before) = (alerts.fence().unwrap(), store.stamp().revision);

    store.overtake();
    let refused = [
        alerts.put_rule(&me, busy("late")).await.err(),
        alerts.delete_rule(&me, "mine").await.err(),
        alerts.silence(&me, wanted).await.err(),
        alerts.unsilence(&me, silence.id).await.err(),
    ];
    assert!(
        refused.iter().flatten().filter(|error| error.code == crate::error::Code::ReadOnly).count() == 4,
        "{refused:?}"
    );
    let (answers, _answered) = mpsc::channel(16);
    let teller = Teller::new("one".to_owned(), None, answers);
    let of = Of { service: "echo".to_owned(), group: "a".to_owned(), ..Of::default() };
    let holds = || judge::Verdict::Holds(Box::default());
    alerts.observe(&busy("busy"), &of, holds(), epoch, &teller).await;
    assert_eq!(store.stamp().revision, before, "nothing was written");
    assert_eq!(alerts.rules().len(), 2);

    // What the other one did in the meantime.
    let theirs = vec![("rule/theirs".to_owned(), serde_json::to_vec(&busy("theirs")).unwrap())];
    let delete = vec!["rule/mine".to_owned()];
    store.commit(Batch { put: theirs, delete, ..Batch::default() }).await.unwrap();
    store.lead();
    let epoch = alerts.fence().unwrap();
    alerts.begin(epoch).await.unwrap();
    assert_eq!(alerts.rules().iter().map(|rule| rule.name.as_str()).collect::<Vec<_>>(), ["busy", "theirs"]);
    assert!(alerts.list().is_empty(), "what was never kept is found anew");
    alerts.unsilence(&me, silence.id).await.unwrap();
    alerts.observe(&busy("busy"), &of, holds(), epoch, &teller).await;
    while heard.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let key = heard.lock()[0].0["idempotency-key"].to_str().unwrap().to_owned();
    let told = alerts.list();
    assert!(told.len() == 1 && key.starts_with(&told[0].id), "{key}: the first that is told is the one that was kept");
}
