//! Why a call went where it went, as an operator asks for it.

use std::thread;

use host::{Agent, Backend, agent::sockmesh, backend::Refusing, http, until};

use crate::http::mesh;

fn explain(agent: &Agent, more: &str) -> host::cmd::Output {
    sockmesh(&format!("explain --admin {} {more}", agent.admin())).run()
}

#[test]
fn explain_tells_the_next_call_and_what_failed_before() {
    let (refusing, good) = (Refusing::new(), Backend::named("good"));
    let more = "    lb: round_robin\n    eject: {connect_failures: 1000}\n";
    let (agent, to) = mesh(&[refusing.addr(), good.addr()], more);
    assert!(explain(&agent, "web").ok().contains("no call is kept"));

    // A call that went elsewhere in the end is kept without being asked for.
    until("a call meets the refusing endpoint", || {
        http::get(to, "/odd").unwrap();
        explain(&agent, "web -n 32").ok().contains("connect: cannot connect to")
    });

    let told = thread::scope(|scope| {
        let told = scope.spawn(|| explain(&agent, "web --next -o json").ok());
        until("the call that was waited for is told", || {
            http::get(to, "/asked").unwrap();
            told.is_finished()
        });
        told.join().unwrap()
    });
    let page: serde_json::Value = serde_json::from_str(&told).unwrap();
    let story = &page["stories"][0];
    assert_eq!((story["kept"].as_str(), story["path"].as_str()), (Some("asked"), Some("/asked")), "{told}");
    let steps = story["steps"].as_array().unwrap();
    let of = |kind: &str| steps.iter().filter(|step| step["step"] == kind).count();
    assert!(of("filter") >= 2 && of("pick") >= 1 && of("try") >= 1, "{told}");
    let text = explain(&agent, "web -n 32").ok();
    for line in ["GET /asked of web: answered", "  rule      outbound service web, protocol http", "  pick      "] {
        assert!(text.contains(line), "{line} is missing:\n{text}");
    }
}

#[test]
fn explain_says_when_no_service_has_that_name() {
    let good = Backend::named("good");
    let (agent, _) = mesh(&[good.addr()], "");
    let said = explain(&agent, "shop").failed();
    assert!(said.contains("no service `shop` is configured") && said.contains("there are web"), "{said}");
}
