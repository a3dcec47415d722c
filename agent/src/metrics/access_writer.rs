//! The access log's way to the disk: callers append to a buffer in memory, one thread writes it out.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use parking_lot::{Condvar, Mutex};

use crate::{config::Rotate, sys::Hour};

/// How long the first line of a batch waits for others. Short enough for a human at `tail -f`, long
/// enough that a busy agent writes some hundred lines with one system call.
const LINGER: Duration = Duration::from_millis(50);

/// How long a stop waits for a disk that hangs.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// Memory kept between batches; what a burst grew beyond it is given back.
const KEEP_BYTES: usize = 256 * 1024;

/// Takes lines and writes them in batches. Callers never wait for the disk: when it does not keep up
/// and `buffer_lines` are waiting, further lines are dropped and counted.
///
/// Dropping it writes out what is left, waiting two seconds at most.
pub struct AccessLogWriter {
    shared: Arc<Shared>,
}

struct Shared {
    capacity_lines: usize,
    /// Nobody turned it off.
    on: AtomicBool,
    queue: Mutex<Queue>,
    /// Wakes the writer thread.
    work: Condvar,
    /// Wakes whoever waits in `flush` or drop.
    done: Condvar,
    written: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    lines: usize,
    /// Write at once, do not wait for more lines.
    hurry: bool,
    reopen: bool,
    stop: bool,
    /// Lines ever taken, and of these the ones the writer is through with.
    taken: u64,
    through: u64,
    stopped: bool,
}

impl std::fmt::Debug for AccessLogWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AccessLogWriter({} written, {} dropped)", self.written(), self.dropped())
    }
}

impl AccessLogWriter {
    /// Opens `path` for appending (`None`: standard output) and starts the writer thread. At most
    /// `buffer_lines` lines wait in memory. Errors when the file cannot be opened; the message names it.
    pub fn start(path: Option<PathBuf>, buffer_lines: usize, rotate: Rotate) -> io::Result<Self> {
        let target = Target::open(path, rotate)?;
        let shared = Arc::new(Shared {
            capacity_lines: buffer_lines.max(1),
            on: AtomicBool::new(true),
            queue: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
            written: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        let of_thread = shared.clone();
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || of_thread.write_forever(target))?;
        Ok(Self { shared })
    }

    /// Appends `line` without its line end. Never blocks on the disk; a line that finds the buffer
    /// full is dropped and counted.
    pub fn line(&self, line: &[u8]) {
        if !self.is_on() {
            return;
        }
        let wake = {
            let mut queue = self.shared.queue.lock();
            if queue.lines >= self.shared.capacity_lines {
                drop(queue);
                self.shared.dropped.fetch_add(1, Relaxed);
                return;
            }
            queue.bytes.extend_from_slice(line);
            queue.bytes.push(b'\n');
            queue.lines += 1;
            queue.taken += 1;
            // The writer sleeps without a limit only on an empty queue, and lingers until half is full.
            queue.lines == 1 || queue.lines == self.shared.capacity_lines / 2
        };
        if wake {
            self.shared.work.notify_one();
        }
    }

    /// Turns it on or off: off, lines are thrown away uncounted.
    pub fn turn(&self, on: bool) {
        self.shared.on.store(on, Relaxed);
    }

    /// Whether lines are written.
    pub fn is_on(&self) -> bool {
        self.shared.on.load(Relaxed)
    }

    /// Asks the writer to open the path again, after something moved the file away. Does not wait. If
    /// it cannot be opened, the old file goes on being written and a warning is logged.
    pub fn reopen(&self) {
        self.shared.queue.lock().reopen = true;
        self.shared.work.notify_one();
    }

    /// Lines handed to the system.
    pub fn written(&self) -> u64 {
        self.shared.written.load(Relaxed)
    }

    /// Lines lost: the buffer was full, or writing failed.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Relaxed)
    }

    /// Waits until every line (and reopening) asked for before is through, `timeout` at most. Blocks:
    /// for a stop and for tests. Returns whether all is through.
    pub fn flush(&self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut queue = self.shared.queue.lock();
        let taken = queue.taken;
        queue.hurry = true;
        self.shared.work.notify_one();
        while queue.through < taken || queue.reopen {
            if self.shared.done.wait_until(&mut queue, until).timed_out() {
                return queue.through >= taken && !queue.reopen;
            }
        }
        true
    }
}

