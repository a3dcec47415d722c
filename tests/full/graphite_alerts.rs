//! Alerts on what only Graphite has: minutes of real points.

use std::time::Duration;

use host::{
    Center, Need,
    carbon::Carbon,
    graphite_api, http, lacks, until, until_some,
    wait::{now_ms, within},
};

const SERVICE: &str = "com.example.Echo";

#[test]
fn graphite_api_raises_alerts_of_a_centre_that_nobody_reports_to() {
    if lacks(&[Need::Peer("graphite-api"), Need::Program("carbon-cache")]) {
        return;
    }
    let carbon = Carbon::keeping("60s:1d");
    let api = graphite_api::before(&carbon);
    let rate = "sockmesh.h1.shop.outbound.com_example_Echo.idc-a._all.rate";
    let usual = |i: u64| 20.0 + (i % 7) as f64 * 0.4;
    let minute = now_ms() / 60_000;
    carbon.send((1..300).map(|i| (rate.to_owned(), usual(i), (minute - i) * 60)));
    until("it is rendered", || {
        let answer = http::get(api.addr(), &format!("/render?target={rate}&format=json&from=-1h")).unwrap();
        answer.text().contains("20.4")
    });
    let of = format!("{{service: {SERVICE}, group: idc-a}}");
    let center = Center::start(&format!(
        "monitor: {{sources: [{{kind: graphite, options: {{address: 'http://{}'}}}}]}}
alerts:
  every: 500ms
  rules:
    - {{name: busy, of: {of}, severity: ticket, condition: {{kind: threshold, figure: rate, above: 15, for_ms: 600000}}}}
    - {{name: odd, of: {of}, severity: page, condition: {{kind: forecast, figure: rate, level_percent: 99.9}}}}
",
        api.addr()
    ));
    let firing = |rule: &str| {
        // Callers call on, as usual, until three times as many come.
        let second = now_ms() / 1000;
        let surge = second / 60 > minute + 1;
        let value = if surge { 3.0 * usual(second / 60) } else { usual(second / 60) };
        carbon.send([(rate.to_owned(), value, second / 60 * 60)]);
        let all = center.get("/v1/alerts");
        all["items"].as_array().unwrap().iter().find(|alert| alert["rule"] == rule).cloned()
    };
    let busy = until_some("the threshold is passed", || firing("busy"));
    assert!(busy["summary"].as_str().unwrap().contains("rate of"), "{busy}");
    let shown = center.get(&format!("/v1/alerts/{}", busy["id"].as_str().unwrap()));
    assert_eq!(shown["series"]["source"], "graphite", "{shown}");
    assert_eq!(firing("odd"), None, "what is usual alarms nobody");
    // Three windows of a minute have to be odd.
    let odd = within(Duration::from_secs(480), || firing("odd"));
    let odd = odd.unwrap_or_else(|| panic!("no forecast was passed: {}\n{}", center.get("/v1/alerts"), center.log()));
    assert!(odd["summary"].as_str().unwrap().contains("was expected"), "{odd}");
    let shown = center.get(&format!("/v1/alerts/{}", odd["id"].as_str().unwrap()));
    assert_eq!(shown["series"]["source"], "graphite", "{shown}");
}
