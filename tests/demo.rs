//! `cargo xtask run`: starts in one command, ends on Ctrl-C, leaves nothing.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use host::{Cmd, Need, Proc, Temp, cgroup, lacks, until, wait};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

/// What a demo could leave behind.
#[derive(Debug, Default, PartialEq, Eq)]
struct Traces {
    /// Programs, maps and links in the kernel, by kind and number.
    kernel: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    pins: BTreeSet<String>,
    folders: BTreeSet<String>,
}

impl Traces {
    fn now() -> Self {
        let mut kernel = BTreeSet::new();
        for kind in ["prog", "map", "link"] {
            let out = Cmd::line(&format!("bpftool -j {kind} show")).run().out;
            let rows: Value = serde_json::from_str(&out).unwrap_or_default();
            kernel.extend(rows.as_array().into_iter().flatten().map(|row| format!("{kind} {}", row["id"])));
        }
        let names = |dir: &Path, part: &str| {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|e| e.path().display().to_string()).filter(|p| p.contains(part)).collect()
        };
        Self {
            kernel,
            cgroups: cgroup::mount().map(|mount| names(&mount, "sockmesh-demo")).unwrap_or_default(),
            pins: names(Path::new("/sys/fs/bpf/sockmesh"), "demo"),
            folders: names(&host::target_dir().join("demo"), ""),
        }
    }

    /// What is there now and was not before.
    fn fresh(&self) -> Self {
        let now = Self::now();
        let minus = |now: &BTreeSet<String>, then: &BTreeSet<String>| now.difference(then).cloned().collect();
        Self {
            kernel: minus(&now.kernel, &self.kernel),
            cgroups: minus(&now.cgroups, &self.cgroups),
            pins: minus(&now.pins, &self.pins),
            folders: minus(&now.folders, &self.folders),
        }
    }
}

/// A demo in a session of its own.
struct Demo {
    proc: Proc,
    before: Traces,
    _dir: Temp,
}

impl Demo {
    /// Starts it and waits until its callers have made calls.
    fn start(options: &str) -> Self {
        let (before, dir) = (Traces::now(), Temp::new());
        let proc = Cmd::line(&format!("setsid --wait cargo xtask run --no-install {options}")).spawn(&dir.file("log"));
        let mut demo = Self { proc, before, _dir: dir };
        // It may have to build first.
        let ready = wait::within(Duration::from_secs(600), || {
            let end = demo.proc.ended();
            assert!(end.is_none(), "the demo ended: {end:?}\n{}", demo.proc.said());
            demo.said_calls().then_some(())
        });
        assert!(ready.is_some(), "nobody calls:\n{}", demo.proc.said());
        demo
    }

    /// Whether the last picture shows calls of both services.
    fn said_calls(&self) -> bool {
        let said = self.proc.said();
        let last = said.rfind("Sockmesh demo").map_or("", |at| &said[at..]);
        last.contains(" calls, ") && last.contains("web") && last.contains("cache")
    }

    fn session(&self) -> Pid {
        Pid::from_raw(self.proc.pid() as i32).expect("a process has an id")
    }

    /// Nothing is left of it.
    #[track_caller]
    fn left_nothing(&self) {
        let session = self.proc.pid().to_string();
        until("all its processes are gone", || members(&session).is_empty());
        until("everything it made is gone", || {
            let fresh = self.before.fresh();
            fresh == Traces::default() || {
                println!("left: {fresh:?}");
                false
            }
        });
    }
}

/// Processes of a session, and a guard that looks after it from outside.
fn members(session: &str) -> Vec<String> {
    let of = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<_> = fields.split(' ').collect();
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?.replace('\0', " ");
        let ours = fields.get(3) == Some(&session) || words.trim_end().ends_with(&format!("demo-guard {session}"));
        (ours && fields[0] != "Z").then_some(words)
    };
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().into_string().ok());
    pids.filter(|pid| pid.bytes().all(|b| b.is_ascii_digit())).filter_map(|pid| of(&pid)).collect()
}

/// Starts the demo with `options`, ends it by Ctrl-C, and checks what it showed and left.
fn check(options: &str, way: &str) {
    let _heavy = host::heavy();
    let mut demo = Demo::start(options);
    let said = demo.proc.said();
    assert!(said.contains(way), "{said}");
    kill_process_group(demo.session(), Signal::INT).unwrap();
    let status = demo.proc.wait();
    let said = demo.proc.said();
    assert!(status.success(), "{status}\n{said}");
    let counts: Vec<_> = said.lines().filter(|line| line.contains(" calls, ")).collect();
    let last = &counts[counts.len().saturating_sub(4)..];
    assert!(last.iter().all(|line| line.contains(" 0 failed")), "{last:?}");
    demo.left_nothing();
}

#[test]
fn demo_with_ebpf_leaves_nothing_behind() {
    if lacks(&[Need::Kernel, Need::Program("bpftool"), Need::Program("cargo")]) {
        return;
    }
    // Nobody else of this process may load programs meanwhile: what is new would look like ours.
    let _alone = host::agent::alone_in_the_kernel();
    check("", "captured by eBPF");
}

#[test]
fn demo_in_port_mode_leaves_nothing_behind() {
    if lacks(&[Need::Program("cargo"), Need::Program("bpftool")]) {
        return;
    }
    let _alone = host::agent::alone_in_the_kernel();
    check("--port-mode", "port mode");
}

#[test]
fn demo_ends_by_itself_and_cleans_up_even_when_killed() {
    if lacks(&[Need::Program("cargo"), Need::Program("bpftool")]) {
        return;
    }
    let _alone = host::agent::alone_in_the_kernel();
    let _heavy = host::heavy();
    let mut demo = Demo::start("--for 6");
    assert!(demo.proc.wait().success(), "{}", demo.proc.said());
    demo.left_nothing();
    let mut demo = Demo::start("");
    demo.proc.signal(Signal::KILL);
    demo.proc.wait();
    demo.left_nothing();
}
