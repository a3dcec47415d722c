use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::Stdio,
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{
    call::{Body, Call, CallError, ErrorKind, Head, Request, Response, ResponseHead, Retry, Status},
    capture::port::Port,
    cluster::Parts,
    config::{self, Named},
    endpoint::{Connector, Endpoint},
    filter::Direction,
    kind::BuildCx,
    metrics::prometheus::check,
};

/// Endpoints with an odd port answer, others refuse.
struct OddAnswers;

impl Connector for OddAnswers {
    fn call<'a>(&'a self, to: &'a Arc<Endpoint>, _: &'a mut Request) -> BoxFuture<'a, Result<Response, CallError>> {
        Box::pin(async move {
            if to.addr.port().is_multiple_of(2) {
                return Err(CallError::upstream(ErrorKind::Connect, Retry::NotSent, "refused"));
            }
            let (head, body) = (ResponseHead::None, Body::Full("done".into()));
            Ok(Response { status: Status::Ok, head, body, endpoint: Some(to.addr) })
        })
    }

    fn default_timeout(&self) -> Duration {
        Duration::from_secs(1)
    }
}

fn cluster(service: &str, version: &str, ports: &[u16]) -> Arc<Cluster> {
    let key = ServiceKey { service: service.to_owned(), group: "idc-a".to_owned(), version: version.to_owned() };
    let config = config::Cluster { lb: Named::plain("round_robin"), ..config::Cluster::default() };
    let cluster = Cluster::build(Parts {
        key,
        direction: Direction::Outbound,
        protocol: "motan2",
        config: &config,
        connector: Arc::new(OddAnswers),
        introduce: None,
        own: crate::stream::OwnSockets::default(),
        cx: &BuildCx::default(),
    });
    let cluster = Arc::new(cluster.unwrap());
    let instances = ports.iter().map(|p| model::Instance::at(format!("10.0.0.1:{p}"))).collect();
    cluster.apply(&model::Snapshot { revision: 1, instances, stale: None });
    cluster
}

async fn call(cluster: &Arc<Cluster>, method: &str) {
    let call = Call::new("web".into(), method.into());
    let _ = cluster.call(&mut Request { call, head: Head::None, body: Body::Full("hello".into()) }).await;
}

/// An API and the ends that `app` holds.
struct Bench {
    handles: Arc<Handles>,
    at: SocketAddr,
    commands: mpsc::Receiver<Command>,
    ready: watch::Sender<bool>,
}

async fn bench(clusters: Vec<Arc<Cluster>>) -> Bench {
    bench_with(clusters, Motan::default()).await
}

async fn bench_with(clusters: Vec<Arc<Cluster>>, motan: Motan) -> Bench {
    let (ready, is_ready) = watch::channel(true);
    let (sender, commands) = mpsc::channel(1);
    let handles = Arc::new(Handles {
        enrolled: Arc::default(),
        spaces: Arc::default(),
        application: "demo".into(),
        zone: "".into(),
        name: "test".to_owned(),
        version: "1.2.3",
        started: Instant::now(),
        clusters: Arc::new(ArcSwap::from_pointee(clusters)),
        stale: Arc::default(),
        live: Arc::default(),
        capture: Arc::new(Port),
        capture_reason: "asked for".to_owned(),
        config: Arc::new(ArcSwap::from_pointee(ConfigInfo {
            path: "mesh.yaml".into(),
            generation: 3,
            loaded_at: SystemTime::now(),
            last_error: None,
        })),
        ready: is_ready,
        commands: sender,
        counters: Arc::default(),
        access_log: None,
        names: Arc::default(),
        guards: Guards::default(),
        steered: Arc::default(),
        availability: Availability::default(),
        registrations: Arc::default(),
        graphite: Arc::default(),
        rows: Arc::default(),
        series: Arc::default(),
        motan,
    });
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(serve(Listener::Tcp(listener), handles.clone()));
    Bench { handles, at, commands, ready }
}

/// Sends raw bytes, returns the status and the body.
async fn raw(at: SocketAddr, request: &str) -> (u16, String) {
    let mut io = tokio::net::TcpStream::connect(at).await.unwrap();
    io.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.unwrap();
    split(&answer)
}

