//! Callers from elsewhere, brought to the agent without being told of it.

use host::{
    Agent, Cmd, Need, Net,
    agent::Settings,
    http, lacks,
    program::{self, Place},
    until,
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
