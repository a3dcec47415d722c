//! The whole loop: load is turned up, the centre sees it, starts instances, they register themselves, warm up by
//! weight, and take traffic; and a picture of that.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, time::Duration};

use host::{
    Agent, Center, Load, Need, Temp, agent, heavy, http, lacks, net, target_dir,
    wait::{now_ms, within},
};
use serde_json::Value;

/// A server whose calls take so long that one caller makes about 18 a second. It starts its agent when it listens, and
/// serves until that one has ended.
const SERVER: &str = r#"
import http.server, os, signal, subprocess, sys, threading, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        time.sleep(0.05)
        body = sys.argv[2].encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
signal.signal(signal.SIGTERM, lambda *a: None)
subprocess.Popen(sys.argv[3:]).wait()
os._exit(0)
"#;

/// An instance: a server with its agent, which registers it. Ports: where callers dial, then the server's, then the
/// agent's own.
const INSTANCE: &str = r#"
port=$1 name=$2 center=$3 sockmesh=$4 dir=$5
cat > "$dir/$port.yaml" <<END
name: instance-$port
capture: port
drain: 1s
ports: {outbound: $((port + 200)), inbound: $((port + 300)), dns: 0, admin: "127.0.0.1:$((port + 400))"}
center: {address: '$center'}
registries: {c: {kind: center, ttl: 3s}}
services:
  - {service: web, group: idc-a, protocol: http, export: 127.0.0.1:$port, local: 127.0.0.1:$((port + 100)), registry: c}
END
exec python3 "$dir/server.py" $((port + 100)) "$name" "$sockmesh" run -c "$dir/$port.yaml"
"#;

fn config(dir: &Path, addr: std::net::SocketAddr) -> String {
    // Below those that the kernel gives to programs by itself, and others for each run.
    let first = 21_000 + (std::process::id() % 80) * 100;
    format!(
        "scale:
  warm_up: 6s
  drivers:
    local:
      kind: process
      options:
        command: [sh, {dir}/instance.sh, '{{port}}', '{{name}}', '{addr}', {agent}, {dir}]
        ports: {first}-{}
        drain: 1s
pools:
  every: 500ms
  policies:
    - {{service: web, group: idc-a, min: 1, max: 3, scale: true, driver: local, capacity: 30, hold_ms: 1000,
       period_ms: 4000, shrink_hold_ms: 3000}}
",
        first + 50,
        dir = dir.display(),
        agent = agent::binary().display(),
    )
}

/// Waits as long as the loop may take on a busy machine.
#[track_caller]
fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    let found = within(Duration::from_secs(120), look);
    found.unwrap_or_else(|| panic!("waited in vain until {what}"))
}

fn instances(center: &Center) -> Vec<Value> {
    let (status, page) = center.send("GET", "/v1/service?service=web&group=idc-a", &Value::Null);
    if status != 200 {
        return Vec::new();
    }
    let mut rows = page["instances"].as_array().cloned().unwrap_or_default();
    rows.retain(|row| row["state"] == "available");
    rows
}

/// Whether a process runs. One that ended may wait for a parent that never asks: those that a killed centre left have
/// the first process of the machine, or of a container, for one.
fn runs(pid: u64) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn address(row: &Value) -> String {
    row["address"].as_str().unwrap().to_owned()
}

fn rate(center: &Center, instance: &str) -> Vec<(u64, f64)> {
    let now = now_ms();
    let (from, asked) = (now - 240_000, "/v1/series?service=web&group=idc-a");
    let path = format!("{asked}&instance={instance}&from_ms={from}&to_ms={now}&step_ms=2000");
    let series = center.get(&path);
    let at = series["at_ms"].as_array().cloned().unwrap_or_default();
    let rates = series["rate"].as_array().cloned().unwrap_or_default();
    let pairs = at.iter().zip(&rates).filter_map(|(at, rate)| Some((at.as_u64()?, rate.as_f64()?)));
    pairs.collect()
}

