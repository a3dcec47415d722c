//! `cargo xtask bench`: figures with the machine, the kernel and the commit they belong to.

use std::{fs, process::Command};

use anyhow::Result;

use crate::sh;

/// Runs the bench of package `tests` with this name; `args` are its own.
pub fn run(name: &str, args: &[String]) -> Result<()> {
    println!("machine  {}", machine());
    println!("kernel   {}", fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim());
    println!("compiler {}", sh::read(Command::new("rustc").arg("--version").current_dir(sh::root()))?);
    println!("commit   {}", commit());
    let mut command = sh::cargo(["bench", "--quiet", "--package", "tests", "--bench", name, "--"]);
    sh::run(command.args(args))
}

fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!("{cores} x {}, load {}", model.unwrap_or("unknown"), load.split(' ').next().unwrap_or("unknown"))
}

fn commit() -> String {
    let git = |args: &[&str]| sh::read(Command::new("git").args(args).current_dir(sh::root()));
    let changed = git(&["status", "--porcelain"]).is_ok_and(|text| !text.is_empty());
    let commit = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_else(|_| "unknown".to_owned());
    if changed { format!("{commit} with local changes") } else { commit }
}
