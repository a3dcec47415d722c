//! Figures read back as dashboards do it: through graphite-api, out of a real Carbon.

use std::net::SocketAddr;

use host::{
    Agent, Center, Need,
    agent::Settings,
    carbon::Carbon,
    free_port, graphite_api, http, lacks,
    motan::{self, Client, Frame},
    program::Server,
    until, until_some,
    wait::now_ms,
};
use rustix::process::Signal;
use serde_json::Value;

const SERVICE: &str = "com.example.Echo";

/// The points of a target of the last minutes.
fn render(api: &Server, target: &str) -> Vec<f64> {
    let answer = http::get(api.addr(), &format!("/render?target={target}&format=json&from=-5min")).unwrap();
    assert_eq!(answer.status(), 200, "{target}: {}", answer.text());
    let series: Value = serde_json::from_str(&answer.text()).unwrap();
    let points = series.as_array().unwrap().iter().flat_map(|s| s["datapoints"].as_array().unwrap().clone());
    points.filter_map(|point| point[0].as_f64()).collect()
}

#[test]
fn graphite_api_renders_what_was_called() {
    if lacks(&[Need::Peer("graphite-api"), Need::Program("carbon-cache")]) {
        return;
    }
    let carbon = Carbon::start();
    let api = graphite_api::before(&carbon);
    let server = motan::server(|request| Some(request.answer(&request.body)));
    let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let top = format!("graphite:\n  - {{address: \"{}\", prefix: shop, interval: 2s}}\n", carbon.addr());
    let agent = Agent::with(
        &Settings { top: &top, ..Settings::default() },
        &format!(
            "referers:
  - {{service: {SERVICE}, group: idc-a, protocol: motan2, listen: {to}, endpoints: [{}]}}
",
            server.addr()
        ),
    );
    let name = "shop.outbound.com_example_Echo.idc-a";
    until("the service is there before any call", || !render(&api, &format!("{name}._all.rate")).is_empty());
    let mut client = Client::open(to).unwrap();
    for method in ["echo", "ping"] {
        for _ in 0..20 {
            client.call(Frame::call(SERVICE, method, "x")).unwrap();
        }
    }
    // As a dashboard sums up: over methods, with a function of Graphite.
    let sum = format!("sumSeries({name}.%7Becho,ping%7D.count)");
    until("all calls are rendered", || render(&api, &sum).iter().sum::<f64>() == 40.0);
    assert_eq!(
        render(&api, &format!("{name}.echo.less_*")).iter().sum::<f64>(),
        20.0 - render(&api, &format!("{name}.echo.more_500ms")).iter().sum::<f64>()
    );
    let p99 = render(&api, &format!("maxSeries({name}.*.p99)"));
    assert!(!p99.is_empty() && p99.iter().all(|ms| *ms > 0.0), "{p99:?}");
    let found = http::get(api.addr(), &format!("/metrics/find?query={name}.echo.*")).unwrap().text();
    for figure in ["count", "rate", "success", "mean", "p50", "p999", "slow"] {
        assert!(found.contains(&format!("\"{figure}\"")), "{figure}: {found}");
    }
    assert!(agent.is_ready());
}

