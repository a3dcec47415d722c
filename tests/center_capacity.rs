//! What a real server takes is found from what real agents see of it, and obeyed: a server that does so many calls a
//! second and not one more, callers that call more and more.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use host::{Agent, Backend, Center, heavy, http, net, wait::within};
use serde_json::{Value, json};

/// Calls a second that each server does.
const LIMIT: f64 = 20.0;

/// What is slow: far above what a crowded machine adds, far below what overload does.
const SLOW_MS: f64 = 1000.0;

/// Callers at work; each waits for its answer before it calls again. All of them waiting is six seconds.
const CALLERS: u32 = 120;

fn wait_until(end: Instant) {
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        // A server's work, and a caller's pace: nobody waits for it to have happened.
        thread::park_timeout(left);
    }
}

/// A server that works at one call after the other, each for as long as its limit says.
fn server(name: &'static str) -> Backend {
    let free = Mutex::new(Instant::now());
    Backend::http(move |_| {
        let done = {
            let mut free = free.lock().unwrap();
            *free = (*free).max(Instant::now()) + Duration::from_secs_f64(1.0 / LIMIT);
            *free
        };
        wait_until(done);
        http::ok(name)
    })
}

/// Callers that call so many times a second together, if they are answered soon enough.
struct Callers {
    rate: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Callers {
    fn start(to: SocketAddr) -> Self {
        let (rate, stop) = (Arc::new(AtomicU32::new(1)), Arc::new(AtomicBool::new(false)));
        let one = |i: u32| {
            let (rate, stop) = (rate.clone(), stop.clone());
            thread::spawn(move || {
                // Not all at once.
                let mut next = Instant::now() + Duration::from_millis(u64::from(i) * 50);
                let mut conn = None;
                while !stop.load(SeqCst) {
                    wait_until(next.min(Instant::now() + Duration::from_millis(500)));
                    if Instant::now() < next {
                        continue;
                    }
                    let mut open = match conn.take() {
                        Some(open) => open,
                        None => match http::Conn::open(to) {
                            Ok(open) => open,
                            Err(_) => continue,
                        },
                    };
                    if open.get("/").is_ok_and(|answer| !answer.closes()) {
                        conn = Some(open);
                    }
                    let pace = Duration::from_secs_f64(f64::from(CALLERS) / f64::from(rate.load(SeqCst)));
                    next = (next + pace).max(Instant::now());
                }
            })
        };
        let threads = (0..CALLERS).map(one).collect();
        Self { rate, stop, threads }
    }

    fn at(&self, rate: f64) {
        self.rate.store(rate as u32, SeqCst);
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn provider(center: &Center, group: &str, server: &Backend) -> Agent {
    Agent::start(&format!(
        "center: {{address: '{}'}}
registries: {{c: {{kind: center}}}}
services:
  - {{service: web, group: {group}, protocol: http, export: {}, local: {}, registry: c}}
",
        center.addr(),
        net::free_addr(),
        server.addr()
    ))
}

/// Waits as long as figures take, which are gathered for minutes.
#[track_caller]
fn until(center: &Center, what: &str, mut happened: impl FnMut() -> bool) {
    let found = within(Duration::from_secs(240), || happened().then_some(()));
    let points = || center.get("/v1/capacity/points?service=web&group=idc-a");
    assert!(found.is_some(), "waited in vain until {what}: {} {}", pool(center, "idc-a"), points());
}

fn pool(center: &Center, group: &str) -> Value {
    center.get(&format!("/v1/capacity/pool?service=web&group={group}"))
}

/// Windows of ten seconds in which this holds.
fn windows(center: &Center, fits: impl Fn(f64, f64) -> bool) -> usize {
    let points = center.get("/v1/capacity/points?service=web&group=idc-a");
    let fits = |p: &&Value| fits(p["rate"].as_f64().unwrap(), p["p99_ms"].as_f64().unwrap());
    points.as_array().unwrap().iter().filter(fits).count()
}

#[test]
fn the_limit_of_a_real_server_is_found_and_obeyed() {
    let _heavy = heavy();
    let center = Center::start("");
    let servers = [server("a"), server("b")];
    let _providers = [provider(&center, "idc-a", &servers[0]), provider(&center, "idc-b", &servers[1])];
    let to = net::free_addr();
    let _calling = Agent::start(&format!(
        "center: {{address: '{}'}}
registries: {{c: {{kind: center}}}}
referers:
  - {{service: web, group: idc-a, protocol: http, listen: {to}, registry: c, timeout: 30s}}
",
        center.addr()
    ));
    until(&center, "calls go through", || http::get(to, "/").is_ok_and(|answer| answer.status() == 200));
    let policy = |switch: bool| {
        let policy = json!({"switch": switch, "hold_ms": 4000, "period_ms": 10_000, "redundancy_percent": 0,
            "slow_ms": SLOW_MS});
        let (status, said) = center.send("PUT", "/v1/pools", &policy);
        assert_eq!(status, 200, "{said}");
    };
    policy(false);
    let callers = Callers::start(to);
    callers.at(0.9 * LIMIT);
    until(&center, "it was seen going well", || windows(&center, |rate, p99| rate > 0.8 * LIMIT && p99 < SLOW_MS) >= 4);
    let bound = pool(&center, "idc-a");
    assert_eq!(bound["capacity"]["confidence"], "lower_bound", "{bound}");
    callers.at(2.0 * LIMIT);
    until(&center, "it was seen overloaded", || {
        windows(&center, |rate, p99| rate > 0.8 * LIMIT && p99 > 4.0 * SLOW_MS) >= 4
    });
    let known = |pool: &Value| pool["capacity"]["confidence"] == "medium" || pool["capacity"]["confidence"] == "high";
    until(&center, "its limit is told", || known(&pool(&center, "idc-a")));
    let found = pool(&center, "idc-a");
    let each = found["capacity"]["per_instance"].as_f64().unwrap();
    println!("it does {LIMIT}/s, found {each:.1}/s: {}", found["capacity"]["basis"]);
    assert!((each / LIMIT - 1.0).abs() < 0.1, "{found}");
    assert_eq!(found["level"], "fatal", "it is overloaded: {found}");

    // Four fifths of that are above the warning line, and the other group has room.
    callers.at(0.8 * LIMIT);
    until(&center, "the overload is over", || pool(&center, "idc-a")["water_percent"].as_f64().unwrap() < 95.0);
    policy(true);
    let command = || center.get("/v1/commands?limit=1")["items"][0].clone();
    // What was proposed during the overload was withdrawn, or is another one.
    until(&center, "part of it is moved", || command()["state"] == "active");
    let given = command();
    assert_eq!((&given["author"], &given["asked"]["action"]["kind"]), (&json!("centre"), &json!("move")), "{given}");
    let percent = given["asked"]["action"]["percent"].as_f64().unwrap();
    assert!((10.0..=35.0).contains(&percent), "{given}");
    let share = || {
        let rate = |group: &str| pool(&center, group)["rate"].as_f64().unwrap();
        let (a, b) = (rate("idc-a"), rate("idc-b"));
        100.0 * b / (a + b).max(1.0)
    };
    until(&center, "so much is seen at the other group", || (share() - percent).abs() < 5.0);
    assert!(servers[1].requests() > 0);
    until(&center, "it is below its line", || pool(&center, "idc-a")["water_percent"].as_f64().unwrap() < 70.0);
    assert!(pool(&center, "idc-b")["water_percent"].as_f64().unwrap() < 60.0);

    callers.at(0.3 * LIMIT);
    until(&center, "it is taken back", || command()["state"] == "undone");
    assert_eq!(command()["id"], given["id"], "and nothing else was done");
    until(&center, "all of it is where it was", || share() < 0.5);
}
