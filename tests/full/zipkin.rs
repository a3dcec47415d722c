//! Spans as a real Zipkin shows them.

use std::net::SocketAddr;

use host::{
    Agent, Backend, Need, free_port,
    http::{self, Conn},
    lacks,
    motan::{self, Client, Frame},
    until_some,
    zipkin::Zipkin,
};

#[test]
fn zipkin_shows_a_trace_through_two_agents_and_both_protocols() {
    if lacks(&[Need::Peer("zipkin")]) {
        return;
    }
    let zipkin = Zipkin::start();
    let (web, rpc) = (Backend::http(|_| http::ok("hi")), motan::server(|r| Some(r.answer(&r.body))));
    let addr = || SocketAddr::from(([127, 0, 0, 1], free_port()));
    let (exports, listens) = ((addr(), addr()), (addr(), addr()));
    let tracing = format!("[{{tracing: {{sample: 0, export: {{zipkin: \"http://{}\"}}}}}}]", zipkin.addr());
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

    for (trace, name) in [(of_web, "web.get"), (of_rpc, "kit.echo.echo")] {
        let spans = until_some("Zipkin has all four spans", || zipkin.trace(trace).filter(|spans| spans.len() == 4));
        // From the caller to the program: each span is the parent of the next.
        let mut parent = "b7ad6b7169203331".to_owned();
        for (application, kind) in [("near", "SERVER"), ("near", "CLIENT"), ("far", "SERVER"), ("far", "CLIENT")] {
            let span =
                spans.iter().find(|s| s["parentId"] == *parent).unwrap_or_else(|| panic!("{parent}: {spans:#?}"));
            assert_eq!((&span["kind"], &span["localEndpoint"]["serviceName"]), (&kind.into(), &application.into()));
            assert_eq!(span["name"], name, "Zipkin keeps names in small letters");
            parent = span["id"].as_str().unwrap().to_owned();
        }
    }
}
