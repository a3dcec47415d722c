//! Processes of the demo: started in their control group, waited for, stopped.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::guard::Guard;
use crate::{sh, sys};

/// Time for a program to come up: ten times what the slowest took on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Time between two looks at something that cannot be waited for.
const LOOK: Duration = Duration::from_millis(50);

/// A running program, and whatever it started.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program with its output in `log`, in the control group that takes processes by `procs`.
    /// It gets SIGTERM when xtask dies, and the guard knows it.
    pub fn start(name: &str, mut command: Command, procs: Option<&File>, log: PathBuf, guard: &Guard) -> Result<Self> {
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        sys::tie(&mut command, procs.map(File::try_clone).transpose()?, libc::SIGTERM);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        guard.watch_group(child.id())?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// An error that says how it ended, with its last words.
    pub fn obituary(&mut self) -> anyhow::Error {
        let end = self.child.try_wait().ok().flatten().map_or_else(|| "runs".to_owned(), |status| status.to_string());
        anyhow::anyhow!("{} ended ({end}); its last lines:\n{}", self.name, sh::tail_of(&self.log, 10))
    }

    /// Waits until `ready` says so. An error when the program ends before, when it takes too long, and when
    /// a stop signal comes.
    pub fn wait_until(&mut self, signals: &sys::Signals, ready: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while !ready() {
            if !self.runs() {
                return Err(self.obituary());
            }
            if signals.wait(LOOK) {
                bail!("stopped by a signal");
            }
            if Instant::now() > deadline {
                bail!(
                    "{} did not become ready within {} s; its last lines:\n{}",
                    self.name,
                    START_LIMIT.as_secs(),
                    sh::tail_of(&self.log, 10)
                );
            }
        }
        Ok(())
    }

    /// Waits for its end, at most `limit`; `None` when it still runs then.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        Ok(sys::wait_child(&mut self.child, limit)?)
    }

    /// Asks it and what it started to stop; by force after `limit`.
    pub fn stop(&mut self, limit: Duration) {
        let Ok(pid) = i32::try_from(self.child.id()) else { return };
        if self.runs() {
            sys::kill(-pid, libc::SIGTERM);
            sys::wait_child(&mut self.child, limit).ok();
        }
        // Also when the leader is gone: what it started may not be.
        sys::kill(-pid, libc::SIGKILL);
        self.child.wait().ok();
    }
}

/// Whether something accepts connections there.
pub fn accepts(addr: SocketAddr) -> bool {
    TcpStream::connect_timeout(&addr, Duration::from_millis(200)).is_ok()
}

/// Whether a GET of this path is answered with 200.
pub fn answers(addr: SocketAddr, path: &str) -> bool {
    get(addr, path).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// One HTTP request on a connection of its own; the whole answer as text.
pub fn get(addr: SocketAddr, path: &str) -> io::Result<String> {
    ask(addr, "GET", path, "")
}

/// [`get`] with another method and a body of JSON.
pub fn ask(addr: SocketAddr, method: &str, path: &str, body: &str) -> io::Result<String> {
    let mut stream = connect(addr)?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {addr}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A connection on which nothing is waited for longer than two seconds.
pub fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let limit = Duration::from_secs(2);
    let stream = TcpStream::connect_timeout(&addr, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    Ok(stream)
}

/// `wanted` on loopback if it is free, else one that is.
pub fn port(wanted: u16) -> Result<u16> {
    let bind = |port| TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port)));
    let listener = bind(wanted).or_else(|_| bind(0)).context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}

/// A command that runs one of xtask's own hidden verbs, also when the file of this binary was replaced.
pub fn own(verb: &str) -> Command {
    let mut command = Command::new(Path::new("/proc/self/exe"));
    command.arg(verb);
    command
}
