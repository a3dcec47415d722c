//! Figures that arrive: at a real Carbon, and as motan-go's packets.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use host::{
    Agent, Backend, Need,
    agent::Settings,
    carbon::Carbon,
    free_port, lacks,
    motan::{self, Client, Frame},
    until,
};
use rustix::process::Signal;

const SERVICE: &str = "com.example.Echo";
/// The name of the figures of one method.
const ECHO: &str = "shop.outbound.com_example_Echo.idc_a.echo";

/// A server whose method `biz` refuses, an agent before it that sends figures to `graphite`, and its caller.
struct Site {
    agent: Agent,
    client: Client,
    _server: Backend,
}

impl Site {
    fn new(graphite: &str, filters: &str) -> Self {
        let server = motan::server(|request| {
            Some(match request.meta("M_m") {
                "biz" => request.exception(30412, 2, "no"),
                _ => request.answer(&request.body),
            })
        });
        let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let services = format!(
            "referers:
  - {{service: {SERVICE}, group: idc.a, protocol: motan2, listen: {to}, endpoints: [{}], filters: [{filters}]}}
",
            server.addr()
        );
        let top = format!("application: my.shop\ngraphite:\n{graphite}");
        let agent = Agent::with(&Settings { top: &top, ..Settings::default() }, &services);
        Self { agent, client: Client::open(to).unwrap(), _server: server }
    }

    fn call(&mut self, method: &str, times: usize) {
        for _ in 0..times {
            let answer = self.client.call(Frame::call(SERVICE, method, "x").with("M_g", "idc.a")).unwrap();
            assert_eq!(answer.status == 1, method == "biz", "{answer:?}");
        }
    }

    fn figure(&self, name: &str, target: SocketAddr) -> f64 {
        self.agent.metric(&format!("sockmesh_graphite_{name}"), &[&format!("target=\"{target}\"")])
    }
}

fn sum(carbon: &Carbon, figure: &str) -> f64 {
    carbon.points(&format!("{ECHO}.{figure}")).iter().sum()
}

#[test]
fn graphite_carbon_has_every_call_though_it_is_killed_and_frozen() {
    if lacks(&[Need::Program("carbon-cache"), Need::Program("whisper-fetch")]) {
        return;
    }
    let mut carbon = Carbon::start();
    let dead = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let graphite = format!(
        "  - {{address: \"{}\", prefix: shop, interval: 2s}}\n  - {{address: \"{dead}\", interval: 100ms, queue: 100}}\n",
        carbon.addr()
    );
    let mut site = Site::new(&graphite, "metrics");
    let service = "shop.outbound.com_example_Echo.idc_a._all.count";
    until("an interval without calls is there", || !carbon.points(service).is_empty());

    site.call("echo", 25);
    site.call("biz", 3);
    until("all calls are there", || sum(&carbon, "count") == 25.0);
    assert_eq!(carbon.points(&format!("{}.refused", ECHO.replace("echo", "biz"))).iter().sum::<f64>(), 3.0);
    assert_eq!(carbon.points(service).iter().sum::<f64>(), 28.0);
    let successes = carbon.points(&format!("{ECHO}.success"));
    assert!(!successes.is_empty() && successes.iter().all(|s| *s == 1.0), "{successes:?}");
    let bands = ["less_50ms", "less_100ms", "less_200ms", "less_500ms", "more_500ms"];
    assert_eq!(bands.map(|band| sum(&carbon, band)).iter().sum::<f64>(), 25.0);
    for figure in ["mean", "p50", "p75", "p95", "p99", "p999"] {
        let points = carbon.points(&format!("{ECHO}.{figure}"));
        assert!(points.len() == successes.len() && points.iter().all(|ms| *ms > 0.0), "{figure}: {points:?}");
    }
    assert!(carbon.names().iter().all(|name| name.starts_with("shop.") || name.starts_with("carbon.")));

    // Killed: calls go on, their figures wait.
    carbon.0.proc.signal(Signal::KILL);
    carbon.0.proc.wait();
    site.call("echo", 10);
    until("the loss is seen", || site.figure("failures_total", carbon.addr()) > 0.0);
    assert_eq!(site.figure("connected", carbon.addr()), 0.0);
    carbon.0.again();
    until("what waited is there", || sum(&carbon, "count") == 35.0);
    assert_eq!(site.figure("connected", carbon.addr()), 1.0);
    assert_eq!(site.figure("lines_dropped_total", carbon.addr()), 0.0);

    // Frozen: the kernel takes the lines, nobody waits.
    carbon.0.proc.signal(Signal::STOP);
    site.call("echo", 10);
    let sent = site.figure("lines_sent_total", carbon.addr());
    until("an interval passes", || site.figure("lines_sent_total", carbon.addr()) > sent);
    carbon.0.proc.signal(Signal::CONT);
    until("the frozen time is there", || sum(&carbon, "count") == 45.0);

    // Nobody there at all: what waits is bounded, the rest is counted.
    until("lines are dropped", || site.figure("lines_dropped_total", dead) > 0.0);
    assert!(site.figure("waiting_lines", dead) <= 100.0);

    // What was called last comes with the stop.
    site.call("echo", 5);
    assert!(site.agent.stop().success());
    until("the last calls are there", || sum(&carbon, "count") == 50.0);
}

