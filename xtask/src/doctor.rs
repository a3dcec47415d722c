//! `cargo xtask doctor`: what this machine has for building, testing and the demo, and what to do.
//! What a host can do for a running agent is the question of `sockmesh check`.

use anyhow::Result;

use crate::{
    demo::cgroup,
    packages, sh, sys,
    toolchain::{self, Compiler},
};

/// Prints one ticked line per thing. Never fails: whatever is missing narrows what can be done.
pub fn run() -> Result<()> {
    let compiler = Compiler::of_this_workspace()?;
    let (source, linker) = toolchain::present(&compiler);
    line(true, &format!("rustc {} with LLVM {}", compiler.release, compiler.llvm), "");
    line(source, "source of core (rust-src)", "`cargo xtask build` fetches it");
    let linker = linker.map(|path| format!(" ({})", path.display()));
    line(linker.is_some(), &format!("bpf-linker{}", linker.unwrap_or_default()), "`cargo xtask build` builds it");
    line(sys::is_root(), "root", "without it: no eBPF capture, the demo runs in port mode, tests are skipped");
    let mount = cgroup::mount();
    let place = mount.as_ref().map(|path| format!(" at {}", path.display()));
    line(place.is_some(), &format!("cgroup v2{}", place.unwrap_or_default()), "mount -t cgroup2 none /sys/fs/cgroup");
    for (program, names) in packages::PROGRAMS {
        let place = sh::find(program);
        let shown =
            place.as_ref().map_or_else(|| (*program).to_owned(), |path| format!("{program} ({})", path.display()));
        line(place.is_some(), &shown, &format!("apt-get install {}; `cargo xtask test` does when root", names[0]));
    }
    Ok(())
}

fn line(there: bool, what: &str, remedy: &str) {
    if there {
        println!("  ok       {what}");
    } else {
        println!("  missing  {what}: {remedy}");
    }
}
