//! The public Motan libraries of Go and Java as servers and clients, and a gRPC server: the peers `motan-go` and
//! `motan-java`.

use std::net::SocketAddr;

use serde_json::Value;

use crate::{Cmd, Temp, need::peer, net::free_port, program::Server};

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// The program of the peer `motan-go`, as one of its parties.
pub fn go(party: &str) -> Cmd {
    Cmd::new(peer("motan-go").join("peer")).arg(party)
}

/// The program of the peer `motan-java`, as one of its parties.
pub fn java(party: &str) -> Cmd {
    let home = peer("motan-java");
    let classes = format!("{0}/classes:{0}/libs/*", home.display());
    let cmd = Cmd::new("java").args(["-Xmx160m", "-XX:TieredStopAtLevel=1", "-Djava.net.preferIPv4Stack=true", "-cp"]);
    cmd.arg(classes).args(["kit.Main", party])
}

/// Go's server of `kit.EchoService` in group `kit-group`; `more` are further flags.
pub fn go_server(more: &[&str]) -> Server {
    let at = local();
    let cmd = go("server").args(["-port", &at.port().to_string()]).args(more.iter().copied());
    Server::start(at, Temp::new(), cmd)
}

/// A gRPC server that answers `Echo`, `Metadata`, `Fail` and `Slow` of every service.
pub fn grpc_server() -> Server {
    let at = local();
    Server::start(at, Temp::new(), go("grpc").args(["-port", &at.port().to_string()]))
}

/// Go's own agent with this configuration; `at` is where it will listen.
pub fn go_agent(at: SocketAddr, config: &str) -> Server {
    let dir = Temp::new();
    // Its own files would lie where the test runs.
    let folders = format!("motan-agent: {{runtime_dir: {0}, snapshot_dir: {0}, ", dir.file("runtime").display());
    let file = dir.write("motan.yaml", config.replacen("motan-agent: {", &folders, 1));
    let pid = dir.file("agent.pid").display().to_string();
    let cmd = go("agent").arg("-c").arg(file.display()).args(["-pidfile", &pid, "-localIP", "127.0.0.1"]);
    Server::start(at, dir, cmd)
}

/// Java's server of `kit.Echo` in group `kit-group`; `more` are further options.
pub fn java_server(more: &[&str]) -> Server {
    let at = local();
    let cmd = java("server").args(["--port", &at.port().to_string()]).args(more.iter().copied());
    Server::start(at, Temp::new(), cmd)
}

/// Runs a client to its end and checks that each of its cases, of which there must be at least `least`, is as it
/// should be.
#[track_caller]
pub fn all_well(client: &Cmd, least: usize) {
    let output = client.run();
    let cases: Vec<Value> = output.out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let bad: Vec<_> = cases.iter().filter(|case| case["ok"] != true).map(Value::to_string).collect();
    assert!(bad.is_empty(), "{}\n{}", bad.join("\n"), output.err);
    let met = cases.len();
    assert!(met >= least, "only {met} of {least} cases\n{}\n{}", output.out, output.err);
}
