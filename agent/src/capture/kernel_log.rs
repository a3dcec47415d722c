//! What the programs in the kernel say, passed on to the agent's own log.

use std::{io, os::fd::OwnedFd, thread::JoinHandle};

use anyhow::Context as _;
use aya_log::EbpfLogger;
use ebpf_common::Outcome;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use tracing::Level;

/// Target of these records, for log filters.
pub const TARGET: &str = "kernel";

/// Reads until dropped.
#[derive(Debug)]
pub struct KernelLog {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl KernelLog {
    /// Starts a thread that reads what the programs of `ebpf` say; it sleeps while they are silent.
    pub fn start(ebpf: &mut aya::Ebpf) -> anyhow::Result<Self> {
        let logger = EbpfLogger::init_with_logger(ebpf, ToTracing).context("the programs have no log")?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC).context("eventfd")?;
        let stopped = stop.try_clone().context("eventfd")?;
        let thread = std::thread::Builder::new()
            .name("kernel-log".to_owned())
            .spawn(move || read(logger, &stopped))
            .context("cannot start a thread")?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for KernelLog {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read(mut logger: EbpfLogger<ToTracing>, stop: &OwnedFd) {
    loop {
        let mut fds = [PollFd::new(&logger, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(e) if e != rustix::io::Errno::INTR => {
                tracing::warn!(target: TARGET, error = %io::Error::from(e), "the kernel log is no longer read");
                return;
            }
            _ => {}
        }
        let stopped = !fds[1].revents().is_empty();
        logger.flush();
        if stopped {
            return;
        }
    }
}

/// Level that makes the programs silent, at no cost: the kernel drops the branches when it loads them.
pub const SILENT: u8 = 0;

/// The number that programs compare their records' levels with.
pub fn number(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = named(&record.args().to_string());
        match record.level() {
            log::Level::Error => tracing::error!(target: TARGET, "{text}"),
            log::Level::Warn => tracing::warn!(target: TARGET, "{text}"),
            log::Level::Info => tracing::info!(target: TARGET, "{text}"),
            log::Level::Debug => tracing::debug!(target: TARGET, "{text}"),
            log::Level::Trace => tracing::trace!(target: TARGET, "{text}"),
        }
    }

    fn flush(&self) {}
}

/// Puts the outcome's name for its number (`#3`), which is all that a program can say.
fn named(text: &str) -> String {
    match text.rsplit_once('#') {
        Some((before, number)) => match number.parse::<usize>().ok().and_then(|n| Outcome::ALL.get(n)) {
            Some(outcome) => format!("{before}{}", outcome.name()),
            None => text.to_owned(),
        },
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_names() {
        assert_eq!(named("connect ::1:80 outcome #0"), "connect ::1:80 outcome captured");
        assert_eq!(named("connect outcome #999"), "connect outcome #999");
        assert_eq!(named("plain"), "plain");
    }
}
