//! Spans as OpenTelemetry's own collector takes them.

use host::{
    Agent, Backend, Need,
    http::{self, Conn},
    lacks,
    motan::{self, Client, Frame},
    net::free_addr,
    otelcol::{Otelcol, value},
    until_some,
};

#[test]
fn otelcol_takes_a_trace_through_two_agents_and_both_protocols() {
    if lacks(&[Need::Peer("otelcol")]) {
        return;
    }
    let collector = Otelcol::start();
    let (web, rpc) = (Backend::http(|_| http::ok("hi")), motan::server(|r| Some(r.answer(&r.body))));
    let (exports, listens) = ((free_addr(), free_addr()), (free_addr(), free_addr()));
    let tracing = format!("[{{tracing: {{sample: 0, export: {{otlp: \"http://{}\"}}}}}}]", collector.addr());
    let _far = Agent::start(&format!(
        "application: far
services:
  - {{service: web, protocol: http, export: {}, local: {}, filters: {tracing}}}
  - {{service: kit.Echo, group: g, protocol: motan2, export: {}, local: {}, filters: {tracing}}}",
        exports.0,
        web.addr(),
        exports.1,
        rpc.addr()
    ));
    let _near = Agent::start(&format!(
        "application: near
referers:
  - {{service: web, protocol: http, listen: {}, endpoints: [{}], filters: {tracing}}}
  - {{service: kit.Echo, group: g, protocol: motan2, listen: {}, endpoints: [{}], filters: {tracing}}}",
        listens.0, exports.0, listens.1, exports.1
    ));
    let parent = |trace: &str| format!("00-{trace}-b7ad6b7169203331-01");
    let (of_web, of_rpc) = ("0af7651916cd43dd8448eb211c80319c", "1af7651916cd43dd8448eb211c80319c");
    let mut conn = Conn::open(listens.0).unwrap();
    conn.send(format!("GET /a HTTP/1.1\r\nHost: t\r\ntraceparent: {}\r\n\r\n", parent(of_web))).unwrap();
    assert_eq!(conn.answer().unwrap().status(), 200);
    let frame = Frame::call("kit.Echo", "echo", "hello").with("traceparent", &parent(of_rpc));
    assert_eq!(Client::open(listens.1).unwrap().call(frame).unwrap().text(), "hello");

    for (trace, name) in [(of_web, "web.GET"), (of_rpc, "kit.Echo.echo")] {
        let of = || Some(collector.spans(trace)).filter(|spans| spans.len() == 4);
        let spans = until_some("the collector has all four spans", of);
        // From the caller to the program: each span is the parent of the next.
        let mut parent = "b7ad6b7169203331".to_owned();
        for kind in ["Server", "Client", "Server", "Client"] {
            let span = spans.iter().find(|s| value(s, "Parent ID") == parent);
            let span = span.unwrap_or_else(|| panic!("{parent}: {spans:#?}"));
            assert_eq!((value(span, "Kind"), value(span, "Name")), (kind, name), "{span:?}");
            parent = value(span, "ID").to_owned();
        }
    }
}
