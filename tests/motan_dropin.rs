//! In place of a motan-go agent: its file, its flags, its ports, its management calls (`docs/motan.md`).

use std::{fs, net::SocketAddr};

use host::{
    Agent, Backend, Cmd, Proc, Temp, agent, free_port, http,
    motan::{self, Client, Frame},
    until,
};
use serde_json::{Value, json};

const SERVICE: &str = "kit.EchoService";

/// An agent that was started as motan-go's.
struct Dropin {
    proc: Proc,
    dir: Temp,
    cmd: Cmd,
    forward: SocketAddr,
    export: SocketAddr,
    management: SocketAddr,
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

impl Dropin {
    /// Starts one with `file`, in which `DIR` stands for its folder.
    #[track_caller]
    fn start(file: &str, more: &[&str]) -> Self {
        let dir = Temp::new();
        let text = file.replace("DIR", &dir.path().display().to_string());
        let config = dir.write("agent.yaml", text);
        let [forward, export, management] = [free_port(), free_port(), free_port()];
        // As scripts start it: flags alone, with one dash.
        let cmd = Cmd::new(agent::binary())
            .arg("-c")
            .arg(config.display())
            .args(["-port", &forward.to_string(), "-eport", &export.to_string()])
            .args(["-mport", &management.to_string(), "-localIP", "127.0.0.1"])
            .args(more);
        let proc = cmd.spawn(&dir.file("agent.log"));
        let mut dropin = Self { proc, dir, cmd, forward: at(forward), export: at(export), management: at(management) };
        dropin.wait();
        dropin
    }

    #[track_caller]
    fn wait(&mut self) {
        until("the agent is ready", || {
            let end = self.proc.ended();
            assert!(end.is_none(), "the agent ended: {end:?}\n{}", self.proc.said());
            http::get(self.management, "/ready").is_ok_and(|answer| answer.status() == 200)
        });
    }

    /// Kills it, and starts it again with further flags.
    #[track_caller]
    fn crash(&mut self, more: &[&str]) {
        self.proc.signal(rustix::process::Signal::KILL);
        self.proc.wait();
        self.proc = self.cmd.clone().args(more).spawn(&self.dir.file("agent.log"));
        self.wait();
    }

    #[track_caller]
    fn ask(&self, path: &str) -> (u16, String) {
        let answer = http::get(self.management, path).unwrap();
        (answer.status(), answer.text())
    }

    #[track_caller]
    fn json(&self, path: &str) -> Value {
        let (_, text) = self.ask(path);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}\n{text}"))
    }

    #[track_caller]
    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let answer = http::post(self.management, path, body.to_string().as_bytes()).unwrap();
        (answer.status(), serde_json::from_str(&answer.text()).unwrap())
    }

    #[track_caller]
    fn call(&self, service: &str, text: &str) -> Frame {
        call(self.forward, Frame::call(service, "echo", text))
    }
}

impl Drop for Dropin {
    fn drop(&mut self) {
        if self.proc.ended().is_none() {
            self.proc.stop();
        }
    }
}

#[track_caller]
fn call(to: SocketAddr, frame: Frame) -> Frame {
    Client::open(to).unwrap().call(frame).unwrap()
}

/// A program that answers with what it was told, and says who it is.
fn server(name: &'static str) -> Backend {
    motan::server(move |request| Some(request.answer(&request.body).with("by", name)))
}

/// A file as a site has it: one refer to `nodes`, one service whose program is `local`.
fn file(nodes: SocketAddr, local: SocketAddr, service: u16) -> String {
    format!(
        "motan-agent:
  application: shop
  pidfile: DIR/agent.pid
  runtime_dir: DIR/runtime
  snapshot_dir: DIR/snapshot
  log_dir: DIR/logs
  defaultFilter: accessLog,metrics
motan-registry:
  nodes: {{protocol: direct, host: {}, port: {}}}
motan-basicRefer:
  shared: {{group: kit-group, protocol: motan2, registry: nodes, requestTimeout: 2000}}
motan-refer:
  echo: {{path: {SERVICE}, basicRefer: shared}}
motan-service:
  local: {{path: kit.Local, group: kit-group, registry: nodes, export: 'motan2:{service}', proxy: 'motan2:{}'}}
switcher:
  feature: true
",
        nodes.ip(),
        nodes.port(),
        local.port(),
    )
}

