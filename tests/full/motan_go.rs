//! Motan's own Go library as client and server through the agent, its own agent as either of the two, and a real
//! gRPC server behind it.

use std::net::SocketAddr;

use host::{
    Agent, Need, free_port, lacks,
    motan::{Client, Frame},
    motan_libs::{all_well, go, go_agent, go_server, grpc_server},
    program::Place,
    until, zookeeper,
};

const NEEDS: &[Need] = &[Need::Peer("motan-go")];
const SERVICE: &str = "kit.EchoService";
/// Cases of the client with agents on the way.
const CASES: usize = 36;

fn addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// Our agent at the callers' side.
fn near(to: SocketAddr, more: &str) -> Agent {
    Agent::start(&format!(
        "application: near
referers:
  - {{service: {SERVICE}, group: kit-group, protocol: motan2, listen: {to}, timeout: 3s, timeout_range: 100ms..6s, {more}}}"
    ))
}

/// Our agent at the program's side.
fn far(export: SocketAddr, local: SocketAddr, more: &str) -> Agent {
    Agent::start(&format!(
        "services:
  - {{service: {SERVICE}, group: kit-group, version: '1.0', protocol: motan2, export: {export}, local: {local}, timeout: 3s,
     timeout_range: 100ms..6s{more}}}"
    ))
}

/// Motan's own agent at the callers' side.
fn original_near(to: SocketAddr, next: SocketAddr) -> String {
    format!(
        "motan-agent: {{port: {}, mport: {}, log_dir: stdout, application: near, motanEpAsyncInit: false}}
motan-registry:
  direct: {{protocol: direct, host: 127.0.0.1, port: {}}}
motan-refer:
  kit: {{path: {SERVICE}, group: kit-group, protocol: motan2, registry: direct, requestTimeout: 3000, version: '1.0'}}
",
        to.port(),
        free_port(),
        next.port()
    )
}

/// Motan's own agent at the program's side.
fn original_far(export: SocketAddr, local: SocketAddr) -> String {
    format!(
        "motan-agent: {{port: {}, mport: {}, log_dir: stdout, application: far, motanEpAsyncInit: false}}
motan-registry:
  direct: {{protocol: direct, host: 127.0.0.1, port: 1}}
motan-service:
  kit: {{path: {SERVICE}, group: kit-group, protocol: motan2, registry: direct, requestTimeout: 3000, version: '1.0',
        export: 'motan2:{}', proxy: 'motan2:{}', provider: motan2, serialization: simple}}
",
        free_port(),
        free_port(),
        export.port(),
        local.port()
    )
}

fn client(to: SocketAddr) -> host::Cmd {
    go("client").args(["-agents", "-to"]).arg(to)
}

#[test]
fn motan_go_library_to_library_through_two_agents() {
    if lacks(NEEDS) {
        return;
    }
    let (to, export) = (addr(), addr());
    // Answers are compressed by the server and by nobody after it.
    let server = go_server(&["-gzip", "100"]);
    let _far = far(export, server.addr(), "");
    let _near = near(to, &format!("endpoints: ['{export}'], gzip_over: 64"));
    all_well(&client(to), CASES);
}

#[test]
fn motan_go_its_own_agent_before_ours_and_behind_it() {
    if lacks(NEEDS) {
        return;
    }
    let server = go_server(&[]);
    let (to, export) = (addr(), addr());
    let _far = far(export, server.addr(), "");
    let _original = go_agent(to, &original_near(to, export));
    all_well(&client(to), CASES);

    let (to, export) = (addr(), addr());
    let _original = go_agent(export, &original_far(export, server.addr()));
    let _near = near(to, &format!("endpoints: ['{export}']"));
    all_well(&client(to), CASES);
}

#[test]
fn motan_go_library_and_agents_find_each_other_in_zookeeper() {
    if lacks(&[NEEDS, &[Need::Program("zkServer.sh")]].concat()) {
        return;
    }
    let registry = zookeeper::zookeeper(&Place::default());
    let at = registry.addr();
    let zk = format!("registries: {{zk: {{kind: zookeeper, address: ['{at}']}}}}");
    // The library registers, our agent finds it.
    let at_text = at.to_string();
    let server = go_server(&["-zookeeper", &at_text]);
    let to = addr();
    let _near = Agent::start(&format!(
        "{zk}
referers:
  - {{service: {SERVICE}, group: kit-group, version: '1.0', protocol: motan2, listen: {to}, registry: zk, timeout: 5s}}"
    ));
    until("the server is found", || {
        let mut client = Client::open(to).unwrap();
        client.call(Frame::call(SERVICE, "echoString", "there?")).is_ok_and(|a| a.status == 0)
    });
    all_well(&go("client").args(["-to"]).arg(to), 20);

    // Our agent registers, the library finds it.
    let export = addr();
    let _far = Agent::start(&format!(
        "{zk}
advertise: 127.0.0.1
services:
  - {{service: {SERVICE}, group: other-group, version: '1.0', protocol: motan2, export: {export}, local: '{}',
     timeout: 3s, timeout_range: 100ms..6s, registry: zk}}",
        server.addr()
    ));
    let node = format!("/motan/other-group/{SERVICE}/server/{export}");
    let mut session = zookeeper::Client::open(at);
    until("our agent is registered", || session.get(&node).is_some());
    let found = go("client").args(["-group", "other-group", "-zookeeper", &at_text, "-to"]).arg(export);
    all_well(&found, 20);
}

