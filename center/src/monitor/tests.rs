use model::center::{Edge, Sample};
use tokio::time::advance;

use super::*;
use crate::{audit::Audit, clock, store::Memory};

fn monitor() -> Arc<Monitor> {
    with(Config::default())
}

fn with(config: Config) -> Arc<Monitor> {
    let store: Arc<dyn Store> = Arc::new(Memory::new("center"));
    let audit = Audit::new(store.clone());
    let registry = Registry::new(crate::registry::Config::default(), store.clone(), audit);
    Monitor::new(config, store, registry)
}

fn sample(side: Side, instance: &str, caller: &str, calls: u64, micros: u64) -> Sample {
    let (instance, caller) = (instance.to_owned(), caller.to_owned());
    let mut sample = Sample { side, instance, caller, calls, ..Sample::default() };
    (sample.service, sample.group) = ("echo".to_owned(), "idc-a".to_owned());
    sample.times.add(micros, calls);
    sample
}

fn report(agent: &str, samples: Vec<Sample>) -> Report {
    Report { agent: agent.to_owned(), window_seconds: 2.0, samples, ..Report::default() }
}

fn of(instance: &str, caller: &str) -> Of {
    let (instance, caller) = (instance.to_owned(), caller.to_owned());
    Of { service: "echo".to_owned(), group: "idc-a".to_owned(), instance, caller, ..Of::default() }
}

#[track_caller]
fn near(is: f64, wanted: f64) {
    assert!((is - wanted).abs() <= 0.02 * wanted.max(1.0), "{is}, wanted {wanted}");
}

#[tokio::test(start_paused = true)]
async fn the_same_calls_told_in_several_ways_count_once() {
    let monitor = monitor();
    for _ in 0..10 {
        advance(Duration::from_secs(2)).await;
        let mut samples = vec![
            sample(Side::Outbound, "", "", 300, 1000),
            sample(Side::Outbound, "10.0.0.1:1", "", 200, 1000),
            sample(Side::Outbound, "10.0.0.2:1", "", 100, 1000),
        ];
        samples.push(Sample { method: "hello".to_owned(), ..sample(Side::Outbound, "", "", 300, 1000) });
        let mut told = report("a", samples);
        told.status.application = "shop".to_owned();
        monitor.report(told);
        // By instance and by caller, never all together.
        let samples = vec![
            sample(Side::Inbound, "10.0.0.1:1", "", 500, 900),
            sample(Side::Inbound, "", "shop", 200, 900),
            sample(Side::Inbound, "", "cart", 300, 900),
        ];
        monitor.report(report("b", samples));
    }
    near(monitor.lately(&of("", "")).rate, 150.0);
    near(monitor.lately(&of("10.0.0.1:1", "")).rate, 100.0);
    near(monitor.lately(&of("", "shop")).rate, 150.0);
    near(monitor.lately(&Of { side: Side::Inbound, ..of("", "") }).rate, 250.0);
    near(monitor.lately(&Of { side: Side::Inbound, ..of("", "cart") }).rate, 150.0);
    near(monitor.lately(&Of { side: Side::Inbound, ..of("10.0.0.1:1", "") }).rate, 250.0);
    // Only the providers' side tells of this one.
    near(monitor.lately(&of("", "cart")).rate, 150.0);
    near(monitor.lately(&Of::default()).rate, 150.0);
    let (seconds, times) = monitor.times(&of("", ""));
    near(times.total() as f64 / seconds, 150.0);
    assert_eq!(monitor.lately(&of("10.0.0.9:1", "")), Figures::default());

    let points = monitor.points("echo", "idc-a", 200.0);
    let of_first: Vec<_> = points.iter().filter(|p| p.instance == "10.0.0.1:1").collect();
    assert!(!of_first.is_empty() && points.iter().any(|p| p.instance == "10.0.0.2:1"));
    assert!(of_first.iter().all(|p| (p.rate - 250.0).abs() < 5.0 && (p.load - p.rate).abs() < 0.1), "{of_first:?}");
    assert!(points.windows(2).all(|two| two[0].at_ms <= two[1].at_ms));
}

