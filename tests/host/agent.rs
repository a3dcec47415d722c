//! The real agent, as operators start it.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::{Condvar, Mutex, MutexGuard},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{Cgroup, Cmd, Net, Proc, Temp, cmd::Output, http, net::free_port, target_dir, temp::serial, until, wait};

/// What of an agent differs from the usual.
#[derive(Default)]
pub struct Settings<'a> {
    /// Programs in these groups are captured by the kernel half; none means port mode.
    pub enroll: &'a [&'a Cgroup],
    /// Their connections may be joined.
    pub join: bool,
    /// Runs in this network namespace, its admin API at that end of the link.
    pub net: Option<&'a Net>,
    /// Runs in this group.
    pub cgroup: Option<&'a Cgroup>,
    /// Runs with these of root's powers only, as [`Cmd::powers`] takes them.
    pub powers: Option<&'a [&'a str]>,
    /// Its programs are searched in this folder first.
    pub path: Option<&'a Path>,
    /// How programs in `enroll` are captured; `ebpf` when empty.
    pub mode: &'a str,
    /// Further keys of `capture`, such as `exempt: {ports: [22]}`.
    pub capture: &'a str,
    /// Most descriptors it may hold.
    pub descriptors: Option<u32>,
    /// Further lines at the top of its YAML, such as `drain: 2s`.
    pub top: &'a str,
}

/// A running agent. Stopped by force on drop, with its log shown when the test fails.
#[derive(Debug)]
pub struct Agent {
    proc: Proc,
    dir: Temp,
    cmd: Cmd,
    head: String,
    name: String,
    admin: SocketAddr,
    outbound: u16,
    // Last, so that what it left is gone when others may look.
    _kernel: Option<KernelUse>,
}

impl Agent {
    /// Starts one in port mode with `services` (the sections `referers`, `services`, `registries`) as its
    /// YAML, and waits until it is ready.
    #[track_caller]
    pub fn start(services: &str) -> Self {
        Self::with(&Settings::default(), services)
    }

    /// Starts one that captures the programs in `enroll`.
    #[track_caller]
    pub fn capturing(enroll: &[&Cgroup], services: &str) -> Self {
        Self::with(&Settings { enroll, ..Settings::default() }, services)
    }

    /// Starts one with its own settings.
    #[track_caller]
    pub fn with(settings: &Settings<'_>, services: &str) -> Self {
        let kernel = (!settings.enroll.is_empty() || !settings.mode.is_empty()).then(KernelUse::shared);
        let dir = Temp::new();
        let name = format!("test-{}-{}", std::process::id(), serial());
        let (admin, outbound) =
            (SocketAddr::new(settings.net.map_or(IpAddr::from([127, 0, 0, 1]), Net::there), free_port()), free_port());
        let mut head = format!("name: {name}\nthreads: 2\naccess_log: {{path: access.log}}\n");
        writeln!(head, "ports: {{outbound: {outbound}, inbound: {}, dns: 0, admin: \"{admin}\"}}", free_port())
            .unwrap();
        if settings.enroll.is_empty() && settings.mode.is_empty() {
            head.push_str("capture: port\n");
        } else {
            let join = if settings.join { ", join: true" } else { "" };
            let groups: Vec<_> =
                settings.enroll.iter().map(|g| format!("{{cgroup: {}{join}}}", g.path().display())).collect();
            let mode = if settings.mode.is_empty() { "ebpf" } else { settings.mode };
            let more = if settings.capture.is_empty() { String::new() } else { format!(", {}", settings.capture) };
            writeln!(head, "capture: {{mode: {mode}, enroll: [{}]{more}}}", groups.join(", ")).unwrap();
        }
        if !settings.top.contains("drain:") {
            head.push_str("drain: 2s\n");
        }
        head.push_str(settings.top);
        head.push('\n');
        let config = dir.write("mesh.yaml", format!("{head}{services}"));
        let mut cmd = Cmd::new(binary()).args(["run", "-c"]).arg(config.display());
        if let Some(most) = settings.descriptors {
            cmd = cmd.descriptors(most);
        }
        if let Some(dir) = settings.path {
            let path = std::env::var("PATH").unwrap_or_default();
            cmd = cmd.under(&["env", &format!("PATH={}:{path}", dir.display())]);
        }
        if let Some(powers) = settings.powers {
            cmd = cmd.powers(powers);
        }
        if let Some(net) = settings.net {
            cmd = cmd.netns(net);
        }
        if let Some(group) = settings.cgroup {
            cmd = cmd.cgroup(group);
        }
        let proc = cmd.spawn(&dir.file("agent.log"));
        let mut agent = Self { proc, dir, cmd, head, name, admin, outbound, _kernel: kernel };
        agent.wait_ready();
        agent
    }

