//! A mesh that is told to the centre and is not there: agents with services in two data centres, whose callers obey
//! the commands that the centre gives.

use std::{net::SocketAddr, path::PathBuf, sync::mpsc, thread, time::Duration};

use host::http;
use model::center::{AgentStatus, Edge, Histogram, Report, Sample, Side};
use serde_json::{Value, json};

/// Both data centres.
pub const GROUPS: [&str; 2] = ["idc-a", "idc-b"];
/// Service, the application that serves it, calls a second of `idc-a`'s callers, and their usual time.
pub const SERVICES: [(&str, &str, f64, f64); 4] = [
    ("com.shop.Order", "order", 900.0, 9.0),
    ("com.shop.Cart", "cart", 420.0, 4.0),
    ("com.shop.Payment", "payment", 260.0, 21.0),
    ("com.feed.Timeline", "timeline", 1300.0, 14.0),
];
/// Who calls which of them, and with what share of its calls.
const CALLS: [(&str, usize, f64, &str); 6] = [
    ("mobile-api", 3, 1.0, "redirect"),
    ("mobile-api", 1, 0.7, "redirect"),
    ("web", 1, 0.3, "kernel"),
    ("web", 0, 0.35, "tcp"),
    ("cart", 0, 0.65, "redirect"),
    ("order", 2, 1.0, "redirect"),
];
/// Instances of a service in a group.
pub const EACH: usize = 3;
/// Time that a report covers.
const WINDOW: Duration = Duration::from_secs(1);

