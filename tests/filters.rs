//! Every filter as callers see it, by HTTP and by Motan2 (`docs/filters.md`).

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use host::{
    Agent, Backend, Temp,
    agent::Settings,
    free_port,
    http::{self, Conn, Message},
    motan::{self, Client, Frame},
    until, until_some,
    wait::PATIENCE,
};
use serde_json::Value;

const SERVICE: &str = "kit.EchoService";

/// A web service and a Motan2 service behind one agent, with the same filters.
struct Mesh {
    agent: Agent,
    web: SocketAddr,
    rpc: SocketAddr,
    servers: (Backend, Backend),
    /// While set, servers fail.
    failing: Arc<AtomicBool>,
    /// Requests that servers hold until they are let go.
    held: Arc<AtomicUsize>,
    go: Mutex<Option<SyncSender<()>>>,
    seen: Mutex<Receiver<Seen>>,
}

/// What a server was asked.
enum Seen {
    Web(Message),
    Rpc(Frame),
}

fn addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

impl Mesh {
    fn new(filters: &str) -> Self {
        Self::with(filters, "")
    }

    fn with(filters: &str, top: &str) -> Self {
        let (failing, held) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (tx, seen) = sync_channel(4096);
        let (go, gate) = sync_channel::<()>(1);
        let gate = Arc::new(Mutex::new(gate));
        let hold = move |held: &AtomicUsize| {
            held.fetch_add(1, SeqCst);
            // Ends when the test lets go of its end.
            let _ = gate.lock().unwrap().recv();
        };
        let web_server = {
            let (tx, failing, held, hold) = (tx.clone(), failing.clone(), held.clone(), hold.clone());
            Backend::http(move |request| {
                let _ = tx.send(Seen::Web(request.clone()));
                if request.line.contains("/hold") {
                    hold(&held);
                }
                match failing.load(SeqCst) {
                    true => b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n".to_vec(),
                    false => http::ok("from the server"),
                }
            })
        };
        let rpc_server = {
            let (failing, held) = (failing.clone(), held.clone());
            motan::server(move |request| {
                let _ = tx.send(Seen::Rpc(request.clone()));
                if request.meta("M_m") == "hold" {
                    hold(&held);
                }
                Some(match failing.load(SeqCst) {
                    true => request.exception(500, 1, "oops"),
                    false => request.answer(&request.body),
                })
            })
        };
        let (web, rpc) = (addr(), addr());
        let services = format!(
            "referers:
  - service: web
    protocol: http
    listen: {web}
    endpoints: [{}]
    retries: 0
    filters: {filters}
  - service: {SERVICE}
    group: kit
    protocol: motan2
    listen: {rpc}
    endpoints: [{}]
    retries: 0
    timeout: 10s
    filters: {filters}
",
            web_server.addr(),
            rpc_server.addr()
        );
        let agent = Agent::with(&Settings { top, ..Settings::default() }, &services);
        let servers = (web_server, rpc_server);
        Self { agent, web, rpc, servers, failing, held, go: Mutex::new(Some(go)), seen: Mutex::new(seen) }
    }

    #[track_caller]
    fn get(&self, path: &str) -> Message {
        http::get(self.web, path).unwrap()
    }

    #[track_caller]
    fn call(&self, method: &str) -> Frame {
        Client::open(self.rpc).unwrap().call(Frame::call(SERVICE, method, "hello")).unwrap()
    }

    /// Status by HTTP, code and text by Motan2.
    #[track_caller]
    fn both(&self) -> (u16, (i64, i64, String)) {
        (self.get("/").status(), self.call("echo").thrown())
    }

    /// Both services answer as their servers do.
    #[track_caller]
    fn works(&self) {
        assert_eq!(self.get("/").text(), "from the server");
        assert_eq!(self.call("echo").text(), "hello");
    }

    fn fail(&self, failing: bool) {
        self.failing.store(failing, SeqCst);
    }

    /// Begins a call of each service that its server holds.
    fn hold(&self) -> (thread::JoinHandle<Message>, thread::JoinHandle<Frame>) {
        let (web, rpc) = (self.web, self.rpc);
        let before = self.held.load(SeqCst);
        let held = (
            thread::spawn(move || http::get(web, "/hold").unwrap()),
            thread::spawn(move || Client::open(rpc).unwrap().call(Frame::call(SERVICE, "hold", "hello")).unwrap()),
        );
        until("both servers hold a call", || self.held.load(SeqCst) == before + 2);
        held
    }