impl Drop for AccessLogWriter {
    fn drop(&mut self) {
        let until = Instant::now() + CLOSE_WAIT;
        let mut queue = self.shared.queue.lock();
        queue.stop = true;
        self.shared.work.notify_one();
        // Not joined: a thread inside a write to a dead disk would keep the process alive.
        while !queue.stopped && !self.shared.done.wait_until(&mut queue, until).timed_out() {}
    }
}

impl Shared {
    fn write_forever(&self, mut target: Target) {
        let mut batch = Vec::new();
        let mut failing = false;
        loop {
            let (lines, reopen, stop) = {
                let mut queue = self.queue.lock();
                while queue.lines == 0 && !queue.reopen && !queue.stop {
                    // Nothing is left, so nobody is kept waiting by a hurry that came too late.
                    queue.hurry = false;
                    self.work.wait(&mut queue);
                }
                let until = Instant::now() + LINGER;
                while queue.lines < self.capacity_lines / 2 && !queue.hurry && !queue.reopen && !queue.stop {
                    if self.work.wait_until(&mut queue, until).timed_out() {
                        break;
                    }
                }
                std::mem::swap(&mut queue.bytes, &mut batch);
                (std::mem::take(&mut queue.lines), queue.reopen, queue.stop)
            };
            // Lines from before a reopening belong into the old file.
            match target.write_all(&batch, Hour::of(SystemTime::now())) {
                Ok(()) => {
                    self.written.fetch_add(lines as u64, Relaxed);
                    failing = false;
                }
                Err(error) => {
                    self.dropped.fetch_add(lines as u64, Relaxed);
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(target = %target, %error, "access log lines are lost");
                    }
                }
            }
            batch.clear();
            batch.shrink_to(KEEP_BYTES);
            if reopen {
                target.reopen();
            }
            let mut queue = self.queue.lock();
            queue.through += lines as u64;
            if reopen {
                queue.reopen = false;
            }
            let over = stop && queue.lines == 0;
            queue.stopped = over;
            self.done.notify_all();
            if over {
                return;
            }
        }
    }
}

/// Where lines go.
enum Target {
    Stdout,
    File {
        path: PathBuf,
        file: File,
        /// The hour of what is in the file, when it is put aside after that.
        hour: Option<Hour>,
    },
}

impl Target {
    fn open(path: Option<PathBuf>, rotate: Rotate) -> io::Result<Self> {
        let Some(path) = path else { return Ok(Self::Stdout) };
        let file = append(&path).map_err(|e| {
            io::Error::new(e.kind(), format!("access_log.path {}: cannot open for appending: {e}", path.display()))
        })?;
        let hour = match rotate {
            Rotate::Never => None,
            // A file that was there holds what was written last, before whatever kept this agent from running.
            Rotate::Hourly => Some(Hour::of(file.metadata()?.modified().unwrap_or_else(|_| SystemTime::now()))),
        };
        Ok(Self::File { path, file, hour })
    }

    fn reopen(&mut self) {
        if let Self::File { path, file, .. } = self {
            match append(path) {
                Ok(new) => *file = new,
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "access log cannot be reopened; the old file is kept");
                }
            }
        }
    }

    /// Puts the file aside when its hour is over.
    fn rotate(&mut self, now: Hour) {
        let Self::File { path, file, hour: Some(hour) } = self else { return };
        let over = *hour;
        // Nor when the clock was set back: the earlier hour has its file.
        if now <= over {
            return;
        }
        *hour = now;
        if file.metadata().is_ok_and(|meta| meta.len() == 0) {
            return;
        }
        let aside = aside(path, over);
        if let Err(error) = std::fs::rename(&path, &aside) {
            tracing::warn!(path = %path.display(), aside = %aside.display(), %error, "access log is not put aside");
            return;
        }
        self.reopen();
    }

    fn write_all(&mut self, bytes: &[u8], now: Hour) -> io::Result<()> {
        self.rotate(now);
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()
            }
            Self::File { file, .. } => file.write_all(bytes),
        }
    }
}

/// `access.log` of an hour: `access-20261121-07.log`.
fn aside(path: &Path, hour: Hour) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}-{hour}{extension}"))
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stdout => f.write_str("standard output"),
            Self::File { path, .. } => path.display().fmt(f),
        }
    }
}

