//! HTTP over Motan2 with real programs: curl, the forward proxy, two agents, nginx (`docs/wire/http-mesh.md`).

use std::net::SocketAddr;

use host::{
    Agent, Backend, Cmd, Need, free_port, http, lacks,
    motan::{Client, Frame},
    program::{Place, nginx},
};

const NEEDS: &[Need] = &[Need::Program("nginx"), Need::Program("curl")];

fn addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

fn far(export: SocketAddr, local: SocketAddr, options: &str) -> Agent {
    Agent::start(&format!(
        "services:
  - {{service: web, group: g, protocol: motan2, upstream: {{http: {options}}}, export: {export}, local: '{local}', timeout: 5s}}"
    ))
}

#[test]
fn http_mesh_curl_to_nginx_through_the_proxy_and_two_agents() {
    if lacks(NEEDS) {
        return;
    }
    let (program, other) = (nginx("the program", &Place::default()), nginx("another", &Place::default()));
    std::fs::write(program.dir().join("files/a b"), "a file").unwrap();
    let (proxy, export) = (addr(), addr());
    let far = far(export, program.addr(), "{locations: [{match: /web/, rewrite: ['start /web/ ^/web(.*)$ $1']}]}");
    let near = Agent::start(&format!(
        "referers:
  - {{service: web, group: g, protocol: motan2, endpoints: ['{export}'], timeout: 5s, filters: [metrics]}}
http_proxy:
  listen: {proxy}
  domains:
    - {{domain: web.test, group: g, locations: [{{match: /web, service: web}}]}}"
    ));
    let curl = |args: &[&str]| {
        let cmd = Cmd::new("curl").args(["-sS", "--max-time", "20", "-x"]).arg(format!("http://{proxy}"));
        cmd.args(args.iter().copied()).run().ok()
    };
    assert_eq!(curl(&["http://web.test/web/"]), "the program");
    assert_eq!(curl(&["http://web.test/web/files/a%20b"]), "a file");
    assert!(curl(&["-i", "http://web.test/web/files/none"]).starts_with("HTTP/1.1 404 "));
    let file = "a file sent by the caller ".repeat(10_000);
    let dir = host::Temp::new();
    let local = dir.write("up", &file);
    curl(&["-T", &local.display().to_string(), "http://web.test/web/files/up"]);
    assert_eq!(std::fs::read_to_string(program.dir().join("files/up")).unwrap(), file);
    assert_eq!(curl(&["http://web.test/web/files/up"]), file);
    assert!(near.metric("sockmesh_requests_total", &["web"]) >= 5.0);
    assert!(far.metric("sockmesh_requests_total", &["web"]) >= 5.0);
    // Other hosts, and a tunnel to one.
    let there = format!("http://{}/", other.addr());
    assert_eq!(curl(&[&there]), "another");
    assert_eq!(curl(&["-p", &there]), "another");
    let itself =
        Cmd::new("curl").args(["-sS", "-o", "/dev/null", "-w", "%{http_code}"]).arg(format!("http://{proxy}/x"));
    assert_eq!(itself.run().ok(), "400");

    // Nobody behind it any more.
    drop(far);
    let answer = curl(&["-i", "http://web.test/web/"]);
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("err_msg: "), "{answer}");
}

#[test]
fn http_mesh_motan2_calls_become_requests() {
    let program = Backend::http(|request| {
        let headers: String = request.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        http::ok(format!("{}\n{headers}\n{}", request.line, request.text()))
    });
    let export = addr();
    let _far = far(export, program.addr(), "{host: web.test}");
    let mut client = Client::open(export).unwrap();
    let mut call = |frame: Frame| {
        let answer = client.call(frame).unwrap();
        assert_eq!((answer.status, answer.serialization, answer.body[0]), (0, 6, 3), "{answer:?}");
        assert_eq!(answer.meta("upstreamCode"), "200");
        String::from_utf8(answer.body[5..].to_vec()).unwrap()
    };
    let text = call(Frame::call("web", "/put", "the body").with("HTTP_Method", "PUT").with("http_X-Own", "1"));
    assert!(text.starts_with("PUT /put HTTP/1.1\n") && text.ends_with("\nthe body"), "{text}");
    for line in ["x-own: 1", "host: web.test", "motan-p: web", "x-forwarded-for: 127.0.0.1", "content-length: 8"] {
        assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
    }
    let mut query = Frame::call("web", "/get", "");
    query.body = b"\x02\0\0\0\x0a\0\0\0\x01k\0\0\0\x01v".to_vec();
    assert!(call(query.with("HTTP_QueryString", "a=1")).starts_with("GET /get?a=1&k=v HTTP/1.1\n"));
}
