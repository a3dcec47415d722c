//! `cargo xtask soak`: tests that take too long for every change. Two kinds: those that the gate runs in a short form
//! (they ask `SOCKMESH_SOAK`), and those of `tests/soak`, which only run here.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::{build, sh, test::Runs};

/// What is run, one after the other: arguments of `cargo test --release`.
const RUNS: &[&[&str]] =
    &[&["--package", "center", "--test", "durable", "--test", "running"], &["--package", "tests", "--test", "soak"]];

/// All of one run.
const LIMIT: Duration = Duration::from_secs(2 * 60 * 60);

/// Runs the heavy tests whose name contains `filter`, or all, one at a time and with what they print.
pub fn run(filter: Option<&str>) -> Result<()> {
    build::all()?;
    let mut done = Runs::default();
    for which in RUNS {
        let mut command = sh::cargo(["test", "--release", "--no-fail-fast"]);
        command.args(*which).args(filter).args(["--", "--nocapture", "--test-threads", "1"]);
        command.env("SOCKMESH_SOAK", "1").env("SOCKMESH_BIN", build::agent());
        done.run(which, &mut command, LIMIT)?;
    }
    println!("\n{} passed, {} failed", done.tally.passed, done.tally.failed);
    done.result()?;
    if done.tally.passed == 0 {
        bail!("no test ran; is there one called `{}`?", filter.unwrap_or_default());
    }
    Ok(())
}
