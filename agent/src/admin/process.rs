//! What the system says of this process.

use std::{fs::File, os::unix::fs::FileExt, time::Duration};

use rustix::{
    process::{Resource, getrlimit},
    time::{ClockId, clock_gettime},
};

/// Reads what the system says of this process.
pub struct Process {
    // Opened once: in a shortage of descriptors it is wanted most.
    status: Option<File>,
}

impl Default for Process {
    fn default() -> Self {
        Self::new()
    }
}

impl Process {
    /// Opens what is read again and again.
    pub fn new() -> Self {
        Self { status: File::open("/proc/self/status").ok() }
    }

    /// Memory in use.
    pub fn resident_bytes(&self) -> Option<u64> {
        let mut page = [0; 4096];
        let len = self.status.as_ref()?.read_at(&mut page, 0).ok()?;
        let text = String::from_utf8_lossy(&page[..len]);
        let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    }

    /// Processor time used, by all threads.
    pub fn cpu(&self) -> Duration {
        clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap_or_default()
    }

    /// Open file descriptors; `None` when not even one is free for looking.
    pub fn open_descriptors(&self) -> Option<usize> {
        // One of them is the folder itself.
        Some(std::fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1))
    }

    /// How many there may be; `None` without a limit.
    pub fn max_descriptors(&self) -> Option<u64> {
        getrlimit(Resource::Nofile).current
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_there_is() {
        let process = Process::new();
        let resident = process.resident_bytes().unwrap();
        assert!((1 << 20..1 << 34).contains(&resident), "{resident}");
        assert!(process.cpu() > Duration::ZERO);
        assert!(process.open_descriptors().unwrap() >= 3);
        assert!(process.max_descriptors().is_none_or(|max| max >= 3));
    }
}
