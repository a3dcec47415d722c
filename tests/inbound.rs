//! Callers from elsewhere, brought to the agent without being told of it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
};

use host::{
    Agent, Cgroup, Cmd, Need, Net,
    agent::Settings,
    http, lacks,
    net::free_port,
    program::{self, Place, Server},
    until,
    wait::until_some,
};

/// How often the kernel half brought a caller from elsewhere.
fn brought(agent: &Agent) -> f64 {
    agent.metric("sockmesh_capture_total", &["outcome=\"inbound\""])
}

#[test]
fn inbound_callers_from_another_namespace_come_through_the_agent() {
    if lacks(&[Need::Kernel, Need::Program("nginx"), Need::Program("curl")]) {
        return;
    }
    let net = Net::new();
    let server = program::nginx("provider", &Place { net: Some(&net), ..Place::default() });
    let at = server.addr();
    let mut agent = Agent::with(
        &Settings { net: Some(&net), mode: "ebpf", ..Settings::default() },
        &format!(
            "services:\n  - {{service: web, protocol: http, inbound: {}, local: \"{at}\", filters: [access_log, metrics]}}\n",
            at.port()
        ),
    );

    // The caller dials the program's own address from the other end of the link.
    assert_eq!(http::get(at, "/").unwrap().text(), "provider");
    assert!((brought(&agent) - 1.0).abs() < f64::EPSILON, "{}", agent.page("/metrics"));
    until("the call stands in the access log", || agent.access_log().iter().any(|l| l.contains("web")));

    // Inside the namespace the address is reached by loopback, which is left alone.
    let inside = Cmd::line(&format!("curl -sf --max-time 10 http://{at}/")).netns(&net).run();
    assert_eq!(inside.ok(), "provider");
    assert!((brought(&agent) - 1.0).abs() < f64::EPSILON);

    // Without the agent the program is reached directly and at once: its listener has left the table.
    agent.kill9();
    assert_eq!(http::get(at, "/").unwrap().text(), "provider");
    agent.again();
    let before = brought(&agent);
    assert_eq!(http::get(at, "/").unwrap().text(), "provider");
    assert!(brought(&agent) > before, "the next agent captures again");
    assert!(agent.stop().success());
    assert_eq!(http::get(at, "/").unwrap().text(), "provider");
}

#[test]
fn inbound_needs_the_kernel_half_and_says_so() {
    let config = host::Temp::new();
    let path = config.write(
        "mesh.yaml",
        "capture: port\nservices:\n  - {service: web, protocol: http, inbound: 8080, local: '127.0.0.1:8080'}\n",
    );
    let ended = Cmd::new(host::agent::binary()).args(["run", "-c"]).arg(path.display()).run();
    assert!(!ended.status.success());
    assert!(
        ended.err.contains("`services[].inbound` needs `capture: ebpf` or `iptables`, here it is `port`"),
        "{}",
        ended.err
    );
}

/// A connection that is kept, as callers with a pool have.
struct Kept(TcpStream);