    fn release(&self) {
        self.go.lock().unwrap().take();
    }

    #[track_caller]
    fn seen(&self) -> Seen {
        self.seen.lock().unwrap().recv_timeout(PATIENCE).expect("a server is asked")
    }

    /// An event of a filter, of both services together.
    fn events(&self, filter: &str, event: &str) -> f64 {
        let labels = [format!("filter=\"{filter}\""), format!("event=\"{event}\"")];
        self.agent.metric("sockmesh_filter_events_total", &[&labels[0], &labels[1]])
    }
}

fn thrown(code: i64, errtype: i64, text: &str) -> (i64, i64, String) {
    (code, errtype, text.to_owned())
}

#[test]
fn filters_breaker_opens_and_closes() {
    let mesh = Mesh::new("[{circuit_breaker: {requests: 4, sleep: 300ms}}]");
    mesh.works();
    mesh.fail(true);
    for _ in 0..3 {
        assert_eq!(mesh.both().0, 500);
    }
    assert_eq!(mesh.both(), (503, thrown(400, 1, "hystrix: circuit open")));
    assert_eq!(mesh.get("/").header("x-sockmesh-error"), Some("circuit_open"));
    assert_eq!(mesh.get("/").header("retry-after"), Some("1"));
    assert_eq!(mesh.events("circuit_breaker", "opened"), 2.0);
    let stat = mesh.agent.json("/stat");
    let figures = &stat["services"][0]["filters"][0];
    assert_eq!(figures["filter"], "circuit_breaker", "{stat}");
    assert!(figures["figures"].as_array().unwrap().iter().any(|f| f["name"] == "circuit" && f["value"] == 2), "{stat}");
    mesh.fail(false);
    until("a trial closes the circuit", || mesh.get("/").status() == 200 && mesh.call("echo").status == 0);
    mesh.works();
}

#[test]
fn filters_breaker_tells_timeouts_and_crowds_in_motans_words() {
    let mesh = Mesh::new("[{circuit_breaker: {timeout: 200ms, max_concurrent: 1}}]");
    let held = mesh.hold();
    assert_eq!(mesh.both(), (503, thrown(400, 1, "hystrix: max concurrency")));
    assert_eq!(held.0.join().unwrap().status(), 504);
    assert_eq!(held.1.join().unwrap().thrown(), thrown(400, 1, "hystrix: timeout"));
    mesh.release();
}

#[test]
fn filters_failfast_bars_an_address_for_every_service() {
    let mesh = Mesh::new("[{failfast: {failures: 3, retry_every: 300ms}}]");
    mesh.works();
    mesh.fail(true);
    for _ in 0..3 {
        mesh.both();
    }
    let (status, (code, _, text)) = mesh.both();
    assert_eq!((status, code), (503, 1001), "{text}");
    let states: Vec<_> = mesh.agent.endpoints().iter().map(|e| e["state"].as_str().unwrap().to_owned()).collect();
    assert!(states.iter().any(|state| state == "barred" || state == "up"), "{states:?}");
    assert!(mesh.events("failfast", "refused") >= 2.0);
    mesh.fail(false);
    until("a trial opens the address", || mesh.get("/").status() == 200 && mesh.call("echo").status == 0);
    mesh.works();
}

#[test]
fn filters_rate_limit_refuses_and_waits() {
    let mesh = Mesh::new("[{rate_limit: {rate: 0.1, burst: 2, wait: 1s}}]");
    mesh.works();
    mesh.works();
    assert_eq!(mesh.both(), (429, thrown(400, 1, "[rateLimit] wait time exceed timeout(1s)")));
    assert_eq!(mesh.get("/").header("x-sockmesh-error"), Some("rate_limited"));
    let mesh = Mesh::new("[{rate_limit: {rate: 10, burst: 1, wait: 5s, methods: {slow: {rate: 0.1, burst: 1}}}}]");
    for _ in 0..3 {
        mesh.works();
    }
    assert!(mesh.events("rate_limit", "waited") >= 2.0);
    mesh.call("slow");
    let text = "[rateLimit] method slow wait time exceed timeout(5s)";
    assert_eq!(mesh.call("slow").thrown(), thrown(400, 1, text));
}

