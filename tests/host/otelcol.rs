//! OpenTelemetry's own collector, which writes what it is told into its log.

use std::net::SocketAddr;

use crate::{Cmd, Temp, need::peer, net::free_addr, program::Server};

/// A running collector, stopped on drop.
pub struct Otelcol(Server);

impl Otelcol {
    /// Starts one that takes OTLP over HTTP. Needs the peer `otelcol`.
    #[track_caller]
    pub fn start() -> Self {
        let (addr, dir) = (free_addr(), Temp::new());
        let config = format!(
            "receivers: {{otlp: {{protocols: {{http: {{endpoint: '{addr}'}}}}}}}}
exporters: {{debug: {{verbosity: detailed, sampling_initial: 1000000}}}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines: {{traces: {{receivers: [otlp], exporters: [debug]}}}}
"
        );
        let file = dir.write("otelcol.yaml", config);
        let cmd = Cmd::new(peer("otelcol").join("otelcol")).arg(format!("--config=file:{}", file.display()));
        Self(Server::start(addr, dir, cmd))
    }

    /// Where it takes spans.
    pub fn addr(&self) -> SocketAddr {
        self.0.addr()
    }

    /// The spans of a trace so far: for each its lines `name : value`.
    pub fn spans(&self, trace: &str) -> Vec<Vec<(String, String)>> {
        let said = self.0.proc.said();
        let spans = said.split("\nSpan #").skip(1).map(|span| {
            // What follows the last one is of the next message.
            let lines = span.lines().skip(1).take_while(|line| line.starts_with(' ') || line.starts_with("Attributes"));
            let pair = |line: &str| {
                let (name, value) = line.split_once(':')?;
                Some((name.trim().trim_start_matches("-> ").to_owned(), value.trim().to_owned()))
            };
            lines.filter_map(pair).collect::<Vec<_>>()
        });
        spans.filter(|span| value(span, "Trace ID") == trace).collect()
    }
}

/// The value of a name in a span; empty when it has none.
pub fn value<'a>(span: &'a [(String, String)], name: &str) -> &'a str {
    span.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
}
