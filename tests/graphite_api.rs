//! Figures read back as dashboards do it: through graphite-api, out of a real Carbon.

use std::net::SocketAddr;

use host::{
    Agent, Center, Cmd, Need, Temp,
    agent::Settings,
    carbon::Carbon,
    free_port, http, lacks,
    motan::{self, Client, Frame},
    need::peer,
    program::Server,
    until, until_some,
};
use rustix::process::Signal;
use serde_json::Value;

const SERVICE: &str = "com.example.Echo";

/// Serves it in one process, which can be stopped as a whole.
const SERVE: &str = "import sys
from werkzeug.serving import run_simple
from graphite_api.app import app
run_simple('127.0.0.1', int(sys.argv[1]), app, threaded=True)
";

/// A graphite-api before `carbon`.
fn graphite_api(carbon: &Carbon) -> Server {
    let (dir, addr) = (Temp::new(), SocketAddr::from(([127, 0, 0, 1], free_port())));
    let config = dir.write(
        "api.yaml",
        format!(
            "search_index: {}/index\nfinders: [graphite_api.finders.whisper.WhisperFinder]\n\
             functions: [graphite_api.functions.SeriesFunctions]\nwhisper: {{directories: [{}]}}\ntime_zone: UTC\n\
             carbon: {{hosts: [\"127.0.0.1:{}\"], timeout: 5, carbon_prefix: carbon, replication_factor: 1}}\n",
            dir.path().display(),
            carbon.whisper().display(),
            carbon.query_port(),
        ),
    );
    let site = peer("graphite-api").join("site");
    let cmd = Cmd::new("env")
        .arg(format!("GRAPHITE_API_CONFIG={}", config.display()))
        .arg(format!("PYTHONPATH={}", site.display()))
        .args(["/usr/bin/python3", "-c", SERVE, &addr.port().to_string()]);
    Server::start(addr, dir, cmd)
}

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
    let api = graphite_api(&carbon);
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
    let mut api = graphite_api(&carbon);
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
    let hung = ask("");
    assert!(hung["source"].as_str().unwrap().contains("no answer within 2s") && known(&hung, "rate"), "{hung}");
    api.proc.signal(Signal::CONT);
    until("it is asked again", || ask("")["source"] == "graphite");
    api.proc.signal(Signal::KILL);
    api.proc.wait();
    assert!(ask("")["source"].as_str().unwrap().starts_with("agents (graphite: "));
    assert!(agent.is_ready());
}
