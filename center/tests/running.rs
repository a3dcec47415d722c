//! The real centre, killed, copied, restored, on a full disk, twice on one store.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code: a panic is its way to fail")]

use std::{
    env, fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// How long an event may take on a crowded machine.
const PATIENCE: Duration = Duration::from_secs(120);
const CENTER: &str = env!("CARGO_BIN_EXE_sockmesh-center");

struct Temp(PathBuf);

impl Temp {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("sockmesh-running-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let dir = env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Waits until `look` finds something.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited {PATIENCE:?} for: {what}");
        // Not a synchronisation: only how often we look.
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// A program that is killed with the test.
struct Program(Child);

impl Program {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = (self.0.kill(), self.0.wait());
    }
}

/// A running centre.
struct Center {
    program: Program,
    at: SocketAddr,
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(CENTER);
    command.args(args).stdin(Stdio::null()).env_remove("SOCKMESH_CENTER").env_remove("SOCKMESH_TOKEN");
    command.env("SOCKMESH_LOG", "warn");
    command
}

/// Runs a verb to its end.
fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Center {
    fn spawn(mut command: Command) -> Self {
        let at = free();
        let child = command.args(["--listen", &at.to_string()]).spawn().unwrap();
        let mut center = Self { program: Program(child), at };
        until("the centre serves", || {
            let end = center.program.0.try_wait().unwrap();
            assert!(end.is_none(), "the centre ended: {end:?}");
            center.try_ask("GET", "/v1/store", None).filter(|(status, _)| *status == 200)
        });
        center
    }

    fn start(args: &[&str]) -> Self {
        Self::spawn(command(args))
    }

    fn try_ask(&self, method: &str, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
        let mut stream = TcpStream::connect_timeout(&self.at, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            self.at,
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let answer = text(&answer);
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        // A chunked body is one chunk here, or nobody looks at it.
        let json = body.find('{').zip(body.rfind('}')).map(|(from, to)| &body[from..=to]).unwrap_or_default();
        Some((status, serde_json::from_str(json).unwrap_or(Value::Null)))
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.try_ask(method, path, body).unwrap_or_else(|| panic!("no answer to {method} {path}"))
    }

    fn store(&self) -> Value {
        let (status, said) = self.ask("GET", "/v1/store", None);
        assert_eq!(status, 200, "{said}");
        said
    }

    fn register(&self, agent: &str, generation: u64, instances: usize) -> Option<(u16, Value)> {
        self.try_ask("PUT", "/v1/agent/registrations", Some(&registrations(agent, generation, instances)))
    }

    /// Generation in force of an agent, and the generations that its instances say.
    fn registered(&self, agent: &str) -> (u64, Vec<u64>) {
        let beat = json!({"agent": format!("host/{agent}"), "generation": 0});
        let (status, said) = self.ask("POST", "/v1/agent/heartbeat", Some(&beat));
        assert_eq!(status, 200, "{said}");
        let generation = said["generation"].as_u64().unwrap();
        let (status, page) = self.ask("GET", &format!("/v1/service?service=svc-{agent}&group=g"), None);
        let all = page["instances"].as_array().cloned().unwrap_or_default();
        assert!(status == 200 || generation == 0, "{status} {page}");
        (generation, all.iter().map(|i| i["metadata"]["generation"].as_str().unwrap().parse().unwrap()).collect())
    }
}

fn registrations(agent: &str, generation: u64, instances: usize) -> Value {
    let one = |i: usize| {
        json!({
            "key": {"service": format!("svc-{agent}"), "group": "g", "version": ""},
            "protocol": "motan2",
            "instance": {
                "address": format!("10.0.{}.{}:8002", i / 250, i % 250),
                "metadata": {"generation": generation.to_string(), "padding": "x".repeat(200)},
            },
            "available": true,
        })
    };
    let all: Vec<_> = (0..instances).map(one).collect();
    json!({"agent": format!("host/{agent}"), "ttl_ms": 3_600_000, "generation": generation, "registrations": all})
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn what_was_answered_outlives_sigkill() {
    let (dir, rounds) = (Temp::new(), if env::var_os("SOCKMESH_SOAK").is_some() { 200 } else { 6 });
    let mut random = fastrand::Rng::with_seed(7);
    let (mut acknowledged, mut epoch) = ([0_u64; 3], 0);
    for round in 0..rounds {
        let mut center = Center::start(&["--data", path(&dir.0)]);
        let now = center.store()["epoch"].as_u64().unwrap();
        assert!(now > epoch, "round {round}: epoch {now} after {epoch}");
        epoch = now;
        for (agent, acknowledged) in acknowledged.iter_mut().enumerate() {
            let (generation, of_instances) = center.registered(&agent.to_string());
            assert!(generation >= *acknowledged, "round {round}: {acknowledged} was answered, {generation} is there");
            assert!(of_instances.iter().all(|of| *of == generation), "round {round}: half of {generation}");
            assert!(of_instances.len() == 5 || generation == 0, "round {round}: {of_instances:?}");
            *acknowledged = generation;
        }
        let wait = Duration::from_micros(random.u64(0..120_000));
        let said: Vec<_> = std::thread::scope(|scope| {
            let agents: Vec<_> = acknowledged
                .iter()
                .enumerate()
                .map(|(agent, from)| {
                    let (center, mut generation) = (&center, *from);
                    scope.spawn(move || {
                        while let Some((200, _)) = center.register(&agent.to_string(), generation + 1, 5) {
                            generation += 1;
                        }
                        generation
                    })
                })
                .collect();
            // Not a synchronisation: the moment of the kill.
            std::thread::park_timeout(wait);
            center.program.signal(Signal::KILL);
            agents.into_iter().map(|agent| agent.join().unwrap()).collect()
        });
        center.program.0.wait().unwrap();
        acknowledged.copy_from_slice(&said);
    }
    println!("killed {rounds} times, {} generations answered, none lost", acknowledged.iter().sum::<u64>());
}

#[test]
fn a_second_centre_on_one_store_refuses_and_says_who_has_it() {
    let dir = Temp::new();
    let center = Center::start(&["--data", path(&dir.0)]);
    let second = run(&["--data", path(&dir.0), "--listen", &free().to_string()]);
    let said = text(&second.stderr);
    assert!(!second.status.success(), "{said}");
    assert!(said.contains(&format!("is in use by process {}", center.program.0.id())), "{said}");
    assert_eq!(center.store()["trouble"], Value::Null);
}

#[test]
fn a_backup_of_a_running_centre_is_restored_and_agents_are_told() {
    let (dir, other) = (Temp::new(), Temp::new());
    let (data, file) = (dir.0.join("data"), dir.0.join("backup"));
    let (data, file) = (path(&data), path(&file));
    let mut center = Center::start(&["--data", data]);
    assert_eq!(center.register("a", 1, 40).unwrap().0, 200);
    let at = center.at.to_string();
    let said = run(&["--data", data, "--listen", &at, "backup", file]);
    assert!(said.status.success(), "{}", text(&said.stderr));
    assert!(text(&said.stdout).contains("entries at epoch 1"), "{}", text(&said.stdout));
    let (_, audit) = center.ask("GET", "/v1/audit?what=store.", None);
    assert_eq!(audit["items"][0]["what"], "store.backup", "{audit}");
    assert_eq!(center.register("a", 2, 41).unwrap().0, 200);
    let seen = center.store();
    let stands = |center: &Center| {
        let now = center.store();
        (now["epoch"].as_u64().unwrap(), now["revision"].as_u64().unwrap())
    };

    let used = run(&["--data", data, "restore", file, "--force"]);
    assert!(text(&used.stderr).contains("is in use by process"), "{}", text(&used.stderr));
    center.program.kill();
    let there = run(&["--data", data, "restore", file]);
    assert!(text(&there.stderr).contains("--force"), "{}", text(&there.stderr));

    // On a new machine without force: what it says is older than what agents saw.
    let fresh = other.0.join("fresh");
    let said = run(&["--data", path(&fresh), "restore", file]);
    assert!(text(&said.stdout).contains("--force makes them follow"), "{}{}", text(&said.stdout), text(&said.stderr));
    let old = Center::start(&["--data", path(&fresh)]);
    assert_eq!(old.registered("a"), (1, vec![1; 40]));
    assert!(stands(&old).1 < seen["revision"].as_u64().unwrap());
    drop(old);

    // With force: above everything.
    let said = run(&["--data", data, "restore", file, "--force"]);
    assert!(text(&said.stdout).contains("agents follow it"), "{}{}", text(&said.stdout), text(&said.stderr));
    let center = Center::start(&["--data", data]);
    assert_eq!(center.registered("a"), (1, vec![1; 40]));
    let (epoch, revision) = stands(&center);
    assert!(epoch > seen["epoch"].as_u64().unwrap() && revision > seen["revision"].as_u64().unwrap());
    drop(center);

    // A file that was cut off touches nothing.
    let bytes = fs::read(file).unwrap();
    fs::write(file, &bytes[..bytes.len() - 20]).unwrap();
    let broken = run(&["--data", data, "restore", file, "--force"]);
    assert!(text(&broken.stderr).contains("cut off"), "{}", text(&broken.stderr));
    // Of a stopped centre, and where there is none.
    let said = run(&["--data", data, "backup", file]);
    assert!(said.status.success(), "{}", text(&said.stderr));
    let nothing = run(&["--data", path(&other.0.join("none")), "backup", file]);
    assert!(text(&nothing.stderr).contains("there is no store"), "{}", text(&nothing.stderr));
}

/// Says that a test cannot run here; a failure where it must.
fn skip(why: &str) {
    let line = format!("SKIPPED: {why}");
    assert!(env::var_os("REQUIRE_ALL").is_none_or(|value| value != "1"), "{line} (REQUIRE_ALL=1)");
    println!("{line}");
}

#[test]
fn a_full_disk_makes_it_read_only_until_there_is_room() {
    if !rustix::process::geteuid().is_root() {
        return skip("a file system of a few megabytes needs root");
    }
    let dir = Temp::new();
    // A file system that only this centre sees; through its `/proc/PID/root` the test does, too.
    let script = format!("mount -t tmpfs -o size=6m tmpfs {} && exec \"$@\"", dir.0.display());
    let mut inside = Command::new("unshare");
    inside.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh", CENTER]);
    inside.args(["--data", path(&dir.0)]).env("SOCKMESH_LOG", "warn").stdin(Stdio::null());
    let center = Center::spawn(inside);
    let mut generation = 1;
    assert_eq!(center.register("a", generation, 20).unwrap().0, 200);
    let filler = format!("/proc/{}/root{}/filler", center.program.0.id(), dir.0.display());
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    drop(file);

    // Pages that are free inside the database are used up first.
    let mut tries = 0;
    let refused = until("the disk is noticed", || {
        tries += 1;
        let (status, said) = center.register("a", generation + 1, 400).unwrap();
        if status == 200 {
            generation += 1;
        }
        (status != 200).then_some((status, said))
    });
    assert_eq!((refused.0, &refused.1["code"]), (503, &json!("read_only")), "{refused:?}");
    assert!(refused.1["message"].as_str().unwrap().contains("is full"), "{refused:?}");
    // Everything that is known is answered, and the reason is told.
    assert_eq!(center.registered("a").0, generation);
    assert!(center.store()["trouble"].as_str().unwrap().contains("is full"));

    // A kill on a full disk loses nothing either: the next one starts, on the same full disk.
    fs::remove_file(&filler).unwrap();
    until("writing goes on", || center.store()["trouble"].is_null().then_some(()));
    let (status, said) = center.register("a", generation + 1, 30).unwrap();
    assert_eq!(status, 200, "{said}");
    assert_eq!(center.registered("a"), (generation + 1, vec![generation + 1; 30]));
}

/// A member of etcd of its own.
fn etcd(dir: &Path) -> Option<(Program, SocketAddr)> {
    if Command::new("etcd").arg("--version").output().is_err() {
        skip("etcd is not installed");
        return None;
    }
    let (at, peer) = (free(), free());
    let (client, peer) = (format!("http://{at}"), format!("http://{peer}"));
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(dir).args(["--unsafe-no-fsync", "--log-level", "error"]);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("default={peer}")]);
    Some((Program(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()), at))
}

#[test]
fn two_centres_on_etcd_share_everything_and_one_leads() {
    let dir = Temp::new();
    let Some((_etcd, at)) = etcd(&dir.0.join("etcd")) else { return };
    let options = |name: &str| {
        let file = dir.0.join(format!("{name}.yaml"));
        let data = dir.0.join(name);
        let text = format!(
            "name: {name}\ndata: {}\nstore: {{kind: etcd, options: {{address: ['{at}'], lease: 2s}}}}\n",
            data.display()
        );
        fs::write(&file, text).unwrap();
        file
    };
    let (one, two) = (options("one"), options("two"));
    let one = Center::start(&["--config", path(&one)]);
    until("it leads", || (one.store()["leads"] == true).then_some(()));
    let two = Center::start(&["--config", path(&two)]);
    until("it is followed", || (two.store()["leader"] == "one").then_some(()));
    assert_eq!(two.store()["leads"], false);

    // Registered at one, known by both.
    assert_eq!(one.register("a", 1, 20).unwrap().0, 200);
    until("two knows it", || (two.registered("a") == (1, vec![1; 20])).then_some(()));
    assert_eq!(two.register("a", 2, 10).unwrap().0, 200);
    until("one knows it", || (one.registered("a") == (2, vec![2; 10])).then_some(()));

    // The leader stands still past its lease: the other leads, in a later epoch; when it goes on, it does not.
    let before = one.store()["epoch"].as_u64().unwrap();
    one.program.signal(Signal::STOP);
    until("two leads", || (two.store()["leads"] == true).then_some(()));
    let after = two.store()["epoch"].as_u64().unwrap();
    assert!(after > before, "{before} {after}");
    one.program.signal(Signal::CONT);
    until("one follows", || {
        let said = one.store();
        (said["leads"] == false && said["epoch"] == after && said["leader"] == "two").then_some(())
    });
    assert_eq!(two.store()["leads"], true);

    // A stop in good order hands the lead over at once.
    two.program.signal(Signal::TERM);
    until("one leads", || (one.store()["leads"] == true).then_some(()));
    assert_eq!(one.registered("a"), (2, vec![2; 10]));
}

/// Registers so many instances, 25 of each service and 1,000 of each agent, and starts again: what is said by both.
fn starts_with(center: Center, again: impl FnOnce() -> Center, all: usize, kept: impl FnOnce() -> u64) {
    let agents = all.div_ceil(1000);
    let began = Instant::now();
    for agent in 0..agents {
        let one = |i: usize| {
            let i = agent * 1000 + i;
            json!({
                "key": {"service": format!("com.example.shop.Service{:04}", i / 25), "group": "idc-a", "version": ""},
                "protocol": "motan2",
                "application": "shop",
                "instance": {
                    "address": format!("10.{}.{}.{}:8002", i / 62_500, i / 250 % 250, i % 250 + 1),
                    "zone": "zone-1", "version": "1.4.2", "metadata": {"serialization": "breeze"},
                },
                "available": true,
            })
        };
        let said: Vec<_> = (0..1000.min(all - agent * 1000)).map(one).collect();
        let said =
            json!({"agent": format!("host{agent}/shop"), "ttl_ms": 3_600_000, "generation": 1, "registrations": said});
        let (status, answer) = center.ask("PUT", "/v1/agent/registrations", Some(&said));
        assert_eq!((status, answer["refused"].as_array().map_or(0, Vec::len)), (200, 0), "{answer}");
    }
    let registered = began.elapsed();
    let kept = kept();
    drop(center);
    let began = Instant::now();
    let center = again();
    let (_, page) = center.ask("GET", "/v1/registry", None);
    let started = began.elapsed();
    assert_eq!(page["instances"].as_u64(), Some(all as u64), "{page}");
    let status = fs::read_to_string(format!("/proc/{}/status", center.program.0.id())).unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default().trim();
    let per = kept / all as u64;
    println!(
        "{all} instances: registered in {registered:.1?}, {per} bytes each in the store, started in {started:.2?}, {rss}"
    );
}

#[test]
fn a_start_reads_everything() {
    let all = if env::var_os("SOCKMESH_SOAK").is_some() { 50_000 } else { 2_000 };
    let dir = Temp::new();
    let data = dir.0.join("embedded");
    let start = || Center::start(&["--data", path(&data)]);
    // Read where it is, without a copy: how much of the file is in use does not matter here.
    let size = || fs::metadata(data.join("center.redb")).map_or(0, |file| file.len());
    println!("embedded:");
    starts_with(start(), start, all, size);
    let Some((_etcd, at)) = etcd(&dir.0.join("etcd")) else { return };
    let (store, other) = (format!("etcd://{at}"), dir.0.join("other"));
    let start = || Center::start(&["--data", path(&other), "--store", &store]);
    let size = || fs::metadata(dir.0.join("etcd/member/snap/db")).map_or(0, |file| file.len());
    println!("etcd:");
    starts_with(start(), start, all, size);
}

#[test]
fn a_clock_that_jumps_moves_nothing() {
    // Debian's package `faketime`; only the time of day is faked, as when somebody sets it.
    let library =
        ["x86_64", "aarch64"].map(|cpu| PathBuf::from(format!("/usr/lib/{cpu}-linux-gnu/faketime/libfaketimeMT.so.1")));
    let Some(library) = library.iter().find(|file| file.exists()) else { return skip("faketime is not installed") };
    let dir = Temp::new();
    let clock = dir.0.join("clock");
    let set = |offset: &str| fs::write(&clock, offset).unwrap();
    set("+0");
    let mut command = command(&["--data", path(&dir.0.join("data"))]);
    command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", &clock).env("FAKETIME_NO_CACHE", "1");
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
    let center = Center::spawn(command);
    assert_eq!(center.register("a", 1, 5).unwrap().0, 200);
    let out = |reason: &str| {
        let key = json!({"service": "svc-a", "group": "g", "version": ""});
        let order = json!({"key": key, "address": "10.0.0.0:8002", "reason": reason});
        let (status, said) = center.ask("POST", "/v1/instance/out", Some(&order));
        assert!(status < 300, "{status} {said}");
    };
    let mut before = center.store()["revision"].as_u64().unwrap();
    for (offset, reason) in [("+400d", "forward"), ("-400d", "back"), ("+1h", "forth")] {
        set(offset);
        out(reason);
        let now = center.store()["revision"].as_u64().unwrap();
        assert!(now > before, "{offset}");
        before = now;
        // Neither lost nor forgotten, whatever the clock says.
        assert_eq!(center.registered("a"), (1, vec![1; 5]), "{offset}");
        let (_, audit) = center.ask("GET", "/v1/audit?limit=1", None);
        assert_eq!(audit["items"][0]["detail"]["reason"], reason, "{offset}: the newest is first: {audit}");
    }
    let (_, audit) = center.ask("GET", "/v1/audit?what=instance.out", None);
    let times: Vec<_> = audit["items"].as_array().unwrap().iter().map(|e| e["at_ms"].as_u64().unwrap()).collect();
    assert!(times[0] > times[1] && times[1] < times[2], "the clock did jump: {times:?}");
}
