//! Running programs: found, with a time limit, and with their last words when they fail.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        OnceLock,
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::sys;

/// The root of the workspace.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        // cargo gives xtask's own folder; a binary started by hand looks upwards from where it stands.
        let given = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let start = given.or_else(|| std::env::current_dir().ok()).unwrap_or_default();
        start.ancestors().find(|dir| dir.join("Cargo.lock").is_file()).unwrap_or(&start).to_path_buf()
    })
}

/// A path below `target/`.
pub fn target(path: &str) -> PathBuf {
    root().join("target").join(path)
}

/// The cargo that started us, at the root of the workspace.
pub fn cargo<I: AsRef<OsStr>>(args: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root()).env_remove("CARGO_TARGET_DIR");
    command
}

/// Where a program is: on the `PATH`, or where Debian keeps those for administrators.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps every version of PostgreSQL's programs in a folder of its own.
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    std::env::split_paths(&path)
        .chain(
            ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/go/bin", "/usr/share/zookeeper/bin"]
                .map(PathBuf::from),
        )
        .chain(versions.map(|version| version.path().join("bin")))
        .map(|dir| dir.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Runs a program with our own output; its failure is an error that names it.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot start {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

/// Runs a program and returns what it prints, trimmed; its failure is an error with its last words.
pub fn read(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {shown}"))?;
    if !output.status.success() {
        bail!("{shown}: {}: {}", output.status, tail(&String::from_utf8_lossy(&output.stderr), 3));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs a program with its output in `log`, at most `limit`; a failure carries the log's last lines.
pub fn run_logged(command: &mut Command, log: &Path, limit: Duration) -> Result<()> {
    let shown = show(command);
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
    match sys::wait_child(&mut child, limit)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("{shown}: {status}\n{}", tail_of(log, 12)),
        None => {
            child.kill().ok();
            child.wait().ok();
            bail!("{shown}: not finished after {} s, stopped\n{}", limit.as_secs(), tail_of(log, 12))
        }
    }
}

/// The last lines of a file, indented; empty when it cannot be read.
pub fn tail_of(log: &Path, lines: usize) -> String {
    tail(&String::from_utf8_lossy(&fs::read(log).unwrap_or_default()), lines)
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.trim_end().lines().collect();
    let last = &all[all.len().saturating_sub(lines)..];
    last.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// The command as a person would type it, without the path of the program.
fn show(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let args = command.get_args().map(OsStr::to_string_lossy);
    std::iter::once(program.to_string_lossy()).chain(args).collect::<Vec<_>>().join(" ")
}

/// A stop signal came while a program ran: the user wants an end of everything.
#[derive(Debug)]
pub struct Stopped;

impl std::error::Error for Stopped {}

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopped by a signal")
    }
}

/// Runs a program in a group of its own and hands over its standard output line by line. Our stop signals
/// and the end of `limit` end the whole group, and are errors.
pub fn stream(command: &mut Command, limit: Duration, mut line: impl FnMut(&str)) -> Result<ExitStatus> {
    let signals = sys::Signals::catch()?;
    let shown = show(command);
    sys::tie(command, None, libc::SIGTERM);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
    let group = -i32::try_from(child.id()).context("process ids are small")?;
    let output = BufReader::new(child.stdout.take().context("the output is piped")?);
    // Few and short: the reader blocks while we print, and the program while the reader does.
    let (send, receive) = mpsc::sync_channel(64);
    std::thread::spawn(move || output.lines().map_while(|line| line.ok()).all(|line| send.send(line).is_ok()));
    let deadline = Instant::now() + limit;
    let mut stop = None;
    while stop.is_none() {
        match receive.recv_timeout(Duration::from_millis(200)) {
            Ok(text) => line(&text),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if signals.wait(Duration::ZERO) => stop = Some(anyhow::Error::new(Stopped)),
            Err(RecvTimeoutError::Timeout) if Instant::now() > deadline => stop = Some(too_long(limit)),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    if let Some(why) = stop {
        sys::kill(group, libc::SIGTERM);
        if sys::wait_child(&mut child, Duration::from_secs(5))?.is_none() {
            sys::kill(group, libc::SIGKILL);
        }
        child.wait()?;
        return Err(why.context(shown));
    }
    Ok(child.wait()?)
}

fn too_long(limit: Duration) -> anyhow::Error {
    anyhow::anyhow!("not finished after {} s, stopped", limit.as_secs())
}
