//! Kernels from Debian's packages: which there are, fetched and unpacked, never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{packages::Archive, sh};

/// Where Debian keeps the kernels of a line, besides [`NEWER`].
const SUITES: &[(&str, &[&str])] = &[
    ("5.10", &["bullseye", "bullseye-security"]),
    ("6.1", &["bookworm", "bookworm-security"]),
    ("6.12", &["trixie", "trixie-security"]),
];
/// Where the others are.
const NEWER: &[&str] = &["trixie-backports", "sid"];
/// The kind of kernel: for virtual machines, so of few modules.
const FLAVOR: &str = "-cloud-amd64";
/// What is kept of the modules: sockets, filters, virtual network devices.
const MODULES: &[&str] = &[
    "kernel/net",
    "kernel/lib",
    "kernel/crypto",
    "kernel/arch",
    "kernel/drivers/net/veth",
    "kernel/drivers/net/dummy",
];

/// A kernel, ready to be started.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// As it was asked for: `6.12`, or `newest`.
    pub line: String,
    /// As the kernel calls itself: `6.12.117+deb13-cloud-amd64`.
    pub release: String,
    /// What the machine starts.
    pub image: PathBuf,
    /// Its modules, and where they are to be.
    pub modules: PathBuf,
    /// A folder for what belongs to it.
    pub dir: PathBuf,
}

/// Kernels of these lines and a static busybox: what is not below `target/` already is fetched; with
/// `update`, everything.
pub fn provide(lines: &[String], update: bool) -> Result<(Vec<Kernel>, PathBuf)> {
    let busybox = sh::target("kernels/busybox");
    let program = ["bin/busybox", "usr/bin/busybox"].map(|path| busybox.join(path));
    let present = || program.iter().find(|path| path.is_file()).cloned();
    let mut suites = Vec::new();
    for line in lines {
        if update || unpacked(line).is_err() {
            suites.extend(SUITES.iter().find(|(of, _)| of == line).map_or(NEWER, |(_, suites)| *suites));
        }
    }
    if suites.is_empty() && present().is_none() {
        suites.extend(NEWER);
    }
    suites.sort_unstable();
    suites.dedup();
    if !suites.is_empty() {
        let archive = Archive::open(&suites)?;
        if present().is_none() {
            archive.unpack("busybox-static", &busybox)?;
        }
        let busybox = present().context("the package busybox-static came without busybox")?;
        let known = archive.names("linux-image-")?;
        for line in lines {
            if update || unpacked(line).is_err() {
                fetch(&archive, &known, line, &busybox)?;
            }
        }
    }
    let kernels = lines.iter().map(|line| unpacked(line)).collect::<Result<_>>()?;
    Ok((kernels, present().context("no busybox")?))
}

fn fetch(archive: &Archive, known: &[String], line: &str, busybox: &Path) -> Result<()> {
    let Some(release) = newest(known, line) else {
        bail!("Debian has no kernel {line} here; it has {}", lines(known).join(", "));
    };
    println!("fetching kernel {release}");
    let dir = folder(line);
    fs::remove_dir_all(&dir).ok();
    // Newer packages are in parts; the first is then little more than the list of the others.
    archive.unpack(&format!("linux-image-{release}"), &dir)?;
    for part in ["linux-binary-", "linux-modules-"] {
        let name = format!("{part}{release}");
        if archive.names(&name)?.contains(&name) {
            archive.unpack(&name, &dir)?;
        }
    }
    if !dir.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", dir.join("lib"))?;
    }
    let modules = dir.join("lib/modules").join(&release);
    prune(&modules, &modules)?;
    let mut depmod = Command::new(busybox);
    sh::run(depmod.args(["depmod", "-b"]).arg(&dir).arg(&release))?;
    // Last: says that the folder is complete.
    fs::write(dir.join("release"), &release)?;
    Ok(())
}