    #[track_caller]
    fn wait_ready(&mut self) {
        until("the agent is ready", || {
            let end = self.proc.ended();
            assert!(end.is_none(), "the agent ended: {end:?}\n{}", self.proc.said());
            self.is_ready()
        });
    }

    /// Whether `/ready` says yes.
    pub fn is_ready(&self) -> bool {
        http::get(self.admin, "/ready").is_ok_and(|answer| answer.status() == 200)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.proc.pid()
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its admin API listens.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The port that captured connections arrive at.
    pub fn outbound(&self) -> u16 {
        self.outbound
    }

    /// Its folder, with `mesh.yaml`, `access.log` and `agent.log`.
    pub fn dir(&self) -> &Temp {
        &self.dir
    }

    /// Where its programs, maps and links are pinned.
    pub fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf/sockmesh").join(&self.name)
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        self.proc.said()
    }

    /// The lines of its access log so far.
    pub fn access_log(&self) -> Vec<String> {
        fs::read_to_string(self.dir.file("access.log")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.proc.signal(signal);
    }

    /// SIGTERM; waits for the end, however long the drain takes, and returns how it ended.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.proc.stop()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.proc.wait()
    }

    /// SIGKILL: dies on the spot.
    #[track_caller]
    pub fn kill9(&mut self) {
        self.proc.signal(Signal::KILL);
        self.proc.wait();
    }

    /// SIGSTOP: hangs until [`Agent::resume`].
    pub fn pause(&self) {
        self.proc.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.proc.signal(Signal::CONT);
    }

    /// Starts it again with the same configuration after it ended.
    #[track_caller]
    pub fn again(&mut self) {
        self.proc = self.cmd.spawn(&self.dir.file("agent.log"));
        self.wait_ready();
    }

    /// Changes the head of its configuration, for the next start.
    pub fn rewrite_head(&mut self, from: &str, to: &str, services: &str) {
        assert!(self.head.contains(from), "no {from:?} in {}", self.head);
        self.head = self.head.replace(from, to);
        self.rewrite(services);
    }

    /// Writes other `services` into its configuration file, without telling it.
    pub fn rewrite(&self, services: &str) {
        self.dir.write("mesh.yaml", format!("{}{services}", self.head));
    }

    /// Runs a verb of the command line against it.
    #[track_caller]
    pub fn cli(&self, verb: &str) -> Output {
        sockmesh(verb).args(["--admin", &self.admin.to_string()]).run()
    }

    /// A page of its admin API.
    #[track_caller]
    pub fn page(&self, path: &str) -> String {
        let answer = http::get(self.admin, path).unwrap();
        assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
        answer.text()
    }

    /// A page of its admin API that is JSON.
    #[track_caller]
    pub fn json(&self, path: &str) -> Value {
        let page = self.page(path);
        serde_json::from_str(&page).unwrap_or_else(|e| panic!("{path} is not JSON: {e}\n{page}"))
    }

    /// Rows of live connections.
    #[track_caller]
    pub fn sockets(&self) -> Vec<Value> {
        rows(self.json("/sockets"), "sockets")
    }

