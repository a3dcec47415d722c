//! `cargo xtask screenshots`: the pictures of the console in the docs, taken again.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{packages, sh};

/// Pictures that the docs show, of all that the tests take.
const SHOWN: &[&str] = &[
    "services",
    "service",
    "instance-out",
    "switch",
    "command",
    "commands",
    "undo",
    "graph",
    "capacity",
    "proposals",
    "alerts",
    "agents",
    "registry",
    "audit",
    "login",
    "access",
    "centre-gone",
    "service-zh-dark",
];

/// Compiling the tests is most of it.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// Runs the console's tests and copies what the docs show.
///
/// # Errors
/// A test failed, or a browser or a font with Chinese characters is missing.
pub fn run() -> Result<()> {
    let missing = packages::provide(&["chromium", "chromedriver", "fc-list"]);
    if !missing.is_empty() {
        bail!("{}", missing.join("\n"));
    }
    packages::provide_chinese()?;
    sh::run(&mut sh::cargo(["build", "--package", "center"]))?;
    let taken = sh::target("screenshots");
    // None of an earlier run is taken for one of this.
    for name in SHOWN {
        fs::remove_file(taken.join(format!("{name}.png"))).ok();
    }
    let mut tests =
        sh::cargo(["test", "--package", "tests", "--test", "system", "console::", "--", "--test-threads", "2"]);
    tests.env("SOCKMESH_SCREENSHOTS", &taken).env("REQUIRE_ALL", "1");
    let status = sh::stream(&mut tests, LIMIT, |line| println!("{line}"))?;
    if !status.success() {
        bail!("the console's tests failed: no picture was taken over");
    }
    let docs = sh::root().join("docs/img");
    fs::create_dir_all(&docs)?;
    for name in SHOWN {
        let (from, to) = (taken.join(format!("{name}.png")), docs.join(format!("{name}.png")));
        fs::copy(&from, &to).with_context(|| from.display().to_string())?;
        println!("{}", to.display());
    }
    Ok(())
}