fn split(answer: &str) -> (u16, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

async fn ask(at: SocketAddr, method: &str, path: &str) -> (u16, String) {
    raw(at, &format!("{method} {path} HTTP/1.1\r\nHost: {at}\r\n\r\n")).await
}

async fn get<T: serde::de::DeserializeOwned>(at: SocketAddr, path: &str) -> T {
    let (status, body) = ask(at, "GET", path).await;
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path}: {e}\n{body}"))
}

#[tokio::test]
async fn shows_services_and_endpoints_with_reasons() {
    let web = cluster("web", "", &[81, 82]);
    let bench = bench(vec![web.clone(), cluster("empty", "", &[])]).await;
    // The window begins with a sample from before the calls.
    while get::<view::Stat>(bench.at, "/stat").await.window_seconds == 0.0 {}
    for _ in 0..8 {
        call(&web, "echo").await;
    }
    bench.handles.stale.set(&web.info.key, Some("nodes.yaml: line 3: broken"));

    let stat: view::Stat = get(bench.at, "/stat").await;
    assert_eq!((stat.agent.name.as_str(), stat.agent.generation, stat.agent.ready), ("test", 3, true));
    let service = &stat.services[0];
    assert_eq!((service.service.as_str(), service.figures.started, service.figures.failed), ("web", 8, 0));
    assert_eq!((service.figures.success, service.figures.in_flight), (Some(1.0), 0));
    assert!(service.figures.p50_seconds.is_some() && service.figures.rate > 0.0, "{service:?}");
    assert_eq!((service.request_bytes, service.response_bytes), (0, 32));
    let out = service.endpoints.iter().find(|e| e.address.port() == 82).unwrap();
    assert_eq!((out.state.as_str(), out.reason.as_deref()), ("out", Some("connections failed")));
    assert_eq!((out.figures.started, out.figures.failed), (2, 2));

    let rows: view::Endpoints = get(bench.at, "/endpoints").await;
    let states: Vec<_> = rows.endpoints.iter().map(|r| (r.endpoint.address.port(), r.endpoint.available)).collect();
    assert_eq!(states, [(81, true), (82, false)]);
    assert_eq!(rows.endpoints[0].stale.as_deref(), Some("nodes.yaml: line 3: broken"));
    let troubles: Vec<_> = rows.troubles.iter().map(|t| format!("{}: {}", t.service, t.message)).collect();
    assert_eq!(
        troubles,
        ["idc-a/web: the list of endpoints is old: nodes.yaml: line 3: broken", "idc-a/empty: no endpoint is known"]
    );
}

#[tokio::test]
async fn metrics_are_what_a_scraper_accepts_and_the_manual_lists_them_all() {
    // The same service twice, and an odd name: samples must stay apart and labels whole.
    let (web, odd) = (cluster("web", "", &[81, 82]), cluster("a\"b\\c\nd", "2", &[81]));
    let bench = bench(vec![web.clone(), cluster("web", "", &[81]), odd.clone()]).await;
    for _ in 0..8 {
        call(&web, "echo").await;
    }
    call(&web, "fail\n\"{}").await;
    call(&odd, "echo").await;
    bench.handles.counters.accepted.fetch_add(5, Relaxed);
    bench.handles.stale.set(&odd.info.key, Some("old"));
    let (status, text) = ask(bench.at, "GET", "/metrics").await;
    assert_eq!(status, 200);
    let page = check::parse(&text);
    let web = [("service", "web"), ("group", "idc-a"), ("direction", "outbound"), ("protocol", "motan2")];
    let of = |more: &[(&'static str, &'static str)]| [&web, more].concat();
    let value = |name: &str, more: &[_]| page.value(name, &of(more));
    let ok = [("method", "echo"), ("code", "2xx"), ("outcome", "success")];
    assert_eq!(value("sockmesh_requests_total", &ok), Some(8.0));
    assert_eq!(value("sockmesh_request_duration_seconds_count", &[("method", "echo")]), Some(8.0));
    assert_eq!(value("sockmesh_retries_total", &[("method", "echo")]), Some(2.0));
    let out = [("endpoint", "10.0.0.1:82"), ("endpoint_group", "idc-a")];
    assert_eq!(value("sockmesh_endpoint_up", &out), Some(0.0));
    assert_eq!(value("sockmesh_endpoint_failures_total", &out), Some(2.0));
    assert_eq!(value("sockmesh_service_calls_total", &[("nth", "2"), ("outcome", "success")]), Some(0.0));
    assert_eq!(page.value("sockmesh_connections_accepted_total", &[]), Some(5.0));
    assert!(page.value("sockmesh_process_resident_bytes", &[]) > Some(1e6));
    assert_eq!(page.value("sockmesh_build_info", &[("version", "1.2.3")]), Some(1.0));
    let odd = page.samples.iter().filter(|s| s.labels.get("service").is_some_and(|s| s == "a\"b\\c\nd")).count();
    assert!(odd > 10, "{odd}");

    let heads = export::heads();
    for name in page.types.keys() {
        assert!(heads.iter().any(|(head, ..)| head == name), "{name} is missing in `heads`");
    }
    let manual = include_str!("../../../docs/operate.md");
    for (name, kind, help, labels) in heads {
        let kind = format!("{kind:?}").to_lowercase();
        let row = format!("| `{name}` | {kind} | {} | {help} |", if labels.is_empty() { "–" } else { labels });
        assert!(manual.contains(&row), "docs/operate.md lacks the row\n{row}");
    }
    for (method, path, what) in routes::ROUTES {
        let row = format!("| `{method} {path}` | {what} |");
        assert!(manual.contains(&row), "docs/operate.md lacks the row\n{row}");
    }
}

