//! What the kernel half needs beyond stable Rust: the source of `core`, and a linker for BPF.
//! Both are found or made below `target/tools`.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{packages, sh};

/// The linker's release. Newer ones are taken on purpose, after a trial, not by themselves.
const LINKER_VERSION: &str = "0.13.0";
/// Suites that carry compilers newer than Debian's release, nearest first.
const SUITES: &[&str] = &["trixie-backports", "sid"];
/// Building the linker took 44 s alone and 3 minutes on a busy machine.
const LINKER_LIMIT: Duration = Duration::from_secs(20 * 60);
/// rustup waits long for a server that does not answer.
const RUSTUP_LIMIT: Duration = Duration::from_secs(180);

/// A complete eBPF tool chain.
#[derive(Debug)]
pub struct Toolchain {
    /// To be set as `RUSTC`, when the compiler's own folder lacks the source of `core`.
    pub rustc: Option<PathBuf>,
    /// The BPF linker.
    pub linker: PathBuf,
}

/// The compiler in use.
#[derive(Debug)]
pub struct Compiler {
    /// Its folder (`rustc --print sysroot`).
    pub sysroot: PathBuf,
    /// Its release, such as `1.95.0`.
    pub release: String,
    /// Major version of the LLVM in it.
    pub llvm: u32,
}

impl Compiler {
    /// Asks the `rustc` that cargo uses here.
    pub fn of_this_workspace() -> Result<Self> {
        let rustc = || {
            let mut command = Command::new("rustc");
            command.current_dir(sh::root());
            command
        };
        let sysroot = PathBuf::from(sh::read(rustc().args(["--print", "sysroot"]))?);
        let version = sh::read(rustc().arg("-vV"))?;
        let (release, llvm) = parse_version(&version).with_context(|| format!("cannot read `rustc -vV`: {version}"))?;
        Ok(Self { sysroot, release, llvm })
    }
}

fn parse_version(text: &str) -> Option<(String, u32)> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let llvm = value("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some((value("release:")?.to_owned(), llvm))
}

/// Finds the tool chain, or makes it. The error says what was tried and what the user can do.
pub fn provide() -> Result<Toolchain> {
    let compiler = Compiler::of_this_workspace()?;
    fs::create_dir_all(sh::target("tools"))?;
    let rustc = rust_src(&compiler)?;
    let linker = linker(&compiler)?;
    Ok(Toolchain { rustc, linker })
}

/// Whether the tool chain is there already, without making anything: for `doctor`.
pub fn present(compiler: &Compiler) -> (bool, Option<PathBuf>) {
    (has_source(&compiler.sysroot) || own_rustc(compiler).is_some(), existing_linker())
}

fn has_source(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
}

/// The source of `core`: in the compiler's folder, else by rustup, else by Debian. Returns the wrapper to
/// use as `RUSTC` when the source lies outside the compiler's folder.
///
/// `SOCKMESH_RUST_SRC` limits the search to some of `sysroot`, `rustup` and `debian`.
fn rust_src(compiler: &Compiler) -> Result<Option<PathBuf>> {
    let only = std::env::var("SOCKMESH_RUST_SRC").unwrap_or_default();
    let may = |way: &str| only.is_empty() || only.split(',').any(|word| word == way);
    if may("sysroot") && has_source(&compiler.sysroot) {
        return Ok(None);
    }
    if let Some(wrapper) = own_rustc(compiler) {
        return Ok(Some(wrapper));
    }
    let mut tried = vec![format!("the compiler's folder {}", compiler.sysroot.display())];
    if may("rustup") {
        match from_rustup(compiler) {
            Ok(()) => return Ok(None),
            Err(e) => tried.push(format!("rustup component add rust-src ({e:#})")),
        }
    }
    if may("debian") {
        for suite in SUITES {
            match from_debian(compiler, suite) {
                Ok(wrapper) => return Ok(Some(wrapper)),
                Err(e) => tried.push(format!("Debian's rust-src of {suite} ({e:#})")),
            }
        }
    }
    bail!(
        "no source of `core` for rustc {}; tried {}. Run `rustup component add rust-src`, or unpack the rust-src \
         of your distribution into the compiler's lib/rustlib/src/rust",
        compiler.release,
        tried.join("; ")
    )
}

