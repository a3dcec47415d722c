//! What every test here stands on: an agent's capture of its own, control groups of its own, programs in them.

use std::{
    fs,
    io::{Read as _, Seek as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use agent::{
    capture::{Capture as _, CaptureTable, Origin, ebpf, enroll},
    config::{self, Enroll, OnAgentLoss, VirtualAddress},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    time::timeout,
};

/// Nothing here takes longer unless it hangs.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Sends without blocking until nothing is taken for 2 s, says how much that was; told to go on, sends to argv[3]
/// and ends.
pub const FLOOD: &str = "
import select, socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
s.setblocking(False)
total, n = int(sys.argv[3]), 0
piece = bytes([7]) * 16384
while select.select([], [s], [], 2)[1]:
    try: n += s.send(piece)
    except BlockingIOError: pass
print(n, flush=True)
sys.stdin.readline()
s.setblocking(True)
while n < total: n += s.send(piece)
print(n)
";

/// Whether kernel tests can run here; if not, says so as `SKIPPED`, or fails when nothing may be skipped.
pub fn can_run(test: &str, programs: &[&str]) -> bool {
    let missing = |program: &&&str| {
        !std::env::var("PATH").unwrap_or_default().split(':').any(|dir| Path::new(dir).join(program).exists())
    };
    let reason = if ebpf::OBJECT.is_none() {
        Some("this build has no eBPF object".to_owned())
    } else if let Some(rights) = ebpf::missing_rights() {
        Some(format!("lacks {rights}"))
    } else if enroll::mount().is_none() {
        Some("no cgroup v2".to_owned())
    } else {
        programs.iter().find(missing).map(|p| format!("no {p} here"))
    };
    let Some(reason) = reason else { return true };
    println!("SKIPPED: {test}: {reason}");
    assert!(std::env::var("REQUIRE_ALL").is_err(), "{test} may not be skipped: {reason}");
    false
}

/// Returns from the test when it cannot run here.
#[macro_export]
macro_rules! need {
    ($test:literal $(, $program:literal)*) => {
        if !$crate::bed::can_run($test, &[$($program),*]) {
            return;
        }
    };
}

/// A capture with listeners, one enrolled control group and one that is not.
pub struct Bed {
    pub name: String,
    pub ebpf: Option<ebpf::Ebpf>,
    pub config: config::Capture,
    pub table: CaptureTable,
    pub listener4: TcpListener,
    pub listener6: TcpListener,
    pub enrolled: PathBuf,
    pub other: PathBuf,
    root: PathBuf,
}

impl Bed {
    /// Captures connects to `services` (`address` or `address:port`), which go directly when the agent is gone.
    pub async fn new(services: &[&str]) -> Self {
        Self::with(services, |_| {}).await
    }

    /// As [`new`](Self::new), after `change` of the configuration.
    pub async fn with(services: &[&str], change: impl FnOnce(&mut config::Capture)) -> Self {
        let mut bed = Self::unloaded(services, change).await;
        bed.load(None);
        bed.apply();
        bed
    }

    /// Everything but the capture itself.
    pub async fn unloaded(services: &[&str], change: impl FnOnce(&mut config::Capture)) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("kernel-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let root = enroll::mount().unwrap().join(&name);
        // Sockets belong to the group that their process was in when they were made.
        agent_group();
        let (enrolled, other) = (root.join("enrolled"), root.join("other"));
        fs::create_dir_all(&enrolled).unwrap();
        fs::create_dir_all(&other).unwrap();
        // A bpffs of its own, so that tests do not meet in one.
        let bpffs = std::env::temp_dir().join(&name).join("bpf");
        fs::create_dir_all(&bpffs).unwrap();
        let mut config = config::Capture {
            mode: config::CaptureMode::Ebpf,
            enroll: vec![Enroll::cgroup(enrolled.clone())],
            root: None,
            // The tests beat once, where they apply; a slow machine must not make that stale.
            stale_after: Duration::from_secs(600),
            max_connections: 1024,
            bpffs,
            redirect: config::Redirect::Off,
            ..config::Capture::default()
        };
        change(&mut config);
        let listener4 = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener6 = TcpListener::bind("[::1]:0").await.unwrap();
        let table = CaptureTable {
            destinations: services.iter().map(|s| (service(s), OnAgentLoss::Direct)).collect(),
            straight: Vec::new(),
            listeners: vec![listener4.local_addr().unwrap(), listener6.local_addr().unwrap()],
            inbound: Vec::new(),
            clients: Vec::new(),
            enroll: config.enroll.clone(),
            redirect: config.redirect,
            ..CaptureTable::default()
        };
        Self { name, ebpf: None, config, table, listener4, listener6, enrolled, other, root }
    }

    pub fn load(&mut self, log: Option<tracing::Level>) {
        self.ebpf = Some(ebpf::Ebpf::load(&self.name, &self.config, log).unwrap());
    }

    pub fn apply(&self) {
        self.ebpf().apply(&self.table).unwrap();
    }

    pub fn ebpf(&self) -> &ebpf::Ebpf {
        self.ebpf.as_ref().unwrap()
    }

    pub fn counter(&self, name: &str) -> u64 {
        self.ebpf().counters()[name]
    }

    /// The folder of its pins.
    pub fn pins(&self) -> PathBuf {
        self.config.bpffs.join("sockmesh").join(&self.name)
    }

    /// Accepts one captured connection.
    pub async fn accept(&self) -> (TcpStream, std::io::Result<Origin>) {
        let accepted = async {
            tokio::select! {
                a = self.listener4.accept() => a,
                a = self.listener6.accept() => a,
            }
        };
        let (conn, _) = timeout(LIMIT, accepted).await.expect("nothing arrived at the listener").unwrap();
        let origin = self.ebpf().origin(&conn);
        (conn, origin)
    }

    /// Runs `script` with Python in the enrolled control group, `args` from `sys.argv[1]` on.
    pub fn python(&self, script: &str, args: &[&str]) -> Running {
        let mut all = vec!["python3", "-c", script];
        all.extend(args);
        run_in(&self.enrolled, &all)
    }

    /// A control group below `below`.
    pub fn cgroup(&self, below: &Path, name: &str) -> PathBuf {
        let path = below.join(name);
        fs::create_dir(&path).unwrap();
        path
    }
}

/// Moves this process into a control group of its own, once: the tests play the agent, and none of them may
/// find it in the root group and make one that ends with the test. The group goes when the process starts
/// anew: nobody can remove the group it is in.
fn agent_group() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let mount = enroll::mount().unwrap();
        for entry in fs::read_dir(&mount).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("kernel-agent-") {
                // Fails for the group of a process that runs.
                let _ = fs::remove_dir(entry.path());
            }
        }
        let group = mount.join(format!("kernel-agent-{}", std::process::id()));
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    });
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(ebpf) = self.ebpf.take() {
            ebpf.uninstall().unwrap();
        }
        end_all(&self.root);
        remove_groups(&self.root);
        let _ = fs::remove_dir(&self.config.bpffs);
        let _ = self.config.bpffs.parent().map(fs::remove_dir);
    }
}