#[test]
fn filters_active_limit_queues_and_refuses() {
    let mesh = Mesh::new("[{active_limit: {max: 1, queue: 1, queue_timeout: 30s}}]");
    let held = mesh.hold();
    let (web, rpc) = (mesh.web, mesh.rpc);
    let queued = (
        thread::spawn(move || http::get(web, "/").unwrap()),
        thread::spawn(move || Client::open(rpc).unwrap().call(Frame::call(SERVICE, "echo", "hello")).unwrap()),
    );
    let waiting = || mesh.agent.metric("sockmesh_filter_state", &["state=\"waiting\""]);
    until("one call of each waits", || waiting() == 2.0);
    let (status, (code, errtype, text)) = mesh.both();
    assert_eq!((status, code, errtype), (503, 503, 1), "{text}");
    assert!(text.contains("active_limit: 1 calls"), "{text}");
    mesh.release();
    assert_eq!((queued.0.join().unwrap().status(), queued.1.join().unwrap().text().as_str()), (200, "hello"));
    assert_eq!((held.0.join().unwrap().status(), held.1.join().unwrap().text().as_str()), (200, "hello"));
    mesh.works();
}

#[test]
fn filters_switcher_degrades_while_a_command_turns_it() {
    let (web_server, rpc_server) = (Backend::http(|_| http::ok("in")), motan::server(|r| Some(r.answer(&r.body))));
    let (web, rpc) = (addr(), addr());
    let dir = Temp::new();
    let nodes = |pattern: &str| {
        let commands = match pattern {
            "" => String::new(),
            pattern => format!(
                "commands:\n  groups:\n    kit: {{clientCommandList: [{{index: 1, commandType: 2, pattern: '{pattern}'}}]}}\n"
            ),
        };
        let (web, rpc) = (web_server.addr(), rpc_server.addr());
        dir.write("nodes.yaml", format!("services:\n  web: [{web}]\n  {SERVICE}: [{rpc}]\n{commands}"))
    };
    let filters = "[{switcher: {name: shop.off, methods: {slow: shop.slow.off}}}]";
    let _agent = Agent::start(&format!(
        "registries: {{nodes: {{kind: file, path: {}}}}}
referers:
  - {{service: web, group: kit, protocol: http, listen: {web}, registry: nodes, filters: {filters}}}
  - {{service: {SERVICE}, group: kit, protocol: motan2, listen: {rpc}, registry: nodes, filters: {filters}}}",
        nodes("").display()
    ));
    let call = |method: &str| Client::open(rpc).unwrap().call(Frame::call(SERVICE, method, "hello")).unwrap();
    let get = || http::get(web, "/").unwrap();
    assert_eq!((get().status(), call("slow").status), (200, 0));
    nodes("shop.slow.off:true");
    until("the method is off", || call("slow").status == 1);
    let text = "cluster not available, maybe caused by degrade";
    assert_eq!((call("slow").thrown(), call("echo").status, get().status()), (thrown(500, 1, text), 0, 200));
    nodes("shop.off:true,shop.slow.off:false");
    until("the services are off", || get().status() == 503 && call("echo").status == 1);
    assert_eq!(get().header("x-sockmesh-error"), Some("degraded"));
    assert_eq!(call("echo").thrown(), thrown(500, 1, text));
    nodes("");
    until("all is as before", || get().status() == 200 && call("slow").status == 0);
}

#[test]
fn filters_mock_answers_in_each_protocol() {
    let mesh = Mesh::new(
        "[{mock: {answer: {value: {name: Ann}, status: 201, headers: {x-mock: m}}, \
         methods: {bad: {error_percent: 100, exception: {code: 30412, type: 2, text: taken}}}}}]",
    );
    let got = mesh.get("/");
    assert_eq!((got.status(), got.text().as_str(), got.header("x-mock")), (201, "{\"name\":\"Ann\"}", Some("m")));
    assert_eq!(got.header("content-type"), Some("application/json"));
    let got = mesh.call("echo");
    assert_eq!((got.status, got.serialization), (0, 6));
    assert_eq!(got.body, b"\x02\x00\x00\x00\x0f\x00\x00\x00\x04name\x00\x00\x00\x03Ann");
    assert_eq!(mesh.call("bad").thrown(), thrown(30412, 2, "taken"));
    assert_eq!((mesh.servers.0.accepted(), mesh.servers.1.accepted()), (0, 0), "nobody is asked");
    // A connection goes on after a mocked answer to a request with a body.
    let mut conn = Conn::open(mesh.web).unwrap();
    for _ in 0..3 {
        assert_eq!(conn.post("/", b"a body").unwrap().status(), 201);
    }
}

