//! A virtual machine (qemu) with one kernel: started, listened to, gone at the end whatever happens.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::debian::Kernel;
use crate::sh;

/// How the machine runs its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// On the processor itself.
    Kvm,
    /// Translated: works everywhere, several times slower.
    Translated,
}

impl Engine {
    /// The best that works here, found by starting `kernel` with `image`, which only turns the machine off:
    /// inside other virtual machines the device may be there and still run no common kernel.
    pub fn here(kernel: &Kernel, image: &Path) -> Self {
        let opened = std::fs::File::options().read(true).write(true).open("/dev/kvm");
        if opened.is_ok() && run(kernel, image, Self::Kvm, TRIAL, |_| {}).is_ok() {
            Self::Kvm
        } else {
            Self::Translated
        }
    }

    /// What a limit becomes on it.
    pub fn stretch(self, limit: Duration) -> Duration {
        if self == Self::Kvm { limit } else { limit * 5 }
    }

    fn args(self) -> [&'static str; 4] {
        match self {
            // Inside another virtual machine this register may be offered and not be writable.
            Self::Kvm => ["-accel", "kvm", "-cpu", "host,arch-capabilities=off"],
            Self::Translated => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }
}

/// A machine that only turns itself off takes a second or two.
const TRIAL: Duration = Duration::from_secs(20);

/// Starts `kernel` with the file system `image` and hands over what the guest says line by line, until the
/// machine turns itself off. The time it took; an error when it ran longer than `limit`.
pub fn run(
    kernel: &Kernel,
    image: &Path,
    engine: Engine,
    limit: Duration,
    mut line: impl FnMut(&str),
) -> Result<Duration> {
    let qemu = sh::find("qemu-system-x86_64").context("no qemu-system-x86_64: install qemu-system-x86")?;
    let console = kernel.dir.join("console.log");
    let mut command = Command::new(qemu);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35"])
        .args(engine.args())
        .args(["-smp", "2", "-m", "2048", "-kernel"])
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(image)
        // A panic is a reset, and a reset is the end.
        .args(["-append", "console=ttyS0 panic=-1 oops=panic mitigations=off"])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .args(["-serial", "stdio"]);
    let since = Instant::now();
    let status = sh::stream(&mut command, limit, |text| line(text.trim_end_matches('\r')))
        .with_context(|| format!("kernel {}; its console: {}", kernel.release, console.display()))?;
    anyhow::ensure!(status.success(), "qemu: {status}");
    Ok(since.elapsed())
}
