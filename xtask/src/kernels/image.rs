//! The file system that a machine starts with: the agent, the kernel tests, what they call, all with the
//! libraries of this host, and a busybox to run them.

use std::{
    collections::BTreeSet,
    fs::File,
    io::BufWriter,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{cpio::Archive, debian::Kernel};
use crate::{build, sh};

/// What the machine does: tries everything out and says so on its second serial port.
const INIT: &str = include_str!("guest.sh");
/// The agent's configuration there.
const CONFIG: &str = include_str!("guest.yaml");
/// Programs that the agent and the kernel tests call, besides Python.
const PROGRAMS: &[&str] = &[
    "unshare",
    "ip",
    "curl",
    "bpftool",
    "nft",
    "iptables",
    "iptables-save",
    "iptables-restore",
    "ip6tables",
    "ip6tables-save",
    "ip6tables-restore",
];
/// Where `iptables` loads its matches and targets from.
const XTABLES: &str = "/usr/lib/x86_64-linux-gnu/xtables";
/// Parts of Python's library that no test needs, many of them large.
const NOT_OF_PYTHON: &[&str] = &[
    "test",
    "tests",
    "idlelib",
    "ensurepip",
    "lib2to3",
    "tkinter",
    "turtledemo",
    "pydoc_data",
    "dist-packages",
    "site-packages",
    "distutils",
];

/// Writes the image for `kernel`; its path. The kernel tests may take `limit` seconds and are those whose
/// name contains `filter`.
pub fn write(kernel: &Kernel, busybox: &Path, tests: &Path, limit: u64, filter: &str) -> Result<PathBuf> {
    let path = kernel.dir.join("image.cpio");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    for folder in ["/dev", "/proc", "/sys", "/tmp", "/run", "/root"] {
        archive.folder(Path::new(folder))?;
    }
    let init = INIT.replace("@LIMIT@", &limit.to_string()).replace("@FILTER@", filter);
    archive.file(Path::new("/init"), 0o755, init.as_bytes())?;
    for (path, text) in [
        ("/etc/sockmesh.yaml", CONFIG),
        ("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"),
        ("/etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        ("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ] {
        archive.file(Path::new(path), 0o644, text.as_bytes())?;
    }
    archive.copy(Path::new("/bin/busybox"), busybox)?;
    archive.link(Path::new("/bin/sh"), Path::new("busybox"))?;
    // The kernel calls it by this name when it wants a module.
    archive.link(Path::new("/sbin/modprobe"), Path::new("/bin/busybox"))?;

    let mut dynamic = vec![build::agent(), tests.to_owned()];
    archive.copy(Path::new("/usr/bin/sockmesh"), &build::agent())?;
    archive.copy(Path::new("/usr/bin/kernel-tests"), tests)?;
    for program in PROGRAMS {
        let Some(found) = sh::find(program) else {
            println!("no {program} here: tests that call it are skipped");
            continue;
        };
        // Some are one program that goes by its name.
        let real = found.canonicalize()?;
        archive.copy(&real, &real)?;
        archive.link(&Path::new("/usr/bin").join(program), &real)?;
        dynamic.push(real);
    }
    if Path::new(XTABLES).is_dir() {
        archive.tree(Path::new(XTABLES), Path::new(XTABLES), &|_| true)?;
    }
    match python() {
        Some(python) => python.put(&mut archive, &mut dynamic)?,
        None => println!("no python3 here: most tests are skipped"),
    }
    for library in libraries(&dynamic)? {
        archive.copy(&library, &library)?;
    }
    let modules = Path::new("/lib/modules").join(&kernel.release);
    archive.tree(&modules, &kernel.modules, &|path| !path.ends_with("vmlinuz"))?;
    archive.finish()?;
    Ok(path)
}

/// Writes an image for `kernel` that only turns the machine off; its path.
pub fn trial(kernel: &Kernel, busybox: &Path) -> Result<PathBuf> {
    let path = kernel.dir.join("trial.cpio");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    archive.folder(Path::new("/dev"))?;
    archive.copy(Path::new("/bin/busybox"), busybox)?;
    archive.file(Path::new("/init"), 0o755, b"#!/bin/busybox sh\n/bin/busybox poweroff -f\n")?;
    archive.finish()?;
    Ok(path)
}

/// A Python and its library.
struct Python {
    program: PathBuf,
    library: PathBuf,
}

/// The system's own, because others bring more than is needed.
fn python() -> Option<Python> {
    let system = Path::new("/usr/bin/python3");
    let program = if system.exists() { system.to_owned() } else { sh::find("python3")? };
    let ask = "import os, sys, sysconfig; print(os.path.realpath(sys.executable)); print(sysconfig.get_path('stdlib'))";
    let said = sh::read(Command::new(program).args(["-c", ask])).ok()?;
    let (program, library) = said.split_once('\n')?;
    Some(Python { program: program.into(), library: library.trim().into() })
}

impl Python {
    fn put<W: std::io::Write>(&self, archive: &mut Archive<W>, dynamic: &mut Vec<PathBuf>) -> Result<()> {
        archive.copy(&self.program, &self.program)?;
        let name = Path::new("/usr/bin/python3");
        if self.program != name {
            archive.link(name, &self.program)?;
        }
        archive.tree(&self.library, &self.library, &|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            !NOT_OF_PYTHON.contains(&&*name) && !name.starts_with("config-")
        })?;
        dynamic.push(self.program.clone());
        let extensions = std::fs::read_dir(self.library.join("lib-dynload")).into_iter().flatten().flatten();
        dynamic.extend(extensions.map(|entry| entry.path()));
        Ok(())
    }
}

/// Every library that one of `files` is linked with, and the loader.
fn libraries(files: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let ldd = sh::find("ldd").context("no ldd here: it comes with the C library")?;
    // It fails when one of them is static, which is no mistake.
    let said = Command::new(ldd).args(files).output().context("cannot start ldd")?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let missing = said.lines().find(|line| line.contains("not found"));
    if let Some(missing) = missing {
        bail!("a program for the image lacks a library: {}", missing.trim());
    }
    Ok(said.lines().filter_map(library).collect())
}

/// The library that a line of `ldd` names.
fn library(line: &str) -> Option<PathBuf> {
    let line = line.strip_prefix('\t')?;
    let path = line.split_once(" => ").map_or(line, |(_, path)| path);
    let path = path.split(" (").next()?;
    path.starts_with('/').then(|| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let said = "/bin/x:\n\tlinux-vdso.so.1 (0x00007ffc)\n\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x7f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x7f)\n/bin/y:\n\tnot a dynamic executable\n";
        let found: Vec<_> = said.lines().filter_map(library).collect();
        assert_eq!(found, [Path::new("/lib/x86_64-linux-gnu/libz.so.1"), Path::new("/lib64/ld-linux-x86-64.so.2")]);
    }
}