/// Ends every program in `group` and below, and waits until they are gone: only empty groups can be removed.
fn end_all(group: &Path) {
    let _ = fs::write(group.join("cgroup.kill"), "1");
    let Ok(mut events) = fs::File::open(group.join("cgroup.events")) else { return };
    loop {
        let mut text = String::new();
        if events.rewind().is_err() || events.read_to_string(&mut text).is_err() || text.contains("populated 0") {
            return;
        }
        let changed = &mut [PollFd::new(&events, PollFlags::PRI)];
        if poll(changed, Some(&Timespec { tv_sec: 10, tv_nsec: 0 })) == Ok(0) {
            return;
        }
    }
}

fn remove_groups(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

/// `address` or `address:port`.
pub fn service(text: &str) -> VirtualAddress {
    match text.parse::<SocketAddr>() {
        Ok(a) => VirtualAddress { ip: a.ip(), port: Some(a.port()) },
        Err(_) => VirtualAddress { ip: text.parse().unwrap(), port: None },
    }
}

/// A program that was started; killed when dropped.
pub struct Running {
    pub pid: u32,
    pub child: Child,
}

impl Running {
    /// Waits for its end; what it printed. Panics when it failed.
    pub async fn done(self) -> String {
        let output = timeout(LIMIT, self.child.wait_with_output()).await.expect("the program hangs").unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
        out.trim().to_owned()
    }

    /// Reads one line that it prints.
    pub async fn line(&mut self) -> String {
        let out = self.child.stdout.as_mut().unwrap();
        let mut line = String::new();
        let read = async {
            loop {
                match out.read_u8().await.map(char::from) {
                    Ok('\n') => return,
                    Ok(c) => line.push(c),
                    Err(e) => panic!("the program ended: {e}"),
                }
            }
        };
        timeout(LIMIT, read).await.expect("the program says nothing");
        line
    }

    /// Lets it go on: the scripts wait for a line.
    pub async fn go_on(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").await.unwrap();
    }
}

/// Runs `command` in `cgroup`.
pub fn run_in(cgroup: &Path, command: &[&str]) -> Running {
    // The shell moves itself, then becomes the program: the process keeps its number.
    let child = Command::new("/bin/sh")
        .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""])
        .arg(cgroup)
        .args(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    Running { pid: child.id().unwrap(), child }
}

/// A server that is no agent: sends `direct` to everyone. Ends with the test's runtime.
pub async fn direct(address: &str) -> SocketAddr {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut conn, _)) = listener.accept().await {
            let _ = conn.write_all(b"direct").await;
        }
    });
    address
}
