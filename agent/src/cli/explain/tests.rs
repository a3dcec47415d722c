use std::{fs, path::Path, sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use model::{Instance, command::GroupShare};

use super::*;
use crate::{
    call::{CallError, ErrorKind, Request, Status, Text},
    cluster::Steering,
    config,
    filter::{CallCx, Filter, Verdict},
    ha::testing::{Act, Bench, bench, bench_of, config as plain, named, request},
    lb::testing::eject,
    metrics::LOST,
    route::{Direction, Route},
};

/// The page about the next call of `bench`, as it is in the file of this name.
async fn check(name: &str, bench: &Bench) {
    check_with(name, bench, request(), |_| ()).await;
}

async fn check_with(name: &str, bench: &Bench, mut req: Request, change: impl FnOnce(&mut view::Explained)) {
    // Which endpoint a round begins with, and what is drawn.
    fastrand::seed(1);
    req.call.peer = Some("10.0.0.9:4000".parse().unwrap());
    req.call.local = Some("240.0.0.1:80".parse().unwrap());
    bench.cluster.info.stats.recent.ask();
    let _ = bench.cluster.call(&mut req).await;
    let stories = bench.cluster.info.stats.recent.stories();
    let asked: Vec<_> = stories.iter().filter(|s| s.kept == Kept::Asked).map(|s| (**s).clone()).collect();
    assert_eq!(asked.len(), 1, "{name}");
    let mut page = view::Explained { stories: asked, ..nothing() };
    change(&mut page);
    golden(name, &text(&page));
}

fn nothing() -> view::Explained {
    let (stories, connections, troubles) = (Vec::new(), Vec::new(), Vec::new());
    view::Explained { stories, connections, troubles, unknown: None, lost: Vec::new() }
}

fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/data/explain/{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{}: UPDATE_GOLDEN=1 writes it anew", path.display());
}

fn instances(n: u16, change: impl Fn(u16, &mut Instance)) -> Vec<Instance> {
    let one = |i| {
        let mut instance = Instance::at(format!("127.0.0.1:{i}"));
        change(i, &mut instance);
        instance
    };
    (1..=n).map(one).collect()
}

fn good(_: u16, _: &crate::call::Call) -> Act {
    Act::Answer(Status::Ok)
}

fn row(redirect: Option<&str>) -> view::LiveRow {
    view::LiveRow {
        pid: 77,
        process: "curl".to_owned(),
        peer: "10.0.0.9:4000".parse().unwrap(),
        destination: "240.0.0.1:80".parse().unwrap(),
        captured: true,
        protocol: "http".to_owned(),
        service: "echo".to_owned(),
        endpoint: None,
        calls: 1,
        received_bytes: 1,
        sent_bytes: 1,
        age_seconds: 1.0,
        redirect: redirect.map(str::to_owned),
    }
}

#[tokio::test(start_paused = true)]
async fn candidates_that_cannot_take_the_call() {
    check("no-endpoint", &bench(0, "failover", good)).await;

    let b = bench(3, "failover", good);
    eject(&b.cluster.endpoints().endpoints[1]);
    check("ejected", &b).await;

    let all_out = bench(2, "failfast", good);
    all_out.cluster.endpoints().endpoints.iter().for_each(|e| eject(e));
    check("least-bad", &all_out).await;

    let b = bench_of(plain(), instances(2, |i, e| e.weight = if i == 1 { 0 } else { 10 }), good);
    check("weight-0", &b).await;

    let b = bench_of(config::Cluster { max_in_flight: 7, ..plain() }, instances(2, |_, _| ()), good);
    b.cluster.endpoints().endpoints.iter().for_each(|e| e.hot.set_in_flight(7));
    check("at-limit", &b).await;
}

#[tokio::test(start_paused = true)]
async fn further_tries_and_why_there_are_none() {
    let refused = std::sync::atomic::AtomicBool::new(false);
    let b = bench(3, "failover", move |_, _| match refused.swap(true, Relaxed) {
        false => Act::Refuse,
        true => Act::Answer(Status::Ok),
    });
    check("retry-after-refusal", &b).await;

    let b = bench(2, "{failover: {budget_percent: 0, budget_per_second: 0}}", |_, _| Act::Answer(Status::Failed(503)));
    check("budget-used-up", &b).await;

    let b = bench_of(config::Cluster { idempotent: false, ..plain() }, instances(2, |_, _| ()), |_, _| Act::Reset);
    check("not-idempotent", &b).await;

    let mut marked = request();
    marked.call.retry = 1;
    check_with("retry-of-a-retry", &bench(2, "failover", |_, _| Act::Reset), marked, |_| ()).await;

    check("timeout", &bench(1, "failover", |_, _| Act::Hang)).await;

    let hedged = |_: u16, call: &crate::call::Call| if call.retry == 0 { Act::Hang } else { Act::Answer(Status::Ok) };
    check("backup-won", &bench(2, "{backup_request: {delay: 20ms}}", hedged)).await;
}

#[tokio::test(start_paused = true)]
async fn what_decided_among_the_candidates() {
    let b = bench_of(
        config::Cluster { lb: named("{consistent_hash: {by: caller}}"), ..plain() },
        instances(3, |_, _| ()),
        good,
    );
    check("consistent-hash", &b).await;

    let lb = named("{zone_first: {zone: a, then: round_robin}}");
    let zones = instances(4, |i, e| e.zone = if i <= 3 { "a" } else { "b" }.to_owned());
    let b = bench_of(config::Cluster { lb, ..plain() }, zones, good);
    let set = b.cluster.endpoints();
    set.endpoints[..2].iter().for_each(|e| eject(e));
    // The balancer looks at a few with each pick; then a third of the zone is left, and most calls leave it.
    while set.endpoints[3].addr != set.endpoints[set.pick(&[], 10, None).unwrap()].addr {}
    fastrand::seed(3);
    check("zone-spill", &b).await;

    let lb = named("{local_first: {then: round_robin}}");
    let places = instances(2, |i, e| e.address = if i == 1 { "192.0.2.1:80" } else { "127.0.0.1:80" }.to_owned());
    check("local-first", &bench_of(config::Cluster { lb, ..plain() }, places, good)).await;
}

#[tokio::test(start_paused = true)]
async fn commands_and_filters() {
    let groups = instances(2, |i, e| e.group = if i == 1 { "idc-a" } else { "idc-b" }.to_owned());
    let b = bench_of(plain(), Vec::new(), good);
    let share = |group: &str, weight| GroupShare { group: group.to_owned(), weight: Some(weight) };
    b.cluster.steer(Steering {
        by: Some("group idc-a, command 1".to_owned()),
        groups: vec![share("idc-a", 1), share("idc-b", 0)],
        ..Steering::default()
    });
    b.cluster.apply(&model::Snapshot { revision: 2, instances: groups, stale: None });
    check("command", &b).await;

    let b = bench(1, "failover", good);
    b.cluster.steer(Steering { degraded: Some("group idc-a, command 2".to_owned()), ..Steering::default() });
    check("degraded", &b).await;

    struct Closed;
    impl Filter for Closed {
        fn on_request(&self, _: &mut CallCx, _: &mut Request) -> Verdict {
            Verdict::Wait(Box::pin(async {
                sleep(Duration::from_millis(3)).await;
                Verdict::fail(CallError::mesh(ErrorKind::Rejected, "over the limit of 10 a second"))
            }))
        }
    }
    let b = stopped_by(Arc::new(Closed));
    check("filter", &b).await;
}

fn stopped_by(filter: Arc<dyn Filter>) -> Bench {
    let mut b = bench(1, "failover", good);
    Arc::get_mut(&mut b.cluster).unwrap().filter_with("rate_limit", filter);
    b
}

#[tokio::test(start_paused = true)]
async fn connections_and_whether_they_are_redirected() {
    let b = bench(1, "failover", good);
    check_with("redirected", &b, request(), |page| page.connections.push(row(Some("on")))).await;
    let b = bench(1, "failover", good);
    let not = row(Some("off: the program may notice"));
    check_with("not-redirected", &b, request(), |page| page.connections.push(not)).await;
    let mut other = row(None);
    other.peer = "10.0.0.9:4001".parse().unwrap();
    let troubles = vec!["no endpoint of echo is known".to_owned()];
    let page = view::Explained { connections: vec![other], troubles, ..nothing() };
    golden("nothing-kept", &text(&page));
}

#[tokio::test(start_paused = true)]
async fn calls_that_reach_no_service() {
    let b = bench(1, "failover", good);
    let route = |direction, services: &[&str]| {
        let cluster = |group: &&str| {
            let mut cluster = bench(1, "failover", good).cluster;
            let info = Arc::get_mut(&mut Arc::get_mut(&mut cluster).unwrap().info).unwrap();
            (info.key.service, info.key.group) = ("lost.Two".to_owned(), (*group).to_owned());
            cluster
        };
        Route::new(direction, "motan2", services.iter().map(cluster).chain([b.cluster.clone()]).collect())
    };
    let lost = |name: &str, route: &Route, (service, group, version): (&str, &str, &str)| {
        let mut call = crate::call::Call::new(Text::from(service), Text::from_static("say"));
        (call.group, call.version) = (Text::from(group), Text::from(version));
        (call.peer, call.application) = ("10.0.0.9:4000".parse().ok(), Text::from_static("shop"));
        assert!(route.select(&call).is_err() && !route.serves(&call) && route.select(&call).is_err());
        let mut rows = LOST.rows();
        rows.retain(|row| row.service == service && row.group == group && row.version == version);
        assert_eq!(rows.len(), 1);
        golden(name, &text(&view::Explained { lost: rows, ..nothing() }));
    };
    let outbound = route(Direction::Outbound, &["a", "b"]);
    lost("lost-service", &outbound, ("lost.One", "", ""));
    lost("lost-group", &outbound, ("lost.Two", "", ""));
    lost("lost-match", &outbound, ("lost.Two", "c", "2"));
    lost("lost-inbound", &route(Direction::Inbound, &["a"]), ("lost.In", "a", ""));

    let to = "10.0.0.77:7777".parse().unwrap();
    LOST.connection("10.0.0.9:4001".parse().unwrap(), to, Direction::Outbound);
    let mut rows = LOST.rows();
    rows.retain(|row| row.dialed == Some(to));
    golden("lost-connection", &text(&view::Explained { lost: rows, ..nothing() }));

    let unknown = view::Unknown {
        wanted: "wbe".to_owned(),
        rule: "a rule".to_owned(),
        near: vec!["web".to_owned()],
        known: vec!["shop".to_owned(), "web".to_owned()],
        more: 3,
        answer: "no".to_owned(),
    };
    golden("unknown", &text(&view::Explained { unknown: Some(unknown), ..nothing() }));
}

#[tokio::test(start_paused = true)]
async fn what_goes_well_is_kept_seldom_and_what_goes_ill_not_without_end() {
    let b = bench(2, "failover", |_, call| match &*call.method {
        "bad" => Act::Answer(Status::Failed(500)),
        _ => Act::Answer(Status::Ok),
    });
    let recent = &b.cluster.info.stats.recent;
    for _ in 0..1000 {
        b.call().await.unwrap();
    }
    let kept = recent.stories();
    assert_eq!((kept.len(), kept[0].kept, kept[0].steps.len()), (1, Kept::Sample, 0));
    recent.ask();
    for _ in 0..2000 {
        let mut bad = request();
        bad.call.method = Text::from_static("bad");
        b.cluster.call(&mut bad).await.unwrap();
    }
    let kept = recent.stories();
    let count = |wanted| kept.iter().filter(|s| s.kept == wanted).count();
    assert_eq!((count(Kept::Asked), count(Kept::Odd)), (1, 20), "20 a second");
    let odd = kept.iter().find(|s| s.kept == Kept::Odd).unwrap();
    assert!(odd.steps.iter().any(|s| matches!(s, Step::Try { number: 1, .. })), "{odd:?}");
    for _ in 0..10 {
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..30 {
            let mut bad = request();
            bad.call.method = Text::from_static("bad");
            b.cluster.call(&mut bad).await.unwrap();
        }
    }
    let kept = recent.stories();
    assert_eq!(kept.len(), 32);
    assert!(kept.iter().any(|s| s.kept == Kept::Asked), "what was asked for is not washed away");
    assert_eq!(serde_json::from_str::<Story>(&serde_json::to_string(&*kept[5]).unwrap()).unwrap(), *kept[5]);
}