#[tokio::test]
async fn tells_what_it_is_and_whether_it_serves() {
    let bench = bench(Vec::new()).await;
    let version: view::Version = get(bench.at, "/version").await;
    assert_eq!(version.version, "1.2.3");
    let config: view::Config = get(bench.at, "/config").await;
    assert_eq!((config.path.as_str(), config.generation, config.capture.as_str()), ("mesh.yaml", 3, "port"));
    let peer = SocketAddr::from(([127, 0, 0, 1], 4000));
    let _live = bench.handles.live.add(peer, peer, (7, "curl".to_owned()), true, None);
    let sockets: view::Sockets = get(bench.at, "/sockets").await;
    assert_eq!((sockets.sockets[0].pid, sockets.sockets[0].captured), (7, true));

    assert_eq!(ask(bench.at, "GET", "/ready").await.0, 200);
    bench.ready.send_replace(false);
    assert_eq!(ask(bench.at, "GET", "/ready").await.0, 503);
    assert_eq!(ask(bench.at, "GET", "/health").await.0, 200);
    assert_eq!(raw(bench.at, "HEAD /health HTTP/1.0\r\n\r\n").await, (200, String::new()));

    let (status, body) = ask(bench.at, "GET", "/sttas").await;
    assert_eq!(status, 404);
    let error: view::Error = serde_json::from_str(&body).unwrap();
    assert!(error.error.contains("/sttas") && error.error.contains("GET /stat"), "{body}");
}

#[tokio::test]
async fn commands_need_a_post_and_answer_what_became_of_them() {
    let mut bench = bench(Vec::new()).await;
    for path in ["/reload", "/drain"] {
        assert_eq!(ask(bench.at, "GET", path).await.0, 405, "reading must not change anything");
    }
    assert_eq!(ask(bench.at, "POST", "/stat").await.0, 405);
    assert!(bench.commands.try_recv().is_err());

    for (result, status, text) in [
        (Ok("2 services called".to_owned()), 200, "2 services called"),
        (Err("mesh.yaml:3: unknown key".to_owned()), 422, "mesh.yaml:3: unknown key"),
    ] {
        let asking = tokio::spawn(async move { ask(bench.at, "POST", "/reload").await });
        let Some(Command::Reload(answer)) = bench.commands.recv().await else { panic!("no reload") };
        answer.send(result).unwrap();
        let (got, body) = asking.await.unwrap();
        assert_eq!(got, status);
        assert!(body.contains(text), "{body}");
    }
    assert_eq!(ask(bench.at, "POST", "/drain").await.0, 202);
    assert_eq!(ask(bench.at, "POST", "/drain").await.0, 409, "the queue of one is full");
    assert!(matches!(bench.commands.recv().await, Some(Command::Drain)));
    drop(bench.commands);
    assert_eq!(ask(bench.at, "POST", "/reload").await.0, 503);
}

