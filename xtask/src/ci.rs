//! `cargo xtask ci`: the one gate. The same on a developer's machine and where changes are accepted.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{build, lint, sh, test, toolchain};

type Step = fn() -> Result<()>;

/// Runs every check, cheap ones first, and prints what each took. All run, so that one look shows all
/// that is wrong.
pub fn run() -> Result<()> {
    let steps: [(&str, Step); 5] = [
        ("format", format),
        ("lint", lint::run),
        ("clippy", clippy),
        ("docs", docs),
        ("test", || test::run(None, test::Extent::Usual)),
    ];
    let mut results = Vec::new();
    for (name, step) in steps {
        println!("== {name}");
        let start = Instant::now();
        let result = step();
        if let Err(e) = &result {
            eprintln!("{name}: {e:#}");
        }
        results.push((name, start.elapsed(), result.is_ok()));
    }
    println!();
    for (name, time, ok) in &results {
        println!("{:<8} {:>7}  {}", name, seconds(*time), if *ok { "ok" } else { "FAILED" });
    }
    let total = results.iter().map(|(_, time, _)| *time).sum();
    println!("{:<8} {:>7}", "total", seconds(total));
    let failed: Vec<_> = results.iter().filter(|(.., ok)| !ok).map(|(name, ..)| *name).collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs())
}

fn format() -> Result<()> {
    sh::run(&mut sh::cargo(["fmt", "--all", "--check"])).context("run `cargo fmt`")
}

fn clippy() -> Result<()> {
    let deny = ["--", "-D", "warnings"];
    sh::run(sh::cargo(["clippy", "--quiet", "--workspace", "--all-targets"]).args(deny))?;
    // Left out of "all targets", as of plain `cargo test`.
    sh::run(sh::cargo(["clippy", "--quiet", "--package", "tests", "--test", "full"]).args(deny))?;
    match toolchain::provide() {
        Ok(tools) => sh::run(build::bpf_cargo(&tools, "clippy").arg("--quiet").args(deny)),
        Err(e) if test::require_all() => Err(e.context("the kernel half cannot be checked")),
        Err(e) => {
            println!("SKIPPED: clippy of the kernel half: {e:#}");
            Ok(())
        }
    }
}

fn docs() -> Result<()> {
    let mut command = sh::cargo(["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"]);
    sh::run(command.env("RUSTDOCFLAGS", "-D warnings"))
}
