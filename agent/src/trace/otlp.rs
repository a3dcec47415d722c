//! Spans as OTLP/HTTP writes them in JSON (OpenTelemetry protocol, `/v1/traces`).

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{Attribute, Kind, Span};

/// The body of one request.
pub(super) fn encode(application: &str, spans: &[Span]) -> Vec<u8> {
    let spans: Vec<_> = spans.iter().map(span).collect();
    let body = json!({"resourceSpans": [{
        "resource": {"attributes": [attribute("service.name", &Attribute::Text(application.to_owned()))]},
        "scopeSpans": [{"scope": {"name": "sockmesh", "version": env!("CARGO_PKG_VERSION")}, "spans": spans}],
    }]});
    body.to_string().into_bytes()
}

fn span(span: &Span) -> Value {
    let end = span.start + span.duration;
    let mut attributes: Vec<_> = span.attributes.iter().map(|(key, value)| attribute(key, value)).collect();
    if let Some(peer) = span.peer {
        let (address, port) = match span.kind {
            Kind::Server => ("client.address", "client.port"),
            Kind::Client => ("server.address", "server.port"),
        };
        attributes.push(attribute(address, &Attribute::Text(peer.ip().to_string())));
        attributes.push(attribute(port, &Attribute::Number(peer.port().into())));
    }
    let mut out = json!({
        "traceId": format!("{:032x}", span.trace),
        "spanId": format!("{:016x}", span.id),
        "name": span.name,
        "kind": match span.kind { Kind::Server => 2, Kind::Client => 3 },
        "startTimeUnixNano": nanos(span.start),
        "endTimeUnixNano": nanos(end),
        "attributes": attributes,
        "status": match &span.error { Some(error) => json!({"code": 2, "message": error}), None => json!({}) },
    });
    if let Some(parent) = span.parent {
        out["parentSpanId"] = format!("{parent:016x}").into();
    }
    if !span.state.is_empty() {
        out["traceState"] = span.state.to_string().into();
    }
    out
}

/// 64-bit numbers are text in the JSON of protobuf.
fn nanos(time: SystemTime) -> String {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

fn attribute(key: &str, value: &Attribute) -> Value {
    match value {
        Attribute::Text(text) => json!({"key": key, "value": {"stringValue": text}}),
        Attribute::Number(number) => json!({"key": key, "value": {"intValue": number.to_string()}}),
    }
}