#[tokio::test]
async fn web_pages_and_oversized_requests_get_nothing() {
    let mut bench = bench(Vec::new()).await;
    let port = bench.at.port();
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8002", "127.9.9.9:80"] {
        let request = format!("GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(raw(bench.at, &request).await.0, 200, "{host}");
    }
    for host in ["evil.example", "evil.example:8002", "127.0.0.1.evil.example", "10.0.0.1", "", "[::1", "localhost:x"] {
        let request = format!("POST /drain HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(raw(bench.at, &request).await.0, 403, "{host}");
    }
    for lines in ["", "Host: localhost\r\nHost: localhost\r\n", "Host: localhost\r\nOrigin: http://localhost\r\n"] {
        assert_eq!(raw(bench.at, &format!("POST /drain HTTP/1.1\r\n{lines}\r\n")).await.0, 403, "{lines}");
    }
    let body = "x".repeat(5000);
    let large = format!("POST /drain HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Length: 5000\r\n\r\n{body}");
    assert_eq!(raw(bench.at, &large).await.0, 413);
    let head = format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    assert_eq!(raw(bench.at, &head).await.0, 431);
    assert!(bench.commands.try_recv().is_err(), "no command came through");
}

#[tokio::test(start_paused = true)]
async fn silent_clients_are_sent_away_and_make_room() {
    let bench = bench(Vec::new()).await;
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(tokio::net::TcpStream::connect(bench.at).await.unwrap());
    }
    // Waits in the backlog until the head timeout of the others makes room.
    assert_eq!(ask(bench.at, "GET", "/health").await.0, 200);
    let mut end = Vec::new();
    silent[0].read_to_end(&mut end).await.unwrap();
}

/// Not a test of its own: the process that `answers_without_a_free_descriptor` starts.
#[test]
fn out_of_descriptors() {
    if std::env::var_os("SOCKMESH_TEST_OUT_OF_DESCRIPTORS").is_none() {
        return;
    }
    use rustix::process::{Resource, Rlimit, setrlimit};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let bench = bench(vec![cluster("web", "", &[81])]).await;
        // Answers once, so that everything that is opened lazily is open.
        assert_eq!(ask(bench.at, "GET", "/metrics").await.0, 200);
        setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: Some(64) }).unwrap();
        let mut taken = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            taken.push(file);
        }
        println!("port {}", bench.at.port());
        // Until the parent has seen enough and closes our input.
        let mut stdin = std::io::stdin();
        tokio::task::spawn_blocking(move || stdin.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
        drop(taken);
    });
}