fn append(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn temp(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("sockmesh-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    #[test]
    fn writes_whole_lines_and_reopens_after_a_rotation() {
        let (path, old) = (temp("rotate"), temp("rotate-old"));
        let log = AccessLogWriter::start(Some(path.clone()), 100, Rotate::Never).unwrap();
        log.line(b"one");
        log.line(b"two");
        assert!(log.flush(SOON));
        std::fs::rename(&path, &old).unwrap();
        log.line(b"three");
        assert!(log.flush(SOON));
        log.line(b"four");
        log.reopen();
        assert!(log.flush(SOON));
        log.line(b"five");
        drop(log);
        // `four` was taken before the reopening, but may lawfully be in either file.
        let (before, after) = (std::fs::read_to_string(&old).unwrap(), std::fs::read_to_string(&path).unwrap());
        assert!(before.starts_with("one\ntwo\nthree\n"), "{before}");
        assert_eq!(format!("{before}{after}"), "one\ntwo\nthree\nfour\nfive\n");
        assert!(after.ends_with("five\n"));
        let _ = (std::fs::remove_file(old), std::fs::remove_file(path));
    }

    #[test]
    fn the_file_of_an_hour_that_is_over_is_put_aside() {
        let path = temp("hourly.log");
        let at = |hour| Hour { year: 2026, month: 11, day: 21, hour };
        let mut target = Target::open(Some(path.clone()), Rotate::Hourly).unwrap();
        let Target::File { hour, .. } = &mut target else { unreachable!() };
        *hour = Some(at(7));
        target.write_all(b"one\n", at(7)).unwrap();
        target.write_all(b"two\n", at(9)).unwrap();
        target.write_all(b"three\n", at(8)).unwrap();
        let seven = aside(&path, at(7));
        assert_eq!(aside(Path::new("/var/x-access.log"), at(7)), Path::new("/var/x-access-20261121-07.log"));
        assert_eq!(std::fs::read_to_string(&seven).unwrap(), "one\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\nthree\n", "the clock was set back");
        // What an earlier run left is of its own hour.
        let before = SystemTime::now() - Duration::from_secs(7200);
        File::options().append(true).open(&path).unwrap().set_modified(before).unwrap();
        let mut target = Target::open(Some(path.clone()), Rotate::Hourly).unwrap();
        target.write_all(b"four\n", Hour::of(SystemTime::now())).unwrap();
        assert_eq!(std::fs::read_to_string(aside(&path, Hour::of(before))).unwrap(), "two\nthree\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "four\n");
        for file in [seven, aside(&path, Hour::of(before)), path] {
            let _ = std::fs::remove_file(file);
        }
    }

    #[test]
    fn drops_and_counts_when_the_disk_stands_still() {
        // A FIFO nobody reads is a disk that hangs as soon as the pipe's 64 KiB are full.
        let path = temp("fifo");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let reader = rustix::fs::open(&path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        let log = AccessLogWriter::start(Some(path.clone()), 100, Rotate::Never).unwrap();
        let line = [b'x'; 4095];
        let mut sent = 0u64;
        while log.dropped() < 50 {
            log.line(&line);
            sent += 1;
            assert!(sent < 1_000_000, "the buffer has no bound");
        }
        assert!(!log.flush(Duration::from_millis(1)), "nothing can be through");
        // Once the disk is back, everything that was taken comes out whole.
        let mut reader = File::from(reader);
        rustix::fs::fcntl_setfl(&reader, OFlags::empty()).unwrap();
        let got = std::thread::spawn(move || {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            got
        });
        assert!(log.flush(SOON));
        let (written, dropped) = (log.written(), log.dropped());
        drop(log);
        let got = got.join().unwrap();
        assert_eq!(written + dropped, sent);
        assert_eq!(got.len() as u64, written * 4096);
        assert!(got.chunks(4096).all(|l| l[..4095] == line && l[4095] == b'\n'));
        let _ = std::fs::remove_file(path);
    }

    #[test]
    fn an_unwritable_path_is_named() {
        let error = AccessLogWriter::start(Some("/nonexistent/access.log".into()), 1, Rotate::Never).unwrap_err();
        assert!(error.to_string().contains("access_log.path /nonexistent/access.log"), "{error}");
    }
}