#[test]
fn from_load_to_traffic_on_a_new_instance_and_back() {
    if lacks(&[Need::Program("python3")]) {
        return;
    }
    let _heavy = heavy();
    let dir = Temp::new();
    dir.write("instance.sh", INSTANCE);
    dir.write("server.py", SERVER);
    let addr = net::free_addr();
    let mut center = Center::at(addr, &config(dir.path(), addr));
    let first = until("the first instance is there", || instances(&center).first().map(address));

    let to = net::free_addr();
    let calling = Agent::start(&format!(
        "center: {{address: '{addr}'}}
registries: {{c: {{kind: center}}}}
referers:
  - {{service: web, group: idc-a, protocol: http, listen: {to}, registry: c, lb: round_robin}}
"
    ));
    until("callers know it", || (calling.endpoints().len() == 1).then_some(()));
    // A third of what one instance takes: nothing happens.
    let quiet = Load::http(1, to, "/");
    quiet.more(100);
    assert_eq!(instances(&center).len(), 1, "one instance is enough for one caller");
    let loud = Load::http(2, to, "/");

    let new = until("an instance is added", || {
        loud.more(1);
        instances(&center).iter().map(address).find(|known| *known != first)
    });
    // From little to its own weight.
    let mut weights: BTreeMap<u64, usize> = BTreeMap::new();
    until("it is warm", || {
        loud.more(1);
        let rows = instances(&center);
        let row = rows.iter().find(|row| address(row) == new)?;
        let weight = row["weight"].as_u64()?;
        let known = weights.len();
        weights.entry(weight).or_insert(known);
        (weight == 10 && weights.len() > 1).then_some(())
    });
    let risen: Vec<_> = weights.iter().filter(|(weight, _)| **weight < 10).collect();
    assert!(risen.len() >= 3 && risen.windows(2).all(|two| two[0].1 < two[1].1), "rises step by step: {weights:?}");
    until("it takes a good part of the calls", || {
        loud.more(10);
        rate(&center, &new).iter().rev().take(5).any(|(_, rate)| *rate > 8.0).then_some(())
    });
    let row = center.get("/v1/scale")[0].clone();
    let events = row["events"].as_array().unwrap();
    assert!(events.iter().all(|event| event["by"] == "centre" && event["outcome"] == "ok"), "{row}");
    assert!(row["size"].as_u64() >= Some(2), "{row}");

    // A new life of the centre finds its instances again.
    let pids = |row: &Value| {
        let pids = row["instances"].as_array().unwrap().iter().filter_map(|one| one["pid"].as_u64());
        pids.collect::<std::collections::BTreeSet<_>>()
    };
    let mut curves = [&first, &new].map(|one| (one.clone(), rate(&center, one).into_iter().collect::<Curve>()));
    let before = pids(&center.get("/v1/scale")[0]);
    center.kill9();
    center.again();
    until("it has its instances again", || {
        let row = center.get("/v1/scale")[0].clone();
        pids(&row).is_superset(&before).then_some(())
    });

    loud.stop().all_good(100);
    let peak = until("figures are there again", || {
        let rows = instances(&center);
        (rows.len() >= 2).then_some(rows.len())
    });
    // Back again: what is not needed is taken out of the lists first, so that no call fails.
    // A call now and then: however little the centre has learned that an instance takes, one is enough for that.
    quiet.stop().all_good(200);
    until("the pool shrinks", || {
        assert_eq!(http::get(to, "/").unwrap().status(), 200);
        (instances(&center).len() < peak).then_some(())
    });
    for (one, curve) in &mut curves {
        curve.extend(rate(&center, one));
    }
    let file = target_dir().join("screenshots/scale-loop.svg");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, picture(&curves)).unwrap();
    println!("the picture: {}", file.display());
    assert!(center.stop().success());
    until("its instances ended with it", || before.iter().all(|pid| !runs(*pid)).then_some(()));
}

/// Calls a second by time.
type Curve = BTreeMap<u64, f64>;

/// Calls a second by instance, over time.
fn picture(curves: &[(String, Curve)]) -> String {
    let all = || curves.iter().flat_map(|(_, points)| points.iter().map(|(at, rate)| (*at, *rate)));
    let (from, to) = (all().map(|p| p.0).min().unwrap_or(0), all().map(|p| p.0).max().unwrap_or(1).max(1));
    let most = all().map(|p| p.1).fold(1.0, f64::max);
    let span = (to - from).max(1) as f64;
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"800\" height=\"300\" font-family=\"sans-serif\" \
         font-size=\"12\"><rect width=\"800\" height=\"300\" fill=\"white\"/>",
    );
    write!(svg, "<text x=\"10\" y=\"16\">calls a second by instance, at most {most:.0}, {:.0} s</text>", span / 1000.0)
        .unwrap();
    for ((name, points), color) in curves.iter().zip(["#1f77b4", "#d62728", "#2ca02c"]) {
        let points: Vec<_> = points
            .iter()
            .map(|(at, rate)| {
                format!("{:.1},{:.1}", 10.0 + (at - from) as f64 / span * 780.0, 290.0 - rate / most * 260.0)
            })
            .collect();
        write!(svg, "<polyline fill=\"none\" stroke=\"{color}\" stroke-width=\"2\" points=\"{}\">", points.join(" "))
            .unwrap();
        write!(svg, "<title>{name}</title></polyline>").unwrap();
    }
    svg + "</svg>\n"
}