#[test]
fn filters_fault_delays_and_aborts() {
    let mesh = Mesh::new(
        "[{fault: {delay: {time: 100ms}, methods: {bad: {abort: {code: 418, text: no}}, POST: {abort: {code: 418}}}}}]",
    );
    let before = Instant::now();
    mesh.works();
    assert!(before.elapsed() >= Duration::from_millis(200));
    assert_eq!(mesh.call("bad").thrown(), thrown(418, 1, "no"));
    assert_eq!(http::post(mesh.web, "/", b"").unwrap().status(), 418);
    assert_eq!((mesh.events("fault", "delayed"), mesh.events("fault", "aborted")), (2.0, 2.0));
}

/// caller -> an agent that signs -> an agent that checks -> server, by both protocols.
#[test]
fn filters_auth_proves_the_caller_from_agent_to_agent() {
    let (tx, seen) = sync_channel(4096);
    let web_tx = tx.clone();
    let web_server = Backend::http(move |request| {
        web_tx.send(Seen::Web(request.clone())).unwrap();
        http::ok("in")
    });
    let rpc_server = motan::server(move |request| {
        tx.send(Seen::Rpc(request.clone())).unwrap();
        Some(request.answer(&request.body))
    });
    let exports = (addr(), addr());
    let check =
        "[access_log, {auth: {secrets: {shop: a-long-shared-secret, blog: another-shared-secret}, deny: [blog]}}]";
    let far = Agent::start(&format!(
        "services:
  - {{service: web, protocol: http, export: {}, local: {}, filters: {check}}}
  - {{service: {SERVICE}, group: kit, protocol: motan2, export: {}, local: {}, filters: {check}}}",
        exports.0,
        web_server.addr(),
        exports.1,
        rpc_server.addr()
    ));
    let near = |auth: &str| {
        let to = (addr(), addr());
        let filters = if auth.is_empty() { "[]".to_owned() } else { format!("[{{auth: {{{auth}}}}}]") };
        let agent = Agent::start(&format!(
            "referers:
  - {{service: web, protocol: http, listen: {}, endpoints: [{}], filters: {filters}}}
  - {{service: {SERVICE}, group: kit, protocol: motan2, listen: {}, endpoints: [{}], filters: {filters}}}",
            to.0, exports.0, to.1, exports.1
        ));
        let web = http::get(to.0, "/").unwrap();
        let frame = Frame::call(SERVICE, "echo", "hello").with("M_s", "boss");
        let rpc = Client::open(to.1).unwrap().call(frame).unwrap();
        drop(agent);
        (web, rpc)
    };
    let (web, rpc) = near("application: shop, secret: a-long-shared-secret");
    assert_eq!((web.status(), rpc.text().as_str()), (200, "hello"));
    for _ in 0..2 {
        match seen.recv_timeout(PATIENCE).unwrap() {
            Seen::Web(message) => assert_eq!(message.header("x-sockmesh-auth"), None),
            Seen::Rpc(frame) => assert_eq!((frame.meta("M_auth"), frame.meta("M_s")), ("", "shop")),
        }
    }
    let proven = until_some("both calls are logged", || {
        let lines = far.access_log();
        (lines.len() >= 2).then_some(lines)
    });
    assert!(proven.iter().all(|line| line.contains("application=shop")), "{proven:?}");

    let (web, rpc) = near("application: shop, secret: not-the-shared-secret");
    assert_eq!((web.status(), rpc.thrown().0), (401, 401));
    assert!(web.text().contains("the signature is wrong"), "{}", web.text());
    let (web, rpc) = near("");
    assert_eq!((web.status(), rpc.thrown().0), (401, 401));
    let (web, rpc) = near("application: blog, secret: another-shared-secret");
    assert_eq!(
        (web.status(), rpc.thrown()),
        (403, thrown(400, 1, &format!("auth: application `blog` may not call {SERVICE}")))
    );
}

#[test]
fn filters_auth_knows_programs_of_this_host_by_their_user() {
    let uid = rustix::process::getuid().as_raw();
    let mesh = Mesh::new(&format!("[{{auth: {{peers: [{{uid: {uid}, application: tester}}], allow: [tester]}}}}]"));
    mesh.works();
    let mesh = Mesh::new(&format!("[{{auth: {{peers: [{{uid: {}, application: tester}}]}}}}]", uid + 1));
    assert_eq!(mesh.both().0, 401);
}

