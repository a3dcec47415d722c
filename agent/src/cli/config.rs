//! `sockmesh config FILE`: checks a configuration without starting anything.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde_json::{Value, json};

use crate::config::{self, CaptureMode, Cluster, Config, ConfigErrors, Loaded, Problem, Referer, Service};

/// Arguments of `sockmesh config`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The configuration to check
    #[arg(value_name = "FILE", required_unless_present = "keys")]
    pub file: Option<PathBuf>,
    /// Print every key with type, default and meaning, in Markdown
    #[arg(long)]
    pub keys: bool,
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: Format,
}

/// How to print what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A summary, or one line per mistake.
    Text,
    /// One object: `ok`, `mistakes`, `warnings` and what was understood.
    Json,
}

/// Checks the file and prints what was understood, or every mistake. The exit code is 1 when there are
/// mistakes; warnings do not change it.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (text, code) = match &args.file {
        Some(file) if !args.keys => answer(file, config::load(file), args.output),
        _ => (keys(), ExitCode::SUCCESS),
    };
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever reads may stop early (`| head`).
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(code),
    }
}

fn keys() -> String {
    config::tables().fold(String::new(), |mut text, (path, table)| {
        let _ = writeln!(text, "## {}\n\n{table}", if path.is_empty() { "top" } else { path });
        text
    })
}

fn answer(file: &Path, result: Result<Loaded, ConfigErrors>, format: Format) -> (String, ExitCode) {
    let code = if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let text = match format {
        Format::Text => text(file, &result),
        Format::Json => format!("{:#}\n", object(file, &result)),
    };
    (text, code)
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn text(file: &Path, result: &Result<Loaded, ConfigErrors>) -> String {
    let (path, file) = (file, file.display());
    let mut text = String::new();
    let (warnings, head) = match result {
        Ok(loaded) => (&loaded.warnings, format!("{file}: good")),
        Err(errors) => {
            for line in errors.lines() {
                let _ = writeln!(text, "{line}");
            }
            (&errors.warnings, format!("{file}: {}", counted(errors.mistakes.len(), "mistake")))
        }
    };
    for warning in warnings {
        let _ = writeln!(text, "{} (warning)", warning.line_in(Some(path)));
    }
    let tail = if warnings.is_empty() { String::new() } else { format!(", {}", counted(warnings.len(), "warning")) };
    let _ = writeln!(text, "{head}{tail}");
    if let Ok(loaded) = result {
        summary(&mut text, &loaded.config);
    }
    text
}

fn summary(text: &mut String, config: &Config) {
    let Config { name, application, threads, drain, .. } = config;
    let mut line = |what: &str, value: String| {
        let _ = writeln!(text, "  {what:<11}{value}");
    };
    line("agent", format!("{name}, application {application}, {}, drain {drain:?}", counted(*threads, "thread")));
    let ports = &config.ports;
    line("ports", format!("outbound {}, inbound {}, admin {}", ports.outbound, ports.inbound, ports.admin));
    let enrolled = config.capture.enroll.len();
    line("capture", format!("{}, {enrolled} enrolled", mode(config.capture.mode)));
    for (name, registry) in &config.registries {
        line("registry", format!("{name} ({})", registry.kind));
    }
    for referer in &config.referers {
        line("calls", called(referer));
    }
    for service in &config.services {
        line("provides", provided(service));
    }
}

const fn mode(mode: CaptureMode) -> &'static str {
    match mode {
        CaptureMode::Auto => "auto",
        CaptureMode::Ebpf => "ebpf",
        CaptureMode::Iptables => "iptables",
        CaptureMode::Port => "port",
    }
}

fn protocol(protocol: Option<&String>) -> &str {
    protocol.map_or("detected", String::as_str)
}

fn address(address: &config::VirtualAddress) -> String {
    match address.port {
        Some(port) => std::net::SocketAddr::new(address.ip, port).to_string(),
        None => format!("{} (every port)", address.ip),
    }
}

fn called(referer: &Referer) -> String {
    let mut at: Vec<_> = referer.addresses.iter().map(address).collect();
    at.extend(referer.listen.map(|l| format!("listen {l}")));
    let mut from = referer.registries.clone();
    if !referer.endpoints.is_empty() {
        from.push(counted(referer.endpoints.len(), "endpoint"));
    }
    let (at, from) = (at.join(", "), from.join(" + "));
    let protocol = protocol(referer.protocol.as_ref());
    format!("{} ({protocol}) at {at} -> {from}; {}", referer.key, policy(&referer.cluster))
}

fn provided(service: &Service) -> String {
    let protocol = protocol(service.protocol.as_ref());
    let Service { key, export, inbound, local, cluster, .. } = service;
    let mut at: Vec<_> = export.iter().map(ToString::to_string).collect();
    at.extend(inbound.iter().map(|a| format!("inbound {}", address(a))));
    format!("{key} ({protocol}) at {} -> {local}; {}", at.join(", "), policy(cluster))
}

fn policy(cluster: &Cluster) -> String {
    let filters: Vec<_> = cluster.filters.iter().map(|f| f.name.as_str()).collect();
    let filters = if filters.is_empty() { "no filter".to_owned() } else { filters.join(", ") };
    format!("{}, {}, {filters}", cluster.ha.name, cluster.lb.name)
}

