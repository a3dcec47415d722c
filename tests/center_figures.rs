//! What a centre shows of real agents: their calls, who made them, how they are; and what servers of the site know.

use std::net::SocketAddr;

use host::{
    Agent, Backend, Center, Need,
    agent::Settings,
    free_port, lacks,
    motan::{self, Client, Frame},
    prometheus::Prometheus,
    until, until_some,
};
use rustix::process::Signal;
use serde_json::Value;

const SERVICE: &str = "com.example.Echo";

/// A server, an agent before it that reports to `center`, and a program that calls.
struct Site {
    agent: Agent,
    client: Client,
    server: Backend,
}

impl Site {
    fn new(center: SocketAddr, filters: &str) -> Self {
        let server = motan::server(|request| {
            Some(match request.meta("M_m") {
                "bad" => request.exception(500, 1, "no"),
                _ => request.answer(&request.body),
            })
        });
        let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let services = format!(
            "referers:
  - {{service: {SERVICE}, group: idc-a, protocol: motan2, listen: {to}, endpoints: [{}], filters: [{filters}]}}
",
            server.addr()
        );
        let top = format!("application: shop\nzone: north\ncenter: {{address: '{center}', report: 500ms}}\n");
        let agent = Agent::with(&Settings { top: &top, ..Settings::default() }, &services);
        Self { agent, client: Client::open(to).unwrap(), server }
    }

    fn call(&mut self, method: &str, times: usize) {
        for _ in 0..times {
            self.client.call(Frame::call(SERVICE, method, "x").with("M_s", "cart").with("M_g", "idc-a")).unwrap();
        }
    }
}

fn series(center: &Center, more: &str) -> Value {
    center.get(&format!("/v1/series?service={SERVICE}&group=idc-a&step_ms=2000{more}"))
}

/// Calls that a series shows in all.
fn calls(series: &Value) -> f64 {
    let step = series["step_ms"].as_f64().unwrap() / 1000.0;
    series["rate"].as_array().unwrap().iter().filter_map(Value::as_f64).sum::<f64>() * step
}

/// Waits until a series shows this many calls. Of the first window only a part is known: its rate is that part's, so
/// that there may be more.
#[track_caller]
fn shows(center: &Center, more: &str, wanted: f64) -> Value {
    until_some(&format!("{wanted} calls are shown ({more})"), || {
        let series = series(center, more);
        (calls(&series) > wanted - 0.5).then_some(series)
    })
}

#[test]
fn center_shows_calls_callers_edges_and_agents() {
    let mut center = Center::start("");
    let mut site = Site::new(center.addr(), "");
    let agent =
        until_some("the agent is known", || center.get("/v1/agents")["items"].as_array().unwrap().first().cloned());
    assert!(agent["agent"].as_str().unwrap().ends_with(&format!("/{}", site.agent.name())), "{agent}");
    let status = &agent["status"];
    assert_eq!(
        (&status["application"], &status["zone"], &status["capture"]),
        (&"shop".into(), &"north".into(), &"port".into())
    );
    assert!(status["resident_bytes"].as_u64().unwrap() > 1 << 20 && status["config_applied"] == 1, "{status}");
    assert!(!status["redirect_reason"].as_str().unwrap().is_empty() && agent["lost"] == false);

    site.call("echo", 90);
    site.call("bad", 10);
    let all = shows(&center, "", 100.0);
    assert_eq!((&all["source"], &all["of"]["side"]), (&"agents".into(), &"outbound".into()));
    let known = |column: &str| all[column].as_array().unwrap().iter().filter_map(Value::as_f64).collect::<Vec<_>>();
    assert!(known("success").iter().any(|share| *share < 1.0), "{all}");
    assert!(known("p99_ms").iter().all(|ms| *ms > 0.0) && !known("mean_ms").is_empty());
    shows(&center, &format!("&instance={}", site.server.addr()), 100.0);
    shows(&center, "&caller=cart", 100.0);
    let graph = center.get("/v1/graph");
    let edge = &graph["edges"][0];
    assert_eq!((&edge["from"], &edge["way"]), (&"application:cart".into(), &"tcp".into()), "{graph}");
    assert_eq!(edge["to"], format!("service:idc-a/{SERVICE}"));

    // Calls do not need the centre, and while it is away for a moment nothing is lost.
    center.kill9();
    site.call("echo", 50);
    center.again();
    shows(&center, "", 50.0);
    assert!(site.agent.stop().success());
    until("the agent is lost", || center.get("/v1/agents")["items"][0]["lost"] == true);
    assert!(center.stop().success());
}

#[test]
fn center_reads_prometheus_and_goes_on_without_it() {
    if lacks(&[Need::Program("prometheus")]) {
        return;
    }
    let at = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut site = Site::new(at, "metrics");
    let prometheus = Prometheus::start(&[site.agent.admin()]);
    let config = format!(
        "monitor: {{sources: [{{kind: prometheus, options: {{address: 'http://{}', window: 5s, timeout: 500ms}}}}]}}\n",
        prometheus.addr()
    );
    let center = Center::at(at, &config);
    let read = until_some("prometheus tells of calls", || {
        site.call("echo", 20);
        let series = series(&center, "");
        let rates = series["rate"].as_array().unwrap();
        let known = series["p99_ms"].as_array().unwrap().iter().any(|ms| !ms.is_null());
        (series["source"] == "prometheus" && known && rates.iter().any(|r| r.as_f64() > Some(0.0))).then_some(series)
    });
    for column in ["success", "mean_ms", "p50_ms", "p999_ms", "slow"] {
        assert!(read[column].as_array().unwrap().iter().any(|value| !value.is_null()), "{column}: {read}");
    }
    until("prometheus tells of the instance", || {
        site.call("echo", 20);
        series(&center, &format!("&instance={}", site.server.addr()))["source"] == "prometheus"
    });
    // Callers it does not know; agents do.
    let caller = until_some("agents tell of callers", || {
        site.call("echo", 20);
        let series = series(&center, "&caller=cart");
        (calls(&series) > 0.0).then_some(series)
    });
    assert_eq!(caller["source"], "agents (prometheus: agents show it no figures of single callers)");

    // Hung: answers come in time, from agents, and say why.
    prometheus.0.proc.signal(Signal::STOP);
    let hung = series(&center, "");
    let why = hung["source"].as_str().unwrap();
    assert!(why.starts_with("agents (prometheus: http://") && why.contains("no answer within 500ms"), "{why}");
    prometheus.0.proc.signal(Signal::CONT);
    until("it is asked again", || series(&center, "")["source"] == "prometheus");
}
