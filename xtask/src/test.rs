//! `cargo xtask test`: sets the machine up, builds, and runs every test.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{build, packages, peers, sh};

/// Real programs that system tests start.
const PROGRAMS: &[&str] = &[
    "nginx",
    "redis-server",
    "redis-cli",
    "redis-benchmark",
    "wrk",
    "curl",
    "python3",
    "ip",
    "bpftool",
    "iptables-restore",
    "nft",
    "javac",
    "go",
    "musl-gcc",
    "postgres",
    "mariadbd",
    "mariadb-slap",
    "zkServer.sh",
    "dnsmasq",
    "etcd",
    "faketime",
    "carbon-cache",
    "whisper-fetch",
    "chromium",
    "chromedriver",
    "prometheus",
];

/// Compiling everything on two cores is most of it.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// Which tests are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Those that need nothing but Debian packages and what is there within seconds.
    Usual,
    /// Those of `tests/full` too, against programs of others that are built first.
    Full,
}

/// What became of the tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Succeeded, those included that skipped themselves.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
    /// Left out by the harness.
    pub ignored: usize,
}

impl Tally {
    /// Adds a line such as `test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; …`.
    pub fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let words: Vec<_> = result.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(count) = pair[0].parse::<usize>() else { continue };
            match pair[1] {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

/// Runs of `cargo test`, one after the other, and what became of them.
#[derive(Debug, Default)]
pub struct Runs {
    /// All results.
    pub tally: Tally,
    /// Those that ended without one.
    broken: Vec<String>,
}

impl Runs {
    /// Does one run within `limit`; its arguments are shown where it breaks. Prints what it prints.
    pub fn run(&mut self, which: &[&str], command: &mut Command, limit: Duration) -> Result<()> {
        let failed_before = self.tally.failed;
        let status = sh::stream(command, limit, |line| {
            println!("{line}");
            self.tally.add(line);
        })?;
        if !status.success() && self.tally.failed == failed_before {
            self.broken.push(which.join(" "));
        }
        Ok(())
    }

    /// Whether all went well.
    pub fn result(&self) -> Result<()> {
        if !self.broken.is_empty() {
            let broken = self.broken.join("` and `");
            bail!("`cargo test {broken}` ended without a result: see its messages above");
        }
        if self.tally.failed > 0 {
            bail!("{} tests failed", self.tally.failed);
        }
        Ok(())
    }
}

/// Runs the tests whose name contains `filter`, or all.
pub fn run(filter: Option<&str>, extent: Extent) -> Result<()> {
    let mut lacking = packages::provide(PROGRAMS);
    let mut runs = vec![&["--workspace", "--exclude", "tests"][..], &["--package", "tests"]];
    let built = if extent == Extent::Full { peers::concerned(filter) } else { peers::usual() };
    lacking.extend(peers::provide(&built));
    if extent == Extent::Full {
        runs.push(&["--package", "tests", "--test", "full"]);
    }
    for line in &lacking {
        println!("tests will miss {line}");
    }
    build::all()?;

    let skips = sh::target("skipped-tests");
    fs::remove_file(&skips).ok();
    let mut done = Runs::default();
    // Units first: when one fails, it says more than the system test that fails with it.
    for which in runs {
        let mut command = sh::cargo(["test", "--no-fail-fast"]);
        command.args(which).args(filter);
        command.env("SOCKMESH_SKIP_FILE", &skips).env("SOCKMESH_BIN", build::agent());
        done.run(which, &mut command, LIMIT)?;
    }

    let skipped = fs::read_to_string(&skips).unwrap_or_default();
    let skipped: Vec<_> = skipped.lines().filter(|line| !line.is_empty()).collect();
    println!();
    for line in &skipped {
        println!("{line}");
    }
    // A test that skips itself returns early, and the harness takes that for a pass.
    let tally = &done.tally;
    let passed = tally.passed.saturating_sub(skipped.len());
    let skips = skipped.len() + tally.ignored;
    println!("{passed} passed, {} failed, {skips} skipped", tally.failed);
    done.result()?;
    if skips > 0 && require_all() {
        bail!("{skips} tests were skipped and REQUIRE_ALL=1 forbids it; see the lines above for what they miss");
    }
    if filter.is_none() && tally.passed == 0 {
        Err::<(), _>(anyhow::anyhow!("no test ran")).context("a run that tests nothing proves nothing")?;
    }
    Ok(())
}

/// Whether a test that cannot run is a failure.
pub fn require_all() -> bool {
    std::env::var_os("REQUIRE_ALL").is_some_and(|value| value == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_binaries_add_up() {
        let mut tally = Tally::default();
        tally.add("test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.1s");
        tally.add("test result: FAILED. 7 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3s");
        tally.add("test a::b ... ok");
        assert_eq!(tally, Tally { passed: 12, failed: 2, ignored: 1 });
    }
}