#[test]
fn filters_access_log_writes_the_lines_of_motans_agent() {
    let mesh = Mesh::new("[{access_log: {format: motan, level: both}}]");
    let frame = Frame::call(SERVICE, "echo", "hello").with("M_md", "java.lang.String").with("M_rid", "42");
    Client::open(mesh.rpc).unwrap().call(frame).unwrap();
    let lines = until_some("both lines", || {
        let lines = mesh.agent.access_log();
        (lines.len() == 2).then_some(lines)
    });
    let endpoint = mesh.servers.1.addr();
    for (line, name, remote) in
        [(&lines[0], "accessLog", endpoint.to_string()), (&lines[1], "clusterAccessLog", String::new())]
    {
        let (time, rest) = line.split_once('\t').unwrap();
        assert!(time.ends_with('Z') && time.len() == 24, "{line}");
        let fields: Vec<_> = rest.split('|').collect();
        assert_eq!(fields.len(), 15, "{line}");
        assert_eq!(fields[..9], [name, "client-agent", "42", SERVICE, "echo", "java.lang.String", &remote, "10", "10"]);
        assert_eq!(fields[11..], ["true", "200", "", ""]);
    }
    mesh.fail(true);
    mesh.call("echo");
    let failed = until_some("a failed line", || mesh.agent.access_log().into_iter().nth(3));
    assert!(failed.ends_with(r#"|false|500|{"errcode":500,"errmsg":"oops","errtype":1}|"#), "{failed}");
}

#[test]
fn filters_convert_brings_a_caller_of_breeze_to_a_server_of_simple() {
    let mesh = Mesh::new("[{access_log: {format: json, arguments: true, mask: [pin]}}, {convert: {to: simple}}]");
    // 32-bit 5, 64-bit 5, "ab", 32-bit 0.1, null, bytes 00 ff, {"pin": "1234"}: in Breeze, and in Simple.
    let breeze = b"\x55\x8d\x02ab\x9f\x3d\xcc\xcc\xcd\x99\x9d\0\0\0\x02\0\xff\xdb\x01\x3f\x3f\x03pin\x041234";
    let simple = b"\x08\x0a\x09\x0a\x01\0\0\0\x02ab\x0a\x3d\xcc\xcc\xcd\0\x03\0\0\0\x02\0\xff\
        \x02\0\0\0\x0f\0\0\0\x03pin\0\0\0\x041234";
    let call = |serialization: u8, body: &[u8]| {
        let frame = Frame { serialization, body: body.to_vec(), ..Frame::default() };
        Client::open(mesh.rpc).unwrap().call(frame.with("M_p", SERVICE).with("M_m", "echo")).unwrap()
    };
    let answer = call(8, breeze);
    assert_eq!((answer.status, answer.serialization, &answer.body[..]), (0, 8, &breeze[..]));
    let Seen::Rpc(seen) = mesh.seen() else { panic!("not by HTTP") };
    assert_eq!((seen.serialization, &seen.body[..]), (6, &simple[..]));
    let line = until_some("a line", || mesh.agent.access_log().pop());
    let line: Value = serde_json::from_str(&line).unwrap();
    let shown = &line["arguments"];
    assert_eq!((&shown[0], &shown[1]["$int64"], &shown[6]["pin"]), (&5.into(), &5.into(), &"***".into()), "{line}");
    assert_eq!(line["request_bytes"], breeze.len(), "as its caller sent it");

    let (code, kind, text) = call(0, b"Hxyz").thrown();
    assert_eq!((code, kind), (400, 1));
    assert!(text.starts_with("convert: the arguments cannot be converted to simple: serialization 0"), "{text}");
    mesh.fail(true);
    assert_eq!(call(8, breeze).thrown(), thrown(500, 1, "oops"));
    mesh.fail(false);
    mesh.works();
    assert_eq!((mesh.events("convert", "arguments_converted"), mesh.events("convert", "refused")), (2.0, 1.0));
}

#[test]
fn filters_metrics_count_attempts() {
    let mesh = Mesh::new("[{metrics: {level: both}}]");
    mesh.works();
    for name in ["sockmesh_requests_total", "sockmesh_attempt_results_total"] {
        assert_eq!(mesh.agent.metric(name, &["method=\"echo\"", "outcome=\"success\""]), 1.0, "{name}");
        assert_eq!(mesh.agent.metric(name, &["method=\"GET\"", "outcome=\"success\""]), 1.0, "{name}");
    }
}

/// A collector that keeps what it is sent.
fn collector() -> (Backend, Receiver<(String, Value)>) {
    let (tx, rx) = sync_channel(4096);
    let backend = Backend::http(move |request| {
        let path = request.line.split(' ').nth(1).unwrap().to_owned();
        let _ = tx.send((path, serde_json::from_slice(&request.body).unwrap()));
        http::ok("")
    });
    (backend, rx)
}

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[test]
fn filters_tracing_continues_contexts_and_tells_an_otlp_collector() {
    let (collector, told) = collector();
    let filters = format!("[{{tracing: {{sample: 0, export: {{otlp: \"http://{}\"}}}}}}]", collector.addr());
    let mut mesh = Mesh::with(&filters, "application: shop");
    // Not recorded: nothing says so, and nothing is wrong.
    mesh.works();
    for _ in 0..2 {
        match mesh.seen() {
            Seen::Web(message) => assert!(message.header("traceparent").unwrap().ends_with("-00")),
            Seen::Rpc(frame) => assert!(frame.meta("traceparent").ends_with("-00"), "{frame:?}"),
        }
    }
    let mut conn = Conn::open(mesh.web).unwrap();
    conn.send(format!("GET /a HTTP/1.1\r\nHost: t\r\ntraceparent: {PARENT}\r\ntracestate: a=1\r\n\r\n")).unwrap();
    conn.answer().unwrap();
    let Seen::Web(message) = mesh.seen() else { panic!("a web request") };
    let sent = message.header("traceparent").unwrap().to_owned();
    assert!(sent.starts_with(&PARENT[..36]) && sent.ends_with("-01"), "{sent}");
    assert_eq!(message.header("tracestate"), Some("a=1"));
    let b3 = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1";
    Client::open(mesh.rpc).unwrap().call(Frame::call(SERVICE, "echo", "hello").with("b3", b3)).unwrap();
    let Seen::Rpc(frame) = mesh.seen() else { panic!("a call") };
    assert!(frame.meta("b3").ends_with("-1-b7ad6b7169203331"), "{frame:?}");
    mesh.fail(true);
    mesh.call("bad");
    // What is left goes out with a stop.
    assert!(mesh.agent.stop().success());
    let mut spans = Vec::new();
    while let Ok((path, body)) = told.try_recv() {
        assert_eq!(path, "/v1/traces");
        let resource = &body["resourceSpans"][0];
        assert_eq!(resource["resource"]["attributes"][0]["value"]["stringValue"], "shop");
        spans.extend(resource["scopeSpans"][0]["spans"].as_array().unwrap().clone());
    }
    assert_eq!(spans.len(), 6, "{spans:?}");
    let named = |name: &str| spans.iter().filter(|s| s["name"] == name).collect::<Vec<_>>();
    let [call, attempt] = named("web.GET")[..] else { panic!("{spans:?}") };
    assert_eq!((&call["traceId"], &call["parentSpanId"]), (&PARENT[3..35].into(), &"b7ad6b7169203331".into()));
    assert_eq!((&attempt["parentSpanId"], &attempt["spanId"]), (&call["spanId"], &sent[36..52].into()));
    let bad = named("kit.EchoService.bad");
    assert!(bad.len() == 2 && bad.iter().all(|s| s["status"]["code"] == 2), "{bad:?}");
}

#[test]
fn filters_tracing_tells_a_zipkin_collector_and_loses_spans_visibly() {
    let (collector, told) = collector();
    let filters = format!(
        "[{{tracing: {{sample: 1, propagate: [b3_multi], export: {{zipkin: \"http://{}\"}}}}}}]",
        collector.addr()
    );
    let mesh = Mesh::new(&filters);
    mesh.works();
    let Seen::Web(message) = mesh.seen() else { panic!("a web request") };
    assert_eq!(message.header("x-b3-sampled"), Some("1"));
    let mut spans = Vec::new();
    while spans.len() < 4 {
        let (path, body) = told.recv_timeout(PATIENCE).unwrap();
        assert_eq!(path, "/api/v2/spans");
        spans.extend(body.as_array().unwrap().clone());
    }
    let of_web = |kind: &str| spans.iter().find(|s| s["name"] == "web.GET" && s["kind"] == kind).unwrap();
    assert_eq!(of_web("CLIENT")["parentId"], of_web("SERVER")["id"]);
    assert_eq!(of_web("CLIENT")["id"].as_str(), message.header("x-b3-spanid"));
    assert_eq!(of_web("CLIENT")["remoteEndpoint"]["port"], mesh.servers.0.addr().port());
    // Spans are exported once for both services; the figure stands with each.
    until("the spans are counted", || mesh.events("tracing", "spans_exported") == 8.0);
    drop(collector);
    mesh.works();
    until("spans are lost and counted", || mesh.events("tracing", "spans_failed") >= 4.0);
    mesh.works();
}
