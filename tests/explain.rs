//! Why a call went where it went, as an operator asks for it.

use std::thread;

use host::{
    Agent, Backend,
    agent::sockmesh,
    backend::Refusing,
    http,
    motan::{Client, Frame},
    until,
};

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
    for line in
        ["shop: nothing here has that name", "  known     web\n", "  answer    Motan2 calls for it get exception 400"]
    {
        assert!(said.contains(line), "{line} is missing: {said}");
    }
    assert!(explain(&agent, "wbe").failed().contains("  near      web\n"));
}

#[test]
fn explain_tells_who_asked_for_what_is_not_here() {
    let to = std::net::SocketAddr::from(([127, 0, 0, 1], host::free_port()));
    let refer = |group: &str| {
        format!(
            "  - {{service: shop.Cart, group: {group}, protocol: motan2, listen: {to}, endpoints: [\"127.0.0.1:1\"]}}\n"
        )
    };
    let agent = Agent::start(&format!("referers:\n{}{}", refer("idc-a"), refer("idc-b")));
    let call = |service: &str| Client::open(to).unwrap().call(Frame::call(service, "total", "x")).unwrap();
    assert!(explain(&agent, "shp.Cart").failed().contains("  near      idc-a/shop.Cart, idc-b/shop.Cart\n"));

    let answered = call("shp.Cart");
    let told = explain(&agent, "shp.Cart").ok();
    let text = "cluster not found. cluster: cluster not found. service: shp.Cart";
    assert!(answered.meta("M_e").contains(text), "{answered:?}");
    for line in [
        "total of shp.Cart: reached no service, once\n".to_owned(),
        "  rule      looked for a referer with `service: shp.Cart`".to_owned(),
        format!("  answered  exception 400, type 1: {text}\n"),
        "  near      idc-a/shop.Cart, idc-b/shop.Cart\n".to_owned(),
    ] {
        assert!(told.contains(&line), "{line} is missing:\n{told}");
    }
    // The service is there, its group is not said; and whoever waits for such a call is told.
    let told = thread::scope(|scope| {
        let told = scope.spawn(|| explain(&agent, "shp.Cart --next").ok());
        until("the call that was waited for is told", || {
            call("shp.Cart");
            told.is_finished()
        });
        told.join().unwrap()
    });
    assert!(told.contains("total of shp.Cart: reached no service, "), "{told}");
    call("shop.Cart");
    let told = explain(&agent, "shop.Cart").ok();
    assert!(told.contains("there are several, and the call names no group (`M_g`)"), "{told}");
    assert!(!told.contains("nothing here has that name"), "{told}");
    // By what was dialed.
    let told = explain(&agent, &to.to_string()).ok();
    assert!(told.contains("total of shp.Cart: reached no service, "), "{told}");
}