/// Removes all modules but those of [`MODULES`].
fn prune(top: &Path, dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("the package has no {}", dir.display()))? {
        let path = entry?.path();
        let below = path.strip_prefix(top)?.to_string_lossy().into_owned();
        if !below.starts_with("kernel") || MODULES.iter().any(|kept| below.starts_with(kept)) {
            continue;
        }
        let leads_there = MODULES.iter().any(|kept| kept.starts_with(&format!("{below}/")));
        if leads_there {
            prune(top, &path)?;
        } else if path.is_dir() {
            fs::remove_dir_all(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn folder(line: &str) -> PathBuf {
    sh::target("kernels").join(line)
}

/// The kernel that was unpacked before.
fn unpacked(line: &str) -> Result<Kernel> {
    let dir = folder(line);
    let release = fs::read_to_string(dir.join("release")).with_context(|| format!("no kernel {line} was fetched"))?;
    let modules = dir.join("lib/modules").join(&release);
    let images = [dir.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")];
    let image = images.into_iter().find(|image| image.is_file());
    let image = image.with_context(|| format!("the packages of {release} came without a kernel"))?;
    Ok(Kernel { line: line.to_owned(), release, image, modules, dir })
}

/// The numbers in a release: `6.12.117+deb13-cloud-amd64` has 6, 12, 117, 13, 64.
pub fn numbers(release: &str) -> Vec<u32> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Release of a kernel's package; none for one that is something else, or only leads to another.
fn release(package: &str) -> Option<&str> {
    let release = package.strip_prefix("linux-image-")?;
    (release.ends_with(FLAVOR) && release.split('.').count() > 2).then_some(release)
}

fn newest(packages: &[String], line: &str) -> Option<String> {
    let wanted = numbers(line);
    packages
        .iter()
        .filter_map(|package| release(package))
        .filter(|release| line == "newest" || numbers(release).starts_with(&wanted))
        .max_by_key(|release| numbers(release))
        .map(str::to_owned)
}

/// First two numbers of every kernel among `packages`.
fn lines(packages: &[String]) -> Vec<String> {
    let mut lines: Vec<_> = packages.iter().filter_map(|package| release(package)).map(numbers).collect();
    lines.iter_mut().for_each(|numbers| numbers.truncate(2));
    lines.sort_unstable();
    lines.dedup();
    lines.iter().map(|numbers| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(".")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packages() -> Vec<String> {
        [
            "linux-image-cloud-amd64",
            "linux-image-6.1-cloud-amd64",
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64-unsigned",
            "linux-image-6.1.0-0.deb11.57-cloud-amd64",
            "linux-image-6.1.0-57-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.117+deb13-cloud-amd64",
            "linux-image-6.12.99+deb13-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64-dbg",
            "linux-image-7.2.11+deb13-cloud-amd64",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    #[test]
    fn the_newest_kernel_of_a_line_is_taken() {
        let newest = |line| newest(&packages(), line);
        assert_eq!(newest("6.1").as_deref(), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(newest("6.12").as_deref(), Some("6.12.117+deb13-cloud-amd64"));
        assert_eq!(newest("6.12.99").as_deref(), Some("6.12.99+deb13-cloud-amd64"));
        assert_eq!(newest("newest").as_deref(), Some("7.2.11+deb13-cloud-amd64"));
        assert_eq!(newest("6.6"), None);
        assert_eq!(lines(&packages()), ["6.1", "6.12", "7.2"]);
    }

    #[test]
    fn only_modules_that_a_mesh_meets_are_kept() {
        let dir = std::env::temp_dir().join(format!("xtask-modules-{}", std::process::id()));
        let files =
            ["modules.order", "kernel/net/a.ko", "kernel/drivers/net/veth.ko.xz", "kernel/drivers/net/wifi/b.ko"];
        for file in files.iter().chain(&["kernel/drivers/gpu/c.ko", "kernel/sound/d.ko"]) {
            let path = dir.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        prune(&dir, &dir).unwrap();
        assert!(files[..3].iter().all(|file| dir.join(file).is_file()));
        assert!(!dir.join(files[3]).exists() && !dir.join("kernel/drivers/gpu").exists());
        assert!(!dir.join("kernel/sound").exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
