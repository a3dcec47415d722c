//! One running program: started here, or found again after a restart of the centre.

use std::{fs, os::fd::OwnedFd, path::Path, process::Stdio, time::Duration};

use anyhow::Context;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::{Deserialize, Serialize};
use tokio::{
    io::unix::AsyncFd,
    process::{Child, Command},
};

/// A log larger than this is put aside when its instance is started, one older one is kept.
const LOG_BYTES: u64 = 16 << 20;

/// Names a process for ever: numbers are used again, moments of start are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its number, and that of its group.
    pub pid: u32,
    /// When it was started, in clock ticks since the kernel was.
    started: u64,
}

impl Identity {
    /// The process that has this number now.
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // proc(5): the name, in parentheses, may hold anything; state is field 3 and the start field 22.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?;
        (state != "Z" && state != "X").then_some(())?;
        Some(Self { pid, started: fields.nth(18)?.parse().ok()? })
    }

    /// Whether it still runs.
    pub fn alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }
}

/// A running program. Dropping it does not end it.
pub struct Program {
    identity: Identity,
    /// Readable when the process has ended.
    handle: AsyncFd<OwnedFd>,
    /// None: started by an earlier centre.
    child: Option<Child>,
}

impl Program {
    /// Starts it in a group of its own, with its output added to `log`.
    pub fn start(
        program: &str,
        arguments: &[String],
        environment: &[(String, String)],
        directory: Option<&Path>,
        log: &Path,
    ) -> anyhow::Result<Self> {
        if fs::metadata(log).is_ok_and(|meta| meta.len() > LOG_BYTES) {
            let aside = log.with_extension("log.1");
            fs::rename(log, &aside).with_context(|| format!("cannot put {} aside", log.display()))?;
        }
        let out = fs::File::options().create(true).append(true).open(log);
        let out = out.with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(program);
        command.args(arguments).envs(environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).process_group(0);
        if let Some(directory) = directory {
            command.current_dir(directory);
        }
        let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        let pid = child.id().context("it ended before it was seen")?;
        // It is our child and was not waited for, so the number cannot be another's; one that has ended already has
        // no start to read, and shows as ended at once.
        let identity = Identity::of(pid).unwrap_or(Identity { pid, started: 0 });
        Ok(Self { identity, handle: handle(pid)?, child: Some(child) })
    }

    /// One that an earlier centre started, if it still runs.
    pub fn adopt(identity: Identity) -> Option<Self> {
        let handle = handle(identity.pid).ok()?;
        // Looked at after the handle was taken, so that the handle is of the same process.
        identity.alive().then_some(Self { identity, handle, child: None })
    }

    /// Which process it is.
    pub const fn identity(&self) -> Identity {
        self.identity
    }

    /// Resolves when it has ended, with how; what is left of its group is killed. May be dropped and asked again.
    pub async fn ended(&mut self) -> String {
        self.over().await;
        // Until it is waited for, its number is not given to anybody else.
        self.signal(Signal::KILL);
        match &mut self.child {
            None => "it ended".to_owned(),
            Some(child) => match child.wait().await {
                Ok(status) => format!("it ended: {status}"),
                Err(error) => format!("it ended: {error}"),
            },
        }
    }

    /// Asks its group to end, and kills what has not within `patience`.
    pub async fn stop(mut self, patience: Duration) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(patience, self.over()).await.is_err() {
            tracing::warn!(pid = self.identity.pid, ?patience, "an instance did not end in time and is killed");
            self.signal(Signal::KILL);
        }
        self.ended().await;
    }

    async fn over(&self) {
        // An error of the reactor looks like an end: the runtime is going down.
        let _ = self.handle.readable().await;
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.identity.pid).ok().and_then(Pid::from_raw);
        // A group that is gone is what was wanted.
        let _ = pid.map(|pid| kill_process_group(pid, signal));
    }
}

fn handle(pid: u32) -> anyhow::Result<AsyncFd<OwnedFd>> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process has this number")?;
    // Linux 5.3.
    let handle = pidfd_open(pid, PidfdFlags::NONBLOCK).or_else(|_| pidfd_open(pid, PidfdFlags::empty()))?;
    #[expect(deprecated, reason = "an `OwnedFd` stays open and the same, which is all that the new function asks for")]
    let handle = AsyncFd::with_interest(handle, tokio::io::Interest::READABLE)?;
    Ok(handle)
}
