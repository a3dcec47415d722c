//! Spans as Zipkin takes them: JSON of its API version 2, `/api/v2/spans`.

use std::{
    net::{IpAddr, SocketAddr},
    time::UNIX_EPOCH,
};

use serde_json::{Map, Value, json};

use super::{Attribute, Kind, Span};

/// The body of one request.
pub(super) fn encode(application: &str, spans: &[Span]) -> Vec<u8> {
    let spans: Vec<_> = spans.iter().map(|s| span(application, s)).collect();
    Value::Array(spans).to_string().into_bytes()
}

fn span(application: &str, span: &Span) -> Value {
    let mut tags = Map::new();
    for (key, value) in &span.attributes {
        let text = match value {
            Attribute::Text(text) => text.clone(),
            Attribute::Number(number) => number.to_string(),
        };
        tags.insert((*key).to_owned(), text.into());
    }
    if let Some(error) = &span.error {
        tags.insert("error".to_owned(), error.as_str().into());
    }
    let since = span.start.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut out = json!({
        "traceId": format!("{:032x}", span.trace),
        "id": format!("{:016x}", span.id),
        "name": span.name,
        "kind": match span.kind { Kind::Server => "SERVER", Kind::Client => "CLIENT" },
        "timestamp": since.as_micros() as u64,
        // 0 means unknown there.
        "duration": (span.duration.as_micros() as u64).max(1),
        "localEndpoint": {"serviceName": application},
        "tags": tags,
    });
    if let Some(parent) = span.parent {
        out["parentId"] = format!("{parent:016x}").into();
    }
    // Only of the endpoint the name is known for certain.
    let service = (span.kind == Kind::Client).then(|| span.service.to_string());
    if let Some(peer) = span.peer {
        out["remoteEndpoint"] = endpoint(service, peer);
    }
    out
}

fn endpoint(service: Option<String>, at: SocketAddr) -> Value {
    let mut out = json!({"port": at.port()});
    let key = match at.ip() {
        IpAddr::V4(_) => "ipv4",
        IpAddr::V6(_) => "ipv6",
    };
    out[key] = at.ip().to_string().into();
    if let Some(service) = service {
        out["serviceName"] = service.into();
    }
    out
}