fn from_rustup(compiler: &Compiler) -> Result<()> {
    let rustup = sh::find("rustup").context("rustup is not installed")?;
    println!("eBPF tool chain: rustup component add rust-src");
    let mut command = Command::new(rustup);
    command.args(["component", "add", "rust-src"]).current_dir(sh::root());
    sh::run_logged(&mut command, &sh::target("tools/rustup.log"), RUSTUP_LIMIT)?;
    if !has_source(&compiler.sysroot) {
        bail!("it brought no source");
    }
    Ok(())
}

/// A folder like the compiler's own, made of links, with the source added.
fn own_sysroot() -> PathBuf {
    sh::target("tools/sysroot")
}

/// The wrapper of an earlier run, if it was made for this very compiler.
fn own_rustc(compiler: &Compiler) -> Option<PathBuf> {
    let wrapper = sh::target("tools/rustc");
    let current = fs::read_to_string(&wrapper).is_ok_and(|text| text == wrapper_text(compiler));
    (current && has_source(&own_sysroot())).then_some(wrapper)
}

fn wrapper_text(compiler: &Compiler) -> String {
    format!(
        "#!/bin/sh\n# rustc {}, with the source of core\nexec '{}' \"$@\" --sysroot '{}'\n",
        compiler.release,
        compiler.sysroot.join("bin/rustc").display(),
        own_sysroot().display()
    )
}

fn from_debian(compiler: &Compiler, suite: &str) -> Result<PathBuf> {
    println!("eBPF tool chain: fetching Debian's rust-src {} of {suite} (45 MB)", compiler.release);
    let unpacked = sh::target("tools/rust-src");
    fs::remove_dir_all(&unpacked).ok();
    packages::unpack("rust-src", &compiler.release, suite, &unpacked)?;
    let source = unpacked.join(format!("usr/src/rustc-{}", compiler.release));
    let sysroot = own_sysroot();
    link_sysroot(&compiler.sysroot, &source, &sysroot)?;
    if !has_source(&sysroot) {
        bail!("the package has no library/core below {}", source.display());
    }
    let wrapper = sh::target("tools/rustc");
    fs::write(&wrapper, wrapper_text(compiler))?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    Ok(wrapper)
}

/// Links everything of the compiler's `lib` and `lib/rustlib`, and `source` in the place of the source.
fn link_sysroot(real: &Path, source: &Path, to: &Path) -> Result<()> {
    fs::remove_dir_all(to).ok();
    let src = to.join("lib/rustlib/src");
    fs::create_dir_all(&src)?;
    for (folder, except) in [("lib", "rustlib"), ("lib/rustlib", "src")] {
        for entry in fs::read_dir(real.join(folder))? {
            let entry = entry?;
            if entry.file_name() != except {
                symlink(entry.path(), to.join(folder).join(entry.file_name()))?;
            }
        }
    }
    symlink(source, src.join("rust"))?;
    Ok(())
}

/// The linker of an earlier run, or one on the `PATH`, if it starts: one that was linked with the LLVM of
/// a compiler that is gone does not.
fn existing_linker() -> Option<PathBuf> {
    [Some(own_linker()), sh::find("bpf-linker")].into_iter().flatten().find(|linker| starts(linker))
}

fn own_linker() -> PathBuf {
    sh::target("tools/bin/bpf-linker")
}

fn starts(linker: &Path) -> bool {
    sh::read(Command::new(linker).arg("--version")).is_ok()
}

