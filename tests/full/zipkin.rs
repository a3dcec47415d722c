//! Spans as a real Zipkin shows them.

use host::{Need, lacks, until_some, zipkin::Zipkin};

use crate::traced::{self, OF_RPC, OF_WEB, PARENT};

#[test]
fn zipkin_shows_a_trace_through_two_agents_and_both_protocols() {
    if lacks(&[Need::Peer("zipkin")]) {
        return;
    }
    let zipkin = Zipkin::start();
    let _traced = traced::calls(&format!("{{zipkin: \"http://{}\"}}", zipkin.addr()));
    for (trace, name) in [(OF_WEB, "web.get"), (OF_RPC, "kit.echo.echo")] {
        let spans = until_some("Zipkin has all four spans", || zipkin.trace(trace).filter(|spans| spans.len() == 4));
        // From the caller to the program: each span is the parent of the next.
        let mut parent = PARENT.to_owned();
        for (application, kind) in [("near", "SERVER"), ("near", "CLIENT"), ("far", "SERVER"), ("far", "CLIENT")] {
            let span =
                spans.iter().find(|s| s["parentId"] == *parent).unwrap_or_else(|| panic!("{parent}: {spans:#?}"));
            assert_eq!((&span["kind"], &span["localEndpoint"]["serviceName"]), (&kind.into(), &application.into()));
            assert_eq!(span["name"], name, "Zipkin keeps names in small letters");
            parent = span["id"].as_str().unwrap().to_owned();
        }
    }
}
