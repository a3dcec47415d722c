//! The demo's governance centre: its file, and what a person does with it first.

use std::{net::SocketAddr, path::Path};

use super::{process, programs::Places};

/// Calls a second of the service `orders` at load 1: two servers of 200 a second each take it easily.
pub const RATE: f64 = 120.0;
/// The load that the callers look at.
pub const LOAD: &str = "load";
/// Highest load: more than the servers that there may be can take.
const MAX_LOAD: f64 = 8.0;

/// What both pools of `orders` have in common: the centre starts and ends their servers, and proposes switches.
const POLICY: &str =
    "driver: local, scale: true, min: 2, max: 6, capacity: 190, hold_ms: 4000, period_ms: 12000, slow_ms: 100";

/// Whether the agent has heard from the centre of every service: of each, an endpoint is in rotation.
pub fn is_known(admin: SocketAddr) -> bool {
    let mut endpoints = process::get(admin, "/endpoints").unwrap_or_default();
    endpoints.retain(|c| !c.is_whitespace());
    let known = |service: &str| endpoints.contains(&format!(r#""service":"{service}","direction":"outbound""#));
    known("web") && known("orders")
}

/// The centre's file. Changes of pools come within seconds here, so that they can be watched; where it matters they
/// are given minutes.
pub fn yaml(places: &Places, dir: &Path) -> String {
    let Places { center, .. } = places;
    let own = std::env::current_exe().unwrap_or_default();
    let (own, data, load) = (own.display(), dir.join("center"), dir.join(LOAD));
    let (data, load) = (data.display(), load.display());
    format!(
        "\
name: demo
listen: {center}
data: \"{data}\"
demo: {{load: \"{load}\", max: {MAX_LOAD}}}
scale:
  drivers:
    local:
      kind: process
      options:
        command: [\"{own}\", stand-in, shop, \"127.0.0.1:{{port}}\", --service, \"{{service}}\", --group, \"{{group}}\", \
         --center, \"{center}\"]
        ports: 21000-21099
        stop_after: 3s
pools:
  every: 1s
  policies:
    - {{service: orders, group: idc-a, {POLICY}}}
    - {{service: orders, group: idc-b, {POLICY}}}
"
    )
}