#[test]
fn grpc_server_behind_a_motan2_service() {
    if lacks(NEEDS) {
        return;
    }
    let server = grpc_server();
    let to = addr();
    let _agent = Agent::start(&format!(
        "application: near
referers:
  - {{service: kit.GrpcService, group: kit-group, protocol: motan2, upstream: grpc, listen: {to}, endpoints: ['{}'], timeout: 600ms}}",
        server.addr()
    ));
    let mut client = Client::open(to).unwrap();
    let mut call = |method: &str, body: &[u8]| {
        let mut frame = Frame::call("kit.GrpcService", method, "").with("Kit-Own", "v");
        (frame.serialization, frame.body) = (1, body.to_vec());
        client.call(frame).unwrap()
    };
    let recorded = ["request", "answer"].map(|what| {
        let path = host::source_dir().join("data/motan2").join(format!("v7-grpc.{what}.hex"));
        let text = std::fs::read_to_string(path).unwrap();
        let digits: Vec<_> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let bytes: Vec<_> =
            digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect();
        Frame::read(&bytes[..]).unwrap().unwrap()
    });
    let mut recording = Client::open(to).unwrap();
    recording.send(recorded[0].bytes()).unwrap();
    let answer = recording.receive().unwrap().unwrap();
    let plain = |f: &Frame| (f.kind, f.status, f.serialization, f.id, f.body.clone());
    assert_eq!(plain(&answer), plain(&recorded[1]));
    assert!(answer.meta.keys().eq(recorded[1].meta.keys()), "{:?}", answer.meta);
    let answer = call("Echo", b"\x0a\x05hello");
    assert_eq!((answer.kind, answer.status, answer.serialization, &*answer.body), (3, 0, 1, &b"\x0a\x05hello"[..]));
    assert_eq!(answer.meta("x-forwarded-for"), server.addr().to_string());
    assert_eq!((call("Echo", b"").status, call("Echo", b"").body.len()), (0, 0), "an empty message is a message");
    let large = vec![7; 3 << 20];
    assert!(call("Echo", &large).body == large);
    let seen = String::from_utf8(call("Metadata", b"x").body).unwrap();
    for line in ["kit-own=v", "m_s=near", "path=/kit.GrpcService/Metadata", "deadline=true"] {
        assert!(seen.lines().any(|l| l == line), "{line} is not in\n{seen}");
    }
    assert_eq!(call("Fail", b"x").thrown(), (3, 3, "kit fail: 中文 100%".to_owned()));
    let (code, kind, _) = call("NoSuchMethod", b"x").thrown();
    assert_eq!((code, kind), (12, 12));
    let (code, kind, text) = call("Slow", b"x").thrown();
    let late = (code, kind, text.as_str());
    let ours = (400, 1, "channel call error:timeout err: receive request timeout");
    assert!(late == ours || (code, kind) == (4, 4) || (code, kind) == (1, 1), "{late:?}");
    assert_eq!(call("Echo", b"on").body, b"on", "the connection goes on");
}

#[test]
fn grpc_server_that_ends_and_comes_back() {
    if lacks(NEEDS) {
        return;
    }
    let mut server = grpc_server();
    let to = addr();
    let _agent = Agent::start(&format!(
        "referers:
  - {{service: s, protocol: motan2, upstream: grpc, listen: {to}, endpoints: ['{}'], eject: {{pause: 100ms}}}}",
        server.addr()
    ));
    let mut client = Client::open(to).unwrap();
    let mut echo = || client.call(Frame::call("s", "Echo", "x")).unwrap();
    assert_eq!(echo().status, 0);
    server.proc.stop();
    let (code, kind, _) = echo().thrown();
    assert!(kind == 1 && [400, 1001, 1002].contains(&code), "{code}");
    server.again();
    until("it is called again", || echo().status == 0);
}