#[test]
fn motan_dropin_a_file_of_motan_go_serves_on_its_ports() {
    let (nodes, local, service) = (server("node"), server("local"), free_port());
    let mut dropin = Dropin::start(&file(nodes.addr(), local.addr(), service), &[]);
    let answer = dropin.call(SERVICE, "hello");
    assert_eq!((answer.text().as_str(), answer.meta("by")), ("hello", "node"));
    assert_eq!(answer.meta("x-forwarded-for"), nodes.addr().to_string());
    // A group that nobody has is overwritten: there is one refer of that path.
    let other = call(dropin.forward, Frame::call(SERVICE, "echo", "hi").with("M_g", "elsewhere"));
    assert_eq!(other.text(), "hi");
    let (code, kind, message) = dropin.call("kit.NoSuchService", "hello").thrown();
    assert_eq!((code, kind), (400, 1));
    assert_eq!(message, "cluster not found. cluster: cluster not found. service: kit.NoSuchService");
    let provided = call(at(service), Frame::call("kit.Local", "echo", "in").with("M_g", "kit-group"));
    assert_eq!((provided.text().as_str(), provided.meta("by")), ("in", "local"));

    // Calls are served either way: the status is for registries.
    assert_eq!(dropin.ask("/"), (503, "Service Unavailable".to_owned()));
    assert_eq!(dropin.ask("/200"), (200, "ok.".to_owned()));
    assert_eq!(dropin.ask("/no/such/page"), (200, "OK".to_owned()));
    assert_eq!(dropin.ask("/version").1, "1.2.0");
    assert!(dropin.ask("/getConfig").1.contains("motan-basicRefer:"));
    assert_eq!(dropin.ask("/switcher/get?name=feature").1, "Switcher value for feature is true!");
    let refers = dropin.json("/getReferService");
    assert_eq!(
        refers,
        json!({"code": 200, "body": {"service": [{"name": format!("kit-group_1.0_motan2_{SERVICE}"), "status": true}]}})
    );
    let services = dropin.json("/getAllService");
    assert_eq!(
        (&services["services"][0]["path"], &services["services"][0]["port"], &services["dynamic_services"]),
        (&json!("kit.Local"), &json!(service), &json!([]))
    );
    until("the period is over", || dropin.json("/status")["body"]["service_period_call_count"] == 1);
    let info = dropin.json("/runtime/info");
    assert_eq!(info["clusters"][format!("kit-group_1.0_motan2_{SERVICE}")]["refererSize"], 1);
    assert_eq!(dropin.json("/logConfig/set?level=debug")["body"], "set log level:debug");
    assert_eq!(dropin.json("/logConfig/get")["body"], r#"{"level":"debug","accessLog":true,"metricsLog":false}"#);

    // What operators say of it is told to callers who ask the meta service.
    let meta = || {
        let ask = Frame::call("com.weibo.api.motan.runtime.meta.MetaService", "getDynamicMeta", "");
        call(at(service), Frame { body: Vec::new(), ..ask }.with("M_fws", "y"))
    };
    assert_eq!(meta().body, [2, 0, 0, 0, 0]);
    assert_eq!(dropin.ask("/meta/update?META_WEIGHT=7").1, r#"{"result":"ok","data":"ok"}"#);
    assert_eq!(meta().body, b"\x02\0\0\0\x14\0\0\0\x0bMETA_WEIGHT\0\0\0\x017");
    assert_eq!(dropin.json("/meta/getAll")["data"], json!({"meta": {"META_WEIGHT": "7"}}));

    // Its own verbs work beside that.
    let said = agent::sockmesh("version").args(["--admin", &dropin.management.to_string()]).run().ok();
    assert!(said.contains(env!("CARGO_PKG_VERSION")), "{said}");
    assert_eq!(fs::read_to_string(dropin.dir.file("agent.pid")).unwrap(), dropin.proc.pid().to_string());
    let log = dropin.dir.file("logs/sockmesh-access.log");
    until("the access log has the calls", || fs::read_to_string(&log).is_ok_and(|text| text.contains(SERVICE)));
    assert!(dropin.proc.stop().success(), "{}", dropin.proc.said());
    assert!(!dropin.dir.file("agent.pid").exists());
    assert_eq!(fs::read_to_string(dropin.dir.file("runtime/status")).unwrap(), "200");
}

#[test]
fn motan_dropin_services_come_and_go_while_it_runs_and_come_back() {
    let (nodes, program) = (server("node"), server("program"));
    let mut dropin = Dropin::start(&file(nodes.addr(), nodes.addr(), free_port()), &[]);
    let node = |path: &str, port: u16| {
        json!({"protocol": "motan2", "host": "", "port": port, "path": path, "group": "kit-group",
            "parameters": {"proxyRegistry": format!("direct://127.0.0.1:{}", nodes.addr().port()), "filter": "af_metrics,cut"}})
    };
    let ok = (200, json!({"code": 200, "message": "ok"}));
    let lost = json!({"path": "a", "parameters": {"proxyRegistry": "direct://nowhere:1"}});
    assert_eq!(dropin.post("/registry/register", &lost), (400, json!({"code": 400, "message": "registry not found"})));
    assert_eq!(
        dropin.json("/registry/info"),
        json!({"body": {"mesh_port": dropin.forward.port()}, "code": 200, "message": "ok"})
    );

    assert_eq!(dropin.post("/registry/register", &node("kit.Later", program.addr().port())), ok);
    let later = || Frame::call("kit.Later", "echo", "x").with("M_g", "kit-group");
    assert_eq!(call(dropin.export, later()).meta("by"), "program");
    assert_eq!(dropin.post("/registry/subscribe", &node("kit.Wanted", 0)), ok);
    assert_eq!(dropin.call("kit.Wanted", "x").meta("by"), "node");
    let list = dropin.json("/registry/list");
    let listed = &list["body"]["register_nodes"][0];
    assert_eq!((&listed["path"], &listed["port"]), (&json!("kit.Later"), &json!(dropin.export.port())));
    assert_eq!(listed["parameters"]["proxy"], format!("motan2:{}", program.addr().port()));
    assert_eq!(listed["parameters"]["filter"], "accessLog,metrics");
    assert_eq!(list["body"]["subscribe_nodes"][0]["path"], "kit.Wanted");
    // Once more changes nothing.
    assert_eq!(dropin.post("/registry/register", &node("kit.Later", program.addr().port())), ok);
    assert_eq!(dropin.json("/registry/list"), list);
    let saved: Value = serde_json::from_slice(&fs::read(dropin.dir.file("runtime/registry.snap")).unwrap()).unwrap();
    assert_eq!(saved, list["body"]);
    assert_eq!(dropin.ask("/200").0, 200);
    until("the status is kept", || fs::read_to_string(dropin.dir.file("runtime/status")).is_ok_and(|s| s == "200"));

    dropin.crash(&["-recover"]);
    assert_eq!(dropin.ask("/").0, 200, "the status came back");
    assert_eq!(call(dropin.export, later()).meta("by"), "program");
    assert_eq!(dropin.call("kit.Wanted", "x").meta("by"), "node");
    assert_eq!(dropin.post("/registry/unregister", &node("kit.Later", program.addr().port())), ok);
    assert_eq!(dropin.json("/registry/list")["body"]["register_nodes"], json!([]));
    until("nobody listens any more", || std::net::TcpStream::connect(dropin.export).is_err());

    // A file without a valid status is no 200.
    fs::write(dropin.dir.file("runtime/status"), "").unwrap();
    dropin.crash(&["-recover"]);
    assert_eq!(dropin.ask("/").0, 503);
    dropin.crash(&["-recover=false"]);
    assert_eq!(dropin.json("/registry/list")["body"]["subscribe_nodes"], json!([]));
}

#[test]
fn motan_dropin_a_taken_port_ends_the_start() {
    let (nodes, taken) = (server("node"), Backend::echo());
    let dir = Temp::new();
    let text = file(nodes.addr(), nodes.addr(), free_port()).replace("DIR", &dir.path().display().to_string());
    let config = dir.write("agent.yaml", text);
    for flag in ["-mport", "-port"] {
        let ports = ["-port", "-mport", "-eport"].map(|f| match f == flag {
            true => format!("{f}={}", taken.addr().port()),
            false => format!("{f}={}", free_port()),
        });
        let said = agent::sockmesh("run -c").arg(config.display()).args(ports).run().failed();
        assert!(said.contains("cannot listen on"), "{flag}: {said}");
    }
}

#[test]
fn motan_dropin_management_takes_a_unix_socket_or_a_range() {
    let nodes = server("node");
    let dir = Temp::new();
    let [forward, first, second] = [free_port(), free_port(), free_port()];
    let text = file(nodes.addr(), nodes.addr(), free_port()).replace("DIR", &dir.path().display().to_string());
    let socket = dir.file("m.sock");
    let unix = text.replace("motan-agent:\n", &format!("motan-agent:\n  managementUnixSock: {}\n", socket.display()));
    let config = dir.write("agent.yaml", unix);
    let cmd = Cmd::new(agent::binary()).args(["run", "-c"]).arg(config.display()).args(["-port", &forward.to_string()]);
    let mut proc = cmd.spawn(&dir.file("agent.log"));
    let asked = || {
        use std::io::{Read, Write};
        let mut io = std::os::unix::net::UnixStream::connect(&socket).ok()?;
        io.write_all(b"GET /200 HTTP/1.1\r\nHost: anything\r\n\r\n").ok()?;
        let mut answer = String::new();
        io.read_to_string(&mut answer).ok()?;
        Some(answer)
    };
    let answer = host::wait::until_some("management answers at the socket", asked);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok."), "{answer}");
    assert!(proc.stop().success());

    // The first free one of a range: of the two, one is taken.
    let (low, high) = (first.min(second), first.max(second));
    let _taken = Backend::tcp_at(at(low), drop);
    let range = text.replace("motan-agent:\n", &format!("motan-agent:\n  managementPortRange: {low}-{high}\n"));
    let config = dir.write("agent.yaml", range);
    let cmd = Cmd::new(agent::binary()).args(["run", "-c"]).arg(config.display()).args(["-port", &forward.to_string()]);
    let mut proc = cmd.spawn(&dir.file("agent2.log"));
    let found = host::wait::until_some("management listens in the range", || {
        (low + 1..=high).find(|port| http::get(at(*port), "/version").is_ok_and(|a| a.text() == "1.2.0"))
    });
    assert!(found > low);
    assert!(proc.stop().success());
}

#[test]
fn motan_dropin_import_prints_what_runs() {
    let nodes = server("node");
    let dir = Temp::new();
    let text = file(nodes.addr(), nodes.addr(), free_port()).replace("DIR", &dir.path().display().to_string());
    let text = text.replace("  defaultFilter: accessLog,metrics\n", "");
    let config = dir.write("agent.yaml", &text);
    let said = agent::sockmesh("import").arg(config.display()).args(["-port", &free_port().to_string()]).run();
    assert_eq!(said.status.code(), Some(0), "{}", said.err);
    let native = dir.write("native.yaml", &said.out);
    assert!(agent::sockmesh("config").arg(native.display()).run().status.success());
    // What is not supported is told with its line, and the exit code says so.
    let odd = dir.write("odd.yaml", format!("{text}unknown: 1\n"));
    let said = agent::sockmesh("import").arg(odd.display()).run();
    let line = text.lines().count() + 1;
    assert_eq!(said.status.code(), Some(2));
    assert!(said.err.contains(&format!("odd.yaml:{line}:1: unknown: ")), "{}", said.err);
    let wrong = dir.write("wrong.yaml", "motan-agent: {port: nine}\n");
    let said = agent::sockmesh("import").arg(wrong.display()).run();
    assert_eq!((said.status.code(), said.out.as_str()), (Some(1), ""));
    assert!(said.err.contains("wrong.yaml:1:"), "{}", said.err);

    // The native form serves the same calls.
    let agent_text = fs::read_to_string(&native).unwrap();
    let forward =
        agent_text.lines().find_map(|l| l.trim().strip_prefix("forward: ")).unwrap().replace("0.0.0.0", "127.0.0.1");
    let start = agent_text.find("registries:").unwrap();
    let agent = Agent::start(&agent_text[start..]);
    assert_eq!(call(forward.parse().unwrap(), Frame::call(SERVICE, "echo", "same")).text(), "same");
    drop(agent);
}

/// An agent that reaches its registry only through another one of this mesh.
#[test]
fn motan_dropin_serves_agents_that_register_and_subscribe_through_it() {
    let (nodes, local) = (server("node"), server("local"));
    let (service, to, export) = (free_port(), at(free_port()), at(free_port()));
    let mut other = Dropin::start(&file(nodes.addr(), local.addr(), service), &[]);
    let behind = format!("direct://{}", nodes.addr());
    let mut agent = Agent::start(&format!(
        "advertise: 127.0.0.1
registries: {{other: {{kind: mesh, address: '{}', proxy_registry: '{behind}'}}}}
referers:
  - {{service: kit.Through, group: kit-group, version: '1.0', protocol: motan2, listen: {to}, registry: other, timeout: 5s}}
services:
  - {{service: kit.Provided, group: kit-group, version: '1.0', protocol: motan2, export: {export}, local: '{}', registry: other}}
",
        other.management,
        local.addr()
    ));
    let through = || {
        let Ok(mut client) = Client::open(to) else { return None };
        let answer = client.call(Frame::call("kit.Through", "echo", "there?").with("M_g", "kit-group")).ok()?;
        (answer.status == 0).then(|| answer.meta("by").to_owned())
    };
    let provided = |other: &Dropin| {
        let Ok(mut client) = Client::open(other.export) else { return None };
        let answer = client.call(Frame::call("kit.Provided", "echo", "there?").with("M_g", "kit-group")).ok()?;
        (answer.status == 0).then(|| answer.meta("by").to_owned())
    };
    until("the other agent carries the calls", || through().as_deref() == Some("node"));
    let endpoints = agent.endpoints();
    assert!(endpoints.iter().any(|e| e["address"] == other.forward.to_string()), "{endpoints:?}");
    until("the other agent exports the service", || provided(&other).as_deref() == Some("local"));
    until("and that is shown", || agent.json("/registrations")["registrations"][0]["state"] == "available");
    // What it forgot when it was killed, it is told again.
    other.crash(&[]);
    until("it is told again", || through().is_some() && provided(&other).is_some());
    // And what it was told it takes back when the agent goes.
    assert!(agent.stop().success());
    let listed = |other: &Dropin| other.ask("/registry/list").1.contains("kit.Provided");
    until("it is taken back", || !listed(&other));
    until("and exported no more", || provided(&other).is_none());
}