fn object(file: &Path, result: &Result<Loaded, ConfigErrors>) -> Value {
    let none: &[Problem] = &[];
    let (mistakes, warnings) = match result {
        Ok(loaded) => (none, &loaded.warnings),
        Err(errors) => (errors.mistakes.as_slice(), &errors.warnings),
    };
    let mut object = json!({
        "file": file.display().to_string(),
        "ok": result.is_ok(),
        "mistakes": mistakes,
        "warnings": warnings,
    });
    if let Ok(Loaded { config, .. }) = result {
        let referer = |r: &Referer| {
            json!({
                "service": r.key,
                "protocol": r.protocol,
                "addresses": r.addresses.iter().map(|a| json!({"ip": a.ip, "port": a.port})).collect::<Vec<_>>(),
                "listen": r.listen,
                "registries": r.registries,
                "endpoints": r.endpoints,
            })
        };
        let service = |s: &Service| {
            json!({
                "service": s.key,
                "protocol": s.protocol,
                "export": s.export,
                "inbound": s.inbound.iter().map(|a| json!({"ip": a.ip, "port": a.port})).collect::<Vec<_>>(),
                "local": s.local,
            })
        };
        object["config"] = json!({
            "name": config.name,
            "application": config.application.as_str(),
            "capture": mode(config.capture.mode),
            "ports": {
                "outbound": config.ports.outbound,
                "inbound": config.ports.inbound,
                "admin": config.ports.admin,
            },
            "registries": config.registries.iter().map(|(n, r)| json!({"name": n, "kind": r.kind})).collect::<Vec<_>>(),
            "referers": config.referers.iter().map(referer).collect::<Vec<_>>(),
            "services": config.services.iter().map(service).collect::<Vec<_>>(),
        });
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(yaml: &str, format: Format) -> (String, bool) {
        let file = Path::new("mesh.yaml");
        let result = config::parse(yaml, Path::new("/x")).map_err(|e| ConfigErrors { path: Some(file.into()), ..e });
        let (text, code) = answer(file, result, format);
        (text, code == ExitCode::SUCCESS)
    }

    const GOOD: &str = "\
capture: port
registries: {nodes: {kind: file, path: nodes.yaml}}
referers:
  - {service: web, group: a, protocol: http, address: [240.0.0.1, 240.0.0.2:80], registry: nodes, endpoints: [127.0.0.1:1]}
services:
  - {service: api, export: 0.0.0.0:8080, local: 127.0.0.1:8081, filters: []}
threads: 2
";

    #[test]
    fn a_good_file_is_summed_up_and_its_warnings_shown() {
        let (text, ok) = checked(GOOD, Format::Text);
        assert!(ok);
        assert_eq!(
            text,
            "\
mesh.yaml:4:5: referers[0]: `a/web` has no `listen`, so no program reaches it in mode `port`; add `listen: 127.0.0.1:18080` (warning)
mesh.yaml: good, 1 warning
  agent      sockmesh, application sockmesh, 2 threads, drain 10s
  ports      outbound 15001, inbound 15006, admin 127.0.0.1:8002
  capture    port, 0 enrolled
  registry   nodes (file)
  calls      a/web (http) at 240.0.0.1 (every port), 240.0.0.2:80 -> nodes + 1 endpoint; failover, p2c, metrics
  provides   api (detected) at 0.0.0.0:8080 -> 127.0.0.1:8081; failover, p2c, no filter
"
        );
    }

    #[test]
    fn all_mistakes_are_printed_each_with_its_place() {
        let (text, ok) = checked("drain: 10\nthreds: 2\n", Format::Text);
        assert!(!ok);
        let expected = "\
mesh.yaml:1:8: drain: `10` has no unit; write 10ms or 10s
mesh.yaml:2:1: threds: unknown key; did you mean `threads`?
mesh.yaml: 2 mistakes
";
        assert_eq!(text, expected);
        assert!(checked("", Format::Text).0.starts_with("mesh.yaml: the file is empty"));
    }

    #[test]
    fn json_has_the_same_in_fields() {
        let (text, ok) = checked("drain: 10\n", Format::Json);
        let bad: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((ok, &bad["ok"], &bad["config"]), (false, &json!(false), &Value::Null));
        let mistake = json!({
            "line": 1, "column": 8, "key": "drain", "value": "10",
            "problem": "`10` has no unit", "remedy": "write 10ms or 10s",
        });
        assert_eq!(bad["mistakes"], json!([mistake]));

        let good: Value = serde_json::from_str(&checked(GOOD, Format::Json).0).unwrap();
        assert_eq!(good["ok"], json!(true));
        assert_eq!(good["warnings"].as_array().unwrap().len(), 1);
        assert_eq!(good["config"]["referers"][0]["addresses"][0], json!({"ip": "240.0.0.1", "port": null}));
        assert_eq!(good["config"]["services"][0]["local"], json!("127.0.0.1:8081"));
    }

    #[test]
    fn every_key_can_be_listed() {
        let text = keys();
        assert!(text.contains("## limits\n") && text.contains("| `drain` | duration | `10s` |"), "{text}");
    }
}
