//! Spans as OpenTelemetry's own collector takes them.

use host::{
    Need, lacks,
    otelcol::{Otelcol, value},
    until_some,
};

use crate::traced::{self, OF_RPC, OF_WEB, PARENT};

#[test]
fn otelcol_takes_a_trace_through_two_agents_and_both_protocols() {
    if lacks(&[Need::Peer("otelcol")]) {
        return;
    }
    let collector = Otelcol::start();
    let _traced = traced::calls(&format!("{{otlp: \"http://{}\"}}", collector.addr()));
    for (trace, name) in [(OF_WEB, "web.GET"), (OF_RPC, "kit.Echo.echo")] {
        let of = || Some(collector.spans(trace)).filter(|spans| spans.len() == 4);
        let spans = until_some("the collector has all four spans", of);
        // From the caller to the program: each span is the parent of the next.
        let mut parent = PARENT.to_owned();
        for kind in ["Server", "Client", "Server", "Client"] {
            let span = spans.iter().find(|s| value(s, "Parent ID") == parent);
            let span = span.unwrap_or_else(|| panic!("{parent}: {spans:#?}"));
            assert_eq!((value(span, "Kind"), value(span, "Name")), (kind, name), "{span:?}");
            parent = value(span, "ID").to_owned();
        }
    }
}
