//! A real graphite-api, which reads what a real Carbon has.

use std::net::SocketAddr;

use crate::{Cmd, Temp, carbon::Carbon, free_port, need::peer, program::Server};

/// Serves it in one process, which can be stopped as a whole.
const SERVE: &str = "import sys
from werkzeug.serving import run_simple
from graphite_api.app import app
run_simple('127.0.0.1', int(sys.argv[1]), app, threaded=True)
";

/// A graphite-api before `carbon`. Needs the peer of that name.
#[track_caller]
pub fn before(carbon: &Carbon) -> Server {
    let (dir, addr) = (Temp::new(), SocketAddr::from(([127, 0, 0, 1], free_port())));
    let config = dir.write(
        "api.yaml",
        format!(
            "search_index: {}/index\nfinders: [graphite_api.finders.whisper.WhisperFinder]\n\
             functions: [graphite_api.functions.SeriesFunctions]\nwhisper: {{directories: [{}]}}\ntime_zone: UTC\n\
             carbon: {{hosts: [\"127.0.0.1:{}\"], timeout: 5, carbon_prefix: carbon, replication_factor: 1}}\n",
            dir.path().display(),
            carbon.whisper().display(),
            carbon.query_port(),
        ),
    );
    let site = peer("graphite-api").join("site");
    let cmd = Cmd::new("env")
        .arg(format!("GRAPHITE_API_CONFIG={}", config.display()))
        .arg(format!("PYTHONPATH={}", site.display()))
        .args(["/usr/bin/python3", "-c", SERVE, &addr.port().to_string()]);
    Server::start(addr, dir, cmd)
}