#[tokio::test(start_paused = true)]
async fn a_report_counts_once_and_a_restarted_agent_counts_on() {
    let monitor = monitor();
    let mut told = report("a", vec![sample(Side::Outbound, "", "", 200, 1000)]);
    told.status.uptime_seconds = 100.0;
    told.sequence = 7;
    for (sequence, uptime, counted) in [(7, 100.0, 1), (7, 100.0, 1), (6, 100.0, 1), (8, 102.0, 2), (1, 1.0, 3)] {
        (told.sequence, told.status.uptime_seconds) = (sequence, uptime);
        monitor.take(&told, Limit::Rate).unwrap();
        assert_eq!(monitor.seen.lock().reports, counted, "{sequence}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_refused_and_a_usual_agent_is_not() {
    let monitor = monitor();
    let told = report("a", vec![sample(Side::Outbound, "", "", 200, 1000)]);
    let refused = (0..100).filter(|_| monitor.take(&told, Limit::Rate).is_err()).count();
    assert!((85..=95).contains(&refused), "{refused}");
    assert!(monitor.take(&report("b", vec![]), Limit::Rate).is_ok());
    for _ in 0..100 {
        advance(Duration::from_secs(1)).await;
        monitor.take(&told, Limit::Rate).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_is_refused_whole() {
    let monitor = monitor();
    let good = sample(Side::Outbound, "", "", 200, 1000);
    let wrong: Vec<fn(&mut Report)> = vec![
        |r| r.agent.clear(),
        |r| r.agent = "x".repeat(10_000),
        |r| r.window_seconds = 0.0,
        |r| r.window_seconds = f64::NAN,
        |r| r.window_seconds = 1e300,
        |r| r.samples.push(Sample::default()),
        |r| r.samples[0].group = "a\nb".to_owned(),
        |r| r.samples[0].times.buckets = vec![(5000, 1)],
        |r| r.samples[0].times.buckets = vec![(5, 1), (5, 1)],
        |r| r.samples = vec![r.samples[0].clone(); 20_001],
        |r| r.edges = vec![Edge { way: "x".repeat(100), ..Edge::default() }],
        |r| r.edges = vec![Edge { caller: "x".repeat(1000), ..Edge::default() }],
        |r| r.status.held = vec![String::new(); 2000],
        |r| r.status.capture_reason = "x".repeat(5000),
        |r| r.status.uptime_seconds = f64::INFINITY,
    ];
    for (n, change) in wrong.into_iter().enumerate() {
        let mut told = report("a", vec![good.clone()]);
        change(&mut told);
        let error = monitor.take(&told, Limit::Rate).unwrap_err();
        assert!(error.message.len() < 300, "{n}: {error}");
        assert_eq!(monitor.lately(&of("", "")), Figures::default(), "{n}");
        assert!(monitor.agents().is_empty(), "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn memory_has_a_bound_whatever_agents_invent() {
    let monitor = monitor();
    for n in 0..30 {
        let of = |i| Sample { service: format!("s{n}-{i}"), ..sample(Side::Outbound, "", "x", 1, 10) };
        monitor.report(report("a", (0..2000).map(of).collect()));
        let callers = (0..1000).map(|i| sample(Side::Inbound, "", &format!("c{n}-{i}"), 1, 10));
        monitor.report(report("b", callers.collect()));
        let instances = (0..10_000).map(|i| sample(Side::Inbound, &format!("i{n}-{i}"), "", 1, 10));
        monitor.report(report("c", instances.collect()));
        let edge = |i| Edge { caller: format!("{n}-{i}"), service: "s".to_owned(), calls: 1, ..Edge::default() };
        monitor.report(Report { edges: (0..10_000).map(edge).collect(), ..report("d", vec![]) });
    }
    {
        let seen = monitor.seen.lock();
        let (rows, windows) = seen.table.size();
        assert!(rows <= 20_000 * 2 + 200_000 + 20_000 + 201, "{rows}");
        assert!(windows <= 3_000_000 && seen.table.refused > 0, "{windows}");
        assert_eq!(seen.edges.now(monitor.time.now(), |_| true).len(), 100_000);
    }
    for n in 0..20_001 {
        monitor.report(report(&format!("agent-{n}"), vec![]));
    }
    assert_eq!(monitor.agents().len(), 20_000);
    let error = monitor.take(&report("one more", vec![]), Limit::Rate).unwrap_err();
    assert_eq!(error.code, crate::error::Code::TooMany);
    // When they are lost, others take their places; when all is idle, nothing is left.
    advance(Duration::from_secs(60)).await;
    monitor.take(&report("one more", vec![]), Limit::Rate).unwrap();
    for _ in 0..30 {
        advance(Duration::from_secs(3600)).await;
        monitor.sweep();
    }
    let seen = monitor.seen.lock();
    assert_eq!((seen.table.size(), seen.agents.0.len()), ((0, 0), 0));
}

#[tokio::test(start_paused = true)]
async fn series_have_a_point_for_every_window_and_none_where_nothing_is_known() {
    let monitor = monitor();
    for i in 0..300 {
        advance(Duration::from_secs(2)).await;
        // A minute of silence in the middle.
        if !(120..150).contains(&i) {
            let calls = if i < 120 { 200 } else { 400 };
            let mut one = sample(Side::Outbound, "", "", calls, 4000);
            (one.failed, one.slow) = (calls / 10, calls / 20);
            monitor.report(report("a", vec![one]));
        }
    }
    let now = clock::now_ms();
    for (back, step) in [(600_000, 0), (240_000, 0), (600_000, 60_000), (600_000, 30_000), (86_400_000, 0)] {
        let series = monitor.series(&of("", ""), now - back, now, step).await.unwrap();
        let n = series.at_ms.len();
        assert!(n > 2 && n <= 400, "{n} points of {} ms in {back}", series.step_ms);
        for column in [&series.rate, &series.success, &series.mean_ms, &series.p50_ms, &series.p99_ms, &series.slow] {
            assert_eq!(column.len(), n);
        }
        assert!(series.at_ms.windows(2).all(|two| two[1] - two[0] == series.step_ms));
        assert!(series.at_ms[n - 1] <= now + 1 && series.at_ms[n - 1] + 2 * series.step_ms + 2000 > now);
        assert_eq!(series.source, "agents");
        if back == 600_000 {
            near(series.rate[3].unwrap(), 100.0);
            near(series.rate[n - 2].unwrap(), 200.0);
            near(series.success[n - 2].unwrap(), 0.9);
            near(series.slow[n - 2].unwrap(), 0.05);
            assert!(step == 60_000 || series.rate.iter().any(Option::is_none), "silence is no zero");
        }
    }
    assert!(monitor.series(&of("x", "y"), 0, now, 0).await.is_err());
    let none = monitor.series(&of("10.9.9.9:1", ""), now - 60_000, now, 0).await.unwrap();
    assert!(none.rate.iter().all(Option::is_none) && !none.rate.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_calls_whom_and_which_agents_there_are() {
    let monitor = monitor();
    for _ in 0..10 {
        advance(Duration::from_secs(2)).await;
        let edge = |caller: &str, way: &str, calls| Edge {
            caller: caller.to_owned(),
            service: "echo".to_owned(),
            group: "idc-a".to_owned(),
            protocol: "motan2".to_owned(),
            calls,
            failed: calls / 10,
            way: way.to_owned(),
        };
        let edges = vec![edge("shop", "tcp", 20), edge("shop", "redirect", 180), edge("cart", "kernel", 20)];
        let mut told = report("h/a", vec![sample(Side::Outbound, "", "shop", 200, 1000)]);
        told.edges = edges;
        monitor.report(told);
        let mut provider = report("h/b", vec![sample(Side::Inbound, "10.0.0.1:1", "", 200, 1000)]);
        provider.status.application = "echo-app".to_owned();
        monitor.report(provider);
    }
    let callers = monitor.callers("echo", "idc-a");
    let told: Vec<_> = callers.iter().map(|(name, f, way)| (name.as_str(), f.rate.round(), way.as_str())).collect();
    assert_eq!(told, [("shop", 100.0, "redirect"), ("cart", 10.0, "kernel")]);
    let graph = monitor.graph();
    let ids: Vec<_> = graph.nodes.iter().map(|node| node.id.as_str()).collect();
    assert_eq!(ids, ["application:cart", "service:idc-a/echo", "application:shop", "application:echo-app"]);
    assert_eq!(graph.edges.len(), 3);
    near(graph.edges[1].rate, 100.0);
    near(graph.edges[1].success.unwrap(), 0.9);
    assert_eq!(
        (graph.edges[2].from.as_str(), graph.edges[2].to.as_str()),
        ("service:idc-a/echo", "application:echo-app")
    );
    assert_eq!(monitor.graph_of(|group| group != "idc-a"), Graph::default());

    let lost = |monitor: &Monitor| monitor.agents().iter().map(|a| (a.agent.clone(), a.lost)).collect::<Vec<_>>();
    assert_eq!(lost(&monitor), [("h/a".to_owned(), false), ("h/b".to_owned(), false)]);
    advance(Duration::from_secs(7)).await;
    monitor.report(report("h/a", vec![]));
    assert_eq!(lost(&monitor), [("h/a".to_owned(), false), ("h/b".to_owned(), true)]);
    advance(Duration::from_secs(120)).await;
    monitor.sweep();
    assert_eq!(monitor.graph(), Graph::default());
}

#[tokio::test(start_paused = true)]
async fn a_source_goes_first_and_agents_stand_in_with_the_reason() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    drop(listener);
    let config: Config = serde_yaml::from_str(&format!(
        "{{sources: [{{kind: graphite, options: {{address: 'http://{at}', timeout: 200ms}}}}]}}"
    ))
    .unwrap();
    let monitor = with(config);
    let nowhere = std::path::PathBuf::from("/nowhere");
    monitor.load(&nowhere, "embedded").await.unwrap();
    for _ in 0..20 {
        advance(Duration::from_secs(2)).await;
        monitor.report(report("a", vec![sample(Side::Outbound, "", "", 200, 1000)]));
    }
    let now = clock::now_ms();
    let series = monitor.series(&of("", ""), now - 30_000, now, 0).await.unwrap();
    assert!(series.source.starts_with("agents (graphite: http://") && series.rate.iter().flatten().count() > 5);
    // It is not asked again at once, and what only it could know is an error.
    let again = monitor.series(&of("", ""), now - 30_000, now, 0).await.unwrap();
    assert!(again.source.contains("asked again in"), "{}", again.source);
    let long_ago = now - 10 * 24 * 3_600_000;
    let error = monitor.series(&of("", ""), long_ago, long_ago + 3_600_000, 0).await.unwrap_err();
    assert_eq!(error.code, crate::error::Code::Unavailable);
    assert!(serde_yaml::from_str::<Config>("{keep: 1}").is_err());
    for wrong in ["{sources: [{kind: nagios}]}", "{keep: 3000h}"] {
        let config: Config = serde_yaml::from_str(wrong).unwrap();
        assert!(with(config).load(&nowhere, "memory").await.is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn a_day_is_there_after_a_new_start() {
    let dir = std::env::temp_dir().join(format!("sockmesh-day-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let minute = {
        let monitor = with(Config::default());
        monitor.load(&dir, "embedded").await.unwrap();
        monitor.report(report("a", vec![sample(Side::Outbound, "", "", 6000, 1000)]));
        let minute = monitor.time.now() / 60_000;
        let (rows, _) = monitor.seen.lock().table.minute(minute, usize::MAX);
        assert_eq!(rows.len(), 1, "{rows:?}");
        let day = monitor.history.get().unwrap().day.as_ref().unwrap();
        for back in 1..600 {
            let number = u32::try_from(minute).unwrap() - back;
            day.keep(day::Minute { number, rows: rows.clone() });
            // The queue is short on purpose: who is faster than the disk loses minutes.
            while day.kept.lost.swap(0, std::sync::atomic::Ordering::Relaxed) > 0 {
                tokio::task::yield_now().await;
                day.keep(day::Minute { number, rows: rows.clone() });
            }
        }
        monitor.keep_minute(minute);
        minute
    };
    let monitor = with(Config::default());
    monitor.load(&dir, "embedded").await.unwrap();
    let now = (minute + 1) * 60_000;
    for hours in [1, 6, 9] {
        let series = monitor.series(&of("", ""), now - hours * 3_600_000, now, 60_000).await.unwrap();
        let known: Vec<f64> = series.rate.iter().flatten().copied().collect();
        assert!(known.len() as u64 >= hours * 60 - 2, "{} of {hours} hours", known.len());
        near(known[2], 100.0);
        assert_eq!(series.source, "agents");
    }
    let all = monitor.series(&Of::default(), now - 9 * 3_600_000, now, 0).await.unwrap();
    assert!(all.rate.iter().flatten().count() > 200);
    drop(monitor);
    // A store that keeps nothing keeps no figures.
    let monitor = with(Config::default());
    monitor.load(&dir.join("none"), "memory").await.unwrap();
    assert!(!dir.join("none").exists());
    std::fs::remove_dir_all(&dir).unwrap();
}

#[tokio::test(start_paused = true)]
async fn everybody_who_looks_is_told_what_changes() {
    let monitor = monitor();
    let mut first = monitor.live.join(&monitor);
    let mut second = monitor.live.join(&monitor);
    assert!(first.borrow_and_update().all.is_empty());
    monitor.report(report("a", vec![sample(Side::Outbound, "", "", 200, 1000)]));
    first.changed().await.unwrap();
    let tick = first.borrow_and_update().clone();
    assert_eq!(tick.changed.keys().collect::<Vec<_>>(), [&("idc-a".to_owned(), "echo".to_owned())]);
    second.changed().await.unwrap();
    assert!(Arc::ptr_eq(&tick, &second.borrow_and_update()), "computed once for all");
    // What does not change is not told again; when all calls are over, that is told once.
    let mut told = 0;
    for _ in 0..40 {
        first.changed().await.unwrap();
        told += first.borrow_and_update().changed.len();
    }
    assert!((1..=12).contains(&told), "{told}");
    drop((first, second));
    // Nobody looks: nothing runs, and the next one begins anew.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!monitor.live.join(&monitor).borrow().all.is_empty());
}
