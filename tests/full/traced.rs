//! A trace of each protocol through two agents, for what takes spans.

use host::{
    Agent, Backend,
    http::{self, Conn},
    motan::{self, Client, Frame},
    net::free_addr,
};

/// The span that callers name as the parent of theirs.
pub const PARENT: &str = "b7ad6b7169203331";
/// The trace of an HTTP call: GET of service `web`.
pub const OF_WEB: &str = "0af7651916cd43dd8448eb211c80319c";
/// The trace of a Motan2 call: `echo` of service `kit.Echo`.
pub const OF_RPC: &str = "1af7651916cd43dd8448eb211c80319c";

/// Agents of the applications `near` and `far`, which export spans of what they were called.
pub struct Traced {
    _agents: [Agent; 2],
    _servers: [Backend; 2],
}

/// Calls once by each protocol, through agents whose filter `tracing` exports as `export` says.
#[track_caller]
pub fn calls(export: &str) -> Traced {
    let (web, rpc) = (Backend::http(|_| http::ok("hi")), motan::server(|r| Some(r.answer(&r.body))));
    let (exports, listens) = ((free_addr(), free_addr()), (free_addr(), free_addr()));
    let tracing = format!("[{{tracing: {{sample: 0, export: {export}}}}}]");
    let far = Agent::start(&format!(
        "application: far
services:
  - {{service: web, protocol: http, export: {}, local: {}, filters: {tracing}}}
  - {{service: kit.Echo, group: g, protocol: motan2, export: {}, local: {}, filters: {tracing}}}",
        exports.0,
        web.addr(),
        exports.1,
        rpc.addr()
    ));
    let near = Agent::start(&format!(
        "application: near
referers:
  - {{service: web, protocol: http, listen: {}, endpoints: [{}], filters: {tracing}}}
  - {{service: kit.Echo, group: g, protocol: motan2, listen: {}, endpoints: [{}], filters: {tracing}}}",
        listens.0, exports.0, listens.1, exports.1
    ));
    let parent = |trace: &str| format!("00-{trace}-{PARENT}-01");
    let mut conn = Conn::open(listens.0).unwrap();
    conn.send(format!("GET /a HTTP/1.1\r\nHost: t\r\ntraceparent: {}\r\n\r\n", parent(OF_WEB))).unwrap();
    assert_eq!(conn.answer().unwrap().status(), 200);
    let frame = Frame::call("kit.Echo", "echo", "hello").with("traceparent", &parent(OF_RPC));
    assert_eq!(Client::open(listens.1).unwrap().call(frame).unwrap().text(), "hello");
    Traced { _agents: [far, near], _servers: [web, rpc] }
}