#[test]
fn answers_without_a_free_descriptor() {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["admin::tests::out_of_descriptors", "--exact", "--nocapture"])
        .env("SOCKMESH_TEST_OUT_OF_DESCRIPTORS", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let port = lines.find_map(|l| l.unwrap().split_once("port ").map(|(_, p)| p.parse::<u16>().unwrap())).unwrap();
    // One after another and several at once, more often than there are descriptors in the reserve.
    for _ in 0..5 {
        let mut open: Vec<_> = (0..4)
            .map(|_| {
                let io = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
                io.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                io
            })
            .collect();
        for io in &mut open {
            io.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            let mut answer = String::new();
            io.read_to_string(&mut answer).unwrap();
            let (status, body) = split(&answer);
            assert_eq!(status, 200);
            assert!(body.contains("sockmesh_process_resident_bytes"), "{body}");
        }
    }
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

/// motan-go's calls are answered in its forms, and the agent's own API goes on beside them.
#[tokio::test]
async fn management_calls_have_the_forms_of_motan_go() {
    let web = cluster("web", "g", &[81]);
    let motan = Motan { enabled: true, debug: Debug::new(true), ..Motan::default() };
    motan.switchers.register("feature", true);
    let mut bench = bench_with(vec![web], motan).await;
    let at = bench.at;
    let said = |path: &'static str| async move { ask(at, "GET", path).await };
    assert_eq!(said("/").await, (200, "OK".to_owned()));
    assert_eq!(said("/503").await, (200, "ok.".to_owned()));
    assert_eq!(said("/anything").await, (503, "Service Unavailable".to_owned()));
    assert_eq!(said("/registry/status").await.1, r#"{"status":"unregister-success","registryStatus":null}"#);
    assert_eq!(said("/200").await, (200, "ok.".to_owned()));
    assert!(bench.handles.availability.get());
    assert_eq!(said("/version").await.1, "1.2.0");
    let own = format!("GET /version HTTP/1.1\r\nHost: {at}\r\nAccept: application/json\r\n\r\n");
    assert!(raw(at, &own).await.1.contains("1.2.3"));
    assert!(said("/ready").await.1.contains("ready"));
    assert_eq!(said("/switcher/set?name=feature&value=f").await.1, "Set switcher feature value to f !");
    assert_eq!(said("/switcher/get?name=feature").await.1, "Switcher value for feature is false!");
    assert_eq!(said("/switcher/get?name=other").await.1, "Not a registered switcher, name: other");
    assert_eq!(said("/switcher/getAll").await.1, r#"{"feature":false}"#);
    assert_eq!(
        said("/logConfig/get").await.1,
        "{\"code\":200,\"body\":\"{\\\"level\\\":\\\"info\\\",\\\"accessLog\\\":false,\\\"metricsLog\\\":false}\"}\n"
    );
    // Meta is the process's, which other tests share: only what changes nothing.
    assert_eq!(said("/meta/get?key=%3C").await.1, r#"{"result":"ok","data":{"\u003c":""}}"#);
    assert_eq!(said("/meta/delete?key=b").await.1, r#"{"result":"ok","data":"ok"}"#);
    assert_eq!(said("/meta/getAll").await.1, r#"{"result":"ok","data":{"meta":{}}}"#);
    assert_eq!(
        said("/getReferService").await.1,
        r#"{"code":200,"body":{"service":[{"name":"idc-a_g_motan2_web","status":true}]}}"#
    );
    assert_eq!(said("/getAllService").await.1, r#"{"dynamic_services":[],"services":null}"#);
    assert_eq!(said("/registry/info").await.1, r#"{"body":{"mesh_port":0},"code":200,"message":"ok"}"#);
    assert_eq!(said("/registry/info?x").await.0, 404);
    let post = |body: &str| {
        format!("POST /registry/subscribe HTTP/1.1\r\nHost: {at}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let (status, body) = raw(at, &post(r#"{"path":"s","parameters":{}}"#)).await;
    assert_eq!((status, body.as_str()), (400, r#"{"code":400,"message":"registry not found"}"#));
    let status: serde_json::Value = serde_json::from_str(&said("/status").await.1).unwrap();
    assert_eq!((&status["code"], &status["body"]["status"]), (&200.into(), &200.into()));
    let info: serde_json::Value = serde_json::from_str(&said("/runtime/info?keys=clusters").await.1).unwrap();
    assert_eq!(
        (&info["instanceType"], &info["clusters"]["idc-a_g_motan2_web"]["refererSize"]),
        (&"motan-agent".into(), &1.into())
    );
    assert!(info.get("basic").is_none());

    // Every call that the table calls supported is answered by something of its own.
    use crate::config::motan::{Fate, PARTS};
    let calls = PARTS.iter().find(|p| p.title == "Management calls").unwrap();
    said("/503").await;
    assert!(calls.rows.len() > 30);
    for row in calls.rows.iter().filter(|row| !matches!(row.name, "/" | "/200" | "/reload/clusters")) {
        // Half a minute is its usual time.
        let path = if row.name == "/debug/mesh/trace" { "/debug/mesh/trace?seconds=1" } else { row.name };
        let (status, _) = said(path).await;
        assert_ne!(status, 503, "{}: is the status page", row.name);
        assert_eq!(status == 501, row.fate == Fate::Refused, "{}", row.name);
    }
    let asked = tokio::spawn(async move { ask(at, "GET", "/reload/clusters").await.1 });
    let Some(Command::Reload(answer)) = bench.commands.recv().await else { panic!("a reload") };
    answer.send(Err("line 3: <bad>".to_owned())).unwrap();
    assert_eq!(asked.await.unwrap(), "{\"code\":500,\"body\":\"line 3: \\u003cbad\\u003e\"}\n");
}

#[tokio::test]
async fn motan_gos_pages_for_debugging_are_there_only_with_their_switch() {
    let with = async |debug: Debug| {
        let motan = Motan { enabled: true, debug, ..Motan::default() };
        bench_with(vec![cluster("web", "g", &[81])], motan).await
    };
    let off = with(Debug::default()).await;
    for page in ["/debug/pprof/", "/debug/stat/process", "/debug/pprof/heap", "/debug/pprof/sw"] {
        let (status, said) = ask(off.at, "GET", page).await;
        assert!(
            status == 403 && said.contains("debug_pages: true") && said.contains("debugPages: true"),
            "{page}: {said}"
        );
    }
    let on = with(Debug::new(true)).await;
    let said = async |page: &str| ask(on.at, "GET", page).await;
    assert!(said("/debug/pprof/").await.1.contains("/debug/mesh/trace\t"));
    assert!(said("/debug/pprof/cmdline").await.1.contains('\0'));
    let (status, told) = said("/debug/pprof/heap").await;
    assert!(status == 501 && told.contains("/metrics"), "{told}");
    let json = async |page: &str| -> serde_json::Value { serde_json::from_str(&said(page).await.1).unwrap() };
    let host = json("/debug/stat/system").await;
    assert!(host["cpuCores"].as_u64() > Some(0) && host["memInfo"]["memTotal(MB)"].as_u64() > Some(0), "{host}");
    assert!(host["netInfo"].as_array().unwrap().iter().any(|link| link["name"] == "lo"), "{host}");
    let process = json("/debug/stat/process").await;
    assert!(process["numThreads"].as_u64() > Some(0) && process["usedMemory(MB)"].as_f64() > Some(0.0), "{process}");
    assert!(
        process["connections"]["LISTEN"].as_u64() > Some(0) && process["io"]["writsTotal(B)"].is_u64(),
        "{process}"
    );
    let own = on.at.to_string();
    let connections = json("/debug/stat/connections").await;
    assert!(connections.as_array().unwrap().iter().any(|c| c["localAddr"] == own && c["status"] == "LISTEN"));
    assert!(json("/debug/stat/openFiles").await.is_array());
    let none = said("/debug/mesh/trace?seconds=1&service=web").await.1;
    assert!(none.starts_with("mesh trace finish. trace size:0\u{ff0c} time unit:ns\n"), "{none}");
    let switch = |to: &str| format!("GET /debug/pprof/sw HTTP/1.1\r\nHost: {own}\r\nctr: {to}\r\n\r\n");
    assert_eq!(raw(on.at, &switch("cp")).await, (200, "F".to_owned()));
    assert_eq!(said("/debug/pprof/").await.0, 403);
    assert_eq!(raw(on.at, &switch("op")).await, (200, "T".to_owned()));
    assert_eq!(raw(on.at, &switch("x")).await.0, 400);
    assert_eq!(said("/debug/pprof/").await.0, 200);
}

#[tokio::test]
async fn endpoints_to_leave_out_are_set_as_later_versions_of_motan_go_have_it() {
    let motan = Motan { enabled: true, ..Motan::default() };
    let bench = bench_with(vec![], motan).await;
    let set = |config: &str| {
        let body = format!("config={}", form_urlencoded::byte_serialize(config.as_bytes()).collect::<String>());
        format!(
            "POST /refers/filter/set HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n{body}",
            bench.at,
            body.len()
        )
    };
    let rules = r#"[{"group":"g","service":"","mode":"exclude","rule":"10.1.,10.2.0.0/16"}]"#;
    assert_eq!(raw(bench.at, &set(rules)).await, (200, "{\"code\":200,\"body\":\"ok\"}\n".to_owned()));
    let (status, said) = ask(bench.at, "GET", "/refers/filter/get").await;
    assert_eq!((status, said), (200, format!("{{\"code\":200,\"body\":{rules}}}\n")));
    for wrong in ["nonsense", r#"[{"mode":"exclude"}]"#, r#"[{"mode":"x","rule":"10."}]"#] {
        assert_eq!(raw(bench.at, &set(wrong)).await.0, 400, "{wrong}");
    }
    assert!(ask(bench.at, "GET", "/refers/filter/get").await.1.contains("10.2.0.0/16"));
    assert_eq!(raw(bench.at, &set("[]")).await.0, 200);
    assert_eq!(ask(bench.at, "GET", "/refers/filter/get").await.1, "{\"code\":200,\"body\":[]}\n");
}