#[test]
fn graphite_api_is_read_by_a_centre_that_goes_on_without_it() {
    if lacks(&[Need::Peer("graphite-api"), Need::Program("carbon-cache")]) {
        return;
    }
    let carbon = Carbon::start();
    let mut api = graphite_api::before(&carbon);
    let center = Center::start(&format!(
        "monitor: {{sources: [{{kind: graphite, options: {{address: 'http://{}', timeout: 2s}}}}]}}\n",
        api.addr()
    ));
    let server = motan::server(|request| Some(request.answer(&request.body)));
    let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let top = format!(
        "application: shop\ncenter: {{address: '{}', report: 500ms}}\ngraphite:\n  - {{address: \"{}\", interval: 2s}}\n",
        center.addr(),
        carbon.addr()
    );
    let referer =
        format!("{{service: {SERVICE}, group: idc-a, protocol: motan2, listen: {to}, endpoints: [{}]}}", server.addr());
    let agent = Agent::with(&Settings { top: &top, ..Settings::default() }, &format!("referers:\n  - {referer}\n"));
    let ask = |more: &str| center.get(&format!("/v1/series?service={SERVICE}&group=idc-a&step_ms=5000{more}"));
    let known =
        |series: &Value, column: &str| series[column].as_array().unwrap().iter().any(|v| v.as_f64() > Some(0.0));

    let mut client = Client::open(to).unwrap();
    let read = until_some("graphite tells of calls", || {
        for _ in 0..20 {
            client.call(Frame::call(SERVICE, "echo", "x")).unwrap();
        }
        let series = ask("");
        (series["source"] == "graphite" && known(&series, "rate") && known(&series, "mean_ms")).then_some(series)
    });
    for column in ["success", "p50_ms", "p99_ms", "p999_ms"] {
        assert!(known(&read, column), "{column}: {read}");
    }
    assert_eq!(ask("&caller=shop")["source"], "graphite");
    assert!(ask("&caller=nobody")["source"].as_str().unwrap().contains("nothing of that name"));

    // Hung, then gone: agents tell, and why is said.
    api.proc.signal(Signal::STOP);
    until("agents tell of calls", || {
        client.call(Frame::call(SERVICE, "echo", "x")).unwrap();
        let hung = ask("");
        hung["source"].as_str().unwrap().contains("no answer within 2s") && known(&hung, "rate")
    });
    api.proc.signal(Signal::CONT);
    until("it is asked again", || ask("")["source"] == "graphite");
    api.proc.signal(Signal::KILL);
    api.proc.wait();
    assert!(ask("")["source"].as_str().unwrap().starts_with("agents (graphite: "));
    assert!(agent.is_ready());
}

#[test]
fn graphite_api_is_read_by_motan_gos_names() {
    if lacks(&[Need::Peer("graphite-api"), Need::Program("carbon-cache")]) {
        return;
    }
    // As a statsd of the site writes what two hosts sent each five seconds.
    let carbon = Carbon::keeping("5s:1h");
    let api = graphite_api::before(&carbon);
    let last = now_ms() / 5000 * 5;
    let stats =
        [("total_count", 100.0), ("other_error_count", 5.0), ("slow_count", 10.0), ("p99", 30.0), ("avg_time", 4.0)];
    let name = |host: u32, method: &str, stat: &str| {
        format!("motan-client-agent.shop.idc-a.byhost.10_0_0_{host}.com_example_Echo.{method}.{stat}")
    };
    let points = (0..60).flat_map(|i| {
        let of = move |(host, method): (u32, &str), (stat, value): (&str, f64)| {
            // The second host is twice as slow.
            let value = if stat == "p99" || stat == "avg_time" { value * f64::from(host) } else { value };
            (name(host, method, stat), value, last - 5 * i)
        };
        let of = move |at: (u32, &'static str)| stats.map(move |stat| of(at, stat));
        [of((1, "get")), of((2, "put"))].into_iter().flatten()
    });
    carbon.send(points);
    for more in ["", ", interval: 5s"] {
        let center = Center::start(&format!(
            "monitor: {{sources: [{{kind: graphite, options: {{address: 'http://{}', form: motan{more}}}}}]}}\n",
            api.addr()
        ));
        let path = format!("/v1/series?service={SERVICE}&group=idc-a&step_ms=10000");
        let read = until_some("graphite tells of calls", || {
            let series = center.get(&path);
            (series["source"] == "graphite").then_some(series)
        });
        let near = |column: &str, wanted: f64| {
            let values: Vec<f64> = read[column].as_array().unwrap().iter().filter_map(Value::as_f64).collect();
            // The last window may lack a point.
            let good = values.iter().filter(|value| (*value / wanted - 1.0).abs() < 0.01).count();
            assert!(good > 5 && good + 2 >= values.len(), "{column} is not {wanted}{more}: {values:?}");
        };
        near("rate", 40.0);
        near("success", 0.95);
        near("slow", 0.1);
        near("p99_ms", 60.0);
        near("mean_ms", 6.0);
    }
}
