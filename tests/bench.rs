//! `cargo xtask bench`: measures what it says, fakes nothing, leaves nothing.

use std::{fs, path::PathBuf, time::Duration};

use host::{Cmd, Need, Proc, Temp, cgroup, lacks, until, wait};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

/// It may have to build first.
const BUILD: Duration = Duration::from_secs(600);

/// Whether it cannot run here, having said so.
fn cannot() -> bool {
    lacks(&[Need::Kernel, Need::Program("cargo")])
}

/// What a run could leave behind, from what it said of itself.
fn traces(said: &str) -> Vec<PathBuf> {
    let name = said.lines().find_map(|line| line.strip_prefix("run      ")).expect("a run has a name").trim();
    let pid = name.rsplit('-').next().unwrap();
    let pins = fs::read_dir("/sys/fs/bpf/sockmesh").into_iter().flatten().flatten().map(|entry| entry.path());
    let pins = pins.filter(|path| path.to_string_lossy().contains(&format!("/bench-{pid}-")));
    [cgroup::mount().unwrap().join(name), host::target_dir().join("bench").join(pid)].into_iter().chain(pins).collect()
}

#[track_caller]
fn left_nothing(said: &str) {
    let left: Vec<_> = traces(said).into_iter().filter(|path| path.exists()).collect();
    assert!(left.is_empty(), "left: {left:?}\n{said}");
}

#[test]
fn bench_quick_has_a_row_for_every_path_and_load() {
    if cannot() {
        return;
    }
    let (_alone, _heavy, dir) = (host::agent::alone_in_the_kernel(), host::heavy(), Temp::new());
    let json = dir.file("rows.json");
    let line = "cargo xtask bench --quick --cpus one --only direct,port,ebpf --json";
    let said = Cmd::line(line).arg(json.display()).limit(BUILD).run().ok();
    left_nothing(&said);
    let rows: Vec<Value> = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let mut seen = Vec::new();
    for row in &rows {
        let text = |key: &str| row[key].as_str().unwrap_or_else(|| panic!("no {key}: {row}")).to_owned();
        let (path, load) = (text("path"), text("load"));
        seen.push(format!("{path} {load} {}", row["callers"]));
        let positive = |key: &str| assert!(row[key].as_f64().is_some_and(|v| v > 0.0), "{key}: {row}");
        positive("rate");
        positive("x_direct");
        assert_eq!(row["cpus"], 1);
        if load == "bulk" {
            assert!(row["p50_us"].is_null(), "a stream has no latency: {row}");
        } else {
            positive("p50_us");
            assert!(row["p99_us"].as_f64() >= row["p50_us"].as_f64(), "{row}");
        }
        if path == "direct" {
            assert_eq!(row["x_direct"], 1.0);
            assert!(row["rss_mib"].is_null() && row["cpu_s_per_100k"].is_null(), "no agent is on this path: {row}");
        } else {
            positive("rss_mib");
            positive("cpu_s_per_100k");
        }
    }
    let loads = ["echo 1", "echo 16", "echo 64", "churn 16", "bulk 1", "http 16", "motan2 16"];
    let all: Vec<_> = loads.iter().flat_map(|l| ["direct", "port", "ebpf"].map(|p| format!("{p} {l}"))).collect();
    assert_eq!(seen, all);
}

#[test]
fn bench_leaves_nothing_behind_on_ctrl_c() {
    if cannot() {
        return;
    }
    let (_alone, _heavy, dir) = (host::agent::alone_in_the_kernel(), host::heavy(), Temp::new());
    let line = "setsid --wait cargo xtask bench --quick --rounds 1000 --only ebpf --loads echo --callers 1";
    let mut bench: Proc = Cmd::line(line).spawn(&dir.file("log"));
    let measures = wait::within(BUILD, || {
        assert!(bench.ended().is_none(), "{}", bench.said());
        bench.said().contains("1000 rounds of 2 ways").then_some(())
    });
    assert!(measures.is_some(), "nothing is measured:\n{}", bench.said());
    assert!(traces(&bench.said()).iter().all(|path| path.exists()), "there is something to leave");
    kill_process_group(Pid::from_raw(bench.pid() as i32).unwrap(), Signal::INT).unwrap();
    let status = bench.wait();
    let said = bench.said();
    assert!(!status.success() && said.contains("stopped by a signal"), "{status}\n{said}");
    until("everything it made is gone", || traces(&said).iter().all(|path| !path.exists()));
}
