//! Looks at the programs behind captured connections, one connection at a time, beside the data path.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    task::JoinSet,
};

use super::learn::{self, File, Memory, Reason, Verdict};
use crate::sys;

/// Connections that wait to be looked at; more are not worth it.
const ROOM: usize = 256;
/// A program may set up its socket a moment after it connected: the second look comes this much later.
const SECOND_LOOK: Duration = Duration::from_millis(100);
/// Looks at once.
const LOOKS: usize = 8;
/// The descriptors of all processes are searched no more often than this.
const SEARCH_AGAIN: Duration = Duration::from_millis(50);

/// A connection between a program and the agent.
#[derive(Clone, Copy, Debug)]
pub enum Seen {
    /// A program connected to the agent.
    Caller {
        /// Its process, in the agent's view of processes.
        pid: u32,
        /// The program's end.
        local: SocketAddr,
        /// The agent's end, as the kernel has it.
        remote: SocketAddr,
    },
    /// The agent connected to a program of its own network namespace.
    Acceptor {
        /// Where the program listens.
        at: SocketAddr,
        /// The agent's end.
        from: SocketAddr,
    },
}

/// Where verdicts go.
pub trait Table: Send + Sync + 'static {
    /// `file`, which process `pid` runs, has a new verdict.
    fn set(&self, file: File, pid: u32, verdict: Verdict);

    /// The verdict on the program that listens on `at`.
    fn set_acceptor(&self, at: SocketAddr, verdict: Verdict);

    /// Why the kernel half has refused `file`, which process `pid` runs, if it has: it sees what programs ask of their sockets.
    fn refused(&self, file: File, pid: u32) -> Option<Reason>;
}

/// Where accepted connections are shown to the learner. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Learner(Sender<Seen>);

impl Learner {
    /// Starts the learner on the current runtime, which must not be the one that moves bytes: looks read files.
    /// It ends when the last clone of what is returned is gone.
    pub fn start(table: Arc<dyn Table>) -> Self {
        Self::with(table, learn::inspect)
    }

    fn with(table: Arc<dyn Table>, inspect: Inspect) -> Self {
        let (tx, rx) = channel(ROOM);
        tokio::spawn(learn(rx, table, inspect));
        Self(tx)
    }

    /// A connection was accepted. Never waits: when the learner is behind, the connection is not looked at.
    pub fn seen(&self, seen: Seen) {
        let _ = self.0.try_send(seen);
    }
}

/// Looks into the program file of a process.
type Inspect = fn(u32, &Path) -> Option<Reason>;

async fn learn(mut queue: Receiver<Seen>, table: Arc<dyn Table>, inspect: Inspect) {
    let school = Arc::new(School { memory: Mutex::default(), owners: Mutex::default(), table, inspect });
    let mut looks = JoinSet::new();
    while let Some(seen) = queue.recv().await {
        // A look waits for its program now and then.
        while looks.len() >= LOOKS {
            looks.join_next().await;
        }
        let school = school.clone();
        looks.spawn(async move {
            match seen {
                Seen::Caller { pid, local, remote } => {
                    school.judge(pid, local, remote).await;
                }
                Seen::Acceptor { at, from } => {
                    let Some(pid) = school.owner(at, from).await else { return };
                    if let Some(verdict) = school.judge(pid, at, from).await {
                        school.table.set_acceptor(at, verdict);
                    }
                }
            }
        });
        while looks.try_join_next().is_some() {}
    }
}

struct School {
    memory: Mutex<Memory>,
    owners: Mutex<Owners>,
    table: Arc<dyn Table>,
    inspect: Inspect,
}

/// Who was found behind listening sockets.
#[derive(Default)]
struct Owners {
    known: HashMap<SocketAddr, u32>,
    /// When all processes were looked at last.
    searched: Option<Instant>,
}

impl School {
    /// The process that holds the other end of the agent's connection from `from` to `at`; none when it could not
    /// be found, or all processes were searched a moment ago.
    async fn owner(&self, at: SocketAddr, from: SocketAddr) -> Option<u32> {
        let look = async || tokio::task::spawn_blocking(move || learn::inode(at, from).ok()?).await.ok()?;
        let inode = match look().await {
            Some(inode) => inode,
            None => {
                // It may still wait to be accepted.
                tokio::time::sleep(SECOND_LOOK).await;
                look().await?
            }
        };
        let known = self.owners.lock().known.get(&at).copied();
        if let Some(pid) = known.filter(|pid| learn::holds(*pid, inode)) {
            return Some(pid);
        }
        {
            let mut owners = self.owners.lock();
            if owners.searched.is_some_and(|last| last.elapsed() < SEARCH_AGAIN) {
                return None;
            }
            owners.searched = Some(Instant::now());
        }
        let pid = tokio::task::spawn_blocking(move || learn::holder(inode).ok()?).await.ok()??;
        let mut owners = self.owners.lock();
        if owners.known.len() >= ROOM {
            owners.known.clear();
        }
        owners.known.insert(at, pid);
        Some(pid)
    }