/// Ends with its last owner.
pub struct Mesh {
    stop: Option<mpsc::SyncSender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Mesh {
    /// Registers everything and goes on telling. The file `load` says how many times the usual load there is.
    #[track_caller]
    pub fn start(center: SocketAddr, load: Option<PathBuf>) -> Self {
        for (service, application, ..) in SERVICES {
            for group in GROUPS {
                for i in 0..EACH {
                    register(center, service, application, group, i);
                }
            }
        }
        let (stop, stopped) = mpsc::sync_channel(1);
        let thread = thread::spawn(move || {
            let mut teller = Teller { center, sequence: 0, load };
            loop {
                teller.tell();
                if stopped.recv_timeout(WINDOW) != Err(mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where an instance is said to be.
pub fn address(service: &str, group: &str, i: usize) -> String {
    let at = SERVICES.iter().position(|(name, ..)| *name == service).unwrap_or(0);
    let net = GROUPS.iter().position(|g| *g == group).unwrap_or(0);
    format!("10.{net}.0.{}:{}", i + 1, 8000 + at)
}

/// Sends JSON; the centre may be away, which a test then has wanted.
pub fn send(center: SocketAddr, method: &str, path: &str, body: &Value) -> Option<(u16, String)> {
    let body = body.to_string();
    let mut conn = http::Conn::open(center).ok()?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {center}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    conn.send(head + &body).ok()?;
    let answer = conn.answer().ok()?;
    Some((answer.status(), answer.text()))
}

fn register(center: SocketAddr, service: &str, application: &str, group: &str, i: usize) {
    let version = if i + 1 == EACH { "2.1.0" } else { "2.0.4" };
    let instance = json!({"address": address(service, group, i), "weight": 10, "zone": group, "version": version});
    let registration = json!({
        "key": {"service": service, "group": group}, "protocol": "motan2", "instance": instance,
        "application": application, "parameters": {}, "available": true,
    });
    let agent = format!("{application}-{group}-{}/agent", i + 1);
    let body = json!({"agent": agent, "ttl_ms": 600_000, "generation": 1, "registrations": [registration]});
    let (status, text) = send(center, "PUT", "/v1/agent/registrations", &body).expect("the centre answers");
    assert_eq!(status, 200, "{text}");
    assert!(!text.contains("refused\":[\""), "{text}");
}

struct Teller {
    center: SocketAddr,
    sequence: u64,
    load: Option<PathBuf>,
}

impl Teller {
    fn tell(&mut self) {
        self.sequence += 1;
        let moved = self.moved();
        let taken = self.taken();
        for caller in ["mobile-api", "web", "cart", "order"] {
            let mut report = self.report(&format!("{caller}-host/agent"), caller, "idc-a");
            for (_, at, share, way) in CALLS.iter().filter(|(name, ..)| *name == caller) {
                for (group, rate) in GROUPS.iter().zip(self.rates(*at, &moved)) {
                    self.calls(&mut report, caller, *at, group, rate * share, way, &taken);
                }
            }
            self.post(&report);
        }
        for (at, (service, application, ..)) in SERVICES.iter().enumerate() {
            for (group, rate) in GROUPS.iter().zip(self.rates(at, &moved)) {
                let live = live(&taken, service, group);
                for i in 0..EACH {
                    let mut report = self.report(&format!("{application}-{group}-{}/agent", i + 1), application, group);
                    if live.contains(&i) {
                        let mut sample = sample(at, group, i, rate / live.len() as f64);
                        sample.side = Side::Inbound;
                        report.samples.push(sample);
                    }
                    self.post(&report);
                }
            }
        }
    }

    /// Calls a second of both groups: a wave, and what commands moved.
    fn rates(&self, at: usize, moved: &[(String, f64)]) -> [f64; 2] {
        let (service, _, rate, _) = SERVICES[at];
        let wave = 1.0 + 0.06 * (self.sequence as f64 / 9.0 + at as f64).sin();
        let load = self.load.as_ref().and_then(|file| std::fs::read_to_string(file).ok()?.trim().parse::<f64>().ok());
        let all = rate * wave * load.unwrap_or(1.0);
        let share = moved.iter().find(|(name, _)| name == service).map_or(0.0, |(_, share)| *share);
        [all * (1.0 - share), all * 0.45 + all * share]
    }

    /// The share of `idc-a`'s calls of each service that the centre's texts send to `idc-b`.
    fn moved(&self) -> Vec<(String, f64)> {
        let Some(page) = http::get(self.center, "/v1/registry").ok() else { return Vec::new() };
        let page: Value = serde_json::from_slice(&page.body).unwrap_or_default();
        let texts = page["texts"].as_array().cloned().unwrap_or_default();
        let own = texts.iter().find(|text| text["scope"]["group"] == "idc-a");
        let text = own.and_then(|text| text["text"].as_str()).unwrap_or_default();
        let text: Value = serde_json::from_str(text).unwrap_or_default();
        let commands = text["clientCommandList"].as_array().cloned().unwrap_or_default();
        let share = |groups: &Value| {
            let weight = |group: &str| {
                let found = groups.as_array()?.iter().filter_map(Value::as_str).find_map(|entry| {
                    let (name, weight) = entry.split_once(':')?;
                    (name == group).then(|| weight.parse::<f64>().ok())?
                });
                found.or_else(|| groups.as_array()?.iter().any(|g| g == group).then_some(1.0))
            };
            let (stay, go) = (weight("idc-a").unwrap_or(0.0), weight("idc-b").unwrap_or(0.0));
            if stay + go > 0.0 { go / (stay + go) } else { 0.0 }
        };
        let meant = commands.iter().filter_map(|c| Some((c["pattern"].as_str()?.to_owned(), share(&c["mergeGroups"]))));
        meant.collect()
    }

    /// Instances that operators took out.
    fn taken(&self) -> Vec<String> {
        let mut taken = Vec::new();
        for (service, ..) in SERVICES {
            for group in GROUPS {
                let page = http::get(self.center, &format!("/v1/service?service={service}&group={group}"));
                let page: Value = page.ok().and_then(|p| serde_json::from_slice(&p.body).ok()).unwrap_or_default();
                let rows = page["instances"].as_array().cloned().unwrap_or_default();
                let out = rows.iter().filter(|row| row["state"] == "out" || row["state"] == "draining");
                taken.extend(out.filter_map(|row| row["address"].as_str().map(str::to_owned)));
            }
        }
        taken
    }

    #[allow(clippy::too_many_arguments, reason = "one place, and all of them differ in what they are")]
    fn calls(&self, report: &mut Report, caller: &str, at: usize, group: &str, rate: f64, way: &str, taken: &[String]) {
        let (service, ..) = SERVICES[at];
        let live = live(taken, service, group);
        let mut edge = Edge {
            caller: caller.to_owned(),
            service: service.to_owned(),
            group: group.to_owned(),
            protocol: "motan2".to_owned(),
            way: way.to_owned(),
            ..Edge::default()
        };
        for i in &live {
            let mut sample = sample(at, group, *i, rate / live.len() as f64);
            sample.caller = caller.to_owned();
            edge.calls += sample.calls;
            edge.failed += sample.failed;
            report.samples.push(sample);
        }
        report.edges.push(edge);
    }

    fn report(&self, agent: &str, application: &str, zone: &str) -> Report {
        let status = AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            application: application.to_owned(),
            zone: zone.to_owned(),
            kernel: "6.12.0".to_owned(),
            capture: if application == "web" { "port" } else { "ebpf" }.to_owned(),
            capture_reason: if application == "web" { "no CAP_BPF: ports are listened on" } else { "" }.to_owned(),
            redirect: if application == "web" { "off" } else { "auto" }.to_owned(),
            redirect_reason: if application == "web" { "needs the kernel half" } else { "" }.to_owned(),
            config_wanted: if application == "timeline" { 8 } else { 7 },
            config_applied: 7,
            config_error: (application == "timeline")
                .then(|| "clusters.feed: unknown load balancer `p3c`, did you mean `p2c`?".to_owned()),
            uptime_seconds: 86_400.0 + self.sequence as f64,
            resident_bytes: 21 << 20,
            connections: 42,
            ..AgentStatus::default()
        };
        let window_seconds = WINDOW.as_secs_f64();
        Report { agent: agent.to_owned(), window_seconds, sequence: self.sequence, status, ..Report::default() }
    }

    fn post(&self, report: &Report) {
        let body = serde_json::to_value(report).expect("a report is JSON");
        let _ = send(self.center, "POST", "/v1/agent/report", &body);
    }
}

fn live(taken: &[String], service: &str, group: &str) -> Vec<usize> {
    (0..EACH).filter(|i| !taken.contains(&address(service, group, *i))).collect()
}

/// Calls of one instance within a window: most of them fast, some slow, a few that fail.
fn sample(at: usize, group: &str, i: usize, rate: f64) -> Sample {
    let (service, _, _, ms) = SERVICES[at];
    let calls = (rate * WINDOW.as_secs_f64()).round() as u64;
    let mut times = Histogram::default();
    let mut left = calls;
    for (times_usual, share) in [(3.2, 0.004), (1.9, 0.02), (1.2, 0.2)] {
        let slow = ((calls as f64 * share).round() as u64).min(left);
        times.add((ms * times_usual * 1000.0) as u64, slow);
        left -= slow;
    }
    times.add((ms * 600.0) as u64, left);
    let failed = if service == "com.shop.Payment" && group == "idc-b" { calls.div_ceil(60) } else { 0 };
    Sample {
        service: service.to_owned(),
        group: group.to_owned(),
        instance: address(service, group, i),
        calls,
        failed,
        slow: 0,
        times,
        in_flight: (rate * ms / 1000.0).ceil() as u64,
        ..Sample::default()
    }
}
