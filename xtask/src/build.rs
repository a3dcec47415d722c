//! `cargo xtask build`: the kernel half first, then the agent that embeds it, and the centre.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{
    frames, sh,
    toolchain::{self, Toolchain},
};

/// Where the agent's `build.rs` looks for the eBPF object.
pub fn object() -> PathBuf {
    sh::target("bpf/sockmesh-ebpf")
}

/// The agent's binary: the one named by `SOCKMESH_BIN` (a released one, say), else the one we build.
pub fn agent() -> PathBuf {
    given_agent().unwrap_or_else(|| sh::target("release/sockmesh"))
}

/// The centre's binary: the one named by `SOCKMESH_CENTER_BIN`, else the one we build.
pub fn center() -> PathBuf {
    std::env::var_os("SOCKMESH_CENTER_BIN").map_or_else(|| sh::target("release/sockmesh-center"), PathBuf::from)
}

fn given_agent() -> Option<PathBuf> {
    std::env::var_os("SOCKMESH_BIN").map(PathBuf::from)
}

/// What came of the kernel half.
#[derive(Debug, PartialEq, Eq)]
pub enum Ebpf {
    /// The agent carries the object.
    Built,
    /// The agent was built without it; the reason was printed.
    Missing,
}

/// Builds everything a user runs. A kernel half that cannot be built costs one printed line, not the agent.
pub fn all() -> Result<Ebpf> {
    if let Some(agent) = given_agent() {
        println!("using {} as SOCKMESH_BIN says, building none", agent.display());
        let said = Command::new(&agent).arg("check").output().context("cannot start SOCKMESH_BIN")?;
        let lacks = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).contains("no eBPF object");
        return Ok(if lacks { Ebpf::Missing } else { Ebpf::Built });
    }
    let ebpf = match kernel_half() {
        Ok(()) => Ebpf::Built,
        Err(e) => {
            eprintln!("no eBPF capture in this build: {e:#}");
            // An object of older sources beside a newer agent would be worse than none.
            fs::remove_file(object()).ok();
            Ebpf::Missing
        }
    };
    sh::run(&mut sh::cargo(["build", "--release", "--quiet", "--package", "agent", "--package", "center"]))
        .context("building agent and centre failed: see the compiler's messages above")?;
    Ok(ebpf)
}

/// Builds the eBPF object. Cargo decides what is out of date; the object's file is touched only when its
/// content changed, so that the agent is not built again for nothing.
pub fn kernel_half() -> Result<()> {
    let tools = toolchain::provide()?;
    sh::run(bpf_cargo(&tools, "build").arg("--quiet"))
        .context("building the package `ebpf` failed: see the compiler's messages above")?;
    let built = sh::target("bpf-build/bpfel-unknown-none/bpf/sockmesh-ebpf");
    let fresh = fs::read(&built).with_context(|| format!("the build left no {}", built.display()))?;
    frames::check(&fresh)?;
    let object = object();
    if fs::read(&object).ok().as_ref() != Some(&fresh) {
        fs::create_dir_all(sh::target("bpf"))?;
        fs::write(&object, fresh).with_context(|| format!("cannot write {}", object.display()))?;
    }
    Ok(())
}

/// `cargo VERB` for the kernel half. `-Z build-std` on a stable compiler is what `RUSTC_BOOTSTRAP` is
/// for here, and it is set for this one call only.
pub fn bpf_cargo(tools: &Toolchain, verb: &str) -> Command {
    let mut command = sh::cargo([verb, "--package", "ebpf", "--profile", "bpf"]);
    command
        .args(["--target", "bpfel-unknown-none", "-Z", "build-std=core", "--target-dir"])
        .arg(sh::target("bpf-build"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", format!("-C linker={} -C debuginfo=2 -C link-arg=--btf", tools.linker.display()));
    if let Some(rustc) = &tools.rustc {
        command.env("RUSTC", rustc);
    }
    command
}