    /// The verdict on the program of `pid`, which has a socket from `local` to `remote`; none when nothing could
    /// be learned: a program that is gone teaches nothing.
    async fn judge(&self, pid: u32, local: SocketAddr, remote: SocketAddr) -> Option<Verdict> {
        let (file, path) = learn::executable(pid).ok()?;
        let before = self.memory.lock().verdict(file);
        if let Some(reason) = self.table.refused(file, pid) {
            return Some(self.memory.lock().refuse(file, reason, Instant::now()));
        }
        if !self.memory.lock().wants(file, Instant::now()) {
            // The kernel half may have forgotten it, or know another program by this number.
            let verdict = before?;
            self.table.set(file, pid, verdict);
            return Some(verdict);
        }
        let refused = match before {
            None => look_into(pid, path, self.inspect).await,
            Some(_) => None,
        };
        if refused == Some(Reason::Unreadable) && learn::executable(pid).ok().is_none_or(|(now, _)| now != file) {
            // It ended, or became another program, before it could be read.
            return None;
        }
        let search = refused.is_none() && self.memory.lock().searches(file, Instant::now());
        let refused = if search { look_for_rings(pid).await } else { refused };
        let seen = match refused {
            Some(_) => None,
            None => Some(look_at(pid, local, remote).await?),
        };
        let mut memory = self.memory.lock();
        let verdict = match (refused, seen) {
            (Some(reason), _) => memory.refuse(file, reason, Instant::now()),
            (None, seen) => memory.saw(file, seen?, Instant::now()),
        };
        // Under the lock: another look's later verdict must not be overwritten.
        self.table.set(file, pid, verdict);
        drop(memory);
        if Some(verdict) != before {
            tracing::debug!(pid, ?file, verdict = verdict.text(), "redirect: a program was looked at");
        }
        Some(verdict)
    }
}

/// Reads the program file, which may be large, where waiting for the disk harms nobody.
async fn look_into(pid: u32, path: PathBuf, inspect: Inspect) -> Option<Reason> {
    let look = move || {
        let found = inspect(pid, &path);
        // Once for each program; what it read is of no further use.
        sys::give_memory_back();
        found
    };
    tokio::task::spawn_blocking(look).await.unwrap_or(Some(Reason::Unreadable))
}

/// Looks through the descriptors of a process, which may be many.
async fn look_for_rings(pid: u32) -> Option<Reason> {
    let looked = tokio::task::spawn_blocking(move || learn::has_ring(pid)).await;
    // One that cannot be looked at is learned nothing of, and stays on TCP.
    matches!(looked, Ok(Ok(true))).then_some(Reason::Ring)
}

/// Looks at the socket, twice: programs may connect or accept and set it to non-blocking a moment later, or the
/// other way round. Whether it is non-blocking; none when nothing can be said.
async fn look_at(pid: u32, local: SocketAddr, remote: SocketAddr) -> Option<bool> {
    let look = async || {
        let looked = tokio::task::spawn_blocking(move || learn::is_nonblocking(pid, local, remote));
        looked.await.ok()?.ok()?
    };
    let first = look().await?;
    tokio::time::sleep(SECOND_LOOK).await;
    // One that is closed meanwhile was non-blocking to its end, or may have been about to become it.
    look().await.or(first.then_some(true))
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        process,
    };

    use super::*;

    struct Told(Sender<(File, Verdict)>);

    impl Table for Told {
        fn set(&self, file: File, pid: u32, verdict: Verdict) {
            assert_eq!(pid, process::id());
            self.0.try_send((file, verdict)).unwrap();
        }

        fn set_acceptor(&self, _: SocketAddr, _: Verdict) {}

        fn refused(&self, _: File, _: u32) -> Option<Reason> {
            None
        }
    }

    struct World {
        learner: Learner,
        told: Receiver<(File, Verdict)>,
        listener: TcpListener,
    }

    impl World {
        fn new(inspect: Inspect) -> Self {
            let (tx, told) = channel(16);
            let learner = Learner::with(Arc::new(Told(tx)), inspect);
            Self { learner, told, listener: TcpListener::bind("127.0.0.1:0").unwrap() }
        }

        /// This very process as the program that connects; the verdict that follows.
        async fn connects(&mut self, nonblocking: bool) -> Verdict {
            let stream = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
            stream.set_nonblocking(nonblocking).unwrap();
            let (local, remote) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            self.learner.seen(Seen::Caller { pid: process::id(), local, remote });
            let (file, verdict) = self.told.recv().await.unwrap();
            assert_eq!(file, learn::executable(process::id()).unwrap().0);
            verdict
        }
    }

    #[tokio::test]
    async fn a_program_is_learned_by_its_sockets() {
        let mut world = World::new(|_, _| None);
        for wanted in [Verdict::Learning(1), Verdict::Learning(2), Verdict::On] {
            assert_eq!(world.connects(true).await, wanted);
        }
        assert_eq!(World::new(|_, _| None).connects(false).await, Verdict::Off(Reason::Blocking));
        assert_eq!(World::new(|_, _| Some(Reason::Go)).connects(true).await, Verdict::Off(Reason::Go));
    }

    #[tokio::test]
    async fn a_program_that_ends_while_it_is_looked_at_teaches_nothing() {
        fn ends(pid: u32, _: &Path) -> Option<Reason> {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            // Nobody has waited for it yet, but it runs no program any more.
            let ended = |status: &str| status.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
            while !ended(&std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap()) {
                std::thread::yield_now();
            }
            Some(Reason::Unreadable)
        }
        let mut child = process::Command::new("sleep").arg("100").spawn().unwrap();
        let (table, _told) = channel(16);
        let school =
            School { memory: Mutex::default(), owners: Mutex::default(), table: Arc::new(Told(table)), inspect: ends };
        // Not the program that this process has become for a moment on its way there.
        let own = learn::executable(process::id()).unwrap().0;
        let file = loop {
            match learn::executable(child.id()) {
                Ok((file, _)) if file != own => break file,
                _ => std::thread::yield_now(),
            }
        };
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(school.judge(child.id(), nowhere, nowhere).await, None);
        assert_eq!(school.memory.lock().verdict(file), None);
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_learner_that_is_behind_holds_nobody_up() {
        let world = World::new(|_, _| None);
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        for _ in 0..10 * ROOM {
            world.learner.seen(Seen::Caller { pid: u32::MAX, local: nowhere, remote: nowhere });
        }
    }
}