    /// Rows of endpoints.
    #[track_caller]
    pub fn endpoints(&self) -> Vec<Value> {
        rows(self.json("/endpoints"), "endpoints")
    }

    /// Whether the endpoint with this address is in rotation.
    #[track_caller]
    pub fn has_in_rotation(&self, addr: SocketAddr) -> bool {
        let rows = self.endpoints();
        let row = rows.iter().find(|row| row["address"] == addr.to_string());
        row.unwrap_or_else(|| panic!("no endpoint {addr}: {rows:?}"))["available"] == true
    }

    /// Sum of all samples of a metric whose labels contain every one of `labels` (as `key="value"`).
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let page = self.page("/metrics");
        let sample = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let (on, value) = rest.rsplit_once(' ')?;
            ((on.is_empty() || on.starts_with('{')) && labels.iter().all(|l| on.contains(l)))
                .then(|| value.parse::<f64>().unwrap())
        };
        page.lines().filter_map(sample).sum()
    }

    /// Resident memory, bytes.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("every process has it");
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Whether the agent was built without its kernel half.
    pub fn lacks_kernel_half() -> bool {
        let said = sockmesh("check").run();
        format!("{}{}", said.out, said.err).contains("no eBPF object")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.proc.ended().is_none() {
            // An orderly stop first, so that nothing stays in bpffs.
            self.proc.signal(Signal::CONT);
            self.proc.signal(Signal::TERM);
            wait::within(std::time::Duration::from_secs(12), || self.proc.ended());
        }
        // What a killed agent left on purpose; a test that cares has looked by now.
        let _ = fs::remove_dir_all(self.pins());
    }
}

/// A test's use of the kernel's programs: many at once, or one alone.
#[derive(Debug)]
pub struct KernelUse {
    alone: bool,
}

/// How many use the kernel's programs; -1 is one alone.
static USERS: (Mutex<i32>, Condvar) = (Mutex::new(0), Condvar::new());

/// Waits until no agent of this process uses the kernel's programs, and keeps others from starting.
pub fn alone_in_the_kernel() -> KernelUse {
    *users(|n| *n == 0) = -1;
    KernelUse { alone: true }
}

impl KernelUse {
    fn shared() -> Self {
        *users(|n| *n >= 0) += 1;
        Self { alone: false }
    }
}

/// Waits until the number of users is one that `fits`.
fn users(fits: impl Fn(&i32) -> bool) -> MutexGuard<'static, i32> {
    let count = USERS.0.lock().unwrap();
    USERS.1.wait_while(count, |n| !fits(n)).unwrap()
}

impl Drop for KernelUse {
    fn drop(&mut self) {
        *USERS.0.lock().unwrap() -= if self.alone { -1 } else { 1 };
        USERS.1.notify_all();
    }
}

fn rows(page: Value, key: &str) -> Vec<Value> {
    let rows = if page.is_array() { page } else { page[key].clone() };
    rows.as_array().unwrap_or_else(|| panic!("no rows of {key}: {rows}")).clone()
}

/// A verb of the command line.
pub fn sockmesh(verb: &str) -> Cmd {
    Cmd::new(binary()).args(verb.split_whitespace())
}

/// The agent's binary: `SOCKMESH_BIN`, else the newest in the folder that the tests were built into.
#[track_caller]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("SOCKMESH_BIN") {
        return path.into();
    }
    let age = |path: &PathBuf| fs::metadata(path).and_then(|m| m.modified()).ok();
    let built = ["release", "debug"].map(|profile| target_dir().join(profile).join("sockmesh"));
    let newest = built.into_iter().filter(|p| p.exists()).max_by_key(age);
    newest.unwrap_or_else(|| {
        panic!("no agent in {}: build it with `cargo build -p agent` or set SOCKMESH_BIN", target_dir().display())
    })
}