fn linker(compiler: &Compiler) -> Result<PathBuf> {
    let own = own_linker();
    if starts(&own) {
        return Ok(own);
    }
    let error = match build_linker(compiler) {
        Ok(()) if starts(&own) => return Ok(own),
        Ok(()) => anyhow::anyhow!("the linker that was built does not start"),
        Err(e) => e,
    };
    if let Some(found) = existing_linker() {
        println!("eBPF tool chain: using {} (building our own failed)", found.display());
        return Ok(found);
    }
    bail!(
        "no bpf-linker: none on the PATH, and building {LINKER_VERSION} failed: {error:#}. \
         Install one (`cargo install bpf-linker`) and make sure it is on the PATH"
    )
}

/// Builds the linker with the compiler's own LLVM, so that both always read the same bitcode and nobody
/// has to install LLVM.
fn build_linker(compiler: &Compiler) -> Result<()> {
    let lib = compiler.sysroot.join("lib");
    let llvm = llvm_library(&lib, compiler.llvm)
        .with_context(|| format!("the compiler's folder {} has no libLLVM of its own", lib.display()))?;
    let prefix = sh::target("tools/llvm");
    fs::remove_dir_all(&prefix).ok();
    fs::create_dir_all(prefix.join("lib"))?;
    symlink(llvm, prefix.join("lib/libLLVM.so"))?;
    println!("eBPF tool chain: building bpf-linker {LINKER_VERSION} (1 to 3 minutes, once)");
    let feature = format!("llvm-{}", compiler.llvm);
    let mut command = sh::cargo(["install", "bpf-linker", "--locked", "--force", "--version", LINKER_VERSION]);
    command
        .args(["--no-default-features", "--features", &feature, "--root"])
        .arg(sh::target("tools"))
        .env("LLVM_PREFIX", &prefix)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", format!("-C link-arg=-Wl,-rpath,{}", lib.display()));
    sh::run_logged(&mut command, &sh::target("tools/bpf-linker.log"), LINKER_LIMIT)
}

/// The compiler's LLVM: the versioned name if there is one, else the linker-script-like short one.
fn llvm_library(lib: &Path, major: u32) -> Option<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(lib).ok()?.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&format!("libLLVM.so.{major}")) || name.starts_with(&format!("libLLVM-{major}"))
    });
    found.sort_by_key(|path| !path.to_string_lossy().contains("libLLVM.so."));
    found.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_names_its_llvm() {
        let text = "rustc 1.95.0 (x)\nbinary: rustc\nrelease: 1.95.0\nLLVM version: 22.1.2\n";
        assert_eq!(parse_version(text), Some(("1.95.0".to_owned(), 22)));
        assert_eq!(parse_version("rustc 1.95.0"), None);
    }

    #[test]
    fn a_sysroot_of_links_has_the_source_added() {
        let dir = std::env::temp_dir().join(format!("xtask-sysroot-{}", std::process::id()));
        fs::create_dir_all(dir.join("real/lib/rustlib/src/rust")).unwrap();
        fs::create_dir_all(dir.join("real/lib/rustlib/x86")).unwrap();
        fs::write(dir.join("real/lib/libLLVM.so.22.1-rust"), "").unwrap();
        fs::write(dir.join("real/lib/libLLVM-22-rust.so"), "").unwrap();
        fs::create_dir_all(dir.join("source/library/core")).unwrap();
        fs::write(dir.join("source/library/core/Cargo.toml"), "").unwrap();
        assert!(!has_source(&dir.join("real")));
        link_sysroot(&dir.join("real"), &dir.join("source"), &dir.join("made")).unwrap();
        assert!(has_source(&dir.join("made")));
        assert!(dir.join("made/lib/rustlib/x86").is_dir());
        let llvm = llvm_library(&dir.join("made/lib"), 22).unwrap();
        assert!(llvm.ends_with("libLLVM.so.22.1-rust"));
        assert_eq!(llvm_library(&dir.join("made/lib"), 21), None);
        fs::remove_dir_all(&dir).unwrap();
    }
}
