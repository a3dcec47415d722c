//! `cargo xtask kernels`: Debian's kernels in virtual machines, and what the mesh can do on each.
//!
//! Nothing of this machine's own start is touched: packages are unpacked below `target/kernels`, and a machine
//! lives in memory until it turns itself off.

mod cpio;
mod debian;
mod image;
mod machine;
mod report;
mod table;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use self::{
    debian::Kernel,
    machine::Engine,
    report::{Found, Report},
};
use crate::{build, packages, sh};

/// What the user asked for.
#[derive(clap::Args)]
pub struct Options {
    /// Kernels: two or three numbers, or `newest`
    #[arg(value_name = "KERNEL", default_values = ["5.10", "6.1", "6.12", "6.18", "newest"])]
    kernels: Vec<String>,
    /// Fetches the newest packages of them again
    #[arg(long)]
    update: bool,
    /// Only kernel tests whose name contains this
    #[arg(long, value_name = "NAME", default_value = "")]
    filter: String,
}

/// Below it the hooks cannot be had, and the agent has to say so and do without.
const FLOOR: [u32; 2] = [5, 14];
/// For the kernel tests; they take a quarter of a minute on a free machine.
const TESTS: Duration = Duration::from_secs(300);
/// For everything else that a machine does.
const REST: Duration = Duration::from_secs(240);

/// Boots every kernel, prints what works there, and fails when something does not that should.
pub fn run(options: &Options) -> Result<()> {
    if let Some(lacking) = packages::provide(&["qemu-system-x86_64"]).pop() {
        bail!("no virtual machine: {lacking}");
    }
    let (kernels, busybox) = debian::provide(&options.kernels, options.update)?;
    if build::all()? == build::Ebpf::Missing {
        bail!("without the eBPF object there is nothing to try");
    }
    let tests = test_binary()?;
    let engine = engine(kernels.first().context("no kernel was asked for")?, &busybox)?;
    let mut reports = Vec::new();
    let mut bad = Vec::new();
    for kernel in &kernels {
        println!("\n== {} ({})", kernel.release, kernel.line);
        let report = boot(kernel, &busybox, &tests, engine, &options.filter)?;
        show(&report);
        let found = problems(kernel, &report);
        for problem in &found {
            println!("PROBLEM: {problem}");
        }
        bad.extend(found.into_iter().map(|problem| format!("{}: {problem}", kernel.release)));
        reports.push(report);
    }
    println!("\n{}\n{}", table::features(&reports), table::semantics(&reports));
    if bad.is_empty() {
        return Ok(());
    }
    bail!("{} problems:\n    {}", bad.len(), bad.join("\n    "))
}

/// How machines run here, by trying.
fn engine(kernel: &Kernel, busybox: &Path) -> Result<Engine> {
    let image = image::trial(kernel, busybox)?;
    let engine = Engine::here(kernel, &image);
    fs::remove_file(&image).ok();
    if engine == Engine::Translated {
        println!("/dev/kvm cannot be used here: the machines are translated, and several times slower");
    }
    Ok(engine)
}

/// Builds the kernel tests; the program they are.
fn test_binary() -> Result<PathBuf> {
    let mut command = sh::cargo(["test", "--package", "agent", "--test", "kernel", "--no-run", "--quiet"]);
    let output = command.arg("--message-format=json").stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("building the kernel tests failed: see the compiler's messages above");
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.lines().find_map(executable).context("cargo does not say where the kernel tests are")
}

/// The program that a message of cargo's names, if it is one of tests: those have others built that they start.
fn executable(message: &str) -> Option<PathBuf> {
    let rest = message.split_once("\"kind\":[\"test\"]")?.1.split_once("\"executable\":\"")?.1;
    Some(rest.split_once('"')?.0.into())
}

fn boot(kernel: &Kernel, busybox: &Path, tests: &Path, engine: Engine, filter: &str) -> Result<Report> {
    let limit = engine.stretch(TESTS);
    let image = image::write(kernel, busybox, tests, limit.as_secs(), filter)?;
    let mut report = Report::default();
    let mut said = String::new();
    let ended = machine::run(kernel, &image, engine, limit + engine.stretch(REST), |line| {
        report.add(line);
        said.push_str(line);
        said.push('\n');
    });
    fs::remove_file(&image).ok();
    let file = kernel.dir.join("report.txt");
    fs::write(&file, said).with_context(|| format!("cannot write {}", file.display()))?;
    let size = report.lines("check").len() + report.lines("redirect").len() + report.lines("tests").len();
    match ended {
        Ok(took) => println!("{:.0} s; all {size} lines: {}", took.as_secs_f32(), file.display()),
        Err(e) if e.is::<sh::Stopped>() => return Err(e),
        // What it said until then is worth reading.
        Err(e) => println!("{e:#}; what it said: {}", file.display()),
    }
    Ok(report)
}