impl Kept {
    fn to(at: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&at, host::wait::PATIENCE).unwrap();
        stream.set_read_timeout(Some(host::wait::PATIENCE)).unwrap();
        Self(stream)
    }

    fn addr(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    fn get(&mut self, path: &str) {
        write!(self.0, "GET {path} HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
        let mut said = Vec::new();
        while !said.ends_with(b"seen") {
            let mut buffer = [0; 1024];
            let n = self.0.read(&mut buffer).unwrap();
            assert!(n > 0, "{}", String::from_utf8_lossy(&said));
            said.extend_from_slice(&buffer[..n]);
        }
    }
}

/// What nginx saw of the request for `path`: its peer and the number of the connection.
fn seen(server: &Server, path: &str) -> (SocketAddr, String) {
    let line = until_some(&format!("{path} stands in nginx's log"), || {
        let log = fs::read_to_string(server.dir().join("access.log")).unwrap_or_default();
        log.lines().find(|line| line.ends_with(path)).map(str::to_owned)
    });
    let [ip, port, connection, _] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
    let ip: IpAddr = ip.parse().unwrap();
    (SocketAddr::new(ip.to_canonical(), port.parse().unwrap()), connection.to_owned())
}

fn shown(agent: &Agent) -> f64 {
    agent.metric("sockmesh_capture_total", &["outcome=\"client_shown\""])
}

fn has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

fn knows(agent: &Agent, local: &str) {
    until("the agent knows the program's control group", || {
        agent.log().lines().any(|l| l.contains("the program sees its callers") && l.contains(local))
    });
}

#[test]
fn client_address_is_what_nginx_logs() {
    if lacks(&[Need::Kernel, Need::Program("nginx")]) {
        return;
    }
    let (net, provider) = (Net::new(), Cgroup::new("provider"));
    let there = net.there();
    let [plain, raw, both] = [free_port(), free_port(), free_port()];
    let listen = [format!("{there}:{plain}"), format!("{there}:{raw}"), format!("[::]:{both} ipv6only=off")];
    let place = Place { net: Some(&net), cgroup: Some(&provider) };
    let server =
        program::nginx_seeing("seen", &listen.each_ref().map(String::as_str), SocketAddr::new(there, plain), &place);
    let mut agent = Agent::with(
        &Settings { net: Some(&net), mode: "ebpf", ..Settings::default() },
        &format!(
            "services:
  - {{service: plain, protocol: http, inbound: {plain}, local: \"{there}:{plain}\", client_address: true}}
  - {{service: raw, protocol: tcp, inbound: {raw}, local: \"{there}:{raw}\", client_address: true}}
  - {{service: both, protocol: http, inbound: {both}, local: \"127.0.0.1:{both}\", client_address: true}}
"
        ),
    );
    knows(&agent, &format!("{there}:{plain}"));

    // Two callers in turn, neither of which gets the other's connection to nginx.
    let at = SocketAddr::new(there, plain);
    let mut callers = [Kept::to(at), Kept::to(at)];
    for round in ["first", "second"] {
        for (i, caller) in callers.iter_mut().enumerate() {
            caller.get(&format!("/{round}-{i}"));
        }
    }
    for (i, caller) in callers.iter().enumerate() {
        let (first, second) = (seen(&server, &format!("/first-{i}")), seen(&server, &format!("/second-{i}")));
        assert_eq!(first.0, caller.addr());
        assert_eq!(first, second, "a caller's connection to nginx is kept for it");
    }
    let before = brought(&agent);
    assert!(before >= 2.0 && shown(&agent) >= 2.0, "{}", agent.page("/metrics"));

    // Bytes, unread by the agent.
    let mut caller = Kept::to(SocketAddr::new(there, raw));
    caller.get("/raw");
    assert_eq!(seen(&server, "/raw").0, caller.addr());

    // One listener for both families: callers of either.
    let mut caller = Kept::to(SocketAddr::new(there, both));
    caller.get("/both4");
    assert_eq!(seen(&server, "/both4").0, caller.addr());
    if has_ipv6() {
        let there6 = net.add_ipv6();
        let mut caller = Kept::to(SocketAddr::new(there6, both));
        caller.get("/both6");
        assert_eq!(seen(&server, "/both6").0, caller.addr());
        assert!(brought(&agent) >= before + 3.0, "{}", agent.page("/metrics"));
    }

    // The agent's death changes nothing: callers reach nginx directly, then through its successor.
    agent.kill9();
    let mut direct = Kept::to(at);
    direct.get("/direct");
    assert_eq!(seen(&server, "/direct").0, direct.addr());
    agent.again();
    knows(&agent, &format!("{there}:{plain}"));
    let mut again = Kept::to(at);
    again.get("/again");
    assert_eq!(seen(&server, "/again").0, again.addr());
    assert!(brought(&agent) > 0.0);
    assert!(agent.stop().success());
}

#[test]
fn client_address_of_callers_in_another_namespace_of_this_host() {
    if lacks(&[Need::Kernel, Need::Program("nginx"), Need::Program("curl")]) {
        return;
    }
    let (net, provider) = (Net::new(), Cgroup::new("provider"));
    let [four, six] = [free_port(), free_port()];
    let listen = [format!("0.0.0.0:{four}"), format!("[::]:{six} ipv6only=on")];
    let place = Place { cgroup: Some(&provider), ..Place::default() };
    let wait_at = SocketAddr::from(([127, 0, 0, 1], four));
    let server = program::nginx_seeing("seen", &listen.each_ref().map(String::as_str), wait_at, &place);
    // The agent, the program and the caller are on one host; only the caller is in a namespace.
    let agent = Agent::with(
        &Settings { mode: "ebpf", ..Settings::default() },
        &format!(
            "services:
  - {{service: four, protocol: http, inbound: {four}, local: \"127.0.0.1:{four}\", client_address: true}}
  - {{service: six, protocol: http, inbound: {six}, local: \"[::1]:{six}\", client_address: true}}
"
        ),
    );
    knows(&agent, &format!("127.0.0.1:{four}"));
    let call = |at: SocketAddr, path: &str| {
        let curl = format!("curl -sf -g --noproxy * --max-time 10 http://{at}{path}");
        assert_eq!(Cmd::line(&curl).netns(&net).run().ok(), "seen");
        seen(&server, path).0.ip()
    };
    assert_eq!(call(SocketAddr::new(net.here(), four), "/four"), net.there());
    assert!(brought(&agent) >= 1.0 && shown(&agent) >= 1.0, "{}", agent.page("/metrics"));
    if has_ipv6() {
        let (there6, here6) = (net.add_ipv6(), net.here6());
        knows(&agent, &format!("[::1]:{six}"));
        assert_eq!(call(SocketAddr::new(here6, six), "/six"), there6);
        assert!(brought(&agent) >= 2.0 && shown(&agent) >= 2.0, "{}", agent.page("/metrics"));
    }
    // A neighbour's program that dials nginx itself is shown as it is.
    let mut near = Kept::to(wait_at);
    near.get("/near");
    assert_eq!(seen(&server, "/near").0, near.addr());
}

#[test]
fn client_address_says_why_it_cannot_be() {
    if lacks(&[Need::Kernel]) {
        return;
    }
    let free = free_port();
    let service = |port| {
        format!(
            "services: [{{service: web, protocol: http, inbound: {port}, local: '127.0.0.1:{port}', client_address: true}}]\n"
        )
    };
    let agent = Agent::with(&Settings { mode: "ebpf", ..Settings::default() }, &service(free));
    until("it says that nobody listens", || agent.log().contains(&format!("nobody listens on 127.0.0.1:{free} yet")));
    // Nobody's group but this program's own may get hooks here.
    if fs::read_to_string("/proc/self/cgroup").unwrap().lines().any(|l| l == "0::/") {
        let _near = std::net::TcpListener::bind(("127.0.0.1", free)).unwrap();
        until("it looks again", || agent.log().contains("is in the root control group"));
    }
    let config = host::Temp::new();
    let path = config.write("mesh.yaml", format!("capture: port\n{}", service(free)));
    let said = Cmd::new(host::agent::binary()).args(["check", "-c"]).arg(path.display()).run().out;
    assert!(said.contains("! client_address of web: `capture: port` cannot show a program its callers"), "{said}");
    let services = "services: [{service: web, protocol: tcp, export: '127.0.0.1:0', local: '127.0.0.1:1', client_address: true}]\n";
    let agent = Agent::start(&services.replace("127.0.0.1:0", &host::net::free_addr().to_string()));
    assert!(agent.log().contains("client_address: the program sees the agent as its peer"), "{}", agent.log());
}