#[test]
fn graphite_motan_packets_have_the_lines_of_motan_go() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let at = socket.local_addr().unwrap();
    let mut site = Site::new(&format!("  - {{address: \"{at}\", form: motan, interval: 500ms}}\n"), "metrics");
    site.call("echo", 4);
    site.call("biz", 2);

    // name -> type -> sum of the values of counters, or the last one.
    let mut lines: BTreeMap<String, (String, f64)> = BTreeMap::new();
    let mut packet = [0; 65536];
    let name =
        |method: &str| format!("motan-client-agent.my_shop.idc_a.cluster.byhost.127_0_0_1.com_example_Echo.{method}");
    let whole = |lines: &BTreeMap<String, (String, f64)>, method: &str, n: f64| {
        lines.get(&format!("{}.total_count", name(method))).is_some_and(|(_, sum)| *sum >= n)
    };
    until("all calls are told", || {
        if let Ok(n) = socket.recv(&mut packet) {
            assert!(n <= 5 * 1024, "{n}");
            let text = std::str::from_utf8(&packet[..n]).unwrap();
            assert!(text.ends_with('\n'), "{text}");
            for line in text.lines() {
                let (key, rest) = line.split_once(':').unwrap();
                let (value, kind) = rest.split_once('|').unwrap();
                let decimals = value.split_once('.').map_or(0, |(_, d)| d.len());
                assert_eq!(decimals, if kind == "c" { 0 } else { 2 }, "{line}");
                let value: f64 = value.parse().unwrap();
                let entry = lines.entry(key.to_owned()).or_insert((kind.to_owned(), 0.0));
                entry.1 = if kind == "c" { entry.1 + value } else { value };
            }
        }
        whole(&lines, "echo", 4.0) && whole(&lines, "biz", 2.0)
    });
    let mut told = BTreeSet::new();
    for (method, total, refused) in [("biz", 2.0, 2.0), ("echo", 4.0, 0.0)] {
        let of = |stat: &str| lines.get(&format!("{}.{stat}", name(method))).cloned();
        assert_eq!(of("total_count"), Some(("c".to_owned(), total)));
        assert_eq!(of("biz_error_count").map_or(0.0, |l| l.1), refused);
        assert_eq!(of("other_error_count"), None);
        let bands = ["Less50ms", "Less100ms", "Less200ms", "Less500ms", "More500ms"];
        assert_eq!(bands.iter().filter_map(|b| of(b)).map(|l| l.1).sum::<f64>(), total);
        for stat in ["p50", "p75", "p95", "p99", "p999", "p9999"] {
            assert!(of(stat).is_some_and(|(kind, ms)| kind == "kv" && ms > 0.0), "{stat}: {lines:?}");
        }
        assert!(of("avg_time").is_some_and(|(kind, ms)| kind == "ms" && ms > 0.0));
        told.extend(
            bands.iter().chain(&["slow_count", "total_count", "biz_error_count", "avg_time"]).map(|s| (*s).to_owned()),
        );
    }
    // And nothing else.
    for key in lines.keys() {
        let stat = key.rsplit_once('.').unwrap().1;
        assert!(told.contains(stat) || stat.starts_with('p'), "{key}");
        assert!(key.starts_with(&name("echo")) || key.starts_with(&name("biz")), "{key}");
    }
    assert!(site.agent.stop().success());
}

#[test]
fn graphite_series_are_bounded_and_idle_methods_are_forgotten() {
    let top = "application: a\nseries: {methods: 3, endpoints: 1, idle: 2s}\n";
    let server = motan::server(|request| Some(request.answer(&request.body)));
    let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let gone = free_port();
    let services = format!(
        "referers:
  - {{service: {SERVICE}, protocol: motan2, listen: {to}, endpoints: [\"127.0.0.1:{gone}\", \"{}\"], lb: round_robin}}
",
        server.addr()
    );
    let agent = Agent::with(&Settings { top, ..Settings::default() }, &services);
    let mut client = Client::open(to).unwrap();
    for i in 0..50 {
        let _ = client.call(Frame::call(SERVICE, &format!("invented{i}"), "x")).unwrap();
    }
    let used = |of: &str| agent.metric("sockmesh_series_used", &[&format!("of=\"{of}\"")]);
    // Three methods and the row of all others.
    assert_eq!((used("methods"), used("endpoints")), (4.0, 1.0));
    assert_eq!(agent.metric("sockmesh_series_limit", &["of=\"methods\""]), 3.0);
    assert!(agent.metric("sockmesh_series_refused_total", &[]) >= 40.0);
    assert_eq!(agent.metric("sockmesh_requests_total", &[]), 50.0);
    assert_eq!(agent.metric("sockmesh_requests_total", &["method=\"other\""]), 47.0);
    until("idle methods are forgotten", || used("methods") == 0.0);
    assert!(!agent.page("/metrics").contains("method=\"invented"));
    let service_calls = agent.metric("sockmesh_service_calls_total", &[]);
    assert_eq!(service_calls, 50.0, "what the service counts stays");
    client.call(Frame::call(SERVICE, "again", "x")).unwrap();
    assert_eq!(agent.metric("sockmesh_requests_total", &["method=\"again\""]), 1.0);
}