fn show(report: &Report) {
    for part in ["check", "redirect", "agent", "kernel"] {
        if !report.lines(part).is_empty() {
            println!("-- {part}");
            report.lines(part).iter().for_each(|line| println!("{line}"));
        }
    }
    match report.tests() {
        None => println!("-- kernel tests: not run, the hooks cannot be had"),
        Some((tally, failed, skipped)) => {
            println!("-- kernel tests: {} passed, {} failed", tally.passed, tally.failed);
            skipped.iter().for_each(|test| println!("skipped {test}"));
            failed.iter().for_each(|test| println!("failed {test}"));
            if !failed.is_empty() {
                // What they printed follows this line.
                let printed = report.lines("tests").iter().skip_while(|line| *line != "failures:");
                printed.for_each(|line| println!("    {line}"));
            }
        }
    }
}

/// What is not as it has to be.
fn problems(kernel: &Kernel, report: &Report) -> Vec<String> {
    let mut problems = Vec::new();
    if !report.done {
        problems.push("the machine did not come to its end".to_owned());
    }
    let hooks = debian::numbers(&kernel.release)[..] >= FLOOR[..];
    // The agent copes without a program for redirect; a kernel that refuses it is to be looked at all the same.
    let refused = report
        .features()
        .into_iter()
        .filter(|(name, found)| *found == Found::Missing || (*found == Found::Odd && name.starts_with("program ")));
    if hooks {
        problems.extend(refused.map(|(name, _)| format!("check: {name}")));
        if report.code("check") != Some(0) {
            problems.push("`sockmesh check` fails".to_owned());
        }
    }
    match report.tests() {
        Some((tally, failed, _)) => {
            problems.extend(failed.iter().map(|name| format!("test {name}")));
            if tally.passed == 0 || (failed.is_empty() && report.code("tests") != Some(0)) {
                problems.push("the kernel tests did not come to their end".to_owned());
            }
        }
        None if hooks => problems.push("the kernel tests did not run".to_owned()),
        None => {}
    }
    match report.capture() {
        Some((capture, reason)) if hooks && capture != "ebpf" => {
            problems.push(format!("`capture: auto` takes {capture}: {reason}"));
        }
        Some(_) if report.code("agent") == Some(0) => {}
        _ => problems.push("the agent does not start and stop".to_owned()),
    }
    problems.extend(report.lines("kernel").iter().map(|line| format!("the kernel says {line}")));
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_program_is_found_in_what_cargo_says() {
        let message = r#"{"target":{"kind":["test"],"name":"kernel"},"executable":"/x/deps/kernel-1","fresh":true}"#;
        assert_eq!(executable(message), Some("/x/deps/kernel-1".into()));
        assert_eq!(executable(&message.replace("test", "bin")), None);
        assert_eq!(executable(r#"{"target":{"kind":["lib"]},"executable":null}"#), None);
    }

    fn kernel(release: &str) -> Kernel {
        let none = PathBuf::new();
        Kernel {
            line: String::new(),
            release: release.to_owned(),
            image: none.clone(),
            modules: none.clone(),
            dir: none,
        }
    }

    #[test]
    fn an_old_kernel_has_to_do_without_and_a_new_one_has_not() {
        let said = |capture: &str| {
            let chosen = format!("INFO capture chosen capture=\"{capture}\" reason=\"x\"");
            let mut report = Report::default();
            let lines = ["@@ begin check", "✗ maps: no", "@@ end check 1", "@@ begin agent", &chosen, "@@ end agent 0"];
            lines.iter().for_each(|line| report.add(line));
            report.add("@@ done");
            report
        };
        assert_eq!(problems(&kernel("5.10.0-46-cloud-amd64"), &said("port")), [] as [String; 0]);
        let found = problems(&kernel("6.1.0-56-cloud-amd64"), &said("port"));
        let expected =
            ["check: maps", "`sockmesh check` fails", "the kernel tests did not run", "`capture: auto` takes port: x"];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_machine_that_dies_is_a_problem() {
        let mut report = Report::default();
        report.add("@@ begin check");
        let found = problems(&kernel("5.10.0-46-cloud-amd64"), &report);
        assert_eq!(found, ["the machine did not come to its end", "the agent does not start and stop"]);
    }
}
